"""``.pt`` files that somebody spoilt or armed: nothing in them runs, and each ends in one line that names the file."""

from __future__ import annotations

import os
import random
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from llm2clip.encoders import ModelError
from llm2clip.encoders.weights.pickle_conversion import convert_checkpoint

from .checkpoints import eva02
from .test_hostile_weights import (
    PICKLE,
    WEIGHTS,
    Mutation,
    bytes_with,
    copied,
    refused,
    spoil_at_random,
    tensors_of,
    write,
)


class Call:
    """Asks whoever unpickles it to call a function."""

    def __init__(self, function: Callable[..., object], *arguments: object) -> None:
        self.call = function, arguments

    def __reduce__(self) -> tuple[object, ...]:
        return self.call


def payloads(folder: Path) -> dict[str, object]:
    planted = str(folder / "planted")
    return {
        "os.mkdir": Call(os.mkdir, planted),
        "os.system": Call(os.system, f"mkdir {planted}"),
        "subprocess": Call(subprocess.check_call, ["mkdir", planted]),
        "eval": Call(eval, f"__import__('os').mkdir({planted!r})"),
        "exec": Call(exec, f"import os; os.mkdir({planted!r})"),
        "torch.load": Call(torch.load, planted),
        "__import__": Call(__import__, "antigravity"),
        "a path": Path(planted),
        "a class": Mutation,
        "a module": torch.nn.Linear(2, 2),
    }


def pickled(change: Callable[[dict[Any, Any], Path], object]) -> Callable[[Path], None]:
    def apply(folder: Path) -> None:
        state: dict[Any, Any] = tensors_of(folder)
        made = change(state, folder)
        torch.save(state if made is None else made, folder / PICKLE)

    return apply


def spoilt_pickles() -> Iterator[Mutation]:
    for name in payloads(Path()):
        put = pickled(lambda state, folder, name=name: state.update({"visual.extra": payloads(folder)[name]}))
        yield Mutation(f"payload {name}", "eva02", put, file=PICKLE)
        deep = pickled(lambda state, folder, n=name: {"state_dict": state, "a": [{"b": payloads(folder)[n]}]})
        yield Mutation(f"payload {name}, deep", "eva02", deep, file=PICKLE)
    put = pickled(lambda state, folder: Call(os.mkdir, str(folder / "planted")))
    yield Mutation("payload alone", "eva02", put, file=PICKLE)
    key = pickled(lambda state, folder: {(Call(os.mkdir, str(folder / "planted")), 1): torch.zeros(1)})
    yield Mutation("payload as a key", "eva02", key, file=PICKLE)
    for share in (0, 1, 30, 60, 90, 99):
        cut = bytes_with(lambda data, share=share: data[: len(data) * share // 100], PICKLE)
        yield Mutation(f"cut at {share} %", "eva02", cut, file=PICKLE)
    yield Mutation(
        "safetensors by another name",
        "eva02",
        lambda folder: write(folder / PICKLE, (folder / WEIGHTS).read_bytes()),
        file=PICKLE,
    )
    yield Mutation("a web page", "eva02", bytes_with(lambda _: b"<!DOCTYPE html>", PICKLE), file=PICKLE)
    yield Mutation(
        "a bare pickle",
        "eva02",
        bytes_with(lambda _: b"cos\nsystem\n(S'mkdir planted'\ntR.", PICKLE),
        file=PICKLE,
    )
    yield Mutation("gone", "eva02", lambda folder: (folder / PICKLE).unlink(), file=PICKLE)

    def link(folder: Path) -> None:
        (folder / PICKLE).replace(folder.parent / "outside.pt")
        (folder / PICKLE).symlink_to(folder.parent / "outside.pt")

    yield Mutation("a link", "eva02", link, file=PICKLE)


PICKLES = list(spoilt_pickles())


@pytest.mark.parametrize("mutation", PICKLES, ids=lambda mutation: mutation.name)
def test_convert_checkpoint_refuses_hostile_pickle(
    mutation: Mutation, originals: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    folder = copied(originals["eva02"], tmp_path / "model")
    mutation.apply(folder)
    monkeypatch.chdir(folder)
    modules = set(sys.modules)
    refused(lambda: convert_checkpoint(folder / PICKLE, folder / "cache"), mutation, folder)
    assert not (folder / "planted").exists()
    assert "antigravity" not in set(sys.modules) - modules
    assert not (folder / "cache").exists()


@pytest.mark.parametrize("suffix", [".pt", ".bin"])
def test_convert_checkpoint_names_what_a_pickle_asks_for(suffix: str, tmp_path: Path):
    pt = tmp_path / f"model{suffix}"
    torch.save({"a": Call(os.mkdir, str(tmp_path / "planted"))}, pt)
    with pytest.raises(
        ModelError, match=r"holds more than tensors \(it asks for .*mkdir\); nothing in it was run"
    ):
        convert_checkpoint(pt, tmp_path / "cache")
    assert not (tmp_path / "planted").exists()
    torch.load(pt, weights_only=False)
    assert (tmp_path / "planted").exists()  # the payload works, and was not run before


def test_convert_checkpoint_survives_random_damage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("os.fsync", lambda _: None)
    small = {name: tensor for name, tensor in eva02().items() if tensor.numel() < 200}
    torch.save(small, tmp_path / PICKLE)
    data = (tmp_path / PICKLE).read_bytes()
    errors = 0
    for seed in range(200):
        write(tmp_path / PICKLE, spoil_at_random(data, random.Random(seed), until=len(data)))
        try:
            convert_checkpoint(tmp_path / PICKLE, tmp_path / f"cache{seed}")
        except ModelError as error:
            errors += str(tmp_path) in str(error)
    assert errors > 20
