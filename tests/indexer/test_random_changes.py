"""Random changes of an index, and after each of them random searches, against a brute force over the images."""

import random
from collections import Counter
from collections.abc import Callable, Mapping
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from llm2clip.indexer import (
    BuildOptions,
    Index,
    Selection,
    add_images,
    build_index,
    compact_index,
    open_index,
    remove_images,
    update_index,
)
from llm2clip.indexer.ann import nearest_neighbors
from llm2clip.indexer.ann.index_types import estimate_cost
from llm2clip.indexer.ann.plan import Budget, Plan
from llm2clip.indexer.planner.plan_index import write_ann
from llm2clip.indexer.storage.vector_segments import Vectors

from .crashing import DIM, QuickEncoder, vector_of
from .material import unit

ROUNDS = 25
Images = Mapping[str, bytes]
"""Key -> content of every image that an index should hold."""
Passes = Callable[[str, bytes, Counter[bytes]], bool]


def width_of(content: bytes) -> int:
    return 1 + len(content) % 50


FILTERS: Mapping[str | None, Passes] = {
    None: lambda *_: True,
    "width >= 25": lambda key, content, copies: width_of(content) >= 25,
    "key LIKE 'a/%' OR width = 3": lambda key, content, copies: key[:2] == "a/" or width_of(content) == 3,
    "copies > 1": lambda key, content, copies: copies[content] > 1,
    "NOT (copies > 1 AND width < 30)": lambda _, content, copies: (
        not (copies[content] > 1 and width_of(content) < 30)
    ),
    "width < 1": lambda *_: False,
}


def everything_proposed(path: Path, vectors: Vectors) -> Mapping[str, Any]:
    """Lists that are all looked into, and all rows ranked: approximate by kind, exact in what it answers."""
    plan = Plan(
        kind="ivf-sq8",
        factory="IVF2,SQ8",
        parameters={"nlist": 2, "train_rows": len(vectors), "nprobe": 2, "refine": 10**6, "seed": 0},
        rows=len(vectors),
        dim=DIM,
        budget=Budget(),
        predicted=estimate_cost("ivf-sq8", rows=len(vectors), dim=DIM),
    )
    write_ann(path, vectors, plan=plan)
    return plan.to_json()


class Life:
    """A folder, its index, and what that should hold."""

    def __init__(self, work: Path, *, seed: int, planner: Callable[..., Any] | None) -> None:
        self.random, self.planner = random.Random(seed), planner
        self.folder, self.index = work / "images", work / "index"
        self.options = BuildOptions(workers=1, batch_size=16, planner=planner)
        self.out: set[str] = set()
        self.serial = 0
        for _ in range(60):
            self.write()
        build_index(self.folder, self.index, encoder=QuickEncoder(), options=self.options)

    def write(self, key: str | None = None) -> str:
        """An image, every third of one of a few contents."""
        self.serial += 1
        number = self.random.randrange(8) if self.random.random() < 0.3 else 100 + self.serial
        file = self.folder / (key or f"{self.random.choice('ab')}/{self.serial:04d}.png")
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(f"{number:05d}".encode() * (1 + number % 17))
        return file.relative_to(self.folder).as_posix()

    def there(self) -> dict[str, bytes]:
        files = ((file.relative_to(self.folder).as_posix(), file) for file in self.folder.rglob("*.png"))
        return {key: file.read_bytes() for key, file in sorted(files) if key not in self.out}

    def change(self) -> None:
        """One change of the index."""
        what = self.random.choice(
            [self.add, self.add, self.update, self.remove, self.remove_some, self.compact]
        )
        what()

    def add(self) -> None:
        keys = [self.write() for _ in range(self.random.randint(1, 9))]
        if self.out and self.random.random() < 0.5:
            keys.append(self.random.choice(sorted(self.out)))
            self.out.discard(keys[-1])
        paths = [self.folder / key for key in keys]
        add_images(self.index, paths, encoder=QuickEncoder(), options=self.options)

    def update(self) -> None:
        some = self.random.sample(sorted(self.there()), 6)
        for key in some[:2]:
            self.write(key)
        for key in some[2:4]:
            (self.folder / key).unlink()
        for key in some[4:]:
            (self.folder / key).rename(self.folder / f"a/moved{self.serial:04d}{Path(key).name}")
        self.write()
        update_index(self.index, encoder=QuickEncoder(), options=self.options)

    def remove(self) -> None:
        keys = self.random.sample(sorted(self.there()), 4)
        self.out.update(keys)
        remove_images(self.index, Selection(keys=keys))

    def remove_some(self) -> None:
        chosen = [key for key, content in self.there().items() if width_of(content) == 36]
        self.out.update(chosen)
        remove_images(self.index, Selection(where="width = 36"))

    def compact(self) -> None:
        compact_index(self.index, planner=self.planner)


def check(index: Index, images: Images, queries: np.ndarray, *, k: int, where: str | None) -> None:
    copies = Counter(images.values())
    passing = [key for key, content in images.items() if FILTERS[where](key, content, copies)]
    stored = {key: np.frombuffer(vector_of(images[key]), np.float16).astype(np.float64) for key in passing}
    for query, hits in zip(queries, index.search(queries, k=k, where=where), strict=True):
        scores = {key: np.float32(vector @ query.astype(np.float64)) for key, vector in stored.items()}
        assert len({hit.key for hit in hits}) == len(hits) == min(k, len(passing))
        # Images of one content are equally near: which of them are named is for their ids to say.
        for hit in hits:
            assert hit.score == pytest.approx(scores[hit.key], abs=1e-6)
            assert hit.width == width_of(images[hit.key])
        best = sorted(scores.values(), reverse=True)[:k]
        np.testing.assert_allclose([hit.score for hit in hits], best, atol=1e-6)
        assert [(-hit.score, hit.id) for hit in hits] == sorted((-hit.score, hit.id) for hit in hits)


@pytest.mark.parametrize("planner", [None, everything_proposed], ids=["exact", "lists and a tail"])
@pytest.mark.parametrize("seed", [0, 1])
def test_search_equals_brute_force_after_random_changes(tmp_path, seed, planner, monkeypatch):
    life = Life(tmp_path, seed=seed, planner=planner)
    draw = np.random.default_rng(seed)
    seen: Counter[str] = Counter()
    with ExitStack() as stack:
        before: list[tuple[Index, Images]] = []
        for _ in range(ROUNDS):
            life.change()
            now = stack.enter_context(closing(open_index(life.index)))
            before = [*before[-3:], (now, life.there())]
            assert len(now) == len(life.there())
            seen["tombstones"] += bool(now.manifest.tombstones)
            seen["tail"] += now.info().tail > 0
            seen["segments"] += len(now.manifest.segments) > 1
            for index, images in before:  # those opened before the last changes answer as they did
                monkeypatch.setattr(nearest_neighbors, "SCAN_ROWS", life.random.choice([0, 20_000]))
                queries = unit(draw.standard_normal((life.random.choice([1, 3, 30]), DIM)))
                where = life.random.choice(list(FILTERS))
                check(index, images, queries, k=life.random.choice([1, 7, 1000]), where=where)
    assert min(seen["tombstones"], seen["tail"], seen["segments"]) >= 5
