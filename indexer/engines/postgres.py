"""Indexes in PostgreSQL with pgvector: vectors as ``halfvec``, the description as the comment of the table."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from threading import RLock
from typing import Any, TypeAlias, final

import numpy as np
import psycopg
from numpy.typing import NDArray
from psycopg import sql

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
    EngineLostError,
    Found,
    Row,
)
from llm2clip.indexer.filters.fields import Field, Value

_MOST_DIM = 4_000
"""Longest vector that pgvector's HNSW takes as ``halfvec``."""
_HNSW = {"m": 16, "ef_construction": 128}
_MOST_EF = 1_000
_SESSION = (
    "SET standard_conforming_strings = on",
    "SET hnsw.iterative_scan = relaxed_order",  # or a selective filter would leave too few of ef_search candidates
    "SET hnsw.max_scan_tuples = 200000",
    "SET statement_timeout = '600s'",
)
_Statement: TypeAlias = sql.SQL | sql.Composed
_SECONDS = 10
"""How long a connection may take."""


def connect(address: Address) -> PostgresTable:
    """The table of an address."""
    return PostgresTable(address, name=address.table)


@final
class PostgresTable:
    """A table of PostgreSQL; it fulfils ``Table``. Threads share one connection."""

    batch = 2_000

    def __init__(self, address: Address, *, name: str) -> None:
        self.address = address
        self._name = name
        self._ident = sql.Identifier(name)
        self._lock = RLock()
        self._changing = False
        self._known: psycopg.Connection[Any] | None = None
        self.reconnect()

    def reconnect(self) -> None:
        """See ``Table``; a change of a published table is lost with its connection."""
        with self._lock:
            lost = self._changing and self._name == self.address.table
            self.close()
            if lost:
                self._changing = False
                raise EngineError(
                    f"{self.address}: the connection was lost; the table is as it was. Run it again"
                )
            with _errors(self.address):
                self._known = psycopg.connect(
                    self.address.place, autocommit=True, connect_timeout=_SECONDS, keepalives_idle=30
                )
                self._known.execute("CREATE EXTENSION IF NOT EXISTS vector")
                for statement in _SESSION:
                    self._known.execute(statement)

    def description(self) -> Description | None:
        """See ``Table``."""
        found = self._rows(
            sql.SQL("SELECT obj_description(to_regclass({name}), 'pg_class'), to_regclass({name})").format(
                name=sql.Literal(self._ident.as_string(None))
            )
        )
        text, there = found[0]
        return None if there is None else Description.from_json(text, address=self.address)

    def nearest(
        self, queries: NDArray[np.float32], *, k: int, where: str | None, effort: int
    ) -> list[list[Found]]:
        """See ``Table``."""
        statement = sql.SQL(
            "SELECT id, item, vector FROM {table} WHERE {where} ORDER BY vector <#> %s::halfvec LIMIT %s"
        ).format(table=self._ident, where=_condition(where, values=True))
        ef = min(max(effort, min(k, _MOST_EF)), _MOST_EF)
        # HNSW visits too few of the rows that pass a selective filter; comparing all of those is fast and exact.
        effort = 0 if where is not None and self._are_few(where) else effort
        setting = f"SET LOCAL hnsw.ef_search = {ef}" if effort else "SET LOCAL enable_indexscan = off"
        found = []
        with self._lock, _errors(self.address), self._connection.transaction():
            self._connection.execute(setting)
            for query in queries:
                rows = self._connection.execute(statement, (_written(query), k), binary=True).fetchall()
                found.append([_found(*row) for row in rows])
        return found

    def _are_few(self, where: str) -> bool:
        some = sql.SQL("SELECT count(*) FROM (SELECT 1 FROM {} WHERE {} LIMIT {}) AS passing")
        found = self._rows(some.format(self._ident, _condition(where), sql.Literal(EXACT_ROWS + 1)))
        return int(found[0][0]) <= EXACT_ROWS

    def fetch(self, ids: Sequence[int]) -> dict[int, Found]:
        """See ``Table``."""
        statement = sql.SQL("SELECT id, item, vector FROM {table} WHERE id = ANY(%s)").format(
            table=self._ident
        )
        with self._lock, _errors(self.address):
            rows = self._connection.execute(statement, (list(ids),), binary=True).fetchall()
        return {row[0]: _found(*row) for row in rows}

    def count(self, where: str | None = None) -> int:
        """See ``Table``."""
        statement = sql.SQL("SELECT count(*) FROM {table} WHERE {where}")
        return int(self._rows(statement.format(table=self._ident, where=_condition(where)))[0][0])

    def select(
        self, columns: Sequence[str], *, where: str | None = None, limit: int | None = None
    ) -> Iterator[tuple[Any, ...]]:
        """See ``Table``."""
        listed = [
            sql.SQL("{}::text" if name in JSON else "{}").format(sql.Identifier(name)) for name in columns
        ]
        statement = sql.SQL("SELECT {columns} FROM {table} WHERE {where} {rest}").format(
            columns=sql.SQL(", ").join(listed),
            table=self._ident,
            where=_condition(where),
            rest=sql.SQL("ORDER BY id") if limit is None else sql.SQL("LIMIT {}").format(sql.Literal(limit)),
        )
        return iter(self._rows(statement))

    def draft(self, description: Description) -> PostgresTable:
        """See ``Table``."""
        made = PostgresTable(self.address, name=f"{self.address.table}__draft")
        wanted = replace(description, generation=0, items=0, rows=0).to_json()
        stored = made._rows(
            sql.SQL("SELECT obj_description(to_regclass({}), 'pg_class')").format(
                sql.Literal(made._ident.as_string(None))
            )
        )[0][0]
        if stored != wanted:
            made._run(sql.SQL("DROP TABLE IF EXISTS {}").format(made._ident))
            with made._lock, _errors(self.address), made._connection.transaction():
                made._run(sql.SQL("CREATE TABLE {} ({})").format(made._ident, _columns(description.dim)))
                made._describe(wanted)
        return made

    def begin(self) -> None:
        """See ``Table``: a change of a published table is one transaction."""
        if self._name == self.address.table:
            self._run(sql.SQL("BEGIN ISOLATION LEVEL REPEATABLE READ"))
            self._changing = True

    def upsert(self, rows: Sequence[Row]) -> None:
        """See ``Table``."""
        ids = [row.id for row in rows]
        listed = sql.SQL(", ").join(map(sql.Identifier, COLUMNS))
        with (
            self._lock,
            _errors(self.address),
            self._connection.transaction(),
            self._connection.cursor() as cursor,
        ):
            cursor.execute(sql.SQL("DELETE FROM {} WHERE id = ANY(%s)").format(self._ident), (ids,))
            with cursor.copy(
                sql.SQL("COPY {} ({}) FROM STDIN (FORMAT BINARY)").format(self._ident, listed)
            ) as copy:
                copy.set_types(_COPIED)
                for row in rows:
                    copy.write_row(_binary(row))

    def delete(self, ids: Sequence[int]) -> None:
        """See ``Table``."""
        with self._lock, _errors(self.address):
            self._connection.execute(
                sql.SQL("DELETE FROM {} WHERE id = ANY(%s)").format(self._ident), (list(ids),)
            )

    def build(self, description: Description) -> Description:
        """See ``Table``: HNSW over float16 vectors."""
        if description.items <= EXACT_ROWS or description.dim > _MOST_DIM:
            return replace(description, kind="exact", parameters={}, effort=0, recall=1.0)
        statement = (
            "CREATE INDEX ON {} USING hnsw (vector halfvec_ip_ops) WITH (m = {}, ef_construction = {})"
        )
        with self._lock, _errors(self.address), self._connection.transaction():
            self._run(sql.SQL("SET LOCAL statement_timeout = 0"))
            self._run(sql.SQL(statement).format(self._ident, *map(sql.Literal, _HNSW.values())))
        self._run(sql.SQL("ANALYZE {}").format(self._ident))
        return replace(description, kind="hnsw", parameters=_HNSW, effort=1)

    def publish(self, description: Description) -> None:
        """See ``Table``."""
        if self._changing:
            self._describe(description.to_json())
            self._run(sql.SQL("COMMIT"))
            self._changing = False
            return
        with self._lock, _errors(self.address), self._connection.transaction():
            self._describe(description.to_json())
            self._run(
                sql.SQL("ALTER TABLE {} RENAME TO {}").format(self._ident, sql.Identifier(self.address.table))
            )

    def close(self) -> None:
        """See ``Table``; the server undoes what was not committed."""
        with self._lock:
            if self._known is not None:
                self._known.close()
                self._known = None

    @property
    def _connection(self) -> psycopg.Connection[Any]:
        if self._known is None:
            raise EngineLostError(f"{self.address}: not connected")
        return self._known

    def _describe(self, text: str) -> None:
        self._run(sql.SQL("COMMENT ON TABLE {} IS {}").format(self._ident, sql.Literal(text)))

    def _run(self, statement: _Statement) -> None:
        with self._lock, _errors(self.address):
            self._connection.execute(statement)

    def _rows(self, statement: _Statement) -> list[tuple[Any, ...]]:
        with self._lock, _errors(self.address):
            found: list[tuple[Any, ...]] = self._connection.execute(statement).fetchall()
            return found


@contextmanager
def _errors(address: Address) -> Iterator[None]:
    """Say in one line what PostgreSQL refuses. The text of psycopg may name user and host, never the password."""
    try:
        yield
    except psycopg.errors.UndefinedTable as error:
        raise EngineError(f"{address} is no longer there: it was dropped; export the index again") from error
    except psycopg.Error as error:
        reason = " ".join((error.diag.message_primary or str(error)).split())[:300]
        away = isinstance(error, psycopg.OperationalError) and not isinstance(
            error, psycopg.errors.DiskFull | psycopg.errors.QueryCanceled
        )
        denied = any(word in reason for word in ("password", "authentication", "does not exist", "no pg_hba"))
        if away and not denied:
            raise EngineLostError(f"cannot reach {address}: {reason}") from error
        raise EngineError(f"{address}: {reason}") from error


def _columns(dim: int) -> sql.Composed:
    types = {
        name: "bigint" if name in NUMBERS else "jsonb" if name in JSON else 'text COLLATE "C"'
        for name in COLUMNS[:-1]
    }
    listed = [
        sql.SQL("{} {}{}").format(
            sql.Identifier(name), sql.SQL(kind), sql.SQL("" if name in OPTIONAL else " NOT NULL")
        )
        for name, kind in types.items()
    ]
    vector = sql.SQL("vector halfvec({}) NOT NULL").format(sql.Literal(dim))
    return sql.SQL(", ").join([*listed, vector, sql.SQL("PRIMARY KEY (id)")])


def _condition(where: str | None, *, values: bool = False) -> sql.SQL:
    """A filter as SQL; beside ``values`` that are bound, % begins a placeholder and is written twice."""
    text = "true" if where is None else _DIALECT.compile(where)
    return sql.SQL(text.replace("%", "%%") if values else text)


_COPIED = ["int8" if name in NUMBERS else "bytea" if name in JSON else "text" for name in COLUMNS[:-1]]
_COPIED.append("bytea")  # what is in binary form already


def _binary(row: Row) -> list[Any]:
    """A row for a binary COPY: jsonb begins with its version, halfvec with its dimension and 16 bits of nothing."""
    values: list[Any] = [
        b"\x01" + str(value).encode() if name in JSON and value is not None else value
        for name, value in zip(COLUMNS[:-1], row[:-1], strict=True)
    ]
    return [*values, len(row.vector).to_bytes(2, "big") + b"\0\0" + row.vector.astype(">f2").tobytes()]


def _written(vector: NDArray[Any]) -> str:
    """A vector as pgvector reads it, exactly."""
    return "[" + ",".join(map(repr, vector.astype(np.float32).tolist())) + "]"


def _found(id: int, item: str, vector: bytes) -> Found:
    # halfvec in binary: dimension and a reserved number, 16 bits each, then the numbers, all big-endian.
    return Found(id, item, np.frombuffer(vector, dtype=">f2", offset=4).astype(np.float16))


class _PostgresDialect(TextDialect):
    """Filters in PostgreSQL's SQL."""

    def literal(self, value: Value) -> str:
        return quoted(value) if isinstance(value, str) else repr(value)

    def operand(self, field: Field) -> str:
        return field.name

    def present(self, field: Field) -> str:
        if field.path is not None:
            return f"({self._json(field)} IS NOT NULL)"
        return f"({field.name} IS NOT NULL)" if field.name in OPTIONAL else self.TRUE

    def pattern(self, column: str, pattern: str) -> str:
        return f"({column} LIKE {quoted(pattern)})"

    def glob_pattern(self, column: str, pattern: str) -> str:
        return f"({column} ~ {quoted(glob_regex(pattern))})"

    def metadata_equals(self, field: Field, value: Value) -> Condition:
        listed = ", ".join(f"{quoted(json_text(each))}::jsonb" for each in _equal(value))
        return self.matched(field, f"({self._json(field)} IN ({listed}))")

    def metadata_ordered(self, field: Field, sign: str, value: Value) -> Condition:
        kind, text = f"jsonb_typeof({self._json(field)})", f"({self._json(field)} #>> '{{}}')"
        if isinstance(value, str):
            return self.tested(field, f'{text} COLLATE "C"', sign, quoted(value), also=f"{kind} = 'string'")
        number = (
            f"(CASE {kind} WHEN 'number' THEN {text}::numeric WHEN 'boolean' THEN {text}::boolean::int END)"
        )
        return self.tested(field, number, sign, repr(value), also=f"{kind} IN ('number', 'boolean')")

    def metadata_matches(self, field: Field, pattern: str, *, glob: bool) -> Condition:
        column = self._json(field, "metadata" if glob else "metadata_folded")
        text = f"({column} #>> '{{}}')"
        test = self.glob_pattern(text, pattern) if glob else self.pattern(text, pattern)
        plain = f"(jsonb_typeof({column}) IN ('string', 'number'))"
        return Condition(f"({plain} AND {test})", f"({plain} AND NOT {test})")

    def metadata_contains(self, field: Field, value: Value) -> str:
        column = self._json(field)
        within = " OR ".join(
            f"{column} @> {quoted(json_text(each, listed=True))}::jsonb" for each in _equal(value)
        )
        return f"(jsonb_typeof({column}) = 'array' AND ({within}))"

    def _json(self, field: Field, column: str = "metadata") -> str:
        """A value of the metadata; NULL if it is missing."""
        steps = ", ".join(quoted(str(step)) for step in field.steps)
        return f"({column} #> ARRAY[{steps}])"


def _equal(value: Value) -> list[Value]:
    """A value of a filter and what equals it: TRUE and FALSE are 1 and 0."""
    return [int(value), bool(value)] if not isinstance(value, str | bytes) and value in (0, 1) else [value]


_DIALECT = _PostgresDialect()
