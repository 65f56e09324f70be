"""Texts through a language model, and the adapter that maps its states to the space shared with images.

The language model is a published one by name, or a local folder. If the folder does not say how texts are wrapped, this
is inferred from its shape or tokenizer, and reported.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Literal, final

import torch
from torch import Tensor

from llm2clip.encoders.catalog.entries import Choice, LanguageModelEntry, find_language, language_models
from llm2clip.encoders.catalog.hub import language_files, missing_files, resolve_files, update_files
from llm2clip.encoders.core.base import Parity
from llm2clip.encoders.core.dual_encoder import ReaderTower, to_array
from llm2clip.encoders.core.errors import ModelError
from llm2clip.encoders.core.files import (
    identity_settings,
    read_object,
    refuse_outside,
    sampled_sha256,
    settings_sha256,
)
from llm2clip.encoders.text.caption_tokenizer import LLAMA3_FOOTER, LLAMA3_HEADER, TextReader, TextRules
from llm2clip.encoders.text.gguf_conversion import SUFFIX as GGUF
from llm2clip.encoders.text.gguf_conversion import gguf_folder
from llm2clip.encoders.text.language_config import stored_rules
from llm2clip.encoders.text.llm_checkpoint import LanguagePlan, open_language
from llm2clip.encoders.text.packed import pooled_states
from llm2clip.encoders.weights.lora import is_lora_folder
from llm2clip.encoders.weights.memory_fit import check_choice, pick_choice
from llm2clip.encoders.weights.tensor_names import TOKENIZER_FILE

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from llm2clip.encoders.layers.llama import TextAdapter

LORA_FOLDER = "lora"
"""Sub-folder of a local folder that holds the low-rank update."""
_POOLED = {"all": "all tokens", "first": "the first token", "last": "the last token"}


@dataclass(frozen=True, kw_only=True)
class LanguageSource:
    """A language model, which may have to be downloaded first."""

    name: str
    """Its name."""
    entry: LanguageModelEntry | None
    """Its entry in the catalogue."""
    given: Path | None = None
    """The local folder of its files."""
    rules: TextRules | None = None
    """How texts are wrapped, if known."""
    copied: tuple[str, str] | None = None
    """``files_sha256`` when it was saved, and ``sha256`` of what was saved."""

    @cached_property
    def sha256(self) -> str:
        """SHA-256 of the name and revision of a published model, so that nothing is downloaded; else of the files."""
        if self.given is None:
            assert self.entry is not None, "a source has a entry or a folder"
            entry = self.entry
            lora = asdict(entry.lora) if entry.lora is not None else None
            published = {"repository": entry.repository, "revision": entry.revision, "lora": lora}
            return settings_sha256(published, files=[])
        digest = self.files_sha256
        return self.copied[1] if self.copied is not None and self.copied[0] == digest else digest

    @property
    def published(self) -> LanguageModelEntry | None:
        """Its entry in the catalogue, unless it is a local model that only has the same shape."""
        return self.entry if self.given is None or find_language(self.given.resolve().name) else None

    @property
    def files_sha256(self) -> str:
        """SHA-256 of its configuration, its tokenizer, and samples of its weights."""
        folder, update = self._folders
        weights = sorted({place.path for place in self.plan.places.values()})
        if update is not None:
            weights += sorted(path for path in update.glob("adapter_*") if path.is_file())
        samples = {path.name: sampled_sha256(path) for path in weights}
        tokenizer = folder / TOKENIZER_FILE
        return settings_sha256(
            {"config": identity_settings(self.plan.config), "weights": samples},
            files=[tokenizer] if tokenizer.is_file() else [],
        )

    @property
    def width(self) -> int | None:
        """Width of its states, if known without the files."""
        if self.given is None and self.entry is not None:
            return self.entry.shape.hidden_size
        return None

    @cached_property
    def _folders(self) -> tuple[Path, Path | None]:
        """Folders of the model and of its low-rank update; downloaded if necessary."""
        if self.given is not None:
            beside = self.given / LORA_FOLDER
            refuse_outside(beside, folder=self.given)
            return self.given, beside if is_lora_folder(beside) else None
        assert self.entry is not None, "a source has a entry or a folder"
        update = _update_folder(self.entry)
        if update is not None and not is_lora_folder(update):
            return update, None
        return resolve_files(language_files(self.entry)), update

    @cached_property
    def plan(self) -> LanguagePlan:
        """Configuration and tensors of the model; no weight is read."""
        folder, update = self._folders
        plan = open_language(folder, update=update)
        entry = self.entry
        if entry is not None and self.given is None and plan.parameters != entry.parameters:
            raise ModelError(
                f"{folder} holds a language model of {plan.parameters:,} numbers, but {entry.name} has "
                f"{entry.parameters:,}; fetch it again from {entry.repository}"
            )
        return plan

    @cached_property
    def found(self) -> tuple[str, ...]:
        """What was inferred from the files, in words."""
        rules = self.text_rules("native")
        wrapped = "wrapped as a turn of Llama 3" if rules.header else "not wrapped"
        if rules.prompt:
            wrapped = f"after {rules.prompt!r}"
        if rules.pool != "caption":
            wrapped += f", {_POOLED[rules.pool]} pooled"
        if rules.doc_max_length is not None:
            wrapped += f", up to {rules.doc_max_length} tokens"
        why = (
            "" if self._stored_rules or (self.entry and self.given is None) else f", as {_reason(self.entry)}"
        )
        return (*self.plan.found, f"texts {wrapped}{why}")

    @cached_property
    def _stored_rules(self) -> TextRules | None:
        """Rules that came with the model, rather than with the published one that it resembles."""
        return stored_rules(self.given) if self.rules is None and self.given is not None else self.rules

    def text_rules(self, parity: Parity) -> TextRules:
        """Wrapper and length limits of texts."""
        own = self._stored_rules
        if own is not None:
            known = own
        elif self.entry is not None:
            known = rules_of(self.entry)
        else:
            known = self.plan.rules
        return replace(known, parity=parity)

    def reader(self, parity: Parity) -> TextReader:
        """The tokenizer with the rules."""
        return self.plan.reader(self.text_rules(parity))


def language_source(asked: str | os.PathLike[str]) -> LanguageSource:
    """The language model of that name, or in that folder."""
    name = os.fspath(asked)
    entry = find_language(name)
    path = Path(name).expanduser()
    if entry is not None and not (path.is_dir() and os.sep in name):
        return LanguageSource(name=entry.name, entry=entry)
    if path.suffix == GGUF and path.is_file():
        return LanguageSource(name=path.stem, entry=None, given=gguf_folder(path))
    if not path.is_dir():
        known = ", ".join(item.name for item in language_models())
        raise ModelError(f"unknown language model {name!r}, and no folder of that name; known: {known}")
    return LanguageSource(name=path.resolve().name, entry=_entry_of(path), given=path)


def rules_of(entry: LanguageModelEntry) -> TextRules:
    """The text rules of a published language model, from its card."""
    wraps = entry.wrapper == "llama3"
    return TextRules(
        header=LLAMA3_HEADER if wraps else "",
        footer=LLAMA3_FOOTER if wraps else "",
        max_tokens=entry.max_tokens,
        doc_max_length=entry.doc_max_length,
    )


def _update_folder(entry: LanguageModelEntry) -> Path | None:
    wanted = update_files(entry)
    return (
        resolve_files(wanted) / entry.lora.subfolder
        if wanted is not None and entry.lora is not None
        else None
    )


def _entry_of(folder: Path) -> LanguageModelEntry | None:
    """The published language model with the name or the shape of the one in a folder."""
    if named := find_language(folder.resolve().name):
        return named
    if missing_files(folder, ("config.json",)):
        return None
    data = read_object(folder / "config.json")
    sizes = ("vocab_size", "hidden_size", "num_hidden_layers", "intermediate_size")
    return next(
        (
            entry
            for entry in language_models()
            if all(data.get(key) == getattr(entry.shape, key) for key in sizes)
        ),
        None,
    )


def _reason(entry: LanguageModelEntry | None) -> str:
    return f"{entry.name} is read" if entry else "its files suggest"


@final
class LlmTextTower(ReaderTower[TextReader]):
    """A language model with its tokenizer, and an adapter behind it unless its own states are wanted.

    Tokenizer, adapter and language model are each read when they are first needed.
    """

    def __init__(
        self,
        source: LanguageSource,
        *,
        choice: Choice | Literal["auto"],
        device: torch.device,
        parity: Parity = "native",
        load_adapter: Callable[[], TextAdapter] | None = None,
        half: bool = False,
    ) -> None:
        """``load_adapter`` is ``None`` for the states themselves; ``half`` rounds them to float16 first."""
        super().__init__(
            lambda: source.plan.load(self._choice, device=device),
            reader=lambda: source.reader(parity),
            device=device,
            dtype=choice,
        )
        self.source = source
        self.parity: Parity = parity
        self.half = half
        self._asked = choice
        self._place = device
        self._load_adapter = load_adapter

    @property
    def dtype(self) -> Choice:
        """Precision in which the model is loaded; ``"auto"`` resolves to the most precise that fits into memory."""
        return self._choice

    @cached_property
    def _choice(self) -> Choice:
        plan, name = self.source.plan, self.source.name
        if self._asked == "auto":
            return pick_choice(plan, name=name, stored=plan.stored, device=self._place)
        check_choice(plan, self._asked, name=name, device=self._place)
        return self._asked

    @property
    def found(self) -> tuple[str, ...]:
        """What was inferred from the files, in words; downloads and opens them."""
        return self.source.found

    @cached_property
    def adapter(self) -> TextAdapter | None:
        """The adapter; loaded on first use."""
        return self._load_adapter() if self._load_adapter is not None else None

    def load(self) -> None:
        """Read the adapter, which is small and refuses a language model of another width, then the model."""
        _ = self.adapter
        super().load()

    @property
    def settings_sha256(self) -> str:
        """SHA-256 of which language model it is and of how texts are read; nothing is fetched for a published one."""
        rules = identity_settings(self.source.text_rules(self.parity))
        return settings_sha256({"language_model": self.source.sha256, "text_rules": rules}, files=[])

    def count_tokens(self, texts: Sequence[str]) -> list[int]:
        """Tokens of each text before cutting."""
        return list(self.reader.count_tokens(texts))

    def vectors(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Shape: (len(texts), dim), float32, any scale."""
        # The adapter first: it is small, and refuses a language model of another width.
        if self.adapter is None:
            return to_array(self.features(texts))
        return to_array(self.project(self.features(texts)))

    def features(self, texts: Sequence[str]) -> Tensor:
        """Mean states of the texts' own tokens. Shape: (len(texts), width), float32, any scale.

        Any number of texts: they are sorted by length and read in passes of a bounded number of tokens, without
        padding. Only ``parity="upstream"`` reads them in one padded batch, as results depend on it there.
        """
        if self.parity == "upstream":
            return self.pooled(*(part.to(self.device) for part in self.reader.batch(texts)))
        return pooled_states(self.module(), self.reader.rows(texts), device=self._place)

    def pooled(self, ids_BL: Tensor, attention_BL: Tensor, pooled_BL: Tensor) -> Tensor:
        """Mean states of what ``TextReader.batch`` gave. Shape: (B, width), float32, any scale."""
        model = self.module()
        with torch.inference_mode():
            return self.reader.pool(model(ids_BL, attention_BL).float(), pooled_BL)

    def project(self, features: Tensor) -> Tensor:
        """Stored language model states in the shared space. Shape: (B, width) -> (B, dim), not normalised."""
        features = torch.as_tensor(features)
        if self.adapter is None:
            return features
        weight = next(self.adapter.parameters())
        if features.shape[-1] != weight.shape[-1]:
            raise ModelError(
                f"the adapter reads states of width {weight.shape[-1]}, got {features.shape[-1]}; "
                "were they made by another language model?"
            )
        if self.half:
            features = features.half()
        with torch.inference_mode():
            projected: Tensor = self.adapter(features.to(weight.device, weight.dtype))
        return projected
