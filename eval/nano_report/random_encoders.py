"""Encoders with random weights, one of each family: controls that show where chance lies.

Each is a folder in its family's published layout, a few hundred thousand numbers large, and is loaded by
``load_encoder`` like the real one: what goes wrong between reading an image and counting a hit goes wrong here too.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llm2clip.eval.nano_report import random_layouts as chance_layouts

if TYPE_CHECKING:
    from tokenizers import Tokenizer

_LAYERS = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4}
_IMAGE = 64
_PATCH = 16
_DIM = 48
_POSITIONS = 77
_SPREAD = 0.1
_ENDS = {
    "clip": ("<|startoftext|>", "<|endoftext|>", "<|endoftext|>"),
    "siglip": ("", "</s>", "</s>"),
    "siglip2": ("", "<eos>", "<pad>"),
    "metaclip2": ("<s>", "</s>", "<pad>"),
    "chinese-clip": ("[CLS]", "[SEP]", "[PAD]"),
    "altclip": ("<s>", "</s>", "<pad>"),
}
"""Begin, end and fill of a text, by family."""
_CLASSES = {
    "clip": "CLIP",
    "siglip": "Siglip",
    "siglip2": "Siglip",
    "metaclip2": "MetaClip2",
    "chinese-clip": "ChineseCLIP",
    "altclip": "AltCLIP",
}


def random_families() -> tuple[str, ...]:
    """The families of which :func:`make_random` can make one."""
    return (*_MAKERS,)


def make_random(family: str, folder: Path, *, seed: int = 0) -> Path:
    """Write an encoder of a family with random weights, or leave it if it is there; return its folder.

    Args:
        family: One of :func:`random_families`.
        folder: Written anew if it is not whole.
        seed: Another seed, another encoder.

    Raises:
        ValueError: There is no such family, or the folder holds something else.
        OSError: The folder cannot be written.
    """
    if family not in _MAKERS:
        raise ValueError(f"no random encoder of family {family!r}, expected one of {', '.join(_MAKERS)}")
    mark = folder / "random.json"
    told = {"family": family, "seed": seed, "recipe": 3}
    if mark.is_file() and json.loads(mark.read_text(encoding="utf-8")) == told:
        return folder
    if folder.is_dir() and any(folder.iterdir()) and not mark.is_file():
        raise ValueError(f"{folder} is not empty and holds no random encoder; name another folder")
    import torch
    from transformers.utils import logging

    logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    # It warns of numbers of tokens that these towers have no use for.
    logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    mark.write_text("null\n", encoding="utf-8")  # ours, and not whole yet
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        _MAKERS[family](folder, family)
    mark.write_text(json.dumps(told) + "\n", encoding="utf-8")
    return folder


def _shuffled_nano(folder: Path, _: str) -> None:
    """The numbers within every tensor of nano shuffled: the same sizes and spreads, and nothing learnt."""
    import torch
    from safetensors.torch import load_file, save_file

    from llm2clip.eval.nano_report.report import encoder_folder

    source = encoder_folder("nano")
    assert source is not None, "nano is shipped with the package"
    shutil.copyfile(source / "tokenizer.json", folder / "tokenizer.json")
    config = json.loads((source / "config.json").read_text(encoding="utf-8")) | {"name": "random-nano"}
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    tensors = load_file(source / "model.safetensors")
    mixed = {
        name: tensor.flatten()[torch.randperm(tensor.numel())].reshape(tensor.shape).contiguous()
        for name, tensor in tensors.items()
    }
    save_file(mixed, folder / "model.safetensors")


def _two_towers(folder: Path, family: str) -> None:
    """A model of transformers, as its published relatives are stored."""
    import torch
    import transformers

    tokenizer = _bytes(*_ENDS[family])
    tokenizer.save(str(folder / "tokenizer.json"))
    text: dict[str, Any] = {**_LAYERS, "vocab_size": tokenizer.get_vocab_size()}
    text |= {"max_position_embeddings": 512 if family == "chinese-clip" else _POSITIONS + 23}
    begin, end, pad = _ENDS[family]
    if family in ("siglip", "siglip2"):
        text |= {"max_position_embeddings": 64, "bos_token_id": None}
    elif family != "chinese-clip":
        text |= {"bos_token_id": tokenizer.token_to_id(begin)}
    text |= {"eos_token_id": tokenizer.token_to_id(end), "pad_token_id": tokenizer.token_to_id(pad)}
    if family == "altclip":
        text |= {"project_dim": _DIM}
    vision = {**_LAYERS, "image_size": _IMAGE, "patch_size": _PATCH}
    sizes: dict[str, Any] = {} if family in ("siglip", "siglip2") else {"projection_dim": _DIM}
    classes = _CLASSES[family]
    config = getattr(transformers, f"{classes}Config")(text_config=text, vision_config=vision, **sizes)
    model = getattr(transformers, f"{classes}Model")(config)
    for parameter in model.parameters():
        if parameter.ndim > 1:  # norms keep their scale
            torch.nn.init.normal_(parameter, std=_SPREAD)
    model.save_pretrained(folder)
    _describe(folder, family, end=end)


def _describe(folder: Path, family: str, *, end: str) -> None:
    """The two files that say how images and texts are prepared."""
    square = family in ("siglip", "siglip2", "chinese-clip")
    half = family in ("siglip", "siglip2")
    size: dict[str, int] = {"height": _IMAGE, "width": _IMAGE} if square else {"shortest_edge": _IMAGE}
    images: dict[str, Any] = {"do_resize": True, "size": size, "resample": 2 if family == "siglip2" else 3}
    images |= {
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "do_center_crop": not square,
    }
    if not square:
        images["crop_size"] = {"height": _IMAGE, "width": _IMAGE}
    images["image_mean"] = [0.5] * 3 if half else [0.48145466, 0.4578275, 0.40821073]
    images["image_std"] = [0.5] * 3 if half else [0.26862954, 0.26130258, 0.27577711]
    (folder / "preprocessor_config.json").write_text(json.dumps(images), encoding="utf-8")
    (folder / "tokenizer_config.json").write_text(json.dumps({"eos_token": end}), encoding="utf-8")


def _bytes(begin: str, end: str, pad: str, *, marks_last: bool = False) -> Tokenizer:
    """Every byte a token, so that every language can be read; begin and end around a text."""
    from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers, processors

    # Marks first: the fill's number is also where XLM-RoBERTa begins to count positions. OpenAI's towers take the
    # state at the highest number, so there the end must come last.
    marks = [mark for mark in dict.fromkeys((begin, pad, end)) if mark]
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    ordered = (*letters, *marks) if marks_last else (*marks, *letters)
    words = {word: number for number, word in enumerate(ordered)}
    tokenizer = Tokenizer(models.BPE(words, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.add_special_tokens([AddedToken(mark, special=True) for mark in marks])
    around = [(mark, tokenizer.token_to_id(mark)) for mark in dict.fromkeys((begin, end)) if mark]
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{begin} $A {end}".strip(), special_tokens=around
    )
    return tokenizer


def _openai_layout(folder: Path, family: str) -> None:
    tokenizer = _bytes(*_ENDS["clip"], marks_last=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    make = chance_layouts.long_clip if family == "long-clip" else chance_layouts.eva02_clip
    make(folder, tokenizer.get_vocab_size())


def _published(folder: Path, _: str) -> None:
    tokenizer = _bytes("<|begin_of_text|>", "<|eot_id|>", "<|eot_id|>")
    tokenizer.save(str(folder / "tokenizer.json"))
    chance_layouts.llm2clip(folder, tokenizer.get_vocab_size())


_MAKERS: dict[str, Callable[[Path, str], None]] = {
    "nano": _shuffled_nano,
    "llm2clip": _published,
    **dict.fromkeys(_CLASSES, _two_towers),
    "eva02-clip": _openai_layout,
    "long-clip": _openai_layout,
}
