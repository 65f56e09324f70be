"""Vision towers as stage 2 trains them: pixels to features before any projection, and names by which layers learn.

The projection that follows is a module of its own, so that a frozen tower's features can be computed once.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import torch.utils.checkpoint
from torch import Tensor, nn

from llm2clip.encoders import load_encoder
from llm2clip.encoders.catalog.entries import find_encoder
from llm2clip.encoders.core.dual_encoder import DualEncoder
from llm2clip.encoders.core.errors import ModelError
from llm2clip.encoders.core.files import to_json
from llm2clip.encoders.images.preprocess import PixelTower, Preprocess, ResizeMode
from llm2clip.encoders.layers.configs import HEAD_WIDTH, trained_size
from llm2clip.encoders.layers.efficientnet_lite import LiteTower
from llm2clip.encoders.llm2clip.folder_config import read_config
from llm2clip.encoders.registry import NANO, resolve, saved_family
from llm2clip.encoders.vision.efficientnet_checkpoint import load_efficientnet_lite
from llm2clip.encoders.vision.tower_detection import TowerShape
from llm2clip.encoders.vision.vision_source import local_vision, published_vision
from llm2clip.encoders.vision.vision_tower import take_projection
from llm2clip.encoders.weights.safetensors_io import read_header
from llm2clip.encoders.weights.tensor_names import FAMILY
from llm2clip.train.align.config import VisionConfig

EFFICIENTNET = "efficientnet-lite"
_LITE_MEAN, _LITE_STD = (127 / 255,) * 3, (128 / 255,) * 3
"""The published weights read (x - 127) / 128."""
_BLOCK = re.compile(r"(?:.*\.)?(?:encoder\.layers|blocks)\.(\d+)\.(.+)")


@dataclass(frozen=True)
class Tower:
    """A vision tower without its projection."""

    module: nn.Module
    """Normalised pixels (B, 3, S, S) to features (B, width)."""
    layout: str
    """``openai``, ``eva02``, ``siglip2`` or ``efficientnet-lite``."""
    width: int
    """Length of the features."""
    projection: nn.Linear | None
    """The published projection, which was taken off; ``None`` if the layout has none."""
    preprocess: Preprocess
    """How images are prepared for it."""
    source: str
    """Where it came from."""
    settings: dict[str, Any]
    """Its sizes: fields of ``TowerShape``, or of ``EfficientNetLiteConfig``."""

    def blocks(self) -> nn.ModuleList:
        """The blocks that one training option or another applies to."""
        lists = [each for each in self.module.modules() if isinstance(each, nn.ModuleList)]
        return max(lists, key=len)

    def normalised(self, pixels: Tensor) -> Tensor:
        """Shape: (B, 3, S, S), float32, 0 to 255 -> the same, as the tower reads it."""
        mean = torch.tensor(self.preprocess.mean, device=pixels.device).mul_(255)[:, None, None]
        std = torch.tensor(self.preprocess.std, device=pixels.device).mul_(255)[:, None, None]
        return (pixels - mean) / std


def load_tower(spec: str, *, image_size: int | None = None) -> Tower:
    """A tower by name, folder or file, in float32 on the default device, without gradients.

    Raises:
        ModelError: It is none that ``encoders`` holds, or ``image_size`` is not its own where that is fixed.
        OSError: It cannot be read.
    """
    path = Path(spec).expanduser()
    entry = find_encoder(spec)
    if path.is_file() and _is_efficientnet(path):
        return _efficientnet(path, image_size)
    if (spec == NANO or path.is_dir()) and saved_family(resolve(spec)) == FAMILY:
        return _of_encoder(spec, image_size)
    if path.exists():
        source = local_vision(path)
    elif entry is not None:
        source = published_vision(entry)
    else:
        raise ModelError(f"no vision tower is called {spec!r}, and there is no such folder or file")
    shape = source.plan.shape
    if image_size not in (None, shape.image_size):
        raise ModelError(f"{spec} reads images of {shape.image_size} pixels, got image_size {image_size}")
    module = source.plan.load(dtype=torch.float32, device=torch.get_default_device())
    projection = take_projection(module, shape.layout)
    return Tower(
        module=module,
        layout=shape.layout,
        width=projection.in_features if projection is not None else shape.dim,
        projection=projection,
        preprocess=source.preprocess("native"),
        source=spec,
        settings=to_json(shape),
    )


def prepare_training(tower: Tower, config: VisionConfig) -> None:
    """Set up what is trained of the tower, and the options that save memory or time, in place."""
    module = tower.module
    module.requires_grad_(config.trained == "full")
    module.eval()  # batch normalisation keeps its statistics, and no tower has dropout
    if config.trained == "lora":
        _add_lora(tower.blocks(), config)
    if config.patch_dropout:
        _drop_patches(tower, config.patch_dropout)
    if config.checkpointing:
        for block in tower.blocks():
            block.forward = _checkpointed(block.forward)


def layer_name(name: str) -> str:
    """The name that ``param_groups`` knows a tower's parameter by: ``visual.blocks.N.*`` and so on."""
    if match := _BLOCK.fullmatch(name):
        return f"visual.blocks.{match[1]}.{match[2]}"
    tail = name.rpartition(".")[2]
    if "class_embedding" in name or "cls_token" in name:
        return "visual.cls_token"
    if "position_embedding" in name or "pos_embed" in name:
        return "visual.pos_embed"
    if any(part in name for part in ("patch_embed", "pre_layrnorm", "stem")):
        return f"visual.patch_embed.{name}"
    if "post_layernorm" in name or name.startswith("norm."):
        return f"visual.norm.{tail}"
    return f"visual.head.{name}"


def merged(module: nn.Module) -> nn.Module:
    """Take low-rank updates into the weights that they belong to, in place."""
    for name, part in list(module.named_modules()):
        if isinstance(part, LowRank):
            owner, _, leaf = name.rpartition(".")
            setattr(module.get_submodule(owner), leaf, part.merged())
    return module


class LowRank(nn.Module):
    """A frozen linear layer and a trained update of low rank (LoRA): x W' + x A' B' alpha / rank."""

    def __init__(self, base: nn.Linear, *, rank: int, alpha: float) -> None:
        super().__init__()
        self.base = base.requires_grad_(False)
        self.scale = alpha / rank
        self.down = nn.Parameter(torch.empty(rank, base.in_features))
        self.up = nn.Parameter(torch.zeros(base.out_features, rank))
        nn.init.kaiming_uniform_(self.down, a=5**0.5)

    def forward(self, inputs: Tensor) -> Tensor:
        """Shape: (..., in) -> (..., out)."""
        output: Tensor = self.base(inputs) + (inputs @ self.down.T) @ self.up.T * self.scale
        return output

    def merged(self) -> nn.Linear:
        """The linear layer that does the same."""
        with torch.no_grad():
            self.base.weight += self.up @ self.down * self.scale
        return self.base


def _add_lora(blocks: nn.ModuleList, config: VisionConfig) -> None:
    replaced = 0
    for part in list(blocks.modules()):
        for name, child in list(part.named_children()):
            if isinstance(child, nn.Linear):
                setattr(part, name, LowRank(child, rank=config.lora_rank, alpha=config.lora_alpha))
                replaced += 1
    if not replaced:
        raise ModelError("vision.trained lora needs linear layers in the tower's blocks; use full or frozen")


def _drop_patches(tower: Tower, share: float) -> None:
    """Let only a random part of the patches into the blocks while gradients are recorded."""
    if tower.layout not in ("openai", "siglip2"):
        raise ModelError(f"vision.patch_dropout works with OpenAI and SigLIP2 towers, not {tower.layout}")
    first = int(tower.layout == "openai")
    embeddings = next(m for n, m in tower.module.named_modules() if n.rpartition(".")[2] == "embeddings")

    def keep_some(_module: nn.Module, _inputs: object, tokens: Tensor) -> Tensor:
        if not torch.is_grad_enabled():
            return tokens
        count = tokens.shape[1] - first
        kept = max(1, round(count * (1 - share)))
        order = torch.rand(tokens.shape[0], count, device=tokens.device).argsort(dim=1)[:, :kept] + first
        chosen = tokens.gather(1, order[..., None].expand(-1, -1, tokens.shape[2]))
        return torch.cat((tokens[:, :first], chosen), dim=1)

    embeddings.register_forward_hook(keep_some)


def _checkpointed(forward: Callable[..., Any]) -> Callable[..., Any]:
    def recomputed(*args: Any, **kwargs: Any) -> Any:  # noqa: ANN401 (whatever the block takes)
        if not torch.is_grad_enabled():
            return forward(*args, **kwargs)
        return torch.utils.checkpoint.checkpoint(forward, *args, use_reentrant=False, **kwargs)

    return recomputed


def _of_encoder(spec: str, image_size: int | None) -> Tower:
    """The tower of nano, or of another encoder folder."""
    encoder = load_encoder(spec, device=str(torch.get_default_device()), dtype="float32")
    assert isinstance(encoder, DualEncoder), "an encoder folder has two towers"
    assert isinstance(encoder.image_tower, PixelTower), "an encoder folder reads pixels"
    preprocess = encoder.image_tower.preprocess
    if image_size not in (None, preprocess.size):
        raise ModelError(f"{spec} reads images of {preprocess.size} pixels, got image_size {image_size}")
    module = encoder.image_tower.module().vision
    if isinstance(module, LiteTower):
        # Without its classifier, and without the normalisation that is folded into its convolutions.
        trunk = module.trunk.folded()
        variant = trunk.config.variant
        settings = {"variant": variant, "image_size": preprocess.size, "batch_norm": False}
        return Tower(trunk, EFFICIENTNET, HEAD_WIDTH, None, preprocess, spec, settings)
    shape = read_config(Path(spec).expanduser()).vision
    assert isinstance(shape, TowerShape), "it is no EfficientNet"
    return Tower(module, shape.layout, shape.width, None, preprocess, spec, to_json(shape))


def _is_efficientnet(path: Path) -> bool:
    if path.suffix == ".safetensors":
        return "_conv_stem.weight" in read_header(path)
    return path.suffix == ".pth" and "efficientnet" in path.name.lower()


def _efficientnet(path: Path, image_size: int | None) -> Tower:
    model = load_efficientnet_lite(path, image_size=image_size, device=torch.get_default_device())
    model.classifier = None
    variant = model.config.variant
    size = image_size or trained_size(variant)
    model.config = replace(model.config, classes=0, image_size=size)
    preprocess = Preprocess(size=size, mode=ResizeMode.SHORTEST_CROP, mean=_LITE_MEAN, std=_LITE_STD)
    return Tower(
        module=model,
        layout=EFFICIENTNET,
        width=HEAD_WIDTH,
        projection=None,
        preprocess=preprocess,
        source=str(path),
        settings={"variant": variant, "image_size": size, "batch_norm": True},
    )
