"""Addresses of indexes that were exported to another engine: ``lance://PATH``, ``postgresql://...``, ``milvus://...``."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass, field
from urllib.parse import unquote, urlsplit, urlunsplit

from llm2clip.indexer.core.errors import IndexerError

SCHEMES = ("lance", "postgresql", "milvus")
"""Engines that an index can be exported to and searched in."""
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,47}")
EXAMPLE = "postgresql://localhost/photos/vectors"
"""For messages."""
_FORMS = {
    "lance": "lance://FOLDER/TABLE, as in lance:///data/vectors/photos",
    "postgresql": "postgresql://[USER@]HOST[:PORT]/DATABASE/TABLE",
    "milvus": "milvus://HOST[:PORT]/COLLECTION",
}


@dataclass(frozen=True, kw_only=True)
class Address:
    """Where an exported index is. As text it has no credentials."""

    scheme: str
    """One of ``SCHEMES``."""
    place: str = field(repr=False)
    """The engine: a folder for Lance, else the URL without the table, with credentials."""
    table: str
    """Name of the table or collection."""
    shown: str
    """The address without a password."""

    def __str__(self) -> str:
        return self.shown


def as_address(told: str | os.PathLike[str]) -> Address | None:
    """The address that a text is; None for the path or name of a local index.

    Raises:
        IndexerError: it names no table, or one that not every engine can have.
    """
    text = os.fspath(told)
    scheme = text.partition("://")[0]
    if scheme not in SCHEMES or "://" not in text:
        return None
    if scheme == "lance":
        place, _, table = os.path.abspath(os.path.expanduser(text.removeprefix("lance://"))).rpartition("/")
        return Address(
            scheme=scheme, place=place, table=_checked(table, scheme), shown=f"lance://{place}/{table}"
        )
    try:
        parts = urlsplit(text)
        port = parts.port
    except ValueError as error:
        raise IndexerError(f"expected {_FORMS[scheme]}: {error}") from None  # the cause may show a password
    path, _, table = parts.path.rstrip("/").rpartition("/")
    if scheme == "milvus" and (path or parts.query):
        raise IndexerError(f"expected {_FORMS[scheme]}, got more than one name after the host")
    table = _checked(unquote(table), scheme)
    user = f"{parts.username}@" if parts.username else ""
    rest = f"?{parts.query}" if parts.query and "password" not in unquote(parts.query).lower() else ""
    shown = f"{scheme}://{user}{parts.hostname or ''}{f':{port}' if port else ''}{path}/{table}{rest}"
    return Address(
        scheme=scheme,
        place=urlunsplit((scheme, parts.netloc, path, parts.query, "")),
        table=table,
        shown=shown,
    )


def _checked(table: str, scheme: str) -> str:
    if not _NAME.fullmatch(table):
        raise IndexerError(
            f"expected {_FORMS[scheme]}: a table has up to 48 ASCII letters, digits and _, got {table!r}"
        )
    return table
