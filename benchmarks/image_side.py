"""What the image side of each baseline costs beside its bare tower, and beside transformers' own way, on one thread.

Random weights at published widths; towers are cut to a few layers, which makes what we add weigh more, not less.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from benchmarks.measuring import Row, Settings

FAMILIES = ("clip", "siglip", "siglip2", "metaclip2", "chinese-clip", "altclip", "eva02-clip")
"""Long-CLIP has the image tower of CLIP."""
TOWERS = {
    "clip": (768, 12, 32, 224),
    "siglip": (768, 12, 16, 224),
    "siglip2": (768, 12, 32, 256),
    "metaclip2": (768, 12, 32, 224),
    "chinese-clip": (768, 12, 16, 224),
    "altclip": (1024, 16, 14, 224),
    "eva02-clip": (768, 12, 16, 224),
}
"""Width, heads, patch and image of the smallest published one."""
IMAGE = (500, 375)
"""Of the images that are prepared, in pixels: as in Flickr30k."""
BATCH, LAYERS = 16, 4


def measure(settings: Settings) -> list[Row]:
    """Run in a process of its own, since the number of threads is set for good."""
    clock = settings.clock.__name__
    layers, batch = ("1", "4") if settings.quick else (str(LAYERS), str(BATCH))
    command = [sys.executable, "-m", "benchmarks.image_side", str(settings.times(9)), clock, layers, batch]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    found = json.loads(done.stdout.splitlines()[-1])
    rows = []
    for family, times in found.items():
        how = f"{layers} layers, {batch} images, {1000 * times['ours'] / int(batch):.1f} ms each"
        bare = times["bare"] / times["ours"]
        rows.append(_row(f"{family}: prepared pixels, to the bare tower", bare, aim=0.9, note=how))
        if "theirs" in times:
            ratio = times["theirs"] / times["whole"]
            rows.append(_row(f"{family}: images, to transformers' way", ratio, aim=1.0, note=how))
    return rows


def _row(what: str, value: float, *, aim: float, note: str) -> Row:
    return Row(benchmark="images", what=what, value=value, unit="ratio", aim=aim, better="higher", note=note)


def _run(times: int, clock: Callable[[], float], layers: int, batch: int) -> dict[str, dict[str, float]]:
    """Seconds of each way by family, the least of several turns each; the ways take turns."""
    import torch

    torch.set_num_threads(1)
    found = {}
    for family in FAMILIES:
        ways = _eva02(layers, batch) if family == "eva02-clip" else _transformers(family, layers, batch)
        spent: dict[str, list[float]] = {way: [] for way in ways}
        for _ in range(times + 1):
            for way, call in ways.items():
                began = clock()
                call()
                spent[way].append(clock() - began)
        found[family] = {way: min(seconds[1:]) for way, seconds in spent.items()}
        print(family, found[family], file=sys.stderr, flush=True)
    return found


def _images(batch: int) -> list[Any]:
    import numpy as np
    from PIL import Image

    rng = np.random.default_rng(0)
    size = (IMAGE[1], IMAGE[0], 3)
    return [Image.fromarray(rng.integers(0, 256, size, dtype=np.uint8)) for _ in range(batch)]


def _ours(tower: Any, preprocess: Any, dim: int, images: list[Any]) -> dict[str, Callable[[], object]]:  # noqa: ANN401
    """The ways that need none of transformers' models."""
    import numpy as np
    import torch

    from llm2clip.encoders.core.base import EncoderInfo
    from llm2clip.encoders.core.dual_encoder import DualEncoder
    from llm2clip.encoders.images.preprocess import PixelTower

    side = PixelTower(lambda: tower, preprocess=preprocess, dtype=torch.float32, device=torch.device("cpu"))
    info = EncoderInfo(
        name="random",
        family="random",
        dim=dim,
        image_size=preprocess.size,
        max_text_tokens=0,
        weights_sha256="",
        settings_sha256="",
        preprocessing=preprocess.identifier,
        parameters=0,
        languages=(),
        licence="",
        note="",
    )
    texts: Any = None
    encoder = DualEncoder(side, texts, describe=lambda: info)
    pixels = np.stack([encoder.prepare(image).pixels for image in images])
    normalised = side.normalised(pixels).contiguous()

    def bare() -> object:
        with torch.inference_mode():
            return tower(normalised)

    return {
        "ours": lambda: encoder.encode_prepared(pixels),
        "bare": bare,
        "whole": lambda: encoder.encode_images(images, batch_size=len(images)),
    }


def _transformers(family: str, layers: int, batch: int) -> dict[str, Callable[[], object]]:
    import torch
    import transformers

    from llm2clip.encoders.baselines.hf_dual import VisionTower
    from llm2clip.encoders.baselines.hf_families import FAMILIES as KNOWN
    from llm2clip.encoders.layers.transformers_modules import replace_quick_gelu

    known = KNOWN[family]
    width, heads, patch, size = TOWERS[family]
    blocks = {
        "hidden_size": width,
        "intermediate_size": 4 * width,
        "num_attention_heads": heads,
        "num_hidden_layers": layers,
    }
    few = {"hidden_size": width, "intermediate_size": 8, "num_attention_heads": 1, "num_hidden_layers": 1}
    ends = {"vocab_size": 8, "bos_token_id": None, "eos_token_id": 1, "pad_token_id": 0}
    config = getattr(transformers, f"{known.classes}Config")(
        text_config={**few, **ends}, vision_config={**blocks, "image_size": size, "patch_size": patch}
    )
    model = getattr(transformers, f"{known.classes}Model")(config).eval().requires_grad_(False)
    tower = replace_quick_gelu(VisionTower(known, config))
    tower.load_state_dict({name: model.state_dict()[name] for name in tower.state_dict()})
    square = {"height": size, "width": size}
    if known.images.mode == "squash":
        kind = "ChineseCLIP" if family == "chinese-clip" else "Siglip"
        options: dict[str, Any] = {"size": square, "do_center_crop": False}
        options["resample"] = {"bicubic": 3, "bilinear": 2}[known.images.resample]
    else:
        kind, options = "CLIP", {"size": {"shortest_edge": size}, "crop_size": square}
    processor = getattr(transformers, f"{kind}ImageProcessorPil")(**options)
    images = _images(batch)

    def theirs() -> object:
        with torch.inference_mode():
            pixels = processor(images=images, return_tensors="pt")["pixel_values"]
            vectors = model.get_image_features(pixel_values=pixels).pooler_output
            return torch.nn.functional.normalize(vectors, dim=-1).numpy()

    preprocess = replace(known.images, size=size)
    dim = config.projection_dim if known.projected else width
    tower.eval().requires_grad_(False)
    return {**_ours(tower, preprocess, dim, images), "theirs": theirs}


def _eva02(layers: int, batch: int) -> dict[str, Callable[[], object]]:
    from llm2clip.encoders.baselines.hf_families import FAMILIES as KNOWN
    from llm2clip.encoders.layers.eva02 import Eva02Config, Eva02Tower

    width, heads, patch, size = TOWERS["eva02-clip"]
    shape = Eva02Config(
        image_size=size,
        patch_size=patch,
        width=width,
        depth=layers,
        heads=heads,
        hidden=int(width * 2.6667),
        dim=512,
    )
    tower = Eva02Tower(shape).eval().requires_grad_(False)
    return _ours(tower, replace(KNOWN["clip"].images, size=size), 512, _images(batch))


if __name__ == "__main__":
    times, clock, layers, batch = sys.argv[1:]
    print(json.dumps(_run(int(times), getattr(time, clock), int(layers), int(batch))))
