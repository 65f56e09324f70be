"""Locators: what an index may make its reader open."""

import json
import os

import pytest

from llm2clip.indexer.core.errors import CorpusError, IndexDamagedError
from llm2clip.indexer.core.index_paths import uri_of
from llm2clip.indexer.corpora.locator import read_located
from llm2clip.indexer.records.files import MAX_IMAGE_BYTES, content_hash
from llm2clip.indexer.records.record import Record


@pytest.fixture
def corpus(tmp_path):
    (tmp_path / "d").mkdir()
    (tmp_path / "d" / "a.bin").write_bytes(b"0123456789")
    (tmp_path / "secret").write_bytes(b"secret")
    return {"kind": "folder", "spec": "d", "root": str(tmp_path / "d")}


def test_read_located_reads_files_and_spans(corpus):
    assert read_located(None, key="a.bin", corpus=corpus) == b"0123456789"
    assert read_located('{"path": "a.bin"}', key="other", corpus=corpus) == b"0123456789"
    span = '{"path": "a.bin", "offset": 2, "size": 3}'
    assert read_located(span, key="a.bin#x", corpus=corpus, hash=content_hash(b"234")) == b"234"
    with pytest.raises(ValueError, match=r"a\.bin changed since it was indexed: build the index again"):
        read_located(span, key="a.bin#x", corpus=corpus, hash=content_hash(b"else"))
    with pytest.raises(OSError, match="ends 5 bytes early"):
        read_located('{"path": "a.bin", "offset": 5, "size": 10}', key="a.bin#x", corpus=corpus)


@pytest.mark.parametrize(
    "path", ["../secret", "x/../../secret", "ABSOLUTE", "file://ABSOLUTE", "http://host/x", 7]
)
def test_read_located_refuses_paths_outside_the_corpus(corpus, tmp_path, path):
    if isinstance(path, str):
        path = path.replace("ABSOLUTE", str(tmp_path / "secret"))
        with pytest.raises(IndexDamagedError, match="names a file outside its corpus"):
            read_located(None, key=path, corpus=corpus)
    for inner in ({}, {"offset": 0, "size": 3}, {"row": 1, "column": "x"}, {"time": 1}, {"zip": [0] * 5}):
        with pytest.raises(IndexDamagedError, match="names a file outside its corpus"):
            read_located(json.dumps({"path": path, **inner}), key="a.bin", corpus=corpus)


def test_read_located_reads_absolute_paths_of_lists(corpus, tmp_path):
    listed = {**corpus, "kind": "list"}
    for key in ("../secret", str(tmp_path / "secret")):
        assert read_located(None, key=key, corpus=listed) == b"secret"
    assert uri_of(str(tmp_path / "secret"), corpus=listed) == str(tmp_path / "secret")
    assert uri_of("http://host/a.jpg", corpus=listed) == "http://host/a.jpg"


@pytest.mark.parametrize(
    "locator",
    [
        "[]",
        "{",
        '{"offset": 1}',
        '{"path": "a.bin", "offset": 1}',
        '{"path": "a.bin", "row": [], "column": 1}',
        '{"path": "a.bin", "offset": "x", "size": 1}',
        '{"path": "a.bin", "offset": Infinity, "size": 1}',
        '{"path": "a.bin", "zip": [1, 2]}',
    ],
)
def test_read_located_refuses_malformed_locators(corpus, locator):
    with pytest.raises(IndexDamagedError):
        read_located(locator, key="a.bin", corpus=corpus)


@pytest.mark.parametrize(("offset", "size"), [(-1, 3), (0, -1), (0, 2**28 + 1)])
@pytest.mark.parametrize("remote", [False, True])
def test_read_located_refuses_impossible_spans(corpus, offset, size, remote):
    root = f"memory://{corpus['root']}" if remote else corpus["root"]
    if remote:
        pytest.importorskip("fsspec")
    span = json.dumps({"path": "a.bin", "offset": offset, "size": size})
    with pytest.raises(CorpusError, match=r"got a span of .* expected at most 268,435,456 from 0 on: build"):
        read_located(span, key="a.bin#x", corpus={**corpus, "root": root})


def test_read_located_refuses_special_and_huge_files(corpus, tmp_path):
    with open(tmp_path / "d" / "large.bin", "wb") as file:
        file.truncate(MAX_IMAGE_BYTES + 1)
    with pytest.raises(CorpusError, match="file of 268,435,457 bytes, more than the limit of 268,435,456"):
        read_located(None, key="large.bin", corpus=corpus)
    os.mkfifo(tmp_path / "d" / "pipe")
    with pytest.raises(CorpusError, match="not a regular file"):
        read_located(None, key="pipe", corpus=corpus)


@pytest.mark.parametrize(
    ("fields", "locator"),
    [
        ({}, None),
        ({"path": "长.jpg"}, {"path": "长.jpg"}),
        ({"path": "s.tar", "offset": 512, "size": 9}, {"path": "s.tar", "offset": 512, "size": 9}),
        ({"path": "s.mp4", "size": 0, "inner": {"time": 2.5}}, {"path": "s.mp4", "time": 2.5}),
    ],
)
def test_record_locator_of_each_form(tmp_path, fields, locator):
    record = Record(key="k", uri="u", file=tmp_path, **fields)
    assert (json.loads(record.locator) if record.locator else None) == locator


@pytest.mark.parametrize(
    ("root", "uri"),
    [("/a/b", "/a/b/x"), ("/", "/x"), ("s3://b/c", "s3://b/c/x"), ("s3://b/c/", "s3://b/c/x")],
)
def test_uri_of_each_type_of_corpus(root, uri):
    assert uri_of("x", corpus={"kind": "folder", "spec": "", "root": root}) == uri
