"""Which of two is better, against counts made by hand."""

from __future__ import annotations

from dataclasses import replace

import pytest
from rich.console import Console

from llm2clip.eval.report.compare import compare_encoders, comparison_table, conclusion
from llm2clip.eval.stats.bootstrap import Resampling

QUICK = Resampling(times=300)


def test_compare_encoders_counts_differences_by_query(make_result):
    first = make_result(label="a", key="a" * 64, ranks=[1] * 50 + [2] * 50)
    second = make_result(label="b", key="b" * 64, ranks=[2] * 40 + [1] * 15 + [2] * 45)
    found = compare_encoders([first, second], "a", "b", resampling=QUICK)
    line = found.lines[0]
    assert (line.first, line.second) == (0.5, 0.15)
    assert (line.test.wins, line.test.losses, line.test.queries, line.test.clusters) == (40, 5, 100, 50)
    assert line.test.difference == pytest.approx(0.35)
    assert line.sure
    assert conclusion(found) == [
        "a is better than b in 2 of 2 comparisons; 0 undecided (R@1, all claims together at 95 %)."
    ]
    for width in (80, 160):
        console = Console(width=width, force_terminal=False)
        with console.capture() as shown:
            console.print(comparison_table(found))
        text = shown.get()
        assert "…" not in text
        assert max(map(len, text.splitlines())) <= width
        for cell in ("50.0", "15.0", "+35.0", " 40 ", " 5 ", "sure", f"{100 * line.test.low:+.1f} to"):
            assert cell in text
    reverse = compare_encoders([first, second], "b", "a", resampling=QUICK)
    assert reverse.lines[0].test.difference == pytest.approx(-0.35)
    assert conclusion(reverse)[0].startswith("a is better than b in 2 of 2")


def test_conclusion_leaves_undecided_what_is_undecided(make_result):
    first = make_result(label="a", key="a" * 64, ranks=[1, 1, 2, 2])
    second = make_result(label="b", key="b" * 64, ranks=[1, 2, 1, 2])
    found = compare_encoders([first, second], "a", "b", resampling=QUICK)
    assert conclusion(found)[0].startswith("a and b cannot be distinguished in any of 2 comparisons")


def test_compare_encoders_refuses_one_encoder_twice(make_result):
    one = make_result(label="a", key="a" * 64)
    for second in ("a", "aaaaaa"):
        with pytest.raises(
            ValueError, match=r"'a' and 'a+' are the same encoder, expected two; results exist for: a \(aaa"
        ):
            compare_encoders([one], "a", second)


def test_compare_encoders_finds_labels_and_hashes(make_result):
    one = make_result(label="same", key="a" * 64)
    other = make_result(label="same", key="b" * 64)
    with pytest.raises(
        ValueError, match=r"'same' matches 2 encoders; name one by its hash: aaaaaaaaaaaa, bbb"
    ):
        compare_encoders([one, other], "same", "bbbbbb")
    found = compare_encoders([one, other], "aaaaaa", "bbbbbb", resampling=QUICK)
    assert all(line.test.difference == 0 for line in found.lines)
    with pytest.raises(ValueError, match=r"no result of encoder 'x', expected a label.*: same \(aaa"):
        compare_encoders([one, other], "x", "same")


def test_compare_encoders_needs_the_same_queries(make_result):
    one = make_result(label="a", key="a" * 64)
    other = make_result(label="b", key="b" * 64)
    moved = replace(other, set=replace(other.set, sha256="9" * 64))
    with pytest.raises(ValueError, match="their queries differ on colours"):
        compare_encoders([one, moved], "a", "b")
    elsewhere = make_result(label="b", key="b" * 64, protocol="shapes")
    with pytest.raises(ValueError, match="no set is common to both"):
        compare_encoders([one, elsewhere], "a", "b")
    more = [make_result(label=label, key=label * 64, protocol="shapes") for label in ("a", "b")]
    found = compare_encoders([one, moved, *more], "a", "b", resampling=QUICK)
    assert {line.dataset for line in found.lines} == {"shapes"}
    assert conclusion(found)[1] == "Skipped, as the queries differ: colours."


def test_compare_encoders_refuses_two_parts_of_one_set(make_result):
    one = make_result(label="a", key="a" * 64)
    part = replace(one, set=replace(one.set, sha256="9" * 64), date="2026-02-03T00:00:00+00:00")
    other = make_result(label="b", key="b" * 64)
    with pytest.raises(
        ValueError,
        match=r"two results of 'a' on colours have different images .*2026-01-02.* and 2026-02-03",
    ):
        compare_encoders([one, part, other], "a", "b")
