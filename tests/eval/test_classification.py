"""Zero-shot classification and caption-to-caption retrieval, on colours whose every score can be worked out by hand."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from llm2clip.eval.datasets.class_sets import (
    PROTOCOLS,
    SINGLE_TEMPLATE,
    ClassSet,
    read_class_folders,
    read_class_names,
    read_templates,
    same_names,
)
from llm2clip.eval.datasets.tar_images import DatasetError
from llm2clip.eval.runner.zero_shot import caption_pairs, caption_retrieval, class_vectors, classify
from llm2clip.eval.stats.bootstrap import Resampling

FEW = Resampling(times=200)


class Directions:
    """Every word has a fixed random direction; a text is their sum."""

    def encode_texts(self, texts, /):
        rows = []
        for text in texts:
            words = [np.random.default_rng(sum(map(ord, word))).normal(size=24) for word in text.split()]
            rows.append(np.sum(words, axis=0))
        rows = np.array(rows)
        return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)

    def count_tokens(self, texts, /):
        return [len(text.split()) for text in texts]


@pytest.fixture
def folders(tmp_path, colours, tars):
    """Three images of every colour, one folder each, and things that are no images."""
    root = tmp_path / "set"
    for name, rgb in colours.palette.items():
        (root / name).mkdir(parents=True)
        for number in range(3):
            (root / name / f"{number}.PNG").write_bytes(tars.colour(rgb))
    (root / "red" / "notes.txt").write_text("no image")
    (root / ".cache").mkdir()
    (root / "readme.txt").write_text("no class")
    return root


def test_classify_a_folder_of_colours(folders, colours):
    found = read_class_folders(folders)
    assert found.folders == tuple(sorted(colours.palette))
    assert len(found.images) == 18
    assert found.labels.tolist() == np.repeat(np.arange(6), 3).tolist()
    encoder = colours.Encoder()
    images = encoder.encode_images([path.read_bytes() for path in found.images])
    classes = class_vectors(encoder, found.folders, templates=("{}", "{} and nothing else"))
    result = classify(images, classes=classes, labels=found.labels, resampling=FEW)
    assert (result.top1.value, result.top5.value, result.per_class) == (1, 1, 1)
    # Names exchanged: red images are called green and the other way round.
    wrong = ["green" if name == "red" else "red" if name == "green" else name for name in found.folders]
    classes = class_vectors(encoder, wrong, templates=SINGLE_TEMPLATE["en"])
    result = classify(images, classes=classes, labels=found.labels, resampling=FEW)
    assert result.top1.value == pytest.approx(4 / 6)
    assert [share for _, share in result.worst] == [0, 0, 1, 1, 1, 1]
    assert {found.folders[number] for number, _ in result.worst[:2]} == {"red", "green"}


def test_class_vectors_are_normalised_means():
    encoder, names, templates = Directions(), ["cat", "dog", "big cat"], ("a {}", "the {} there", "{}")
    expected = []
    for name in names:
        mean = encoder.encode_texts([one.replace("{}", name) for one in templates]).mean(axis=0)
        expected.append(mean / np.linalg.norm(mean))
    assert class_vectors(encoder, names, templates=templates) == pytest.approx(np.array(expected), abs=1e-6)


def test_class_vectors_keep_braces_in_names(monkeypatch):
    seen = []
    monkeypatch.setattr(
        Directions, "encode_texts", lambda _, texts: seen.extend(texts) or np.eye(1, dtype=np.float32)
    )
    class_vectors(Directions(), ["a {0} b"], templates=("see {} now",))
    assert seen == ["see a {0} b now"]


def test_class_vectors_encode_many_classes_in_parts(monkeypatch):
    names = [f"class {number}" for number in range(11)]
    whole = class_vectors(Directions(), names, templates=("a {}", "{} b"))
    monkeypatch.setattr("llm2clip.eval.runner.zero_shot._TEXTS_AT_ONCE", 6)
    assert (class_vectors(Directions(), names, templates=("a {}", "{} b")) == whole).all()


def test_classify_counts_unequal_classes_ties_and_top_5():
    classes = np.eye(8, dtype=np.float32)
    classes[7] = classes[6]  # two classes of one name
    images = np.eye(8, dtype=np.float32)[[0, 0, 0, 0, 1, 2, 6]]
    labels = np.array([0, 0, 0, 1, 1, 3, 7])
    found = classify(images, classes=classes, labels=labels, resampling=FEW)
    # Right: three of class 0; one of two of class 1; none of 3 (image of 2); class 7 ties with 6.
    assert found.top1.value == pytest.approx(4 / 7)
    assert found.per_class == pytest.approx((1 + 1 / 2 + 0 + 0) / 4)
    assert found.top1_ties.expected == pytest.approx((4 + 0.5) / 7)
    assert found.top1_ties.optimistic == pytest.approx(5 / 7)
    # All other classes score 0 alike: the fourth image's class is one of seven tied for places 2 to 8.
    assert found.top5.value == pytest.approx(5 / 7)
    assert (found.classes, found.images) == (8, 7)
    assert found.worst[0][1] == 0


def test_class_vectors_refuse_a_class_that_cancels_out(monkeypatch):
    monkeypatch.setattr(
        Directions,
        "encode_texts",
        lambda _, texts: np.array([[1 - 2 * ("not" in text)] for text in texts], "f"),
    )
    with pytest.raises(ValueError, match="class 'dog' have a mean vector of length 0"):
        class_vectors(Directions(), ["dog"], templates=("{}", "not {}"))
    with pytest.raises(ValueError, match="got 1 names and 0 templates"):
        class_vectors(Directions(), ["dog"], templates=())


def test_read_class_names_in_every_form(tmp_path):
    folders = ["n01", "n02", "n03"]
    expected = ["tench", "gold fish", "大白鲨"]
    forms = {
        "map.json": json.dumps({"n03": "大白鲨", "n01": "tench", "n02": "gold fish", "n99": "more"}),
        "list.json": json.dumps(expected),
        "lines.txt": "tench\ngold fish\n\n大白鲨\n",
        "tabs.tsv": "n02\tgold fish\nn01\ttench\nn03\t大白鲨\n",
    }
    for name, content in forms.items():
        (tmp_path / name).write_text(content, encoding="utf-8")
        assert read_class_names(tmp_path / name, folders=folders) == expected
    assert same_names(["a", "b", "a"]) == ["a"]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("n.txt", "one\ntwo\n", "has 2 names for 3 folders"),
        ("n.json", '{"n01": "a", "n03": "c"}', "no name for 1 of 3 folders, such as 'n02'"),
        ("n.json", '["a", 2, "c"]', "the name of 'n02' is 2, expected a text"),
        ("n.json", "[", "is no JSON"),
        ("missing.txt", None, "cannot be read"),
    ],
)
def test_read_class_names_refuses_bad_names(tmp_path, name, content, message):
    if content is not None:
        (tmp_path / name).write_text(content)
    with pytest.raises(DatasetError, match=message):
        read_class_names(tmp_path / name, folders=["n01", "n02", "n03"])


def test_read_templates_need_one_placeholder(tmp_path):
    file = tmp_path / "t.txt"
    file.write_text("a photo of a {}.\n\n  一张{}的照片 \n", encoding="utf-8")
    assert read_templates(file) == ("a photo of a {}.", "一张{}的照片")
    for content, message in (
        ("a photo\n", "template 1: got 'a photo', expected one {} for the name"),
        ("{}\n{} and {}\n", "template 2"),
        ("\n", "has no template"),
    ):
        file.write_text(content)
        with pytest.raises(DatasetError, match=message):
            read_templates(file)


def test_read_class_folders_refuses_bad_folders(tmp_path, folders):
    with pytest.raises(DatasetError, match=r"no folder .*nothing"):
        read_class_folders(tmp_path / "nothing")
    with pytest.raises(DatasetError, match="has 0 folders, expected one for each of at least two classes"):
        read_class_folders(folders / "red")
    (folders / "empty").mkdir()
    with pytest.raises(DatasetError, match="empty has no image"):
        read_class_folders(folders)


def test_class_set_protocol_marks_a_part_of_imagenet(folders):
    wanted = PROTOCOLS["imagenet-1k-en"]
    with pytest.raises(DatasetError, match="got the folder black, expected names such as n01440764"):
        read_class_folders(folders).protocol(wanted, templates=80)
    names = tuple(Path(f"ILSVRC2012_val_{number:08}.JPEG") for number in range(1, 50_001))
    folders = tuple(f"n{number:08}" for number in range(1000))
    whole = ClassSet(folders=folders, images=names, labels=np.zeros(50_000, int))
    short = replace(whole, images=names[1:], labels=whole.labels[1:])
    assert short.protocol(wanted, templates=80) == "imagenet-1k-en+partial"
    for first, message in (
        (names[1], "got the same image in two places, expected each of ILSVRC2012"),
        (Path("n01440764_10026.JPEG"), r"got n01440764_10026, expected .*: this is another split"),
    ):
        with pytest.raises(DatasetError, match=message):
            replace(whole, images=(first, *names[1:])).protocol(wanted, templates=80)
    assert whole.protocol(wanted, templates=80) == "imagenet-1k-en"
    assert whole.protocol(wanted, templates=1) == "imagenet-1k-en+partial"
    assert whole.protocol(PROTOCOLS["imagenet-1k-en-single"], templates=1) == "imagenet-1k-en-single"
    assert whole.protocol(PROTOCOLS["imagenet-1k-zh"], templates=7) == "imagenet-1k-zh"
    assert all(one.files for one in PROTOCOLS.values())


CAPTIONS = ["red cat", "the red cat", "cat", "blue dog", "one blue dog", "old car", "green tree", "tree"]
OWNERS = [4, 4, 4, 7, 7, 1, 0, 0]


def test_caption_retrieval_takes_the_first_two_captions():
    assert caption_pairs(CAPTIONS, OWNERS) == (
        ["red cat", "blue dog", "green tree"],
        ["the red cat", "one blue dog", "tree"],
        1,
    )
    found = caption_retrieval(Directions(), CAPTIONS, caption_images=OWNERS, resampling=FEW)
    first, second = (Directions().encode_texts(one) for one in caption_pairs(CAPTIONS, OWNERS)[:2])
    scores = first @ second.T
    assert found.first_to_second.value == np.mean(scores.argmax(axis=1) == np.arange(3))
    assert found.second_to_first.value == np.mean(scores.argmax(axis=0) == np.arange(3))
    assert found.mean.value == pytest.approx((found.first_to_second.value + found.second_to_first.value) / 2)
    assert (found.images, found.left_out, found.mean.clusters) == (3, 1, 3)


def test_caption_retrieval_of_a_collapsed_encoder_finds_nothing(monkeypatch):
    monkeypatch.setattr(
        Directions, "encode_texts", lambda _, texts: np.tile(np.array([[0.6, 0.8]], "f"), (len(texts), 1))
    )
    found = caption_retrieval(Directions(), CAPTIONS, caption_images=OWNERS, resampling=FEW)
    assert found.mean.value == 0


@pytest.mark.parametrize(
    ("owners", "message"),
    [
        ([0, 1], r"got 0 images with two captions, expected at least two\. A set with one"),
        ([0], "got 1 images for 2 captions"),
    ],
)
def test_caption_retrieval_refuses_one_caption_per_image(owners, message):
    with pytest.raises(ValueError, match=message):
        caption_retrieval(Directions(), ["a", "b"], caption_images=owners)
