"""Indexes that are missing, damaged, mixed up, or of another format version; and their repair."""

import builtins
import hashlib
import json
import sqlite3

import numpy as np
import pytest

from llm2clip.encoders import FakeEncoder
from llm2clip.indexer import (
    BuildOptions,
    FaissNotInstalledError,
    IndexDamagedError,
    IndexNotFoundError,
    IndexVersionError,
    build_index,
    compact_index,
    open_index,
    update_index,
)
from llm2clip.indexer.lifecycle.repair import repair_index
from llm2clip.indexer.storage.manifest import read_manifest, write_manifest

from .material import Stopping, encoded, flip, whole

ITEMS, VECTORS, ANN = KINDS = ["items-00001.db", "vectors-00001-00000.npy", "candidates-00001.faiss"]
QUERY = np.eye(1, 16, dtype=np.float32)


def test_open_index_says_how_to_build_a_missing_index(tmp_path):
    for place in ("nowhere", ""):
        with pytest.raises(IndexNotFoundError, match=f"no index at {tmp_path}.*: make one with"):
            open_index(tmp_path / place)
    (tmp_path / "file").write_text("x")
    with pytest.raises(IndexNotFoundError, match=r"no index at .*file"):
        open_index(tmp_path / "file")


@pytest.mark.parametrize("name", KINDS)
def test_open_index_refuses_missing_and_cut_files(index, photos, name):
    (index / name).write_bytes((index / name).read_bytes()[:-1])
    with pytest.raises(
        IndexDamagedError, match=f"{name} is damaged: got .* bytes, expected .*run the build command"
    ):
        open_index(index)
    (index / name).unlink()
    with pytest.raises(IndexDamagedError, match=f"{name} is missing: the index is incomplete"):
        open_index(index)
    report = build_index(photos, index, encoder=FakeEncoder())
    # Vectors are embedded again only where they or their items are what was lost.
    assert report.embedded == (0 if name.endswith("faiss") else 30)
    whole(index)


@pytest.mark.parametrize("name", KINDS[1:])
@pytest.mark.parametrize("place", [0, 20, -1, -700])
def test_verify_finds_a_flipped_bit(index, name, place):
    flip(index / name, place)
    try:
        with open_index(index) as opened:
            problems = opened.verify().problems
    except IndexDamagedError:
        return  # found even sooner
    assert f"{name} was altered: its checksum does not fit" in problems


@pytest.mark.parametrize("what", [b"013.png", b"summer/lake", hashlib.blake2b])
def test_verify_finds_a_flipped_bit_of_an_item(index, photos, what):
    """Of a key in the table and in its index, of a content hash in both; unused bytes of the file do not matter."""
    if callable(what):
        what = what((photos / "003.png").read_bytes(), digest_size=16).digest()
    before = (index / KINDS[0]).read_bytes()
    places = [n for n in range(len(before)) if before.startswith(what, n)]
    assert len(places) >= 2
    for place in places:
        flip(index / KINDS[0], place + 5)
        try:
            with open_index(index) as opened:
                problems = opened.verify().problems
            assert [each for each in problems if each.startswith("items-00001.db ")]
        except IndexDamagedError:
            pass  # found even sooner
        (index / KINDS[0]).write_bytes(before)
    whole(index)


def test_verify_finds_what_checksums_do_not(index):
    """Files replaced together with their checksums."""

    def replace(name: str) -> None:
        manifest = read_manifest(index)
        record = type(manifest.files[name])(
            bytes=(index / name).stat().st_size,
            sha256=hashlib.sha256((index / name).read_bytes()).hexdigest(),
        )
        manifest.files[name] = record
        write_manifest(index, manifest)

    rows = np.load(index / KINDS[1])
    rows[7] *= 2
    np.save(index / KINDS[1], rows)
    replace(KINDS[1])
    with sqlite3.connect(index / KINDS[0]) as db:
        db.execute("DELETE FROM items WHERE id = 3")
    db.close()
    with open_index(index) as opened:
        assert opened.verify().problems == (
            "numbers of images differ: 30 in the manifest, 29 in items-00001.db",
            "1 vectors are not of unit length, the first with id 7",
            "candidates-00001.faiss has other vectors than the segments, from about id 0",
        )
        with pytest.raises(IndexDamagedError, match=r"items-00001\.db is damaged at item 3"):
            opened.search(QUERY, k=30)


@pytest.mark.parametrize("overwrite", [False, True])
@pytest.mark.parametrize("content", [b"no database" * 9000, b"", None])
def test_build_index_replaces_lost_items(index, photos, content, overwrite):
    items = index / "items-00001.db"
    if content is None:
        items.unlink()
    else:
        items.write_bytes(content)
    report = build_index(photos, index, encoder=FakeEncoder(), options=BuildOptions(overwrite=overwrite))
    assert (report.items, report.embedded) == (30, 30)
    assert overwrite or "the index was damaged" in report.notes[0]
    with open_index(index) as opened:
        assert opened.verify().problems == ()
    own = {"lock", "manifest.json", opened.manifest.items_file, *opened.manifest.files}
    assert {file.name for file in index.iterdir()} == own


def test_read_manifest_refuses_an_altered_manifest(index, photos):
    path = index / "manifest.json"
    content = json.loads(path.read_text())
    path.write_text(json.dumps({**content, "items": 29}))
    with pytest.raises(IndexDamagedError, match="was altered: its checksum does not fit"):
        open_index(index)
    path.write_text(path.read_text()[:-20])
    with pytest.raises(IndexDamagedError, match="is damaged: it is not JSON"):
        open_index(index)
    path.write_text("{}")
    with pytest.raises(IndexDamagedError, match="is not the manifest of an index"):
        open_index(index)
    with pytest.raises(IndexDamagedError):
        build_index(photos, index, encoder=FakeEncoder())


def test_read_manifest_refuses_unknown_entries(index):
    from llm2clip.indexer.storage.manifest import _checksum

    path = index / "manifest.json"
    content = {**json.loads(path.read_text()), "colour": "green"}
    path.write_text(json.dumps({**content, "checksum": _checksum(content)}))
    with pytest.raises(IndexDamagedError, match="missing or unknown entries: colour"):
        open_index(index)


def test_read_manifest_names_another_format_version(index, photos):
    path = index / "manifest.json"
    content = json.loads(path.read_text())
    path.write_text(json.dumps({**content, "format_version": 99, "written_by": "llm2clip-retrieval 9.0"}))
    expected = (
        "has index format version 99, this release reads version 3: use the release that wrote it .*9.0"
    )
    with pytest.raises(IndexVersionError, match=expected):
        open_index(index)
    with pytest.raises(IndexVersionError, match=expected):
        build_index(photos, index, encoder=FakeEncoder())
    before = {file.name: file.read_bytes() for file in index.iterdir()}

    with pytest.raises(KeyboardInterrupt):
        build_index(photos, index, encoder=Stopping(0), options=BuildOptions(overwrite=True))
    assert {file.name: file.read_bytes() for file in index.iterdir()} == before
    build_index(photos, index, encoder=FakeEncoder(), options=BuildOptions(overwrite=True))
    with open_index(index) as opened:
        assert opened.manifest.generation == 2


def test_open_index_refuses_an_unfinished_index(index, photos, tmp_path):
    """What a copy that was broken off leaves: any part of the files."""
    (index / "manifest.json").unlink()
    with pytest.raises(IndexNotFoundError, match="is unfinished: 30 images so far"):
        open_index(index)
    (index / KINDS[0]).write_bytes(b"not a database")
    with pytest.raises(IndexNotFoundError, match=r"is unfinished\. Run the command that began it again"):
        open_index(index)
    assert build_index(photos, index, encoder=FakeEncoder()).embedded == 30


def test_read_image_refuses_a_changed_tar(shards, tmp_path):
    build_index(shards, tmp_path / "t", encoder=FakeEncoder())
    flip(shards / "00.tar", 520)
    with open_index(tmp_path / "t") as opened:
        with pytest.raises(ValueError, match=r"00\.tar changed since it was indexed: build the index again"):
            opened.read_image(0)
        with pytest.raises(ValueError, match="no image has the id 5: ids go from 0 to 4"):
            opened.read_image(5)


def test_open_index_writes_nothing(index):
    """Nothing is written beside the files: no journal, no lock, nothing at all."""
    before = sorted(path.name for path in index.iterdir())
    for path in index.iterdir():
        path.chmod(0o444)
    index.chmod(0o555)
    try:
        with open_index(index) as opened:
            assert len(opened.search(QUERY, k=3)[0]) == 3
            assert opened.verify().ok
    finally:
        index.chmod(0o755)
    assert sorted(path.name for path in index.iterdir()) == before


def test_open_index_takes_names_with_uri_characters(photos, tmp_path):
    folder = tmp_path / "a?b#c%20d é.index"
    build_index(photos, folder, encoder=FakeEncoder())
    with open_index(folder) as opened:
        assert len(opened.search(QUERY)[0]) == 10


def test_missing_faiss_names_the_extra(index, photos, tmp_path, monkeypatch):
    real = builtins.__import__

    def without(name, *rest, **options):
        if name == "faiss":
            raise ModuleNotFoundError("No module named 'faiss'")
        return real(name, *rest, **options)

    monkeypatch.setattr(builtins, "__import__", without)
    with open_index(index) as opened:
        assert opened.info().items == 30
        with pytest.raises(FaissNotInstalledError, match=r"pip install 'llm2clip-retrieval\[cpu\]'"):
            opened.search(QUERY)
        report = opened.verify()
        assert report.ok
        assert report.notes[0].startswith("the ANN index was not compared: ")
    with pytest.raises(FaissNotInstalledError):
        build_index(photos, tmp_path / "new", encoder=FakeEncoder())
    assert not (tmp_path / "new").exists()


def test_repair_index_leaves_a_whole_index_alone(index):
    before = {file.name: file.read_bytes() for file in index.iterdir()}
    assert repair_index(index).repaired == ()
    assert {file.name: file.read_bytes() for file in index.iterdir()} == before


@pytest.mark.parametrize("damage", ["flip", "cut", "delete"])
@pytest.mark.parametrize(
    ("name", "how"), [(VECTORS, f"restored from {ANN}"), (ANN, "rebuilt from the vectors")]
)
def test_repair_index_makes_vectors_and_ann_index_of_each_other(index, name, how, damage):
    expected = whole(index)
    if damage == "flip":
        flip(index / name, -3)
    elif damage == "cut":
        (index / name).write_bytes((index / name).read_bytes()[:-7])
    else:
        (index / name).unlink()
    report = repair_index(index)
    assert (report.repaired, report.lost, report.items) == ((f"{name} was {how}",), 0, 30)
    assert whole(index) == expected


def test_repair_index_removes_images_of_lost_vectors(index, photos):
    expected = whole(index)
    (photos / "later.png").write_bytes(encoded((1, 2, 3)))
    update_index(index, encoder=FakeEncoder())
    flip(index / VECTORS, -3)
    flip(index / ANN, -3)
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
