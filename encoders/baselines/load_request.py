"""What the loaders of the baselines share: what was asked for, where its files are, and its two sides."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import torch

from llm2clip.encoders.baselines.hf_dual import Checkpoint
from llm2clip.encoders.catalog.entries import EncoderEntry, find_encoder
from llm2clip.encoders.catalog.hub import HubFiles, resolve_files
from llm2clip.encoders.core.base import EncoderInfo
from llm2clip.encoders.core.devices import pick_device, pick_dtype
from llm2clip.encoders.core.errors import ModelError
from llm2clip.encoders.core.fingerprint import settings_sha256, without_origin
from llm2clip.encoders.images.preprocess import Preprocess
from llm2clip.encoders.text.clip_tokenizer import TextForm, tokenizer_files
from llm2clip.encoders.text.dual_encoder import ImageTower, TowerTextSide
from llm2clip.encoders.weights.hf_weights import convert

Parity = Literal["native", "upstream"]


@dataclass(frozen=True, kw_only=True)
class Request:
    """A baseline to be opened."""

    name: str
    """What the encoder is to be called."""
    row: EncoderEntry | None = None
    """Its line of the catalogue; none for a model of one's own."""
    given: Path | None = None
    """The folder its files were put in by hand; fetched from the hub if ``None``."""
    device: torch.device
    """Where it runs."""
    dtype: torch.dtype
    """Of the arithmetic."""
    parity: Parity = "native"
    """How images are treated that are no upright 8-bit RGB; see ``Preprocess``."""

    @cached_property
    def folder(self) -> Path:
        """Where its files are, fetched now if need be.

        Raises:
            ModelError: They are not on this machine and cannot be fetched.
        """
        if self.given is not None:
            return self.given
        assert self.row is not None, "a request has a row or a folder"
        return resolve_files(wanted(self.row))

    def beside(self, part: str, *, files: tuple[str, ...] = ()) -> Path:
        """Where the files are that it takes from another encoder of the catalogue.

        Args:
            part: The folder inside a folder of one's own that may hold them.
            files: Those of the other's files that are needed; all if empty.
        """
        if self.given is not None and (self.given / part).is_dir():
            return self.given / part
        other = find_encoder(self.row.beside) if self.row is not None else None
        if other is None:
            raise ModelError(f"{self.folder} has no folder {part}, which its model needs")
        return resolve_files(wanted(other, name=self.name, files=files))

    def converted(self) -> Path:
        """The one file of weights that the catalogue names, as safetensors.

        Raises:
            ModelError: It is not there, is damaged, or is not the published one where that was asked for by name.
        """
        assert self.row is not None, "found by the name of its file"
        row, path = self.row, self.folder / self.row.weights
        if not path.is_file():
            raise ModelError(f"{self.folder} has no {row.weights}")
        if self.given is not None:
            return convert(path)
        size = path.stat().st_size
        if row.weights_bytes and size != row.weights_bytes:
            raise ModelError(
                f"{path} has {size:,} bytes, the published file {row.weights_bytes:,}; fetch it again"
            )
        return convert(path, sha256=row.weights_sha256 or None)

    def tokenizer_folder(self) -> Path:
        """Where its tokenizer is: beside its weights, or with the encoder it takes it from."""
        if tokenizer_files(self.folder):
            return self.folder
        return self.beside("tokenizer", files=("tokenizer.json",))

    def settings_hash(self, config: Mapping[str, Any], *, form: TextForm) -> str:
        """SHA-256 of what shapes the vectors besides weights and preprocessing: configuration, tokenizer, its rules.

        A tokenizer that another encoder lends counts by that encoder's name, as it may not have been fetched yet.
        """
        settings: dict[str, Any] = {"config": without_origin(config), "form": asdict(form)}
        files = tokenizer_files(self.folder)
        if not files and self.given is not None:
            files = tokenizer_files(self.given / "tokenizer")
        if not files and self.row is not None:
            settings["tokenizer"] = self.row.beside
        return settings_sha256(settings, files=files)

    def info(
        self,
        *,
        family: str,
        dim: int,
        preprocess: Preprocess,
        limit: int,
        sha256: str,
        settings_sha256: str,
        parameters: int,
    ) -> EncoderInfo:
        """What the encoder says of itself: what was measured of its files, and what the catalogue knows."""
        row = self.row
        return EncoderInfo(
            name=self.name,
            family=family,
            dim=dim,
            image_size=preprocess.size,
            max_text_tokens=limit,
            weights_sha256=sha256,
            settings_sha256=settings_sha256,
            preprocessing=preprocess.identifier,
            parameters=parameters,
            languages=row.languages if row else (),
            licence=row.licence if row else "unknown",
            note=row.note if row else f"a {family} model of your own",
        )


def wanted(row: EncoderEntry, *, name: str = "", files: tuple[str, ...] = ()) -> HubFiles:
    """Files of a line of the catalogue, all if none are named, needed by the encoder ``name`` or by itself."""
    return HubFiles(
        name=name or row.name,
        repository=row.repository,
        files=files or row.files,
        revision=row.revision,
        size=0 if files else row.download_bytes,
    )


def request(
    name: str,
    *,
    row: EncoderEntry | None = None,
    given: Path | None = None,
    device: str,
    dtype: str,
    parity: Parity = "native",
) -> Request:
    """A request with device and dtype picked.

    Raises:
        ValueError: There is no such device or dtype.
    """
    place = pick_device(device)
    arithmetic = pick_dtype(dtype, device=place, stored="float16")
    return Request(name=name, row=row, given=given, device=place, dtype=arithmetic, parity=parity)


def image_side(checkpoint: Checkpoint, asked: Request) -> ImageTower:
    """The vision tower of a model of a family."""
    return ImageTower(
        lambda: checkpoint.load_vision(dtype=asked.dtype, device=asked.device),
        preprocess=replace(checkpoint.preprocess, parity=asked.parity),
        dtype=asked.dtype,
        device=asked.device,
    )


def text_side(checkpoint: Checkpoint, asked: Request) -> TowerTextSide:
    """The text tower of a model of a family."""
    return TowerTextSide(
        lambda: checkpoint.load_text(dtype=asked.dtype, device=asked.device),
        reader=checkpoint.reader,
        device=asked.device,
    )
