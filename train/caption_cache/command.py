"""``llm2clip-train features``: progress and summary."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

import torch
from rich.console import Console

from llm2clip.encoders import load_encoder
from llm2clip.train.caption_cache.store import Progress
from llm2clip.train.caption_cache.writer import FeatureOptions, maker_of, write_features
from llm2clip.train.core.device import Machine


def make_features(
    captions: Sequence[Path],
    out: Path,
    *,
    encoder: str,
    dtype: str,
    field: str | None,
    machine: Machine,
) -> str:
    """Write features and return a summary; see ``write_features``."""
    if machine.threads is not None:
        torch.set_num_threads(machine.threads)
    maker = maker_of(load_encoder(encoder, device=machine.device, dtype=dtype))
    with Console(stderr=True).status("reading captions") as status:
        began, first = time.monotonic(), -1

        def tell(progress: Progress) -> None:
            nonlocal began, first
            if first < 0:
                # The first block bears the loading of the model, and what was there before.
                began, first = time.monotonic(), progress.rows
            rate = (progress.rows - first) / max(time.monotonic() - began, 1e-9)
            speed = f", {rate:,.0f} per second" if progress.rows > first else ""
            status.update(f"{progress.rows:,} captions{speed}")

        done = write_features(captions, out, maker=maker, options=FeatureOptions(field=field), tell=tell)
    what = "states of" if maker.kind == "states" else "vectors by"
    lines = [f"{out}: {done.rows:,} captions as {what} {maker.identity['name']}, dimension {maker.dim}"]
    if done.left_out:
        lines.append(f"{done.left_out:,} skipped; the first of them:")
        lines += [f"  {reason}" for reason in done.reasons]
    return "\n".join(lines)
