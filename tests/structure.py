"""The order of the folders: each may import what stands above it, and nothing below. docs/architecture.md says why."""

from __future__ import annotations

import ast
from collections.abc import Iterable, Iterator
from functools import cache
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parent.parent

FOLDERS = {
    "common": (),
    "encoders": ("core", "layers", "images", "catalog", "weights", "text", "vision", "llm2clip", "baselines"),
    "indexer": (
        "core",
        "records",
        "containers",
        "corpora",
        "filters",
        "storage",
        "ann",
        "planner",
        "search",
        "engines",
        "ingest",
        "lifecycle",
        "commands",
    ),
    "retrieval": ("query", "ranking", "output", ".", "daemon", "service", "server"),
    "eval": (
        "metrics",
        "stats",
        "datasets",
        "results",
        "loaders",
        "runner",
        "report",
        "commands",
    ),
    "train": ("core", "data", "caption_cache", "cc", "align", "nano"),
}
"""Areas in order, and in each area its sub-packages in order. An area's own files come after them, or at ``.``."""
AREAS = tuple(FOLDERS)
SOURCES = sorted(path.relative_to(ROOT).as_posix() for area in AREAS for path in (ROOT / area).rglob("*.py"))
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


@cache
def read_imports(relative: str) -> list[Import]:
    return imports(relative, (ROOT / relative).read_text(encoding="utf-8"))


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


def file_of(name: str, public: dict[str, str]) -> str | None:
    """The source file that a dotted name of ours lies in; a public name of an area lies where its stub says."""
    if name in public:
        name = public[name]
    parts = name.split(".")[1:]
    for length in range(len(parts), 0, -1):
        for candidate in ("/".join(parts[:length]) + ".py", "/".join([*parts[:length], "__init__.py"])):
            if (ROOT / candidate).is_file():
                return candidate
    return None


def public_names() -> dict[str, str]:
    """Public dotted name -> dotted name where it is defined, from the stubs of the areas."""
    found = {}
    for area in AREAS:
        stub = ROOT / area / "__init__.pyi"
        if stub.is_file():
            for entry in imports(f"{area}/__init__.pyi", stub.read_text(encoding="utf-8")):
                found[f"llm2clip.{area}.{entry.name.rsplit('.', 1)[1]}"] = entry.name
    return found


def position(relative: str) -> tuple[int, int]:
    """Where a file stands in the order: area, then folder within the area."""
    area, *rest = relative.split("/")
    folders = FOLDERS[area]
    own = folders.index(".") if "." in folders else len(folders)
    return AREAS.index(area), folders.index(rest[0]) if len(rest) > 1 else own


def arrows() -> dict[str, set[str]]:
    """Each source file and the files of ours that it imports, in functions and for types too."""
    public = public_names()
    found = {}
    for relative in SOURCES:
        targets = {file_of(entry.name, public) for entry in read_imports(relative) if _ours(entry.name)}
        found[relative] = {target for target in targets if target and target != relative}
    return found


def _ours(name: str) -> bool:
    return name.startswith("llm2clip.") and name.split(".")[1] in AREAS


def circles(graph: dict[str, set[str]]) -> list[list[str]]:
    """Groups of two or more nodes that reach each other (Tarjan's strongly connected components)."""
    index: dict[str, int] = {}
    low: dict[str, int] = {}
    stack: list[str] = []
    found: list[list[str]] = []

    def visit(node: str) -> None:
        index[node] = low[node] = len(index)
        stack.append(node)
        for target in graph.get(node, ()):
            if target not in index:
                visit(target)
                low[node] = min(low[node], low[target])
            elif target in stack:
                low[node] = min(low[node], index[target])
        if low[node] == index[node]:
            group = []
            while not group or group[-1] != node:
                group.append(stack.pop())
            if len(group) > 1:
                found.append(sorted(group))

    for node in graph:
        if node not in index:
            visit(node)
    return found


def folder_graph(graph: dict[str, set[str]]) -> dict[str, set[str]]:
    """The same arrows between folders."""
    found: dict[str, set[str]] = {}
    for source, targets in graph.items():
        folder = source.rpartition("/")[0]
        found.setdefault(folder, set()).update(t.rpartition("/")[0] for t in targets)
        found[folder].discard(folder)
    return found


def upward(graph: dict[str, Iterable[str]]) -> list[str]:
    """The arrows that run against the order."""
    return sorted(
        f"{source} imports {target}"
        for source, targets in graph.items()
        for target in targets
        if position(target) > position(source)
    )
