"""What an import or a --help loads, in interpreters of its own: read from the sources in ``test_imports.py``."""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
import tomllib

import pytest
import typer
from PIL import Image

from llm2clip.common.entrypoint import COMMANDS
from llm2clip.encoders import load_encoder
from llm2clip.indexer import build_index

from .structure import AREAS, HEAVY, ROOT

SCRIPTS = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["scripts"]


def run_and_list(program: str) -> tuple[set[str], str]:
    """Top-level packages in ``sys.modules`` of a fresh interpreter after running ``program``, and what it printed."""
    program += "\nimport sys, json\nprint('\\n' + json.dumps(sorted({m.split('.')[0] for m in sys.modules})))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    output, _, listed = done.stdout.rstrip().rpartition("\n")
    return set(json.loads(listed)), output


@pytest.mark.parametrize("area", AREAS)
def test_import_of_an_area_loads_nothing_heavy(area):
    assert run_and_list(f"import llm2clip.{area}")[0] & (HEAVY | {"numpy"}) == set()


HELP = """
import sys
from llm2clip.common.entrypoint import {function}
for arguments in {commands!r}:
    sys.argv = [*arguments, "--help"]
    try:
        {function}()
    except SystemExit as end:
        assert not end.code, end.code
"""


@pytest.mark.parametrize("script", SCRIPTS)
def test_help_loads_nothing_heavy(script):
    app = importlib.import_module(COMMANDS[script]).app
    names = getattr(typer.main.get_command(app), "commands", {})
    commands = [(script,), *((script, name) for name in names)]
    loaded, output = run_and_list(HELP.format(function=SCRIPTS[script].split(":")[1], commands=commands))
    assert loaded & (HEAVY | {"numpy"}) == set()
    for words in commands:
        assert f"Usage: {' '.join(words)} " in output


def test_text_search_with_nano_loads_no_torch(tmp_path):
    (tmp_path / "images").mkdir()
    for name, colour in (("red", (200, 30, 20)), ("blue", (10, 40, 220))):
        Image.new("RGB", (60, 50), colour).save(tmp_path / "images" / f"{name}.png")
    build_index(tmp_path / "images", tmp_path / "index", encoder=load_encoder("nano", device="cpu"))
    arguments = ["llm2clip-search", "--index", str(tmp_path / "index"), "something red"]
    program = f"import sys\nfrom llm2clip.common.entrypoint import search\nsys.argv = {arguments}\n"
    loaded, output = run_and_list(
        f"{program}try:\n    search()\nexcept SystemExit as end:\n    assert not end.code"
    )
    assert "red.png" in output
    assert loaded & {"torch", "transformers", "sentence_transformers"} == set()
