"""A BERT and its adapter in NumPy, for queries on a CPU: importing torch takes longer than a hundred of them.

Texts are read without padding, as in ``text.packed``: everything but attention treats tokens one by one. Results are
those of the torch modules to 1e-6, to which a test holds them.

Shape suffixes: T tokens of all texts, D hidden width, N texts of one length, L their length, H heads, E head width.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from itertools import groupby
from typing import Any

import numpy as np
from numpy.typing import NDArray
from threadpoolctl import ThreadpoolController

from llm2clip.encoders.layers.configs import AdapterConfig, BertConfig
from llm2clip.encoders.text.caption_tokenizer import TextRow, passes
from llm2clip.encoders.weights.tensor_names import ADAPTER, LANGUAGE_MODEL

Floats = NDArray[np.float32]
STORED = ("float16", "float32", "int8")
"""What NumPy reads of the precisions of a folder."""
_PASS_TOKENS = 1024
"""Tokens of one pass: enough for matrix products at full speed, few enough for the caches."""
_FEW_TOKENS = 400
"""Tokens of a pass below which one thread is as fast as several, which would mostly wait for each other."""
_ADAPTER_EPS = 1e-5
_BLOCK, _EMBEDDINGS = "encoder.layer.", "embeddings."


def shapes_of(config: BertConfig, adapter: AdapterConfig) -> dict[str, tuple[int, ...]]:
    """Names and shapes of all tensors of the text side of an encoder folder."""
    width, inner = config.hidden_size, config.intermediate_size
    shapes: dict[str, tuple[int, ...]] = {}

    def linear(name: str, inputs: int, outputs: int) -> None:
        shapes.update({f"{name}.weight": (outputs, inputs), f"{name}.bias": (outputs,)})

    def norm(name: str) -> None:
        shapes.update({f"{name}.weight": (width,), f"{name}.bias": (width,)})

    embeddings = LANGUAGE_MODEL + _EMBEDDINGS
    shapes[f"{embeddings}word_embeddings.weight"] = (config.vocab_size, width)
    shapes[f"{embeddings}position_embeddings.weight"] = (config.max_position_embeddings, width)
    shapes[f"{embeddings}token_type_embeddings.weight"] = (config.type_vocab_size, width)
    norm(f"{embeddings}LayerNorm")
    for number in range(config.num_hidden_layers):
        block = f"{LANGUAGE_MODEL}{_BLOCK}{number}."
        for name in ("query", "key", "value"):
            linear(f"{block}attention.self.{name}", width, width)
        linear(f"{block}attention.output.dense", width, width)
        norm(f"{block}attention.output.LayerNorm")
        linear(f"{block}intermediate.dense", width, inner)
        linear(f"{block}output.dense", inner, width)
        norm(f"{block}output.LayerNorm")
    for number in range(adapter.blocks):
        block = f"{ADAPTER}adaptor.{number}."
        norm(f"{block}ln")
        linear(f"{block}fn.0", width, adapter.expansion * width)
        linear(f"{block}fn.3", adapter.expansion * width, width)
    norm(f"{ADAPTER}adaptor.{adapter.blocks}")
    linear(f"{ADAPTER}adaptor.{adapter.blocks + 1}", width, adapter.dim)
    return shapes


class NumpyBert:
    """Token rows to pooled states, and those to vectors."""

    def __init__(
        self, tensors: Mapping[str, NDArray[Any]], config: BertConfig, adapter: AdapterConfig
    ) -> None:
        """Take tensors by the names of ``shapes_of``; those stored as int8 have their scales beside them."""
        self.config, self.adapter = config, adapter
        self._tensors = tensors
        table = f"{LANGUAGE_MODEL}{_EMBEDDINGS}word_embeddings.weight"
        self._words, self._word_scales = tensors[table], tensors.get(f"{table}.scale")
        self._positions = self._floats(f"{LANGUAGE_MODEL}{_EMBEDDINGS}position_embeddings.weight")
        self._segment = self._floats(f"{LANGUAGE_MODEL}{_EMBEDDINGS}token_type_embeddings.weight")[0]
        self._norm = self._pair(f"{LANGUAGE_MODEL}{_EMBEDDINGS}LayerNorm")
        self._blocks = [self._block(f"{LANGUAGE_MODEL}{_BLOCK}{n}.") for n in range(config.num_hidden_layers)]
        self._adapter = [self._adapter_block(f"{ADAPTER}adaptor.{n}.") for n in range(adapter.blocks)]
        self._last_norm = self._pair(f"{ADAPTER}adaptor.{adapter.blocks}")
        self._last = self._linear(f"{ADAPTER}adaptor.{adapter.blocks + 1}")
        self._tensors = {}

    def states(self, rows: Sequence[TextRow]) -> Floats:
        """Mean states of the texts' pooled tokens, read in bounded passes. Shape: (len(rows), D), any scale."""
        pooled = np.empty((len(rows), self.config.hidden_size), np.float32)
        lengths = [len(row.ids) for row in rows]
        for chosen in passes(lengths, tokens=_PASS_TOKENS):
            few = sum(lengths[n] for n in chosen) < _FEW_TOKENS
            with _blas().limit(limits=1 if few else None, user_api="blas"):
                pooled[chosen] = self._one_pass([rows[n] for n in chosen])
        return pooled

    def project(self, states: Floats) -> Floats:
        """The adapter. Shape: (n, D) -> (n, dim), any scale."""
        if self.adapter.normalize_input:
            states = states / np.maximum(np.linalg.norm(states, axis=1, keepdims=True), 1e-12)
        for norm, widen, narrow in self._adapter:
            inner = _gelu(_affine(_layer_norm(states, norm, _ADAPTER_EPS), widen))
            states = states + _affine(inner, narrow)
        return _affine(_layer_norm(states, self._last_norm, _ADAPTER_EPS), self._last)

    def _one_pass(self, rows: Sequence[TextRow]) -> Floats:
        """Mean states of rows, the short ones first. Shape: (len(rows), D)."""
        config, eps = self.config, self.config.layer_norm_eps
        ids = np.concatenate([np.asarray(row.ids) for row in rows])
        positions = np.concatenate([np.arange(len(row.ids)) for row in rows]) + config.first_position
        hidden_TD = self._words[ids].astype(np.float32)
        if self._word_scales is not None:
            hidden_TD *= self._word_scales[ids][:, None]
        hidden_TD += self._positions[positions] + self._segment
        hidden_TD = _layer_norm(hidden_TD, self._norm, eps)
        for projections, output, norm, widen, narrow, last_norm in self._blocks:
            mixed = self._mixed(_affine(hidden_TD, projections), rows)
            hidden_TD = _layer_norm(_affine(mixed, output) + hidden_TD, norm, eps)
            inner = _gelu(_affine(hidden_TD, widen))
            hidden_TD = _layer_norm(_affine(inner, narrow) + hidden_TD, last_norm, eps)
        return np.stack([part.mean(0) for part in _pooled(hidden_TD, rows)])

    def _mixed(self, projected: Floats, rows: Sequence[TextRow]) -> Floats:
        """Attention within each text. Shape: (T, 3 D), queries, keys and values -> (T, D)."""
        heads = self.config.num_attention_heads
        width = self.config.hidden_size
        mixed = np.empty((len(projected), width), np.float32)
        start = 0
        for length, texts in groupby(rows, key=lambda row: len(row.ids)):
            count = len(list(texts))
            stop = start + count * length
            parts = projected[start:stop].reshape(count, length, 3, heads, width // heads)
            query, key, value = parts.transpose(2, 0, 3, 1, 4)  # (N, H, L, E) each
            scores = query @ key.transpose(0, 1, 3, 2) * np.float32((width // heads) ** -0.5)
            scores = np.exp(scores - scores.max(-1, keepdims=True))
            scores /= scores.sum(-1, keepdims=True)
            mixed[start:stop] = (scores @ value).transpose(0, 2, 1, 3).reshape(-1, width)
            start = stop
        return mixed

    def _floats(self, name: str) -> Floats:
        scale = self._tensors.get(f"{name}.scale")
        array = self._tensors[name].astype(np.float32)
        return array if scale is None else array * scale[:, None]

    def _linear(self, *names: str) -> _Linear:
        """One map of all outputs of several layers after each other."""
        weight = np.concatenate([self._floats(f"{name}.weight") for name in names])
        bias = np.concatenate([self._floats(f"{name}.bias") for name in names])
        return np.ascontiguousarray(weight.T), bias

    def _pair(self, name: str) -> tuple[Floats, Floats]:
        return self._floats(f"{name}.weight"), self._floats(f"{name}.bias")

    def _block(self, name: str) -> _Block:
        own = f"{name}attention."
        return (
            self._linear(*(f"{own}self.{part}" for part in ("query", "key", "value"))),
            self._linear(f"{own}output.dense"),
            self._pair(f"{own}output.LayerNorm"),
            self._linear(f"{name}intermediate.dense"),
            self._linear(f"{name}output.dense"),
            self._pair(f"{name}output.LayerNorm"),
        )

    def _adapter_block(self, name: str) -> tuple[_Norm, _Linear, _Linear]:
        return self._pair(f"{name}ln"), self._linear(f"{name}fn.0"), self._linear(f"{name}fn.3")


_Linear = tuple[Floats, Floats]
"""Weight, shape (inputs, outputs), and bias."""
_Norm = tuple[Floats, Floats]
"""Gain and bias."""
_Block = tuple[_Linear, _Linear, _Norm, _Linear, _Linear, _Norm]


@cache
def _blas() -> ThreadpoolController:
    """What sets the number of threads of NumPy's matrix products."""
    return ThreadpoolController()


def _affine(rows: Floats, layer: _Linear) -> Floats:
    output: Floats = rows @ layer[0]
    output += layer[1]
    return output


def _layer_norm(rows: Floats, norm: _Norm, eps: float) -> Floats:
    centred = rows - rows.mean(1, keepdims=True)
    variance = (centred * centred).mean(1, keepdims=True)
    output: Floats = centred / np.sqrt(variance + np.float32(eps)) * norm[0] + norm[1]
    return output


def _gelu(values: Floats) -> Floats:
    """X times the normal distribution function; its error function after Abramowitz and Stegun 7.1.26, to 1.5e-7."""
    size = np.abs(values) * np.float32(0.5**0.5)
    t = 1 / (1 + np.float32(0.3275911) * size)
    series = np.full_like(t, 1.061405429)
    for factor in (-1.453152027, 1.421413741, -0.284496736, 0.254829592):
        series = series * t + np.float32(factor)
    tail = series * t * np.exp(-size * size)
    output: Floats = np.where(values > 0, values * (1 - 0.5 * tail), values * (0.5 * tail))
    return output


def _pooled(hidden_TD: Floats, rows: Sequence[TextRow]) -> Iterator[Floats]:
    """The pooled states of each row. Shape of each: (at least 1, D)."""
    start = 0
    for row in rows:
        last = start + len(row.ids) - row.after
        yield hidden_TD[max(last - row.pooled, start) : last]
        start += len(row.ids)
