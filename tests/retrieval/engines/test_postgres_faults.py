"""What is said and what is left when PostgreSQL is away, loses a connection, or holds something else."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest

from llm2clip.encoders import FakeEncoder
from llm2clip.indexer import IndexNotFoundError, build_index
from llm2clip.indexer.core.address import Address, as_address
from llm2clip.indexer.engines import remote_index
from llm2clip.indexer.engines.export import export_to_engine
from llm2clip.indexer.engines.opening import open_anywhere
from llm2clip.indexer.engines.table import EngineError

psycopg = pytest.importorskip("psycopg", reason="not installed: pip install 'llm2clip-retrieval[servers]'")


@pytest.fixture
def admin(postgres: str) -> Iterator[psycopg.Connection]:
    with psycopg.connect(postgres, autocommit=True) as connection:
        connection.execute("DROP TABLE IF EXISTS faulty, faulty__draft")
        yield connection


@pytest.fixture
def address(postgres: str, admin: object, monkeypatch: pytest.MonkeyPatch) -> Address:
    monkeypatch.setattr(remote_index, "WAITS", (0.0, 0.0))
    head, _, query = postgres.partition("?")
    found = as_address(f"{head}/faulty?{query}")
    assert found is not None
    return found


def end_others(admin: psycopg.Connection) -> None:
    admin.execute(
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE pid <> pg_backend_pid() AND datname IS NOT NULL"
    )


def test_open_says_in_one_line_that_a_server_is_away_and_no_password():
    with pytest.raises(
        EngineError, match=r"^cannot reach postgresql://ann@127\.0\.0\.1:1/photos/vectors: "
    ) as caught:
        open_anywhere(as_address("postgresql://ann:s3cret@127.0.0.1:1/photos/vectors"))
    assert "s3cret" not in str(caught.value)
    assert "\n" not in str(caught.value)
    assert "s3cret" not in repr(
        as_address("postgresql://ann:s3cret@127.0.0.1:1/photos/vectors?password=s3cret")
    )


def test_open_refuses_an_unknown_user_at_once(postgres, address):
    with pytest.raises(EngineError, match="nobody"):
        open_anywhere(as_address(postgres.replace("postgres:@", "nobody:s3cret@").replace("?", "/faulty?")))


def test_open_refuses_a_table_of_someone_else(admin, address):
    with pytest.raises(IndexNotFoundError, match="does not exist"):
        open_anywhere(address)
    admin.execute("CREATE TABLE faulty (id bigint)")
    with pytest.raises(EngineError, match="is not an index that llm2clip-index export wrote"):
        open_anywhere(address)


def test_search_goes_on_after_a_lost_connection_and_says_when_the_table_was_dropped(
    admin, address, album_index
):
    export_to_engine(album_index, address)
    index = open_anywhere(address)
    query = np.eye(1, index.manifest.dim, dtype=np.float32)
    before = index.search(query, k=5)
    end_others(admin)
    assert index.search(query, k=5) == before
    admin.execute("DROP TABLE faulty")
    with pytest.raises(EngineError, match="is no longer there: it was dropped"):
        index.search(query, k=5)
    index.close()


def test_export_leaves_the_table_as_it_was_when_a_sync_is_cut(admin, address, album, tmp_path, monkeypatch):
    build_index(album, tmp_path / "i", encoder=FakeEncoder())
    export_to_engine(tmp_path / "i", address)
    from llm2clip.indexer.engines.postgres import PostgresTable
    from llm2clip.indexer.lifecycle.remove import Selection, remove_images

    remove_images(tmp_path / "i", Selection(matching="summer/*"))
    delete = PostgresTable.delete

    def cut(table: PostgresTable, ids: list[int]) -> None:
        delete(table, ids)
        end_others(admin)

    monkeypatch.setattr(PostgresTable, "delete", cut)
    with pytest.raises(EngineError, match="the connection was lost; the table is as it was"):
        export_to_engine(tmp_path / "i", address, sync=True)
    monkeypatch.undo()
    index = open_anywhere(address)
    assert len(index) == index.count() == 49
    index.close()
    assert export_to_engine(tmp_path / "i", address, sync=True).deleted > 10


def test_export_continues_in_a_first_export_after_a_lost_connection(admin, address, album_index, monkeypatch):
    from llm2clip.indexer.engines.postgres import PostgresTable

    monkeypatch.setattr(PostgresTable, "batch", 16)
    upsert, cuts = PostgresTable.upsert, []

    def cut(table: PostgresTable, rows: list[object]) -> None:
        if len(cuts) < 2:
            cuts.append(len(rows))
            end_others(admin)
        upsert(table, rows)

    monkeypatch.setattr(PostgresTable, "upsert", cut)
    assert export_to_engine(album_index, address).items == 49
    assert admin.execute("SELECT count(*) FROM faulty").fetchone() == (49,)
