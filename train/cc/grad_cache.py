"""Large contrastive batches in little memory: gradient caching (Gao et al. 2021).

The loss of a row depends on every text, so the losses of micro-batches cannot simply be added up. All texts are encoded
without gradients first; the loss of these vectors gives the gradient of each; then every micro-batch is encoded again,
with gradients, and the gradients of its vectors are passed back. The result is that of the whole batch at the price of
a second forward pass, in which dropout repeats.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

import torch
from torch import Tensor, distributed

from llm2clip.train.core.distributed import process_count, process_number

Item = TypeVar("Item")


def cached_backward(
    encode: Callable[[Sequence[Item]], Tensor],
    items: Sequence[Item],
    *,
    micro_batch: int,
    loss_of: Callable[[Tensor], Tensor],
    size_of: Callable[[Item], int] = lambda item: 0,
) -> Tensor:
    """Add the gradients of a loss over all items, a micro-batch at a time; the loss is returned.

    With several processes each encodes its share of the items and computes the loss over all, so all pass the same
    items; the mean of their gradients is that of the whole batch.

    Args:
        encode: Items to vectors with gradients. Shape: (len(items), D).
        items: All items of the batch.
        micro_batch: Items encoded at a time.
        loss_of: Vectors of all items, in their order, to the loss. Shape: (len(items), D) -> ().
        size_of: Items of one size are encoded together.
    """
    own = list(range(len(items)))[process_number() :: process_count()]
    # Every process encodes as often as the others, who may wait for it: one with less repeats an item.
    spare = -(-len(items) // process_count()) - len(own)
    encoded = sorted([*own, *[0] * spare], key=lambda number: size_of(items[number]))
    pieces = [encoded[start : start + micro_batch] for start in range(0, len(encoded), micro_batch)]
    if len(pieces) == 1 and process_count() == 1:
        loss = loss_of(_restored(encode([items[number] for number in encoded]), encoded))
        loss.backward()
        return loss.detach()
    states, parts = [], []
    with torch.no_grad():
        for piece in pieces:
            states.append(_random_state())
            parts.append(encode([items[number] for number in piece]))
    counted = torch.tensor([not spare or number > 0 for number in encoded], device=parts[0].device)
    vectors = _restored(*_gathered(torch.cat(parts), encoded, counted)).requires_grad_()
    after = _random_state()
    loss = loss_of(vectors)
    loss.backward()
    assert vectors.grad is not None
    own_gradients = vectors.grad[torch.tensor(encoded, device=vectors.device)] * process_count()
    gradients = (own_gradients * counted[:, None]).split([len(piece) for piece in pieces])
    for piece, state, gradient in zip(pieces, states, gradients, strict=True):
        _set_random_state(state)
        encode([items[number] for number in piece]).backward(gradient)
    _set_random_state(after)
    return loss.detach()


def _restored(vectors: Tensor, order: Sequence[int]) -> Tensor:
    """Rows of items that were encoded in another order, in theirs."""
    return vectors[torch.tensor(order).argsort().to(vectors.device)]


def _gathered(vectors: Tensor, numbers: Sequence[int], counted: Tensor) -> tuple[Tensor, list[int]]:
    """The counted vectors of all processes, which have equally many, and the number of the item of each."""
    world = process_count()
    if world == 1:
        return vectors, list(numbers)
    own_numbers = torch.tensor(numbers, device=vectors.device).where(counted, -1)
    all_vectors = [torch.empty_like(vectors) for _ in range(world)]
    all_numbers = [torch.empty_like(own_numbers) for _ in range(world)]
    distributed.all_gather(all_vectors, vectors)
    distributed.all_gather(all_numbers, own_numbers)
    where = torch.cat(all_numbers)
    return torch.cat(all_vectors)[where >= 0], where[where >= 0].tolist()


def _random_state() -> tuple[Tensor, list[Tensor]]:
    return torch.get_rng_state(), torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else []


def _set_random_state(state: tuple[Tensor, list[Tensor]]) -> None:
    torch.set_rng_state(state[0])
    if state[1]:
        torch.cuda.set_rng_state_all(state[1])
