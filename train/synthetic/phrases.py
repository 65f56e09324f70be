"""Phrases in several languages: image queries and scene descriptions."""

from __future__ import annotations

import tomllib
from importlib import resources

_PHRASES = tomllib.loads(resources.files("llm2clip.train").joinpath("data/phrases.toml").read_text("utf-8"))


def _table(name: str) -> dict[str, tuple[str, ...]]:
    return {language: tuple(phrases) for language, phrases in _PHRASES[name].items()}


QUERY_FRAMES = _table("query_frames")
"""Frames around a name or keyword, by language."""
PAIR_JOINS = _table("pair_joins")
"""Ways to say two keywords of one image; other languages use a blank."""
COLOUR_NAMES = _table("colour_names")
"""Names of ``COLOURS``, in the form the openings of the language need."""
OPENINGS = _table("openings")
"""First sentences of a scene's caption."""
PLACES = _table("places")
"""The nine places, in the order of the grid."""
ITEMS = _table("items")
"""One sentence for one object; the wordings of one position in the tuples belong together."""
SCENE_LANGUAGES = tuple(ITEMS)
"""Languages in which scenes are described."""

CELLS = 9
"""Places of a scene: a grid of three rows by three columns, counted from the top left."""
COLOURS = (
    (255, 255, 255),
    (190, 215, 245),
    (250, 240, 170),
    (250, 205, 215),
    (200, 235, 200),
    (220, 220, 220),
    (225, 205, 240),
    (250, 215, 170),
)
"""Background colours of scenes, RGB."""
