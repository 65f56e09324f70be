import pytest

from llm2clip.eval.datasets.tar_images import DatasetError, read_captioned, read_tar
from llm2clip.indexer import open_corpus

RED, GREEN, BLUE = (255, 0, 0), (0, 255, 0), (0, 0, 255)


@pytest.fixture
def corpus(tmp_path, tars):
    said = {"caption": "red", "captions": {"de": ["rot", "ganz rot"], "fr": "rouge"}}
    items = {
        "a/1": (tars.colour(RED), said),
        "2.x": (tars.colour(GREEN), {"caption": "green", "names": {"de": "grün"}}),
        "3": (tars.colour(BLUE), None),
        "4": (None, {"caption": "no image"}),
    }
    return tars.write(tmp_path / "corpus.tar", items)


def test_read_tar_finds_and_reads_images(corpus, tars):
    images = list(read_tar(corpus))
    assert [image.key for image in images] == ["a/1.png", "2.x.png", "3.png"]
    assert [image.read() for image in images] == [tars.colour(rgb) for rgb in (RED, GREEN, BLUE)]
    assert images[2].metadata == {}


@pytest.mark.parametrize(
    ("language", "name", "texts", "positives"),
    [(None, "corpus", ("red", "green"), [0, 1]), ("de", "corpus-de", ("rot", "ganz rot", "grün"), [0, 0, 1])],
)
def test_read_captioned_takes_captions_and_names(corpus, language, name, texts, positives):
    dataset = read_captioned(corpus, language=language)
    assert (dataset.name, dataset.texts, list(dataset.positives)) == (name, texts, positives)
    assert len(dataset.images) == 3


def test_tar_image_texts_unwraps_captions_with_a_kind(tmp_path, tars):
    german = [{"captions": ["rot", "ganz rot"], "kind": "human_written"}, {"captions": "das Rote"}]
    corpus = tars.write(tmp_path / "x.tar", {"1": (tars.colour(RED), {"captions": {"de": german}})})
    assert read_captioned(corpus, language="de").texts == ("rot", "ganz rot", "das Rote")


def test_read_captioned_joins_several_files(corpus, tmp_path, tars):
    other = tars.write(tmp_path / "more.tar", {"9": (tars.colour(BLUE), {"captions": {"fr": "bleu"}})})
    dataset = read_captioned(corpus, other, language="fr", name="colours")
    assert (dataset.name, dataset.texts, list(dataset.positives)) == ("colours", ("rouge", "bleu"), [0, 3])


def test_read_captioned_refuses_files_without_captions(corpus, tmp_path, tars):
    message = "3 images but no text, expected captions or names in language 'zh'"
    with pytest.raises(DatasetError, match=message):
        read_captioned(corpus, language="zh")
    path = tars.write(tmp_path / "empty.tar", {"4": (None, {"caption": "no image"})})
    with pytest.raises(DatasetError, match="no image in"):
        read_captioned(path)


def test_read_tar_groups_members_as_an_index_does(tmp_path, tars):
    """Up to the first dot of the name: what a search shows is what is measured."""
    path = tars.members(
        tmp_path / "some.tar",
        ("1.thumb.png", tars.colour(RED)),
        ("1.json", b'{"caption": "red", "n": 1}'),
        ("2.png", tars.colour(GREEN)),
        ("3.png", tars.colour(BLUE)),
        ("3.txt", b"blue"),
        ("2.json", b'{"caption": "late"}'),
    )
    found = [(image.key, image.caption, image.metadata) for image in read_tar(path)]
    assert found == [("1.thumb.png", "red", {"n": 1}), ("2.png", "late", {}), ("3.png", "blue", {})]
    indexed = [(record.key, record.caption, record.metadata or {}) for record in open_corpus(path).records()]
    assert [(f"some.tar#{key}", caption, metadata) for key, caption, metadata in found] == indexed


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, r"no such shard: .*some\.tar"),
        (b"not a tar at all" * 100, r"some\.tar: tar cannot be read after 0 images: .* download"),
        (b"\x1f\x8b rest", r"some\.tar: tar cannot be read after 0 images: .* download"),
        (700, r"some\.tar.*: tar cannot be read after \d images"),
    ],
    ids=["missing", "text", "gzip", "cut"],
)
def test_read_tar_refuses_other_files(corpus, content, message):
    path = corpus.with_name("some.tar")
    if content is not None:
        path.write_bytes(content if isinstance(content, bytes) else corpus.read_bytes()[:content])
    with pytest.raises(DatasetError, match=message):
        list(read_tar(path))


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("1.json", b"{", r"bad\.tar#1\.png: .*metadata left out, not usable JSON: "),
        ("1.json", b"[1]", r"bad\.tar#1\.png: .*not usable JSON: expected an object, got list"),
        ("1.json", b"\xff", r"bad\.tar#1\.png: .*metadata left out, not usable JSON: "),
        ("1.json", b" " * ((1 << 20) + 1), "metadata left out: more than 1,048,576 bytes"),
        ("1.png", b"another image", "second member of this name"),
    ],
    ids=["cut", "list", "encoding", "huge", "twice"],
)
def test_read_tar_refuses_bad_members(tmp_path, tars, name, content, message):
    path = tars.members(tmp_path / "bad.tar", ("1.png", tars.colour(RED)), (name, content))
    with pytest.raises(DatasetError, match=message):
        list(read_tar(path))
