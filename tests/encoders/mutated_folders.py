"""Folders of encoders as a stranger may make them: changed at random, with files that are none."""

from __future__ import annotations

import io
import json
import os
import random
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from llm2clip.encoders import load_encoder

from ..indexer.mutating import mutated, set_odd
from .conftest import tiny_parts
from .test_families import build


def folders(work: Path) -> list[Path]:
    """An encoder of our own format and one of transformers; made once in a folder."""
    ours, other = work / "encoders" / "ours", work / "encoders" / "clip"
    if not ours.exists():
        tiny_parts().save(ours)
        torch.manual_seed(0)
        for part in build("clip"):
            part.save_pretrained(other)
    return [ours, other]


def _change(file: Path, rng: random.Random) -> None:
    """Replace a file, which may be a hard link, by a changed copy or by something else."""
    content = file.read_bytes()
    file.unlink()
    kind = rng.random()
    if kind < 0.1:
        rng.choice([os.mkfifo, os.mkdir, lambda path: os.symlink("/dev/zero", path)])(file)
    elif kind < 0.5:
        file.write_bytes(mutated(content, rng.randbytes(500), rng))
    elif file.suffix == ".json":
        found = json.loads(content)
        set_odd(found, rng)
        file.write_text(json.dumps(found))
    else:
        size = int.from_bytes(content[:8], "little")
        header = json.loads(content[8 : 8 + size])
        set_odd(header, rng)
        text = json.dumps(header).encode()
        file.write_bytes(len(text).to_bytes(8, "little") + text + content[8 + size :])


def hostile_encoders(work: Path, rng: random.Random) -> Iterator[str]:
    """An encoder with a changed file is loaded and used, or refused in one line."""
    origin, folder = rng.choice(folders(work)), work / "encoder"
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(origin, folder, copy_function=os.link)
    file = rng.choice(sorted(folder.iterdir()))
    _change(file, rng)
    buffer = io.BytesIO()
    Image.new("RGB", (20, 30), (200, 10, 10)).save(buffer, "PNG")
    try:
        encoder = load_encoder(folder)
        rows = np.concatenate([encoder.encode_texts(["a dog"]), encoder.encode_images([buffer.getvalue()])])
    except (ValueError, OSError) as error:
        yield "refused" if str(error).count("\n") < 6 else f"{file.name}: many lines: {error}"
    except Exception as error:
        yield f"{origin.name} {file.name}: traceback {type(error).__name__}: {error}"[:300]
    else:
        fine = bool(np.isfinite(rows).all()) and np.allclose(np.linalg.norm(rows, axis=1), 1, atol=1e-3)
        yield "answered" if fine else f"{origin.name} {file.name}: no unit rows"
