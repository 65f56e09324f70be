"""What ``--ram``, ``--recall`` and ``--p95-ms`` mean for a build: the planner it is handed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from itertools import islice
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from llm2clip.indexer.ann.plan import Budget, parse_bytes
from llm2clip.indexer.planner.plan_index import BudgetPlanner
from llm2clip.indexer.records.record import Corpus

UNPLANNED_ROWS = 50_000
"""Up to so many images an exact search takes milliseconds anywhere: nothing is tried where nobody asked."""
_LOOKED_AT = 20_000
_CAPTIONS = 800


class TextEncoder(Protocol):
    """What turns captions into queries."""

    def encode_texts(self, texts: Sequence[str], /) -> NDArray[np.float32]:
        """Shape: (num_texts, dim), float32, unit rows."""


def budget_of(*, ram: str | None, recall: float | None, p95_ms: float | None) -> Budget | None:
    """The budget that somebody asked for; None where nobody did.

    Raises:
        IndexerError: a number means nothing.
    """
    if ram is None and recall is None and p95_ms is None:
        return None
    usual = Budget()
    return Budget(
        ram=parse_bytes(ram) if ram is not None else None,
        recall=recall if recall is not None else usual.recall,
        p95_ms=p95_ms if p95_ms is not None else usual.p95_ms,
    )


def make_planner(
    corpus: Corpus,
    encoder: TextEncoder,
    *,
    budget: Budget | None,
    say: Callable[[str], None],
    device: str = "auto",
) -> BudgetPlanner:
    """The planner of a build; without a budget the usual one, and nothing is tried for small indexes.

    Captions of the corpus become its queries, encoded when they are needed.
    """
    return BudgetPlanner(
        budget=budget or Budget(),
        queries=partial(caption_queries, corpus, encoder),
        say=say,
        device=device,
        untried_rows=0 if budget else UNPLANNED_ROWS,
    )


def caption_queries(corpus: Corpus, encoder: TextEncoder) -> NDArray[np.float32] | None:
    """Some captions among the first records of a corpus as queries, None if it has none. Shape: (n, dim), float32."""
    records = islice(corpus.records(), _LOOKED_AT)
    captions = sorted({record.caption for record in records if record.caption and record.caption.strip()})
    if len(captions) < 2:
        return None
    chosen = np.random.default_rng(0).permutation(len(captions))[:_CAPTIONS]
    return encoder.encode_texts([captions[number] for number in sorted(chosen.tolist())])
