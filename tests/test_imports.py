"""The arrows between the folders, and what may be imported when: read from the sources, then run."""

from __future__ import annotations

import ast
import importlib
import json
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
import typer

from llm2clip.common.entrypoint import COMMANDS

ROOT = Path(__file__).parent.parent
AREAS = ("common", "encoders", "indexer", "retrieval", "train", "eval")
SOURCES = sorted(path.relative_to(ROOT).as_posix() for area in AREAS for path in (ROOT / area).rglob("*.py"))
SCRIPTS = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["scripts"]

ALLOWED = {
    "common": set(),
    "encoders": {"common"},
    "indexer": {"common", "encoders"},
    "retrieval": {"common", "encoders", "indexer"},
    "eval": {"common", "encoders", "indexer", "retrieval"},
    "train": {"common", "encoders", "indexer", "retrieval", "eval"},
}
"""Which folders a folder may import (docs/architecture.md)."""

LATE_ALLOWED = {
    **{f"indexer/{name}.py": {"encoders"} for name in ("cli", "command", "choosing")},
    **{f"train/{name}.py": {"indexer"} for name in ("cli", "entry")},
}
"""What a file may import beyond that, inside functions only: ``llm2clip-index`` looks an encoder up by name, and
``llm2clip-train`` begins and ends as all commands do (``indexer/entry.py``, ``indexer/terminal.py``)."""

HEAVY = {
    "torch",
    "transformers",
    "faiss",
    "sentence_transformers",
    "PIL",
    "tokenizers",
    "safetensors",
    "scipy",
}
"""Packages that cost more to import than a command's --help may take."""


class Import(NamedTuple):
    """One imported name in a source file."""

    name: str
    """Dotted, absolute: ``llm2clip.encoders.core.base.Encoder``."""
    late: bool
    """Inside a function."""
    typing_only: bool
    """Under ``if TYPE_CHECKING``."""


def imports(relative: str, source: str) -> list[Import]:
    """Every import of the file at ``relative`` (below the root), relative ones spelt out."""
    package = ("llm2clip", *relative.split("/")[:-1])
    return list(_below(ast.parse(source), package, Import("", late=False, typing_only=False)))


def _below(tree: ast.AST, package: tuple[str, ...], place: Import) -> Iterator[Import]:
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield place._replace(name=alias.name)
        elif isinstance(node, ast.ImportFrom):
            start = package[: len(package) - node.level + 1] if node.level else ()
            for alias in node.names:
                yield place._replace(name=".".join((*start, *filter(None, [node.module]), alias.name)))
        elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            yield from _below(node, package, place._replace(late=True))
        elif isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            yield from _below(ast.Module(node.body, []), package, place._replace(typing_only=True))
            yield from _below(ast.Module(node.orelse, []), package, place)
        else:
            yield from _below(node, package, place)


def read_imports(relative: str) -> list[Import]:
    return imports(relative, (ROOT / relative).read_text(encoding="utf-8"))


def forbidden_arrows(relative: str, found: list[Import]) -> list[str]:
    """The imports that the file's place in the house does not allow."""
    area = relative.split("/")[0]
    wrong = []
    for name, late, _ in found:
        parts = name.split(".")
        if parts[0] in AREAS:
            wrong.append(f"{relative} imports {name} by its bare name: write llm2clip.{name}")
        if parts[0] == "llm2clip" and parts[1] != area:
            allowed = ALLOWED[area] | (LATE_ALLOWED.get(relative, set()) if late else set())
            if parts[1] not in allowed:
                wrong.append(f"{relative} imports {name}; allowed: {sorted(allowed) or 'no other folder'}")
    return wrong


@pytest.mark.parametrize("relative", SOURCES)
def test_imports_follow_the_arrows(relative: str):
    assert forbidden_arrows(relative, read_imports(relative)) == []


@pytest.mark.parametrize(
    ("relative", "source", "wrong"),
    [
        ("indexer/store.py", "import numpy\nfrom llm2clip.indexer.hits import Hit", False),
        ("indexer/store.py", "from llm2clip.encoders import Encoder", True),
        ("indexer/store.py", "def late():\n    from llm2clip.encoders import Encoder", True),
        ("indexer/store.py", "if TYPE_CHECKING:\n    from llm2clip.encoders import Encoder", True),
        ("indexer/cli.py", "def late():\n    from llm2clip.encoders import load_encoder", False),
        ("indexer/cli.py", "from llm2clip.encoders import load_encoder", True),
        ("indexer/build.py", "def late():\n    from llm2clip.encoders import load_encoder", True),
        ("indexer/deep/store.py", "from ...encoders import Encoder", True),
        ("indexer/deep/store.py", "from ..hits import Hit", False),
        ("retrieval/searcher.py", "from llm2clip import encoders, indexer", False),
        ("retrieval/searcher.py", "from llm2clip import eval", True),
        ("retrieval/searcher.py", "import llm2clip.train.losses", True),
        ("retrieval/searcher.py", "from ..train import losses", True),
        ("retrieval/searcher.py", "from ..indexer import Hit", False),
        ("retrieval/searcher.py", "from .. import train", True),
        ("train/nano.py", "import llm2clip.encoders", False),
        ("train/nano.py", "import llm2clip.eval", True),
        ("train/cli.py", "def late():\n    from llm2clip.indexer.entry import start", False),
        ("train/cli.py", "from llm2clip.indexer.entry import start", True),
        ("train/nano.py", "def late():\n    from llm2clip.indexer.entry import start", True),
        ("eval/metrics.py", "try:\n    import encoders\nexcept ImportError:\n    pass", True),
        ("eval/metrics.py", "import evaluation, retrieval_tools", False),
    ],
)
def test_the_reader_of_arrows_sees_each_form(relative: str, source: str, wrong: bool):
    assert bool(forbidden_arrows(relative, imports(relative, source))) is wrong


@pytest.mark.parametrize("relative", [name for name in SOURCES if name.endswith(("/cli.py", "/__init__.py"))])
def test_commands_and_package_roots_import_nothing_heavy(relative: str):
    now = [entry.name for entry in read_imports(relative) if not (entry.late or entry.typing_only)]
    assert [name for name in now if name.split(".")[0] in HEAVY] == []


def test_only_one_file_imports_faiss():
    importers = {
        relative
        for relative in SOURCES
        for entry in read_imports(relative)
        if entry.name.split(".")[0] == "faiss" and not entry.typing_only
    }
    assert importers <= {"indexer/faiss_index.py"}


def run_and_list(program: str) -> tuple[set[str], str]:
    """Top-level packages in ``sys.modules`` of a fresh interpreter after running ``program``, and what it printed."""
    program += "\nimport sys, json\nprint('\\n' + json.dumps(sorted({m.split('.')[0] for m in sys.modules})))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    output, _, listed = done.stdout.rstrip().rpartition("\n")
    return set(json.loads(listed)), output


@pytest.mark.parametrize("area", AREAS)
def test_importing_a_folder_is_instant(area: str):
    assert run_and_list(f"import llm2clip.{area}")[0] & (HEAVY | {"numpy"}) == set()


def every_help() -> list[tuple[str, ...]]:
    """The script and subcommand of every --help."""
    found: list[tuple[str, ...]] = []
    for script in SCRIPTS:
        app = importlib.import_module(COMMANDS[script]).app
        found.append((script,))
        found += [(script, name) for name in getattr(typer.main.get_command(app), "commands", {})]
    return found


HELP = """
import sys, time
from llm2clip.common.entrypoint import {function}
sys.argv = {arguments!r}
try:
    {function}()
except SystemExit as end:
    assert not end.code, end.code
print()
print("processor time", time.process_time())
"""
LIMIT = 0.3
"""Seconds of processor time in which a --help is there, the start of the interpreter included."""


@pytest.mark.parametrize("words", every_help(), ids=" ".join)
def test_help_is_instant_and_imports_nothing_heavy(words: tuple[str, ...]):
    program = HELP.format(function=SCRIPTS[words[0]].split(":")[1], arguments=[*words, "--help"])
    # Processor time, the best of a few: a loaded machine is not a slow command.
    for _ in range(5):
        loaded, output = run_and_list(program)
        assert loaded & (HEAVY | {"numpy"}) == set()
        assert f"Usage: {' '.join(words)} " in output
        spent = float(output.split()[-1])
        if spent < LIMIT:
            return
    pytest.fail(f"{' '.join(words)} --help took {spent:.2f} s, limit {LIMIT} s")
