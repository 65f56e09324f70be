"""Read a published language model: a folder with ``config.json`` and safetensors, whole or in shards.

The header is read first; weights are read later, tensor by tensor, straight into their final dtype. A low-rank update
(LoRA) is merged while reading.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor, nn

from llm2clip.encoders.catalog.entries import Choice, weights_memory
from llm2clip.encoders.core.errors import ModelError
from llm2clip.encoders.core.files import read_object
from llm2clip.encoders.text.caption_tokenizer import TextReader, TextRules, open_reader
from llm2clip.encoders.text.gguf_conversion import SUFFIX as GGUF
from llm2clip.encoders.text.gguf_conversion import gguf_folder
from llm2clip.encoders.text.language_config import inferred_rules, language_config, layout_of, stored_rules
from llm2clip.encoders.text.packed import LanguageConfig, LanguageModule, build_language
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

_NAMES: dict[str, Choice] = {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}


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
    config: LanguageConfig
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
    def stored(self) -> Choice:
        """Dtype of most of its numbers: ``"bfloat16"``, ``"float32"`` or ``"float16"``."""
        sizes: dict[str, int] = defaultdict(int)
        for place in self.places.values():
            sizes[place.spec.dtype] += place.spec.size
        return _NAMES[max(sizes, key=lambda dtype: sizes[dtype])]

    @property
    def found(self) -> tuple[str, ...]:
        """What was inferred from the files, in words."""
        first = next(place.name.removesuffix(ours) for ours, place in self.places.items())
        names = f"names begin with {first}" if first else "names of a base model"
        files = len({place.path for place in self.places.values()})
        said = f"language model in {files} file{'s' if files > 1 else ''} of {self.stored}, {names}"
        return (said, *((f"low-rank update of {self.update.name} merged",) if self.update else ()))

    @cached_property
    def rules(self) -> TextRules:
        """How texts are read: as ``llm2clip.json`` says, or as its other files suggest."""
        return stored_rules(self.folder) or inferred_rules(self.folder, self.config)

    def reader(self, rules: TextRules | None = None) -> TextReader:
        """The tokenizer, under its own rules or others."""
        return open_reader(self.folder, rules or self.rules, config=self.config, name=self.folder.name)

    def memory(self, choice: Choice) -> int:
        """Bytes of the weights when loaded as ``choice``; int8 and int4 apply to the blocks' matrices only."""
        shapes = [place.spec.shape for name, place in self.places.items() if _in_block(name)]
        matrices = [(shape[0], shape[1]) for shape in shapes if len(shape) == 2]
        return weights_memory(self.parameters, matrices, choice)

    def load(self, choice: Choice = "float32", *, device: torch.device | str = "cpu") -> LanguageModule:
        """The model with its weights, without gradients.

        Besides the weights in their final form, one tensor is in memory (and the low-rank update).
        """
        device = torch.device(device)
        with torch.device("meta"):
            model = build_language(self.config)
        dtype = compute_dtype(choice, device)
        update = self._open_update(model)
        round_weight = weight_quantizer(choice, device) if choice in QUANTISED else None
        table = torch.bfloat16 if round_weight is not None else dtype
        for name, tensor in self._stream(dtype, table=table, device=device):
            if update is not None:
                update.apply(name, tensor)
            module = _put(model, name, tensor)
            del tensor  # or it would live on beside its rounded form while the next one is read
            if round_weight is not None and isinstance(module, nn.Linear) and name.endswith(".weight"):
                round_weight(module)
            if round_weight is not None or update is not None:
                release_memory()  # what that took lies between tensors that stay
        if table != dtype:
            place = layout_of(self.config).table
            whole = model.get_submodule(place)
            assert isinstance(whole, nn.Embedding), "it holds the token embedding"
            model.set_submodule(place, SmallTable(whole, dtype=dtype))
        return model.requires_grad_(False).eval()

    def _stream(
        self, dtype: torch.dtype, *, table: torch.dtype, device: torch.device
    ) -> Iterator[tuple[str, Tensor]]:
        names: dict[tuple[Path, torch.dtype], dict[str, str]] = defaultdict(dict)
        rows = f"{layout_of(self.config).table}.weight"
        for ours, place in self.places.items():
            names[place.path, table if ours == rows else dtype][place.name] = ours
        for (path, kind), renamed in names.items():
            for theirs, tensor in stream_tensors(path, renamed, dtype=kind, device=device):
                yield renamed[theirs], tensor
                del tensor

    def _open_update(self, model: LanguageModule) -> LowRankUpdate | None:
        if self.update is None:
            return None
        state = model.state_dict()
        shapes = {name: tuple(state[name].shape) for name in state if state[name].ndim == 2}
        return open_lora(self.update, shapes=shapes)


def open_language(folder: str | Path, *, update: str | Path | None = None) -> LanguagePlan:
    """Inspect a language model of the published layout, or a GGUF file, which is converted once; no weight is read.

    Llama, Qwen2, Qwen3, BERT and XLM-RoBERTa are read. Tensor names may begin with ``model.`` (``bert.``, ``roberta.``)
    or not. Heads and stored tables that are computed are left out; any other tensor that the model does not have is an
    error.
    """
    folder = Path(folder)
    if folder.suffix == GGUF:
        folder = gguf_folder(folder)
    try:
        config = language_config(read_object(folder / "config.json"))
    except ModelError:
        raise
    except (KeyError, ValueError, TypeError, AttributeError, ArithmeticError) as error:
        reason = f"no {error}" if isinstance(error, KeyError) else str(error)
        raise ModelError(
            f"{folder / 'config.json'} is no language model that can be read: {reason}"
        ) from error
    with torch.device("meta"):
        model = build_language(config)
    places = _places(folder, config)
    found = {ours: place.spec for ours, place in places.items()}
    expected = {
        name: of_any_float(tuple(tensor.shape), found.get(name))
        for name, tensor in model.state_dict().items()
    }
    check_tensors(found, expected, path=folder)
    return LanguagePlan(
        folder=folder, config=config, places=places, update=Path(update) if update is not None else None
    )


def _put(model: nn.Module, name: str, tensor: Tensor) -> nn.Module:
    """Give a module built without weights one of them, and return the module that has it now."""
    owner, _, leaf = name.rpartition(".")
    module = model.get_submodule(owner)
    setattr(module, leaf, nn.Parameter(tensor, requires_grad=False))
    return module


def _in_block(name: str) -> bool:
    """Whether a tensor of ours belongs to a block."""
    return name.startswith(("layers.", "encoder.layer."))


def _places(folder: Path, config: LanguageConfig) -> dict[str, _Place]:
    """Where every tensor that is used is, by our name."""
    layout = layout_of(config)
    places: dict[str, _Place] = {}
    for name, (spec, path) in Weights(folder).header.items():
        prefix = layout.prefix.match(name)
        ours = name[prefix.end() :] if prefix else name
        if layout.unused.fullmatch(ours):
            continue
        if ours in places:
            raise ModelError(f"{folder} holds {ours} twice: in {places[ours].path.name} and in {path.name}")
        places[ours] = _Place(path, name, spec)
    return places
