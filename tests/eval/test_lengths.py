import numpy as np
import pytest

from llm2clip.eval.runner.lengths import by_length, first_words, measure_lengths, prefix_curve
from llm2clip.eval.stats.bootstrap import Resampling, bootstrap_interval
from llm2clip.eval.stats.languages import by_language


def test_by_length_puts_queries_into_buckets():
    tokens = np.array([1, 16, 17, 32, 64, 65, 77, 78, 128, 249, 400])
    hits = np.array([1, 0, 1, 1, 0, 1, 0, 0, 0, 1, 1], dtype=bool)
    assert [(one.label, one.queries, one.value, one.tokens) for one in by_length(hits, tokens)] == [
        ("<=16", 2, 0.5, 8.5),
        ("17-32", 2, 1.0, 24.5),
        ("33-64", 1, 0.0, 64.0),
        ("65-77", 2, 0.5, 71.0),
        ("78-128", 2, 0.0, 103.0),
        (">248", 2, 1.0, 324.5),
    ]


def test_by_length_draws_images():
    generator = np.random.default_rng(0)
    hits, clusters = generator.integers(0, 2, 90).astype(bool), np.arange(90) // 3
    how = Resampling(times=300, seed=4)
    found = by_length(hits, np.repeat([10, 100], 45), clusters=clusters, resampling=how)[1]
    expected = bootstrap_interval(hits[45:].astype(float), clusters=clusters[45:], resampling=how)
    assert (found.value, found.low, found.high) == (expected.value, expected.low, expected.high)


def test_by_length_refuses_other_numbers_of_tokens():
    with pytest.raises(ValueError, match="got 2 numbers of tokens for 3 texts"):
        by_length(np.ones(3, dtype=bool), np.array([1, 2]))


def test_measure_lengths_counts_truncated_captions(make_result, colours, monkeypatch):
    found = make_result().directions[0]
    captions = ["red blue red blue"] * found.queries
    monkeypatch.setattr(colours.Encoder, "_count_tokens", lambda _, texts: [5, 200] * (len(texts) // 2))
    lengths = measure_lengths(
        colours.Encoder(),
        captions,
        images=np.eye(12, dtype=np.float32),
        positives=[0] * len(captions),
        found=found,
        max_tokens=77,
        resampling=Resampling(times=10),
    )
    assert (lengths.truncated, lengths.tokens_per_caption, lengths.prefixes) == (0.5, 102.5, ())


@pytest.mark.parametrize(
    ("text", "words", "beginning"),
    [
        ("a dog, in the rain", 2, "a dog,"),
        ("a dog", 2, "a dog"),
        ("a  dog \n in", 2, "a  dog"),
        ("a dog", 5, "a dog"),
        ("两只猫在睡觉。很安静", 6, "两只猫在睡觉。"),
        ("2024年的雪", 2, "2024年"),
        ("犬がboth走る", 3, "犬がboth"),
        ("น้ำตก", 2, "น้ำ"),
        ("강아지 두 마리", 2, "강아지 두"),
        ("كلب في المطر", 2, "كلب في"),
        ("", 3, ""),
        ("— word", 1, "— word"),
    ],
)
def test_first_words_in_many_scripts(text, words, beginning):
    assert first_words(text, words) == beginning


def test_prefix_curve_rises_where_words_are_read(colours):
    """The stub reads first and last word: cut captions lose the last, uncut ones do not."""
    encoder = colours.Encoder()
    words = list(colours.palette)
    pairs = [(left, right) for left in words for right in words if left != right]
    texts = [f"{left} and and {right}" for left, right in pairs] + ["red blue"]
    images = np.stack([encoder.encode_texts([f"{left} {right}"])[0] for left, right in pairs])
    truth = np.array([*range(30), pairs.index(("red", "blue"))])
    curve = prefix_curve(
        encoder, texts, pair=(images, truth), max_tokens=3, words=(1, 2, 4, 9), clusters=truth
    )
    # Four words are the longest: at 4 nothing is cut, and whole texts follow at once.
    assert [one.label for one in curve] == ["1 words", "2 words", "whole"]
    assert [one.value for one in curve] == [0.0, pytest.approx(1 / 31), 1.0]
    assert [one.tokens for one in curve] == [1.0, 2.0, pytest.approx((30 * 3 + 2) / 31)]
    with pytest.raises(ValueError, match="at least 1 each"):
        prefix_curve(encoder, texts, pair=(images, truth), max_tokens=3, words=[0])


def test_by_language_weighs_languages_equally():
    hits = {
        "en": np.array([1.0, 1, 1, 0]),
        "zh": np.array([1.0, 0]),
        **{code: np.array([0.0, 0, 0, 1]) for code in ("de", "fr", "ja", "ko", "ru")},
    }
    clusters = {code: np.arange(len(one)) for code, one in hits.items()}
    found = by_language(hits, clusters=clusters)
    assert found.mean == pytest.approx((0.75 + 0.5 + 5 * 0.25) / 7)
    assert found.spread == pytest.approx(np.std([0.75, 0.5] + [0.25] * 5))
    assert (found.worst, set(found.worst_languages)) == (0.25, {"de", "fr", "ja", "ko", "ru"})
    assert found.english_gap == pytest.approx(0.75 - (0.5 + 5 * 0.25) / 6)
    assert found.low < found.mean < found.high
    assert found.languages["zh"] == bootstrap_interval(hits["zh"], clusters=clusters["zh"])


def test_by_language_draws_images_once_for_all_languages():
    """Three languages that find the same images tell no more than one; three that differ would."""
    hits = np.tile([1.0, 0.0], 50)
    alike = dict.fromkeys(("en", "de", "zh"), hits)
    found = by_language(alike, clusters={code: np.arange(100) for code in alike})
    one = bootstrap_interval(hits, clusters=np.arange(100))
    assert found.high - found.low == pytest.approx(one.high - one.low, rel=0.05)
    apart = by_language(alike, clusters={code: np.arange(100) + 100 * n for n, code in enumerate(alike)})
    assert apart.high - apart.low == pytest.approx((one.high - one.low) / np.sqrt(3), rel=0.1)


def test_by_language_without_english_has_no_gap():
    found = by_language({"zh": np.ones(3)}, clusters={"zh": np.arange(3)})
    assert (found.english_gap, found.spread, found.worst_languages) == (None, 0.0, ("zh",))
    only = by_language({"en": np.ones(3)}, clusters={"en": np.arange(3)})
    assert only.english_gap is None
    with pytest.raises(ValueError, match="the same languages"):
        by_language({"en": np.ones(3)}, clusters={"de": np.arange(3)})
