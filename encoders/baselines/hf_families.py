"""The families of dual encoders of transformers as data: classes, tensor names, text form and image preprocessing."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from llm2clip.encoders.images.hf_preprocessor import OPENAI_MEAN, OPENAI_STD
from llm2clip.encoders.images.preprocess import Preprocess, Resample, ResizeMode
from llm2clip.encoders.text.clip_tokenizer import Cleaning, TextForm


@dataclass(frozen=True, kw_only=True)
class Family:
    """One way of being a two-tower model."""

    name: str
    """As in the tables."""
    model_type: str
    """In ``config.json``."""
    classes: str
    """How the names of its classes in transformers begin."""
    form: TextForm
    """How a text is read."""
    images: Preprocess
    """How an image is prepared where ``preprocessor_config.json`` does not say; its size is not used."""
    projected: bool = True
    """Whether a linear layer without bias follows each tower."""
    first_state: bool = False
    """Whether a text's vector comes from its first token's last state, not from what the tower calls pooled."""
    end_state: bool = False
    """Whether a text's vector comes from the state of its end token, found by the number ``config.json`` has."""
    text_width: str = "hidden_size"
    """The setting that says how wide a text's state is before the linear layer."""
    text_options: Mapping[str, Any] = field(default_factory=dict)
    """What the text tower's class is built with."""
    text_settings: Mapping[str, Any] = field(default_factory=dict)
    """Settings of the text tower where ``config.json`` says nothing."""
    spellings: tuple[tuple[str, str], ...] = ()
    """Parts of names of tensors: in the module, and how files may have them instead."""


_CLIP_END = "<|endoftext|>"
_CROP = Preprocess(size=224, mode=ResizeMode.SHORTEST_CROP, mean=OPENAI_MEAN, std=OPENAI_STD)
_SQUASH = Preprocess(size=224, mode=ResizeMode.SQUASH)
_NO_ENDS = {"bos_token_id": None, "eos_token_id": None}
"""SigLIP's tower has no use for them; its class in transformers would warn of its own defaults."""

FAMILIES = {
    family.name: family
    for family in (
        Family(
            name="clip",
            model_type="clip",
            classes="CLIP",
            form=TextForm(end=_CLIP_END, pad=_CLIP_END),
            images=_CROP,
            end_state=True,
        ),
        # Trained on texts filled up to the limit and without a mask: the last position, fill or not, is read.
        Family(
            name="siglip",
            model_type="siglip",
            classes="Siglip",
            form=TextForm(end="</s>", pad="</s>", cleaning=Cleaning.CANONICAL, fixed=True, bare=True),
            images=_SQUASH,
            projected=False,
            text_settings=_NO_ENDS,
        ),
        # Published as model_type siglip, with a tokenizer class that forgets the lower case.
        Family(
            name="siglip2",
            model_type="siglip",
            classes="Siglip",
            form=TextForm(end="<eos>", pad="<pad>", cleaning=Cleaning.LOWER, fixed=True, bare=True),
            images=Preprocess(size=224, mode=ResizeMode.SQUASH, resample=Resample.BILINEAR),
            projected=False,
            text_settings=_NO_ENDS,
        ),
        Family(
            name="metaclip2",
            model_type="metaclip_2",
            classes="MetaClip2",
            form=TextForm(end="</s>", pad="<pad>"),
            images=_CROP,
            end_state=True,
        ),
        # Its text tower has 512 positions; its own programs give it 52 tokens.
        Family(
            name="chinese-clip",
            model_type="chinese_clip",
            classes="ChineseCLIP",
            form=TextForm(end="[SEP]", pad="[PAD]", cleaning=Cleaning.CHINESE, limit=52),
            images=Preprocess(size=224, mode=ResizeMode.SQUASH, mean=OPENAI_MEAN, std=OPENAI_STD),
            first_state=True,
            text_options={"add_pooling_layer": False},
        ),
        # Its text tower has 514 positions, but stands in for a teacher that has 77.
        Family(
            name="altclip",
            model_type="altclip",
            classes="AltCLIP",
            form=TextForm(end="</s>", pad="<pad>", limit=77),
            images=_CROP,
            text_width="project_dim",
            # Published so in its text tower only; saved so in both by transformers 5.
            spellings=(("encoder.layers.", "encoder.layer."),),
        ),
    )
}
"""Name -> family."""
