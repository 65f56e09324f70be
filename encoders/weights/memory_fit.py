"""Choose the precision in which a language model fits into free memory.

Language models are the large part of LLM2CLIP: 15 GB in bfloat16. Only their matrices are quantised; the token table
stays in bfloat16.
"""

from __future__ import annotations

import ctypes
import logging
import sys
from dataclasses import dataclass
from typing import Literal, Protocol, cast, get_args

import torch

from llm2clip.common.files import format_bytes, free_memory
from llm2clip.encoders.catalog.entries import Choice
from llm2clip.encoders.core.dual_encoder import pick_dtype
from llm2clip.encoders.core.errors import ModelError
from llm2clip.encoders.layers.transformers_modules import has_torchao

_SPARE = 1_000_000_000
"""Bytes kept free for the computation of a batch."""
_MARGIN = 1.15
"""Peak while loading, in multiples of the weights."""
_EXACT: frozenset[Choice] = frozenset({"float32", "bfloat16", "float16"})

log = logging.getLogger("llm2clip.encoders")


class Sized(Protocol):
    """A language model whose memory is known: an entry's shape, or opened files."""

    def memory(self, choice: Choice, /) -> int:
        """Bytes of its weights when loaded as ``choice``."""


@dataclass(frozen=True)
class Need:
    """Memory of a language model in one precision."""

    choice: Choice
    """The precision."""
    weights: int
    """Bytes of its weights."""

    @property
    def total(self) -> int:
        """Bytes to load it and read a batch."""
        return int(self.weights * _MARGIN) + _SPARE


def choices() -> tuple[Choice, ...]:
    """All precisions of a language model."""
    return get_args(Choice)


def needs(shape: Sized, *, stored: str, device: torch.device) -> list[Need]:
    """The precisions to choose from on a device, the most precise first; of equals the fastest.

    float32 comes first on a CPU if the weights are stored so, or if the CPU has no bfloat16 instructions: it is then
    several times as fast. Elsewhere no precision above the stored one is offered. int8 and int4 need torchao.
    """
    order: list[Choice] = ["bfloat16"] if stored != "float16" else ["float16"]
    if device.type == "cpu":
        wide = stored == "float32" or not has_bfloat16()
        order = ["float32", *order] if wide else [*order, "float32"]
    if has_torchao():
        order += ["int8", "int4"]
    return [Need(choice, shape.memory(choice)) for choice in order]


def pick_choice(
    shape: Sized, *, name: str, stored: str, device: torch.device, free: int | None = None
) -> Choice:
    """The most precise form that fits into memory; logs a warning if that is less than what is stored."""
    free = device_memory(device) if free is None else free
    ways = needs(shape, stored=stored, device=device)
    if free is None:
        return ways[0].choice
    fitting = [way for way in ways if way.total <= free]
    if not fitting:
        raise ModelError(_refusal(ways, name=name, device=device, free=free))
    picked = fitting[0]
    taken = f"{format_bytes(picked.weights)} of {format_bytes(free)} free on {device}"
    said = f"{name} is loaded as {picked.choice} ({taken})"
    if picked.choice not in _EXACT:
        dearest = min(way.total for way in ways if way.choice in _EXACT)
        log.warning("%s: as stored it takes %s; answers differ a little", said, format_bytes(dearest))
    else:
        log.info("%s", said)
    return picked.choice


def check_choice(shape: Sized, choice: Choice, *, name: str, device: torch.device) -> None:
    """Refuse a precision whose weights alone need more memory than is free."""
    free, need = device_memory(device), shape.memory(choice)
    if free is not None and need > free:
        ways = [way for way in needs(shape, stored="bfloat16", device=device) if way.total <= free]
        instead = f"; {ways[0].choice} would fit" if ways else ""
        raise ModelError(
            f"{name} as {choice} takes {format_bytes(need)} on {device}, of which {format_bytes(free)} are free"
            f"{instead}"
        )


def _refusal(ways: list[Need], *, name: str, device: torch.device, free: int) -> str:
    said = ", ".join(f"{format_bytes(way.total)} as {way.choice}" for way in ways)
    install = (
        "" if has_torchao() else "; with torchao installed (pip install torchao) int8 and int4 take less"
    )
    return (
        f"{name} does not fit on {device}: {format_bytes(free)} are free, but it needs {said} (weights, "
        f"{_MARGIN - 1:.0%} while loading, {format_bytes(_SPARE)} for a batch){install}. "
        "Free memory, or choose an encoder with a smaller language model: llm2clip-llama3.2-1b-eva02-l-14-336"
    )


def release_memory() -> None:
    """Return freed memory to the system (glibc only)."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform == "linux" else None
    if trim is not None:
        trim(0)


def has_bfloat16() -> bool:
    """Whether this CPU computes in bfloat16, rather than by way of float32."""
    supported = getattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", None)
    return bool(supported()) if supported is not None else False


def device_memory(device: torch.device) -> int | None:
    """Free bytes of a device, on a CPU within the limit of the container; ``None`` if unknown."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    if device.type != "cpu":
        return None
    return free_memory()


def pick_precision(name: str, device: torch.device) -> tuple[Choice | Literal["auto"], torch.dtype]:
    """Precision of the language model, and dtype of the vision tower and the adapter."""
    if name != "auto" and name not in choices():
        raise ValueError(f"unknown dtype {name!r}, expected 'auto' or one of {', '.join(choices())}")
    other = "auto" if name in ("int8", "int4") else name
    return cast("Choice | Literal['auto']", name), pick_dtype(other, device=device, stored="float16")


def compute_dtype(choice: Choice, device: torch.device) -> torch.dtype:
    """Dtype of the computation with a language model loaded as ``choice``.

    int8 is computed in float32 on a CPU: few have fast bfloat16, and none is slower so. The kernels of int4 are
    made for bfloat16.
    """
    if choice == "int8":
        return torch.float32 if device.type == "cpu" else torch.bfloat16
    if choice == "int4":
        return torch.bfloat16
    dtype: torch.dtype = getattr(torch, choice)
    return dtype
