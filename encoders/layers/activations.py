"""CLIP's activation without its spare copies."""

from __future__ import annotations

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
