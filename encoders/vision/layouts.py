"""How published checkpoints name the tensors of a vision tower, as tables; a test holds them equal to the modules.

``openai``: transformers' CLIP. ``eva02``: the released ``.pt`` files. ``siglip2``: transformers' SigLIP, or timm's
names for it, mapped onto the former. Files are checked against the tables, without building a module.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

LayoutName = Literal["openai", "eva02", "siglip2"]
Axis = int | str | tuple[int, str]
"""Length of an axis: a number, a size of the tower, or a multiple of one."""

TRANSFORMERS, TIMM, EVA = "vision_model.", "visual.trunk.", "visual."
"""Prefixes of the names of a tower's tensors."""
W, H, D, P, N = "width", "hidden", "dim", "patch_size", "positions"


@dataclass(frozen=True)
class Rows:
    """Tensors of the file that hold, one below the other, the values of tensors of the module."""

    theirs: Mapping[str, tuple[Axis, ...]]
    """Names in the file and shapes there; ``{n}`` stands for the number of a block."""
    ours: tuple[str, ...]
    """Names in the module."""


@dataclass(frozen=True, kw_only=True)
class Layout:
    """One naming of a tower, and the tensors from which its sizes are read."""

    name: LayoutName
    prefixes: tuple[str, ...]
    """Prefixes by which a file is recognised."""
    rows: tuple[Rows, ...]
    """All of its tensors."""
    patches: str
    """The kernel that reads patches. Shape: (width, 3, patch, patch)."""
    positions: str
    """The table of positions; its last axis but one counts them."""
    hidden: str
    """The first map of the first block's hidden layer. Shape: (hidden, width)."""
    blocks: str
    """Prefix of the blocks, before their number."""
    projection: str = ""
    """The map to the vectors. Shape: (dim, width). Without one the vectors are as long as ``width``."""
    class_tokens: int = 0
    """Positions that are no patch."""
    activation: str
    """Of published towers."""
    found: str
    """What it is, in words."""


def _pair(name: str, *axes: Axis) -> dict[str, tuple[Axis, ...]]:
    """A layer's weight and bias: one axis for a norm, two for a linear map (out, in)."""
    return {f"{name}.weight": axes, f"{name}.bias": axes[:1]}


def _same(*tensors: dict[str, tuple[Axis, ...]]) -> tuple[Rows, ...]:
    """Tensors that have the same name in file and module."""
    return tuple(Rows({name: axes}, (name,)) for part in tensors for name, axes in part.items())


def _renamed(theirs: str, ours: str, *axes: Axis) -> tuple[Rows, ...]:
    return tuple(
        Rows({name: shape}, (name.replace(theirs, ours, 1),)) for name, shape in _pair(theirs, *axes).items()
    )


_EMBEDDINGS, _HEAD, _LAYER = (
    f"{TRANSFORMERS}{part}" for part in ("embeddings.", "head.", "encoder.layers.{n}.")
)
_PATCHES = f"{_EMBEDDINGS}patch_embedding.weight"
_POSITIONS = f"{_EMBEDDINGS}position_embedding.weight"
_BLOCK = f"{EVA}blocks.{{n}}."
_TRANSFORMERS_BLOCKS = _same(
    *(_pair(f"{_LAYER}self_attn.{name}_proj", W, W) for name in ("q", "k", "v", "out")),
    _pair(f"{_LAYER}layer_norm1", W),
    _pair(f"{_LAYER}layer_norm2", W),
    _pair(f"{_LAYER}mlp.fc1", H, W),
    _pair(f"{_LAYER}mlp.fc2", W, H),
)

OPENAI = Layout(
    name="openai",
    prefixes=(TRANSFORMERS,),
    rows=(
        *_same(
            {f"{_EMBEDDINGS}class_embedding": (W,), _PATCHES: (W, 3, P, P), _POSITIONS: (N, W)},
            _pair(f"{TRANSFORMERS}pre_layrnorm", W),  # the misspelling is the published name
            _pair(f"{TRANSFORMERS}post_layernorm", W),
            {"visual_projection.weight": (D, W)},
        ),
        *_TRANSFORMERS_BLOCKS,
    ),
    patches=_PATCHES,
    positions=_POSITIONS,
    hidden=f"{TRANSFORMERS}encoder.layers.0.mlp.fc1.weight",
    blocks=f"{TRANSFORMERS}encoder.layers.",
    projection="visual_projection.weight",
    class_tokens=1,
    activation="quick_gelu",
    found="OpenAI CLIP tower named as in transformers, visual_projection",
)

SIGLIP = Layout(
    name="siglip2",
    prefixes=(_HEAD,),
    rows=(
        *_same(
            _pair(f"{_EMBEDDINGS}patch_embedding", W, 3, P, P),
            {_POSITIONS: (N, W), f"{_HEAD}probe": (1, 1, W)},
            {f"{_HEAD}attention.in_proj_weight": ((3, W), W), f"{_HEAD}attention.in_proj_bias": ((3, W),)},
            _pair(f"{TRANSFORMERS}post_layernorm", W),
            _pair(f"{_HEAD}attention.out_proj", W, W),
            _pair(f"{_HEAD}layernorm", W),
            _pair(f"{_HEAD}mlp.fc1", H, W),
            _pair(f"{_HEAD}mlp.fc2", W, H),
        ),
        *_TRANSFORMERS_BLOCKS,
    ),
    patches=_PATCHES,
    positions=_POSITIONS,
    hidden=f"{TRANSFORMERS}encoder.layers.0.mlp.fc1.weight",
    blocks=f"{TRANSFORMERS}encoder.layers.",
    activation="gelu_pytorch_tanh",
    found="SigLIP tower named as in transformers, attention pooling, no projector",
)

_TIMM_BLOCK = f"{TIMM}blocks.{{n}}."
TIMM_SIGLIP = Layout(
    name="siglip2",
    prefixes=(TIMM,),
    rows=(
        Rows({f"{TIMM}pos_embed": (1, N, W)}, (_POSITIONS,)),
        Rows({f"{TIMM}attn_pool.latent": (1, 1, W)}, (f"{_HEAD}probe",)),
        *_renamed(f"{TIMM}patch_embed.proj", f"{_EMBEDDINGS}patch_embedding", W, 3, P, P),
        *_renamed(f"{TIMM}norm", f"{TRANSFORMERS}post_layernorm", W),
        *_renamed(f"{TIMM}attn_pool.proj", f"{_HEAD}attention.out_proj", W, W),
        *_renamed(f"{TIMM}attn_pool.norm", f"{_HEAD}layernorm", W),
        *_renamed(f"{TIMM}attn_pool.mlp.fc1", f"{_HEAD}mlp.fc1", H, W),
        *_renamed(f"{TIMM}attn_pool.mlp.fc2", f"{_HEAD}mlp.fc2", W, H),
        *(
            Rows(
                {f"{TIMM}attn_pool.q.{kind}": (W, *rest), f"{TIMM}attn_pool.kv.{kind}": ((2, W), *rest)},
                (f"{_HEAD}attention.in_proj_{kind}",),
            )
            for kind, rest in (("weight", (W,)), ("bias", ()))
        ),
        *(
            Rows(
                {f"{_TIMM_BLOCK}attn.qkv.{kind}": ((3, W), *rest)},
                tuple(f"{_LAYER}self_attn.{name}_proj.{kind}" for name in ("q", "k", "v")),
            )
            for kind, rest in (("weight", (W,)), ("bias", ()))
        ),
        *_renamed(f"{_TIMM_BLOCK}attn.proj", f"{_LAYER}self_attn.out_proj", W, W),
        *_renamed(f"{_TIMM_BLOCK}norm1", f"{_LAYER}layer_norm1", W),
        *_renamed(f"{_TIMM_BLOCK}norm2", f"{_LAYER}layer_norm2", W),
        *_renamed(f"{_TIMM_BLOCK}mlp.fc1", f"{_LAYER}mlp.fc1", H, W),
        *_renamed(f"{_TIMM_BLOCK}mlp.fc2", f"{_LAYER}mlp.fc2", W, H),
    ),
    patches=f"{TIMM}patch_embed.proj.weight",
    positions=f"{TIMM}pos_embed",
    hidden=f"{TIMM}blocks.0.mlp.fc1.weight",
    blocks=f"{TIMM}blocks.",
    # timm builds the published so400m at 224 with the exact function, transformers with the approximate one.
    activation="gelu",
    found="SigLIP tower named as in timm, attention pooling, no projector",
)

EVA02 = Layout(
    name="eva02",
    prefixes=(f"{EVA}blocks.", f"{EVA}patch_embed."),
    rows=_same(
        {f"{EVA}cls_token": (1, 1, W), f"{EVA}pos_embed": (1, N, W)},
        _pair(f"{EVA}patch_embed.proj", W, 3, P, P),
        *(_pair(f"{_BLOCK}{name}", W) for name in ("norm1", "norm2", "attn.inner_attn_ln")),
        *(_pair(f"{_BLOCK}attn.{name}", W, W) for name in ("q_proj", "v_proj", "proj")),
        {f"{_BLOCK}attn.k_proj.weight": (W, W)},
        _pair(f"{_BLOCK}mlp.w1", H, W),
        _pair(f"{_BLOCK}mlp.w2", H, W),
        _pair(f"{_BLOCK}mlp.ffn_ln", H),
        _pair(f"{_BLOCK}mlp.w3", W, H),
        _pair(f"{EVA}norm", W),
        _pair(f"{EVA}head", D, W),
    ),
    patches=f"{EVA}patch_embed.proj.weight",
    positions=f"{EVA}pos_embed",
    hidden=f"{EVA}blocks.0.mlp.w1.weight",
    blocks=f"{EVA}blocks.",
    projection=f"{EVA}head.weight",
    class_tokens=1,
    activation="silu",
    found=f"EVA02 tower ({EVA}*)",
)

LAYOUTS = (TIMM_SIGLIP, SIGLIP, EVA02, OPENAI)
"""In the order in which they are tried."""
