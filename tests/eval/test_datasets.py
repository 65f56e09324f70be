import io
import tarfile

import pytest
from PIL import Image

from llm2clip.eval.datasets.tar_images import DatasetError, read_captioned, read_tar
from llm2clip.indexer import open_corpus

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
            "4": (None, {"caption": "no image"}),
        },
    )


def test_read_tar_finds_and_reads_images(corpus, tars):
    images = list(read_tar(corpus))
    assert [image.key for image in images] == ["a/1.png", "2.x.png", "3.png"]
    assert [image.read() for image in images] == [tars.colour(RED), tars.colour(GREEN), tars.colour(BLUE)]
    assert Image.open(io.BytesIO(images[1].read())).getpixel((0, 0)) == GREEN
    assert images[2].metadata == {}


def test_read_captioned_default_language(corpus):
    dataset = read_captioned(corpus)
    assert dataset.name == "corpus"
    assert dataset.texts == ("red", "green")
    assert list(dataset.positives) == [0, 1]
    assert len(dataset.images) == 3


def test_read_captioned_several_captions_and_names(corpus):
    dataset = read_captioned(corpus, language="de")
    assert dataset.name == "corpus-de"
    assert dataset.texts == ("rot", "ganz rot", "grün")
    assert list(dataset.positives) == [0, 0, 1]


def test_tar_image_texts_unwraps_captions_with_a_kind(tmp_path, tars):
    german = [{"captions": ["rot", "ganz rot"], "kind": "human_written"}, {"captions": "das Rote"}]
    corpus = tars.write(tmp_path / "x.tar", {"1": (tars.colour(RED), {"captions": {"de": german}})})
    assert read_captioned(corpus, language="de").texts == ("rot", "ganz rot", "das Rote")


def test_read_captioned_joins_several_files(corpus, tmp_path, tars):
    other = tars.write(tmp_path / "more.tar", {"9": (tars.colour(BLUE), {"captions": {"fr": "bleu"}})})
    dataset = read_captioned(corpus, other, language="fr", name="colours")
    assert (dataset.name, dataset.texts, list(dataset.positives)) == ("colours", ("rouge", "bleu"), [0, 3])


def test_read_captioned_refuses_a_language_without_captions(corpus):
    with pytest.raises(
        DatasetError, match="3 images but no text, expected captions or names in language 'zh'"
    ):
        read_captioned(corpus, language="zh")


def test_read_captioned_refuses_a_tar_without_images(tmp_path, tars):
    path = tars.write(tmp_path / "empty.tar", {"4": (None, {"caption": "no image"})})
    with pytest.raises(DatasetError, match="no image in"):
        read_captioned(path)


def test_read_tar_groups_members_as_an_index_does(tmp_path, tars):
    """Up to the first dot of the name, and only one after the other: what a search shows is what is measured."""
    path = tmp_path / "some.tar"
    with tarfile.open(path, "w") as tar:
        tars.add(tar, "1.thumb.png", tars.colour(RED))
        tars.add(tar, "1.json", b'{"caption": "red", "n": 1}')
        tars.add(tar, "2.png", tars.colour(GREEN))
        tars.add(tar, "3.png", tars.colour(BLUE))
        tars.add(tar, "3.txt", b"blue")
        tars.add(tar, "2.json", b'{"caption": "late"}')
    found = [(image.key, image.caption, image.metadata) for image in read_tar(path)]
    assert found == [("1.thumb.png", "red", {"n": 1}), ("2.png", None, {}), ("3.png", "blue", {})]
    indexed = [(record.key, record.caption, record.metadata or {}) for record in open_corpus(path).records()]
    assert [(f"some.tar#{key}", caption, metadata) for key, caption, metadata in found] == indexed


def test_read_tar_names_a_missing_file(tmp_path):
    with pytest.raises(DatasetError, match=r"no such shard: .*nowhere\.tar"):
        list(read_tar(tmp_path / "nowhere.tar"))


@pytest.mark.parametrize("content", [b"not a tar at all" * 100, b"\x1f\x8b rest"])
def test_read_tar_refuses_other_files(tmp_path, content):
    path = tmp_path / "broken.tar"
    path.write_bytes(content)
    with pytest.raises(DatasetError, match=r"broken\.tar: tar cannot be read after 0 images: .* download"):
        list(read_tar(path))


def test_read_tar_refuses_a_cut_off_tar(corpus):
    corpus.write_bytes(corpus.read_bytes()[:700])
    with pytest.raises(DatasetError, match=r"corpus\.tar.*: tar cannot be read after \d images"):
        list(read_tar(corpus))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"{", "metadata left out, not usable JSON: "),
        (b"[1]", "not usable JSON: expected an object, got list"),
        (b"\xff", "metadata left out, not usable JSON: "),
        (b" " * ((1 << 20) + 1), "caption or metadata left out: more than 1,048,576 bytes"),
    ],
    ids=["cut", "list", "encoding", "huge"],
)
def test_read_tar_refuses_bad_metadata(tmp_path, content, message, tars):
    path = tmp_path / "bad.tar"
    with tarfile.open(path, "w") as tar:
        tars.add(tar, "1.png", tars.colour(RED))
        tars.add(tar, "1.json", content)
    with pytest.raises(DatasetError, match=rf"bad\.tar#1\.png: .*{message}"):
        list(read_tar(path))


def test_read_tar_refuses_two_members_of_one_name(tmp_path, tars):
    path = tmp_path / "twice.tar"
    with tarfile.open(path, "w") as tar:
        for colour in (RED, BLUE):
            tars.add(tar, "1.png", tars.colour(colour))
    with pytest.raises(DatasetError, match="second member of this name"):
        list(read_tar(path))
