"""The image tower of nano, and weights stored as whole numbers."""

from __future__ import annotations

import math

import pytest
import torch

from llm2clip.encoders.layers.configs import EfficientNetLiteConfig, LiteTowerConfig
from llm2clip.encoders.layers.efficientnet_lite import LiteTower, class_code
from llm2clip.encoders.llm2clip.folder_config import stored_specs
from llm2clip.encoders.llm2clip.folder_modules import pack_int8, unpack_int8


def test_class_code_leaves_out_classes_that_fit_badly():
    code = class_code(torch.tensor([[8.0, 4.0, -90.0]]), 0.25)
    length = math.hypot(1, math.exp(-1))
    assert code[0].tolist() == pytest.approx([1 / length, math.exp(-1) / length, 0], abs=1e-6)
    shifted = class_code(torch.tensor([[108.0, 104.0, 10.0]]), 0.25)
    assert torch.allclose(shifted, code, atol=1e-6)


def test_lite_tower_gives_the_code_of_its_classifier_less_the_centre():
    torch.manual_seed(0)
    trunk = EfficientNetLiteConfig(variant=0, image_size=32, classes=5)
    tower = LiteTower(LiteTowerConfig(trunk=trunk, sharpness=0.5)).eval()
    pixels = torch.randn(2, 3, 32, 32)
    with torch.inference_mode():
        tower.centre.copy_(torch.arange(5) / 10)
        expected = class_code(tower.trunk.classifier(tower.trunk(pixels)), 0.5) - tower.centre
        assert torch.equal(tower(pixels), expected)
    assert tower.width == 5


def test_lite_tower_cells_are_states_of_the_places_of_the_grid():
    torch.manual_seed(0)
    pixels = torch.randn(2, 3, 64, 64)
    plain = LiteTower(LiteTowerConfig(trunk=EfficientNetLiteConfig(variant=0, image_size=64))).eval()
    trunk = EfficientNetLiteConfig(variant=0, image_size=64, classes=5)
    coded = LiteTower(LiteTowerConfig(trunk=trunk, sharpness=0.5)).eval()
    with torch.inference_mode():
        cells = plain.cells(pixels)
        assert cells.shape == (2, 2, 2, plain.width)
        assert torch.allclose(cells.mean((1, 2)), plain(pixels), atol=1e-6)
        coded.centre.copy_(torch.arange(5) / 10)
        one = coded.trunk.grid(pixels)[1, :, 0, 1]  # second image, first row, second column
        expected = class_code(coded.trunk.classifier(one), 0.5) - coded.centre
        assert torch.allclose(coded.cells(pixels)[1, 0, 1], expected, atol=1e-6)


@pytest.mark.parametrize(("classes", "sharpness"), [(0, 0.5), (5, 0.0), (5, -1.0)])
def test_lite_tower_refuses_a_code_without_classes(classes, sharpness):
    trunk = EfficientNetLiteConfig(variant=0, image_size=32, classes=classes)
    with pytest.raises(ValueError, match="sharpness must be positive with a classifier and 0 without"):
        LiteTowerConfig(trunk=trunk, sharpness=sharpness)


def test_int8_is_within_half_a_step_of_each_row():
    torch.manual_seed(1)
    tensors = {
        "matrix": torch.randn(4, 6) * torch.tensor([[1.0], [100.0], [1e-4], [0.0]]),
        "bias": torch.randn(6),
    }
    tensors["kernel"] = torch.randn(3, 2, 5, 5)
    stored = pack_int8(tensors)
    shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    kinds = {"F16": torch.float16, "I8": torch.int8, "F32": torch.float32}
    specs = stored_specs(shapes)
    assert stored.keys() == specs.keys()
    assert all(
        (tuple(t.shape), t.dtype) == (specs[n].shape, kinds[specs[n].dtype]) for n, t in stored.items()
    )
    back = unpack_int8(stored)
    for name in ("matrix", "kernel"):
        step = tensors[name].flatten(1).abs().amax(1) / 127
        error = (back[name] - tensors[name]).flatten(1).abs().amax(1)
        assert bool((error <= step / 2 + 1e-9).all())
    assert torch.equal(back["bias"], tensors["bias"].half())


def test_lite_tower_reads_few_images_at_once_on_a_cpu():
    torch.manual_seed(2)
    tower = LiteTower(LiteTowerConfig(trunk=EfficientNetLiteConfig(variant=0, image_size=32))).eval()
    pixels = torch.randn(2 * torch.get_num_threads() + 3, 3, 32, 32)
    passes: list[int] = []
    tower.trunk.register_forward_pre_hook(lambda _, given: passes.append(len(given[0])))
    whole = tower(pixels)  # gradients need one graph of the whole batch
    before = pixels.clone()
    with torch.inference_mode():
        parts, none = tower(pixels), tower(pixels[:0])
    assert passes[0] == len(pixels)
    assert max(passes[1:]) == 2 * torch.get_num_threads()
    assert sum(passes[1:]) == len(pixels)
    assert torch.allclose(parts, whole.detach(), atol=1e-5)
    assert none.shape == (0, tower.width)
    assert torch.equal(pixels, before)
