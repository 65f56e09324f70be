"""The worked examples of CONTRIBUTING.md: each diff is short, applies to this tree, and its own tests pass."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from .structure import AREAS

ROOT = Path(__file__).parent.parent
PAGE = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
EXAMPLES = dict(re.findall(r"^### (A new .+?)\n(.+?)(?=^##)", PAGE, re.DOTALL | re.MULTILINE))
"""Title -> text and diff."""
MOST_LINES = 40
PYTEST = (sys.executable, "-m", "pytest", "-v", "-p", "no:cacheprovider")


def run(*command: str, folder: Path) -> str:
    """Output of a command in a copy of the tree, whose code comes before the installed one."""
    path = os.pathsep.join((str(folder / "namespace"), os.environ.get("PYTHONPATH", "")))
    environment = {**os.environ, "PYTHONPATH": path, "GIT_CEILING_DIRECTORIES": str(folder.parent)}
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=250)
    assert done.returncode == 0, f"{' '.join(command)}\n{done.stdout}{done.stderr}"
    return done.stdout


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A copy of the code and the tests, without the sample corpus and other data of more than a megabyte."""

    def large(folder: str, names: list[str]) -> set[str]:
        files = ((name, Path(folder, name)) for name in names)
        return {name for name, path in files if name == "__pycache__" or path.stat().st_size > 2**20}

    for name in (*AREAS, "tests", "docs"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=large)
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    (tmp_path / "namespace" / "llm2clip").mkdir(parents=True)
    for area in AREAS:
        (tmp_path / "namespace" / "llm2clip" / area).symlink_to(tmp_path / area)
    return tmp_path


def test_contributing_shows_every_kind_of_addition():
    assert list(EXAMPLES) == [
        f"A new {kind}"
        for kind in ("encoder family", "corpus reader", "index type", "benchmark data set", "metric")
    ]


def test_contributing_examples_apply_and_pass(tree):
    """All of them together: each is checked on its own, one run of pytest has the tests of all."""
    tests, chosen = [], []
    for text in EXAMPLES.values():
        (diff,) = re.findall(r"^```diff\n(.+?)^```$", text, re.DOTALL | re.MULTILINE)
        ((test, selection),) = re.findall(r"`pytest (tests/[\w/]+\.py)(?: -k ([\w-]+))?`", text)
        assert len(diff.splitlines()) <= MOST_LINES
        (tree / "example.diff").write_text(diff, encoding="utf-8")
        run("git", "apply", "example.diff", folder=tree)
        changed = [
            file for file in re.findall(r"^\+\+\+ b/(.+)$", diff, re.MULTILINE) if file.endswith(".py")
        ]
        for check in (["check"], ["format", "--check"]):
            run(sys.executable, "-m", "ruff", *check, "--no-cache", *changed, folder=tree)
        tests.append(test)
        chosen.append(f"({Path(test).stem} and {selection or 'test'})")
    passed = run(*PYTEST, *tests, "-k", " or ".join(chosen), folder=tree)
    for test in tests:
        assert re.search(rf"^{re.escape(test)}::.* PASSED", passed, re.MULTILINE), (
            f"{test} was not run\n{passed}"
        )
