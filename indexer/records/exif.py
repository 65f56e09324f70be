"""EXIF of an image: when, with what and where it was taken. A bounded reader that trusts no number of the file."""

from __future__ import annotations

import re
import struct
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any, NamedTuple

_MOST_ENTRIES = 1024
_MOST_BYTES = 2**18
"""Longer values are not read."""
_MOST_CHARACTERS = 200
_FIRST_YEAR, _LAST_YEAR = 1826, 2261
"""The oldest photograph, and the last year that fits 64 bits of nanoseconds."""
_UNSET = {datetime(1904, 1, 1, tzinfo=UTC), datetime(1970, 1, 1, tzinfo=UTC)}
"""What clocks and programs write that know no time."""
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MOMENT = re.compile(
    r"(\d{4})[:-](\d\d)[:-](\d\d)"
    r"(?:[ T](\d\d):(\d\d)(?::(\d\d)(?:[.,](\d{1,9})\d{0,20})?)? ?(Z|[+-]\d\d:?\d\d)?)?",
    re.ASCII,
)
_ZONE = re.compile(r"Z|[+-]\d\d:?\d\d", re.ASCII)

_MAKE, _MODEL, _ORIENTATION, _RATING, _KEYWORDS = 0x010F, 0x0110, 0x0112, 0x4746, 0x9C9E
_XMP, _IPTC, _EXIF, _GPS = 0x02BC, 0x83BB, 0x8769, 0x8825
_ORIGINAL = (0x9003, 0x9291, 0x9011)  # time, fraction of a second, zone
_DIGITIZED = (0x9004, 0x9292, 0x9012)
_LENS = 0xA434
_SIZES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 7: 1, 9: 4, 10: 8, 13: 4}
"""Type of a value -> bytes."""
_NUMBERS = {1: "B", 3: "H", 4: "I", 5: "2I", 9: "i", 10: "2i", 13: "I"}


class Moment(NamedTuple):
    """A time as a clock showed it."""

    text: str
    """ISO 8601, with the zone if it is known."""
    ns: int
    """Of the clock, whatever its zone, in nanoseconds since 1970 if it were UTC."""


class Exif(NamedTuple):
    """What EXIF says."""

    original: Moment | None
    """When the image was taken."""
    digitized: Moment | None
    """When it was digitized."""
    values: dict[str, Any]
    xmp: bytes
    """Of a TIFF its XMP."""
    iptc: bytes
    """Of a TIFF its IPTC."""


def moment(text: str, *, zone: str = "", fraction: str = "") -> Moment | None:
    """A time as EXIF or ISO 8601 write it; None if it is none, not set, or in no year that photographs are from."""
    match = _MOMENT.fullmatch(text[:80].strip(" \0"))
    if match is None:
        return None
    year, month, day, hour, minute, second, digits, own_zone = match.groups()
    if not _FIRST_YEAR <= int(year) <= _LAST_YEAR:
        return None
    try:
        clock = [int(part or 0) for part in (month, day, hour, minute, second)]
        clock[4] = min(clock[4], 59)  # a leap second
        shown = datetime(int(year), *clock, tzinfo=UTC)  # type: ignore[misc,arg-type]
    except ValueError:
        return None
    if shown in _UNSET:
        return None
    digits = digits or (fraction if re.fullmatch(r"\d{1,9}", fraction, re.ASCII) else "")
    since = shown - _EPOCH
    ns = (since.days * 86_400 + since.seconds) * 10**9 + int(digits.ljust(9, "0") or 0)
    if hour is None:
        return Moment(f"{shown:%Y-%m-%d}".rjust(10, "0"), ns)
    zone = own_zone or (zone if _ZONE.fullmatch(zone) else "")
    if len(zone) == 5:
        zone = f"{zone[:3]}:{zone[3:]}"
    return Moment(f"{shown:%Y-%m-%dT%H:%M:%S}" + (f".{digits}" if digits.strip("0") else "") + zone, ns)


def read_exif(content: bytes) -> Exif:
    """Read EXIF, or a whole TIFF; what is damaged or unknown is left out.

    Raises:
        struct.error, ValueError, LookupError: it is no EXIF.
    """
    tiff = _Tiff(content)
    main = tiff.directory(tiff.number("I", 4))
    more, gps = (tiff.directory(next(iter(main.numbers(tag)), len(content))) for tag in (_EXIF, _GPS))
    return Exif(
        original=_moment(more, _ORIGINAL),
        digitized=_moment(more, _DIGITIZED),
        values=_values(main, more) | _position(gps),
        xmp=main.raw(_XMP),
        iptc=main.raw(_IPTC),
    )


class _Tiff:
    """Directories of entries of a TIFF."""

    def __init__(self, content: bytes) -> None:
        if content[:4] not in (b"II*\0", b"MM\0*"):
            raise ValueError("no TIFF header")
        self.content, self.order = content, "<" if content[:1] == b"I" else ">"

    def number(self, kind: str, place: int) -> int:
        return int(struct.unpack_from(self.order + kind, self.content, place)[0])

    def directory(self, place: float) -> _Directory:
        """The entries of the directory at a place; none if it lies outside."""
        found: dict[int, tuple[int, bytes]] = {}
        try:
            for at in range(min(_MOST_ENTRIES, self.number("H", int(place)))):
                entry = int(place) + 2 + 12 * at
                tag, kind, count = struct.unpack_from(self.order + "HHI", self.content, entry)
                length = count * _SIZES.get(kind, 0)
                start = entry + 8 if length <= 4 else self.number("I", entry + 8)
                if 0 < length <= _MOST_BYTES and start + length <= len(self.content):
                    found.setdefault(tag, (kind, self.content[start : start + length]))
        except struct.error:  # it is cut off
            pass
        return _Directory(self.order, found)


class _Directory(NamedTuple):
    order: str
    entries: Mapping[int, tuple[int, bytes]]
    """Tag -> type and bytes."""

    def raw(self, tag: int) -> bytes:
        return self.entries.get(tag, (0, b""))[1]

    def text(self, tag: int) -> str:
        return plain(self.raw(tag).partition(b"\0")[0])

    def numbers(self, tag: int) -> list[float]:
        """The first few numbers of an entry; a fraction by 0 is left out."""
        kind, raw = self.entries.get(tag, (0, b""))
        if kind not in _NUMBERS:
            return []
        found = list(struct.iter_unpack(self.order + _NUMBERS[kind], raw[: 4 * _SIZES[kind]]))
        if kind in (5, 10):
            return [above / below for above, below in found if below]
        return [value for (value,) in found]


def plain(raw: bytes) -> str:
    """Bytes of unknown encoding as printable text of bounded length."""
    try:
        text = raw[: 4 * _MOST_CHARACTERS].decode("utf-8")
    except UnicodeDecodeError:
        text = raw[: 4 * _MOST_CHARACTERS].decode("latin-1")
    return printed(text)


def printed(text: str) -> str:
    """Printable text of bounded length, spaces joined."""
    kept = text[: 4 * _MOST_CHARACTERS]
    if not kept.isprintable():
        kept = "".join(each if each.isprintable() else " " for each in kept)
    return " ".join(kept.split())[:_MOST_CHARACTERS]


def _moment(entries: _Directory, tags: tuple[int, int, int]) -> Moment | None:
    text, fraction, zone = (entries.text(tag) for tag in tags)
    return moment(text, zone=zone, fraction=fraction)


def _values(main: _Directory, more: _Directory) -> dict[str, Any]:
    make, model, lens = main.text(_MAKE), main.text(_MODEL), more.text(_LENS)
    named = not make or (model and model.casefold().startswith(make.split()[0].casefold()))
    camera = model if named else f"{make} {model}".strip()
    found: dict[str, Any] = {"camera": camera, "lens": lens}
    for name, tag, most in (("orientation", _ORIENTATION, 8), ("rating", _RATING, 5)):
        number = next(iter(main.numbers(tag)), 0)
        found[name] = int(number) if 1 <= number <= most else None
    listed = main.raw(_KEYWORDS).decode("utf-16-le", "replace").rstrip("\0")
    found["keywords"] = [word for each in listed.split(";") if (word := printed(each))]
    return {name: value for name, value in found.items() if value}


def _position(gps: _Directory) -> dict[str, Any]:
    """Latitude and longitude in degrees, north and east positive."""
    found: dict[str, Any] = {}
    for name, tag, negative, most in (("latitude", 2, "S", 90), ("longitude", 4, "W", 180)):
        degrees = gps.numbers(tag)[:3]
        value = sum(part / 60**power for power, part in enumerate(degrees))
        if not degrees or not 0 <= value <= most:
            return {}
        found[name] = round(-value if gps.text(tag - 1).upper() == negative else value, 7)
    return found if any(found.values()) else {}  # 0, 0 is what receivers without a fix write
