import json
import re
import unicodedata
from collections import Counter

import pytest

from llm2clip.eval.datasets import read_tar
from llm2clip.eval.queries import Split, load_queries, plain_emoji
from llm2clip.indexer.location import sample_shards

SPACED = {"en", "es", "de", "fr", "ar", "hi", "ru", "ko"}
SKIN_TONES = {chr(code) for code in range(0x1F3FB, 0x1F400)}
NEWER_THAN_15 = re.compile("[\U0001fae9\U0001fac6\U0001fabe\U0001fadc\U0001fadf\U0001fa89\U0001fa8f]|\u27a1")


def test_the_list_is_balanced_and_without_repeats():
    queries = load_queries()
    assert len(queries) == 60
    assert len({query.id for query in queries}) == len({query.text for query in queries}) == 60
    assert Counter(query.split for query in queries) == {Split.DEVELOPMENT: 30, Split.TEST: 30}
    per_language = Counter((query.language, query.split) for query in queries)
    assert len(per_language) == 20
    assert set(per_language.values()) == {3}
    assert all(query.id.startswith(f"{query.language}-") for query in queries)


@pytest.mark.parametrize("query", load_queries(), ids=lambda query: query.id)
def test_each_query_is_short_and_accepts_a_few_emoji(query):
    assert query.text == unicodedata.normalize("NFC", query.text).strip()
    if query.language in SPACED:
        assert 3 <= len(query.text.split()) <= 10
    else:
        assert 3 <= len(query.text) <= 20
    assert 1 <= len(query.accept) <= 12
    for emoji in query.accept:
        assert not SKIN_TONES & set(emoji)
        assert not NEWER_THAN_15.search(emoji)
        assert not any(character.isalnum() or character.isspace() for character in emoji)


def test_every_accepted_emoji_is_in_the_sample_corpus():
    pictures = [picture for tar in sample_shards() for picture in read_tar(tar)]
    if not pictures:
        pytest.skip("the sample corpus is not there")
    shown = {
        plain_emoji(picture.metadata["emoji"])
        for picture in pictures
        if picture.metadata.get("kind") == "emoji"
    }
    assert {emoji for query in load_queries() for emoji in query.accept} <= shown


def test_one_emoji_compares_equal_with_and_without_variation_selector():
    assert plain_emoji("☂️") == plain_emoji("☂") == "☂"
    assert plain_emoji("🏃‍♂️") == "🏃‍♂"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([], "has no list 'queries'"),
        ({"queries": []}, "has no list 'queries'"),
        ({"queries": [{"id": "en-1", "text": "x"}]}, r"fields \['id', 'text'\], expected \['accept', 'id'"),
    ],
)
def test_another_form_is_refused(tmp_path, content, message):
    path = tmp_path / "queries.json"
    path.write_text(json.dumps(content))
    with pytest.raises(ValueError, match=message):
        load_queries(path)
