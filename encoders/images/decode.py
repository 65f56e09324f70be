"""Decode untrusted images: any common format in, upright 8-bit RGB on white out.

Reasons for refusing an image are a few words, because they end up in a list of hundreds.
"""

from __future__ import annotations

import os
import struct
import zlib
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial
from io import BytesIO
from typing import IO

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFile, JpegImagePlugin

from llm2clip.encoders.core.errors import ImageError
from llm2clip.encoders.core.image_source import ImageSource
from llm2clip.encoders.images.cost import JPEG, PNG, is_cheap, pixels_only
from llm2clip.encoders.images.guard import Decoded, decode_apart
from llm2clip.encoders.images.raw import Preview, is_raw, read_preview

MAX_PIXELS = 64_000_000
"""Images of more pixels are refused by their header, before anything is decoded."""

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF", "JPEG2000", "PPM", "HEIF")
"""Formats that are read, known by their signatures; HEIF (HEIC) with the extra ``heic``, and besides them raw files of
cameras with ``raw``. No EPS (it starts a program) and nothing rare: every parser is attack surface."""

# What Pillow's parsers raise on damaged data; RuntimeError comes from AVIF. Warnings are listed for processes that turn
# them into errors. MemoryError is not among them: what a file may ask for is bounded, so the machine is short of it.
_PARSE_ERRORS = (
    OSError,
    ValueError,
    SyntaxError,
    EOFError,
    IndexError,
    KeyError,
    TypeError,
    AttributeError,
    ArithmeticError,
    RuntimeError,
    struct.error,
    zlib.error,
    Warning,
    Image.DecompressionBombError,
)

_HEIF_BRANDS = frozenset(b"heic heix heim heis hevc hevx hevm hevs mif1 msf1".split())

_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""EXIF orientation -> what undoes it."""
_TURNED = (5, 6, 7, 8)
"""EXIF orientations in which width and height change places."""
_ORIENTATION = 0x0112


MAX_BYTES = 256 * 2**20
"""Larger files are not read."""
_STRIP = 2**20
"""Pixels that are blended at once."""
_END = b"\xff\xd9"


def read_image(source: ImageSource, *, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """Decode an image: first frame, upright, 8 bits per channel, blended over white. Thread-safe.

    16-bit grey is scaled to 8 bits, not clipped; integers and floats without a defined range (TIFF) are stretched
    from their smallest to their largest value. ``ImageError`` says the reason in a few words; ``MemoryError``: memory
    is short at present.
    """
    return decode(source, max_pixels=max_pixels)[0]


def decode(
    source: ImageSource, *, draft: int = 0, max_pixels: int = MAX_PIXELS
) -> tuple[Image.Image, int, int]:
    """Decode an image, and give width and height of the original in pixels. Thread-safe.

    A JPEG is decoded at 1/2, 1/4 or 1/8 of its size if its shorter side keeps ``draft`` pixels; the decoder averages
    blocks, so nothing aliases.
    """
    return decode_by(partial(decode_here, draft=draft, max_pixels=max_pixels), source, max_pixels=max_pixels)


def decode_by(
    work: Callable[[bytes | Image.Image], Decoded], source: ImageSource, *, max_pixels: int
) -> Decoded:
    """What ``work``, which can be pickled, makes of an image; in a process of its own if the image may be costly."""
    content = _content_of(source, max_pixels)
    if isinstance(content, Image.Image) or is_cheap(content):
        return work(content)
    return decode_apart(work, content)


def _content_of(source: ImageSource, max_pixels: int) -> bytes | Image.Image:
    """The encoded image, read from its file if there is one; an array, or an image of Pillow, as such an image."""
    if isinstance(source, np.ndarray):
        return _from_array(source, max_pixels)
    if isinstance(source, bytes | Image.Image):
        return source
    if not isinstance(source, str | os.PathLike):
        raise ImageError(f"expected a path, bytes, a PIL image or an array, got {type(source).__name__}")
    try:
        with open(source, "rb") as stream:
            content = stream.read(MAX_BYTES + 1)
    except IsADirectoryError as error:
        raise ImageError("a folder, not a file") from error
    except OSError as error:
        raise ImageError((error.strerror or str(error)).lower()) from error
    if len(content) > MAX_BYTES:
        raise ImageError(f"more than {MAX_BYTES:,} bytes")
    return content


def decode_here(
    source: bytes | Image.Image, *, upright: bool = True, draft: int = 0, max_pixels: int = MAX_PIXELS
) -> Decoded:
    """Decode an image in this process, whatever it costs.

    Without ``upright`` the first frame is given in the stored mode and orientation.
    """
    if isinstance(source, Image.Image):
        return _load(source, upright, 0, max_pixels)
    if is_raw(source) and (preview := read_preview(source)) is not None:
        return _of_preview(preview, upright, max_pixels)
    try:
        return _decoded(source, upright, draft, max_pixels)
    except ImageError as error:
        # Valid images that Pillow refuses: large or damaged metadata, a missing end mark.
        if source.startswith(PNG) and len(less := pixels_only(source)) < len(source):
            return _decoded(less, upright, draft, max_pixels)
        if source.startswith(JPEG) and str(error) == "truncated file" and _END not in source[-64:]:
            return _without_end(source, upright, draft, max_pixels)
        raise


def _of_preview(preview: Preview, upright: bool, max_pixels: int) -> Decoded:
    """The preview of a raw file; width and height are those of the photograph."""
    width, height, own = preview.width, preview.height, 1
    if isinstance(preview.image, Image.Image):
        image = _load(preview.image, upright, 0, max_pixels).image
    else:
        image = _decoded(preview.image, upright, 0, max_pixels).image
        with BytesIO(preview.image) as stream, _open(stream) as stored:
            own = _orientation(stored)
    turn = preview.orientation if own == 1 else own
    if upright and own == 1 and turn in _TURNS:
        image = image.transpose(_TURNS[turn])
    return Decoded(image, height, width) if upright and turn in _TURNED else Decoded(image, width, height)


def _decoded(content: bytes, upright: bool, draft: int, max_pixels: int) -> Decoded:
    try:
        with BytesIO(content) as stream, _open(stream) as image:
            return _load(image, upright, draft, max_pixels)
    except OSError as error:
        raise ImageError((error.strerror or str(error)).lower()) from error


def _without_end(content: bytes, upright: bool, draft: int, max_pixels: int) -> Decoded:
    """Decode a JPEG without its end mark, if no pixel is missing: then no pixel depends on what would follow."""
    found = None
    for more in (b"\x00", b"\x55", b"\xaa"):
        again = _decoded(content + more * 256 + _END, upright, draft, max_pixels)
        if found is not None and again.image.tobytes() != found.image.tobytes():
            raise ImageError("truncated file")
        found = again
    assert found is not None
    return found


def to_rgb(image: Image.Image) -> Image.Image:
    """RGB as Pillow makes it: transparency dropped, 16 bits cut off at 255."""
    try:
        return image if image.mode == "RGB" else image.convert("RGB")
    except _PARSE_ERRORS as error:
        raise ImageError(f"cannot be converted to RGB from {image.mode}") from error


def _open(stream: IO[bytes]) -> ImageFile.ImageFile:
    """Parse the header of an image; nothing is decoded yet.

    ``Image.open`` is not used: it warns of large images through a filter that is global to the process,
    and tries every format it knows.
    """
    Image.init()
    prefix = stream.read(16)
    if not prefix:
        raise ImageError("empty file")
    heif = prefix[4:8] == b"ftyp" and prefix[8:12] in _HEIF_BRANDS
    if heif and "HEIF" not in Image.OPEN:
        _register_heif()
    failure: ImageError | None = None
    for name in FORMATS:
        # AVIF is missing where Pillow was built without its library.
        factory, accepts = Image.OPEN.get(name, (None, None))
        # Padded, because some of these functions index into it.
        if factory is None or accepts is None or accepts(prefix.ljust(16, b"\0")) is not True:
            continue
        stream.seek(0)
        try:
            return factory(stream, "")
        except _PARSE_ERRORS as error:
            failure = failure or ImageError(f"damaged or truncated {name} header")
            failure.__cause__ = failure.__cause__ or error
            if not heif:  # some signatures are shared by AVIF and HEIC
                break
    if heif and "HEIF" not in Image.OPEN:
        raise ImageError("HEIC: reading it needs pip install 'llm2clip-retrieval[heic]'")
    raise failure or ImageError("not an image")


def _register_heif() -> None:
    """Teach Pillow to read HEIC, if the package that can is installed."""
    with suppress(ImportError):
        from pillow_heif import register_heif_opener

        register_heif_opener()


def _load(image: Image.Image, upright: bool, draft: int, max_pixels: int) -> Decoded:
    """Decode an opened image, unless it has too many pixels."""
    width, height = image.size
    _check_size(width, height, max_pixels)
    if draft and isinstance(image, JpegImagePlugin.JpegImageFile):
        by = next((by for by in (8, 4, 2) if min(width, height) // by >= draft), 1)
        image.draft(image.mode, (width // by, height // by))
    try:
        image.load()
    except _PARSE_ERRORS as error:
        reason = "truncated file" if "truncated" in str(error).lower() else "damaged file"
        raise ImageError(reason) from error
    if not upright:
        return Decoded(image.copy(), width, height)  # what a file is decoded into goes on using the file
    if _orientation(image) in _TURNED:
        width, height = height, width
    return Decoded(_upright_rgb(image), width, height)


def _upright_rgb(image: Image.Image) -> Image.Image:
    try:
        rgb, turn = _rgb(image), _TURNS.get(_orientation(image))
        return rgb if turn is None else rgb.transpose(turn)
    except ImageError:
        raise
    except _PARSE_ERRORS as error:
        raise ImageError(f"cannot be converted to RGB from {image.mode}") from error


def _check_size(width: int, height: int, max_pixels: int) -> None:
    if width < 1 or height < 1:
        raise ImageError(f"no pixels: {width} x {height}")
    if width * height > max_pixels:
        raise ImageError(f"{width * height / 1e6:.1f} megapixels, limit {max_pixels / 1e6:g}")


def _orientation(image: Image.Image) -> int:
    """EXIF orientation, 1 (upright) if absent."""
    try:
        value = image.getexif().get(_ORIENTATION, 1)
    except _PARSE_ERRORS:
        return 1
    return value if isinstance(value, int) else 1


def _rgb(image: Image.Image) -> Image.Image:
    if image.mode in ("I", "F") or image.mode.startswith("I;16"):
        return Image.fromarray(_eight_bits(image)).convert("RGB")
    if not image.has_transparency_data:
        return image if image.mode == "RGB" else image.convert("RGB")
    whole = Image.new("RGB", image.size)
    for box in _strips(image.width, image.height):  # an image at the limit would take a gigabyte at once
        over = image.crop(box).convert("RGBA")
        white = Image.new("RGBA", over.size, (255, 255, 255, 255))
        whole.paste(Image.alpha_composite(white, over).convert("RGB"), box[:2])
    return whole


def _strips(width: int, height: int) -> Iterator[tuple[int, int, int, int]]:
    rows = max(1, _STRIP // width)
    for top in range(0, height, rows):
        yield 0, top, width, min(height, top + rows)


def _eight_bits(image: Image.Image) -> NDArray[np.uint8]:
    values = np.asarray(image)
    grey = np.empty(values.shape, np.uint8)
    deep = image.mode.startswith("I;16") or (image.mode == "I" and image.format in ("PNG", "PPM"))
    low, high = (0.0, 0.0) if deep else (float(values.min()), float(values.max()))
    if not np.isfinite(high - low):
        raise ImageError("pixel values that are not finite")
    for _, top, _, bottom in _strips(image.width, image.height):
        part = values[top:bottom]
        if deep:
            grey[top:bottom] = (part.astype(np.uint32) + 128) // 257
        else:
            grey[top:bottom] = np.rint(
                (part.astype(np.float64) - low) * (255 / (high - low) if high > low else 0)
            )
    return grey


def _from_array(array: NDArray[np.uint8], max_pixels: int) -> Image.Image:
    if array.ndim != 3 or array.shape[2] != 3 or array.dtype != np.uint8:
        raise ImageError(f"expected an array of shape (H, W, 3), uint8, got {array.shape}, {array.dtype}")
    _check_size(array.shape[1], array.shape[0], max_pixels)
    return Image.fromarray(np.ascontiguousarray(array))
