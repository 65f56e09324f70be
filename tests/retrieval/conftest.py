"""Coloured images, their index by ``FakeEncoder``, and a command line that knows that encoder."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
from PIL import Image
from typer.testing import CliRunner, Result

from llm2clip.encoders import FakeEncoder
from llm2clip.indexer import Hit, build_index

COLOURS = {
    "red": "#ff0000",
    "green": "#00ff00",
    "blue": "#0000ff",
    "yellow": "#ffff00",
    "cyan": "#00ffff",
    "magenta": "#ff00ff",
    "white": "#ffffff",
    "black": "#000000",
}


def image(colour: str, *, size: tuple[int, int] = (24, 16)) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", size, colour).save(buffer, "PNG")
    return buffer.getvalue()


def write_shard(path: Path, members: dict[str, bytes]) -> None:
    with tarfile.open(path, "w") as tar:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))


def write_coloured_shard(path: Path, *, colours: dict[str, str] = COLOURS) -> None:
    """One image per colour, with captions in several languages as the sample corpus has them."""
    members: dict[str, bytes] = {}
    for name, colour in colours.items():
        caption = {"caption": f"a {name} square", "names": {"en": name, "zh": f"{name}色"}, "emoji": "🟥"}
        members[f"{name}.png"] = image(colour)
        members[f"{name}.json"] = json.dumps(caption, ensure_ascii=False).encode()
    write_shard(path, members)


def hit(rank: int = 1, **changes: object) -> Hit:
    values = {
        "id": rank,
        "key": f"p{rank}.png",
        "score": 0.75 - rank / 8,
        "rank": rank,
        "uri": f"s3://images/p{rank}.png",
    }
    return Hit(**{"width": 640, "height": 480, **values, **changes})


@dataclass(frozen=True)
class Corpus:
    folder: Path
    index: Path
    encoder: FakeEncoder


@pytest.fixture
def corpus(tmp_path: Path) -> Corpus:
    """A folder of one image per colour, two of them with captions, and its index."""
    folder = tmp_path / "images"
    (folder / "warm").mkdir(parents=True)
    (folder / "cold").mkdir()
    for name, colour in COLOURS.items():
        warm = name in ("red", "yellow", "magenta")
        (folder / ("warm" if warm else "cold") / f"{name}.png").write_bytes(image(colour))
    (folder / "warm" / "red.txt").write_text("a red square")
    (folder / "cold" / "blue.json").write_text('{"caption": "a blue square", "mood": "calm"}')
    encoder = FakeEncoder()
    build_index(folder, tmp_path / "images.index", encoder=encoder)
    return Corpus(folder, tmp_path / "images.index", encoder)


@pytest.fixture
def fake_by_name(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], FakeEncoder]:
    """``load_encoder`` that knows ``fake``, ``nano`` (a fake as well) and ``other``."""
    from llm2clip import encoders

    def load(name: str, *, device: str = "auto", dtype: str = "auto") -> FakeEncoder:
        if name not in ("fake", "nano", "other"):
            raise encoders.ModelError(f"no encoder named {name!r}")
        return FakeEncoder(name=name, seed=1 if name == "other" else 0)

    monkeypatch.setattr(encoders, "load_encoder", load)
    return load


@pytest.fixture
def search(fake_by_name: object) -> Callable[..., Result]:
    """Runs ``llm2clip-search`` in this process."""
    from llm2clip.retrieval.cli import app

    def run(*arguments: object, stdin: bytes | str | None = None, **environment: str) -> Result:
        return CliRunner().invoke(
            app, [str(argument) for argument in arguments], input=stdin, env={"COLUMNS": "80", **environment}
        )

    return run
