"""ANN index files that are damaged or were made by a stranger: errors of one line, or hits of the index."""

import random
import shutil
from pathlib import Path

import numpy as np
import pytest

from llm2clip.indexer import IndexDamagedError, open_index
from llm2clip.indexer.ann.faiss_flat import import_faiss
from llm2clip.indexer.ann.index_types import APPROXIMATE, plan_for
from llm2clip.indexer.ann.plan import Budget
from llm2clip.indexer.planner.plan_index import make_ann

from .hostile import alter_manifest
from .material import clustered, unit, write_index

ROWS, DIM = 1_500, 16
QUERIES = unit(np.random.default_rng(0).standard_normal((4, DIM)))


@pytest.fixture(scope="module", params=APPROXIMATE)
def made(request, tmp_path_factory) -> Path:
    """An index of 1,500 rows with an ANN index of a type."""
    folder = tmp_path_factory.mktemp("made") / request.param

    def planner(path, vectors):
        plan = plan_for(request.param, rows=len(vectors), dim=vectors.dim, budget=Budget())
        return make_ann(path, vectors, plan=plan).to_json()

    write_index(folder, clustered(ROWS, DIM, seed=1), planner=planner).close()
    return folder


@pytest.fixture
def index(made, tmp_path) -> Path:
    shutil.copytree(made, tmp_path / "i")
    return tmp_path / "i"


def found(index: Path) -> object:
    """Hits with and without a filter, or the error."""
    said = ""
    try:
        with open_index(index) as opened:
            plain = opened.search(QUERIES, k=5)
            filtered = opened.search(QUERIES, k=5, where="width > 1 AND width < 1200")
            opened.verify()
    except IndexDamagedError as error:
        said = str(error)
    assert "\n" not in said
    return None if said else [[(hit.key, hit.score) for hit in hits] for hits in (*plain, *filtered)]


def exact(index: Path) -> dict[str, np.ndarray]:
    """The scores of every row, by key."""
    with open_index(index) as opened:
        rows = opened.vectors.take(np.arange(ROWS)).astype(np.float64)
    return {f"{n}.png": QUERIES.astype(np.float64) @ row for n, row in enumerate(rows)}


def test_altered_files_end_in_a_line_or_in_right_scores(index):
    path = next(index.glob("candidates-*.faiss"))
    content, chosen, scores = path.read_bytes(), random.Random(5), exact(index)
    # Words that FAISS takes for sizes, numbers of lists, or neighbours.
    words = (b"\xff\xff\xff\x7f", b"\xff\xff\xff\xff", b"\0\0\0\x80", b"\x10\x27\0\0")
    refused = 0
    for number in range(60):
        altered = bytearray(content)
        if number % 3 == 0:
            altered[chosen.randrange(len(altered))] ^= 1 << chosen.randrange(8)
        else:
            end = 400 if number % 3 == 1 else len(altered) - 8
            place = chosen.randrange(0, end) & ~3
            altered[place : place + 4] = chosen.choice(words)
        path.write_bytes(altered)
        answers = found(index)
        refused += answers is None
        for query, hits in enumerate(answers or ()):
            assert all(abs(scores[key][query % 4] - score) < 1e-6 for key, score in hits)
    assert refused > 3


@pytest.mark.parametrize("cut", [0, 3, 40, 500])
def test_a_file_that_was_cut_is_refused_whatever_the_manifest_says(index, cut):
    path = next(index.glob("candidates-*.faiss"))
    path.write_bytes(path.read_bytes()[:cut])
    alter_manifest(index, lambda content: content["files"][path.name].update(bytes=cut))
    assert found(index) is None


def test_a_size_beyond_the_file_is_not_allocated(index):
    """Without the limit FAISS would first make room for it: 2^36 numbers."""
    path = next(index.glob("candidates-*.faiss"))
    content = bytearray(path.read_bytes())
    faiss = import_faiss()
    before = faiss.get_deserialization_vector_byte_limit()
    sizes = [place for place in range(30, 400) if content[place : place + 8] == (51).to_bytes(8, "little")]
    for place in sizes[:3] or [45]:
        altered = bytearray(content)
        altered[place : place + 8] = (2**36).to_bytes(8, "little")
        path.write_bytes(altered)
        found(index)
    assert faiss.get_deserialization_vector_byte_limit() == before


@pytest.mark.parametrize(
    "change",
    [
        {"factory": "IVF1000000000,SQ8"},
        {"factory": "no such"},
        {"factory": 5},
        {"parameters": {"probes": "x"}},
        {"parameters": {"probes": -5}},
        {"parameters": {}},
        {"parameters": []},
        {"rows": 7},
        {"predicted": {"bytes": "x", "build_bytes": 1, "recall": None, "p50_ms": None, "p95_ms": None}},
        {"considered": [5]},
        {"budget": {"ram": "x", "recall": 0.9, "p95_ms": 1}},
        {"why": 7},
    ],
)
def test_plans_of_a_stranger_end_in_a_line(index, change):
    alter_manifest(index, lambda content: content["ann"]["plan"].update(change))
    said = ""
    try:
        with open_index(index) as opened:
            opened.search(QUERIES, k=5)
            opened.explain()
    except ValueError as error:
        said = str(error)
    assert "\n" not in said
    assert said or change == {"parameters": {}}
