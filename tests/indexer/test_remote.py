"""Corpora behind URLs, with fsspec's store in memory and with file://: what is read, and how often."""

import json
import os

import pytest

from llm2clip.encoders import FakeEncoder
from llm2clip.indexer import CorpusError, build_index, open_corpus
from llm2clip.indexer.core.index_paths import default_index_path
from llm2clip.indexer.corpora.locator import read_located
from llm2clip.indexer.corpora.open import reopen_corpus
from llm2clip.indexer.corpora.remote_store import local_copy, mtime_ns_of, on_fetch
from llm2clip.indexer.records.files import content_hash

from .material import check_located, colour_of, encoded, tar_of
from .material import put as put_files

pytest.importorskip("fsspec")
from fsspec.implementations.memory import MemoryFileSystem

IMAGES = [encoded(colour_of(number)) for number in range(6)]


@pytest.fixture
def store(monkeypatch):
    """The store in memory, empty, and which of its files were read how often."""
    memory = MemoryFileSystem()
    monkeypatch.setattr(MemoryFileSystem, "store", {})
    monkeypatch.setattr(MemoryFileSystem, "pseudo_dirs", [""])
    return memory


@pytest.fixture
def reads(store, monkeypatch):
    counted = []
    for name in ("cat_file", "get_file"):
        real = getattr(MemoryFileSystem, name)

        def counting(self, path, *rest, _real=real, **options):
            counted.append(path)
            return _real(self, path, *rest, **options)

        monkeypatch.setattr(MemoryFileSystem, name, counting)
    return counted


def put(store, files):
    for name, content in files.items():
        store.pipe_file(f"/b/{name}", content)


FOLDER = {
    "photos/a.png": IMAGES[0],
    "photos/a.txt": b"first",
    "photos/x/长城.png": IMAGES[1],
    "photos/x/长城.json": json.dumps({"caption": "wall", "year": 1}).encode(),
    "photos/.hidden/b.png": IMAGES[2],
    "photos/c.jxl": b"raw",
    "photos/film.mov": b"film",
}


def test_remote_folder_corpus_reads_a_folder(store, reads):
    put(store, FOLDER)
    corpus = open_corpus("memory://b/photos/")
    found = list(corpus.records())
    assert [(r.key, r.caption, r.metadata) for r in found] == [
        ("a.png", "first", None),
        ("x/长城.png", "wall", {"year": 1}),
    ]
    assert [record.uri for record in found] == ["memory://b/photos/a.png", "memory://b/photos/x/长城.png"]
    assert [record.size for record in found] == [len(IMAGES[0]), len(IMAGES[1])]
    assert all(record.mtime_ns > 1e18 for record in found)
    assert corpus.skipped == {".jxl": 1, ".mov": 1}
    reads.clear()
    assert [record.read() for record in found] == IMAGES[:2]
    assert reads == ["/b/photos/a.png", "/b/photos/x/长城.png"]
    reads.clear()
    assert [r.sidecars for r in corpus.records(captions=False)] == [r.sidecars for r in found]
    assert reads == []
    check_located(corpus)
    assert [r.key for r in reopen_corpus(corpus.identity()).records()] == [r.key for r in found]


def test_remote_folder_corpus_reads_file_urls(tmp_path):
    put_files(tmp_path, FOLDER)
    os.symlink(tmp_path, tmp_path / "photos" / "loop")
    corpus = open_corpus(f"file://{tmp_path}/photos")
    found = list(corpus.records())
    assert [(r.key, r.caption, r.read()) for r in found] == [
        ("a.png", "first", IMAGES[0]),
        ("x/长城.png", "wall", IMAGES[1]),
    ]
    assert abs(found[0].mtime_ns - (tmp_path / "photos/a.png").stat().st_mtime_ns) < 10_000
    (tmp_path / "t.tar").write_bytes(tar_of({"a.png": IMAGES[0]}))
    corpus = open_corpus(f"file://{tmp_path}/t.tar")
    [record] = corpus.records()
    assert (record.key, record.read()) == ("t.tar#a.png", IMAGES[0])
    assert record.uri == f"file://{tmp_path}/t.tar#a.png"
    assert corpus.skipped_note() is None


@pytest.mark.parametrize("spec", ["memory://b/s/{0..1}.tar", "memory://b/s/*.tar", "memory://b/s"])
def test_cached_downloader_downloads_once(store, reads, spec, data_home):
    put(store, {f"s/{n}.tar": tar_of({"a.png": IMAGES[n], "a.txt": b"x"}) for n in range(2)})
    corpus = open_corpus(spec)
    for _ in range(2):
        found = list(corpus.records())
        expected = [(f"{n}.tar#a.png", "x", IMAGES[n]) for n in range(2)]
        assert [(r.key, r.caption, r.read()) for r in found] == expected
    assert reads == ["/b/s/0.tar", "/b/s/1.tar"]
    assert corpus.skipped_note() == f"fetched 2 files (0.0 MB), kept in {data_home}/fetched"
    again = reopen_corpus(corpus.identity())
    assert [r.mtime_ns for r in again.records()] == [r.mtime_ns for r in found]
    assert (len(reads), again.skipped_note()) == (2, None)
    put(store, {"s/1.tar": tar_of({"b.png": IMAGES[5]})})
    changed = list(open_corpus(spec).records())
    assert [(r.key, r.read()) for r in changed] == [("0.tar#a.png", IMAGES[0]), ("1.tar#b.png", IMAGES[5])]
    assert reads[2:] == ["/b/s/1.tar"]
    assert changed[1].mtime_ns != found[1].mtime_ns


def test_fetch_callback_is_called_before_a_download(store):
    put(store, {"0.tar": tar_of({"a.png": IMAGES[0]})})
    told = []
    token = on_fetch.set(told.append)
    for _ in range(2):
        assert len(list(open_corpus("memory://b/0.tar").records())) == 1
    on_fetch.reset(token)
    assert told == ["fetching memory://b/0.tar (0.0 MB)"]


def test_read_located_reads_a_member_with_and_without_its_copy(store, reads):
    put(store, {"s.tar": tar_of({"a.png": IMAGES[0], "b.png": IMAGES[1]})})
    corpus = open_corpus("memory://b/s.tar")
    _, record = corpus.records()
    place = {"key": record.key, "corpus": corpus.identity(), "hash": content_hash(IMAGES[1])}
    reads.clear()
    assert read_located(record.locator, **place) == IMAGES[1]
    assert reads == []
    local_copy("memory://b/s.tar").unlink()
    assert read_located(record.locator, **place) == IMAGES[1]
    assert local_copy("memory://b/s.tar") is None  # only the span was asked for
    put(store, {"s.tar": tar_of({"a.png": IMAGES[0], "b.png": IMAGES[2]})})
    with pytest.raises(ValueError, match=r"memory://b/s\.tar changed since it was indexed"):
        read_located(record.locator, **place)


def test_read_located_downloads_tables_and_zips_again(store, tmp_path):
    pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    from .test_zips import zip_of

    pq.write_table(pa.table({"image": IMAGES[:2]}), tmp_path / "t.parquet")
    put(store, {"t.parquet": (tmp_path / "t.parquet").read_bytes(), "z.zip": zip_of({"a.png": IMAGES[2]})})
    for name, key, content in [("t.parquet", "t.parquet#1", IMAGES[1]), ("z.zip", "z.zip#a.png", IMAGES[2])]:
        corpus = open_corpus(f"memory://b/{name}")
        *_, record = corpus.records()
        assert (record.key, record.read()) == (key, content)
        local_copy(f"memory://b/{name}").unlink()
        assert read_located(record.locator, key=key, corpus=corpus.identity()) == content


def test_list_corpus_reads_urls(store, tmp_path):
    put(store, {"d/l.csv": b"file_name,caption\nx/a.png,one\nmemory://b/e.png,two\n"})
    put(store, {"d/x/a.png": IMAGES[0], "e.png": IMAGES[1]})
    corpus = open_corpus("memory://b/d/l.csv")
    found = list(corpus.records())
    assert [(r.key, r.caption, r.uri, r.read()) for r in found] == [
        ("x/a.png", "one", "memory://b/d/x/a.png", IMAGES[0]),
        ("memory://b/e.png", "two", "memory://b/e.png", IMAGES[1]),
    ]
    for each in (corpus, reopen_corpus(corpus.identity())):
        check_located(each)
    (tmp_path / "l.jsonl").write_text(
        '{"url": "memory://b/e.png", "text": "two"}\n{"url": "memory://b/gone.png"}\n'
    )
    good, gone = open_corpus(tmp_path / "l.jsonl").records()
    assert (good.key, good.caption, good.read()) == ("memory://b/e.png", "two", IMAGES[1])
    with pytest.raises(CorpusError, match=r"no such file or folder: memory://b/gone\.png"):
        gone.read()


@pytest.mark.parametrize("start", ["file://", "local://", "simplecache::file://", "memory://b/x::file://"])
def test_list_corpus_behind_a_url_names_no_local_files(store, tmp_path, start):
    (tmp_path / "own.png").write_bytes(IMAGES[0])
    put(store, {"d/l.csv": f"file_name\n{start}{tmp_path}/own.png\n".encode()})
    [record] = open_corpus("memory://b/d/l.csv").records()
    assert record.problem is not None
    assert "may name images of its own store and of http:// and https://" in record.problem
    with pytest.raises(CorpusError, match="of its own store"):
        record.read()


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("memory://b/nothing", "no such file or folder: memory://b/nothing"),
        ("memory://b/s.pdf", r"memory://b/s\.pdf is neither a folder of images nor a \.tar, \.zip, "),
        ("nosuch://b", r"nosuch://b cannot be read: Protocol not known: nosuch"),
        ("memory://b/*.tar", r"no such file: memory://b/\*\.tar"),
    ],
)
def test_open_corpus_refuses_missing_urls(store, url, message):
    put(store, {"s.pdf": b"x"})
    with pytest.raises(CorpusError, match=message):
        open_corpus(url)


def test_container_corpus_reports_a_missing_remote_shard(store):
    put(store, {"1.tar": tar_of({"a.png": IMAGES[0]})})
    gone, good = open_corpus("memory://b/{0..1}.tar").records()
    assert (gone.key, gone.problem) == (
        "0.tar",
        "tar cannot be read after 0 images: no such file or folder: memory://b/0.tar",
    )
    assert good.read() == IMAGES[0]


def test_mtime_ns_of_uses_what_the_store_states():
    for stated in ({"mtime": 12.5}, {"updated": "1970-01-01T00:00:12.500000+00:00"}):
        assert mtime_ns_of(stated) == 12_500_000_000
    one, two = mtime_ns_of({"ETag": "a", "size": 1}), mtime_ns_of({"ETag": "b", "size": 1})
    assert 0 <= one < 10**9 > two >= 0
    assert one != two == mtime_ns_of({"ETag": "b", "size": 1})


def test_local_copy_refuses_what_does_not_fit_on_disk(store, monkeypatch):
    put(store, {"0.tar": tar_of({"a.png": IMAGES[0]})})
    monkeypatch.setattr("shutil.disk_usage", lambda folder: type("Usage", (), {"free": 100})())
    [record] = open_corpus("memory://b/0.tar").records()
    assert "room for 0: free disk space, or set LLM2CLIP_HOME" in record.problem


def test_default_index_path_of_urls_and_standard_input(tmp_path, monkeypatch):
    one = default_index_path("memory://b/photos")
    monkeypatch.chdir(tmp_path)
    assert default_index_path("memory://b/photos") == one
    assert one.name.startswith("photos-")
    with pytest.raises(CorpusError, match="name one with --index PATH"):
        default_index_path("-")


def test_build_index_downloads_no_image_twice(store, reads, tmp_path):
    put(store, {f"many/{n:03d}.png": encoded(colour_of(n)) for n in range(300)})
    report = build_index("memory://b/many", tmp_path / "i", encoder=FakeEncoder())
    assert (report.items, report.bad) == (300, 0)
    assert sorted(reads) == [f"/b/many/{n:03d}.png" for n in range(300)]
    reads.clear()
    assert build_index("memory://b/many", tmp_path / "i", encoder=FakeEncoder()).up_to_date
    assert reads == []
