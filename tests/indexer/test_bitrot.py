"""One flipped bit in the items: verify finds it, repair mends it, and no answer is wrong without a word."""

import random
import shutil
import sqlite3
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest

from llm2clip.encoders import FakeEncoder
from llm2clip.indexer import (
    IndexDamagedError,
    Selection,
    build_index,
    open_index,
    remove_images,
    update_index,
)
from llm2clip.indexer.lifecycle.repair import repair_index
from llm2clip.indexer.storage.items_schema import NEVER

from .hostile import ITEMS, QUERY
from .material import numbered, put, whole

COLUMNS = ("id", "added", "removed", "source", "size", "mtime_ns", "width", "height", "checksum")
TEXTS = ("key", "path", "locator", "caption", "metadata")


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> tuple[Path, Path]:
    """An index after three generations, with tombstones and captions, never changed; and its images."""
    folder = tmp_path_factory.mktemp("made")
    photos = put(folder / "photos", numbered(range(12)))
    for number in range(12):
        (photos / f"{number:03d}.txt").write_text(f"caption of number {number}")
        (photos / f"{number:03d}.json").write_text('{"a": 1}')
    put(photos, {"bad.png": b"no image", "worse.png": b"\x89PNG"})
    build_index(photos, folder / "i", encoder=FakeEncoder())
    remove_images(folder / "i", Selection(keys=["003.png"]))
    (photos / "005.txt").write_text("another caption")
    update_index(folder / "i", encoder=FakeEncoder())
    return folder / "i", photos


@pytest.fixture
def index(made, tmp_path) -> Path:
    shutil.copytree(made[0], tmp_path / "i")
    return tmp_path / "i"


def execute(index: Path, statement: str, *values: object) -> list:
    with sqlite3.connect(index / ITEMS) as db:
        found = db.execute(statement, values).fetchall()
    db.close()
    return found


def problems(index: Path) -> tuple[str, ...]:
    with open_index(index) as opened:
        return opened.verify().problems


def one_line(attempt: Callable[[], object]) -> None:
    """An error that it ends in has one line."""
    with suppress(OneLineError):
        try:
            attempt()
        except (ValueError, OSError) as error:
            raise (OneLineError if "\n" not in str(error) else AssertionError)(str(error)) from error


class OneLineError(Exception):
    """An error as it should be."""


def mended(index: Path, photos: Path, expected: dict) -> None:
    """After a repair and an update the index holds what it held before."""
    repair_index(index)
    assert problems(index) == ()
    update_index(index, encoder=FakeEncoder())
    assert whole(index) == expected


@pytest.mark.parametrize("column", COLUMNS)
@pytest.mark.parametrize("row", ["there", "removed"])
def test_verify_finds_a_flipped_bit_in_every_number(index, made, column, row):
    expected, random_bits = whole(index), random.Random(column)
    condition = "key = '007.png'" if row == "there" else "key = '003.png'"
    for bit in (0, 62, 63, random_bits.randrange(1, 40)):
        [(value,)] = execute(index, f"SELECT {column} FROM items WHERE {condition}")
        flipped = value ^ 1 << bit if bit < 63 else value - 2**63 if value >= 0 else value + 2**63
        copy = index.parent / f"{bit}"
        shutil.copytree(index, copy)
        execute(copy, f"UPDATE OR REPLACE items SET {column} = ? WHERE {condition}", flipped)
        try:
            assert problems(copy) != (), bit
        except IndexDamagedError:
            continue
        mended(copy, made[1], expected)


@pytest.mark.parametrize("column", TEXTS)
def test_verify_finds_an_altered_text(index, made, column):
    expected = whole(index)
    execute(index, f"UPDATE items SET {column} = coalesce({column}, '') || 'x' WHERE key = '007.png'")
    assert problems(index) != ()
    mended(index, made[1], expected)


def test_verify_knows_generations_that_there_cannot_be(index, made):
    expected = whole(index)
    execute(index, "UPDATE items SET removed = ? WHERE key = '007.png'", NEVER ^ 1 << 40)
    [problem] = problems(index)
    assert problem == f"{ITEMS} has an item removed in generation {NEVER ^ 1 << 40}, which there cannot be"
    assert repair_index(index).repaired == (f"1 row of {ITEMS} restored or deleted, as there cannot be such",)
    assert whole(index) == expected
    assert update_index(index, encoder=FakeEncoder()).new == 0, "it is not added twice"


def test_repair_removes_what_may_have_been_removed(index, made):
    """A row of which nothing tells whether its image was removed: it goes, and ``update`` embeds it again."""
    expected = whole(index)
    execute(index, "UPDATE items SET removed = 5 << 40 WHERE key = '007.png'")
    assert problems(index) != ()
    assert repair_index(index).lost == 1
    assert len(whole(index)) == len(expected) - 1
    update_index(index, encoder=FakeEncoder())
    assert whole(index) == expected


def test_repair_gives_tombstones_to_vectors_without_a_row(index, made):
    expected = whole(index)
    execute(index, "DELETE FROM items WHERE key IN ('007.png', '003.png')")
    assert problems(index) != ()
    with open_index(index) as opened, pytest.raises(IndexDamagedError):
        opened.search(QUERY, k=30)
    mended(index, made[1], expected)


def test_verify_of_an_index_that_is_being_written(index):
    """A writer that has removed rows and not committed is no damage."""
    from llm2clip.indexer.lifecycle.sync import Transaction
    from llm2clip.indexer.storage.manifest import read_manifest

    with Transaction.begin(index, read_manifest(index)) as transaction:
        transaction.remove([1, 2])
        transaction.checkpoint()
        assert problems(index) == ()
        transaction.remove([4])
        transaction.checkpoint()
        assert problems(index) == ()
    assert len(whole(index)) == 11


@pytest.mark.parametrize(
    "change",
    [
        "reason = reason || 'x'",
        "stage = 'removed'",
        "size = size + 1",
        "mtime_ns = NULL",
        "source = 1",
        "added = added + 1",
        f"removed = {NEVER ^ 1 << 40}",
        "removed = 1",
        "key = 'another.png'",
        "key = CAST(x'ff41' AS TEXT)",
        "reason = CAST(x'ff41' AS TEXT)",
        "reason = x'00'",
        "size = 'x'",
    ],
)
def test_verify_finds_an_altered_row_of_an_image_that_could_not_be_read(index, made, change):
    expected = whole(index)
    execute(index, f"UPDATE errors SET {change} WHERE key = 'bad.png'")
    assert problems(index) != ()
    one_line(lambda: open_index(index).errors())
    one_line(lambda: remove_images(index, Selection(keys=["000.png"])))
    assert problems(index) != (), "what others change does not hide it"
    repair_index(index)
    assert problems(index) == ()
    update_index(index, encoder=FakeEncoder())
    del expected[0, "000.png"]
    assert {key: row for key, row in whole(index).items() if key[1] != "000.png"} == expected
    with open_index(index) as opened:
        assert {row.key for row in opened.items.errors()} >= {"worse.png"}


@pytest.mark.parametrize(
    "change",
    [
        "UPDATE items SET caption = CAST(x'ff41' AS TEXT) WHERE key = '007.png'",
        "UPDATE items SET key = CAST(x'ff41' AS TEXT) WHERE key = '007.png'",
        "UPDATE items SET metadata = CAST(x'ff41' AS TEXT) WHERE key = '007.png'",
    ],
)
def test_text_that_is_not_utf8(index, made, change):
    expected = whole(index)
    execute(index, change)
    one_line(lambda: open_index(index).search(QUERY, k=30))
    one_line(lambda: update_index(index, encoder=FakeEncoder()))
    assert any("was altered: the checksum of" in problem for problem in problems(index))
    mended(index, made[1], expected)


def test_random_bits_of_the_file(index, made, tmp_path):
    """Wherever a bit flips: nothing but errors of one line, and a repaired index is whole."""
    content, expected, chosen = (index / ITEMS).read_bytes(), whole(index), random.Random(7)
    places = [place for place, byte in enumerate(content) if byte]
    whole_again = 0
    for number in range(40):
        altered = bytearray(content)
        altered[chosen.choice(places)] ^= 1 << chosen.randrange(8)
        copy = tmp_path / str(number)
        shutil.copytree(index, copy)
        (copy / ITEMS).write_bytes(altered)
        one_line(lambda copy=copy: open_index(copy).search(QUERY, k=30, where="caption CONTAINS 'a'"))
        try:
            repair_index(copy)
            assert problems(copy) == ()
            update_index(copy, encoder=FakeEncoder())
        except IndexDamagedError:
            continue
        again = whole(copy)
        again.pop((0, "003.png"), None)  # the note that it was removed by hand may be lost
        assert again == expected
        whole_again += 1
    assert whole_again > 10
