"""The EVA02 vision tower: a vision transformer with rotary positions, SwiGLU and normalisation inside its blocks.

transformers has no such model, so it is written out here. Parameter names below this module are those of the
released ``.pt`` files without their ``visual.``.

Source: EVA-02 (arXiv 2303.11331) and EVA-CLIP (arXiv 2303.15389); golden case a.

Shape suffixes: B images, S side in pixels, G patches per side, L tokens (the read-out token and G * G patches),
D width, H heads, E width of a head.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

_EPS = 1e-6
"""Of every LayerNorm in the tower (the text adapter's is 1e-5)."""
_THETA = 10_000.0
"""Base of the rotary frequencies."""


@dataclass(frozen=True, kw_only=True)
class Eva02Config:
    """Shape of an EVA02 tower."""

    image_size: int
    """Side S of the image, in pixels; a multiple of ``patch_size``."""
    patch_size: int
    """Side of a patch, in pixels."""
    width: int
    """Width D of the residual stream."""
    depth: int
    """Number of blocks."""
    heads: int
    """Attention heads H; their width must be a multiple of 4 (two axes, pairs of numbers)."""
    hidden: int
    """Width of the SwiGLU hidden layer."""
    dim: int
    """Length of the vectors."""
    rope_grid: int = 16
    """Patches per side of the grid the rotary frequencies were made for (``pt_hw_seq_len``): a tower of another
    grid stretches or squeezes its positions onto it."""

    def __post_init__(self) -> None:
        if self.image_size % self.patch_size:
            raise ValueError(f"image_size {self.image_size} is no multiple of patch_size {self.patch_size}")
        if self.width % self.heads or (self.width // self.heads) % 4:
            raise ValueError(
                f"width {self.width} over {self.heads} heads: expected heads of a width that is a multiple of 4"
            )

    @property
    def grid(self) -> int:
        """Patches per side G."""
        return self.image_size // self.patch_size

    @property
    def head_width(self) -> int:
        """Width E of one head."""
        return self.width // self.heads


def rotary_tables(config: Eva02Config) -> tuple[Tensor, Tensor]:
    """Cosine and sine of each patch's angles; half of a head turns with the row, half with the column.

    Shape of each: (G * G, E), float32, each angle twice in a row; always on the CPU.
    """
    quarter = config.head_width // 4
    # The device is named, so that a tower built on the meta device still has its tables.
    steps = torch.arange(quarter, dtype=torch.float32, device="cpu") * 2
    frequencies = 1.0 / (_THETA ** (steps / (2 * quarter)))
    positions = torch.arange(config.grid, dtype=torch.float32, device="cpu") / config.grid * config.rope_grid
    angles_GE = torch.outer(positions, frequencies).repeat_interleave(2, dim=1)
    rows = angles_GE[:, None].expand(-1, config.grid, -1)
    columns = angles_GE[None].expand(config.grid, -1, -1)
    angles = torch.cat((rows, columns), dim=-1).flatten(0, 1)
    return angles.cos(), angles.sin()


def rotate_patches(states_BHLE: Tensor, cos_LE: Tensor, sin_LE: Tensor) -> Tensor:
    """Turn the patches' states by their angles; the read-out token stays. Shapes: (B, H, 1 + G * G, E), (G * G, E)."""
    readout, patches = states_BHLE[:, :, :1], states_BHLE[:, :, 1:]
    # Neighbouring numbers are a pair, not the two halves of a head as in Llama.
    pairs = patches.unflatten(-1, (-1, 2))
    turned = torch.stack((-pairs[..., 1], pairs[..., 0]), dim=-1).flatten(-2)
    return torch.cat((readout, patches * cos_LE + turned * sin_LE), dim=2)


class Eva02Attention(nn.Module):
    """Attention of every token to every token; a key has no bias, as softmax would cancel it."""

    def __init__(self, config: Eva02Config) -> None:
        super().__init__()
        self.heads = config.heads
        self.q_proj = nn.Linear(config.width, config.width)
        self.k_proj = nn.Linear(config.width, config.width, bias=False)
        self.v_proj = nn.Linear(config.width, config.width)
        self.inner_attn_ln = nn.LayerNorm(config.width, eps=_EPS)
        self.proj = nn.Linear(config.width, config.width)

    def rotated(self, hidden_BLD: Tensor, cos_LE: Tensor, sin_LE: Tensor) -> tuple[Tensor, Tensor]:
        """Queries and keys after the rotation, before any scaling. Shape of each: (B, H, L, E)."""
        query, key = self._heads(self.q_proj(hidden_BLD)), self._heads(self.k_proj(hidden_BLD))
        return rotate_patches(query, cos_LE, sin_LE), rotate_patches(key, cos_LE, sin_LE)

    def forward(self, hidden_BLD: Tensor, cos_LE: Tensor, sin_LE: Tensor) -> Tensor:
        """Shape: (B, L, D) -> (B, L, D)."""
        query, key = self.rotated(hidden_BLD, cos_LE, sin_LE)
        mixed = F.scaled_dot_product_attention(query, key, self._heads(self.v_proj(hidden_BLD)))
        output: Tensor = self.proj(self.inner_attn_ln(mixed.transpose(1, 2).flatten(2)))
        return output

    def _heads(self, states_BLD: Tensor) -> Tensor:
        heads: Tensor = states_BLD.unflatten(-1, (self.heads, -1)).transpose(1, 2)
        return heads


class Eva02FeedForward(nn.Module):
    """SwiGLU with a LayerNorm on its hidden layer."""

    def __init__(self, config: Eva02Config) -> None:
        super().__init__()
        self.w1 = nn.Linear(config.width, config.hidden)
        self.w2 = nn.Linear(config.width, config.hidden)
        self.ffn_ln = nn.LayerNorm(config.hidden, eps=_EPS)
        self.w3 = nn.Linear(config.hidden, config.width)

    def forward(self, hidden_BLD: Tensor) -> Tensor:
        """Shape: (B, L, D) -> (B, L, D)."""
        output: Tensor = self.w3(self.ffn_ln(F.silu(self.w1(hidden_BLD)) * self.w2(hidden_BLD)))
        return output


class Eva02Block(nn.Module):
    """One pre-norm block: attention, then SwiGLU, each added to the residual stream."""

    def __init__(self, config: Eva02Config) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(config.width, eps=_EPS)
        self.attn = Eva02Attention(config)
        self.norm2 = nn.LayerNorm(config.width, eps=_EPS)
        self.mlp = Eva02FeedForward(config)

    def forward(self, hidden_BLD: Tensor, cos_LE: Tensor, sin_LE: Tensor) -> Tensor:
        """Shape: (B, L, D) -> (B, L, D)."""
        attended: Tensor = self.attn(self.norm1(hidden_BLD), cos_LE, sin_LE)
        hidden_BLD = hidden_BLD + attended
        transformed: Tensor = self.mlp(self.norm2(hidden_BLD))
        return hidden_BLD + transformed


class _Patches(nn.Module):
    """Patches to tokens. A module of its own for the name of its parameters."""

    def __init__(self, config: Eva02Config) -> None:
        super().__init__()
        self.proj = nn.Conv2d(3, config.width, config.patch_size, stride=config.patch_size)

    def forward(self, pixels_B3SS: Tensor) -> Tensor:
        tokens: Tensor = self.proj(pixels_B3SS).flatten(2).transpose(1, 2)
        return tokens


class Eva02Tower(nn.Module):
    """Images to vectors: the normalised read-out token through a linear head with a bias.

    The rotary tables are computed, never loaded: files carry them rounded to the weights' dtype.
    """

    rope_cos: Tensor
    rope_sin: Tensor

    def __init__(self, config: Eva02Config) -> None:
        super().__init__()
        self.config = config
        self.patch_embed = _Patches(config)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, config.width))
        self.pos_embed = nn.Parameter(torch.zeros(1, 1 + config.grid**2, config.width))
        self.blocks = nn.ModuleList(Eva02Block(config) for _ in range(config.depth))
        self.norm = nn.LayerNorm(config.width, eps=_EPS)
        self.head = nn.Linear(config.width, config.dim)
        cos, sin = rotary_tables(config)
        self.register_buffer("rope_cos", cos, persistent=False)
        self.register_buffer("rope_sin", sin, persistent=False)

    def embed(self, pixels_B3SS: Tensor) -> Tensor:
        """What the first block reads: read-out token and patches, with their positions. Shape: (B, L, D)."""
        patches = self.patch_embed(pixels_B3SS)
        tokens = torch.cat((self.cls_token.expand(len(patches), -1, -1), patches), dim=1)
        return tokens + self.pos_embed

    def forward(self, pixels_B3SS: Tensor) -> Tensor:
        """Shape: (B, 3, S, S), normalised, of the weights' dtype -> (B, dim), not normalised."""
        hidden = self.embed(pixels_B3SS)
        cos, sin = self.rope_cos.to(hidden.dtype), self.rope_sin.to(hidden.dtype)
        for block in self.blocks:
            hidden = block(hidden, cos, sin)
        vectors: Tensor = self.head(self.norm(hidden[:, 0]))
        return vectors
