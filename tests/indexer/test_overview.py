"""Counts of years, folders and types, and the order in time, of images whose dates and places are known."""

from __future__ import annotations

import os
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest

from llm2clip.encoders import FakeEncoder
from llm2clip.indexer import Facet, Index, IndexerError, build_index, open_index, update_index

from .material import colour_of, encoded, tar_of

IMAGES = {
    "2019/a [1]/x.jpg": ("2019-03-01", "JPEG"),
    "2019/a [1]/y.jpeg": ("2019-03-02", "JPEG"),
    "2019/b/x.png": ("2020-01-01", "PNG"),
    "2020/it's/z.PNG": ("2020-06-01", "PNG"),
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    root = tmp_path / "library"
    for number, (name, (day, kind)) in enumerate(IMAGES.items()):
        file = root / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(encoded(colour_of(number), format=kind))
        _date(file, day)
    build_index(root, tmp_path / "i", encoder=FakeEncoder())
    return root


@pytest.fixture
def opened(folder: Path, tmp_path: Path) -> Iterator[Index]:
    with open_index(tmp_path / "i") as index:
        yield index


def _date(file: Path, day: str) -> None:
    seconds = datetime.fromisoformat(day).replace(tzinfo=UTC).timestamp()
    os.utime(file, (seconds, seconds))


def counts(facets: tuple[Facet, ...]) -> dict[str, int]:
    return {facet.value: facet.count for facet in facets}


def test_facets_count_years_folders_and_types(opened: Index):
    found = opened.facets()
    assert list(counts(found.years).items()) == [("2020", 2), ("2019", 2)]
    assert counts(found.folders) == {"2019/": 3, "2020/": 1}
    assert counts(found.types) == {"png": 2, "jpg": 2}


def test_facets_go_down_to_the_first_folders_that_differ(opened: Index):
    found = opened.facets(where="key GLOB '2019/*'")
    assert counts(found.folders) == {"2019/a [1]/": 2, "2019/b/": 1}
    assert opened.facets(where=found.folders[0].where).folders == ()
    assert opened.facets(where="width > 9999").folders == ()


@pytest.mark.parametrize("where", [None, "key GLOB '2019/*'", "key GLOB '2020/*'"])
def test_facets_filters_pass_as_many_images_as_they_count(opened: Index, where: str | None):
    found = opened.facets(where=where)
    for facet in (*found.years, *found.folders, *found.types):
        both = f"({where}) AND {facet.where}" if where else facet.where
        allowed = opened.allowed(both)
        assert allowed is not None
        assert allowed.sum() == facet.count, facet


def test_facets_take_a_container_for_a_folder(tmp_path: Path):
    (tmp_path / "shards").mkdir()
    for name, inner in (("0.tar", "a/x.png"), ("1.tar", "b/y.png")):
        (tmp_path / "shards" / name).write_bytes(tar_of({inner: encoded(colour_of(len(name)))}))
    build_index(tmp_path / "shards", tmp_path / "i", encoder=FakeEncoder())
    with open_index(tmp_path / "i") as index:
        folders = index.facets().folders
        assert counts(folders) == {"0.tar#": 1, "1.tar#": 1}
        assert [hit.key for hit in index.newest(limit=9, where=folders[1].where)[0]] == ["1.tar#b/y.png"]


def test_newest_gives_pages_in_order_of_time(opened: Index):
    keys, after = [], None
    for _ in range(9):
        page, total = opened.newest(limit=3, after=after)
        assert total == 4
        if not page:
            break
        keys += [hit.key for hit in page]
        after = page[-1].id
    days = {name: day for name, (day, _) in IMAGES.items()}
    assert keys == sorted(days, key=days.__getitem__, reverse=True)
    assert [hit.key for hit in opened.newest(limit=1, where="time = '2019'")[0]] == ["2019/a [1]/y.jpeg"]
    with pytest.raises(IndexerError, match="no image has the id 99"):
        opened.newest(limit=1, after=99)


def test_newest_goes_on_after_an_image_that_is_gone(folder: Path, tmp_path: Path):
    with open_index(tmp_path / "i") as before:
        page, _ = before.newest(limit=2)
    (folder / page[-1].key).unlink()
    update_index(tmp_path / "i", encoder=FakeEncoder())
    with open_index(tmp_path / "i") as after:
        assert after.newest(limit=1, after=page[-1].id)[0][0].key == "2019/a [1]/y.jpeg"
