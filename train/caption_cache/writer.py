"""Write features of millions of captions; an interrupted run resumes.

A feature folder has ``features-00000.npy`` (float16, one row per caption), ``keys-00000.txt`` (one line per row: the
key of its caption) and so on, and ``manifest.json``: encoder, sources, progress. A block of captions counts once its
rows are on disk and the manifest, replaced atomically, says so; anything beyond is cut off on resuming. An interrupted
run ends up with the same bytes as any other.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from llm2clip.common.files import file_sha256, write_atomic
from llm2clip.encoders import DualEncoder, Encoder
from llm2clip.encoders.llm2clip.encoder_folder import FolderTextTower
from llm2clip.encoders.text.llm_text_tower import LlmTextTower
from llm2clip.train.caption_cache.sources import Caption, CaptionError, caption_files, read_captions
from llm2clip.train.caption_cache.store import (
    FORMAT,
    HEADER,
    MANIFEST,
    FeatureError,
    Progress,
    alone,
    append,
    cut,
    npy_header,
    progress_of,
    read_manifest,
    to_disk,
)

if TYPE_CHECKING:
    from numpy.typing import NDArray

_REASONS = 20
"""How many of the captions that were left out are named."""


@dataclass(frozen=True, kw_only=True)
class FeatureOptions:
    """How captions are read and written."""

    field: str | None = None
    """Entry of a JSON object with the text; see ``read_captions``."""
    block: int = 2048
    """Captions that are read at once, and lost at most when the work is interrupted."""
    shard: int = 131_072
    """Most rows of a file. Of width 4096 that is 1.07 GB."""

    def __post_init__(self) -> None:
        if not 1 <= self.block <= self.shard:
            raise ValueError(
                f"block must be positive and no more than shard, got {self.block} and {self.shard}"
            )


@dataclass(frozen=True, kw_only=True)
class Maker:
    """What computes the features."""

    kind: Literal["states", "vectors"]
    """Mean states of a language model, which adapters read; or vectors of an encoder without one of its own."""
    identity: dict[str, Any]
    """What made them, and with what settings."""
    dim: int
    """Length of one."""
    make: Callable[[Sequence[str]], NDArray[np.float32]]
    """Texts to features, shape (n, dim)."""


def maker_of(encoder: Encoder) -> Maker:
    """An encoder's features: mean states before the adapter of an LLM2CLIP, else its vectors."""
    tower = encoder.text_tower if isinstance(encoder, DualEncoder) else None
    if isinstance(encoder, DualEncoder) and isinstance(tower, LlmTextTower):
        identity: dict[str, Any] = {"name": tower.source.name, "settings_sha256": tower.settings_sha256}
        width = tower.source.width or tower.source.plan.config.hidden_size
        identity["held_as"] = tower.dtype
        return Maker(kind="states", identity=identity, dim=width, make=encoder.language_features)
    if isinstance(encoder, DualEncoder) and isinstance(tower, FolderTextTower):
        said = encoder.info.identity()
        return Maker(kind="states", identity=said, dim=tower.width, make=encoder.language_features)
    return Maker(
        kind="vectors", identity=encoder.info.identity(), dim=encoder.info.dim, make=encoder.encode_texts
    )


def write_features(
    sources: Sequence[str | Path],
    folder: str | Path,
    *,
    maker: Maker,
    options: FeatureOptions | None = None,
    tell: Callable[[Progress], None] | None = None,
) -> Progress:
    """Write features of captions to a folder, resuming an interrupted call.

    Args:
        sources: Files of captions, or folders of them.
        folder: Where to write.
        maker: Computes the features.
        options: How captions are read and written.
        tell: Called after each block on disk.

    Raises:
        CaptionError: A source cannot be read, or has changed since the run began.
        FeatureError: The folder has other features, or another process writes to it.
        OSError: The disk is full or cannot be written.
    """
    options = options or FeatureOptions()
    files = caption_files(sources)
    described = [{"name": path.name, "bytes": path.stat().st_size} for path in files]
    captions = read_captions(files, field=options.field)
    return write_rows(captions, Path(folder), described, maker=maker, options=options, tell=tell)


def write_rows(
    captions: Iterator[Caption],
    folder: Path,
    described: list[dict[str, Any]],
    *,
    maker: Maker,
    options: FeatureOptions,
    tell: Callable[[Progress], None] | None = None,
) -> Progress:
    """Write a row for each caption, or for whatever ``maker`` makes of its text, resuming an interrupted call.

    Args:
        captions: In the same order in every call.
        folder: Where to write.
        described: What they come from, for the manifest; a resumed call needs the same.
        maker: Computes the features.
        options: How they are written.
        tell: Called after each block on disk.

    Raises:
        CaptionError: The captions have changed since the run began.
        FeatureError: The folder has other features, or another process writes to it.
        OSError: The disk is full or cannot be written.
    """
    work = _Work(folder, described, maker, options)
    with alone(work.folder):
        progress = work.begin()
        blocks = _blocks(captions, options)
        if not progress.complete:
            _skip(blocks, progress)
            for block in blocks:
                progress = work.add(block, progress)
                if tell is not None:
                    tell(progress)
            progress = work.finish(progress)
    return progress


@dataclass(frozen=True)
class _Block:
    captions: list[Caption]
    left_out: list[Caption]

    def digest(self, before: str) -> str:
        """Hash of the previous digest and this block."""
        sha = hashlib.sha256(before.encode())
        for caption in chain(self.captions, self.left_out):
            sha.update(json.dumps([caption.key, caption.text]).encode() + b"\n")
        return sha.hexdigest()


def _blocks(all_captions: Iterator[Caption], options: FeatureOptions) -> Iterator[_Block]:
    captions: list[Caption] = []
    left_out: list[Caption] = []
    for caption in all_captions:
        (left_out if caption.problem else captions).append(caption)
        if len(captions) + len(left_out) == options.block:
            yield _Block(captions, left_out)
            captions, left_out = [], []
    if captions or left_out:
        yield _Block(captions, left_out)


def _skip(blocks: Iterator[_Block], progress: Progress) -> None:
    """Skip the captions already read, which must be unchanged."""
    digest, seen = Progress().captions_sha256, 0
    while seen < progress.rows + progress.left_out:
        block = next(blocks, None)
        if block is None:
            break
        digest = block.digest(digest)
        seen += len(block.captions) + len(block.left_out)
    if digest != progress.captions_sha256:
        raise CaptionError(
            f"the first {progress.rows + progress.left_out:,} captions are not those whose features are there already; "
            "give the same files in the same order, or another --out folder"
        )


class _Work:
    """The files of one folder."""

    def __init__(
        self, folder: Path, described: list[dict[str, Any]], maker: Maker, options: FeatureOptions
    ) -> None:
        self.folder, self.maker, self.options = folder, maker, options
        self._what = {
            "format": FORMAT,
            "kind": maker.kind,
            "dim": maker.dim,
            "dtype": "float16",
            "made_by": maker.identity,
            "sources": described,
            "options": asdict(options),
        }

    def begin(self) -> Progress:
        """Progress so far, with everything uncounted cut off."""
        path = self.folder / MANIFEST
        if not path.exists():
            self._save(Progress())
        saved = read_manifest(path)
        progress = progress_of(saved)
        wanted = json.loads(json.dumps(self._what))
        if changed := sorted(key for key in wanted if saved.get(key) != wanted[key]):
            raise FeatureError(
                f"{self.folder} has features of other inputs or settings (different: {', '.join(changed)}); choose "
                "another --out folder, or delete this one"
            )
        if not progress.complete:
            for file, size in zip(
                self._files(progress), (self._end(progress), progress.key_bytes), strict=True
            ):
                cut(file, size, counted=self._open_rows(progress) > 0)
        return progress

    def add(self, block: _Block, progress: Progress) -> Progress:
        """Compute features of a block and write them to disk."""
        if self._open_rows(progress) + self.options.block > self.options.shard:
            progress = self._close(progress)
        texts = [caption.text for caption in block.captions]
        features = self._features(texts)
        names = "".join(f"{caption.key}\n" for caption in block.captions).encode(errors="backslashreplace")
        rows, keys = self._files(progress)
        append(rows, features.tobytes(), at=self._end(progress))
        append(keys, names, at=progress.key_bytes)
        reasons = [f"{caption.key}: {caption.problem}" for caption in block.left_out]
        progress = replace(
            progress,
            rows=progress.rows + len(texts),
            left_out=progress.left_out + len(reasons),
            reasons=(*progress.reasons, *reasons)[:_REASONS],
            key_bytes=progress.key_bytes + len(names),
            captions_sha256=block.digest(progress.captions_sha256),
        )
        self._save(progress)
        return progress

    def finish(self, progress: Progress) -> Progress:
        """Close the last files and mark the folder complete."""
        if self._open_rows(progress):
            progress = self._close(progress)
        for file in self._files(progress):
            file.unlink(missing_ok=True)
        progress = replace(progress, complete=True)
        self._save(progress)
        return progress

    def _features(self, texts: Sequence[str]) -> NDArray[np.float16]:
        if not texts:
            return np.zeros((0, self.maker.dim), np.float16)
        with np.errstate(over="ignore"):
            features: NDArray[np.float16] = self.maker.make(texts).astype("<f2")
        if features.shape != (len(texts), self.maker.dim) or not np.isfinite(features).all():
            raise FeatureError(
                f"{self.maker.identity['name']} gave features that float16 cannot hold, or of another shape than "
                f"{(len(texts), self.maker.dim)}: {features.shape}"
            )
        return features

    def _close(self, progress: Progress) -> Progress:
        """Write the header of the open file and count it as finished; idempotent."""
        rows, keys = self._files(progress)
        count = self._open_rows(progress)
        with rows.open("r+b") as stream:
            stream.write(npy_header(count, self.maker.dim))
            to_disk(stream)
        entry = {"file": rows.name, "keys": keys.name, "rows": count, "sha256": file_sha256(rows)}
        progress = replace(progress, key_bytes=0, shards=(*progress.shards, entry))
        self._save(progress)
        return progress

    def _files(self, progress: Progress) -> tuple[Path, Path]:
        """Files being written: rows and keys."""
        number = len(progress.shards)
        return self.folder / f"features-{number:05d}.npy", self.folder / f"keys-{number:05d}.txt"

    def _open_rows(self, progress: Progress) -> int:
        finished: int = sum(shard["rows"] for shard in progress.shards)
        return progress.rows - finished

    def _end(self, progress: Progress) -> int:
        return HEADER + self._open_rows(progress) * self.maker.dim * 2

    def _save(self, progress: Progress) -> None:
        text = json.dumps(self._what | {"progress": asdict(progress)}, indent=1, ensure_ascii=False)
        write_atomic(self.folder / MANIFEST, text, alone=True)
