"""Tar shards: members joined to samples, and each image found again by one seek."""

import io
import json
import tarfile

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llm2clip.indexer import CorpusError, open_corpus
from llm2clip.indexer.containers.container import expand
from llm2clip.indexer.containers.tar import _members

from .material import colour_of, encoded, put, records, tar_of

RED, BLUE = encoded((255, 0, 0)), encoded((0, 0, 255))


def test_tar_corpus_reads_images_captions_and_metadata(shards):
    found = records(shards / "00.tar")
    assert [record.key for record in found] == ["00.tar#0000.webp", "00.tar#0001.webp", "00.tar#0002.webp"]
    assert found[1].uri == f"{shards}/00.tar#0001.webp"
    assert found[1].caption == "image 1"
    assert found[1].metadata == {"emoji": "🦒", "names": {"zh": "长颈鹿"}}
    for number, record in enumerate(found):
        assert record.read() == encoded(colour_of(number), format="WEBP")


def test_tar_corpus_reads_folders_and_brace_ranges(shards):
    by_folder = [record.key for record in records(shards)]
    assert by_folder == [f"0{s}.tar#000{n}.webp" for s, n in [(0, 0), (0, 1), (0, 2), (1, 3), (1, 4)]]
    assert [record.key for record in records(shards / "{00..01}.tar")] == by_folder
    assert [record.key for record in records(shards / "{01,00}.tar")] == by_folder[3:] + by_folder[:3]
    assert [record.key for record in records(f"{shards.parent}/{{shards,shards}}/0{{0..1}}.tar")] == by_folder


def test_tar_corpus_keeps_keys_of_equal_shard_names_apart(tmp_path):
    put(tmp_path, dict.fromkeys(("a/0.tar", "b/0.tar"), tar_of({"x.png": RED})))
    assert [r.key for r in records(tmp_path / "{a,b}" / "0.tar")] == ["a/0.tar#x.png", "b/0.tar#x.png"]


def test_tar_corpus_joins_members_up_to_the_first_dot(tmp_path):
    members = {
        "d/1.json": b'{"text": "one", "n": 1}',
        "d/1.left.png": RED,
        "d/1.right.png": BLUE,
        "d/1.cls": b"7",
        "e/1.png": BLUE,
        "2.txt": b"zwei",
        "2.png": RED,
        "2.json": b'{"n": 2}',
        "._2.png": b"left by a Mac",
    }
    (tmp_path / "s.tar").write_bytes(tar_of(members))
    found = {record.key: (record.caption, record.metadata) for record in records(tmp_path / "s.tar")}
    assert found == {
        "s.tar#d/1.left.png": ("one", {"n": 1}),
        "s.tar#d/1.right.png": ("one", {"n": 1}),
        "s.tar#e/1.png": (None, None),
        "s.tar#2.png": ("zwei", {"n": 2}),
    }


def test_tar_corpus_reads_long_and_foreign_names(tmp_path):
    name = "长" * 120 + "/" + "🦒" * 60 + ".png"
    for format in (tarfile.GNU_FORMAT, tarfile.PAX_FORMAT):
        (tmp_path / "s.tar").write_bytes(tar_of({f"./{name}": RED}, format=format))
        [record] = records(tmp_path / "s.tar")
        assert (record.key, record.read()) == (f"s.tar#{name}", RED)


def test_tar_corpus_omits_links_and_folders(tmp_path):
    with tarfile.open(tmp_path / "s.tar", "w") as tar:
        for kind in (tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.DIRTYPE):
            member = tarfile.TarInfo(f"{kind.decode()}.png")
            member.type, member.linkname = kind, "/etc/passwd"
            tar.addfile(member)
    assert records(tmp_path / "s.tar") == []
    assert "got no files at all" in open_corpus(tmp_path / "s.tar").explain_empty()


def test_tar_corpus_reports_a_second_member_of_one_name(tmp_path):
    (tmp_path / "s.tar").write_bytes(tar_of([("a.png", RED), ("a.png", BLUE)]))
    first, second = records(tmp_path / "s.tar")
    assert (first.key, first.problem) == ("s.tar#a.png", None)
    assert second.key.startswith("s.tar#a.png@")
    assert second.problem == "second member of this name"


@pytest.mark.parametrize(
    ("spoil", "readable", "problem"),
    [
        (lambda tar: tar[:2600], 3, "truncated: the end marker is missing at byte 3,072"),
        (lambda tar: tar[:1024], 1, "truncated: the end marker is missing at byte 1,024"),
        (lambda tar: tar[:1024] + b"\1" * 512 + tar[1536:], 1, "damaged at byte 1,024"),
        (lambda tar: b"no tar at all" * 100, 0, "invalid header"),
        (lambda tar: b"", 0, "empty file"),
    ],
)
def test_tar_corpus_reports_a_damaged_shard(tmp_path, spoil, readable, problem):
    # Three members of a header of 512 bytes and a content of one block each, then the end mark.
    whole = tar_of({f"{n}.png": encoded(colour_of(n)) for n in range(3)})
    put(tmp_path, {"0.tar": spoil(whole), "1.tar": tar_of({"z.png": RED})})
    found = records(tmp_path / "{0..1}.tar")
    good = [record.key for record in found if record.problem is None]
    bad = [(record.key, record.problem) for record in found if record.problem is not None]
    assert good == [*(f"0.tar#{n}.png" for n in range(readable)), "1.tar#z.png"]
    assert bad == [("0.tar", f"tar cannot be read after {readable} images: {problem}")]


def test_tar_corpus_cannot_read_a_truncated_image(tmp_path):
    (tmp_path / "0.tar").write_bytes(tar_of({"a.png": RED, "b.png": BLUE})[:1600])
    first, second, shard = records(tmp_path / "0.tar")
    assert first.read() == RED
    with pytest.raises(OSError, match="bytes early"):
        second.read()
    assert shard.problem is not None


member_names = st.lists(
    st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=1, max_size=160), max_size=6
)


@pytest.mark.parametrize("format", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
@settings(max_examples=30)
@given(names=member_names, sizes=st.lists(st.integers(0, 1500), min_size=6, max_size=6))
def test_tar_members_equal_those_of_tarfile(tmp_path_factory, format, names, sizes):
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=format) as tar:
        for name, size in zip(names, sizes, strict=False):
            member = tarfile.TarInfo(name)
            member.size = size
            try:
                tar.addfile(member, io.BytesIO(bytes(size)))
            except ValueError:
                assert format == tarfile.USTAR_FORMAT  # which has no place for long names
    file = tmp_path_factory.mktemp("tar") / "s.tar"
    file.write_bytes(buffer.getvalue())
    with tarfile.open(file) as tar:
        expected = [(m.name.removeprefix("./"), m.offset_data, m.size) for m in tar if m.isreg()]
    assert [tuple(member) for member in _members(file)] == expected


def test_tar_members_of_other_header_formats(tmp_path):
    """Headers that are nobody's default: huge numbers, old magic, folders in between."""
    with tarfile.open(tmp_path / "s.tar", "w", format=tarfile.GNU_FORMAT) as tar:
        for number, (uid, kind) in enumerate(
            [(2**40, tarfile.REGTYPE), (0, tarfile.DIRTYPE), (1, tarfile.AREGTYPE)]
        ):
            member = tarfile.TarInfo(f"{number}.png")
            member.uid, member.type, member.size = uid, kind, 0 if kind == tarfile.DIRTYPE else len(RED)
            tar.addfile(member, io.BytesIO(RED))
    found = records(tmp_path / "s.tar")
    assert [(record.key, record.read()) for record in found] == [("s.tar#0.png", RED), ("s.tar#2.png", RED)]


def test_tar_corpus_notes_unreadable_metadata(tmp_path):
    (tmp_path / "s.tar").write_bytes(tar_of({"a.png": RED, "a.json": b"nonsense", "a.txt": b"a caption"}))
    [record] = records(tmp_path / "s.tar")
    assert record.caption == "a caption"
    assert record.note.startswith("metadata left out, not usable JSON: ")
    (tmp_path / "s.tar").write_bytes(tar_of({"a.png": RED, "a.txt": b"x" * (2**20 + 1)}))
    [record] = records(tmp_path / "s.tar")
    assert record.note == "caption or metadata left out: more than 1,048,576 bytes"


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("{00..07}.tar", r"no such shard: .*02\.tar"),
        ("{07..00}.tar", r"\{07\.\.00\} is not a range of shards"),
        ("{0..99999999}.tar", r"is not a range of shards"),
        ("x.tar.gz", r"not a plain \.tar: .*gunzip x\.tar\.gz"),
    ],
)
def test_tar_corpus_refuses_wrong_shards(shards, spec, message):
    (shards / "x.tar.gz").write_bytes(b"x")
    with pytest.raises(CorpusError, match=message):
        open_corpus(shards / spec)


def test_open_corpus_notes_tars_beside_images(shards):
    (shards / "a.png").write_bytes(RED)
    corpus = open_corpus(shards)
    assert [record.key for record in corpus.records()] == ["a.png"]
    assert corpus.notes == [f"2 tar files in {shards} were skipped, as there are images beside them"]


@given(first=st.integers(0, 200), count=st.integers(1, 50), width=st.integers(1, 6))
def test_expand_counts_like_a_shell(first, count, width):
    numbers = range(first, first + count)
    pattern = f"a/{{{first:0{width}d}..{first + count - 1}}}-{{x,y}}.tar"
    wide = max(width, len(str(first)))
    assert expand(pattern) == [f"a/{n:0{wide}d}-{xy}.tar" for n in numbers for xy in "xy"]


def test_expand_leaves_other_names_alone():
    assert expand("a{b}c{}.tar") == ["a{b}c{}.tar"]


def test_tar_corpus_reads_names_of_any_length(tmp_path):
    """Captions keep every character that JSON and UTF-8 can carry."""
    caption = "".join(map(chr, [*range(1, 0x80), 0x200D, 0xFFFD, 0x1F992])).strip()
    (tmp_path / "s.tar").write_bytes(
        tar_of({"a.png": RED, "a.json": json.dumps({"caption": caption}).encode()})
    )
    assert records(tmp_path / "s.tar")[0].caption == caption


def test_tar_corpus_counts_skipped_images(tmp_path):
    (tmp_path / "0.tar").write_bytes(tar_of({"a.png": encoded((1, 2, 3)), "a.jxl": b"x", "b.txt": b"x"}))
    corpus = open_corpus(tmp_path / "0.tar")
    assert [record.key for record in corpus.records()] == ["0.tar#a.png"]
    assert corpus.skipped_note() == (
        "1 image of unsupported types skipped (1 .jxl): convert them to JPEG to index them"
    )
