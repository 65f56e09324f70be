"""The whole nano recipe in its debug size over the tiny world, from tokenizer to a folder that loads."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from llm2clip.encoders import load_encoder
from llm2clip.train.core.trainer import Run, RunError
from llm2clip.train.nano import pipeline as stages
from llm2clip.train.nano.caption_batches import Teacher
from llm2clip.train.nano.export import export_nano
from llm2clip.train.nano.image_batches import plain_drawings
from llm2clip.train.nano.pipeline import Material, train_language, train_nano
from llm2clip.train.recipes import nano
from llm2clip.train.synthetic.scenes import scene_pool
from llm2clip.train.synthetic.texts import Text, TextPool

from .material import artwork, emoji


@pytest.fixture
def material(tmp_path, monkeypatch):
    """The tiny world instead of fetched packages; no sentence encoder."""
    things = emoji()

    def drawn(emoji, cache, *, styles=("noto", "other"), size):
        return artwork(styles=styles, size=size)

    def teacher(emoji, pool, **_):
        return Teacher(np.eye(len(emoji), dtype=np.float32), [], np.zeros((0, len(emoji)), np.float16))

    monkeypatch.setattr(stages, "load_artwork", drawn)
    monkeypatch.setattr(stages, "ask_teacher", teacher)
    descriptions = [Text("it flies at night", "en", (6,)), Text("会飞的", "zh", (6, 10))]
    return Material(things, TextPool(things, descriptions), scene_pool(things), tmp_path)


def test_train_nano_exports_the_trained_vectors(tmp_path, material):
    config = nano(debug=True)
    run = Run(tmp_path / "run", seed=config.seed)
    run.describe(config)
    model, image_side, adapter = train_nano(run, material, config)
    encoder = load_encoder(export_nano(run, config, model, image_side, adapter))

    names = [thing.names["en"] for thing in material.emoji] + ["it flies at night"]
    reader = stages.text_encoder(run, config)
    with torch.no_grad():
        texts = torch.nn.functional.normalize(adapter.eval()(reader.pool(model, names)), dim=-1)
    # Weights are stored as float16.
    np.testing.assert_allclose(encoder.encode_texts(names), texts.numpy(), atol=5e-3)

    drawings = plain_drawings(artwork(), np.arange(12))
    with torch.no_grad():
        images = torch.nn.functional.normalize(image_side.eval()(drawings), dim=-1)
    arrays = [(image.permute(1, 2, 0).numpy() * 255).round().astype(np.uint8) for image in drawings]
    np.testing.assert_allclose(encoder.encode_images(arrays), images.numpy(), atol=2e-2)

    story = json.loads((run.folder / "nano" / "training.json").read_text())
    assert story["recipe"]["width"] == 64
    stages_run = [line["stage"] for line in story["history"]]
    assert stages_run == ["pretrain", "warm", "bind", "tune", "vision", "crowds", "align"]
    assert all("finished" in stage for stage in story["stages"].values())


def test_train_nano_resumed_gives_the_same_weights(tmp_path, material, monkeypatch):
    config, reader = nano(debug=True), stages.text_encoder
    # The tokenizers library leaves merges out at random without a seed; all other chances are ours.
    monkeypatch.setattr(stages, "text_encoder", lambda run, config, **_: reader(run, config))
    whole = train_nano(Run(tmp_path / "whole", seed=config.seed), material, config)

    def stop(*_, **__):
        raise KeyboardInterrupt

    broken = Run(tmp_path / "broken", seed=config.seed)
    for stage in ("tune_model", "align"):
        with monkeypatch.context() as patched:
            patched.setattr(stages, stage, stop)
            with pytest.raises(KeyboardInterrupt):
                train_nano(Run(broken.folder, seed=config.seed), material, config)
    resumed = train_nano(Run(broken.folder, seed=config.seed), material, config)
    for one, other in zip(whole, resumed, strict=True):
        for name, tensor in one.state_dict().items():
            torch.testing.assert_close(other.state_dict()[name], tensor, rtol=0, atol=0, msg=name)


def test_train_language_and_read_captions_notice_changes(tmp_path, material):
    config = nano(debug=True)
    run = Run(tmp_path / "run", seed=config.seed)
    model = train_language(run, material, config)
    first, _ = stages.read_captions(run, material, model, config)
    again, _ = stages.read_captions(run, material, model, config)
    torch.testing.assert_close(again.features, first.features, rtol=0, atol=0)
    with torch.no_grad():
        model.norm.weight[:8].mul_(3)
    changed, _ = stages.read_captions(run, material, model, config)
    assert float((changed.features - first.features).abs().max()) > 0.01
    other = replace(config, language=replace(config.language, scale=9.0))
    with pytest.raises(RunError, match=r"stage 'pretrain' with another configuration .*settings\.scale"):
        train_language(run, material, other)
