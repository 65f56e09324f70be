"""Make one folder that ``load_encoder`` takes of what stage 2 left and of the frozen text model.

Low-rank updates are merged, batch normalisation is folded. ``save_vision_tower`` and ``as_sentence_transformer`` give
the two sides of the result to other programs.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast, get_args

import torch
from torch import Tensor, nn

from llm2clip.common.files import format_bytes
from llm2clip.encoders import load_encoder
from llm2clip.encoders.core.dual_encoder import DualEncoder
from llm2clip.encoders.core.errors import ModelError
from llm2clip.encoders.core.files import from_json, read_object
from llm2clip.encoders.images.preprocess import Preprocess
from llm2clip.encoders.layers.configs import AdapterConfig, EfficientNetLiteConfig, LiteTowerConfig
from llm2clip.encoders.layers.efficientnet_lite import EfficientNetLite, LiteTower
from llm2clip.encoders.llm2clip.encoder_folder import FolderTextTower
from llm2clip.encoders.llm2clip.folder_config import HeadConfig, Llm2ClipConfig, StoredDtype
from llm2clip.encoders.llm2clip.folder_modules import build_adapter, build_head
from llm2clip.encoders.llm2clip.save_load import save_llm2clip
from llm2clip.encoders.text.llm_text_tower import LlmTextTower
from llm2clip.encoders.vision.tower_detection import TowerShape
from llm2clip.encoders.vision.vision_tower import build_tower
from llm2clip.encoders.weights.safetensors_io import TensorSpec, check_tensors, read_header, read_tensors
from llm2clip.encoders.weights.tensor_names import ADAPTER, LOGIT_SCALE, TOKENIZER_FILE, VISION, WEIGHTS_FILE
from llm2clip.train.align.output import ALIGNED, CONFIG, FORMAT, VERSION, WEIGHTS
from llm2clip.train.align.towers import EFFICIENTNET

if TYPE_CHECKING:
    from llm2clip.encoders.text.caption_tokenizer import TextRules
    from llm2clip.encoders.text.packed import LanguageModule

_HEAD = "image_head."
_LOGIT_BIAS = "logit_bias"
"""Of the sigmoid loss; search does not use it."""


@dataclass(frozen=True, kw_only=True)
class Card:
    """What an exported encoder says of itself."""

    name: str
    """Its name."""
    note: str = "trained with llm2clip-train align"
    """One line: what it is good at and what it is not."""
    licence: str = "unknown"
    """Licence of the weights."""
    languages: tuple[str, ...] = ()
    """Language codes of the texts it was trained on."""


@dataclass(frozen=True, kw_only=True)
class _Head:
    """The image head as stage 2 describes it."""

    kind: Literal["linear", "adapter", "none"]
    width: int
    dim: int
    bias: bool = False
    blocks: int = 0
    expansion: int = 2
    normalize_input: bool = False


@dataclass(frozen=True, kw_only=True)
class _Text:
    """The text model as stage 2 describes it."""

    name: str
    features: str
    made_by: str = ""
    dtype: str = "auto"


@dataclass(frozen=True)
class _Language:
    """The frozen text model."""

    module: LanguageModule
    rules: TextRules
    tokenizer: Path


def export(
    run: str | Path,
    out: str | Path,
    *,
    card: Card | None = None,
    dtype: StoredDtype = "float16",
    text_model: str | Path | None = None,
) -> Path:
    """Write the encoder and return its folder; it has proved to load by then.

    Args:
        run: Folder of a run of ``align``, or its folder ``aligned``.
        out: Where to; files of the same names are replaced.
        card: Name, note, licence and languages; by default named like ``out``.
        dtype: Precision of the stored weights; ``int8`` has a scale for each row.
        text_model: Name or folder of the text model, if it is no longer where the run found it.

    Raises:
        ModelError: The folder is not one of ``align``, is damaged, or its text model is not found or of another shape.
        OSError: A file cannot be written.
    """
    folder = _aligned(Path(run))
    said = _read_settings(folder)
    head = from_json(_Head, said["image_head"], where=f"{folder / CONFIG}.image_head")
    adapter = from_json(AdapterConfig, said["text_adapter"], where=f"{folder / CONFIG}.text_adapter")
    preprocess = from_json(Preprocess, said["preprocessing"], where=f"{folder / CONFIG}.preprocessing")
    text = from_json(_Text, said["text_model"], where=f"{folder / CONFIG}.text_model")
    language = _language(text, text_model)
    shape, vision = _empty_tower(said["vision"], where=folder / CONFIG)
    card = card or Card(name=Path(out).resolve().name)
    try:
        config = Llm2ClipConfig(
            name=card.name,
            note=card.note,
            licence=card.licence,
            languages=card.languages,
            vision=shape,
            text=language.module.config,
            adapter=adapter,
            preprocessing=preprocess,
            text_rules=language.rules,
            dtype=dtype,
            image_head=_head_config(head),
        )
    except ValueError as error:
        raise ModelError(f"{folder / CONFIG} does not fit {text_model or text.name}: {error}") from error
    projection = build_head(config.image_head, width=head.width, dim=head.dim)
    text_adapter = build_adapter(adapter)
    scale = _fill({VISION: vision, _HEAD: projection, ADAPTER: text_adapter}, folder / WEIGHTS)
    save_llm2clip(
        out,
        config=config,
        vision=_for_inference(vision, config),
        projection=projection,
        language_model=language.module,
        adapter=text_adapter,
        logit_scale=scale,
        tokenizer_json=language.tokenizer,
    )
    return Path(out)


def export_run(run: Path, out: Path, *, name: str | None, dtype: str, text_model: str | None) -> str:
    """What ``llm2clip-train export`` does; returns one line for people. Errors as in :func:`export`."""
    if dtype not in get_args(StoredDtype):
        raise ValueError(f"dtype must be one of {', '.join(get_args(StoredDtype))}, got {dtype!r}")
    card = Card(name=name) if name else None
    folder = export(run, out, card=card, dtype=cast("StoredDtype", dtype), text_model=text_model)
    size = format_bytes((folder / WEIGHTS_FILE).stat().st_size)
    return f"{folder} ({size}); use it with: llm2clip-index build IMAGES --encoder {folder}"


def _aligned(run: Path) -> Path:
    for folder in (run / ALIGNED, run):
        if (folder / CONFIG).is_file():
            return folder
    raise ModelError(
        f"{run} holds no result of llm2clip-train align: expected {ALIGNED}/{CONFIG}; has it ended?"
    )


def _read_settings(folder: Path) -> dict[str, Any]:
    path = folder / CONFIG
    said = read_object(path)
    if (said.get("format"), said.get("version")) != (FORMAT, VERSION):
        got = f"{said.get('format')!r} version {said.get('version')!r}"
        raise ModelError(f"{path}: expected format {FORMAT!r} version {VERSION}, got {got}")
    needed = ("vision", "preprocessing", "image_head", "text_adapter", "text_model")
    if missing := [key for key in needed if key not in said]:
        raise ModelError(f"{path}: missing keys: {missing}")
    return said


def _empty_tower(said: object, *, where: Path) -> tuple[LiteTowerConfig | TowerShape, nn.Module]:
    """The tower as ``config.json`` says it, and a module as it was trained."""
    data = dict(said) if isinstance(said, dict) else {}
    if data.get("layout") == EFFICIENTNET:
        sizes = {key: data.get(key) for key in ("variant", "image_size")}
        trunk = from_json(EfficientNetLiteConfig, sizes, where=f"{where}.vision")
        trained = EfficientNetLite(replace(trunk, batch_norm=bool(data.get("batch_norm", True))))
        return LiteTowerConfig(trunk=trunk), trained
    fields = TowerShape.__dataclass_fields__
    known = {key: value for key, value in data.items() if key in fields}
    shape = from_json(TowerShape, known, where=f"{where}.vision")
    return shape, build_tower(shape, projection=False)


def _head_config(head: _Head) -> HeadConfig:
    return HeadConfig(
        kind=head.kind,
        bias=head.bias,
        blocks=head.blocks,
        expansion=head.expansion,
        normalize_input=head.normalize_input,
    )


def _fill(modules: dict[str, nn.Module], weights: Path) -> Tensor:
    """Read the trained weights into the modules, strictly; returns the learnt logarithm of the scale."""
    header = read_header(weights)
    states = {
        prefix + name: tensor
        for prefix, module in modules.items()
        for name, tensor in module.state_dict().items()
    }
    expected = {
        name: TensorSpec(tuple(tensor.shape), "I64" if name.endswith("num_batches_tracked") else "F32")
        for name, tensor in states.items()
    }
    scalars = {name: TensorSpec((), "F32") for name in (LOGIT_SCALE, _LOGIT_BIAS) if name in header}
    check_tensors(
        header, {LOGIT_SCALE: TensorSpec((), "F32")} | expected | scalars, path=weights, what=CONFIG
    )
    read = read_tensors(weights, header, dtype=torch.float32)
    for prefix, module in modules.items():
        mine = {name.removeprefix(prefix): read[name] for name in states if name.startswith(prefix)}
        module.load_state_dict(mine)
        module.requires_grad_(False).eval()
    return read[LOGIT_SCALE]


def _for_inference(tower: nn.Module, config: Llm2ClipConfig) -> nn.Module:
    """The tower without batch normalisation."""
    if not isinstance(tower, EfficientNetLite):
        return tower
    assert isinstance(config.vision, LiteTowerConfig), "it is one"
    whole = LiteTower(config.vision)
    whole.trunk = tower.folded()
    return whole.eval()


def _language(said: _Text, given: str | Path | None) -> _Language:
    """The text model whose pooled states the adapter reads, with its own rules."""
    if said.features != "states":
        raise ModelError(
            f"the adapter reads {said.features} of {said.name}, not states of a language model; train it with the "
            "language model itself as text.model to export it"
        )
    encoder = load_encoder(given or said.name, device="cpu")
    tower = encoder.text_tower if isinstance(encoder, DualEncoder) else None
    if isinstance(tower, LlmTextTower):
        plan = tower.source.plan
        return _Language(
            plan.load(plan.stored), tower.source.text_rules("native"), plan.folder / TOKENIZER_FILE
        )
    if isinstance(tower, FolderTextTower) and isinstance(encoder, DualEncoder):
        assert isinstance(encoder.source, Path), "it came from a folder"
        return _Language(tower.module().language_model, tower.reader.rules, encoder.source / TOKENIZER_FILE)
    raise ModelError(f"{given or said.name} has no language model whose weights could be exported")
