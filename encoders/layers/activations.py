"""Work around two habits of transformers: a slow QuickGELU, and importing torchao with its log messages."""

from __future__ import annotations

import logging
import warnings
from contextlib import suppress
from importlib import import_module
from importlib.util import find_spec
from typing import final

from torch import Tensor, nn


@final
class QuickGelu(nn.Module):
    """x * sigmoid(1.702 x), to the last bit as transformers computes it, in less than half of its time on a CPU."""

    def forward(self, states: Tensor) -> Tensor:
        """Any shape -> the same."""
        scaled = 1.702 * states
        # A gradient would need what is overwritten otherwise.
        return states * scaled.sigmoid() if scaled.requires_grad else scaled.sigmoid_().mul_(states)


def replace_quick_gelu(module: nn.Module) -> nn.Module:
    """Put :class:`QuickGelu` in the place of transformers' own, everywhere in a module."""
    from transformers.activations import QuickGELUActivation

    for part in list(module.modules()):
        for name, child in list(part.named_children()):
            if isinstance(child, QuickGELUActivation):
                setattr(part, name, QuickGelu())
    return module


def has_torchao() -> bool:
    """Whether torchao is installed."""
    return find_spec("torchao") is not None


def import_quietly() -> None:
    """Import torchao if it is there, as transformers does unasked, without what it logs of libraries for other GPUs."""
    if not has_torchao():
        return
    loggers = [logging.getLogger(name) for name in ("torchao", "torch.utils._pytree")]
    levels = [logger.level for logger in loggers]
    try:
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        with warnings.catch_warnings(), suppress(Exception):  # whoever needs it is told later
            warnings.simplefilter("ignore")
            for name in ("torchao.quantization", "torchao.prototype.mx_formats"):
                import_module(name)
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
