"""Golden case b: the text adapter, with and without normalising its input."""

import pytest
import torch

from llm2clip.encoders.layers.llama import TextAdapter
from llm2clip.encoders.vision.vision_tower import open_adapter


@pytest.fixture
def case(golden):
    return golden.case("b_text_adapter")


def build(case, *, normalize_input: bool) -> TextAdapter:
    config = case.json("config.json")
    adapter = TextAdapter(
        config["llm_embedding_dim"],
        config["embed_dim"],
        blocks=config["num_layers"],
        expansion=config["expansion_factor"],
        normalize_input=normalize_input,
    )
    weights = case.tensors("weights.safetensors")
    adapter.load_state_dict(
        {f"adaptor.{name.split('text_adaptor.', 1)[1]}": value for name, value in weights.items()},
        strict=True,
    )
    return adapter.eval()


@torch.no_grad()
def test_text_adapter_every_layer_and_the_result(case):
    features = case.tensors("inputs.safetensors")["llm_features"]
    expected = case.tensors("expected.safetensors")
    adapter = build(case, normalize_input=True)
    case.check("l2_on", adapter(features), expected["l2_on"])
    case.check("l2_off", build(case, normalize_input=False)(features), expected["l2_off"])
    hidden = torch.nn.functional.normalize(features, dim=-1)
    for number, layer in enumerate(adapter.adaptor):
        hidden = layer(hidden)
        case.check(f"l2_on.layer{number}", hidden, expected[f"l2_on.layer{number}"])


@torch.no_grad()
def test_open_adapter_recognises_the_file(case):
    plan = open_adapter(case.folder / "weights.safetensors")
    features = case.tensors("inputs.safetensors")["llm_features"]
    expected = case.tensors("expected.safetensors")
    assert plan.config.normalize_input
    case.check("opened: l2_on", plan.load()(features), expected["l2_on"])
    raw = open_adapter(case.folder / "weights.safetensors", normalize_input=False)
    case.check("opened: l2_off", raw.load()(features), expected["l2_off"])


@torch.no_grad()
def test_text_adapter_accepts_normalised_input(case):
    features = case.tensors("inputs.safetensors")["llm_features"]
    expected = case.tensors("expected.safetensors")["l2_on_prenormalized_input"]
    adapter = build(case, normalize_input=True)
    norms = features.norm(dim=-1, keepdim=True).clamp(min=1e-12)
    case.check("l2_on_prenormalized_input", adapter(features / norms), expected)


@torch.no_grad()
def test_text_adapter_differs_without_normalisation(case):
    features = case.tensors("inputs.safetensors")["llm_features"]
    expected = case.tensors("expected.safetensors")
    wrong = build(case, normalize_input=False)(features)
    assert (wrong - expected["l2_on"]).abs().max() > 0.01
