"""Read the image settings of transformers as ``Preprocess``."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from llm2clip.encoders.core.errors import ModelError
from llm2clip.encoders.core.files import from_json, read_object, to_json
from llm2clip.encoders.images.preprocess import Preprocess, Resample, ResizeMode

FILE = "preprocessor_config.json"
_NESTED = "processor_config.json", "image_processor"
"""Where transformers 5 saves them instead: a file, and the key in it. It has the last word, as in transformers."""
FILES = (_NESTED[0], FILE)
"""Files that may hold image settings."""
OPENAI_MEAN = (0.48145466, 0.4578275, 0.40821073)
OPENAI_STD = (0.26862954, 0.26130258, 0.27577711)
"""Channel mean and standard deviation of CLIP's training images."""

_FILTERS = {1: Resample.LANCZOS, 2: Resample.BILINEAR, 3: Resample.BICUBIC}
"""Pillow's numbers."""
_STEPS = ("do_resize", "do_rescale", "do_normalize")


def read_preprocess(folder: Path, config: Mapping[str, Any], default: Preprocess) -> Preprocess:
    """The preprocessing of a model in a folder."""
    vision = config.get("vision_config")
    size = vision.get("image_size", 224) if isinstance(vision, dict) else 224
    if type(size) is not int or size < 1:
        raise ModelError(f"{folder / 'config.json'}: unsupported vision_config.image_size: {size!r}")
    path, settings = _settings(folder) or (folder / FILE, {})
    mode = _mode(settings, default.mode)
    square: object = {"height": size, "width": size}
    allowed: dict[str, tuple[object, ...]] = {
        "size": (size, square) if mode is ResizeMode.SQUASH else (size, {"shortest_edge": size}),
        "resample": tuple(_FILTERS),
        "rescale_factor": (1 / 255,),
        # Images are made RGB whatever is said here.
        "do_convert_rgb": (True, False, None),
        **dict.fromkeys(_STEPS, (True,)),
    }
    if mode is ResizeMode.SHORTEST_CROP:
        allowed["do_center_crop"] = (True,)
    if settings.get("do_center_crop", True):
        allowed["crop_size"] = (size, square)
    for key, choices in allowed.items():
        if key in settings and settings[key] not in choices:
            expected = " or ".join(map(repr, choices))
            raise ModelError(f"{path}: unsupported {key}: {settings[key]!r}, expected {expected}")
    data = to_json(default) | {"size": size, "mode": mode}
    if "resample" in settings:
        data["resample"] = _FILTERS[settings["resample"]]
    for ours, theirs in (("mean", "image_mean"), ("std", "image_std")):
        data[ours] = settings.get(theirs, data[ours])
    return from_json(Preprocess, data, where=str(path))


def settings_file(folder: Path) -> str | None:
    """Name of the file that holds a folder's image settings; None without any."""
    found = _settings(folder)
    return found[0].name if found else None


def _settings(folder: Path) -> tuple[Path, dict[str, Any]] | None:
    name, key = _NESTED
    path = folder / name
    nested: object = read_object(path).get(key) if path.is_file() else None
    if isinstance(nested, dict):
        return path, nested
    path = folder / FILE
    return (path, read_object(path)) if path.is_file() else None


def _mode(settings: Mapping[str, Any], default: ResizeMode) -> ResizeMode:
    """Resize mode, from the keys of ``size`` unless it is a plain number."""
    size = settings.get("size")
    if isinstance(size, dict):
        return ResizeMode.SHORTEST_CROP if "shortest_edge" in size else ResizeMode.SQUASH
    return default
