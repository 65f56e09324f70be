"""The grid in the terminal, driven through a pseudo-terminal and read as an emulator shows it."""

from __future__ import annotations

import base64
import os
import select
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import Result

from llm2clip.retrieval.output import desktop, screen
from llm2clip.retrieval.output.browse import View
from llm2clip.retrieval.output.results import text_query

from .conftest import Corpus, hit, image

pytest.importorskip("termios")
pyte = pytest.importorskip("pyte")

Search = Callable[..., Result]
_PATIENCE = 30.0
"""Seconds until a test gives up."""


class Person:
    """Looks at a terminal and presses keys, in a thread of its own."""

    def __init__(self, *, columns: int, lines: int) -> None:
        import pty
        import termios

        self._master, self._slave = pty.openpty()
        termios.tcsetwinsize(self._slave, (lines, columns))
        self.terminal = os.ttyname(self._slave)
        self._before = termios.tcgetattr(self._slave)
        self._screen = pyte.Screen(columns, lines)
        self._stream = pyte.ByteStream(self._screen)
        self.output = b""

    def follow(self, script: Callable[[Person], None]) -> None:
        self._failed: list[BaseException] = []

        def run() -> None:
            try:
                script(self)
            except BaseException as error:
                self._failed.append(error)
            finally:
                os.write(self._master, b"\x04\x04")  # whatever happened, the command ends
                self.look(lambda _: self.output.endswith(b"\x1b[?1049l"))

        self._thread = threading.Thread(target=run)
        self._thread.start()

    def look(self, wanted: Callable[[list[str]], bool]) -> list[str]:
        """The lines of the screen as soon as they are as wanted."""
        end = time.monotonic() + _PATIENCE
        while not wanted(self._screen.display):
            assert time.monotonic() < end, "\n".join(self._screen.display)
            if select.select([self._master], [], [], 0.1)[0]:
                data = os.read(self._master, 65536)
                self.output += data
                # pyte prints what kitty's sequences hold, which terminals ignore
                self._stream.feed(data.replace(b"\x1b_Ga=d,q=2\x1b\\", b""))
        return [line.rstrip() for line in self._screen.display]

    def press(self, keys: str, wanted: str, *, line: int) -> list[str]:
        """Press keys and wait until a line of the screen has a text."""
        os.write(self._master, keys.encode())
        return self.look(lambda lines: wanted in lines[line])

    def leave(self) -> None:
        import termios

        self._thread.join()
        assert termios.tcgetattr(self._slave) == self._before
        os.close(self._slave)
        os.close(self._master)
        if self._failed:
            raise self._failed[0]


@pytest.fixture
def browse(corpus: Corpus, search: Search, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Result]:
    """Runs the command with ``--interactive`` while a script looks at its terminal."""

    def run(
        script: Callable[[Person], None], *arguments: object, columns: int = 80, lines: int = 24
    ) -> Result:
        person = Person(columns=columns, lines=lines)
        monkeypatch.setattr(screen, "TERMINAL", person.terminal)
        person.follow(script)
        try:
            return search("--interactive", *arguments, "--index", corpus.index)
        finally:
            person.leave()

    return run


def test_browse_moves_selects_and_prints_what_was_selected(corpus: Corpus, browse: Callable[..., Result]):
    seen = {}

    def script(person: Person) -> None:
        seen["first"] = person.look(lambda lines: "red.png" in lines[22] and "▀" in lines[13])
        seen["moved"] = person.press("\x1b[C ", "2 of 8, 1 selected", line=0)
        seen["down"] = person.press("\x1b[B ", "6 of 8, 2 selected", line=0)
        person.press(" ", "6 of 8, 1 selected", line=0)
        seen["up"] = person.press("\x1b[A\x1b[D \x1b[A", "1 of 8, 2 selected", line=0)
        os.write(person._master, b"q")

    result = browse(script, "red", "--thumbnails", "blocks")
    assert (result.exit_code, result.stderr) == (0, "")
    first = seen["first"]
    assert first[0] == "red  1 of 8"
    assert first[1].startswith(" 1 warm/red.png")
    assert [first[line][:18] for line in (2, 7)] == ["▀" * 18] * 2
    assert first[21].endswith("%  a red square")
    assert first[23] == "enter open  y copy  space select  m like  / query  q quit"
    assert seen["moved"][1][20:22] == "*2"
    assert seen["down"][11][20:22] == "*6"
    second, first_again = result.stdout.splitlines()  # in the order in which they were selected
    assert second.endswith(seen["moved"][22].removeprefix("…"))
    assert first_again == str(corpus.folder / "warm/red.png")


def test_browse_searches_anew_and_goes_back(corpus: Corpus, browse: Callable[..., Result]):
    def script(person: Person) -> None:
        person.look(lambda lines: "red.png" in lines[22])
        person.press("/绿x\x7f", "/ 绿", line=23)
        person.press("\x15blue\r", "blue  1 of 8", line=0)
        person.press("m", "images like cold/blue.png  1 of 8", line=0)
        assert "1.000" in person.press("/\x1b", "backspace back", line=23)[21]
        person.press("\x7f", "blue  1 of 8", line=0)
        lines = person.press('/"red\r', "this quote is not closed", line=22)
        assert lines[0] == "blue  1 of 8"
        person.press("\x7f", "red  1 of 8", line=0)

    result = browse(script, "red")
    assert (result.exit_code, result.stdout, result.stderr) == (1, "", "")  # nothing was selected


def test_browse_asks_for_a_query_and_lists_in_60_columns(corpus: Corpus, browse: Callable[..., Result]):
    def script(person: Person) -> None:
        person.look(lambda lines: lines[23].startswith("/ "))
        lines = person.press("红色的" * 12 + "\x15red\r", "red  1 of 8", line=0)
        assert lines[1].split() == ["1", lines[21].split()[0], "warm/red.png", "a", "red", "square"]
        assert [line.split()[0] for line in lines[1:9]] == [str(rank) for rank in range(1, 9)]
        assert max(map(len, lines)) < 60
        person.press("jG\x1b[F\x1b[B ", "8 of 8, 1 selected", line=0)

    result = browse(script, "--json", "--thumbnails", "never", columns=60)
    assert result.exit_code == 0
    assert result.stdout.count('"rank"') == 1


def test_browse_follows_the_size_of_the_terminal(browse: Callable[..., Result]):
    import termios

    def script(person: Person) -> None:
        person.look(lambda lines: "▀" in lines[13])
        termios.tcsetwinsize(person._slave, (24, 60))
        person.look(lambda lines: lines[11].startswith(" 4 ") and not lines[1][60:].strip())

    browse(script, "red", "--thumbnails", "blocks")


def test_browse_fetches_the_next_hits(corpus: Corpus, browse: Callable[..., Result], monkeypatch):
    from llm2clip.retrieval import commands

    monkeypatch.setattr(commands, "_FETCHED", 1)

    def script(person: Person) -> None:
        person.look(lambda lines: "1 of 8" in lines[0])
        for number in range(2, 9):
            person.press("j", f"{number} of 8", line=0)

    browse(script, "red", "-k", 1, "--thumbnails", "never", lines=6)


def test_browse_copies_and_opens(corpus: Corpus, browse: Callable[..., Result], tmp_path: Path, monkeypatch):
    opened = tmp_path / "opened"
    tool = tmp_path / "bin" / "xdg-open"
    tool.parent.mkdir()
    tool.write_text(f'#!/bin/sh\nprintf %s "$1" > {opened}.tmp; mv {opened}.tmp {opened}\n')
    tool.chmod(0o755)
    monkeypatch.setattr("sys.platform", "linux")
    monkeypatch.setenv("PATH", f"{tool.parent}:{os.environ['PATH']}")
    monkeypatch.setattr(desktop, "_CLIPBOARDS", ())
    red = str(corpus.folder / "warm/red.png")

    def script(person: Person) -> None:
        person.look(lambda lines: "red.png" in lines[22])
        person.press("y", "copied: ", line=22)
        person.press("\r", red[:60], line=22)
        end = time.monotonic() + _PATIENCE
        while not opened.exists() and time.monotonic() < end:
            time.sleep(0.01)
        copied = base64.b64encode(red.encode())
        assert b"\x1b]52;c;" + copied + b"\x07" in person.output

    browse(script, "red")
    assert opened.read_text() == red


def test_open_original_copies_what_is_no_image_file_of_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    started: list[list[str]] = []
    monkeypatch.setattr(desktop, "_start", lambda command: started.append(command))
    monkeypatch.setattr("shutil.which", lambda name: f"/bin/{name}")
    data = image("red")
    (tmp_path / "evil.desktop").write_bytes(data)
    for number, key in enumerate(("a.tar#b.png", "evil.desktop")):
        found = hit(id=number, key=key, uri=str(tmp_path / key))
        desktop.open_original(found, read_image=lambda _: data, folder=tmp_path)
    assert [command[1] for command in started] == [str(tmp_path / "0.png"), str(tmp_path / "1")]
    assert (tmp_path / "0.png").read_bytes() == (tmp_path / "1").read_bytes() == data


def view(count: int) -> View:
    return View(text_query("x"), "x", [hit(rank) for rank in range(1, count + 1)], None, count, ())


@pytest.mark.parametrize(
    ("keys", "current", "top"),
    [
        ("left", 0, 0),
        ("right, down", 4, 0),
        ("down, down", 6, 1),
        ("down, down, up, up", 0, 0),
        ("right, up", 1, 0),
        ("right, right, down, down, down", 9, 2),  # the last row has one hit
        ("right, right, down, down, down, down", 9, 2),
        ("end", 9, 2),
        ("end, home", 0, 0),
        ("page down", 6, 1),
        ("page down, page down, page up", 3, 1),
    ],
)
def test_view_moves_through_rows_of_three(keys: str, current: int, top: int):
    moved = view(10)
    for key in keys.split(", "):
        moved.move(key, columns=3, rows=2)
    assert (moved.current, moved.top) == (current, top)


@pytest.mark.parametrize("option", [("--each",), ("--page", 2), ("--cursor", "x"), ("--queries", "-")])
def test_search_command_refuses_interactive_with(corpus: Corpus, search: Search, option: tuple[object, ...]):
    result = search("--interactive", "red", *option, "--index", corpus.index)
    assert result.exit_code == 2
    assert "exclude each other" in result.stderr.replace("\n", " ")


def test_browse_needs_a_terminal(
    corpus: Corpus, search: Search, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    monkeypatch.setattr(screen, "TERMINAL", str(tmp_path / "none"))
    result = search("--interactive", "red", "--index", corpus.index)
    assert (result.exit_code, result.stdout) == (1, "")
    assert result.stderr == "error: --interactive needs a terminal, and this process has none\n"
