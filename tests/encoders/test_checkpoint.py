"""A ``.pt`` as safetensors: the same tensors, once, and nothing in it runs."""

from __future__ import annotations

import hashlib
import json
import os
import zipfile
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from llm2clip.encoders import ModelError
from llm2clip.encoders.weights.pickle_conversion import convert_checkpoint, read_conversion


@pytest.fixture
def tensors() -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    whole = torch.randn(6, 4)
    return {
        "a.weight": whole,
        "a.turned": whole.T,
        "b.half": torch.randn(3).half(),
        "c.brain": torch.randn(5, 1).bfloat16(),
        "d.number": torch.tensor(2.5),
        "e.counter": torch.arange(3),
        "f.empty": torch.zeros(0, 2),
        "g.flags": torch.tensor([True, False, True]),
        "h.parameter": torch.nn.Parameter(torch.randn(2)),
        "i.view": whole[1:3],
    }


def same(path: Path, tensors: dict[str, torch.Tensor]) -> None:
    read = load_file(path)
    assert read.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert read[name].dtype == tensor.dtype
        assert torch.equal(read[name], tensor), name


@pytest.mark.parametrize("zipped", [True, False])
def test_convert_checkpoint_keeps_tensors(tensors: dict, zipped: bool, tmp_path: Path):
    torch.save(tensors, tmp_path / "model.pt", _use_new_zipfile_serialization=zipped)
    same(convert_checkpoint(tmp_path / "model.pt", tmp_path / "cache"), tensors)


@pytest.mark.parametrize(
    "wrap",
    [
        lambda state: {"state_dict": state, "epoch": 20, "name": "run"},
        lambda state: {"model": state},
        lambda state: {"module": state},
        lambda state: {f"module.{name}": tensor for name, tensor in state.items()},
    ],
)
def test_convert_checkpoint_unwraps_training_state(wrap, tensors: dict, tmp_path: Path):
    torch.save(wrap(tensors), tmp_path / "model.pt")
    same(convert_checkpoint(tmp_path / "model.pt", tmp_path / "cache"), tensors)


def test_read_conversion_gives_source_and_result(tensors: dict, tmp_path: Path):
    pt = tmp_path / "model.pt"
    torch.save(tensors, pt)
    path = convert_checkpoint(pt, tmp_path / "cache")
    record = read_conversion(path)
    assert record.sha256 == hashlib.sha256(pt.read_bytes()).hexdigest()
    assert (record.source, record.size, record.tensors) == ("model.pt", pt.stat().st_size, len(tensors))
    assert (record.result, record.result_size) == (path.name, path.stat().st_size)
    assert path.name == f"model-{record.sha256[:16]}.safetensors"
    assert sorted(file.suffix for file in (tmp_path / "cache").iterdir()) == [".json", ".safetensors"]


def test_convert_checkpoint_converts_once(tensors: dict, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    pt, cache = tmp_path / "model.pt", tmp_path / "cache"
    torch.save(tensors, pt)
    path = convert_checkpoint(pt, cache)
    monkeypatch.setattr("llm2clip.encoders.weights.pickle_conversion.torch.load", None)
    hashes = []
    monkeypatch.setattr(
        "llm2clip.encoders.weights.pickle_conversion.file_sha256",
        lambda file: hashes.append(file) or hashlib.sha256(file.read_bytes()).hexdigest(),
    )
    assert convert_checkpoint(pt, cache) == path
    assert not hashes
    os.utime(pt, ns=(1, 1))
    assert convert_checkpoint(pt, cache) == path
    assert convert_checkpoint(pt, cache) == path
    assert len(hashes) == 1


def test_convert_checkpoint_converts_changed_file_again(tensors: dict, tmp_path: Path):
    pt, cache = tmp_path / "model.pt", tmp_path / "cache"
    torch.save(tensors, pt)
    first = convert_checkpoint(pt, cache)
    other = {name: tensor for name, tensor in tensors.items() if name != "a.weight"}
    torch.save(other, pt)
    second = convert_checkpoint(pt, cache)
    assert second != first
    same(first, tensors)
    same(second, other)


@pytest.mark.parametrize("spoil", ["shorten", "remove", "record", "record is empty", "record of another"])
def test_convert_checkpoint_repairs_damaged_cache(spoil: str, tensors: dict, tmp_path: Path):
    pt, cache = tmp_path / "model.pt", tmp_path / "cache"
    torch.save(tensors, pt)
    path = convert_checkpoint(pt, cache)
    record = path.with_suffix(".json")
    if spoil == "shorten":
        path.write_bytes(path.read_bytes()[:-1])
    elif spoil == "remove":
        path.unlink()
    elif spoil == "record":
        record.write_text(record.read_text()[:-20])
    elif spoil == "record is empty":
        record.write_text("")
    else:
        data = json.loads(record.read_text())
        record.write_text(json.dumps(data | {"result": "../elsewhere.safetensors"}))
        (tmp_path / "elsewhere.safetensors").write_bytes(path.read_bytes())
    same(convert_checkpoint(pt, cache), tensors)


def test_convert_checkpoint_checks_expected_hash(tensors: dict, tmp_path: Path):
    pt, cache = tmp_path / "model.pt", tmp_path / "cache"
    torch.save(tensors, pt)
    right = hashlib.sha256(pt.read_bytes()).hexdigest()
    with pytest.raises(ModelError, match=f"model.pt is another file: SHA-256 {right}, expected 00"):
        convert_checkpoint(pt, cache, sha256="00")
    assert not cache.exists()
    convert_checkpoint(pt, cache, sha256=right)
    with pytest.raises(ModelError, match="is another file"):
        convert_checkpoint(pt, cache, sha256="00")


def test_convert_checkpoint_does_not_trust_hub_names(tensors: dict, tmp_path: Path):
    """The hub's cache calls files by their hashes; whether they have those is another question."""
    (tmp_path / "blobs").mkdir()
    (tmp_path / "snapshots" / "abc").mkdir(parents=True)
    blob = tmp_path / "blobs" / ("ab" * 32)
    torch.save(tensors, blob)
    pt = tmp_path / "snapshots" / "abc" / "model.pt"
    pt.symlink_to(blob)
    right = hashlib.sha256(blob.read_bytes()).hexdigest()
    with pytest.raises(ModelError, match=f"model.pt is another file: SHA-256 {right}, expected abab"):
        convert_checkpoint(pt, tmp_path / "cache", sha256="ab" * 32)
    path = convert_checkpoint(pt, tmp_path / "cache", sha256=right)
    same(path, tensors)
    assert read_conversion(path).sha256 == right


def test_convert_checkpoint_tells_files_of_one_name_and_size_apart(tensors: dict, tmp_path: Path):
    """Archives and images of systems give every file one age, and models of one shape have one size."""
    other = tensors | {"c.brain": tensors["c.brain"] + 1}
    for place, state in (("a", tensors), ("b", other)):
        (tmp_path / place / "model").mkdir(parents=True)
        torch.save(state, tmp_path / place / "model" / "model.pt")
        os.utime(tmp_path / place / "model" / "model.pt", ns=(1, 1))
    first, second = (tmp_path / place / "model" / "model.pt" for place in "ab")
    assert first.stat().st_size == second.stat().st_size
    for _ in range(2):
        same(convert_checkpoint(first, tmp_path / "cache"), tensors)
        same(convert_checkpoint(second, tmp_path / "cache"), other)


def test_convert_checkpoint_leaves_nothing_after_failed_write(
    tensors: dict, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    torch.save(tensors, tmp_path / "model.pt")
    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(ModelError, match=r"safetensors cannot be written: No space left on device"):
        convert_checkpoint(tmp_path / "model.pt", tmp_path / "cache")
    assert not list((tmp_path / "cache").iterdir())


def test_convert_checkpoint_refuses_oversized_tensor(tmp_path: Path):
    torch.save({"huge": torch.zeros(1).expand(1_000_000, 1_000_000)}, tmp_path / "model.pt")
    with pytest.raises(
        ModelError, match=r"huge claims 4,000,000,000,000 bytes \(shape \[1000000, 1000000\]\)"
    ):
        convert_checkpoint(tmp_path / "model.pt", tmp_path / "cache")


def test_convert_checkpoint_refuses_many_names_for_the_same_bytes(tmp_path: Path):
    large = torch.zeros(1 << 20)
    torch.save({f"copy {number}": large for number in range(64)}, tmp_path / "model.pt")
    with pytest.raises(ModelError, match=r"copy .* more than the file holds"):
        convert_checkpoint(tmp_path / "model.pt", tmp_path / "cache")


@pytest.mark.parametrize(
    ("state", "message"),
    [
        ({}, "is not a state dict: expected tensors by name, got dict"),
        ([torch.zeros(1)], "is not a state dict: .* got list"),
        (torch.zeros(1), "is not a state dict: .* got Tensor"),
        ({"a": 5}, r"'a' is int, expected a tensor with a name"),
        ({5: torch.zeros(1)}, r"'5' is Tensor, expected a tensor with a name"),
        ({"a": {"b": torch.zeros(1)}}, r"'a' is dict, expected a tensor"),
        ({"__metadata__": torch.zeros(1)}, "cannot be the name of a tensor"),
        ({"a\nb": torch.zeros(1)}, "cannot be the name of a tensor"),
        ({"": torch.zeros(1)}, "cannot be the name of a tensor"),
        ({"a": torch.zeros(1, dtype=torch.complex64)}, "a is no plain tensor .*complex64"),
        ({"a": torch.zeros(3).to_sparse()}, "a is no plain tensor .*sparse"),
        ({"a": torch.zeros(3, device="meta")}, "a is no plain tensor .*meta|damaged"),
    ],
)
def test_convert_checkpoint_refuses_other_objects(state: object, message: str, tmp_path: Path):
    torch.save(state, tmp_path / "model.pt")
    with pytest.raises(ModelError, match=message):
        convert_checkpoint(tmp_path / "model.pt", tmp_path / "cache")


def test_convert_checkpoint_refuses_torchscript(tmp_path: Path):
    with zipfile.ZipFile(tmp_path / "model.pt", "w") as archive:
        for name in ("data.pkl", "constants.pkl", "code/x.py"):
            archive.writestr(f"model/{name}", b"")
    with pytest.raises(ModelError, match=r"model\.pt is a TorchScript program; expected a file of tensors"):
        convert_checkpoint(tmp_path / "model.pt", tmp_path / "cache")
