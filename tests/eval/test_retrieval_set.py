"""The type that carries a set: what it refuses, and how it is cut."""

from pathlib import Path

import pytest

from llm2clip.eval.datasets.retrieval_set import ImageRef, RetrievalSet
from llm2clip.eval.datasets.tar_images import DatasetError
from llm2clip.eval.metrics.rank_positions import Positives


def images(count):
    return tuple(ImageRef(key=f"{number}.jpg", file=Path(f"{number}.jpg")) for number in range(count))


def make(*, protocol="mine", complete=True, language=None, photos=3, captions=None, right=None):
    captions = ("a", "b", "c") if captions is None else captions
    return RetrievalSet(
        protocol=protocol,
        language=language,
        images=images(photos),
        captions=captions,
        caption_images=((0,), (1, 2), (2,)) if right is None else right,
        complete=complete,
    )


def test_retrieval_set_counts_and_name():
    found = make(language="de")
    assert (found.id, found.counts.images, found.counts.captions, found.counts.pairs) == ("mine:de", 3, 3, 4)


def test_retrieval_set_positives_fit_the_metrics():
    pairs = Positives.of(make().caption_images, shape=(3, 3))
    assert list(zip(pairs.row, pairs.column, strict=True)) == [(0, 0), (1, 1), (1, 2), (2, 2)]


@pytest.mark.parametrize(
    ("protocol", "complete", "right"),
    [("mine", False, "mine+partial"), ("mine+partial", True, "mine"), ("coco-5k", False, "coco-5k.partial")],
)
def test_retrieval_set_name_tells_whether_it_is_complete(protocol, complete, right):
    with pytest.raises(DatasetError, match=rf"called .*, expected '{right}'".replace("+", ".")):
        make(protocol=protocol, complete=complete)


def test_retrieval_set_needs_the_declared_counts():
    with pytest.raises(DatasetError, match="got 3 images, expected 5,000; got 3 captions, expected 25,010"):
        make(protocol="coco-5k")
    assert make(protocol="coco-5k+partial", complete=False).id == "coco-5k+partial"


@pytest.mark.parametrize(("protocol", "language"), [("coco-5k", "de"), ("xtd10", None), ("xtd10", "jp")])
def test_retrieval_set_needs_a_declared_language(protocol, language):
    with pytest.raises(DatasetError, match=f"got '{protocol}' in language '{language}', expected one of"):
        make(protocol=f"{protocol}+partial", complete=False, language=language)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"photos": 0, "right": ((), (), ())}, "got 0 images and 3 captions"),
        ({"captions": (), "right": ()}, "got 3 images and 0 captions"),
        ({"right": ((0,),)}, "got images for 1 captions, expected 3"),
        ({"right": ((0,), (1,), (3,))}, r"caption 2 belongs to images \[3\], expected one or more of 0 to 2"),
        ({"right": ((0,), (), (1,))}, r"caption 1 belongs to images \[\]"),
        ({"captions": ("a", " \n", "c")}, "caption 1 is empty"),
    ],
)
def test_retrieval_set_refuses_contradictions(change, message):
    with pytest.raises(DatasetError, match=message):
        make(**change)


def test_retrieval_set_refuses_two_images_of_one_key():
    with pytest.raises(DatasetError, match="two images have one key"):
        RetrievalSet(
            protocol="mine", images=images(1) * 2, captions=("a",), caption_images=((0,),), complete=True
        )


def test_retrieval_set_first_keeps_captions_of_its_images():
    part = make().first(2)
    assert (part.protocol, part.complete) == ("mine+partial", False)
    assert (part.captions, part.caption_images) == (["a", "b"], [(0,), (1,)])
    assert part.notes == ("only the first 2 of 3 images",)
    assert part.first(1).protocol == "mine+partial"
    assert make().first(3).complete


def test_image_ref_reads_from_file_span_and_base64(tmp_path):
    file = tmp_path / "x"
    file.write_bytes(b"0123_-8=\n")
    assert ImageRef(key="1", file=file).read() == b"0123_-8=\n"
    assert ImageRef(key="1", file=file, offset=2, size=3).read() == b"23_"
    # '_-8=' is the URL's spelling of '/+8=': bytes ff ef.
    assert ImageRef(key="1", file=file, offset=4, size=4, in_base64=True).read() == b"\xff\xef"
    with pytest.raises(OSError, match="ends 1 bytes early"):
        ImageRef(key="1", file=file, offset=4, size=6).read()
