"""Where a model runs and in which arithmetic."""

from __future__ import annotations

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
