"""Scenes: several emoji on a three-by-three grid, and their captions, which say what is where.

They are the long captions of nano. A scene's twins differ from it in one thing only, so a model that reads a bag of
words or stops early cannot tell them apart.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from llm2clip.train.synthetic.emoji import Artwork, Emoji
from llm2clip.train.synthetic.phrases import (
    CELLS,
    COLOUR_NAMES,
    COLOURS,
    ITEMS,
    OPENINGS,
    PLACES,
    SCENE_LANGUAGES,
)

GROUPS = ("animals-nature", "food-drink", "travel-places", "activities", "objects")
"""Groups whose emoji appear in scenes: things, not faces, flags or signs."""


@dataclass(frozen=True, kw_only=True)
class Scene:
    """What is where, in the order of the caption."""

    background: int
    """Position in ``COLOURS``."""
    objects: tuple[int, ...]
    """Positions of the emoji."""
    cells: tuple[int, ...]
    """Cell of each object, 0..8 from the top left, all different."""


def scene_pool(emoji: Sequence[Emoji]) -> list[int]:
    """Emoji that may be in a scene: objects with a name in every scene language, without clock faces."""
    return [
        index
        for index, item in enumerate(emoji)
        if item.group in GROUPS
        and all(language in item.names for language in SCENE_LANGUAGES)
        and "o’clock" not in item.names["en"]
        and "-thirty" not in item.names["en"]
        and len(item.names["en"].split()) <= 3
    ]


def sample_scene(
    pool: Sequence[int], rng: np.random.Generator, *, objects: tuple[int, int] = (7, 8)
) -> Scene:
    """Draw a scene of ``objects[0]`` to ``objects[1]`` different emoji on different cells."""
    count = int(rng.integers(objects[0], objects[1] + 1))
    return Scene(
        background=int(rng.integers(len(COLOURS))),
        objects=tuple(int(pool[i]) for i in rng.choice(len(pool), count, replace=False)),
        cells=tuple(int(cell) for cell in rng.choice(CELLS, count, replace=False)),
    )


def last_twin(scene: Scene, pool: Sequence[int], rng: np.random.Generator) -> Scene:
    """The same scene with another emoji in place of the last one."""
    while True:
        other = int(pool[int(rng.integers(len(pool)))])
        if other not in scene.objects:
            return replace(scene, objects=(*scene.objects[:-1], other))


def swap_twin(scene: Scene, rng: np.random.Generator) -> Scene:
    """The same scene with the places of two objects exchanged and the order kept."""
    first, second = (int(i) for i in rng.choice(len(scene.objects), 2, replace=False))
    cells = list(scene.cells)
    cells[first], cells[second] = cells[second], cells[first]
    return replace(scene, cells=tuple(cells))


def move_twin(scene: Scene, rng: np.random.Generator) -> Scene:
    """The same scene with one object moved to another cell, exchanged with what is there."""
    moved = int(rng.integers(len(scene.objects)))
    goal = int(rng.integers(CELLS - 1))
    goal += goal >= scene.cells[moved]
    cells = [scene.cells[moved] if cell == goal else cell for cell in scene.cells]
    cells[moved] = goal
    return replace(scene, cells=tuple(cells))


def caption(scene: Scene, emoji: Sequence[Emoji], *, language: str = "en", wording: int = 0) -> str:
    """The caption of a scene; see :func:`sentences`."""
    return "".join(sentences(scene, emoji, language=language, wording=wording))


def sentences(
    scene: Scene, emoji: Sequence[Emoji], *, language: str = "en", wording: int = 0, opening: bool = True
) -> list[str]:
    """The sentences of a caption, which is their concatenation: an opening, then one for each object.

    Args:
        scene: What is where.
        emoji: All emoji.
        language: One of ``SCENE_LANGUAGES``.
        wording: Which of the language's wordings; taken modulo their number.
        opening: Whether to begin with the sentence on background and number.
    """
    openings, items = OPENINGS[language], ITEMS[language]
    told = [
        items[wording % len(items)].format(place=PLACES[language][cell], name=_noun(emoji[index], language))
        for index, cell in zip(scene.objects, scene.cells, strict=True)
    ]
    if opening:
        first = openings[wording % len(openings)].format(
            n=len(scene.objects), colour=COLOUR_NAMES[language][scene.background]
        )
        told.insert(0, first.replace(" a orange", " an orange") if language == "en" else first)
    space = "" if language in ("zh", "ja") else " "
    return told[:1] + [space + sentence for sentence in told[1:]]


def _noun(item: Emoji, language: str) -> str:
    name = item.names[language]
    if language != "en" or name.endswith("s"):
        return name
    return f"{'an' if name[0].lower() in 'aeiou' else 'a'} {name}"


@dataclass(frozen=True)
class Thumbnails:
    """Every drawing at the size it has in a scene."""

    pixels: NDArray[np.float32]
    """Shape: (drawings, side, side, 4), premultiplied RGBA in 0..1."""
    by_emoji: tuple[NDArray[np.int64], ...]
    """Drawings of each emoji; empty where no style has it."""


def thumbnails(artwork: Artwork, emoji_count: int, *, side: int) -> Thumbnails:
    """Shrink all drawings to ``side`` x ``side`` pixels."""
    import torch
    import torch.nn.functional as F

    small = []
    for block in np.array_split(artwork.pixels, max(1, len(artwork.pixels) // 1024)):
        rgba = torch.from_numpy(block).permute(0, 3, 1, 2).float() / 255
        rgba[:, :3] *= rgba[:, 3:]
        shrunk = F.interpolate(rgba, size=(side, side), mode="bicubic", antialias=True).clamp(0, 1)
        small.append(shrunk.permute(0, 2, 3, 1).numpy())
    owners = [np.flatnonzero(artwork.emoji == index) for index in range(emoji_count)]
    return Thumbnails(np.concatenate(small), tuple(owners))


def draw_scene(
    scene: Scene, drawings: Thumbnails, rng: np.random.Generator, *, size: int, jitter: float = 0.04
) -> NDArray[np.uint8]:
    """Draw a scene, each object in a random style of the thumbnails. Shape: (size, size, 3), uint8 RGB.

    ``jitter`` is the largest displacement of an object, as a fraction of the image's side.
    """
    side = drawings.pixels.shape[1]
    canvas = np.empty((size, size, 3), dtype=np.float32)
    canvas[:] = np.asarray(COLOURS[scene.background], dtype=np.float32) / 255
    slack = jitter * size
    for index, cell in zip(scene.objects, scene.cells, strict=True):
        thumbnail = drawings.pixels[int(rng.choice(drawings.by_emoji[index]))]
        centre = (np.array(divmod(cell, 3)) + 0.5) * size / 3 + rng.uniform(-slack, slack, 2)
        top, left = (int(v) for v in np.clip(np.round(centre - side / 2), 0, size - side))
        patch = canvas[top : top + side, left : left + side]
        patch *= 1 - thumbnail[..., 3:]
        patch += thumbnail[..., :3]
    drawn: NDArray[np.uint8] = (canvas * 255 + 0.5).clip(0, 255).astype(np.uint8)
    return drawn


def scene_record(scene: Scene, emoji: Sequence[Emoji], *, twins: dict[str, Scene]) -> dict[str, Any]:
    """Metadata of a scene in the sample corpus and the evaluation sets."""
    record: dict[str, Any] = {
        "kind": "scene",
        "caption": caption(scene, emoji),
        "captions": {language: caption(scene, emoji, language=language) for language in SCENE_LANGUAGES},
        "emoji": "".join(emoji[index].char for index in scene.objects),
        "objects": [
            {"emoji": emoji[i].char, "names": emoji[i].names, "row": cell // 3, "column": cell % 3}
            for i, cell in zip(scene.objects, scene.cells, strict=True)
        ],
    }
    if twins:
        record["twins"] = {kind: caption(twin, emoji) for kind, twin in twins.items()}
    return record
