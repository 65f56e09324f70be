"""Query expressions against hand-made cases and sums by NumPy."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from llm2clip.retrieval.query.expression import ExpressionError, Term, join, parse, query_vector


def text(value: str, weight: float = 1.0) -> Term:
    return Term(kind="text", value=value, weight=weight)


@pytest.mark.parametrize(
    "query",
    [
        "a dog - on grass",
        "C++ code",
        "rock + roll",
        "5 * 3",
        "雪山 + 湖",
        "+ plus",
        "he said hi",
        "2 dogs",
        "item 5",
    ],
)
def test_parse_leaves_plain_text_alone(query: str):
    assert parse(query) == (text(query),)


def test_parse_reads_every_kind_of_term():
    query = '"2*not a weight" - "people \\"here\\"" + 0.5*beach at sunset + image:photo one.jpg - 3*item:42'
    assert parse(query) == (
        text("2*not a weight"),
        text('people "here"', -1),
        text("beach at sunset", 0.5),
        Term(kind="image", value="photo one.jpg"),
        Term(kind="item", value="42", weight=-3),
    )
    assert parse("2*beach at sunset - people") == (text("beach at sunset", 2), text("people", -1))
    assert parse('- "people"') == (text("people", -1),)
    assert parse('"t-shirt" + a-b+c') == (text("t-shirt"), text("a-b+c"))


@pytest.mark.parametrize(
    ("query", "column", "problem"),
    [
        ('"open', 1, "quote is not closed"),
        ('"a" "b"', 5, "expected +, - or NOT"),
        ('"a" +', 6, "expected a text"),
        ('"a" + + "b"', 7, "expected a text"),
        ('0*"a"', 1, "above 0"),
        ('1000*"a"', 1, "at most 100"),
        ("item:five", 6, "a number"),
        ('"a" + image: - "b"', 13, "a name after image:"),
        ('"a" + some "words"', 12, "quote within words"),
    ],
)
def test_parse_points_at_the_mistake(query: str, column: int, problem: str):
    with pytest.raises(ExpressionError, match=f"at character {column}: ") as caught:
        parse(query)
    assert problem in str(caught.value)


def test_parse_limits_the_number_of_terms():
    with pytest.raises(ExpressionError, match="at most 32 terms"):
        parse(" + ".join(['"a"'] * 33))


def test_join_makes_one_query_of_the_words_of_a_command_line():
    assert join(["a", "dog", "on", "grass"]) == "a dog on grass"
    assert parse(join(["golden retriever", "+", "image:pool.jpg", "-", "2*fruit"])) == (
        text("golden retriever"),
        Term(kind="image", value="pool.jpg"),
        text("fruit", -2),
    )


WORDS = st.text(
    st.characters(exclude_categories=("Cs", "Zs", "Zl", "Zp", "Cc")), min_size=1, max_size=12
).filter(lambda word: word.strip() and word not in ("+", "-"))


@given(st.lists(st.tuples(st.sampled_from("+-"), WORDS), min_size=2, max_size=5))
def test_parse_of_join_gives_back_the_words(parts: list[tuple[str, str]]):
    words = [piece for sign, word in parts for piece in (sign, word)]
    try:
        terms = parse(join(words))
    except ExpressionError:  # a word such as item:x says what it is, and is wrong
        assert any(word.startswith(("item:", "image:", '"')) or "*" in word for _, word in parts)
        return
    plain = [
        (sign, word)
        for sign, word in parts
        if not word.startswith(("item:", "image:", '"')) and "*" not in word
    ]
    found = [("-" if term.weight < 0 else "+", term.value) for term in terms]
    assert all((sign, word) in found for sign, word in plain)


@given(st.lists(st.floats(-3, 3).filter(lambda weight: abs(weight) > 0.01), min_size=2, max_size=4))
def test_query_vector_equals_the_normalised_sum(weights: list[float]):
    vectors = np.linalg.qr(np.random.default_rng(0).standard_normal((8, 8)))[0][: len(weights)].astype(
        np.float32
    )
    expected = sum(
        weight * vector for weight, vector in zip(weights, vectors.astype(np.float64), strict=True)
    )
    found = query_vector([text("a", weight) for weight in weights], vectors)
    assert found == pytest.approx(expected / np.linalg.norm(expected), abs=1e-6)
    assert found.dtype == np.float32


def test_query_vector_takes_out_the_directions_of_excluded_terms():
    vectors = np.random.default_rng(0).standard_normal((4, 8))
    vectors = (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)
    terms = parse('"a" + 2*b NOT "c" NOT "d"')
    assert [term.excluded for term in terms] == [False, False, True, True]
    found = query_vector(terms, vectors)
    assert vectors[2:] @ found == pytest.approx([0, 0], abs=1e-6)
    # Of all unit vectors without c and d it is the nearest to a + 2 b: least squares says the same.
    total = vectors[0] + 2 * vectors[1]
    rest = total - vectors[2:].T @ np.linalg.lstsq(vectors[2:].T, total, rcond=None)[0]
    assert found == pytest.approx(rest / np.linalg.norm(rest), abs=1e-5)


def test_parse_reads_not_within_expressions_only():
    assert parse('"beach" NOT people') == (
        text("beach"),
        Term(kind="text", value="people", excluded=True),
    )
    assert parse("DO NOT ENTER") == (text("DO NOT ENTER"),)
    assert join(["DO", "NOT", "ENTER"]) == "DO NOT ENTER"


def test_query_vector_refuses_terms_that_cancel_out():
    one = np.eye(4, dtype=np.float32)[[0, 0]]
    with pytest.raises(ExpressionError, match="cancel out"):
        query_vector(parse('"a" - "a"'), one)
    with pytest.raises(ExpressionError, match="cancel out"):
        query_vector(parse('"a" NOT "a"'), one)
