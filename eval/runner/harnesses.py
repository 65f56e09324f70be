"""Adapters that let MTEB and CLIP_benchmark measure our encoders, with our own preparation of captions and images."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from importlib import import_module
from typing import TYPE_CHECKING, Any, final

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    import torch

    from llm2clip.encoders import Encoder

_ORGANISATION = "llm2clip"


@final
class MtebEncoder:
    """Follows MTEB's encoder protocol; texts with images give the normalised sum of both."""

    def __init__(self, encoder: Encoder) -> None:
        """Wrap an encoder that is open already."""
        self.encoder = encoder

    def encode(self, inputs: Iterable[Mapping[str, Any]], **options: Any) -> NDArray[np.float32]:  # noqa: ANN401
        """Vectors of batches of ``{"text": [...], "image": [...]}``. Shape: (items, dim), float32, unit rows."""
        rows = [self._batch(batch) for batch in inputs]
        return np.concatenate(rows) if rows else np.zeros((0, self.encoder.info.dim), np.float32)

    def _batch(self, batch: Mapping[str, Any]) -> NDArray[np.float32]:
        found = []
        if batch.get("text") is not None:
            found.append(self.encoder.encode_texts(list(batch["text"])))
        if batch.get("image") is not None:
            found.append(self.encoder.encode_images([image.convert("RGB") for image in batch["image"]]))
        if not found:
            raise ValueError(
                f"got a batch of {sorted(batch)}, expected 'text' or 'image': choose another task"
            )
        if len(found) == 1:
            return found[0]
        both = found[0] + found[1]
        return np.asarray(both / np.linalg.norm(both, axis=1, keepdims=True), dtype=np.float32)

    def similarity(self, embeddings1: Any, embeddings2: Any) -> torch.Tensor:  # noqa: ANN401
        """Inner products. Shape: (first, second), float32."""
        first, second = map(_rows, (embeddings1, embeddings2))
        scores: torch.Tensor = first @ second.T
        return scores

    def similarity_pairwise(self, embeddings1: Any, embeddings2: Any) -> torch.Tensor:  # noqa: ANN401
        """Inner products of corresponding rows. Shape: (rows,), float32."""
        first, second = map(_rows, (embeddings1, embeddings2))
        scores: torch.Tensor = (first * second).sum(-1)
        return scores

    @property
    def mteb_model_meta(self) -> Any:  # noqa: ANN401
        """MTEB's description of the model: name, hash as revision, sizes."""
        meta = import_module("mteb.models.model_meta")
        info = self.encoder.info
        told = {
            "name": f"{_ORGANISATION}/{info.name}",
            "revision": f"{info.weights_sha256[:16]}-{info.settings_sha256[:16]}",
            "n_parameters": info.parameters,
            "embed_dim": info.dim,
            "max_tokens": float(info.max_text_tokens),
            "similarity_fn_name": meta.ScoringFunction.COSINE,
            "modalities": ["text", "image"],
            "framework": ["PyTorch"],
        }
        return meta.ModelMeta.create_empty(overwrites=told)


def _rows(embeddings: Any) -> torch.Tensor:  # noqa: ANN401
    import torch

    rows: torch.Tensor = torch.atleast_2d(torch.as_tensor(embeddings))
    return rows.float()


class Texts(list[str]):
    """Texts that go where CLIP_benchmark expects token ids."""

    def to(self, device: object) -> Texts:
        """The same: texts are on no device."""
        return self


@final
class ClipBenchmarkModel:
    """What CLIP_benchmark's ``evaluate`` calls a model; see :func:`clip_benchmark_parts`."""

    def __init__(self, encoder: Encoder) -> None:
        """Wrap an encoder that is open already."""
        self.encoder = encoder

    def encode_image(self, pixels: torch.Tensor) -> torch.Tensor:
        """Vectors of prepared images. Shape: (n, size, size, 3), uint8 -> (n, dim), float32, unit rows."""
        import torch

        return torch.from_numpy(self.encoder.encode_prepared(pixels.cpu().numpy()))

    def encode_text(self, texts: Sequence[str]) -> torch.Tensor:
        """Vectors of what the tokenizer of :func:`clip_benchmark_parts` gave. Shape: (n, dim), float32, unit rows."""
        import torch

        return torch.from_numpy(self.encoder.encode_texts(list(texts)))

    def eval(self) -> ClipBenchmarkModel:
        """The same: nothing is trained here."""
        return self


def clip_benchmark_parts(encoder: Encoder) -> tuple[ClipBenchmarkModel, Any, Any]:
    """(model, transform, tokenizer) as CLIP_benchmark's loading functions return them; pass ``amp=False``.

    ``clip_benchmark.models.TYPE2FUNC["llm2clip"] = lambda name, **_: clip_benchmark_parts(load_encoder(name))``
    """

    def transform(image: Any) -> torch.Tensor:  # noqa: ANN401
        import torch

        return torch.from_numpy(encoder.prepare(image).pixels)

    return ClipBenchmarkModel(encoder), transform, Texts
