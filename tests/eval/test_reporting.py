"""What a run says on standard error."""

from __future__ import annotations

from dataclasses import replace

from llm2clip.eval.datasets.retrieval_set import ImageRef, RetrievalSet
from llm2clip.eval.report.progress import TerminalReporter


def test_names_are_said_as_they_are_and_notes_once(make_result, tmp_path, capsys):
    result = make_result(label="[b]:id:")
    the_set = RetrievalSet(
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
            reporter.begin("[b]:id:", the_set)
            reporter.end(
                replace(result, set=replace(result.set, protocol="colours", language="id")), fresh=True
            )
    said = capsys.readouterr().err
    assert said.count("[b]:id: on colours:id: T→I R@1") == 2
    assert said.count("note: colours:id: one [b]word[/]\n") == 1
