"""Making a damaged index whole again, and saying what is lost."""

from __future__ import annotations

import json
import sqlite3

import numpy as np
import pytest

from llm2clip.encoders import FakeEncoder
from llm2clip.indexer import IndexDamagedError, build_index, compact_index, open_index, update_index
from llm2clip.indexer.lifecycle.repair import repair_index

from .material import content, encoded

ITEMS, VECTORS, STRUCTURE = "items-00001.db", "vectors-00001-00000.npy", "candidates-00001.faiss"


@pytest.fixture
def index(photos, tmp_path):
    build_index(photos, tmp_path / "i", encoder=FakeEncoder())
    return tmp_path / "i"


def flip(path, place: int) -> None:
    changed = bytearray(path.read_bytes())
    changed[place] ^= 1
    path.write_bytes(changed)


def whole(index) -> dict:
    with open_index(index) as opened:
        assert opened.verify().problems == ()
        return content(opened)


def test_repair_index_leaves_a_whole_index_alone(index):
    before = {file.name: file.read_bytes() for file in index.iterdir()}
    assert repair_index(index).repaired == ()
    assert {file.name: file.read_bytes() for file in index.iterdir()} == before


@pytest.mark.parametrize("damage", ["flip", "cut", "delete"])
def test_repair_index_restores_vectors_from_the_exact_index(index, damage):
    expected = whole(index)
    damaged(index / VECTORS, damage)
    report = repair_index(index)
    assert report.repaired == (f"{VECTORS} was restored from {STRUCTURE}",)
    assert (report.lost, report.items) == (0, 30)
    assert whole(index) == expected


def damaged(path, damage: str) -> None:
    if damage == "flip":
        flip(path, -3)
    elif damage == "cut":
        path.write_bytes(path.read_bytes()[:-7])
    else:
        path.unlink()


@pytest.mark.parametrize("damage", ["flip", "cut", "delete"])
def test_repair_index_rebuilds_the_ann_index(index, damage):
    expected = whole(index)
    damaged(index / STRUCTURE, damage)
    report = repair_index(index)
    assert (report.repaired, report.lost) == ((f"{STRUCTURE} was rebuilt from the vectors",), 0)
    assert whole(index) == expected


def test_repair_index_removes_images_of_lost_vectors(index, photos):
    expected = whole(index)
    (photos / "later.png").write_bytes(encoded((1, 2, 3)))
    update_index(index, encoder=FakeEncoder())
    flip(index / VECTORS, -3)
    flip(index / STRUCTURE, -3)
    with pytest.raises(IndexDamagedError, match=r"was altered.*nothing was written.*verify --repair"):
        compact_index(index)
    report = repair_index(index)
    assert (report.lost, report.items) == (30, 1)
    assert [key for _, key in whole(index)] == ["later.png"]
    encoder = FakeEncoder()
    update_index(index, encoder=encoder)
    assert sum(encoder.image_batches) == 30  # nothing is taken over from what is lost
    assert {key: row for key, row in whole(index).items() if key[1] != "later.png"} == expected


def test_repair_index_removes_altered_items(index):
    expected = whole(index)
    with sqlite3.connect(index / ITEMS) as db:
        db.execute("UPDATE items SET caption = 'a lie' WHERE key = '003.png'")
    db.close()
    with open_index(index) as opened:
        assert opened.verify().problems == (f"{ITEMS} was altered: the checksum of '003.png' does not fit",)
    assert repair_index(index).lost == 1
    assert len(whole(index)) == 29
    update_index(index, encoder=FakeEncoder())
    assert whole(index) == expected


def test_repair_index_names_the_command_that_helps(index, photos):
    (index / ITEMS).write_bytes(b"not a database" * 9000)
    with pytest.raises(
        IndexDamagedError, match=rf"{ITEMS} cannot be repaired .*build {photos} .*--overwrite"
    ):
        repair_index(index)
    manifest = json.loads((index / "manifest.json").read_text())
    (index / "manifest.json").write_text(json.dumps({**manifest, "rows": 31}))
    with pytest.raises(IndexDamagedError, match=r"checksum does not fit its content.*--overwrite"):
        repair_index(index)


def test_join_small_leaves_damaged_segments(index, photos):
    flip(index / VECTORS, -3)
    for number in range(40):
        (photos / f"new{number}.png").write_bytes(encoded((1, 2, number)))
    update_index(index, encoder=FakeEncoder())
    with open_index(index) as opened:
        assert f"{VECTORS} was altered: its checksum does not fit" in opened.verify().problems
        ids = np.arange(30, 70)
        assert np.isfinite(opened.vectors.take(ids).astype(np.float32)).all()
