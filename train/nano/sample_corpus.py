"""The sample corpus of the package: photographs, paintings and drawings under open licences, as WebDataset tars.

``data/sample.jsonl`` lists the photographs and paintings: package, path, hash, author, licence, and a caption of our
own in six languages. Drawings are emoji of Noto (Apache-2.0), named by CLDR.
"""

from __future__ import annotations

import hashlib
import io
import json
import tarfile
from collections.abc import Iterable, Iterator, Sequence
from importlib import resources
from pathlib import Path
from typing import Any, Final

from PIL import Image

from llm2clip.common.files import atomic_path
from llm2clip.train.nano.packages import SourceError, fetch, find_file, package
from llm2clip.train.nano.texts import Name

SIDE, DRAWING_SIDE, QUALITY = 320, 128, 75
LANGUAGES: Final = ("en", "zh", "es", "ar", "hi", "ja")
DRAWINGS: Final = (
    "🐘🦁🐯🦒🦓🐼🐨🐒🐢🐍🐬🦈🐙🦀🦋🐝🦉🦜🐧🐓🐄🐖🐎🐑🐈🐇🍎🍌🍇🍓🍍🥕🍕🍔"
    "🍣🍜🎂🍦🍺🚗🚌🚒🚲🚁⛵🚂⚽🏀🎾🎸🎹🎻🥁👟👓📷💻📱🔑🎈🎁🎄🎃🌈🌻🌹🌵🍄🎡"
)
"""Things of which there is no photograph; characters of the emoji."""

Sample = tuple[str, bytes, dict[str, Any]]


def write_sample(folder: Path, cache: Path, names: Sequence[Name]) -> dict[str, int]:
    """Write ``photographs.tar``, ``drawings.tar`` and ``CREDITS.md``; equal packages give equal files.

    Raises:
        SourceError: A package cannot be fetched, or an image in it is another one than listed.
    """
    folder.mkdir(parents=True, exist_ok=True)
    rows = listed()
    written = {
        "photographs.tar": write_tar(folder / "photographs.tar", photograph_samples(rows, cache)),
        "drawings.tar": write_tar(folder / "drawings.tar", drawing_samples(names, cache)),
    }
    (folder / "CREDITS.md").write_text(credits(rows, len(DRAWINGS)), encoding="utf-8")
    return written


def listed() -> list[dict[str, Any]]:
    """The rows of ``data/sample.jsonl``."""
    text = resources.files("llm2clip.train").joinpath("data/sample.jsonl").read_text("utf-8")
    return [json.loads(line) for line in text.splitlines()]


def photograph_samples(rows: Iterable[dict[str, Any]], cache: Path) -> Iterator[Sample]:
    """Every listed image, scaled down and stripped of metadata."""
    for row in rows:
        home = fetch(package(row["package"]), cache) / "package"
        path = home / row["path"]
        data = path.read_bytes() if path.is_file() else b""
        if hashlib.sha256(data).hexdigest() != row["sha256"]:
            raise SourceError(
                f"package {row['package']!r} has another {row['path']} than listed, or none: expected SHA-256 "
                f"{row['sha256'][:12]}; its version has changed, so leave the image out of data/sample.jsonl"
            )
        record = {
            "kind": row["kind"],
            "caption": row["captions"]["en"],
            "captions": row["captions"],
            "author": row["author"],
            "licence": row["licence"],
            "source": f"{row['package']}: {row['path'].rpartition('/')[2]}",
        }
        yield row["key"], webp(on_white(Image.open(io.BytesIO(data))), side=SIDE), record


def drawing_samples(names: Sequence[Name], cache: Path) -> Iterator[Sample]:
    """The drawings, on white, with their names in six languages."""
    from fontTools.ttLib import TTFont

    font = TTFont(find_file("fonts-noto-color-emoji", "NotoColorEmoji.ttf", cache))
    bitmaps, glyphs = font["CBDT"].strikeData[0], font.getBestCmap()
    by_sign = {name.sign.rstrip("\ufe0f"): name for name in names}
    for sign in DRAWINGS:
        captions = {language: by_sign[sign].names[language] for language in LANGUAGES}
        image = on_white(Image.open(io.BytesIO(bitmaps[glyphs[ord(sign)]].imageData)))
        record = {
            "kind": "drawing",
            "caption": captions["en"],
            "captions": captions,
            "author": "Google",
            "licence": "Apache-2.0",
            "source": f"fonts-noto-color-emoji: U+{ord(sign):X}",
        }
        yield f"drawing-{ord(sign):x}", webp(image, side=DRAWING_SIDE), record


def on_white(image: Image.Image) -> Image.Image:
    """The image without transparency."""
    if image.mode in ("P", "LA", "RGBA", "PA") or "transparency" in image.info:
        image = image.convert("RGBA")
        page = Image.new("RGBA", image.size, "white")
        page.alpha_composite(image)
        image = page
    return image.convert("RGB")


def webp(image: Image.Image, *, side: int) -> bytes:
    """At most ``side`` pixels on the long side, as lossy WebP."""
    image = image.copy()
    image.thumbnail((side, side), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    image.save(buffer, "WEBP", quality=QUALITY, method=6)
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


def credits(rows: Sequence[dict[str, Any]], drawings: int) -> str:
    """Author, licence and source of every image, as Markdown."""
    lines = [
        "# Credits of the sample images",
        "",
        f"The {len(rows)} photographs and paintings were taken from the packages of Debian and PyPI named below, "
        f"scaled to at most {SIDE} px, put on white where they were transparent, stripped of metadata and saved as "
        "WebP: that is the change made to each. Each keeps its licence; share-alike images stay under theirs, and the "
        "MIT licence of the program does not cover this folder. The captions are ours (MIT).",
        "",
        f"The {drawings} drawings are Noto Color Emoji, copyright Google, Apache-2.0, from Debian's package "
        "fonts-noto-color-emoji; their names are from Unicode CLDR (Unicode-3.0).",
        "",
        "Licence texts: CC BY 2.0, 3.0 and 4.0, CC BY-SA 3.0 and 4.0: https://creativecommons.org/licenses/; CC0 1.0: "
        "https://creativecommons.org/publicdomain/zero/1.0/; Apache-2.0 and Unicode-3.0: NOTICE.",
        "",
        "| image | title | author | licence | package | stated in |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for row in rows:
        cells = (
            row["key"],
            row["title"] or "",
            row["author"],
            row["licence"],
            row["package"],
            row["stated_in"],
        )
        lines.append(f"| {' | '.join(cell.replace('|', '/') for cell in cells)} |")
    return "\n".join(lines) + "\n"
