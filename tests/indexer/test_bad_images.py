"""Real bad and odd images, from the files to the report: bad ones are counted and listed, odd ones indexed."""

import io
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, features

from llm2clip.encoders import FakeEncoder
from llm2clip.encoders.images import guard
from llm2clip.indexer import CorpusError, build_index, open_index
from llm2clip.indexer.records import record as records_module

from .material import encoded, put

GOOD = encoded((10, 200, 30))


def saved(image: Image.Image, format: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format, **options)
    return buffer.getvalue()


def bomb() -> bytes:
    """A PNG of 20,000 by 20,000 pixels in half a megabyte."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return (
            struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))
        )

    header = struct.pack(">IIBBBBB", 20_000, 20_000, 1, 0, 0, 0, 0)
    rows = zlib.compress(b"\0" * 2501 * 20_000, 9)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


NOISE = Image.effect_noise((64, 64), 60).convert("RGB")
JPEG, PNG = saved(NOISE, "JPEG"), saved(NOISE, "PNG")
BAD = {
    "bomb.png": bomb(),
    "empty.jpg": b"",
    "noimage.jpg": b"%PDF-1.4 this is no image\n" * 20,
    "truncated.jpg": JPEG[: len(JPEG) // 2],
    "truncated.png": PNG[: len(PNG) // 2],
}
if features.check("avif"):  # its decoder raises errors of another kind than all others
    AVIF = saved(NOISE, "AVIF")
    BAD["damaged.avif"] = AVIF[: AVIF.index(b"mdat") + 4].ljust(len(AVIF), b"\xff")


def odd_images() -> dict[str, tuple[bytes, tuple[int, int]]]:
    """Images of every unusual kind, all mostly red: (content, size as shown)."""
    red = Image.new("RGB", (16, 12), (255, 0, 0))
    palette = red.quantize(4)
    exif = Image.Exif()
    exif[0x0112] = 6  # to be shown turned by a quarter
    frames = [red, Image.new("RGB", (16, 12), (0, 0, 255))]
    deep = Image.fromarray(np.full((12, 16), 65535, np.uint16))
    return {
        "animated.gif": (saved(frames[0], "GIF", save_all=True, append_images=frames[1:]), (16, 12)),
        "animated.webp": (saved(frames[0], "WEBP", save_all=True, append_images=frames[1:]), (16, 12)),
        "cmyk.jpg": (saved(red.convert("CMYK"), "JPEG"), (16, 12)),
        "exif.jpg": (saved(red, "JPEG", exif=exif), (12, 16)),
        "palette.png": (saved(palette, "PNG"), (16, 12)),
        "rgba.png": (saved(red.convert("RGBA"), "PNG"), (16, 12)),
        "sixteen.png": (saved(deep, "PNG"), (16, 12)),
    }


def test_build_index_lists_bad_images_of_a_folder(tmp_path, encoder):
    corpus = put(tmp_path / "corpus", {**BAD, "good.png": GOOD})
    report = build_index(corpus, tmp_path / "i", encoder=encoder)
    assert (report.items, report.bad) == (1, len(BAD))
    reasons = {bad.key: bad.reason for bad in report.bad_images}
    assert list(reasons) == sorted(BAD)
    assert reasons["empty.jpg"] == "the file is empty"
    for key, hint in [("bomb.png", "pixel"), ("truncated.jpg", "truncated"), ("noimage.jpg", "")]:
        assert hint in reasons[key]
        assert "\n" not in reasons[key]
    with open_index(tmp_path / "i") as index:
        assert index.info().bad == len(BAD)
        assert [(row.key, row.stage, row.reason) for row in index.errors()] == [
            (key, "decode", reason) for key, reason in reasons.items()
        ]
        assert [row.key for row in index.errors(limit=2)] == sorted(BAD)[:2]
        assert index.verify().ok


def test_build_index_indexes_odd_images_as_shown(tmp_path, encoder):
    odd = odd_images()
    corpus = put(tmp_path / "corpus", {name: content for name, (content, _) in odd.items()})
    report = build_index(corpus, tmp_path / "i", encoder=encoder)
    assert (report.items, report.bad_images) == (len(odd), ())
    with open_index(tmp_path / "i") as index:
        hits = index.search(encoder.encode_texts(["red"]), k=len(odd))[0]
        assert {hit.key: (hit.width, hit.height) for hit in hits} == {
            key: size for key, (_, size) in odd.items()
        }
        scores = {hit.key: hit.score for hit in hits}
        # CMYK red is not quite red, and sixteen-bit white is not red at all.
        assert scores.pop("sixteen.png") < 0.5
        assert min(scores.values()) > 0.8


def test_build_index_retries_bad_images_only_if_changed(tmp_path):
    corpus = put(tmp_path / "corpus", {**BAD, "good.png": GOOD})
    tried: list[int] = []

    class Watching(FakeEncoder):
        def _prepare(self, image, *, draft):
            tried.append(len(image))
            return super()._prepare(image, draft=draft)

    build_index(corpus, tmp_path / "i", encoder=Watching())
    assert len(tried) == len(BAD)  # the good one too; the empty one is not shown to the encoder
    again = build_index(corpus, tmp_path / "i", encoder=Watching())
    assert (again.up_to_date, again.bad) == (True, len(BAD))
    assert [bad.key for bad in again.bad_images] == sorted(BAD)
    (corpus / "another.png").write_bytes(encoded((1, 1, 1)))
    (corpus / "truncated.jpg").write_bytes(JPEG)
    report = build_index(corpus, tmp_path / "i", encoder=Watching())
    assert len(tried) == len(BAD) + 2
    assert (report.items, report.embedded, report.bad) == (3, 2, len(BAD) - 1)


def test_build_index_retries_images_without_permission(tmp_path, encoder, monkeypatch):
    """Tests may run as root, whom no permission stops: the refusal is simulated."""
    corpus = put(tmp_path / "corpus", {"a.png": GOOD, "locked.png": encoded((1, 2, 3))})
    read = records_module.read_whole

    def guarded(path: Path) -> bytes:
        if path.name == "locked.png":
            raise PermissionError(13, "Permission denied", str(path))
        return read(path)

    with monkeypatch.context() as patch:
        patch.setattr(records_module, "read_whole", guarded)
        report = build_index(corpus, tmp_path / "i", encoder=encoder)
    assert [(bad.key, bad.reason) for bad in report.bad_images] == [("locked.png", "Permission denied")]
    report = build_index(corpus, tmp_path / "i", encoder=encoder)
    assert (report.items, report.bad, report.embedded) == (2, 0, 1)


def test_build_index_lists_images_that_vanish(tmp_path, encoder, monkeypatch):
    corpus = put(tmp_path / "corpus", {"a.png": GOOD, "b.png": encoded((1, 2, 3))})
    read = records_module.Record.read

    def vanishing(record):
        if record.key == "b.png":
            record.file.unlink(missing_ok=True)
        return read(record)

    monkeypatch.setattr(records_module.Record, "read", vanishing)
    report = build_index(corpus, tmp_path / "i", encoder=encoder)
    assert [(bad.key, bad.reason) for bad in report.bad_images] == [("b.png", "No such file or directory")]


def test_build_index_notes_skipped_images(tmp_path, encoder):
    files = {"a.jpe": JPEG, "b.jfif": JPEG, "c.jxl": b"x", "d.JXL": b"x", "e.jxl": b"x"}
    corpus = put(tmp_path / "corpus", files)
    for up_to_date in (False, True):
        report = build_index(corpus, tmp_path / "i", encoder=encoder)
        assert (report.items, report.bad, report.up_to_date) == (2, 0, up_to_date)
        assert report.notes == (
            "3 images of unsupported types skipped (3 .jxl): convert them to JPEG to index them",
        )


def test_build_index_refuses_a_corpus_without_readable_images(tmp_path, encoder):
    corpus = put(tmp_path / "corpus", BAD)
    with pytest.raises(CorpusError) as failure:
        build_index(corpus, tmp_path / "i", encoder=encoder)
    assert str(failure.value).startswith(f"none of the images in {corpus} can be read (bomb.png: ")
    assert "empty.jpg: the file is empty" in str(failure.value)
    assert not (tmp_path / "i").exists()


def test_build_index_lists_metadata_problems(tmp_path, encoder):
    corpus = put(tmp_path / "corpus", {"a.png": GOOD, "a.json": b"{"})
    report = build_index(corpus, tmp_path / "i", encoder=encoder)
    assert (report.items, report.bad) == (1, 0)
    said = "captions or metadata of 1 image were left out: llm2clip-index errors says why"
    assert report.notes == (said,)
    with open_index(tmp_path / "i") as index:
        [error] = index.errors()
        assert (error.key, error.stage) == ("a.png", "sidecar")
        assert index.verify().ok
    assert build_index(corpus, tmp_path / "i", encoder=encoder).up_to_date


def test_build_index_tries_an_image_again_that_memory_was_too_short_for(tmp_path, encoder):
    corpus = put(tmp_path / "corpus", {"a.png": GOOD, "large.png": encoded((1, 2, 3))})

    class Short(FakeEncoder):
        def _prepare(self, image, *, draft):
            if image != GOOD:
                raise MemoryError
            return super()._prepare(image, draft=draft)

    report = build_index(corpus, tmp_path / "i", encoder=Short())
    reason = "not enough memory to decode it: the next build or update tries again"
    assert [(bad.key, bad.reason) for bad in report.bad_images] == [("large.png", reason)]
    report = build_index(corpus, tmp_path / "i", encoder=encoder)
    assert (report.items, report.bad, report.embedded) == (2, 0, 1)


def test_build_index_refuses_hostile_images_and_goes_on(tmp_path, encoder, monkeypatch):
    monkeypatch.setattr(guard, "SECONDS", 1)
    tiff = saved(NOISE, "TIFF")
    scans = saved(Image.new("L", (2000, 2000), 128), "JPEG", progressive=True)
    last, end = scans.rfind(b"\xff\xda"), scans.rfind(b"\xff\xd9")
    scans = scans[:end] + scans[last:end] * 100_000 + scans[end:]
    corpus = put(tmp_path / "corpus", {"a.png": GOOD, "scans.jpg": scans, "z.tif": tiff})
    report = build_index(corpus, tmp_path / "i", encoder=encoder)
    assert report.items == 2
    assert [(bad.key, bad.reason) for bad in report.bad_images] == [
        ("scans.jpg", "takes more than 1 s to decode")
    ]
    assert build_index(corpus, tmp_path / "i", encoder=encoder).up_to_date
