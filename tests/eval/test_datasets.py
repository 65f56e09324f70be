import io
import tarfile

import pytest
from PIL import Image

from llm2clip.eval.datasets import DatasetError, read_captioned, read_tar

RED, GREEN, BLUE = (255, 0, 0), (0, 255, 0), (0, 0, 255)


@pytest.fixture
def corpus(tmp_path, tars):
    return tars.write(
        tmp_path / "corpus.tar",
        {
            "a/1": (
                tars.colour(RED),
                {"caption": "red", "captions": {"de": ["rot", "ganz rot"], "fr": "rouge"}},
            ),
            "2.x": (tars.colour(GREEN), {"caption": "green", "names": {"de": "grün"}}),
            "3": (tars.colour(BLUE), None),
            "4": (None, {"caption": "no picture"}),
        },
    )


def test_pictures_are_found_and_read_where_they_lie(corpus, tars):
    pictures = list(read_tar(corpus))
    assert [picture.key for picture in pictures] == ["a/1", "2.x", "3"]
    assert [picture.read() for picture in pictures] == [
        tars.colour(RED),
        tars.colour(GREEN),
        tars.colour(BLUE),
    ]
    assert Image.open(io.BytesIO(pictures[1].read())).getpixel((0, 0)) == GREEN
    assert pictures[2].metadata == {}


def test_captions_of_the_default_language(corpus):
    dataset = read_captioned(corpus)
    assert dataset.name == "corpus"
    assert dataset.texts == ("red", "green")
    assert list(dataset.positives) == [0, 1]
    assert len(dataset.images) == 3


def test_several_captions_and_names_of_another_language(corpus):
    dataset = read_captioned(corpus, language="de")
    assert dataset.name == "corpus-de"
    assert dataset.texts == ("rot", "ganz rot", "grün")
    assert list(dataset.positives) == [0, 0, 1]


def test_several_files_make_one_set(corpus, tmp_path, tars):
    other = tars.write(tmp_path / "more.tar", {"9": (tars.colour(BLUE), {"captions": {"fr": "bleu"}})})
    dataset = read_captioned(corpus, other, language="fr", name="colours")
    assert (dataset.name, dataset.texts, list(dataset.positives)) == ("colours", ("rouge", "bleu"), [0, 3])


def test_a_language_without_captions_is_an_error(corpus):
    with pytest.raises(
        DatasetError, match="3 pictures but no text, expected captions or names in language 'zh'"
    ):
        read_captioned(corpus, language="zh")


def test_a_tar_without_pictures_is_an_error(tmp_path, tars):
    path = tars.write(tmp_path / "empty.tar", {"4": (None, {"caption": "no picture"})})
    with pytest.raises(DatasetError, match="no picture in"):
        read_captioned(path)


@pytest.mark.parametrize("content", [b"not a tar at all" * 100, b"\x1f\x8b rest"])
def test_a_file_that_is_no_tar_is_named(tmp_path, content):
    path = tmp_path / "broken.tar"
    path.write_bytes(content)
    with pytest.raises(DatasetError, match=r"broken\.tar is not a readable tar file"):
        list(read_tar(path))


def test_a_cut_off_tar_is_refused(corpus):
    corpus.write_bytes(corpus.read_bytes()[:700])
    with pytest.raises(DatasetError, match="not a readable tar file"):
        list(read_tar(corpus))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"{", "is not valid JSON"),
        (b"[1]", "holds list, expected a JSON object"),
        (b"\xff", "is not valid JSON"),
    ],
)
def test_bad_json_is_named(tmp_path, content, message, tars):
    path = tmp_path / "bad.tar"
    with tarfile.open(path, "w") as tar:
        tars.add(tar, "1.png", tars.colour(RED))
        tars.add(tar, "1.json", content)
    with pytest.raises(DatasetError, match=rf"bad\.tar: 1\.json {message}"):
        list(read_tar(path))


def test_a_huge_json_is_refused(tmp_path, tars):
    path = tmp_path / "huge.tar"
    with tarfile.open(path, "w") as tar:
        tars.add(tar, "1.json", b" " * ((1 << 20) + 1))
    with pytest.raises(DatasetError, match="expected at most 1048576"):
        list(read_tar(path))
