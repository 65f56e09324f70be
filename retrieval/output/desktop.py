"""What a program in a terminal asks of the desktop: show an image, keep a text to paste."""

from __future__ import annotations

import base64
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path, PurePath
from typing import TYPE_CHECKING

from llm2clip.common.files import create_new

if TYPE_CHECKING:
    from llm2clip.indexer import Hit

_CLIPBOARDS = (
    ("WAYLAND_DISPLAY", ("wl-copy",)),
    ("DISPLAY", ("xclip", "-selection", "clipboard")),
    ("DISPLAY", ("xsel", "--clipboard", "--input")),
)
"""Variable that says that there is such a desktop, and the command that takes a text there."""


def open_original(hit: Hit, *, read_image: Callable[[Hit], bytes], folder: Path) -> None:
    """Show the original of a hit with the program that the desktop has for it.

    A local file is opened itself; what lies in a container or elsewhere is copied to ``folder`` first. So is a file
    whose name does not end as that of an image: an index may come from somebody else, and the desktop goes by the end.

    Raises:
        OSError: It cannot be read, or nothing here opens images.
        ValueError: It changed since it was indexed.
    """
    from llm2clip.indexer.records.files import image_endings

    opener = shutil.which("open" if sys.platform == "darwin" else "xdg-open")
    if opener is None:
        raise OSError("nothing here opens images: xdg-open is not installed")
    data = read_image(hit)
    ending = PurePath(hit.key).suffix.lower()
    known = ending in image_endings()
    if known and "://" not in hit.uri and os.path.isfile(hit.uri):
        place = os.path.abspath(hit.uri)
    else:
        copy = folder / f"{hit.id}{ending if known else ''}"
        if not copy.exists():
            with create_new(copy) as file:
                file.write(data)
        place = str(copy)
    _start([opener, place])


def copy_text(
    text: str, *, write: Callable[[str], None], environment: Mapping[str, str] = os.environ
) -> None:
    """Put a text on the clipboard: by the desktop's command if there is one, else by asking the terminal (OSC 52).

    Terminals do that across ssh too, but some only if their settings allow it.
    """
    data = text.encode(errors="surrogateescape")
    tried: list[tuple[str, ...]] = [("pbcopy",)] if sys.platform == "darwin" else []
    tried += [command for variable, command in _CLIPBOARDS if variable in environment]
    for command in tried:
        if shutil.which(command[0]):
            _start(command, data=data)
            return
    write(f"\x1b]52;c;{base64.b64encode(data).decode('ascii')}\x07")


def _start(command: tuple[str, ...] | list[str], *, data: bytes | None = None) -> None:
    """Start a program that may outlive this one and writes nothing onto the screen."""
    process = subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    assert process.stdin is not None
    with process.stdin as stream:
        stream.write(data or b"")
    process.returncode = 0  # not waited for
