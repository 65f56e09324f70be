import numpy as np

from llm2clip.train.core.tokenizer import build_tokenizer
from llm2clip.train.synthetic.texts import Text, TextPool, load_descriptions, strip_accents, target_matrix

from .material import emoji


def test_text_pool_keyword_fits_every_emoji_that_has_it():
    pool = TextPool(emoji(), [])
    assert pool.by_keyword["en", "thing"] == tuple(range(12))
    assert pool.by_keyword["en", "frogllike".replace("ll", "l")] == (1,)


def test_target_matrix_is_uniform_over_fitting_images():
    target = target_matrix([Text("a", "en", (1, 3)), Text("b", "en", (2,))], 4)
    np.testing.assert_array_equal(target, [[0, 0.5, 0, 0.5], [0, 0, 1, 0]])


def test_text_pool_samples_are_true_of_their_images():
    things = emoji()
    pool = TextPool(things, [Text("something green", "en", (1,))])
    for text in pool.sample(400, np.random.default_rng(0)):
        for image in text.images:
            known = [
                *things[image].names.values(),
                *(w for ws in things[image].keywords.values() for w in ws),
            ]
            assert "something green" in text.text or any(word in text.text for word in known)


def test_strip_accents_changes_latin_letters_only():
    assert strip_accents("café über हिन्दी 한국어") == "cafe uber हिन्दी 한국어"


def test_load_descriptions_joins_shared_sentences():
    found = load_descriptions(emoji())
    # The test emoji are U+1F400..1F40B: rat to crocodile; the shipped file describes some of them.
    assert found
    assert all(text.images == tuple(sorted(set(text.images))) for text in found)
    assert len({(text.language, text.text) for text in found}) == len(found)


def test_build_tokenizer_keeps_combining_marks_and_lower_cases():
    tokenizer = build_tokenizer(["हिन्दी में"] * 50 + ["ein Bild"] * 50, vocab_size=400)
    assert len(tokenizer.encode("हिन्दी", add_special_tokens=False).ids) == 1
    assert tokenizer.encode("EIN bild").ids == tokenizer.encode("ein Bild").ids
    assert tokenizer.encode("ein").tokens[0] == "<|begin_of_text|>"
