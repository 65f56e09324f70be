"""Golden case g: the losses of stage 2, in one process and in four."""

import json
import re
import subprocess
import sys
import tempfile
from functools import cache
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from llm2clip.train.core.losses import clip_loss, siglip_loss

RANKS = 4


@pytest.fixture
def case(golden):
    folder = golden.folder("g_stage2")
    return folder, load_file(folder / "inputs.safetensors"), load_file(folder / "expected.safetensors")


def leaves(inputs: dict[str, Tensor], *names: str) -> list[Tensor]:
    return [inputs[name].clone().requires_grad_() for name in names]


def test_clip_loss_and_gradients(golden, case):
    _, inputs, expected = case
    smoothed = re.compile(r"clip_smoothing([\d.]+)\.loss")
    variants = {"clip": 0.0} | {
        f"clip_smoothing{m[1]}": float(m[1]) for m in map(smoothed.fullmatch, expected) if m
    }
    assert len(variants) > 1
    for name, smoothing in variants.items():
        image, text, log_scale = leaves(inputs, "image_features", "text_features", "logit_scale_param")
        loss = clip_loss(image, text, logit_scale=log_scale.exp(), label_smoothing=smoothing)
        loss.backward()
        golden.close(loss, expected[f"{name}.loss"], f"{name} loss")
        golden.close(image.grad, expected[f"{name}.grad_image"], f"{name} grad image", gradient=True)
        golden.close(text.grad, expected[f"{name}.grad_text"], f"{name} grad text", gradient=True)
        if f"{name}.grad_logit_scale_param" in expected:
            scale_grad = expected[f"{name}.grad_logit_scale_param"]
            golden.close(log_scale.grad, scale_grad, f"{name} grad scale", gradient=True)


def test_siglip_loss_and_gradients(golden, case):
    _, inputs, expected = case
    names = ("image_features", "text_features", "siglip_logit_scale_param", "siglip_logit_bias")
    image, text, log_scale, bias = leaves(inputs, *names)
    loss = siglip_loss(image, text, logit_scale=log_scale.exp(), logit_bias=bias)
    loss.backward()
    golden.close(loss, expected["siglip.loss"], "siglip loss")
    for leaf, key in (
        (image, "image"),
        (text, "text"),
        (log_scale, "logit_scale_param"),
        (bias, "logit_bias"),
    ):
        golden.close(leaf.grad, expected[f"siglip.grad_{key}"], f"siglip grad {key}", gradient=True)


@pytest.fixture
def ranks(case) -> list[dict[str, Tensor]]:
    """What each of four processes, started for real, computed on its quarter of the batch."""
    return run_ranks(case[0])


@cache
def run_ranks(folder: Path) -> list[dict[str, Tensor]]:
    script = Path(__file__).parent / "rank.py"
    with tempfile.TemporaryDirectory() as scratch:
        outputs = [Path(scratch) / f"{rank}.safetensors" for rank in range(RANKS)]
        processes = [
            subprocess.Popen(
                [sys.executable, script, folder, str(rank), str(RANKS), Path(scratch) / "meeting", output],
                stderr=subprocess.PIPE,
                text=True,
            )
            for rank, output in enumerate(outputs)
        ]
        try:
            errors = [process.communicate(timeout=200)[1] for process in processes]
        finally:
            for process in processes:
                process.kill()
        assert all(process.returncode == 0 for process in processes), "\n".join(errors)
        return [load_file(output) for output in outputs]


def test_losses_of_four_processes_have_the_gradients_of_one(golden, case, ranks):
    _, _, expected = case
    for name, alone in (
        ("clip_4rank.local_gather_with_grad", "clip"),
        ("clip_4rank.global_gather_with_grad", "clip"),
        ("siglip_4rank.gather", "siglip"),
    ):
        losses = torch.stack([rank[f"{name}.loss"] for rank in ranks])
        golden.close(losses, expected[f"{name}.loss_per_rank"], f"{name} loss per rank")
        golden.close(losses.mean(), expected[f"{alone}.loss"], f"{name} mean loss")
        for side in ("image", "text"):
            gathered = torch.cat([rank[f"{name}.grad_{side}"] for rank in ranks])
            golden.close(gathered, expected[f"{name}.grad_{side}"], f"{name} grad {side}", gradient=True)
            mean, single = gathered / RANKS, expected[f"{alone}.grad_{side}"]
            golden.close(mean, single, f"{name} grad {side} after averaging", gradient=True)
        scale = torch.stack([rank[f"{name}.grad_logit_scale"] for rank in ranks])
        if f"{name}.grad_logit_scale_per_rank" in expected:
            per_rank = expected[f"{name}.grad_logit_scale_per_rank"]
            golden.close(scale, per_rank, f"{name} grad scale per rank", gradient=True)
        single = expected[f"{alone}.grad_logit_scale_param"]
        golden.close(scale.mean(), single, f"{name} mean grad scale", gradient=True)


def test_losses_differ_when_gathered_without_gradients(case, ranks):
    _, _, expected = case
    for kind in ("local", "global"):
        ours = torch.cat([rank[f"clip_4rank.{kind}_gather_with_grad.grad_image"] for rank in ranks])
        wrong = expected[f"clip_4rank.{kind}_no_grad_gather.grad_image"]
        assert (ours - wrong).abs().max() > 0.1


def test_golden_scalars_agree_with_golden_tensors(case):
    folder, _, expected = case
    scalars = json.loads((folder / "expected.json").read_text(encoding="utf-8"))
    for name in ("clip", "siglip"):
        assert scalars[name]["loss"] == pytest.approx(expected[f"{name}.loss"].item(), rel=1e-5)
