"""Controls: nano without its transformer blocks, and encoders with random weights, which show where chance lies."""

from __future__ import annotations

import json
import shutil
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tokenizers import Tokenizer

    from llm2clip.encoders import Encoder

_BLOCK_OUTPUTS = (".self_attn.o_proj.weight", ".mlp.down_proj.weight")
"""The two matrices through which a Llama block adds to its residual stream."""
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
FAMILIES = ("nano", *_FAMILIES)
"""The families of which :func:`make_random` can make one."""


def encoder_folder(name: str) -> Path | None:
    """Folder of an encoder given by path or by the name of a shipped one; ``None`` for any other name."""
    shipped = Path(str(resources.files("llm2clip.encoders"))) / name
    return next((one for one in (Path(name), shipped) if (one / "model.safetensors").is_file()), None)


def without_blocks(folder: Path, copy: Path) -> Encoder:
    """Load a copy whose text blocks are switched off by zeroing their output matrices: a bag of tokens is left."""
    from safetensors.torch import load_file, save_file

    from llm2clip.encoders import load_encoder

    shutil.copytree(folder, copy)
    weights = copy / "model.safetensors"
    tensors = load_file(weights)
    found = [name for name in tensors if name.endswith(_BLOCK_OUTPUTS)]
    if not found:
        raise ValueError(
            f"{weights} has no tensor ending in {' or '.join(_BLOCK_OUTPUTS)}, so there is nothing to switch off. "
            "Leave this measurement out: --no-blocks"
        )
    save_file(tensors | {name: tensors[name].zero_() for name in found}, weights)
    return load_encoder(copy)


def nano_without_blocks(folder: Path) -> Encoder:
    """A copy of the shipped nano without its blocks, in a folder."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.parent.mkdir(parents=True, exist_ok=True)
    return without_blocks(_nano(), folder)


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


def _nano() -> Path:
    source = encoder_folder("nano")
    assert source is not None, "nano is shipped with the package"
    return source


def _shuffle_nano(folder: Path) -> None:
    """The numbers within every tensor of nano shuffled: the same sizes and spreads, and nothing learnt."""
    import torch
    from safetensors.torch import load_file, save_file

    source = _nano()
    shutil.copyfile(source / "tokenizer.json", folder / "tokenizer.json")
    config = json.loads((source / "config.json").read_text(encoding="utf-8")) | {"name": "random-nano"}
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    mixed = {
        name: tensor.flatten()[torch.randperm(tensor.numel())].reshape(tensor.shape).contiguous()
        for name, tensor in load_file(source / "model.safetensors").items()
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
