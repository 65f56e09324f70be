"""Stage 2: what caching saves, whether the loader keeps up with a tower, and the memory of a batch of 8,192.

python -m benchmarks.align_speed IMAGES --tower FILE [--model nano]
"""

from __future__ import annotations

import argparse
import resource
import time
from collections.abc import Callable
from itertools import islice

import torch

from llm2clip.encoders import load_encoder
from llm2clip.encoders.layers.llama import TextAdapter
from llm2clip.train.align.config import AlignLoss
from llm2clip.train.align.heads import Scales, loss_of
from llm2clip.train.align.towers import load_tower
from llm2clip.train.caption_cache.writer import maker_of
from llm2clip.train.data.image_text import read_pairs

_PAIRS, _DIM, _WIDE, _LARGE = 128, 256, 1280, 8192


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("images")
    parser.add_argument("--tower", required=True)
    parser.add_argument("--model", default="nano")
    options = parser.parse_args()
    pairs = list(islice(read_pairs([options.images]), _PAIRS))
    print(caching([pair.captions[0].text for pair in pairs], options.model))
    tower = load_tower(options.tower)
    decoding = seconds(lambda: [tower.preprocess.prepare(p.record.read(), draft=True) for p in pairs])
    side = tower.preprocess.size
    with torch.no_grad():
        passing = seconds(lambda: tower.module(torch.zeros(_PAIRS // 4, 3, side, side))) * 4
    print(
        f"loader alone {_PAIRS / decoding:,.0f} images/s, tower alone {_PAIRS / passing:,.0f} images/s: "
        f"{passing / decoding:.1f} x"
    )
    print(large_batch())


def caching(texts: list[str], model: str) -> str:
    """A step with cached text features against the same step computing them."""
    maker = maker_of(load_encoder(model))
    stored = torch.from_numpy(maker.make(texts)).float()
    heads = torch.nn.Linear(_WIDE, _DIM), TextAdapter(maker.dim, _DIM)
    images, scales = torch.randn(len(texts), _WIDE), Scales(AlignLoss())

    def step(features: Callable[[], torch.Tensor]) -> None:
        loss_of(heads[0](images), heads[1](features()), scales, AlignLoss()).backward()

    cached = seconds(lambda: step(lambda: stored))
    computed = seconds(lambda: step(lambda: torch.from_numpy(maker.make(texts)).float()))
    return (
        f"step of {len(texts)}: cached {cached * 1e3:.0f} ms, recomputed {computed * 1e3:.0f} ms: "
        f"{computed / cached:.1f} x"
    )


def large_batch() -> str:
    """Peak memory that a step of 8,192 cached pairs adds."""
    heads = torch.nn.Linear(_WIDE, _DIM), TextAdapter(384, _DIM)
    images, texts, scales = torch.randn(_LARGE, _WIDE), torch.randn(_LARGE, 384), Scales(AlignLoss())
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    loss_of(heads[0](images), heads[1](texts), scales, AlignLoss()).backward()
    after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return f"a step of {_LARGE:,} cached pairs adds at most {(after - before) / 1024:,.0f} MB"


def seconds(work: Callable[[], object]) -> float:
    """The fastest of three calls, after one that warms up."""
    work()
    times = []
    for _ in range(3):
        began = time.perf_counter()
        work()
        times.append(time.perf_counter() - began)
    return min(times)


if __name__ == "__main__":
    main()
