"""Folders of images: which are found, under which names, in which order."""

import inspect
import os
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llm2clip.indexer import CorpusError, open_corpus
from llm2clip.indexer.records import files
from llm2clip.indexer.records.files import MAX_IMAGE_BYTES

from .material import IMAGE, put_images

posix = pytest.mark.skipif(os.name != "posix", reason="needs a POSIX file system")


def keys(folder):
    return [record.key for record in open_corpus(folder).records()]


def test_folder_corpus_lists_images_by_ending_and_name(tmp_path):
    expected = ["a.jpeg", "b.JPG", "c.PnG", "d.webp", "e.gif", "f.tif", "g.tiff", "h.bmp"]
    expected += ["B/1.jpg", "x/y/z.jpg"]
    put_images(tmp_path, *reversed(expected))
    (tmp_path / "notes.md").write_text("no image")
    (tmp_path / "noimage").write_bytes(b"no image")
    assert keys(tmp_path) == expected
    assert keys(tmp_path) == expected


@pytest.mark.parametrize(("feature", "names"), [("avif", ["a.avif"]), ("jpg_2000", ["a.j2k", "a.jp2"])])
def test_folder_corpus_lists_what_this_pillow_decodes(tmp_path, feature, names):
    from PIL import features

    put_images(tmp_path, *names, "b.png")
    corpus = open_corpus(tmp_path)
    found = [record.key for record in corpus.records()]
    if features.check(feature):
        assert (found, corpus.skipped_note()) == ([*names, "b.png"], None)
    else:
        assert found == ["b.png"]
        assert corpus.skipped.total() == len(names)


HEIC = "pip install 'llm2clip-retrieval[heic]' reads HEIC"
RAW = "pip install 'llm2clip-retrieval[raw]' reads raw files of cameras"


@pytest.fixture
def without_extras(monkeypatch):
    for name in ("pillow_heif", "rawpy"):
        monkeypatch.setitem(sys.modules, name, None)
    for cached in (files.image_endings, files.other_image_endings):
        cached.cache_clear()
    yield
    for cached in (files.image_endings, files.other_image_endings):
        cached.cache_clear()


def test_folder_corpus_counts_skipped_images(tmp_path, without_extras):
    put_images(tmp_path, "a.jfif", "b.JPE", "c.arw", "d/e.ARW", "d/f.cr2", "g.mov", ".h.arw")
    corpus = open_corpus(tmp_path)
    for _ in range(2):
        assert [record.key for record in corpus.records()] == ["a.jfif", "b.JPE"]
    images = f"3 images of unsupported types skipped (2 .arw, 1 .cr2): {RAW}"
    videos = "1 video skipped (1 .mov): --frame-interval 10 takes a frame every 10 s"
    assert corpus.skipped_note() == f"{images}; {videos}"
    put_images(tmp_path, "i.nef", "j.dng", "k.jxl")
    (tmp_path / "g.mov").unlink()
    list(corpus.records(captions=False))
    assert corpus.skipped_note().startswith("6 images of unsupported types skipped (2 .arw, ")
    assert f", ...): {RAW}; convert the others to JPEG" in corpus.skipped_note()


def test_folder_corpus_lists_raw_files_of_cameras_where_they_can_be_read(tmp_path):
    pytest.importorskip("rawpy")
    put_images(tmp_path, "a.ARW", "b.jxl")
    assert [record.key for record in open_corpus(tmp_path).records()] == ["a.ARW"]


@pytest.mark.parametrize(
    ("names", "note"),
    [
        (["a.heic"], f"1 image of unsupported types skipped (1 .heic): {HEIC}"),
        (
            ["a.heic", "b.hif", "c.jxl"],
            "3 images of unsupported types skipped (1 .heic, 1 .hif, 1 .jxl): "
            f"{HEIC}; convert the others to JPEG",
        ),
        (["a.cr2"], f"1 image of unsupported types skipped (1 .cr2): {RAW}"),
        (["a.heic", "b.cr2"], f"2 images of unsupported types skipped (1 .heic, 1 .cr2): {HEIC}; {RAW}"),
    ],
)
def test_skipped_note_names_the_extras(tmp_path, without_extras, names, note):
    put_images(tmp_path, *names)
    corpus = open_corpus(tmp_path)
    assert list(corpus.records()) == []
    assert corpus.skipped_note() == note
    assert corpus.explain_empty().endswith(f"; {note}")


def test_folder_corpus_omits_hidden_files(tmp_path):
    put_images(tmp_path, ".hidden.jpg", ".cache/a.jpg", "._a.jpg", "a.jpg")
    assert keys(tmp_path) == ["a.jpg"]


LONGEST = "长" * 83 + "ab.png"  # 255 bytes


@posix
@pytest.mark.parametrize(
    "names",
    [
        ["été à la mer.jpg", "北京/长城.png", "🦒.webp"],
        ["a#b?c%20d.jpg", "new\nline.jpg", "-rf.jpg", " .jpg"],
        # 3,014 bytes, and the folder of the test before them
        [LONGEST, "/".join(["d" * 200] * 15) + f"/{LONGEST}"],
        ["e\u0301.jpg", "\u00e9.jpg"],  # composed and not: a file system may hold both, and keys are bytes
    ],
)
def test_folder_corpus_reads_any_name(tmp_path, names):
    put_images(tmp_path, *names)
    found = list(open_corpus(tmp_path).records())
    assert sorted(record.key for record in found) == sorted(names)
    assert all(record.read() == IMAGE and record.problem is None for record in found)


def test_folder_corpus_does_not_recurse(tmp_path):
    deep = "/".join("d" * 100)
    put_images(tmp_path, f"{deep}/a.png")
    assert keys(tmp_path) == [f"{deep}/a.png"]  # with everything imported, before it gets tight
    limit = sys.getrecursionlimit()
    sys.setrecursionlimit(len(inspect.stack()) + 60)
    try:
        assert keys(tmp_path) == [f"{deep}/a.png"]
    finally:
        sys.setrecursionlimit(limit)


@pytest.mark.skipif(sys.platform != "linux", reason="needs a file system that takes any bytes as a name")
def test_folder_corpus_reports_names_that_are_not_utf8(tmp_path):
    put_images(tmp_path, "a.jpg")
    with open(os.fsencode(tmp_path) + b"/caf\xe9.jpg", "wb") as file:
        file.write(IMAGE)
    [bad] = [record for record in open_corpus(tmp_path).records() if record.problem]
    assert (bad.key, bad.problem) == ("caf\\xe9.jpg", "file name is not UTF-8: rename it")


@posix
def test_folder_corpus_follows_links_out_of_it_and_ends_loops(tmp_path):
    corpus, elsewhere = tmp_path / "corpus", tmp_path / "elsewhere"
    put_images(corpus, "a/1.jpg", "b/2.jpg")
    put_images(elsewhere, "3.jpg", "deep/4.jpg")
    (corpus / "a" / "loop").symlink_to(corpus)
    (corpus / "again").symlink_to(corpus / "b")
    (corpus / "out").symlink_to(elsewhere)
    (elsewhere / "back").symlink_to(corpus)
    (elsewhere / "up").symlink_to(tmp_path)
    (corpus / "same.jpg").symlink_to(elsewhere / "3.jpg")
    assert keys(corpus) == ["same.jpg", "a/1.jpg", "b/2.jpg", "out/3.jpg", "out/deep/4.jpg"]


@posix
def test_folder_corpus_reports_special_files(tmp_path):
    put_images(tmp_path, "a.jpg")
    (tmp_path / "gone.jpg").symlink_to(tmp_path / "nothing")
    os.mkfifo(tmp_path / "pipe.jpg")
    problems = {record.key: record.problem for record in open_corpus(tmp_path).records()}
    assert problems == {"a.jpg": None, "gone.jpg": "broken link", "pipe.jpg": "not a regular file"}
    with pytest.raises(CorpusError, match="not a regular file"):
        next(record for record in open_corpus(tmp_path).records() if record.key == "pipe.jpg").read()


def test_folder_corpus_reports_unreadable_folders(tmp_path, monkeypatch):
    put_images(tmp_path, "a.jpg", "locked/b.jpg", "z/c.jpg")
    scandir = os.scandir

    def guarded(path):
        if os.path.basename(path) == "locked":
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", guarded)
    problems = {record.key: record.problem for record in open_corpus(tmp_path).records()}
    assert problems == {"a.jpg": None, "locked": "folder: Permission denied", "z/c.jpg": None}


def test_record_read_refuses_huge_files(tmp_path):
    with open(tmp_path / "a.jpg", "wb") as file:
        file.truncate(MAX_IMAGE_BYTES + 1)
    with pytest.raises(CorpusError, match="file of 268,435,457 bytes, more than the limit of 268,435,456"):
        next(open_corpus(tmp_path).records()).read()


def test_explain_empty_says_what_was_found(tmp_path):
    corpus = open_corpus(tmp_path)
    assert "the folder is empty; expected endings " in corpus.explain_empty()
    for name in ("a.arw", "b.arw", "c.pdf", "README"):
        (tmp_path / name).write_bytes(b"x")
    assert "got 2 with .arw, 1 with no ending, 1 with .pdf; expected endings " in corpus.explain_empty()


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("nowhere", "no such file or folder: .*nowhere$"),
        (
            "*.png",
            r"no such file or folder: .*\.png\. Give the folder, or pipe the names in: ls \.\.\. \| llm2clip",
        ),
        ("a.jpg", "is a single image: expected its folder"),
        ("a.pdf", "neither a folder of images nor a .tar"),
    ],
)
def test_open_corpus_refuses_other_paths(tmp_path, name, message):
    put_images(tmp_path, "a.jpg")
    (tmp_path / "a.pdf").write_bytes(b"x")
    with pytest.raises(CorpusError, match=message):
        open_corpus(tmp_path / name)


@given(
    names=st.lists(
        st.text(st.characters(exclude_characters="/\0", codec="utf-8"), min_size=1, max_size=20), max_size=8
    )
)
def test_folder_corpus_lists_every_visible_name_once(tmp_path_factory, names):
    folder = tmp_path_factory.mktemp("names")
    wanted = set()
    for name in names:
        if not name.startswith("."):
            (folder / f"{name}.png").write_bytes(IMAGE)
            wanted.add(f"{name}.png")
    assert keys(folder) == sorted(wanted) if wanted else keys(folder) == []


def test_folder_corpus_knows_images_by_their_first_bytes(tmp_path):
    names = ["noending", "twitter.jpg_large", "tumblr.pnj", "wget.jpg?w=1024", "a.jpg!v1.2"]
    put_images(tmp_path, *names)
    put_images(tmp_path, "of-an-image.zip", "of-an-image.7z")  # not opened
    for name in ("words", "words.jpg_large", "archive.zip", "words.docx"):
        (tmp_path / name).write_bytes(b"PK no image")
    (tmp_path / "scan.pgm").write_bytes(b"P5 2 1 255\n\0\xff")
    (tmp_path / "raw.ppmx").write_bytes(b"P6\n2 1 255\n\0\xff\0\0\xff\0")
    (tmp_path / "BM.notes").write_bytes(b"BMW is a maker of cars and motorcycles")
    (tmp_path / "noending.txt").write_text("with a caption")
    found = {record.key: record.caption for record in open_corpus(tmp_path).records()}
    assert found == dict.fromkeys([*names, "scan.pgm", "raw.ppmx"]) | {"noending": "with a caption"}
