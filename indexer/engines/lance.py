"""Indexes in LanceDB, in this process: a folder of Lance tables, and beside each a file with its description.

The file names the table and the version of it that readers see; replacing it publishes a change.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, final

import lancedb
import numpy as np
import pyarrow as pa
from lancedb.index import BTree, IvfSq
from numpy.typing import NDArray

from llm2clip.common.files import write_atomic
from llm2clip.indexer.ann.index_types import nlist_for
from llm2clip.indexer.core.address import Address
from llm2clip.indexer.engines.conditions import Condition, TextDialect, glob_regex, json_text, quoted
from llm2clip.indexer.engines.table import (
    COLUMNS,
    EXACT_ROWS,
    JSON,
    NUMBERS,
    OPTIONAL,
    Description,
    EngineError,
    Found,
    Row,
)
from llm2clip.indexer.filters.dialect import InexpressibleError
from llm2clip.indexer.filters.fields import Field, Value
from llm2clip.indexer.filters.tokenizer import WhereError

_REFINE = 4
"""Candidates per hit whose stored vectors are compared."""
_NAMES = COLUMNS[:-1]


def connect(address: Address) -> LanceTable:
    """The table of an address."""
    return LanceTable(address, draft=None)


@final
class LanceTable:
    """A table of LanceDB; it fulfils ``Table``."""

    batch = 4096

    def __init__(self, address: Address, *, draft: str | None) -> None:
        self.address = address
        self._file = Path(address.place) / f"{address.table}.json"
        self._draft = draft
        with _errors(address):
            Path(address.place).mkdir(parents=True, exist_ok=True)
            self._db = lancedb.connect(address.place)
        self._pinned: Any = None
        self._changing = draft is not None

    def description(self) -> Description | None:
        """See ``Table``; pins what is read to the version that was published with it."""
        with _errors(self.address):
            if not self._file.exists():
                return None
            text = self._file.read_text("utf-8")
            found = Description.from_json(text, address=self.address)
            told = json.loads(text)
            if self._pinned is None:
                self._pinned = self._db.open_table(told["table"])
                self._pinned.checkout(told["version"])
        return found

    @property
    def _table(self) -> Any:  # noqa: ANN401
        return self._pinned

    def nearest(
        self, queries: NDArray[np.float32], *, k: int, where: str | None, effort: int
    ) -> list[list[Found]]:
        """See ``Table``."""
        condition = None if where is None else _DIALECT.compile(where)
        found = []
        with _errors(self.address, where):
            for query in queries:
                search = self._table.search(query, vector_column_name="vector").distance_type("dot").limit(k)
                search = search.select(["id", "item", "vector", "_distance"])
                if condition is not None:
                    search = search.where(condition, prefilter=True)
                if effort:
                    search = search.nprobes(effort).refine_factor(_REFINE)
                else:
                    search = search.bypass_vector_index()
                found.append(_found(search.to_arrow()))
        return found

    def fetch(self, ids: Sequence[int]) -> dict[int, Found]:
        """See ``Table``."""
        if not ids:
            return {}
        listed = ", ".join(str(int(id)) for id in ids)
        with _errors(self.address):
            rows = (
                self._table.search()
                .where(f"id IN ({listed})")
                .limit(len(ids))
                .select(["id", "item", "vector"])
            )
            return {row.id: row for row in _found(rows.to_arrow())}

    def count(self, where: str | None = None) -> int:
        """See ``Table``."""
        condition = None if where is None else _DIALECT.compile(where)
        with _errors(self.address, where):
            return int(self._table.count_rows(condition))

    def select(
        self, columns: Sequence[str], *, where: str | None = None, limit: int | None = None
    ) -> Iterator[tuple[Any, ...]]:
        """See ``Table``."""
        condition = None if where is None else _DIALECT.compile(where)
        with _errors(self.address, where):
            search = self._table.search().select(list(dict.fromkeys(["id", *columns])))
            if condition is not None:
                search = search.where(condition)
            found = search.limit(limit or max(1, self._table.count_rows())).to_arrow()
        if limit is None:
            found = found.sort_by("id")
        for batch in found.to_batches():
            yield from zip(*(batch.column(name).to_pylist() for name in columns), strict=True)

    def draft(self, description: Description) -> LanceTable:
        """See ``Table``."""
        told = json.dumps([description.index_id, dict(description.encoder)], sort_keys=True)
        name = f"{self.address.table}__{hashlib.sha256(told.encode()).hexdigest()[:12]}"
        made = LanceTable(self.address, draft=name)
        with _errors(self.address):
            if (Path(self.address.place) / f"{name}.lance").exists():
                made._pinned = made._db.open_table(name)
            else:
                made._pinned = made._db.create_table(name, schema=_schema(description.dim))
        return made

    def begin(self) -> None:
        """See ``Table``."""
        self._changing = True
        with _errors(self.address):
            self._table.checkout_latest()

    def upsert(self, rows: Sequence[Row]) -> None:
        """See ``Table``."""
        with _errors(self.address):
            change = self._table.merge_insert("id").when_matched_update_all().when_not_matched_insert_all()
            change.execute(_arrow(rows, self._table.schema))

    def delete(self, ids: Sequence[int]) -> None:
        """See ``Table``."""
        with _errors(self.address):
            self._table.delete(f"id IN ({', '.join(str(int(id)) for id in ids)})")

    def build(self, description: Description) -> Description:
        """See ``Table``: IVF with 8-bit codes, whose candidates are compared by their stored vectors."""
        with _errors(self.address):
            self._table.create_index("id", config=BTree())
            if description.items <= EXACT_ROWS:
                return replace(description, kind="exact", parameters={}, effort=0, recall=1.0)
            lists = nlist_for(description.items)
            self._table.create_index("vector", config=IvfSq(distance_type="dot", num_partitions=lists))
        return replace(description, kind="IVF_SQ", parameters={"nlist": lists, "refine": _REFINE}, effort=1)

    def publish(self, description: Description) -> None:
        """See ``Table``."""
        with _errors(self.address):
            self._table.optimize()
            name, version = self._table.name, self._table.version
            told = {**json.loads(description.to_json()), "table": name, "version": version}
            write_atomic(self._file, json.dumps(told, indent=2) + "\n")

    def reconnect(self) -> None:
        """See ``Table``; there is no connection."""

    def close(self) -> None:
        """See ``Table``."""
        self._pinned = None


@contextmanager
def _errors(address: Address, where: str | None = None) -> Iterator[None]:
    """Say in one line what LanceDB refuses; it raises errors of many classes."""
    try:
        yield
    except (EngineError, WhereError):
        raise
    except (RuntimeError, OSError, ValueError, AttributeError, pa.ArrowException) as error:
        reason = " ".join(str(error).split())[:300]
        asked = f" (filter {where})" if where else ""
        raise EngineError(f"{address}: {reason}{asked}") from error


def _schema(dim: int) -> pa.Schema:
    types = {
        name: pa.int64() if name in NUMBERS else pa.json_() if name in JSON else pa.string()
        for name in _NAMES
    }
    fields = [pa.field(name, kind, nullable=name in OPTIONAL) for name, kind in types.items()]
    return pa.schema([*fields, pa.field("vector", pa.list_(pa.float16(), dim), nullable=False)])


def _arrow(rows: Sequence[Row], schema: pa.Schema) -> pa.Table:
    dim = len(rows[0].vector)
    arrays = []
    for place, name in enumerate(_NAMES):
        values = pa.array([row[place] for row in rows], pa.int64() if name in NUMBERS else pa.string())
        arrays.append(pa.ExtensionArray.from_storage(pa.json_(), values) if name in JSON else values)
    flat = pa.array(np.concatenate([row.vector for row in rows]))
    arrays.append(pa.FixedSizeListArray.from_arrays(flat, dim))
    return pa.Table.from_arrays(arrays, schema=_schema(dim))


def _found(rows: pa.Table) -> list[Found]:
    if not rows.num_rows:
        return []
    column = rows.column("vector").combine_chunks()
    vectors = column.flatten().to_numpy(zero_copy_only=False).reshape(rows.num_rows, -1)
    ids, items = rows.column("id").to_pylist(), rows.column("item").to_pylist()
    return [Found(*row) for row in zip(ids, items, vectors, strict=True)]


class _LanceDialect(TextDialect):
    """Filters in DataFusion's SQL, with Lance's functions on JSON."""

    def literal(self, value: Value) -> str:
        return quoted(value) if isinstance(value, str) else repr(value)

    def operand(self, field: Field) -> str:
        return field.name

    def present(self, field: Field) -> str:
        if field.path is not None:
            return f"({self._text(field)} IS NOT NULL)"
        return f"({field.name} IS NOT NULL)" if field.name in OPTIONAL else self.TRUE

    def pattern(self, column: str, pattern: str) -> str:
        return f"({column} LIKE {quoted(pattern)})"

    def glob_pattern(self, column: str, pattern: str) -> str:
        return f"regexp_like({column}, {quoted('(?s)' + glob_regex(pattern))})"

    def large(self, value: Value) -> Value:
        raise InexpressibleError("Lance compares numbers up to 2^53: give a smaller one, or compare text")

    def metadata_equals(self, field: Field, value: Value) -> Condition:
        text = self._text(field)
        if isinstance(value, str):
            return self.matched(field, f"({text} = {quoted(json_text(value))})")
        same = f"coalesce(TRY_CAST({text} AS DOUBLE) = {float(value)!r}, false)"
        if value in (0, 1):
            same = f"({same} OR {text} = '{'true' if value else 'false'}')"
        return self.matched(field, same)

    def metadata_ordered(self, field: Field, sign: str, value: Value) -> Condition:
        text = self._text(field)
        if isinstance(value, str):
            told = self._told(field, "metadata")
            return self.tested(field, told, sign, quoted(value), also=f"{text} LIKE '\"%'")
        boolean = f"CAST(TRY_CAST({text} AS BOOLEAN) AS DOUBLE)"
        number = f"coalesce(TRY_CAST({text} AS DOUBLE), {boolean})"
        return self.tested(field, number, sign, repr(float(value)), also=f"{text} NOT LIKE '\"%'")

    def metadata_matches(self, field: Field, pattern: str, *, glob: bool) -> Condition:
        text = self._text(field)
        told = self._told(field, "metadata" if glob else "metadata_folded")
        test = self.glob_pattern(told, pattern) if glob else self.pattern(told, pattern)
        plain = f"({text} NOT LIKE '[%' AND {text} NOT LIKE '{{%' AND {text} NOT IN ('true', 'false'))"
        return Condition(f"({plain} AND {test})", f"({plain} AND NOT {test})")

    def metadata_contains(self, field: Field, value: Value) -> str:
        text = self._text(field)
        if isinstance(value, str):
            element = "".join(f"\\{char}" if char in "\\.+*?()|[]{}^$" else char for char in json_text(value))
        else:
            element = (
                f"{int(value)}(\\.0+)?"
                if float(value).is_integer()
                else repr(float(value)).replace(".", "\\.")
            )
            element = f"({element}|{'true' if value else 'false'})" if value in (0, 1) else element
        within = quoted(rf"[\[,]{element}[,\]]")
        return f"({text} LIKE '[%' AND regexp_like({text}, {within}))"

    def _text(self, field: Field) -> str:
        """A value of the metadata as JSON text; NULL if it is missing."""
        return f"json_extract(metadata, {quoted(str(field.path))})"

    def _told(self, field: Field, column: str) -> str:
        """A value of the metadata as text without quotes."""
        if not all(isinstance(step, str) for step in field.steps):
            raise InexpressibleError("Lance compares positions of a list only with = and !=, or by HAS")
        *outer, last = field.steps
        for step in outer:
            column = f"json_get({column}, {quoted(str(step))})"
        return f"json_get_string({column}, {quoted(str(last))})"


_DIALECT = _LanceDialect()
