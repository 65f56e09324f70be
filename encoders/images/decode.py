"""Read images that nobody vouches for: any common format in, upright 8-bit RGB over white out.

``read_stored`` leaves an image as its file has it, for those who want what other programs make of it.

Reasons for refusing an image are a few words, because they end up in a list of hundreds.
"""

from __future__ import annotations

import os
import struct
import zlib
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from io import BytesIO
from typing import IO

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFile, JpegImagePlugin

from llm2clip.encoders.core.errors import ImageError
from llm2clip.encoders.core.image_source import ImageSource

MAX_PIXELS = 64_000_000
"""Images of more pixels are refused by their header, before anything is decoded."""

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF", "JPEG2000", "PPM", "HEIF")
"""Formats that are read, each known by its signature; HEIF (HEIC) where the extra ``heic`` is installed. No EPS (it
starts a program), nothing exotic: each parser is a way in."""

# What Pillow's parsers raise on damaged data; RuntimeError comes from AVIF, MemoryError from sizes that a damaged
# file asks for. Warnings are listed for processes that turn them into errors.
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
    MemoryError,
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
_ORIENTATION = 0x0112


def read_image(source: ImageSource, *, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """Decode an image completely: first frame, upright, 8 bits per channel, blended over white.

    16-bit grey is scaled to 8 bits, not clipped; integers and floats without a defined range (TIFF) are
    stretched from their smallest to their largest value. Thread-safe.

    Args:
        source: A path, the bytes of a file, a PIL image (left unchanged), or an array (H, W, 3), uint8.
        max_pixels: Refuse images with more pixels than this, before decoding them.

    Returns:
        An image of mode RGB.

    Raises:
        ImageError: The image cannot be read; the message is the reason, in a few words.
    """
    return _read(source, max_pixels, _upright_rgb)


def read_stored(source: ImageSource, *, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """Decode an image completely, first frame, in the mode and orientation it is stored in. Thread-safe.

    Args:
        source: As for ``read_image``.
        max_pixels: As for ``read_image``.

    Returns:
        An image of any mode.

    Raises:
        ImageError: As ``read_image``.
    """
    # A copy: what a file is decoded into goes on using the file.
    return _read(source, max_pixels, Image.Image.copy)


def to_rgb(image: Image.Image) -> Image.Image:
    """RGB as Pillow makes it: transparency dropped, 16 bits cut off at 255.

    Raises:
        ImageError: There is no such conversion.
    """
    try:
        return image if image.mode == "RGB" else image.convert("RGB")
    except _PARSE_ERRORS as error:
        raise ImageError(f"cannot be converted to RGB from {image.mode}") from error


def _read(source: ImageSource, max_pixels: int, finish: Callable[[Image.Image], Image.Image]) -> Image.Image:
    if isinstance(source, np.ndarray):
        return _from_array(source, max_pixels)
    if isinstance(source, Image.Image):
        return finish(load_pixels(source, max_pixels))
    if isinstance(source, bytes):
        return _decode(BytesIO(source), max_pixels, finish)
    if not isinstance(source, str | os.PathLike):
        raise ImageError(f"expected a path, bytes, a PIL image or an array, got {type(source).__name__}")
    try:
        with open(source, "rb") as stream:
            return _decode(stream, max_pixels, finish)
    except IsADirectoryError as error:
        raise ImageError("a folder, not a file") from error
    except OSError as error:
        raise ImageError((error.strerror or str(error)).lower()) from error


def _decode(stream: IO[bytes], max_pixels: int, finish: Callable[[Image.Image], Image.Image]) -> Image.Image:
    with open_image(stream) as image:
        return finish(load_pixels(image, max_pixels))


def open_image(stream: IO[bytes]) -> ImageFile.ImageFile:
    """Parse the header of an image; nothing is decoded yet.

    ``Image.open`` is not used: it warns of large images through a filter that is global to the process,
    and tries every format it knows.

    Raises:
        ImageError: It is no image that is read.
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


def load_pixels(image: Image.Image, max_pixels: int) -> Image.Image:
    """Decode an opened image, unless it has too many pixels.

    Raises:
        ImageError: It cannot be decoded.
    """
    check_size(image.width, image.height, max_pixels)
    try:
        image.load()
    except MemoryError as error:
        raise ImageError("damaged file, or not enough memory") from error
    except _PARSE_ERRORS as error:
        reason = "truncated file" if "truncated" in str(error).lower() else "damaged file"
        raise ImageError(reason) from error
    return image


def _upright_rgb(image: Image.Image) -> Image.Image:
    try:
        return _turned(_rgb(image), orientation_of(image))
    except ImageError:
        raise
    except _PARSE_ERRORS as error:
        raise ImageError(f"cannot be converted to RGB from {image.mode}") from error


def check_size(width: int, height: int, max_pixels: int) -> None:
    """Refuse images without or with too many pixels.

    Raises:
        ImageError: It is one.
    """
    if width < 1 or height < 1:
        raise ImageError(f"no pixels: {width} x {height}")
    if width * height > max_pixels:
        raise ImageError(f"{width * height / 1e6:.1f} megapixels, limit {max_pixels / 1e6:g}")


def orientation_of(image: Image.Image) -> int:
    """EXIF orientation, 1 (upright) where nothing is said."""
    try:
        value = image.getexif().get(_ORIENTATION, 1)
    except _PARSE_ERRORS:
        return 1
    return value if isinstance(value, int) else 1


def _turned(image: Image.Image, orientation: int) -> Image.Image:
    turn = _TURNS.get(orientation)
    return image if turn is None else image.transpose(turn)


def _rgb(image: Image.Image) -> Image.Image:
    if image.mode in ("I", "F") or image.mode.startswith("I;16"):
        return Image.fromarray(_eight_bits(image)).convert("RGB")
    if not image.has_transparency_data:
        return image if image.mode == "RGB" else image.convert("RGB")
    over = image.convert("RGBA")
    white = Image.new("RGBA", over.size, (255, 255, 255, 255))
    return Image.alpha_composite(white, over).convert("RGB")


def _eight_bits(image: Image.Image) -> NDArray[np.uint8]:
    if image.mode.startswith("I;16") or (image.mode == "I" and image.format in ("PNG", "PPM")):
        return ((np.asarray(image).astype(np.uint32) + 128) // 257).astype(np.uint8)
    values = np.asarray(image).astype(np.float64)
    low, high = float(values.min()), float(values.max())
    if not np.isfinite(high - low):
        raise ImageError("pixel values that are not finite")
    # In place: an image at the limit is half a gigabyte here.
    values -= low
    values *= 255 / (high - low) if high > low else 0
    return np.rint(values, out=values).astype(np.uint8)


def _from_array(array: NDArray[np.uint8], max_pixels: int) -> Image.Image:
    if array.ndim != 3 or array.shape[2] != 3 or array.dtype != np.uint8:
        raise ImageError(f"expected an array of shape (H, W, 3), uint8, got {array.shape}, {array.dtype}")
    check_size(array.shape[1], array.shape[0], max_pixels)
    return Image.fromarray(np.ascontiguousarray(array))


_SIGNATURE = b"\xff\xd8\xff"


_TURNED = (5, 6, 7, 8)
"""EXIF orientations in which width and height change places."""


@dataclass(frozen=True, kw_only=True)
class Reduced:
    """An image that was decoded smaller than it is."""

    image: Image.Image
    """As the file has it, smaller; it still knows its EXIF orientation."""
    width: int
    """Of the whole image as it is shown, in pixels."""
    height: int
    """Likewise."""


def read_reduced(content: bytes, *, shorter: int, max_pixels: int = MAX_PIXELS) -> Reduced | None:
    """Decode a JPEG as small as it can be with a shorter side of no less than ``shorter``. Thread-safe.

    The decoder leaves out the fine parts of each block of 8 x 8 pixels, which averages them, so that nothing flickers.

    Args:
        content: an encoded image of any format.
        shorter: in pixels.
        max_pixels: refuse images with more pixels than this, by their header.

    Returns:
        None if it is no JPEG, or cannot be decoded smaller.

    Raises:
        ImageError: it cannot be read; the message is the reason, in a few words.
    """
    if not content.startswith(_SIGNATURE):
        return None
    with open_image(BytesIO(content)) as image:
        width, height = image.size
        check_size(width, height, max_pixels)
        by = next((by for by in (8, 4, 2) if min(width, height) // by >= shorter), 1)
        if by == 1 or not isinstance(image, JpegImagePlugin.JpegImageFile):
            return None
        image.draft(image.mode, (width // by, height // by))
        whole = load_pixels(image, max_pixels)
        if orientation_of(whole) in _TURNED:
            width, height = height, width
        return Reduced(image=whole.copy(), width=width, height=height)
