"""Steps of stage 2: pairs through both sides, the loss of the whole batch, gradients in micro-batches."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from llm2clip.encoders.layers.llama import TextAdapter
from llm2clip.train.align.config import AlignConfig
from llm2clip.train.align.heads import Scales, loss_of
from llm2clip.train.align.towers import Tower, layer_name
from llm2clip.train.core.distributed import process_number, share_of
from llm2clip.train.core.optimizer import make_optimizer
from llm2clip.train.core.param_groups import optimiser_groups
from llm2clip.train.core.stage import StepLosses
from llm2clip.train.data.crops import augment, draw_crops
from llm2clip.train.data.pair_batches import PairBatches

TextSource = Callable[[NDArray[np.int64]], Tensor]
"""Numbers of texts to their features on the default device, float32."""


@dataclass(frozen=True)
class Images:
    """Where a step's images come from: what the frozen part of the tower gave of their views, or pixels."""

    features: tuple[Tensor, ...] = ()
    """Of each view, shape (images, width); empty where no part is frozen."""
    take: Callable[[NDArray[np.int64]], NDArray[np.uint8]] | None = None
    """Numbers of samples to pixels, shape (n, S, S, 3)."""


class AlignStage:
    """What the loop trains: a head for each side, and the tower or its last blocks unless it is frozen."""

    name = "align"

    def __init__(
        self,
        config: AlignConfig,
        *,
        tower: Tower,
        heads: tuple[nn.Module, TextAdapter],
        batches: PairBatches,
        images: Images,
        texts: TextSource,
        keys: tuple[str, ...],
        upper: nn.Module | None = None,
    ) -> None:
        """Set up the optimiser.

        ``heads`` are those of images and of texts; ``upper`` is the part of the tower that reads ``images.features``,
        and without it the whole tower reads pixels.
        """
        self.config, self.tower, self.batches, self.keys = config, tower, batches, keys
        self.images, self.texts = images, texts
        self.image_head, self.text_adapter = heads
        self.scales = Scales(config.loss)
        part = tower.module if upper is None else upper
        trained = config.vision.trained != "frozen"
        self._encode: Callable[[Tensor], Tensor] = (
            torch.compile(part) if trained and config.vision.compiled else part
        )
        self.modules: Mapping[str, nn.Module] = {
            **({"vision": part} if trained else {}),
            "image_head": self.image_head,
            "text_adapter": self.text_adapter,
            "scales": self.scales,
        }
        self.micro_batch = config.micro_batch
        groups = optimiser_groups(self._named_parameters(), config=config.groups)
        self.optimizer = make_optimizer(groups, name=config.optimizer)

    def step(self, number: int, rng: np.random.Generator) -> StepLosses:
        """See :class:`~llm2clip.train.core.stage.Trainable`."""
        self.scales.hold()
        images, texts = self.batches.batch(number)
        mine = share_of(len(images))
        chosen = images[mine.start : mine.stop]
        text_rows = self.texts(texts[mine.start : mine.stop])
        parts = self._image_parts(chosen, len(images), mine, rng)
        seed = torch.initial_seed() + process_number()
        if len(parts) == 1:
            torch.manual_seed(seed)
            with self._arithmetic():
                loss = loss_of(parts[0](), self._text_vectors(text_rows), self.scales, self.config.loss)
            loss.backward()
        else:
            loss = self._in_parts(parts, text_rows, seed)
        values = {"loss": float(loss.detach()), "scale": float(self.scales.logit_scale.detach().exp())}
        return StepLosses(losses=values, items=len(chosen), keys=tuple(self.keys[n] for n in chosen))

    def image_vectors(self, features: Tensor) -> Tensor:
        """Head of the images. Shape: (B, width) -> (B, dim)."""
        vectors: Tensor = self.image_head(self._dropped(features, self.image_head))
        return vectors

    def encode(self, pixels: Tensor) -> Tensor:
        """Tower and head. Shape: (B, 3, S, S), 0 to 255 -> (B, dim)."""
        return self.image_vectors(self._encode(self.tower.normalised(pixels)))

    def encode_stored(self, rows: Tensor) -> Tensor:
        """The part of the tower that is trained, and head. Shape: (B, width of ``images.features``) -> (B, dim)."""
        return self.image_vectors(self._encode(rows))

    def _text_vectors(self, features: Tensor) -> Tensor:
        vectors: Tensor = self.text_adapter(self._dropped(features, self.text_adapter))
        return vectors

    def _dropped(self, features: Tensor, head: nn.Module) -> Tensor:
        return F.dropout(features, self.config.text.dropout, training=head.training)

    def _image_parts(
        self, chosen: NDArray[np.int64], count: int, mine: range, rng: np.random.Generator
    ) -> list[Callable[[], Tensor]]:
        """Functions that give the vectors of a micro-batch each; random numbers are those of the whole batch."""
        if self.images.features:
            views = rng.integers(len(self.images.features), size=count)[mine.start : mine.stop]
            features = self._stored(chosen, views)
            if self.config.vision.trained == "frozen":
                return [lambda: self.image_vectors(features)]
            return [partial(self.encode_stored, rows) for rows in features.split(self.micro_batch)]
        assert self.images.take is not None
        take, size = self.images.take, self.tower.preprocess.size
        crops = draw_crops(count, config=self.config.crop, rng=rng).part(mine)

        def part(start: int) -> Callable[[], Tensor]:
            rows = slice(start, min(start + self.micro_batch, len(chosen)))
            return lambda: self.encode(augment(take(chosen[rows]), crops.part(rows), size=size))

        return [part(start) for start in range(0, len(chosen), self.micro_batch)]

    def _stored(self, chosen: NDArray[np.int64], views: NDArray[np.int64]) -> Tensor:
        """Rows of samples, each of one of its views. Shape: (n, width), float32."""
        whole = self.images.features
        features = torch.empty(len(chosen), whole[0].shape[1])
        for view, stored in enumerate(whole):
            rows = np.flatnonzero(views == view)
            if len(rows):
                features[torch.from_numpy(rows)] = stored[torch.from_numpy(chosen[rows])].float()
        return features

    def _in_parts(self, parts: list[Callable[[], Tensor]], text_rows: Tensor, seed: int) -> Tensor:
        """Gradient caching (Gao et al. 2021): vectors first, then their gradients through one part at a time."""
        vectors = []
        with torch.no_grad(), self._arithmetic():
            for number, part in enumerate(parts):
                torch.manual_seed(seed + number)
                vectors.append(part().float())
        whole = torch.cat(vectors).requires_grad_()
        torch.manual_seed(seed - 1)
        with self._arithmetic():
            loss = loss_of(whole, self._text_vectors(text_rows), self.scales, self.config.loss)
        loss.backward()
        assert whole.grad is not None
        pieces = whole.grad.split([len(each) for each in vectors])
        for number, (part, gradient) in enumerate(zip(parts, pieces, strict=True)):
            torch.manual_seed(seed + number)  # the same dropout as without gradients
            with self._arithmetic():
                again = part()
            again.float().backward(gradient)
        return loss

    def _arithmetic(self) -> AbstractContextManager[object]:
        if self.config.precision == "float32":
            return nullcontext()
        return torch.autocast(torch.get_default_device().type, torch.bfloat16)

    def _named_parameters(self) -> list[tuple[str, nn.Parameter]]:
        named = []
        for module, prefix in (
            (self.image_head, "visual.head."),
            (self.text_adapter, "text."),
            (self.scales, ""),
        ):
            named += [(prefix + name, parameter) for name, parameter in module.named_parameters()]
        tower = self.tower.module.named_parameters() if "vision" in self.modules else ()
        # Names of one layer may coincide (a bias and a bias); the number keeps them apart.
        return named + [
            _numbered(layer_name(name), n, parameter) for n, (name, parameter) in enumerate(tower)
        ]


def _numbered(name: str, number: int, parameter: nn.Parameter) -> tuple[str, nn.Parameter]:
    if name in ("visual.pos_embed", "visual.cls_token"):
        return name, parameter
    head, _, tail = name.rpartition(".")
    return f"{head}.{number}.{tail}", parameter
