"""``load_protocol``: a declared protocol's files to a :class:`RetrievalSet`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

from llm2clip.common.files import data_home
from llm2clip.eval.datasets.protocols import find_protocol
from llm2clip.eval.datasets.retrieval_set import RetrievalSet, UncheckedSet
from llm2clip.eval.datasets.tar_images import DatasetError
from llm2clip.eval.loaders import chinese, english, long_captions, multilingual
from llm2clip.eval.loaders.protocol_files import Layout

READERS: Mapping[str, Callable[[Layout], UncheckedSet]] = {
    "aligned": multilingual.aligned,
    "coco": english.coco,
    "coco_cn": chinese.coco_cn,
    "dci": long_captions.dci,
    "docci": long_captions.docci,
    "flickr30k_cn": chinese.flickr30k_cn,
    "karpathy": english.karpathy,
    "sharegpt4v": long_captions.sharegpt4v,
    "token": english.token,
    "tsv": chinese.tsv,
    "urban1k": long_captions.urban1k,
    "wit": multilingual.wit,
    "xflickrco": multilingual.xflickrco,
    "xm3600": multilingual.xm3600,
}
"""Each loader that the table of protocols may name; all raise ``DatasetError`` for files of another form."""


def default_data() -> Path:
    """The data folder where none is named."""
    return data_home() / "datasets"


def load_protocol(name: str, *, data: Path, language: str | None = None) -> RetrievalSet:
    """Read a declared protocol.

    Args:
        name: Its id, or ``ID:LANGUAGE``.
        data: The data folder that all protocols share; ``llm2clip-eval prepare`` lists the paths.
        language: Code, for protocols with several languages.

    Returns:
        The set, under its full name only if it is complete; else ``NAME+partial``, with what is missing in its
        ``notes`` and ``missing``.

    Raises:
        DatasetError: There is no such protocol or language, a file is missing, damaged, of another split or of
            another form, or no image exists.
    """
    base, _, suffix = name.partition(":")
    protocol = find_protocol(base)
    chosen = language or suffix or None
    if chosen not in (protocol.languages or (None,)):
        said = "no language" if chosen is None else f"language '{chosen}'"
        wanted = f"one of: {', '.join(protocol.languages)}" if protocol.languages else "none: it has but one"
        raise DatasetError(f"{protocol.id} got {said}, expected {wanted}")
    layout = Layout(protocol, root=Path(data).expanduser(), language=chosen)
    return READERS[protocol.loader](layout).finish(protocol.id, language=chosen, protocol=protocol)
