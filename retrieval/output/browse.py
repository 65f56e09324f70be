"""``llm2clip-search --interactive``: the images of an answer as a grid in the terminal, moved through with keys."""

from __future__ import annotations

import tempfile
import warnings
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, final

from rich.cells import cell_len, set_cell_size

from llm2clip.common.terminal import escape_control
from llm2clip.retrieval.output.desktop import copy_text, open_original
from llm2clip.retrieval.output.results import (
    Answer,
    Query,
    caption_for,
    capture_day,
    combined_query,
    cut_front,
    image_name,
)
from llm2clip.retrieval.output.screen import Screen, at
from llm2clip.retrieval.output.thumbnails import (
    COLUMNS,
    GAP,
    ROWS,
    Protocol,
    Thumbnails,
    choose_protocol,
    draw_row,
    read_thumbnail,
    thumbnails_across,
)

if TYPE_CHECKING:
    from PIL.Image import Image

    from llm2clip.indexer import Hit

Find = Callable[[Query, str | None], Answer]
"""A page of the answer to a query: the first, or the one after a cursor."""
_KEYS = "enter open  y copy  space select  m like  / query  q quit"
_OTHER_LINES = 4
"""Lines above and below the grid: query, hit, path, keys."""
_NAME_CELLS = 30
"""Widest name where there are no pictures."""
_MOST_KEPT = 500
"""Thumbnails kept in memory."""
_POLL = 0.5
"""Seconds between two looks at the size of the terminal."""
_PLAIN, _CURRENT, _DIM, _BOLD = "\x1b[0m", "\x1b[7m", "\x1b[2m", "\x1b[1m"
_CLEAR = "\x1b[0m\x1b[2J\x1b_Ga=d,q=2\x1b\\"
"""The last part removes kitty's pictures; other terminals ignore it."""


@dataclass
class View:
    """An answer, as far as it was fetched, and where one is in it."""

    query: Query
    title: str
    hits: list[Hit]
    cursor: str | None
    """Gets more hits."""
    total: int | None
    notes: tuple[str, ...]
    current: int = 0
    """Place of the hit that keys act on."""
    top: int = 0
    """First row of the grid that is on the screen."""

    def move(self, key: str, *, columns: int, rows: int) -> None:
        """Go to another hit, and let the grid follow; ``columns`` and ``rows`` are those on the screen."""
        last = len(self.hits) - 1
        down = columns if self.current // columns < last // columns else 0
        steps = {"left": -1, "right": 1, "up": -columns, "down": down}
        steps |= {"page up": -columns * rows, "page down": columns * rows, "home": -last, "end": last}
        wanted = self.current + steps[key]
        if key == "up" and wanted < 0:
            wanted = self.current
        self.current = max(0, min(wanted, last))
        row = self.current // columns
        self.top = min(max(self.top, row - rows + 1), row)

    def is_near_end(self, *, columns: int, rows: int) -> bool:
        """Whether more hits are wanted soon."""
        return self.cursor is not None and self.current + columns * (rows + 1) >= len(self.hits)


@final
@dataclass
class Browser:
    """Shows answers until somebody quits."""

    screen: Screen
    find: Find
    read_image: Callable[[Hit], bytes]
    protocol: Protocol | None
    folder: Path
    """For copies of images that the desktop is to open."""
    selected: dict[tuple[str | None, int], Hit] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._views: list[View] = []
        self._thumbnails: dict[tuple[str | None, int], Image | None] = {}
        self._said = ""
        self._waiting: list[int] = []
        """Rows of the grid whose pictures are still to be drawn."""
        self._size = self.screen.size
        self._stale = True

    def run(self, query: Query | None) -> None:
        """Show the answer to a query, or ask for one, and do what the keys say."""
        if query is None:
            self._ask()
        else:
            self._show(query)
        while self._views:
            if self._stale or self.screen.size != self._size:
                self._draw()
            # Pictures are drawn while nobody presses a key.
            key = self.screen.key(seconds=0 if self._waiting else _POLL)
            if key in ("q", "closed"):
                break
            if key is not None:
                self._said = ""
                self._press(key)
            elif self._waiting:
                self._draw_pictures(self._waiting.pop(0))

    # --- keys ------------------------------------------------------------------------------------------------------

    def _press(self, key: str) -> None:
        hit = self._hit
        key = {"h": "left", "j": "down", "k": "up", "l": "right"}.get(key, key)
        if key == "/":
            self._ask()
        elif key == "backspace" and len(self._views) > 1:
            self._views.pop()
            self._stale = True
        elif hit is None:
            pass
        elif key in ("left", "right", "up", "down", "page up", "page down", "home", "end"):
            self._move(key)
        elif key == "enter":
            self._try(lambda: open_original(hit, read_image=self.read_image, folder=self.folder))
        elif key == "y":
            copy_text(hit.uri, write=self.screen.write)
            self._said = f"copied: {hit.uri}"
        elif key == " ":
            place = hit.index, hit.id
            if self.selected.pop(place, None) is None:
                self.selected[place] = hit
        elif key == "m":
            self._try(lambda: self._show(self._like(hit), title=hit.key))
        if not self._stale:
            self._write_text()

    def _ask(self) -> None:
        text = self.screen.ask("/ ")
        self._stale = True
        if text is not None:
            self._try(lambda: self._show(combined_query(text, [])))
        if text is not None and not self._views:  # nothing to go back to
            self.screen.write(f"{at(1)}{escape_control(self._said)}")
            self._ask()

    def _move(self, key: str) -> None:
        self._fetch_ahead()
        view, before = self._views[-1], self._views[-1].top
        view.move(key, columns=self._columns, rows=self._rows)
        self._stale = view.top != before

    def _fetch_ahead(self) -> None:
        """Fetch more hits where the next key may lead beyond those that are here."""
        view = self._views[-1]
        while view.is_near_end(columns=self._columns, rows=self._rows):
            more = self.find(view.query, view.cursor)
            view.hits += more.hits
            view.cursor = more.cursor

    def _like(self, hit: Hit) -> Query:
        """The query for images like one: by its stored vector, or, of several indexes, by the image."""
        if hit.index is None:
            return Query(kind="image", label=f"item:{hit.id}")
        return Query(kind="image", label=hit.key, image=self.read_image(hit))

    def _show(self, query: Query, *, title: str | None = None) -> None:
        """Search, and show what is found; ``title``: what the images are like."""
        self.screen.write(f"{at(self._size.lines)}{_PLAIN}\x1b[2K{_DIM}searching ...{_PLAIN}")
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always", UserWarning)
            answer = self.find(query, None)
        self._said = "; ".join(str(each.message) for each in caught)
        notes = answer.notes or ("nothing found",)
        title = query.label if query.kind == "text" else f"images like {title or query.label}"
        self._views.append(View(query, title, list(answer.hits), answer.cursor, answer.total, notes))
        self._stale = True

    def _try(self, action: Callable[[], None]) -> None:
        try:
            action()
        except (OSError, ValueError) as error:
            self._said = str(error)

    # --- the screen ------------------------------------------------------------------------------------------------

    @property
    def _hit(self) -> Hit | None:
        """The current one."""
        view = self._views[-1] if self._views else None
        return view.hits[view.current] if view and view.hits else None

    @property
    def _pictures(self) -> bool:
        width, height = self._size
        return self.protocol is not None and height - _OTHER_LINES > ROWS and width >= COLUMNS

    @property
    def _columns(self) -> int:
        return thumbnails_across(self._size.columns) if self._pictures else 1

    @property
    def _row_lines(self) -> int:
        return ROWS + 1 if self._pictures else 1

    @property
    def _rows(self) -> int:
        """Rows of the grid on the screen."""
        return max(1, (self._size.lines - _OTHER_LINES) // self._row_lines)

    def _shown_rows(self) -> dict[int, list[int]]:
        """First line on the screen -> places of the hits in that row of the grid."""
        view, columns = self._views[-1], self._columns
        places = range(len(view.hits))
        rows = range(view.top, view.top + self._rows)
        lines = ((row, 2 + (row - view.top) * self._row_lines) for row in rows)
        return {line: list(places[row * columns : (row + 1) * columns]) for row, line in lines}

    def _draw(self) -> None:
        if self._size != self.screen.size:
            self._size = self.screen.size
            view = self._views[-1]
            view.top = view.current // self._columns
        self._fetch_ahead()
        self.screen.write(_CLEAR)
        self._write_text()
        self._waiting = [line for line, row in self._shown_rows().items() if row] if self._pictures else []
        self._stale = False

    def _draw_pictures(self, line: int) -> None:
        hits = [self._views[-1].hits[place] for place in self._shown_rows()[line]]
        images = [self._thumbnail(hit) for hit in hits]
        assert self.protocol is not None
        written = [f"{at(line + 1)}{draw_row(images, protocol=self.protocol)}{_PLAIN}"]
        for place, image in enumerate(images):
            if image is None:
                written.append(f"{at(line + 1, 1 + place * (COLUMNS + GAP))}{_DIM}cannot be read{_PLAIN}")
        self.screen.write("".join(written))

    def _thumbnail(self, hit: Hit) -> Image | None:
        assert self.protocol is not None
        place = hit.index, hit.id
        if place not in self._thumbnails:
            if len(self._thumbnails) >= _MOST_KEPT:
                self._thumbnails.clear()
            self._thumbnails[place] = read_thumbnail(hit, protocol=self.protocol, read_image=self.read_image)
        return self._thumbnails[place]

    def _write_text(self) -> None:
        """Everything but the pictures."""
        view, (width, height) = self._views[-1], self._size
        written = [at(1), self._heading(view, width)]
        for line, places in self._shown_rows().items():
            for column, place in enumerate(places):
                style = (
                    _CURRENT
                    if place == view.current
                    else _BOLD
                    if self._is_selected(view.hits[place])
                    else ""
                )
                written += [
                    at(line, 1 + column * (COLUMNS + GAP)),
                    style,
                    self._label(view.hits[place]),
                    _PLAIN,
                ]
        hit = self._hit
        keys = f"{_KEYS}  backspace back" if len(self._views) > 1 else _KEYS
        below = [
            self._details(hit) if hit else f"  {view.notes[0]}",
            self._said or (cut_front(escape_control(hit.uri), cells=width - 1) if hit else ""),
            keys,
        ]
        for line, text in enumerate(below, start=height - len(below) + 1):
            # The last cell stays free: in some terminals, writing there moves everything up.
            shown = set_cell_size(escape_control(text), width - 1)
            written += [at(line), _DIM if text is not self._said else "", shown, _PLAIN]
        self.screen.write("".join(written))

    def _heading(self, view: View, width: int) -> str:
        title = escape_control(view.title)
        count = f"  {view.current + 1:,} of {view.total:,}" if view.hits and view.total else ""
        count += f", {len(self.selected)} selected" if self.selected else ""
        shown = set_cell_size(title, min(cell_len(title), max(10, width - 1 - len(count))))
        return f"{_BOLD}{shown}{_PLAIN}{_DIM}{count}{_PLAIN}\x1b[K"

    def _label(self, hit: Hit) -> str:
        mark = "*" if self._is_selected(hit) else " "
        if self._pictures:
            start = f"{mark}{hit.rank} "
            return set_cell_size(start + image_name(hit, cells=COLUMNS - len(start)), COLUMNS)
        cells = min(_NAME_CELLS, self._size.columns // 3)
        name = set_cell_size(image_name(hit, cells=cells), cells)
        caption, _ = caption_for(hit, self._views[-1].query.language)
        text = f"{mark}{hit.rank:>4} {_sure(hit):>5}  {name}  {escape_control(caption or '')}"
        return set_cell_size(text, self._size.columns - 1)

    def _details(self, hit: Hit) -> str:
        caption, _ = caption_for(hit, self._views[-1].query.language)
        copies = f"+{len(hit.duplicates)}" if hit.duplicates else ""
        return "  ".join(filter(None, (_sure(hit), capture_day(hit), copies, caption)))

    def _is_selected(self, hit: Hit) -> bool:
        return (hit.index, hit.id) in self.selected


def _sure(hit: Hit) -> str:
    return f"{hit.score:.3f}" if hit.confidence is None else f"{hit.confidence:.0%}"


def browse(
    query: Query | None, *, find: Find, read_image: Callable[[Hit], bytes], thumbnails: Thumbnails = "auto"
) -> list[Hit]:
    """Let somebody look through answers at the terminal; returns the hits that were selected, ranked anew.

    Args:
        query: What is searched for first; ``None``: asked for.
        find: Answers queries, a page at a time.
        read_image: The encoded image of a hit, as ``Searcher.read_image``.
        thumbnails: How pictures are shown; without them the grid is a list.

    Raises:
        OSError: There is no terminal.
        ValueError: The first query is not one.
    """
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="llm2clip-")))
        screen = stack.enter_context(Screen())
        protocol = choose_protocol(thumbnails, terminal=screen)
        browser = Browser(screen, find, read_image, protocol, folder)
        browser.run(query)
        return [replace(hit, rank=rank) for rank, hit in enumerate(browser.selected.values(), start=1)]
