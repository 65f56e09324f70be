"""Texts or images in, ranked hits out: an index and the encoder it was built with."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from threading import Lock
from types import TracebackType
from typing import TYPE_CHECKING, overload

if TYPE_CHECKING:
    from llm2clip.encoders import Encoder, ImageSource
    from llm2clip.indexer import Hit, Index, Progress


class Searcher:
    """Searches one index by text or by image.

    The encoder is loaded when the first query comes, unless one is handed in.

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
        """Search an index that is open already; otherwise as ``open``."""
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
            index_path: Folder of the index, or ``"sample:"``. ``None``: what ``LLM2CLIP_INDEX`` names, else
                the index built last, else the sample's.
            encoder: The encoder, or its name or folder. ``None``: the one the index names.
            device: Where the encoder runs: ``"auto"``, ``"cpu"``, ``"cuda"``, ...; where CUDA is named, the vectors
                are searched there too.
            on_progress: Called while the sample's index is built, where it is wanted and there is none yet.

        Raises:
            IndexerError: The index is missing, unfinished, damaged or of another format version.
            EncoderMismatchError: ``encoder`` is not the one the index was built with.
        """
        from llm2clip.indexer import open_index
        from llm2clip.retrieval.index_selection import locate, open_sample, sample_encoder

        place = locate(index_path)
        if not place.sample:
            there = device if device.startswith("cuda") else "cpu"
            return cls(open_index(place.path, device=there), encoder=encoder, device=device)
        if encoder is None or isinstance(encoder, str | os.PathLike):
            encoder = _load(encoder or sample_encoder(), device=device)
        return cls(open_sample(encoder, on_progress=on_progress), encoder=encoder, device=device)

    @property
    def encoder(self) -> Encoder:
        """The encoder, loaded now if it was not yet.

        Raises:
            ModelError: It cannot be loaded.
            EncoderMismatchError: It is not the one the index was built with.
        """
        with self._loading:
            if self._encoder is None:
                loaded = self._load()
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

        Texts may be as long as ``encoder.info.max_text_tokens``; of a longer one the encoder reads the start
        and warns with ``TextTooLongWarning``, which says how many tokens of how many.

        Args:
            query: A text, or a list of texts.
            k: Hits wanted; fewer come back where the index holds fewer.
            where: Which images may be found, in the language of docs/filters.md; ``None``: all.

        Returns:
            Hits, best first; for a list of texts, a list of them in the order of the texts.

        Raises:
            ValueError: A text is empty or blank, or ``k`` is below 1.
            WhereError: The filter means nothing; the message points at the place.
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
            k: Hits wanted; fewer come back where the index holds fewer.
            where: As for ``search``.

        Returns:
            For each image its hits, best first. An image that the index holds finds itself.

        Raises:
            ImageError: An image cannot be read.
            ValueError: ``k`` is below 1, or ``images`` is one image rather than a list.
            WhereError: The filter means nothing.
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
        """Close the index; the searcher is of no use afterwards."""
        self.index.close()

    def __enter__(self) -> Searcher:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @staticmethod
    def _check_where(where: str | None) -> None:
        """Find out that a filter means nothing before an encoder is loaded for it."""
        if where is not None:
            from llm2clip.indexer import compile_where

            compile_where(where)

    def _load(self) -> Encoder:
        if self._source is not None:
            return _load(self._source, device=self._device)
        info = self.index.info()
        try:
            return _load(info.encoder_source, device=self._device)
        except (ValueError, OSError) as error:
            from llm2clip.encoders import ModelError

            raise ModelError(
                f"{info.path} was built with encoder '{info.encoder['name']}', which cannot be loaded "
                f"({error}); if it lies elsewhere now, name it with --encoder"
            ) from error


def _load(encoder: str | os.PathLike[str], *, device: str) -> Encoder:
    from llm2clip.encoders import load_encoder

    return load_encoder(encoder, device=device)


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
