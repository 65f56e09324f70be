"""Recall of COCO's size beside the bare matrix product, and beside counting over a whole matrix of scores.

The whole-matrix way is what evaluation scripts commonly do, written down again after what CLIP_benchmark computes: all
scores in float32, a boolean matrix of right pairs, and for each k the top k turned into one-hot rows, 64 queries at a
time. Ours multiplies in float64, and so does the product it is compared with. Each way runs in a process of its own on
one thread, and both must come to the same recalls.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.measuring import Row, Settings, peak_beyond

if TYPE_CHECKING:
    import torch

KS = (1, 5, 10)
SIZES = {True: (500, 2_510, 64), False: (5_000, 25_010, 1_280)}
"""Images, captions and dimensions, quick or not: those of COCO's test set and of the published LLM2CLIP encoders."""
NOISE = 9.0
"""Length of what separates a caption from its image: right answers come first for about 60 % of captions."""


def measure(settings: Settings) -> list[Row]:
    """Both ways, one after the other."""
    images, texts, _ = SIZES[settings.quick]
    ours, whole = (_in_its_own_process(way, settings, times) for way, times in (("ours", 5), ("whole", 1)))
    assert ours["recall"] == whole["recall"], f"{ours['recall']} and {whole['recall']}"
    size = f"{images:,} x {texts:,}"
    note = f"{ours['total']:.2f} s in all, product alone {ours['product']:.2f} s"
    bare = f"{whole['total']:.2f} s in all, product alone {whole['product']:.2f} s"
    beyond = max(ours["total"] - ours["product"], 1e-3)
    rows: list[tuple[str, float, str, float | None]] = [
        ("ours, beyond the product", beyond, "s", 3.0),
        ("whole matrix, beyond the product", whole["total"] - whole["product"], "s", None),
        ("ours, memory beyond the vectors", ours["memory"], "MB", None),
        ("whole matrix, memory beyond the vectors", whole["memory"], "MB", None),
        ("whole matrix / ours, all of both", whole["total"] / ours["total"], "ratio", 5.0),
        (
            "whole matrix / ours, beyond the product",
            (whole["total"] - whole["product"]) / beyond,
            "ratio",
            10.0,
        ),
        ("whole matrix / ours, memory", whole["memory"] / max(ours["memory"], 1.0), "ratio", 10.0),
    ]
    notes = {"ours, beyond the product": note, "whole matrix, beyond the product": bare}
    return [
        Row(
            benchmark="metrics",
            what=f"{size}: {what}",
            value=value,
            unit=unit,
            aim=aim,
            better="higher" if unit == "ratio" else "lower",
            note=notes.get(what, ""),
        )
        for what, value, unit, aim in rows
    ]


def _in_its_own_process(way: str, settings: Settings, times: int) -> dict[str, Any]:
    repeats = 1 if settings.quick else times
    command = [sys.executable, "-m", "benchmarks.metrics", way, str(repeats), settings.clock.__name__]
    if settings.quick:
        command.append("quick")
    alone = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
    done = subprocess.run(command, capture_output=True, text=True, check=True, env={**os.environ, **alone})
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def vectors(*, quick: bool) -> tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.int64]]:
    """Unit rows of captions and images, and whose caption each is: five for each image, six for a few."""
    images, texts, dim = SIZES[quick]
    random = np.random.default_rng(0)
    owner = np.concatenate([np.repeat(np.arange(images), 5), np.arange(texts - 5 * images)])
    owner.sort()
    photos = _unit(random.standard_normal((images, dim), dtype=np.float32))
    captions = random.standard_normal((texts, dim), dtype=np.float32)
    captions *= NOISE / dim**0.5
    captions += photos[owner]
    return _unit(captions), photos, owner


def _unit(rows: NDArray[np.float32]) -> NDArray[np.float32]:
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    return rows


def ours(texts: NDArray[np.float32], images: NDArray[np.float32], owner: NDArray[np.int64]) -> list[float]:
    """Recall by ``retrieval_metrics``, text to image first."""
    from llm2clip.eval.metrics.blockwise_scores import Embeddings
    from llm2clip.eval.metrics.recall import retrieval_metrics

    found = retrieval_metrics(Embeddings(texts=texts, images=images), positives=owner, ks=KS)
    both = (found.text_to_image, found.image_to_text)
    return [direction.recall[k].pessimistic for direction in both for k in KS]


def whole_matrix(
    texts: NDArray[np.float32], images: NDArray[np.float32], owner: NDArray[np.int64]
) -> list[float]:
    """The same over the whole matrix of scores."""
    import torch

    scores = torch.from_numpy(texts) @ torch.from_numpy(images).T
    right = torch.zeros(scores.shape, dtype=torch.bool)
    right[torch.arange(len(texts)), torch.from_numpy(owner)] = True
    return [
        float(_any_hit(*sides, k=k).mean()) for sides in ((scores, right), (scores.T, right.T)) for k in KS
    ]


def _any_hit(scores: torch.Tensor, right: torch.Tensor, *, k: int) -> NDArray[np.float64]:
    import torch
    from torch.nn.functional import one_hot

    found = []
    for start in range(0, len(scores), 64):
        top = scores[start : start + 64].topk(k, dim=1).indices
        chosen = one_hot(top, num_classes=scores.shape[1])
        found.append((chosen * right[start : start + 64, None]).sum(dim=(1, 2)) > 0)
    return torch.cat(found).double().numpy()


def product(texts: NDArray[np.float32], images: NDArray[np.float32], *, way: str) -> None:
    """The bare matrix product: whole in float32, or in float64 a block at a time into the same memory."""
    if way == "whole":
        import torch

        torch.matmul(torch.from_numpy(texts), torch.from_numpy(images).T)
        return
    step = max(1, (1 << 22) // len(images))
    room = np.empty((step, len(images)), dtype=np.float64)
    gallery = images.astype(np.float64).T
    for start in range(0, len(texts), step):
        part = texts[start : start + step].astype(np.float64)
        np.matmul(part, gallery, out=room[: len(part)])


def _main(way: str, repeats: int, clock: Callable[[], float], *, quick: bool) -> dict[str, object]:
    texts, images, owner = vectors(quick=quick)
    count = {"ours": ours, "whole": whole_matrix}[way]
    count(texts[:64], images[:64], np.arange(64))  # imports and threads
    bare, total, recall = [], [], [0.0]
    for _ in range(repeats):
        began = clock()
        product(texts, images, way=way)
        between = clock()
        recall = count(texts, images, owner)
        bare.append(between - began)
        total.append(clock() - between)
    return {
        "product": statistics.median(bare),
        "total": statistics.median(total),
        "memory": peak_beyond(lambda: count(texts, images, owner)),
        "recall": [round(value, 9) for value in recall],
    }


if __name__ == "__main__":
    given = sys.argv[1:]
    print(json.dumps(_main(given[0], int(given[1]), getattr(time, given[2]), quick=given[3:] == ["quick"])))
