"""The manuals against the program: --help blocks, the list of commands, links, and every snippet run.

In README.md and docs/*.md, a block fenced as ``console`` is run, every line after ``$`` in order, in one
folder per document; the lines below a command must appear in its output, in order, ``...`` standing for
anything. Blocks fenced as ``python`` run after them, in one interpreter per document. Other fences are not
run.

``make docs`` (this file run as a script) regenerates the --help blocks of docs/cli.md and the module map of
docs/architecture.md.
"""

import ast
import importlib
import os
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from llm2clip.common.entrypoint import COMMANDS

if __package__:
    from .forked import Forked
    from .forked import forked as forked
    from .structure import FOLDERS
else:  # run as a script
    from forked import Forked
    from structure import FOLDERS

ROOT = Path(__file__).parent.parent
MANUAL = ROOT / "docs" / "cli.md"
ARCHITECTURE = ROOT / "docs" / "architecture.md"
DOCUMENTS = [ROOT / name for name in ("README.md", "CONTRIBUTING.md")] + sorted((ROOT / "docs").glob("*.md"))
SCRIPTS = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["scripts"]
HELP_BLOCK = re.compile(r"(<!-- help: (?P<command>.+?) -->\n```text\n)(?P<body>.*?)(```\n)", re.DOTALL)
MODULE_MAP = re.compile(r"(<!-- module map -->\n)(?P<body>.*?)(<!-- /module map -->)", re.DOTALL)
FENCE = re.compile(r"^```(?P<kind>\w+)\n(?P<body>.*?)^```$", re.DOTALL | re.MULTILINE)
LINK = re.compile(r"\]\((?P<target>[^)#\s]+)(?:#[^)]*)?\)")
SHELL = re.compile(r"[|&;<>$`]")
CALL = """
import sys
from importlib.metadata import entry_points
sys.argv = {0!r}
entry_points(group="console_scripts")[sys.argv[0]].load()()
"""


def helps() -> Iterator[tuple[str, str]]:
    """Every command and what its --help says, without the frames that depend on the terminal."""
    import typer

    for script in SCRIPTS:
        app = importlib.import_module(COMMANDS[script]).app
        yield from _helps_below(typer.main.get_command(app), script, None)


def _helps_below(command: Any, name: str, parent: Any) -> Iterator[tuple[str, str]]:
    command.rich_markup_mode = None
    context = command.make_context(name.split()[-1], [], parent=parent, resilient_parsing=True)
    context.max_content_width = context.terminal_width = 80
    yield name, "\n".join(line.rstrip() for line in context.get_help().splitlines()) + "\n"
    for child, below in getattr(command, "commands", {}).items():
        if not below.hidden:
            yield from _helps_below(below, f"{name} {child}", context)


def with_current_help(manual: str) -> str:
    """The manual's text with every --help block as the program has it now."""
    current = dict(helps())
    return HELP_BLOCK.sub(lambda block: block[1] + current.get(block["command"], "") + block[4], manual)


def module_map() -> str:
    """One line per folder and file of the package: its path and the first line of its docstring."""
    lines = []
    for area, names in FOLDERS.items():
        for folder in (ROOT / area, *(ROOT / area / name for name in names if name != ".")):
            lines += ["", _map_line(folder / "__init__.py", f"{folder.relative_to(ROOT).as_posix()}/")]
            files = sorted(path for path in folder.glob("*.py") if path.name != "__init__.py")
            lines += [_map_line(path, f"  {path.name}") for path in files]
    return "\n".join(["```text", *lines[1:], "```", ""])


def _map_line(path: Path, shown: str) -> str:
    purpose = ast.get_docstring(ast.parse(path.read_bytes())) or ""
    return f"{shown:<28} {purpose.splitlines()[0] if purpose else ''}".rstrip()


def with_current_map(text: str) -> str:
    """The text of docs/architecture.md with the module map as the tree is now."""
    return MODULE_MAP.sub(lambda found: found[1] + module_map() + found[3], text)


def test_module_map_is_current():
    text = ARCHITECTURE.read_text(encoding="utf-8")
    assert MODULE_MAP.search(text)
    assert text == with_current_map(text), "the module map is out of date: run make docs"


def test_every_command_is_in_the_manual_and_nothing_else():
    assert [block["command"] for block in HELP_BLOCK.finditer(MANUAL.read_text(encoding="utf-8"))] == [
        name for name, _ in helps()
    ]


def words(text: str) -> list[str]:
    """What a --help says; wrapping and the names of types depend on the command-line library's version."""
    return re.sub(r"<[^>]+>|\b(TEXT|PATH|INTEGER|FLOAT|RANGE|BOOLEAN|FILE)\b", "", text).split()


def test_help_blocks_are_current():
    current = dict(helps())
    for block in HELP_BLOCK.finditer(MANUAL.read_text(encoding="utf-8")):
        command = block["command"]
        assert words(block["body"]) == words(current[command]), f"{command} --help changed: run make docs"


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_links_lead_somewhere(document):
    targets = [link["target"] for link in LINK.finditer(document.read_text(encoding="utf-8"))]
    local = [target for target in targets if "://" not in target]
    assert [target for target in local if not (document.parent / target).exists()] == []


def commands(block: str) -> list[tuple[str, list[str]]]:
    """The commands of a console block, each with the output lines written below it."""
    found: list[tuple[str, list[str]]] = []
    for line in block.splitlines():
        if line.startswith("$ "):
            found.append((line[2:], []))
        elif line.strip():
            found[-1][1].append(line.strip())
    return found


def assert_in_order(expected: list[str], output: str) -> None:
    """Every expected line occurs within a line of output after the one before, ``...`` matching anything."""
    lines = iter([" ".join(line.split()) for line in output.splitlines()])
    for line in expected:
        if line == "...":
            continue
        pattern = ".*".join(re.escape(part) for part in " ".join(line.split()).split("..."))
        assert any(re.search(pattern, candidate) for candidate in lines), f"{line!r} is not in\n{output}"


@pytest.fixture(scope="module")
def environment() -> dict[str, str]:
    """An environment with our commands on the path."""
    path = os.pathsep.join((str(Path(sys.executable).parent), os.environ["PATH"]))
    return {**os.environ, "PATH": path, "COLUMNS": "110", "NO_COLOR": "1", "TERM": "dumb"}


@pytest.fixture(scope="module")
def sample_home(
    forked: Forked, environment: dict[str, str], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """A data home with an index of the sample images, which the first search without an index makes."""
    home = tmp_path_factory.mktemp("sample-home")
    search = CALL.format(["llm2clip-search", "a dog"])
    status, output = forked.run(search, folder=home, environment=environment | {"LLM2CLIP_HOME": str(home)})
    assert status == 0, output
    return home


@pytest.fixture
def workplace(
    tmp_path: Path, data_home: Path, sample_home: Path, environment: dict[str, str]
) -> tuple[Path, dict[str, str]]:
    """A folder with three images, and an environment with a data home of its own."""
    from PIL import Image

    (tmp_path / "photos").mkdir()
    for name, colour in (("red", "#c02020"), ("green", "#20c020"), ("blue", "#2020c0")):
        Image.new("RGB", (320, 240), colour).save(tmp_path / "photos" / f"{name}.jpg")
    shutil.copytree(sample_home, data_home, dirs_exist_ok=True)
    return tmp_path, environment | {"LLM2CLIP_HOME": str(data_home)}


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_snippets_run(document, workplace, forked):
    folder, environment = workplace
    blocks = [
        (match["kind"], match["body"]) for match in FENCE.finditer(document.read_text(encoding="utf-8"))
    ]
    runs = [run for kind, body in blocks if kind == "console" for run in commands(body)]
    for command, expected in runs:
        if command.startswith("llm2clip-") and not SHELL.search(command):
            status, output = forked.run(
                CALL.format(shlex.split(command)), folder=folder, environment=environment
            )
        else:
            status, output = _run_in_shell(command, folder, environment)
        assert status == 0, f"{command}\n{output}"
        assert_in_order(expected, output)
    program = "\n".join(body for kind, body in blocks if kind == "python")
    if program:
        strict = "import warnings\nwarnings.simplefilter('error')\n"
        status, output = forked.run(strict + program, folder=folder, environment=environment)
        assert status == 0, output


def _run_in_shell(command: str, folder: Path, environment: dict[str, str]) -> tuple[int, str]:
    done = subprocess.run(
        ["bash", "-c", command],
        cwd=folder,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=200,
    )
    return done.returncode, done.stdout


def test_the_order_of_output_is_checked():
    output = "Indexed 3 images in 0.4 s\n  1  0.812  red.jpg\n"
    assert_in_order(["Indexed 3 images in ... s", "...", "1 ... red.jpg"], output)
    with pytest.raises(AssertionError, match=r"'1 \.\.\. blue\.jpg' is not in"):
        assert_in_order(["1 ... blue.jpg"], output)
    with pytest.raises(AssertionError, match="is not in"):
        assert_in_order(["1 ... red.jpg", "Indexed ..."], output)
    assert commands("$ a b\nout\n...\n$ c\n") == [("a b", ["out", "..."]), ("c", [])]


if __name__ == "__main__":
    MANUAL.write_text(with_current_help(MANUAL.read_text(encoding="utf-8")), encoding="utf-8")
    ARCHITECTURE.write_text(with_current_map(ARCHITECTURE.read_text(encoding="utf-8")), encoding="utf-8")
