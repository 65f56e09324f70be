"""Calibration against a distribution that is known."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from llm2clip.encoders import FakeEncoder
from llm2clip.indexer import open_index
from llm2clip.retrieval.ranking.calibration import Calibration, calibrate, calibration_of, null_captions

from ..conftest import Corpus


class Scores:
    """An index whose best score of a query is the first number of its vector."""

    def search(self, vectors: np.ndarray, *, k: int) -> list[list[object]]:
        return [[type("Hit", (), {"score": float(row[0])})] for row in vectors]


def test_calibrate_finds_the_distribution_that_the_maxima_were_drawn_from():
    random = np.random.default_rng(0)
    best = random.gumbel(0.3, 0.05, 4_000)
    # Vectors of mean zero whose first number, times their length, is the score.
    rest = np.sqrt(np.maximum(1 - best**2, 0))
    signs = np.where(np.arange(len(best)) % 2, 1, -1)
    captions = np.stack([best - best.mean(), signs * rest], axis=1).astype(np.float32)
    found = calibrate(Scores(), captions)
    assert found.location == pytest.approx(0.3 - best.mean(), abs=0.01)
    assert found.scale == pytest.approx(0.05, abs=0.005)
    assert found.confidence(np.quantile(best - best.mean(), [0.5, 0.8, 0.95])) == pytest.approx(
        [0.5, 0.8, 0.95], abs=0.02
    )


def test_calibrate_is_not_moved_by_captions_of_what_is_there():
    random = np.random.default_rng(1)
    best = random.gumbel(0.0, 0.05, 4_000)
    present = best.copy()
    present[::5] += 0.6

    def fitted(scores: np.ndarray) -> Calibration:
        both = np.stack([scores - scores.mean(), np.ones_like(scores)], axis=1)
        return calibrate(Scores(), both.astype(np.float32))

    absent_median = np.median(best - present.mean())
    assert fitted(present).confidence(absent_median) == pytest.approx(0.4, abs=0.03)


@pytest.mark.parametrize("confidence", [0.01, 0.5, 0.8, 0.99])
def test_calibration_least_is_the_score_of_a_confidence(confidence: float):
    calibration = Calibration(centre=np.zeros(3, np.float32), location=0.2, scale=0.03, captions=1)
    assert calibration.confidence(np.array([calibration.least(confidence)])) == pytest.approx([confidence])
    assert calibration.least(0) == -np.inf
    assert calibration.least(1) == np.inf
    assert calibration.confidence(np.array([-1e9, 1e9])).tolist() == [0, 1]


def test_calibration_of_encodes_the_captions_once(corpus: Corpus, data_home: Path):
    with open_index(corpus.index) as index:
        first = calibration_of(index, corpus.encoder)
        again = FakeEncoder()
        second = calibration_of(index, again)
    assert again.text_batches == []
    assert (first.location, first.scale, first.captions) == (
        second.location,
        second.scale,
        len(null_captions()),
    )
    assert not any(path.is_relative_to(corpus.index) for path in data_home.rglob("*"))
    assert len(list((data_home / "calibration").iterdir())) == 2


def test_calibration_of_another_generation_or_encoder_is_computed_anew(corpus: Corpus, data_home: Path):
    with open_index(corpus.index) as index:
        first = calibration_of(index, corpus.encoder)
        (fit,) = (data_home / "calibration").glob("*.json")
        fit.write_text(fit.read_text().replace('"generation": 1', '"generation": 7'))
        assert calibration_of(index, corpus.encoder).location == first.location
        assert '"generation": 1' in fit.read_text()
        fit.write_text("{}")
        assert calibration_of(index, corpus.encoder).location == first.location
    for path in (data_home / "calibration").glob("*.npy"):
        path.write_bytes(b"damaged")
    with open_index(corpus.index) as index:
        assert calibration_of(index, corpus.encoder, compute=False) is None
        assert calibration_of(index, corpus.encoder).location == first.location


@pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="root writes anywhere")
def test_calibration_of_works_where_nothing_can_be_written(corpus: Corpus, data_home: Path):
    data_home.chmod(0o500)
    with open_index(corpus.index) as index:
        assert calibration_of(index, corpus.encoder) is not None


def test_calibration_of_works_without_a_home(corpus: Corpus, monkeypatch: pytest.MonkeyPatch):
    blocked = corpus.folder / "warm" / "red.png"
    monkeypatch.setenv("LLM2CLIP_HOME", str(blocked))  # a file: no folder can be made in it
    with open_index(corpus.index) as index:
        assert calibration_of(index, corpus.encoder) is not None
