"""Images with captions: what is read and what is counted, pixels decoded once, batches by seed and step, crops."""

import json
from collections import Counter

import numpy as np
import pytest
import torch
from PIL import Image

from llm2clip.encoders.images.preprocess import Preprocess, ResizeMode
from llm2clip.indexer.corpora.open import open_corpus
from llm2clip.train.data.captions import Caption, CaptionFileError, SkipReport
from llm2clip.train.data.crops import CropConfig, Crops, augment, crop_boxes
from llm2clip.train.data.image_text import read_pairs
from llm2clip.train.data.pair_batches import CaptionMix, PairBatches, Weight
from llm2clip.train.data.pixel_cache import PixelCacheError, cache_pixels

SQUARE = Preprocess(size=8, mode=ResizeMode.SQUASH)


def save(path, colour=(200, 10, 10), size=(20, 10)):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, colour).save(path)


@pytest.fixture
def folder(tmp_path):
    for number in range(3):
        save(tmp_path / f"images/{number}.png", (number * 50, 0, 0))
    save(tmp_path / "images/lonely.png")
    (tmp_path / "images/0.txt").write_text("a dark image")
    (tmp_path / "images/1.json").write_text(json.dumps({"captions": {"en": ["red", "red"], "zh": "红"}}))
    (tmp_path / "images/2.json").write_text(json.dumps({"caption": ["first", " ", "second"], "place": "x"}))
    return tmp_path / "images"


def test_captions_beside_images_and_what_is_left_out(folder):
    report = SkipReport()
    pairs = {pair.key: pair.captions for pair in read_pairs([str(folder)], report=report)}
    assert pairs == {
        "0.png": (Caption("a dark image"),),
        "1.png": (Caption("red", "en"), Caption("红", "zh")),
        "2.png": (Caption("first"), Caption("second")),
    }
    assert report.counts == Counter(
        {"image without caption": 1, "caption twice for one image": 1, "empty caption": 1}
    )
    assert report.names["image without caption"] == ["lonely.png"]
    assert (report.groups, report.captions) == (3, 5)


def test_captions_in_a_file_are_found_by_name(folder, tmp_path):
    table = tmp_path / "captions.csv"
    table.write_text("image,caption\n0.png,from a file\nsome/where/1.png,with a path\nmissing.png,nowhere\n")
    report = SkipReport()
    pairs = {p.key: p.captions[0].text for p in read_pairs([str(folder)], [str(table)], report=report)}
    assert pairs == {"0.png": "from a file", "1.png": "with a path"}
    assert report.names["caption without image"] == ["missing.png"]
    assert report.counts["image without caption"] == 2


def test_sets_without_any_caption_are_refused(folder, tmp_path):
    for file in [*folder.glob("*.json"), *folder.glob("*.txt")]:
        file.unlink()
    with pytest.raises(CaptionFileError, match=r"no image in .* has a caption.*\.txt or \.json file beside"):
        list(read_pairs([str(folder)]))
    table = tmp_path / "c.csv"
    table.write_text("image,caption\nother.png,text\n")
    with pytest.raises(CaptionFileError, match=r"The names in .*c\.csv fit none of them"):
        list(read_pairs([str(folder)], [str(table)]))


def test_pixels_are_those_of_the_preprocessing_and_survive_interruptions(folder, tmp_path):
    (folder / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n cut off")
    records = list(open_corpus(str(folder)).records())
    whole = cache_pixels(records, tmp_path / "whole", preprocess=SQUARE)
    assert list(whole.problems) == ["broken.png"]
    readable = [n for n, record in enumerate(records) if record.key != "broken.png"]
    for number in readable:
        expected = SQUARE.prepare(records[number].read()).pixels
        np.testing.assert_array_equal(whole.take(np.array([number]))[0], expected)

    cache_pixels(records[:2], tmp_path / "part", preprocess=SQUARE)
    with (tmp_path / "part/pixels.u8").open("ab") as stream:
        stream.write(b"half a row")
    with (tmp_path / "part/images.jsonl").open("a") as stream:
        stream.write('{"key": "2.p')
    cache_pixels(records, tmp_path / "part", preprocess=SQUARE)
    for name in ("pixels.u8", "images.jsonl"):
        assert (tmp_path / "part" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


def test_pixels_of_other_images_or_sizes_are_refused(folder, tmp_path):
    records = list(open_corpus(str(folder)).records())
    cache_pixels(records, tmp_path / "cache", preprocess=SQUARE)
    with pytest.raises(PixelCacheError, match=r"holds other images: '0.png' there, '1.png' here"):
        cache_pixels(records[1:], tmp_path / "cache", preprocess=SQUARE)
    other = Preprocess(size=16, mode=ResizeMode.SQUASH)
    with pytest.raises(PixelCacheError, match=r"bicubic-8.*expected .*bicubic-16"):
        cache_pixels(records, tmp_path / "cache", preprocess=other)


def groups(count=30):
    return [
        (
            Caption(f"raw {n}", "en", "raw"),
            Caption(f"long {n}", "en", "long"),
            Caption(f"longer {n}", "en", "long"),
            Caption(f"中 {n}", "zh", "raw"),
        )
        for n in range(count)
    ]


def drawn(batches, steps):
    return [batches.texts[text] for step in range(steps) for text in batches.batch(step)[1]]


def test_batches_are_a_function_of_seed_and_step():
    one = PairBatches(groups(), size=8, mix=CaptionMix(), seed=1)
    other = PairBatches(groups(), size=8, mix=CaptionMix(), seed=1)
    for step in (5, 0, 17, 5):  # in any order
        for left, right in zip(one.batch(step), other.batch(step), strict=True):
            np.testing.assert_array_equal(left, right)
    assert one.per_epoch == 3
    epoch = np.concatenate([one.batch(step)[0] for step in range(3)])
    assert len(set(epoch.tolist())) == 24
    assert (np.concatenate([one.batch(step)[0] for step in range(3, 6)]) != epoch).any()
    images, texts = one.batch(4)
    assert all(one.texts[t].split()[1] == str(i) for i, t in zip(images, texts, strict=True))


def test_captions_are_drawn_by_weight():
    """Languages first, then kinds, then evenly: shares by hand, drawn frequencies beside them."""
    mix = CaptionMix(
        languages=(Weight("en", 3), Weight("zh", 1)), kinds=(Weight("raw", 1), Weight("long", 2))
    )
    batches = PairBatches(groups(), size=30, mix=mix, seed=0)
    np.testing.assert_allclose(batches.shares[:4], [0.75 / 3, 0.25, 0.25, 0.25])
    found = Counter(text.split()[0] for text in drawn(batches, 200))
    assert all(abs(found[name] / 6000 - 0.25) < 0.02 for name in ("raw", "long", "longer", "中"))
    only = PairBatches(groups(), size=30, mix=CaptionMix(languages=(Weight("zh"),)), seed=0)
    assert {text.split()[0] for text in drawn(only, 5)} == {"中"}


def test_no_text_occurs_twice_in_a_batch():
    captions = [(Caption("same"), Caption(f"own {n}")) for n in range(12)]
    batches = PairBatches(captions, size=12, mix=CaptionMix(), seed=0)
    for step in range(20):
        assert len(set(batches.batch(step)[1].tolist())) == 12


def test_a_mix_that_leaves_nothing_is_refused():
    with pytest.raises(CaptionFileError, match="0 images have a caption in the wanted languages"):
        PairBatches(groups(), size=8, mix=CaptionMix(languages=(Weight("fr"),)), seed=0)


def test_crop_boxes_have_the_wanted_areas_and_ratios():
    boxes = crop_boxes(4000, config=CropConfig(smallest=0.5), rng=np.random.default_rng(0))
    left, top, width, height = boxes.T
    assert (left >= 0).all()
    assert (left + width <= 1 + 1e-12).all()
    assert (top + height <= 1 + 1e-12).all()
    area = width * height
    assert area.min() >= 0.5 - 1e-9
    assert 0.6 < area.mean() < 0.9  # of [0.5, 1], less the boxes that did not fit
    assert np.abs(np.log(width / height)).max() <= np.log(4 / 3) + 1e-9


def test_augment_crops_resizes_and_mirrors():
    pixels = np.zeros((2, 8, 8, 3), np.uint8)
    pixels[:, :, 4:] = 255
    boxes = np.array([[0.5, 0.0, 0.5, 1.0], [0.0, 0.0, 1.0, 1.0]])
    found = augment(pixels, Crops(boxes, np.array([False, True])), size=4)
    torch.testing.assert_close(found[0], torch.full((3, 4, 4), 255.0))
    np.testing.assert_allclose(found[1, 0, 0, [0, 3]], [255, 0], atol=12)  # bicubic blurs the edge a little
    same = augment(pixels, Crops(np.tile([0.0, 0, 1, 1], (2, 1)), np.zeros(2, bool)), size=8)
    assert torch.equal(same, torch.from_numpy(pixels).permute(0, 3, 1, 2).float())
