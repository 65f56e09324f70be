"""Requests and answers of the HTTP API."""

from __future__ import annotations

import base64
import binascii
from typing import Annotated, Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, StringConstraints, model_validator

from llm2clip.retrieval.ranking.options import By, Sort

MOST_CHARACTERS = 100_000
"""Longest text of a query."""
MOST_INPUTS = 2_048
"""Most inputs of one call of the embeddings endpoint, as in OpenAI's."""

Text = Annotated[str, StringConstraints(min_length=1, max_length=MOST_CHARACTERS)]
DataUri = Annotated[
    str, StringConstraints(pattern=r"^data:image/[a-z0-9.+-]{1,40};base64,", max_length=32 * 2**20)
]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class QueryModel(_Strict):
    """What is searched for. One of ``query``, ``image`` and ``vector`` is needed; ``query`` and ``image`` add up."""

    query: Text | None = Field(
        None, description='Text, or an expression such as "2*beach at sunset" - "people".'
    )
    image: DataUri | None = Field(None, description="An image as a data URI.")
    images: dict[str, DataUri] = Field(
        default_factory=dict, max_length=16, description="Images that the expression names as image:NAME."
    )
    vector: list[float] | None = Field(
        None, max_length=65_536, description="A vector of the index's dimension."
    )

    @model_validator(mode="after")
    def _one_query(self) -> QueryModel:
        if self.vector is not None and (self.query or self.image):
            raise ValueError("vector excludes query and image")
        if self.vector is None and not self.query and not self.image:
            raise ValueError("one of query, image and vector is needed")
        return self


class SearchRequest(QueryModel):
    """What is searched for, and how it is answered."""

    where: Annotated[str, StringConstraints(max_length=20_000)] | None = Field(None, description="A filter.")
    limit: int = Field(20, ge=1, le=1000, description="Hits per page.")
    cursor: Annotated[str, StringConstraints(max_length=200)] | None = Field(
        None, description="From the page before."
    )
    min_confidence: float | None = Field(
        None,
        ge=0,
        le=1,
        allow_inf_nan=False,
        description="Leave out images of lower confidence; for texts only.",
    )
    min_score: float | None = Field(
        None, ge=-1, le=1, allow_inf_nan=False, description="Leave out lower scores."
    )
    by: By = Field("auto", description="What the query is compared with; see docs/searching.md.")
    sort: Sort = Field("score", description="date: newest first; see docs/searching.md.")
    fold: bool = Field(True, description="Show copies of one image once, with the others as its duplicates.")
    diverse: bool = Field(False, description="Prefer images that differ from those before them.")
    explain: bool = Field(False, description="Say how the query was read and answered.")


class HeatAnswer(_Strict):
    """Where an image matches a query."""

    cosines: list[list[float]] = Field(
        description="Of the query and each part of the image, row by row from the top left, in a grid over all of it."
    )


class ItemModel(_Strict):
    """An image of the index."""

    id: int
    key: str
    uri: str
    caption: str | None
    metadata: dict[str, Any]
    time: str | None = Field(description="When it was taken, else when its file was changed; ISO 8601.")
    time_source: str | None = Field(description="exif, xmp, iptc, png, video or file.")
    width: int
    height: int


class HitModel(ItemModel):
    """An image found."""

    rank: int
    score: float
    confidence: float | None = Field(
        description="How sure it is that the query is not of something else, 0 to 1; null: not known."
    )
    duplicates: list[ItemModel] = Field(description="Copies of the same image.")


class ItemsAnswer(_Strict):
    """One page of the images that pass a filter, the newest first."""

    items: list[ItemModel]
    total: int = Field(description="Images that pass the filter.")
    next_cursor: str | None = Field(description="Cursor of the next page; null on the last.")
    generation: int = Field(description="Generation of the index.")


class FacetModel(_Strict):
    """A value that some images have in common."""

    value: str = Field(description="A year, a folder with its separator, or the ending of a file's name.")
    count: int
    where: str = Field(description="The filter that these images pass.")


class FacetsAnswer(_Strict):
    """How many of the images that pass a filter are of each year, folder and type."""

    years: list[FacetModel] = Field(description="The newest first.")
    folders: list[FacetModel] = Field(description="Below the folder that holds all of these images.")
    types: list[FacetModel]


class SearchAnswer(_Strict):
    """One page of hits."""

    hits: list[HitModel]
    total: int = Field(description="Images that pass the filter and min_confidence, copies included.")
    next_cursor: str | None = Field(description="Cursor of the next page; null on the last.")
    generation: int = Field(description="Generation of the index that was searched.")
    language: str | None = Field(description="Probable language of the query's text, a BCP 47 tag.")
    notes: list[str] = Field(description="What to know about the answer, such as a language not trained on.")
    took_ms: dict[str, float]
    explain: list[str] | None = None


class EmbeddingRequest(_Strict):
    """As OpenAI's: texts, or images as data URIs."""

    model_config = ConfigDict(extra="ignore", frozen=True)  # its clients send user, model and more

    input: (
        Text
        | Annotated[
            list[Annotated[str, StringConstraints(min_length=1, max_length=32 * 2**20)]], Field(min_length=1)
        ]
    )
    model: str | None = Field(None, max_length=200)
    dimensions: int | None = Field(None, ge=1, le=65_536)
    encoding_format: Literal["float", "base64"] = "float"


class EmbeddingRow(_Strict):
    """The vector of one input."""

    object: Literal["embedding"] = "embedding"
    index: int
    embedding: list[float] | str


class Usage(_Strict):
    """Tokens that were read."""

    prompt_tokens: int
    total_tokens: int


class EmbeddingAnswer(_Strict):
    """As OpenAI's."""

    object: Literal["list"] = "list"
    data: list[EmbeddingRow]
    model: str
    usage: Usage


class ModelCard(_Strict):
    """The encoder that is served."""

    id: str
    object: Literal["model"] = "model"
    created: int = 0
    owned_by: str = "llm2clip"
    family: str
    dim: int
    max_text_tokens: int
    languages: list[str]
    weights_sha256: str
    licence: str


class ModelList(_Strict):
    """As OpenAI's."""

    object: Literal["list"] = "list"
    data: list[ModelCard]


def unit(values: list[float]) -> NDArray[np.float32]:
    """A vector scaled to unit length. Shape: (len(values),), float32; ``ValueError`` if it has no length."""
    vector = np.asarray(values, dtype=np.float64)
    length = float(np.linalg.norm(vector))
    if not np.isfinite(length) or length == 0:
        raise ValueError("vector must have a finite length above 0")
    return (vector / length).astype(np.float32)


def decode_data_uri(uri: str) -> bytes:
    """The bytes of a ``data:`` URI; ``ValueError`` if it is not base64."""
    try:
        return base64.b64decode(uri.partition(",")[2], validate=True)
    except binascii.Error as error:
        raise ValueError(f"the image is not valid base64: {error}") from error
