"""Text and image search: one index or several, and the encoder they were built with."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from threading import Lock
from types import TracebackType
from typing import TYPE_CHECKING, overload

from llm2clip.retrieval.opening import load_encoder_of, open_indexes, require_same_encoder
from llm2clip.retrieval.output.results import Hits
from llm2clip.retrieval.query.expression import Term, is_plain, parse, query_vector
from llm2clip.retrieval.query.languages import UnknownLanguageWarning, language_warning
from llm2clip.retrieval.query.texts import meant, text_vectors
from llm2clip.retrieval.ranking.explain import reading
from llm2clip.retrieval.ranking.options import Page, SearchOptions
from llm2clip.retrieval.ranking.page import Ranking, merged

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from llm2clip.encoders import Encoder, ImageSource
    from llm2clip.indexer import Hit, Progress, SearchableIndex
    from llm2clip.retrieval.query.vector_cache import VectorCache
    from llm2clip.retrieval.ranking.calibration import Calibration


class Searcher:
    """Searches one index, or several of the same encoder, by text or by image.

    The encoder is loaded at the first query, unless one is given.

        with Searcher.open("photos.index") as searcher:
            hits = searcher.search("两只猫在睡觉", k=10)
    """

    def __init__(
        self,
        index: SearchableIndex | Sequence[SearchableIndex],
        *,
        encoder: Encoder | str | os.PathLike[str] | None = None,
        device: str = "auto",
    ) -> None:
        """Search open indexes; the other arguments and the errors are those of ``open``."""
        self.indexes: tuple[SearchableIndex, ...] = tuple(index) if isinstance(index, Sequence) else (index,)
        """The indexes that are searched together."""
        self.index = self.indexes[0]
        """The first of them."""
        self._source = encoder if isinstance(encoder, str | os.PathLike) else None
        self._device = device
        self._loading = Lock()
        self._process: int | None = os.getpid()
        self._encoder: Encoder | None = None
        self._known: dict[SearchableIndex, Calibration | None] = {}
        self._warned: set[str] = set()
        """Languages that a warning was given for."""
        for other in self.indexes[1:]:
            require_same_encoder(self.index, other)
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
            index_path: Folder or name of the index, ``"sample:"``, or the address of an exported one
                (``"postgresql://..."``, docs/scaling.md); a list of them: several. ``None``: the one that
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
        indexes, encoder = open_indexes(index_path, encoder=encoder, device=device, on_progress=on_progress)
        try:
            return cls(indexes, encoder=encoder, device=device)
        except BaseException:
            for each in indexes:
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
                self._encoder = load_encoder_of(self.index, source=self._source, device=self._device)
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

        A text longer than ``encoder.info.max_text_tokens`` is read in parts, with a ``LongTextWarning``; one in a
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
        texts = meant([query] if isinstance(query, str | bytes) else list(query))
        k = SearchOptions(k=k).k
        self._check_where(where)
        self._warn_of_languages(texts)
        found = self._search(text_vectors(texts, self.encoder), k=k, where=where) if texts else []
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
        k = SearchOptions(k=k).k
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
        texts = meant(texts)
        k = SearchOptions(k=k).k
        self._check_where(where)
        self._warn_of_languages(texts)
        parts = [text_vectors(texts, self.encoder)] if texts else []
        parts += [self.encoder.encode_images(list(images))] if images else []
        if not parts:
            raise ValueError("got neither a text nor an image to search for")
        vectors = np.concatenate(parts)
        factors = [1.0] * len(vectors) if weights is None else list(weights)
        if len(factors) != len(vectors):
            raise ValueError(
                f"expected a weight for each of {len(vectors)} texts and images, got {len(factors)}"
            )
        terms = [Term(kind="text", value="", weight=factor) for factor in factors]
        return self._search(query_vector(terms, vectors)[None], k=k, where=where)[0]

    def find(
        self,
        query: str | Sequence[Term],
        *,
        images: Mapping[str, ImageSource] | None = None,
        options: SearchOptions | None = None,
    ) -> Page:
        """A page of the images that fit a query: copies folded, with confidences, and a cursor for the next page.

        Args:
            query: A text or expression (docs/searching.md), or its terms.
            images: The images that the expression names with ``image:``; others are paths on this machine.
            options: What the page shows; ``None``: the ten best.

        Raises:
            ExpressionError: The expression is invalid; the message points at the character.
            OSError, ImageError: An image cannot be read.
            ValueError: A text is blank, the cursor is not one, an item does not exist, or ``min_confidence`` is given
                for a query that has none: one with images, or that takes something away.
            WhereError: The filter is invalid.
            EncoderMismatchError: The encoder is not the one the index was built with.
        """
        return self.find_all([query], images=images, options=options)[0]

    def find_all(
        self,
        queries: Sequence[str | Sequence[Term]],
        *,
        images: Mapping[str, ImageSource] | None = None,
        options: SearchOptions | None = None,
        known: VectorCache | None = None,
        say: Callable[[str], None] = lambda _: None,
    ) -> list[Page]:
        """``find`` for each of several queries, whose texts are encoded together.

        ``known`` has vectors of texts that were encoded before; ``say`` is told of what takes long, in a sentence.
        """
        import numpy as np

        self._require_usable()
        options = options or SearchOptions()
        self._check_where(options.where)
        asked = [parse(query) if isinstance(query, str) else tuple(query) for query in queries]
        terms = list(dict.fromkeys(term for query in asked for term in query))
        words = [term for term in terms if term.kind == "text"]
        texts = meant([term.value for term in words])
        self._warn_of_languages(texts)
        vectors = dict(zip(words, text_vectors(texts, self.encoder, known=known), strict=True))
        for term in terms:
            if term.kind == "image":
                vectors[term] = self._image_vector(term.value, images or {})
            elif term.kind == "item":
                vectors[term] = self._stored(int(term.value))
        pages = []
        for query in asked:
            plain = is_plain(query)
            ranking = Ranking(
                indexes=self.indexes,
                vector=query_vector(query, np.stack([vectors[term] for term in query])),
                text=query[0].value if plain and len(query) == 1 else None,
                read=reading(query, self.encoder.info) if options.explain else (),
                calibrations=self._calibrations(compute=options.min_confidence is not None, say=say)
                if plain
                else (),
            )
            page = ranking.page(options)
            pages.append(replace(page, hits=Hits(page.hits, thumbnail=self._thumbnail)))
        return pages

    def _image_vector(self, name: str, images: Mapping[str, ImageSource]) -> NDArray[np.float32]:
        """The unit vector of an image that was given by name, or else lies at that path. Shape: (dim,), float32."""
        from llm2clip.encoders import ImageError

        try:
            found: NDArray[np.float32] = self.encoder.encode_images(
                [images.get(name, os.path.expanduser(name))]
            )[0]
        except ImageError as error:
            raise ImageError(f"cannot search with the image {name}: {error}") from error
        return found

    def _stored(self, item: int) -> NDArray[np.float32]:
        """The unit vector of an image of the first index. Shape: (dim,), float32."""
        import numpy as np

        if self.index.hit(item) is None:
            raise ValueError(f"no image has the id {item}")
        row = self.index.take([item])[0].astype(np.float32)
        unit: NDArray[np.float32] = row / np.linalg.norm(row)
        return unit

    def _calibrations(self, *, compute: bool, say: Callable[[str], None]) -> tuple[Calibration | None, ...]:
        """What scores mean in each index; ``compute`` although it takes long."""
        from llm2clip.retrieval.ranking.calibration import MOST_CALIBRATED, calibration_of

        compute = compute or self.encoder.info.parameters <= MOST_CALIBRATED
        missing = [index for index in self.indexes if self._known.get(index) is None]
        for index in missing:
            self._known[index] = calibration_of(index, self.encoder, compute=compute, say=say)
        return tuple(self._known[index] for index in self.indexes)

    def _warn_of_languages(self, texts: Sequence[str]) -> None:
        """Warn of languages that the encoder does not know, once for each."""
        for text in texts:
            found = language_warning(text, self.encoder.info)
            if found is not None and found[0] not in self._warned:
                self._warned.add(found[0])
                warnings.warn(found[1], UnknownLanguageWarning, stacklevel=3)

    def _search(self, vectors: NDArray[np.float32], *, k: int, where: str | None) -> list[list[Hit]]:
        """The hits of each query in all indexes. Shape: (n, dim), float32, unit rows."""
        found = [index.search(vectors, k=k, where=where) for index in self.indexes]
        best = (
            found[0]
            if len(found) == 1
            else [merged(self.indexes, hits)[:k] for hits in zip(*found, strict=True)]
        )
        return [Hits(hits, thumbnail=self._thumbnail) for hits in best]

    def read_image(self, hit: Hit) -> bytes:
        """The encoded image of a hit of this searcher, as it is in the corpus now.

        Raises:
            OSError: The corpus no longer exists.
            IndexerError: The image changed since it was indexed.
        """
        index = next((each for each in self.indexes if str(each.path) == hit.index), self.index)
        return index.read_image(hit.id)

    def _thumbnail(self, hit: Hit) -> str | None:
        from llm2clip.retrieval.output.gallery import thumbnail

        return thumbnail(self.read_image(hit))

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
