"""Tensors of a safetensors file against the library's own reader, and invalid headers."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from llm2clip.encoders import ModelError
from llm2clip.encoders.core.files import refuse_outside
from llm2clip.encoders.weights.safetensors_io import TensorSpec, read_header, read_tensors, stream_tensors

DTYPES = ("float64", "float32", "float16", "bfloat16", "int64", "int32", "int16", "int8", "uint8", "bool")


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    tensors = {name: (torch.randn(3, 5) * 40).to(getattr(torch, name)) for name in DTYPES}
    tensors |= {"empty": torch.zeros(0, 4), "number": torch.tensor(2.5)}
    save_file(tensors, tmp_path / "weights.safetensors", metadata={"format": "pt"})
    return tmp_path / "weights.safetensors"


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_read_tensors_equals_safetensors(weights: Path, dtype: torch.dtype):
    theirs = load_file(weights)
    ours = read_tensors(weights, theirs, dtype=dtype)
    assert list(ours) == list(theirs)
    for name, tensor in theirs.items():
        assert ours[name].dtype == dtype
        assert torch.equal(ours[name], tensor.to(dtype))
    assert read_header(weights)["float64"] == TensorSpec((3, 5), "F64")


def test_stream_tensors_reads_large_tensors_in_pieces(tmp_path: Path):
    torch.manual_seed(0)
    tensors = {"large": torch.randn(3, 1_000_003), "half": torch.randn(9_000_001).half()}
    save_file(tensors, tmp_path / "weights.safetensors")
    ours = dict(stream_tensors(tmp_path / "weights.safetensors", ["half", "large"], dtype=torch.float32))
    assert torch.equal(ours["large"], tensors["large"])
    assert torch.equal(ours["half"], tensors["half"].float())


def test_read_tensors_reads_only_named_tensors(weights: Path):
    assert list(read_tensors(weights, ["number"], dtype=torch.float32)) == ["number"]
    with pytest.raises(ModelError, match=r"weights\.safetensors has no tensor absent"):
        read_tensors(weights, ["number", "absent"], dtype=torch.float32)


def test_read_tensors_does_not_depend_on_the_file_afterwards(weights: Path):
    tensors = read_tensors(weights, ["float32"], dtype=torch.float32)
    before = tensors["float32"].clone()
    weights.write_bytes(b"")
    assert torch.equal(tensors["float32"], before)


def write(path: Path, header: object, data: bytes) -> None:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + data)


def entry(shape: list, begin: object, end: object, dtype: object = "F32") -> dict[str, object]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


@pytest.mark.parametrize(
    "header",
    [
        {"a": entry([3], 0, 8)},
        {"a": entry([-2, -1], 0, 8)},
        {"a": entry([2], 0, 8), "b": entry([2], 0, 8)},
        {"a": entry([1], 0, 4), "b": entry([0], 8, 8)},
        {"a": entry([1], 4, 8)},
        {"a": entry([2], 0, 8, "F31")},
        {"a": entry(["2"], 0, 8)},
        {"a": entry([2], 0.0, 8.0)},
        {"a": entry([2], 0, 1 << 80)},
        {"a": entry([2], 0, 1 << 60)},
        {"a": entry([1 << 40, 1 << 40], 0, 8)},
        {"a": entry([10**4299, 10**4299], 0, 8)},
        {"a": entry([2.0], 0, 8)},
        {"a": {"dtype": "F32", "shape": None, "data_offsets": [0, 8]}},
        {"a": {"dtype": "F32", "shape": [2], "data_offsets": [0]}},
        {"a": entry([2], 8, 0)},
        {"a": entry([2], -1 << 70, 8)},
        {"a": entry([2], 0, 8, 4)},
        {"a": entry([1], 0, 8, "F64"), "b": entry([2], 8, 16)},
        {"a": []},
        {"a": 5},
        b"[" * 200_000,
        b'{"a": {"dtype": "F32", "dtype": ',
    ],
    ids=lambda header: str(header)[:40],
)
def test_read_tensors_refuses_invalid_header(tmp_path: Path, header: object):
    path = tmp_path / "weights.safetensors"
    write(path, header, bytes(8))
    with pytest.raises(
        ModelError,
        match=r"is truncated, damaged or no safetensors file \([\d,]+ bytes; .*\); copy or download",
    ) as caught:
        read_tensors(path, ["a"], dtype=torch.float32)
    assert str(path) in str(caught.value)


def test_read_header_refuses_unsupported_dtype(tmp_path: Path):
    save_file({"a": torch.zeros(2, dtype=torch.float8_e4m3fn)}, tmp_path / "weights.safetensors")
    with pytest.raises(
        ModelError, match=r"weights\.safetensors: a is F8_E4M3 \[2\], a dtype that is not supported"
    ):
        read_header(tmp_path / "weights.safetensors")


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_read_tensors_names_values_that_are_not_finite(tmp_path: Path, value: float):
    tensors = {"good": torch.ones(3), "bad": torch.tensor([1.0, value, 2.0])}
    save_file(tensors, tmp_path / "weights.safetensors")
    with pytest.raises(ModelError, match=r"not finite in: bad$"):
        read_tensors(tmp_path / "weights.safetensors", tensors, dtype=torch.float32)


def test_read_tensors_accepts_a_sum_that_overflows(tmp_path: Path):
    tensors = {"large": torch.full((100,), 6e4, dtype=torch.float16)}
    save_file(tensors, tmp_path / "weights.safetensors")
    read = read_tensors(tmp_path / "weights.safetensors", tensors, dtype=torch.float16)
    assert torch.equal(read["large"], tensors["large"])


def test_read_header_refuses_link_out_of_the_folder(weights: Path, tmp_path: Path):
    folder = tmp_path / "model"
    folder.mkdir()
    link = folder / "model.safetensors"
    link.symlink_to(weights)
    with pytest.raises(ModelError, match=r"model\.safetensors is a link that leads out of its folder, to "):
        read_header(link)
    assert read_header(weights)
    (folder / "own.safetensors").write_bytes(weights.read_bytes())
    link.unlink()
    link.symlink_to("own.safetensors")
    assert read_header(link)
    (tmp_path / "other name").symlink_to(folder)
    assert read_header(tmp_path / "other name" / "model.safetensors")


def test_refuse_outside_checks_the_folder_above(tmp_path: Path):
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "lora").symlink_to(tmp_path / "elsewhere")
    file = tmp_path / "model" / "lora" / "adapter.safetensors"
    refuse_outside(file)
    with pytest.raises(ModelError, match="leads out of its folder"):
        refuse_outside(file, folder=tmp_path / "model")


def test_read_header_accepts_links_of_the_hub_cache(weights: Path, tmp_path: Path):
    repository = tmp_path / "models--a--b"
    (repository / "blobs").mkdir(parents=True)
    (repository / "snapshots" / "abc" / "below").mkdir(parents=True)
    blob = repository / "blobs" / "0123"
    blob.write_bytes(weights.read_bytes())
    for link in ("model.safetensors", "below/model.safetensors"):
        (repository / "snapshots" / "abc" / link).symlink_to(blob)
        assert read_header(repository / "snapshots" / "abc" / link)
    (repository / "snapshots" / "abc" / "out.safetensors").symlink_to(weights)
    with pytest.raises(ModelError, match="leads out of its folder"):
        read_header(repository / "snapshots" / "abc" / "out.safetensors")
    (repository / "mine.safetensors").write_bytes(weights.read_bytes())
    (repository / "snapshots" / "abc" / "mine.safetensors").symlink_to(repository / "mine.safetensors")
    with pytest.raises(ModelError, match="leads out of its folder"):
        read_header(repository / "snapshots" / "abc" / "mine.safetensors")
