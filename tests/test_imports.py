"""What may import what, and when: read from the sources."""

from __future__ import annotations

import pytest

from .structure import (
    AREAS,
    FOLDERS,
    HEAVY,
    ROOT,
    SOURCES,
    Import,
    arrows,
    circles,
    folder_graph,
    imports,
    read_imports,
    upward,
)


def test_imports_run_one_way():
    assert upward(arrows()) == []


def test_imports_have_no_circles():
    graph = arrows()
    assert circles(graph) == []
    assert circles(folder_graph(graph)) == []


@pytest.mark.parametrize("area", AREAS)
def test_folders_are_all_in_the_order(area):
    found = {path.parent.name for path in (ROOT / area).glob("*/*.py")}
    assert found == set(FOLDERS[area]) - {"."}


def bare_imports(found: list[Import]) -> list[str]:
    """Imports of an area by its bare name, which make a second module of the same file."""
    return [name for name, *_ in found if name.split(".")[0] in AREAS]


def test_imports_name_the_package():
    assert {name: wrong for name in SOURCES if (wrong := bare_imports(read_imports(name)))} == {}


def test_indexer_knows_no_model_outside_its_commands():
    """Everywhere else an encoder is whatever follows ``indexer/core/encoder_protocol.py``."""
    importers = {
        relative
        for relative in SOURCES
        if relative.startswith("indexer/")
        for entry in read_imports(relative)
        if entry.name.startswith("llm2clip.encoders")
    }
    assert {
        name for name in importers if not name.startswith(("indexer/commands/", "indexer/cli.py"))
    } == set()


@pytest.mark.parametrize(
    ("relative", "source", "expected"),
    [
        ("indexer/a.py", "from llm2clip.encoders import Encoder", ["llm2clip.encoders.Encoder"]),
        ("indexer/a.py", "def late():\n    from llm2clip.encoders import X", ["llm2clip.encoders.X"]),
        ("indexer/a.py", "if TYPE_CHECKING:\n    from llm2clip.encoders import X", ["llm2clip.encoders.X"]),
        ("indexer/deep/a.py", "from ...encoders import X", ["llm2clip.encoders.X"]),
        ("indexer/deep/a.py", "from ..hits import Hit", ["llm2clip.indexer.hits.Hit"]),
        ("retrieval/a.py", "from .. import train", ["llm2clip.train"]),
        ("retrieval/a.py", "import llm2clip.train.losses", ["llm2clip.train.losses"]),
        ("eval/a.py", "try:\n    import encoders\nexcept ImportError:\n    pass", ["encoders"]),
        ("eval/a.py", "import evaluation, retrieval_tools", ["evaluation", "retrieval_tools"]),
    ],
)
def test_imports_reads_each_form(relative, source, expected):
    assert [name for name, *_ in imports(relative, source)] == expected


def test_upward_and_circles_see_what_is_wrong():
    wrong = {
        "indexer/core/errors.py": {"indexer/storage/manifest.py", "retrieval/searcher.py"},
        "indexer/storage/manifest.py": {"indexer/core/errors.py"},
        "encoders/registry.py": {"encoders/core/base.py"},
    }
    assert upward(wrong) == [
        "indexer/core/errors.py imports indexer/storage/manifest.py",
        "indexer/core/errors.py imports retrieval/searcher.py",
    ]
    assert circles(wrong) == [["indexer/core/errors.py", "indexer/storage/manifest.py"]]
    assert circles(folder_graph(wrong)) == [["indexer/core", "indexer/storage"]]


@pytest.mark.parametrize("relative", [name for name in SOURCES if name.endswith(("/cli.py", "/__init__.py"))])
def test_commands_and_package_roots_import_nothing_heavy(relative):
    now = [entry.name for entry in read_imports(relative) if not (entry.late or entry.typing_only)]
    assert [name for name in now if name.split(".")[0] in HEAVY] == []


def test_only_one_file_imports_faiss():
    importers = {
        relative
        for relative in SOURCES
        for entry in read_imports(relative)
        if entry.name.split(".")[0] == "faiss" and not entry.typing_only
    }
    assert importers <= {"indexer/ann/faiss_flat.py"}
