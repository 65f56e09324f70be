"""Several training processes, as ``torchrun`` starts them: set-up, averages, and the end when one of them dies.

Data parallel: every process holds the whole model and its share of each batch, and gradients are averaged over
processes before the optimiser's step, which with the gathered losses of ``losses`` gives those of the whole batch.
Parameters of fully sharded modules (``fully_shard``) are averaged by torch itself.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from datetime import timedelta
from typing import Any

import torch
from torch import Tensor, distributed, nn

from llm2clip.train.core.device import Machine
from llm2clip.train.core.run_folder import RunError

_BUCKET = 2**25
"""Numbers that are averaged in one call."""
_LOST = ("connection", "peer", "gloo", "nccl", "timed out", "store", "heartbeat")
"""Words in torch's messages when another process cannot be reached."""


def process_count() -> int:
    """Number of processes; 1 outside ``torchrun``."""
    return distributed.get_world_size() if _running() else 1


def process_number() -> int:
    """Number of this process, from 0."""
    return distributed.get_rank() if _running() else 0


def is_first() -> bool:
    """Whether this process writes files and shows progress."""
    return process_number() == 0


def local_device(machine: Machine) -> Machine:
    """The machine as this process should use it: of several CUDA devices the one of its number on this host."""
    if "LOCAL_RANK" in os.environ and machine.device in ("auto", "cuda") and torch.cuda.is_available():
        return replace(machine, device=f"cuda:{os.environ['LOCAL_RANK']}")
    return machine


@contextmanager
def joined(device: torch.device, *, minutes: float = 60) -> Iterator[None]:
    """Inside, the processes that ``torchrun`` started form a group; without ``torchrun`` nothing happens.

    Args:
        device: Where this process computes: NCCL for CUDA, gloo otherwise.
        minutes: How long a process waits for another one before it gives up.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) == 1 or _running():
        yield
        return
    backend = "nccl" if device.type == "cuda" else "gloo"
    with lost_process():
        distributed.init_process_group(backend, timeout=timedelta(minutes=minutes))
    try:
        yield
    finally:
        distributed.destroy_process_group()


@contextmanager
def lost_process() -> Iterator[None]:
    """Inside, a failed exchange between processes raises a ``RunError`` that says so."""
    try:
        yield
    except RuntimeError as error:
        text = str(error).lower()
        if not _shared() or not (
            isinstance(error, distributed.DistError) or any(word in text for word in _LOST)
        ):
            raise
        raise RunError(
            f"another of the {os.environ.get('WORLD_SIZE', '?')} processes has ended or cannot be reached, so process "
            f"{os.environ.get('RANK', '?')} stops too; its own message is above. Run the same command again to "
            f"continue from the last checkpoint ({str(error).splitlines()[0][:120]})"
        ) from error


def share_of(count: int) -> range:
    """This process's part of ``count`` rows of a batch; equal parts, so ``count`` must be a multiple."""
    world = process_count()
    if count % world:
        raise RunError(
            f"the batch of {count} cannot be shared equally by {world} processes; expected a multiple of {world}, such "
            f"as {max(1, count // world) * world}"
        )
    part = count // world
    return range(process_number() * part, (process_number() + 1) * part)


@contextmanager
def in_turn() -> Iterator[None]:
    """Inside, processes work one after another, the first one first: what it writes the others find."""
    for number in range(process_count()):
        if number == process_number():
            yield
        wait_for_all()


@torch.no_grad()
def average_gradients(parameters: Iterable[nn.Parameter]) -> None:
    """Average the gradients of all processes, in place; a parameter without a gradient counts as zero."""
    if process_count() == 1:
        return
    own = [parameter for parameter in parameters if not is_sharded(parameter)]
    for parameter in own:
        if parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)
    waiting: list[Tensor] = []
    size = 0
    for parameter in own:
        assert parameter.grad is not None
        waiting.append(parameter.grad)
        size += parameter.numel()
        if size >= _BUCKET:
            _average(waiting)
            waiting, size = [], 0
    if waiting:
        _average(waiting)


def mean_of(values: Mapping[str, float]) -> dict[str, float]:
    """The mean over processes of named numbers, which all processes must have; not a number anywhere: everywhere."""
    if process_count() == 1:
        return dict(values)
    names = sorted(values)
    device = "cuda" if distributed.get_backend() == "nccl" else "cpu"
    table = torch.tensor([values[name] for name in names], dtype=torch.float64, device=device)
    distributed.all_reduce(table)
    return dict(zip(names, (table / process_count()).tolist(), strict=True))


def gather_objects(value: Any) -> list[Any]:  # noqa: ANN401 (anything that can be pickled)
    """The values of all processes, in order of their numbers."""
    if process_count() == 1:
        return [value]
    found: list[Any] = [None] * process_count()
    distributed.all_gather_object(found, value)
    return found


def wait_for_all() -> None:
    """Return when every process has come here."""
    if process_count() > 1:
        distributed.barrier()


def is_sharded(tensor: Tensor) -> bool:
    """Whether a tensor is spread over processes by ``fully_shard``."""
    # Who shards has imported it; nobody else pays the second that the import takes.
    module = sys.modules.get("torch.distributed.tensor")
    return module is not None and isinstance(tensor, module.DTensor)


def full(tensor: Tensor) -> Tensor:
    """The whole of a tensor that may be sharded, which all processes must ask for."""
    whole: Tensor = tensor.full_tensor() if is_sharded(tensor) else tensor  # type: ignore[attr-defined]
    return whole


def _average(gradients: Sequence[Tensor]) -> None:
    for dtype in dict.fromkeys(gradient.dtype for gradient in gradients):
        group = [gradient for gradient in gradients if gradient.dtype == dtype]
        flat = torch.cat([gradient.flatten() for gradient in group])
        distributed.all_reduce(flat)
        flat /= process_count()
        parts = flat.split([gradient.numel() for gradient in group])
        for gradient, part in zip(group, parts, strict=True):
            gradient.copy_(part.view_as(gradient))


def _running() -> bool:
    return distributed.is_available() and distributed.is_initialized()


def _shared() -> bool:
    return int(os.environ.get("WORLD_SIZE", "1")) > 1
