"""Vectors of texts on the disk: read again, bounded, and never trusted where they are damaged or another user's."""

from __future__ import annotations

import io
import sqlite3
import stat
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from typer.testing import Result

from llm2clip.encoders import FakeEncoder
from llm2clip.retrieval.commands import SearchRequest, run
from llm2clip.retrieval.query.vector_cache import VectorCache

from .conftest import Corpus


class Counting(FakeEncoder):
    """Notes which texts it encoded."""

    asked: list[str]

    def _text_batch(self, texts: list[str]) -> np.ndarray:
        self.asked = [*getattr(self, "asked", []), *texts]
        return super()._text_batch(texts)


def check(
    cache: VectorCache, texts: list[str], *, encoded: list[str], encoder: Counting | None = None
) -> None:
    """The vectors are those of the encoder, which was asked for some of the texts only."""
    encoder = encoder or Counting()
    assert np.array_equal(cache.encode(texts, encoder=encoder), FakeEncoder().encode_texts(texts))
    assert sorted(getattr(encoder, "asked", [])) == sorted(encoded)


def test_vector_cache_encodes_a_text_once(tmp_path: Path):
    cache = VectorCache(tmp_path / "new" / "queries")
    check(cache, ["red", "蓝色", "red"], encoded=["red", "蓝色"])
    check(VectorCache(tmp_path / "new" / "queries"), ["蓝色", "green", "red"], encoded=["green"])
    assert stat.S_IMODE((tmp_path / "new" / "queries").stat().st_mode) == 0o700
    assert "蓝色".encode() not in (tmp_path / "new" / "queries" / "vectors.db").read_bytes()


def test_vector_cache_tells_encoders_apart_but_not_their_names(tmp_path: Path):
    cache = VectorCache(tmp_path / "queries")
    check(cache, ["red"], encoded=["red"])
    check(cache, ["red"], encoded=[], encoder=Counting(name="other"))
    other = FakeEncoder(seed=1)
    assert np.array_equal(cache.encode(["red"], encoder=other), other.encode_texts(["red"]))


def test_vector_cache_removes_the_older_half_at_its_limit(tmp_path: Path):
    row = 4 * FakeEncoder().info.dim
    cache = VectorCache(tmp_path / "queries", most_bytes=4 * row)
    for number in range(5):
        cache.encode([f"text {number}"], encoder=FakeEncoder())
    with sqlite3.connect(tmp_path / "queries" / "vectors.db") as file:
        assert file.execute("SELECT count(*) FROM vectors").fetchone() == (2,)
    file.close()
    check(cache, ["text 3", "text 4"], encoded=[])


@pytest.mark.parametrize("damage", ["vector", "length", "type", "file", "half", "table"])
def test_vector_cache_notices_damage(tmp_path: Path, damage: str):
    cache, place = VectorCache(tmp_path / "queries"), tmp_path / "queries" / "vectors.db"
    cache.encode(["red"], encoder=FakeEncoder())
    if damage in ("file", "half"):
        data = place.read_bytes()
        place.write_bytes(b"no database" * 500 if damage == "file" else data[: len(data) // 2])
    else:
        change = {
            "vector": "UPDATE vectors SET vector = zeroblob(length(vector))",
            "length": "UPDATE vectors SET vector = x'00'",
            "type": "UPDATE vectors SET vector = 7",
            "table": "ALTER TABLE vectors RENAME COLUMN sum TO other",
        }[damage]
        file = sqlite3.connect(place)
        file.execute(change)
        file.commit()
        file.close()
    check(cache, ["red"], encoded=["red"])
    if damage != "table":
        check(cache, ["red"], encoded=[])


@pytest.mark.parametrize("place", ["others may enter", "link", "file", "read-only"])
def test_vector_cache_is_not_used_where_others_may_write(tmp_path: Path, place: str):
    folder = tmp_path / "queries"
    if place == "others may enter":
        folder.mkdir(mode=0o755)
        folder.chmod(0o755)
    elif place == "link":
        (tmp_path / "other").mkdir(mode=0o700)
        folder.symlink_to(tmp_path / "other")
    elif place == "file":
        folder.write_text("")
    else:
        folder = Path("/proc/queries")
    for _ in range(2):
        check(VectorCache(folder), ["red"], encoded=["red"])
    assert list(tmp_path.rglob("vectors.db")) == []


def test_vector_cache_does_without_a_busy_file(tmp_path: Path):
    cache = VectorCache(tmp_path / "queries")
    check(cache, ["red"], encoded=["red"])
    other = sqlite3.connect(tmp_path / "queries" / "vectors.db", isolation_level=None)
    other.execute("BEGIN EXCLUSIVE")
    check(cache, ["red"], encoded=["red"])
    other.execute("ROLLBACK")
    other.close()
    check(cache, ["red"], encoded=[])


def test_search_command_keeps_the_vectors_of_queries(
    corpus: Corpus, search: Callable[..., Result], data_home: Path
):
    first = search("red", "--json", "--index", corpus.index)
    file = sqlite3.connect(data_home / "queries" / "vectors.db")
    assert file.execute("SELECT count(*) FROM vectors").fetchone() == (1,)
    file.close()
    assert search("red", "--json", "--index", corpus.index).stdout == first.stdout


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.usefixtures("fake_by_name")
def test_run_tells_a_terminal_what_takes_long(corpus: Corpus, monkeypatch: pytest.MonkeyPatch):
    """The first search encodes captions, and more than 64 queries are counted."""
    texts = tuple(f"red {number}" for number in range(65))
    request = SearchRequest(texts=texts, each=True, indexes=(str(corpus.index),), output="paths")
    monkeypatch.setenv("TERM", "xterm")
    said = []
    for _ in range(2):
        monkeypatch.setattr(sys, "stderr", Terminal())
        assert run(request)
        said.append(sys.stderr.getvalue())  # type: ignore[attr-defined]
    assert [text.count("encoding 306 captions, once for this encoder") for text in said] == [1, 0]
    assert all("65/65" in text for text in said)
