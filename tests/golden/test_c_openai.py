"""Golden case c: the published OpenAI layout, whose configuration says next to nothing."""

import pytest
import torch
import torch.nn.functional as F

from llm2clip.encoders.vision.vision_tower import open_vision


@pytest.fixture
def case(golden, openai_name):
    return golden.case(f"c_openai/{openai_name}")


@pytest.fixture
def plan(case):
    return open_vision(case.folder / "model.safetensors")


def test_open_vision_reads_sizes_from_the_tensors(case, plan):
    config = case.json("config.json")
    vision, tensors = config["vision_config"], case.tensors("model.safetensors")
    assert plan.layout == "openai"
    assert plan.image_size == vision.get("image_size", 224)
    assert (plan.dim, plan.shape.width) == (config["projection_dim"], vision["hidden_size"])
    assert (plan.shape.depth, plan.shape.heads) == (
        vision["num_hidden_layers"],
        vision["num_attention_heads"],
    )
    assert plan.parameters == sum(tensor.numel() for tensor in tensors.values())
    assert plan.adapter.normalize_input


@torch.no_grad()
def test_openai_image_features(case, plan, openai_name):
    expected = case.tensors("expected.safetensors")
    pixels = case.tensors("inputs.safetensors")["pixel_values"]
    tower = plan.load()
    case.check(f"{openai_name}: image_features", tower(pixels), expected["image_features"])
    output = tower.model.vision_model(pixel_values=pixels, output_hidden_states=True)
    case.check(f"{openai_name}: pooler_output", output.pooler_output, expected["pooler_output"])
    recorded = {key: value for key, value in expected.items() if key.startswith("hidden_states.")}
    assert len(recorded) == len(output.hidden_states)
    for number, hidden in enumerate(output.hidden_states):
        key = f"hidden_states.{number}"
        case.check(f"{openai_name}: {key}", hidden, recorded[key])


@torch.no_grad()
def test_openai_text_features_and_scores(case, plan, openai_name):
    inputs, expected = case.tensors("inputs.safetensors"), case.tensors("expected.safetensors")
    images, texts = plan.load()(inputs["pixel_values"]), plan.load_adapter()(inputs["llm_features"])
    case.check(f"{openai_name}: text_features", texts, expected["text_features"])
    cosine = F.normalize(images, dim=-1) @ F.normalize(texts, dim=-1).T
    case.check(f"{openai_name}: cosine", cosine, expected["cosine"])
    case.check(f"{openai_name}: softmax_100", (100 * cosine).softmax(-1), expected["softmax_100"])


@torch.no_grad()
def test_openai_tower_differs_with_exact_gelu(case, plan, openai_name):
    expected = case.tensors("expected.safetensors")
    pixels = case.tensors("inputs.safetensors")["pixel_values"]
    config = case.json("config.json")
    config["vision_config"] |= {"hidden_act": "gelu"}
    exact = open_vision(plan.path, settings=config).load()(pixels)
    case.check(
        f"{openai_name}: wrong/image_features_exact_gelu", exact, expected["wrong/image_features_exact_gelu"]
    )
    assert (exact - expected["image_features"]).abs().max() > 1e-3


def test_openai_tower_in_half_precision_stays_near(case, plan, openai_name):
    del openai_name
    pixels = case.tensors("inputs.safetensors")["pixel_values"]
    with torch.no_grad():
        expected = F.normalize(case.tensors("expected.safetensors")["image_features"], dim=-1)
        for dtype in (torch.bfloat16, torch.float16):
            got = F.normalize(plan.load(dtype=dtype)(pixels.to(dtype)).float(), dim=-1)
            assert (got * expected).sum(-1).min() > 0.999
