"""What NAS systems and operating systems leave in photo folders is left out, and so is what the user excludes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image
from typer.testing import CliRunner

from llm2clip import encoders
from llm2clip.encoders import FakeEncoder
from llm2clip.indexer import CorpusError, build_index, open_corpus, open_index, update_index
from llm2clip.indexer.cli import app

LITTER = (
    "@eaDir/IMG_1.png/SYNOPHOTO_THUMB_M.png",
    "sub/@eaDir/x.png",
    "#recycle/old.png",
    "$RECYCLE.BIN/S-1-5/deleted.png",
    "System Volume Information/x.png",
    "__MACOSX/._IMG_1.png",
    "loose/SYNOPHOTO_THUMB_S.png",
)
OWN = ("IMG_1.png", "sub/2.png", "raw/3.png", "sub/raw/4.png", "thumbs/5.png")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for number, name in enumerate((*LITTER, *OWN)):
        (tmp_path / "p" / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (16, 16), (20 * number, 90, 0)).save(tmp_path / "p" / name)
    return tmp_path / "p"


def keys(index: Path) -> set[str]:
    with open_index(index) as opened:
        return {row.key for page in opened.items.each() for row in page}


def test_litter_is_left_out_and_said(folder: Path, tmp_path: Path):
    report = build_index(folder, tmp_path / "i", encoder=FakeEncoder())
    assert keys(tmp_path / "i") == set(OWN)
    assert any("6 folders of other programs left out (#recycle, " in note for note in report.notes)


@pytest.mark.parametrize(
    ("patterns", "left"),
    [
        (["thumbs"], set(OWN) - {"thumbs/5.png"}),
        (["raw"], {"IMG_1.png", "sub/2.png", "thumbs/5.png"}),
        (["sub/raw"], set(OWN) - {"sub/raw/4.png"}),
        (["sub/*", "IMG_?.png"], {"raw/3.png", "thumbs/5.png"}),
    ],
)
def test_exclude_leaves_out_names_and_paths(folder: Path, patterns: list[str], left: set[str]):
    assert {record.key for record in open_corpus(folder, exclude=patterns).records()} == left


def test_excluded_patterns_are_kept_by_updates_and_builds(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, data_home: Path
):
    monkeypatch.setattr(encoders, "load_encoder", lambda name, **_: FakeEncoder(name=name))

    def build(*options: str) -> set[str]:
        done = CliRunner().invoke(app, ["build", str(folder), "--index", str(tmp_path / "i"), *options])
        assert done.exit_code == 0, done.stderr
        return keys(tmp_path / "i")

    assert build("--encoder", "x") == set(OWN)
    assert build("--exclude", "raw", "--exclude", "thumbs") == {"IMG_1.png", "sub/2.png"}
    Image.new("RGB", (16, 16), "red").save(folder / "raw" / "new.png")
    assert not update_index(tmp_path / "i", encoder=FakeEncoder()).changed_anything
    assert build() == {"IMG_1.png", "sub/2.png"}
    assert build("--exclude", "thumbs") == {*OWN, "raw/new.png"} - {"thumbs/5.png"}
    manifest = json.loads((tmp_path / "i" / "manifest.json").read_text("utf-8"))
    assert [source["exclude"] for source in manifest["sources"]] == ["thumbs"]


def test_exclude_is_refused_where_there_is_no_folder(tmp_path: Path):
    (tmp_path / "a.tar").write_bytes(b"")
    with pytest.raises(CorpusError, match="expected a folder on this machine"):
        open_corpus(tmp_path / "a.tar", exclude=["x"])
