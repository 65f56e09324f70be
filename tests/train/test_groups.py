"""Layer decay by hand, on names of a tower of two blocks."""

from __future__ import annotations

import pytest
import torch

from llm2clip.train.core.param_groups import GroupConfig, optimiser_groups, place_parameters

NAMES = {
    "visual.cls_token": 3,
    "visual.patch_embed.proj.weight": 4,
    "visual.blocks.0.mlp.w1.weight": 2,
    "visual.blocks.1.norm1.weight": 1,
    "visual.head.weight": 2,
    "text.text_adaptor.5.weight": 2,
    "text.text_adaptor.5.bias": 1,
    "logit_scale": 0,
}


def test_place_parameters_decays_the_rate_by_layer():
    config = GroupConfig(visual_layer_decay=0.5, visual_weight_decay=0.1, text_weight_decay=0.2)
    placed = place_parameters(NAMES, config=config)
    got = [(placed[name].tower, placed[name].lr_scale, placed[name].weight_decay) for name in NAMES]
    assert got == [
        ("visual", 0.125, 0),
        ("visual", 0.125, 0.1),
        ("visual", 0.25, 0.1),
        ("visual", 0.5, 0),
        ("visual", 1, 0.1),
        ("text", 1, 0.2),
        ("text", 1, 0),
        ("other", 1, 0),
    ]


def test_place_parameters_without_layer_decay():
    placed = place_parameters(NAMES, config=GroupConfig(visual_layer_decay=1.01))
    assert {placing.lr_scale for placing in placed.values()} == {1.0}


def test_optimiser_groups_leave_out_frozen_parameters():
    parameters = {name: torch.nn.Parameter(torch.zeros([2] * axes)) for name, axes in NAMES.items()}
    parameters["text.text_adaptor.5.weight"].requires_grad_(False)
    groups = optimiser_groups(parameters.items())
    assert sum(len(group["params"]) for group in groups) == len(NAMES) - 1


def test_place_parameters_refuses_unknown_names_and_decays():
    with pytest.raises(ValueError, match=r"no layer is known for 'visual\.stem\.weight'"):
        place_parameters({"visual.stem.weight": 2})
    with pytest.raises(ValueError, match="visual_layer_decay must be positive, got 0"):
        GroupConfig(visual_layer_decay=0)
