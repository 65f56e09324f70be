"""What a run says on standard error."""

from __future__ import annotations

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
