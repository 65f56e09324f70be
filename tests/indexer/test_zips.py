"""Zip files: names in any encoding, captions, members read by their place, and what damage leaves."""

import bz2
import io
import json
import zipfile
import zlib

import pytest

from llm2clip.indexer import open_corpus

from .material import check_located, colour_of, encoded, put, records

IMAGES = [encoded(colour_of(number)) for number in range(4)]


def zip_of(members, *, method=zipfile.ZIP_STORED):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", method) as packed:
        for name, content in members.items():
            packed.writestr(name, content)
    return buffer.getvalue()


@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2])
def test_zip_corpus_reads_images_captions_and_metadata(tmp_path, method):
    members = {
        "été/长城.png": IMAGES[0],
        "été/长城.txt": "the Great Wall 长城",
        "b.PNG": IMAGES[1],
        "b.json": json.dumps({"caption": "red", "year": 1999}),
        "notes.md": "nothing",
        "__MACOSX/b.png": IMAGES[2],
        ".hidden/c.png": IMAGES[2],
        "new.jxl": b"x",
    }
    (tmp_path / "相册.zip").write_bytes(zip_of(members, method=method))
    corpus = open_corpus(tmp_path / "相册.zip")
    first, second = corpus.records()
    assert [(each.key, each.caption, each.metadata) for each in (first, second)] == [
        ("相册.zip#été/长城.png", "the Great Wall 长城", None),
        ("相册.zip#b.PNG", "red", {"year": 1999}),
    ]
    assert [first.read(), second.read()] == IMAGES[:2]
    assert first.uri == f"{tmp_path}/相册.zip#été/长城.png"
    assert [first.size, second.size] == [len(IMAGES[0]), len(IMAGES[1])]
    assert corpus.skipped == {".jxl": 1}
    check_located(corpus)


def test_zip_corpus_reads_folders_and_brace_ranges(tmp_path):
    put(tmp_path, {f"{number}.zip": zip_of({"a.png": IMAGES[number]}) for number in range(3)})
    found = records(tmp_path)
    assert [record.key for record in found] == ["0.zip#a.png", "1.zip#a.png", "2.zip#a.png"]
    assert [record.read() for record in found] == IMAGES[:3]
    assert [record.key for record in records(tmp_path / "{0..2}.zip")] == [record.key for record in found]


@pytest.mark.parametrize(
    ("name", "encoding"),
    [("长城.png", "gbk"), ("照片 2024/海.png", "gbk"), ("naïve été.png", "cp437"), ("長い.png", "utf-8")],
)
def test_zip_corpus_guesses_encodings_of_names(tmp_path, name, encoding):
    raw = name.encode(encoding)
    blank = "x" * len(raw)
    (tmp_path / "a.zip").write_bytes(zip_of({blank: IMAGES[0]}).replace(blank.encode(), raw))
    [record] = records(tmp_path / "a.zip")
    assert (record.key, record.read()) == (f"a.zip#{name}", IMAGES[0])


def test_zip_corpus_reports_unreadable_members(tmp_path):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as packed:
        packed.writestr("a.png", IMAGES[0])
        with pytest.warns(UserWarning, match="Duplicate name"):
            packed.writestr("a.png", IMAGES[1])
        packed.writestr("lzma.png", IMAGES[2], compress_type=zipfile.ZIP_LZMA)
        packed.writestr("locked.png", IMAGES[3])
    whole = bytearray(buffer.getvalue())
    central = whole.rindex(b"PK\1\2")
    whole[central + 8] |= 1  # the flag of encryption
    (tmp_path / "a.zip").write_bytes(whole)
    found = records(tmp_path / "a.zip")
    assert [record.problem for record in found] == [
        None,
        "second member of this name",
        "compressed by method 14, which is not supported: pack it again without compression",
        "encrypted: unpack it first",
    ]
    assert len({record.key for record in found}) == 4


def test_zip_corpus_refuses_a_member_with_a_flipped_byte(tmp_path):
    whole = bytearray(zip_of({f"{n}.png": IMAGES[n] for n in range(3)}))
    whole[whole.index(IMAGES[1]) + 20] ^= 1
    (tmp_path / "a.zip").write_bytes(whole)
    first, second, third = records(tmp_path / "a.zip")
    assert (first.read(), third.read()) == (IMAGES[0], IMAGES[2])
    with pytest.raises(ValueError, match="damaged: its checksum is wrong"):
        second.read()


def test_zip_corpus_reports_a_zip_cut_short_and_reads_the_others(tmp_path):
    whole = zip_of({f"{n}.png": IMAGES[n] for n in range(4)})
    put(tmp_path, {"a.zip": whole[: whole.index(IMAGES[2]) + 5], "b.zip": zip_of({"z.png": IMAGES[3]})})
    broken, after = records(tmp_path)
    assert (broken.key, broken.problem) == (
        "a.zip",
        "zip cannot be read after 0 images: truncated or damaged: no central directory",
    )
    assert (after.key, after.read()) == ("b.zip#z.png", IMAGES[3])


def test_read_packed_refuses_a_zip_bomb(tmp_path):
    bomb = zip_of({"a.png": b"\0" * 10_000_000}, method=zipfile.ZIP_DEFLATED)
    (tmp_path / "a.zip").write_bytes(
        bomb.replace((10_000_000).to_bytes(4, "little"), (99).to_bytes(4, "little"))
    )
    [record] = records(tmp_path / "a.zip")
    with pytest.raises(ValueError, match="damaged: its checksum is wrong"):
        record.read()


def test_read_packed_equals_the_libraries(tmp_path):
    """The place of a member is what its packed bytes are read by: the same as unpacking them by hand."""
    content = IMAGES[0] * 50
    for method, unpack in [
        (zipfile.ZIP_DEFLATED, lambda raw: zlib.decompress(raw, -15)),
        (zipfile.ZIP_BZIP2, bz2.decompress),
    ]:
        (tmp_path / "a.zip").write_bytes(zip_of({"a.png": content}, method=method))
        [record] = records(tmp_path / "a.zip")
        offset, packed, size, _, crc = record.inner["zip"]
        start = offset + 30 + len("a.png")
        raw = (tmp_path / "a.zip").read_bytes()[start : start + packed]
        assert unpack(raw) == record.read() == content
        assert (size, crc) == (len(content), zlib.crc32(content))


def renamed(shown: str, raw: bytes) -> zipfile.ZipInfo:
    info = zipfile.ZipInfo("x" * len(raw))
    field = b"\1" + zlib.crc32(raw).to_bytes(4, "little") + shown.encode()
    info.extra = b"\x55\x54\x01\x00\x00" + b"\x75\x70" + len(field).to_bytes(2, "little") + field
    return info


def test_zip_corpus_reads_the_unicode_names_of_winrar(tmp_path):
    names = {"Летом/кот.png": b"?????/???.png", "写真/犬.png": "写真/犬.png".encode("shift-jis")}
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as packed:
        for number, (shown, raw) in enumerate(names.items()):
            packed.writestr(renamed(shown, raw), IMAGES[number])
    content = buffer.getvalue()
    for raw in names.values():
        content = content.replace(b"x" * len(raw), raw)
    (tmp_path / "a.zip").write_bytes(content)
    found = records(tmp_path / "a.zip")
    assert {each.key: each.read() for each in found} == {
        f"a.zip#{shown}": IMAGES[number] for number, shown in enumerate(names)
    }
    (tmp_path / "a.zip").write_bytes(content.replace(names["写真/犬.png"], b"another.png"))
    # The checksum says that the field belongs to another name.
    assert [each.key for each in records(tmp_path / "a.zip")][1] == "a.zip#another.png"


@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_zip_corpus_finds_images_and_captions_under_other_names(tmp_path, method):
    members = {
        "DSC1.JPG": IMAGES[0],
        "DSC1.TXT": "upper",
        "v1.2/noending": IMAGES[1],
        "v1.2/noending.txt": "none",
        "cafe\u0301.jpg_large": IMAGES[2],
        "caf\u00e9.txt": "composed",
        "words.jpg_large": "no image",
        "lost.txt": "lost",
        "x/DSC1.json": "{}",
    }
    (tmp_path / "a.zip").write_bytes(zip_of(members, method=method))
    corpus = open_corpus(tmp_path / "a.zip")
    assert [(each.key, each.caption) for each in corpus.records()] == [
        ("a.zip#DSC1.JPG", "upper"),
        ("a.zip#v1.2/noending", "none"),
        ("a.zip#cafe\u0301.jpg_large", "composed"),
    ]
    assert corpus.skipped_note() == "2 .txt and .json files belong to no image (lost.txt, x/DSC1.json)"


def test_open_corpus_names_a_list_of_captions_beside_archives(tmp_path):
    put(tmp_path, {"images.zip": zip_of({"a.png": IMAGES[0]}), "metadata.jsonl": b"{}"})
    [note] = open_corpus(tmp_path).notes
    assert note == (
        f"captions in {tmp_path / 'metadata.jsonl'} were skipped: unpack the zip files beside it, and index that file "
        "instead of the folder to include them"
    )
