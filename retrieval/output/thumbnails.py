"""Pictures of hits in the terminal: the kitty graphics protocol, iTerm2's inline images, sixel, or half blocks."""

from __future__ import annotations

import base64
import io
import math
import os
import struct
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import groupby
from typing import TYPE_CHECKING, Literal, TextIO, cast

from llm2clip.common.terminal import escape_control

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from PIL import Image

    from llm2clip.indexer import Hit
    from llm2clip.retrieval.output.screen import Screen

    Terminal = TextIO | Screen

Protocol = Literal["kitty", "iterm", "sixel", "blocks"]
Thumbnails = Literal["auto", "never", "kitty", "iterm", "sixel", "blocks"]

COLUMNS = 18
"""Cells across a thumbnail."""
ROWS = 9
"""Most rows of a thumbnail: a cell is about twice as high as wide."""
GAP = 2
"""Cells between two thumbnails."""
_SCALE = {"kitty": 20, "iterm": 20, "sixel": 10, "blocks": 1}
"""Pixels across a cell; the terminal scales pictures to the cells that they are given, but for sixel, which is drawn
for the cells of 10 x 20 pixels that terminals of this kind emulate where they do not say what theirs are."""
_COLOURS = 255
"""Colours of a sixel picture; the terminal has 256."""
_CHUNK = 4096
"""Bytes of base64 in one escape sequence, which is the most that kitty takes."""


def choose_protocol(
    thumbnails: Thumbnails,
    *,
    terminal: Terminal | None = None,
    environment: Mapping[str, str] = os.environ,
) -> Protocol | None:
    """How to show pictures on a terminal, standard output if none is given; ``None``: not at all.

    ``auto`` shows none unless it is a terminal that says by its variables what it understands. Within tmux and screen
    these are of the terminal outside, whose pictures they do not pass on: half blocks then.
    """
    if thumbnails != "auto":
        return None if thumbnails == "never" else thumbnails
    stream = terminal or sys.stdout
    if not stream.isatty():
        return None
    term, program = environment.get("TERM", ""), environment.get("TERM_PROGRAM", "")
    if not ("TMUX" in environment or term.startswith(("screen", "tmux"))):
        if term in ("xterm-kitty", "xterm-ghostty"):
            return "kitty"
        if program in ("iTerm.app", "WezTerm"):
            return "iterm"
        if term.startswith(("foot", "mlterm", "contour")) or "WT_SESSION" in environment:
            return "sixel"
    unicode = (stream.encoding or "").lower().replace("-", "") == "utf8"
    return "blocks" if unicode and environment.get("COLORTERM") in ("truecolor", "24bit") else None


def draw_thumbnails(
    hits: Sequence[Hit], *, protocol: Protocol, width: int, read_image: Callable[[Hit], bytes]
) -> Iterator[str]:
    """Rows of thumbnails under their ranks, as text to write to a terminal; then the places of unreadable images.

    Args:
        hits: The hits of an answer.
        protocol: What the terminal understands.
        width: Cells of the terminal.
        read_image: The encoded image of a hit, as ``Searcher.read_image``.
    """
    readable = ((hit, read_thumbnail(hit, protocol=protocol, read_image=read_image)) for hit in hits)
    lost = []
    row: list[tuple[Hit, Image.Image]] = []
    for hit, image in readable:
        if image is None:
            lost.append(hit)
        else:
            row.append((hit, image))
        if len(row) == thumbnails_across(width):
            yield _row(row, protocol)
            row = []
    if row:
        yield _row(row, protocol)
    for hit in lost:
        yield f"{hit.rank}: no picture, cannot be read: {escape_control(hit.uri)}\n"
    if hits:
        yield "\n"


def thumbnails_across(width: int) -> int:
    """How many thumbnails fit beside each other into so many cells; at least one."""
    return max(1, (width + GAP) // (COLUMNS + GAP))


def read_thumbnail(hit: Hit, *, protocol: Protocol, read_image: Callable[[Hit], bytes]) -> Image.Image | None:
    """An image in the size of a thumbnail; ``None`` if it cannot be read."""
    from llm2clip.retrieval.output.gallery import small_image

    try:
        return small_image(read_image(hit), side=COLUMNS * _SCALE[protocol])
    except (OSError, ValueError):
        return None


def _row(row: Sequence[tuple[Hit, Image.Image]], protocol: Protocol) -> str:
    ranks = "".join(f"{hit.rank:<{COLUMNS + GAP}}" for hit, _ in row).rstrip()
    return f"{ranks}\n{draw_row([image for _, image in row], protocol=protocol)}\n"


def draw_row(images: Sequence[Image.Image | None], *, protocol: Protocol) -> str:
    """Thumbnails beside each other, as text; an empty place for ``None``, nothing if there is no other."""
    from PIL import Image

    step, scale = COLUMNS + GAP, _SCALE[protocol]
    columns = len(images) * step - GAP
    rows = math.ceil(max((image.height for image in images if image), default=0) / (2 * scale))
    if not rows:
        return ""
    sheet = Image.new("RGBA", (columns * scale, rows * 2 * scale))
    for place, image in enumerate(images):
        if image is not None:
            sheet.paste(image, (place * step * scale, 0))
    return _ENCODERS[protocol](sheet, columns, rows)


def _kitty(sheet: Image.Image, columns: int, rows: int) -> str:
    data = _png(sheet)
    chunks = [data[start : start + _CHUNK] for start in range(0, len(data), _CHUNK)]
    keys = [f"a=T,f=100,q=2,c={columns},r={rows},"] + [""] * (len(chunks) - 1)
    more = [1] * (len(chunks) - 1) + [0]
    return "".join(
        f"\x1b_G{key}m={rest};{chunk}\x1b\\" for key, rest, chunk in zip(keys, more, chunks, strict=True)
    )


def _iterm(sheet: Image.Image, columns: int, rows: int) -> str:
    return f"\x1b]1337;File=inline=1;width={columns};height={rows};preserveAspectRatio=0:{_png(sheet)}\x07"


def _png(image: Image.Image) -> str:
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return base64.b64encode(buffer.getvalue()).decode("ascii")


def _sixel(sheet: Image.Image, columns: int, rows: int) -> str:
    """Bands of six lines; in each a line of text for every colour of the band: a bit for each of six pixels."""
    import numpy as np

    width, height = _pixels_of(columns, rows)
    sheet = sheet.resize((width, height))
    seen = np.asarray(sheet.getchannel("A")) > 127
    reduced = sheet.convert("RGB").quantize(_COLOURS)
    colours = np.where(seen, np.asarray(reduced), _COLOURS)  # the last one is not drawn
    palette = reduced.getpalette() or []
    parts = [f'\x1bP0;1q"1;1;{width};{height}']
    for number in range(len(palette) // 3):
        red, green, blue = (round(level / 2.55) for level in palette[3 * number : 3 * number + 3])
        parts.append(f"#{number};2;{red};{green};{blue}")
    for top in range(0, height, 6):
        band = colours[top : top + 6]
        for colour in np.unique(band[band < _COLOURS]):
            bits = (1 << np.arange(len(band))) @ (band == colour)
            parts.append(f"#{colour}{_run_lengths(bits + 63)}$")
        parts.append("-")
    return "".join([*parts, "\x1b\\"])


def _run_lengths(codes: NDArray[np.int64]) -> str:
    """Characters, those that repeat as ``!COUNT`` and one of them. Shape: (width,)."""
    return "".join(
        f"!{count}{chr(code)}" if (count := len(list(run))) > 3 else chr(code) * count
        for code, run in groupby(codes)
    )


def _pixels_of(columns: int, rows: int) -> tuple[int, int]:
    """Width and height of so many cells of this terminal in pixels."""
    try:
        import fcntl
        import termios

        for stream in (sys.stdout, sys.stderr):
            told = fcntl.ioctl(stream.fileno(), termios.TIOCGWINSZ, b"\0" * 8)
            lines, across, width, height = struct.unpack("HHHH", told)
            if lines and across and width and height:
                return columns * width // across, rows * height // lines
    except (ImportError, OSError, ValueError):  # no terminal, or one that does not say
        pass
    return columns * _SCALE["sixel"], rows * 2 * _SCALE["sixel"]


def _blocks(sheet: Image.Image, columns: int, rows: int) -> str:
    """Two pixels in each cell, the upper one in the colour of the text."""
    lines = []
    for y in range(0, 2 * rows, 2):
        cells = [_cell(_pixel(sheet, x, y), _pixel(sheet, x, y + 1)) for x in range(columns)]
        lines.append("".join(cells).rstrip() + "\x1b[0m")
    return "\n".join(lines)


def _pixel(sheet: Image.Image, x: int, y: int) -> tuple[int, ...]:
    return cast("tuple[int, ...]", sheet.getpixel((x, y)))


def _cell(upper: tuple[int, ...], lower: tuple[int, ...]) -> str:
    if not (upper[3] or lower[3]):
        return "\x1b[0m "
    text, back, block = (upper, lower, "▀") if upper[3] else (lower, upper, "▄")
    behind = f"48;2;{back[0]};{back[1]};{back[2]}" if back[3] else "49"
    return f"\x1b[38;2;{text[0]};{text[1]};{text[2]};{behind}m{block}"


_ENCODERS: dict[Protocol, Callable[[Image.Image, int, int], str]] = {
    "kitty": _kitty,
    "iterm": _iterm,
    "sixel": _sixel,
    "blocks": _blocks,
}
