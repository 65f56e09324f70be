"""What a name or path given to ``load_encoder`` stands for: catalogue entry, folder, parsed ``config.json``."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from llm2clip.encoders.catalog.entries import EncoderEntry, LanguageModelEntry, find_encoder
from llm2clip.encoders.catalog.hub import HubFiles, encoder_files, resolve_files
from llm2clip.encoders.core.errors import ModelError
from llm2clip.encoders.core.files import read_object


@dataclass(frozen=True, kw_only=True)
class ModelFiles:
    """The files of one model: a published one of the catalogue, or a local folder or file."""

    name: str
    """What the encoder is called."""
    entry: EncoderEntry | LanguageModelEntry | None = None
    """The entry of the catalogue: the named one, or the one that a local folder is called like."""
    path: Path | None = None
    """A local folder or file of weights; ``None`` for a model from the hub."""

    @cached_property
    def folder(self) -> Path:
        """The folder of the files; downloaded from the hub if necessary.

        Raises:
            ModelError: The files are not on this machine and cannot be downloaded.
        """
        if self.path is not None:
            return self.path if self.path.is_dir() else self.path.parent
        assert isinstance(self.entry, EncoderEntry), "a model without a path is one of the catalogue"
        return resolve_files(encoder_files(self.entry))

    @cached_property
    def config(self) -> Mapping[str, Any]:
        """``config.json``, parsed; empty if there is none, or if a single file of weights was given.

        Raises:
            ModelError: It is not valid JSON, or a link that leads out of the folder.
        """
        path = self.folder / "config.json"
        single = self.path is not None and self.path.is_file()
        return read_object(path) if path.is_file() and not single else {}

    @property
    def local_folder(self) -> Path | None:
        """The folder, if the model is a local one."""
        return self.path if self.path is not None and self.path.is_dir() else None

    @property
    def encoder_entry(self) -> EncoderEntry | None:
        """The entry, if it is that of an encoder."""
        return self.entry if isinstance(self.entry, EncoderEntry) else None

    def beside(self, part: str, *, files: tuple[str, ...]) -> Path:
        """The folder of files that the model borrows from another encoder of the catalogue.

        Args:
            part: Sub-folder of a local folder that may hold them instead.
            files: The files needed.

        Raises:
            ModelError: They are not on this machine and cannot be downloaded, or no encoder is known to have them.
        """
        if self.path is not None and (self.folder / part).is_dir():
            return self.folder / part
        entry = self.encoder_entry
        other = find_encoder(entry.beside) if entry is not None else None
        if other is None:
            raise ModelError(f"{self.folder} has no folder {part}, which its model needs")
        return resolve_files(
            HubFiles(name=self.name, repository=other.repository, revision=other.revision, files=files)
        )
