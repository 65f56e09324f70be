"""Encoders and data sets as they are named on a command line."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from llm2clip.eval.datasets.protocols import find_protocol
from llm2clip.eval.datasets.retrieval_set import RetrievalSet
from llm2clip.eval.datasets.tar_images import DatasetError
from llm2clip.eval.loaders.image_folder import data_languages, load_data
from llm2clip.eval.runner.run import Candidate
from llm2clip.indexer.core.index_paths import sample_folder

if TYPE_CHECKING:
    from llm2clip.encoders import Encoder

ALL = "all"
"""Stands for every language that there is."""

SAMPLE = "sample"
"""Name of the set of sample images, which needs no files."""
Mode = Literal["native", "reference"]
"""How images and texts are prepared, as ``load_encoder`` takes it."""


def candidates(
    names: Sequence[str], *, device: str = "auto", dtype: str = "auto", preprocessing: Mode = "native"
) -> list[Candidate]:
    """Encoders to measure, opened when their turn comes."""
    if not names:
        raise ValueError("no encoder was named; name at least one, such as --encoder nano")

    def opened(name: str) -> Encoder:
        from llm2clip.encoders import load_encoder

        return load_encoder(name, device=device, dtype=dtype, preprocessing=preprocessing)

    found = [
        Candidate(label=label, open=partial(opened, name), preprocessing=preprocessing)
        for label, name in map(labelled, dict.fromkeys(names))
    ]
    labels = [one.label for one in found if one.label]
    if len(set(labels)) < len(labels):
        raise ValueError(f"two encoders have the same label among {labels}; labels tell them apart in tables")
    return found


def labelled(name: str) -> tuple[str, str]:
    """(label, name): what stands before the first ``=`` unless it is part of a path."""
    label, equals, rest = name.partition("=")
    return (label, rest) if equals and "/" not in label and rest else ("", name)


def load_sets(
    protocols: Sequence[str], folders: Sequence[str], *, folder: Path | None, languages: Sequence[str] = ()
) -> Iterator[RetrievalSet]:
    """Read the named sets, each once."""
    if not protocols and not folders:
        raise DatasetError(
            "no data set was named; name a protocol (--dataset ID) or images of your own (--data PATH)"
        )
    declared = [name for name in protocols if name.partition(":")[0] != SAMPLE]
    for name in protocols:
        if name not in declared:
            yield from _sample_sets(name.partition(":")[2], languages)
    chosen = ((name, language) for name in declared for language in _protocol_languages(name, languages))
    for base, language in dict.fromkeys((name.partition(":")[0], language) for name, language in chosen):
        from llm2clip.eval.loaders.load import default_data, load_protocol

        yield load_protocol(base, data=folder or default_data(), language=language)
    paths: dict[str, str] = {}
    for each in dict.fromkeys(folders):
        name, path = labelled(each)
        for language in dict.fromkeys(_folder_languages(Path(path), languages)):
            found = load_data(path, language=language, name=name or None)
            if paths.setdefault(found.id, path) != path:
                raise DatasetError(
                    f"{paths[found.id]} and {path} are both called '{found.id}', expected a name for each: "
                    "--data NAME=PATH"
                )
            yield found


def _sample_sets(language: str, asked: Sequence[str]) -> Iterator[RetrievalSet]:
    """The shipped sample images with their captions in one language, those asked for, or all."""
    folder = sample_folder()
    for each in [language] if language else _folder_languages(folder, asked or [ALL]):
        yield load_data(folder, language=each, name=SAMPLE)


def _protocol_languages(name: str, asked: Sequence[str]) -> Sequence[str | None]:
    base, _, language = name.partition(":")
    protocol = find_protocol(base)
    if language:
        return [language]
    if not protocol.languages:
        return [None]
    if not asked or ALL in asked:
        return protocol.languages
    return [language for language in asked if language in protocol.languages] or list(asked)


def _folder_languages(path: Path, asked: Sequence[str]) -> Sequence[str | None]:
    if ALL not in asked:
        return asked or [None]
    found = list(data_languages(path))
    if not found:
        raise DatasetError(f"{path} has no captions tagged with a language, expected some for --language all")
    return found
