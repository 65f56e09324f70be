"""The text model that stage 1 trains: opened from a supported checkpoint, run without padding, written as a folder."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from huggingface_hub import split_torch_state_dict_into_shards
from safetensors.torch import save_file
from torch import Tensor, nn

from llm2clip.common.files import atomic_folder
from llm2clip.encoders.core.files import read_object
from llm2clip.encoders.layers.bert import BertEncoder
from llm2clip.encoders.layers.llama import BidirectionalLlama
from llm2clip.encoders.text.caption_tokenizer import passes
from llm2clip.encoders.text.language_config import write_text_rules
from llm2clip.encoders.text.llm_text_tower import LanguageSource, language_source
from llm2clip.encoders.weights.safetensors_io import INDEX, Weights, stream_tensors
from llm2clip.train.cc.lora import choose_trained, merge_lora
from llm2clip.train.cc.packed import PackedText
from llm2clip.train.core.distributed import full, is_sharded
from llm2clip.train.core.sharding import make_whole, shard

if TYPE_CHECKING:
    from llm2clip.encoders.text.caption_tokenizer import TextReader, TextRow
    from llm2clip.encoders.text.packed import LanguageModule
    from llm2clip.train.cc.config import TuneSettings

FILE_BYTES = 4 * 2**30
"""Most bytes of weights in memory that one file is written from."""


@dataclass
class TextModel:
    """A text model in training: tokens and pooling are those of the encoder it becomes."""

    source: LanguageSource
    """Where it came from."""
    module: LanguageModule
    """The network."""
    reader: TextReader
    """Tokenizer with the rules of inference."""
    device: torch.device
    """Where it computes."""
    settings: TuneSettings
    """Precision, checkpointing, sharding."""

    def __post_init__(self) -> None:
        self._packed = self._make_packed()

    def begin(self, settings: TuneSettings, *, seed: int) -> None:
        """Choose what is trained, and spread it over the processes if asked for; an optimiser is made afterwards."""
        choose_trained(self.module, settings, seed=seed)
        self._packed = self._make_packed()
        if settings.sharded:
            shard(self._packed, list(self._packed.blocks))

    def end(self) -> None:
        """Merge what was trained; every process has the whole model again."""
        make_whole(self.module)
        merge_lora(self.module)
        self._packed = self._make_packed()

    def features(self, rows: Sequence[TextRow]) -> Tensor:
        """Mean states of the texts' own tokens, with gradients if they are on. Shape: (len(rows), D), float32."""
        with self.computing():
            return self._packed.pooled(rows, self.device)

    def tokens(self, rows: Sequence[TextRow]) -> Tensor:
        """States of all tokens of rows in which equal lengths stand together. Shape: (tokens, D)."""
        with self.computing():
            states: Tensor = self._packed(rows, self.device)
            return states

    def encode(self, texts: Sequence[str], *, tokens: int = 8192) -> Tensor:
        """Features of any number of texts without gradients, so many tokens at a time. Shape: (len(texts), D)."""
        rows = self.reader.rows(texts)
        found = torch.empty(len(rows), self.module.config.hidden_size, device=self.device)
        with torch.no_grad():
            for chosen in passes([len(row.ids) for row in rows], tokens=tokens):
                places = torch.tensor(chosen, device=self.device)
                found[places] = self.features([rows[number] for number in chosen])
        return found

    def token_head(self) -> Tensor:
        """What maps states to tokens: the checkpoint's head, or the embedding where they are one. Shape: (V, D)."""
        if isinstance(self.module, BertEncoder):
            raise ValueError(
                f"{self.source.name} is a BERT: it attends both ways already, so masked next-token prediction is of no "
                "use; leave cc.mntp out"
            )
        name = "lm_head.weight"
        found = Weights(self.source.plan.folder).header.get(name)
        table = self.module.embed_tokens.weight
        if found is None:
            if is_sharded(table) and table.requires_grad:
                raise ValueError(
                    f"{self.source.name} predicts tokens with its embedding, which cc.tune.sharded spreads over "
                    "processes: set cc.tune.parts to lora or last, or leave cc.mntp out"
                )
            return full(table)
        return dict(stream_tensors(found[1], [name], dtype=table.dtype, device=self.device))[name]

    def _make_packed(self) -> PackedText:
        return PackedText(self.module, checkpointing=self.settings.checkpointing)

    def computing(self) -> AbstractContextManager[object]:
        """Inside, matrix products are computed in the chosen precision."""
        if self.settings.precision == "float32":
            return nullcontext()
        return torch.autocast(self.device.type, dtype=torch.bfloat16)

    def caption_reader(self) -> TextReader:
        """The same tokens, with the caption's own marked as pooled whatever the rules pool."""
        rules = self.source.text_rules("native")
        return replace(self.source, rules=replace(rules, pool="caption")).reader("native")

    def instructed(self, instruction: str) -> TextReader:
        """A reader that puts an instruction in front of texts, which is attended to and not pooled."""
        if not instruction:
            return self.reader
        rules = self.source.text_rules("native")
        longer = replace(rules, header=rules.header + instruction.rstrip() + " ")
        return replace(self.source, rules=longer).reader("native")


def open_text_model(name: str | Path, settings: TuneSettings, *, device: torch.device) -> TextModel:
    """The text model of that name or in that folder, frozen; ``ModelError`` if there is none or it cannot be read."""
    source = language_source(name)
    module = source.plan.load("bfloat16" if settings.precision == "bfloat16" else "float32", device=device)
    return TextModel(source, module, source.reader("native"), device, settings)


def save_text_model(model: TextModel, folder: Path, *, store: str = "auto") -> None:
    """Write a folder in transformers' layout that ``load_encoder`` opens; no updates may be in the model.

    Args:
        model: What to write.
        folder: Where to; it appears when everything is in it.
        store: Precision of the weights; ``auto``: that of the model it began with.

    Raises:
        FileExistsError: The folder is there.
        OSError: A file cannot be written.
    """
    source = model.source.plan.folder
    dtype = model.source.plan.stored if store == "auto" else store
    config = read_object(source / "config.json") | {"dtype": dtype}
    config.pop("torch_dtype", None)
    if isinstance(model.module, BidirectionalLlama):
        config.pop("architectures", None)  # it has no head of a language model any more
    with atomic_folder(folder) as draft:
        _write_weights(model.module, draft, dtype=getattr(torch, dtype))
        (draft / "config.json").write_text(json.dumps(config, indent=1), encoding="utf-8")
        for name in ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"):
            if (source / name).is_file():
                shutil.copyfile(source / name, draft / name)
        write_text_rules(draft, model.source.text_rules("native"))


def _write_weights(module: nn.Module, folder: Path, *, dtype: torch.dtype) -> None:
    """One file, or several with an index, as transformers writes them; a file at a time is copied in memory."""
    state = module.state_dict()
    plan = split_torch_state_dict_into_shards(
        state, filename_pattern="model{suffix}.safetensors", max_shard_size=FILE_BYTES
    )
    for file, names in plan.filename_to_tensors.items():
        weights = {name: state[name].detach().to(dtype).cpu().contiguous() for name in names}
        save_file(weights, folder / file, metadata={"format": "pt"})
    if plan.is_sharded:
        index = {"metadata": plan.metadata, "weight_map": plan.tensor_to_filename}
        (folder / INDEX).write_text(json.dumps(index, indent=1) + "\n", encoding="utf-8")
