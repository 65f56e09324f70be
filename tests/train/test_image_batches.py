from dataclasses import replace

import numpy as np
import torch

from llm2clip.encoders.layers.llama import TextAdapter
from llm2clip.encoders.layers.nano_vision import NanoVisionConfig, NanoVisionTower
from llm2clip.train.core.trainer import LoopConfig, Run
from llm2clip.train.nano.align import AlignStage, align, identity_adapter
from llm2clip.train.nano.export import fold_batch_norm
from llm2clip.train.nano.image_batches import (
    AlignConfig,
    Gallery,
    ImageSide,
    image_scores,
    parameter_groups,
)
from llm2clip.train.nano.scene_targets import SceneTargets
from llm2clip.train.nano.text_features import SceneFeatures, TextFeatures
from llm2clip.train.nano.vision_tower import CrowdStage, composed_scores, train_vision, train_vision_on_scenes
from llm2clip.train.synthetic.augment import augment_drawings, augment_scenes
from llm2clip.train.synthetic.scenes import sample_scene, scene_pool
from llm2clip.train.synthetic.texts import Text

from .material import artwork, emoji

SMALL = NanoVisionConfig(
    image_size=64, widths=(8, 16, 24), blocks=(1, 1, 1), layers=1, heads=2, batch_norm=True
)


def test_fold_batch_norm_keeps_the_function():
    torch.manual_seed(0)
    tower = NanoVisionTower(SMALL)
    for _ in range(3):
        tower(torch.randn(8, 3, 64, 64) * 2 + 1)
    with torch.no_grad():
        for parameter in tower.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
    folded = fold_batch_norm(tower)
    assert not any("running" in name for name in folded.state_dict())
    pixels = torch.randn(4, 3, 64, 64)
    torch.testing.assert_close(folded(pixels), tower.eval()(pixels), atol=1e-4, rtol=1e-4)


def test_identity_adapter_keeps_directions():
    features = torch.nn.functional.normalize(torch.randn(5, 32), dim=-1)
    adapter: TextAdapter = identity_adapter(32, 32)
    cosine = torch.nn.functional.cosine_similarity(
        adapter(features), features - features.mean(1, keepdim=True)
    )
    torch.testing.assert_close(cosine, torch.ones(5))


def test_augment_is_reproducible_and_in_range():
    drawings = artwork().pixels
    first = augment_drawings(drawings, np.random.default_rng(5))
    assert first.shape == (24, 3, 96, 96)
    assert first.dtype == torch.float32
    assert 0 <= float(first.min()) <= float(first.max()) <= 1
    torch.testing.assert_close(first, augment_drawings(drawings, np.random.default_rng(5)), rtol=0, atol=0)
    scenes = np.random.default_rng(0).integers(0, 256, (6, 64, 64, 3), dtype=np.uint8)
    changed = augment_scenes(scenes, np.random.default_rng(5))
    assert float((changed - torch.from_numpy(scenes).permute(0, 3, 1, 2) / 255).abs().mean()) < 0.2


def test_parameter_groups_decay_no_vectors():
    groups = parameter_groups(ImageSide(SMALL, 16), 1e-3, 0.05)
    assert all(p.ndim >= 2 for p in groups[0]["params"])
    assert all(p.ndim < 2 for p in groups[1]["params"])
    assert (groups[0]["weight_decay"], groups[1]["weight_decay"]) == (0.05, 0.0)


def test_stage_two_learns_a_tiny_world(tmp_path):
    things = emoji()
    gallery, held = Gallery(artwork(size=64), 12), Gallery(artwork(styles=("held",), size=64), 12)
    torch.manual_seed(0)
    anchors = torch.nn.functional.normalize(torch.randn(12, 16), dim=-1)
    small_side = ImageSide(SMALL, 16)
    config = AlignConfig(
        first=LoopConfig(steps=150, warmup=3, evaluate_every=150),
        crowds=LoopConfig(steps=60, warmup=3, evaluate_every=60),
        third=LoopConfig(steps=4, warmup=1, evaluate_every=4),
        batch=12,
        crowd_emoji_batch=12,
        crowd_scene_batch=24,
        emoji_batch=12,
        scene_batch=24,
        caption_batch=8,
        vision=replace(SMALL, image_size=96),
    )
    run = Run(tmp_path, seed=1)
    before = image_scores(small_side, anchors, gallery, held)
    train_vision(run, small_side, anchors, gallery, held, config)
    after = image_scores(small_side, anchors, gallery, held)
    assert after["noto_cos"] > before["noto_cos"] + 8

    gallery, held = Gallery(artwork(), 12), Gallery(artwork(styles=("held",)), 12)
    image_side = ImageSide(config.vision, 16)
    image_side.grow_from(small_side)
    stage = CrowdStage(anchors, gallery, held, scene_pool(things), config)
    composed = SceneTargets(anchors, seed=run.seed)
    before = composed_scores(image_side, composed, gallery, stage.scene_pool)
    head = train_vision_on_scenes(run, image_side, stage)
    after = composed_scores(image_side, composed, gallery, stage.scene_pool)
    assert after["scene_cos"] > before["scene_cos"] + 8

    names = [
        Text(thing.names[lang], lang, (i,)) for i, thing in enumerate(things) for lang in ("en", "zh", "hi")
    ]
    texts = TextFeatures(names, anchors.repeat_interleave(3, 0).half(), 12)
    rng = np.random.default_rng(0)
    scenes = [sample_scene(scene_pool(things), rng, objects=(2, 3)) for _ in range(24)]
    cached = SceneFeatures(scenes, torch.randn(24, 2, 16).half(), torch.randn(24, 2, 2, 16).half())
    cached.held = SceneFeatures(scenes[:4], torch.randn(4, 1, 16).half(), torch.randn(4, 2, 1, 16).half())
    adapter = identity_adapter(16, 16)
    align(run, image_side, adapter, AlignStage(gallery, held, texts, cached, config, head))
    lines = (tmp_path / "history.jsonl").read_text().splitlines()
    assert '"stage": "align"' in lines[-1]
    assert "scene_r1" in lines[-1]


def test_grow_from_keeps_weights_and_stretches_positions():
    small, large = ImageSide(SMALL, 16), ImageSide(replace(SMALL, image_size=96), 16)
    with torch.no_grad():
        # Positions that say the row: stretched from 4 to 6 rows they must still rise from top to bottom.
        small.vision.position[0, 1:] = torch.arange(4.0).repeat_interleave(4)[:, None]
        small.vision.position[0, 0] = 7
    large.grow_from(small)
    position = large.vision.position.detach()
    rows = position[0, 1:, 0].view(6, 6)
    assert float(position[0, 0, 0]) == 7
    torch.testing.assert_close(rows, rows[:, :1].expand(6, 6))
    assert (rows[1:, 0] > rows[:-1, 0]).all()
    for name, tensor in small.state_dict().items():
        if name != "vision.position":
            torch.testing.assert_close(large.state_dict()[name], tensor, rtol=0, atol=0)


def test_scene_features_draw_twins_in_the_captions_wording():
    captions = torch.arange(4 * 3).view(4, 3, 1).half()
    twins = (100 + torch.arange(4 * 2 * 3)).view(4, 2, 3, 1).half()
    features = SceneFeatures([], captions, twins)
    own, other = features.draw(np.array([2, 0]), np.random.default_rng(0))
    wording = (own.flatten() - torch.tensor([6.0, 0.0])).long()
    swap, last = other.flatten().split(2)
    torch.testing.assert_close(swap, torch.tensor([112.0, 100.0]) + wording)
    torch.testing.assert_close(last, torch.tensor([115.0, 103.0]) + wording)


def test_text_features_have_a_centroid_per_image():
    texts = [Text("a", "en", (0,)), Text("b", "zh", (0,)), Text("c", "en", (1,)), Text("d", "zh", (0, 1))]
    features = torch.eye(4).half()
    every = TextFeatures(texts, features, 2)
    torch.testing.assert_close(every.centroids[0], torch.tensor([1.0, 1, 0, 1]) / 3**0.5)
