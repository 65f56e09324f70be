import numpy as np
import pytest

from llm2clip.eval.datasets.tar_images import DatasetError
from llm2clip.eval.nano_report.data import (
    FreeQuery,
    Split,
    read_gallery,
    read_scenes,
    require_sets,
)
from llm2clip.eval.nano_report.measures import (
    QueryAnswer,
    answer_queries,
    count_answers,
    cut_texts,
    measure_names,
    measure_scenes,
    tell_apart,
    template_tokens,
)
from llm2clip.eval.nano_report.report import TARGETS
from llm2clip.eval.runner.evaluate import encode_images


@pytest.fixture
def gallery(gallery_tar):
    return read_gallery([gallery_tar("noto.tar", "noto")], style="noto")


@pytest.fixture
def measured(scenes_tar, colours):
    """Measures the scenes as a reader of words sees them."""
    scenes = read_scenes(scenes_tar())
    vectors = encode_images(colours.Encoder(), [scene.image for scene in scenes])
    return lambda **options: measure_scenes(
        colours.Encoder(bag=options.pop("bag", False)), scenes, vectors, **options
    )


def values(measurements):
    return {(one.row, one.metric): one.value for one in measurements}


def query(number, text, accept, *, language="en", split=Split.TEST):
    return FreeQuery(
        id=f"{language}-{number}", language=language, split=split, text=text, accept=frozenset(accept)
    )


def test_read_gallery_takes_emoji_of_one_style(gallery, gallery_tar, colours):
    assert gallery.emoji == tuple(colours.emoji.values())
    assert gallery.languages() == ["en", "de"]
    assert gallery.names("fr") == {1: "vert"}
    both = [gallery_tar("a.tar", "noto"), gallery_tar("b.tar", "fluent")]
    assert len(read_gallery(both, style="fluent").images) == 6
    assert read_gallery(both, style="openmoji") is None


def test_read_gallery_refuses_an_emoji_twice(gallery_tar):
    with pytest.raises(DatasetError, match="gallery 'noto' has 2 images of '🍎'"):
        read_gallery([gallery_tar("a.tar", "noto"), gallery_tar("b.tar", "noto")], style="noto")


def test_measure_names_by_language_and_mean(gallery, colours):
    encoder = colours.Encoder()
    vectors = encode_images(encoder, gallery.images)
    found = values(measure_names(encoder, gallery, vectors, languages=["en", "de"]))
    # Two German names are exchanged: each scores the other image 1 and all others 0, its own included.
    shares = {"en": (1, 1, 1), "de": (4 / 6, 4 / 6, 1), "mean": (5 / 6, 5 / 6, 1)}
    assert found == {
        (row, metric): pytest.approx(100 * share)
        for row, three in shares.items()
        for metric, share in zip(("R@1", "R@5", "R@10"), three, strict=True)
    }


def test_answer_queries_finds_accepted_emoji(gallery, colours):
    encoder = colours.Encoder()
    vectors = encode_images(encoder, gallery.images)
    queries = [
        query(1, "something red", ["🍎"]),
        query(2, "blue", ["🍋"]),
        query(3, "gelb", ["🍋"], language="de", split=Split.DEVELOPMENT),
    ]
    answers = answer_queries(encoder, gallery, vectors, queries=queries, k=1)
    assert answers == [
        QueryAnswer(id="en-1", gallery="noto", rank=1, hits=("🍎",)),
        QueryAnswer(id="en-2", gallery="noto", rank=None, hits=("🫐",)),
        QueryAnswer(id="de-3", gallery="noto", rank=1, hits=("🍋",)),
    ]
    counted = {
        (one.row, one.metric): (one.value, one.count) for one in count_answers(answers, queries=queries)
    }
    development, test = (
        {"en": (0, 0), "de": (1, 1), "all": (1, 1)},
        {"en": (1, 2), "de": (0, 0), "all": (1, 2)},
    )
    assert counted == {(row, "development"): one for row, one in development.items()} | {
        (row, "test"): one for row, one in test.items()
    }


def test_measure_scenes_whole_and_cut(measured):
    found = values(measured())
    assert found["en", "R@1"] == 100
    # Cut before its last word a caption names one colour, which ten scenes show on one side.
    # All ten tie, so none is found at 1 or 5 and all at 10.
    cut = "en, first 75 tokens"
    assert (found[cut, "R@1"], found[cut, "R@5"], found[cut, "R@10"]) == (0, 0, 100)
    assert found["en", "R@1 over R@1 of 75 tokens"] == pytest.approx(30)
    assert found["en", "fewest tokens"] == found["en", "median tokens"] == found["en", "most tokens"] == 102
    assert found["twins: last object", "told apart"] == 100
    assert found["twins: two places swapped", "told apart"] == 100


def test_measure_scenes_in_every_language(measured):
    found = [one for one in measured(every_language=True) if one.row == "de"]
    expected = [("de", metric, 100, 30) for metric in ("R@1", "R@5", "R@10")]
    assert [(one.row, one.metric, one.value, one.count) for one in found] == expected


def test_measure_scenes_of_a_bag_of_words(measured):
    found = values(measured(bag=True))
    assert found["twins: last object", "told apart"] == 100
    assert found["twins: two places swapped", "told apart"] == 0


def test_tell_apart_counts_ties_as_not_told():
    class Rounded:  # encoders refuse to return such vectors; the metric must hold without their help
        def encode_texts(self, texts):
            return np.full((len(texts), 4), 0.5 + 1e-7 * (texts[0] == "a"), dtype=np.float32)

    vectors = np.full((3, 4), 0.5, dtype=np.float32)
    for right in ("a", "b"):
        assert tell_apart(Rounded(), right=[right] * 3, wrong=["b"] * 3, vectors=vectors) == 0
    with pytest.raises(ValueError, match="non-finite score"):
        tell_apart(Rounded(), right=["a"], wrong=["b"], vectors=np.full((1, 4), np.nan, dtype=np.float32))


def test_cut_texts_keeps_the_longest_beginning(colours):
    texts = ["one", "one two three", "one two three four", "  spaced   out   words here "]
    expected = ["one", "one two three", "one two three", "  spaced   out   words"]
    assert cut_texts(colours.Encoder(), texts, tokens=3) == expected


def test_template_tokens_are_not_counted_as_caption(colours):
    class Wrapped(colours.Encoder):
        def _count_tokens(self, texts):
            return [len(text.split()) + 5 for text in texts]

    assert template_tokens(colours.Encoder()) == 0
    assert template_tokens(Wrapped()) == 5
    assert cut_texts(Wrapped(), ["one two three four"], tokens=3) == ["one two three"]


def test_read_scenes_refuses_scenes_without_captions(tars, tmp_path):
    for kind, message in (
        ("scene", r"scene 1\.png has no English caption"),
        ("emoji", "no item of kind 'scene'"),
    ):
        path = tars.write(tmp_path / "scenes.tar", {"1": (tars.colour((0, 0, 0)), {"kind": kind})})
        with pytest.raises(DatasetError, match=message):
            read_scenes(path)


def test_require_sets_names_the_command(tmp_path):
    (tmp_path / "openmoji.tar").touch()
    require_sets(tmp_path, ["openmoji.tar"])
    with pytest.raises(DatasetError, match=r"scenes\.tar not found in .*llm2clip-train data --out"):
        require_sets(tmp_path, ["openmoji.tar", "scenes.tar"])


def test_targets_are_those_fixed_before_training():
    bounds = {target.text: (target.bound, target.at_most) for target in TARGETS}
    assert len(bounds) == len(TARGETS) == 12
    assert bounds["openmoji, name to image, en, R@1"] == (40, False)
    assert bounds["noto, name to image, mean over languages, R@5"] == (80, False)
    assert bounds["one query, one thread, median"] == (20, True)
    speed = next(target for target in TARGETS if target.at_most)
    assert speed.met(20)
    assert not speed.met(20.1)
    assert TARGETS[0].met(40)
    assert not TARGETS[0].met(39.9)
