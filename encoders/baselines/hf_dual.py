"""A dual encoder of transformers from a folder as the Hugging Face hub lays it out."""

from __future__ import annotations

import re
import threading
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any, final

import torch
from torch import Tensor, nn

from llm2clip.encoders.baselines.hf_families import FAMILIES, Family
from llm2clip.encoders.baselines.shared import describe, settings_hash
from llm2clip.encoders.catalog.hub import ModelFiles
from llm2clip.encoders.core.dual_encoder import DualEncoder, LoadOptions, pick_device, pick_dtype
from llm2clip.encoders.core.errors import ModelError
from llm2clip.encoders.core.files import MOST, MOST_LAYERS, check_size, read_object
from llm2clip.encoders.images.hf_preprocessor import read_preprocess
from llm2clip.encoders.images.preprocess import PixelTower
from llm2clip.encoders.layers.transformers_modules import import_quietly, replace_quick_gelu
from llm2clip.encoders.text.clip_tokenizer import TokenReader, TokenTower, load_tokenizer
from llm2clip.encoders.weights.pickle_conversion import convert_into_home
from llm2clip.encoders.weights.safetensors_io import TowerTensors, Weights

TEXT = ("text_model.", "text_projection.")
"""Prefixes of the tensors of the text tower."""
VISION = ("vision_model.", "visual_projection.")
"""Prefixes of the tensors of the vision tower."""
UNUSED = re.compile(
    r"logit_scale|logit_bias|(text|vision)_model\..*embeddings\.(position_ids|token_type_ids)"
)
"""Tensors that neither tower needs: scale and offset of the loss, and position ids of old releases."""

_GEMMA_TOKENS = 256_000
"""Tokens of SigLIP 2, which reads texts with Gemma's tokenizer."""
_OLD_END = 2
"""``eos_token_id`` of old configurations of CLIP; transformers then reads the state of the largest token id."""
_SIZES = (
    *("hidden_size", "intermediate_size", "num_attention_heads", "num_hidden_layers", "num_channels"),
    *("vocab_size", "max_position_embeddings", "image_size", "patch_size"),
    *("projection_dim", "projection_size", "project_dim"),
)
"""Settings of a model or of one of its towers that are lengths and counts."""
_BUILDING = threading.Lock()
"""Held while a module is built: that replaces torch's initialisers for the whole process for a moment."""


@final
class TextTower(nn.Module):
    """Token ids to vectors; its tensors are called as in the published files."""

    def __init__(self, family: Family, settings: Any) -> None:  # noqa: ANN401
        super().__init__()
        import transformers

        tower = getattr(transformers, f"{family.classes}TextModel")
        self.text_model = tower(settings.text_config, **family.text_options)
        width = getattr(settings.text_config, family.text_width)
        self.text_projection = _projection(family, width, settings)
        self.first_state = family.first_state

    def forward(self, ids_BL: Tensor, mask_BL: Tensor | None) -> Tensor:
        """Shape: (B, L), int64 -> (B, dim), not normalised."""
        output = self.text_model(input_ids=ids_BL, attention_mask=mask_BL)
        state_BD = output.last_hidden_state[:, 0] if self.first_state else output.pooler_output
        vectors: Tensor = self.text_projection(state_BD)
        return vectors


@final
class VisionTower(nn.Module):
    """Normalised pixels to vectors; its tensors are called as in the published files."""

    def __init__(self, family: Family, settings: Any) -> None:  # noqa: ANN401
        super().__init__()
        import transformers

        tower = getattr(transformers, f"{family.classes}VisionModel")
        self.vision_model = tower(settings.vision_config)
        self.visual_projection = _projection(family, settings.vision_config.hidden_size, settings)

    def forward(self, pixels_B3SS: Tensor) -> Tensor:
        """Shape: (B, 3, S, S) -> (B, dim), not normalised."""
        output = self.vision_model(pixel_values=pixels_B3SS)
        vectors: Tensor = self.visual_projection(output.pooler_output)
        return vectors


def _projection(family: Family, width: int, settings: Any) -> nn.Module:  # noqa: ANN401
    return nn.Linear(width, settings.projection_dim, bias=False) if family.projected else nn.Identity()


@final
class Checkpoint:
    """A model of a family in a folder: settings and weights; each tower is built when it is needed."""

    def __init__(self, files: ModelFiles) -> None:
        """Find the family, the preprocessing and the weights."""
        self.folder = folder = files.folder
        self.config = files.config
        self.family = family_of(folder, self.config)
        entry, found = files.encoder_entry, self.family.name
        if files.path is None and entry is not None and entry.family != found:
            raise ModelError(f"{folder / 'config.json'} is of family {found!r}, expected {entry.family!r}")
        self.preprocess = read_preprocess(folder, self.config, self.family.images)
        self.weights = Weights(folder, convert=convert_into_home)

    @cached_property
    def settings(self) -> Any:  # noqa: ANN401
        """The configuration of the whole model, as transformers has it."""
        return build_settings(self.family, self.config, where=self.folder / "config.json")

    @property
    def dim(self) -> int:
        """Length of the vectors."""
        if self.family.projected:
            return int(self.settings.projection_dim)
        return int(self.settings.text_config.projection_size)

    @property
    def limit(self) -> int:
        """Tokens of a text that are read."""
        positions = int(self.settings.text_config.max_position_embeddings)
        return min(positions, self.family.form.limit or positions)

    @property
    def vocabulary(self) -> int:
        """Tokens the text tower knows."""
        return int(self.settings.text_config.vocab_size)

    def reader(self) -> TokenReader:
        """The tokenizer."""
        form = self.family.form
        tokenizer = load_tokenizer(self.folder, form=form, vocabulary=self.vocabulary)
        end, told = tokenizer.token_to_id(form.end), self.settings.text_config.eos_token_id
        old = self.family.name == "clip" and told == _OLD_END
        if self.family.end_state and told != end and not old:
            raise ModelError(
                f"{self.folder / 'config.json'}: text_config.eos_token_id is {told}, but {form.end!r} is {end} in "
                "its tokenizer; they are not of the same model"
            )
        return TokenReader(tokenizer, form=form, limit=self.limit)

    def load_text(self, *, dtype: torch.dtype, device: torch.device) -> nn.Module:
        """The text tower with its weights, in evaluation mode."""
        tower = TowerTensors(prefixes=TEXT, others=VISION, unused=UNUSED, spellings=self.family.spellings)
        return self._filled(lambda: TextTower(self.family, self.settings), tower, dtype, device)

    def load_vision(self, *, dtype: torch.dtype, device: torch.device) -> nn.Module:
        """The vision tower with its weights, in evaluation mode."""
        tower = TowerTensors(prefixes=VISION, others=TEXT, unused=UNUSED, spellings=self.family.spellings)
        return self._filled(lambda: VisionTower(self.family, self.settings), tower, dtype, device)

    def _filled(
        self, make: Callable[[], nn.Module], tower: TowerTensors, dtype: torch.dtype, device: torch.device
    ) -> nn.Module:
        module = build(make, where=self.folder / "config.json")
        shapes = {name: tuple(tensor.shape) for name, tensor in module.state_dict().items()}
        return fill(module, self.weights.read(shapes, tower=tower, dtype=dtype, device=device), device=device)


def family_of(folder: Path, config: Mapping[str, Any]) -> Family:
    """The family of a model in a folder.

    SigLIP and SigLIP 2 call themselves the same; the second reads texts with Gemma's tokenizer.
    """
    kind = config.get("model_type")
    fitting = [family for family in FAMILIES.values() if family.model_type == kind]
    if not fitting:
        known = ", ".join(repr(name) for name in sorted({family.model_type for family in FAMILIES.values()}))
        raise ModelError(f"{folder / 'config.json'} is of model_type {kind!r}, expected one of {known}")
    if kind == "siglip":
        return FAMILIES["siglip2" if _is_siglip2(folder, config) else "siglip"]
    return fitting[0]


def _is_siglip2(folder: Path, config: Mapping[str, Any]) -> bool:
    text = config.get("text_config")
    if isinstance(text, dict) and text.get("vocab_size") == _GEMMA_TOKENS:
        return True
    path = folder / "tokenizer_config.json"
    end = read_object(path).get("eos_token") if path.is_file() else None
    return (end.get("content") if isinstance(end, dict) else end) == FAMILIES["siglip2"].form.end


def build_settings(family: Family, config: Mapping[str, Any], *, where: Path) -> Any:  # noqa: ANN401
    """The configuration of a whole model, as transformers has it."""
    import transformers
    from huggingface_hub.errors import StrictDataclassError

    data = dict(config)
    if family.text_settings and isinstance(data.get("text_config", {}), dict):
        data["text_config"] = {**family.text_settings, **data.get("text_config", {})}
    try:
        settings = getattr(transformers, f"{family.classes}Config").from_dict(data)
        for part in (settings, settings.text_config, settings.vision_config):
            _check_sizes(part)
    except (StrictDataclassError, TypeError, ValueError, AttributeError, ArithmeticError) as error:
        reason = " ".join(str(error).split())
        raise ModelError(f"{where} is no configuration of {family.classes}: {reason}") from error
    return settings


def _check_sizes(settings: Any) -> None:  # noqa: ANN401
    """``ValueError`` where a tower cannot be built of such sizes; whether they are right, the weights will tell."""
    from transformers.activations import ACT2FN

    for name in _SIZES:
        if (value := getattr(settings, name, None)) is not None:
            check_size(name, value, most=MOST_LAYERS if name == "num_hidden_layers" else MOST)
    eps, activation = getattr(settings, "layer_norm_eps", 1e-5), getattr(settings, "hidden_act", "gelu")
    if not 0 < eps < 1:
        raise ValueError(f"layer_norm_eps must be between 0 and 1, got {eps}")
    if activation not in ACT2FN:
        raise ValueError(f"hidden_act must be one that transformers has, got {activation!r}")


def build(make: Callable[[], nn.Module], *, where: Path) -> nn.Module:
    """A module whose parameters are left as they are, because they are about to be replaced."""
    import_quietly()
    from transformers.initialization import no_init_weights

    try:
        with _BUILDING, no_init_weights():
            return replace_quick_gelu(make())
    except (RuntimeError, ValueError, TypeError, ArithmeticError, MemoryError) as error:
        reason = " ".join(str(error).split())[:200]
        raise ModelError(f"{where}: no model of the sizes it gives can be made: {reason}") from error


def fill(module: nn.Module, tensors: Mapping[str, Tensor], *, device: torch.device) -> nn.Module:
    """Put tensors in the place of a module's own, for inference; they are neither copied nor converted."""
    module.load_state_dict(tensors, assign=True)
    return module.requires_grad_(False).eval().to(device)


def load_dual(files: ModelFiles, options: LoadOptions) -> DualEncoder:
    """Open a dual encoder of transformers; its weights are read when they are first needed."""
    checkpoint = Checkpoint(files)
    device = pick_device(options.device)
    dtype = pick_dtype(options.dtype, device=device, stored="float16")
    images = PixelTower(
        lambda: checkpoint.load_vision(dtype=dtype, device=device),
        preprocess=replace(checkpoint.preprocess, parity=options.parity),
        dtype=dtype,
        device=device,
    )
    texts = TokenTower(
        lambda: checkpoint.load_text(dtype=dtype, device=device),
        reader=checkpoint.reader,
        device=device,
        dtype=dtype,
    )
    return DualEncoder(
        images,
        texts,
        describe=lambda: describe(
            files,
            images.preprocess,
            family=checkpoint.family.name,
            dim=checkpoint.dim,
            max_text_tokens=checkpoint.limit,
            weights_sha256=checkpoint.weights.sha256,
            settings_sha256=settings_hash(files, checkpoint.config, form=checkpoint.family.form),
            parameters=checkpoint.weights.parameters,
        ),
    )
