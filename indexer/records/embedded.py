"""What an image file says of itself: capture time, camera, place, rating and keywords, from EXIF, XMP, IPTC and text.

Nothing is decoded, every length and count is bounded, and damage only means that less is found.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Callable
from contextlib import suppress
from html import unescape
from typing import Any

from llm2clip.indexer.records.exif import Exif, Moment, moment, plain, printed, read_exif
from llm2clip.indexer.records.files import EmbeddedParts

_MOST_BYTES = 2**18
"""Longer parts are not read."""
_MOST_KEYWORDS = 64
_ITEM = re.compile("<rdf:li[^<>]{0,100}>([^<]{1,400})<")
_TAKEN = ("exif:DateTimeOriginal", "photoshop:DateCreated")
_CREATED = ("xmp:CreateDate",)


def read_embedded(parts: EmbeddedParts) -> dict[str, Any] | None:
    """What an image file says of itself, as ``with_embedded`` takes it; None if it says nothing.

    Never raises for what the file contains.
    """
    with suppress(struct.error, ValueError, LookupError, ArithmeticError):
        return _told(parts)
    return None


def video_time(text: str) -> dict[str, Any] | None:
    """The time at which a video was made, as ``with_embedded`` takes it; None if it is none."""
    found = moment(text)
    return None if found is None else {"time": found.text, "ns": found.ns, "source": "video"}


def _told(parts: EmbeddedParts) -> dict[str, Any] | None:
    exif = Exif(None, None, {}, b"", b"")
    with suppress(struct.error, ValueError, LookupError, ArithmeticError):
        exif = read_exif(parts.exif.removeprefix(b"Exif\0\0"))
    packet = (parts.xmp or exif.xmp)[:_MOST_BYTES].decode("utf-8", "replace")
    iptc_time, iptc_keywords = _iptc(parts.iptc or exif.iptc)
    times: tuple[tuple[str, Callable[[], Moment | None]], ...] = (
        ("exif", lambda: exif.original),
        ("xmp", lambda: _xmp_time(packet, _TAKEN)),
        ("iptc", lambda: iptc_time),
        ("exif", lambda: exif.digitized),
        ("xmp", lambda: _xmp_time(packet, _CREATED)),
        ("png", lambda: _png_time(plain(parts.created))),
    )
    told: dict[str, Any] = {}
    for source, read in times:
        if (found := read()) is not None:
            told = {"time": found.text, "ns": found.ns, "source": source}
            break
    values = exif.values
    words = [*values.pop("keywords", ()), *_xmp_keywords(packet), *iptc_keywords]
    rating = _xmp(packet, "xmp:Rating")
    if rating in ("1", "2", "3", "4", "5"):
        values["rating"] = int(rating)
    if words:
        values["keywords"] = list(dict.fromkeys(words))[:_MOST_KEYWORDS]
    return (told | ({"values": values} if values else {})) or None


def _xmp(packet: str, name: str) -> str:
    """The value of a simple property, as an attribute or an element; empty if there is none."""
    match = re.search(f"""{name}(?:=["']|>)([^<>"']{{1,100}})["'<]""", packet)
    return unescape(match[1]).strip() if match else ""


def _xmp_time(packet: str, names: tuple[str, ...]) -> Moment | None:
    return next((found for name in names if (found := moment(_xmp(packet, name))) is not None), None)


def _xmp_keywords(packet: str) -> list[str]:
    begin = packet.find("<dc:subject>")
    listed = packet[begin : packet.find("</dc:subject>", begin)] if begin >= 0 else ""
    words = (printed(unescape(match[1])) for match in _ITEM.finditer(listed))
    return [word for word in words if word]


def _iptc(records: bytes) -> tuple[Moment | None, list[str]]:
    """Date and keywords of the records of IPTC-IIM."""
    date = time = ""
    words: list[str] = []
    place = 0
    while place + 5 <= len(records) and records[place] == 0x1C and len(words) < _MOST_KEYWORDS:
        record, kind, length = struct.unpack_from(">BBH", records, place + 1)
        value = plain(records[place + 5 : place + 5 + length])
        if (record, kind) == (2, 55):
            date = f"{value[:4]}-{value[4:6]}-{value[6:8]}"
        elif (record, kind) == (2, 60):
            time = f"T{value[:2]}:{value[2:4]}:{value[4:6]}{value[6:]}"
        elif (record, kind) == (2, 25) and value:
            words.append(value)
        place += 5 + length
    return moment(date + time) or moment(date), words


def _png_time(text: str) -> Moment | None:
    """A time as ISO 8601, EXIF or RFC 1123 write it."""
    if (found := moment(text)) is not None or not text:
        return found
    from email.utils import parsedate_to_datetime

    with suppress(ValueError, TypeError, IndexError, OverflowError):
        return moment(parsedate_to_datetime(text).isoformat())
    return None
