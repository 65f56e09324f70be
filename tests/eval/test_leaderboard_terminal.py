"""The leaderboard in terminals of any width."""

from __future__ import annotations

import io
from dataclasses import replace

import pytest

from llm2clip.eval.report.leaderboard import build_board
from llm2clip.eval.report.markdown import markdown
from llm2clip.eval.report.terminal import terminal_tables
from llm2clip.eval.results.records import IndexRecall, RecallLoss


def printed(board, *, width):
    from rich.console import Console

    console = Console(width=width, record=True, file=io.StringIO(), highlight=False)
    for each in terminal_tables(board, limit=2, width=width):
        console.print(each)
    return console.export_text()


@pytest.fixture
def board(make_result):
    at = (RecallLoss(k=1, exact=0.5, index_recall=0.25, overlap=0.9),)
    loss = IndexRecall(index="ivf64-sq8-ip", generation="g", images=9, at=at, milliseconds=1.0)
    one = make_result(label="enc with a long name of its own", key="a" * 64)
    shared = replace(one.set, notes=("captions by kind: human_written 5",))
    noted = replace(shared, notes=(*shared.notes, "only b"))
    other = replace(make_result(label="b", key="b" * 64), set=noted)
    return build_board([replace(one, set=shared, index_recall=(loss,)), other])


@pytest.mark.parametrize("width", [80, 100, 120, 200])
def test_terminal_tables_cut_no_number_short(board, width):
    text = printed(board, width=width)
    assert "…" not in text
    assert max(map(len, text.splitlines())) <= width
    for row in board.tables[0].ours:
        for cell in row.cells.values():
            assert f" {cell.value:.1f} " in text
            assert f" {cell.low:.1f}–{cell.high:.1f} " in text


def test_terminal_tables_narrow_have_a_line_per_direction(board):
    text = printed(board, width=80)
    assert text.count("│ T→I │") == text.count("│ I→T │") == 2
    assert "\nenc with a long name of its own: " in text
    assert "through ivf64-sq8-ip: R@1 -25.0" in " ".join(text.split())


def test_terminal_tables_give_shared_notes_once(board):
    for text in (printed(board, width=200), printed(board, width=80), markdown(board, limit=2)):
        assert text.count("captions by kind: human_written 5") == 1
        assert text.count("only b") == 1


def test_terminal_tables_fit_comparisons_into_a_narrow_terminal(make_result):
    one = make_result(label="clip-vit-b-16", key="c" * 64)
    one = replace(
        one,
        set=replace(one.set, protocol="flickr30k", images=1000, captions=5000),
        encoder=replace(one.encoder, repository="openai/clip-vit-base-patch16", name="clip-vit-b-16"),
    )
    board = build_board([one])
    assert board.comparisons
    for width in (80, 150):
        text = printed(board, width=width)
        assert "ours and published, same weights and protocol" in text
        assert max(map(len, text.splitlines())) <= width
