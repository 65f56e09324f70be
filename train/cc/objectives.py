"""What stage 1 minimises: the contrast of captions, masked next-token prediction, and the distance to a teacher.

Each is a ``Trainable`` of the training loop: it computes a step's loss and adds its gradients.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, final

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from llm2clip.train.cc.grad_cache import cached_backward
from llm2clip.train.cc.lora import optimiser_groups
from llm2clip.train.core.distributed import mean_of, share_of
from llm2clip.train.core.losses import candidate_loss
from llm2clip.train.core.optimizer import make_optimizer
from llm2clip.train.core.sharding import shard
from llm2clip.train.core.stage import StepLosses

if TYPE_CHECKING:
    from llm2clip.encoders.text.caption_tokenizer import TextReader, TextRow
    from llm2clip.train.cc.config import TuneSettings
    from llm2clip.train.cc.text_model import TextModel
    from llm2clip.train.data.caption_batches import CaptionBatch, CaptionBatches


class _Stage:
    """A text model with the parameters that were chosen before, and their optimiser."""

    def __init__(self, model: TextModel, settings: TuneSettings, *, head: nn.Module | None = None) -> None:
        self.model = model
        modules: dict[str, nn.Module] = {"text": model.module}
        groups = optimiser_groups(model.module, settings)
        if head is not None:
            modules["head"] = head
            if settings.sharded:
                shard(head, [])
            groups += optimiser_groups(head, settings)
        if not groups:
            raise ValueError("nothing is to be trained: no parameter of the text model has gradients")
        self.optimizer = make_optimizer(groups, name=settings.optimizer)
        self.modules: Mapping[str, nn.Module] = modules
        self.micro_batch = settings.micro_batch
        for module in self.modules.values():
            module.train()

    def _micro_batches(self, rows: Sequence[TextRow]) -> Iterator[list[int]]:
        """Positions of rows, the short ones first, so many at a time."""
        order = sorted(range(len(rows)), key=lambda n: _size(rows[n]))
        for start in range(0, len(order), self.micro_batch):
            yield order[start : start + self.micro_batch]


@final
class ContrastStage(_Stage):
    """Supervised SimCSE: each query caption against all positives and hard negatives of the batch."""

    name = "cc"

    def __init__(
        self,
        model: TextModel,
        settings: TuneSettings,
        batches: CaptionBatches,
        *,
        scale: float = 50.0,
        instruction: str = "",
    ) -> None:
        """Train ``model`` on ``batches``; other arguments as in ``CcConfig``."""
        super().__init__(model, settings)
        self.batches, self.scale = batches, scale
        self.query_reader: TextReader = model.instructed(instruction)

    def step(self, number: int, rng: np.random.Generator) -> StepLosses:
        """Loss and gradients of a step's batch."""
        batch = self.batches.batch(number)
        rows = self.query_reader.rows(batch.queries)
        rows += self.model.reader.rows([*batch.positives, *batch.negatives])
        targets = target_shares(batch).to(self.model.device)
        queries = len(batch.queries)
        right = torch.zeros((), device=self.model.device)

        def loss_of(vectors: Tensor) -> Tensor:
            with torch.no_grad():
                cosines = F.normalize(vectors[:queries], dim=-1) @ F.normalize(vectors[queries:], dim=-1).T
                right.copy_((targets.gather(1, cosines.argmax(1, keepdim=True)) > 0).float().mean())
            return candidate_loss(vectors[:queries], vectors[queries:], targets, scale=self.scale)

        loss = cached_backward(
            self.model.features, rows, micro_batch=self.micro_batch, loss_of=loss_of, size_of=_size
        )
        return StepLosses(
            losses={"loss": float(loss), "right": float(right)}, items=len(rows), keys=batch.keys
        )


@final
class MntpStage(_Stage):
    """Masked next-token prediction: the state before a masked token predicts it."""

    name = "mntp"

    def __init__(
        self,
        model: TextModel,
        settings: TuneSettings,
        texts: Sequence[str],
        *,
        head: Tensor,
        size: int,
        share: float = 0.2,
        mask: str = "_",
    ) -> None:
        """Train on random ``texts``, ``size`` a step; ``head`` maps states to tokens. Shape: (V, D)."""
        super().__init__(model, settings)
        self.texts, self.head, self.size, self.share = texts, head, size, share
        # What stands behind a caption is not to be predicted: it is always the same.
        self.reader = model.caption_reader()
        self.behind = self.reader.count_tokens([""])[0]
        own = _body(self.reader.rows([mask])[0], self.behind)
        if len(own) != 1:
            raise ValueError(f"mask must be one token of the tokenizer, but {mask!r} is {len(own)}")
        self.mask_id = own[0]

    def step(self, number: int, rng: np.random.Generator) -> StepLosses:
        """Loss and gradients of a step's texts."""
        chosen = _own_share(rng.integers(len(self.texts), size=self.size))
        rows = self.reader.rows([self.texts[n] for n in chosen])
        masked = [masked_row(row, self.behind, self.mask_id, len(self.head), self.share, rng) for row in rows]
        # The mean over processes, as their gradients are averaged.
        total = mean_of({"masked": sum(len(places) for _, places in masked)})["masked"]
        summed = 0.0
        for piece in self._micro_batches(rows):
            loss = self._loss([masked[n] for n in piece], [rows[n] for n in piece]) / max(1.0, total)
            loss.backward()
            summed += float(loss.detach())
        return StepLosses(losses={"loss": summed}, items=len(rows), keys=tuple(self.texts[n] for n in chosen))

    def _loss(self, masked: Sequence[tuple[TextRow, list[int]]], rows: Sequence[TextRow]) -> Tensor:
        """Summed cross-entropy of the masked tokens of rows sorted by length."""
        states_TD = self.model.tokens([row for row, _ in masked])
        first, places, answers = 0, [], []
        for (row, hidden), whole in zip(masked, rows, strict=True):
            places += [first + place - 1 for place in hidden]
            answers += [whole.ids[place] for place in hidden]
            first += len(row.ids)
        with self.model.computing():
            logits_MV = (
                states_TD[torch.tensor(places, device=states_TD.device, dtype=torch.int64)] @ self.head.T
            )
        target = torch.tensor(answers, device=states_TD.device, dtype=torch.int64)
        return F.cross_entropy(logits_MV.float(), target, reduction="sum")


@final
class DistilStage(_Stage):
    """Distance to stored vectors of a teacher, which texts of one meaning share."""

    name = "distil"

    def __init__(
        self,
        model: TextModel,
        settings: TuneSettings,
        pairs: Sequence[tuple[str, int]],
        vectors: NDArray[np.float32],
        *,
        size: int,
        loss: str = "cosine",
        head: nn.Module | None = None,
    ) -> None:
        """Train on pairs of a text and its row of ``vectors``, shape (rows, dim); ``head`` maps features to dim."""
        super().__init__(model, settings, head=head)
        width = model.module.config.hidden_size
        if head is None and vectors.shape[1] != width:
            raise ValueError(
                f"the teacher's vectors have {vectors.shape[1]} numbers, the model's features {width}; expected as "
                "many, or a head between them"
            )
        if wrong := [text for text, row in pairs if not 0 <= row < len(vectors)]:
            raise ValueError(f"{wrong[0]!r} has a row that is not among the teacher's {len(vectors)} vectors")
        self.pairs, self.vectors, self.size, self.kind, self.head = pairs, vectors, size, loss, head

    def step(self, number: int, rng: np.random.Generator) -> StepLosses:
        """Loss and gradients of a step's texts."""
        chosen = _own_share(rng.integers(len(self.pairs), size=self.size))
        rows = self.model.reader.rows([self.pairs[n][0] for n in chosen])
        wanted = torch.from_numpy(np.stack([self.vectors[self.pairs[n][1]] for n in chosen]))
        wanted = wanted.to(self.model.device, torch.float32)
        summed = 0.0
        for piece in self._micro_batches(rows):
            features = self.model.features([rows[n] for n in piece])
            if self.head is not None:
                features = self.head(features)
            loss = teacher_distance(features, wanted[piece], kind=self.kind) * (len(piece) / len(rows))
            loss.backward()
            summed += float(loss.detach())
        keys = tuple(self.pairs[n][0] for n in chosen)
        return StepLosses(losses={"loss": summed}, items=len(rows), keys=keys)


def target_shares(batch: CaptionBatch) -> Tensor:
    """Which candidates (positives, then negatives) are right. Shape: (queries, candidates), rows sum to 1."""
    shares = torch.zeros(len(batch.queries), len(batch.positives) + len(batch.negatives))
    counts = np.bincount(batch.owners, minlength=len(batch.queries))
    shares[torch.from_numpy(batch.owners), torch.arange(len(batch.owners))] = torch.from_numpy(
        1.0 / counts[batch.owners]
    ).float()
    return shares


def teacher_distance(features: Tensor, wanted: Tensor, *, kind: str) -> Tensor:
    """Mean of 1 - cosine (``cosine``) or of the squared distance of unit vectors (``mse``). Shapes: (B, D)."""
    cosines = F.cosine_similarity(features, wanted, dim=-1)
    return (1 - cosines).mean() if kind == "cosine" else (2 - 2 * cosines).mean()


def masked_row(
    row: TextRow, behind: int, mask_id: int, vocabulary: int, share: float, rng: np.random.Generator
) -> tuple[TextRow, list[int]]:
    """A row with a share of its caption's tokens hidden, and their positions.

    Of those to be predicted 80 % become the mask, 10 % a random token and 10 % stay, as in BERT.
    """
    from llm2clip.encoders.text.caption_tokenizer import TextRow

    start = max(1, len(row.ids) - row.pooled)  # a first token has no state before it
    inside = np.arange(start, len(row.ids) - behind)
    places = inside[rng.random(len(inside)) < share]
    ids = list(row.ids)
    for place, lot, other in zip(
        places.tolist(), rng.random(len(places)), rng.integers(vocabulary, size=len(places)), strict=True
    ):
        ids[place] = mask_id if lot < 0.8 else int(other) if lot < 0.9 else ids[place]
    return TextRow(ids, row.pooled), places.tolist()


def _body(row: TextRow, behind: int) -> list[int]:
    """Tokens of the caption itself."""
    own = row.ids[-row.pooled :]
    return own[: len(own) - behind]


def _own_share(chosen: NDArray[np.int64]) -> list[int]:
    """Those that this process computes: as many as any other."""
    mine = share_of(len(chosen))
    own: list[int] = chosen[mine.start : mine.stop].tolist()
    return own


def _size(row: TextRow) -> int:
    return len(row.ids)
