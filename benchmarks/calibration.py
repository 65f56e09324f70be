"""How often "nothing like that here" is right: absent things that come back empty, present ones that keep their hit.

Two galleries of the same 1,000 photographs, and one shipped with the package:

- nano, single things (``concepts.tsv``, six languages) on Flickr8k's validation photographs. A thing is present if two
  of the five captions of at least three photographs name it; the right hit is the best of those photographs, where it
  is among the first ten. A thing is foreign if fewer photographs do. The absent case is always searched in the gallery
  without the photographs of which any caption names the thing: "foreign" things, and "removed" ones.
- CLIP ViT-B/32 (stored vectors), whole English captions on the same photographs. A caption is present if its own
  photograph is among the first ten. Absent: without every photograph whose captions share a word of content with two of
  its photograph's captions. There is no text encoder here, so the null captions are 250 captions of other
  photographs, and the best score of each is that among the photographs of its own absent case.
- nano, the captions of the sample's photographs in its six languages, each searched among its drawings and the
  photographs; absent: without the photograph itself and those of similar captions (cosine of at least 0.6).

    python -m benchmarks.calibration --data FOLDER [--min-confidence 0.8]
"""

from __future__ import annotations

import argparse
import json
import re
import tarfile
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from llm2clip.encoders import load_encoder
from llm2clip.indexer.core.index_paths import sample_shards
from llm2clip.retrieval.ranking.calibration import Calibration, fitted, null_captions

Vectors = NDArray[np.float32]
FIRST = 10
"""A right hit counts if it is among so many without a cut-off."""
_SIMILAR = 0.6
_LEAST_PRESENT = 3
_NULL = 250
_FREQUENT = frozenset(
    re.findall(
        "[a-z]+",
        "a an the in on of at with and is are to by from his her their its it that this while as for into up "
        "down over under through two three four one some other another near next behind front there who has "
        "have be he she they him out off around along across against each both large small big little young "
        "old white black brown red blue green yellow orange pink purple gray grey standing sitting looking "
        "walking running wearing holding playing stands sits looks walks runs wears holds plays people person "
        "man woman boy girl men women boys girls child children group something ",
    )
)
"""English words that do not say what a photograph shows, or that most captions share."""


@dataclass
class Counted:
    """What came of the queries of one language."""

    kept: list[bool] = field(default_factory=list)
    """Of right hits among the first ten, whether they are above the cut-off."""
    asked: int = 0
    """Present queries, with a right hit among the first ten or not."""
    foreign: list[bool] = field(default_factory=list)
    """Of queries for what is not there, whether nothing is above the cut-off; likewise ..."""
    removed: list[bool] = field(default_factory=list)
    """... where what is there was taken away."""


def centred(calibration: Calibration, images: Vectors, query: Vectors) -> NDArray[np.float64]:
    """Confidences of images. Shapes: (n, dim), (dim,) -> (n,)."""
    return calibration.confidence(images.astype(np.float64) @ (query - calibration.centre).astype(np.float64))


def calibrated(images: Vectors, captions: Vectors) -> Calibration:
    """As ``calibrate`` of an index with these images."""
    centre = captions.mean(axis=0)
    return fitted(((captions - centre) @ images.T).max(axis=1), captions)


def concepts(data: Path, table: Path, least: float) -> dict[str, Counted]:
    """Single things on Flickr8k."""
    encoder = load_encoder("nano")
    _, captions, encoded = flickr(data)
    images = encoder.encode_images(encoded)
    null = encoder.encode_texts(null_captions())
    lines = [line.split("\t") for line in table.read_text("utf-8").splitlines()]
    named = [[set(re.findall("[a-z]+", caption.lower())) for caption in each] for each in captions]
    found: dict[str, Counted] = {}
    for column, language in enumerate(lines[0][1:], start=1):
        queries = encoder.encode_texts([line[column] for line in lines[1:]])
        counted = found[language] = Counted()
        for line, query in zip(lines[1:], queries, strict=True):
            words = set(line[0].split())
            times = np.array([sum(bool(words & caption) for caption in each) for each in named])
            right, absent = times >= 2, images[times == 0]
            empty = bool((centred(calibrated(absent, null), absent, query) < least).all())
            if right.sum() < _LEAST_PRESENT:
                counted.foreign.append(empty)
                continue
            counted.removed.append(empty)
            keep(counted, images, query, right, calibrated(images, null), least)
    return found


def keep(
    counted: Counted,
    images: Vectors,
    query: Vectors,
    right: NDArray[np.bool_],
    calibration: Calibration,
    least: float,
) -> None:
    """Count a query for what is there."""
    counted.asked += 1
    first = np.argsort(-(images @ query), kind="stable")[:FIRST]
    if right[first].any():
        best = first[right[first]][:1]
        counted.kept.append(bool(centred(calibration, images[best], query)[0] >= least))


def captions_of_clip(data: Path, least: float) -> dict[str, Counted]:
    """Whole captions, with stored vectors of CLIP ViT-B/32."""
    folder = data / "clip_vitb32_flickr8k_val"
    images, texts = (
        rows / np.linalg.norm(rows, axis=1, keepdims=True)
        for rows in (
            np.load(folder / f"val_{name}.npy").astype(np.float32) for name in ("image", "text_caption0")
        )
    )
    names = [json.loads(line)["image"][:-4] for line in (folder / "val_rows.jsonl").read_text().splitlines()]
    keys, captions, _ = flickr(data)
    of = dict(zip(keys, captions, strict=True))
    shown = [[content_words(caption) for caption in of[name]] for name in names]
    anywhere = [set().union(*each) for each in shown]
    agreed = [
        {word for word, count in Counter(word for one in each for word in one).items() if count >= 2}
        for each in shown
    ]
    chosen = np.random.default_rng(0).permutation(len(images))
    tested = np.sort(chosen[_NULL:])
    null = [row for row in chosen[:_NULL] if agreed[row]]
    without = {
        row: images[[other for other in tested if not agreed[row] & anywhere[other]]] for row in chosen
    }
    centre = texts[null].mean(axis=0)
    best = np.array([(without[row] @ (texts[row] - centre)).max() for row in null])
    calibration = fitted(best, texts[null])
    counted = Counted()
    for row in filter(lambda row: bool(agreed[row]), tested):
        keep(counted, images[tested], texts[row], tested == row, calibration, least)
        confidences = centred(calibration, without[row], texts[row])
        counted.removed.append(bool((confidences < least).all()))
    return {"en": counted}


def content_words(caption: str) -> set[str]:
    words = set(re.findall("[a-z]+", caption.lower())) - _FREQUENT
    return {word.removesuffix("s") if len(word) > 3 else word for word in words}


def sample(least: float) -> dict[str, Counted]:
    """Captions of the sample's photographs."""
    encoder = load_encoder("nano")
    records, encoded = [], []
    for shard in sample_shards():
        for members in tar_members(shard):
            records.append(json.loads(members["json"]))
            encoded.append(members["webp"])
    images = encoder.encode_images(encoded)
    null = encoder.encode_texts(null_captions())
    whole = calibrated(images, null)
    english = encoder.encode_texts([record["captions"]["en"] for record in records])
    alike = english @ english.T >= _SIMILAR
    found: dict[str, Counted] = {}
    for language in records[0]["captions"]:
        queries = encoder.encode_texts([record["captions"][language] for record in records])
        counted = found[language] = Counted()
        for row, query in enumerate(queries):
            if records[row]["kind"] != "photograph":
                continue
            right = np.arange(len(images)) == row
            keep(counted, images, query, right, whole, least)
            absent = images[~alike[row]]
            counted.removed.append(bool((centred(calibrated(absent, null), absent, query) < least).all()))
    return found


def flickr(data: Path) -> tuple[list[str], list[list[str]], list[bytes]]:
    """Keys, English captions and encoded images of the validation photographs."""
    members = sorted(tar_members(data / "flickr8k" / "val.tar"), key=lambda each: each["key"])
    captions = [json.loads(each["json"])["captions"]["en"][0]["captions"] for each in members]
    return [each["key"] for each in members], captions, [each["jpg"] for each in members]


def tar_members(path: Path) -> Iterator[dict[str, Any]]:
    """Members of one name, by their endings; they need not be adjacent."""
    found: dict[str, dict[str, Any]] = {}
    with tarfile.open(path) as tar:
        for member in tar:
            key, _, ending = member.name.rpartition(".")
            stream = tar.extractfile(member)
            found.setdefault(key, {"key": key})[ending] = stream.read() if stream else b""
    return iter(found.values())


def table(title: str, found: dict[str, Counted]) -> str:
    """A Markdown table, a language a row."""

    def share(values: Sequence[bool]) -> str:
        return f"{np.mean(values):.0%} of {len(values)}" if values else "-"

    rows = []
    for language, each in found.items():
        cells = f"{share(each.kept)} (of {each.asked})", share(each.foreign), share(each.removed)
        rows.append(f"| {title}, {language} | {' | '.join(cells)} |")
    return "\n".join(rows)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--data", type=Path, help="folder with flickr8k/val.tar and clip_vitb32_flickr8k_val/"
    )
    parser.add_argument("--min-confidence", type=float, default=0.8)
    told = parser.parse_args()
    least = told.min_confidence
    print("| queries | right hits kept, of those among the first ten | foreign: empty | removed: empty |")
    print("|---|---|---|---|", flush=True)
    measured: list[tuple[str, Callable[[], dict[str, Counted]]]] = [("sample, nano", lambda: sample(least))]
    if told.data:
        things = Path(__file__).with_name("concepts.tsv")
        measured.append(("things, nano", lambda: concepts(told.data, things, least)))
        measured.append(("captions, CLIP ViT-B/32", lambda: captions_of_clip(told.data, least)))
    for title, measure in measured:
        print(table(title, measure()), flush=True)


if __name__ == "__main__":
    main()
