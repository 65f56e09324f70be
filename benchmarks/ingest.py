"""A build from files beside what bounds it, and beside two other ways from the same files with the same weights.

The model is a CLIP ViT-B/32 with random weights. All ways take turns, so that a busy machine slows all of them; what is
reported is the fastest turn of each, which is the one that others disturbed least, and ratios of those.
"""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.measuring import Row, Settings
from llm2clip.encoders import FakeEncoder, load_encoder
from llm2clip.encoders.core.image_source import PreparedImage
from llm2clip.encoders.images.preprocess import Preprocess, ResizeMode
from llm2clip.indexer import BuildOptions, ImageEncoder, build_index, open_corpus

BATCH = 32
IMAGES = 48
"""Of the corpus, for what runs the model."""
LARGE = (2000, 1500)
"""Size that some of the images are enlarged to, as of a small camera."""

Ways = dict[str, Callable[[], object]]


def measure(settings: Settings) -> list[Row]:
    """Model-bound, decode-bound, and the decoding of large images."""
    from transformers.utils import logging

    quiet: Any = logging
    quiet.disable_progress_bar()
    files = _files(settings)
    few = files[: 16 if settings.quick else IMAGES]
    folder = settings.work / "few"
    folder.mkdir()
    for file in few:
        shutil.copy(file, folder)
    rows = _model_bound(settings, folder)
    rows += _decode_bound(settings, files)
    return rows + _large(settings, few[:8] if settings.quick else few[:32])


def _files(settings: Settings) -> list[Path]:
    """The images as files in a folder of their own, whatever the corpus is."""
    folder = settings.work / "files"
    folder.mkdir()
    files = []
    for number, record in enumerate(islice(open_corpus(settings.corpus).records(), 1000)):
        files.append(folder / f"{number:05d}{Path(record.key).suffix}")
        files[-1].write_bytes(record.read())
    return files


def _turns(ways: Ways, *, images: int, turns: int, clock: Callable[[], float]) -> dict[str, float]:
    """Images per second of each way: the fastest of several turns, one more being for warming up."""
    spent: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(turns + 1):
        for name, call in ways.items():
            began = clock()
            call()
            spent[name].append(clock() - began)
    return {name: images / min(seconds[1:]) for name, seconds in spent.items()}


def save_clip(folder: Path, *, layers: int) -> Path:
    """A ViT-B/32 CLIP with random weights, laid out as published ones are; returns its folder."""
    import torch
    import transformers
    from transformers import CLIPConfig, CLIPImageProcessorPil, CLIPModel, CLIPTokenizer

    processor: Any = transformers.CLIPProcessor
    words = [*"ab", "a</w>", "b</w>", "<|startoftext|>", "<|endoftext|>"]
    tokenizer = CLIPTokenizer(vocab={word: n for n, word in enumerate(words)}, merges=[], model_max_length=77)
    ends = {"bos_token_id": 4, "eos_token_id": 5, "pad_token_id": 5, "vocab_size": len(words)}
    few = {"hidden_size": 64, "intermediate_size": 64, "num_attention_heads": 1, "num_hidden_layers": 1}
    torch.manual_seed(0)
    config = CLIPConfig(text_config={**few, **ends}, vision_config={"num_hidden_layers": layers})
    CLIPModel(config).save_pretrained(folder)
    processor(CLIPImageProcessorPil(), tokenizer).save_pretrained(folder)
    return folder


def _model_bound(settings: Settings, folder: Path) -> list[Row]:
    from sentence_transformers import SentenceTransformer

    model = save_clip(settings.work / "clip", layers=1 if settings.quick else 12)
    encoder = load_encoder(model, device="cpu", dtype="float32")
    files = sorted(folder.iterdir())
    pixels = np.stack([encoder.prepare(file.read_bytes()).pixels for file in files])
    sentences = SentenceTransformer(str(model), device="cpu")
    ways: Ways = {
        "bare": lambda: _forward(encoder, pixels),
        "build": lambda: _build(folder, settings.work / "i", encoder, BuildOptions(batch_size=BATCH)),
        "found": lambda: _build(folder, settings.work / "i", encoder, BuildOptions()),
        "transformers": _transformers_loop(model, files),
        "sentences": lambda: sentences.encode([str(file) for file in files], batch_size=BATCH),
    }
    if _fast_bfloat16():
        half = load_encoder(model, device="cpu", dtype="bfloat16")
        ways["bare half"] = lambda: _forward(half, pixels)
        ways["build half"] = lambda: _build(folder, settings.work / "i", half, BuildOptions(batch_size=BATCH))
    rates = _turns(ways, images=len(files), turns=1 if settings.quick else 2, clock=settings.clock)
    how = f"{len(files)} images, batches of {BATCH}"
    rows = [
        _row("model: bare forward pass, float32", rates["bare"], "images/s", note=how),
        _row("model: build", rates["build"], "images/s", note="list to commit"),
        _row("model: build / bare", rates["build"] / rates["bare"], aim=0.95),
        _row("model: build, batch size found / bare", rates["found"] / rates["bare"], aim=0.95),
        _row("model: plain transformers loop", rates["transformers"], "images/s"),
        _row("model: sentence-transformers encode", rates["sentences"], "images/s"),
        _row("model: build / transformers", rates["build"] / rates["transformers"], aim=2),
        _row("model: build / sentence-transformers", rates["build"] / rates["sentences"], aim=2),
    ]
    if "build half" in rates:
        best = rates["build half"]
        rows += [
            _row("model: build / bare, bfloat16", best / rates["bare half"], aim=0.95),
            _row("model: build in bfloat16 / transformers", best / rates["transformers"], aim=2),
            _row("model: build in bfloat16 / sentence-transformers", best / rates["sentences"], aim=2),
        ]
    return rows


def _fast_bfloat16() -> bool:
    """Whether the processor multiplies bfloat16 itself; otherwise it is many times slower than float32."""
    import torch

    supported: Any = torch.cpu
    return bool(supported._is_avx512_bf16_supported() or supported._is_amx_tile_supported())


def _forward(encoder: ImageEncoder, pixels: NDArray[np.uint8]) -> None:
    for start in range(0, len(pixels), BATCH):
        encoder.encode_prepared(pixels[start : start + BATCH])


def _build(folder: Path, place: Path, encoder: ImageEncoder, options: BuildOptions) -> None:
    shutil.rmtree(place, ignore_errors=True)
    build_index(folder, place, encoder=encoder, options=options)


def _transformers_loop(model: Path, files: Sequence[Path]) -> Callable[[], object]:
    """What its documentation shows: open, process, forward, a batch after the other."""
    import torch
    import transformers
    from PIL import Image

    library: Any = transformers
    clip, processor = (each.from_pretrained(model) for each in (library.CLIPModel, library.CLIPProcessor))
    clip.eval()

    def run() -> object:
        found = []
        with torch.inference_mode():
            for start in range(0, len(files), BATCH):
                images = [Image.open(file).convert("RGB") for file in files[start : start + BATCH]]
                features = clip.get_image_features(**processor(images=images, return_tensors="pt"))
                found.append(torch.nn.functional.normalize(features.pooler_output, dim=-1))
        return torch.cat(found).numpy()

    return run


class Idle:
    """An encoder whose model costs nothing: what remains is reading, decoding and writing."""

    def __init__(self) -> None:
        self.info = FakeEncoder(dim=512, image_size=224).info
        rows = np.random.default_rng(0).standard_normal((1024, 512)).astype(np.float32)
        self._rows: NDArray[np.float32] = rows / np.linalg.norm(rows, axis=1, keepdims=True)
        self._preprocess = Preprocess(size=224, mode=ResizeMode.SHORTEST_CROP)

    def prepare(self, image: bytes, /, *, draft: bool = False) -> PreparedImage:
        return self._preprocess.prepare(image)

    def encode_prepared(
        self, pixels: Sequence[NDArray[np.uint8]] | NDArray[np.uint8], /
    ) -> NDArray[np.float32]:
        return self._rows[: len(pixels)]


def _decode_bound(settings: Settings, files: list[Path]) -> list[Row]:
    encoder, workers = Idle(), os.cpu_count() or 1
    options = BuildOptions(workers=workers)

    def bare() -> None:
        with ThreadPoolExecutor(workers) as pool:
            for _ in pool.map(lambda file: encoder.prepare(file.read_bytes()), files):
                pass

    ways: Ways = {
        "bare": bare,
        "build": lambda: _build(files[0].parent, settings.work / "d", encoder, options),
    }
    rates = _turns(ways, images=len(files), turns=1 if settings.quick else 5, clock=settings.clock)
    how = f"{len(files)} images, {workers} threads, to 224 pixels"
    return [
        _row("decode: reading and decoding alone", rates["bare"], "images/s", note=how),
        _row("decode: build, model for nothing", rates["build"], "images/s"),
        _row("decode: build / decoding alone", rates["build"] / rates["bare"], aim=0.9),
    ]


def _large(settings: Settings, files: list[Path]) -> list[Row]:
    """Decoding of images enlarged to those of a camera, whole and as a large build does it."""
    from PIL import Image

    folder = settings.work / "large"
    folder.mkdir()
    for file in files:
        with Image.open(file) as image:
            image.convert("RGB").resize(LARGE).save(folder / f"{file.stem}.jpg", quality=90)
    encoder = load_encoder(settings.encoder)
    contents = [file.read_bytes() for file in sorted(folder.iterdir())]

    def rate(draft: bool) -> float:
        began = time.thread_time()
        for content in contents:
            encoder.prepare(content, draft=draft)
        return len(contents) / (time.thread_time() - began)

    rate(False)
    whole, reduced = rate(False), rate(True)
    return [
        _row("large JPEGs: decoded whole", whole, "images/s", note="one thread, processor time"),
        _row("large JPEGs: at reduced size", reduced, "images/s", note=f"{LARGE[0]} x {LARGE[1]}"),
        _row("large JPEGs: reduced / whole", reduced / whole, aim=1),
    ]


def _row(what: str, value: float, unit: str = "ratio", *, aim: float | None = None, note: str = "") -> Row:
    return Row(benchmark="ingest", what=what, value=value, unit=unit, aim=aim, better="higher", note=note)
