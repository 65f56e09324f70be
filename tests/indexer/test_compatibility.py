"""Indexes of format 3 as commit a15bf33 wrote them: they open, answer as they did then, update and compact.

``data/index-format-3.tar.gz`` holds an index over a folder and a tar after four generations (build, add, remove,
update), one with an HNSW index over 600 images, the corpora of the first, and the answers of that commit. The encoder
is ``FakeEncoder()``.
"""

import json
import tarfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from llm2clip.encoders import FakeEncoder
from llm2clip.indexer import compact_index, open_index, update_index
from llm2clip.indexer.core.index_paths import remember
from llm2clip.indexer.lifecycle.repair import repair_index
from llm2clip.indexer.storage.manifest import read_manifest, write_manifest

ARCHIVE = Path(__file__).parent / "data" / "index-format-3.tar.gz"
FILTERS = ("caption CONTAINS 'square'", "meta.iso >= 400 OR path GLOB 'album-1/*'", "width = 8")


@pytest.fixture
def old(tmp_path: Path) -> Path:
    """The unpacked archive, its first index told where its corpora are now."""
    with tarfile.open(ARCHIVE) as archive:
        archive.extractall(tmp_path, filter="data")
    manifest = read_manifest(tmp_path / "index")
    moved = tuple(
        {name: value.replace("/data/", f"{tmp_path}/") for name, value in source.items()}
        | ({"root": str(tmp_path)} if source["root"] == "/data" else {})
        for source in manifest.sources
    )
    write_manifest(tmp_path / "index", replace(manifest, sources=moved))
    remember(moved)  # as ``llm2clip-index trust`` does
    return tmp_path


@pytest.fixture
def expected(old: Path) -> dict[str, Any]:
    return json.loads((old / "expected.json").read_text("utf-8"))


def answers(folder: Path, expected: dict[str, Any], where: str | None = None) -> list[list[list[Any]]]:
    queries = FakeEncoder().encode_texts(expected["queries"])
    found = open_index(folder).search(queries, k=5, where=where)
    return [[[hit.key, hit.score, hit.caption] for hit in hits] for hits in found]


def test_open_index_reads_format_3(old, expected):
    info = open_index(old / "index").info()
    assert {name: getattr(info, name) for name in expected["info"]} == expected["info"]


def test_search_answers_as_before(old, expected):
    assert answers(old / "index", expected) == expected["plain"]
    for where in FILTERS:
        assert answers(old / "index", expected, where) == expected[where]


def test_search_reads_an_ann_index(old, expected):
    assert open_index(old / "ann-index").info().ann == "hnsw-sq8"
    assert answers(old / "ann-index", expected) == expected["ann"]
    assert answers(old / "ann-index", expected, "path GLOB '*#0*'") == expected["ann_where"]


def test_update_index_finds_nothing_changed(old):
    encoder = FakeEncoder()
    report = update_index(old / "index", encoder=encoder)
    # 30 in the index, 8 that were removed and stay so, 1 that cannot be read
    assert (report.changed_anything, report.unchanged, encoder.image_batches) == (False, 30 + 8 + 1, [])


def test_update_index_embeds_only_what_changed(old, expected):
    (old / "photos/album-1/white-15.png").unlink()
    (old / "photos/album-2/red-16.txt").write_text("another caption")
    report = update_index(old / "index", encoder=FakeEncoder())
    assert (report.removed, report.described, report.embedded, report.items) == (1, 1, 0, 29)
    gone = [[hit for hit in hits if "white-15" not in hit[0]] for hits in expected["plain"]]
    for before, now in zip(gone, answers(old / "index", expected), strict=True):
        assert [hit[:2] for hit in now[: len(before)]] == [hit[:2] for hit in before]


def test_compact_and_repair_take_it(old, expected):
    assert compact_index(old / "index").dropped == 9
    assert answers(old / "index", expected) == expected["plain"]
    repair_index(old / "index")
    assert answers(old / "index", expected) == expected["plain"]
