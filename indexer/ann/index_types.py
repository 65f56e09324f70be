"""The types of ANN index: their FAISS factory strings, sizes and parameters."""

from __future__ import annotations

import math

from llm2clip.indexer.ann.plan import Budget, Cost, IndexType, Plan

POINTS_PER_LIST = 48
"""Training rows per inverted list; FAISS warns below 39."""
MIN_TRAIN = 8_192
"""Minimum number of training rows."""
GRAPH_LISTS = 16_384
"""From so many lists on, an HNSW graph over the centroids finds the lists to probe."""
M = 24
"""Links per vector of an HNSW graph; twice as many at its base layer."""
EF_CONSTRUCTION = 80

APPROXIMATE: tuple[IndexType, ...] = ("ivf-sq8", "hnsw-sq8", "hnsw-fp16", "ivf-rabitq", "ivf-pq")
"""In the order in which they are tried: the least compressed first where latencies are equal."""


def nlist_for(rows: int) -> int:
    """Number of inverted lists: four times the square root of the rows, at most one per 39 rows."""
    return max(1, min(round(4 * math.sqrt(rows)), rows // 39))


def factory_of(kind: IndexType, *, rows: int, dim: int) -> str:
    """The factory string for FAISS's ``index_factory``."""
    nlist = nlist_for(rows)
    inverted = f"IVF{nlist}_HNSW32" if nlist >= GRAPH_LISTS else f"IVF{nlist}"
    return {
        "flat-fp16-ip": "SQfp16",
        "ivf-sq8": f"{inverted},SQ8",
        "ivf-rabitq": f"RR{dim},{inverted},RaBitQfs",
        "ivf-pq": f"{inverted},PQ{_sub_vectors(dim)}x4fs",
        "hnsw-sq8": f"HNSW{M},SQ8",
        "hnsw-fp16": f"HNSW{M},SQfp16",
    }[kind]


def unsupported_reason(kind: IndexType, *, rows: int, dim: int) -> str | None:
    """Why a type cannot be built for such vectors; None if it can."""
    if kind.startswith("ivf") and rows < 39 * 16:
        return f"{rows:,} vectors are too few for inverted lists"
    if kind == "ivf-pq" and dim % 2:
        return f"dimension {dim} cannot be split into equal parts"
    if kind == "ivf-rabitq" and dim % 8:
        return f"dimension {dim} is not a multiple of 8"
    return None


def parameters_of(kind: IndexType, *, rows: int) -> dict[str, int]:
    """Parameters before tuning."""
    nlist = nlist_for(rows)
    if kind.startswith("ivf"):
        train = min(rows, max(MIN_TRAIN, POINTS_PER_LIST * nlist))
        return {"nlist": nlist, "train_rows": train, "nprobe": max(1, nlist // 64), "seed": 0}
    if kind.startswith("hnsw"):
        train = min(rows, MIN_TRAIN)
        return {"M": M, "train_rows": train, "ef_construction": EF_CONSTRUCTION, "ef_search": 64, "seed": 0}
    return {}


def effort_name(kind: IndexType) -> str:
    """The parameter that trades latency for recall: ``nprobe`` or ``ef_search``."""
    return "ef_search" if kind.startswith("hnsw") else "nprobe"


def estimate_cost(kind: IndexType, *, rows: int, dim: int) -> Cost:
    """Memory while searching and while building; recall and latency have to be measured."""
    size = _bytes(kind, rows=rows, dim=dim)
    if kind == "flat-fp16-ip":
        return Cost(bytes=size, build_bytes=0)
    sample = parameters_of(kind, rows=rows)["train_rows"] * dim * 4
    # Inverted lists grow by doubling and are written through a copy of one list; graphs are allocated once.
    grown = 1.5 if kind.startswith("ivf") else 1.1
    return Cost(bytes=size, build_bytes=int(max(2 * sample, size * grown)) + 64_000_000)


def _bytes(kind: IndexType, *, rows: int, dim: int) -> int:
    nlist = nlist_for(rows)
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
        size += nlist * dim * 4 + (nlist * 32 * 2 * 4 if nlist >= GRAPH_LISTS else 0)
    if kind in ("ivf-rabitq", "ivf-pq"):
        size += nlist * 16 * (codes - 8)  # lists are padded to blocks of 32
    if kind == "ivf-rabitq":
        size += dim * dim * 4
    return size


def _links() -> int:
    # 2 M links at the base layer, M at each layer above (1 vector in M - 1), layer and offset.
    return M * 2 * 4 + round(M * 4 / (M - 1)) + 12


def _sub_vectors(dim: int) -> int:
    """Sub-vectors of a product quantiser with four bits each: one bit per two dimensions where that divides evenly."""
    return next(parts for parts in (dim // 4, dim // 2, dim) if parts and dim % parts == 0)


def plan_for(kind: IndexType, *, rows: int, dim: int, budget: Budget) -> Plan:
    """A plan with the parameters before tuning."""
    return Plan(
        kind=kind,
        factory=factory_of(kind, rows=rows, dim=dim),
        parameters=parameters_of(kind, rows=rows),
        rows=rows,
        dim=dim,
        budget=budget,
        predicted=estimate_cost(kind, rows=rows, dim=dim),
    )
