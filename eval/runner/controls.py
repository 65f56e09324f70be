"""Controls: nano without stage 1, nano with a bag of English words, and encoders with random weights.

Both variants of nano have an adapter and a projection of their own, fitted as nano's are and shipped beside it.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Mapping
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tokenizers import Tokenizer
    from torch import Tensor

    from llm2clip.encoders import Encoder

_NANO = Path(str(resources.files("llm2clip.encoders"))) / "nano"
CONTROLS_FILE = "controls.safetensors"
"""Adapters and projections of the variants, in nano's folder."""
CONTROLS = ("no-cc", "english-words")
"""The blocks that stage 1 left alone, without those it trained; and token embeddings without any block."""
_BLOCK = re.compile(r"language_model\.encoder\.layer\.(\d+)\.(.*)")
_OUTPUTS = ("attention.output.dense.", "output.dense.")
_LAYERS = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4}
_IMAGE, _PATCH, _DIM, _SPREAD = 64, 16, 48, 0.1
_FAMILIES = {
    "clip": ("CLIP", "<|startoftext|>", "<|endoftext|>", "<|endoftext|>"),
    "siglip": ("Siglip", "", "</s>", "</s>"),
    "siglip2": ("Siglip", "", "<eos>", "<pad>"),
    "metaclip2": ("MetaClip2", "<s>", "</s>", "<pad>"),
    "chinese-clip": ("ChineseCLIP", "[CLS]", "[SEP]", "[PAD]"),
    "altclip": ("AltCLIP", "<s>", "</s>", "<pad>"),
}
"""Name of transformers' class; begin, end and padding of a text."""
_FITTED = {
    "text_adapter.adaptor.1.weight": "text.weight",
    "text_adapter.adaptor.1.bias": "text.bias",
    "vision.centre": "centre",
    "visual_projection.weight": "image",
}
"""Tensor of an encoder folder -> its name in the controls."""
FAMILIES = ("nano", *_FAMILIES)
"""The families of which :func:`make_random` can make one."""


def control_blocks(name: str, *, blocks: int, trained: int) -> int:
    """Number of blocks that a variant keeps; without any, one is kept and silenced."""
    return {"no-cc": blocks - trained, "english-words": 1}[name]


def cut_blocks(tensors: Mapping[str, Tensor], name: str, *, keep: int) -> dict[str, Tensor]:
    """The tensors of a variant: of the first ``keep`` blocks only, silenced in the bag of words."""
    kept: dict[str, Tensor] = {}
    for tensor_name, tensor in tensors.items():
        block = _BLOCK.fullmatch(tensor_name)
        if block is not None and int(block[1]) >= keep:
            continue
        silent = name == "english-words" and block is not None and block[2].startswith(_OUTPUTS)
        kept[tensor_name] = tensor * 0 if silent else tensor
    return kept


def nano_control(name: str, folder: Path, *, source: Path | None = None) -> Encoder:
    """Write a variant of nano into a folder, and load it.

    Args:
        name: One of ``CONTROLS``.
        folder: Replaced if it is there.
        source: Folder of nano; the shipped one by default.
    """
    from safetensors.torch import load_file, save_file

    from llm2clip.encoders import load_encoder
    from llm2clip.encoders.llm2clip.folder_modules import unpack_int8

    home = source or _NANO
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    fitted = load_file(home / CONTROLS_FILE)
    config = json.loads((home / "config.json").read_text(encoding="utf-8"))
    keep = int(fitted[f"{name}.blocks"])
    tensors = cut_blocks(unpack_int8(load_file(home / "model.safetensors")), name, keep=keep)
    for ours, theirs in _FITTED.items():
        tensors[ours] = fitted[f"{name}.{theirs}"]
    halves = {key: tensor.half() for key, tensor in tensors.items()}
    halves["logit_scale"] = tensors["logit_scale"].float()
    save_file(halves, folder / "model.safetensors")
    config["text"]["num_hidden_layers"] = keep
    config |= {"name": f"nano-{name}", "dtype": "float16"}
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    shutil.copyfile(home / "tokenizer.json", folder / "tokenizer.json")
    return load_encoder(folder)


def make_random(family: str, folder: Path, *, seed: int = 0) -> Path:
    """Write an encoder with random weights, or leave it if it exists; return its folder."""
    if family not in FAMILIES:
        raise ValueError(f"no random encoder of family {family!r}, expected one of {', '.join(FAMILIES)}")
    mark = folder / "random.json"
    recipe = {"family": family, "seed": seed, "recipe": 3}
    if mark.is_file() and json.loads(mark.read_text(encoding="utf-8")) == recipe:
        return folder
    if folder.is_dir() and any(folder.iterdir()) and not mark.is_file():
        raise ValueError(f"{folder} is not empty and holds no random encoder; name another folder")
    import torch

    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    mark.write_text("null\n", encoding="utf-8")  # ours, and incomplete
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        _shuffle_nano(folder) if family == "nano" else _write_two_towers(folder, family)
    mark.write_text(json.dumps(recipe) + "\n", encoding="utf-8")
    return folder


def _shuffle_nano(folder: Path) -> None:
    """The numbers within every tensor of nano shuffled: the same sizes and spreads, and nothing learnt."""
    import torch
    from safetensors.torch import load_file, save_file

    shutil.copyfile(_NANO / "tokenizer.json", folder / "tokenizer.json")
    config = json.loads((_NANO / "config.json").read_text(encoding="utf-8")) | {"name": "random-nano"}
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    mixed = {
        name: tensor.flatten()[torch.randperm(tensor.numel())].reshape(tensor.shape).contiguous()
        for name, tensor in load_file(_NANO / "model.safetensors").items()
    }
    save_file(mixed, folder / "model.safetensors")


def _write_two_towers(folder: Path, family: str) -> None:
    """A model of transformers, as its published relatives are stored."""
    import torch
    import transformers
    from transformers.utils import logging

    logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    classes, begin, end, pad = _FAMILIES[family]
    tokenizer = _byte_tokenizer(begin, end, pad)
    tokenizer.save(str(folder / "tokenizer.json"))
    siglip = classes == "Siglip"
    positions = 64 if siglip else 512 if family == "chinese-clip" else 100
    text: dict[str, Any] = _LAYERS | {
        "vocab_size": tokenizer.get_vocab_size(),
        "max_position_embeddings": positions,
        "eos_token_id": tokenizer.token_to_id(end),
        "pad_token_id": tokenizer.token_to_id(pad),
    }
    if family != "chinese-clip":
        text["bos_token_id"] = None if siglip else tokenizer.token_to_id(begin)
    if family == "altclip":
        text["project_dim"] = _DIM
    vision = _LAYERS | {"image_size": _IMAGE, "patch_size": _PATCH}
    sizes: dict[str, Any] = {} if siglip else {"projection_dim": _DIM}
    config = getattr(transformers, f"{classes}Config")(text_config=text, vision_config=vision, **sizes)
    model = getattr(transformers, f"{classes}Model")(config)
    for parameter in model.parameters():
        if parameter.ndim > 1:  # norms keep their scale
            torch.nn.init.normal_(parameter, std=_SPREAD)
    model.save_pretrained(folder)
    (folder / "preprocessor_config.json").write_text(json.dumps(_preprocessing(family)), encoding="utf-8")
    (folder / "tokenizer_config.json").write_text(json.dumps({"eos_token": end}), encoding="utf-8")


def _preprocessing(family: str) -> dict[str, Any]:
    siglip = family in ("siglip", "siglip2")
    square = siglip or family == "chinese-clip"
    exact = {"height": _IMAGE, "width": _IMAGE}
    return {
        "do_resize": True,
        "size": exact if square else {"shortest_edge": _IMAGE},
        "resample": 2 if family == "siglip2" else 3,
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "do_center_crop": not square,
        "image_mean": [0.5] * 3 if siglip else [0.48145466, 0.4578275, 0.40821073],
        "image_std": [0.5] * 3 if siglip else [0.26862954, 0.26130258, 0.27577711],
    } | ({} if square else {"crop_size": exact})


def _byte_tokenizer(begin: str, end: str, pad: str) -> Tokenizer:
    """Every byte a token, so that every language can be read; begin and end around a text."""
    from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers, processors

    # Marks first: XLM-RoBERTa counts positions from the number of the padding token.
    marks = [mark for mark in dict.fromkeys((begin, pad, end)) if mark]
    ordered = (*marks, *sorted(pre_tokenizers.ByteLevel.alphabet()))
    tokenizer = Tokenizer(models.BPE({word: number for number, word in enumerate(ordered)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.add_special_tokens([AddedToken(mark, special=True) for mark in marks])
    around = [(mark, tokenizer.token_to_id(mark)) for mark in dict.fromkeys((begin, end)) if mark]
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{begin} $A {end}".strip(), special_tokens=around
    )
    return tokenizer
