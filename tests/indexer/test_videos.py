"""Videos: which frames are taken, that they are those shown at their times, and what damage leaves."""

import io
import sys
from concurrent.futures import ThreadPoolExecutor
from fractions import Fraction

import numpy as np
import pytest
from PIL import Image

from llm2clip.indexer import CorpusError, open_corpus
from llm2clip.indexer.containers.video import read_frame
from llm2clip.indexer.corpora.locator import read_located
from llm2clip.indexer.corpora.open import reopen_corpus

from .material import encoded, records

av = pytest.importorskip("av")

RATE = 5


def grey(number):
    """The grey of a frame: far enough apart to survive compression."""
    return 10 + 4 * (number % 60)


def film(file, *, seconds=10, codec="mpeg4", start=0, group=15, shape=(64, 96), paint=None, options=None):
    """A video of ``RATE`` frames a second, each of its own grey."""
    with av.open(str(file), "w", options=options or {}) as container:
        stream = container.add_stream(codec, rate=RATE)
        stream.height, stream.width, stream.pix_fmt = *shape, "yuvj420p" if codec == "mjpeg" else "yuv420p"
        stream.gop_size, stream.bit_rate = group, 2_000_000
        for number in range(seconds * RATE):
            pixels = np.full((*shape, 3), grey(number), np.uint8)
            if paint is not None:
                paint(pixels, number)
            frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
            frame.pts, frame.time_base = number + start * RATE, Fraction(1, RATE)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())


def level(content):
    """The grey that a frame has."""
    return np.asarray(Image.open(io.BytesIO(content)).convert("L")).mean()


def number_of(content):
    """Which of the first 60 frames it is."""
    return round((level(content) - 10) / 4)


@pytest.mark.parametrize(
    ("name", "codec"),
    [("海.mp4", "mpeg4"), ("a.mkv", "mpeg4"), ("a.mp4", "libx264"), ("a.avi", "mjpeg"), ("a.webm", "libvpx")],
)
def test_read_frames_returns_frames_shown_at_their_times(tmp_path, name, codec):
    if codec not in av.codecs_available:
        pytest.skip(f"this PyAV has no {codec}")
    film(tmp_path / name, codec=codec)
    found = records(tmp_path / name, every=2.5)
    assert [record.key for record in found] == [f"{name}#t={t}" for t in ("0", "2.5", "5", "7.5")]
    assert [record.metadata for record in found] == [{"time": t} for t in (0, 2.5, 5, 7.5)]
    # At 2.5 s the frame that began at 2.4 s is shown.
    assert [number_of(record.read()) for record in found] == [0, 12, 25, 37]
    assert found[1].uri == f"{tmp_path}/{name}#t=2.5"


@pytest.mark.parametrize("every", [0.2, 1, 4, 7])
def test_read_frames_equals_read_frame(tmp_path, every):
    film(tmp_path / "a.mp4", seconds=12, group=35)
    found = records(tmp_path / "a.mp4", every=every)
    times = np.arange(len(found)) * every
    assert len(found) == int(np.ceil(12 / every - 1e-9))
    expected = [int(t * RATE + 1e-6) for t in times]
    assert [number_of(record.read()) for record in found] == expected
    assert [number_of(read_frame(tmp_path / "a.mp4", seconds=t)) for t in times] == expected
    again = records(tmp_path / "a.mp4", every=every)[::-1]
    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(lambda record: number_of(record.read()), again)) == expected[::-1]


def test_frames_of_videos_without_length_or_that_begin_late(tmp_path):
    film(tmp_path / "late.mkv", start=100)
    film(tmp_path / "live.mkv", options={"live": "1"})
    with av.open(str(tmp_path / "live.mkv")) as container:
        assert container.duration is None
    for name in ("late.mkv", "live.mkv"):
        found = [
            (record.metadata["time"], number_of(record.read()))
            for record in records(tmp_path / name, every=4)
        ]
        assert found == [(0, 0), (4, 20), (8, 40)]


def test_read_frame_applies_rotation(tmp_path):
    def paint(pixels, number):
        pixels[:, :48], pixels[:, 48:] = (255, 0, 0), (0, 0, 255)

    film(tmp_path / "a.mp4", seconds=1, paint=paint)
    straight = Image.open(io.BytesIO(read_frame(tmp_path / "a.mp4", seconds=0)))
    assert straight.size == (96, 64)
    whole = bytearray((tmp_path / "a.mp4").read_bytes())
    matrix = np.array([0x10000, 0, 0, 0, 0x10000, 0, 0, 0, 0x40000000], ">i4").tobytes()
    turned = np.array([0, 0x10000, 0, -0x10000, 0, 0, 64 << 16, 0, 0x40000000], ">i4").tobytes()
    place = whole.index(matrix, whole.index(b"tkhd"))
    whole[place : place + len(turned)] = turned  # shown turned by 90 degrees clockwise
    (tmp_path / "a.mp4").write_bytes(whole)
    image = Image.open(io.BytesIO(read_frame(tmp_path / "a.mp4", seconds=0)))
    assert image.size == (64, 96)
    top, bottom = image.getpixel((32, 10)), image.getpixel((32, 86))
    assert top[0] > 200 > 60 > top[2]
    assert bottom[2] > 200 > 60 > bottom[0]


def test_folder_corpus_reads_videos_among_images(tmp_path):
    (tmp_path / "d").mkdir()
    film(tmp_path / "d" / "b.mp4", seconds=3)
    (tmp_path / "d" / "b.txt").write_text("the sea")
    (tmp_path / "a.png").write_bytes(encoded((1, 2, 3)))
    corpus = open_corpus(tmp_path)
    assert [record.key for record in corpus.records()] == ["a.png"]
    assert corpus.skipped_note() == "1 video skipped (1 .mp4): --frame-interval 10 takes a frame every 10 s"
    corpus = open_corpus(tmp_path, every=1)
    found = list(corpus.records())
    assert [record.key for record in found] == ["a.png", *(f"d/b.mp4#t={t}" for t in range(3))]
    assert [record.metadata for record in found[1:]] == [{"time": t} for t in range(3)]
    assert {record.caption for record in found[1:]} == {"the sea"}
    assert corpus.skipped_note() is None
    assert corpus.identity()["every"] == "1"
    again = reopen_corpus(corpus.identity())
    assert [record.key for record in again.records()] == [record.key for record in found]
    for record in found[1:]:
        content = read_located(record.locator, key=record.key, corpus=corpus.identity())
        assert number_of(content) == number_of(record.read()) == 5 * record.metadata["time"]


def test_open_corpus_reads_a_folder_of_videos(tmp_path):
    film(tmp_path / "a.mp4", seconds=12)
    corpus = open_corpus(tmp_path)
    assert [record.key for record in corpus.records()] == ["a.mp4#t=0", "a.mp4#t=10"]
    assert corpus.notes == ["one frame every 10 s of each video is indexed: --frame-interval changes that"]
    again = reopen_corpus(open_corpus(tmp_path / "a.mp4", every=6).identity())
    assert [record.key for record in again.records()] == ["a.mp4#t=0", "a.mp4#t=6"]


def test_video_corpus_reads_a_truncated_video(tmp_path):
    film(tmp_path / "a.mkv", group=5)
    film(tmp_path / "b.mkv", seconds=1)
    whole = (tmp_path / "a.mkv").read_bytes()
    (tmp_path / "a.mkv").write_bytes(whole[: len(whole) // 2])
    frames = []
    for record in records(tmp_path, every=1):
        try:
            frames.append((record.key, number_of(record.read())))
        except CorpusError as error:
            frames.append((record.key, str(error)))
    assert frames[:4] == [(f"a.mkv#t={t}", 5 * t) for t in range(4)]
    assert frames[-1] == ("b.mkv#t=0", 0)


@pytest.mark.parametrize("content", [b"", b"no video" * 100])
def test_video_corpus_reports_other_files(tmp_path, content):
    (tmp_path / "a.mp4").write_bytes(content)
    film(tmp_path / "b.mp4", seconds=1)
    broken, good = records(tmp_path)
    assert broken.key == "a.mp4"
    assert broken.problem.startswith("video cannot be read: not a readable video: Invalid data")
    assert number_of(good.read()) == 0


def test_video_corpus_checks_the_interval_and_the_extra(tmp_path, monkeypatch):
    film(tmp_path / "a.mp4", seconds=1)
    for every in (0, -1, float("nan"), 1e7):
        with pytest.raises(CorpusError, match=r"frames must be between 0\.001 and a million, got"):
            open_corpus(tmp_path, every=every)
    monkeypatch.setitem(sys.modules, "av", None)
    for spec in (tmp_path, tmp_path / "a.mp4"):
        with pytest.raises(CorpusError, match=r"needs av: pip install 'llm2clip-retrieval\[video\]'"):
            open_corpus(spec)


def test_frames_have_the_time_at_which_the_video_was_made(tmp_path):
    with av.open(str(tmp_path / "a.mp4"), "w") as container:
        container.metadata["creation_time"] = "2019-05-04T03:02:01.000000Z"
        stream = container.add_stream("mpeg4", rate=RATE)
        stream.height, stream.width, stream.pix_fmt = 64, 96, "yuv420p"
        container.mux(
            stream.encode(av.VideoFrame.from_ndarray(np.zeros((64, 96, 3), np.uint8), format="rgb24"))
        )
        container.mux(stream.encode())
    [frame] = records(tmp_path / "a.mp4")
    assert frame.metadata["time"] == 0
    made = {"time": "2019-05-04T03:02:01.000000Z", "ns": 1556938921 * 10**9, "source": "video"}
    assert frame.metadata["@image"] | {"time": made["time"]} == made
