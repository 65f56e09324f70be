"""Golden case f: the losses of stage 1 and their gradients."""

import json
import re

import pytest
import torch
from safetensors.torch import load_file

from llm2clip.encoders.layers.llama import BidirectionalLlama
from llm2clip.encoders.text.language_config import llama_config
from llm2clip.train.core.losses import IGNORED_LABEL, contrastive_loss, masked_next_token_loss


def test_contrastive_loss_and_gradients(golden):
    folder = golden.folder("f_stage1")
    inputs, expected = (
        load_file(folder / "hn_inputs.safetensors"),
        load_file(folder / "hn_expected.safetensors"),
    )
    cases = sorted(key.removesuffix(".loss") for key in expected if key.endswith(".loss"))
    assert cases
    for case in cases:
        scale, without = re.fullmatch(r"scale([\d.]+)(_no_negatives)?", case).groups()
        names = "qp" if without else "qpn"
        rows = {name: inputs[name].clone().requires_grad_() for name in names}
        loss = contrastive_loss(rows["q"], rows["p"], rows.get("n"), scale=float(scale))
        loss.backward()
        golden.close(loss, expected[f"{case}.loss"], case)
        for name in names:
            golden.close(
                rows[name].grad, expected[f"{case}.grad_{name}"], f"{case} grad {name}", gradient=True
            )


@pytest.fixture
def mntp(golden):
    """Logits of the recorded model with their gradients' leaves, labels, and what is expected."""
    folder = golden.folder("f_stage1")
    config = llama_config(json.loads((folder / "mntp_model" / "config.json").read_text(encoding="utf-8")))
    model = BidirectionalLlama(config)
    weights = load_file(folder / "mntp_model" / "model.safetensors")
    model.load_state_dict(
        {name.removeprefix("model."): value for name, value in weights.items()}, strict=True
    )
    inputs = load_file(folder / "mntp_inputs.safetensors")
    hidden = model(inputs["input_ids"], inputs["attention_mask"])
    logits = hidden @ model.embed_tokens.weight.T
    scalars = json.loads((folder / "expected.json").read_text(encoding="utf-8"))["mntp"]
    return model, logits, inputs["labels"], load_file(folder / "mntp_expected.safetensors"), scalars


def test_masked_next_token_loss_and_gradients(golden, mntp):
    model, logits, labels, expected, scalars = mntp
    golden.close(logits, expected["logits"], "mntp logits")
    loss = masked_next_token_loss(logits, labels)
    golden.close(loss, expected["loss"], "mntp loss")
    assert loss.item() == pytest.approx(scalars["loss"], rel=1e-5)
    loss.backward()
    parameters = dict(model.named_parameters())
    for key in (key for key in expected if key.startswith("grad.")):
        name = key.removeprefix("grad.model.")
        golden.close(parameters[name].grad, expected[key], f"mntp grad {name}", gradient=True)


def test_masked_next_token_loss_ignores_label_at_position_0(golden, mntp):
    _, logits, labels, expected, scalars = mntp
    assert (labels[:, 0] != IGNORED_LABEL).any()  # set on purpose in the recorded case
    changed = labels.clone()
    changed[:, 0] = 0
    with torch.no_grad():
        assert masked_next_token_loss(logits, changed) == masked_next_token_loss(logits, labels)
        unshifted = torch.nn.functional.cross_entropy(logits.flatten(0, 1), labels.flatten())
    assert unshifted.item() == pytest.approx(scalars["loss_if_labels_not_shifted_wrong"], rel=1e-4)
    assert abs(expected["loss"].item() - unshifted.item()) > 0.01


def test_masked_next_token_loss_is_the_mean_of_token_losses(golden, mntp):
    _, logits, labels, expected, _ = mntp
    counted = labels[:, 1:] != IGNORED_LABEL
    recorded = expected["token_loss_at_predicting_position"]
    golden.close(masked_next_token_loss(logits.detach(), labels), recorded[counted].mean(), "mntp mean")
    for row, position in counted.nonzero()[:8].tolist():
        alone = torch.full_like(labels, IGNORED_LABEL)
        alone[row, position + 1] = labels[row, position + 1]
        one = masked_next_token_loss(logits.detach(), alone)
        golden.close(one, recorded[row, position], "mntp token loss")
