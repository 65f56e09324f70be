"""Text and image search: an index and the encoder it was built with."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from threading import Lock
from types import TracebackType
from typing import TYPE_CHECKING, overload

if TYPE_CHECKING:
    from llm2clip.encoders import Encoder, ImageSource
    from llm2clip.indexer import Hit, Index, Progress


INDEX_VARIABLE = "LLM2CLIP_INDEX"
"""Environment variable that names the index to search."""


@dataclass(frozen=True, kw_only=True)
class Place:
    """The index that was chosen."""

    path: Path
    """Folder of the index."""
    sample: bool
    """Whether it is the index of the sample images, which can be built at any time."""
    fallback: bool = False
    """Whether it is the sample because no index was named and none has been built."""


def locate(index: str | os.PathLike[str] | None = None) -> Place:
    """Choose the index: ``index``, else ``LLM2CLIP_INDEX``, else the one built last, else the sample's.

    ``"sample:"`` names the sample's.

    Raises:
        IndexNotFoundError: The index that ``LLM2CLIP_INDEX`` names, or that was built last, does not exist.
    """
    from llm2clip.indexer.core.index_paths import SAMPLE, current_index, sample_index_path

    told = index if index is not None else os.environ.get(INDEX_VARIABLE) or None
    if told is None:
        last = current_index()
        if last is None:
            return Place(path=sample_index_path(), sample=True, fallback=True)
        _require(last, f"the index built last, {last}, no longer exists")
        return Place(path=last, sample=last == sample_index_path())
    if os.fspath(told) == SAMPLE:
        return Place(path=sample_index_path(), sample=True)
    path = Path(told).expanduser()
    if index is None:
        _require(path, f"{INDEX_VARIABLE} names {path}, which does not exist")
    return Place(path=path, sample=False)


def _require(path: Path, problem: str) -> None:
    from llm2clip.indexer.core.errors import IndexNotFoundError

    if not path.exists():
        raise IndexNotFoundError(
            f"{problem}: name another with --index PATH, build one of your own images with  llm2clip-index build "
            "FOLDER, or search the sample with --index sample:"
        )


class Searcher:
    """Searches one index by text or by image.

    The encoder is loaded at the first query, unless one is given.

        with Searcher.open("photos.index") as searcher:
            hits = searcher.search("两只猫在睡觉", k=10)
    """

    def __init__(
        self,
        index: Index,
        *,
        encoder: Encoder | str | os.PathLike[str] | None = None,
        device: str = "auto",
    ) -> None:
        """Search an open index; the other arguments are those of ``open``."""
        self.index = index
        self._source = encoder if isinstance(encoder, str | os.PathLike) else None
        self._device = device
        self._loading = Lock()
        self._encoder: Encoder | None = None
        if encoder is not None and not isinstance(encoder, str | os.PathLike):
            index.require_encoder(encoder.info)
            self._encoder = encoder

    @classmethod
    def open(
        cls,
        index_path: str | os.PathLike[str] | None = None,
        *,
        encoder: Encoder | str | os.PathLike[str] | None = None,
        device: str = "auto",
        on_progress: Callable[[Progress], None] | None = None,
    ) -> Searcher:
        """Open an index for searching.

        Args:
            index_path: Folder of the index, or ``"sample:"``. ``None``: the one that ``LLM2CLIP_INDEX`` names, else
                the index built last, else the sample's.
            encoder: The encoder, or its name or folder. ``None``: the one the index names.
            device: Where the encoder runs: ``"auto"``, ``"cpu"``, ``"cuda"``, ...; on a named CUDA device, vectors are
                searched there too.
            on_progress: Called while the sample's index is built, if needed.

        Raises:
            IndexerError: The index is missing, unfinished, damaged or of another format version.
            EncoderMismatchError: ``encoder`` is not the one the index was built with.
        """
        place = locate(index_path)
        if not place.sample:
            from llm2clip.indexer import open_index

            index_device = device if device.startswith("cuda") else "cpu"
            return cls(open_index(place.path, device=index_device), encoder=encoder, device=device)
        from llm2clip.encoders import load_encoder
        from llm2clip.retrieval.sample_index import open_sample, sample_encoder

        if encoder is None or isinstance(encoder, str | os.PathLike):
            encoder = load_encoder(encoder or sample_encoder(), device=device)
        return cls(open_sample(encoder, on_progress=on_progress), encoder=encoder, device=device)

    @property
    def encoder(self) -> Encoder:
        """The encoder; loaded on first use.

        Raises:
            ModelError: It cannot be loaded.
            EncoderMismatchError: It is not the one the index was built with.
        """
        with self._loading:
            if self._encoder is None:
                from llm2clip.encoders import ModelError, load_encoder

                manifest = self.index.manifest
                try:
                    loaded = load_encoder(self._source or manifest.encoder_source, device=self._device)
                except (ValueError, OSError) as error:
                    if self._source is not None:
                        raise
                    raise ModelError(
                        f"{self.index.path} was built with encoder '{manifest.encoder['name']}', which cannot be "
                        f"loaded ({error}); if it was moved, name it with --encoder"
                    ) from error
                self.index.require_encoder(loaded.info)
                self._encoder = loaded
            return self._encoder

    @overload
    def search(self, query: str, *, k: int = 10, where: str | None = None) -> list[Hit]: ...
    @overload
    def search(
        self, query: list[str] | tuple[str, ...], *, k: int = 10, where: str | None = None
    ) -> list[list[Hit]]: ...
    def search(
        self, query: str | list[str] | tuple[str, ...], *, k: int = 10, where: str | None = None
    ) -> list[Hit] | list[list[Hit]]:
        """The ``k`` images nearest to a text, or to each of several.

        A text longer than ``encoder.info.max_text_tokens`` is truncated with a ``TextTooLongWarning``.

        Args:
            query: A text, or a list of texts.
            k: Number of hits; fewer if the index holds fewer images.
            where: Filter on the images (docs/filters.md); ``None``: all.

        Returns:
            Hits, best first; for a list of texts, a list of them in the order of the texts.

        Raises:
            ValueError: A text is empty or blank, or ``k`` is below 1.
            WhereError: The filter is invalid; the message points at the place.
            EncoderMismatchError: The encoder is not the one the index was built with.
        """
        texts = [query] if isinstance(query, str) else list(query)
        _check_texts(texts)
        _check_k(k)
        self._check_where(where)
        found = self.index.search(self.encoder.encode_texts(texts), k=k, where=where) if texts else []
        return found[0] if isinstance(query, str) else found

    def search_images(
        self, images: Sequence[ImageSource], *, k: int = 10, where: str | None = None
    ) -> list[list[Hit]]:
        """The ``k`` images nearest to each of several query images.

        Args:
            images: Paths, encoded bytes, PIL images, or arrays of shape (H, W, 3), uint8.
            k: Number of hits; fewer if the index holds fewer images.
            where: As for ``search``.

        Returns:
            The hits of each image, best first. An image in the index finds itself.

        Raises:
            ImageError: An image cannot be read.
            ValueError: ``k`` is below 1, or ``images`` is one image rather than a list.
            WhereError: The filter is invalid.
            EncoderMismatchError: The encoder is not the one the index was built with.
        """
        if not isinstance(images, list | tuple):
            raise ValueError(
                f"images must be a list of images, got {type(images).__name__}: put the image in a list"
            )
        _check_k(k)
        self._check_where(where)
        return self.index.search(self.encoder.encode_images(images), k=k, where=where) if images else []

    def close(self) -> None:
        """Close the index."""
        self.index.close()

    def __enter__(self) -> Searcher:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @staticmethod
    def _check_where(where: str | None) -> None:
        """Refuse an invalid filter before an encoder is loaded."""
        if where is not None:
            from llm2clip.indexer import compile_where

            compile_where(where)


def _check_texts(texts: Sequence[str]) -> None:
    for number, text in enumerate(texts, start=1):
        if not isinstance(text, str):
            raise ValueError(
                f"query {number} must be text, got {type(text).__name__}; for images use search_images"
            )
        if not text.strip():
            which = "the query" if len(texts) == 1 else f"query {number} of {len(texts)}"
            raise ValueError(f"{which} is empty; give at least one word, such as 'bicycle'")


def _check_k(k: int) -> None:
    if k < 1:
        raise ValueError(f"k must be at least 1, got {k}")
