"""Pictures in the terminal: the escape sequences are read back and compared with the images, pixel by pixel."""

from __future__ import annotations

import base64
import io
import re
import sys
from collections.abc import Callable

import numpy as np
import pytest
from PIL import Image
from typer.testing import Result

from llm2clip.retrieval.output.thumbnails import choose_protocol, draw_thumbnails

from .conftest import Corpus, hit

Search = Callable[..., Result]
_BLOCK = re.compile(r"\x1b\[38;2;(\d+);(\d+);(\d+);(?:48;2;(\d+);(\d+);(\d+)|49)m([▀▄])|\x1b\[0m( ?)")


def noise(width: int, height: int, *, seed: int) -> np.ndarray:
    """Shape: (height, width, 3), uint8."""
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def png(pixels: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def read_blocks(lines: list[str]) -> list[list[tuple[object, object]]]:
    """Upper and lower colour of every cell; ``None`` for the background."""
    rows = []
    for line in lines:
        cells: list[tuple[object, object]] = []
        end = 0
        for match in _BLOCK.finditer(line):
            assert match.start() == end
            end = match.end()
            if match[7]:
                text = tuple(map(int, match.groups()[:3]))
                back = tuple(map(int, match.groups()[3:6])) if match[4] else None
                cells.append((text, back) if match[7] == "▀" else (back, text))
            elif match[8]:
                cells.append((None, None))
        assert end == len(line)
        rows.append(cells)
    return rows


def drawn(protocol: str, images: list[np.ndarray], *, width: int = 80) -> list[str]:
    hits = [hit(rank) for rank in range(1, len(images) + 1)]
    return list(
        draw_thumbnails(
            hits, protocol=protocol, width=width, read_image=lambda one: png(images[one.rank - 1])
        )  # type: ignore[arg-type]
    )


def test_draw_thumbnails_blocks_hold_the_pixels():
    high, low = noise(18, 5, seed=0), noise(10, 2, seed=1)
    row, end = drawn("blocks", [high, low])
    assert end == "\n"
    ranks, *lines = row.splitlines()
    assert ranks == "1" + " " * 19 + "2"
    cells = read_blocks(lines)
    assert len(cells) == 3
    expected = np.full((6, 38, 3), -1)
    expected[:5, :18] = high
    expected[:2, 20:30] = low
    for y, line in enumerate(cells):
        line += [(None, None)] * (38 - len(line))
        for x, pair in enumerate(line):
            for half, colour in enumerate(pair):
                assert (colour or (-1, -1, -1)) == tuple(expected[2 * y + half, x])


def read_kitty(text: str) -> tuple[bytes, dict[str, str]]:
    parts = re.findall(r"\x1b_G([^;]*);([A-Za-z0-9+/=]*)\x1b\\", text)
    assert "".join(f"\x1b_G{keys};{data}\x1b\\" for keys, data in parts) == text
    assert all(len(data) <= 4096 for _, data in parts)
    assert [keys[-3:] for keys, _ in parts] == ["m=1"] * (len(parts) - 1) + ["m=0"]
    first = dict(pair.split("=") for pair in parts[0][0].split(",") if "=" in pair)
    return base64.b64decode("".join(data for _, data in parts)), first


def read_iterm(text: str) -> tuple[bytes, dict[str, str]]:
    match = re.fullmatch(r"\x1b\]1337;File=inline=1;width=(\d+);height=(\d+);[^:]*:(.*)\x07", text)
    assert match
    return base64.b64decode(match[3]), {"c": match[1], "r": match[2]}


@pytest.mark.parametrize(("protocol", "read"), [("kitty", read_kitty), ("iterm", read_iterm)])
def test_draw_thumbnails_protocols_hold_the_pixels(
    protocol: str, read: Callable[[str], tuple[bytes, dict[str, str]]]
):
    left, right = noise(360, 270, seed=0), noise(100, 50, seed=1)
    row, _ = drawn(protocol, [left, right])
    ranks, sequence = row.removesuffix("\n").split("\n", 1)
    assert ranks == "1" + " " * 19 + "2"
    data, keys = read(sequence)
    assert (keys["c"], keys["r"]) == ("38", "7")
    pixels = np.asarray(Image.open(io.BytesIO(data)))
    assert pixels.shape == (280, 760, 4)
    assert np.array_equal(pixels[:270, :360, :3], left)
    assert np.array_equal(pixels[:50, 400:500, :3], right)
    shown = pixels[..., 3] == 255
    assert shown.sum() == 360 * 270 + 100 * 50
    assert not pixels[..., 3][~shown].any()


def read_sixel(text: str) -> np.ndarray:
    """The picture, by another way than it was written: pixel by pixel. Shape: (height, width, 4), uint8."""
    start = re.match(r'\x1bP0;1q"1;1;(\d+);(\d+)', text)
    assert start
    assert text.endswith("\x1b\\")
    width, height = int(start[1]), int(start[2])
    pixels = np.zeros((height + 5, width, 4), dtype=np.uint8)
    palette: dict[str, list[int]] = {}
    colour, x, y = "", 0, 0
    for token in re.finditer(
        r"#(\d+)(?:;2;(\d+);(\d+);(\d+))?|!(\d+)([?-~])|([?-~])|([$-])", text[start.end() : -2]
    ):
        number, red, green, blue, count, repeated, one, move = token.groups()
        if number and red:
            palette[number] = [round(2.55 * int(level)) for level in (red, green, blue)] + [255]
        elif number:
            colour = number
        elif move:
            x, y = 0, y + (6 if move == "-" else 0)
        else:
            bits, end = ord(repeated or one) - 63, x + int(count or 1)
            for line in range(6):
                if bits >> line & 1:
                    pixels[y + line, x:end] = palette[colour]
            x = end
    assert not pixels[height:].any()
    return pixels[:height]


def test_draw_thumbnails_sixel_holds_the_pixels_in_fewer_colours():
    shades = np.zeros((90, 180, 3), dtype=np.uint8)
    shades[..., 0], shades[..., 2] = np.linspace(0, 255, 180), 128
    row, _ = drawn("sixel", [shades, np.full((30, 60, 3), (0, 255, 0), dtype=np.uint8)])
    pixels = read_sixel(row.removesuffix("\n").split("\n", 1)[1])
    assert pixels.shape == (100, 380, 4)  # 10 x 20 pixels a cell where the terminal does not say
    assert np.abs(pixels[:90, :180, :3].astype(int) - shades).max() <= 8
    assert np.abs(pixels[:30, 200:260, :3].astype(int) - [0, 255, 0]).max() <= 8
    assert (pixels[..., 3] == 255).sum() == 90 * 180 + 30 * 60


@pytest.mark.parametrize(("width", "per_row"), [(10, 1), (60, 3), (80, 4), (98, 5)])
def test_draw_thumbnails_fit_the_width(width: int, per_row: int):
    *rows, _ = drawn("blocks", [noise(18, 2, seed=0)] * 5, width=width)
    assert rows[0].split("\n")[0].split() == [str(rank + 1) for rank in range(per_row)]
    assert len(read_blocks(rows[0].splitlines()[1:])[0]) == per_row * 20 - 2


def test_draw_thumbnails_show_the_path_of_what_cannot_be_read():
    def read(one: object) -> bytes:
        if one.rank == 1:  # type: ignore[attr-defined]
            raise FileNotFoundError("gone")
        return b"no image"

    hits = [hit(1, uri="/a/\x1b[2J.png"), hit(2)]
    assert list(draw_thumbnails(hits, protocol="kitty", width=80, read_image=read)) == [
        "1: no picture, cannot be read: /a/\\x1b[2J.png\n",
        "2: no picture, cannot be read: s3://images/p2.png\n",
        "\n",
    ]


@pytest.mark.parametrize(
    ("environment", "protocol"),
    [
        ({"TERM": "xterm-kitty", "COLORTERM": "truecolor"}, "kitty"),
        ({"TERM": "xterm-256color", "TERM_PROGRAM": "iTerm.app"}, "iterm"),
        ({"TERM": "tmux-256color", "TERM_PROGRAM": "iTerm.app", "TMUX": "x", "COLORTERM": "truecolor"}, "blocks"),
        ({"TERM": "foot", "COLORTERM": "truecolor"}, "sixel"),
        ({"TERM": "xterm-256color", "WT_SESSION": "x"}, "sixel"),
        ({"TERM": "xterm-256color", "COLORTERM": "24bit"}, "blocks"),
        ({"TERM": "xterm-256color"}, None),
        ({}, None),
    ],
)  # fmt: skip
def test_choose_protocol_auto_asks_the_terminal(
    environment: dict[str, str], protocol: str | None, monkeypatch: pytest.MonkeyPatch
):
    terminal = io.TextIOWrapper(io.BytesIO(), encoding="utf-8")
    monkeypatch.setattr(sys, "stdout", terminal)
    assert choose_protocol("auto", environment=environment) is None
    terminal.isatty = lambda: True  # type: ignore[method-assign]
    assert choose_protocol("auto", environment=environment) == protocol
    assert choose_protocol("never", environment=environment) is None


def test_search_command_thumbnails_follow_the_table(corpus: Corpus, search: Search):
    arguments = ("red", "-k", 1, "--index", corpus.index)
    plain = search(*arguments).stdout
    shown = search(*arguments, "--thumbnails", "blocks").stdout
    assert shown.startswith(plain)
    rank, *lines, end = shown.removeprefix(plain).splitlines()
    assert (rank, end) == ("1", "")
    red = (255, 0, 0)
    assert read_blocks(lines) == [[(red, red)] * 18] * 6
    assert search(*arguments, "--thumbnails", "auto").stdout == plain


@pytest.mark.parametrize("output", ["--json", "--jsonl", "--tsv", "--paths", "-0"])
def test_search_command_refuses_thumbnails_among_lines(corpus: Corpus, search: Search, output: str):
    result = search("red", output, "--thumbnails", "blocks", "--index", corpus.index)
    assert (result.exit_code, result.stdout) == (2, "")
    assert search("red", output, "--thumbnails", "never", "--index", corpus.index).exit_code == 0
