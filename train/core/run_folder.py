"""The folder of a training run: its configuration, seed and versions, and which stages have finished.

``run.json`` has one entry per stage, ``history.jsonl`` one line per logged step, ``<stage>.pt`` is the checkpoint that
a killed run resumes from. Started again with the same configuration a run continues; with another one it refuses.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from llm2clip.common.files import versions, write_atomic

PACKAGES = ("llm2clip-retrieval", "torch", "numpy", "tokenizers", "safetensors", "pillow")
"""Packages whose versions are recorded."""


class RunError(ValueError):
    """A run folder cannot be used, or a run cannot continue."""


class Run:
    """A run folder."""

    def __init__(self, folder: Path, *, seed: int) -> None:
        """Open or create the folder; ``RunError`` if it holds a run with another seed."""
        self.folder, self.seed = folder, seed
        folder.mkdir(parents=True, exist_ok=True)
        if not self._path.exists():
            self._write({"seed": seed, "versions": versions(PACKAGES), "stages": {}})
        found = self.read()["seed"]
        if found != seed:
            raise RunError(
                f"{folder} holds a run with seed {found}, got seed {seed}; choose another folder or delete this one"
            )

    def begin(self, stage: str, settings: Any, *, free: Iterable[str] = ()) -> None:  # noqa: ANN401 (a dataclass)
        """Record a stage's configuration; ``RunError`` if the stage began with another one.

        Args:
            stage: Name of the stage.
            settings: Dataclass, nested ones included.
            free: Fields, at any depth, that may differ: they do not change the trained weights.
        """
        whole = json.loads(json.dumps(asdict(settings), default=str))
        ignored = set(free)
        wanted = {name: value for name, value in _flat(whole) if name.rpartition(".")[2] not in ignored}
        before = dict(_flat(self._stage(stage).get("config", whole)))
        known = {name: value for name, value in before.items() if name.rpartition(".")[2] not in ignored}
        changed = sorted(name for name in known.keys() | wanted.keys() if known.get(name) != wanted.get(name))
        if changed:
            first = changed[0]
            raise RunError(
                f"{self.folder} holds stage {stage!r} with another configuration: {', '.join(changed)} "
                f"({first}: {known.get(first)!r} there, {wanted.get(first)!r} here); choose another folder or delete "
                "this one"
            )
        self._update(stage, {"config": whole})

    def done(self, stage: str) -> bool:
        """Whether the stage has finished."""
        return "finished" in self._stage(stage)

    def finish(self, stage: str, result: Mapping[str, Any]) -> None:
        """Mark a stage as finished, with what came of it."""
        self._update(stage, {**result, "finished": datetime.now(UTC).isoformat(timespec="seconds")})

    def record(self, name: str, value: Any) -> None:  # noqa: ANN401 (anything JSON can hold)
        """Write something about the whole run into ``run.json``."""
        self._write(self.read() | {name: value})

    def read(self) -> dict[str, Any]:
        """Everything in ``run.json``; ``RunError`` if it is of another kind."""
        try:
            saved: dict[str, Any] = json.loads(self._path.read_text(encoding="utf-8"))
            if not isinstance(saved["stages"], dict) or not isinstance(saved["seed"], int):
                raise ValueError("no stages or no seed")
        except (ValueError, KeyError, TypeError) as error:
            raise RunError(f"{self._path} is not the record of a training run: {error}") from error
        return saved

    def rng(self, stage: str, step: int) -> np.random.Generator:
        """The random numbers of one step: the same however often the run was interrupted."""
        return np.random.default_rng([self.seed, stage_number(stage), step])

    @property
    def _path(self) -> Path:
        return self.folder / "run.json"

    def _stage(self, stage: str) -> dict[str, Any]:
        found: dict[str, Any] = self.read()["stages"].get(stage, {})
        return found

    def _write(self, description: Mapping[str, Any]) -> None:
        write_atomic(self._path, json.dumps(description, indent=1, ensure_ascii=False), alone=True)

    def _update(self, stage: str, entry: Mapping[str, Any]) -> None:
        description = self.read()
        description["stages"][stage] = description["stages"].get(stage, {}) | dict(entry)
        self._write(description)


def stage_number(stage: str) -> int:
    """A 64-bit number of a stage's name, for seeds."""
    return int.from_bytes(hashlib.blake2b(stage.encode(), digest_size=8).digest(), "big")


def _flat(values: Any, prefix: str = "") -> list[tuple[str, Any]]:  # noqa: ANN401 (parsed JSON)
    if not isinstance(values, dict):
        return [(prefix.rstrip("."), values)]
    return [pair for name, value in values.items() for pair in _flat(value, f"{prefix}{name}.")]
