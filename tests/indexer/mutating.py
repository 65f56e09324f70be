"""Changes images and containers at random, and reads them.

    python tests/indexer/mutating.py --images 5000 --containers 500

Whatever the change, an image is decoded or refused with a few words, and a corpus is listed and read to its end, with a
problem where it is damaged. Batches run in processes of their own, so that a crash or an endless loop is seen and
counted. Ends with status 1 and the seeds of the batches, if ever it is not so.
"""

from __future__ import annotations

import argparse
import io
import os
import random
import shutil
import subprocess
import sys
import tarfile
import tempfile
import time
import zipfile
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
from PIL import Image

from llm2clip.encoders import FakeEncoder, ImageError
from llm2clip.encoders.images.decode import read_image
from llm2clip.indexer import build_index, open_corpus

_BATCH = 100
_PATIENCE = 600.0
SLOWEST = 10.0
"""Seconds of processor time that one input may take."""
_NUMBERS = (
    b"\0\0\0\0",
    b"\xff\xff\xff\xff",
    b"\x7f\xff\xff\xff",
    b"\xff\xff\xff\x7f",
    b"\0\0\0\1",
    b"\1\0\0\0",
)


def mutated(content: bytes, other: bytes, rng: random.Random) -> bytes:
    """A copy with some bits flipped, a number set, a part cut out, doubled or replaced by one of ``other``."""
    changed = bytearray(content)
    start, end = sorted(rng.randrange(len(changed)) for _ in range(2))
    kind = rng.randrange(6)
    if kind == 0:
        for _ in range(rng.randint(1, 12)):
            changed[rng.randrange(len(changed))] ^= 1 << rng.randrange(8)
    elif kind == 1:
        del changed[start:]
    elif kind == 2:
        for _ in range(rng.randint(1, 3)):
            place = rng.randrange(min(len(changed), 400) if rng.random() < 0.5 else len(changed))
            number = rng.choice(_NUMBERS)[: rng.choice([1, 2, 4])]
            changed[place : place + len(number)] = number
    elif kind == 3:
        changed[start:start] = changed[start:end]
    elif kind == 4:
        del changed[start:end]
    else:
        changed[start:] = other[rng.randrange(len(other)) :]
    return bytes(changed)


_ODD = (None, -1, 0, 2**70, 1.5, "", "../x", "/etc/passwd", [], {}, [[]], True, "x" * 1000, "\ud800", "a\0b")


def set_odd(content: object, rng: random.Random) -> None:
    """Replace a value of a JSON document, at any depth, by one of any type."""
    place = content
    while isinstance(place, dict | list) and place:
        key = rng.choice(list(place)) if isinstance(place, dict) else rng.randrange(len(place))
        if not isinstance(place[key], dict | list) or not place[key] or rng.random() < 0.3:
            place[key] = rng.choice(_ODD)
            return
        place = place[key]


def images() -> Iterator[bytes]:
    """Small images in every format, mode and layout that Pillow writes."""
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (48, 64, 3), dtype=np.uint8))
    exif = Image.Exif()
    exif[0x0112], exif[0x010E] = 6, "x" * 300
    layouts: list[tuple[str, dict[str, object]]] = [
        ("JPEG", {"exif": exif}),
        ("JPEG", {"progressive": True}),
        ("PNG", {"exif": exif}),
        ("WEBP", {"exif": exif}),
        ("WEBP", {"lossless": True}),
        ("GIF", {"save_all": True, "append_images": [noise.rotate(90)]}),
        ("TIFF", {}),
        ("TIFF", {"compression": "tiff_lzw"}),
        ("TIFF", {"compression": "jpeg"}),
        ("BMP", {}),
        ("AVIF", {}),
        ("JPEG2000", {}),
        ("PPM", {}),
        ("MPO", {"save_all": True, "append_images": [noise]}),
    ]
    for format, options in layouts:
        for mode in ("RGB", "L", "RGBA", "P", "CMYK", "1", "LA", "I;16"):
            buffer = io.BytesIO()
            try:
                image = noise.convert("I").convert(mode) if mode == "I;16" else noise.convert(mode)
                image.save(buffer, format, **options)
            except (OSError, ValueError, KeyError):  # a format does not have every mode
                continue
            yield buffer.getvalue()


def containers() -> Iterator[tuple[str, bytes]]:
    """A small corpus in each kind of container: name and content of its file."""
    members = {f"{n}.{kind}": _member(n, kind) for n in range(6) for kind in ("png", "txt", "json")}
    for name, format in (("u", tarfile.USTAR_FORMAT), ("g", tarfile.GNU_FORMAT), ("p", tarfile.PAX_FORMAT)):
        buffer = io.BytesIO()
        with tarfile.open(fileobj=buffer, mode="w", format=format) as tar:
            for each, content in members.items():
                info = tarfile.TarInfo(f"{'长' * (30 if format else 1)}/{each}")
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))
            odd = tarfile.TarInfo("odd.png")
            odd.pax_headers = {"size": "0", "mtime": "9" * 25, "comment": "x" * 99}
            tar.addfile(odd)
            link = tarfile.TarInfo("link.png")
            link.type, link.linkname = tarfile.SYMTYPE, "0.png"
            tar.addfile(link)
        yield f"{name}.tar", buffer.getvalue()
    for name, method in (("s", zipfile.ZIP_STORED), ("d", zipfile.ZIP_DEFLATED)):
        buffer = io.BytesIO()
        with zipfile.ZipFile(buffer, "w", method) as packed:
            for each, content in members.items():
                packed.writestr(each, content)
        yield f"{name}.zip", buffer.getvalue()
    rows = [f'"{n}.png",caption {n},{n}' for n in range(6)]
    yield "l.csv", "\n".join(["file_name,caption,number", *rows]).encode()
    yield "l.jsonl", b"\n".join(b'{"file_name": "%d.png", "caption": "c", "n": [1]}' % n for n in range(6))
    yield from _tables(members)


def _member(number: int, kind: str) -> bytes:
    if kind != "png":
        return b'{"caption": "words"}' if kind == "json" else b"words"
    buffer = io.BytesIO()
    Image.new("RGB", (8, 8), (number * 40, 9, 9)).save(buffer, "PNG")
    return buffer.getvalue()


def _tables(members: dict[str, bytes]) -> Iterator[tuple[str, bytes]]:
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ImportError:
        return
    table = pa.table({"image": [members[f"{n}.png"] for n in range(6)], "caption": ["words"] * 6})
    buffer = io.BytesIO()
    pq.write_table(table, buffer)
    yield "t.parquet", buffer.getvalue()
    buffer = io.BytesIO()
    with pa.ipc.new_file(buffer, table.schema) as writer:
        writer.write_table(table)
    yield "t.arrow", buffer.getvalue()


def attack_images(count: int, rng: random.Random) -> Counter[str]:
    """Decode so many mutated images: what became of them."""
    seeds, found = list(images()), Counter[str]()
    for _ in range(count):
        content = mutated(rng.choice(seeds), rng.choice(seeds), rng)
        try:
            with _timed(found):
                read_image(content)
            found["decoded"] += 1
        except ImageError as error:
            found["refused" if len(str(error)) < 60 else f"long reason: {error}"] += 1
        except Exception as error:
            found[f"unexpected {type(error).__name__}: {error}"] += 1
    return found


def attack_containers(count: int, rng: random.Random) -> Counter[str]:
    """List and read so many mutated containers: what became of them."""
    seeds, found = list(containers()), Counter[str]()
    with tempfile.TemporaryDirectory() as folder:
        for number in range(count):
            (name, content), (_, other) = rng.choice(seeds), rng.choice(seeds)
            file = Path(folder) / f"{number}{name}"
            file.write_bytes(mutated(content, other, rng))
            with _timed(found):
                found[_read_all(file)] += 1
            file.unlink()
            shutil.rmtree(file.with_suffix(".index"), ignore_errors=True)
    return found


def _read_all(file: Path) -> str:
    """Read a corpus, then build an index of it; says what became of it."""
    try:
        records = list(open_corpus(file).records())
    except (ValueError, OSError):
        return "not opened"
    except Exception as error:
        return f"unexpected {type(error).__name__} from {file.suffix}: {error}"
    for record in records:
        try:
            record.read()
        except Exception:
            continue
    try:
        build_index(file, file.with_suffix(".index"), encoder=FakeEncoder())
    except (ValueError, OSError):
        return "nothing in it"
    except Exception as error:
        return f"built: unexpected {type(error).__name__} from {file.suffix}: {error}"
    return "read in part" if any(record.problem for record in records) else "read"


class _timed:  # noqa: N801
    """Counts what took longer than ``SLOWEST``."""

    def __init__(self, found: Counter[str]) -> None:
        self._found, self._began = found, 0.0

    def __enter__(self) -> None:
        self._began = time.process_time()

    def __exit__(self, *_: object) -> None:
        if time.process_time() - self._began > SLOWEST:
            self._found["slow"] += 1


ATTACKS: dict[str, Callable[[int, random.Random], Counter[str]]] = {
    "images": attack_images,
    "containers": attack_containers,
}
FINE = frozenset(["decoded", "refused", "not opened", "nothing in it", "read", "read in part"])
"""All that may become of an input."""


def run(what: str, count: int, *, seed: int) -> Counter[str]:
    """An attack in batches, each in a process of its own."""
    found = Counter[str]()
    for first in range(0, count, _BATCH):
        here = min(_BATCH, count - first)
        command = [sys.executable, __file__, "--batch", what, str(here), str(seed + first)]
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=_PATIENCE, check=False)
        except subprocess.TimeoutExpired:
            found[f"endless: {' '.join(command[2:])}"] += 1
            continue
        if done.returncode:
            last = done.stderr.strip().splitlines()[-1:]
            found[f"status {done.returncode} of {' '.join(command[2:])}: {' '.join(last)}"] += 1
            continue
        for line in done.stdout.splitlines():
            number, _, outcome = line.partition(" ")
            found[outcome] += int(number)
    return found


def main() -> int:
    """Run what the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--images", type=int, default=2000)
    parser.add_argument("--containers", type=int, default=400)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--batch", nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.batch:
        what, count, seed = options.batch
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
        for outcome, number in ATTACKS[what](int(count), random.Random(int(seed))).items():
            print(number, " ".join(outcome.split()))
        return 0
    bad = 0
    for what, count in (("images", options.images), ("containers", options.containers)):
        found = run(what, count, seed=options.seed)
        wrong = sum(number for outcome, number in found.items() if outcome not in FINE)
        bad += wrong
        print(f"{count:,} mutated {what}: {wrong} wrong;", dict(found.most_common()), flush=True)
    return int(bad > 0)


if __name__ == "__main__":
    sys.exit(main())
