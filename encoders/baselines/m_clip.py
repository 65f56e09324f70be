"""Multilingual CLIP: OpenAI's vision tower, and a language model that was taught to give CLIP's text vectors.

Those of M-CLIP (Carlsson et al., LREC 2022) average the states of XLM-R or LaBSE and map them by one linear layer;
the sizes are read from the tensors, as their ``config.json`` has none. That of sentence-transformers is computed by
that library.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, final

import torch
from torch import Tensor, nn

from llm2clip.encoders.baselines.hf_dual import VISION, Checkpoint, build, fill
from llm2clip.encoders.baselines.load_request import Request, image_side
from llm2clip.encoders.baselines.sentence_transformer import SentenceTextSide
from llm2clip.encoders.core.base import EncoderInfo
from llm2clip.encoders.core.config_io import read_object
from llm2clip.encoders.core.errors import ModelError
from llm2clip.encoders.core.fingerprint import settings_sha256, without_origin
from llm2clip.encoders.text.clip_tokenizer import TextForm, TokenReader, load_tokenizer, tokenizer_files
from llm2clip.encoders.text.dual_encoder import AbstractTextSide, DualEncoder, TowerTextSide
from llm2clip.encoders.vision.tower_detection import Header
from llm2clip.encoders.weights.hf_weights import Side, Weights
from llm2clip.encoders.weights.safetensors_io import TensorSpec

_HEAD_WIDTH = 64
"""Width of a head of XLM-R and of LaBSE."""
_UNUSED = re.compile(r"transformer\.(pooler\..*|embeddings\.(position_ids|token_type_ids))")
_LINEAR = "LinearTransformation."
_WORDS = "transformer.embeddings.word_embeddings.weight"
_POSITIONS = "transformer.embeddings.position_embeddings.weight"


@dataclass(frozen=True, kw_only=True)
class Base:
    """What kind of language model it is."""

    classes: str
    """How the names of its classes in transformers begin."""
    form: TextForm
    """How a text is read."""
    eps: float
    """Of its normalisation."""
    offset: int
    """Positions at the front of its table that no token has."""


_BASES = {
    "xlm-roberta": Base(classes="XLMRoberta", form=TextForm(end="</s>", pad="<pad>"), eps=1e-5, offset=2),
    "labse": Base(classes="Bert", form=TextForm(end="[SEP]", pad="[PAD]"), eps=1e-12, offset=0),
}
"""Part of ``modelBase`` in ``config.json`` -> kind."""


@final
class MultilingualText(nn.Module):
    """Token ids to vectors; its tensors are called as in the published files."""

    def __init__(self, base: Base, settings: Any, dim: int) -> None:  # noqa: ANN401
        super().__init__()
        import transformers

        tower = getattr(transformers, f"{base.classes}Model")
        self.transformer = tower(settings, add_pooling_layer=False)
        self.LinearTransformation = nn.Linear(settings.hidden_size, dim)

    def forward(self, ids_BL: Tensor, mask_BL: Tensor) -> Tensor:
        """The linear map of the mean state. Shape: (B, L), int64 -> (B, dim), not normalised."""
        states_BLD = self.transformer(input_ids=ids_BL, attention_mask=mask_BL).last_hidden_state
        kept = mask_BL[..., None].to(states_BLD.dtype)
        vectors: Tensor = self.LinearTransformation((states_BLD * kept).sum(1) / kept.sum(1))
        return vectors


@final
class MultilingualCheckpoint:
    """The text side of an M-CLIP in a folder."""

    def __init__(self, folder: Path) -> None:
        """Find its kind and its weights.

        Raises:
            ModelError: A file is missing, or it is of another kind.
        """
        self.folder = folder
        path = folder / "config.json"
        told = str(read_object(path).get("modelBase"))
        found = [base for part, base in _BASES.items() if part in told.lower()]
        if not found:
            raise ModelError(f"{path}: modelBase is {told!r}, expected one of {', '.join(_BASES)}")
        self.base = found[0]
        self.weights = Weights(folder)

    @cached_property
    def _header(self) -> Header:
        specs: dict[str, TensorSpec] = {name: spec for name, (spec, _) in self.weights.header.items()}
        return Header(specs, self.weights.path)

    @property
    def dim(self) -> int:
        """Length of the vectors."""
        return self._header.axes(f"{_LINEAR}weight", 2)[0]

    @property
    def limit(self) -> int:
        """Tokens of a text that are read."""
        return self._header.axes(_POSITIONS, 2)[0] - self.base.offset

    @property
    def sha256(self) -> str:
        """SHA-256 of its weights, in hexadecimal."""
        return self.weights.sha256

    @property
    def parameters(self) -> int:
        """How many numbers there are."""
        return self.weights.parameters

    @property
    def settings(self) -> dict[str, Any]:
        """What shapes its vectors besides the weights: its kind and its tokenizer."""
        return {
            "base": asdict(self.base),
            "tokenizer": settings_sha256({}, files=tokenizer_files(self.folder)),
        }

    def reader(self) -> TokenReader:
        """The tokenizer."""
        vocabulary = self._header.axes(_WORDS, 2)[0]
        tokenizer = load_tokenizer(self.folder, form=self.base.form, vocabulary=vocabulary)
        return TokenReader(tokenizer, form=self.base.form, limit=self.limit)

    def load(self, *, dtype: torch.dtype, device: torch.device) -> nn.Module:
        """The text side with its weights."""
        module = build(
            lambda: MultilingualText(self.base, self._settings(), self.dim), where=self.weights.path
        )
        shapes = {name: tuple(tensor.shape) for name, tensor in module.state_dict().items()}
        side = Side(prefixes=("transformer.", _LINEAR), others=(), unused=_UNUSED)
        return fill(module, self.weights.read(shapes, side=side, dtype=dtype, device=device), device=device)

    def _settings(self) -> Any:  # noqa: ANN401
        import transformers

        header, layers = self._header, "transformer.encoder.layer."
        tokens, width = header.axes(_WORDS, 2)
        return getattr(transformers, f"{self.base.classes}Config")(
            vocab_size=tokens,
            hidden_size=width,
            num_hidden_layers=header.depth(layers),
            num_attention_heads=max(1, width // _HEAD_WIDTH),
            intermediate_size=header.axes(f"{layers}0.intermediate.dense.weight", 2)[0],
            max_position_embeddings=header.axes(_POSITIONS, 2)[0],
            type_vocab_size=header.axes("transformer.embeddings.token_type_embeddings.weight", 2)[0],
            layer_norm_eps=self.base.eps,
            bos_token_id=None,
            eos_token_id=None,
            pad_token_id=1 if self.base.offset else 0,
        )


def load_m_clip(asked: Request) -> DualEncoder:
    """Open a multilingual CLIP.

    Raises:
        ModelError: A file is missing, damaged, of another kind, or the two sides do not fit each other.
    """
    folder = asked.folder
    vision = Checkpoint(asked.beside("vision"), family="clip")
    images = image_side(vision, asked)
    texts: AbstractTextSide
    part: SentenceTextSide | MultilingualCheckpoint
    if (folder / "modules.json").is_file():
        texts = part = SentenceTextSide(folder, device=asked.device, dtype=asked.dtype)
    else:
        part = checkpoint = MultilingualCheckpoint(folder)
        _check_dim(checkpoint, vision)
        texts = TowerTextSide(
            lambda: checkpoint.load(dtype=asked.dtype, device=asked.device),
            reader=checkpoint.reader,
            device=asked.device,
        )

    def describe() -> EncoderInfo:
        _check_dim(part, vision)
        return asked.info(
            family="m-clip",
            dim=part.dim,
            preprocess=images.preprocess,
            limit=part.limit,
            sha256=hashlib.sha256(f"{part.sha256} {vision.weights.sha256}".encode()).hexdigest(),
            settings_sha256=settings_sha256(
                {"vision": without_origin(vision.config), "text": part.settings}, files=[]
            ),
            parameters=part.parameters + vision.weights.size(VISION),
        )

    return DualEncoder(images=images, texts=texts, describe=describe)


def _check_dim(part: SentenceTextSide | MultilingualCheckpoint, vision: Checkpoint) -> None:
    if part.dim != vision.dim:
        raise ModelError(
            f"{part.folder} gives vectors of {part.dim}, {vision.folder} of {vision.dim}; they are not of the same "
            "model"
        )
