"""Building, building again, and what is refused."""

from __future__ import annotations

import errno
import os
import shutil
import sys
import threading

import numpy as np
import pytest

from llm2clip.encoders import FakeEncoder, ImageError
from llm2clip.indexer import (
    BuildOptions,
    CorpusError,
    IndexConflictError,
    IndexerError,
    Progress,
    build_index,
    open_index,
)
from llm2clip.indexer.core import index_paths as location
from llm2clip.indexer.storage import index_folder as store

from .material import colour_of, content, encoded, tar_of


def expected_vectors(encoder: FakeEncoder, colours: list[tuple[int, int, int]]) -> np.ndarray:
    return encoder.encode_images([encoded(colour) for colour in colours]).astype(np.float16)


def test_an_index_holds_every_image_with_its_vector(photos, tmp_path, encoder):
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
def test_the_index_is_the_same_however_it_is_built(photos, tmp_path, batch_size, workers):
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


def test_tars_keep_captions_and_metadata(shards, tmp_path, encoder):
    build_index(shards / "{00..01}.tar", tmp_path / "i", encoder=encoder)
    with open_index(tmp_path / "i") as index:
        [[hit]] = index.search(encoder.encode_images([encoded(colour_of(3), format="WEBP")]), k=1)
        assert (hit.key, hit.caption) == ("01.tar#0003.webp", "image 3")
        assert hit.metadata == {"emoji": "🦒", "names": {"zh": "长颈鹿"}}
        assert hit.uri == f"{shards}/01.tar#0003.webp"
        assert index.read_image(hit.id) == encoded(colour_of(3), format="WEBP")


def test_nothing_changed_is_noticed_without_reading_a_image(photos, tmp_path, encoder):
    build_index(photos, tmp_path / "i", encoder=encoder)
    before = (tmp_path / "i" / "manifest.json").read_bytes()
    report = build_index(f"{photos}/../photos", tmp_path / "i", encoder=encoder)
    assert (report.up_to_date, report.items, report.embedded, report.kept) == (True, 30, 0, 30)
    assert encoder.prepared == 30
    assert (tmp_path / "i" / "manifest.json").read_bytes() == before


def test_only_what_changed_is_embedded_again(photos, tmp_path, encoder):
    build_index(photos, tmp_path / "i", encoder=encoder)
    (photos / "000.png").unlink()
    (photos / "003.png").write_bytes(encoded((9, 9, 9), size=(20, 20)))
    (photos / "new.png").write_bytes(encoded((200, 1, 1)))
    report = build_index(photos, tmp_path / "i", encoder=encoder)
    assert (report.items, report.embedded, report.kept, report.up_to_date) == (30, 2, 28, False)
    assert encoder.prepared == 32
    # The same as one built from nothing.
    build_index(photos, tmp_path / "fresh", encoder=FakeEncoder())
    with open_index(tmp_path / "i") as again, open_index(tmp_path / "fresh") as fresh:
        assert content(again) == content(fresh)
        assert again.verify().ok
        assert again.manifest.generation == 2
    assert sorted(os.listdir(tmp_path / "i")) == sorted(
        [*again.manifest.files, "items-00001.db", "lock", "manifest.json"]
    )


def test_a_changed_caption_is_taken_without_embedding(photos, tmp_path, encoder):
    build_index(photos, tmp_path / "i", encoder=encoder)
    (photos / "000.txt").write_text("grey")
    report = build_index(photos, tmp_path / "i", encoder=encoder)
    assert (report.embedded, report.kept) == (0, 30)
    with open_index(tmp_path / "i") as index:
        assert index.items.get(0).caption == "grey"
    assert build_index(photos, tmp_path / "i", encoder=encoder).up_to_date


def test_one_of_two_files_beside_a_image_is_removed(photos, tmp_path, encoder):
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


def test_an_index_open_while_it_is_replaced_still_answers(photos, tmp_path, encoder):
    build_index(photos, tmp_path / "i", encoder=encoder)
    query = encoder.encode_images([encoded(colour_of(13))])
    with open_index(tmp_path / "i") as index:
        (photos / "summer" / "013.png").unlink()
        build_index(photos, tmp_path / "i", encoder=encoder)
        assert index.search(query, k=1)[0][0].key == "summer/013.png"
    with open_index(tmp_path / "i") as index:
        assert index.search(query, k=1)[0][0].key != "summer/013.png"


def test_readers_during_builds_see_one_state_or_the_other(photos, tmp_path, encoder):
    build_index(photos, tmp_path / "i", encoder=encoder)
    stop, problems, seen = threading.Event(), [], set()

    def read():
        while not stop.wait(0.002):
            try:
                with open_index(tmp_path / "i") as index:
                    keys = {hit.key for hit in index.search(np.eye(1, 16, dtype=np.float32), k=40)[0]}
                    seen.add((len(index), len(keys)))
            except Exception as error:
                problems.append(error)

    threads = [threading.Thread(target=read) for _ in range(2)]
    for thread in threads:
        thread.start()
    for number in range(5):
        (photos / "extra.png").write_bytes(encoded((number, 0, 0)))
        build_index(photos, tmp_path / "i", encoder=encoder)
        (photos / "extra.png").unlink()
        build_index(photos, tmp_path / "i", encoder=encoder)
    stop.set()
    for thread in threads:
        thread.join()
    assert problems == []
    assert seen, "no reader got through while building"
    assert seen <= {(30, 30), (31, 31)}


def test_progress_goes_from_listing_to_writing(photos, tmp_path, encoder):
    seen: list[Progress] = []
    options = BuildOptions(batch_size=8, on_progress=seen.append)
    build_index(photos, tmp_path / "i", encoder=encoder, options=options)
    assert [(p.stage, p.done, p.total) for p in seen] == [
        ("listing", 0, 30),
        *(("embedding", done, 30) for done in (8, 16, 24, 30)),
        ("writing", 30, 30),
    ]


def test_overwriting_replaces_the_index_of_another_encoder_or_corpus(photos, shards, tmp_path, encoder):
    build_index(photos, tmp_path / "i", encoder=encoder)
    with pytest.raises(
        IndexConflictError, match=f"holds an index of {photos}, got {shards}: choose another place"
    ):
        build_index(shards, tmp_path / "i", encoder=encoder)
    other = FakeEncoder(dim=8)
    report = build_index(shards, tmp_path / "i", encoder=other, options=BuildOptions(overwrite=True))
    assert (report.items, report.embedded) == (5, 5)
    with open_index(tmp_path / "i") as index:
        assert (len(index), index.info().dim, index.verify().ok) == (5, 8, True)


def test_overwriting_embeds_everything_again(photos, tmp_path, encoder):
    build_index(photos, tmp_path / "i", encoder=encoder)
    report = build_index(photos, tmp_path / "i", encoder=encoder, options=BuildOptions(overwrite=True))
    assert (report.embedded, report.kept, encoder.prepared) == (30, 0, 60)


def test_somebody_elses_folder_is_left_alone(photos, tmp_path, encoder):
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
def test_a_manifest_of_something_else_is_left_alone(photos, tmp_path, encoder, content):
    (tmp_path / "app").mkdir()
    (tmp_path / "app" / "manifest.json").write_text(content)
    with pytest.raises(IndexConflictError, match=r"holds other files \(manifest\.json, "):
        build_index(photos, tmp_path / "app", encoder=encoder, options=BuildOptions(overwrite=True))
    assert (tmp_path / "app" / "manifest.json").read_text() == content


def test_a_damaged_manifest_can_be_overwritten(photos, tmp_path, encoder):
    build_index(photos, tmp_path / "i", encoder=encoder)
    (tmp_path / "i" / "manifest.json").write_text("{")
    (tmp_path / "i" / ".DS_Store").write_text("left by a file manager")
    report = build_index(photos, tmp_path / "i", encoder=encoder, options=BuildOptions(overwrite=True))
    assert report.embedded == 30
    with open_index(tmp_path / "i") as index:
        assert (len(index), index.verify().ok) == (30, True)


def test_a_file_system_without_locks_is_used_without(photos, tmp_path, encoder, monkeypatch):
    def no_locks(file):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(store, "_lock", no_locks)
    assert build_index(photos, tmp_path / "i", encoder=encoder).items == 30


@pytest.mark.skipif(sys.platform != "linux", reason="needs a file system that takes any bytes as a name")
def test_a_corpus_whose_own_name_is_not_utf8(photos, tmp_path, encoder):
    odd = os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9")
    photos.rename(odd)
    with pytest.raises(IndexConflictError, match=r"caf\\xe9\.index is no name for an index: it is not UTF-8"):
        build_index(odd, f"{odd}.index", encoder=encoder)
    build_index(odd, tmp_path / "i", encoder=encoder)
    with open_index(tmp_path / "i") as index:
        assert index.read_image(0) == encoded(colour_of(0))
        assert index.verify().ok


def test_a_second_writer_is_refused(photos, tmp_path, encoder):
    (tmp_path / "i").mkdir()
    with store.lock(tmp_path / "i"), pytest.raises(IndexConflictError, match="another process is writing"):
        build_index(photos, tmp_path / "i", encoder=encoder)
    assert build_index(photos, tmp_path / "i", encoder=encoder).items == 30


@pytest.mark.parametrize("content", [{}, {"a.txt": b"x"}])
def test_no_images_is_an_error_and_leaves_nothing(tmp_path, encoder, content):
    corpus = tmp_path / "corpus"
    corpus.mkdir()
    for name, what in content.items():
        (corpus / name).write_bytes(what)
    with pytest.raises(CorpusError, match=r"no images in .*corpus: "):
        build_index(corpus, tmp_path / "i", encoder=encoder)
    assert not (tmp_path / "i").exists()
    (tmp_path / "0.tar").write_bytes(tar_of(content))
    with pytest.raises(CorpusError, match="no images in the 1 shards of "):
        build_index(tmp_path / "0.tar", tmp_path / "i", encoder=encoder)
    assert not (tmp_path / "i").exists()


def test_an_emptied_corpus_does_not_empty_its_index(photos, tmp_path, encoder):
    """As when a disk is not mounted."""
    build_index(photos, tmp_path / "i", encoder=encoder)
    shutil.rmtree(photos)
    photos.mkdir()
    with pytest.raises(CorpusError, match=r"no images in .*: the folder is empty"):
        build_index(photos, tmp_path / "i", encoder=encoder)
    with open_index(tmp_path / "i") as index:
        assert (len(index), index.verify().ok) == (30, True)
        with pytest.raises(FileNotFoundError):
            index.read_image(0)


def test_a_faulty_encoder_is_named(photos, tmp_path):
    class Wide(FakeEncoder):
        def _image_batch(self, pixels: np.ndarray) -> np.ndarray:
            return np.ones((len(pixels), 3), np.float32)

    with pytest.raises(
        IndexerError, match=r"encoder 'fake' gave vectors of shape \(30, 3\) for 30 images, expected"
    ):
        build_index(photos, tmp_path / "i", encoder=Wide(), options=BuildOptions(batch_size=30))
    assert not (tmp_path / "i").exists()


def test_a_image_without_a_vector_does_not_take_its_batch_with_it(photos, tmp_path):
    class Zero(FakeEncoder):
        def _image_batch(self, pixels: np.ndarray) -> np.ndarray:
            rows = super()._image_batch(pixels)
            rows[(pixels[:, 4, 4] == colour_of(5)).all(axis=1)] = 0
            return rows

    report = build_index(photos, tmp_path / "i", encoder=Zero())
    assert (report.items, report.bad) == (29, 1)
    assert report.bad_images[0].key == "summer/lake/005.png"


def test_an_encoder_that_fails_on_everything_is_not_blamed_on_the_images(photos, tmp_path):
    class Broken(FakeEncoder):
        def _image_batch(self, pixels: np.ndarray) -> np.ndarray:
            raise ImageError("weights are missing")

    with pytest.raises(ImageError, match="weights are missing"):
        build_index(photos, tmp_path / "i", encoder=Broken())


def test_an_unexpected_error_names_the_image(photos, tmp_path):
    class Odd(FakeEncoder):
        def _prepare(self, image, *, draft):
            raise TypeError("a bug")

    with pytest.raises(TypeError) as failure:
        build_index(photos, tmp_path / "i", encoder=Odd())
    assert failure.value.__notes__ == [f"while decoding {photos}/000.png"]


def test_images_in_memory_are_bounded(tmp_path, encoder):
    """However large the corpus, no more than the window is read ahead of the encoder."""
    folder = tmp_path / "many"
    folder.mkdir()
    for number in range(200):
        (folder / f"{number:03d}.png").write_bytes(encoded(colour_of(number)))
    ahead = []

    class Watching(FakeEncoder):
        def _image_batch(self, pixels: np.ndarray) -> np.ndarray:
            ahead.append(self.prepared - sum(self.image_batches))
            return super()._image_batch(pixels)

    build_index(folder, tmp_path / "i", encoder=Watching(), options=BuildOptions(batch_size=8, workers=2))
    assert max(ahead) <= 8 + 3 * 8 + 2


@pytest.mark.parametrize("options", [{"batch_size": 0}, {"workers": 0}])
def test_options_are_checked(options):
    with pytest.raises(IndexerError, match="must be at least 1, got 0"):
        BuildOptions(**options)


def test_the_sample_corpus_moves_with_the_installation(shards, tmp_path, encoder, monkeypatch):
    monkeypatch.setattr(location, "sample_folder", lambda: tmp_path / "nowhere")
    for module in ("containers.tar", "corpora.locator"):
        monkeypatch.setattr(f"llm2clip.indexer.{module}.sample_folder", lambda: location.sample_folder())
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
