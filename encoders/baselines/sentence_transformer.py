"""Models of sentence-transformers: ``st:NAME`` for any that reads images and texts, with its own prompts.

The library loads and computes; no code of a model's repository is ever run. It loads both sides together.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, final

import numpy as np
import torch
from PIL import Image

from llm2clip.encoders.catalog.hub import HubFiles, resolve_files
from llm2clip.encoders.core.base import Encoder, EncoderInfo, Runtime
from llm2clip.encoders.core.devices import pick_device, pick_dtype
from llm2clip.encoders.core.errors import ModelError
from llm2clip.encoders.core.fingerprint import settings_sha256, without_origin
from llm2clip.encoders.core.image_source import ImageSource, PreparedImage
from llm2clip.encoders.core.path_safety import refuse_outside
from llm2clip.encoders.images.decode import read_image
from llm2clip.encoders.text.dual_encoder import AbstractTextSide, LazyModule
from llm2clip.encoders.weights.hf_weights import stored_sha256

if TYPE_CHECKING:
    from numpy.typing import NDArray

PREFIX = "st:"
"""How the names of such encoders begin."""
CANVAS = 1024
"""Side of the square an image is handed over in, in pixels; smaller ones are not enlarged."""

_MARK = b"image\0"
"""At the beginning of a canvas's last row; the image's width and height follow, two bytes each."""
_SAFE = "sentence_transformers."
"""How the names of classes begin that may be loaded."""
_WHOLE = "It takes tokenizer and weights besides, whatever they are called."
"""What is said of a model that is not here."""
_FILES = (
    "*.txt",
    "*.model",
    "*.jinja",
    "*.safetensors",
    "*/*.json",
    "*/*.txt",
    "*/*.model",
    "*/*.jinja",
    "*/*.safetensors",
)
"""What is fetched of a repository beside its settings, if it is there."""
_SETTINGS = ("*.json", "*.txt", "*.model", "*.jinja")
"""What a model's vectors depend on besides its weights."""
_ENDLESS = 1_000_000
"""Tokenizers give numbers beyond this for "no limit"."""


def load_sentence(name: str, *, device: str = "auto", dtype: str = "auto") -> SentenceEncoder:
    """Open a multimodal model of sentence-transformers.

    Args:
        name: ``st:`` and a repository on the Hugging Face hub, or a folder.
        device: See ``load_encoder``.
        dtype: See ``load_encoder``.

    Raises:
        ModelError: It cannot be fetched, or wants to run code of its own.
        ValueError: There is no such device or dtype.
    """
    asked = name.removeprefix(PREFIX)
    folder = Path(asked).expanduser()
    if not asked or not folder.is_dir():
        if not asked or folder.is_absolute() or asked.startswith("."):
            raise ModelError(f"no such folder: {asked!r}; expected {PREFIX} and a repository or a folder")
        folder = resolve_files(
            HubFiles(name=name, repository=asked, files=("*.json",), extras=_FILES, hint=_WHOLE)
        )
    place = pick_device(device)
    return SentenceEncoder(
        folder, name=name, device=place, dtype=pick_dtype(dtype, device=place, stored="bfloat16")
    )


def open_model(folder: Path, *, device: torch.device, dtype: torch.dtype) -> Any:  # noqa: ANN401
    """A ``SentenceTransformer`` from a folder, in evaluation mode; nothing is fetched, no code of its own is run.

    Raises:
        ModelError: It cannot be loaded, or wants to run code of its own.
    """
    check_modules(folder)
    from sentence_transformers import SentenceTransformer

    try:
        model = SentenceTransformer(
            str(folder),
            device=str(device),
            local_files_only=True,
            trust_remote_code=False,
            model_kwargs={"dtype": dtype},
        )
    except Exception as error:  # what the many model classes behind it raise has no common type
        reason = " ".join(str(error).split())
        raise ModelError(f"{folder} cannot be loaded by sentence-transformers: {reason}") from error
    # Modules after the transformer, such as a linear layer, are made in float32 whatever is asked for.
    for module in list(model)[1:]:
        module.to(dtype)
    return model.eval().requires_grad_(False)


def check_modules(folder: Path) -> None:
    """Raise ``ModelError`` if a model's settings name a class that sentence-transformers itself does not have."""
    kinds = set()
    for path in (folder / "modules.json", *sorted(folder.rglob("router_config.json"))):
        if path.is_file():
            data = _json(path, folder=folder)
            kinds |= _types(data)
            for place in _places(data):
                refuse_outside(folder / place, folder=folder)
    if strange := sorted(kind for kind in kinds if not kind.startswith(_SAFE)):
        raise ModelError(f"{folder} wants to run code of its own ({', '.join(strange)}); none is run here")


def _types(data: object) -> set[str]:
    """Every class that a module is said to be of: below ``type`` in a list, below ``types`` in a router."""
    if isinstance(data, list):
        return {str(module.get("type")) for module in data if isinstance(module, dict)}
    types = data.get("types", {}) if isinstance(data, dict) else {}
    return {str(kind) for kind in types.values()} if isinstance(types, dict) else {str(types)}


def weights_hash(folder: Path) -> str:
    """SHA-256 in hexadecimal over the names and hashes of all weights in a folder."""
    paths = sorted(path for kind in ("*.safetensors", "*.bin") for path in folder.rglob(kind))
    for path in paths:
        refuse_outside(path, folder=folder)
    lines = [f"{path.relative_to(folder).as_posix()} {stored_sha256(path)}\n" for path in paths]
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def model_settings(folder: Path) -> dict[str, str]:
    """Every file but the weights that shapes the vectors, by its place, with a hash: settings, tokenizer, prompts.

    Only the folders that its list of modules names are looked at: a repository may hold copies for other programs.
    """
    listed = folder / "modules.json"
    places = _places(_json(listed, folder=folder)) if listed.is_file() else set()
    paths = {path for pattern in _SETTINGS for path in folder.glob(pattern)}
    paths |= {path for place in places for pattern in _SETTINGS for path in (folder / place).rglob(pattern)}
    return {path.relative_to(folder).as_posix(): _file_hash(path, folder) for path in sorted(paths)}


def _places(modules: object) -> set[str]:
    """The folders below a model's own that its list of modules names."""
    entries = modules if isinstance(modules, list) else []
    return {str(module.get("path", "")) for module in entries if isinstance(module, dict)} - {""}


def _json(path: Path, *, folder: Path) -> Any:  # noqa: ANN401
    refuse_outside(path, folder=folder)
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ModelError(f"{path} cannot be read: {error}") from error


def _file_hash(path: Path, folder: Path) -> str:
    if path.suffix != ".json":
        refuse_outside(path, folder=folder)
        return settings_sha256({}, files=[path])
    content = _json(path, folder=folder)
    return settings_sha256({"": without_origin(content) if isinstance(content, dict) else content}, files=[])


def count_tokens(model: Any, texts: Sequence[str]) -> list[int]:  # noqa: ANN401
    """Tokens of each text as a model's tokenizer gives them, before cutting and without a prompt."""
    tokenizer = model.tokenizer
    return [len(ids) for ids in tokenizer(list(texts), truncation=False, verbose=False)["input_ids"]]


def text_limit(model: Any) -> int:  # noqa: ANN401
    """Tokens of a text that a model reads."""
    limits = (model.max_seq_length, model.tokenizer.model_max_length)
    return min((int(limit) for limit in limits if limit and limit < _ENDLESS), default=_ENDLESS)


@final
class SentenceTextSide(AbstractTextSide):
    """Texts through a model of sentence-transformers."""

    def __init__(self, folder: Path, *, device: torch.device, dtype: torch.dtype) -> None:
        """Put it together; nothing is loaded yet."""
        self.folder = folder
        self.model = LazyModule(lambda: open_model(folder, device=device, dtype=dtype))

    @property
    def loaded(self) -> bool:
        """Whether its weights are in memory."""
        return self.model.loaded

    @property
    def dim(self) -> int:
        """Length of the vectors."""
        return int(self._sentences().get_embedding_dimension())

    @property
    def limit(self) -> int:
        """Tokens of a text that are read."""
        return text_limit(self._sentences())

    @property
    def sha256(self) -> str:
        """SHA-256 over its weights, in hexadecimal."""
        return weights_hash(self.folder)

    @property
    def settings(self) -> dict[str, str]:
        """What shapes its vectors besides the weights."""
        return model_settings(self.folder)

    @property
    def parameters(self) -> int:
        """How many numbers there are."""
        return sum(parameter.numel() for parameter in self.model().parameters())

    def count(self, texts: Sequence[str]) -> list[int]:
        """Tokens of each text before cutting."""
        return count_tokens(self._sentences(), texts)

    def vectors(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Shape: (len(texts), dim), float32, any scale."""
        return _encoded(self._sentences(), "encode_query", list(texts))

    def _sentences(self) -> Any:  # noqa: ANN401
        return self.model()


@final
class SentenceEncoder(Encoder):
    """A multimodal model of sentence-transformers; make one with ``load_encoder("st:NAME")``.

    Texts are encoded as queries and images as documents, each with the model's prompt for it, if it has one.
    """

    def __init__(self, folder: Path, *, name: str, device: torch.device, dtype: torch.dtype) -> None:
        """Look at its settings; it is loaded when it is first used."""
        check_modules(folder)
        self.folder = folder
        self.name = name
        said = str(dtype).removeprefix("torch.")
        self._runtime = Runtime(device=str(device), image_dtype=said, text_dtype=said)
        self._late = LazyModule(lambda: open_model(folder, device=device, dtype=dtype))

    @property
    def model(self) -> Any:  # noqa: ANN401
        """The ``SentenceTransformer``, loaded now if need be."""
        model: Any = self._late()
        lacks = [kind for kind in ("image", "text") if not model.supports(kind)]
        if lacks:
            raise ModelError(f"{self.name} does not read {' and '.join(lacks)}; it reads {model.modalities}")
        return model

    @cached_property
    def _info(self) -> EncoderInfo:
        model = self.model
        return EncoderInfo(
            name=self.name,
            family="sentence-transformers",
            dim=int(model.get_embedding_dimension()),
            image_size=CANVAS,
            max_text_tokens=text_limit(model),
            weights_sha256=weights_hash(self.folder),
            settings_sha256=settings_sha256(model_settings(self.folder), files=[]),
            preprocessing=f"rgb-on-white/fit-{CANVAS}/{type(model.processor).__name__}",
            parameters=sum(parameter.numel() for parameter in model.parameters()),
            languages=(),
            licence="unknown",
            note="a model of sentence-transformers; both sides are loaded together",
        )

    @property
    def info(self) -> EncoderInfo:
        """What this encoder is."""
        return self._info

    @property
    def runtime(self) -> Runtime:
        """Where it computes, and in which precision."""
        return self._runtime

    def _prepare(self, image: ImageSource) -> PreparedImage:
        photo = read_image(image)
        return PreparedImage(pixels=to_canvas(photo), width=photo.width, height=photo.height)

    def _image_batch(self, pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
        return _encoded(self.model, "encode_document", [from_canvas(canvas) for canvas in pixels])

    def _text_batch(self, texts: Sequence[str]) -> NDArray[np.float32]:
        return _encoded(self.model, "encode_query", list(texts))

    def _count_tokens(self, texts: Sequence[str]) -> list[int]:
        return count_tokens(self.model, texts)


def to_canvas(image: Image.Image) -> NDArray[np.uint8]:
    """An image of any shape in an array of one shape, from which it can be taken out again.

    The models resize images in ways of their own, many of them keeping the aspect, so none is chosen here.

    Returns:
        Shape: (CANVAS, CANVAS, 3), uint8: the image in the upper left corner, its size in the last row.
    """
    scale = min(1.0, CANVAS / image.width, (CANVAS - 1) / image.height)
    if scale < 1:
        size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
        image = image.resize((min(size[0], CANVAS), min(size[1], CANVAS - 1)), Image.Resampling.BICUBIC)
    canvas = np.zeros((CANVAS, CANVAS, 3), np.uint8)
    canvas[: image.height, : image.width] = np.asarray(image)
    label = _MARK + image.width.to_bytes(2, "big") + image.height.to_bytes(2, "big")
    canvas[-1].reshape(-1)[: len(label)] = np.frombuffer(label, np.uint8)
    return canvas


def from_canvas(canvas: NDArray[np.uint8]) -> Image.Image:
    """The image that :func:`to_canvas` put there.

    Raises:
        ValueError: It did not make this array.
    """
    label = canvas[-1].tobytes()[: len(_MARK) + 4]
    width, height = int.from_bytes(label[-4:-2], "big"), int.from_bytes(label[-2:], "big")
    if not label.startswith(_MARK) or not (0 < width <= CANVAS and 0 < height < CANVAS):
        raise ValueError("pixels for this encoder must come from its own prepare()")
    return Image.fromarray(np.ascontiguousarray(canvas[:height, :width]))


def _encoded(model: Any, method: str, inputs: list[Any]) -> NDArray[np.float32]:  # noqa: ANN401
    vectors = getattr(model, method)(
        inputs, batch_size=len(inputs), convert_to_tensor=True, show_progress_bar=False
    )
    array: NDArray[np.float32] = vectors.float().cpu().numpy()
    return array
