"""Parquet and Arrow files: data sets of Hugging Face, plain bytes, row groups, and what damage leaves."""

import datetime
import decimal
import json
import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from llm2clip.indexer import CorpusError, open_corpus
from llm2clip.indexer.corpora.locator import read_located

from .material import check_located, colour_of, encoded, put, records

pa = pytest.importorskip("pyarrow")
pq = pytest.importorskip("pyarrow.parquet")

IMAGES = [encoded(colour_of(number)) for number in range(30)]


def hugging_face(count=30, **columns):
    """A table as ``datasets`` writes it, with a column of labels."""
    image = pa.array([{"bytes": IMAGES[n], "path": f"{n:02d}.png"} for n in range(count)])
    labels = pa.array([n % 2 for n in range(count)])
    features = {"image": {"_type": "Image"}, "label": {"names": ["猫", "dog"], "_type": "ClassLabel"}}
    about = {"huggingface": json.dumps({"info": {"features": features}})}
    table = pa.table({"image": image, "label": labels, **columns})
    return table.replace_schema_metadata(about)


def write_arrow(file, table, *, stream, batch=10):
    make = pa.ipc.new_stream if stream else pa.ipc.new_file
    with make(file, table.schema) as writer:
        writer.write_table(table, max_chunksize=batch)


def write(kind, file, table):
    if kind == "parquet":
        pq.write_table(table, file, row_group_size=7)
    else:
        write_arrow(file, table, stream=kind == "stream")


@pytest.mark.parametrize(
    ("kind", "name"), [("parquet", "长.parquet"), ("stream", "d.arrow"), ("file", "d.feather")]
)
def test_table_corpus_reads_a_hugging_face_data_set(tmp_path, kind, name):
    write(kind, tmp_path / name, hugging_face(text=[f"image {n}" for n in range(30)]))
    corpus = open_corpus(tmp_path / name)
    found = list(corpus.records())
    assert [record.key for record in found] == [f"{name}#{n}" for n in range(30)]
    assert [record.read() for record in found] == IMAGES
    assert [record.read() for record in found[3:5]] == IMAGES[3:5]  # a second time
    assert found[17].uri == f"{tmp_path}/{name}#17"
    assert [record.caption for record in found] == [f"image {n}" for n in range(30)]
    assert found[17].metadata == {"label": "dog", "file_name": "17.png"}
    assert found[16].metadata == {"label": "猫", "file_name": "16.png"}
    check_located(corpus)
    without = list(open_corpus(tmp_path / name).records(captions=False))
    assert [record.key for record in without] == [record.key for record in found]
    assert {(record.caption, record.metadata) for record in without} == {(None, None)}


@pytest.mark.parametrize("kind", ["parquet", "stream"])
def test_table_corpus_converts_metadata_to_json(tmp_path, kind):
    table = hugging_face(
        2,
        when=[datetime.datetime(2024, 5, 6, 7, 8), None],
        day=[datetime.date(2024, 5, 6), None],
        price=[decimal.Decimal("2.50"), None],
        weight=[0.5, float("nan")],
        box=[{"x": 1, "names": ["a", None]}, None],
        raw=[b"bytes", None],
        ok=[True, False],
    )
    write(kind, tmp_path / "t.arrow", table)
    first, second = records(tmp_path / "t.arrow")
    assert first.metadata == {
        "label": "猫",
        "when": "2024-05-06T07:08:00",
        "day": "2024-05-06",
        "price": "2.50",
        "weight": 0.5,
        "box": {"x": 1, "names": ["a", None]},
        "ok": True,
        "file_name": "00.png",
    }
    assert second.metadata == {"label": "dog", "ok": False, "file_name": "01.png"}


@pytest.mark.parametrize("kind", ["parquet", "stream"])
def test_table_corpus_gives_each_column_one_type(tmp_path, kind):
    small, large = pa.array([1, None, 2], pa.uint64()), pa.array([3, None, 2**63], pa.uint64())
    write(kind, tmp_path / "t.parquet", pa.table({"image": IMAGES[:3], "small": small, "large": large}))
    found = [record.metadata for record in records(tmp_path / "t.parquet")]
    assert found == [{"small": 1, "large": "3"}, None, {"small": 2, "large": str(2**63)}]


def test_table_corpus_reads_plain_bytes_and_several_images_per_row(tmp_path):
    pq.write_table(pa.table({"id": [1, 2], "thumb": IMAGES[:2]}), tmp_path / "one.parquet")
    found = records(tmp_path / "one.parquet")
    assert [(record.key, record.read(), record.metadata) for record in found] == [
        ("one.parquet#0", IMAGES[0], {"id": 1}),
        ("one.parquet#1", IMAGES[1], {"id": 2}),
    ]
    struct = [{"bytes": content, "path": None} for content in IMAGES[:4]]
    pq.write_table(pa.table({"left": struct[:2], "right": struct[2:]}), tmp_path / "two.parquet")
    found = records(tmp_path / "two.parquet")
    assert [(record.key, record.read(), record.metadata) for record in found] == [
        ("two.parquet#0.left", IMAGES[0], None),
        ("two.parquet#0.right", IMAGES[2], None),
        ("two.parquet#1.left", IMAGES[1], None),
        ("two.parquet#1.right", IMAGES[3], None),
    ]


def test_table_corpus_skips_audio_columns(tmp_path):
    table = pa.table(
        {"audio": [{"bytes": b"x", "path": "a.wav"}], "image": [{"bytes": IMAGES[0], "path": "a"}]}
    )
    features = {"audio": {"_type": "Audio"}, "image": {"_type": "Image"}}
    about = {"huggingface": json.dumps({"info": {"features": features}})}
    pq.write_table(table.replace_schema_metadata(about), tmp_path / "t.parquet")
    [record] = records(tmp_path / "t.parquet")
    assert (record.key, record.read()) == ("t.parquet#0", IMAGES[0])


def test_table_corpus_reads_rows_that_name_a_file(tmp_path):
    folder = put(tmp_path, {"d/a.png": IMAGES[0], "secret.png": IMAGES[1]}) / "d"
    paths = ["a.png", "../secret.png", str(tmp_path / "secret.png"), None, "gone.png"]
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    cells = pa.array([{"bytes": None, "path": path} for path in paths], kind)
    pq.write_table(pa.table({"image": cells}), folder / "t.parquet")
    first, *others = records(folder / "t.parquet")
    assert first.read() == IMAGES[0]
    reasons = []
    for record in others:
        with pytest.raises(CorpusError) as caught:
            record.read()
        reasons.append(str(caught.value))
    outside = "the row names a file outside the folder of its table: "
    assert reasons == [
        f"{outside}../secret.png",
        f"{outside}{tmp_path}/secret.png",
        "the row has no image",
        "gone.png: No such file or directory",
    ]


def test_table_corpus_reads_images_once_in_few_calls(tmp_path, monkeypatch):
    """Whatever the order in which threads come by, every image is that of its row."""
    from llm2clip.indexer.containers import arrow_files as table_files

    monkeypatch.setattr(table_files, "_CHUNK_ROWS", 4)
    pq.write_table(hugging_face(), tmp_path / "t.parquet", row_group_size=13)
    opened = []
    real = table_files.ParquetTable._cells
    monkeypatch.setattr(
        table_files.ParquetTable, "_cells", lambda *rest: opened.append(rest[1].number) or real(*rest)
    )
    assert [record.read() for record in open_corpus(tmp_path).records()] == IMAGES
    assert opened == [0, 1, 2]  # each row group from its beginning, once
    shuffled = [records(tmp_path)[n] for n in np.random.default_rng(0).permutation(30)]
    with ThreadPoolExecutor(8) as pool:
        contents = list(pool.map(lambda record: record.read(), shuffled))
    assert contents == [IMAGES[int(record.key.rpartition("#")[2])] for record in shuffled]


def test_table_corpus_reads_nested_folders(tmp_path):
    for split, start in (("train", 0), ("validation", 10)):
        (tmp_path / "data" / split).mkdir(parents=True)
        cells = [{"bytes": IMAGES[start + n], "path": None} for n in range(2)]
        pq.write_table(pa.table({"image": cells}), tmp_path / "data" / split / "0.parquet")
    (tmp_path / "README.md").write_text("a data set")
    keys = [f"data/{split}/0.parquet#{n}" for split in ("train", "validation") for n in range(2)]
    assert [record.key for record in records(tmp_path)] == keys
    found = records(tmp_path / "data/{train,validation}/0.parquet")
    assert [record.key for record in found] == [key.removeprefix("data/") for key in keys]


def test_table_corpus_reports_a_damaged_row_group(tmp_path):
    options = {"row_group_size": 10, "compression": "zstd", "write_page_checksum": True}
    pq.write_table(hugging_face(), tmp_path / "t.parquet", **options)
    whole = bytearray((tmp_path / "t.parquet").read_bytes())
    chunk = pq.ParquetFile(tmp_path / "t.parquet").metadata.row_group(1).column(0)
    place = chunk.data_page_offset + chunk.total_compressed_size // 2
    whole[place : place + 20] = bytes(20)
    (tmp_path / "t.parquet").write_bytes(whole)
    good, bad = {}, {}
    for number, record in enumerate(records(tmp_path)):
        try:
            good[number] = record.read()
        except CorpusError as error:
            bad[number] = str(error)
    assert good == {n: IMAGES[n] for n in (*range(10), *range(20, 30))}
    assert list(bad) == list(range(10, 20))
    assert all(reason.startswith("row group 1 is damaged: ") for reason in bad.values())


@pytest.mark.parametrize("stream", [True, False])
def test_table_corpus_reads_a_truncated_arrow_file(tmp_path, stream):
    write_arrow(tmp_path / "a.arrow", hugging_face(), stream=stream)
    whole = (tmp_path / "a.arrow").read_bytes()
    (tmp_path / "a.arrow").write_bytes(whole[: whole.index(IMAGES[25])])
    write_arrow(tmp_path / "b.arrow", hugging_face(1), stream=stream)
    *good, broken, after = records(tmp_path)
    assert [record.read() for record in good] == IMAGES[:20]
    assert (broken.key, after.read()) == ("a.arrow", IMAGES[0])
    assert broken.problem.startswith("table cannot be read after 20 images: ")


@pytest.mark.parametrize(
    "content", [b"", b"PAR1", b"PAR1" + b"x" * 100 + b"PAR1", b"ARROW1\0\0rest", b"\xff" * 40]
)
def test_table_corpus_reports_other_files(tmp_path, content):
    (tmp_path / "a.parquet").write_bytes(content)
    pq.write_table(hugging_face(1), tmp_path / "b.parquet")
    broken, good = records(tmp_path)
    assert broken.problem.startswith("table cannot be read after 0 images: ")
    assert good.read() == IMAGES[0]


def test_table_corpus_refuses_offsets_outside_a_batch(tmp_path):
    table = pa.table({"image": pa.array(IMAGES[:3])})
    write_arrow(tmp_path / "a.arrow", table, stream=True)
    whole = (tmp_path / "a.arrow").read_bytes()
    offsets = np.cumsum([0, *(len(image) for image in IMAGES[:3])]).astype("<i4")
    wrong = offsets.copy()
    wrong[2] = 2**30
    assert whole.count(offsets.tobytes()) == 1
    (tmp_path / "a.arrow").write_bytes(whole.replace(offsets.tobytes(), wrong.tobytes()))
    [record] = records(tmp_path / "a.arrow")
    assert record.problem.startswith("table cannot be read after 0 images: ")


def test_table_corpus_reports_a_table_without_images(tmp_path):
    pq.write_table(pa.table({"url": ["http://x"], "text": ["y"]}), tmp_path / "t.parquet")
    [record] = records(tmp_path / "t.parquet")
    assert record.problem.startswith(
        "table cannot be read after 0 images: no column holds images: got url, text; expected one of bytes"
    )


def test_read_located_refuses_a_missing_or_changed_row(tmp_path):
    from llm2clip.indexer.records.files import content_hash

    pq.write_table(hugging_face(3), tmp_path / "t.parquet")
    corpus = open_corpus(tmp_path / "t.parquet")
    *_, last = corpus.records()
    place = {"key": last.key, "corpus": corpus.identity()}
    pq.write_table(hugging_face(2), tmp_path / "t.parquet")
    with pytest.raises(CorpusError, match="the table has no row 2 with a column image: it changed since"):
        read_located(last.locator, **place)
    pq.write_table(hugging_face(3).slice(0, 3).take([2, 1, 0]), tmp_path / "t.parquet")
    with pytest.raises(ValueError, match=r"t\.parquet changed since it was indexed: build the index again"):
        read_located(last.locator, **place, hash=content_hash(IMAGES[2]))


def test_table_corpus_without_pyarrow_names_the_extra(tmp_path, monkeypatch):
    pq.write_table(hugging_face(1), tmp_path / "t.parquet")
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(CorpusError, match=r"needs pyarrow: pip install 'llm2clip-retrieval\[parquet\]'"):
        open_corpus(tmp_path / "t.parquet")
