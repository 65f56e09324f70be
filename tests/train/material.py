"""A tiny world for training tests: a few emoji-like things with names in three languages and drawings made by hand."""

from __future__ import annotations

import numpy as np

from llm2clip.train.synthetic.emoji import ART_SIZE, Artwork, Emoji
from llm2clip.train.synthetic.phrases import SCENE_LANGUAGES

COLOURS = ((220, 40, 40), (40, 180, 60), (50, 80, 220), (230, 200, 40), (150, 60, 170), (60, 190, 200))
WORDS = ("apple", "frog", "whale", "lemon", "grape", "fish", "owl", "boat", "bell", "drum", "kite", "leaf")


def emoji() -> list[Emoji]:
    things = []
    for number, word in enumerate(WORDS):
        names = {language: word if language == "en" else f"{word}-{language}" for language in SCENE_LANGUAGES}
        keywords = {"en": ("thing", f"{word}like"), "zh": ("东西",)}
        things.append(Emoji(char=chr(0x1F400 + number), names=names, keywords=keywords, group="objects"))
    return things


def artwork(*, styles: tuple[str, ...] = ("noto", "other"), size: int = ART_SIZE) -> Artwork:
    """Discs and squares: thing i has colour i mod 6; the second half are squares."""
    pixels = np.zeros((len(styles) * len(WORDS), size, size, 4), dtype=np.uint8)
    rows, columns = np.mgrid[:size, :size] - (size - 1) / 2
    disc = rows**2 + columns**2 < (0.4 * size) ** 2
    square = (np.abs(rows) < 0.34 * size) & (np.abs(columns) < 0.34 * size)
    for number in range(len(pixels)):
        thing = number % len(WORDS)
        inside = disc if thing < 6 else square
        pixels[number, inside, :3] = np.array(COLOURS[thing % 6]) // (1 + number // len(WORDS))
        pixels[number, inside, 3] = 255
    owners = np.arange(len(pixels)) % len(WORDS)
    kinds = np.arange(len(pixels)) // len(WORDS)
    return Artwork(pixels, owners.astype(np.int64), kinds.astype(np.int64), styles)
