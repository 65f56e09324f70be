"""Where a model runs and in which arithmetic."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import torch

_DTYPES = ("float32", "float16", "bfloat16")


def pick_device(name: str) -> torch.device:
    """The device of that name; ``"auto"`` is CUDA where there is any, else the CPU.

    Raises:
        ValueError: There is no such device.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ValueError(f"unknown device {name!r}, expected 'auto', 'cpu', 'cuda', 'cuda:1', ...") from error
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise ValueError(
            f"device {name!r} is not there: torch sees {torch.cuda.device_count()} CUDA devices; use 'cpu'"
        )
    return device


def pick_dtype(name: str, *, device: torch.device, stored: str) -> torch.dtype:
    """The dtype of that name; ``"auto"`` is float32 on a CPU (fastest there), else ``stored``.

    Raises:
        ValueError: There is no such dtype.
    """
    if name == "auto":
        name = "float32" if device.type == "cpu" else stored
    if name not in _DTYPES:
        raise ValueError(f"unknown dtype {name!r}, expected 'auto' or one of {', '.join(_DTYPES)}")
    dtype: torch.dtype = getattr(torch, name)
    return dtype


_FLAGS = frozenset({"amx_bf16", "avx512_bf16", "bf16"})
"""What processors that multiply bfloat16 say of themselves: Intel, AMD, ARM."""


@cache
def quick_dtype(*, processor: Path = Path("/proc/cpuinfo")) -> str | None:
    """The dtype in which the processor of this machine multiplies much faster than in float32; ``None`` if none is.

    Where a processor does not multiply bfloat16 itself, it is many times slower than float32. Where there is CUDA,
    models do not run on the processor.
    """
    if torch.cuda.is_available():
        return None
    try:
        lines = processor.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return None
    flags = next((line for line in lines if line.lower().startswith(("flags", "features"))), "")
    return "bfloat16" if _FLAGS & set(flags.split()) else None
