"""Batches of captions: nothing twice, one source each, and the same for the same seed and step."""

from collections import Counter
from dataclasses import replace

import pytest

from llm2clip.train.data.caption_batches import BatchConfig, CaptionBatches
from llm2clip.train.data.caption_pool import CaptionPool
from llm2clip.train.data.captions import Caption, CaptionFileError, CaptionGroup, SkipReport


def groups(source, count, *, languages=("en", "zh"), each=2):
    return [
        CaptionGroup(
            f"{source}{n}",
            tuple(Caption(f"{source} {n} {code} {k}", code) for code in languages for k in range(each)),
            source,
            (f"not {source} {n}",),
        )
        for n in range(count)
    ]


@pytest.fixture
def batches():
    return CaptionBatches(CaptionPool(groups("a", 30) + groups("b", 10)), BatchConfig(size=5), seed=3)


def test_caption_pool_gives_back_the_groups():
    given = [
        CaptionGroup("ключ", (Caption("狗", "zh", "short"), Caption("", None)), "x", ("ne", "gative")),
        *groups("a", 3),
    ]
    pool = CaptionPool(given)
    assert [pool[n] for n in range(len(pool))] == given
    assert pool.texts == 14
    assert pool.of_source("a").tolist() == [1, 2, 3]


def test_caption_pool_counts_keys_that_come_twice_and_groups_too_small():
    report = SkipReport()
    a, b, c = groups("a", 3)
    pool = CaptionPool([a, b, replace(a, negatives=()), replace(c, captions=c.captions[:1])], report=report)
    assert [pool[n].key for n in range(len(pool))] == ["a0", "a1"]
    assert report.lines() == [
        "skipped 1: key twice in one source (a0)",
        "skipped 1: fewer than 2 captions (a2)",
    ]
    with pytest.raises(CaptionFileError, match="no group of at least 2 captions"):
        CaptionPool([replace(a, captions=a.captions[:1])])


def test_batches_depend_on_seed_and_step_only(batches):
    other = CaptionBatches(batches.pool, batches.config, seed=3)
    backwards = [other.batch(step) for step in reversed(range(20))][::-1]
    for step, found in enumerate(backwards):
        assert found.queries == batches.batch(step).queries
        assert found.positives == batches.batch(step).positives
    assert CaptionBatches(batches.pool, batches.config, seed=4).batch(0).queries != batches.batch(0).queries


def test_an_epoch_has_every_group_once_in_batches_of_one_source(batches):
    assert batches.per_epoch == 8
    for epoch in range(3):
        found = [batches.batch(epoch * 8 + step) for step in range(8)]
        keys = [key for batch in found for key in batch.keys]
        assert sorted(keys) == sorted(group.key for group in groups("a", 30) + groups("b", 10))
        assert Counter(batch.source for batch in found) == {"a": 6, "b": 2}
        assert all(key.startswith(batch.source) for batch in found for key in batch.keys)
    assert batches.batch(0).keys != batches.batch(8).keys


def test_pairs_are_two_captions_of_one_group_with_its_negatives(batches):
    for step in range(8):
        batch = batches.batch(step)
        own = {group.key: group for group in groups("a", 30) + groups("b", 10)}
        for key, query, positive in zip(batch.keys, batch.queries, batch.positives, strict=True):
            texts = [caption.text for caption in own[key].captions]
            assert query in texts
            assert positive in texts
            assert query != positive
        assert batch.owners.tolist() == list(range(5))
        assert sorted(batch.negatives) == sorted(own[key].negatives[0] for key in batch.keys)


def test_no_text_is_twice_in_a_batch():
    same = [
        replace(group, captions=(*group.captions[:1], Caption("a dog runs"))) for group in groups("a", 40)
    ]
    batches = CaptionBatches(CaptionPool(same), BatchConfig(size=8), seed=0)
    for step in range(5):
        batch = batches.batch(step)
        texts = batch.queries + batch.positives
        assert len(set(texts)) == len(texts) == 2  # every group has the text, so there is room for one


def test_pairing_draws_languages_and_kinds():
    pool = CaptionPool(groups("a", 20, languages=("en", "zh", "de"), each=3))

    def languages(pairing, positives=1):
        batches = CaptionBatches(pool, BatchConfig(size=20, pairing=pairing, positives=positives), seed=1)
        batch = batches.batch(0)
        return [
            [batch.queries[n].split()[2]]
            + [batch.positives[i].split()[2] for i in range(len(batch.owners)) if batch.owners[i] == n]
            for n in range(len(batch.queries))
        ]

    assert all(len(set(pair)) == 2 for pair in languages("across_languages"))
    assert all(len(set(three)) == 3 for three in languages("across_languages", 2))
    assert all(len(set(pair)) == 1 for pair in languages("within_language"))
    assert {pair[0] for pair in languages("within_language")} == {"en", "zh", "de"}
    assert {len(set(pair)) for pair in languages("any")} == {1, 2}


def test_a_query_stays_the_query():
    given = [
        CaptionGroup(str(n), (Caption(f"p{n}", None, "positive"), Caption(f"q{n}", None, "query")), "e5")
        for n in range(9)
    ]
    for pairing in ("any", "across_kinds", "across_languages", "within_language"):
        batch = CaptionBatches(CaptionPool(given), BatchConfig(size=9, pairing=pairing), seed=1).batch(0)
        assert all(text.startswith("q") for text in batch.queries)


def test_random_negatives_are_captions_of_groups_outside_the_batch():
    batches = CaptionBatches(
        CaptionPool(groups("a", 200)), BatchConfig(size=9, random_negatives=True), seed=1
    )
    batch = batches.batch(0)
    drawn = [text for text in batch.negatives if not text.startswith("not")]
    assert len(drawn) >= 5
    assert not {"a" + text.split()[1] for text in drawn} & set(batch.keys)


def test_batches_need_two_groups_of_a_source():
    with pytest.raises(CaptionFileError, match="no source has two groups"):
        CaptionBatches(CaptionPool(groups("a", 1) + groups("b", 1)), BatchConfig(), seed=0)
