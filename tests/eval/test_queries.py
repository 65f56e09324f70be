import json
import re
import unicodedata
from collections import Counter, defaultdict
from difflib import SequenceMatcher
from importlib import resources

import pytest

from llm2clip.eval.datasets.tar_images import read_tar
from llm2clip.eval.nano_report.data import Split, load_queries, plain_emoji
from llm2clip.indexer.core.index_paths import sample_shards

SPACED = {"en", "es", "de", "fr", "ar", "hi", "ru", "ko"}
SKIN_TONES = {chr(code) for code in range(0x1F3FB, 0x1F400)}
TOO_NEAR = 0.8
"""Share of equal characters (difflib) from which a training line gives a query away."""
NEWER_THAN_15 = re.compile("[\U0001fae9\U0001fac6\U0001fabe\U0001fadc\U0001fadf\U0001fa89\U0001fa8f]|\u27a1")


def test_load_queries_is_balanced_and_without_repeats():
    queries = load_queries()
    assert len(queries) == 60
    assert len({query.id for query in queries}) == len({query.text for query in queries}) == 60
    assert Counter(query.split for query in queries) == {Split.DEVELOPMENT: 30, Split.TEST: 30}
    per_language = Counter((query.language, query.split) for query in queries)
    assert len(per_language) == 20
    assert set(per_language.values()) == {3}
    assert all(query.id.startswith(f"{query.language}-") for query in queries)


@pytest.mark.parametrize("query", load_queries(), ids=lambda query: query.id)
def test_load_queries_entries_are_short_with_few_emoji(query):
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


def test_load_queries_accepts_emoji_of_the_sample_corpus():
    images = [image for tar in sample_shards() for image in read_tar(tar)]
    assert len(images) > 1000, "the sample corpus is not there: llm2clip-train data --sample indexer/sample"
    shown = {
        plain_emoji(image.metadata["emoji"]) for image in images if image.metadata.get("kind") == "emoji"
    }
    assert {emoji for query in load_queries() for emoji in query.accept} <= shown


def test_plain_emoji_ignores_variation_selectors():
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
def test_load_queries_refuses_another_form(tmp_path, content, message):
    path = tmp_path / "queries.json"
    path.write_text(json.dumps(content))
    with pytest.raises(ValueError, match=message):
        load_queries(path)


def plain(text):
    """Words without case, width and punctuation, for comparing texts."""
    kept = "".join(" " if unicodedata.category(one)[0] in "PS" else one for one in text)
    return " ".join(unicodedata.normalize("NFKC", kept).casefold().split())


def near_lines(query, lines):
    """Those of some plain lines that say nearly what the query says."""
    matcher = SequenceMatcher(b=plain(query), autojunk=False)

    def near(line):
        matcher.set_seq1(line)
        # The cheap upper bounds first.
        bounds = (matcher.real_quick_ratio, matcher.quick_ratio, matcher.ratio)
        return all(bound() >= TOO_NEAR for bound in bounds)

    return [line for line in lines if near(line)]


def test_load_queries_keeps_clear_of_training_lines():
    lines = defaultdict(set)
    for file in resources.files("llm2clip.train").joinpath("data").iterdir():
        for line in file.read_text(encoding="utf-8").splitlines() if file.name.endswith(".tsv") else ():
            _, language, text = line.split("\t")
            lines[language].add(plain(text))
    assert min(len(lines[query.language]) for query in load_queries()) > 500
    near = {query.id: near_lines(query.text, sorted(lines[query.language])) for query in load_queries()}
    assert {query: found for query, found in near.items() if found} == {}


def test_near_lines_recognises_near_lines():
    lines = ["恥ずかしくて顔が赤い", "顔が青い", "火事のとき走る赤い車", "車"]
    assert near_lines("恥ずかしくて顔が赤くなる", lines) == lines[:1]
    assert near_lines("火事のときに来る赤い車", lines) == lines[2:3]
    assert near_lines("POUR découper du papier!", ["deux lames pour découper du papier"]) != []
    assert near_lines("small striped insect that makes honey", ["insect that makes honey"]) == []
