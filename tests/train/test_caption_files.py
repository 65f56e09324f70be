"""Captions from every kind of file, and the account of what is skipped."""

import csv
import io
import json
import tarfile

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from llm2clip.train.data.caption_files import find_files, read_groups, source_of
from llm2clip.train.data.caption_rows import Columns
from llm2clip.train.data.captions import Caption, CaptionFileError, CaptionGroup, SkipReport


def read(*paths, **columns):
    report = SkipReport()
    return list(read_groups(paths, columns=Columns(**columns), report=report)), report


def texts(group):
    return [caption.text for caption in group.captions]


def write_jsonl(path, *rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def write_tar(path, members):
    with tarfile.open(path, "w") as tar:
        for name, content in members:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return path


def test_read_groups_reads_json_lines_of_every_layout(tmp_path):
    path = write_jsonl(
        tmp_path / "a.jsonl",
        {"id": "1", "captions": ["a dog", " a hound "], "language": "en"},
        {"image": "2.jpg", "text": "a cat"},
        {"key": "3", "captions": {"en": ["a bird", "one bird"], "zh": "一只鸟"}},
        {"query": "what barks", "positive": ["a dog barks"], "negative": ["a cat", "a dog barks"]},
    )
    groups, report = read(path)
    assert groups == [
        CaptionGroup("1", (Caption("a dog", "en"), Caption("a hound", "en")), "a"),
        CaptionGroup("2.jpg", (Caption("a cat"),), "a"),
        CaptionGroup("3", (Caption("a bird", "en"), Caption("one bird", "en"), Caption("一只鸟", "zh")), "a"),
        CaptionGroup(
            "a.jsonl:4",
            (Caption("what barks", None, "query"), Caption("a dog barks", None, "positive")),
            "a",
            ("a cat",),
        ),
    ]
    assert (report.groups, report.captions, report.lines()) == (4, 8, [])


def test_read_groups_counts_what_it_skips(tmp_path):
    path = write_jsonl(
        tmp_path / "a.jsonl",
        {"id": "1", "captions": ["a dog", "", "a dog", 7]},
        {"id": "2", "captions": []},
        {"id": "3", "other": 1},
    )
    with path.open("ab") as stream:
        stream.write(b"{no json\n\xff\xfe\n[1]\n")
    groups, report = read(path)
    assert [texts(group) for group in groups] == [["a dog"]]
    assert report.counts == {
        "empty caption": 1,
        "caption twice for one image": 1,
        "caption is no text but int": 1,
        "no caption": 2,
        "no JSON": 1,
        "not UTF-8": 1,
        "no JSON object": 1,
    }
    assert "skipped 2: no caption (a.jsonl:2, a.jsonl:3)" in report.lines()


def test_read_groups_merges_rows_of_one_image_in_csv(tmp_path):
    path = tmp_path / "captions.csv"
    path.write_text("image,caption\n1.jpg,a dog\n1.jpg,a hound\n2.jpg,a cat\n2.jpg,a cat\n3.jpg\n")
    groups, report = read(path)
    assert [(group.key, texts(group)) for group in groups] == [
        ("1.jpg", ["a dog", "a hound"]),
        ("2.jpg", ["a cat"]),
    ]
    assert report.lines() == ["skipped 1: another number of cells than the header (captions.csv:6)"]


def test_read_groups_reads_dreamlip_columns(tmp_path):
    path = tmp_path / "cc3m.csv"
    header = ["Image Path", "raw_caption", "shortSV_captions", "longSV_captions", "shortLLA_captions"]
    with path.open("w", newline="") as stream:
        csv.writer(stream).writerows([header, ["http://x/1", "raw", "short sv", "long, sv", "short lla"]])
    assert read(path)[0] == [
        CaptionGroup(
            "http://x/1",
            (
                Caption("raw", None, "raw"),
                Caption("short sv", None, "short"),
                Caption("long, sv", None, "long"),
                Caption("short lla", None, "short"),
            ),
            "cc3m",
        )
    ]


def test_read_groups_takes_columns_named_as_languages(tmp_path):
    path = tmp_path / "pairs.tsv"
    path.write_text("en\tzh\tnote\na dog\t一只狗\tx\n", encoding="utf-8")
    groups, _ = read(path, captions=("en", "zh"))
    assert groups[0].captions == (Caption("a dog", "en"), Caption("一只狗", "zh"))


def test_read_groups_names_the_columns_where_one_is_misnamed(tmp_path):
    path = tmp_path / "a.csv"
    path.write_text("image,captoin\n1,a dog\n")
    with pytest.raises(
        CaptionFileError,
        match=r"no column of captions \(was 'caption' meant\?\)\. Its columns: image, captoin",
    ):
        read(path)
    with pytest.raises(
        CaptionFileError,
        match=r"has no column 'caption'; did you mean 'captoin'\? Its columns: image, captoin",
    ):
        read(path, captions=("caption",))
    other = write_jsonl(tmp_path / "b.jsonl", {"img": "1", "describtion": "a dog"})
    with pytest.raises(CaptionFileError, match="Its columns: img, describtion"):
        read(other)


def test_read_groups_reads_parquet_and_refuses_another_schema(tmp_path):
    table = pa.table(
        {
            "key": ["1", "2"],
            "jpg": [b"x", b"y"],
            "captions": [{"en": ["a dog"], "de": None}, {"en": ["a cat"], "de": ["eine Katze"]}],
        }
    )
    pq.write_table(table, tmp_path / "a.parquet")
    groups, report = read(tmp_path / "a.parquet")
    assert [group.captions for group in groups] == [
        (Caption("a dog", "en"),),
        (Caption("a cat", "en"), Caption("eine Katze", "de")),
    ]
    assert not report.lines()
    pq.write_table(pa.table({"x": [1], "y": [2]}), tmp_path / "b.parquet")
    with pytest.raises(CaptionFileError, match=r"b\.parquet has no column of captions\. Its columns: x, y"):
        read(tmp_path / "a.parquet", tmp_path / "b.parquet")
    (tmp_path / "c.parquet").write_bytes((tmp_path / "a.parquet").read_bytes()[:-20])
    with pytest.raises(CaptionFileError, match=r"c\.parquet cannot be read as Parquet"):
        read(tmp_path / "c.parquet")


def test_read_groups_reads_tars_with_captions_by_language(tmp_path):
    nested = {
        "captions": {
            "en": [{"captions": ["a dog", "a hound"], "kind": "human"}],
            "zh": [{"captions": ["狗"]}],
        }
    }
    path = write_tar(
        tmp_path / "train-00.tar",
        [
            ("1.jpg", b"x"),
            ("1.json", json.dumps(nested).encode()),
            ("2.txt", b"a cat"),
            ("2.json", json.dumps({"caption": "a tabby", "width": 3}).encode()),
        ],
    )
    groups, _ = read(path)
    assert groups == [
        CaptionGroup(
            "1",
            (Caption("a dog", "en", "human"), Caption("a hound", "en", "human"), Caption("狗", "zh")),
            "train",
        ),
        CaptionGroup("2", (Caption("a cat"), Caption("a tabby")), "train"),
    ]


def test_read_groups_uses_what_lies_before_the_end_of_a_tar_that_is_cut_off(tmp_path):
    samples = [
        (f"{n}.json", json.dumps({"caption": f"text {n}", "x": "y" * 2000}).encode()) for n in range(9)
    ]
    whole = write_tar(tmp_path / "whole.tar", samples).read_bytes()
    for bytes_left in (
        9000,
        4 * 2560,
        4 * 2560 + 600,
    ):  # within a member, between two, within a header's data
        (tmp_path / "cut.tar").write_bytes(whole[:bytes_left])
        groups, report = read(tmp_path / "cut.tar")
        assert [texts(group) for group in groups] == [[f"text {n}"] for n in range(bytes_left // 2560)]
        assert f"behind {bytes_left // 2560 - 1} (" in report.lines()[0]
    assert not read(tmp_path / "whole.tar")[1].lines()


def test_find_files_refuses_missing_and_foreign_files(tmp_path):
    (tmp_path / "a.bin").write_text("")
    for path, reason in (
        ("missing.jsonl", "no such file"),
        ("a.bin", "no file of captions"),
        (".", "holds no file"),
    ):
        with pytest.raises(CaptionFileError, match=reason):
            find_files([tmp_path / path])


@pytest.mark.parametrize(
    ("path", "source"),
    [
        ("x/train-00.tar", "train"),
        ("e5/squad.jsonl", "squad"),
        ("cc3m/00012.tar", "cc3m"),
        ("a-00001-of-00002.parquet", "a"),
    ],
)
def test_source_of_is_the_name_without_number(path, source, tmp_path):
    assert source_of(tmp_path / path) == source
