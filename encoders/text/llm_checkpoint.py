"""Read a published language model: a folder with ``config.json`` and safetensors, whole or in shards.

The header is read first; weights are read later, tensor by tensor, straight into their final dtype. A low-rank update
(LoRA) is merged while reading.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from llm2clip.encoders.catalog.entries import Choice
from llm2clip.encoders.core.errors import ModelError
from llm2clip.encoders.core.files import read_object
from llm2clip.encoders.layers.llama import BidirectionalLlama, LlamaConfig, RopeScaling
from llm2clip.encoders.weights.lora import LowRankUpdate, open_lora
from llm2clip.encoders.weights.memory_fit import compute_dtype, release_memory
from llm2clip.encoders.weights.quantization import QUANTISED, SmallTable, weight_quantizer
from llm2clip.encoders.weights.safetensors_io import (
    TensorSpec,
    Weights,
    check_tensors,
    of_any_float,
    stream_tensors,
)

_PREFIX = "model."
_UNUSED_HEAD = "lm_head.weight"
_UNUSED_TABLE = ".rotary_emb.inv_freq"
_TABLE = "embed_tokens.weight"
_NAMES = {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}
_NEUTRAL: Mapping[str, object] = {
    "model_type": "llama",
    "hidden_act": "silu",
    "alibi": False,
    "attention_bias": False,
    "attention_multiplier": None,
    "attn_logit_softcapping": None,
    "clip_qkv": None,
    "embedding_multiplier": 1,
    "mlp_bias": False,
    "no_rope_layers": None,
    "num_experts": None,
    "num_local_experts": None,
    "partial_rotary_factor": 1,
    "qk_norm": False,
    "query_pre_attn_scalar": None,
    "residual_multiplier": 1,
    "rotary_pct": 1,
    "scale_depth": None,
    "scale_emb": 1,
    "sliding_window": None,
    "use_parallel_residual": False,
    "use_qk_norm": False,
    "use_sliding_window": False,
}
"""Keys with which relatives of Llama (Mistral, Qwen, Granite, Gemma, ...) change the computation, and the value of each
that changes nothing. A key that is absent or null changes nothing either."""


@dataclass(frozen=True)
class _Place:
    path: Path
    """File."""
    name: str
    """Name there."""
    spec: TensorSpec
    """Shape and dtype."""


@dataclass(frozen=True, kw_only=True)
class LanguagePlan:
    """A language model in a folder, not loaded yet."""

    folder: Path
    """Its folder."""
    config: LlamaConfig
    """Its shape."""
    places: Mapping[str, _Place]
    """Our name of a tensor -> its place in the files."""
    update: Path | None
    """Folder of the low-rank update to merge."""

    @property
    def parameters(self) -> int:
        """Number of parameters that are used."""
        return sum(place.spec.size for place in self.places.values())

    @property
    def stored(self) -> str:
        """Dtype of most of its numbers: ``"bfloat16"``, ``"float32"`` or ``"float16"``."""
        sizes: dict[str, int] = defaultdict(int)
        for place in self.places.values():
            sizes[place.spec.dtype] += place.spec.size
        return _NAMES[max(sizes, key=lambda dtype: sizes[dtype])]

    @property
    def found(self) -> tuple[str, ...]:
        """What was inferred from the files, in words."""
        prefixed = sum(place.name.startswith(_PREFIX) for place in self.places.values())
        names = "names begin with model." if prefixed else "names of a base model"
        files = len({place.path for place in self.places.values()})
        said = f"language model in {files} file{'s' if files > 1 else ''} of {self.stored}, {names}"
        return (said, *((f"low-rank update of {self.update.name} merged",) if self.update else ()))

    def load(self, choice: Choice = "float32", *, device: torch.device | str = "cpu") -> BidirectionalLlama:
        """The model with its weights, without gradients.

        Besides the weights in their final form, one tensor is in memory (and the low-rank update).
        """
        device = torch.device(device)
        with torch.device("meta"):
            model = BidirectionalLlama(self.config)
        dtype = compute_dtype(choice, device)
        update = self._open_update(model)
        round_weight = weight_quantizer(choice, device) if choice in QUANTISED else None
        table = torch.bfloat16 if round_weight is not None else dtype
        for name, tensor in self._stream(dtype, table=table, device=device):
            if update is not None:
                update.apply(name, tensor)
            module = _put(model, name, tensor)
            del tensor  # or it would live on beside its rounded form while the next one is read
            if round_weight is not None and isinstance(module, nn.Linear):
                round_weight(module)
            if round_weight is not None or update is not None:
                release_memory()  # what that took lies between tensors that stay
        if table != dtype:
            model.add_module("embed_tokens", SmallTable(model.embed_tokens, dtype=dtype))
        return model.requires_grad_(False).eval()

    def _stream(
        self, dtype: torch.dtype, *, table: torch.dtype, device: torch.device
    ) -> Iterator[tuple[str, Tensor]]:
        names: dict[tuple[Path, torch.dtype], dict[str, str]] = defaultdict(dict)
        for ours, place in self.places.items():
            names[place.path, table if ours == _TABLE else dtype][place.name] = ours
        for (path, kind), renamed in names.items():
            for theirs, tensor in stream_tensors(path, renamed, dtype=kind, device=device):
                yield renamed[theirs], tensor
                del tensor

    def _open_update(self, model: BidirectionalLlama) -> LowRankUpdate | None:
        if self.update is None:
            return None
        state = model.state_dict()
        shapes = {name: tuple(state[name].shape) for name in state if state[name].ndim == 2}
        return open_lora(self.update, shapes=shapes)


def open_language(folder: str | Path, *, update: str | Path | None = None) -> LanguagePlan:
    """Inspect a language model of the published layout; no weight is read.

    Tensor names may begin with ``model.`` or not. A language-model head and stored rotary tables (older
    checkpoints) are left out; any other tensor that the model does not have is an error.
    """
    folder = Path(folder)
    try:
        config = llama_config(read_object(folder / "config.json"))
    except ModelError:
        raise
    except (KeyError, ValueError, TypeError, AttributeError, ArithmeticError) as error:
        reason = f"no {error}" if isinstance(error, KeyError) else str(error)
        raise ModelError(f"{folder / 'config.json'} is no Llama that can be read: {reason}") from error
    with torch.device("meta"):
        model = BidirectionalLlama(config)
    places = _places(folder)
    found = {ours: place.spec for ours, place in places.items()}
    expected = {
        name: of_any_float(tuple(tensor.shape), found.get(name))
        for name, tensor in model.state_dict().items()
    }
    check_tensors(found, expected, path=folder)
    return LanguagePlan(
        folder=folder, config=config, places=places, update=Path(update) if update is not None else None
    )


def llama_config(config: Mapping[str, Any]) -> LlamaConfig:
    """The shape in a published ``config.json`` (as a dict), of transformers 4 or 5.

    Raises ``ValueError`` where the architecture is not what ``BidirectionalLlama`` computes.
    """
    rope = config.get("rope_parameters") or config.get("rope_scaling") or {}
    _refuse_other_architectures(config, rope)
    kind = rope.get("rope_type", rope.get("type", "default"))
    if kind not in ("default", "llama3"):
        raise ValueError(f"unsupported rope type {kind!r}, expected 'default' or 'llama3'")
    scaling = None
    if kind == "llama3":
        scaling = RopeScaling(
            factor=float(rope["factor"]),
            low_freq_factor=float(rope["low_freq_factor"]),
            high_freq_factor=float(rope["high_freq_factor"]),
            original_max_position_embeddings=int(rope["original_max_position_embeddings"]),
        )
    heads = int(config["num_attention_heads"])
    return LlamaConfig(
        vocab_size=int(config["vocab_size"]),
        hidden_size=int(config["hidden_size"]),
        intermediate_size=int(config["intermediate_size"]),
        num_hidden_layers=int(config["num_hidden_layers"]),
        num_attention_heads=heads,
        num_key_value_heads=int(config.get("num_key_value_heads") or heads),
        head_dim=int(config.get("head_dim") or config["hidden_size"] // heads),
        rms_norm_eps=float(config.get("rms_norm_eps", 1e-6)),
        rope_theta=float(rope.get("rope_theta", config.get("rope_theta", 10_000.0))),
        rope_scaling=scaling,
    )


def _refuse_other_architectures(config: Mapping[str, Any], rope: Mapping[str, Any]) -> None:
    """``ValueError`` where a published configuration is of another architecture."""
    asked = {key: config[key] for key in _NEUTRAL if config.get(key) is not None}
    if asked.get("use_sliding_window") is False:
        asked.pop("sliding_window", None)  # a window that is switched off
    found = [(key, value, _NEUTRAL[key]) for key, value in asked.items() if value != _NEUTRAL[key]]
    found += [("layer_types", kind, "full_attention") for kind in config.get("layer_types") or ()]
    found += [(f"rope {key}", rope[key], 1) for key in ("partial_rotary_factor",) if key in rope]
    if rope.get("rope_type", rope.get("type", "default")) == "default":
        ignored = ("rope_type", "type", "rope_theta", "partial_rotary_factor")
        found += [(f"rope {key}", value, None) for key, value in rope.items() if key not in ignored]
    for key, value, expected in found:
        if value != expected:
            raise ValueError(f"unsupported Llama config: {key}={value!r}, expected {expected!r}")


def _put(model: nn.Module, name: str, tensor: Tensor) -> nn.Module:
    """Give a module built without weights one of them, and return the module that has it now."""
    owner, _, leaf = name.rpartition(".")
    module = model.get_submodule(owner)
    setattr(module, leaf, nn.Parameter(tensor, requires_grad=False))
    return module


def _places(folder: Path) -> dict[str, _Place]:
    """Where every tensor that is used is, by our name."""
    places: dict[str, _Place] = {}
    for name, (spec, path) in Weights(folder).header.items():
        if name == _UNUSED_HEAD or name.endswith(_UNUSED_TABLE):
            continue
        ours = name.removeprefix(_PREFIX)
        if ours in places:
            raise ModelError(f"{folder} holds {ours} twice: in {places[ours].path.name} and in {path.name}")
        places[ours] = _Place(path, name, spec)
    return places
