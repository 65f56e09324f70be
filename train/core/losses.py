"""Every loss the recipes train with, as pure functions of tensors.

Shape legend: B rows of a batch, C candidates, D feature width, L token positions, V vocabulary, W processes.

Sources: supervised SimCSE with hard negatives and MNTP as in LLM2Vec and LLM2CLIP's stage 1; CLIP (Radford et al. 2021)
and SigLIP (Zhai et al. 2023) as in LLM2CLIP's stage 2. Golden cases f and g hold values and gradients. A ``scale`` is
the factor on the cosines (1 / temperature), never its logarithm.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, distributed

IGNORED_LABEL = -100
"""Label of token positions that do not count, as in transformers' collators."""


def contrastive_loss(
    queries: Tensor, positives: Tensor, negatives: Tensor | None = None, *, scale: float
) -> Tensor:
    """Cross-entropy of each query's own positive among all positives and hard negatives; mean over queries.

    Raises ``ValueError`` for mismatched shapes. Two rows that are
    positives of each other (captions of one image) must not be in one batch: they would count as wrong.

    Args:
        queries: Shape: (B, D), any norm.
        positives: Shape: (B, D), any norm; row i belongs to query i.
        negatives: Shape: (N, D), any norm and any number, or ``None`` for in-batch negatives only.
        scale: Factor on the cosines; LLM2CLIP's stage 1 uses 50.
    """
    if queries.shape != positives.shape:
        raise ValueError(
            f"queries and positives must have one shape, got {tuple(queries.shape)} "
            f"and {tuple(positives.shape)}"
        )
    candidates = positives if negatives is None else torch.cat((positives, negatives))
    targets = torch.arange(queries.shape[0], device=queries.device)
    return candidate_loss(queries, candidates, targets, scale=scale)


def candidate_loss(queries: Tensor, candidates: Tensor, targets: Tensor, *, scale: float | Tensor) -> Tensor:
    """Cross-entropy of each query's softmax over the candidates' cosines, mean over queries; checks shapes.

    Args:
        queries: Shape: (B, D), any norm.
        candidates: Shape: (C, D), any norm.
        targets: Shape: (B,), int64, index of the right candidate; or shape (B, C), float, rows that sum to 1.
        scale: Factor on the cosines.
    """
    rows, width = queries.shape[0], candidates.shape[0]
    if targets.shape != ((rows, width) if targets.is_floating_point() else (rows,)):
        raise ValueError(
            f"targets must be {rows} indices or a ({rows}, {width}) float distribution over the candidates, "
            f"got {tuple(targets.shape)} of {targets.dtype}"
        )
    cosines_BC = F.normalize(queries, dim=-1) @ F.normalize(candidates, dim=-1).T
    return F.cross_entropy(scale * cosines_BC, targets)


def masked_next_token_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Cross-entropy of predicting the token at position i from the state at position i - 1.

    With labels on masked positions only it is LLM2Vec's masked next-token prediction, with all tokens as labels and
    causal attention ordinary language modelling. A label at position 0 does not count.

    Args:
        logits: Shape: (B, L, V), float.
        labels: Shape: (B, L), int64 token ids, ``IGNORED_LABEL`` where nothing is to be predicted.

    Returns:
        Shape: (), the mean over counted labels; 0 if the batch has none.
    """
    shifted = labels[:, 1:].flatten()
    total = F.cross_entropy(
        logits[:, :-1].flatten(0, 1), shifted, ignore_index=IGNORED_LABEL, reduction="sum"
    )
    return total / (shifted != IGNORED_LABEL).sum().clamp(min=1)


def clip_loss(
    image_features: Tensor,
    text_features: Tensor,
    *,
    logit_scale: float | Tensor,
    label_smoothing: float = 0.0,
) -> Tensor:
    """Symmetric softmax loss of the pairs of one process; see :func:`sharded_clip_loss` for several.

    Args:
        image_features: Shape: (B, D), unit rows.
        text_features: Shape: (B, D), unit rows; row i belongs to image i.
        logit_scale: Factor on the inner products (not its logarithm).
        label_smoothing: Probability spread evenly over all candidates, in [0, 1).
    """
    _check_pairs(image_features, text_features)
    logits_BB = logit_scale * image_features @ text_features.T
    targets = torch.arange(image_features.shape[0], device=image_features.device)
    forth = F.cross_entropy(logits_BB, targets, label_smoothing=label_smoothing)
    back = F.cross_entropy(logits_BB.T, targets, label_smoothing=label_smoothing)
    return (forth + back) / 2


def sharded_clip_loss(
    image_features: Tensor,
    text_features: Tensor,
    *,
    logit_scale: float | Tensor,
    label_smoothing: float = 0.0,
) -> Tensor:
    """:func:`clip_loss` of all processes' batch, this process's rows of it; arguments as there.

    The mean over processes of loss and gradient are those of the whole batch; the logits have shape (B, W * B). Every
    process must have equally many rows.
    """
    _check_pairs(image_features, text_features)
    targets = torch.arange(image_features.shape[0], device=image_features.device) + first_row(image_features)
    forth = logit_scale * image_features @ gather_with_grad(text_features).T
    back = logit_scale * text_features @ gather_with_grad(image_features).T
    return (
        F.cross_entropy(forth, targets, label_smoothing=label_smoothing)
        + F.cross_entropy(back, targets, label_smoothing=label_smoothing)
    ) / 2


def siglip_loss(
    image_features: Tensor,
    text_features: Tensor,
    *,
    logit_scale: float | Tensor,
    logit_bias: float | Tensor,
    first_text: int = 0,
) -> Tensor:
    """Sigmoid loss: every image-text pair is a binary decision; their sum divided by the images.

    In several processes pass this one's images, ``gather_with_grad(texts)`` and ``first_row(images)``.

    Args:
        image_features: Shape: (B, D), unit rows.
        text_features: Shape: (C, D), unit rows, C >= B.
        logit_scale: Factor on the inner products (not its logarithm).
        logit_bias: Added to every logit; negative, since most pairs do not match.
        first_text: Row of image 0's text; image i's is ``first_text + i``; ``ValueError`` if outside.
    """
    rows, texts = image_features.shape[0], text_features.shape[0]
    if not 0 <= first_text <= texts - rows:
        raise ValueError(f"images 0..{rows - 1} need texts from row {first_text} on, got {texts} texts")
    logits_BC = logit_scale * image_features @ text_features.T + logit_bias
    own = torch.arange(rows, device=image_features.device)
    signs_BC = torch.full_like(logits_BC, -1.0)
    signs_BC[own, own + first_text] = 1.0
    return -F.logsigmoid(signs_BC * logits_BC).sum() / rows


def gather_with_grad(features: Tensor) -> Tensor:
    """All processes' rows in rank order with gradients: (B, D) -> (W * B, D); same B in every process.

    Backward sums the gradients of all processes, so a row receives W times the whole batch's gradient, which the mean
    of data parallel restores (golden case g). Outside torch.distributed the features are returned.
    """
    if not _is_distributed():
        return features
    gathered: Tensor = _Gather.apply(features)  # type: ignore[no-untyped-call]
    return gathered


def first_row(features: Tensor) -> int:
    """Where this process's rows begin in :func:`gather_with_grad`'s result; 0 outside torch.distributed."""
    return distributed.get_rank() * features.shape[0] if _is_distributed() else 0


class _Gather(torch.autograd.Function):
    # torch types the context as an attribute bag, so it is Any here.
    @staticmethod
    def forward(ctx: Any, features: Tensor) -> Tensor:  # noqa: ANN401
        ctx.rows = features.shape[0]
        parts = [torch.empty_like(features) for _ in range(distributed.get_world_size())]
        distributed.all_gather(parts, features.contiguous())
        return torch.cat(parts)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:  # noqa: ANN401
        total = grads[0].clone(memory_format=torch.contiguous_format)
        distributed.all_reduce(total)
        first = distributed.get_rank() * ctx.rows
        return total[first : first + ctx.rows]


def _is_distributed() -> bool:
    return distributed.is_available() and distributed.is_initialized()


def _check_pairs(image_features: Tensor, text_features: Tensor) -> None:
    if image_features.shape != text_features.shape:
        raise ValueError(
            f"images and texts must come in pairs of one width, got {tuple(image_features.shape)} and "
            f"{tuple(text_features.shape)}"
        )
