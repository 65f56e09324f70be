"""Stage 1 from files to a folder that loads, killed and resumed, and its commands."""

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from typer.testing import CliRunner

from llm2clip.encoders import load_encoder
from llm2clip.train.cc import text_model
from llm2clip.train.cc.evaluate import caption_accuracy, caption_pairs
from llm2clip.train.cc.pipeline import read_data, run_cc
from llm2clip.train.cli import app
from llm2clip.train.core.config import ConfigError
from llm2clip.train.data.captions import SkipReport
from llm2clip.train.recipe_files import NAMES, list_recipes, load_recipe

from .text_material import NOUNS, bert_folder, caption_file, llama_folder

SETTINGS = [
    "cc.batch.size=12",
    "cc.tune.micro_batch=8",
    "cc.tune.lr=2e-2",
    "cc.loop.steps=16",
    "cc.loop.evaluate_every=8",
    "cc.loop.checkpoint_every=3",
    "cc.loop.warmup=2",
    "cc.evaluation.holdout=30",
]


@pytest.fixture(scope="module")
def material(tmp_path_factory):
    folder = tmp_path_factory.mktemp("cc")
    return llama_folder(folder / "model"), caption_file(folder / "captions.jsonl")


def config(material, *settings):
    model, captions = material
    given = [f"cc.model={model}", f"cc.data={json.dumps([str(captions)])}"]
    return load_recipe("debug", settings=[*given, *SETTINGS, *settings]).cc


def history(folder, stage="cc"):
    lines = [json.loads(line) for line in (folder / "history.jsonl").read_text().splitlines()]
    return [(line["step"], line["loss"]) for line in lines if line["stage"] == stage and "loss" in line]


@pytest.fixture(scope="module")
def whole(material, tmp_path_factory):
    """An undisturbed run with LoRA, after MNTP."""
    out = tmp_path_factory.mktemp("whole") / "run"
    chosen = config(material, "cc.mntp.loop.steps=4", "cc.mntp.loop.log_every=1", "cc.mntp.texts=8")
    return run_cc(chosen, out)


def test_run_cc_writes_a_model_that_loads_and_finds_captions_better(whole, material):
    encoder = load_encoder(whole.folder)
    assert whole.after["cra"] > whole.before["cra"] + 20
    assert "cra_en" in (whole.folder.parent / "report.html").read_text(encoding="utf-8")
    assert whole.before.keys() == whole.after.keys() >= {"cra", "cra_en", "cra_xx"}
    weights, first = (
        load_file(whole.folder / "model.safetensors"),
        load_file(material[0] / "model.safetensors"),
    )
    assert weights.keys() == first.keys()
    changed = {name for name in weights if not torch.equal(weights[name], first[name])}
    assert len(changed) == 14  # LoRA is merged into the matrices of the blocks; the rest is as it was
    pairs = caption_pairs(read_data(config(material), report=SkipReport())[1])
    found = caption_accuracy(encoder.encode_texts, pairs, count_tokens=encoder.count_tokens)
    assert found["cra"] == whole.after["cra"]


def test_run_cc_has_finished_when_started_again(whole, material):
    before = (whole.folder / "model.safetensors").read_bytes()
    chosen = config(material, "cc.mntp.loop.steps=4", "cc.mntp.loop.log_every=1", "cc.mntp.texts=8")
    again = run_cc(chosen, whole.folder.parent)
    assert (whole.folder / "model.safetensors").read_bytes() == before
    assert again.before == whole.before
    assert again.after == whole.after


def test_run_cc_trains_all_weights_and_keeps_the_best(material, tmp_path):
    result = run_cc(config(material, "cc.tune.parts=all", "cc.store=float16"), tmp_path / "run")
    story = json.loads((tmp_path / "run" / "run.json").read_text())["stages"]["cc"]
    assert story["measures"]["cra"] == result.after["cra"] >= result.before["cra"]
    assert {t.dtype for t in load_file(result.folder / "model.safetensors").values()} == {torch.float16}
    assert np.isfinite(load_encoder(result.folder).encode_texts(["a dog"])).all()


def test_run_cc_learns_a_teacher_first(material, tmp_path):
    rows = [
        {"row": n, "captions": {"en": f"a {noun}", "xx": f"photo of {noun}"}} for n, noun in enumerate(NOUNS)
    ]
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    np.save(
        tmp_path / "teacher.npy", np.random.default_rng(0).standard_normal((len(NOUNS), 8)).astype(np.float16)
    )
    given = [
        f"cc.distil.vectors={tmp_path / 'teacher.npy'}",
        f'cc.distil.data=["{tmp_path / "pairs.jsonl"}"]',
    ]
    given += [
        "cc.distil.texts=24",
        "cc.distil.lr=1e-2",
        "cc.distil.loop.steps=30",
        "cc.distil.loop.log_every=1",
    ]
    run_cc(config(material, *given, "cc.loop.steps=2", "cc.tune.parts=all"), tmp_path / "run")
    losses = [loss for _, loss in history(tmp_path / "run", "distil")]
    assert len(losses) == 30
    assert np.mean(losses[-3:]) < 0.6 * losses[0]  # a head maps the model's 16 numbers to the teacher's 8


def test_run_cc_trains_a_bert(tmp_path_factory, material, tmp_path):
    """All of one of E5's kind, in bfloat16, with its weights in several files."""
    model = bert_folder(tmp_path_factory.mktemp("bert") / "tiny-e5-small")
    chosen = config((model, material[1]), "cc.tune.parts=all", "cc.tune.lr=5e-3", "cc.scale=20")
    chosen = replace(chosen, loop=replace(chosen.loop, steps=48))
    plain = run_cc(replace(chosen, loop=replace(chosen.loop, steps=3)), tmp_path / "float32")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(text_model, "FILE_BYTES", 6000)
        result = run_cc(replace(chosen, tune=replace(chosen.tune, precision="bfloat16")), tmp_path / "run")
    exact, rounded = history(plain.folder.parent), history(tmp_path / "run")
    assert rounded[0][1] == pytest.approx(exact[0][1], rel=0.02)
    assert rounded != exact
    assert result.after["cra"] > result.before["cra"] + 20
    files = sorted(result.folder.glob("*.safetensors"))
    assert len(files) > 3
    assert max(path.stat().st_size for path in files) < 10_000
    pairs = caption_pairs(read_data(chosen, report=SkipReport())[1])
    encoder = load_encoder(result.folder)
    found = caption_accuracy(encoder.encode_texts, pairs, count_tokens=encoder.count_tokens)
    assert found["cra"] == pytest.approx(result.after["cra"], abs=6)  # of 18 captions one may tip over
    assert json.loads((result.folder / "llm2clip.json").read_text())["text_rules"]["prompt"] == "query: "


def test_read_data_holds_back_the_same_images_whatever_else_is_there(material):
    chosen = config(material, 'cc.languages=["en"]')
    pool, held = read_data(chosen, report=SkipReport())
    assert len(held) == 9  # a tenth of 96
    assert len(pool) == 87
    assert not {group.key for group in held} & {pool[n].key for n in range(len(pool))}
    assert {caption.language for group in held for caption in group.captions} == {"en"}
    again = read_data(config(material), report=SkipReport())[1]
    assert [group.key for group in again] == [group.key for group in held]


KILLED = """
import sys
from pathlib import Path
from llm2clip.train.recipe_files import load_recipe
from llm2clip.train.cc.evaluate import caption_accuracy, caption_pairs
from llm2clip.train.cc.pipeline import run_cc
import torch
torch.set_num_threads(1)
run_cc(load_recipe("debug", settings=sys.argv[2:]).cc, Path(sys.argv[1]))
"""


def test_run_cc_killed_and_resumed_has_the_same_losses(material, tmp_path):
    given = [f"cc.model={material[0]}", f"cc.data={json.dumps([str(material[1])])}", *SETTINGS]
    given += ["cc.tune.parts=all", "cc.tune.lr=1e-3", "cc.loop.steps=20"]
    torch.set_num_threads(1)
    whole = run_cc(load_recipe("debug", settings=given).cc, tmp_path / "whole")
    command = [sys.executable, "-c", KILLED, str(tmp_path / "killed"), *given]
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    while process.poll() is None and _lines(tmp_path / "killed") < 7:  # killed at some step after that
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    run_cc(load_recipe("debug", settings=given).cc, tmp_path / "killed")
    assert history(tmp_path / "killed") == history(tmp_path / "whole")
    assert len(history(tmp_path / "whole")) == 20
    found, expected = (
        load_file(folder / "model" / "model.safetensors")
        for folder in (tmp_path / "killed", whole.folder.parent)
    )
    assert all(torch.equal(found[name], expected[name]) for name in expected)


def _lines(folder):
    path = folder / "history.jsonl"
    return path.read_text().count('"loss"') if path.exists() else 0


def test_recipes_can_be_read_and_overridden():
    assert [name for name, _ in list_recipes()] == list(NAMES)
    for _, recipe in list_recipes():
        assert recipe.cc
        assert recipe.align
        assert all((recipe.title, recipe.data, recipe.hardware, recipe.hours, recipe.source))
    published = load_recipe("paper-60m").cc
    assert (published.batch.size, published.tune.lr, published.loop.warmup, published.scale) == (
        2048,
        2e-4,
        300,
        50,
    )
    assert (published.tune.lora.rank, published.tune.lora.alpha, published.loop.decay) == (16, 32, "linear")
    aligned = load_recipe("paper-15m").align
    assert (aligned.batch, aligned.dim, aligned.loop.clip, aligned.text.blocks) == (4096, 1280, 5.0, 4)
    assert (aligned.groups.visual_lr, aligned.groups.visual_layer_decay) == (1e-5, 0.85)
    assert load_recipe("siglip2").align.loss.kind == "sigmoid"
    assert load_recipe("debug", settings=["cc.tune.lora.rank=3"]).cc.tune.lora.rank == 3
    with pytest.raises(ConfigError, match=r"unknown keys: \['rang'\]; did you mean 'rank'\?"):
        load_recipe("debug", settings=["cc.tune.lora.rang=3"])
    with pytest.raises(ConfigError, match="unknown recipe 'paper-15'; did you mean 'paper-15m'"):
        load_recipe("paper-15")


def test_commands_end_in_one_line_where_captions_are_wrong(material, tmp_path):
    bad = tmp_path / "bad.csv"
    bad.write_text("image,captoin\n1,a dog\n")
    result = CliRunner().invoke(
        app, ["cc", str(bad), "--model", str(material[0]), "--out", str(tmp_path / "run")]
    )
    assert result.exit_code == 1
    assert "has no column of captions (was 'caption' meant?)" in result.output
    assert "Traceback" not in result.output


def test_recipes_command_lists_and_shows():
    listed = CliRunner().invoke(app, ["recipes"])
    assert listed.exit_code == 0
    assert all(f"{name}: " in listed.output for name in NAMES)
    shown = CliRunner().invoke(app, ["recipes", "paper-60m"]).output.splitlines()
    assert "cc.batch.size=2048" in shown
    assert (
        json.loads(CliRunner().invoke(app, ["recipes", "debug", "--json"]).output)["cc"]["batch"]["size"] == 8
    )
