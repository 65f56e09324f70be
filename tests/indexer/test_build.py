"""Building, building again, and what is refused."""

import errno
import os
import sys
from collections.abc import Iterator
from functools import partial

import numpy as np
import pytest
from typer.testing import CliRunner

from llm2clip.encoders import FakeEncoder
from llm2clip.indexer import (
    BuildOptions,
    Corpus,
    CorpusError,
    EncoderMismatchError,
    IndexConflictError,
    IndexerError,
    Progress,
    Record,
    build_index,
    cli,
    open_corpus,
    open_index,
)
from llm2clip.indexer.containers.read_ahead import ReadAheadGroup
from llm2clip.indexer.core import index_paths as location
from llm2clip.indexer.ingest.listing import Spool
from llm2clip.indexer.storage import lock as store

from .material import colour_of, encoded, numbered, put, tar_of, whole


def expected_vectors(encoder: FakeEncoder, colours: list[tuple[int, int, int]]) -> np.ndarray:
    return encoder.encode_images([encoded(colour) for colour in colours]).astype(np.float16)


def test_build_index_stores_every_image_with_its_vector(photos, tmp_path, encoder):
    report = build_index(photos, tmp_path / "i", encoder=encoder)
    assert (report.items, report.embedded, report.kept, report.bad) == (30, 30, 0, 0)
    assert encoder.prepared == sum(encoder.image_batches) == 30
    with open_index(tmp_path / "i") as index:
        by_key = {index.items.get(id).key: index.vectors.take(np.array([id]))[0] for id in range(30)}
        for number in range(30):
            key = ["", "summer/", "summer/lake/"][number % 3] + f"{number:03d}.png"
            [row] = expected_vectors(FakeEncoder(), [colour_of(number)])
            np.testing.assert_array_equal(by_key[key], row)
        [[hit]] = index.search(encoder.encode_images([encoded(colour_of(13))]), k=1)
        assert (hit.key, hit.width, hit.height) == ("summer/013.png", 12, 8)
        assert hit.uri == str(photos / "summer" / "013.png")
        assert index.read_image(hit.id) == encoded(colour_of(13))
        assert index.verify().ok


@pytest.mark.parametrize("batch_size", [1, 7, 30, 64])
@pytest.mark.parametrize("workers", [1, 4])
def test_build_index_does_not_depend_on_batches_and_workers(photos, tmp_path, batch_size, workers):
    encoder = FakeEncoder()
    options = BuildOptions(batch_size=batch_size, workers=workers)
    build_index(photos, tmp_path / "i", encoder=encoder, options=options)
    assert encoder.image_batches == [batch_size] * (30 // batch_size) + [30 % batch_size] * (
        30 % batch_size > 0
    )
    order = [n for rest in range(3) for n in range(rest, 30, 3)]
    with open_index(tmp_path / "i") as index:
        rows = index.vectors.take(np.arange(30))
    np.testing.assert_array_equal(rows, expected_vectors(FakeEncoder(), [colour_of(n) for n in order]))


def test_build_index_reads_nothing_if_nothing_changed(photos, tmp_path, encoder):
    build_index(photos, tmp_path / "i", encoder=encoder)
    before = (tmp_path / "i" / "manifest.json").read_bytes()
    report = build_index(f"{photos}/../photos", tmp_path / "i", encoder=encoder)
    assert (report.up_to_date, report.items, report.embedded, report.kept) == (True, 30, 0, 30)
    assert encoder.prepared == 30
    assert (tmp_path / "i" / "manifest.json").read_bytes() == before


def test_each_command_lists_its_corpus_once(photos, tmp_path, monkeypatch):
    """Opening, counting, planning with captions and encoding included."""
    listed: list[str] = []

    def records(self: Corpus, *, captions: bool = True) -> Iterator[Record]:
        listed.append(self.spec)
        assert not captions
        return real(self, captions=captions)

    real = Corpus.records
    monkeypatch.setattr(Corpus, "records", records)
    monkeypatch.setattr("llm2clip.encoders.load_encoder", lambda *_, **__: FakeEncoder(), raising=False)
    (photos / "000.txt").write_text("words")
    (photos / "003.txt").write_text("others")
    index = ["--index", str(tmp_path / "i")]
    build = ["build", str(photos), "--encoder", "x", "--ram", "1GB", *index]
    for number, command in enumerate([build, ["update", *index], build, ["add", str(photos), *index]]):
        (photos / f"new{number}.png").write_bytes(encoded(colour_of(700 + number)))
        for _ in range(2):  # with a change and without
            assert CliRunner().invoke(cli.app, command).exit_code == 0
            assert listed == [str(photos)]
            listed.clear()


def test_spool_reads_records_of_every_kind_back(photos, shards, tmp_path):
    """Also in groups that are read together, and more than are kept in memory."""
    records = [*open_corpus(photos).records(), *open_corpus(shards).records()]
    groups = [ReadAheadGroup(partial(load, first), one=partial(int.to_bytes, length=1)) for first in (0, 3)]
    for number in range(6):
        fetch = partial(groups[number // 3].take, number % 3)
        records.append(Record(key=f"g{number}", uri="", file=photos, size=0, fetch=fetch))
    spool = Spool()
    for start in range(0, len(records), 4):
        spool.write(records[start : start + 4])
    found = list(spool)
    assert [(each.key, each.caption, each.read()) for each in found[:-6]] == [
        (each.key, each.caption, each.read()) for each in records[:-6]
    ]
    assert [each.read() for each in found[-6:]] == [bytes([number]) for number in range(6)]
    assert LOADS == [0, 3]  # each group once, though it was written in two parts
    spool.close()


LOADS: list[int] = []


def load(first: int) -> list[bytes]:
    LOADS.append(first)
    return [bytes([first + number]) for number in range(3)]


def test_build_index_encodes_only_what_changed(photos, tmp_path, encoder):
    build_index(photos, tmp_path / "i", encoder=encoder)
    (photos / "000.png").unlink()
    (photos / "003.png").write_bytes(encoded((9, 9, 9), size=(20, 20)))
    (photos / "new.png").write_bytes(encoded((200, 1, 1)))
    report = build_index(photos, tmp_path / "i", encoder=encoder)
    assert (report.items, report.embedded, report.kept, report.up_to_date) == (30, 2, 28, False)
    assert encoder.prepared == 32
    # The same as one built from nothing.
    build_index(photos, tmp_path / "fresh", encoder=FakeEncoder())
    assert whole(tmp_path / "i") == whole(tmp_path / "fresh")
    with open_index(tmp_path / "i") as again:
        assert again.manifest.generation == 2
    assert sorted(os.listdir(tmp_path / "i")) == sorted(
        [*again.manifest.files, "items-00001.db", "lock", "manifest.json"]
    )


def test_build_index_notices_a_removed_sidecar(photos, tmp_path, encoder):
    (photos / "000.json").write_text('{"caption": "said here", "mood": "calm"}')
    (photos / "000.txt").write_text("said there")
    for seconds, name in ((1000, "000.json"), (2000, "000.txt")):
        os.utime(photos / name, (seconds, seconds))
    build_index(photos, tmp_path / "i", encoder=encoder)
    (photos / "000.json").unlink()  # the newer of the two stays
    report = build_index(photos, tmp_path / "i", encoder=encoder)
    assert (report.up_to_date, report.embedded, report.kept) == (False, 0, 30)
    with open_index(tmp_path / "i") as index:
        assert (index.items.get(0).caption, index.items.get(0).metadata) == ("said there", None)


def test_progress_goes_from_listing_to_writing(photos, tmp_path, encoder):
    seen: list[Progress] = []
    options = BuildOptions(batch_size=8, on_progress=seen.append)
    build_index(photos, tmp_path / "i", encoder=encoder, options=options)
    assert [(p.stage, p.done, p.total) for p in seen] == [
        ("listing", 0, 30),
        *(("embedding", done, 30) for done in (8, 16, 24, 30)),
        ("writing", 30, 30),
    ]


def test_overwrite_replaces_the_index_of_another_encoder_or_corpus(photos, shards, tmp_path, encoder):
    build_index(photos, tmp_path / "i", encoder=encoder)
    with pytest.raises(
        IndexConflictError, match=f"holds an index of {photos}, got {shards}: choose another folder"
    ):
        build_index(shards, tmp_path / "i", encoder=encoder)
    other = FakeEncoder(dim=8)
    report = build_index(shards, tmp_path / "i", encoder=other, options=BuildOptions(overwrite=True))
    assert (report.items, report.embedded) == (5, 5)
    with open_index(tmp_path / "i") as index:
        assert (len(index), index.info().dim, index.verify().ok) == (5, 8, True)


def test_overwrite_encodes_everything_again(photos, tmp_path, encoder):
    build_index(photos, tmp_path / "i", encoder=encoder)
    report = build_index(photos, tmp_path / "i", encoder=encoder, options=BuildOptions(overwrite=True))
    assert (report.embedded, report.kept, encoder.prepared) == (30, 0, 60)


def test_build_index_refuses_a_folder_with_other_files(photos, tmp_path, encoder):
    for options in (BuildOptions(), BuildOptions(overwrite=True)):
        with pytest.raises(
            IndexConflictError, match=r"holds other files \(000\.png, \.\.\.\): expected an index"
        ):
            build_index(photos, photos, encoder=encoder, options=options)
    (tmp_path / "file").write_text("mine")
    with pytest.raises(IndexConflictError, match="is a file: expected a folder"):
        build_index(photos, tmp_path / "file", encoder=encoder)
    assert len(list(photos.rglob("*.png"))) == 30


@pytest.mark.parametrize("content", ['{"name": "a web application"}', "not even JSON"])
def test_build_index_refuses_a_manifest_of_something_else(photos, tmp_path, encoder, content):
    (tmp_path / "app").mkdir()
    (tmp_path / "app" / "manifest.json").write_text(content)
    with pytest.raises(IndexConflictError, match=r"holds other files \(manifest\.json, "):
        build_index(photos, tmp_path / "app", encoder=encoder, options=BuildOptions(overwrite=True))
    assert (tmp_path / "app" / "manifest.json").read_text() == content


def test_overwrite_replaces_a_damaged_manifest(photos, tmp_path, encoder):
    build_index(photos, tmp_path / "i", encoder=encoder)
    (tmp_path / "i" / "manifest.json").write_text("{")
    (tmp_path / "i" / ".DS_Store").write_text("left by a file manager")
    report = build_index(photos, tmp_path / "i", encoder=encoder, options=BuildOptions(overwrite=True))
    assert report.embedded == 30
    assert len(whole(tmp_path / "i")) == 30


def test_build_index_works_where_the_file_system_has_no_locks(photos, tmp_path, encoder, monkeypatch):
    def no_locks(file):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(store, "_flock", no_locks)
    assert build_index(photos, tmp_path / "i", encoder=encoder).items == 30


@pytest.mark.skipif(sys.platform != "linux", reason="needs a file system that takes any bytes as a name")
def test_build_index_takes_a_corpus_whose_name_is_not_utf8(photos, tmp_path, encoder):
    odd = os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9")
    photos.rename(odd)
    with pytest.raises(
        IndexConflictError, match=r"caf\\xe9\.index is not a valid name for an index: it is not UTF-8"
    ):
        build_index(odd, f"{odd}.index", encoder=encoder)
    build_index(odd, tmp_path / "i", encoder=encoder)
    with open_index(tmp_path / "i") as index:
        assert index.read_image(0) == encoded(colour_of(0))
        assert index.verify().ok


@pytest.mark.parametrize("content", [{}, {"a.txt": b"x"}])
def test_build_index_refuses_a_corpus_without_images(tmp_path, encoder, content):
    corpus = tmp_path / "corpus"
    corpus.mkdir()
    put(corpus, content)
    with pytest.raises(CorpusError, match=r"no images in .*corpus: "):
        build_index(corpus, tmp_path / "i", encoder=encoder)
    assert not (tmp_path / "i").exists()
    (tmp_path / "0.tar").write_bytes(tar_of(content))
    with pytest.raises(CorpusError, match="no images in the 1 shards of "):
        build_index(tmp_path / "0.tar", tmp_path / "i", encoder=encoder)
    assert not (tmp_path / "i").exists()


def test_build_index_names_a_faulty_encoder(photos, tmp_path):
    class Wide(FakeEncoder):
        def _image_batch(self, pixels: np.ndarray) -> np.ndarray:
            return np.ones((len(pixels), 3), np.float32)

    with pytest.raises(
        IndexerError, match=r"encoder 'fake' gave vectors of shape \(30, 3\) for 30 images, expected"
    ):
        build_index(photos, tmp_path / "i", encoder=Wide(), options=BuildOptions(batch_size=30))
    assert not (tmp_path / "i").exists()


def test_unexpected_error_names_the_image(photos, tmp_path):
    class Odd(FakeEncoder):
        def _prepare(self, image, *, draft):
            raise TypeError("a bug")

    with pytest.raises(TypeError) as failure:
        build_index(photos, tmp_path / "i", encoder=Odd())
    assert failure.value.__notes__ == [f"while decoding {photos}/000.png"]


def test_build_index_bounds_images_in_memory(tmp_path, encoder):
    """However large the corpus, no more than the window is read ahead of the encoder."""
    folder = put(tmp_path / "many", numbered(range(200)))
    ahead = []

    class Watching(FakeEncoder):
        def _image_batch(self, pixels: np.ndarray) -> np.ndarray:
            ahead.append(self.prepared - sum(self.image_batches))
            return super()._image_batch(pixels)

    build_index(folder, tmp_path / "i", encoder=Watching(), options=BuildOptions(batch_size=8, workers=2))
    assert max(ahead) <= 8 + 3 * 8 + 2


@pytest.mark.parametrize("options", [{"batch_size": 0}, {"workers": 0}])
def test_build_options_are_checked(options):
    with pytest.raises(IndexerError, match="must be at least 1, got 0"):
        BuildOptions(**options)


def test_sample_corpus_moves_with_the_installation(shards, tmp_path, encoder, monkeypatch):
    monkeypatch.setattr(location, "sample_folder", lambda: tmp_path / "nowhere")
    monkeypatch.setattr("llm2clip.indexer.containers.tar.sample_folder", lambda: location.sample_folder())
    with pytest.raises(CorpusError, match="this installation has no sample images"):
        build_index("sample:", tmp_path / "i", encoder=encoder)
    monkeypatch.setattr(location, "sample_folder", lambda: shards)
    build_index("sample:", tmp_path / "i", encoder=encoder)
    moved = tmp_path / "moved"
    shards.rename(moved)
    monkeypatch.setattr(location, "sample_folder", lambda: moved)
    with open_index(tmp_path / "i") as index:
        assert index.read_image(4) == encoded(colour_of(4), format="WEBP")
        assert index.info().corpus == {"kind": "sample", "spec": "sample:"}
    assert build_index("sample:", tmp_path / "i", encoder=encoder).up_to_date


def test_another_encoder_is_refused_in_one_sentence(photos, tmp_path, encoder):
    build_index(photos, tmp_path / "i", encoder=encoder)
    with pytest.raises(EncoderMismatchError) as failure:
        build_index(photos, tmp_path / "i", encoder=FakeEncoder(name="other", dim=8))
    assert str(failure.value) == (
        f"{tmp_path}/i was built with encoder 'fake' (dim 16), got 'other' (dim 8): build with the first, choose "
        "another folder with --index, or replace it with --overwrite"
    )
    with pytest.raises(
        EncoderMismatchError, match=r"was built with another version of encoder 'fake' .weights_sha256 "
    ):
        build_index(photos, tmp_path / "i", encoder=FakeEncoder(seed=1))
    with pytest.raises(
        EncoderMismatchError,
        match=r"another version of encoder 'fake' .settings_sha256 \w{12}, got \w{12}.: ",
    ):
        build_index(photos, tmp_path / "i", encoder=FakeEncoder(max_text_tokens=5))
    with open_index(tmp_path / "i") as index:
        assert len(index) == 30
        index.require_encoder(encoder.info)
        with pytest.raises(
            EncoderMismatchError, match=r"was built with encoder 'fake' .dim 16., got 'other' .dim 8.. S"
        ):
            index.require_encoder(FakeEncoder(name="other", dim=8).info)


def test_an_encoder_of_another_name_is_the_same_one(photos, tmp_path, encoder):
    build_index(photos, tmp_path / "i", encoder=encoder)
    renamed = FakeEncoder(name="moved")
    with open_index(tmp_path / "i") as index:
        index.require_encoder(renamed.info)
    (photos / "new.png").write_bytes(encoded((200, 1, 1)))
    report = build_index(photos, tmp_path / "i", encoder=renamed)
    assert (report.embedded, report.kept) == (1, 30)
    with open_index(tmp_path / "i") as index:
        assert index.info().encoder["name"] == "moved"
        assert index.info().encoder_source == "moved"


def test_building_again_notes_where_the_encoder_lies_now(photos, tmp_path, encoder):
    first, now = (BuildOptions(encoder_source=f"/models/{place}") for place in ("old", "new"))
    build_index(photos, tmp_path / "i", encoder=encoder, options=first)
    report = build_index(photos, tmp_path / "i", encoder=FakeEncoder(name="new"), options=now)
    assert (report.up_to_date, report.encoder) == (True, "new")
    with open_index(tmp_path / "i") as index:
        assert (index.info().encoder_source, index.info().encoder["name"]) == ("/models/new", "new")
        assert (index.info().generation, index.verify().ok) == (1, True)
    # A build that does not say where its encoder lies changes nothing.
    build_index(photos, tmp_path / "i", encoder=encoder)
    with open_index(tmp_path / "i") as index:
        assert index.info().encoder_source == "/models/new"
