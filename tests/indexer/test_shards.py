"""Tar shards: members joined to samples, and each image found again by one seek."""

import io
import json
import tarfile

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llm2clip.encoders import FakeEncoder
from llm2clip.indexer import CorpusError, build_index, open_corpus
from llm2clip.indexer.containers.container import expand
from llm2clip.indexer.containers.tar_members import members

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


def test_tar_corpus_reads_links_to_its_members(tmp_path):
    with tarfile.open(tmp_path / "s.tar", "w") as tar:
        member = tarfile.TarInfo("d/a.png")
        member.size = len(RED)
        tar.addfile(member, io.BytesIO(RED))
        links = [("hard.png", tarfile.LNKTYPE, "d/a.png"), ("e/soft.png", tarfile.SYMTYPE, "../d/a.png")]
        links += [("twice.png", tarfile.SYMTYPE, "e/soft.png"), ("self.png", tarfile.SYMTYPE, "self.png")]
        links += [("out.png", tarfile.SYMTYPE, "/etc/passwd"), ("up.png", tarfile.LNKTYPE, "../../x.png")]
        for name, kind, target in [*links, ("folder.png", tarfile.DIRTYPE, "")]:
            member = tarfile.TarInfo(name)
            member.type, member.linkname = kind, target
            tar.addfile(member)
    found = {record.key.removeprefix("s.tar#"): record for record in records(tmp_path / "s.tar")}
    assert {name for name, record in found.items() if record.problem is None and record.read() == RED} == {
        "d/a.png",
        "hard.png",
        "e/soft.png",
        "twice.png",
    }
    assert {name: record.problem for name, record in found.items() if record.problem} == {
        "self.png": "a link to links",
        "out.png": "a link to /etc/passwd, which is not in the tar",
        "up.png": "a link to ../../x.png, which is not in the tar",
    }


def test_tar_corpus_reads_tars_that_were_appended(tmp_path):
    first, second = tar_of({"a.png": RED, "a.txt": b"red"}), tar_of({"b.png": BLUE, "b.txt": b"blue"})
    for between in (b"", b"\0" * 3 * 2**20):
        (tmp_path / "s.tar").write_bytes(first + between + second)
        found = records(tmp_path / "s.tar")
        assert [(each.key, each.caption, each.problem) for each in found] == [
            ("s.tar#a.png", "red", None),
            ("s.tar#b.png", "blue", None),
        ]
        assert [each.read() for each in found] == [RED, BLUE]
    (tmp_path / "s.tar").write_bytes(first + b"what some programs leave behind the end" * 99)
    assert [each.key for each in records(tmp_path / "s.tar")] == ["s.tar#a.png"]


def test_tar_corpus_reports_sparse_members(tmp_path):
    with tarfile.open(tmp_path / "s.tar", "w", format=tarfile.PAX_FORMAT) as tar:
        member = tarfile.TarInfo("a.png")
        member.size = len(RED)
        member.pax_headers = {"GNU.sparse.map": f"0,{len(RED)}", "GNU.sparse.size": "4096"}
        tar.addfile(member, io.BytesIO(RED))
    [record] = records(tmp_path / "s.tar")
    assert record.problem == "sparse: unpack the tar, and pack it again without --sparse"


def test_tar_corpus_finds_captions_anywhere(tmp_path):
    members = {f"{n}.png": encoded(colour_of(n)) for n in range(3)}
    texts = {f"{n}.TXT": f"image {n}".encode() for n in range(3)}
    others = {"7.txt": b"lost", "8.json": b"{}", "9.txt": b"lost", "x/0.txt": b"lost", "README.txt": b"read"}
    for order in ({**members, **texts, **others}, {**others, **texts, **members}):
        (tmp_path / "s.tar").write_bytes(tar_of(order))
        corpus = open_corpus(tmp_path / "s.tar")
        assert [each.caption for each in corpus.records()] == ["image 0", "image 1", "image 2"]
        assert corpus.skipped_note() == (
            "4 .txt and .json files belong to no image (7.txt, 8.json, 9.txt, ...)"
        )


def test_tar_corpus_keeps_captions_of_names_with_dots_apart(tmp_path):
    names = ["2024.05.01 beach", "2024.05.01 dog", "2024.05.02 cat", "2024.05.03 none"]
    members = [(f"{name}.png", encoded(colour_of(n))) for n, name in enumerate(names)]
    texts = [(f"{name}.txt", name[11:].encode()) for name in names[:3]]
    for order in ([*members, *texts], [each for pair in zip(members, texts, strict=False) for each in pair]):
        (tmp_path / "s.tar").write_bytes(tar_of(order))
        found = {each.key.removeprefix("s.tar#"): each.caption for each in records(tmp_path / "s.tar")}
        assert found == {name: (name[11:-4] if "none" not in name else None) for name in found}
    for number in range(2):  # two shards, said once
        (tmp_path / f"t{number}.tar").write_bytes(tar_of(order))
    corpus = open_corpus(f"{tmp_path}/t{{0..1}}.tar")
    for _ in range(2):
        assert len(list(corpus.records())) == 6
        assert corpus.skipped_note() == (
            "names with several dots: captions were matched by an image's whole name, not by WebDataset's rule "
            "(up to the first dot)"
        )


def test_tar_corpus_reads_captions_of_samples_with_several_endings(tmp_path):
    members = {"0.rgb.png": RED, "0.depth.png": BLUE, "0.prompt.txt": b"of both"}
    (tmp_path / "s.tar").write_bytes(tar_of(members))
    corpus = open_corpus(tmp_path / "s.tar")
    assert [each.caption for each in corpus.records()] == ["of both", "of both"]
    assert corpus.skipped_note() is None


def test_tar_corpus_lists_a_thousand_empty_members(tmp_path):
    empty = [header(b"%d.png" % number, 0, b"0") for number in range(2500)]
    (tmp_path / "s.tar").write_bytes(b"".join(empty) + tar_of({"z.png": RED}))
    found = records(tmp_path / "s.tar")
    assert [each.key for each in found if each.problem is None] == ["s.tar#z.png"]
    problems = [each.problem for each in found if each.problem is not None]
    assert problems == ["the file is empty"] * 1000 + ["1,500 more images in it are empty"]


@pytest.mark.parametrize("size", ["-1", str(2**63), str(2**64 + 1), "9" * 30])
def test_build_index_lists_a_member_of_an_impossible_size(tmp_path, size):
    """It has nowhere to end, so what follows it is lost too; the next tar is read."""
    with tarfile.open(tmp_path / "a.tar", "w", format=tarfile.PAX_FORMAT) as tar:
        member = tarfile.TarInfo("a.png")
        member.pax_headers = {"size": size}
        tar.addfile(member)
    (tmp_path / "b.tar").write_bytes(tar_of({"b.png": RED}))
    report = build_index(tmp_path / "{a,b}.tar", tmp_path / "i", encoder=FakeEncoder())
    assert (report.items, report.bad > 0) == (1, True)
    assert {bad.key.partition("#")[0] for bad in report.bad_images} == {"a.tar"}


def header(name: bytes, size: int, kind: bytes) -> bytes:
    block = bytearray(512)
    block[: len(name)], block[100:108], block[136:148] = name, b"0000644\0", b"00000000000\0"
    block[124:136] = b"%011o\0" % size if size < 8**11 else b"\x80" + size.to_bytes(11, "big")
    block[156:157], block[257:265], block[148:156] = kind, b"ustar\x0000", b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    return bytes(block)


def extension(key: bytes, value: bytes) -> bytes:
    body = b"%d %s=%s\n" % (len(key) + len(value) + 5, key, value)
    return header(b"p", len(body), b"x") + body.ljust(512, b"\0")


@pytest.mark.parametrize(
    ("hostile", "reason"),
    [
        (extension(b"size", b"9" * 30), ""),
        (extension(b"size", b"-1024"), ""),
        (extension(b"size", b"1e5"), ""),
        (extension(b"path", b"q.png") * 3000, "recursion"),
        (
            header(b"long", 2**40, b"L"),
            "a header of 1,099,511,627,776 bytes, more than the limit of 1,048,576",
        ),
    ],
    ids=["huge", "negative", "float", "chained", "long"],
)
def test_tar_corpus_reports_hostile_headers_and_goes_on(tmp_path, hostile, reason):
    whole = tar_of({"a.png": RED})
    hostile_tar = (
        whole[:1024] + hostile + header(b"b.png", len(BLUE), b"0") + BLUE.ljust(512, b"\0") + b"\0" * 1024
    )
    put(tmp_path, {"0.tar": hostile_tar, "1.tar": tar_of({"z.png": RED})})
    found = records(tmp_path / "{0..1}.tar")
    good = [each.key for each in found if each.problem is None]
    assert (good[0], good[-1]) == ("0.tar#a.png", "1.tar#z.png")
    if reason:
        [problem] = [each.problem for each in found if each.problem]
        assert problem.startswith("tar cannot be read after 1 images: ")
        assert reason in problem


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
    assert [member[:3] for member in members(file)] == expected


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
    assert record.note == "caption left out: more than 1,048,576 bytes"


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
    (tmp_path / "0.tar").write_bytes(tar_of({"a.png": encoded((1, 2, 3)), "a.jxl": b"x", "b.cls": b"x"}))
    corpus = open_corpus(tmp_path / "0.tar")
    assert [record.key for record in corpus.records()] == ["0.tar#a.png"]
    assert corpus.skipped_note() == (
        "1 image of unsupported types skipped (1 .jxl): convert them to JPEG to index them"
    )
