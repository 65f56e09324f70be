"""Text and image search: one index or several, and the encoder they were built with."""

from __future__ import annotations

import operator
import os
import warnings
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from itertools import chain, islice
from threading import Lock
from types import TracebackType
from typing import TYPE_CHECKING, overload

from llm2clip.indexer.core.errors import EncoderMismatchError, IndexerError
from llm2clip.indexer.core.index_paths import Place, locate, require_named_encoder
from llm2clip.retrieval.query.cleaning import cleaned
from llm2clip.retrieval.query.expression import weighted_sum
from llm2clip.retrieval.query.languages import UnknownLanguageWarning, language_warning

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from llm2clip.encoders import Encoder, ImageSource
    from llm2clip.indexer import Hit, Index, Progress


class Searcher:
    """Searches one index, or several of the same encoder, by text or by image.

    The encoder is loaded at the first query, unless one is given.

        with Searcher.open("photos.index") as searcher:
            hits = searcher.search("两只猫在睡觉", k=10)
    """

    def __init__(
        self,
        index: Index | Sequence[Index],
        *,
        encoder: Encoder | str | os.PathLike[str] | None = None,
        device: str = "auto",
    ) -> None:
        """Search open indexes; the other arguments and the errors are those of ``open``."""
        self.indexes: tuple[Index, ...] = tuple(index) if isinstance(index, list | tuple) else (index,)  # type: ignore[assignment]
        """The indexes that are searched together."""
        self.index = self.indexes[0]
        """The first of them."""
        self._source = encoder if isinstance(encoder, str | os.PathLike) else None
        self._device = device
        self._loading = Lock()
        self._process: int | None = os.getpid()
        self._encoder: Encoder | None = None
        self._warned: set[str] = set()
        """Languages that a warning was given for."""
        for other in self.indexes[1:]:
            _require_same_encoder(self.index, other)
        if encoder is not None and not isinstance(encoder, str | os.PathLike):
            self.index.require_encoder(encoder.info)
            self._encoder = encoder

    @classmethod
    def open(
        cls,
        index_path: str | os.PathLike[str] | Sequence[str | os.PathLike[str]] | None = None,
        *,
        encoder: Encoder | str | os.PathLike[str] | None = None,
        device: str = "auto",
        on_progress: Callable[[Progress], None] | None = None,
    ) -> Searcher:
        """Open an index for searching, or several to search together.

        Args:
            index_path: Folder or name of the index, or ``"sample:"``; a list of them: several. ``None``: the one that
                ``LLM2CLIP_INDEX`` names, else the default one, else the sample's.
            encoder: The encoder, or its name or folder. ``None``: the one the index names.
            device: Where the encoder runs: ``"auto"``, ``"cpu"``, ``"cuda"``, ...; on a named CUDA device, vectors are
                searched there too.
            on_progress: Called while the sample's index is built, if needed.

        Raises:
            IndexerError: The index is missing, unfinished, damaged or of another format version.
            EncoderMismatchError: ``encoder`` is not the one the index was built with, or two indexes were built with
                different ones.
        """
        told: list[str | os.PathLike[str] | None] = (
            list(index_path) if isinstance(index_path, list | tuple) else [index_path]  # type: ignore[list-item]
        )
        if not told:
            raise ValueError("got no index to search: name at least one, or None for the default one")
        opened: list[Index] = []
        try:
            for place in _distinct(map(locate, told)):
                if place.sample:
                    sample, encoder = _open_sample(encoder, device=device, on_progress=on_progress)
                    opened.append(sample)
                else:
                    from llm2clip.indexer import open_index

                    opened.append(
                        open_index(place.path, device=device if device.startswith("cuda") else "cpu")
                    )
            return cls(opened, encoder=encoder, device=device)
        except BaseException:
            for each in opened:
                each.close()
            raise

    def __len__(self) -> int:
        """Number of images that can be found."""
        return sum(map(len, self.indexes))

    @property
    def encoder(self) -> Encoder:
        """The encoder; loaded on first use.

        Raises:
            ModelError: It cannot be loaded.
            IndexerError: Only the index names it, and that comes from another machine.
            EncoderMismatchError: It is not the one the index was built with.
        """
        self._require_usable()
        with self._loading:
            if self._encoder is None:
                from llm2clip.encoders import ModelError, load_encoder

                manifest = self.index.manifest
                if self._source is None:
                    _require_named(manifest.encoder_source, self.index)
                try:
                    loaded = load_encoder(self._source or manifest.encoder_source, device=self._device)
                except (ValueError, OSError) as error:
                    if self._source is not None:
                        raise
                    problem = ModelError(
                        f"{self.index.path} was built with encoder '{manifest.encoder['name']}', which cannot be "
                        f"loaded: {error}; if it was moved, name it with --encoder"
                    )
                    for note in getattr(error, "__notes__", ()):
                        problem.add_note(note)
                    problem.add_note(
                        "meanwhile: llm2clip-index info and remove work, and indexes of encoders that are here"
                    )
                    raise problem from error
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

        A text longer than ``encoder.info.max_text_tokens`` is truncated with a ``TextTooLongWarning``; one in a
        language that the encoder was not trained on gets an ``UnknownLanguageWarning``, once for each language.
        Full-width letters are made ordinary ones and invisible characters removed first (docs/encoders.md).

        Args:
            query: A text, or a list of texts.
            k: Number of hits; fewer if the index holds fewer images.
            where: Filter on the images (docs/filters.md); ``None``: all.

        Returns:
            Hits, best first; for a list of texts, a list of them in the order of the texts.

        Raises:
            ValueError: A text is empty or blank, ``k`` is below 1, or the searcher is closed or of another process.
            WhereError: The filter is invalid; the message points at the place.
            EncoderMismatchError: The encoder is not the one the index was built with.
        """
        self._require_usable()
        texts = _meant([query] if isinstance(query, str | bytes) else list(query))
        k = _whole(k)
        self._check_where(where)
        found = self._search(self._text_vectors(texts, self.encoder), k=k, where=where) if texts else []
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
        self._require_usable()
        k = _whole(k)
        self._check_where(where)
        return self._search(self.encoder.encode_images(images), k=k, where=where) if images else []

    def search_combined(
        self,
        texts: Sequence[str],
        images: Sequence[ImageSource],
        *,
        weights: Sequence[float] | None = None,
        k: int = 10,
        where: str | None = None,
    ) -> list[Hit]:
        """The ``k`` images nearest to texts and images together: to the sum of their vectors, scaled to unit length.

        Args:
            texts: Texts, as for ``search``; may be empty if there are images.
            images: Images, as for ``search_images``; may be empty if there are texts.
            weights: A factor for each text, then for each image, negative to move away from it; ``None``: 1 each.
            k: Number of hits; fewer if the index holds fewer images.
            where: As for ``search``.

        Returns:
            The hits, best first.

        Raises:
            ImageError: An image cannot be read.
            ValueError: There is neither text nor image, a text is blank, the sum is zero, or ``k`` is below 1.
            WhereError: The filter is invalid.
            EncoderMismatchError: The encoder is not the one the index was built with.
        """
        import numpy as np

        self._require_usable()
        texts = _meant(texts)
        k = _whole(k)
        self._check_where(where)
        parts = [self._text_vectors(texts, self.encoder)] if texts else []
        parts += [self.encoder.encode_images(list(images))] if images else []
        if not parts:
            raise ValueError("got neither a text nor an image to search for")
        unit = weighted_sum(np.concatenate(parts), weights or [1.0] * (len(texts) + len(images)))
        return self._search(unit[None], k=k, where=where)[0]

    def _text_vectors(self, texts: Sequence[str], encoder: Encoder) -> NDArray[np.float32]:
        """Unit vectors of texts; warns of languages that the encoder does not know.

        Shape: (len(texts), dim), float32.
        """
        for text in texts:
            found = language_warning(text, encoder.info)
            if found is not None and found[0] not in self._warned:
                self._warned.add(found[0])
                warnings.warn(found[1], UnknownLanguageWarning, stacklevel=3)
        return encoder.encode_texts(texts)

    def _search(self, vectors: NDArray[np.float32], *, k: int, where: str | None) -> list[list[Hit]]:
        """The hits of each query in all indexes. Shape: (n, dim), float32, unit rows."""
        found = [index.search(vectors, k=k, where=where) for index in self.indexes]
        if len(found) == 1:
            return found[0]
        names = [str(index.path) for index in self.indexes]
        return [_merged(dict(zip(names, hits, strict=True)), k=k) for hits in zip(*found, strict=True)]

    def read_image(self, hit: Hit) -> bytes:
        """The encoded image of a hit of this searcher, as it is in the corpus now.

        Raises:
            OSError: The corpus no longer exists.
            IndexerError: The image changed since it was indexed.
        """
        index = next((each for each in self.indexes if str(each.path) == hit.index), self.index)
        return index.read_image(hit.id)

    def close(self) -> None:
        """Close the indexes; the searcher cannot be used afterwards."""
        self._process = None
        for index in self.indexes:
            index.close()

    def _require_usable(self) -> None:
        """Refuse what would read a closed file, or hang: threads and open databases do not survive a fork."""
        if self._process is None:
            raise ValueError("the searcher is closed: open another with Searcher.open")
        if self._process != os.getpid():
            raise ValueError(
                "the searcher was opened before this process was forked, and would hang in it: open one in each "
                "process (gunicorn: without --preload), or start them with multiprocessing.get_context('spawn')"
            )

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

            if not isinstance(where, str):
                raise ValueError(f"where must be text, such as 'width > 1000', got {type(where).__name__}")

            compile_where(where)


def _require_named(encoder: str, index: Index) -> None:
    """Refuse to load what only an index of someone else names, unless it is in our catalogue."""
    try:
        require_named_encoder(encoder, index=index.path)
    except IndexerError:
        from llm2clip.encoders.catalog.entries import find_encoder

        if find_encoder(encoder) is None:
            raise


def _distinct(places: Iterable[Place]) -> list[Place]:
    """The places, each index once."""
    return list({os.path.realpath(place.path): place for place in places}.values())


def _require_same_encoder(first: Index, other: Index) -> None:
    """Refuse two indexes whose scores cannot be compared."""
    from llm2clip.indexer.storage.manifest import encoder_mismatch

    if encoder_mismatch(first.manifest.encoder, other.manifest.encoder):
        names = [str(index.manifest.encoder["name"]) for index in (first, other)]
        which = f"{names[0]} and {names[1]}" if names[0] != names[1] else f"different versions of {names[0]}"
        raise EncoderMismatchError(
            f"{first.path} and {other.path} were built with {which}, whose scores cannot be compared: search them one "
            f"at a time, or re-encode one with  llm2clip-index build --from INDEX --encoder {names[0]}"
        )


def _open_sample(
    encoder: Encoder | str | os.PathLike[str] | None,
    *,
    device: str,
    on_progress: Callable[[Progress], None] | None,
) -> tuple[Index, Encoder]:
    """The sample's index, built if needed, and its encoder."""
    from llm2clip.encoders import load_encoder
    from llm2clip.retrieval.sample_index import open_sample, sample_encoder

    if encoder is None or isinstance(encoder, str | os.PathLike):
        encoder = load_encoder(encoder or sample_encoder(), device=device)
    return open_sample(encoder, on_progress=on_progress), encoder


def _merged(found: dict[str, list[Hit]], *, k: int) -> list[Hit]:
    """The best of the hits of several indexes, each image once; equal scores in the order of the indexes."""
    of_index = [[replace(hit, index=name) for hit in hits] for name, hits in found.items()]
    best: dict[str, Hit] = {}
    for hit in sorted(chain.from_iterable(of_index), key=lambda hit: -hit.score):
        best.setdefault(hit.uri, hit)
    return [replace(hit, rank=rank) for rank, hit in enumerate(islice(best.values(), k), start=1)]


def _meant(texts: Sequence[str]) -> list[str]:
    """The texts as they were meant, none of them blank."""
    _check_texts(texts)
    meant = [text if text.isascii() else cleaned(text) for text in texts]
    _check_texts(meant)
    return meant


def _check_texts(texts: Sequence[str]) -> None:
    for number, text in enumerate(texts, start=1):
        if not isinstance(text, str):
            raise ValueError(
                f"query {number} must be text, got {type(text).__name__}; for images use search_images"
            )
        if not text.strip():
            which = "the query" if len(texts) == 1 else f"query {number} of {len(texts)}"
            raise ValueError(f"{which} is empty; give at least one word, such as 'bicycle'")


def _whole(k: int) -> int:
    try:
        number = operator.index(k)  # of NumPy's integers too
    except TypeError as error:
        raise ValueError(f"k must be a whole number, got {k!r}") from error
    if number < 1:
        raise ValueError(f"k must be at least 1, got {number}")
    return number
