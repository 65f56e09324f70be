"""The time of an image is its capture time, and what its file says of itself becomes metadata."""

import io
import json
import os
import random
import struct
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from PIL import Image, PngImagePlugin

from llm2clip.encoders import FakeEncoder
from llm2clip.indexer import BuildOptions, Hit, build_index, open_index, update_index
from llm2clip.indexer.lifecycle.export import export_index
from llm2clip.indexer.records.embedded import read_embedded
from llm2clip.indexer.records.exif import moment
from llm2clip.indexer.records.files import embedded_parts
from llm2clip.indexer.records.values import split_embedded, with_embedded

from .material import colour_of, encoded

FILE_TIME = datetime(2024, 3, 1, 12, tzinfo=UTC).timestamp()
TAKEN = "2019:05:04 23:30:15"
XMP = (
    b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF><rdf:Description xmp:Rating="4" '
    b'photoshop:DateCreated="2018-02-03T04:05:06.5+02:00"><dc:subject><rdf:Bag><rdf:li>sea &amp; sun</rdf:li>'
    b"<rdf:li>\xe6\xb5\xb7</rdf:li></rdf:Bag></dc:subject></rdf:Description></rdf:RDF></x:xmpmeta>"
)


def exif(taken: str = TAKEN, **more: str) -> Image.Exif:
    """EXIF as Pillow writes it, of a camera in Sydney's zone."""
    made = Image.Exif()
    made[0x010F], made[0x0110], made[0x0112] = "NIKON CORPORATION", "NIKON D850", 6
    made.get_ifd(0x8769).update({0x9003: taken, 0x9291: "25", 0x9011: "+10:00", 0xA434: "50mm f/1.8", **more})
    made.get_ifd(0x8825).update({1: "S", 2: (33.0, 51.0, 30.6), 3: "E", 4: (151.0, 12.0, 54.0)})
    return made


def saved(format: str, number: int = 1, **options: object) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (12, 8), colour_of(number)).save(buffer, format, **options)
    return buffer.getvalue()


def told_by(content: bytes) -> dict[str, Any] | None:
    return read_embedded(embedded_parts(content))


def put(folder: Path, name: str, content: bytes) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / name).write_bytes(content)
    os.utime(folder / name, (FILE_TIME, FILE_TIME))
    return folder


def hits(index: Path, where: str | None = None) -> dict[str, Hit]:
    with open_index(index) as opened:
        found = opened.search(FakeEncoder().encode_texts(["red"]), k=100, where=where)[0]
    return {hit.key: hit for hit in found}


@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP"])
def test_time_is_that_of_exif(tmp_path, format):
    photos = put(tmp_path / "photos", f"a.{format.lower()}", saved(format, exif=exif()))
    put(photos, "plain.png", encoded(colour_of(2)))
    build_index(photos, tmp_path / "i", encoder=FakeEncoder())
    name = f"a.{format.lower()}"
    found = hits(tmp_path / "i")
    assert (found[name].time, found[name].time_source) == ("2019-05-04T23:30:15.25+10:00", "exif")
    assert (found["plain.png"].time, found["plain.png"].time_source) == ("2024-03-01T12:00:00Z", "file")
    assert found["plain.png"].metadata == {}
    assert found[name].metadata == {
        "camera": "NIKON D850",
        "lens": "50mm f/1.8",
        "orientation": 6,
        "latitude": -33.8585,
        "longitude": 151.215,
    }
    for where, expected in (
        ("time = '2019'", {name}),
        ("time = '2019-05-04'", {name}),  # the day on the camera's clock, though it was still noon in London
        ("time = '2019-05-04 23:30:15.25'", {name}),
        ("time >= '2019' AND time_source = 'exif'", {name}),
        ("time = '2024'", {"plain.png"}),
        ("time_source = 'file'", {"plain.png"}),
        ("meta.camera CONTAINS 'nikon' AND meta.latitude < 0", {name}),
    ):
        assert set(hits(tmp_path / "i", where)) == expected, where


def test_xmp_and_png_text_have_times():
    text = PngImagePlugin.PngInfo()
    text.add_text("Creation Time", "Tue, 02 Jan 2018 03:04:05 +0100")
    assert told_by(saved("PNG", pnginfo=text))["time"] == "2018-01-02T03:04:05+01:00"
    for format in ("JPEG", "WEBP"):
        told = told_by(saved(format, xmp=XMP))
        assert (told["time"], told["source"]) == ("2018-02-03T04:05:06.5+02:00", "xmp")
        assert told["values"] == {"rating": 4, "keywords": ["sea & sun", "海"]}
    assert told["ns"] == int(datetime(2018, 2, 3, 4, 5, 6, tzinfo=UTC).timestamp()) * 10**9 + 500_000_000


def test_iptc_of_a_jpeg():
    fields = [(55, b"20170809"), (60, b"101112+0300"), (25, b"boat"), (25, "Köln".encode("latin-1"))]
    records = b"".join(struct.pack(">BBBH", 0x1C, 2, kind, len(text)) + text for kind, text in fields)
    block = b"Photoshop 3.0\0" + b"8BIM\x04\x04\0\0" + struct.pack(">I", len(records)) + records
    plain = saved("JPEG")
    told = told_by(plain[:2] + b"\xff\xed" + struct.pack(">H", len(block) + 2) + block + plain[2:])
    assert (told["time"], told["source"]) == ("2017-08-09T10:11:12+03:00", "iptc")
    assert told["values"] == {"keywords": ["boat", "Köln"]}


def test_exif_of_tiff_heic_and_either_byte_order():
    payload = exif().tobytes().removeprefix(b"Exif\0\0")  # which is a TIFF
    expected = told_by(saved("JPEG", exif=exif()))
    assert expected["time"] == "2019-05-04T23:30:15.25+10:00"
    assert told_by(payload) == expected
    assert told_by(b"\0\0\0\x18ftypheic" + bytes(99) + b"Exif\0\0" + payload) == expected
    big = b"MM\0*" + struct.pack(">IHHHI4sI", 8, 1, 0x0112, 3, 1, b"\0\x08\0\0", 0)
    assert told_by(big) == {"values": {"orientation": 8}}


@pytest.mark.parametrize(
    "wrong",
    [
        "0000:00:00 00:00:00",
        "9999:12:31 23:59:59",
        "2019:13:01 00:00:00",
        "1970:01:01 00:00:00",
        "    :  ",
        "海" * 9,
    ],
)
def test_wrong_time_falls_back_to_that_of_the_file(tmp_path, wrong):
    photos = put(tmp_path / "photos", "a.jpg", saved("JPEG", exif=exif(wrong)))
    build_index(photos, tmp_path / "i", encoder=FakeEncoder())
    [hit] = hits(tmp_path / "i", "time = '2024-03-01' AND time_source = 'file'").values()
    assert (hit.time_source, hit.metadata["camera"]) == ("file", "NIKON D850")


def test_moment_reads_what_clocks_write():
    assert moment("2019:05:04 03:02:01", zone="+0530", fraction="5 ") == (
        "2019-05-04T03:02:01+05:30",
        1556938921 * 10**9,
    )
    assert moment("2019-05-04") == ("2019-05-04", 1556928000 * 10**9)
    assert moment("2016-12-31T23:59:60Z").text == "2016-12-31T23:59:59Z"
    assert moment("1850-01-01T00:00:00").ns == -3786825600 * 10**9
    assert [moment(text) for text in ("", "2019", "2019:02:30 00:00:00", "2019:05:04 03:02:01 later")] == [
        None
    ] * 4


def test_sidecars_come_first_and_their_changes_keep_what_the_file_says(tmp_path):
    photos = put(tmp_path / "photos", "a.jpg", saved("JPEG", exif=exif()))
    (photos / "a.json").write_text(json.dumps({"camera": "mine", "mood": "calm"}))
    build_index(photos, tmp_path / "i", encoder=FakeEncoder())
    assert hits(tmp_path / "i")["a.jpg"].metadata["camera"] == "mine"
    (photos / "a.json").write_text(json.dumps({"lens": "another lens"}))
    encoder = FakeEncoder()
    assert update_index(tmp_path / "i", encoder=encoder).described == 1
    hit = hits(tmp_path / "i", "time = '2019'")["a.jpg"]
    assert (hit.metadata["camera"], hit.metadata["lens"]) == ("NIKON D850", "another lens")
    assert "mood" not in hit.metadata
    assert encoder.image_batches == []


def test_moved_and_touched_images_keep_their_time(tmp_path):
    photos = put(tmp_path / "photos", "a.jpg", saved("JPEG", exif=exif()))
    build_index(photos, tmp_path / "i", encoder=FakeEncoder())
    (photos / "a.jpg").rename(photos / "b.jpg")
    os.utime(photos / "b.jpg", (FILE_TIME + 9, FILE_TIME + 9))
    assert update_index(tmp_path / "i", encoder=FakeEncoder()).moved == 1
    assert set(hits(tmp_path / "i", "time = '2019' AND meta.camera = 'NIKON D850'")) == {"b.jpg"}


def test_export_and_metadata_names_show_no_inner_entry(tmp_path):
    photos = put(tmp_path / "photos", "a.jpg", saved("JPEG", exif=exif()))
    build_index(photos, tmp_path / "i", encoder=FakeEncoder())
    with open_index(tmp_path / "i") as index:
        names = index.metadata_names()
    assert names == ["meta.camera", "meta.latitude", "meta.lens", "meta.longitude", "meta.orientation"]
    export_index(tmp_path / "i", tmp_path / "out")
    [row] = map(json.loads, (tmp_path / "out/items.jsonl").read_text("utf-8").splitlines())
    assert (row["time"], row["time_source"]) == ("2019-05-04T23:30:15.25+10:00", "exif")
    assert sorted(row["metadata"]) == [name.removeprefix("meta.") for name in names]


def test_split_embedded_undoes_with_embedded():
    own, told = (
        {"camera": "mine", "a": 1},
        {"time": "2019", "ns": 5, "source": "exif", "values": {"camera": "x", "b": 2}},
    )
    merged = with_embedded(own, told)
    assert (merged["camera"], merged["a"], merged["b"]) == ("mine", 1, 2)
    assert split_embedded(merged) == (own, told)
    for odd in (3, {"names": "ab"}, {"names": [1, "a"], "hidden": [], "ns": "x"}):
        assert "@image" not in split_embedded({"a": 1, "@image": odd})[0]


def test_mutated_metadata_never_ends_a_build(tmp_path):
    rng = random.Random(7)
    files = [
        saved("JPEG", exif=exif(), xmp=XMP),
        saved("PNG", exif=exif()),
        saved("WEBP", exif=exif(), xmp=XMP),
    ]
    files += [saved("TIFF", exif=exif())]
    for content in files:
        for _ in range(700):
            mutated = bytearray(content)
            for _ in range(rng.randint(1, 8)):
                mutated[rng.randrange(min(700, len(mutated)))] = rng.choice(
                    (0, 1, 0x7F, 0xFF, rng.randrange(256))
                )
            cut = bytes(mutated[: rng.randint(1, len(mutated))] if rng.random() < 0.3 else mutated)
            told = told_by(cut)
            assert told is None or json.loads(json.dumps(told)) == told
    photos = tmp_path / "photos"
    for number in range(24):
        mutated = bytearray(saved("JPEG", number, exif=exif()))
        for _ in range(6):
            mutated[rng.randrange(20, 300)] = rng.randrange(256)
        put(photos, f"{number}.jpg", bytes(mutated))
    report = build_index(photos, tmp_path / "i", encoder=FakeEncoder())
    assert report.items + report.bad == 24


def test_interrupted_build_goes_on_with_capture_times(tmp_path):
    photos = tmp_path / "photos"
    for number in range(60):
        put(photos, f"{number:02d}.jpg", saved("JPEG", number, exif=exif()))
    encoder = FakeEncoder()
    encode = encoder.encode_prepared

    def fail_late(rows):  # after some vectors are on the disk
        if len(encoder.image_batches) >= 3:
            raise OSError("unplugged")
        return encode(rows)

    encoder.encode_prepared = fail_late
    with pytest.raises(OSError, match="unplugged"):
        build_index(photos, tmp_path / "i", encoder=encoder, options=BuildOptions(batch_size=8))
    report = build_index(photos, tmp_path / "i", encoder=FakeEncoder(), options=BuildOptions(batch_size=8))
    assert (report.items, report.kept > 0) == (60, True)
    assert len(hits(tmp_path / "i", "time = '2019' AND meta.camera = 'NIKON D850'")) == 60
