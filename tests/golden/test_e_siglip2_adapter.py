"""Golden case e: the adapter of the SigLIP2 release, fed with half-precision features, not normalised."""

import pytest
import torch

from llm2clip.encoders.layers.llama import TextAdapter
from llm2clip.encoders.vision.vision_tower import open_adapter

PREFIX = "text.text_proj.text_adaptor."


@pytest.fixture
def case(golden):
    return golden.case("e_siglip2_adapter")


def build(case, *, normalize_input: bool) -> TextAdapter:
    config = case.json("config.json")
    weights = {
        f"adaptor.{name.removeprefix(PREFIX)}": value
        for name, value in case.tensors("weights.safetensors").items()
    }
    blocks = sum(name.endswith(".ln.weight") for name in weights)
    inner, width = weights["adaptor.0.fn.0.weight"].shape
    assert width == config["llm_embedding_dim"]
    adapter = TextAdapter(
        width, config["embed_dim"], blocks=blocks, expansion=inner // width, normalize_input=normalize_input
    )
    adapter.load_state_dict(weights, strict=True)
    return adapter.eval()


@torch.no_grad()
def test_siglip2_adapter_features(case):
    config, expected = case.json("config.json"), case.tensors("expected.safetensors")
    features = case.tensors("inputs.safetensors")["llm_features"]
    rounded = features.to(getattr(torch, config["cast"]))
    adapter = build(case, normalize_input=config["l2_norm"])
    case.exact("llm_features_fp16", rounded, expected["llm_features_fp16"])
    case.check("features", adapter(rounded.float()), expected["features"])
    case.check("no_cast/features", adapter(features), expected["no_cast/features"])


@torch.no_grad()
def test_open_adapter_recognises_the_file(case):
    plan = open_adapter(case.folder / "weights.safetensors")
    expected = case.tensors("expected.safetensors")
    assert (plan.prefix, plan.config.normalize_input) == (PREFIX, False)
    case.check("opened: features", plan.load()(expected["llm_features_fp16"].float()), expected["features"])


@torch.no_grad()
def test_siglip2_adapter_in_mixed_precision_stays_near(case):
    expected = case.tensors("expected.safetensors")["fp16_autocast_emulation/features"]
    features = case.tensors("inputs.safetensors")["llm_features"].half()
    adapter = build(case, normalize_input=False)
    with torch.autocast("cpu", dtype=torch.float16):
        got = adapter(features)
    # Recorded with the same rounding of the linear layers, but by other kernels: a loose comparison.
    case.check("fp16_autocast_emulation/features", got, expected, atol=5e-3, rtol=5e-3)


@torch.no_grad()
def test_siglip2_adapter_differs_with_normalised_input(case):
    expected = case.tensors("expected.safetensors")
    wrong = build(case, normalize_input=True)(expected["llm_features_fp16"].float())
    case.check("wrong/l2_on", wrong, expected["wrong/l2_on"])
    assert (wrong - expected["features"]).abs().max() > 0.01
