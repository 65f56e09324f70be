"""Fully sharded parameters (FSDP2): every process holds a part of each weight, and gathers a block's when it is used.

A module is sharded for a training and made whole again afterwards, so that nothing else has to know.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from llm2clip.train.core.distributed import full, is_sharded, process_count


def shard(root: nn.Module, blocks: Sequence[nn.Module]) -> None:
    """Spread the parameters of a module over the processes, in place; with one process nothing happens.

    The module's and the blocks' own ``forward`` must be what computes with them. An optimiser is made afterwards.

    Args:
        root: Module of which everything is spread.
        blocks: Parts of it whose weights are gathered, used and dropped one after the other.
    """
    if process_count() == 1:
        return
    from torch.distributed.fsdp import fully_shard

    for part in (*blocks, root):
        # Also the root is taken apart after each forward pass: weights may be changed before the next one.
        fully_shard(part, reshard_after_forward=True)


@torch.no_grad()
def make_whole(module: nn.Module) -> None:
    """Give every process all parameters of a module again, in place."""
    for part in module.modules():
        for name, parameter in list(part.named_parameters(recurse=False)):
            if is_sharded(parameter):
                setattr(part, name, nn.Parameter(full(parameter), requires_grad=parameter.requires_grad))
