"""The learning rate over a run: linear warm-up, then cosine, linear or constant."""

from __future__ import annotations

import math
from typing import Literal

Decay = Literal["cosine", "linear", "constant"]


def learning_rate_factor(
    step: int, *, warmup: int, total: int, floor: float = 0.0, decay: Decay = "cosine"
) -> float:
    """Factor on the peak learning rate at a step counted from 0.

    Linear warm-up to 1, then down to ``floor`` at step ``total`` along a half cosine (golden case h, stage 2) or a
    straight line (stage 1), or 1 throughout.
    """
    if step < warmup:
        return (step + 1) / warmup
    if decay == "constant":
        return 1.0
    progress = min(1.0, (step - warmup) / max(1, total - warmup))
    fallen = 0.5 * (1 + math.cos(math.pi * progress)) if decay == "cosine" else 1 - progress
    return floor + (1 - floor) * fallen
