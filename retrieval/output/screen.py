"""The terminal of this process, taken over: keys as they are pressed, text at any place, a line to type in."""

from __future__ import annotations

import codecs
import os
import re
import select
import sys
from contextlib import suppress
from types import TracebackType
from typing import final

TERMINAL = "/dev/tty"
"""The terminal that this process was started from, whatever its standard streams are."""
_ESCAPE_SECONDS = 0.05
"""How long the rest of an escape sequence may take; after that it was the escape key."""
_KEY = re.compile(r"\x1b\[[0-?]*[ -/]*[@-~]|\x1bO.|.", re.DOTALL)
_UNFINISHED = re.compile(r"\x1b(\[[0-?]*[ -/]*|O)?")
_NAMES = {
    **dict(zip(("\x1b[A", "\x1b[B", "\x1b[C", "\x1b[D"), ("up", "down", "right", "left"), strict=True)),
    **dict(zip(("\x1bOA", "\x1bOB", "\x1bOC", "\x1bOD"), ("up", "down", "right", "left"), strict=True)),
    **dict.fromkeys(("\x1b[H", "\x1b[1~", "\x1bOH"), "home"),
    **dict.fromkeys(("\x1b[F", "\x1b[4~", "\x1bOF"), "end"),
    "\x1b[5~": "page up",
    "\x1b[6~": "page down",
    **dict.fromkeys(("\r", "\n"), "enter"),
    **dict.fromkeys(("\x7f", "\x08"), "backspace"),
    "\x1b": "escape",
    "\x15": "erase",
    "\x04": "closed",
}
_BEGIN = "\x1b[?1049h\x1b[?25l"
"""The other screen, without a cursor."""
_END = "\x1b[0m\x1b[?25h\x1b[?1049l"


def at(line: int, column: int = 1) -> str:
    """Moves the cursor; both count from 1."""
    return f"\x1b[{line};{column}H"


@final
class Screen:
    """The terminal inside ``with``; what was on it comes back at the end.

    Raises:
        OSError: This process has no terminal.
    """

    def __enter__(self) -> Screen:
        try:
            import termios
        except ImportError as error:
            raise OSError("--interactive needs a terminal of Linux, macOS or WSL") from error
        try:
            self._file = os.open(TERMINAL, os.O_RDWR | os.O_NOCTTY)
        except OSError as error:
            raise OSError("--interactive needs a terminal, and this process has none") from error
        self._before = termios.tcgetattr(self._file)
        mode = termios.tcgetattr(self._file)
        mode[3] &= ~(termios.ICANON | termios.ECHO)
        mode[6][termios.VSUSP] = b"\0"  # suspended, the shell would find the terminal as it is now
        termios.tcsetattr(self._file, termios.TCSADRAIN, mode)
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        self._typed = ""
        self.write(_BEGIN)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        import termios

        with suppress(OSError, termios.error):  # the terminal may have been closed
            self.write(_END)
            termios.tcsetattr(self._file, termios.TCSADRAIN, self._before)
        os.close(self._file)

    @property
    def size(self) -> os.terminal_size:
        """Columns and lines."""
        size = os.get_terminal_size(self._file)
        return size if all(size) else os.terminal_size((80, 24))

    def isatty(self) -> bool:
        """That of a stream."""
        return True

    @property
    def encoding(self) -> str:
        """What the terminal reads, as the standard streams have it."""
        return getattr(sys.__stdout__, "encoding", None) or "utf-8"

    def write(self, text: str) -> None:
        """Write all of a text."""
        left = text.encode(self.encoding, errors="replace")
        while left:
            left = left[os.write(self._file, left) :]

    def key(self, *, seconds: float) -> str | None:
        """The next key: a character, or a name such as ``up`` or ``enter``; ``closed`` when the terminal is.

        ``None``: none was pressed for so long.
        """
        while True:
            found = _KEY.match(self._typed)
            unfinished = _UNFINISHED.fullmatch(self._typed) is not None
            if found and not unfinished:
                self._typed = self._typed[found.end() :]
                if found[0] in _NAMES or len(found[0]) == 1:
                    return _NAMES.get(found[0], found[0])
            elif select.select([self._file], [], [], _ESCAPE_SECONDS if unfinished else seconds)[0]:
                read = os.read(self._file, 4096)
                if not read:
                    return "closed"
                self._typed += self._decoder.decode(read)
            elif unfinished:
                self._typed = ""
                return "escape"
            else:
                return None

    def ask(self, prompt: str) -> str | None:
        """A line that is typed on the last one of the screen; ``None`` if it was given up or left empty."""
        from rich.cells import cell_len

        line = ""
        try:
            while True:
                shown = line
                while cell_len(prompt + shown) >= self.size.columns:
                    shown = shown[1:]
                self.write(f"{at(self.size.lines)}\x1b[0m\x1b[2K{prompt}{shown}\x1b[?25h")
                match self.key(seconds=3600):
                    case "enter":
                        return line.strip() or None
                    case "escape" | "closed":
                        return None
                    case "backspace":
                        line = line[:-1]
                    case "erase":
                        line = ""
                    case str(key) if len(key) == 1 and key.isprintable():
                        line += key
        finally:
            self.write("\x1b[?25l")
