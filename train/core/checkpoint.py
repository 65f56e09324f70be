"""Checkpoints: trained weights, optimiser, average and step in one file that replaces the last one atomically.

Only what changes is stored: parameters with gradients, and buffers. Everything is tensors, numbers and text, so a file
is read without unpickling code.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from llm2clip.common.files import atomic_path
from llm2clip.train.core import distributed
from llm2clip.train.core.run_folder import RunError

FORMAT = 1


def trained_state(module: nn.Module) -> dict[str, Tensor]:
    """The parameters that are trained, and the buffers, as :func:`whole` gives them."""
    return {name: whole(tensor.detach()) for name, tensor in _trained(module).items()}


def load_trained(module: nn.Module, state: Mapping[str, Tensor], *, where: str) -> None:
    """Load a ``trained_state``; ``RunError`` if it is of another model."""
    own = _trained(module)
    wrong = sorted(own.keys() ^ state.keys()) or sorted(
        name for name, tensor in own.items() if tensor.shape != state[name].shape
    )
    if wrong:
        raise RunError(
            f"{where} is a checkpoint of another model: {wrong[0]} is missing, unexpected or of another shape "
            f"({len(wrong)} such tensors)"
        )
    with torch.no_grad():
        for name, tensor in own.items():
            assign(tensor, state[name])


def write_checkpoint(path: Path, content: Mapping[str, Any]) -> None:
    """Write a checkpoint; on an error, such as a full disk, the previous one stays."""
    if not distributed.is_first():
        return
    try:
        with atomic_path(path, alone=True) as draft:
            torch.save({"format": FORMAT, **content}, draft)
    except (OSError, RuntimeError) as error:
        # torch's own writer reports a full disk as a RuntimeError about a position in the file.
        reason = (
            str(error) if isinstance(error, OSError) else "the disk is full, or files may not grow so large"
        )
        raise RunError(
            f"the checkpoint {path} cannot be written: {reason}; the one before it, if any, is still there. "
            "Free space and run the same command again"
        ) from error


def read_checkpoint(path: Path) -> dict[str, Any]:
    """Read a checkpoint; ``RunError`` if it is damaged or none of ours."""
    try:
        state: dict[str, Any] = torch.load(path, weights_only=True, map_location="cpu")
        if state["format"] != FORMAT:
            raise ValueError(f"format {state['format']!r}, expected {FORMAT}")
    except OSError:
        raise
    except Exception as error:
        # torch raises UnpicklingError, RuntimeError, EOFError, KeyError and more for damaged files.
        reason = (str(error) or type(error).__name__).splitlines()[0].partition(". ")[0]
        raise RunError(
            f"{path} cannot be read as a checkpoint: {reason}; "
            "delete it to train this stage from its beginning"
        ) from error
    return state


def optimizer_state(optimizer: Any) -> Any:  # noqa: ANN401 (what torch's optimisers give)
    """The state of an optimiser, its tensors as :func:`whole` gives them."""
    return _mapped(optimizer.state_dict())


def load_optimizer(optimizer: Any, state: Any) -> None:  # noqa: ANN401 (what torch's optimisers give)
    """Load an ``optimizer_state``; the optimiser shards and moves it like its parameters."""
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    if any(distributed.is_sharded(parameter) for parameter in parameters):
        state = {**state, "state": _sharded_state(state["state"], parameters)}
    optimizer.load_state_dict(state)


def whole(tensor: Tensor) -> Tensor:
    """A tensor for a checkpoint; a sharded one, which all processes must ask for, in the first one's main memory."""
    if not distributed.is_sharded(tensor):
        return tensor
    gathered = distributed.full(tensor)
    return gathered.cpu() if distributed.is_first() else gathered.new_empty(0)


def assign(tensor: Tensor, value: Tensor) -> None:
    """Copy a whole tensor, the same in all processes, into one that may be sharded."""
    if not distributed.is_sharded(tensor):
        tensor.copy_(value)
        return
    from torch.distributed.tensor import DTensor, distribute_tensor

    assert isinstance(tensor, DTensor)
    tensor.copy_(distribute_tensor(value.to(tensor.device), tensor.device_mesh, tensor.placements))


def _trained(module: nn.Module) -> dict[str, Tensor]:
    frozen = {name for name, parameter in module.named_parameters() if not parameter.requires_grad}
    return {name: tensor for name, tensor in module.state_dict().items() if name not in frozen}


def _sharded_state(state: Mapping[int, Any], parameters: list[nn.Parameter]) -> dict[int, Any]:
    from torch.distributed.tensor import DTensor, distribute_tensor

    found: dict[int, Any] = {}
    for number, entries in state.items():
        parameter = parameters[number]
        found[number] = {
            name: distribute_tensor(value, parameter.device_mesh, parameter.placements)
            if isinstance(parameter, DTensor) and isinstance(value, Tensor) and value.shape == parameter.shape
            else value
            for name, value in entries.items()
        }
    return found


def _mapped(value: Any) -> Any:  # noqa: ANN401 (nested state)
    if isinstance(value, Tensor):
        return whole(value)
    if isinstance(value, dict):
        return {key: _mapped(entry) for key, entry in value.items()}
    return [_mapped(entry) for entry in value] if isinstance(value, list) else value
