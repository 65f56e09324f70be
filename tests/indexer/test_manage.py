"""Moving, undoing, listing, choosing and deleting indexes: what a folder that is renamed or unmounted does."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner, Result

from llm2clip import encoders
from llm2clip.encoders import FakeEncoder
from llm2clip.indexer import (
    BuildOptions,
    CorpusError,
    IndexerError,
    Selection,
    add_images,
    build_index,
    compact_index,
    open_index,
    remove_images,
    update_index,
)
from llm2clip.indexer.cli import app
from llm2clip.indexer.core.index_paths import known_indexes
from llm2clip.indexer.lifecycle.move import move_sources
from llm2clip.indexer.lifecycle.undo import undo_change

Run = Callable[..., Result]


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    folder = tmp_path / "photos"
    (folder / "trip").mkdir(parents=True)
    for number in range(6):
        name = f"trip/{number}.png" if number % 2 else f"{number}.png"
        Image.new("RGB", (16, 16), (40 * number, 200 - 30 * number, 60)).save(folder / name)
    return folder


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, data_home: Path) -> Run:
    monkeypatch.setattr(encoders, "load_encoder", lambda name, **_: FakeEncoder(name=name))

    def call(*arguments: object, stdin: str | None = None) -> Result:
        return CliRunner().invoke(app, [str(each) for each in arguments], input=stdin)

    return call


def no_encoder() -> FakeEncoder:
    raise AssertionError("the encoder was loaded")


def state(index: Path) -> tuple[list[tuple[object, ...]], list[tuple[str, str]]]:
    """What a search can find, with vectors; and what could not be read or was removed."""
    with open_index(index) as opened:
        rows = [row for page in opened.items.each() for row in page]
        vectors = [tuple(opened.vectors.take(np.array([row.id]))[0].tolist()) for row in rows]
        errors = [(each.key, each.stage) for each in opened.items.errors(every=True)]
    shown = [(row.key, row.source, row.caption, vector) for row, vector in zip(rows, vectors, strict=True)]
    return sorted(shown, key=str), sorted(errors)


def intact(index: Path) -> bool:
    with open_index(index) as opened:
        return opened.verify().ok


def test_move_sources_embeds_nothing_and_results_point_to_the_new_place(photos: Path, tmp_path: Path):
    index, new = tmp_path / "i", tmp_path / "disk" / "renamed photos"
    encoder = FakeEncoder()
    build_index(photos, index, encoder=encoder)
    before = state(index)
    new.parent.mkdir()
    photos.rename(new)
    with pytest.raises(CorpusError, match=r"looks unmounted: 0 of 6 images .* llm2clip-index move .* NEW"):
        update_index(index, encoder=no_encoder)
    report = move_sources(index, photos, new)
    assert (report.tried, report.found, report.sources) == (6, 6, (str(new),))
    assert state(index) == before
    with open_index(index) as opened:
        [hits] = opened.search(encoder.encode_texts(["red"]), k=6)
        assert {Path(hit.uri) for hit in hits} == set(new.rglob("*.png"))
        assert all(opened.read_image(hit.id) == Path(hit.uri).read_bytes() for hit in hits)
    assert not update_index(index, encoder=no_encoder).changed_anything
    assert intact(index)
    undo_change(index)
    with open_index(index) as opened:
        assert opened.manifest.corpus["root"] == str(photos)


def test_move_sources_moves_what_lies_below_and_refuses_what_does_not_fit(photos: Path, tmp_path: Path):
    index = tmp_path / "i"
    build_index(photos, index, encoder=FakeEncoder())
    (tmp_path / "empty" / "photos").mkdir(parents=True)
    before = state(index)
    with pytest.raises(IndexerError, match=f"no source of {index} is below {tmp_path / 'elsewhere'}"):
        move_sources(index, tmp_path / "elsewhere", tmp_path)
    with pytest.raises(CorpusError, match="no such file or folder"):
        move_sources(index, photos, tmp_path / "missing")
    with pytest.raises(CorpusError, match="none of the 6 images"):
        move_sources(index, photos, tmp_path / "empty")
    assert state(index) == before
    shutil.copytree(tmp_path / "photos", tmp_path / "b" / "photos")
    assert move_sources(index, tmp_path, tmp_path / "b").sources == (str(tmp_path / "b" / "photos"),)


def test_move_sources_moves_shards_and_lists(photos: Path, tmp_path: Path):
    import tarfile

    (tmp_path / "tars").mkdir()
    with tarfile.open(tmp_path / "tars" / "a.tar", "w") as tar:
        for file in photos.rglob("*.png"):
            tar.add(file, file.name)
    (photos / "list.csv").write_text("image\n0.png\n2.png\n")
    for corpus, name in ((tmp_path / "tars", "tars"), (photos / "list.csv", "photos")):
        index = tmp_path / f"{name}.index"
        build_index(corpus, index, encoder=FakeEncoder())
        (tmp_path / name).rename(tmp_path / f"new {name}")
        report = move_sources(index, tmp_path / name, tmp_path / f"new {name}")
        assert report.found == report.tried > 0
        assert not update_index(index, encoder=no_encoder).changed_anything


def test_update_never_believes_an_empty_folder(photos: Path, tmp_path: Path):
    index, other = tmp_path / "i", tmp_path / "other"
    build_index(photos, index, encoder=FakeEncoder())
    other.mkdir()
    Image.new("RGB", (16, 16), "blue").save(other / "blue.png")
    add_images(index, [other], encoder=FakeEncoder())
    before = state(index)
    shutil.rmtree(photos)
    photos.mkdir()
    with pytest.raises(CorpusError, match=f"{photos} looks unmounted: 0 of 6 images"):
        update_index(index, encoder=no_encoder)
    assert state(index) == before
    report = update_index(index, encoder=no_encoder, options=BuildOptions(prune=True))
    assert (report.removed, report.items) == (6, 1)
    photos.rmdir()
    shutil.rmtree(other)
    with pytest.raises(CorpusError, match="llm2clip-index delete"):
        update_index(index, encoder=no_encoder, options=BuildOptions(prune=True))
    assert len(state(index)[0]) == 1


@pytest.mark.parametrize("change", ["remove", "add", "update"])
def test_undo_change_restores_the_state_before_and_again_after(photos: Path, tmp_path: Path, change: str):
    index, more = tmp_path / "i", tmp_path / "more"
    (photos / "0.txt").write_text("zero")
    (photos / "bad.png").write_bytes(b"no image")
    build_index(photos, index, encoder=FakeEncoder())
    more.mkdir()
    Image.new("RGB", (16, 16), "blue").save(more / "blue.png")
    first = state(index)
    if change == "remove":
        remove_images(index, Selection(matching="trip/*"))
    elif change == "add":
        add_images(index, [more], encoder=FakeEncoder())
    else:
        (photos / "0.txt").write_text("another caption")
        (photos / "2.png").unlink()
        (photos / "bad.png").unlink()
        (photos / "trip" / "1.png").rename(photos / "one.png")
        Image.new("RGB", (16, 16), "blue").save(photos / "4.png")
        update_index(index, encoder=FakeEncoder())
    second = state(index)
    assert first != second
    for expected in (first, second, first):
        undo_change(index)
        assert state(index) == expected
        assert intact(index)
    if change == "add":  # its source is gone too: an update does not add it again
        assert not update_index(index, encoder=no_encoder).changed_anything


def test_undo_change_refuses_where_nothing_is_kept(photos: Path, tmp_path: Path):
    index = tmp_path / "i"
    build_index(photos, index, encoder=FakeEncoder())
    with pytest.raises(IndexerError, match="nothing to undo"):
        undo_change(index)
    remove_images(index, Selection(matching="trip/*"))
    compact_index(index)
    with pytest.raises(IndexerError, match="compacted it as a whole"):
        undo_change(index)


def test_undo_command_names_what_is_back(photos: Path, run: Run, tmp_path: Path):
    run("build", photos, "--encoder", "fake", "--index", tmp_path / "i")
    dry = run("remove", "--matching", "trip/*", "--dry-run")
    assert dry.stdout.splitlines() == [
        f"Index: {tmp_path / 'i'}",
        "Would remove 3 images:",
        "  trip/1.png",
        "  trip/3.png",
        "  trip/5.png",
        "6 images in the index.",
    ]
    assert len(state(tmp_path / "i")[0]) == 6
    done = run("remove", "trip/1.png").stdout.splitlines()
    assert done[:4] == [
        f"Index: {tmp_path / 'i'}",
        "Removed 1 image:",
        "  trip/1.png",
        "5 images in the index.",
    ]
    assert "llm2clip-index undo" in done[-1]
    assert run("undo").stdout.splitlines() == [
        f"Index: {tmp_path / 'i'}",
        "1 image back:",
        "  trip/1.png",
        "6 images in the index.",
    ]


def test_list_use_and_delete(photos: Path, run: Run, tmp_path: Path):
    assert run("list").stderr == "no index yet: build one with  llm2clip-index build FOLDER\n"
    run("build", photos, "--encoder", "fake")
    run("build", photos / "trip", "--encoder", "fake", "--index", tmp_path / "trip.index")
    found = {each["name"]: each for each in json.loads(run("list", "--json").stdout)}
    assert found.keys() == {"photos", "trip"}
    assert (found["photos"]["images"], found["photos"]["encoder"]) == (6, "fake")
    assert found["photos"]["corpora"] == [str(photos)]
    assert (found["photos"]["default"], found["trip"]["default"]) == (False, True)
    on_disk = sum(file.stat().st_size for file in (tmp_path / "trip.index").iterdir() if file.name != "lock")
    assert found["trip"]["bytes"] == on_disk
    assert run("use", "photos").stdout == f"{found['photos']['path']}\n"
    again = run("build", photos / "trip", "--index", tmp_path / "trip.index")
    assert f"--index {tmp_path / 'trip.index'}" in again.stdout  # no longer the default
    assert json.loads(run("info", "--json").stdout)["items"] == 6
    assert json.loads(run("info", "--index", "trip", "--json").stdout)["items"] == 3
    assert run("use", "--latest").stdout == f"{tmp_path / 'trip.index'}\n"
    (tmp_path / "trip.index" / "mine.txt").write_text("mine")
    asked = run("delete", "trip")
    assert (asked.exit_code, asked.stderr.count("\n")) == (1, 1)
    assert "add --yes" in asked.stderr
    assert run("delete", "trip", "--yes").exit_code == 0
    assert [file.name for file in (tmp_path / "trip.index").iterdir()] == ["mine.txt"]
    assert list(known_indexes()) == ["photos"]
    assert run("delete", "trip", "--yes").exit_code == 1
    assert len(list(photos.rglob("*.png"))) == 6


def test_two_folders_of_one_name_keep_their_digits(run: Run, tmp_path: Path, photos: Path):
    for name in ("a", "b"):
        shutil.copytree(photos, tmp_path / name / "photos")
        run("build", tmp_path / name / "photos", "--encoder", "fake")
    assert len(known_indexes()) == 2
    assert all(name.startswith("photos-") for name in known_indexes())


def test_a_folder_of_images_names_its_index_wherever_that_is(photos: Path, run: Run, tmp_path: Path):
    run("build", photos, "--encoder", "fake", "--index", tmp_path / "elsewhere")
    result = run("info", "--index", photos)
    its = f"its index is {tmp_path / 'elsewhere'}: name that, or --index elsewhere"
    assert result.stderr == f"error: {photos} is a folder of images; {its}\n"


def test_a_folder_of_images_is_no_index_and_a_moved_one_is_not_built_anew(
    photos: Path, run: Run, tmp_path: Path
):
    run("build", photos, "--encoder", "fake")
    result = run("info", "--index", photos)
    assert result.stderr.startswith(f"error: {photos} is a folder of images; its index is ")
    assert "--index photos" in result.stderr
    photos.rename(tmp_path / "renamed")
    result = run("build", tmp_path / "renamed", "--encoder", "fake")
    assert result.exit_code == 1
    assert f"llm2clip-index move {photos} {tmp_path / 'renamed'}" in result.stderr
    assert run("list").stdout.splitlines()[1].endswith("(not there now)")
    moved = run("move", photos, tmp_path / "renamed")
    assert "6 of 6 images found there." in moved.stdout
    assert "Up to date: 6 images" in run("build", tmp_path / "renamed").stdout
    assert len(known_indexes()) == 1
