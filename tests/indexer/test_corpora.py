"""Every kind of corpus through the same life: built, searched, its hits read again, changed, brought up to date."""

import csv
import io
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
from PIL import Image

from llm2clip.encoders import FakeEncoder
from llm2clip.indexer import build_index, open_corpus, open_index
from llm2clip.indexer.corpora.list_file import StdinCorpus
from llm2clip.indexer.corpora.open import reopen_corpus

from .material import colour_of, encoded, tar_of
from .test_zips import zip_of

COUNT = 6


def folder(place: Path, images: list[bytes]) -> Path:
    for number, content in enumerate(images):
        (place / "海" / f"{number}.png").parent.mkdir(parents=True, exist_ok=True)
        (place / "海" / f"{number}.png").write_bytes(content)
        (place / "海" / f"{number}.json").write_text(json.dumps({"caption": f"image {number}", "n": number}))
    return place


def members(images: list[bytes]) -> dict[str, bytes]:
    found: dict[str, bytes] = {}
    for number, content in enumerate(images):
        found[f"海/{number}.png"] = content
        found[f"海/{number}.json"] = json.dumps({"caption": f"image {number}", "n": number}).encode()
    return found


def tar(place: Path, images: list[bytes]) -> Path:
    place.mkdir(exist_ok=True)
    (place / "s.tar").write_bytes(tar_of(members(images)))
    return place / "s.tar"


def zipped(place: Path, images: list[bytes]) -> Path:
    place.mkdir(exist_ok=True)
    (place / "s.zip").write_bytes(zip_of(members(images)))
    return place / "s.zip"


def table(place: Path, images: list[bytes], *, arrow: bool = False) -> Path:
    pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    place.mkdir(exist_ok=True)
    numbers = range(len(images))
    image = pa.array([{"bytes": content, "path": None} for content in images])
    made = pa.table({"image": image, "caption": [f"image {n}" for n in numbers], "n": list(numbers)})
    if not arrow:
        pq.write_table(made, place / "s.parquet", row_group_size=4)
        return place / "s.parquet"
    with pa.ipc.new_stream(place / "s.arrow", made.schema) as writer:
        writer.write_table(made, max_chunksize=4)
    return place / "s.arrow"


def listed(place: Path, images: list[bytes], *, kind: str = "csv") -> Path:
    folder(place, images)
    rows = [(f"海/{n}.png", f"image {n}", n) for n in range(len(images))]
    file = place / f"list.{kind}"
    if kind == "jsonl":
        lines = [json.dumps({"file_name": path, "caption": caption, "n": n}) for path, caption, n in rows]
        file.write_text("\n".join(lines), "utf-8")
    elif kind == "txt":
        file.write_text("\n".join(path for path, _, _ in rows), "utf-8")
    else:
        with open(file, "w", encoding="utf-8", newline="") as stream:
            marks = "\t" if kind == "tsv" else ","
            csv.writer(stream, delimiter=marks).writerows([("path", "caption", "n"), *rows])
    return file


def remote(place: Path, images: list[bytes]) -> str:
    pytest.importorskip("fsspec")
    return f"file://{folder(place, images)}"


class Kind(NamedTuple):
    make: Callable[[Path, list[bytes]], Path | str]
    key: str  # with the image's number in braces


KINDS = {
    "folder": Kind(folder, "海/{}.png"),
    "tar": Kind(tar, "s.tar#海/{}.png"),
    "zip": Kind(zipped, "s.zip#海/{}.png"),
    "parquet": Kind(table, "s.parquet#{}"),
    "arrow": Kind(lambda place, images: table(place, images, arrow=True), "s.arrow#{}"),
    "csv": Kind(listed, "海/{}.png"),
    "tsv": Kind(lambda place, images: listed(place, images, kind="tsv"), "海/{}.png"),
    "jsonl": Kind(lambda place, images: listed(place, images, kind="jsonl"), "海/{}.png"),
    "txt": Kind(lambda place, images: listed(place, images, kind="txt"), "海/{}.png"),
    "remote": Kind(remote, "海/{}.png"),
}


@pytest.mark.parametrize("kind", KINDS)
def test_corpus_is_built_searched_read_again_and_updated(tmp_path, kind):
    make, key = KINDS[kind]
    place, index = tmp_path / "长 place", tmp_path / "i"
    images = [encoded(colour_of(number)) for number in range(COUNT)]
    spec = make(place, images)
    encoder = FakeEncoder()
    report = build_index(spec, index, encoder=encoder)
    assert (report.items, report.bad, report.embedded) == (COUNT, 0, COUNT)
    _same(index, encoder, key, images)
    assert build_index(spec, index, encoder=encoder).up_to_date
    with open_index(index) as opened:
        again = reopen_corpus(opened.manifest.sources[0])
    assert [record.key for record in again.records()] == [key.format(number) for number in range(COUNT)]
    assert build_index(again, index, encoder=encoder).up_to_date

    # One image more, one another: the others keep their vectors, whatever holds them.
    images = [*images[:2], encoded((9, 9, 9)), *images[3:], encoded((1, 2, 3))]
    make(place, images)
    before = len(encoder.image_batches)
    report = build_index(spec, index, encoder=encoder)
    assert (report.items, report.bad) == (COUNT + 1, 0)
    assert sum(encoder.image_batches[before:]) == 2
    _same(index, encoder, key, images)


def _same(index: Path, encoder: FakeEncoder, key: str, images: list[bytes]) -> None:
    with open_index(index) as opened:
        vectors = np.asarray(encoder.encode_images(images))
        encoder.image_batches.clear()
        for number, [hit] in enumerate(opened.search(vectors, k=1)):
            assert hit.key == key.format(number)
            assert hit.score > 0.999
            assert (hit.caption, hit.metadata["n"]) == (f"image {number}", number)
            assert hit.uri.endswith(f"长 place/{hit.key}")
            assert opened.read_image(hit.id) == images[number]


def test_build_reads_a_list_from_standard_input(tmp_path, monkeypatch):
    place = folder(tmp_path / "d", [encoded(colour_of(number)) for number in range(COUNT)])
    monkeypatch.chdir(tmp_path)
    names = "".join(f"d/海/{number}.png\n" for number in range(COUNT))
    encoder = FakeEncoder()
    assert (
        build_index(StdinCorpus(io.BytesIO(names.encode())), tmp_path / "i", encoder=encoder).items == COUNT
    )
    monkeypatch.chdir(place)  # where the search is run does not matter
    with open_index(tmp_path / "i") as opened:
        query = np.asarray(encoder.encode_images([encoded(colour_of(4))]))
        [hit] = opened.search(query, k=1)[0]
        assert (hit.key, hit.caption, hit.uri) == ("d/海/4.png", "image 4", f"{tmp_path}/d/海/4.png")
        assert opened.read_image(hit.id) == encoded(colour_of(4))


def test_build_command_reads_a_list_from_a_pipe(tmp_path):
    place = folder(tmp_path / "d", [encoded(colour_of(number)) for number in range(COUNT)])
    names = b"\0".join(os.fsencode(path) for path in sorted(place.rglob("*.png")))
    run = _built(names, tmp_path, "--index", str(tmp_path / "i"))
    assert run.returncode == 0, run.stderr.decode()
    assert f"Indexed {COUNT} images" in run.stdout.decode()
    run = _built(names, tmp_path)
    assert run.returncode == 1
    assert run.stderr.decode() == (
        "error: a list on standard input has no default index folder: name one with --index PATH\n"
    )


def _built(names: bytes, folder: Path, *options: str) -> subprocess.CompletedProcess[bytes]:
    driver = Path(__file__).with_name("driver.py")
    command = [sys.executable, driver, "never", "build", "-", "--encoder", "fake16", *options]
    return subprocess.run(command, input=names, capture_output=True, cwd=folder, check=False)


def test_read_image_reads_video_frames_again(tmp_path):
    pytest.importorskip("av")
    from .test_videos import film, number_of

    (tmp_path / "v").mkdir()
    film(tmp_path / "v" / "长城.mp4", seconds=6)
    encoder = FakeEncoder()
    corpus = open_corpus(tmp_path / "v", every=2)
    assert build_index(corpus, tmp_path / "i", encoder=encoder).items == 3
    assert build_index(corpus, tmp_path / "i", encoder=encoder).up_to_date
    with open_index(tmp_path / "i") as opened:
        assert opened.manifest.sources[0]["every"] == "2"
        frames = [opened.read_image(id) for id in range(3)]
        assert [number_of(frame) for frame in frames] == [0, 10, 20]
        for [hit], number in zip(
            opened.search(np.asarray(encoder.encode_images(frames)), k=1), (0, 2, 4), strict=True
        ):
            assert (hit.key, hit.metadata) == (f"长城.mp4#t={number}", {"time": number})
            assert hit.uri == f"{tmp_path}/v/长城.mp4#t={number}"
            assert (hit.width, hit.height) == (96, 64)


def test_folder_corpus_formats_are_all_decoded(tmp_path):
    heif = pytest.importorskip("pillow_heif")
    encoder = FakeEncoder()
    names = ["a.jpg", "b.png", "c.webp", "d.gif", "e.tiff", "f.bmp", "g.avif", "h.heic"]
    halves = Image.new("RGB", (64, 32), (200, 30, 30))
    halves.paste((30, 30, 200), (32, 0, 64, 32))
    (tmp_path / "d").mkdir()
    for name in names:
        exif = Image.Exif()
        exif[0x0112] = 6
        if name == "d.gif":
            halves.save(tmp_path / "d" / name, save_all=True, append_images=[Image.new("RGB", (64, 32))])
        elif name == "h.heic":
            heif.from_pillow(halves).save(tmp_path / "d" / name, quality=95)
        elif name == "g.avif" and ".avif" not in Image.registered_extensions():
            continue
        else:
            options = {"exif": exif} if name == "a.jpg" else {}
            halves.save(tmp_path / "d" / name, **options)
    report = build_index(tmp_path / "d", tmp_path / "i", encoder=encoder)
    assert report.bad == 0
    with open_index(tmp_path / "i") as opened:
        hits = opened.search(np.asarray(encoder.encode_images([halves])), k=8)[0]
        sizes = {hit.key: (hit.width, hit.height) for hit in hits}
        assert sizes.pop("a.jpg") == (32, 64)  # turned, as its EXIF says
        assert set(sizes.values()) == {(64, 32)}
        assert set(sizes) | {"a.jpg"} == {path.name for path in (tmp_path / "d").iterdir()}
        scores = {hit.key: hit.score for hit in hits}
        assert (
            min(scores[name] for name in ("b.png", "d.gif", "e.tiff", "f.bmp")) > 0.999
        )  # the rest are lossy
        assert min(score for name, score in scores.items() if name != "a.jpg") > 0.85


@pytest.mark.parametrize("kind", ["tar", "zip", "parquet", "arrow", "csv", "jsonl", "txt"])
def test_open_corpus_reports_random_damage(tmp_path, kind):
    made = KINDS[kind].make(tmp_path / "d", [encoded(colour_of(number)) for number in range(COUNT)])
    whole = Path(made).read_bytes()
    end = (
        len(whole) // 2 if kind == "parquet" else len(whole)
    )  # of some damage to its footer pyarrow itself dies
    read = refused = 0
    for seed in range(40):
        random = np.random.default_rng(seed)
        damaged = bytearray(whole if seed % 3 else whole[: random.integers(len(whole))])
        for place in random.integers(0, max(1, min(end, len(damaged))), 3):
            damaged[place : place + 1] = bytes([random.integers(256)])
        Path(made).write_bytes(damaged)
        try:
            for record in open_corpus(made).records():
                record.read()
                read += 1
        except (OSError, ValueError):
            refused += 1
    assert read
    assert refused
