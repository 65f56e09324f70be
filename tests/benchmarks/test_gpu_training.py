"""Both stages at the sizes of the paper: the shapes are the published ones, and small ones run on a CPU."""

import pytest
import torch


def test_shape_of_stage_one_has_the_parameters_of_llama_3_8b_without_its_head():
    from benchmarks.gpu.training import LLAMA_8B
    from llm2clip.encoders.text.packed import build_language

    with torch.device("meta"):
        model = build_language(LLAMA_8B)
    assert sum(parameter.numel() for parameter in model.parameters()) == 8_030_261_248 - 128_256 * 4096


TWO = (7 + 16) + 1 + (4 * 6 + 4) + 1
"""A tower of one block, its projection, an adapter of four blocks, the scale of the loss."""


@pytest.mark.parametrize(("name", "items", "trained"), [("stage_one", 32, 2 * 2 * 7), ("stage_two", 16, TWO)])
def test_small_shapes_train_in_bfloat16(tmp_path, name, items, trained):
    from benchmarks.gpu import training

    stage, per_item, unit = getattr(training, name)(tmp_path, tiny=True)
    parameters = [parameter for group in stage.optimizer.param_groups for parameter in group["params"]]
    before = [parameter.detach().clone() for parameter in parameters]
    done, step = [], stage.step
    stage.step = lambda number, rng: done.append(step(number, rng)) or done[-1]
    (row,) = training.measure(stage, name=name, steps=2, per_item=per_item, unit=unit)
    assert [each.items for each in done] == [items] * 3
    assert (row.unit, row.value > 0) == (unit, True)
    assert len(parameters) == trained
    assert not any(torch.equal(was, now) for was, now in zip(before, parameters, strict=True))
