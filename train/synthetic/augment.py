"""Random changes to training images, a whole batch at a time."""

from __future__ import annotations

import math

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from llm2clip.train.core.device import tensor_of

LUMINANCE = (0.299, 0.587, 0.114)


def augment_drawings(drawings: NDArray[np.uint8], rng: np.random.Generator) -> Tensor:
    """Move, outline, recolour and put drawings on a background; nothing is mirrored, for the sake of the meaning.

    Shape: (B, S, S, 4), uint8 RGBA -> (B, 3, S, S), float32 in 0..1.
    """
    rgba = tensor_of(drawings).permute(0, 3, 1, 2).float() / 255
    rgba = torch.cat((rgba[:, :3] * rgba[:, 3:], rgba[:, 3:]), dim=1)
    rgba = F.grid_sample(rgba, _placements(rgba, rng), align_corners=False)
    alpha = rgba[:, 3:]
    colour = rgba[:, :3] / alpha.clamp(min=1e-3)
    colour = torch.where(_chance(len(rgba), 0.75, rng), _jitter(colour, rng), colour)
    colour, alpha = _outline(colour, alpha, _chance(len(rgba), 0.4, rng), rng)
    return disturb(colour * alpha + _backgrounds(len(rgba), rgba.shape[-1], rng) * (1 - alpha), rng)


def augment_scenes(scenes: NDArray[np.uint8], rng: np.random.Generator) -> Tensor:
    """Recolour scenes slightly; places and background colour are part of their meaning.

    Shape: (B, S, S, 3), uint8 RGB -> (B, 3, S, S), float32 in 0..1.
    """
    return disturb(tensor_of(scenes).permute(0, 3, 1, 2).float() / 255, rng)


def disturb(images: Tensor, rng: np.random.Generator) -> Tensor:
    """Contrast, blur and noise. Shape: (B, 3, S, S), 0..1, kept."""
    count = len(images)
    contrast = torch.where(
        _chance(count, 0.5, rng), _uniform(count, 0.8, 1.15, rng), torch.ones(count, 1, 1, 1)
    )
    images = (images - 1) * contrast + 1
    blurred = F.avg_pool2d(F.pad(images, (1, 1, 1, 1), mode="replicate"), 3, stride=1)
    images = torch.where(_chance(count, 0.15, rng), 0.5 * (blurred + images), images)
    noise = _uniform(count, 0.0, 0.04, rng) * tensor_of(
        rng.standard_normal((count, 1, *images.shape[2:]), dtype=np.float32)
    )
    return torch.where(_chance(count, 0.15, rng), images + noise, images).clamp(0, 1)


def _uniform(count: int, low: float, high: float, rng: np.random.Generator) -> Tensor:
    return tensor_of(rng.uniform(low, high, (count, 1, 1, 1)).astype(np.float32))


def _chance(count: int, share: float, rng: np.random.Generator) -> Tensor:
    return tensor_of(rng.random((count, 1, 1, 1)) < share)


def _placements(images: Tensor, rng: np.random.Generator) -> Tensor:
    count = len(images)
    # A drawing fills its square in most styles; OpenMoji and ordinary icons leave a margin. One in three is as small
    # as an object of a scene, and anywhere.
    small = rng.random(count) < 0.33
    scale = np.where(small, rng.uniform(0.28, 0.6, count), rng.uniform(0.62, 1.1, count))
    stretch = np.exp(rng.uniform(-0.12, 0.12, count))
    angle = rng.normal(0, 6, count) * math.pi / 180
    cosine, sine = np.cos(angle) / scale, np.sin(angle) / scale
    room = np.maximum(0.06, 1 - scale)
    shift = rng.uniform(-1, 1, (count, 2)) * (room * np.where(small, 1.0, 0.6))[:, None]
    rows = np.stack(
        (
            np.stack((cosine * stretch, sine, shift[:, 0] / scale), 1),
            np.stack((-sine, cosine / stretch, shift[:, 1] / scale), 1),
        ),
        axis=1,
    )
    return F.affine_grid(tensor_of(rows.astype(np.float32)), list(images.shape), align_corners=False)


def _grey(colour: Tensor) -> Tensor:
    weights = torch.tensor(LUMINANCE).view(1, 3, 1, 1)
    return (colour * weights).sum(1, keepdim=True)


def _jitter(colour: Tensor, rng: np.random.Generator) -> Tensor:
    """Saturation, brightness, a rotation of hue (mostly small) and a tint."""
    count = len(colour)
    grey = _grey(colour)
    turn = np.where(
        rng.random(count) < 0.03, rng.uniform(-math.pi, math.pi, count), rng.normal(0, 0.15, count)
    )
    hue = tensor_of(_hue_matrices(turn))
    colour = torch.einsum("bij,bjhw->bihw", hue, colour)
    saturation = torch.where(
        _chance(count, 0.07, rng), torch.zeros(count, 1, 1, 1), _uniform(count, 0.5, 1.6, rng)
    )
    colour = grey + (colour - grey) * saturation
    tint = tensor_of(rng.uniform(-0.08, 0.08, (count, 3, 1, 1)).astype(np.float32))
    brightness = _uniform(count, 0.75, 1.25, rng)
    # Flattening to few levels imitates flat artwork.
    flat = (colour * 4).round() / 4
    colour = torch.where(_chance(count, 0.15, rng), flat, colour)
    return (colour * brightness + tint).clamp(0, 1)


def _hue_matrices(angle: NDArray[np.float64]) -> NDArray[np.float32]:
    """Rotations of RGB about the grey axis. Shape: (B,) radians -> (B, 3, 3)."""
    axis = np.full(3, 1 / math.sqrt(3))
    cross = np.array([[0, -axis[2], axis[1]], [axis[2], 0, -axis[0]], [-axis[1], axis[0], 0]])
    cosine, sine = np.cos(angle)[:, None, None], np.sin(angle)[:, None, None]
    matrices: NDArray[np.float64] = cosine * np.eye(3) + sine * cross + (1 - cosine) * np.outer(axis, axis)
    return matrices.astype(np.float32)


def _outline(
    colour: Tensor, alpha: Tensor, chosen: Tensor, rng: np.random.Generator
) -> tuple[Tensor, Tensor]:
    """Draw a dark line around the shape and along its inner edges."""
    count = len(colour)
    wide = F.max_pool2d(alpha, 5, stride=1, padding=2)
    narrow = F.max_pool2d(alpha, 3, stride=1, padding=1)
    grown = torch.where(_chance(count, 0.4, rng), wide, narrow)
    padded = F.pad(_grey(colour * alpha + (1 - alpha)), (1, 1, 1, 1), mode="replicate")
    across = padded[..., 1:-1, 2:] - padded[..., 1:-1, :-2]
    down = padded[..., 2:, 1:-1] - padded[..., :-2, 1:-1]
    edges = ((across.abs() + down.abs()) * _uniform(count, 1.0, 4.0, rng) - 0.25).clamp(0, 1)
    paint = tensor_of(rng.uniform(0, 0.2, (count, 3, 1, 1)).astype(np.float32))
    # Sometimes the fill fades towards white or one flat colour, leaving the lines to carry the shape.
    fade = torch.where(_chance(count, 0.4, rng), _uniform(count, 0.0, 0.9, rng), torch.zeros(count, 1, 1, 1))
    fill = torch.where(
        _chance(count, 0.5, rng),
        torch.ones(count, 3, 1, 1),
        tensor_of(rng.uniform(0.4, 1, (count, 3, 1, 1)).astype(np.float32)),
    )
    filled = colour * (1 - fade) + fill * fade
    inner = filled * (1 - edges) + paint * edges
    lined = inner * alpha + paint * (1 - alpha)
    return torch.where(chosen, lined, colour), torch.where(chosen, grown, alpha)


def _backgrounds(count: int, size: int, rng: np.random.Generator) -> Tensor:
    """White for half of the images, otherwise a colour (mostly pale) or a gradient of two."""
    pale = np.where(
        rng.random((count, 1)) < 0.7, rng.uniform(0.7, 1, (count, 3)), rng.uniform(0, 1, (count, 3))
    )
    other = pale + rng.normal(0, 0.15, (count, 3))
    ramp = np.linspace(0, 1, size)[None, None, :, None]
    ramp = np.where(rng.random((count, 1, 1, 1)) < 0.5, ramp, ramp[:, :, ::-1])
    mixed = np.where(
        rng.random((count, 1, 1, 1)) < 0.3,
        pale[:, :, None, None] * (1 - ramp) + other[:, :, None, None] * ramp,
        pale[:, :, None, None] + 0 * ramp,
    )
    mixed = np.where(rng.random((count, 1, 1, 1)) < 0.5, 1.0, mixed)
    return tensor_of(np.broadcast_to(mixed, (count, 3, size, size)).astype(np.float32)).clamp(0, 1)
