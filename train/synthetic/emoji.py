"""nano's emoji: names and keywords in many languages (CLDR), and artwork in several styles."""

from __future__ import annotations

import io
import json
import re
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from llm2clip.common.files import atomic_path
from llm2clip.train.synthetic.packages import STYLES, TEXT_PACKAGES, SourceError, Style, fetch, style

if TYPE_CHECKING:
    from fontTools.ttLib import TTFont

LANGUAGES: tuple[str, ...] = (
    *("en", "zh", "es", "ar", "ja", "hi", "de", "fr", "pt", "ru", "ko", "it", "tr", "vi", "th", "id", "nl"),
    *("pl", "uk", "fa", "he", "bn", "ta", "te", "mr", "ur", "sw", "cs", "sv", "hu", "ro", "el", "fi", "da"),
)
"""The languages of nano, by CLDR locale."""

ART_SIZE = 96
"""Side in pixels of the artwork that training composes images from."""

SKIN_TONES = frozenset(range(0x1F3FB, 0x1F400))


@dataclass(frozen=True, kw_only=True)
class Emoji:
    """One emoji without skin tone."""

    char: str
    """The character sequence, with variation selectors where CLDR writes them."""
    names: dict[str, str]
    """CLDR short name by language; English is always there."""
    keywords: dict[str, tuple[str, ...]]
    """CLDR keywords by language, without the name."""
    group: str
    """Unicode group, such as ``animals-nature``; empty where unknown."""


def codepoints(char: str) -> str:
    """File-name spelling of emoji packages: lower-case hex, dashes, no variation selector 16."""
    return "-".join(f"{ord(c):x}" for c in char if ord(c) != 0xFE0F)


def _canonical(code: str) -> str:
    """A package's spelling of code points as ``codepoints`` writes it."""
    return "-".join(part.lstrip("0") for part in code.lower().split("-") if part not in ("fe0f", ""))


def _annotations(cache: Path, language: str) -> dict[str, Any]:
    merged: dict[str, Any] = {}
    for package, kind in zip(TEXT_PACKAGES, ("annotations", "annotationsDerived"), strict=True):
        path = fetch(package, cache) / "package" / kind / language / "annotations.json"
        if path.exists():
            merged |= json.loads(path.read_text(encoding="utf-8"))[kind]["annotations"]
    return merged


def load_emoji(cache: Path) -> list[Emoji]:
    """All emoji without skin tone that Twemoji and OpenMoji draw and CLDR names in English, in a fixed order."""
    twemoji = {
        _canonical(path.stem) for path in (fetch(style("twemoji").package, cache) / "package").glob("*.svg")
    }
    openmoji_folder = fetch(style("openmoji").package, cache) / "package"
    catalogue = json.loads((openmoji_folder / "data" / "openmoji.json").read_text(encoding="utf-8"))
    groups = {_canonical(entry["hexcode"]): entry["group"] for entry in catalogue}
    spelled = {_canonical(entry["hexcode"]): entry["emoji"] for entry in catalogue}
    tables = {language: _annotations(cache, language) for language in LANGUAGES}
    found = []
    for char in tables["en"]:
        code = codepoints(char)
        if code not in twemoji or code not in groups or any(ord(c) in SKIN_TONES for c in char):
            continue
        names, keywords = {}, {}
        for language, table in tables.items():
            entry = table.get(char)
            if entry and entry.get("tts"):
                names[language] = entry["tts"][0]
                keywords[language] = tuple(
                    word for word in entry.get("default", ()) if word != entry["tts"][0]
                )
        found.append(Emoji(char=spelled[code], names=names, keywords=keywords, group=groups[code]))
    return found


def _slug(name: str) -> str:
    plain = unicodedata.normalize("NFKD", name.lower().replace("&", "and").replace("’", ""))
    return re.sub("[^a-z0-9]+", "-", plain.encode("ascii", "ignore").decode()).strip("-")


def _svg_sources(chosen: Style, folder: Path, emoji: list[Emoji]) -> Iterator[tuple[int, str]]:
    if chosen.layout == "iconify":
        icons = json.loads((folder / "icons.json").read_text(encoding="utf-8"))
        by_code = {}
        if (folder / "chars.json").exists():
            chars = json.loads((folder / "chars.json").read_text(encoding="utf-8"))
            by_code = {_canonical(code): name for code, name in chars.items()}
        for index, item in enumerate(emoji):
            english = item.names["en"]
            options = (
                by_code.get(codepoints(item.char)),
                _slug(english),
                _slug(english.replace("flag: ", "flag-for-")),
            )
            name = next((option for option in options if option in icons["icons"]), None)
            if name is None:
                continue
            icon = icons["icons"][name]
            width, height = icon.get("width", icons["width"]), icon.get("height", icons["height"])
            # Monochrome sets paint with the text colour.
            body = icon["body"].replace("currentColor", "#000000")
            head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}"'
            yield index, f'{head} xmlns:xlink="http://www.w3.org/1999/xlink">{body}</svg>'
        return
    sub = folder / "color" / "svg" if chosen.layout == "openmoji" else folder
    files = {_canonical(path.stem): path for path in sub.glob("*.svg")}
    for index, item in enumerate(emoji):
        path = files.get(codepoints(item.char))
        if path is not None:
            yield index, path.read_text(encoding="utf-8")


def _cbdt_images(folder: Path, emoji: list[Emoji]) -> Iterator[tuple[int, bytes]]:
    from fontTools.ttLib import TTFont

    paths = sorted(folder.rglob("NotoColorEmoji.ttf"))
    if not paths:
        raise SourceError(f"no NotoColorEmoji.ttf in the package folder {folder.name}; fetch it again")
    font = TTFont(paths[0])
    strike = font["CBDT"].strikeData[0]
    cmap = font.getBestCmap()
    ligatures = _ligatures(font)
    for index, item in enumerate(emoji):
        points = [cmap[ord(c)] for c in item.char if ord(c) in cmap and ord(c) != 0xFE0F]
        glyph = points[0] if len(points) == 1 else ligatures.get(tuple(points))
        if glyph in strike:
            yield index, strike[glyph].imageData


def _ligatures(font: TTFont) -> dict[tuple[str, ...], str]:
    table: dict[tuple[str, ...], str] = {}
    for lookup in font["GSUB"].table.LookupList.Lookup:
        for sub in lookup.SubTable:
            sub = getattr(sub, "ExtSubTable", sub)
            for first, entries in getattr(sub, "ligatures", {}).items():
                for entry in entries:
                    table[(first, *entry.Component)] = entry.LigGlyph
    return table


def render_style(
    chosen: Style, emoji: list[Emoji], cache: Path, *, size: int = ART_SIZE
) -> Iterator[tuple[int, Image.Image]]:
    """Draw the emoji that a style has.

    Yields:
        Position in ``emoji`` and an RGBA PIL image of ``size`` x ``size``, fitted inside with its aspect kept.
    """
    folder = fetch(chosen.package, cache) / "package"
    if chosen.layout == "cbdt":
        for index, data in _cbdt_images(folder, emoji):
            yield index, _fit(Image.open(io.BytesIO(data)).convert("RGBA"), size)
        return
    import resvg_py

    for index, svg in _svg_sources(chosen, folder, emoji):
        png = bytes(resvg_py.svg_to_bytes(svg_string=svg, width=2 * size))
        yield index, _fit(Image.open(io.BytesIO(png)).convert("RGBA"), size)


def _fit(image: Image.Image, size: int) -> Image.Image:
    scale = size / max(image.size)
    box = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
    # Premultiplied resizing keeps transparent pixels from bleeding their hidden colour into the edge.
    small = image.convert("RGBa").resize(box, Image.Resampling.BICUBIC).convert("RGBA")
    canvas = Image.new("RGBA", (size, size))
    canvas.paste(small, ((size - box[0]) // 2, (size - box[1]) // 2))
    return canvas


@dataclass(frozen=True)
class Artwork:
    """All drawings of the chosen styles."""

    pixels: NDArray[np.uint8]
    """Shape: (drawings, size, size, 4), uint8 RGBA."""
    emoji: NDArray[np.int64]
    """Shape: (drawings,), position of each drawing's emoji."""
    style: NDArray[np.int64]
    """Shape: (drawings,), position of each drawing's style in ``styles``."""
    styles: tuple[str, ...]
    """Names of the styles."""


def load_artwork(
    emoji: list[Emoji], cache: Path, *, styles: tuple[str, ...] | None = None, size: int = ART_SIZE
) -> Artwork:
    """Draw the styles (default: every trained one) at ``size`` pixels, cached on disk."""
    names = styles or tuple(s.name for s in STYLES if s.trained)
    pixels, owners, kinds = [], [], []
    for number, name in enumerate(names):
        path = cache / f"art-{name}-{size}.npz"
        if not path.exists():
            rendered = render_style(style(name), emoji, cache, size=size)
            drawn = [(index, np.asarray(image)) for index, image in rendered]
            with atomic_path(path, alone=True) as draft, draft.open("wb") as file:
                np.savez(file, index=np.array([i for i, _ in drawn]), pixels=np.stack([p for _, p in drawn]))
        with np.load(path) as saved:
            pixels.append(saved["pixels"])
            owners.append(saved["index"].astype(np.int64))
        kinds.append(np.full(len(owners[-1]), number, dtype=np.int64))
    return Artwork(np.concatenate(pixels), np.concatenate(owners), np.concatenate(kinds), names)
