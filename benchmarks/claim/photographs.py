"""What parts b and c share: stage 2 of the recipe ``own-images`` on the photographs, measured with intervals."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from safetensors.torch import load_file

from benchmarks.claim.material import ClaimSettings
from llm2clip.eval.stats.bootstrap import Interval, bootstrap_interval
from llm2clip.train.align.config import AlignConfig, PairData
from llm2clip.train.align.evaluate import KS, best_ranks
from llm2clip.train.align.output import WEIGHTS
from llm2clip.train.align.pipeline import Parts, prepare, run_align
from llm2clip.train.data.pair_batches import CaptionMix, Weight
from llm2clip.train.recipe_files import load_recipe

LANGUAGES = ("en", "zh", "de", "fr", "ar")
"""Languages that most photographs have captions in."""


def own_images(settings: ClaimSettings, languages: Sequence[str] = LANGUAGES) -> AlignConfig:
    """The recipe on the photographs, with captions of some languages."""
    config = load_recipe("own-images").align
    assert config is not None, "the recipe has stage 2"
    return replace(
        config,
        train=PairData(images=(str(settings.data / "train-{00..05}.tar"),)),
        validation=PairData(images=(str(settings.data / "val.tar"),)),
        mix=CaptionMix(languages=tuple(Weight(name) for name in languages)),
        loop=replace(config.loop, keep_best=f"{languages[0]}/R@10"),
    )


def trained(config: AlignConfig, out: Path) -> Parts:
    """Train in a folder, or continue there; the parts with the weights that came of it."""
    weights = load_file(run_align(config, out) / WEIGHTS)
    parts = prepare(config, out, tell=lambda _line: None)
    stage = parts.stage
    modules = {
        "vision": stage.tower.module,
        "image_head": stage.image_head,
        "text_adapter": stage.text_adapter,
    }
    for name, module in modules.items():
        prefix = f"{name}."
        own = {key.removeprefix(prefix): value for key, value in weights.items() if key.startswith(prefix)}
        module.load_state_dict(own)
        module.eval()
    return parts


def recalls(parts: Parts, languages: Sequence[str] = LANGUAGES) -> dict[str, list[Interval]]:
    """By language R@1, R@5 and R@10 in percent, with 95 % intervals over images."""
    adapter = parts.stage.text_adapter
    queries = [each for each in parts.queries if each.language in languages]
    ranks = best_ranks(
        queries,
        images=parts.validation_vectors(),
        text_vectors=lambda numbers: adapter(parts.texts.take(numbers)).detach(),
    )
    return {
        each.language: [
            bootstrap_interval(100 * ranks[each.language].hits(k), clusters=each.images) for k in KS
        ]
        for each in queries
    }


def table(found: Mapping[str, Sequence[Interval]]) -> list[str]:
    """What :func:`recalls` found, in Markdown."""
    rows = ["| language | R@1 % | R@5 % | R@10 % |", "|---|---|---|---|"]
    rows += [f"| {language} | {' | '.join(map(cell, intervals))} |" for language, intervals in found.items()]
    return rows


def cell(interval: Interval) -> str:
    """A value with its interval."""
    return f"{interval.value:.1f} [{interval.low:.1f}, {interval.high:.1f}]"
