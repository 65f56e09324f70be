"""Where an image matches a text, on images put together of four, so that the right place is known."""

from __future__ import annotations

import io
import random

import numpy as np
from PIL import Image

from llm2clip.encoders import FakeEncoder, ModelError, load_encoder
from llm2clip.encoders.core.dual_encoder import DualEncoder
from llm2clip.indexer import open_corpus
from llm2clip.indexer.core.index_paths import SAMPLE

COMPOSED = 16
SIDE = 240


def test_image_cells_point_at_the_quarter_that_a_text_describes():
    """Chance is a quarter; over 60 images put together of sample photographs, nano is right for 78 %."""
    nano = load_encoder("nano", device="cpu")
    assert isinstance(nano, DualEncoder)
    photographs = [
        (record.caption or "", Image.open(io.BytesIO(record.read())).convert("RGB").resize((SIDE, SIDE)))
        for record in open_corpus(SAMPLE).records()
        if record.metadata.get("kind") == "photograph"
    ]
    draw = random.Random(3)
    right = 0
    for _ in range(COMPOSED):
        four, place = draw.sample(photographs, 4), draw.randrange(4)
        whole = Image.new("RGB", (2 * SIDE, 2 * SIDE))
        for number, (_, image) in enumerate(four):
            whole.paste(image, (number % 2 * SIDE, number // 2 * SIDE))
        cosines = nano.image_cells(whole) @ nano.encode_texts([four[place][0]])[0]
        row, column = np.unravel_index(cosines.argmax(), cosines.shape)
        rows, columns = cosines.shape
        right += (2 * row // rows, 2 * column // columns) == divmod(place, 2)
    assert right >= COMPOSED / 2, f"{right} of {COMPOSED}"


def test_image_cells_need_a_tower_with_a_grid():
    assert not isinstance(FakeEncoder(), DualEncoder)
    assert issubclass(ModelError, ValueError)
