"""docs/index-format.md: the reader that it prints reads what we write, and its tables are ours."""

import hashlib
import json
import re
import sqlite3
from dataclasses import fields
from pathlib import Path

import numpy as np
import pytest

from llm2clip.encoders import FakeEncoder
from llm2clip.indexer import add_images, build_index, compact_index, open_index, remove_images, update_index
from llm2clip.indexer.lifecycle.remove import Selection
from llm2clip.indexer.storage.manifest import Manifest

from .material import colour_of, encoded

PAGE = (Path(__file__).parents[2] / "docs" / "index-format.md").read_text("utf-8")


def printed(language: str) -> str:
    [block] = re.findall(rf"```{language}\n(.*?)```", PAGE, re.DOTALL)
    return block


@pytest.fixture
def lived(photos, shards, tmp_path):
    """An index with a history: several sources and segments, tombstones, rows of earlier generations."""
    index = tmp_path / "i"
    build_index(photos, index, encoder=FakeEncoder())
    (photos / "000.png").write_bytes(encoded((9, 9, 9)))
    (photos / "003.txt").write_text("said now")
    (photos / "006.png").unlink()
    update_index(index, encoder=FakeEncoder())
    add_images(index, [shards], encoder=FakeEncoder())
    remove_images(index, Selection(matching="summer/lake/*"))
    return index


def test_format_page_reader_finds_the_same_hits(lived):
    space: dict[str, type] = {}
    source = printed("python")
    assert len([line for line in source.splitlines() if line.strip()]) <= 30
    exec(compile(source, "docs/index-format.md", "exec"), space)
    queries = FakeEncoder().encode_images([encoded(colour_of(n)) for n in (1, 3, 13, 200)])
    for _ in range(2):
        reader = space["Reader"](lived)
        with open_index(lived) as index:
            assert index.manifest.tombstones > 0 or index.manifest.generation > 4
            found = index.search(queries, k=12)
            keys = {row.id: (row.key, row.caption) for rows in index.items.each() for row in rows}
        assert reader.keys() == keys
        for query, hits in zip(queries, found, strict=True):
            own = reader.search(query, k=12)
            assert [(key, caption) for _, key, caption in own] == [(hit.key, hit.caption) for hit in hits]
            np.testing.assert_allclose([score for score, *_ in own], [hit.score for hit in hits], atol=1e-5)
        reader.items.close()
        compact_index(lived)


def test_format_page_names_all_manifest_entries(lived):
    section = PAGE.partition("## manifest.json")[2].partition("\n## ")[0]
    rows = re.findall(r"^\| (`.*?) \| ", section, re.MULTILINE)
    named = {name for row in rows for name in re.findall(r"`(\w+)`", row)}
    ours = {field.name for field in fields(Manifest)} | {"format", "format_version", "checksum"}
    assert named == ours == json.loads((lived / "manifest.json").read_text()).keys()


def test_format_page_describes_the_checksums(lived):
    manifest = json.loads((lived / "manifest.json").read_text("utf-8"))
    checksum = manifest.pop("checksum")
    assert hashlib.sha256(json.dumps(manifest, sort_keys=True).encode()).hexdigest() == checksum
    for name, record in manifest["files"].items():
        content = (lived / name).read_bytes()
        assert (len(content), hashlib.sha256(content).hexdigest()) == (record["bytes"], record["sha256"])
    db = sqlite3.connect(lived / manifest["items_file"])
    columns = (
        "id, source, key, path, locator, size, mtime_ns, sidecars, hash, width, height, caption, metadata"
    )
    now, total = manifest["generation"], 0
    rows = db.execute(f"SELECT {columns}, checksum FROM items WHERE added <= ? AND removed > ?", (now, now))
    for *row, stored in rows.fetchall():
        row[8] = row[8].hex()
        text = json.dumps(row, ensure_ascii=False, separators=(",", ":")).encode()
        assert int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "big") >> 1 == stored
        total += stored
    assert f"{total % 2**63:016x}" == manifest["items_checksum"]
    db.close()


def test_format_page_prints_the_schema(lived):
    with open_index(lived) as index:
        [(made,)] = index.items.rows("SELECT sql FROM sqlite_schema WHERE name = 'items'")

    def columns(sql: str) -> str:
        return " ".join(re.sub(r"--.*", "", sql).replace(";", "").split())

    assert columns(printed("sql")) == columns(made)
