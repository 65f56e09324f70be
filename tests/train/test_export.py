"""Export: vectors of the folder are those of the training modules, for every kind of tower and head."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors.torch import load_file, save_file

from llm2clip.encoders import ModelError, as_sentence_transformer, load_encoder, save_vision_tower
from llm2clip.encoders.core.files import to_json
from llm2clip.encoders.images.preprocess import Preprocess, ResizeMode
from llm2clip.encoders.layers.bert import BertEncoder
from llm2clip.encoders.layers.configs import HEAD_WIDTH, AdapterConfig, BertConfig, EfficientNetLiteConfig
from llm2clip.encoders.layers.efficientnet_lite import EfficientNetLite
from llm2clip.encoders.layers.llama import TextAdapter
from llm2clip.encoders.text.caption_tokenizer import TextRules
from llm2clip.encoders.text.language_config import write_text_rules
from llm2clip.encoders.text.llm_checkpoint import open_language
from llm2clip.encoders.vision.tower_detection import TowerShape
from llm2clip.encoders.vision.vision_tower import build_tower
from llm2clip.train.export import Card, export

from ..encoders.conftest import byte_tokenizer

DIM, WIDTH = 16, 24
IMAGES = [Image.effect_noise((40, 30), 90).convert("RGB"), Image.new("RGB", (20, 50), (200, 30, 90))]
TEXTS = ["a red disc", "Ein langer Satz über einen Hund, der schläft.", "猫"]
SHAPES = {
    "openai": {"width": 32, "hidden": 40, "activation": "quick_gelu"},
    "eva02": {"width": 32, "hidden": 40, "activation": "silu"},
    "siglip2": {"width": DIM, "hidden": 40, "activation": "gelu_pytorch_tanh"},
}


@pytest.fixture(scope="module")
def text_folder(tmp_path_factory) -> Path:
    """A tiny BERT as ``llm2clip-train cc`` leaves it."""
    folder = tmp_path_factory.mktemp("text") / "tiny-bert"
    folder.mkdir()
    torch.manual_seed(1)
    config = BertConfig(
        vocab_size=258,
        hidden_size=WIDTH,
        intermediate_size=40,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=64,
    )
    save_file(
        {name: torch.randn(value.shape) * 0.3 for name, value in BertEncoder(config).state_dict().items()},
        folder / "model.safetensors",
    )
    published = {key: value for key, value in asdict(config).items() if key != "first_position"}
    (folder / "config.json").write_text(json.dumps({"model_type": "bert", **published}))
    byte_tokenizer().save(str(folder / "tokenizer.json"))
    write_text_rules(folder, TextRules(prompt="query: ", pool="all", max_tokens=60))
    return folder


class Trained:
    """Modules as stage 2 has them, and its folder."""

    def __init__(self, folder: Path, text: Path, *, layout: str, head: str) -> None:
        torch.manual_seed(5)
        self.folder = folder / "run"
        if layout == "efficientnet-lite":
            self.tower = EfficientNetLite(EfficientNetLiteConfig(variant=0, image_size=32, batch_norm=True))
            width, size = HEAD_WIDTH, 32
            vision = {"variant": 0, "image_size": size, "batch_norm": True}
        else:
            sizes = {"image_size": 28, "patch_size": 14, "depth": 2, "heads": 2, "dim": DIM}
            shape = TowerShape(layout=layout, **sizes, **SHAPES[layout])
            self.tower = build_tower(shape, projection=False)
            width, size, vision = shape.width, 28, to_json(shape)
        self.head = {
            "linear": lambda: torch.nn.Linear(width, DIM),
            "adapter": lambda: TextAdapter(width, DIM, blocks=1),
            "none": torch.nn.Identity,
        }[head]()
        self.adapter = TextAdapter(WIDTH, DIM, blocks=2)
        for module in (self.tower, self.head, self.adapter):
            for name, parameter in module.named_parameters():
                if parameter.ndim == 1 and "norm.weight" not in name:
                    torch.nn.init.normal_(parameter, std=0.2)
            for name, buffer in module.named_buffers():
                if name.endswith("running_var"):
                    buffer.uniform_(0.5, 1.5)
            module.requires_grad_(False).eval()
        self.preprocess = Preprocess(size=size, mode=ResizeMode.SQUASH)
        self.text = open_language(text)
        self._write(text, layout=layout, head=head, vision=vision, width=width)

    def _write(self, text: Path, *, layout: str, head: str, vision: dict, width: int) -> None:
        aligned = self.folder / "aligned"
        aligned.mkdir(parents=True)
        tensors = {
            prefix + name: tensor.contiguous()
            for prefix, module in (
                ("vision.", self.tower),
                ("image_head.", self.head),
                ("text_adapter.", self.adapter),
            )
            for name, tensor in module.state_dict().items()
        }
        save_file(tensors | {"logit_scale": torch.tensor(2.5)}, aligned / "model.safetensors")
        kinds = {
            "linear": {"bias": True},
            "adapter": {"blocks": 1, "expansion": 2, "normalize_input": True},
            "none": {},
        }
        data = {
            "format": "llm2clip-aligned",
            "version": 1,
            "dim": DIM,
            "vision": {"source": "x", "trained": "full", **vision, "layout": layout, "width": width},
            "preprocessing": to_json(self.preprocess),
            "image_head": {"kind": head, "width": width, "dim": DIM, **kinds[head]},
            "text_adapter": asdict(AdapterConfig(width=WIDTH, dim=DIM, blocks=2)),
            "text_model": {"name": str(text), "features": "states", "made_by": "x", "dtype": "auto"},
        }
        (aligned / "align.json").write_text(json.dumps(data))

    @torch.no_grad()
    def image_vectors(self) -> np.ndarray:
        pixels = np.stack([self.preprocess.prepare(image).pixels for image in IMAGES])
        normalised = (torch.from_numpy(pixels).float() / 255 - 0.5).div(0.5).permute(0, 3, 1, 2)
        return F.normalize(self.head(self.tower(normalised)), dim=-1).numpy()

    @torch.no_grad()
    def text_vectors(self) -> np.ndarray:
        reader, model = self.text.reader(), self.text.load()
        ids, mask, pooled = reader.batch(TEXTS)
        return F.normalize(self.adapter(reader.pool(model(ids, mask), pooled)), dim=-1).numpy()


CASES = [
    ("efficientnet-lite", "linear"),
    ("efficientnet-lite", "adapter"),
    ("openai", "linear"),
    ("openai", "adapter"),
    ("eva02", "linear"),
    ("siglip2", "none"),
]


@pytest.mark.parametrize(("layout", "head"), CASES)
def test_exported_vectors_are_those_of_training(tmp_path, text_folder, layout, head):
    trained = Trained(tmp_path, text_folder, layout=layout, head=head)
    out = export(
        trained.folder, tmp_path / "mine", card=Card(name="mine", languages=("en",)), dtype="float32"
    )
    encoder = load_encoder(out)
    assert np.abs(encoder.encode_texts(TEXTS) - trained.text_vectors()).max() < 1e-5
    assert encoder.loaded_sides == {"text"}
    assert np.abs(encoder.encode_images(IMAGES) - trained.image_vectors()).max() < 1e-5
    assert (encoder.info.name, encoder.info.dim, encoder.info.languages) == ("mine", DIM, ("en",))
    assert encoder.info.parameters == sum(
        value.numel() for value in load_file(out / "model.safetensors").values()
    )
    stored = encoder.encode_features(encoder.language_features(TEXTS))
    assert np.abs(stored - encoder.encode_texts(TEXTS)).max() < 1e-6


@pytest.mark.parametrize(("dtype", "close"), [("float16", 0.9999), ("int8", 0.99)])
def test_export_in_less_precision_is_close_and_smaller(tmp_path, text_folder, dtype, close):
    trained = Trained(tmp_path, text_folder, layout="openai", head="adapter")
    whole = export(trained.folder, tmp_path / "whole", dtype="float32")
    small = export(trained.folder, tmp_path / "small", dtype=dtype)
    sizes = [(folder / "model.safetensors").stat().st_size for folder in (whole, small)]
    assert sizes[1] < sizes[0] * (0.6 if dtype == "float16" else 0.4)
    encoder = load_encoder(small)
    assert (encoder.encode_texts(TEXTS) * trained.text_vectors()).sum(1).min() > close
    assert (encoder.encode_images(IMAGES) * trained.image_vectors()).sum(1).min() > close


def test_exported_sides_open_in_other_programs(tmp_path, text_folder):
    from transformers import CLIPVisionModel

    trained = Trained(tmp_path, text_folder, layout="openai", head="linear")
    encoder = load_encoder(export(trained.folder, tmp_path / "mine", dtype="float32"))
    view = as_sentence_transformer(encoder)
    assert np.abs(view.encode(TEXTS) - encoder.encode_texts(TEXTS)).max() < 1e-6
    save_vision_tower(encoder, tmp_path / "vision")
    model = CLIPVisionModel.from_pretrained(tmp_path / "vision").eval()
    pixels = torch.randn(1, 3, 28, 28)
    with torch.no_grad():
        torch.testing.assert_close(model(pixel_values=pixels).pooler_output, trained.tower(pixels))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"version": 7}, "expected format 'llm2clip-aligned' version 1, got"),
        ({"text_adapter": {"width": 25, "dim": DIM}}, "adapter.width is 25, but text.hidden_size is 24"),
        ({"image_head": {"kind": "other", "width": 32, "dim": DIM}}, "expected one of"),
        ({"text_model": {"name": "nowhere", "features": "states"}}, "unknown encoder 'nowhere'"),
        ({"text_model": {"name": "nano", "features": "vectors"}}, "not states of a language model"),
        ({"vision": {"layout": "eva02"}}, "missing keys"),
        ({"vision": {}}, "missing keys"),
    ],
)
def test_export_names_what_does_not_fit(tmp_path, text_folder, change, message):
    trained = Trained(tmp_path, text_folder, layout="openai", head="linear")
    path = trained.folder / "aligned" / "align.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(ModelError, match=message) as caught:
        export(trained.folder, tmp_path / "mine")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "mine" / "config.json").exists()


def test_export_names_a_missing_tensor(tmp_path, text_folder):
    trained = Trained(tmp_path, text_folder, layout="openai", head="linear")
    path = trained.folder / "aligned" / "model.safetensors"
    tensors = load_file(path)
    tensors.pop("image_head.bias")
    save_file(tensors, path)
    with pytest.raises(ModelError, match=r"missing tensors: image_head\.bias"):
        export(trained.folder, tmp_path / "mine")
    with pytest.raises(ModelError, match=r"holds no result of llm2clip-train align"):
        export(tmp_path, tmp_path / "mine")


def test_export_command_says_where_the_encoder_is(tmp_path, text_folder):
    from typer.testing import CliRunner

    from llm2clip.train.cli import app

    trained = Trained(tmp_path, text_folder, layout="efficientnet-lite", head="linear")
    arguments = ["export", str(trained.folder), "--out", str(tmp_path / "mine"), "--name", "ours"]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.output
    assert f"llm2clip-index build IMAGES --encoder {tmp_path / 'mine'}" in result.output
    assert load_encoder(tmp_path / "mine").info.name == "ours"
    wrong = CliRunner().invoke(app, [*arguments, "--dtype", "int3"])
    assert (wrong.exit_code, "Traceback" in wrong.output) == (1, False)


def test_export_takes_what_align_writes(tmp_path, text_folder):
    from llm2clip.train.align.config import TextConfig, VisionConfig
    from llm2clip.train.align.pipeline import run_align
    from llm2clip.train.core.stage import LoopConfig

    from .align_material import EVA, small_config, write_images

    images = write_images(tmp_path / "images", count=24)
    config = small_config(
        images,
        vision=VisionConfig(tower=str(EVA)),
        text=TextConfig(model=str(text_folder), blocks=1),
        batch=6,
        micro_batch=6,
        loop=LoopConfig(steps=2, warmup=1, evaluate_every=2, checkpoint_every=2, log_every=1),
    )
    aligned = run_align(config, tmp_path / "run")
    encoder = load_encoder(export(tmp_path / "run", tmp_path / "mine", dtype="float32"))
    tensors = load_file(aligned / "model.safetensors")
    adapter = TextAdapter(WIDTH, config.dim, blocks=1)
    prefix = "text_adapter."
    adapter.load_state_dict({k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)})
    states = torch.from_numpy(load_encoder(text_folder).language_features(TEXTS))
    expected = F.normalize(adapter(states), dim=-1).detach().numpy()
    assert np.abs(encoder.encode_texts(TEXTS) - expected).max() < 1e-5
    vectors = encoder.encode_images(sorted(images.glob("*.png")))
    assert vectors.shape == (24, config.dim)
    assert np.linalg.matrix_rank(vectors) > 3
