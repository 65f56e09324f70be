"""Quicker arithmetic is taken only where it keeps the vectors and wins time."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from llm2clip.encoders import FakeEncoder
from llm2clip.indexer import BuildOptions, Record, build_index, open_index
from llm2clip.indexer.ingest import reduced_precision as arithmetic
from llm2clip.indexer.ingest.reduced_precision import try_quicker


class Rough(FakeEncoder):
    """The same encoder, off by some noise, for so many seconds of a made-up clock a pass."""

    now = 0.0

    def __init__(self, *, noise: float = 0.0, seconds: float = 1.0) -> None:
        super().__init__()
        self.noise, self.seconds = noise, seconds

    def _image_batch(self, pixels: np.ndarray) -> np.ndarray:
        Rough.now += self.seconds
        rows = super()._image_batch(pixels)
        rows += self.noise * np.random.default_rng(0).standard_normal(rows.shape).astype(np.float32)
        return rows


def records(photos: Path) -> list[Record]:
    return [Record(key=file.name, uri=str(file), file=file) for file in sorted(photos.rglob("*.png"))]


@pytest.mark.parametrize(
    ("noise", "seconds", "taken"),
    [(0.0, 0.5, True), (1e-4, 0.5, True), (0.2, 0.5, False), (0.0, 0.95, False), (0.0, 2.0, False)],
)
def test_what_keeps_the_vectors_and_wins_time_is_taken(
    photos: Path, noise: float, seconds: float, taken: bool
):
    full, rough = Rough(), Rough(noise=noise, seconds=seconds)
    trial = try_quicker(full, lambda: rough, records(photos), clock=lambda: Rough.now)
    assert (trial.taken, trial.encoder is rough) == (taken, taken)
    assert trial.times == pytest.approx(1 / seconds)
    assert trial.probes == 16
    drawn = [image.read_bytes() for image in sorted(photos.rglob("*.png"))]
    cosines = [float(full.encode_images([one])[0] @ rough.encode_images([one])[0]) for one in drawn]
    assert min(cosines) - 0.05 < trial.cosine <= 1
    assert ("full precision" in trial.text()) == (not taken)


def test_without_images_nothing_is_loaded(tmp_path: Path):
    (tmp_path / "a.png").write_bytes(b"no image")

    def load() -> FakeEncoder:
        raise AssertionError("was loaded")

    encoder = FakeEncoder()
    assert try_quicker(encoder, load, records(tmp_path)).encoder is encoder


@pytest.mark.parametrize(("enough", "used"), [(30, True), (31, False)])
def test_a_large_build_tries_it_and_says_so(
    photos: Path, tmp_path: Path, enough: int, used: bool, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(arithmetic, "ENOUGH", enough)
    monkeypatch.setattr(arithmetic, "_QUICKER", 0.0)
    quicker = FakeEncoder()
    load: Callable[[], FakeEncoder] = lambda: quicker  # noqa: E731
    report = build_index(
        photos, tmp_path / "i", encoder=FakeEncoder(), options=BuildOptions(batch_size=8, quicker=load)
    )
    assert (report.items, report.embedded) == (30, 30)
    assert any(note.startswith("encoded in quicker arithmetic: ") for note in report.notes) == used
    assert (quicker.image_batches[-4:] == [8, 8, 8, 6]) == used
    with open_index(tmp_path / "i") as index:
        assert index.verify().ok
        index.require_encoder(FakeEncoder().info)
    again = build_index(photos, tmp_path / "i", encoder=FakeEncoder(), options=BuildOptions(quicker=load))
    assert again.up_to_date
    assert again.notes == ()


@pytest.mark.parametrize(
    ("lines", "dtype"),
    [
        ("processor : 0\nflags\t\t: fpu avx512f avx512_bf16\n", "bfloat16"),
        ("flags : amx_tile amx_bf16", "bfloat16"),
        ("Features\t: fp asimd bf16 sve", "bfloat16"),
        ("flags\t\t: fpu avx2 fma", None),
        ("", None),
    ],
)
def test_processors_say_what_they_are_quick_at(
    lines: str, dtype: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    from llm2clip.encoders.core.dual_encoder import quick_dtype

    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    file = tmp_path / "cpuinfo"
    assert quick_dtype(processor=tmp_path / "missing") is None
    file.write_text(lines)
    assert quick_dtype(processor=file) == dtype
    quick_dtype.cache_clear()
