"""Stage 2 on tiny towers: it learns, resumes, and several processes and micro-batches give the same gradients."""

import json
from dataclasses import replace
from html.parser import HTMLParser

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import nn
from typer.testing import CliRunner

from llm2clip.encoders import FakeEncoder, load_encoder
from llm2clip.encoders.core.errors import ModelError
from llm2clip.encoders.images.preprocess import Preprocess, ResizeMode
from llm2clip.encoders.layers.configs import HEAD_WIDTH, EfficientNetLiteConfig
from llm2clip.encoders.layers.efficientnet_lite import EfficientNetLite, class_code
from llm2clip.train.align import material, pipeline
from llm2clip.train.align.closed_form import Moments, fit_cca
from llm2clip.train.align.config import AlignLoss, ClosedForm, PairData, TextConfig, VisionConfig
from llm2clip.train.align.pipeline import prepare, run_align
from llm2clip.train.align.towers import LowRank, Tower, layer_name, load_tower
from llm2clip.train.cli import app
from llm2clip.train.core.history import read_history
from llm2clip.train.core.param_groups import GroupConfig, place_parameters
from llm2clip.train.core.report import Curve, draw, render_report
from llm2clip.train.core.run_folder import RunError
from llm2clip.train.data.captions import CaptionFileError
from llm2clip.train.data.crops import CropConfig

from .align_material import OPENAI, small_config, write_images


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    return write_images(tmp_path_factory.mktemp("pairs") / "images")


@pytest.fixture(autouse=True)
def fake_texts(monkeypatch):
    monkeypatch.setattr(material, "load_encoder", lambda *_args, **_kwargs: FakeEncoder())


def history(folder, kind="train"):
    return [line for line in read_history(folder / "history.jsonl") if line["kind"] == kind]


def quiet(_line):
    pass


@pytest.fixture(scope="module")
def finished(images, tmp_path_factory):
    """A finished run with a frozen tower."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(material, "load_encoder", lambda *_args, **_kwargs: FakeEncoder())
        out = tmp_path_factory.mktemp("finished") / "run"
        return run_align(small_config(images), out), out


def test_learns_and_leaves_a_folder_that_gives_the_same_vectors(finished, images):
    folder, out = finished
    losses = [line["loss"] for line in history(out)]
    assert np.mean(losses[-5:]) < 0.7 * np.mean(losses[:3])
    described = json.loads((folder / "align.json").read_text())
    assert described["vision"]["layout"] == "openai"
    assert described["image_head"] == {"kind": "linear", "width": 64, "dim": 12, "bias": False}
    tensors = load_file(folder / "model.safetensors")
    parts = prepare(small_config(images), out, tell=quiet)
    features = parts.validation_features.float()
    ours = F.normalize(features @ tensors["image_head.weight"].T, dim=-1)
    parts.stage.text_adapter.load_state_dict(
        {n.removeprefix("text_adapter."): t for n, t in tensors.items() if n.startswith("text_adapter.")}
    )
    # Rank by hand: the share of English captions whose own image scores best.
    with torch.no_grad():
        english = parts.queries[0]
        texts = F.normalize(parts.stage.text_adapter(parts.texts.take(english.texts)), dim=-1)
    best = (texts @ ours.T).argmax(1).numpy()
    assert described["measures"]["en/R@1"] == pytest.approx(100 * (best == english.images).mean())
    tower = load_tower(str(OPENAI))
    original = tower.module.state_dict()
    assert all(torch.equal(tensors[f"vision.{name}"], value) for name, value in original.items())


def test_features_of_a_frozen_tower_are_those_of_the_published_model(finished, images):
    """Before the projection: transformers' pooled output, on the pixels of the encoder's own preprocessing."""
    from llm2clip.encoders.vision.vision_source import local_vision

    _, out = finished
    parts = prepare(small_config(images), out, tell=quiet)
    source = local_vision(OPENAI)
    model = source.plan.load()
    prepared = source.preprocess("native").prepare(str(images / parts.train.keys[3])).pixels
    tower = load_tower(str(OPENAI))
    pixels = torch.from_numpy(prepared[None]).permute(0, 3, 1, 2).float()
    with torch.no_grad():
        pooled = model.model.vision_model(pixel_values=tower.normalised(pixels)).pooler_output[0]
    stored = parts.stage.images.features[0][3].float()
    torch.testing.assert_close(stored, pooled, atol=2e-3, rtol=2e-3)  # stored as float16


def test_load_tower_takes_the_vision_tower_of_nano():
    """Its features through nano's own classifier, code and projection are nano's vectors."""
    pixels = np.random.default_rng(2).integers(0, 256, (2, 240, 240, 3), dtype=np.uint8)
    nano = load_encoder("nano", device="cpu")
    tower = load_tower("nano")
    with torch.no_grad():
        features = tower.module(tower.normalised(torch.from_numpy(pixels).permute(0, 3, 1, 2).float()))
        whole = nano.image_tower.module()
        code = class_code(whole.vision.trunk.classifier(features), whole.vision.config.sharpness)
        vectors = F.normalize(whole.visual_projection(code - whole.vision.centre), dim=-1)
    assert tower.width == features.shape[1]
    np.testing.assert_allclose(vectors, nano.encode_prepared(pixels), atol=1e-5)


def test_a_second_call_changes_nothing(finished, images):
    folder, out = finished
    before = (folder / "model.safetensors").read_bytes(), (out / "history.jsonl").read_bytes()
    assert run_align(small_config(images), out) == folder
    assert ((folder / "model.safetensors").read_bytes(), (out / "history.jsonl").read_bytes()) == before
    with pytest.raises(RunError, match=r"another configuration: batch \(batch: 12 there, 10 here\)"):
        run_align(small_config(images, batch=10), out)


@pytest.mark.parametrize("trained", ["full", "lora"])
def test_micro_batches_give_the_gradients_of_the_whole_batch(images, tmp_path, trained):
    gradients, losses = [], []
    for size in (12, 5):
        config = small_config(
            images,
            vision=VisionConfig(tower=str(OPENAI), trained=trained, lora_rank=2),
            loss=AlignLoss(kind="sigmoid", scale=10.0),
            micro_batch=size,
        )
        stage = prepare(config, tmp_path, tell=quiet).stage
        torch.manual_seed(0)
        for part in stage.modules["vision"].modules():
            if isinstance(part, LowRank):
                nn.init.normal_(part.up, std=0.1)
        torch.manual_seed(7)
        losses.append(stage.step(3, np.random.default_rng(3)).losses["loss"])
        named = [p for group in stage.optimizer.param_groups for p in group["params"]]
        gradients.append(torch.cat([p.grad.flatten() for p in named if p.grad is not None]))
    assert losses[0] == pytest.approx(losses[1], rel=1e-6)
    torch.testing.assert_close(gradients[0], gradients[1], atol=2e-6, rtol=1e-4)
    assert gradients[0].abs().max() > 1e-3


@pytest.fixture
def small_lite(monkeypatch):
    """A random EfficientNet-Lite for small images, in the place of any tower."""

    def load(_spec, *, image_size=None):
        torch.manual_seed(4)
        config = EfficientNetLiteConfig(variant=0, image_size=64, batch_norm=False)
        module = EfficientNetLite(config).requires_grad_(False)
        with torch.no_grad():  # random convolutions alone let the signal fade
            for unit in module.modules():
                if isinstance(unit, nn.Conv2d):
                    unit.weight.mul_(2.2)
        preprocess = Preprocess(size=64, mode=ResizeMode.SQUASH, mean=(0.5,) * 3, std=(0.5,) * 3)
        settings = {"variant": 0, "image_size": 64, "batch_norm": False}
        return Tower(module, "efficientnet-lite", HEAD_WIDTH, None, preprocess, "lite", settings)

    monkeypatch.setattr(pipeline, "load_tower", load)


def test_last_blocks_have_the_gradients_of_the_whole_tower(images, tmp_path, small_lite):
    whole = replace(small_config(images), crop=CropConfig(smallest=1.0))
    gradients = {}
    for name, trained, size in (("full", "full", 12), ("last", "last", 12), ("parts", "last", 5)):
        vision = VisionConfig(tower="lite", trained=trained, last=3)
        config = replace(whole, vision=vision, micro_batch=size)
        stage = prepare(config, tmp_path / name, tell=quiet).stage
        torch.manual_seed(7)
        stage.step(3, np.random.default_rng(3))
        gradients[name] = {n: p.grad for n, p in stage.tower.module.named_parameters()}
    learnt = [name for name, grad in gradients["last"].items() if grad is not None]
    lower = [
        name for name in gradients["full"] if name.startswith(("stem", *(f"blocks.{n}." for n in range(13))))
    ]
    assert sorted(learnt + lower) == sorted(gradients["full"])
    for name in learnt:
        wanted = gradients["full"][name]
        for got in gradients["last"][name], gradients["parts"][name]:  # what is stored is float16
            assert F.cosine_similarity(got.flatten(), wanted.flatten(), dim=0) > 0.999, name
            assert float(got.norm()) == pytest.approx(float(wanted.norm()), rel=0.02), name


def test_last_blocks_are_refused_for_a_transformer(images, tmp_path):
    vision = VisionConfig(tower=str(OPENAI), trained="last")
    with pytest.raises(
        ModelError, match=r"EfficientNet-Lite towers, got .*: set align\.vision\.trained to frozen"
    ):
        prepare(small_config(images, vision=vision), tmp_path, tell=quiet)


def test_run_of_last_blocks_writes_the_tower_that_was_measured(images, tmp_path, small_lite):
    vision = VisionConfig(tower="lite", trained="last", last=3, head="adapter", blocks=1, views=2)
    config = small_config(images, vision=vision, closed_form=ClosedForm(used=True))
    folder = run_align(config, tmp_path)
    tensors = load_file(folder / "model.safetensors")
    before = pipeline.load_tower("lite").module.state_dict()
    changed = {name for name, value in before.items() if not torch.equal(tensors[f"vision.{name}"], value)}
    assert changed == {
        name for name in before if name.startswith(("blocks.13", "blocks.14", "blocks.15", "head"))
    }
    parts = prepare(config, tmp_path, tell=quiet)
    stage = parts.stage
    for prefix, module in (("vision", stage.tower.module), *stage.modules.items()):
        own = {n.removeprefix(f"{prefix}."): t for n, t in tensors.items() if n.startswith(f"{prefix}.")}
        if prefix in ("vision", "image_head", "text_adapter") and module is not stage.modules.get("vision"):
            module.load_state_dict(own)
    measured = parts.measure()
    assert measured == json.loads((folder / "align.json").read_text())["measures"]
    pixels = (
        torch.from_numpy(parts.validation.pixels.take(parts.validation.numbers)).permute(0, 3, 1, 2).float()
    )
    with torch.no_grad():
        through = stage.image_vectors(stage.tower.module(stage.tower.normalised(pixels)))
        torch.testing.assert_close(parts.validation_vectors(), through, atol=0.01, rtol=0.01)


def test_a_compiled_tower_has_the_losses_of_a_plain_one(images, tmp_path, monkeypatch):
    compiled = []

    def compile_without_inductor(module):
        compiled.append(module)
        return compile_module(module, backend="eager")

    compile_module = torch.compile
    monkeypatch.setattr(torch, "compile", compile_without_inductor)
    config = small_config(images)
    vision = replace(config.vision, trained="lora", views=1)
    config = replace(config, vision=vision, loop=replace(config.loop, steps=3, warmup=0, evaluate_every=3))
    run_align(config, tmp_path / "plain")
    assert not compiled
    run_align(replace(config, vision=replace(vision, compiled=True)), tmp_path / "compiled")
    assert len(compiled) == 1
    one, two = ([line["loss"] for line in history(tmp_path / name)] for name in ("plain", "compiled"))
    assert len(one) == 3
    np.testing.assert_allclose(two, one, rtol=1e-5)


def test_bfloat16_changes_losses_by_its_rounding_only(images, tmp_path):
    config = small_config(images)
    config = replace(config, loop=replace(config.loop, steps=3, warmup=0, evaluate_every=3))
    run_align(config, tmp_path / "float32")
    run_align(replace(config, precision="bfloat16"), tmp_path / "bfloat16")
    exact, rounded = ([line["loss"] for line in history(tmp_path / name)] for name in ("float32", "bfloat16"))
    assert exact != rounded
    np.testing.assert_allclose(rounded, exact, rtol=0.02)


def test_low_rank_updates_are_merged_into_the_same_function():
    torch.manual_seed(0)
    base = nn.Linear(6, 4)
    layer = LowRank(base, rank=2, alpha=3.0)
    inputs = torch.randn(5, 6)
    torch.testing.assert_close(layer(inputs), base(inputs))  # an update begins as nothing
    nn.init.normal_(layer.up)
    before = layer(inputs)
    assert (before - base(inputs)).abs().max() > 0.1
    torch.testing.assert_close(layer.merged()(inputs), before)


def test_patch_dropout_keeps_the_class_token_and_only_works_while_training(images, tmp_path):
    vision = VisionConfig(tower=str(OPENAI), trained="full", patch_dropout=0.5, checkpointing=True)
    stage = prepare(small_config(images, vision=vision), tmp_path, tell=quiet).stage
    seen = []
    encoder = next(m for n, m in stage.tower.module.named_modules() if n.endswith("pre_layrnorm"))
    encoder.register_forward_hook(lambda _m, inputs, _o: seen.append(inputs[0].shape[1]))
    stage.step(0, np.random.default_rng(0))
    with torch.no_grad():
        stage.encode(torch.zeros(1, 3, 56, 56))
    assert set(seen[:-1]) == {1 + 8}  # of 4 x 4 patches
    assert seen[-1] == 1 + 16


def test_closed_form_start_and_views(images, tmp_path):
    vision = VisionConfig(tower=str(OPENAI), head="adapter", views=3)
    config = small_config(images, vision=vision, closed_form=ClosedForm(used=True))
    parts = prepare(config, tmp_path, tell=quiet)
    assert parts.measure()["en/R@1"] == 100.0
    first, mirrored, cropped = (view.float() for view in parts.stage.images.features)
    assert (first - mirrored).abs().max() > 0.05
    assert (first - cropped).abs().max() > 0.05
    with pytest.raises(ValueError, match="at most 16 directions"):
        prepare(replace(config, dim=17), tmp_path, tell=quiet)


def debug_command(images, out, *more):
    options = ["--recipe", "debug", "--tower", str(OPENAI), "--model", "fake", "--out", str(out), *more]
    return CliRunner().invoke(app, ["align", str(images), *options])


def test_the_command_trains_and_shows_what_it_would_do(images, tmp_path):
    told = debug_command(images, tmp_path / "dry", "--dry-run")
    assert told.exit_code == 0, told.output
    assert "006.png\n  [en] image 6 of" in told.stdout
    assert "40 samples of" in told.stdout
    assert "120 captions (en 80, zh 40)" in told.stdout
    assert "estimated time on this machine:" in told.stdout
    assert not (tmp_path / "dry").exists()
    told = debug_command(images, tmp_path / "run", "--set", "align.kept_back=4", "--device", "cpu")
    assert told.exit_code == 0, told.output
    assert (tmp_path / "run/aligned/align.json").is_file()
    assert (tmp_path / "run/report.html").is_file()
    told = debug_command(images, tmp_path / "run", "--set", "align.bacth=4")
    assert (told.exit_code, "did you mean 'batch'?" in told.stderr) == (1, True)


def test_bad_input_is_refused_before_training(images, tmp_path):
    few = small_config(images, train=PairData(images=(str(images),), limit=15))
    with pytest.raises(CaptionFileError, match="too few to keep some back"):
        prepare(few, tmp_path / "few", tell=quiet)
    with pytest.raises(ValueError, match="no vision tower is called 'nothing'"):
        load_tower("nothing")
    with pytest.raises(ValueError, match="set dim to 64"):
        prepare(
            small_config(images, vision=VisionConfig(tower=str(OPENAI), head="none")), tmp_path, tell=quiet
        )
    with pytest.raises(ValueError, match=r"needs text\.feature_captions"):
        small_config(images, text=TextConfig(model="fake", features="folder"))


def test_cca_is_that_of_whitened_data():
    """Against the textbook: outputs are uncorrelated, of unit variance, and correlate by the singular values."""
    rng = np.random.default_rng(0)
    shared = rng.normal(size=(4000, 2))
    images = (
        np.c_[shared + 0.3 * rng.normal(size=(4000, 2)), rng.normal(size=(4000, 2))] @ rng.normal(size=(4, 4))
        + 5
    )
    texts = np.c_[shared[:, ::-1] * [1, -1], rng.normal(size=(4000, 1))] @ rng.normal(size=(3, 3)) - 2
    moments = Moments(4, 3)
    for start in range(0, 4000, 1000):
        moments.add(images[start : start + 1000], texts[start : start + 1000])
    found = fit_cca(moments, dim=3, image_ridge=0.0, text_ridge=0.0, power=0.0)
    left, right = found.image(images), found.text(texts)
    np.testing.assert_allclose(np.cov(left.T, bias=True), np.eye(3), atol=1e-8)
    np.testing.assert_allclose(np.cov(right.T, bias=True), np.eye(3), atol=1e-8)
    np.testing.assert_allclose(left.T @ right / 4000, np.diag(found.correlations), atol=1e-8)
    expected = 1 / np.sqrt(1.09)  # of a signal of variance 1 with noise of variance 0.09
    np.testing.assert_allclose(found.correlations[:2], expected, atol=0.01)
    assert found.correlations[2] < 0.1


def test_cca_weights_count_as_repetitions_and_ridge_by_hand():
    rng = np.random.default_rng(1)
    images, texts, weights = rng.normal(size=(6, 2)), rng.normal(size=(6, 2)), np.array([1, 2, 1, 3, 1, 1])
    one, other = Moments(2, 2), Moments(2, 2)
    one.add(images, texts, weights)
    other.add(np.repeat(images, weights, axis=0), np.repeat(texts, weights, axis=0))
    kinds = {"dim": 2, "image_ridge": 0.5, "text_ridge": 0.1}
    np.testing.assert_allclose(
        fit_cca(one, **kinds).image.weight, fit_cca(other, **kinds).image.weight, atol=1e-12
    )
    # One dimension each: correlation s / sqrt((a + ridge a)(b + ridge b)), both maps scaled by its root.
    line = Moments(1, 1)
    line.add(np.array([[-2.0], [2.0]]), np.array([[-1.0], [1.0]]))
    fitted = fit_cca(line, dim=1, image_ridge=0.5, text_ridge=0.0)
    correlation = 2 / np.sqrt(4 * 1.5 * 1)
    assert fitted.correlations[0] == pytest.approx(correlation)
    assert abs(fitted.image.weight[0, 0]) == pytest.approx(np.sqrt(correlation) / np.sqrt(6))
    assert fitted.image(np.array([[0.0]]))[0, 0] == pytest.approx(0.0)


def test_cca_finds_the_directions_that_both_sides_share():
    rng = np.random.default_rng(4)
    shared = rng.standard_normal((500, 2))
    left = shared @ rng.standard_normal((2, 6)) + 0.01 * rng.standard_normal((500, 6)) + 3
    right = shared @ rng.standard_normal((2, 9)) + 0.01 * rng.standard_normal((500, 9)) - 1
    moments = Moments(9, 6)
    moments.add(right, left, np.ones(500))
    maps = fit_cca(moments, text_ridge=1e-6, image_ridge=1e-6, dim=2)
    ours, theirs = maps.text(left), maps.image(right)
    for column in range(2):
        assert np.corrcoef(ours[:, column], theirs[:, column])[0, 1] > 0.999
    assert abs(np.corrcoef(ours.T)[0, 1]) < 0.01


def test_layers_of_every_tower_get_their_place():
    names = {
        "model.vision_model.embeddings.class_embedding": 1,
        "model.vision_model.embeddings.patch_embedding.weight": 4,
        "model.vision_model.embeddings.position_embedding.weight": 2,
        "model.vision_model.encoder.layers.1.mlp.fc1.weight": 2,
        "model.vision_model.post_layernorm.weight": 1,
        "blocks.0.expand.conv.weight": 4,
        "stem.conv.weight": 4,
        "model.vision_model.head.attention.in_proj_weight": 2,
    }
    renamed = {name: layer_name(name) for name in names}
    placed = place_parameters({renamed[n]: axes for n, axes in names.items()}, config=GroupConfig())
    scales = [placed[renamed[name]].lr_scale for name in names]
    assert scales == pytest.approx([0.85**3, 0.85**3, 0.85**3, 0.85, 1.0, 0.85**2, 0.85**3, 1.0])
    decays = [placed[renamed[name]].weight_decay for name in names]
    assert decays == [0.0, 0.05, 0.0, 0.05, 0.0, 0.05, 0.05, 0.05]


class Page(HTMLParser):
    def __init__(self, text):
        super().__init__()
        self.tags, self.links, self.lines = [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.links += [value for name, value in attrs if name in ("src", "href")]
        if tag == "polyline":
            self.lines.append([tuple(map(float, p.split(","))) for p in dict(attrs)["points"].split()])


def test_the_report_shows_curves_and_settings_and_fetches_nothing(finished):
    _, out = finished
    page = Page((out / "report.html").read_text())
    assert "script" not in page.tags
    assert page.links == []
    assert "aligned" not in page.tags
    assert len(page.lines) >= 5  # loss, scale, rate, norm, recalls
    assert "visual_lr" in (out / "report.html").read_text()


def test_curves_are_drawn_to_scale_and_names_are_text():
    text = draw([Curve("<b>", ((0, 1.0), (50, 2.0), (100, 3.0)))], title="loss & more")
    (line,) = Page(text).lines
    assert line[1][0] == pytest.approx((line[0][0] + line[2][0]) / 2, abs=0.1)
    assert line[1][1] == pytest.approx((line[0][1] + line[2][1]) / 2, abs=0.1)
    assert line[0][1] > line[2][1]  # SVG counts from above
    assert "loss &amp; more" in text
    nothing = render_report({"stages": {"x": {}}, "seed": 0}, [], title="<empty>")
    assert "&lt;empty&gt;" in nothing
    assert "Unfinished" in nothing
