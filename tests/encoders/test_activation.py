"""CLIP's activation: the same bits as transformers' own, and a gradient where one is wanted."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from llm2clip.encoders.layers.transformers_modules import QuickGelu, replace_quick_gelu


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_quick_gelu_equals_transformers_to_the_last_bit(dtype: torch.dtype):
    from transformers.activations import QuickGELUActivation

    states = (4 * torch.randn(64, 33, generator=torch.Generator().manual_seed(0))).to(dtype)
    kept = states.clone()
    assert torch.equal(QuickGelu()(states), QuickGELUActivation()(states))
    assert torch.equal(states, kept)


def test_quick_gelu_has_the_gradient_of_the_formula():
    states = torch.randn(50, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(QuickGelu(), (states,))


def test_replace_quick_gelu_replaces_transformers_own():
    from transformers import CLIPVisionConfig, CLIPVisionModel

    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 3, "num_attention_heads": 2}
    torch.manual_seed(0)
    model = CLIPVisionModel(CLIPVisionConfig(**sizes, image_size=28, patch_size=14)).eval()
    pixels = torch.randn(2, 3, 28, 28)
    expected = model(pixel_values=pixels).pooler_output
    names = list(model.state_dict())
    assert sum(isinstance(part, QuickGelu) for part in replace_quick_gelu(model).modules()) == 3
    assert torch.equal(model(pixel_values=pixels).pooler_output, expected)
    assert list(model.state_dict()) == names
    assert not any(
        isinstance(part, QuickGelu) for part in replace_quick_gelu(nn.Sequential(nn.GELU())).modules()
    )
