"""Chooses the encoder of a build: the one named, that of its index, ``nano``, or the answer to a prompt.

``nano``, which ships with the package, is taken where nothing was said and no other encoder is on the machine.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from llm2clip.common.terminal import log_stderr
from llm2clip.indexer.core.errors import IndexerError
from llm2clip.indexer.core.index_paths import SAMPLE
from llm2clip.indexer.storage.index_folder import recorded_encoder

if TYPE_CHECKING:
    from llm2clip.encoders import EncoderCard

VARIABLE = "LLM2CLIP_ENCODER"
"""Environment variable with the default encoder of builds."""
NANO = "nano"
"""The encoder that ships with the package."""


class NoEncoderError(IndexerError):
    """No encoder was named, and there is no terminal to ask on."""


def choose_encoder(corpus: str, index: Path, *, told: str | None, ask: Callable[[str], str] | None) -> str:
    """The name for ``load_encoder``: ``told``, or that of the index, or the answer to a question on the terminal."""
    chosen = told or recorded_encoder(index) or (NANO if corpus == SAMPLE else os.environ.get(VARIABLE))
    if not chosen and (better := _better_than_nano()):
        log_stderr(
            f"note: using {NANO}, the small encoder that ships with this package; {better} finds more: --encoder NAME"
        )
        chosen = NANO
    if not chosen:
        if ask is None:
            raise NoEncoderError(
                f"no encoder was named: use --encoder with a name or a folder, or set\n{VARIABLE}. Recommended:\n"
                f"{listed()}"
            )
        chosen = _ask(ask)
    return chosen


def _better_than_nano() -> str | None:
    """The recommended encoder to download, if no encoder but nano is on this machine."""
    from llm2clip.encoders import list_encoders

    cards = [card for card in list_encoders() if card.name != NANO]
    if any(card.available for card in cards):
        return None
    return max((card for card in cards if card.recommended), key=lambda card: card.recommended).name


def source_of(encoder: str) -> str:
    """What the index records of a named encoder: a built-in name as it is, a folder or file as an absolute path."""
    place = os.path.expanduser(encoder)
    if not os.path.exists(place):
        return encoder
    from llm2clip.encoders import list_encoders

    builtin = any(card.name == encoder for card in list_encoders())
    return encoder if builtin else os.path.abspath(place)


def listed() -> str:
    """The recommended encoders, numbered, with languages, size and quality, as wide as the terminal."""
    from shutil import get_terminal_size
    from textwrap import fill

    from llm2clip.encoders import list_encoders

    cards = [card for card in list_encoders() if card.recommended]
    indent, lines = " " * 5, list[str]()
    width = max(40, min(100, get_terminal_size().columns) - 1)
    for number, card in enumerate(sorted(cards, key=lambda card: card.recommended), 1):
        download = f"download: {card.download}" if card.download else "nothing to download"
        lines.append(f"  {number}  {_languages(card)}: {card.name}")
        for text in (card.summary, f"{card.size}, {card.quality}; {download}"):
            lines.append(
                fill(text, width, initial_indent=indent, subsequent_indent=indent, break_on_hyphens=False)
            )
    return "\n".join([*lines, "  all encoders: llm2clip-index encoders"])


def _languages(card: EncoderCard) -> str:
    """The languages of an encoder's queries, in words."""
    names = {"en": "English", "zh": "Chinese", "mul": "many languages"}
    shown = " and ".join(names.get(tag, tag) for tag in card.languages[:3])
    return f"{shown}, reads others" if card.reads_more else shown


def _ask(ask: Callable[[str], str]) -> str:
    from llm2clip.encoders import list_encoders

    cards = list_encoders()
    known = [card.name for card in cards]
    offered = sorted((card for card in cards if card.recommended), key=lambda card: card.recommended)
    names = [card.name for card in offered]
    print(f"Choose an encoder:\n{listed()}", file=sys.stderr)
    while True:
        answer = ask("Number, name or folder").strip()
        if answer.isdecimal() and 1 <= int(answer) <= len(names):
            return names[int(answer) - 1]
        if answer in known or os.path.isdir(os.path.expanduser(answer)):
            return answer
        print(
            f"{answer!r} is not an encoder: expected 1 to {len(names)}, a name or a folder", file=sys.stderr
        )
