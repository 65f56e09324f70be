"""Costly images are decoded in processes with a budget; valid images that Pillow refuses are read all the same."""

from __future__ import annotations

import struct
import subprocess
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageCms

from llm2clip.encoders import ImageError
from llm2clip.encoders.images import guard
from llm2clip.encoders.images.cost import is_cheap
from llm2clip.encoders.images.decode import decode_here, read_image
from llm2clip.encoders.images.preprocess import Preprocess, ResizeMode

from .image_files import chunk, corners, png, saved

NOISE = Image.fromarray(np.random.default_rng(0).integers(0, 256, (48, 64, 3), dtype=np.uint8))
ORDINARY = {
    "baseline": saved(NOISE, "JPEG"),
    "progressive": saved(NOISE, "JPEG", progressive=True),
    "png": saved(NOISE, "PNG"),
    "gif": saved(NOISE, "GIF"),
    "webp": saved(NOISE, "WEBP"),
    "lossless": saved(NOISE, "WEBP", lossless=True),
    "transparent": saved(NOISE.convert("RGBA"), "WEBP", exif=b"Exif\0\0II*\0\x08\0\0\0\0\0\0\0\0\0"),
    "bmp": saved(NOISE, "BMP"),
    "none": b"<html>not found</html>",
}
COSTLY = {"TIFF": "TIFF", "JPEG2000": "JPEG2000", "PPM": "PPM"}
linux = pytest.mark.skipif(sys.platform != "linux", reason="memory is limited on Linux")


def scans(times: int, side: int = 2000) -> bytes:
    """A progressive JPEG whose last scan comes so many times."""
    data = saved(Image.new("L", (side, side), 128), "JPEG", progressive=True, quality=50)
    first, end = data.rfind(b"\xff\xda"), data.rfind(b"\xff\xd9")
    return data[:end] + data[first:end] * times + data[end:]


def strips(count: int) -> bytes:
    """A TIFF, one pixel wide, in so many strips."""
    entries = [(256, 1), (257, count), (258, 8), (259, 1), (262, 1), (277, 1), (278, 1)]
    tables = 16 + 2 + 9 * 12 + 4
    rows = [struct.pack("<HHII", tag, 4, 1, value) for tag, value in entries]
    rows.insert(5, struct.pack("<HHII", 273, 4, count, tables))
    rows.append(struct.pack("<HHII", 279, 4, count, tables + 4 * count))
    head = b"II*\0" + struct.pack("<I", 16) + b"\0" * 8 + struct.pack("<H", 9) + b"".join(rows) + b"\0" * 4
    return head + struct.pack("<I", 8) * count + struct.pack("<I", 1) * count


@pytest.fixture
def no_process(monkeypatch: pytest.MonkeyPatch) -> None:
    def run(*_: object) -> None:
        raise AssertionError("a process was used")

    monkeypatch.setattr(guard._POOL, "run", run)


@pytest.mark.parametrize("name", ORDINARY)
def test_ordinary_images_are_decoded_in_this_process(name: str, no_process: None):
    if name == "none":
        with pytest.raises(ImageError, match=r"^not an image$"):
            read_image(ORDINARY[name])
    else:
        assert read_image(ORDINARY[name]).size == (64, 48)


@pytest.mark.parametrize(
    "content",
    [
        scans(3000),
        saved(NOISE, "TIFF"),
        saved(NOISE, "PPM"),
        saved(NOISE, "JPEG2000"),
        png(8000, 8000, depth=8, colour=6, rows=b""),
        ORDINARY["png"][:33] + chunk(b"abCd", b"") * 10_000 + ORDINARY["png"][33:],
        b"\xff\xd8\xff\xe0\0\x02" + b"\xff" * 10_000,
        b"\xff\xd8" + b"\xff\xe1\0\x02" * 10_000,
        b"\0\0\0\x20ftypavif" + b"\0" * 99,
        ORDINARY["bmp"][:30] + b"\1" + ORDINARY["bmp"][31:],
        ORDINARY["gif"] + b"\0" * 2**18,
    ],
    ids=["scans", "TIFF", "PPM", "JPEG 2000", "large", "chunks", "fill", "segments", "AVIF", "RLE", "GIF"],
)
def test_other_images_are_not_cheap(content: bytes):
    assert not is_cheap(content)


@pytest.mark.parametrize("format", COSTLY)
def test_processes_give_the_same_pixels(format: str):
    data = saved(NOISE, format)
    assert read_image(data).tobytes() == decode_here(data).image.tobytes()
    preprocess = Preprocess(size=16, mode=ResizeMode.PAD_SQUARE)
    found, expected = preprocess.prepare(data), preprocess.prepare(decode_here(data).image)
    assert np.array_equal(found.pixels, expected.pixels)
    assert (found.width, found.height) == (64, 48)


def test_an_image_that_takes_too_long_is_refused(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(guard, "SECONDS", 1)
    with pytest.raises(ImageError, match=r"^takes more than 1 s to decode$"):
        read_image(scans(100_000))
    assert read_image(saved(NOISE, "TIFF")).size == (64, 48)


@linux
def test_an_image_that_takes_too_much_memory_is_refused(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(guard, "MEMORY", 100 * 2**20)
    with pytest.raises(ImageError, match=r"^takes more than .* of memory to decode$"):
        read_image(strips(2_000_000))


@linux
def test_blending_a_large_image_takes_little_more_than_the_image(monkeypatch: pytest.MonkeyPatch):
    side = 4000  # 64 MB as RGBA, and 64 MB as Pillow keeps RGB
    data = saved(Image.new("RGBA", (side, side), (200, 0, 0, 0)), "PNG", compress_level=1)
    monkeypatch.setattr(guard, "MEMORY", 250 * 2**20)
    preprocess = Preprocess(size=16, mode=ResizeMode.PAD_SQUARE)
    assert preprocess.prepare(data).pixels.min() == 255


@pytest.mark.parametrize(
    ("program", "error", "words"),
    [
        (b"import os; os.abort()", ImageError, "^damaged file: its decoder crashed$"),
        (
            b"import os; os.kill(os.getpid(), 9)",
            MemoryError,
            "ended",
        ),  # what the system does if memory is short
        (
            b"import time; time.sleep(99)",
            MemoryError,
            "ended",
        ),  # what never happens where time can be limited
        (b"raise MemoryError", ImageError, "of memory"),
        (b"print(1 / 0)", RuntimeError, "^ZeroDivisionError: division by zero$"),
    ],
)
def test_a_decoder_may_end_in_any_way(
    program: bytes, error: type[Exception], words: str, monkeypatch: pytest.MonkeyPatch
):
    with monkeypatch.context() as patch:
        patch.setattr(guard, "_PATIENCE", 1.0 if b"sleep" in program else 60.0)
        for _ in range(2):
            with pytest.raises(error, match=words):
                guard.decode_apart(exec, b"P = print(); " + program)  # type: ignore[arg-type]
    assert read_image(saved(NOISE, "TIFF")).size == (64, 48)


@linux
def test_a_limit_of_the_user_is_a_shortage(tmp_path: Path):
    """A process that may use less than an image may: memory is short, the image is not to blame."""
    (tmp_path / "large.png").write_bytes(saved(Image.new("RGB", (4000, 4000)), "PNG", compress_level=1))
    script = (
        "import resource, sys\n"
        "from llm2clip.encoders.images.decode import read_image\n"
        "used = int(open('/proc/self/statm').read().split()[0]) * resource.getpagesize()\n"
        "resource.setrlimit(resource.RLIMIT_AS, (used + 2**25, resource.RLIM_INFINITY))\n"
        "try: read_image(sys.argv[1])\n"
        "except MemoryError: print('short')\n"
    )
    command = [sys.executable, "-c", script, str(tmp_path / "large.png")]
    assert subprocess.run(command, capture_output=True, text=True, check=True).stdout == "short\n"


def test_processes_start_from_a_script_without_a_main_guard(tmp_path: Path):
    (tmp_path / "a.tif").write_bytes(saved(NOISE, "TIFF"))
    script = tmp_path / "script.py"
    script.write_text(
        "import os\nfrom llm2clip.encoders.images.decode import read_image\n"
        "print(read_image('a.tif').size)\n"
        "child = os.fork()\nif not child: print(read_image('a.tif').size)\nelse: os.waitpid(child, 0)\n"
    )
    done = subprocess.run([sys.executable, script], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert (done.stdout.splitlines()[-2:], done.stderr) == (["(64, 48)", "(64, 48)"], "")


def with_chunk(*chunks: bytes) -> bytes:
    data = saved(corners(), "PNG")
    return data[:33] + b"".join(chunks) + data[33:]


LONG = zlib.compress(b"x" * (3 * 2**20))
PROFILE = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()


@pytest.mark.parametrize(
    "data",
    [
        with_chunk(chunk(b"zTXt", b"workflow\0\0" + LONG)),
        with_chunk(chunk(b"iTXt", b"XML:com.adobe.xmp\0\1\0\0\0" + LONG)),
        with_chunk(chunk(b"iCCP", b"icc\0\0" + zlib.compress(PROFILE + b"\0" * 2**21))),
        with_chunk(chunk(b"tEXt", b"Title\0x")[:-1] + b"\0"),
        saved(corners(), "PNG")[:-12] + chunk(b"zTXt", b"late\0\0" + LONG) + chunk(b"IEND", b""),
    ],
    ids=["text", "XMP", "profile", "checksum", "after the pixels"],
)
def test_metadata_is_no_reason_to_refuse_a_png(data: bytes):
    assert np.array_equal(np.asarray(read_image(data)), np.asarray(corners()))


def test_a_png_with_a_damaged_pixel_chunk_is_refused():
    data = bytearray(saved(NOISE, "PNG"))
    data[data.index(b"IDAT") + 10] ^= 1
    with pytest.raises(ImageError, match=r"^(damaged|truncated) file$"):
        read_image(bytes(data))


@pytest.mark.parametrize("progressive", [False, True])
def test_a_jpeg_without_its_end_mark_is_read_and_a_truncated_one_is_not(progressive: bool):
    data = saved(NOISE, "JPEG", progressive=progressive, subsampling=0, quality=95)
    assert read_image(data[:-2]).tobytes() == read_image(data).tobytes()
    for missing in (5, 20, 100, 1000):
        with pytest.raises(ImageError, match=r"^truncated file$"):
            read_image(data[:-missing])


def test_a_large_jpeg_without_its_end_mark_is_read_as_a_draft():
    data = saved(NOISE.resize((640, 480)), "JPEG")
    preprocess = Preprocess(size=16, mode=ResizeMode.PAD_SQUARE)
    found, expected = (preprocess.prepare(each, draft=True).pixels for each in (data[:-2], data))
    assert np.array_equal(found, expected)


def test_read_image_reads_files_of_limited_size(tmp_path: Path):
    with open(tmp_path / "sparse.jpg", "wb") as stream:
        stream.truncate(256 * 2**20 + 1)
    with pytest.raises(ImageError, match=r"^more than 268,435,456 bytes$"):
        read_image(tmp_path / "sparse.jpg")
