"""The only module that imports faiss, and the file of an exact (flat) FAISS index.

Its rows are the stored float16 vectors, so that either can be restored from the other.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterable
from importlib.util import find_spec
from io import BufferedWriter
from pathlib import Path
from types import ModuleType
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from llm2clip.common.files import create_new, regular_size
from llm2clip.common.installation import package_version
from llm2clip.indexer.core.errors import FaissNotInstalledError, IndexDamagedError


def import_faiss() -> ModuleType:
    """The faiss module of whichever wheel is installed."""
    try:
        import faiss
    except ImportError as error:
        raise FaissNotInstalledError(
            f"searching and building need FAISS, which cannot be imported ({error}). "
            "Install it: pip install 'llm2clip-retrieval[cpu]' (or [gpu])"
        ) from error
    found: ModuleType = faiss
    return found


WHEELS = ("faiss-cpu", "faiss-gpu", "faiss-gpu-cu11", "faiss-gpu-cu12", "faiss-gpu-cuvs", "faiss")
"""Distributions of the module ``faiss``; they overwrite one another."""


def wheel() -> str:
    """The installed FAISS, without importing it: ``faiss-cpu 1.15.1 (no GPU)``."""
    if find_spec("faiss") is None:
        return "none: pip install 'llm2clip-retrieval[cpu]' (or [gpu])"
    names = [f"{name} {found}" for name in WHEELS if (found := package_version(name))]
    if len(names) > 1:
        return f"{' and '.join(names)} (they overwrite each other: keep one)"
    return f"{names[0]} ({'GPU' if 'gpu' in names[0] else 'no GPU'})" if names else "not installed by pip"


def has_gpu(faiss: ModuleType) -> bool:
    """Whether this build of FAISS can use a GPU."""
    return hasattr(faiss, "StandardGpuResources")


def read_file(path: Path, *, flags: int) -> Any:  # noqa: ANN401
    """The index in a file of FAISS, which may be damaged or come from a stranger.

    No vector in it can be longer than the file, so that FAISS allocates no more than that for any.

    Raises:
        IndexDamagedError: it is none that this FAISS reads.
    """
    faiss = import_faiss()
    limits = [
        (getattr(faiss, f"get_{name}"), getattr(faiss, f"set_{name}"))
        for name in ("deserialization_vector_byte_limit", "deserialization_loop_limit")
        if hasattr(faiss, f"set_{name}")  # since FAISS 1.14
    ]
    with _READING:  # the limits are those of the process
        before = [get() for get, _ in limits]
        try:
            size = regular_size(path)
            for _, limit in limits:
                limit(size)
            return faiss.read_index(os.fspath(path), flags)
        except UNREADABLE as error:
            said = " ".join(str(error).split())[-120:]
            raise IndexDamagedError(
                f"{path} cannot be read by FAISS {faiss.__version__} ({said}). Run the build command again"
            ) from error
        finally:
            for (_, limit), value in zip(limits, before, strict=True):
                limit(value)


UNREADABLE = (
    RuntimeError,
    MemoryError,
    OSError,
    ValueError,
    LookupError,
    TypeError,
    OverflowError,
    AssertionError,
)
"""What FAISS raises for files that are not as they should be."""
_READING = threading.Lock()


def _empty(faiss: ModuleType, dim: int) -> Any:  # noqa: ANN401
    return faiss.IndexScalarQuantizer(dim, faiss.ScalarQuantizer.QT_fp16, faiss.METRIC_INNER_PRODUCT)


def write_faiss(
    path: Path, blocks: Iterable[tuple[int, NDArray[np.float16]]], *, rows: int, dim: int
) -> None:
    """Write the flat FAISS index of ``rows`` vectors to ``path``, in constant memory.

    ``blocks`` are (id of the first row, rows of shape (n, dim), float16), in order.
    """
    faiss = import_faiss()
    # Such a file is a header (number of rows at byte 8, number of bytes at its end) and the float16 rows. FAISS itself
    # would hold all of them in memory, twice.
    header = bytearray(faiss.serialize_index(_empty(faiss, dim)).tobytes())
    header[8:16] = rows.to_bytes(8, "little")
    header[-8:] = (rows * dim * 2).to_bytes(8, "little")
    with create_new(path) as new, BufferedWriter(new) as file:
        file.write(header)
        for _, block in blocks:
            file.write(np.ascontiguousarray(block, dtype="<f2").data)
        file.flush()
        os.fsync(file.fileno())
    FaissIndex.read(path, rows=rows, dim=dim)


class FaissIndex:
    """A flat FAISS index; made by ``read``."""

    def __init__(self, index: Any) -> None:  # noqa: ANN401
        self._index = index

    @classmethod
    def read(cls, path: Path, *, rows: int, dim: int) -> Self:
        """Open a FAISS index file, mapped into memory where this FAISS can; refuse other rows and dim."""
        faiss = import_faiss()
        index = read_file(path, flags=getattr(faiss, "IO_FLAG_MMAP_IFC", 0))
        kind = getattr(getattr(index, "sq", None), "qtype", None)
        found = (type(index).__name__, kind, index.ntotal, index.d, index.metric_type)
        fresh = _empty(faiss, dim)
        expected = (type(fresh).__name__, fresh.sq.qtype, rows, dim, fresh.metric_type)
        if found != expected or index.codes.size() != rows * dim * 2:
            raise IndexDamagedError(
                f"{path} does not fit the index: got (type, code, rows, dim, metric) {found}, expected {expected}. "
                "Run the build command again"
            )
        return cls(index)

    def rows(self, first: int, count: int) -> NDArray[np.float32]:
        """Some of its rows. Shape: (count, dim), float32."""
        found: NDArray[np.float32] = self._index.reconstruct_n(first, count)
        return found
