"""The text side in NumPy: values of the torch modules, for every form of adapter, pooling and stored precision."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from llm2clip.encoders.layers.bert import BertEncoder
from llm2clip.encoders.layers.configs import AdapterConfig, BertConfig
from llm2clip.encoders.llm2clip.folder_modules import build_adapter, pack_int8, unpack_int8
from llm2clip.encoders.text.caption_tokenizer import TextRow
from llm2clip.encoders.text.numpy_bert import NumpyBert, shapes_of
from llm2clip.encoders.text.packed import pooled_states
from llm2clip.encoders.weights.tensor_names import ADAPTER, LANGUAGE_MODEL

CONFIG = BertConfig(
    vocab_size=60,
    hidden_size=24,
    intermediate_size=40,
    num_hidden_layers=3,
    num_attention_heads=4,
    max_position_embeddings=50,
    first_position=2,
    layer_norm_eps=1e-5,
)
ROWS = [
    TextRow(ids, pooled, after)
    for ids, pooled, after in (
        ([1, 5, 7, 2], 4, 0),
        ([1] * 40, 38, 1),
        ([3], 1, 0),
        ([1, 9, 8, 2], 1, 3),
        ([4, 4, 2], 9, 0),
    )
]


@pytest.mark.parametrize("stored", ["float32", "float16", "int8"])
@pytest.mark.parametrize(("blocks", "normalize"), [(0, True), (2, False)])
def test_numpy_bert_gives_what_torch_gives(stored: str, blocks: int, normalize: bool):
    torch.manual_seed(3)
    shape = AdapterConfig(width=24, dim=10, blocks=blocks, expansion=2, normalize_input=normalize)
    model, adapter = BertEncoder(CONFIG).eval(), build_adapter(shape).eval()
    tensors = {LANGUAGE_MODEL + name: tensor for name, tensor in model.state_dict().items()}
    tensors |= {ADAPTER + name: tensor for name, tensor in adapter.state_dict().items()}
    tensors = {name: torch.randn(tensor.shape) * 0.4 for name, tensor in tensors.items()}
    assert shapes_of(CONFIG, shape) == {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    if stored == "int8":
        held = pack_int8(tensors)
        tensors = {name: tensor.float() for name, tensor in unpack_int8(held).items()}
    else:
        held = {name: tensor.to(getattr(torch, stored)) for name, tensor in tensors.items()}
        tensors = {name: tensor.float() for name, tensor in held.items()}
    for module, prefix in ((model, LANGUAGE_MODEL), (adapter, ADAPTER)):
        mine = {name.removeprefix(prefix): t for name, t in tensors.items() if name.startswith(prefix)}
        module.load_state_dict(mine)

    light = NumpyBert({name: tensor.numpy() for name, tensor in held.items()}, CONFIG, shape)
    states = light.states(ROWS)
    expected = pooled_states(model, ROWS, device=torch.device("cpu"))
    np.testing.assert_allclose(states, expected, atol=3e-6)
    with torch.no_grad():
        np.testing.assert_allclose(light.project(states), adapter(expected), atol=2e-5)
    np.testing.assert_allclose(light.states(ROWS[1:2]), states[1:2], atol=1e-6)
