"""The report on nano: every number with its provenance, beside targets that were fixed before training."""

from __future__ import annotations

import os
import platform
import tempfile
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llm2clip.common.files import file_sha256
from llm2clip.eval.datasets.tar_images import DatasetError
from llm2clip.eval.nano_report.controls import without_blocks
from llm2clip.eval.nano_report.data import (
    OTHER_SCENES_FILE,
    QUERIES_FILE,
    SCENES_FILE,
    FreeQuery,
    Gallery,
    Scene,
    load_queries,
    read_gallery,
    read_scenes,
    require_sets,
)
from llm2clip.eval.nano_report.measures import (
    CUT_TOKENS,
    Measurement,
    QueryAnswer,
    answer_queries,
    count_answers,
    measure_cost,
    measure_names,
    measure_scenes,
    measure_size,
)
from llm2clip.eval.results.encoder_record import code_version, libraries
from llm2clip.eval.runner.evaluate import RememberedTexts, TextEncoder, encode_images
from llm2clip.indexer.core.index_paths import sample_shards

if TYPE_CHECKING:
    from llm2clip.encoders import Encoder

_TIMED_CAPTIONS = 50

Progress = Callable[[str], None]
"""Told what is being done now."""


@dataclass(frozen=True, kw_only=True)
class Target:
    """A bound on one number of the report."""

    text: str
    table: str
    subject: str
    row: str
    metric: str
    bound: float
    """The least value allowed, or the greatest where ``at_most`` is set."""
    at_most: bool = False

    def find(self, measurements: Iterable[Measurement]) -> Measurement | None:
        """The number this target bounds, with the blocks on; ``None`` if it was not measured."""
        key = (self.table, self.subject, self.row, self.metric)
        found = (one for one in measurements if one.blocks)
        return next((one for one in found if (one.table, one.subject, one.row, one.metric) == key), None)

    def met(self, value: float) -> bool:
        """Whether ``value`` respects the bound."""
        return value <= self.bound if self.at_most else value >= self.bound


_RATIO = f"R@1 over R@1 of {CUT_TOKENS} tokens"
_LAST, _SWAP = "twins: last object", "twins: two places swapped"
_BOUNDS: tuple[tuple[str, str, str, float], ...] = (
    ("openmoji, name to image, en, R@1", "names/openmoji/en", "R@1", 40),
    ("openmoji, name to image, en, R@5", "names/openmoji/en", "R@5", 60),
    ("openmoji, name to image, mean over languages, R@5", "names/openmoji/mean", "R@5", 45),
    ("noto, name to image, en, R@1", "names/noto/en", "R@1", 70),
    ("noto, name to image, mean over languages, R@5", "names/noto/mean", "R@5", 80),
    ("scenes, whole caption, R@1", "scenes/scenes/en", "R@1", 50),
    (f"scenes, {_RATIO}", "scenes/scenes/en", _RATIO, 3),
    ("captions that differ in the last object, told apart", f"scenes/scenes/{_LAST}", "told apart", 75),
    ("captions with two places swapped, told apart", f"scenes/scenes/{_SWAP}", "told apart", 65),
    ("one query, one thread, median", "cost/speed/query", "median", 20),
    ("images embedded a second", "cost/speed/images, from files", "rate", 200),
    ("weights", "cost/size/weights", "size", 20),
)
TARGETS = tuple(
    Target(
        text=text,
        **dict(zip(("table", "subject", "row"), key.split("/"), strict=True)),
        metric=metric,
        bound=bound,
        at_most=metric in ("median", "size"),
    )
    for text, key, metric, bound in _BOUNDS
)
"""What nano should reach."""


@dataclass(frozen=True, kw_only=True)
class NanoOptions:
    """What to measure."""

    data: Path
    styles: tuple[str, ...] = ("noto", "openmoji")
    """Galleries; a style that the sample corpus lacks is read from ``<data>/<style>.tar``."""
    scenes: bool = True
    blocks: bool = True
    """Measure again with the language model's transformer blocks switched off."""

    def __post_init__(self) -> None:
        if not self.styles or len(set(self.styles)) != len(self.styles):
            raise ValueError(
                f"got styles {list(self.styles)}, expected different names such as noto, openmoji"
            )


@dataclass(frozen=True, kw_only=True)
class NanoReport:
    """Every number, and where it comes from."""

    provenance: dict[str, Any]
    measurements: tuple[Measurement, ...]
    answers: tuple[QueryAnswer, ...]
    queries: tuple[FreeQuery, ...]
    notes: tuple[str, ...]

    def as_json(self) -> dict[str, Any]:
        """Tables of rows, each table with the provenance of its numbers."""
        tables: dict[str, dict[str, Any]] = {}
        for one in self.measurements:
            row = asdict(one)
            table = tables.setdefault(row.pop("table"), {"provenance": self.provenance, "rows": []})
            table["rows"].append(row)
        texts = {query.id: query for query in self.queries}
        if "queries" in tables:
            tables["queries"]["answers"] = [
                asdict(answer)
                | {"text": texts[answer.id].text, "accept": sorted(texts[answer.id].accept)}
                | {"split": texts[answer.id].split.value}
                for answer in self.answers
            ]
        found = [(target, target.find(self.measurements)) for target in TARGETS]
        targets = [
            asdict(target) | {"value": one and one.value, "met": target.met(one.value) if one else None}
            for target, one in found
        ]
        return {
            "report": "nano",
            "format": 1,
            "provenance": self.provenance,
            "notes": list(self.notes),
            "targets": targets,
            "tables": tables,
        }


def measure_nano(
    encoder: Encoder, *, options: NanoOptions, folder: Path | None, progress: Progress
) -> NanoReport:
    """Measure names, free-form queries, scenes, the worth of the blocks, and cost; ``folder``: the encoder's."""
    run = _Run(encoder, options, folder, progress)
    with tempfile.TemporaryDirectory(prefix="llm2clip-eval-") as scratch:
        run.measure(Path(scratch))
    return NanoReport(
        provenance=run.provenance,
        measurements=tuple(run.measurements),
        answers=tuple(run.answers),
        queries=run.queries,
        notes=tuple(run.notes),
    )


class _Run:
    """Collects numbers while the images are encoded once."""

    def __init__(
        self, encoder: Encoder, options: NanoOptions, folder: Path | None, progress: Progress
    ) -> None:
        self.encoder, self.options, self.folder, self.progress = encoder, options, folder, progress
        self.queries = load_queries()
        self.provenance = provenance(encoder)
        self.measurements: list[Measurement] = []
        self.answers: list[QueryAnswer] = []
        self.notes: list[str] = []

    def measure(self, scratch: Path) -> None:
        galleries, scenes = self._load()
        towers: list[tuple[TextEncoder, bool]] = [(RememberedTexts(self.encoder), True)]
        if self.options.blocks and self.folder is not None:
            self.progress("switching the transformer blocks off in a copy")
            bare = without_blocks(self.folder, scratch / "without-blocks")
            towers.append((RememberedTexts(bare), False))
        elif self.options.blocks:
            self.notes.append("blocks not switched off: the encoder is no folder of files")
        for gallery in galleries:
            self._measure_gallery(gallery, towers)
        for _, blocks in towers:
            answers = [answer for answer in self.answers if answer.blocks is blocks]
            self._keep(count_answers(answers, queries=self.queries), blocks=blocks)
        for subject, some in scenes.items():
            self._measure_scenes(subject, some, towers)
        self._measure_cost(galleries[0], [scene for some in scenes.values() for scene in some])

    def _load(self) -> tuple[list[Gallery], dict[str, tuple[Scene, ...]]]:
        options, shipped = self.options, sample_shards()
        found = {style: read_gallery(shipped, style=style) for style in options.styles}
        needed = [f"{style}.tar" for style, gallery in found.items() if gallery is None]
        require_sets(options.data, needed + [SCENES_FILE] * options.scenes)
        galleries = []
        for style, shipped_gallery in found.items():
            gallery = shipped_gallery or read_gallery([options.data / f"{style}.tar"], style=style)
            if gallery is None:
                raise DatasetError(
                    f"{options.data / style}.tar has no image of kind 'emoji', style '{style}'"
                )
            galleries.append(gallery)
        tars = [options.data / name for name in (SCENES_FILE, OTHER_SCENES_FILE) if options.scenes]
        scenes = {tar.stem: tar for tar in tars if tar.is_file()}
        self.progress("hashing what is measured on")
        files = {one.style: {image.tar for image in one.images} for one in galleries}
        files |= {subject: {tar} for subject, tar in scenes.items()} | {"queries": {QUERIES_FILE}}
        self.provenance["measured_on"] = {
            subject: {file.name: file_sha256(file) for file in sorted(own)} for subject, own in files.items()
        }
        return galleries, {subject: read_scenes(tar) for subject, tar in scenes.items()}

    def _measure_gallery(self, gallery: Gallery, towers: Sequence[tuple[TextEncoder, bool]]) -> None:
        self.progress(f"{gallery.style}: encoding {len(gallery.images):,} images")
        vectors = encode_images(self.encoder, gallery.images)
        known = self.encoder.info.languages
        languages = [language for language in gallery.languages() if not known or language in known]
        if not languages:
            raise DatasetError(
                f"gallery '{gallery.style}' has names in {gallery.languages()}, expected one of {list(known)}"
            )
        for encoder, blocks in towers:
            off = "" if blocks else ", blocks switched off"
            self.progress(f"{gallery.style}: names and free-form queries{off}")
            self._keep(measure_names(encoder, gallery, vectors, languages=languages), blocks=blocks)
            answers = answer_queries(encoder, gallery, vectors, queries=self.queries)
            self.answers += [replace(answer, blocks=blocks) for answer in answers]

    def _measure_scenes(
        self, subject: str, scenes: Sequence[Scene], towers: Sequence[tuple[TextEncoder, bool]]
    ) -> None:
        self.progress(f"{subject}: encoding {len(scenes):,} images")
        vectors = encode_images(self.encoder, [scene.image for scene in scenes])
        for encoder, blocks in towers:
            self.progress(f"{subject}: long captions" + ("" if blocks else ", blocks switched off"))
            # Long captions are slow: one set in all languages.
            every = subject == Path(SCENES_FILE).stem
            found = measure_scenes(encoder, scenes, vectors, subject=subject, every_language=every)
            self._keep(found, blocks=blocks)

    def _measure_cost(self, gallery: Gallery, scenes: Sequence[Scene]) -> None:
        self.progress("timing")
        load = os.getloadavg()[0] if hasattr(os, "getloadavg") else 0.0
        if load > (os.cpu_count() or 1) + 0.5:
            self.notes.append(
                f"speeds are lower bounds: the machine was busy with other work (load {load:.1f})"
            )
        captions = [scene.captions["en"] for scene in scenes[:_TIMED_CAPTIONS]]
        texts = [query.text for query in self.queries]
        self._keep(measure_cost(self.encoder, queries=texts, captions=captions, images=gallery.images))
        self._keep(measure_size(self.encoder, self.folder))

    def _keep(self, measurements: Iterable[Measurement], *, blocks: bool = True) -> None:
        self.measurements += [replace(one, blocks=blocks) for one in measurements]


def provenance(encoder: Encoder) -> dict[str, Any]:
    """What produced the numbers: encoder and weights hash, date, versions, machine and its load."""
    versions = {"python": platform.python_version(), "llm2clip-retrieval": code_version()}
    load = [round(value, 2) for value in os.getloadavg()] if hasattr(os, "getloadavg") else None
    return {
        "encoder": encoder.info.identity() | {"parameters": encoder.info.parameters},
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "versions": versions | dict(libraries()),
        "machine": {"platform": platform.platform(), "processors": os.cpu_count(), "load": load},
    }
