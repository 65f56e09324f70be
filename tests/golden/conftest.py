"""Golden cases: numbers recorded from the reference implementations, in a folder of one schema.

``pytest tests/golden --golden-root FOLDER`` runs them on another set of the same schema, else the copies in
``data`` are used. The largest error of each case stands at the end of the output, and so does every case of
the folder that nothing here reads yet: a runner of case ``x_name`` is ``test_x_name.py``.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

HERE = Path(__file__).parent
OURS = HERE / "data"
ATOL, RTOL = 5e-5, 1e-4
GRADIENT_ATOL = 1e-5


@dataclass
class Errors:
    """What the comparisons of one case came to."""

    comparisons: int = 0
    largest: float = 0.0
    """Largest absolute error among the comparisons with a tolerance."""
    where: str = ""
    share: float = 0.0
    """Largest error divided by what was allowed there."""
    tightest: str = ""
    notes: list[str] = field(default_factory=list)


RECORD = pytest.StashKey[dict[str, Errors]]()


def pytest_configure(config):
    config.stash.setdefault(RECORD, {})


def golden_root(config) -> Path:
    chosen = config.getoption("golden_root", None)
    return (config.invocation_params.dir / chosen).resolve() if chosen else OURS


class Golden:
    """The golden folder as one test sees it; comparisons count for the case opened last."""

    def __init__(self, root: Path, record: dict[str, Errors]) -> None:
        self.root = root
        self._record = record
        self._case = ""

    def folder(self, case: str) -> Path:
        """Folder of a case. Our own copies are complete; another golden folder may have fewer cases."""
        if not (self.root / case).is_dir():
            (pytest.fail if self.root == OURS else pytest.skip)(f"no case {case} in {self.root}")
        self._case = case.split("/")[0]
        return self.root / case

    def case(self, case: str) -> Case:
        return Case(self, self.folder(case))

    @property
    def errors(self) -> Errors:
        assert self._case, "open a case first: golden.folder(name) or golden.case(name)"
        return self._record.setdefault(self._case, Errors())

    def close(self, got, expected, label, *, gradient=False, atol=None, rtol=RTOL) -> None:
        """Assert equal shapes and |got - expected| <= atol + rtol * |expected| everywhere."""
        atol = atol if atol is not None else GRADIENT_ATOL if gradient else ATOL
        got, expected = (torch.as_tensor(value).detach().double() for value in (got, expected))
        assert got.shape == expected.shape, (
            f"{label}: got shape {tuple(got.shape)}, expected {tuple(expected.shape)}"
        )
        assert expected.numel(), f"{label}: nothing to compare"
        error = (got - expected).abs()
        share = error / (atol + rtol * expected.abs())
        largest, worst = error.max().item(), share.max().item()
        errors = self.errors
        errors.comparisons += 1
        if atol > ATOL:
            self.note(f"{label}: error {largest:.1e}, a loose comparison (up to {atol:g})")
        elif not largest <= errors.largest:
            errors.largest, errors.where = largest, label
        if atol <= ATOL and not worst <= errors.share:
            errors.share, errors.tightest = worst, label
        assert worst <= 1, f"{label}: error {largest:.3g}, {worst:.3g} times what is allowed"

    def exact(self, got, expected, label) -> None:
        """Assert equal values (ids, masks, strings, counts)."""
        self.errors.comparisons += 1
        if isinstance(expected, torch.Tensor):
            assert got.shape == expected.shape, (
                f"{label}: shape {tuple(got.shape)} != {tuple(expected.shape)}"
            )
            got, expected = got.tolist(), expected.tolist()
        assert got == expected, label

    def note(self, text: str) -> None:
        """Say something about the open case in the summary."""
        if text not in self.errors.notes:
            self.errors.notes.append(text)


@dataclass(frozen=True)
class Case:
    """One case's files and its comparisons."""

    golden: Golden
    folder: Path

    def tensors(self, name: str) -> dict[str, torch.Tensor]:
        return load_file(self.folder / name)

    def json(self, name: str):
        return json.loads((self.folder / name).read_text(encoding="utf-8"))

    def check(self, key, got, expected, *, atol=None, rtol=RTOL, gradient=False) -> None:
        self.golden.close(got, expected, key, atol=atol, rtol=rtol, gradient=gradient)

    def exact(self, key, got, expected) -> None:
        self.golden.exact(got, expected, key)


@pytest.fixture
def golden(request) -> Golden:
    root = golden_root(request.config)
    if not root.is_dir():
        pytest.fail(f"--golden-root: no folder {root}")
    return Golden(root, request.config.stash[RECORD])


PARAMETERS = {
    "setting_name": ("d_llm2vec", "*/*/tokens.json"),
    "eva02_name": ("a_eva02", "*/config.json"),
    "openai_name": ("c_openai", "*/config.json"),
    "image_name": ("j_preprocess", "images/*"),
}
"""Argument of a test -> the case in which it is looked for, and the file that a value of it stands beside or is."""


def pytest_generate_tests(metafunc):
    """Run a test that asks for an argument of ``PARAMETERS`` once per value found in the golden folder."""
    for argument, (case, pattern) in PARAMETERS.items():
        if argument in metafunc.fixturenames:
            case_folder = golden_root(metafunc.config) / case
            found = sorted(case_folder.glob(pattern))
            paths = [path if "images" in pattern else path.parent for path in found]
            names = [path.relative_to(case_folder).as_posix() for path in paths]
            metafunc.parametrize(argument, names or ["none"])


def pytest_terminal_summary(terminalreporter, config):
    root, record = golden_root(config), config.stash[RECORD]
    present = {path.name for path in root.iterdir() if path.is_dir()} if root.is_dir() else set()
    runners = {path.stem.removeprefix("test_") for path in HERE.glob("test_*.py")}
    terminalreporter.section(
        f"golden cases of {config.getoption('golden_root', None) or 'tests/golden/data'}"
    )
    for case in sorted(present | runners):
        if case not in runners:
            line = "not covered yet"
        elif case not in present:
            line = "not in this folder"
        elif case not in record:
            line = "not run"
        else:
            errors = record[case]
            line = f"{errors.comparisons:4d} comparisons, largest error {errors.largest:.1e}"
            if errors.where:
                line += f" ({errors.where}); nearest its limit {errors.share:.0%} ({errors.tightest})"
        terminalreporter.write_line(f"{case:20s} {line}")
        for note in record[case].notes if case in record else ():
            terminalreporter.write_line(f"{'':20s} {note}")
