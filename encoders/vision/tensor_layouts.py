"""How published checkpoints name the tensors of a vision tower, and what shapes these have.

Three layouts are known. ``openai``: transformers' CLIP names (``vision_model.*``). ``eva02``: the names of the
released ``.pt`` files (``visual.blocks.*``). ``siglip2``: transformers' SigLIP names (``vision_model.*`` with a
``head``), or those of timm (``visual.trunk.*``), which are mapped onto the former.

Written as tables, so that a file can be checked without building a model or importing transformers; a test
holds them equal to transformers' own models.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

Layout = Literal["openai", "eva02", "siglip2"]
Shape = tuple[int, ...]

TRANSFORMERS, TIMM, EVA = "vision_model.", "visual.trunk.", "visual."
"""How the names of a tower's tensors begin."""


@dataclass(frozen=True, kw_only=True)
class TowerShape:
    """Everything about a tower but its weights."""

    layout: Layout
    """Which architecture."""
    image_size: int
    """Side of the image, in pixels."""
    patch_size: int
    """Side of a patch, in pixels."""
    width: int
    """Width of the residual stream."""
    depth: int
    """Number of blocks."""
    heads: int
    """Attention heads."""
    hidden: int
    """Width of a block's hidden layer."""
    dim: int
    """Length of the vectors."""
    activation: str = "quick_gelu"
    """Of the hidden layers, as transformers calls it; EVA02 has always SwiGLU."""
    rope_grid: int = 16
    """EVA02: patches per side of the grid the rotary frequencies were made for."""
    projection_bias: bool = False
    """OpenAI: the linear map to the vectors has a bias. EVA02's always has one, SigLIP has no such map."""

    @property
    def patches(self) -> int:
        """Number of patches of an image."""
        return (self.image_size // self.patch_size) ** 2

    @property
    def head_width(self) -> int:
        """Width of one attention head."""
        return self.width // self.heads


@dataclass(frozen=True)
class Rows:
    """Tensors of the file that hold, one below the other, the values of tensors of the module."""

    theirs: dict[str, Shape]
    """Names in the file, and shapes there."""
    ours: tuple[str, ...]
    """Names in the module."""


def _vector(name: str, *sizes: int) -> dict[str, Shape]:
    """A layer's weight and bias: one size for a norm, two for a linear map (out, in)."""
    return {f"{name}.weight": sizes, f"{name}.bias": sizes[:1]}


def one_to_one(tensors: Mapping[str, Shape], rename: Mapping[str, str] | None = None) -> tuple[Rows, ...]:
    """Tensors that are in the file as they are in the module, some under another name."""
    names = rename or {}
    return tuple(Rows({names.get(name, name): shape}, (name,)) for name, shape in tensors.items())


def _transformers_layers(shape: TowerShape) -> dict[str, Shape]:
    width = shape.width
    tensors: dict[str, Shape] = {}
    for number in range(shape.depth):
        layer = f"{TRANSFORMERS}encoder.layers.{number}."
        for name in ("q", "k", "v", "out"):
            tensors |= _vector(f"{layer}self_attn.{name}_proj", width, width)
        tensors |= _vector(f"{layer}layer_norm1", width) | _vector(f"{layer}layer_norm2", width)
        tensors |= _vector(f"{layer}mlp.fc1", shape.hidden, width)
        tensors |= _vector(f"{layer}mlp.fc2", width, shape.hidden)
    return tensors


def openai_tensors(shape: TowerShape) -> dict[str, Shape]:
    """Names and shapes of a CLIP tower with its projection, as transformers has them."""
    width, patch, embeddings = shape.width, shape.patch_size, f"{TRANSFORMERS}embeddings."
    tensors: dict[str, Shape] = {
        f"{embeddings}class_embedding": (width,),
        f"{embeddings}patch_embedding.weight": (width, 3, patch, patch),
        f"{embeddings}position_embedding.weight": (shape.patches + 1, width),
    }
    # The misspelling is the published name.
    tensors |= _vector(f"{TRANSFORMERS}pre_layrnorm", width) | _transformers_layers(shape)
    tensors |= _vector(f"{TRANSFORMERS}post_layernorm", width)
    tensors["visual_projection.weight"] = (shape.dim, width)
    return tensors | ({"visual_projection.bias": (shape.dim,)} if shape.projection_bias else {})


def siglip_tensors(shape: TowerShape) -> dict[str, Shape]:
    """Names and shapes of a SigLIP tower with its attention pooling, as transformers has them."""
    width, patch, head = shape.width, shape.patch_size, f"{TRANSFORMERS}head."
    tensors = _vector(f"{TRANSFORMERS}embeddings.patch_embedding", width, 3, patch, patch)
    tensors[f"{TRANSFORMERS}embeddings.position_embedding.weight"] = (shape.patches, width)
    tensors |= _transformers_layers(shape) | _vector(f"{TRANSFORMERS}post_layernorm", width)
    tensors |= {
        f"{head}probe": (1, 1, width),
        f"{head}attention.in_proj_weight": (3 * width, width),
        f"{head}attention.in_proj_bias": (3 * width,),
    }
    tensors |= _vector(f"{head}attention.out_proj", width, width) | _vector(f"{head}layernorm", width)
    tensors |= _vector(f"{head}mlp.fc1", shape.hidden, width)
    return tensors | _vector(f"{head}mlp.fc2", width, shape.hidden)


def eva02_tensors(shape: TowerShape) -> dict[str, Shape]:
    """Names and shapes of an EVA02 tower with its head, as the released files have them."""
    width, hidden, patch = shape.width, shape.hidden, shape.patch_size
    tensors: dict[str, Shape] = {
        f"{EVA}cls_token": (1, 1, width),
        f"{EVA}pos_embed": (1, shape.patches + 1, width),
    }
    tensors |= _vector(f"{EVA}patch_embed.proj", width, 3, patch, patch)
    for number in range(shape.depth):
        block = f"{EVA}blocks.{number}."
        for name in ("norm1", "norm2", "attn.inner_attn_ln"):
            tensors |= _vector(block + name, width)
        for name in ("attn.q_proj", "attn.v_proj", "attn.proj"):
            tensors |= _vector(block + name, width, width)
        tensors[f"{block}attn.k_proj.weight"] = (width, width)
        tensors |= _vector(f"{block}mlp.w1", hidden, width) | _vector(f"{block}mlp.w2", hidden, width)
        tensors |= _vector(f"{block}mlp.ffn_ln", hidden) | _vector(f"{block}mlp.w3", width, hidden)
    return tensors | _vector(f"{EVA}norm", width) | _vector(f"{EVA}head", shape.dim, width)


def timm_rows(shape: TowerShape) -> tuple[Rows, ...]:
    """Where the tensors of transformers' SigLIP tower are among timm's: queries, keys and values lie together there."""
    width, hidden, head = shape.width, shape.hidden, f"{TRANSFORMERS}head."
    embeddings = f"{TRANSFORMERS}embeddings."
    rows = [
        Rows({f"{TIMM}pos_embed": (1, shape.patches, width)}, (f"{embeddings}position_embedding.weight",)),
        Rows({f"{TIMM}attn_pool.latent": (1, 1, width)}, (f"{head}probe",)),
        *_pair("patch_embed.proj", f"{embeddings}patch_embedding", width, 3, *2 * (shape.patch_size,)),
        *_pair("norm", f"{TRANSFORMERS}post_layernorm", width),
        *_pair("attn_pool.proj", f"{head}attention.out_proj", width, width),
        *_pair("attn_pool.norm", f"{head}layernorm", width),
        *_pair("attn_pool.mlp.fc1", f"{head}mlp.fc1", hidden, width),
        *_pair("attn_pool.mlp.fc2", f"{head}mlp.fc2", width, hidden),
    ]
    for kind, rest in (("weight", (width,)), ("bias", ())):
        pooled = {
            f"{TIMM}attn_pool.q.{kind}": (width, *rest),
            f"{TIMM}attn_pool.kv.{kind}": (2 * width, *rest),
        }
        rows.append(Rows(pooled, (f"{head}attention.in_proj_{kind}",)))
    for number in range(shape.depth):
        theirs, ours = f"blocks.{number}.", f"{TRANSFORMERS}encoder.layers.{number}."
        for kind, rest in (("weight", (width,)), ("bias", ())):
            together = tuple(f"{ours}self_attn.{name}_proj.{kind}" for name in ("q", "k", "v"))
            rows.append(Rows({f"{TIMM}{theirs}attn.qkv.{kind}": (3 * width, *rest)}, together))
        rows += _pair(f"{theirs}attn.proj", f"{ours}self_attn.out_proj", width, width)
        rows += _pair(f"{theirs}norm1", f"{ours}layer_norm1", width)
        rows += _pair(f"{theirs}norm2", f"{ours}layer_norm2", width)
        rows += _pair(f"{theirs}mlp.fc1", f"{ours}mlp.fc1", hidden, width)
        rows += _pair(f"{theirs}mlp.fc2", f"{ours}mlp.fc2", width, hidden)
    return tuple(rows)


def _pair(theirs: str, ours: str, *sizes: int) -> list[Rows]:
    shapes = _vector(TIMM + theirs, *sizes)
    return [Rows({name: shape}, (name.replace(TIMM + theirs, ours, 1),)) for name, shape in shapes.items()]
