"""The command: what it prints where, and how it fails."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from rich.cells import cell_len
from typer.testing import Result

from llm2clip.encoders import FakeEncoder
from llm2clip.indexer import build_index
from llm2clip.indexer.core.index_paths import set_current_index

from .conftest import Corpus, image

Search = Callable[..., Result]


def records(result: Result) -> list[dict]:
    assert result.exit_code == 0, result.stderr
    return [json.loads(line) for line in result.stdout.splitlines()]


def test_search_command_prints_a_table_per_query(corpus: Corpus, search: Search):
    result = search("--each", "red", "blue", "-k", 2, "--index", corpus.index)
    assert (result.exit_code, result.stderr) == (0, "")
    lines = result.stdout.splitlines()
    assert lines == [line.rstrip() for line in lines]
    assert lines[0] == "red"
    assert lines[1].split() == ["rank", "score", "conf.", "image", "caption"]
    assert lines[2].split()[0:1] + lines[2].split()[3:] == ["1", "warm/red.png", "a", "red", "square"]
    assert 0.7 < float(lines[2].split()[1]) <= 1
    assert lines[4].strip() == "1 to 2 of 8; more with --page 2"
    assert lines[6] == "blue"
    assert lines[8].split()[0:1] + lines[8].split()[3:] == ["1", "cold/blue.png", "a", "blue", "square"]
    assert max(cell_len(line) for line in lines) <= 80


def test_search_command_json_has_one_object_per_query(corpus: Corpus, search: Search):
    red, image = records(
        search(
            "--each",
            "red",
            "--image",
            corpus.folder / "cold/blue.png",
            "-k",
            3,
            "--json",
            "--index",
            corpus.index,
        )
    )
    assert (red["query"], red["kind"], red["language"]) == ("red", "text", None)
    assert (image["query"], image["kind"]) == (str(corpus.folder / "cold/blue.png"), "image")
    assert [hit["rank"] for hit in red["hits"]] == [1, 2, 3]
    first = image["hits"][0]
    names = (
        "rank score confidence id key uri caption width height metadata time time_source missing duplicates"
    )
    assert first.keys() == set(names.split())
    assert (first["key"], first["caption"], first["metadata"]) == (
        "cold/blue.png",
        "a blue square",
        {"mood": "calm"},
    )
    assert Path(first["uri"]) == corpus.folder / "cold/blue.png"
    assert first["score"] == pytest.approx(1, abs=1e-3)


def test_search_command_paths_are_one_per_line(corpus: Corpus, search: Search):
    result = search("--each", "red", "blue", "-k", 1, "--paths", "--index", corpus.index)
    assert (result.exit_code, result.stderr) == (0, "")
    assert result.stdout.splitlines() == [
        str(corpus.folder / "warm/red.png"),
        str(corpus.folder / "cold/blue.png"),
    ]


def test_search_command_writes_a_gallery(corpus: Corpus, search: Search, tmp_path: Path):
    target = tmp_path / "new" / "gallery.html"
    result = search("red", "-k", 2, "--html", target, "--index", corpus.index)
    assert result.exit_code == 0
    assert result.stderr == f"gallery written to {target}\n"
    assert "warm/red.png" in result.stdout
    page = target.read_text("utf-8")
    assert page.count("data:image/webp;base64,") == 2
    assert "8 images, encoder fake" in page


@pytest.mark.parametrize("start", [b"", b"\xef\xbb\xbf"], ids=["plain", "byte-order-mark"])
def test_read_queries_reads_a_file_or_stdin(corpus: Corpus, search: Search, tmp_path: Path, start: bytes):
    content = start + "red\n\n  \r\n  blue \r\n綠\x0bgreen".encode()
    (tmp_path / "q.txt").write_bytes(content)
    options = ("-k", 1, "--json", "--index", corpus.index)
    for result in (
        search("--queries", tmp_path / "q.txt", *options),
        search("--queries", "-", *options, stdin=content),
    ):
        found = records(result)
        assert [record["query"] for record in found] == ["red", "blue", "綠\x0bgreen"]
        assert [Path(record["hits"][0]["key"]).stem for record in found] == ["red", "blue", "green"]


def test_search_command_answers_texts_before_images(corpus: Corpus, search: Search, tmp_path: Path):
    (tmp_path / "q.txt").write_text("blue\n")
    (tmp_path / "p.png").write_bytes(image("#00ff00"))
    arguments = ("--each", "--image", tmp_path / "p.png", "--queries", tmp_path / "q.txt", "red", "--json")
    found = records(search(*arguments, "--index", corpus.index))
    assert [record["query"] for record in found] == ["red", "blue", str(tmp_path / "p.png")]


def failure(result: Result) -> str:
    """The one line on standard error of a command that failed with nothing on standard output."""
    assert (result.exit_code, result.stdout) == (1, ""), result.stderr
    (line,) = result.stderr.splitlines()
    assert line.startswith("error: ")
    return line


@pytest.mark.parametrize("query", ["", "  ", "\t"])
def test_search_command_refuses_an_empty_query(corpus: Corpus, search: Search, query: str):
    assert "the query is empty; give at least one word" in failure(search(query, "--index", corpus.index))


def test_search_command_refuses_a_file_without_queries(corpus: Corpus, search: Search, tmp_path: Path):
    (tmp_path / "q.txt").write_text("\n  \n")
    message = failure(search("--queries", tmp_path / "q.txt", "--index", corpus.index))
    assert message.endswith("q.txt has no query: it is empty or all its lines are blank")
    (tmp_path / "q.txt").write_bytes("größer".encode("latin-1"))
    message = failure(search("--queries", tmp_path / "q.txt", "--index", corpus.index))
    assert "q.txt must be UTF-8 text, got byte 0xf6 at offset 2: convert it" in message


@pytest.mark.parametrize("option", ["--queries", "--image"])
def test_search_command_refuses_a_missing_file(corpus: Corpus, search: Search, tmp_path: Path, option: str):
    message = failure(search(option, tmp_path / "missing", "--index", corpus.index))
    assert message == f"error: {tmp_path / 'missing'}: No such file or directory"


@pytest.mark.parametrize(
    ("content", "reason"),
    [(b"", "empty file"), (b"words", "not an image"), (image("red")[:40], "truncated")],
)
def test_search_command_refuses_an_unreadable_image(
    corpus: Corpus, search: Search, tmp_path: Path, content: bytes, reason: str
):
    (tmp_path / "bad.png").write_bytes(content)
    message = failure(search("--image", tmp_path / "bad.png", "--index", corpus.index))
    assert f"cannot search with the image {tmp_path / 'bad.png'}: " in message
    assert reason in message


def test_search_command_names_a_missing_index(search: Search, tmp_path: Path):
    message = failure(search("red", "--index", tmp_path / "none"))
    assert f"no index at {tmp_path / 'none'}" in message
    assert "llm2clip-index build" in message


def test_search_command_refuses_a_tampered_index(corpus: Corpus, search: Search):
    manifest = corpus.index / "manifest.json"
    manifest.write_text(manifest.read_text().replace('"items": 8', '"items": 7'))
    message = failure(search("red", "--index", corpus.index))
    assert "checksum" in message
    assert "--overwrite" in message


@pytest.mark.parametrize("pattern", ["items-*.db", "vectors-*.npy", "candidates-*.faiss"])
def test_search_command_refuses_a_truncated_or_missing_file(corpus: Corpus, search: Search, pattern: str):
    (file,) = corpus.index.glob(pattern)
    file.write_bytes(file.read_bytes()[:-7])
    assert file.name in failure(search("red", "--index", corpus.index))
    file.unlink()
    assert file.name in failure(search("red", "--index", corpus.index))


def test_search_command_refuses_an_unfinished_index(
    corpus: Corpus, search: Search, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    class Stopping(FakeEncoder):
        def _image_batch(self, pixels: np.ndarray) -> np.ndarray:
            if len(self.image_batches) == 2:
                raise KeyboardInterrupt
            return super()._image_batch(pixels)

    from llm2clip.indexer import BuildOptions

    with pytest.raises(KeyboardInterrupt):
        build_index(
            corpus.folder,
            tmp_path / "half",
            encoder=Stopping(),
            options=BuildOptions(batch_size=2, workers=1),
        )
    message = failure(search("red", "--index", tmp_path / "half"))
    assert "is unfinished" in message
    assert "llm2clip-index build" in message


def test_search_command_refuses_another_encoder(corpus: Corpus, search: Search):
    message = failure(search("red", "--encoder", "other", "--index", corpus.index))
    assert "was built with encoder 'fake' (dim 16), got 'other' (dim 16)" in message
    assert "no encoder named 'missing'" in failure(
        search("red", "--encoder", "missing", "--index", corpus.index)
    )


def test_search_command_reports_an_unwritable_gallery(corpus: Corpus, search: Search, tmp_path: Path):
    (tmp_path / "file").write_text("")
    result = search("red", "--html", tmp_path / "file" / "g.html", "--index", corpus.index)
    assert result.exit_code == 1
    assert len(result.stderr.splitlines()) == 1
    assert str(tmp_path / "file") in result.stderr


def test_search_command_warns_of_a_long_text(corpus: Corpus, search: Search):
    result = search("red " * 100, "--json", "-k", 1, "--index", corpus.index)
    (record,) = records(result)
    assert record["hits"][0]["key"] == "warm/red.png"
    (line,) = result.stderr.splitlines()
    assert line.startswith("warning: ")
    assert "100 tokens, and fake reads 64 at once: it was read in 2 parts" in line


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "got no query; pass text, --image FILE or --queries FILE"),
        (("red", "--json", "--paths"), "--json and --paths exclude each other"),
        (("red", "-k", "0"), "-k"),
        (("red", "-k", "many"), "-k"),
        (("red", "--colour"), "--colour"),
    ],
)
def test_search_command_misuse_exits_with_2(search: Search, arguments: tuple[str, ...], message: str):
    result = search(*arguments)
    assert (result.exit_code, result.stdout) == (2, "")
    assert message in result.stderr


def test_search_command_escapes_hostile_names(search: Search, tmp_path: Path):
    (tmp_path / "p").mkdir()
    (tmp_path / "p" / "\x1b[2J\u202egnp.png").write_bytes(image("red"))
    build_index(tmp_path / "p", tmp_path / "i", encoder=FakeEncoder())
    result = search("red", "--index", tmp_path / "i")
    assert result.exit_code == 0
    assert "\x1b" not in result.stdout
    assert "\u202e" not in result.stdout


def test_locate_prefers_the_environment_to_the_last_index(corpus: Corpus, search: Search, tmp_path: Path):
    other = tmp_path / "other"
    other.mkdir()
    (other / "only.png").write_bytes(image("red"))
    build_index(other, tmp_path / "other.index", encoder=FakeEncoder())
    set_current_index(corpus.index)

    def first(**environment: str) -> str:
        return records(search("red", "--json", **environment))[0]["hits"][0]["key"]

    assert first() == "warm/red.png"
    assert first(LLM2CLIP_INDEX=str(tmp_path / "other.index")) == "only.png"
    assert first(LLM2CLIP_INDEX="") == "warm/red.png"


def test_locate_never_replaces_a_missing_index_by_the_sample(search: Search, tmp_path: Path):
    set_current_index(tmp_path / "gone")
    assert f"the default index, {tmp_path / 'gone'}, no longer exists" in failure(search("red"))
    message = failure(search("red", LLM2CLIP_INDEX=str(tmp_path / "away")))
    assert f"LLM2CLIP_INDEX names {tmp_path / 'away'}, which does not exist" in message
    assert "--index sample:" in message


# What follows runs the command in a process of its own, with the fake encoder put in place first.
PROGRAM = """
import sys
from llm2clip import encoders
encoders.load_encoder = lambda name, *, device="auto", dtype="auto": encoders.FakeEncoder()
from llm2clip.common.entrypoint import search
search()
"""


def start(*arguments: object, program: str = PROGRAM, **environment: str) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-c", program, *map(str, arguments)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env={**os.environ, **environment},
    )


@pytest.mark.parametrize(
    "place",
    [
        "llm2clip.retrieval.commands.read_queries",
        "llm2clip.encoders.load_encoder",
        "rich.console.Console.print",
    ],
)
def test_search_command_interrupted_is_one_line_and_status_130(corpus: Corpus, place: str):
    module, _, name = place.rpartition(".")
    module, _, owner = module.rpartition(".") if module.endswith("Console") else (module, "", "")
    interrupting = f"""
import importlib, os, signal
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell starts background jobs with interrupts ignored
target = importlib.import_module({module!r})
target = getattr(target, {owner!r}) if {owner!r} else target
setattr(target, {name!r}, lambda *_, **__: os.kill(os.getpid(), signal.SIGINT))
"""
    program = PROGRAM.replace("search()", interrupting + "search()")
    process = start("red", "--index", corpus.index, program=program)
    out, err = process.communicate(timeout=60)
    assert (process.returncode, out, err) == (130, b"", b"interrupted\n")


def test_search_command_survives_a_closed_pipe(corpus: Corpus):
    process = start("--queries", "-", "--json", "--index", corpus.index)
    process.stdout.close()
    process.stdin.write(b"red\n" * 300)
    process.stdin.close()
    assert process.wait(timeout=60) == 1
    assert process.stderr.read() == b""
    process.stderr.close()


@pytest.mark.parametrize("output", ["--json", "--paths", None])
def test_search_command_serves_ascii_output(search: Search, tmp_path: Path, output: str | None):
    (tmp_path / "图").mkdir()
    (tmp_path / "图" / "红.png").write_bytes(image("red"))
    build_index(tmp_path / "图", tmp_path / "i", encoder=FakeEncoder())
    arguments = ("red", "--index", tmp_path / "i", *([output] if output else []))
    process = start(*arguments, PYTHONIOENCODING="ascii", PYTHONUTF8="0")
    out, err = process.communicate(timeout=60)
    assert process.returncode == 0, err
    if output == "--json":
        assert json.loads(out)["hits"][0]["key"] == "红.png"


def test_search_command_imports_nothing_heavy_before_the_encoder(corpus: Corpus):
    program = PROGRAM.replace("search()", "app(standalone_mode=False)").replace(
        "llm2clip.common.entrypoint import search", "llm2clip.retrieval.cli import app"
    )
    listing = "\nprint(sorted({name.split('.')[0] for name in sys.modules}), file=sys.stderr)"
    done = subprocess.run(
        [sys.executable, "-c", program + listing, "red", "--index", str(corpus.index)],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    loaded = set(json.loads(done.stderr.splitlines()[-1].replace("'", '"')))
    assert "faiss" in loaded
    assert not loaded & {"torch", "transformers", "sentence_transformers", "scipy", "PIL", "tokenizers"}
