"""Convert a GGUF file to a folder of transformers' layout, once, with transformers' reader and the ``gguf`` package.

Quantised matrices become float16, which holds them to their own precision; vectors stay float32. GGUF is data: nothing
in it is run.
"""

from __future__ import annotations

import hashlib
import io
import json
import logging
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, suppress
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

from llm2clip.common.files import models_home
from llm2clip.encoders.core.errors import ModelError
from llm2clip.encoders.core.files import refuse_outside, refuse_pointer
from llm2clip.encoders.layers.transformers_modules import import_quietly
from llm2clip.encoders.text.language_config import language_config, layout_of
from llm2clip.encoders.text.packed import build_language

SUFFIX = ".gguf"
_DONE = "config.json"
"""Written last: the folder is whole when it exists."""
_MOST_GROWTH = 1.2
"""Most parameters of the model in multiples of the numbers in the file; a lying header would have memory allocated."""


def gguf_folder(path: Path) -> Path:
    """The folder with the contents of a GGUF file: ``config.json``, ``model.safetensors`` and ``tokenizer.json``.

    Made on first use, in the data home, and found by the file's place, size and age later.

    Raises:
        ModelError: The file is damaged, holds an architecture that is not read, or the ``gguf`` package is missing.
    """
    refuse_outside(path)
    try:
        refuse_pointer(path)
        state = path.stat()
    except OSError as error:
        raise ModelError(f"{path} cannot be read: {error.strerror or error}") from error
    mark = f"{path.resolve()}\n{state.st_size}\n{state.st_mtime_ns}"
    home = models_home() / "converted" / "gguf"
    folder = home / f"{path.stem}-{hashlib.sha256(mark.encode()).hexdigest()[:16]}"
    if (folder / _DONE).is_file():
        return folder
    if find_spec("gguf") is None:
        raise ModelError(f"{path} needs the gguf package: pip install 'llm2clip-retrieval[gguf]'")
    try:
        home.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=home, prefix=".converting-") as name:
            draft = Path(name) / "draft"
            draft.mkdir()
            _convert(path, draft)
            with suppress(OSError):  # another process was faster
                draft.rename(folder)
    except OSError as error:
        raise ModelError(f"{folder} cannot be written: {error.strerror or error}") from error
    return folder


def _convert(path: Path, folder: Path) -> None:
    from safetensors.torch import save_file

    with _quiet(path):
        settings = _settings(path)
        tensors = _tensors(path)
        tokenizer = _tokenizer(path)
    layout = layout_of(language_config(settings))
    kept = {
        name: (value.half() if value.ndim == 2 else value).contiguous()
        for name, value in tensors.items()
        if not layout.unused.fullmatch(name)
    }
    save_file(kept, folder / "model.safetensors")
    tokenizer.backend_tokenizer.save(str(folder / "tokenizer.json"))
    names = {"pad_token": tokenizer.pad_token, "eos_token": tokenizer.eos_token}
    (folder / "tokenizer_config.json").write_text(json.dumps(names), encoding="utf-8")
    (folder / _DONE).write_text(json.dumps(settings, indent=2), encoding="utf-8")


@contextmanager
def _quiet(path: Path) -> Iterator[None]:
    """Without transformers' progress bars and messages; what it raises, as one of our errors."""
    import_quietly()
    logger = logging.getLogger("transformers")
    level = logger.level
    try:
        logger.setLevel(logging.ERROR)
        with warnings.catch_warnings(), redirect_stderr(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    except ModelError:
        raise
    except Exception as error:  # what a damaged file makes the readers raise has no common type
        reason = " ".join(str(error).split())[:300] or type(error).__name__
        raise ModelError(f"{path} is damaged, or no language model that can be read: {reason}") from error
    finally:
        logger.setLevel(level)


def _settings(path: Path) -> dict[str, Any]:
    """The configuration, once its sizes have proved to be those of the tensors."""
    from gguf import GGUFReader
    from transformers import AutoConfig

    config: dict[str, Any] = AutoConfig.from_pretrained(path.parent, gguf_file=path.name).to_dict()
    with torch.device("meta"):
        model = build_language(language_config(config))
    needed = sum(parameter.numel() for parameter in model.parameters())
    held = sum(int(tensor.n_elements) for tensor in GGUFReader(path).tensors)
    if needed > held * _MOST_GROWTH:
        raise ModelError(f"{path} holds {held:,} numbers, but a model of its sizes has {needed:,}")
    return config


def _tensors(path: Path) -> dict[str, torch.Tensor]:
    from transformers import AutoModel

    model, report = AutoModel.from_pretrained(
        path.parent, gguf_file=path.name, dtype=torch.float32, output_loading_info=True
    )
    if missing := sorted(report["missing_keys"]):
        raise ModelError(f"{path} lacks tensors: {', '.join(missing[:5])}")
    state: dict[str, torch.Tensor] = model.state_dict()
    return state


def _tokenizer(path: Path) -> Any:  # noqa: ANN401
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)
