"""Tokens per second of a language model that reads captions, beside llm2vec's own ``encode`` of the same texts.

The model is Llama-3.2-1B cut to a few layers and to the vocabulary of a small tokenizer, with random weights; both read
it from the same folder, on one thread. What counts is tokens that a text has, not padding. llm2vec comes from PyPI with
the transformers it pins, so it lives in an environment of its own: ``--llm2vec PYTHON`` names its interpreter,
``--llm2vec install`` makes one in the temporary folder; without either it is left out.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.full_size import write_llama
from benchmarks.measuring import Row, Settings

if TYPE_CHECKING:
    from torch import nn

TOKENIZER = Path(__file__).parent.parent / "tests" / "golden/data/d_llm2vec/llama1b_like/model"
INSTALLED = ("llm2vec==0.2.3", "transformers==4.44.2", "peft<0.14", "torch<2.14")
"""What is installed; peft of the same time as the transformers that llm2vec pins."""
LAYERS, TEXTS = 2, 256
BATCH = 32
"""Texts in a batch of llm2vec, which sorts by characters."""
MIX = ((0.60, 6, 20), (0.25, 20, 60), (0.15, 100, 300))
"""Share of the texts, fewest and most tokens: short captions, sentences, paragraphs."""
WORDS = (
    "a dog red bicycle in the rain two children stand beside old wooden boat on sandy beach while birds circle above "
    "grey water behind them small white house with blue door and tall pine trees grows near quiet road"
)


@dataclass(frozen=True, kw_only=True)
class Job:
    """One measurement in a process of its own."""

    model: str
    """Folder of the language model."""
    texts: str
    """JSON file of the texts."""
    vectors: str
    """File to be written: the vectors, .npy."""
    dtype: str
    """Of the arithmetic."""
    clock: str
    """Function of ``time`` that measures."""
    chosen: tuple[int, ...] = ()
    """Positions of the texts to be read; all if empty."""


def measure(settings: Settings) -> list[Row]:
    """Ours and llm2vec's in turns, so that a busy machine slows both."""
    work, clock = settings.work, settings.clock.__name__
    small = {"layers": 1, "hidden": 256} if settings.quick else {"layers": LAYERS}
    write_cut_llama(work / "llama", **small)
    count = 32 if settings.quick else TEXTS
    tokens = write_texts(work / "texts.json", work / "llama", count=count)
    job = Job(
        model=str(work / "llama"),
        texts=str(work / "texts.json"),
        vectors=str(work / "ours.npy"),
        dtype="float32",
        clock=clock,
    )
    python = _interpreter(settings)
    found, theirs = [_ours_of(job)], None
    if python:
        theirs = _run(python, ["-c", _LLM2VEC], replace(job, vectors=str(work / "theirs.npy")))
    found.append(_ours_of(job))
    rate = tokens / statistics.mean(each["seconds"] for each in found)
    what = f"{count} texts, {tokens:,} tokens, {small['layers']} layers of 1B, one thread"
    rows = [
        Row(benchmark="texts", what="ours, float32", value=rate, unit="tokens/s", better="higher", note=what),
        _ratio(
            "of what the matrix products alone allow",
            rate / max(each["bound"] for each in found),
            aim=0.9,
            note="same shapes",
        ),
    ]
    if python and theirs:
        rows += _comparison(rate, tokens / theirs["seconds"], job, work)
        rows += _as_on_the_cards(python, job, work)
    return rows


def _ratio(what: str, value: float, *, aim: float | None, note: str = "") -> Row:
    return Row(benchmark="texts", what=what, value=value, unit="ratio", aim=aim, better="higher", note=note)


def _comparison(ours: float, theirs: float, job: Job, work: Path) -> list[Row]:
    """Against llm2vec in the same arithmetic; the vectors must be the same."""
    cosine, other = _agreement(Path(job.vectors), work / "theirs.npy")
    if not cosine > 0.999:
        raise RuntimeError(f"llm2vec gives other vectors: the least cosine is {cosine}")
    lengths = json.loads(Path(job.texts).read_text(encoding="utf-8"))["lengths"]
    note = f"least cosine of the vectors {cosine:.6f}, between neighbouring texts {other:.3f}"
    return [
        Row(benchmark="texts", what="llm2vec, float32", value=theirs, unit="tokens/s", better="higher"),
        _ratio("ours / llm2vec, both float32", ours / theirs, aim=2.5, note=note),
        _ratio(
            "of llm2vec's positions are padding",
            padded_share(lengths, batch=BATCH),
            aim=None,
            note=f"batches of 32; {padded_share(drawn_lengths(10_000), batch=BATCH):.3f} of 10,000 texts of this mix",
        ),
    ]


def _as_on_the_cards(python: str, job: Job, work: Path) -> list[Row]:
    """Against llm2vec as the model cards call it, in bfloat16, on one batch of nearly equal lengths."""
    lengths = json.loads(Path(job.texts).read_text(encoding="utf-8"))["lengths"]
    chosen = middle(lengths, BATCH)
    tokens = sum(lengths[i] for i in chosen)
    job = replace(job, chosen=chosen, vectors=str(work / "some.npy"))
    ours = _ours_of(job)
    theirs = _run(python, ["-c", _LLM2VEC], replace(job, dtype="bfloat16"))
    rate = tokens / theirs["seconds"]
    note = f"{BATCH} texts of middle length, {tokens:,} tokens"
    what = "ours as auto holds it / llm2vec as the cards call it"
    why = "auto is float32 on a CPU without bfloat16, the cards say bfloat16"
    return [
        Row(
            benchmark="texts",
            what="llm2vec, bfloat16",
            value=rate,
            unit="tokens/s",
            better="higher",
            note=note,
        ),
        _ratio(what, theirs["seconds"] / ours["seconds"], aim=2.5, note=why),
    ]


def middle(lengths: list[int], count: int) -> tuple[int, ...]:
    """Positions of the texts of middle length."""
    order = sorted(range(len(lengths)), key=lambda i: lengths[i])
    first = (len(order) - count) // 2
    return tuple(order[first : first + count])


def _ours_of(job: Job) -> dict[str, Any]:
    return _run(sys.executable, ["-m", "benchmarks.text_side"], job)


def _agreement(ours: Path, theirs: Path) -> tuple[float, float]:
    """Least cosine of a text's two vectors; greatest of those of two neighbouring texts."""
    import numpy as np

    one, two = (np.load(path).astype(np.float64) for path in (ours, theirs))
    one, two = (vectors / np.linalg.norm(vectors, axis=1, keepdims=True) for vectors in (one, two))
    return float((one * two).sum(1).min()), float((one[1:] * two[:-1]).sum(1).max())


def padded_share(lengths: list[int], *, batch: int) -> float:
    """Part of the positions that are padding, if texts are sorted by length and read in batches of so many."""
    ordered = sorted(lengths, reverse=True)
    filled = sum(
        ordered[start] * len(ordered[start : start + batch]) for start in range(0, len(ordered), batch)
    )
    return 1 - sum(ordered) / filled


def drawn_lengths(count: int) -> list[int]:
    """Tokens of texts of the mix."""
    import random

    rng = random.Random(0)
    return [rng.randint(few, most) for share, few, most in MIX for _ in range(round(share * count))]


def write_cut_llama(folder: Path, *, layers: int, hidden: int = 8192, vocabulary: int = 560) -> None:
    """Llama-3.2-1B cut to ``layers`` and to the small tokenizer, with all that llm2vec wants of a folder."""
    cut = {"num_hidden_layers": layers, "vocab_size": vocabulary, "intermediate_size": hidden}
    write_llama(folder, small=False, tokenizer=TOKENIZER / "tokenizer.json", cut=cut)
    for name in ("tokenizer_config.json", "special_tokens_map.json"):
        (folder / name).write_bytes((TOKENIZER / name).read_bytes())


def write_texts(path: Path, model: Path, *, count: int) -> int:
    """Texts of the mix, and how long each is in tokens with what is put around it; returns the sum."""
    import random

    from llm2clip.encoders.text.llm_text_tower import language_source

    reader = language_source(model).reader("native")
    words = WORDS.split()
    cost = dict(zip(words, reader.count_tokens([f"{word} {word}" for word in words]), strict=True))
    rng = random.Random(0)
    texts = []
    for share, fewest, most in MIX:
        for _ in range(round(share * count)):
            wanted, text, have = rng.randint(fewest, most), [rng.choice(words)], 0
            while have < wanted:
                text.append(rng.choice(words))
                have += cost[text[-1]] // 2
            texts.append(" ".join(text))
    rng.shuffle(texts)
    lengths = [len(row.ids) for row in reader.rows(texts)]
    path.write_text(json.dumps({"texts": texts, "lengths": lengths}), encoding="utf-8")
    return sum(lengths)


def _interpreter(settings: Settings) -> str | None:
    """Of the environment with llm2vec, made now if that was asked for."""
    if settings.llm2vec != "install":
        return settings.llm2vec
    folder = settings.work / "llm2vec"
    subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
    python = str(folder / "bin" / "python")
    subprocess.run([python, "-m", "pip", "install", "-q", *INSTALLED], check=True)
    return python


def _run(python: str, how: list[str], job: Job) -> dict[str, Any]:
    command = [python, *how, json.dumps(vars(job))]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True)
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


_LLM2VEC = """
import json, sys, time
import numpy as np
import torch
from llm2vec import LLM2Vec

job = json.loads(sys.argv[1])
torch.set_num_threads(1)
clock = getattr(time, job["clock"])
model = LLM2Vec.from_pretrained(
    job["model"], torch_dtype=getattr(torch, job["dtype"]), pooling_mode="mean", max_length=512, doc_max_length=512
)
# With another name it would leave out what is put around a text; the model cards set it too.
model.model.config._name_or_path = "meta-llama/Meta-Llama-3-8B-Instruct"
found = json.load(open(job["texts"]))
texts = [found["texts"][i] for i in job["chosen"]] if job["chosen"] else found["texts"]
model.encode(texts[:4], show_progress_bar=False)
began = clock()
vectors = model.encode(texts, show_progress_bar=False)
seconds = clock() - began
np.save(job["vectors"], vectors.numpy())
print(json.dumps({"seconds": seconds}))
"""


def _ours(job: dict[str, Any]) -> dict[str, float]:
    import numpy as np
    import torch

    from llm2clip.encoders.text.llm_text_tower import LlmTextTower, language_source

    torch.set_num_threads(1)
    clock = getattr(time, job["clock"])
    found = json.loads(Path(job["texts"]).read_text(encoding="utf-8"))
    texts = [found["texts"][i] for i in job["chosen"]] if job["chosen"] else found["texts"]
    side = LlmTextTower(language_source(job["model"]), choice=job["dtype"], device=torch.device("cpu"))
    side.features(texts[:4])
    began = clock()
    vectors = side.features(texts)
    seconds = clock() - began
    np.save(job["vectors"], vectors.numpy())
    return {"seconds": seconds, "bound": _bound(side.module(), clock)}


def _bound(model: nn.Module, clock: Callable[[], float]) -> float:
    """Tokens per second of the linear layers alone, on 1024 tokens at once."""
    import torch
    from torch import nn

    layers = [layer for layer in model.modules() if isinstance(layer, nn.Linear)]
    tokens = {layer.in_features: torch.randn(1024, layer.in_features) for layer in layers}
    spent = []
    with torch.inference_mode():
        for _ in range(3):
            began = clock()
            for layer in layers:
                layer(tokens[layer.in_features])
            spent.append(clock() - began)
    return 1024 / min(spent)


if __name__ == "__main__":
    print(json.dumps(_ours(json.loads(sys.argv[1]))))
