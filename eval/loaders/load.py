"""``load_protocol``: a declared protocol's files to a :class:`RetrievalSet`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

from llm2clip.common.installation import data_home
from llm2clip.eval.datasets.protocols import Protocol, find_protocol
from llm2clip.eval.datasets.retrieval_set import RetrievalSet
from llm2clip.eval.datasets.tar_images import DatasetError
from llm2clip.eval.datasets.unchecked_set import UncheckedSet
from llm2clip.eval.loaders import chinese, english, multilingual
from llm2clip.eval.loaders import long_captions as long_text
from llm2clip.eval.loaders.protocol_files import Layout

READERS: Mapping[str, Callable[[Layout], UncheckedSet]] = {
    "aligned": multilingual.aligned,
    "coco": english.coco,
    "coco_cn": chinese.coco_cn,
    "dci": long_text.dci,
    "docci": long_text.docci,
    "flickr30k_cn": chinese.flickr30k_cn,
    "karpathy": english.karpathy,
    "sharegpt4v": long_text.sharegpt4v,
    "token": english.token,
    "tsv": chinese.tsv,
    "urban1k": long_text.urban1k,
    "wit": multilingual.wit,
    "xflickrco": multilingual.xflickrco,
    "xm3600": multilingual.xm3600,
}
"""Each loader that the table of protocols may name."""


def default_data() -> Path:
    """The data folder where none is named."""
    return data_home() / "datasets"


def load_protocol(name: str, *, data: Path, language: str | None = None) -> RetrievalSet:
    """Read a declared protocol.

    Args:
        name: Its id; ``ID:LANGUAGE`` is understood too.
        data: The data folder that all protocols share; ``llm2clip-eval prepare`` says what lies where.
        language: Code, for protocols with several languages.

    Returns:
        The set, under its full name only if it is complete; else ``NAME+partial``, with what is missing in its
        ``notes`` and ``missing``.

    Raises:
        DatasetError: If there is no such protocol or language, if a file is missing, damaged, of another split
            or of another form, or if no image is there.
    """
    base, _, suffix = name.partition(":")
    protocol = find_protocol(base)
    chosen = _language(protocol, language or suffix or None)
    layout = Layout(protocol, root=Path(data).expanduser(), language=chosen)
    return READERS[protocol.loader](layout).finish(protocol.id, language=chosen, protocol=protocol)


def _language(protocol: Protocol, language: str | None) -> str | None:
    if language in (protocol.languages or (None,)):
        return language
    if not protocol.languages:
        raise DatasetError(f"{protocol.id} got language '{language}', expected none: it has but one")
    said = "no language" if language is None else f"language '{language}'"
    raise DatasetError(f"{protocol.id} got {said}, expected one of: {', '.join(protocol.languages)}")
