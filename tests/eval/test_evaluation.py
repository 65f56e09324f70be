import numpy as np
import pytest

from llm2clip.encoders import FakeEncoder
from llm2clip.eval import CaptionedImages, Unmatched, evaluate, read_captioned
from llm2clip.eval.runner.evaluate import RememberedTexts, encode_images


def test_evaluate_a_tar_in_both_directions(tars, tmp_path):
    told = {"1": ["red", "a red thing"], "2": "blue", "3": "green"}
    palette = {"1": (255, 0, 0), "2": (0, 255, 0), "3": (0, 0, 255), "4": (255, 255, 0)}
    captions = {key: {"captions": {"en": said}} for key, said in told.items()}
    items = {key: (tars.colour(rgb), captions.get(key)) for key, rgb in palette.items()}
    path = tars.write(tmp_path / "set.tar", items)
    dataset = read_captioned(path, language="en")
    with pytest.raises(ValueError, match="1 of 4 queries have no right answer"):
        evaluate(FakeEncoder(), dataset)
    seen = []
    result = evaluate(FakeEncoder(), dataset, ks=(1, 4), unmatched=Unmatched.SKIP, progress=seen.append)
    # The captions of the second and third image are exchanged.
    assert result.text_to_image.recall[1].pessimistic == 0.5
    assert result.text_to_image.recall[4].pessimistic == 1.0
    assert result.image_to_text.recall[1].pessimistic == pytest.approx(1 / 3)
    assert (result.image_to_text.queries, result.image_to_text.unmatched) == (3, 1)
    assert seen == [4]


def test_evaluate_accepts_any_image_source(tars):
    red, blue = np.full((4, 4, 3), (255, 0, 0), np.uint8), tars.colour((0, 0, 255))
    dataset = CaptionedImages(name="two", images=[red, blue], texts=["blue", "red"], positives=[1, 0])
    assert evaluate(FakeEncoder(), dataset).text_to_image.recall[1].pessimistic == 1.0


def test_encode_images_reads_a_few_at_a_time(tars, monkeypatch):
    monkeypatch.setattr("llm2clip.eval.runner.evaluate._BATCH", 2)
    colours = [tars.colour((shade, 0, 255 - shade)) for shade in (0, 60, 120, 180, 240)]
    encoder = FakeEncoder()
    vectors = encode_images(encoder, colours)
    assert encoder.image_batches == [2, 2, 1]
    np.testing.assert_array_equal(vectors, FakeEncoder().encode_images(colours))


def test_evaluate_refuses_an_unreadable_image(tars):
    dataset = CaptionedImages(
        name="bad", images=[tars.colour((0, 0, 0)), b"no image"], texts=["black", "none"], positives=[0, 1]
    )
    with pytest.raises(ValueError, match="image 2 of 2"):
        evaluate(FakeEncoder(), dataset)


def test_remembered_texts_encode_no_text_twice():
    encoder = FakeEncoder()
    remembered = RememberedTexts(encoder)
    first = remembered.encode_texts(["red", "blue", "red"])
    second = remembered.encode_texts(["green", "blue"])
    assert encoder.text_batches == [2, 1]
    expected = FakeEncoder().encode_texts(["red", "blue", "red", "green", "blue"])
    np.testing.assert_array_equal(np.concatenate([first, second]), expected)
    assert remembered.count_tokens(["two words"]) == [2]
