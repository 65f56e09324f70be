"""Small tar files in the sample-corpus format, made of plain colours."""

import io
import itertools
import json
import tarfile
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from llm2clip.encoders import Encoder, EncoderInfo, PreparedImage


def png(image):
    stream = io.BytesIO()
    image.save(stream, "PNG")
    return stream.getvalue()


def colour(rgb, *, size=16):
    return png(Image.new("RGB", (size, size), rgb))


def halves(left, right):
    image = Image.new("RGB", (16, 16), left)
    image.paste(right, (8, 0, 16, 16))
    return png(image)


def members(path, *files):
    """Write a tar of (name, bytes)."""
    with tarfile.open(path, "w") as tar:
        for name, content in files:
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return path


def write(path, items):
    """Write ``{key: (image bytes or None, metadata or None)}``."""
    files = []
    for key, (image, metadata) in items.items():
        told = None if metadata is None else json.dumps(metadata, ensure_ascii=False).encode()
        files += [(f"{key}.png", image), (f"{key}.json", told)]
    return members(path, *(file for file in files if file[1] is not None))


@pytest.fixture
def tars():
    return SimpleNamespace(colour=colour, halves=halves, write=write, members=members)


@pytest.fixture
def invoke():
    """Run a command of llm2clip-eval."""

    def run(*arguments):
        from typer.testing import CliRunner

        from llm2clip.eval.cli import app

        return CliRunner().invoke(app, [str(one) for one in arguments])

    return run


PALETTE = {
    "red": (255, 0, 0),
    "green": (0, 255, 0),
    "blue": (0, 0, 255),
    "yellow": (255, 255, 0),
    "white": (255, 255, 255),
    "black": (0, 0, 0),
}
GERMAN = dict(
    zip(["rot", "grün", "blau", "gelb", "schwarz", "weiß"], [*[*PALETTE][:4], "black", "white"], strict=True)
)


class ColourEncoder(Encoder):
    """Sees the colour of an image's left and right half, and reads a text's first and last colour word.

    Vectors are one-hot per half: every score is 0, 1/2 or 1 and every metric can be worked out by hand.
    As a bag of words it cannot tell first from last.
    """

    def __init__(self, *, bag=False):
        self.bag = bag

    @property
    def info(self):
        return EncoderInfo(
            name="colours",
            family="stub",
            dim=2 * len(PALETTE),
            image_size=2,
            max_text_tokens=1000,
            weights_sha256="0" * 64,
            settings_sha256="0" * 64,
            preprocessing="halves",
            parameters=1_500_000,
            languages=("en", "de"),
            licence="MIT",
            note="knows six colours",
        )

    def _prepare(self, image, *, draft):
        photo = Image.open(io.BytesIO(image)).convert("RGB")
        pixels = np.asarray(photo.resize((2, 2), Image.Resampling.NEAREST))
        return PreparedImage(pixels=pixels, width=photo.width, height=photo.height)

    def _image_batch(self, pixels):
        palette = np.array(list(PALETTE.values()))
        nearest = np.abs(pixels[:, 0, :, None, :].astype(int) - palette).sum(-1).argmin(-1)
        return np.stack([ColourEncoder()._row(list(pair)) for pair in nearest])

    def _text_batch(self, texts):
        words = list(PALETTE)
        rows = []
        for text in texts:
            said = [GERMAN.get(word, word) for word in text.split()]
            colours = [words.index(word) for word in said if word in words]
            rows.append(self._row(colours))
        return np.stack(rows)

    def _count_tokens(self, texts):
        return [len(text.split()) for text in texts]

    def _row(self, colours):
        row = np.zeros((2, len(PALETTE)))
        if self.bag:
            for colour in colours:
                row[:, colour] += 1
        elif colours:
            row[[0, 1], [colours[0], colours[-1]]] = 1
        if not row.any():
            row[:] = 1
        return row.ravel()


@pytest.fixture
def colours():
    """The stub encoder and what it knows."""
    return SimpleNamespace(Encoder=ColourEncoder, palette=PALETTE, german=GERMAN)


@pytest.fixture
def scenes_tar(tmp_path):
    """Every ordered pair of different colours side by side, told at a length of 102 words."""
    middle = " and" * 100

    def make(name="scenes.tar"):
        items = {}
        words = list(PALETTE)
        reverse = {english: german for german, english in GERMAN.items()}
        for left, right in itertools.permutations(words, 2):
            english, german = (
                f"{one}{middle} {two}" for one, two in ((left, right), (reverse[left], reverse[right]))
            )
            metadata = {"caption": english, "captions": {"en": english, "de": german}}
            items[f"{left}-{right}"] = (halves(PALETTE[left], PALETTE[right]), metadata)
        return write(tmp_path / name, items)

    return make


@pytest.fixture
def make_result():
    """A result by hand: four captions of two images each, of which the first two are answered at once."""
    from llm2clip.encoders import FakeEncoder
    from llm2clip.eval.results.encoder_record import describe
    from llm2clip.eval.results.records import DirectionResult, RecallAt, Result, SetRecord, pack

    def at(k, value):
        low, high = max(0, value - 0.25), min(1, value + 0.25)
        return RecallAt(k=k, value=value, low=low, high=high, expected=value, optimistic=value)

    def make(*, label="enc", key="0" * 64, ranks=(1, 1, 2, 7), protocol="colours", language=None):
        place = np.array(ranks)
        recall = tuple(at(k, float(np.mean(place <= k))) for k in (1, 5, 10))
        both = {
            "queries": len(place),
            "gallery": 2,
            "unmatched": 0,
            "recall": recall,
            "mean_recall": float(np.mean([one.value for one in recall])),
            "median_rank": float(np.median(place)),
            "ranks": pack(place),
            "clusters": pack(np.arange(len(place)) // 2),
        }
        of = {"protocol": protocol, "language": language, "images": 2, "captions": 4, "sha256": "1" * 64}
        return Result(
            set=SetRecord(complete=True, **of),
            encoder=replace(describe(FakeEncoder()), label=label, name=label, repository="", key=key),
            directions=tuple(DirectionResult(direction=name, **both) for name in ("t2i", "i2t")),
            date="2026-01-02T03:04:05+00:00",
            code="0.1.0",
            libraries=(("numpy", "2"),),
            machine="a machine",
            seed=0,
            resamples=10,
        )

    return make
