"""Write the sample corpus of the package and nano's evaluation sets as WebDataset tars."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from llm2clip.common.files import atomic_path
from llm2clip.train.synthetic.emoji import Emoji, codepoints, load_artwork, render_style
from llm2clip.train.synthetic.packages import style
from llm2clip.train.synthetic.scenes import (
    Scene,
    Thumbnails,
    caption,
    draw_scene,
    last_twin,
    sample_scene,
    scene_record,
    swap_twin,
)
from llm2clip.train.synthetic.scenes import thumbnails as make_thumbnails

EMOJI_SIDE = 72
"""Side in pixels of an emoji image in a corpus."""
SCENE_SIDE = 144
"""Side in pixels of a scene."""
WEBP_QUALITY = 78
CAPTION_WORDS = (90, 125)
"""Shortest and longest English caption of a measured scene, in words and marks, each at least one token of nano."""

Sample = tuple[str, bytes, dict[str, Any]]


def webp(image: Image.Image) -> bytes:
    """Encode an image as lossy WebP."""
    buffer = io.BytesIO()
    image.save(buffer, "WEBP", quality=WEBP_QUALITY, method=6)
    return buffer.getvalue()


def write_tar(path: Path, samples: Iterable[Sample]) -> int:
    """Write key, image and metadata triples and return their number; equal input gives an equal file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    count = 0
    with atomic_path(path, alone=True) as draft, tarfile.open(draft, "w", format=tarfile.USTAR_FORMAT) as tar:
        for key, image, record in samples:
            text = json.dumps(record, ensure_ascii=False, separators=(",", ":")).encode()
            for ending, data in (("webp", image), ("json", text)):
                entry = tarfile.TarInfo(f"{key}.{ending}")
                entry.size = len(data)
                tar.addfile(entry, io.BytesIO(data))
            count += 1
    return count


def emoji_samples(name: str, emoji: Sequence[Emoji], cache: Path) -> Iterator[Sample]:
    """Every emoji of one style on white, with its names in all languages."""
    for index, drawing in render_style(style(name), list(emoji), cache, size=EMOJI_SIDE):
        item = emoji[index]
        page = Image.new("RGB", drawing.size, "white")
        page.paste(drawing, mask=drawing)
        record = {
            "kind": "emoji",
            "caption": item.names["en"],
            "emoji": item.char,
            "style": name,
            "names": item.names,
        }
        yield f"{name}-{codepoints(item.char)}", webp(page), record


def measured_scenes(
    pool: Sequence[int], emoji: Sequence[Emoji], count: int, rng: np.random.Generator
) -> Iterator[Scene]:
    """Scenes of seven or eight objects with an English caption of the evaluated length."""
    while count:
        scene = sample_scene(pool, rng)
        if CAPTION_WORDS[0] <= len(caption(scene, emoji).split()) <= CAPTION_WORDS[1]:
            count -= 1
            yield scene


def scene_samples(
    emoji: Sequence[Emoji], pool: Sequence[int], drawings: Thumbnails, *, count: int, seed: int, twins: bool
) -> Iterator[Sample]:
    """Scenes with captions in the scene languages, and for evaluation with their twins' captions."""
    rng = np.random.default_rng([seed, 9])
    for number, scene in enumerate(measured_scenes(pool, emoji, count, rng)):
        family = {"last": last_twin(scene, pool, rng), "swap": swap_twin(scene, rng)} if twins else {}
        image = Image.fromarray(draw_scene(scene, drawings, rng, size=SCENE_SIDE))
        yield f"scene-{number:04d}", webp(image), scene_record(scene, emoji, twins=family)


def style_thumbnails(name: str, emoji: Sequence[Emoji], cache: Path) -> Thumbnails:
    """One style at the size objects have in a corpus scene."""
    artwork = load_artwork(list(emoji), cache, styles=(name,))
    return make_thumbnails(artwork, len(emoji), side=round(0.9 * SCENE_SIDE / 3))


def write_sample_corpus(
    emoji: Sequence[Emoji], pool: Sequence[int], cache: Path, out: Path
) -> dict[str, int]:
    """The shipped corpus: all emoji in Noto artwork, and 240 scenes made of it."""
    drawings = style_thumbnails("noto", emoji, cache)
    return {
        "emoji.tar": write_tar(out / "emoji.tar", emoji_samples("noto", emoji, cache)),
        "scenes.tar": write_tar(
            out / "scenes.tar", scene_samples(emoji, pool, drawings, count=240, seed=7, twins=False)
        ),
    }


def write_measuring_sets(
    emoji: Sequence[Emoji], pool: Sequence[int], cache: Path, out: Path
) -> dict[str, int]:
    """Nano's evaluation sets: OpenMoji (never trained on, never shipped), and 1,000 scenes with twins.

    ``scenes.tar`` is drawn in Noto, ``scenes-openmoji.tar`` shows other scenes in OpenMoji.
    """
    sets = {"openmoji.tar": write_tar(out / "openmoji.tar", emoji_samples("openmoji", emoji, cache))}
    for name, artwork, seed in (("scenes.tar", "noto", 11), ("scenes-openmoji.tar", "openmoji", 12)):
        drawings = style_thumbnails(artwork, emoji, cache)
        sets[name] = write_tar(
            out / name, scene_samples(emoji, pool, drawings, count=1000, seed=seed, twins=True)
        )
    return sets
