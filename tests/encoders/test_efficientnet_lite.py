"""EfficientNet-Lite against the PyTorch port whose weights are published: recorded, and itself where installed."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from llm2clip.encoders import ModelError
from llm2clip.encoders.layers.configs import HEAD_WIDTH, EfficientNetLiteConfig
from llm2clip.encoders.layers.efficientnet_lite import EfficientNetLite
from llm2clip.encoders.vision.efficientnet_checkpoint import load_efficientnet_lite, published_name

RECORDED = Path(__file__).parent / "data" / "efficientnet_lite.json"
"""What efficientnet_lite_pytorch 0.1.0 gives in float64 for ``weights`` and ``pixels``: scores, means of channels."""
CLASSES = 5


@cache
def weights(variant: int) -> dict[str, torch.Tensor]:
    """Random weights under the port's names, the same on every machine."""
    generator = np.random.default_rng(variant)
    config = EfficientNetLiteConfig(variant=variant, image_size=64, classes=CLASSES, batch_norm=True)
    drawn: dict[str, torch.Tensor] = {}
    for ours, tensor in EfficientNetLite(config).state_dict().items():
        name, shape = published_name(ours), tuple(tensor.shape)
        if name.endswith("num_batches_tracked"):
            drawn[name] = torch.tensor(7)
        elif len(shape) == 4:
            fan = shape[1] * shape[2] * shape[3]
            drawn[name] = torch.from_numpy(generator.standard_normal(shape) * (2 / fan) ** 0.5).float()
        elif name.endswith(("running_var", "_bn0.weight", "_bn1.weight", "_bn2.weight")):
            drawn[name] = torch.from_numpy(generator.uniform(0.5, 1.5, shape)).float()
        else:
            drawn[name] = torch.from_numpy(generator.standard_normal(shape) * 0.1).float()
    return drawn


def pixels(side: int) -> torch.Tensor:
    """Shape: (2, 3, side, side), float64."""
    return torch.from_numpy(np.random.default_rng(side).standard_normal((2, 3, side, side)))


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory) -> dict[int, Path]:
    folder = tmp_path_factory.mktemp("efficientnet")
    paths = {variant: folder / f"lite{variant}.safetensors" for variant in (0, 2)}
    for variant, path in paths.items():
        save_file(weights(variant), path)
    return paths


@pytest.mark.parametrize(("variant", "side"), [(0, 48), (2, 65)])
@torch.no_grad()
def test_efficientnet_lite_gives_what_the_port_gave(checkpoints, variant, side):
    model = load_efficientnet_lite(checkpoints[variant], image_size=side, dtype=torch.float64)
    recorded = json.loads(RECORDED.read_text())[f"lite{variant}-{side}"]
    scores, channels = (torch.tensor(recorded[key], dtype=torch.float64) for key in ("scores", "channels"))
    for network in (model, model.folded(classes=True)):
        pooled = network(pixels(side))
        assert pooled.shape == (2, HEAD_WIDTH)
        torch.testing.assert_close(pooled[:, : channels.shape[1]], channels, atol=1e-6, rtol=0)
        torch.testing.assert_close(network.classifier(pooled), scores, atol=1e-6, rtol=0)


@pytest.mark.parametrize("variant", [0, 1, 2])
@torch.no_grad()
def test_efficientnet_lite_equals_the_port(variant, tmp_path):
    port = pytest.importorskip("efficientnet_lite_pytorch", reason="the port is not installed")
    reference = port.EfficientNet.from_name(
        f"efficientnet-lite{variant}", image_size=96, num_classes=CLASSES
    ).eval()
    reference.load_state_dict(weights(variant), strict=True)
    torch.save(reference.state_dict(), tmp_path / "lite.pth")
    model = load_efficientnet_lite(tmp_path / "lite.pth", image_size=96)
    given = pixels(96).float()
    torch.testing.assert_close(model.classifier(model(given)), reference(given), atol=1e-5, rtol=0)


def test_efficientnet_lite_without_batch_norm_folds_to_itself():
    model = EfficientNetLite(EfficientNetLiteConfig(variant=0, image_size=64)).eval()
    given = pixels(64).float()
    assert torch.equal(model.folded()(given), model(given))


def test_efficientnet_lite_reads_each_image_as_if_alone(checkpoints):
    model, given = load_efficientnet_lite(checkpoints[0], image_size=64).folded(), pixels(64).float()
    alone = torch.cat([model(image[None]) for image in given])
    assert torch.cosine_similarity(model(given), alone).min() >= 0.99999


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("_blocks.3._bn1.bias", None, "missing tensors: _blocks.3._bn1.bias"),
        ("_blocks.3._bn1.bias", torch.zeros(3), r"_blocks.3._bn1.bias is F32 \[3\], expected F32 \[144\]"),
        ("_conv_head.weight", None, "0 channels before _conv_head"),
        ("_blocks.16._bn1.bias", torch.zeros(3), "17 blocks and 320 channels before _conv_head"),
        ("_se.weight", torch.zeros(3), "unexpected tensors: _se.weight"),
        ("_fc.bias", torch.zeros(1, 2), "_fc"),
        ("_bn1.weight", torch.full((1280,), torch.nan), "not finite in: _bn1.weight"),
    ],
)
def test_efficientnet_lite_names_a_wrong_tensor(tmp_path, name, change, message):
    spoilt = {key: value for key, value in (weights(0) | {name: change}).items() if value is not None}
    save_file(spoilt, tmp_path / "lite.safetensors")
    with pytest.raises(ModelError, match=message):
        load_efficientnet_lite(tmp_path / "lite.safetensors")


def test_efficientnet_lite_config_refuses_unknown_variants():
    with pytest.raises(ValueError, match="variant must be one of 0, 1, 2, got 3"):
        EfficientNetLiteConfig(variant=3, image_size=64)
    with pytest.raises(ValueError, match="image_size must be a whole number"):
        EfficientNetLiteConfig(variant=0, image_size=0)
