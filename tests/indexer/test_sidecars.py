"""Captions and metadata in files beside the images of a folder."""

import json
import os

import pytest

from llm2clip.indexer import open_corpus

from .material import IMAGE, put_images


def test_folder_corpus_reads_captions_and_metadata(tmp_path):
    put_images(tmp_path, "1.jpg", "2.png", "3.jpg", "4.jpg", "5.jpg", "6.jpg")
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
    put_images(tmp_path, "a.jpg")
    (tmp_path / "a.json").write_bytes(content)
    [record] = open_corpus(tmp_path).records()
    assert record.note.startswith("metadata left out, not usable JSON: ")
    assert (record.caption, record.metadata) == (None, None)


def test_records_without_captions_opens_no_sidecar(tmp_path, monkeypatch):
    put_images(tmp_path, "a.jpg")
    (tmp_path / "a.txt").write_text("a caption")
    with_captions = next(open_corpus(tmp_path).records())
    without = next(open_corpus(tmp_path).records(captions=False))
    assert (with_captions.caption, without.caption) == ("a caption", None)
    assert without.sidecars == with_captions.sidecars is not None
    assert (without.size, without.mtime_ns) == (len(IMAGE), (tmp_path / "a.jpg").stat().st_mtime_ns)


def test_sidecar_of_stamps_every_change(tmp_path):
    put_images(tmp_path, "a.jpg")
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


@pytest.mark.skipif(os.name != "posix", reason="needs a POSIX file system")
def test_folder_corpus_reads_no_special_file_as_a_caption(tmp_path, tmp_path_factory):
    outside = tmp_path_factory.mktemp("outside") / "secret.txt"
    outside.write_text("secret")
    put_images(tmp_path, "1.jpg", "2.jpg", "3.jpg", "4.jpg", "5.jpg", "6.jpg", "sub/7.jpg")
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
    put_images(tmp_path, *(f"{name}.png" for name in contents), "j.png", "k.png", "l.png")
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
    put_images(
        tmp_path, "1.JPG", "2.jpg", "3.jpg", f"{decomposed}.jpg", "4.jpg", "5.jpg", "6(1).jpg", "7.jpg"
    )
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
    put_images(tmp_path, "a.jpg", "b.jpg")
    (tmp_path / "a.txt").write_text("a dog\n\n a brown dog \r\na dog on grass\n")
    (tmp_path / "b.txt").write_text("\n a cat\n")
    a, b = open_corpus(tmp_path).records()
    assert (a.caption, a.metadata) == ("a dog", {"captions": ["a dog", "a brown dog", "a dog on grass"]})
    assert (b.caption, b.metadata) == ("a cat", None)


def test_folder_corpus_names_lists_that_it_does_not_read(tmp_path):
    put_images(tmp_path, "train/a.jpg", "b.jpg")
    for name in ("metadata.jsonl", "train/metadata.csv"):
        (tmp_path / name).write_text("file_name,caption\na.jpg,x\n")
    corpus = open_corpus(tmp_path)
    list(corpus.records())
    said = "captions in {} were skipped: index that file instead of the folder to include them"
    assert corpus.notes == [said.format(tmp_path / "metadata.jsonl")]
    assert corpus.skipped_note() == said.format(tmp_path / "train" / "metadata.csv")
