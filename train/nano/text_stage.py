"""Stage 1 of nano: the last blocks of a multilingual text encoder learn a teacher's space.

The blocks below are frozen, so their states of every text are computed once and kept on disk; a step then costs what
the trained blocks cost. The loss is the distance to the teacher's vectors, and that between the similarities within a
batch and the teacher's: texts of one meaning attract each other across languages, all others repel each other as far as
they differ in meaning (supervised SimCSE with the teacher's shares in the place of pairs).

Shape suffixes: B texts, L token positions, D width of the text encoder, T that of the teacher.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import final

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from llm2clip.common.files import write_atomic
from llm2clip.encoders.layers.bert import BertEncoder
from llm2clip.train.core.optimizer import make_optimizer
from llm2clip.train.core.stage import LoopConfig, StepLosses

_PASS_TOKENS = 1600
"""Tokens of a pass through the frozen blocks."""
_CHUNK = 4096
"""Texts after which the progress of the frozen blocks is written down."""


@dataclass(frozen=True, kw_only=True)
class TextStageConfig:
    """How stage 1 trains."""

    blocks: int = 4
    """Last blocks that are trained."""
    texts: int = 256
    """Most texts of a batch."""
    tokens: int = 6000
    """Most tokens of a batch, padding included."""
    together: int = 24
    """Batches whose texts are sorted by length."""
    scale: float = 20.0
    """Factor on the similarities within a batch."""
    distance: float = 8.0
    """Weight of the distance to the teacher's vectors."""
    lr: float = 3e-4
    """Peak learning rate of the blocks."""
    head_lr: float = 1e-3
    """That of the head, which maps states to the teacher's space and is discarded afterwards."""
    loop: LoopConfig = field(
        default_factory=lambda: LoopConfig(steps=700, warmup=40, floor=0.02, checkpoint_every=100)
    )
    """Length and schedule."""


class FrozenStates:
    """States of texts after the blocks that stay frozen, float16, on disk."""

    def __init__(self, folder: Path, rows: Sequence[Sequence[int]], *, width: int) -> None:
        """Open or create the file in ``folder`` for texts of these token ids."""
        folder.mkdir(parents=True, exist_ok=True)
        self.lengths = np.array([len(row) for row in rows])
        self._starts = np.concatenate([[0], np.cumsum(self.lengths)])
        self._rows, self._done = rows, folder / "states.done"
        path = folder / "states.npy"
        mode = "r+" if path.exists() else "w+"
        self._states = np.lib.format.open_memmap(
            path, mode, np.float16, (int(self._starts[-1]), width) if mode == "w+" else None
        )

    def compute(self, model: BertEncoder, *, blocks: int, progress: Callable[[int], None]) -> None:
        """Run texts through the first ``blocks`` blocks; what an earlier run did is kept."""
        first = int(self._done.read_text()) if self._done.exists() else 0
        for start in range(first, len(self._rows), _CHUNK):
            stop = min(start + _CHUNK, len(self._rows))
            for chosen in _passes(np.arange(start, stop), self.lengths):
                ids, inside = _padded([self._rows[n] for n in chosen])
                with torch.inference_mode():
                    states = model.embeddings(ids, torch.arange(ids.shape[1]))
                    for block in list(model.layers)[:blocks]:
                        states = block(states, inside[:, None, None, :])
                for number, of in zip(chosen, states.half().numpy(), strict=True):
                    self._states[self._place(number)] = of[: self.lengths[number]]
            self._states.flush()
            write_atomic(self._done, str(stop))
            progress(stop)

    def batch(self, chosen: Sequence[int] | NDArray[np.int64]) -> tuple[Tensor, Tensor]:
        """Shapes: (B, L, D), float32, and (B, L), which positions are tokens."""
        longest = int(self.lengths[chosen].max())
        states = torch.zeros(len(chosen), longest, self._states.shape[1])
        inside = torch.zeros(len(chosen), longest, dtype=torch.bool)
        for place, number in enumerate(chosen):
            states[place, : self.lengths[number]] = torch.from_numpy(
                self._states[self._place(number)].astype(np.float32)
            )
            inside[place, : self.lengths[number]] = True
        return states, inside

    def _place(self, number: int) -> slice:
        return slice(int(self._starts[number]), int(self._starts[number + 1]))


@final
class TextStage:
    """The trained blocks and the head, as the training loop sees them."""

    name = "cc"

    def __init__(
        self,
        model: BertEncoder,
        states: FrozenStates,
        wanted: NDArray[np.float16],
        config: TextStageConfig,
        *,
        seed: int,
    ) -> None:
        """``wanted`` are the teacher's vectors of all texts. Shape: (texts, T)."""
        self.states, self.wanted, self.config, self.seed = states, wanted, config, seed
        self.blocks = nn.ModuleList(copy.deepcopy(list(model.layers)[-config.blocks :]))
        self.blocks.requires_grad_(True)  # the model may be frozen
        self.head = nn.Linear(model.config.hidden_size, wanted.shape[1])
        self._begin_head()
        self.modules: Mapping[str, nn.Module] = {"blocks": self.blocks, "head": self.head}
        self.micro_batch = config.texts
        rates = ((self.blocks, config.lr, 0.01), (self.head, config.head_lr, 0.0))
        self.optimizer = make_optimizer(
            [{"params": list(m.parameters()), "lr": lr, "weight_decay": decay} for m, lr, decay in rates],
            betas=(0.9, 0.98),
        )
        self._epochs: list[list[NDArray[np.int64]]] = []

    def features(self, chosen: Sequence[int] | NDArray[np.int64]) -> Tensor:
        """Mean states of texts after the trained blocks. Shape: (B, D)."""
        states, inside = self.states.batch(chosen)
        for block in self.blocks:
            states = block(states, inside[:, None, None, :])
        shares = inside.float() / inside.sum(1, keepdim=True)
        return (states * shares[..., None]).sum(1)

    def step(self, number: int, rng: np.random.Generator) -> StepLosses:
        """Loss and gradients of the batch of step ``number``, which depends on the seed only."""
        del rng
        chosen = self._batch(number)
        wanted = F.normalize(torch.from_numpy(self.wanted[chosen]).float(), dim=-1)
        found = F.normalize(self.head(self.features(chosen)), dim=-1)
        distance = 1 - (found * wanted).sum(1).mean()
        relations = relation_loss(found, wanted, scale=self.config.scale)
        loss = self.config.distance * distance + relations
        loss.backward()
        parts = {"loss": loss, "distance": distance, "relations": relations}
        values = {name: float(value.detach()) for name, value in parts.items()}
        return StepLosses(losses=values, items=len(chosen), keys=tuple(map(str, chosen[:8])))

    def _batch(self, number: int) -> NDArray[np.int64]:
        epoch = 0
        while True:
            if epoch == len(self._epochs):
                self._epochs.append(list(self._plan(epoch)))
            if number < len(self._epochs[epoch]):
                return self._epochs[epoch][number]
            number -= len(self._epochs[epoch])
            epoch += 1

    def _plan(self, epoch: int) -> Iterator[NDArray[np.int64]]:
        """Batches of texts of similar length, in random order."""
        rng = np.random.default_rng([self.seed, epoch])
        order = rng.permutation(len(self.states.lengths))
        size = self.config.texts * self.config.together
        for start in range(0, len(order), size):
            near = order[start : start + size]
            near = near[np.argsort(self.states.lengths[near], kind="stable")]
            batches = list(
                batches_of(near, self.states.lengths, texts=self.config.texts, tokens=self.config.tokens)
            )
            yield from (batches[n] for n in rng.permutation(len(batches)))

    @torch.no_grad()
    def _begin_head(self) -> None:
        """Begin with the ridge regression of the untrained states."""
        rng = np.random.default_rng(self.seed)
        chosen = rng.choice(len(self.wanted), min(6000, len(self.wanted)), replace=False)
        chosen = chosen[np.argsort(self.states.lengths[chosen], kind="stable")]
        found = torch.cat([self.features(chosen[n : n + 200]) for n in range(0, len(chosen), 200)])
        wanted = torch.from_numpy(self.wanted[chosen]).float()
        mean, goal = found.mean(0), wanted.mean(0)
        gram = (found - mean).T @ (found - mean)
        gram += torch.eye(len(gram)) * gram.trace() / len(gram) * 0.1
        weight = torch.linalg.solve(gram, (found - mean).T @ (wanted - goal))
        self.head.weight.copy_(weight.T)
        self.head.bias.copy_(goal - mean @ weight)


def relation_loss(found: Tensor, wanted: Tensor, *, scale: float) -> Tensor:
    """KL divergence of the similarities of each text to the teacher's vectors from those among the teacher's.

    Shapes: (B, T), unit vectors -> scalar.
    """
    goal = F.softmax(scale * wanted @ wanted.T, dim=1)
    return F.kl_div(F.log_softmax(scale * found @ wanted.T, dim=1), goal, reduction="batchmean")


def batches_of(
    order: NDArray[np.int64], lengths: NDArray[np.int64], *, texts: int, tokens: int
) -> Iterator[NDArray[np.int64]]:
    """Parts of ``order``, sorted by length, of at most so many texts and padded tokens (at least one text)."""
    start = 0
    while start < len(order):
        part = order[start : start + texts]
        fits = np.flatnonzero(lengths[part] * np.arange(1, len(part) + 1) <= tokens)
        part = part[: max(1, int(fits[-1]) + 1 if len(fits) else 1)]
        yield part
        start += len(part)


def put_back(model: BertEncoder, stage: TextStage) -> None:
    """Give the model its trained blocks."""
    own = list(model.layers)[-len(stage.blocks) :]
    for block, trained in zip(own, stage.blocks, strict=True):
        block.load_state_dict(trained.state_dict())


def _passes(chosen: NDArray[np.int64], lengths: NDArray[np.int64]) -> Iterator[NDArray[np.int64]]:
    order = chosen[np.argsort(lengths[chosen], kind="stable")]
    yield from batches_of(order, lengths, texts=len(order), tokens=_PASS_TOKENS)


def _padded(rows: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
    """Shapes: (B, L), int64, and (B, L), bool."""
    tensors = [torch.tensor(row) for row in rows]
    ids = nn.utils.rnn.pad_sequence(tensors, batch_first=True)
    lengths = torch.tensor([len(row) for row in rows])
    return ids, torch.arange(ids.shape[1]) < lengths[:, None]
