"""Indexes in Milvus: a collection, whose property ``llm2clip`` is the description.

Milvus has no NULL, so what is missing is stored as a value that nothing has (``_MISSING``).
"""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, final
from urllib.parse import unquote, urlsplit

import numpy as np
import pymilvus
from numpy.typing import NDArray

from llm2clip.indexer.core.address import Address
from llm2clip.indexer.engines.conditions import Condition, TextDialect
from llm2clip.indexer.engines.table import (
    COLUMNS,
    EXACT_ROWS,
    JSON,
    NUMBERS,
    OPTIONAL,
    Description,
    EngineError,
    EngineLostError,
    Found,
    Row,
)
from llm2clip.indexer.filters.dialect import InexpressibleError
from llm2clip.indexer.filters.fields import Field, Value

_PROPERTY = "llm2clip"
_HNSW = {"M": 16, "efConstruction": 128}
_MOST_HITS = 16_384
"""Longest answer of a search."""
_LONGEST = 65_535
"""Bytes of a text or of JSON."""
_SECONDS = 30.0
_BUILD_SECONDS = 24 * 3600.0
_MISSING: dict[str, Any] = {"time": -(2**63) + 1, "size": -1}
_NO_TEXT = "\uffff"
_NAMES = COLUMNS[:-1]

logging.getLogger("pymilvus").setLevel(logging.CRITICAL)  # it prints tracebacks of what is handled here


def connect(address: Address) -> MilvusTable:
    """The collection of an address."""
    return MilvusTable(address, name=address.table)


@final
class MilvusTable:
    """A collection of Milvus; it fulfils ``Table``. A change of a published one is not atomic: Milvus has none."""

    batch = 1_000

    def __init__(self, address: Address, *, name: str) -> None:
        self.address = address
        self._name = name
        self._level = "Bounded"
        self._known: pymilvus.MilvusClient | None = None
        self.reconnect()

    def reconnect(self) -> None:
        """See ``Table``."""
        self.close()
        parts = urlsplit(self.address.place)
        with _errors(self.address):
            self._known = pymilvus.MilvusClient(
                uri=f"http://{parts.hostname}:{parts.port or 19530}",
                user=unquote(parts.username or ""),
                password=unquote(parts.password or ""),
                timeout=_SECONDS,
            )

    def description(self) -> Description | None:
        """See ``Table``."""
        told = self._properties()
        return None if told is None else Description.from_json(told.get(_PROPERTY), address=self.address)

    def _properties(self) -> dict[str, str] | None:
        with _errors(self.address):
            if not self._client.has_collection(self._name, timeout=_SECONDS):
                return None
            found = self._client.describe_collection(self._name, timeout=_SECONDS)
            return dict(found.get("properties", {}))

    def nearest(
        self, queries: NDArray[np.float32], *, k: int, where: str | None, effort: int
    ) -> list[list[Found]]:
        """See ``Table``."""
        if k > _MOST_HITS:
            raise EngineError(f"Milvus returns at most {_MOST_HITS:,} hits, got {k:,}: ask for fewer")
        with _errors(self.address):
            answers = self._client.search(
                self._name,
                queries.tolist(),
                anns_field="vector",
                limit=k,
                filter="" if where is None else _DIALECT.compile(where),
                search_params={"metric_type": "IP", "params": {"ef": max(effort, k)} if effort else {}},
                output_fields=["id", "item", "vector"],
                consistency_level=self._level,
                timeout=_SECONDS,
            )
        return [[_found(hit["entity"]) for hit in hits] for hits in answers]

    def fetch(self, ids: Sequence[int]) -> dict[int, Found]:
        """See ``Table``."""
        if not ids:
            return {}
        found: dict[int, Found] = {}
        with _errors(self.address):
            for start in range(0, len(ids), self.batch):
                rows = self._client.get(
                    self._name,
                    list(ids[start : start + self.batch]),
                    output_fields=["id", "item", "vector"],
                    consistency_level=self._level,
                    timeout=_SECONDS,
                )
                found |= {row["id"]: _found(row) for row in rows}
        return found

    def count(self, where: str | None = None) -> int:
        """See ``Table``."""
        condition = "" if where is None else _DIALECT.compile(where)
        with _errors(self.address):
            found = self._client.query(
                self._name,
                filter=condition,
                output_fields=["count(*)"],
                consistency_level=self._level,
                timeout=_SECONDS,
            )
        return int(found[0]["count(*)"])

    def select(
        self, columns: Sequence[str], *, where: str | None = None, limit: int | None = None
    ) -> Iterator[tuple[Any, ...]]:
        """See ``Table``."""
        condition = "" if where is None else _DIALECT.compile(where)
        rows: list[dict[str, Any]] = []
        if self._level == "Strong":
            self.count()  # an iterator does not wait for what was written before, a query does
        with _errors(self.address):
            pages = self._client.query_iterator(
                self._name,
                batch_size=self.batch,
                limit=-1 if limit is None else limit,
                filter=condition,
                output_fields=list(dict.fromkeys(["id", *columns])),
                consistency_level=self._level,
                timeout=_SECONDS,
            )
            while page := pages.next():
                rows += page
            pages.close()
        rows.sort(key=lambda row: int(row["id"]))
        return (tuple(_read(name, row[name]) for name in columns) for row in rows)

    def draft(self, description: Description) -> MilvusTable:
        """See ``Table``."""
        made = MilvusTable(self.address, name=f"{self.address.table}__draft")
        made._level = "Strong"
        wanted = replace(description, generation=0, items=0, rows=0).to_json()
        if (made._properties() or {}).get(_PROPERTY) != wanted:
            with _errors(self.address):
                if made._client.has_collection(made._name, timeout=_SECONDS):
                    made._client.drop_collection(made._name, timeout=_SECONDS)
                made._client.create_collection(made._name, schema=_schema(description.dim), timeout=_SECONDS)
                made._index("FLAT", {})
                made._client.alter_collection_properties(made._name, {_PROPERTY: wanted}, timeout=_SECONDS)
        return made

    def begin(self) -> None:
        """See ``Table``."""
        self._level = "Strong"

    def upsert(self, rows: Sequence[Row]) -> None:
        """See ``Table``."""
        with _errors(self.address):
            self._client.upsert(self._name, [self._written(row) for row in rows], timeout=_SECONDS)

    def delete(self, ids: Sequence[int]) -> None:
        """See ``Table``."""
        with _errors(self.address):
            self._client.delete(self._name, ids=list(ids), timeout=_SECONDS)

    def build(self, description: Description) -> Description:
        """See ``Table``: HNSW."""
        exact = description.items <= EXACT_ROWS
        with _errors(self.address):
            self._client.flush(self._name, timeout=_BUILD_SECONDS)
            if not exact:
                self._index("HNSW", _HNSW)
        kind, parameters = ("exact", {}) if exact else ("HNSW", _HNSW)
        return replace(description, kind=kind, parameters=parameters, effort=0 if exact else 1, recall=1.0)

    def publish(self, description: Description) -> None:
        """See ``Table``."""
        with _errors(self.address):
            self._client.alter_collection_properties(
                self._name, {_PROPERTY: description.to_json()}, timeout=_SECONDS
            )
            if self._name != self.address.table:
                self._client.rename_collection(self._name, self.address.table, timeout=_SECONDS)

    def close(self) -> None:
        """See ``Table``."""
        if self._known is not None:
            self._known.close()
            self._known = None

    @property
    def _client(self) -> pymilvus.MilvusClient:
        if self._known is None:
            raise EngineLostError(f"{self.address}: not connected")
        return self._known

    def _index(self, kind: str, parameters: dict[str, int]) -> None:
        """Replace the index of the vectors, wait for it, and load it."""
        self._client.release_collection(self._name, timeout=_SECONDS)
        for name in self._client.list_indexes(self._name):
            self._client.drop_index(self._name, name, timeout=_SECONDS)
        wanted = self._client.prepare_index_params()
        wanted.add_index("vector", index_type=kind, metric_type="IP", params=parameters)
        self._client.create_index(self._name, wanted, timeout=_BUILD_SECONDS)
        self._client.load_collection(self._name, timeout=_BUILD_SECONDS)

    def _written(self, row: Row) -> dict[str, Any]:
        told: dict[str, Any] = {}
        for name, value in zip(_NAMES, row[:-1], strict=True):
            if name in JSON:
                told[name] = {} if value is None else json.loads(str(value))
            else:
                told[name] = _MISSING.get(name, _NO_TEXT) if value is None else value
            if isinstance(value, str) and len(value.encode()) > _LONGEST:
                raise EngineError(
                    f"{self.address}: {row.key}: its {name} has {len(value.encode()):,} bytes, and Milvus holds "
                    f"{_LONGEST:,}: shorten its caption or metadata, or leave it out of the index"
                )
        return {**told, "vector": row.vector.astype(np.float32)}


@contextmanager
def _errors(address: Address) -> Iterator[None]:
    """Say in one line what Milvus refuses."""
    try:
        yield
    except pymilvus.MilvusException as error:
        reason = " ".join(str(error.message or error).split())[:300]
        if error.code == 100 or "collection not found" in reason or "can't find collection" in reason:
            raise EngineError(
                f"{address} is no longer there: it was dropped; export the index again"
            ) from error
        if "auth" in reason.lower():
            raise EngineError(f"{address}: {reason}") from error
        words = ("connect", "unavailable", "deadline", "timeout", "retry", "UNAVAILABLE", "not loaded")
        if isinstance(error, pymilvus.exceptions.ConnectError) or any(word in reason for word in words):
            raise EngineLostError(f"cannot reach {address}: {reason}") from error
        raise EngineError(f"{address}: {reason}") from error
    except (ConnectionError, TimeoutError) as error:
        raise EngineLostError(f"cannot reach {address}: {error}") from error


def _schema(dim: int) -> Any:  # noqa: ANN401
    kinds = pymilvus.DataType
    schema = pymilvus.MilvusClient.create_schema(auto_id=False, enable_dynamic_field=False)
    for name in _NAMES:
        if name in NUMBERS:
            schema.add_field(name, kinds.INT64, is_primary=name == "id")
        elif name in JSON:
            schema.add_field(name, kinds.JSON)
        else:
            schema.add_field(name, kinds.VARCHAR, max_length=_LONGEST)
    schema.add_field("vector", kinds.FLOAT_VECTOR, dim=dim)
    return schema


def _read(name: str, value: Any) -> Any:  # noqa: ANN401
    """A stored value as the columns have it."""
    if name in JSON:
        return json.dumps(value, ensure_ascii=False) if value else None
    missing = name in OPTIONAL and value == _MISSING.get(name, _NO_TEXT)
    return None if missing else value


def _found(row: Any) -> Found:  # noqa: ANN401
    return Found(int(row["id"]), row["item"], np.array(row["vector"], dtype=np.float32).astype(np.float16))


class _MilvusDialect(TextDialect):
    """Filters in Milvus's expressions, which compare texts whole or by their beginning."""

    AND, OR, NOT, TRUE = " and ", " or ", "not ", "(id >= 0)"

    def sign(self, sign: str) -> str:
        return {"=": "==", "<>": "!="}.get(sign, sign)

    def literal(self, value: Value) -> str:
        return json.dumps(value, ensure_ascii=False)

    def operand(self, field: Field) -> str:
        return field.name if field.path is None else self._json(field)

    def present(self, field: Field) -> str:
        if field.path is not None:
            return f"(exists {self._json(field)})"
        if field.name not in OPTIONAL:
            return self.TRUE
        return f"({field.name} != {self.literal(_MISSING.get(field.name, _NO_TEXT))})"

    def pattern(self, column: str, pattern: str) -> str:
        return self._beginning(column, re.findall(r"\\.|.", pattern, re.DOTALL), any="%", one="_")

    def glob_pattern(self, column: str, pattern: str) -> str:
        return self._beginning(column, re.findall(r"\[[^^]\]|.", pattern, re.DOTALL), any="*", one="?")

    def _beginning(self, column: str, parts: list[str], *, any: str, one: str) -> str:
        """That a column begins with a text, or is it."""
        literal = [part for part in parts if part not in (any, one)]
        whole = parts == literal
        if (not whole and parts != [*literal, any]) or any_of_class(literal, glob=any == "*"):
            raise InexpressibleError(
                f"Milvus compares texts whole or by their beginning: put one {any} at the end, and no other wildcard"
            )
        text = "".join(part[1] if len(part) > 1 else part for part in literal)
        if whole:
            return f"({column} == {self.literal(text)})"
        if not text:
            return self.TRUE
        return f"({column} >= {self.literal(text)} and {column} < {self.literal(text + chr(0x10FFFF))})"

    def metadata_equals(self, field: Field, value: Value) -> Condition:
        same = f"{self._json(field)} == {self.literal(value)}"
        if not isinstance(value, str | bytes) and value in (0, 1):
            number = f"{self._json(field)} == {int(value)}"
            same = f"{number} or {self._json(field)} == {'true' if value else 'false'}"
        return self.matched(field, f"({same})")

    def metadata_ordered(self, field: Field, sign: str, value: Value) -> Condition:
        found = self.tested(field, self._json(field), sign, self.literal(value))
        if isinstance(value, str | bytes):
            return found
        # TRUE and FALSE are 1 and 0.
        passing = {True: [found.yes], False: [found.no]}
        for truth in (True, False):
            holds = {"<": truth < value, "<=": truth <= value, ">": truth > value, ">=": truth >= value}[sign]
            passing[holds].append(f"{self._json(field)} == {'true' if truth else 'false'}")
        return Condition(*(f"({' or '.join(passing[side])})" for side in (True, False)))

    def metadata_matches(self, field: Field, pattern: str, *, glob: bool) -> Condition:
        column = self._json(field, "metadata" if glob else "metadata_folded")
        test = self.glob_pattern(column, pattern) if glob else self.pattern(column, pattern)
        texts = f'({column} >= "")'
        if test == self.TRUE:
            return Condition(texts, f"(not {self.TRUE})")
        return Condition(f"({texts} and {test})", f"({texts} and not {test})")

    def metadata_contains(self, field: Field, value: Value) -> str:
        asked = [value]
        if not isinstance(value, str | bytes) and value in (0, 1):
            asked = [int(value), bool(value)]
        return (
            "("
            + " or ".join(f"json_contains({self._json(field)}, {self.literal(each)})" for each in asked)
            + ")"
        )

    def _json(self, field: Field, column: str = "metadata") -> str:
        steps = (f"[{step}]" if isinstance(step, int) else f"[{self.literal(step)}]" for step in field.steps)
        return column + "".join(steps)


def any_of_class(parts: list[str], *, glob: bool) -> bool:
    """Whether a GLOB pattern has brackets of more than one character."""
    return glob and "[" in parts


_DIALECT = _MilvusDialect()
