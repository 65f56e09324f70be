"""Exports, explanations, and an index made again with another encoder."""

import errno
import json
import os

import numpy as np
import pytest

from llm2clip.encoders import FakeEncoder
from llm2clip.indexer import (
    BuildOptions,
    IndexConflictError,
    IndexerError,
    IndexWriteError,
    add_images,
    build_index,
    open_index,
    remove_images,
    update_index,
)
from llm2clip.indexer.lifecycle.export import export_index
from llm2clip.indexer.lifecycle.reencode import reencode_index
from llm2clip.indexer.lifecycle.remove import Selection
from llm2clip.indexer.search.explain import explain_search

from .material import Stopping, colour_of, content, encoded


@pytest.fixture
def index(shards, photos, tmp_path):
    build_index(shards, tmp_path / "i", encoder=FakeEncoder())
    add_images(tmp_path / "i", [photos], encoder=FakeEncoder())
    remove_images(tmp_path / "i", Selection(keys=["01.tar#0003.webp", "000.png"]))
    return tmp_path / "i"


def expected_vector(number: int, *, format: str = "PNG") -> np.ndarray:
    return FakeEncoder().encode_images([encoded(colour_of(number), format=format)])[0].astype(np.float16)


def test_export_index_writes_npy_and_jsonl(index, shards, photos, tmp_path):
    report = export_index(index, tmp_path / "out")
    assert (report.items, report.dim, report.files) == (33, 16, ("vectors.npy", "items.jsonl"))
    vectors = np.load(tmp_path / "out" / "vectors.npy")
    items = [json.loads(line) for line in (tmp_path / "out" / "items.jsonl").read_text("utf-8").splitlines()]
    assert (vectors.shape, vectors.dtype, len(items)) == ((33, 16), np.float16, 33)
    by_key = {item["key"]: (item, vector) for item, vector in zip(items, vectors, strict=True)}
    item, vector = by_key["00.tar#0001.webp"]
    np.testing.assert_array_equal(vector, expected_vector(1, format="WEBP"))
    assert (item["caption"], item["metadata"]["emoji"]) == ("image 1", "🦒")
    assert item["uri"] == f"{shards}/00.tar#0001.webp"
    item, vector = by_key["summer/013.png"]
    np.testing.assert_array_equal(vector, expected_vector(13))
    assert (item["uri"], item["width"], item["height"]) == (str(photos / "summer/013.png"), 12, 8)
    with pytest.raises(IndexConflictError, match=r"vectors\.npy already exists: choose another folder"):
        export_index(index, tmp_path / "out")


def test_export_index_writes_parquet(index, tmp_path):
    parquet = pytest.importorskip("pyarrow.parquet", reason="pyarrow is not installed")
    report = export_index(index, tmp_path / "out", format="parquet")
    table = parquet.read_table(tmp_path / "out" / "items.parquet").to_pylist()
    assert (report.items, len(table)) == (33, 33)
    row = next(row for row in table if row["key"] == "summer/013.png")
    np.testing.assert_array_equal(np.array(row["vector"], np.float16), expected_vector(13))


@pytest.mark.parametrize("format", ["npy", "parquet"])
def test_export_index_leaves_nothing_on_a_full_disk(index, tmp_path, format):
    resource = pytest.importorskip("resource", reason="no limits on file sizes here")
    if format == "parquet":
        pytest.importorskip("pyarrow.parquet", reason="pyarrow is not installed")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (500, limits[1]))
    try:
        with pytest.raises(IndexWriteError, match=r"^cannot write to .*out: [^\n]+$"):
            export_index(index, tmp_path / "out", format=format)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert list((tmp_path / "out").iterdir()) == []
    assert export_index(index, tmp_path / "out", format=format).items == 33


def test_export_index_can_be_repeated_after_an_error(index, tmp_path, monkeypatch):
    renamed, real = [], os.replace

    def replace(old, new):
        renamed.append(new)
        if len(renamed) == 2:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        real(old, new)

    monkeypatch.setattr(os, "replace", replace)
    with pytest.raises(IndexWriteError, match="Input/output error"):
        export_index(index, tmp_path / "out")
    assert list((tmp_path / "out").iterdir()) == []
    assert export_index(index, tmp_path / "out").files == ("vectors.npy", "items.jsonl")


def test_export_index_names_the_other_format_without_pyarrow(index, tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "pyarrow", None)
    with pytest.raises(IndexerError, match=r"pip install pyarrow, or use --format npy"):
        export_index(index, tmp_path / "out", format="parquet")
    with pytest.raises(IndexerError, match="expected npy or parquet"):
        export_index(index, tmp_path / "out", format="csv")


def test_explain_counts_what_a_search_reads(index):
    with open_index(index) as opened:
        said = explain_search(opened)
        assert (said.items, said.allowed, said.tombstones) == (33, 33, 2)
        assert said.covered + said.tail == 35
        assert "2 of 35 vectors are of images that were removed" in said.steps[0]
        filtered = explain_search(opened, where="key LIKE 'summer/%'")
        assert filtered.allowed == 20
        assert "20 of 33 images pass the filter (60.61%)" in filtered.steps
        assert "33 of 33 images pass the filter (100%)" in explain_search(opened, where="width > 0").steps


def test_reencode_index_builds_an_index_beside_the_old_one(index, photos, tmp_path):
    before = {file.name: file.read_bytes() for file in index.iterdir()}
    new = FakeEncoder(name="other", dim=24)
    report = reencode_index(index, tmp_path / "new", encoder=new, texts=(FakeEncoder(), new))
    assert {file.name: file.read_bytes() for file in index.iterdir()} == before
    assert (report.items, report.bad, report.encoder) == (33, 0, "other")
    with open_index(index) as old, open_index(tmp_path / "new") as made:
        assert made.verify().problems == ()
        assert made.manifest.sources == old.manifest.sources
        one, other = content(old), content(made)
        assert {key: row[0] for key, row in one.items()} == {key: row[0] for key, row in other.items()}
        [[hit]] = made.search(new.encode_images([encoded(colour_of(13))]), k=1)
        assert (hit.key, made.read_image(hit.id)) == ("summer/013.png", encoded(colour_of(13)))
        # Agreement, reckoned from the vectors alone.
        keys = sorted(one)
        shares = []
        for key in keys:
            nearest = []
            for side in (one, other):
                rows = {
                    each: np.frombuffer(row[1], np.float16).astype(np.float64) for each, row in side.items()
                }
                others = sorted(
                    (-float(rows[each] @ rows[key]), keys.index(each)) for each in keys if each != key
                )
                nearest.append({place for _, place in others[:10]})
            shares.append(len(nearest[0] & nearest[1]) / 10)
        assert report.images.queries == 33
        assert abs(report.images.overlap - np.mean(shares)) < 0.02
        assert report.captions is not None
        assert report.captions.queries == 4
    # What was removed by hand stays out, and the new index lives on from the same images.
    (photos / "new.png").write_bytes(encoded((1, 2, 3)))
    assert (update_index(tmp_path / "new", encoder=new)).new == 1


def test_reencode_index_agrees_with_the_same_encoder(index, tmp_path):
    report = reencode_index(index, tmp_path / "new", encoder=FakeEncoder())
    assert report.images.overlap == 1.0
    with pytest.raises(IndexConflictError, match="is the source index"):
        reencode_index(index, index, encoder=FakeEncoder())


def test_reencode_index_resumes(index, tmp_path):
    with pytest.raises(KeyboardInterrupt):
        reencode_index(index, tmp_path / "new", encoder=Stopping(1), options=BuildOptions(batch_size=2))
    encoder = FakeEncoder()
    report = reencode_index(index, tmp_path / "new", encoder=encoder)
    assert (report.items, sum(encoder.image_batches)) == (33, 31)
