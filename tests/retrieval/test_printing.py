"""Answers as lines for other programs, and the images of hits in a folder."""

from __future__ import annotations

import csv
import io
import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import Result

from llm2clip.retrieval.output.collecting import copy_images, link_images
from llm2clip.retrieval.output.printing import TSV_COLUMNS, print_answers
from llm2clip.retrieval.output.results import Answer, text_query

from .conftest import Corpus, hit, image

Search = Callable[..., Result]


def answer(*hits: object, query: str = "q") -> Answer:
    return Answer(query=text_query(query), hits=list(hits))  # type: ignore[arg-type]


def test_search_command_jsonl_is_the_hits_of_json(corpus: Corpus, search: Search):
    arguments = ("--each", "red", "blue", "-k", 2, "--index", corpus.index)
    whole = [json.loads(line) for line in search(*arguments, "--json").stdout.splitlines()]
    lines = [json.loads(line) for line in search(*arguments, "--jsonl").stdout.splitlines()]
    assert lines == [{"query": each["query"], **one} for each in whole for one in each["hits"]]
    assert [line["key"] for line in lines[::2]] == ["warm/red.png", "cold/blue.png"]


def test_search_command_tsv_has_a_line_per_hit(corpus: Corpus, search: Search):
    result = search("red", "-k", 3, "--tsv", "--index", corpus.index)
    rows = list(csv.DictReader(io.StringIO(result.stdout), delimiter="\t", quoting=csv.QUOTE_NONE))
    assert [row["rank"] for row in rows] == ["1", "2", "3"]
    assert (rows[0]["query"], rows[0]["caption"]) == ("red", "a red square")
    assert rows[0]["uri"] == f"{corpus.folder}/warm/red.png"
    assert (rows[0]["width"], rows[0]["height"]) == ("24", "16")


def test_print_answers_keeps_hostile_values_in_their_cells(capsys: pytest.CaptureFixture[str]):
    print_answers([answer(hit(1, caption="a\tb\nc\x1b[2J"), query="x\ty")], output="tsv")
    head, line = capsys.readouterr().out.splitlines()
    assert head.split("\t") == list(TSV_COLUMNS)
    cells = line.split("\t")
    assert (cells[0], cells[-1], len(cells)) == ("x y", "a b c\\x1b[2J", len(TSV_COLUMNS))


def test_search_command_null_ends_each_path(corpus: Corpus, search: Search):
    result = search("red", "-k", 2, "-0", "--index", corpus.index)
    paths = search("red", "-k", 2, "--paths", "--index", corpus.index).stdout.splitlines()
    assert result.stdout == "".join(f"{path}\0" for path in paths)


@pytest.mark.parametrize("options", [("--json", "--tsv"), ("--paths", "-0")])
def test_search_command_prints_one_kind_of_output(search: Search, options: tuple[str, str]):
    result = search("red", *options)
    assert result.exit_code == 2
    assert "exclude each other: choose one" in " ".join(result.stderr.split())


def test_search_command_copies_and_links_images(corpus: Corpus, search: Search, tmp_path: Path):
    copies, links = tmp_path / "new" / "copies", tmp_path / "links"
    arguments = ("red", "-k", 2, "--index", corpus.index, "--copy-to", copies, "--symlink-to", links)
    result = search(*arguments)
    assert result.exit_code == 0
    assert result.stderr == f"2 images copied to {copies}\n2 images linked in {links}\n"
    first = copies / "001-red.png"
    assert first.read_bytes() == (corpus.folder / "warm/red.png").read_bytes()
    assert os.readlink(links / "001-red.png") == f"{corpus.folder}/warm/red.png"
    assert len(list(copies.iterdir())) == len(list(links.iterdir())) == 2
    again = search(*arguments)
    assert again.exit_code != 0
    assert f"{copies} has files already, and none is to be replaced" in again.stderr


def test_copy_images_writes_into_its_folder_only(tmp_path: Path):
    names = ("../../evil.png", "a.tar#..", "a\nb.png", "é" * 200 + ".png")
    hits = [hit(rank, key=name, uri=f"/x/{rank}") for rank, name in enumerate(names, start=1)]
    said = copy_images([answer(*hits)], tmp_path / "out", read_image=lambda _: image("red"))
    assert said == f"4 images copied to {tmp_path / 'out'}"
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    found = sorted(path.name for path in (tmp_path / "out").iterdir())
    assert found[:3] == ["001-evil.png", "002-..", "003-a b.png"]
    assert len(found[3].encode()) <= 255
    assert found[3].endswith("é.png")


def test_copy_images_leaves_out_what_cannot_be_read(tmp_path: Path):
    def read(each: object) -> bytes:
        if each.rank == 1:  # type: ignore[attr-defined]
            raise OSError("gone")
        return b"bytes"

    said = copy_images([answer(hit(1), hit(2)), answer(hit(1))], tmp_path / "out", read_image=read)
    assert said == f"1 image copied to {tmp_path / 'out'}; 2 left out: each cannot be read"
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["001-002-p2.png"]


def test_link_images_leaves_out_members_of_containers(tmp_path: Path):
    (tmp_path / "a.png").write_bytes(b"bytes")
    hits = hit(1, uri=str(tmp_path / "a.png"), key="a.png"), hit(2, uri=f"{tmp_path}/s.tar#m.png")
    said = link_images([answer(*hits)], tmp_path / "out")
    assert (
        said == f"1 image linked in {tmp_path / 'out'}; 1 left out: it is no file of its own: try --copy-to"
    )
    assert (tmp_path / "out" / "001-a.png").read_bytes() == b"bytes"
