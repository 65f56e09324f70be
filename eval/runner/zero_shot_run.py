"""Measure encoders on classes of images and on pairs of captions, with vectors kept as in every other measurement."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llm2clip.eval.datasets.class_sets import ClassSet, same_names
from llm2clip.eval.datasets.retrieval_set import ImageRef, RetrievalSet
from llm2clip.eval.results.encoder_record import code_version, describe, libraries, machine, store_key
from llm2clip.eval.runner.embedding_cache import CachedTexts, EmbeddingCache, encode_images
from llm2clip.eval.runner.zero_shot import (
    CaptionRetrieval,
    Classification,
    TooFewCaptionsError,
    caption_retrieval,
    class_vectors,
    classify,
)
from llm2clip.eval.stats.bootstrap import Resampling

if TYPE_CHECKING:
    from llm2clip.encoders import Encoder
    from llm2clip.eval.runner.run import Candidate


@dataclass(frozen=True, kw_only=True)
class ClassTask:
    """Classes of images and what they are called."""

    protocol: str
    images: ClassSet
    names: Sequence[str]
    templates: Sequence[str]


@dataclass(frozen=True, kw_only=True)
class ClassReport:
    """One encoder on one task, and under which conditions."""

    task: str
    """Protocol, or set of captions."""
    encoder: dict[str, Any]
    result: Classification | CaptionRetrieval
    conditions: dict[str, Any]
    """Hashes of images, names and templates or of captions; date, code, libraries, machine, seed and draws."""
    notes: tuple[str, ...] = ()

    def as_json(self) -> dict[str, Any]:
        """For ``json.dump``."""
        return asdict(self)


def measure_classes(
    candidate: Candidate,
    task: ClassTask,
    *,
    cache: Path,
    resampling: Resampling | None = None,
    progress: Callable[[int], None] | None = None,
) -> ClassReport:
    """Classify the images of a task with one encoder."""
    how = resampling or Resampling()
    encoder, store, record = _opened(candidate, cache)
    photos = [
        ImageRef(key=f"{task.images.folders[label]}/{path.name}", file=path)
        for path, label in zip(task.images.images, task.images.labels.tolist(), strict=True)
    ]
    images = encode_images(encoder, photos, cache=store, progress=progress)
    classes = class_vectors(CachedTexts(encoder, store), task.names, templates=task.templates)
    alike = same_names(task.names)
    return ClassReport(
        task=task.protocol,
        encoder=record,
        result=classify(images.vectors, classes=classes, labels=task.images.labels, resampling=how),
        conditions={
            "images_sha256": _digest([*images.digests, *map(str, task.images.labels.tolist())]),
            "names_sha256": _digest(task.names),
            "templates_sha256": _digest(task.templates),
            "templates": len(task.templates),
            **_conditions(how),
        },
        notes=(f"{len(alike)} names belong to several classes: {', '.join(alike[:5])}",) if alike else (),
    )


def measure_captions(
    candidate: Candidate, dataset: RetrievalSet, *, cache: Path, resampling: Resampling | None = None
) -> ClassReport:
    """Caption-to-caption retrieval of one encoder on the captions of a set; images are not read."""
    how = resampling or Resampling()
    encoder, store, record = _opened(candidate, cache)
    owners = [right[0] for right in dataset.caption_images]
    try:
        result = caption_retrieval(
            CachedTexts(encoder, store), dataset.captions, caption_images=owners, resampling=how
        )
    except TooFewCaptionsError as error:
        raise ValueError(f"{dataset.id}: {error}") from error
    return ClassReport(
        task=dataset.id,
        encoder=record,
        result=result,
        conditions={"captions_sha256": _digest(dataset.captions), **_conditions(how)},
        notes=tuple(dataset.notes),
    )


def _opened(candidate: Candidate, cache: Path) -> tuple[Encoder, EmbeddingCache, dict[str, Any]]:
    encoder = candidate.open()
    record = describe(encoder, label=candidate.label, parity=candidate.preprocessing)
    return encoder, EmbeddingCache(cache, key=store_key(record), dim=record.dim), asdict(record)


def _conditions(how: Resampling) -> dict[str, Any]:
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "code": code_version(),
        "libraries": dict(libraries()),
        "machine": machine(),
        "seed": how.seed,
        "resamples": how.times,
    }


def _digest(lines: Sequence[str]) -> str:
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()
