"""Folders of images: which are found, under which names, in which order."""

import inspect
import json
import os
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llm2clip.indexer import CorpusError, open_corpus
from llm2clip.indexer.records import files
from llm2clip.indexer.records.files import MAX_IMAGE_BYTES

from .material import encoded

IMAGE = encoded((1, 2, 3))
posix = pytest.mark.skipif(os.name != "posix", reason="needs a POSIX file system")


def keys(folder):
    return [record.key for record in open_corpus(folder).records()]


def put(folder, *names):
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(IMAGE)


def test_folder_corpus_lists_images_by_ending_and_name(tmp_path):
    expected = ["a.jpeg", "b.JPG", "c.PnG", "d.webp", "e.gif", "f.tif", "g.tiff", "h.bmp"]
    expected += ["B/1.jpg", "x/y/z.jpg"]
    put(tmp_path, *reversed(expected))
    (tmp_path / "notes.md").write_text("no image")
    (tmp_path / "noimage").write_bytes(b"no image")
    assert keys(tmp_path) == expected
    assert keys(tmp_path) == expected


@pytest.mark.parametrize(("feature", "names"), [("avif", ["a.avif"]), ("jpg_2000", ["a.j2k", "a.jp2"])])
def test_folder_corpus_lists_what_this_pillow_decodes(tmp_path, feature, names):
    from PIL import features

    put(tmp_path, *names, "b.png")
    corpus = open_corpus(tmp_path)
    found = [record.key for record in corpus.records()]
    if features.check(feature):
        assert (found, corpus.skipped_note()) == ([*names, "b.png"], None)
    else:
        assert found == ["b.png"]
        assert corpus.skipped.total() == len(names)


def test_folder_corpus_counts_skipped_images(tmp_path):
    put(tmp_path, "a.jfif", "b.JPE", "c.arw", "d/e.ARW", "d/f.cr2", "g.mov", ".h.arw")
    corpus = open_corpus(tmp_path)
    for _ in range(2):
        assert [record.key for record in corpus.records()] == ["a.jfif", "b.JPE"]
    images = "3 images of unsupported types skipped (2 .arw, 1 .cr2): convert them to JPEG to index them"
    videos = "1 video skipped (1 .mov): --frame-interval 10 takes a frame every 10 s"
    assert corpus.skipped_note() == f"{images}; {videos}"
    put(tmp_path, "i.nef", "j.dng", "k.jxl")
    (tmp_path / "g.mov").unlink()
    list(corpus.records(captions=False))
    assert corpus.skipped_note().startswith("6 images of unsupported types skipped (2 .arw, ")
    assert ", ...): " in corpus.skipped_note()


@pytest.mark.parametrize(
    ("names", "note"),
    [
        (["a.heic"], "1 image of unsupported types skipped (1 .heic): EXTRA"),
        (
            ["a.heic", "b.hif", "c.cr2"],
            "3 images of unsupported types skipped (1 .heic, 1 .hif, 1 .cr2): EXTRA; "
            "convert the others to JPEG",
        ),
    ],
)
def test_skipped_note_names_the_extra_for_heic(tmp_path, monkeypatch, names, note):
    for cached in (files.image_endings, files.other_image_endings):
        cached.cache_clear()
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    try:
        put(tmp_path, *names)
        corpus = open_corpus(tmp_path)
        assert list(corpus.records()) == []
        said = note.replace("EXTRA", "pip install 'llm2clip-retrieval[heic]' reads HEIC")
        assert corpus.skipped_note() == said
        assert corpus.explain_empty().endswith(f"; {said}")
    finally:
        for cached in (files.image_endings, files.other_image_endings):
            cached.cache_clear()


def test_folder_corpus_omits_hidden_files(tmp_path):
    put(tmp_path, ".hidden.jpg", ".cache/a.jpg", "._a.jpg", "a.jpg")
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
    put(tmp_path, *names)
    found = list(open_corpus(tmp_path).records())
    assert sorted(record.key for record in found) == sorted(names)
    assert all(record.read() == IMAGE and record.problem is None for record in found)


def test_folder_corpus_does_not_recurse(tmp_path):
    deep = "/".join("d" * 100)
    put(tmp_path, f"{deep}/a.png")
    assert keys(tmp_path) == [f"{deep}/a.png"]  # with everything imported, before it gets tight
    limit = sys.getrecursionlimit()
    sys.setrecursionlimit(len(inspect.stack()) + 60)
    try:
        assert keys(tmp_path) == [f"{deep}/a.png"]
    finally:
        sys.setrecursionlimit(limit)


@pytest.mark.skipif(sys.platform != "linux", reason="needs a file system that takes any bytes as a name")
def test_folder_corpus_reports_names_that_are_not_utf8(tmp_path):
    put(tmp_path, "a.jpg")
    with open(os.fsencode(tmp_path) + b"/caf\xe9.jpg", "wb") as file:
        file.write(IMAGE)
    [bad] = [record for record in open_corpus(tmp_path).records() if record.problem]
    assert (bad.key, bad.problem) == ("caf\\xe9.jpg", "file name is not UTF-8: rename it")


@posix
def test_folder_corpus_follows_links_out_of_it_and_ends_loops(tmp_path):
    corpus, elsewhere = tmp_path / "corpus", tmp_path / "elsewhere"
    put(corpus, "a/1.jpg", "b/2.jpg")
    put(elsewhere, "3.jpg", "deep/4.jpg")
    (corpus / "a" / "loop").symlink_to(corpus)
    (corpus / "again").symlink_to(corpus / "b")
    (corpus / "out").symlink_to(elsewhere)
    (elsewhere / "back").symlink_to(corpus)
    (elsewhere / "up").symlink_to(tmp_path)
    (corpus / "same.jpg").symlink_to(elsewhere / "3.jpg")
    assert keys(corpus) == ["same.jpg", "a/1.jpg", "b/2.jpg", "out/3.jpg", "out/deep/4.jpg"]


@posix
def test_folder_corpus_reports_special_files(tmp_path):
    put(tmp_path, "a.jpg")
    (tmp_path / "gone.jpg").symlink_to(tmp_path / "nothing")
    os.mkfifo(tmp_path / "pipe.jpg")
    problems = {record.key: record.problem for record in open_corpus(tmp_path).records()}
    assert problems == {"a.jpg": None, "gone.jpg": "broken link", "pipe.jpg": "not a regular file"}
    with pytest.raises(CorpusError, match="not a regular file"):
        next(record for record in open_corpus(tmp_path).records() if record.key == "pipe.jpg").read()


def test_folder_corpus_reports_unreadable_folders(tmp_path, monkeypatch):
    put(tmp_path, "a.jpg", "locked/b.jpg", "z/c.jpg")
    scandir = os.scandir

    def guarded(path):
        if os.path.basename(path) == "locked":
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", guarded)
    problems = {record.key: record.problem for record in open_corpus(tmp_path).records()}
    assert problems == {"a.jpg": None, "locked": "folder: Permission denied", "z/c.jpg": None}


def test_folder_corpus_reads_captions_and_metadata(tmp_path):
    put(tmp_path, "1.jpg", "2.png", "3.jpg", "4.jpg", "5.jpg", "6.jpg")
    (tmp_path / "1.txt").write_text(" a dog \n", "utf-8")
    (tmp_path / "2.json").write_text(json.dumps({"caption": "ein Hund", "year": 1999}), "utf-8-sig")
    (tmp_path / "3.json").write_text('{"text": "un perro", "tags": ["a"]}')
    (tmp_path / "3.txt").write_text("not this")
    (tmp_path / "4.json").write_text('{"caption": ["一只狗", "狗"]}', "utf-8")
    (tmp_path / "5.json").write_text("{broken")
    (tmp_path / "5.txt").write_text("still here")
    (tmp_path / "6.json").write_text("[1, 2]")
    found = {record.key: record for record in open_corpus(tmp_path).records()}
    about = {key: (record.caption, record.metadata) for key, record in found.items()}
    assert about == {
        "1.jpg": ("a dog", None),
        "2.png": ("ein Hund", {"year": 1999}),
        "3.jpg": ("un perro", {"tags": ["a"]}),
        "4.jpg": ("一只狗", {"caption": ["一只狗", "狗"]}),
        "5.jpg": ("still here", None),
        "6.jpg": (None, None),
    }
    assert found["5.jpg"].note.startswith("metadata left out, not usable JSON: ")
    assert found["6.jpg"].note == "metadata left out, not usable JSON: expected an object, got list"
    assert found["1.jpg"].note is None


@pytest.mark.parametrize(
    "content", [b'{"caption": "\\ud83e"}', b"[" * 100_000, b"\xff\xfe", b'{"a": ' + b"9" * 5000 + b"}"]
)
def test_folder_corpus_notes_hostile_metadata(tmp_path, content):
    put(tmp_path, "a.jpg")
    (tmp_path / "a.json").write_bytes(content)
    [record] = open_corpus(tmp_path).records()
    assert record.note.startswith("metadata left out, not usable JSON: ")
    assert (record.caption, record.metadata) == (None, None)


def test_records_without_captions_opens_no_sidecar(tmp_path, monkeypatch):
    put(tmp_path, "a.jpg")
    (tmp_path / "a.txt").write_text("a caption")
    with_captions = next(open_corpus(tmp_path).records())
    without = next(open_corpus(tmp_path).records(captions=False))
    assert (with_captions.caption, without.caption) == ("a caption", None)
    assert without.sidecars == with_captions.sidecars is not None
    assert (without.size, without.mtime_ns) == (len(IMAGE), (tmp_path / "a.jpg").stat().st_mtime_ns)


def test_sidecar_of_stamps_every_change(tmp_path):
    put(tmp_path, "a.jpg")
    text, metadata = tmp_path / "a.txt", tmp_path / "a.json"

    def stamp():
        return next(open_corpus(tmp_path).records(captions=False)).sidecars

    def write(file, content, seconds):
        file.write_text(content)
        os.utime(file, ns=(seconds * 10**9, seconds * 10**9))
        return stamp()

    assert stamp() is None
    seen = [write(text, "one", 2000), write(metadata, "{}", 1000), write(metadata, '{"a": 1}', 1000)]
    seen += [write(metadata, '{"a": 1}', 1500), write(text, "one", 1500)]
    text.unlink()
    seen.append(stamp())
    metadata.rename(text)
    seen.append(stamp())
    assert len(set(seen)) == len(seen)
    assert all(-(2**63) <= each < 2**63 for each in seen)
    text.unlink()
    assert stamp() is None


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
    put(tmp_path, "a.jpg")
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
    put(tmp_path, *names)
    for name in ("words", "words.jpg_large", "archive.zip", "words.docx"):
        (tmp_path / name).write_bytes(b"PK no image")
    (tmp_path / "scan.pgm").write_bytes(b"P5 2 1 255\n\0\xff")
    (tmp_path / "raw.ppmx").write_bytes(b"P6\n2 1 255\n\0\xff\0\0\xff\0")
    (tmp_path / "BM.notes").write_bytes(b"BMW is a maker of cars and motorcycles")
    (tmp_path / "noending.txt").write_text("with a caption")
    found = {record.key: record.caption for record in open_corpus(tmp_path).records()}
    assert found == dict.fromkeys([*names, "scan.pgm", "raw.ppmx"]) | {"noending": "with a caption"}


@posix
def test_folder_corpus_reads_no_special_file_as_a_caption(tmp_path, tmp_path_factory):
    outside = tmp_path_factory.mktemp("outside") / "secret.txt"
    outside.write_text("secret")
    put(tmp_path, "1.jpg", "2.jpg", "3.jpg", "4.jpg", "5.jpg", "6.jpg", "sub/7.jpg")
    os.mkfifo(tmp_path / "1.txt")
    os.mkfifo(tmp_path / "2.json")
    (tmp_path / "3.txt").symlink_to("/dev/zero")
    (tmp_path / "4.txt").symlink_to(outside)
    (tmp_path / "5.txt").write_bytes(b"x" * (2**20 + 1))
    (tmp_path / "6.txt").write_text("inside")
    (tmp_path / "sub" / "7.txt").symlink_to(tmp_path / "6.txt")
    os.mkfifo(tmp_path / "noending")
    for _ in range(2):
        found = {record.key: record for record in open_corpus(tmp_path).records()}
        assert {key: (record.caption, record.note) for key, record in found.items()} == {
            "1.jpg": (None, "caption left out: not a regular file"),
            "2.jpg": (None, "metadata left out: not a regular file"),
            "3.jpg": (None, "caption left out: a link that leads out of the corpus"),
            "4.jpg": (None, "caption left out: a link that leads out of the corpus"),
            "5.jpg": (None, "caption left out: more than 1,048,576 bytes"),
            "6.jpg": ("inside", None),
            "sub/7.jpg": ("inside", None),
        }
        assert all(record.sidecars is not None for record in found.values())


def test_folder_corpus_reads_captions_in_any_encoding(tmp_path):
    chinese, french = "公园里的一只狗", "un été à la mer"
    contents = {
        "1": chinese.encode("gbk"),
        "2": chinese.encode("utf-16"),
        "3": chinese.encode("utf-8-sig"),
        "4": french.encode("latin-1"),
        "5": french.encode("utf-16-le"),
        "6": french.encode("utf-16-be"),
    }
    put(tmp_path, *(f"{name}.png" for name in contents), "j.png", "k.png", "l.png")
    for name, content in contents.items():
        (tmp_path / f"{name}.txt").write_bytes(content)
    for name, encoding in (("j", "gbk"), ("k", "utf-16")):
        text = json.dumps({"caption": chinese, "ort": "北京"}, ensure_ascii=False)
        (tmp_path / f"{name}.json").write_bytes(text.encode(encoding))
    (tmp_path / "l.txt").write_bytes(bytes(range(128, 256)) * 4)
    found = {record.key[0]: record for record in open_corpus(tmp_path).records()}
    captions = {name: record.caption for name, record in found.items()}
    assert captions == dict.fromkeys("123jk", chinese) | dict.fromkeys("456", french) | {"l": None}
    assert (found["j"].metadata, found["k"].metadata) == ({"ort": "北京"},) * 2
    assert found["l"].note.startswith("caption left out: neither UTF-8 nor UTF-16 nor GB 18030")


def test_folder_corpus_finds_captions_under_other_spellings(tmp_path):
    composed, decomposed = "caf\u00e9", "cafe\u0301"
    put(tmp_path, "1.JPG", "2.jpg", "3.jpg", f"{decomposed}.jpg", "4.jpg", "5.jpg", "6(1).jpg", "7.jpg")
    for name in ("1.TXT", f"{composed}.txt", "4.jpg.txt", "7.txt", "7.TXT"):
        (tmp_path / name).write_text(f"of {name}", "utf-8")
    (tmp_path / "2.Json").write_text('{"caption": "of 2.Json"}')
    takeout = {"title": "x", "description": "at the sea", "photoTakenTime": {"timestamp": "1"}}
    for name in ("3.jpg.json", "5.jpg.supplemental-metadata.json", "6.jpg.supplemental-me(1).json"):
        (tmp_path / name).write_text(json.dumps(takeout))
    (tmp_path / "3.jpg.json").write_text('{"title": "3.jpg", "description": "at the sea"}')
    for name in ("b.txt", "c.json", "d.jpg.supplemental-metadata.json", "LICENSE.txt"):
        (tmp_path / name).write_text("{}")
    corpus = open_corpus(tmp_path)
    captions = {record.key: record.caption for record in corpus.records()}
    assert captions == {
        "1.JPG": "of 1.TXT",
        "2.jpg": "of 2.Json",
        "3.jpg": "at the sea",
        "4.jpg": "of 4.jpg.txt",
        "5.jpg": "at the sea",
        "6(1).jpg": "at the sea",
        "7.jpg": "of 7.txt",
        f"{decomposed}.jpg": f"of {composed}.txt",
    }
    assert corpus.skipped_note() == ("4 .txt and .json files belong to no image (7.TXT, b.txt, c.json, ...)")


def test_folder_corpus_takes_each_line_of_a_text_as_a_caption(tmp_path):
    put(tmp_path, "a.jpg", "b.jpg")
    (tmp_path / "a.txt").write_text("a dog\n\n a brown dog \r\na dog on grass\n")
    (tmp_path / "b.txt").write_text("\n a cat\n")
    a, b = open_corpus(tmp_path).records()
    assert (a.caption, a.metadata) == ("a dog", {"captions": ["a dog", "a brown dog", "a dog on grass"]})
    assert (b.caption, b.metadata) == ("a cat", None)


def test_folder_corpus_names_lists_that_it_does_not_read(tmp_path):
    put(tmp_path, "train/a.jpg", "b.jpg")
    for name in ("metadata.jsonl", "train/metadata.csv"):
        (tmp_path / name).write_text("file_name,caption\na.jpg,x\n")
    corpus = open_corpus(tmp_path)
    list(corpus.records())
    said = "captions in {} were skipped: index that file instead of the folder to include them"
    assert corpus.notes == [said.format(tmp_path / "metadata.jsonl")]
    assert corpus.skipped_note() == said.format(tmp_path / "train" / "metadata.csv")
