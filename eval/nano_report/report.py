"""The report on nano: everything measured, with what it was measured on and by what."""

from __future__ import annotations

import hashlib
import os
import platform
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from importlib import resources
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llm2clip.eval.datasets.tar_images import DatasetError
from llm2clip.eval.nano_report.ablation import without_blocks
from llm2clip.eval.nano_report.cost import measure_cost, measure_size
from llm2clip.eval.nano_report.data import (
    OTHER_SCENES_FILE,
    SCENES_FILE,
    Gallery,
    Scene,
    make_missing,
    read_gallery,
    read_scenes,
)
from llm2clip.eval.nano_report.measures import (
    Measurement,
    QueryAnswer,
    answer_queries,
    count_answers,
    index_gallery,
    measure_names,
    measure_scene_languages,
    measure_scenes,
)
from llm2clip.eval.nano_report.queries import QUERIES_FILE, FreeQuery, load_queries
from llm2clip.eval.nano_report.targets import TARGETS
from llm2clip.eval.runner.evaluate import RememberedTexts, TextEncoder, encode_images
from llm2clip.indexer.core.index_paths import sample_shards

if TYPE_CHECKING:
    from llm2clip.encoders import Encoder

_LIBRARIES = ("llm2clip-retrieval", "torch", "transformers", "tokenizers", "numpy", "pillow", "faiss-cpu")

_TIMED_CAPTIONS = 50

Progress = Callable[[str], None]
"""Told what is being done now."""


@dataclass(frozen=True, kw_only=True)
class NanoOptions:
    """What to measure."""

    data: Path
    """Folder of evaluation files, made when missing."""
    styles: tuple[str, ...] = ("noto", "openmoji")
    """Galleries; a style that the sample corpus lacks is looked for as ``<data>/<style>.tar``."""
    scenes: bool = True
    """Measure long captions."""
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
    """Encoder identity, date, versions, machine, and the SHA-256 of every file that was measured on."""
    measurements: tuple[Measurement, ...]
    """The numbers."""
    answers: tuple[QueryAnswer, ...] = ()
    """What each free-form query found."""
    queries: tuple[FreeQuery, ...] = ()
    """The free-form queries."""
    notes: tuple[str, ...] = field(default=())
    """What was left out and why."""

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
        targets = []
        for target in TARGETS:
            found = target.find(self.measurements)
            value = found.value if found else None
            met = target.met(found.value) if found else None
            targets.append({**asdict(target), "value": value, "met": met})
        return {"report": "nano", "format": 1, "provenance": self.provenance, "notes": list(self.notes)} | {
            "targets": targets,
            "tables": tables,
        }


def measure_nano(
    encoder: Encoder, *, options: NanoOptions, folder: Path | None, progress: Progress
) -> NanoReport:
    """Measure names, free-form queries, scenes, the worth of the blocks, and cost.

    Args:
        encoder: The encoder to measure.
        options: What to measure and where the data lie.
        folder: The encoder's own files, for their size and for the copy without blocks.
        progress: Told what is being done now.

    Raises:
        ValueError: If evaluation data are missing or unreadable.
        OSError: If a file cannot be read or written.
    """
    run = _Run(encoder, options=options, folder=folder, progress=progress)
    with tempfile.TemporaryDirectory(prefix="llm2clip-eval-") as scratch:
        run.measure(Path(scratch))
    return run.report()


class _Run:
    """One measuring run: collects numbers while the images are encoded once."""

    def __init__(
        self, encoder: Encoder, *, options: NanoOptions, folder: Path | None, progress: Progress
    ) -> None:
        self.encoder = encoder
        self.options = options
        self.folder = folder
        self.progress = progress
        self.queries = load_queries()
        self.provenance = provenance(encoder)
        self.measurements: list[Measurement] = []
        self.answers: list[QueryAnswer] = []
        self.notes: list[str] = []

    def report(self) -> NanoReport:
        return NanoReport(
            provenance=self.provenance,
            measurements=tuple(self.measurements),
            answers=tuple(self.answers),
            queries=self.queries,
            notes=tuple(self.notes),
        )

    def measure(self, scratch: Path) -> None:
        galleries, scenes = self._load()
        sides: list[tuple[TextEncoder, bool]] = [(RememberedTexts(self.encoder), True)]
        if self.options.blocks and self.folder is not None:
            self.progress("switching the transformer blocks off in a copy")
            bare = without_blocks(self.folder, scratch / "without-blocks")
            sides.append((RememberedTexts(bare), False))
        elif self.options.blocks:
            self.notes.append("blocks not switched off: the encoder is no folder of files")
        for gallery in galleries:
            self._measure_gallery(gallery, sides, scratch)
        for _, blocks in sides:
            answers = [answer for answer in self.answers if answer.blocks is blocks]
            self._keep(count_answers(answers, queries=self.queries), blocks=blocks)
        for subject, some in scenes.items():
            self._measure_scenes(subject, some, sides)
        self.progress("timing")
        if load := busy_with():
            self.notes.append(
                f"speeds are lower bounds: the machine was busy with other work (load {load:.1f})"
            )
        captions = [scene.captions["en"] for some in scenes.values() for scene in some][:_TIMED_CAPTIONS]
        texts = [query.text for query in self.queries]
        images = galleries[0].images
        self._keep(measure_cost(self.encoder, queries=texts, captions=captions, images=images))
        self._keep(measure_size(self.encoder, self.folder))

    def _load(self) -> tuple[list[Gallery], dict[str, tuple[Scene, ...]]]:
        options = self.options
        shipped = sample_shards()
        found = {style: read_gallery(shipped, style=style) for style in options.styles}
        needed = [f"{style}.tar" for style, gallery in found.items() if gallery is None]
        if options.scenes:
            needed.append(SCENES_FILE)
        make_missing(options.data, needed, say=self.progress)
        galleries = []
        for style, shipped_gallery in found.items():
            gallery = shipped_gallery or read_gallery([options.data / f"{style}.tar"], style=style)
            if gallery is None:
                raise DatasetError(
                    f"{options.data / style}.tar has no image of kind 'emoji', style '{style}'"
                )
            galleries.append(gallery)
        files = (SCENES_FILE, OTHER_SCENES_FILE) if options.scenes else ()
        scenes = {Path(name).stem: options.data / name for name in files if (options.data / name).is_file()}
        self._note_files(galleries, scenes)
        return galleries, {subject: read_scenes(tar) for subject, tar in scenes.items()}

    def _note_files(self, galleries: Sequence[Gallery], scenes: Mapping[str, Path]) -> None:
        self.progress("hashing what is measured on")
        files = {one.style: {image.tar for image in one.images} for one in galleries}
        files |= {subject: {tar} for subject, tar in scenes.items()}
        files["queries"] = {QUERIES_FILE}
        self.provenance["measured_on"] = {
            subject: {file.name: file_sha256(file) for file in sorted(found)}
            for subject, found in files.items()
        }

    def _measure_gallery(
        self, gallery: Gallery, sides: Sequence[tuple[TextEncoder, bool]], scratch: Path
    ) -> None:
        self.progress(f"{gallery.style}: encoding {len(gallery.images):,} images")
        vectors = encode_images(self.encoder, gallery.images)
        self.progress(f"{gallery.style}: building an index")
        index = index_gallery(self.encoder, gallery, scratch / f"{gallery.style}.index")
        known = self.encoder.info.languages
        languages = [language for language in gallery.languages() if not known or language in known]
        if not languages:
            raise DatasetError(
                f"gallery '{gallery.style}' has names in {gallery.languages()}, expected one of {list(known)}"
            )
        for encoder, blocks in sides:
            off = "" if blocks else ", blocks switched off"
            self.progress(f"{gallery.style}: names in {len(languages)} languages{off}")
            self._keep(measure_names(encoder, gallery, vectors, languages=languages), blocks=blocks)
            self.progress(f"{gallery.style}: {len(self.queries)} free-form queries{off}")
            answers = answer_queries(encoder, gallery, index, queries=self.queries)
            self.answers += [replace(answer, blocks=blocks) for answer in answers]

    def _measure_scenes(
        self, subject: str, scenes: Sequence[Scene], sides: Sequence[tuple[TextEncoder, bool]]
    ) -> None:
        self.progress(f"{subject}: encoding {len(scenes):,} images")
        vectors = encode_images(self.encoder, [scene.image for scene in scenes])
        for encoder, blocks in sides:
            self.progress(f"{subject}: long captions" + ("" if blocks else ", blocks switched off"))
            self._keep(measure_scenes(encoder, scenes, vectors, subject=subject), blocks=blocks)
            if subject == Path(SCENES_FILE).stem:  # long captions are slow: one set in all languages will do
                found = measure_scene_languages(encoder, scenes, vectors, subject=subject)
                self._keep(found, blocks=blocks)

    def _keep(self, measurements: Iterable[Measurement], *, blocks: bool = True) -> None:
        self.measurements += [replace(one, blocks=blocks) for one in measurements]


def encoder_folder(name: str) -> Path | None:
    """Folder of an encoder given by path or by the name of a shipped one; ``None`` for any other name."""
    shipped = Path(str(resources.files("llm2clip.encoders"))) / name
    for folder in (Path(name), shipped):
        if (folder / "model.safetensors").is_file():
            return folder
    return None


def file_sha256(path: Path) -> str:
    """SHA-256 of a file in hexadecimal."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def busy_with() -> float | None:
    """Load average of the last minute where it is more than this process alone would make, else ``None``."""
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else 0.0
    return load if load > (os.cpu_count() or 1) + 0.5 else None


def provenance(encoder: Encoder) -> dict[str, Any]:
    """What produced the numbers: encoder and weights hash, date, versions, machine and its load."""
    versions = {"python": platform.python_version()}
    for library in _LIBRARIES:
        try:
            versions[library] = version(library)
        except PackageNotFoundError:
            continue
    return {
        "encoder": encoder.info.identity() | {"parameters": encoder.info.parameters},
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "versions": versions,
        "machine": {
            "platform": platform.platform(),
            "processors": os.cpu_count(),
            "load": [round(value, 2) for value in os.getloadavg()] if hasattr(os, "getloadavg") else None,
        },
    }
