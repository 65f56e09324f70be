"""What nano is measured on: emoji galleries with names in many languages, composed scenes, free-form queries."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from pathlib import Path

from llm2clip.eval.datasets.tar_images import DatasetError, TarImage, read_tar

SCENES_FILE = "scenes.tar"
"""Scenes in the artwork that nano was trained on."""
OTHER_SCENES_FILE = "scenes-openmoji.tar"
"""Scenes in an artwork it never saw; measured in English where the file exists."""
QUERIES_FILE = Path(__file__).parent.parent / "data" / "queries.json"
"""Our free-form queries, written before any model was run and without sight of training sentences."""
_QUERY_FIELDS = frozenset({"id", "language", "split", "text", "accept"})


class Split(Enum):
    """What a free-form query may be used for."""

    DEVELOPMENT = "development"
    TEST = "test"


@dataclass(frozen=True, kw_only=True)
class FreeQuery:
    """A query in free words."""

    id: str
    language: str
    split: Split
    text: str
    accept: frozenset[str]
    """Emoji whose image answers the query, without variation selectors."""


@dataclass(frozen=True, kw_only=True)
class Gallery:
    """One image of each emoji in one style of drawing."""

    style: str
    images: tuple[TarImage, ...]
    emoji: tuple[str, ...]
    """The character of each image, without variation selectors."""

    def names(self, language: str) -> dict[int, str]:
        """CLDR name by image number, for the images that have one in this language."""
        found = ((number, image.texts(language)) for number, image in enumerate(self.images))
        return {number: texts[0] for number, texts in found if texts}

    def languages(self) -> list[str]:
        """Languages in which at least half of the images have a name, English first, then by code."""
        counts: dict[str, int] = {}
        for image in self.images:
            names = image.metadata.get("names")
            for language in names if isinstance(names, Mapping) else ():
                counts[language] = counts.get(language, 0) + 1
        common = [language for language, count in counts.items() if 2 * count >= len(self.images)]
        return sorted(common, key=lambda language: (language != "en", language))


@dataclass(frozen=True, kw_only=True)
class Scene:
    """An image composed of several emoji, described at length."""

    image: TarImage
    captions: Mapping[str, str]
    twins: Mapping[str, str]
    """English captions that are wrong in one thing: ``last`` (the last object), ``swap`` (two positions)."""


def read_gallery(tars: Iterable[Path], *, style: str) -> Gallery | None:
    """Collect the emoji images of one style, in file order; ``None`` if there are none."""
    images = [
        image
        for tar in tars
        for image in read_tar(tar)
        if image.metadata.get("kind") == "emoji" and image.metadata.get("style") == style
    ]
    if not images:
        return None
    emoji = tuple(plain_emoji(str(image.metadata.get("emoji", ""))) for image in images)
    often, times = Counter(emoji).most_common(1)[0]
    if times > 1 or "" in emoji:
        raise DatasetError(
            f"gallery '{style}' has {times} images of {often!r}, expected one of each emoji, all named"
        )
    return Gallery(style=style, images=tuple(images), emoji=emoji)


def read_scenes(tar: Path) -> tuple[Scene, ...]:
    """Read composed scenes with their captions and twins."""
    scenes = []
    for image in read_tar(tar):
        if image.metadata.get("kind") != "scene":
            continue
        captions = dict(image.metadata.get("captions") or {})
        captions.setdefault("en", image.caption)
        if not captions["en"]:
            raise DatasetError(f"{tar}: scene {image.key} has no English caption")
        scenes.append(Scene(image=image, captions=captions, twins=dict(image.metadata.get("twins") or {})))
    if not scenes:
        raise DatasetError(f"{tar} holds no item of kind 'scene'. Make it again: llm2clip-train data")
    return tuple(scenes)


def plain_emoji(emoji: str) -> str:
    """Drop variation selectors (U+FE0F), which fonts, CLDR and keyboards set differently for one emoji."""
    return emoji.replace("\ufe0f", "")


def load_queries(path: Path = QUERIES_FILE) -> tuple[FreeQuery, ...]:
    """Read a list of free-form queries."""
    content = json.loads(path.read_text(encoding="utf-8"))
    entries = content.get("queries") if isinstance(content, dict) else None
    if not isinstance(entries, list) or not entries:
        raise ValueError(f"{path} has no list 'queries', expected an object with at least one query")
    for entry in entries:
        if set(entry) != _QUERY_FIELDS:
            raise ValueError(
                f"{path}: got a query with fields {sorted(entry)}, expected {sorted(_QUERY_FIELDS)}"
            )
    return tuple(
        FreeQuery(
            **entry | {"split": Split(entry["split"]), "accept": frozenset(map(plain_emoji, entry["accept"]))}
        )
        for entry in entries
    )


def require_sets(folder: Path, names: Sequence[str]) -> None:
    """Refuse to measure while evaluation files are missing; ``DatasetError`` with the command that makes them."""
    if missing := [name for name in names if not (folder / name).is_file()]:
        raise DatasetError(
            f"{' and '.join(missing)} not found in {folder}. Make the evaluation sets first: "
            f"llm2clip-train data --out {folder} (or name a folder that has them with --data)"
        )
