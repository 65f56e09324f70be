"""The commands that change an index, from their arguments to their output."""

import json
import os

import pytest
from typer.testing import CliRunner

from llm2clip.indexer import cli

from .material import encoded, flip, numbered, put

pytestmark = pytest.mark.usefixtures("loaded")
run = CliRunner()


@pytest.fixture
def index(photos, tmp_path, loaded) -> list[str]:
    """The option that names an index of thirty photos."""
    place = ["--index", str(tmp_path / "i")]
    assert run.invoke(cli.app, ["build", str(photos), "--encoder", "x", *place]).exit_code == 0
    loaded.clear()
    return place


def lines(*arguments: str) -> list[str]:
    done = run.invoke(cli.app, list(arguments))
    assert (done.exit_code, done.stderr) == (0, ""), done.stderr
    return done.stdout.splitlines()


def test_update_prints_numbers(index, photos, loaded):
    assert lines("update", *index)[0] == "30 images in the index: 30 unchanged."
    assert loaded == []
    (photos / "000.png").rename(photos / "moved.png")
    (photos / "003.png").write_bytes(encoded((9, 9, 9), size=(30, 30)))
    (photos / "bad\x1b[31m.png").write_bytes(b"x")
    first, embedded, bad, name = lines("update", *index)
    assert first == "30 images in the index: 1 moved, 1 changed, 28 unchanged."
    assert embedded.startswith("1 embedded, 1 reused (same content), in ")
    assert (bad, name[:21]) == ("1 image could not be read:", "  bad\\x1b[31m.png: no")
    assert loaded == ["x"]
    again = "30 images in the index: 30 unchanged, 1 skipped (unreadable or removed)."
    assert lines("update", *index)[0] == again
    report = json.loads(lines("update", "--json", *index)[0])
    assert (report["unchanged"], report["items"], report["changed_anything"]) == (31, 30, False)
    assert lines("errors", *index)[0].startswith("bad\\x1b[31m.png\t")


def test_add_remove_and_compact_print_numbers(index, photos, tmp_path):
    (photos / "one.png").write_bytes(encoded((1, 2, 3)))
    assert lines("add", str(photos / "one.png"), *index)[0] == "31 images in the index: 1 new."
    removed = lines("remove", "one.png", "000.png", "--matching", "summer/*", *index)
    assert (removed[1], removed[-2]) == ("Removed 22 images:", "9 images in the index.")
    assert removed[-1] == "Updates do not add them again; llm2clip-index undo brings them back."
    assert "no image matches" in run.invoke(cli.app, ["remove", "--where", "width > 100", *index]).stderr
    assert lines("compact", *index)[0].startswith("9 images in the index; 22 vectors removed; ")
    wrong = run.invoke(cli.app, ["remove", "nosuch.png", *index])
    assert (wrong.exit_code, wrong.stderr[:40]) == (1, "error: not in the index: nosuch.png. Not")
    wrong = run.invoke(cli.app, ["remove", *index])
    assert (wrong.exit_code, wrong.stderr[:30]) == (1, "error: no images were selected")
    wrong = run.invoke(cli.app, ["add", str(tmp_path / "nowhere"), *index])
    assert (wrong.exit_code, wrong.stderr.count("\n")) == (1, 1)


def test_update_says_what_an_interruption_keeps(index, photos, monkeypatch):
    (photos / "one.png").write_bytes(encoded((1, 2, 3)))

    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("llm2clip.indexer.commands.maintain.update_index", interrupted)
    done = run.invoke(cli.app, ["update", *index])
    said = "interrupted: embedded images are kept; run the same command again to continue\n"
    assert (done.exit_code, done.stdout, done.stderr) == (130, "", said)


def test_errors_of_files_say_what_to_do(index, tmp_path, photos):
    (tmp_path / "taken").write_text("x")
    done = run.invoke(cli.app, ["export", str(tmp_path / "taken"), *index])
    assert (done.exit_code, "taken is a file: expected a folder" in done.stderr) == (1, True)
    below = ["build", str(photos), "--index", str(tmp_path / "taken" / "i"), "--encoder", "x"]
    done = run.invoke(cli.app, below)
    assert (done.exit_code, "Choose another folder with --index" in done.stderr) == (1, True)
    (tmp_path / "i" / "vectors-00001-00000.npy").unlink()
    done = run.invoke(cli.app, ["verify", *index])
    assert (done.exit_code, "Try  llm2clip-index verify --repair, or" in done.stderr) == (1, True)
    assert lines("verify", "--repair", *index)[-1].endswith("is intact: 4 files, 30 images")


def test_remove_takes_relative_paths(index, photos, monkeypatch):
    monkeypatch.chdir(photos.parent)
    said = lines("remove", f"{photos.name}/000.png", *index)
    assert said[1:4] == ["Removed 1 image:", "  000.png", "29 images in the index."]
    # A key comes first: of two images of one name, only the one that has it as its key goes.
    for folder in (photos, photos / "summer"):
        (folder / "twice.png").write_bytes(encoded((7, 7, 7)))
    assert lines("update", *index)[0].startswith("31 images in the index: 2 new")
    monkeypatch.chdir(photos / "summer")
    assert lines("remove", "twice.png", *index)[2:4] == ["  twice.png", "30 images in the index."]
    assert run.invoke(cli.app, ["remove", f"{photos}/twice.png", *index]).exit_code == 1
    assert lines("remove", "twice.png", *index)[2:4] == ["  summer/twice.png", "29 images in the index."]


def test_index_variable_names_the_index_of_all_commands(index, photos, tmp_path, monkeypatch):
    place = str(tmp_path / "other")
    lines("build", str(photos / "summer"), "--index", place, "--encoder", "x")
    monkeypatch.setenv("LLM2CLIP_INDEX", str(tmp_path / "i"))
    assert lines("info")[0] == f"index     {tmp_path}/i"
    assert lines("remove", "000.png")[0] == f"Index: {tmp_path}/i"


def test_info_lists_all_sources(index, photos, tmp_path):
    (tmp_path / "more").mkdir()
    (tmp_path / "more" / "m.png").write_bytes(encoded((3, 2, 1)))
    lines("add", str(tmp_path / "more"), *index)
    assert lines("info", *index)[2:4] == [
        f"corpus    {photos} in {photos}",
        f"          {tmp_path}/more in {tmp_path}/more",
    ]


def test_verify_repair_prints_one_json_object(index, tmp_path):
    flip(tmp_path / "i" / "vectors-00001-00000.npy", -1)
    [line] = lines("verify", "--repair", "--json", *index)
    report = json.loads(line)
    assert (report["ok"], len(report["repair"]["repaired"])) == (True, 1)


def test_verify_repair_says_what_to_do(index, tmp_path):
    flip(tmp_path / "i" / "vectors-00001-00000.npy", -1)
    assert run.invoke(cli.app, ["verify", *index]).exit_code == 1
    said = lines("verify", "--repair", *index)
    assert said[0] == "vectors-00001-00000.npy was restored from candidates-00001.faiss"
    assert said[-1].endswith("is intact: 4 files, 30 images")
    for name in ("vectors-00001-00000.npy", "candidates-00001.faiss"):
        flip(tmp_path / "i" / name, -1)
    said = lines("verify", "--repair", *index)
    assert f"To embed them again: llm2clip-index update --index {tmp_path}/i" in said[-3]
    assert lines("update", *index)[0] == "30 images in the index: 30 new."


def test_build_from_encodes_with_another_encoder(index, tmp_path, loaded):
    said = lines("build", "--from", str(tmp_path / "i"), "--encoder", "y")
    assert said[0].startswith("30 images embedded with y in ")
    assert said[1].startswith(f"overlap@10 with {tmp_path}/i: ")
    assert said[1].endswith(" (30 images as queries)")
    assert said[-1] == f"Index:  {tmp_path}/i-y.index"
    assert lines("info", "--index", f"{tmp_path}/i-y.index")[1].startswith("images    30")
    del loaded[:]
    missing = run.invoke(cli.app, ["build", "--from", str(tmp_path / "no"), "--encoder", "y"])
    assert (missing.exit_code, missing.stderr.count("\n"), loaded) == (1, 1, [])
    for arguments in (
        ["--from", str(tmp_path / "i")],
        [],
        ["x", "--from", str(tmp_path / "i"), "--encoder", "y"],
    ):
        assert run.invoke(cli.app, ["build", *arguments]).exit_code == 2


def test_update_reads_nothing_that_looks_unchanged(index, photos, loaded):
    """Names, sizes and times are all that an update looks at: the content could be anything."""
    for file in photos.rglob("*.png"):
        found = file.stat()
        file.write_bytes(b"?" * found.st_size)
        os.utime(file, ns=(found.st_atime_ns, found.st_mtime_ns))
    assert lines("update", *index)[0] == "30 images in the index: 30 unchanged."
    assert loaded == []


def test_export_and_explain_print_what_they_did(index, photos, tmp_path):
    put(photos, numbered(range(3), name="late{}.png", colours=400))
    lines("update", *index)
    said = lines("export", str(tmp_path / "out"), *index)
    assert said[0].startswith("33 images, dimension 16, ")
    assert said[1:] == [f"  {tmp_path}/out/vectors.npy", f"  {tmp_path}/out/items.jsonl"]
    assert lines("explain", *index)[0] == "33 images; exact search (no ANN index)"
    report = json.loads(lines("explain", "--where", "key LIKE 'late%'", "--json", *index)[0])
    assert (report["allowed"], report["items"], report["tail"]) == (3, 33, 3)
