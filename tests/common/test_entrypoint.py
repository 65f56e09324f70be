"""Commands that a service or a launcher starts with closed streams."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = """
import sys
from llm2clip.common import entrypoint
sys.argv = ["llm2clip-search", "--help"]
try:
    entrypoint.search()
finally:
    with open(FILE, "w") as kept:
        print([stream is None for stream in (sys.stdin, sys.stdout, sys.stderr)], kept.fileno() > 2, file=kept)
"""


@pytest.mark.skipif(os.name != "posix", reason="closes streams as a shell does")
@pytest.mark.parametrize("closed", ["1>&-", "0<&- 1>&- 2>&-"])
def test_start_opens_what_was_closed(tmp_path: Path, closed: str):
    script = SCRIPT.replace("FILE", repr(str(tmp_path / "kept")))
    shell = f'exec "$PYTHON" -c "$SCRIPT" {closed}'
    environment = {**os.environ, "PYTHON": sys.executable, "SCRIPT": script}
    done = subprocess.run(["sh", "-c", shell], env=environment, capture_output=True, check=False)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "kept").read_text() == "[False, False, False] True\n"


@pytest.mark.parametrize("start", ["index", "search", "evaluate", "train", "serve"])
def test_every_command_completes_its_options(start: str):
    if start == "serve":
        pytest.importorskip("fastapi")
    command = f"llm2clip-{start.removesuffix('uate')}"
    script = (
        f"import sys; sys.argv = [{command!r}]; from llm2clip.common import entrypoint; entrypoint.{start}()"
    )
    variable = f"_{command.upper().replace('-', '_')}_COMPLETE"
    asked = {variable: "complete_bash", "COMP_WORDS": f"{command} --vers", "COMP_CWORD": "1"}
    done = subprocess.run(
        [sys.executable, "-c", script],
        env={**os.environ, **asked},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.stdout.split(), done.returncode) == (["--version"], 0), done.stderr
