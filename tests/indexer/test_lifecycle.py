"""Adding, updating, removing, compacting: what is in the index afterwards, and what it cost."""

import os
import shutil

import numpy as np
import pytest

from llm2clip.encoders import FakeEncoder
from llm2clip.indexer import (
    BuildOptions,
    CorpusError,
    EncoderMismatchError,
    IndexerError,
    IndexNotFoundError,
    Selection,
    add_images,
    build_index,
    compact_index,
    open_index,
    remove_images,
    update_index,
)
from llm2clip.indexer.storage import transaction

from .material import colour_of, content, encoded, numbered, put, tar_of, whole


def never() -> FakeEncoder:
    raise AssertionError("the encoder was loaded")


def keys_of(folder) -> set[str]:
    found = {key for _, key in whole(folder)}
    with open_index(folder) as index:
        assert len(index) == len(found)
        hits = index.search(np.eye(1, 16, dtype=np.float32), k=1000)[0]
        assert {hit.key for hit in hits} == found
    return found


def same_as_fresh(folder, photos, tmp_path) -> None:
    build_index(photos, tmp_path / "fresh", encoder=FakeEncoder())
    with open_index(folder) as one, open_index(tmp_path / "fresh") as other:
        assert content(one) == content(other)
        query = FakeEncoder().encode_images([encoded(colour_of(13))])
        got, expected = (
            [(hit.key, hit.score) for hit in each.search(query, k=8)[0]] for each in (one, other)
        )
        assert [score for _, score in got] == [score for _, score in expected]


def test_update_index_loads_no_encoder_if_nothing_changed(index):
    before = (index / "manifest.json").read_bytes()
    report = update_index(index, encoder=never)
    assert (report.changed_anything, report.unchanged, report.items) == (False, 30, 30)
    assert (index / "manifest.json").read_bytes() == before


def test_update_index_counts_each_kind_of_change(index, photos, tmp_path):
    (photos / "new.png").write_bytes(encoded((1, 2, 3)))
    (photos / "000.png").write_bytes(encoded((9, 9, 9), size=(20, 20)))
    (photos / "003.png").rename(photos / "summer" / "moved.png")
    shutil.copy(photos / "006.png", photos / "copy.png")
    os.utime(photos / "009.png", ns=(5, 5))
    (photos / "012.png").unlink()
    (photos / "015.txt").write_text("with words")
    encoder = FakeEncoder()
    report = update_index(index, encoder=encoder)
    counted = (report.new, report.changed, report.described, report.moved, report.removed, report.unchanged)
    assert counted == (3, 1, 2, 1, 2, 25)
    assert (report.embedded, report.reused, report.items) == (2, 2, 31)
    assert sum(encoder.image_batches) == 2
    same_as_fresh(index, photos, tmp_path)
    assert len(keys_of(index)) == 31
    with open_index(index) as opened:
        # Only new content and moved names take a new vector; words and times do not.
        assert (opened.manifest.rows, opened.manifest.tombstones) == (34, 3)
    assert not update_index(index, encoder=never).changed_anything


def test_emptied_corpus_is_refused(index, photos):
    """As when a disk is not mounted."""
    shutil.rmtree(photos)
    with pytest.raises(CorpusError, match="looks unmounted"):
        update_index(index, encoder=never)
    photos.mkdir()
    for change in (
        lambda: update_index(index, encoder=never),
        lambda: build_index(photos, index, encoder=FakeEncoder()),
    ):
        with pytest.raises(CorpusError, match=r"looks unmounted: 0 of 30 images"):
            change()
    assert len(keys_of(index)) == 30
    with open_index(index) as opened, pytest.raises(FileNotFoundError):
        opened.read_image(0)


def test_update_index_refuses_another_encoder(index, photos):
    (photos / "new.png").write_bytes(encoded((1, 2, 3)))
    with pytest.raises(EncoderMismatchError, match="llm2clip-index build --from"):
        update_index(index, encoder=FakeEncoder(dim=8))
    assert len(keys_of(index)) == 30


def test_add_images_does_not_copy_the_index(index, photos):
    (photos / "summer" / "one.png").write_bytes(encoded((1, 2, 3)))
    (photos / "unseen.png").write_bytes(encoded((4, 5, 6)))
    before = {name: (index / name).stat().st_mtime_ns for name in os.listdir(index)}
    report = add_images(index, [photos / "summer" / "one.png"], encoder=FakeEncoder())
    assert (report.new, report.embedded, report.items) == (1, 1, 31)
    assert keys_of(index) == {*(hit for hit in keys_of(index) if hit != "summer/one.png"), "summer/one.png"}
    assert "unseen.png" not in keys_of(index)
    written = [n for n in os.listdir(index) if before.get(n) != (index / n).stat().st_mtime_ns]
    written.remove("items-00001.db")
    assert sum((index / name).stat().st_size for name in written if name.startswith("vectors")) < 300
    assert not [name for name in written if name.startswith("candidates")]
    report = update_index(index, encoder=FakeEncoder())
    assert (report.new, report.unchanged) == (1, 31)


def test_add_images_joins_small_segments(index, photos, tmp_path):
    for name, image in numbered(range(40), name="add{}.png", colours=1000).items():
        add_images(index, [put(photos, {name: image}) / name], encoder=FakeEncoder())
    assert len(keys_of(index)) == 70
    with open_index(index) as opened:
        assert len(opened.manifest.segments) <= 6
    same_as_fresh(index, photos, tmp_path)


def test_add_images_gives_a_subfolder_the_keys_of_its_source(index, photos, tmp_path):
    (photos / "winter").mkdir()
    (photos / "winter" / "snow.png").write_bytes(encoded((250, 250, 250)))
    (photos / "unseen.png").write_bytes(encoded((4, 5, 6)))
    report = add_images(index, [photos / "winter"], encoder=FakeEncoder())
    assert (report.new, report.removed) == (1, 0)
    assert keys_of(index) >= {"winter/snow.png", "000.png"}
    (photos / "unseen.png").unlink()
    assert not update_index(index, encoder=never).changed_anything
    same_as_fresh(index, photos, tmp_path)


def test_add_images_does_not_follow_links_into_the_source(index, photos, tmp_path):
    (photos / "summer" / "up").symlink_to("..")
    (photos / "summer" / "new.png").write_bytes(encoded((9, 8, 7)))
    assert add_images(index, [photos / "summer"], encoder=FakeEncoder()).new == 1
    assert not update_index(index, encoder=FakeEncoder()).changed_anything


def test_add_images_adds_sources_that_update_index_syncs(index, photos, shards, tmp_path):
    lone = tmp_path / "elsewhere" / "lone.png"
    lone.parent.mkdir()
    lone.write_bytes(encoded((77, 1, 1)))
    report = add_images(index, [shards, lone], encoder=FakeEncoder())
    assert (report.new, report.items) == (6, 36)
    with open_index(index) as opened:
        [[hit]] = opened.search(FakeEncoder().encode_images([lone.read_bytes()]), k=1)
        assert (hit.uri, opened.read_image(hit.id)) == (str(lone), lone.read_bytes())
        [[hit]] = opened.search(FakeEncoder().encode_images([encoded(colour_of(3), format="WEBP")]), k=1)
        assert (hit.uri, hit.caption) == (f"{shards}/01.tar#0003.webp", "image 3")
        assert [source["kind"] for source in opened.manifest.sources] == ["folder", "tar", "stdin"]
    assert not update_index(index, encoder=never).changed_anything
    lone.unlink()
    (shards / "01.tar").write_bytes(tar_of({"0003.webp": encoded(colour_of(3), format="WEBP")}))
    (photos / "000.png").unlink()
    report = update_index(index, encoder=Idle())
    assert (report.removed, report.items, report.embedded) == (3, 33, 0)
    assert len(keys_of(index)) == 33


class Idle(FakeEncoder):
    """An encoder that may be asked who it is, and nothing else."""

    def _image_batch(self, pixels: np.ndarray) -> np.ndarray:
        raise AssertionError("an image was embedded")


def test_remove_images_keeps_them_out_until_they_are_added(index, photos):
    report = remove_images(index, Selection(keys=["000.png", str(photos / "summer" / "001.png")]))
    assert (report.removed, report.items, report.tombstones) == (2, 28, 2)
    assert not {"000.png", "summer/001.png"} & keys_of(index)
    assert not update_index(index, encoder=never).changed_anything
    assert build_index(photos, index, encoder=FakeEncoder()).up_to_date
    report = add_images(index, [photos / "000.png"], encoder=FakeEncoder())
    assert (report.new, report.items) == (1, 29)
    assert "000.png" in keys_of(index)
    compact_index(index)
    assert not update_index(index, encoder=never).changed_anything


def test_remove_images_takes_patterns_and_filters(index):
    assert remove_images(index, Selection(matching="summer/lake/*")).removed == 10
    assert remove_images(index, Selection(where="key LIKE '00%'")).removed == 4
    assert len(keys_of(index)) == 16
    report = remove_images(index, Selection(matching="nothing*"))
    assert (report.removed, report.changed_anything) == (0, False)
    with pytest.raises(IndexerError, match=r"not in the index: nosuch\.png\. Nothing was removed"):
        remove_images(index, Selection(keys=["015.png", "nosuch.png"]))
    with pytest.raises(IndexerError, match="no images were selected"):
        remove_images(index, Selection())
    with pytest.raises(IndexNotFoundError):
        remove_images(index / "nowhere", Selection(keys=["a"]))
    assert len(keys_of(index)) == 16


def test_compact_index_drops_only_what_was_removed(index, photos, tmp_path):
    (photos / "000.png").write_bytes(encoded((9, 9, 9)))
    update_index(index, encoder=FakeEncoder())
    remove_images(index, Selection(matching="summer/lake/*"))
    with open_index(index) as before, open_index(index) as during:
        expected = content(before)
        report = compact_index(index)
        assert (report.dropped, report.items, report.segments) == (11, 20, 1)
        assert report.bytes_after < report.bytes_before
        assert len(during.search(np.eye(1, 16, dtype=np.float32), k=50)[0]) == 20
    with open_index(index) as after:
        assert content(after) == expected
        assert (after.manifest.rows, after.manifest.tombstones) == (20, 0)
        assert after.manifest.ann.rows == 20
    assert len(keys_of(index)) == 20
    assert compact_index(index).notes == ("nothing to remove: the index is unchanged",)
    assert len(os.listdir(index)) == 5


def test_update_index_removes_unreadable_images_until_they_are_readable(index, photos, tmp_path):
    good = (photos / "000.png").read_bytes()
    (photos / "000.png").write_bytes(b"not an image")
    report = update_index(index, encoder=FakeEncoder())
    assert (report.bad, report.removed, report.items) == (1, 1, 29)
    with open_index(index) as opened:
        assert [error.key for error in opened.errors()] == ["000.png"]
        assert opened.info().bad == 1
    assert not update_index(index, encoder=never).changed_anything
    (photos / "000.png").write_bytes(good)
    report = update_index(index, encoder=Idle())
    assert (report.new, report.bad, report.items) == (1, 0, 30)
    same_as_fresh(index, photos, tmp_path)


@pytest.mark.parametrize("unreadable", ["folder", "shard"])
def test_update_index_keeps_images_of_unreadable_folders_and_files(
    photos, shards, tmp_path, monkeypatch, unreadable
):
    place, corpus, lost = tmp_path / "i", photos, 20
    if unreadable == "shard":
        corpus, lost = shards, 2
    build_index(corpus, place, encoder=FakeEncoder())
    before, whole, scan = keys_of(place), (shards / "01.tar").read_bytes(), os.scandir
    with monkeypatch.context() as patch:

        def failing(path):
            if str(path) == str(photos / "summer"):
                raise PermissionError(13, "Permission denied")
            return scan(path)

        patch.setattr(os, "scandir", failing)
        (shards / "01.tar").write_bytes(b"")
        report = update_index(place, encoder=FakeEncoder())
    assert keys_of(place) == before
    assert (report.removed, report.bad) == (0, 1)
    assert report.notes == (f"{lost} images kept whose folder or file cannot be read now",)
    (shards / "01.tar").write_bytes(whole)
    report = update_index(place, encoder=FakeEncoder())
    assert (report.removed, report.bad, report.embedded, keys_of(place)) == (0, 0, 0, before)
    with open_index(place) as opened:
        assert opened.errors() == []


def test_index_opened_before_changes_answers_as_before(index, photos):
    queries = np.eye(3, 16, dtype=np.float32)
    with open_index(index) as old:
        expected = old.search(queries, k=40)
        (photos / "000.png").unlink()
        (photos / "new.png").write_bytes(encoded((1, 2, 3)))
        (photos / "003.txt").write_text("a caption")
        update_index(index, encoder=FakeEncoder())
        (photos / "006.png").unlink()
        build_index(photos, index, encoder=FakeEncoder())
        remove_images(index, Selection(matching="summer/*"))
        assert old.search(queries, k=40) == expected
        assert old.search(queries, k=40, where="key LIKE 'summer/%'")[0] != []
        compact_index(index)
        assert old.search(queries, k=40) == expected
        assert len(old.search(queries, k=40, where="key LIKE 'summer/%'")[0]) == 20


def test_build_index_encodes_copies_once(photos, tmp_path, monkeypatch):
    monkeypatch.setattr(transaction, "CHECKPOINT_SECONDS", 0.0)
    for number in range(30):
        first = next(photos.rglob(f"{number:03d}.png"))
        copy = photos / "zz" / "copies" / first.name
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(first, copy)
    encoder = FakeEncoder()
    options = BuildOptions(batch_size=2, workers=1)
    report = build_index(photos, tmp_path / "i", encoder=encoder, options=options)
    assert report.items == 60
    assert 30 <= sum(encoder.image_batches) < 50
    found = whole(tmp_path / "i")
    for number in range(30):
        one = FakeEncoder().encode_images([encoded(colour_of(number))])[0].astype(np.float16).tobytes()
        assert found[0, f"zz/copies/{number:03d}.png"][1] == one


def test_remove_images_finds_names_in_either_form(tmp_path, encoder):
    photos = put(tmp_path / "photos", {"cafe\u0301.png": encoded((1, 2, 3)), "b.png": encoded((3, 2, 1))})
    build_index(photos, tmp_path / "i", encoder=encoder)
    report = remove_images(tmp_path / "i", Selection(keys=["caf\u00e9.png"]))
    assert (report.removed, keys_of(tmp_path / "i")) == (1, {"b.png"})
