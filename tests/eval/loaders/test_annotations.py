"""Annotation files piece by piece: the same records as from the whole, and damage named."""

import gzip
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llm2clip.eval.datasets.tar_images import DatasetError
from llm2clip.eval.loaders import annotations as reading
from llm2clip.eval.loaders.annotations import json_lines, json_list, read_json, read_lines, read_text

RECORDS = st.lists(st.dictionaries(st.text(max_size=9), st.text(max_size=30) | st.integers()), max_size=6)


@given(records=RECORDS, first=st.integers(0, 8), indent=st.sampled_from([None, 1]), ascii_only=st.booleans())
def test_json_list_reads_in_pieces(tmp_path_factory, records, first, indent, ascii_only):
    path = tmp_path_factory.mktemp("list") / "x.json"
    path.write_text(json.dumps(records, indent=indent, ensure_ascii=ascii_only), encoding="utf-8")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(reading, "_CHUNK", 7)
        found = [record for _, record in json_list(path, first=first)]
    assert found == records[:first]


def test_read_lines_splits_at_line_feeds_only(tmp_path):
    path = tmp_path / "x.txt"
    path.write_bytes("\ufeffone\u2028still one\r\n\ntwo\x0bstill two".encode())
    assert read_lines(path) == ["one\u2028still one", "", "two\x0bstill two"]
    path.write_bytes(b"")
    assert read_lines(path) == []


@pytest.mark.parametrize("content", ["caf\xe9".encode("latin-1"), "\u4e00".encode("utf-16")])
def test_read_text_refuses_other_encodings(tmp_path, content):
    path = tmp_path / "x.txt"
    path.write_bytes(content)
    with pytest.raises(DatasetError, match=r"x\.txt: no UTF-8 text .*, expected the file as published"):
        read_text(path)


@pytest.mark.parametrize(
    "content", [b"no gzip", gzip.compress(b"text" * 99, mtime=0)[:-9], b"\x1f\x8b\x08\x00" + b"\xff" * 40]
)
def test_read_text_refuses_damaged_gz(tmp_path, content):
    path = tmp_path / "x.gz"
    path.write_bytes(content)
    with pytest.raises(DatasetError, match=r"x\.gz: damaged or cut off"):
        read_text(path)


def test_json_lines_names_the_bad_line(tmp_path):
    path = tmp_path / "x.jsonl"
    path.write_text('{"a": 1}\n\n[1]\n')
    lines = json_lines(path)
    assert next(lines)[1] == {"a": 1}
    with pytest.raises(DatasetError, match=r"x\.jsonl, line 3: got list, expected dict"):
        next(lines)
    with pytest.raises(DatasetError, match=r"x\.jsonl: damaged or cut off"):
        read_json(path)
