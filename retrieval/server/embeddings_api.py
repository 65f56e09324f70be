"""Embeddings and models in the shape of OpenAI's API."""

from __future__ import annotations

import asyncio
import base64

import numpy as np
from fastapi import APIRouter, HTTPException
from numpy.typing import NDArray
from starlette.concurrency import run_in_threadpool

from llm2clip.retrieval.server.schemas import (
    MOST_INPUTS,
    EmbeddingAnswer,
    EmbeddingRequest,
    EmbeddingRow,
    ModelCard,
    ModelList,
    Usage,
    decode_data_uri,
    unit,
)
from llm2clip.retrieval.service.search_service import SearchService


def embeddings_router(service: SearchService) -> APIRouter:
    """The routes in the shape of OpenAI's API."""
    router = APIRouter()

    @router.post("/v1/embeddings")
    async def embeddings(request: EmbeddingRequest) -> EmbeddingAnswer:
        """Unit vectors of texts and of images (data URIs), in the shape of OpenAI's API."""
        inputs = [request.input] if isinstance(request.input, str) else list(request.input)
        if len(inputs) > MOST_INPUTS:
            raise HTTPException(
                400, f"input has {len(inputs):,} entries, at most {MOST_INPUTS:,} are allowed"
            )
        dim = service.encoder.info.dim
        if request.dimensions is not None and request.dimensions > dim:
            raise HTTPException(400, f"dimensions must be at most {dim}, got {request.dimensions}")
        vectors = await _embed_all(service, inputs)
        texts = [text for text in inputs if not text.startswith("data:image/")]
        counted = await run_in_threadpool(service.encoder.count_tokens, texts) if texts else []
        tokens = sum(min(count, service.encoder.info.max_text_tokens) for count in counted)
        rows = [
            EmbeddingRow(index=number, embedding=_as_asked(vector, request))
            for number, vector in enumerate(vectors)
        ]
        usage = Usage(prompt_tokens=tokens, total_tokens=tokens)
        return EmbeddingAnswer(data=rows, model=service.encoder.info.name, usage=usage)

    @router.get("/v1/models")
    async def models() -> ModelList:
        """The encoder that is served."""
        info = service.encoder.info
        card = ModelCard(
            id=info.name,
            family=info.family,
            dim=info.dim,
            max_text_tokens=info.max_text_tokens,
            languages=list(info.languages),
            weights_sha256=info.weights_sha256,
            licence=info.licence,
        )
        return ModelList(data=[card])

    return router


async def _embed_all(service: SearchService, inputs: list[str]) -> list[NDArray[np.float32]]:
    """Vectors of many inputs, no more of them waiting at once than half the queue."""
    room = asyncio.Semaphore(max(1, service.settings.max_queue // 2))

    async def one(value: str) -> NDArray[np.float32]:
        async with room:
            if value.startswith("data:image/"):
                return await service.embedded("image", decode_data_uri(value))
            return await service.embedded("text", value)

    return list(await asyncio.gather(*(one(value) for value in inputs)))


def _as_asked(vector: NDArray[np.float32], request: EmbeddingRequest) -> list[float] | str:
    if request.dimensions is not None:
        vector = unit(vector[: request.dimensions].tolist())
    if request.encoding_format == "base64":
        return base64.b64encode(vector.astype("<f4").tobytes()).decode("ascii")
    return [float(value) for value in vector]
