"""Part c: the recipe ``own-images`` on the training photographs, in all languages, measured on the validation ones."""

from __future__ import annotations

import time

from benchmarks.claim.material import ClaimSettings
from benchmarks.claim.photographs import own_images, recalls, table, trained


def measure(settings: ClaimSettings) -> list[str]:
    """Train, measure, and say it in Markdown."""
    began = time.monotonic()
    parts = trained(own_images(settings), settings.work / "own-images")
    return [
        "## c. Your own images",
        "",
        f"Recipe own-images on {len(parts.train.keys):,} photographs with captions in five languages, both towers from "
        f"nano; {len(parts.validation.keys):,} others searched. "
        f"{(time.monotonic() - began) / 60:.0f} minutes on a CPU, what was cached not counted.",
        "",
        *table(recalls(parts)),
    ]
