"""Weights that somebody spoilt, by accident or on purpose: each ends in one line that says which file and tensor.

Every mutation starts from a tiny checkpoint that loads. The last tests spoil files at random: whatever comes of
that, it is a model or one of our errors.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from llm2clip.encoders import ModelError
from llm2clip.encoders.vision.vision_tower import open_vision
from llm2clip.encoders.weights.pickle_conversion import convert_checkpoint

from .checkpoints import MAKERS, SETTINGS

WEIGHTS, CONFIG, PICKLE = "model.safetensors", "config.json", "model.pt"
LAYOUTS = tuple(MAKERS)

NAMED = {
    "openai": (
        "vision_model.embeddings.patch_embedding.weight",
        "vision_model.embeddings.position_embedding.weight",
        "vision_model.encoder.layers.1.self_attn.q_proj.weight",
        "vision_model.encoder.layers.0.layer_norm1.bias",
        "visual_projection.weight",
        "text_adapter.adaptor.0.fn.0.weight",
        "text_adapter.adaptor.1.ln.weight",
        "text_adapter.adaptor.3.bias",
    ),
    "eva02": (
        "visual.patch_embed.proj.weight",
        "visual.pos_embed",
        "visual.blocks.1.attn.v_proj.weight",
        "visual.blocks.0.mlp.ffn_ln.bias",
        "visual.head.bias",
        "text.text_adaptor.1.fn.3.weight",
        "text.text_adaptor.2.weight",
        "text.text_adaptor.3.weight",
    ),
    "siglip2": (
        "vision_model.embeddings.patch_embedding.weight",
        "vision_model.embeddings.position_embedding.weight",
        "vision_model.encoder.layers.1.mlp.fc2.weight",
        "vision_model.head.probe",
        "vision_model.head.attention.in_proj_weight",
        "text.text_proj.text_adaptor.0.ln.bias",
        "text.text_proj.text_adaptor.1.fn.0.bias",
        "text.text_proj.text_adaptor.3.weight",
    ),
}
"""Tensors that are spoilt one at a time: of every part of a checkpoint."""


ANY = "weight|bias|probe|embed|cls_token|freqs_|logit_scale"
"""Parts of names, of which every tensor has one."""


@dataclass(frozen=True)
class Mutation:
    """One way to spoil a checkpoint."""

    name: str
    layout: str
    apply: Callable[[Path], None]
    """Spoil a folder that holds weights, a configuration and the same weights as ``.pt``."""
    tensor: str = ""
    """What the message must name beside the file."""
    file: str = WEIGHTS
    """The file it must name."""


def tensors_of(folder: Path) -> dict[str, torch.Tensor]:
    return torch.load(folder / PICKLE, weights_only=True)


def changed(change: Callable[[dict[str, torch.Tensor]], object]) -> Callable[[Path], None]:
    def apply(folder: Path) -> None:
        tensors = tensors_of(folder)
        change(tensors)
        save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, folder / WEIGHTS)

    return apply


def replaced(name: str, change: Callable[[torch.Tensor], torch.Tensor]) -> Callable[[Path], None]:
    return changed(lambda tensors: tensors.update({name: change(tensors[name])}))


def with_value(value: float) -> Callable[[torch.Tensor], torch.Tensor]:
    def put(tensor: torch.Tensor) -> torch.Tensor:
        spoilt = tensor.clone()
        spoilt.view(-1)[tensor.numel() // 2] = value
        return spoilt

    return put


def grown(tensor: torch.Tensor) -> torch.Tensor:
    return torch.cat((tensor, tensor[:1]))


def one_tensor(layout: str, name: str) -> Iterator[Mutation]:
    """What can be wrong with one tensor."""
    yield Mutation(f"missing {name}", layout, changed(lambda tensors: tensors.pop(name)), name)
    renamed = changed(lambda tensors: tensors.update({f"{name}_": tensors.pop(name)}))
    yield Mutation(f"renamed {name}", layout, renamed, name)
    yield Mutation(f"one row more in {name}", layout, replaced(name, grown), ANY)
    flat = replaced(name, lambda tensor: tensor.reshape(-1, 1, 1, 1, 1))
    yield Mutation(f"five axes in {name}", layout, flat, name)
    empty = replaced(name, lambda tensor: tensor[:0])
    yield Mutation(f"nothing in {name}", layout, empty, name)
    yield Mutation(f"integers in {name}", layout, replaced(name, lambda tensor: tensor.to(torch.int32)), name)
    yield Mutation(f"doubles in {name}", layout, replaced(name, lambda tensor: tensor.double()), name)
    yield Mutation(f"nan in {name}", layout, replaced(name, with_value(float("nan"))), name)
    yield Mutation(f"infinity in {name}", layout, replaced(name, with_value(float("-inf"))), name)


def bytes_with(change: Callable[[bytes], bytes], file: str = WEIGHTS) -> Callable[[Path], None]:
    return lambda folder: write(folder / file, change((folder / file).read_bytes()))


def write(path: Path, data: bytes) -> None:
    path.write_bytes(data)


def entry(name: str, change: Callable[[dict[str, Any]], object]) -> Callable[[Path], None]:
    """Change a tensor's entry in the header; the bytes of the tensors stay."""

    def apply(data: bytes) -> bytes:
        length = int.from_bytes(data[:8], "little")
        header = json.loads(data[8 : 8 + length])
        change(header[name])
        text = json.dumps(header).encode()
        return len(text).to_bytes(8, "little") + text + data[8 + length :]

    return bytes_with(apply)


def lying_headers(layout: str) -> Iterator[Mutation]:
    name = NAMED[layout][2]
    for key, value in (
        ("shape", [2, 2]),
        ("shape", [-64, -64]),
        ("shape", [1 << 40, 1 << 40]),
        ("shape", []),
        ("shape", "64"),
        ("shape", None),
        ("shape", [64, "64"]),
        ("shape", [64.0, 64]),
        ("shape", [10**4299, 10**4299]),
        ("dtype", "F64"),
        ("dtype", "I8"),
        ("dtype", "F99"),
        ("dtype", 4),
        ("dtype", None),
        ("dtype", []),
        ("data_offsets", [0, 4]),
        ("data_offsets", [8, 0]),
        ("data_offsets", [0]),
        ("data_offsets", [0, 1 << 62]),
        ("data_offsets", ["0", "4"]),
        ("data_offsets", [-1 << 70, 4]),
        ("data_offsets", [0, 10**4299]),
    ):
        lie = entry(name, lambda fields, key=key, value=value: fields.update({key: value}))
        yield Mutation(f"header: {key} {value!r}"[:60], layout, lie, name)
    yield Mutation("header: no fields", layout, entry(name, lambda fields: fields.clear()), name)

    def move(fields: dict[str, Any]) -> None:
        fields["data_offsets"] = [offset + 4 for offset in fields["data_offsets"]]

    yield Mutation("header: moved", layout, entry(name, move), ANY)


def spoilt_bytes(layout: str) -> Iterator[Mutation]:
    for share in (0, 1, 5, 20, 50, 80, 95, 99):
        cut = bytes_with(lambda data, share=share: data[: len(data) * share // 100])
        yield Mutation(f"cut at {share} %", layout, cut)
    for count in (1, 7, 8, 9, 100):
        yield Mutation(f"cut to {count} bytes", layout, bytes_with(lambda data, n=count: data[:n]))
    for missing in (1, 2, 1000):
        cut = bytes_with(lambda data, n=missing: data[:-n])
        yield Mutation(f"{missing} bytes short", layout, cut, ANY)
    yield Mutation("a byte too many", layout, bytes_with(lambda data: data + b"\0"))
    for length in (0, 1, 1 << 31, 1 << 63, (1 << 64) - 1):
        lie = bytes_with(lambda data, n=length: n.to_bytes(8, "little") + data[8:])
        yield Mutation(f"header of {length} bytes", layout, lie)
    yield Mutation("all zero", layout, bytes_with(lambda data: bytes(len(data))))
    yield Mutation("a web page", layout, bytes_with(lambda _: b"<!DOCTYPE html><html>login</html>"))
    pointer = b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n"
    yield Mutation("a pointer of git-lfs", layout, bytes_with(lambda _: pointer))
    deep = (200_000).to_bytes(8, "little") + b"[" * 200_000
    yield Mutation("a deep header", layout, bytes_with(lambda _: deep))
    yield Mutation(
        "a pickle by another name",
        layout,
        lambda folder: write(folder / WEIGHTS, (folder / PICKLE).read_bytes()),
    )


def spoilt_sets(layout: str) -> Iterator[Mutation]:
    """Tensors that are right one by one and wrong together."""
    stray = {"stray.weight": torch.zeros(3)}
    yield Mutation("a stray tensor", layout, changed(lambda tensors: tensors.update(stray)), "stray.weight")
    adapter = NAMED[layout][-1]
    other = adapter.rpartition(".")[0].rpartition(".")[0]
    beyond = f"{other}.9999.fn.0.weight"
    more = changed(lambda tensors: tensors.update({beyond: torch.zeros(3)}))
    yield Mutation("a block far beyond", layout, more, beyond)
    others = {"openai": "eva02", "eva02": "siglip2", "siglip2": "openai"}
    mixed = MAKERS[others[layout]]
    yield Mutation(
        "two towers", layout, changed(lambda tensors: tensors.update(mixed(seed=1))), "text_adaptor.|.weight"
    )
    yield Mutation("no tensor", layout, changed(lambda tensors: tensors.clear()))
    half = changed(lambda tensors: [tensors.pop(name) for name in list(tensors)[::2]])
    yield Mutation("every other tensor", layout, half, "weight|bias")


def lying_configurations(layout: str) -> Iterator[Mutation]:
    def said(section: str, key: str, value: object) -> Callable[[Path], None]:
        def apply(folder: Path) -> None:
            settings = json.loads((folder / CONFIG).read_text())
            target = settings.setdefault(section, {}) if section else settings
            target[key] = value
            write(folder / CONFIG, json.dumps(settings).encode())

        return apply

    for key, value in (
        ("hidden_size", 63),
        ("intermediate_size", 1),
        ("num_hidden_layers", 24),
        ("patch_size", 16),
        ("image_size", 336),
        ("num_attention_heads", 7),
        ("hidden_size", -64),
        ("num_hidden_layers", 1 << 40),
        ("num_hidden_layers", 2.0),
        ("image_size", [28, 28]),
        ("hidden_act", "__import__('os')"),
    ):
        yield Mutation(
            f"configuration: {key} {value}", layout, said("vision_config", key, value), file=CONFIG
        )
    yield Mutation("configuration: dim", layout, said("", "projection_dim", 1 << 50), file=CONFIG)
    yield Mutation("configuration: a list", layout, said("", "vision_config", []), file=CONFIG)
    for name, data in (
        ("no JSON", b"{"),
        ("nothing", b""),
        ("bytes", bytes(range(256))),
        ("a number", b"5"),
        ("deep", b"[" * 200_000),
        ("a long number", b'{"vision_config": {"hidden_size": ' + b"9" * 10_000 + b"}}"),
    ):
        spoil = lambda folder, data=data: write(folder / CONFIG, data)  # noqa: E731
        yield Mutation(f"configuration: {name}", layout, spoil, file=CONFIG)


def links(layout: str) -> Iterator[Mutation]:
    def moved(file: str, *, folder_too: bool = False) -> Callable[[Path], None]:
        def apply(folder: Path) -> None:
            outside = folder.parent / "outside"
            outside.mkdir()
            (folder / file).replace(outside / file)
            (folder / file).symlink_to(outside / file)

        return apply

    for file in (WEIGHTS, CONFIG):
        yield Mutation(f"{file} is a link", layout, moved(file), file=file)
    yield Mutation(
        "a link to nowhere",
        layout,
        lambda folder: (folder / WEIGHTS).unlink() or (folder / WEIGHTS).symlink_to("gone"),
    )
    yield Mutation(
        "a folder", layout, lambda folder: (folder / WEIGHTS).unlink() or (folder / WEIGHTS).mkdir()
    )
    yield Mutation("gone", layout, lambda folder: (folder / WEIGHTS).unlink())


MUTATIONS = [
    mutation
    for layout in LAYOUTS
    for family in (lying_headers, spoilt_bytes, spoilt_sets, lying_configurations, links)
    for mutation in family(layout)
] + [mutation for layout in LAYOUTS for name in NAMED[layout] for mutation in one_tensor(layout, name)]


@pytest.fixture(scope="session")
def originals(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folders = {}
    for layout, make in MAKERS.items():
        folder = folders[layout] = tmp_path_factory.mktemp(layout)
        tensors = make()
        save_file(tensors, folder / WEIGHTS)
        torch.save(tensors, folder / PICKLE)
        (folder / CONFIG).write_text(json.dumps(SETTINGS[layout]))
    return folders


def copied(original: Path, target: Path) -> Path:
    target.mkdir()
    for file in original.iterdir():
        write(target / file.name, file.read_bytes())
    return target


def use(path: Path) -> None:
    """Read everything that can be read of a file."""
    plan = open_vision(path)
    plan.logit_scale()
    plan.load_adapter()
    plan.load()


def refused(action: Callable[[], object], mutation: Mutation, folder: Path) -> str:
    with pytest.raises(ModelError) as caught:
        action()
    message = str(caught.value)
    assert str(folder / mutation.file) in message, message
    assert "\n" not in message
    assert len(message) < 1200
    if mutation.tensor:
        assert any(name in message for name in mutation.tensor.split("|")), message
    return message


@pytest.mark.parametrize("layout", LAYOUTS)
def test_open_vision_reads_undamaged_files(layout: str, originals: dict[str, Path], tmp_path: Path):
    folder = copied(originals[layout], tmp_path / "model")
    use(folder / WEIGHTS)
    use(convert_checkpoint(folder / PICKLE, folder))


@pytest.mark.parametrize("mutation", MUTATIONS, ids=lambda mutation: f"{mutation.layout}: {mutation.name}")
def test_open_vision_refuses_damaged_file(mutation: Mutation, originals: dict[str, Path], tmp_path: Path):
    folder = copied(originals[mutation.layout], tmp_path / "model")
    mutation.apply(folder)
    refused(lambda: use(folder / WEIGHTS), mutation, folder)


def spoil_at_random(data: bytes, rng: random.Random, *, until: int) -> bytes:
    spoilt = bytearray(data)
    for _ in range(rng.randint(1, 4)):
        spoilt[rng.randrange(until)] = rng.randrange(256)
    return bytes(spoilt)


def test_open_vision_survives_random_damage(originals: dict[str, Path], tmp_path: Path):
    folder = copied(originals["eva02"], tmp_path / "model")
    data = (folder / WEIGHTS).read_bytes()
    length = 8 + int.from_bytes(data[:8], "little")
    errors = 0
    for seed in range(400):
        write(folder / WEIGHTS, spoil_at_random(data, random.Random(seed), until=length))
        try:
            use(folder / WEIGHTS)
        except ModelError as error:
            errors += str(folder) in str(error)
    assert errors > 300
