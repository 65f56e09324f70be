"""The structures that can propose candidates: their names in FAISS, their bytes, and what there is to tune."""

from __future__ import annotations

import math
from collections.abc import Mapping

from llm2clip.indexer.ann.plan import Cost, IndexKind

POINTS_PER_LIST = 48
"""Rows that each list is trained on; FAISS warns below 39."""
MIN_TRAIN = 8_192
"""Rows that codes are trained on where few lists would ask for fewer."""
GRAPH_LISTS = 16_384
"""From so many lists on, the lists themselves are found through a graph."""
LINKS = 24
"""Links of a vector in a graph; twice as many at its base."""

APPROXIMATE: tuple[IndexKind, ...] = ("ivf-sq8", "hnsw-sq8", "hnsw-fp16", "ivf-rabitq", "ivf-pq")
"""What is considered after the exact scan, the most faithful codes first where times are equal."""

SLACK: Mapping[IndexKind, int] = {
    "flat-fp16-ip": 1,
    "ivf-sq8": 2,
    "hnsw-sq8": 2,
    "hnsw-fp16": 1,
    "ivf-rabitq": 20,
    "ivf-pq": 20,
}
"""Candidates that are ranked exactly for each hit asked for, before tuning: coarse codes need many."""


def lists_for(rows: int) -> int:
    """Inverted lists for so many rows: four times the square root, at most one per 39 rows."""
    return max(1, min(round(4 * math.sqrt(rows)), rows // 39))


def factory_of(kind: IndexKind, *, rows: int, dim: int) -> str:
    """Its name in FAISS's ``index_factory``."""
    lists = lists_for(rows)
    inverted = f"IVF{lists}_HNSW32" if lists >= GRAPH_LISTS else f"IVF{lists}"
    return {
        "flat-fp16-ip": "SQfp16",
        "ivf-sq8": f"{inverted},SQ8",
        "ivf-rabitq": f"RR{dim},{inverted},RaBitQfs",
        "ivf-pq": f"{inverted},PQ{_sub_vectors(dim)}x4fs",
        "hnsw-sq8": f"HNSW{LINKS},SQ8",
        "hnsw-fp16": f"HNSW{LINKS},SQfp16",
    }[kind]


def unsupported_reason(kind: IndexKind, *, rows: int, dim: int) -> str | None:
    """Why a kind cannot be made for such vectors; None if it can."""
    if kind.startswith("ivf") and rows < 39 * 16:
        return f"{rows:,} vectors are too few for lists"
    if kind == "ivf-pq" and dim % 2:
        return f"length {dim} cannot be cut into equal parts"
    if kind == "ivf-rabitq" and dim % 8:
        return f"length {dim} is no multiple of 8"
    return None


def parameters_of(kind: IndexKind, *, rows: int) -> dict[str, int]:
    """Parameters before tuning."""
    lists = lists_for(rows)
    train = min(rows, max(MIN_TRAIN, POINTS_PER_LIST * lists))
    if kind.startswith("ivf"):
        return {"lists": lists, "train_rows": train, "probes": max(1, lists // 64), "seed": 0}
    if kind.startswith("hnsw"):
        return {
            "links": LINKS,
            "train_rows": min(rows, MIN_TRAIN),
            "build_effort": 80,
            "probes": 64,
            "seed": 0,
        }
    return {}


def estimate_cost(kind: IndexKind, *, rows: int, dim: int) -> Cost:
    """Bytes while searching and at the peak of building; the rest has to be tried."""
    size = _bytes(kind, rows=rows, dim=dim)
    if kind == "flat-fp16-ip":
        return Cost(bytes=size, build_bytes=0)
    sample = parameters_of(kind, rows=rows)["train_rows"] * dim * 4
    # Lists grow by doubling and are written through a copy of one list at a time; graphs are sized once.
    grown = 1.5 if kind.startswith("ivf") else 1.1
    return Cost(bytes=size, build_bytes=int(max(2 * sample, size * grown)) + 64_000_000)


def _bytes(kind: IndexKind, *, rows: int, dim: int) -> int:
    lists = lists_for(rows)
    codes = {
        "flat-fp16-ip": 2 * dim,
        "ivf-sq8": dim + 8,
        "ivf-rabitq": math.ceil(dim / 8) + 8 + 8,
        "ivf-pq": math.ceil(_sub_vectors(dim) / 2) + 8,
        "hnsw-sq8": dim + _links(),
        "hnsw-fp16": 2 * dim + _links(),
    }[kind]
    size = rows * codes
    if kind.startswith("ivf"):
        size += lists * dim * 4 + (lists * 32 * 2 * 4 if lists >= GRAPH_LISTS else 0)
    if kind in ("ivf-rabitq", "ivf-pq"):
        size += lists * 16 * (codes - 8)  # lists are filled up to blocks of 32
    if kind == "ivf-rabitq":
        size += dim * dim * 4
    return size


def _links() -> int:
    # Two rows of links at the base, one for each level above (a share of 1 in LINKS - 1), level and offset.
    return LINKS * 2 * 4 + round(LINKS * 4 / (LINKS - 1)) + 12


def _sub_vectors(dim: int) -> int:
    """Parts of a product quantiser with four bits each: a bit per two numbers where the length allows."""
    return next(parts for parts in (dim // 4, dim // 2, dim) if parts and dim % parts == 0)
