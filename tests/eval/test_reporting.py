"""What a run says on standard error."""

from __future__ import annotations

import io
import sys
from dataclasses import replace

from llm2clip.eval.commands.run import TerminalReporter
from llm2clip.eval.datasets.retrieval_set import ImageRef, RetrievalSet


def test_terminal_reporter_prints_names_verbatim_and_notes_once(make_result, tmp_path, capsys):
    result = make_result(label="[b]:id:")
    dataset = RetrievalSet(
        protocol="colours",
        language="id",
        images=(ImageRef(key="1", file=tmp_path / "1.png"),),
        captions=("merah",),
        caption_images=((0,),),
        complete=True,
        notes=("one [b]word[/]",),
    )
    with TerminalReporter() as reporter:
        for _ in range(2):
            reporter.begin("[b]:id:", dataset)
            reporter.end(replace(result, set=replace(result.set, protocol="colours", language="id")))
    said = capsys.readouterr().err
    assert said.count("[b]:id: on colours:id: T→I R@1") == 2
    assert said.count("note: colours:id: one [b]word[/]\n") == 1


def test_terminal_reporter_shows_no_bar_while_results_are_printed(make_result, tmp_path, monkeypatch):
    terminal = io.StringIO()  # both streams, as a person sees them
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setattr(sys, "stdout", terminal)
    monkeypatch.setenv("TTY_COMPATIBLE", "1")
    monkeypatch.setenv("TERM", "xterm")
    dataset = RetrievalSet(
        protocol="colours",
        language=None,
        images=(ImageRef(key="1", file=tmp_path / "1.png"),),
        captions=("red",),
        caption_images=((0,),),
        complete=True,
    )
    with TerminalReporter() as reporter:
        for name in ("one.json", "two.json"):
            reporter.begin("nano", dataset)
            reporter.advance("images", 1)
            reporter.end(make_result(label="nano"))
            print(name)
    drawn = terminal.getvalue()
    assert "nano on colours: images" in drawn
    for name in ("one.json", "two.json"):
        before = drawn[: drawn.index(name)]
        left = before.rpartition("\x1b[2K")[2]  # what follows the last line that was erased
        assert "nano on colours: images" not in left
        assert left.endswith("\n")
