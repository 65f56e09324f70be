"""Reading results; one that was altered or damaged is refused."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from llm2clip.encoders.core.files import from_json, read_object
from llm2clip.eval.datasets.protocols import declared
from llm2clip.eval.datasets.retrieval_set import PARTIAL
from llm2clip.eval.results.records import FORMAT, VERSION, DirectionResult, Result, SetRecord, unpack

_RENAMED = {
    "pictures": "images",
    "pictures_encoded": "images_encoded",
    "pictures_per_second": "images_per_second",
    "through": "index_recall",
}
"""Keys of version 1 and what they are called since."""


def check_result(result: Result, path: Path) -> None:
    """Refuse shares that are none or disagree with the ranks, and whole sets that are not as declared."""
    _check_set(result.set, path)
    for one in result.directions:
        for at in one.recall:
            if not (0 <= at.low <= at.high <= 1 and 0 <= at.value <= 1):
                raise ValueError(
                    f"{path}: {one.direction} R@{at.k} is {at.value} in {at.low} to {at.high}, expected shares"
                )
        hits = [at.value * one.queries for at in one.recall]
        if any(abs(hit - round(hit)) > 1e-6 * max(1.0, one.queries) for hit in hits):
            raise ValueError(f"{path}: {one.direction} has a recall that is no whole number of {one.queries}")
        if one.ranks:
            _check_ranks(one, path)


def _check_set(dataset: SetRecord, path: Path) -> None:
    """A whole set has what its protocol declares."""
    protocol = declared(dataset.protocol)
    if dataset.complete == dataset.protocol.endswith(PARTIAL):
        raise ValueError(
            f"{path}: {dataset.protocol} is called {'whole' if dataset.complete else 'a part'}, expected a name "
            f"with {PARTIAL} for parts and no other: the result was altered, measure again"
        )
    if protocol is None:
        return
    expected = protocol.expected(dataset.language)
    for name in ("images", "captions"):
        wanted, having = getattr(expected, name), getattr(dataset, name)
        if wanted is not None and having != wanted:
            raise ValueError(
                f"{path}: {dataset.id} has {having:,} {name}, expected {wanted:,}: the result was altered, "
                "measure again"
            )


def _check_ranks(one: DirectionResult, path: Path) -> None:
    """Recall is what the ranks say."""
    try:
        ranks = unpack(one.ranks)
    except ValueError as error:
        raise ValueError(f"{path}: {one.direction}: {error}") from error
    if len(ranks) != one.queries:
        raise ValueError(f"{path}: {one.direction} has {len(ranks)} ranks, expected {one.queries}")
    for at in one.recall:
        hits = int((ranks <= at.k).sum())
        if abs(hits - at.value * one.queries) > 0.5:
            raise ValueError(
                f"{path}: {one.direction} R@{at.k} is {at.value}, expected {hits} of {one.queries} as its ranks "
                "say: the result was altered, measure again"
            )


def read_result(path: Path) -> Result:
    """Read one result."""
    data = read_object(path)
    if data.get("format") != FORMAT:
        raise ValueError(f"{path} is no result: 'format' is {data.get('format')!r}, expected {FORMAT!r}")
    if data.get("version") == 1:
        data = _renamed(data) | {"version": VERSION}
        encoder = data.get("encoder")
        if isinstance(encoder, dict) and encoder.get("parity") == "upstream":
            encoder["parity"] = "reference"
    if data.get("version") != VERSION:
        raise ValueError(
            f"{path} is of version {data.get('version')!r}, expected {VERSION}: measure again with this release"
        )
    result = from_json(Result, data, where=path.name)
    check_result(result, path)
    return result


def _renamed(value: Any) -> Any:  # noqa: ANN401
    if isinstance(value, dict):
        return {_RENAMED.get(key, key): _renamed(each) for key, each in value.items()}
    return [_renamed(each) for each in value] if isinstance(value, list) else value


def read_results(places: Iterable[Path]) -> list[Result]:
    """Read files, and every ``*.json`` in folders, in the order of their names.

    Raises:
        ValueError: A file is no result, or there is none.
    """
    looked = list(places)
    if absent := [str(place) for place in looked if not place.exists()]:
        raise ValueError(
            f"no results in {', '.join(absent)}: no such file or folder; measure first: llm2clip-eval run"
        )
    files = [
        file
        for place in looked
        for file in (sorted(place.glob("*.json")) if place.is_dir() else [place])
        if not file.name.startswith(".")
    ]
    if not files:
        raise ValueError(f"no results in {', '.join(map(str, looked))}; measure first: llm2clip-eval run")
    return [read_result(file) for file in files]
