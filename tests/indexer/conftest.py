"""Small corpora and indexes made on the spot."""

import json
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from llm2clip.encoders import FakeEncoder
from llm2clip.indexer import Index, build_index

from .material import colour_of, encoded, tar_of, write_index


@pytest.fixture
def encoder() -> FakeEncoder:
    return FakeEncoder()


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """A folder of 30 images in three folders."""
    folder = tmp_path / "photos"
    for number in range(30):
        file = folder / ["", "summer", "summer/lake"][number % 3] / f"{number:03d}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(encoded(colour_of(number)))
    return folder


@pytest.fixture
def shards(tmp_path: Path) -> Path:
    """A folder of two WebDataset shards with five images, captions and metadata."""
    folder = tmp_path / "shards"
    folder.mkdir()
    for shard, numbers in enumerate([(0, 1, 2), (3, 4)]):
        members: dict[str, bytes] = {}
        for number in numbers:
            members[f"{number:04d}.webp"] = encoded(colour_of(number), format="WEBP")
            about = {"caption": f"image {number}", "emoji": "🦒", "names": {"zh": "长颈鹿"}}
            members[f"{number:04d}.json"] = json.dumps(about).encode()
        (folder / f"{shard:02d}.tar").write_bytes(tar_of(members))
    return folder


@pytest.fixture
def index(photos: Path, tmp_path: Path) -> Path:
    """The index of ``photos``."""
    build_index(photos, tmp_path / "i", encoder=FakeEncoder())
    return tmp_path / "i"


@pytest.fixture
def loaded(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the encoders that were loaded; all are fakes, and different ones."""
    names: list[str] = []

    def load(name: str, **_: object) -> FakeEncoder:
        names.append(name)
        return FakeEncoder(name=name, seed=sum(name.encode()))

    monkeypatch.setattr("llm2clip.encoders.load_encoder", load, raising=False)
    monkeypatch.delenv("LLM2CLIP_ENCODER", raising=False)
    monkeypatch.delenv("LLM2CLIP_INDEX", raising=False)
    return names


@pytest.fixture
def sample(shards: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The shards in place of the sample corpus."""
    for module in ("core.index_paths", "containers.tar"):
        monkeypatch.setattr(f"llm2clip.indexer.{module}.sample_folder", lambda: shards)
    return shards


MakeIndex = Callable[[np.ndarray], Index]


@pytest.fixture
def index_of(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MakeIndex]:
    """Make an index of given rows, (n, dim) float32, without any image."""
    opened: list[Index] = []

    def make(rows: np.ndarray) -> Index:
        opened.append(write_index(tmp_path_factory.mktemp("index"), rows))
        return opened[-1]

    yield make
    for index in opened:
        index.close()


class SmallDisk:
    """A file system of its own, whose size can be changed."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def remount(self, options: str) -> None:
        subprocess.run(["mount", "-o", f"remount,{options}", str(self.path)], check=True)

    def resize(self, size: str) -> None:
        self.remount(f"size={size}")

    def leave(self, kilobytes: int, folder: Path) -> None:
        """Leave so much room beside the files of a folder."""
        used = sum(file.stat().st_size for file in folder.iterdir())
        self.resize(f"{used // 1024 + kilobytes}k")


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[SmallDisk]:
    place = tmp_path / "disk"
    place.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=64m", "tmpfs", str(place)], capture_output=True, check=False
    )
    if mounted.returncode:
        pytest.skip("cannot mount a tmpfs here (needs root); the file size limit is tested all the same")
    yield SmallDisk(place)
    subprocess.run(["umount", "-l", str(place)], check=True)
