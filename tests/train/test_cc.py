"""Stage 1: forward passes, gradients, what is trained, objectives and evaluation on a tiny text model."""

import math

import numpy as np
import pytest
import torch

from llm2clip.encoders.layers.llama import mean_pool
from llm2clip.encoders.text.caption_tokenizer import TextRow
from llm2clip.train.cc.config import LoraSettings, TuneSettings
from llm2clip.train.cc.evaluate import caption_accuracy, caption_pairs
from llm2clip.train.cc.grad_cache import cached_backward
from llm2clip.train.cc.lora import choose_trained, linear_names, merge_lora, optimiser_groups
from llm2clip.train.cc.objectives import (
    ContrastStage,
    DistilStage,
    MntpStage,
    masked_row,
    target_shares,
    teacher_distance,
)
from llm2clip.train.cc.text_model import open_text_model
from llm2clip.train.core.losses import IGNORED_LABEL, contrastive_loss, masked_next_token_loss
from llm2clip.train.data.caption_batches import BatchConfig, CaptionBatches
from llm2clip.train.data.caption_files import read_groups
from llm2clip.train.data.caption_pool import CaptionPool
from llm2clip.train.data.captions import Caption, CaptionGroup

from .text_material import bert_folder, caption_file, llama_folder

CPU = torch.device("cpu")
TEXTS = [
    "a dog runs",
    "the small old cat sleeps near the river",
    "one bird",
    "a boat",
    "photo of a very old house",
]


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    return {"llama": llama_folder(folder / "llama"), "bert": bert_folder(folder / "tiny-e5-small")}


@pytest.fixture
def opened(folders):
    """A function that opens a tiny model with some parts trained."""

    def open_with(parts="all", *, kind="llama", **settings):
        tune = TuneSettings(parts=parts, lora=LoraSettings(rank=4, alpha=8, dropout=0.0), **settings)
        model = open_text_model(folders[kind], tune, device=CPU)
        choose_trained(model.module, tune, seed=1)
        return model

    return open_with


@pytest.fixture
def batches(tmp_path):
    pool = CaptionPool(read_groups([caption_file(tmp_path / "c.jsonl")]))
    return CaptionBatches(pool, BatchConfig(size=12), seed=5)


def gradients(model):
    return {name: p.grad.clone() for name, p in model.module.named_parameters() if p.grad is not None}


def assert_same_gradients(found, expected, *, tolerance=1e-5):
    assert found.keys() == expected.keys()
    scale = max(float(gradient.abs().max()) for gradient in expected.values())
    for name, gradient in expected.items():
        # The bias of keys has no gradient but rounding errors: it moves all scores alike.
        allowed = tolerance * (float(gradient.abs().max()) + 1e-3 * scale)
        assert torch.allclose(found[name], gradient, rtol=tolerance, atol=allowed), name


@pytest.mark.parametrize(("kind", "checkpointing"), [("llama", False), ("llama", True), ("bert", False)])
def test_features_and_gradients_are_those_of_the_padded_forward_pass(opened, kind, checkpointing):
    model = opened(kind=kind, checkpointing=checkpointing)
    ids, attention, pooled = model.reader.batch(TEXTS)
    expected = mean_pool(model.module(ids, attention), pooled)
    found = model.features(model.reader.rows(TEXTS))
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)
    weights = torch.randn(found.shape)
    (expected * weights).sum().backward()
    wanted = gradients(model)
    model.module.zero_grad()
    (found * weights).sum().backward()
    assert_same_gradients(gradients(model), wanted)


def test_encode_gives_the_features_of_each_text_however_many_are_read_at_once(opened):
    model = opened()
    with torch.no_grad():
        expected = model.features(model.reader.rows(TEXTS))
    for tokens in (1, 9, 1000):
        torch.testing.assert_close(model.encode(TEXTS, tokens=tokens), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("micro_batch", [1, 3, 7])
def test_cached_backward_gives_the_gradients_of_the_whole_batch(opened, batches, micro_batch):
    model = opened()
    batch = batches.batch(0)
    rows = model.reader.rows([*batch.queries, *batch.positives])
    features = model.features(rows)
    loss = contrastive_loss(features[:12], features[12:], scale=20.0)
    loss.backward()
    expected = gradients(model)
    model.module.zero_grad()
    found = cached_backward(
        model.features,
        rows,
        micro_batch=micro_batch,
        loss_of=lambda v: contrastive_loss(v[:12], v[12:], scale=20.0),
        size_of=lambda row: len(row.ids),
    )
    assert float(found) == pytest.approx(loss.item(), rel=1e-5)
    assert_same_gradients(gradients(model), expected)


def test_cached_backward_repeats_dropout():
    weight = torch.ones(6, requires_grad=True)
    drawn = []

    def encode(items):
        kept = torch.nn.functional.dropout(weight, 0.5)
        drawn.append(kept.detach())
        return torch.stack([kept * item for item in items])

    cached_backward(encode, [1.0, 2.0, 3.0], micro_batch=1, loss_of=lambda vectors: vectors.sum())
    assert len(drawn) == 6
    assert all(torch.equal(drawn[n], drawn[n + 3]) for n in range(3))
    assert not torch.equal(drawn[0], drawn[1])
    assert torch.equal(weight.grad, sum(kept * item for kept, item in zip(drawn, (1, 2, 3), strict=False)))


def test_contrast_stage_adds_the_gradients_of_contrastive_loss(opened, batches):
    model = opened()
    stage = ContrastStage(model, TuneSettings(parts="all", micro_batch=5), batches, scale=50.0)
    done = stage.step(3, np.random.default_rng(0))
    found = gradients(model)
    model.module.zero_grad()
    batch = batches.batch(3)
    loss = contrastive_loss(
        model.features(model.reader.rows(batch.queries)),
        model.features(model.reader.rows(batch.positives)),
        scale=50.0,
    )
    loss.backward()
    assert done.losses["loss"] == pytest.approx(loss.item(), rel=1e-5)
    assert done.keys == batch.keys
    assert_same_gradients(found, gradients(model))


def test_instruction_is_attended_to_and_not_pooled(opened):
    model = opened()
    row = model.instructed("one very old")  # header of three tokens
    plain, longer = model.reader.rows(["a dog"])[0], row.rows(["a dog"])[0]
    assert longer.pooled == plain.pooled
    assert len(longer.ids) == len(plain.ids) + 3
    assert longer.ids[-plain.pooled :] == plain.ids[-plain.pooled :]


def test_target_shares_give_each_query_its_positives():
    from llm2clip.train.data.caption_batches import CaptionBatch

    batch = CaptionBatch(("x", "y"), ("q1", "q2"), ("a", "b", "c"), np.array([0, 0, 1]), ("n",), "s")
    assert target_shares(batch).tolist() == [[0.5, 0.5, 0, 0], [0, 0, 1, 0]]


def test_linear_names_are_the_seven_of_each_block(opened):
    model = opened().module
    last = {name.rpartition(".")[2] for name in linear_names(model)}
    assert last == {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}
    assert len(linear_names(model)) == 14
    assert len(linear_names(opened(kind="bert").module)) == 12
    assert linear_names(model, targets=("q_proj",)) == [
        "layers.0.self_attn.q_proj",
        "layers.1.self_attn.q_proj",
    ]
    with pytest.raises(ValueError, match="no linear layer is called 'query'; this model has"):
        linear_names(model, targets=("query",))


def test_choose_trained_marks_last_layers_or_updates_only(opened):
    last = opened("last", last_layers=1).module
    assert {
        name.split(".")[0] + name.split(".")[1] for name, p in last.named_parameters() if p.requires_grad
    } == {
        "layers1",
        "normweight",
    }
    updated = opened("lora").module
    trained = [name for name, p in updated.named_parameters() if p.requires_grad]
    assert len(trained) == 28
    assert all("lora_" in name for name in trained)
    with pytest.raises(ValueError, match="last_layers is 3, but the model has 2 blocks"):
        opened("last", last_layers=3)


@pytest.mark.parametrize("kind", ["llama", "bert"])
def test_merge_lora_keeps_the_features_and_the_names(opened, kind):
    model = opened("lora", kind=kind)
    names = set(opened(kind=kind).module.state_dict())
    before = model.encode(TEXTS)
    for name, parameter in model.module.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.2)
    updated = model.encode(TEXTS)
    assert (updated - before).abs().max() > 0.05
    merge_lora(model.module)
    assert set(model.module.state_dict()) == names
    torch.testing.assert_close(model.encode(TEXTS), updated, rtol=1e-4, atol=1e-5)
    choose_trained(model.module, TuneSettings(), seed=2)  # a second update, after MNTP
    torch.testing.assert_close(model.encode(TEXTS), updated, rtol=1e-4, atol=1e-5)


def test_optimiser_groups_do_not_decay_vectors_and_embeddings(opened):
    model = opened().module
    decayed, plain = optimiser_groups(model, TuneSettings(parts="all", weight_decay=0.1))
    assert (decayed["weight_decay"], plain["weight_decay"]) == (0.1, 0.0)
    assert len(decayed["params"]) == 14
    assert any(p is model.embed_tokens.weight for p in plain["params"])


def test_mntp_stage_has_the_loss_and_gradients_of_masked_next_token_loss(opened):
    model = opened()
    stage = MntpStage(
        model, TuneSettings(parts="all", micro_batch=2), TEXTS, head=model.token_head(), size=5, share=0.4
    )
    done = stage.step(0, np.random.default_rng(7))
    found = gradients(model)
    model.module.zero_grad()
    rng = np.random.default_rng(7)
    chosen = rng.integers(len(TEXTS), size=5).tolist()
    rows = model.reader.rows([TEXTS[n] for n in chosen])
    masked = [masked_row(row, 1, 2, 48, 0.4, rng) for row in rows]
    length = max(len(row.ids) for row in rows)
    ids, labels = torch.zeros(5, length, dtype=torch.int64), torch.full((5, length), IGNORED_LABEL)
    attention = torch.zeros(5, length, dtype=torch.int64)
    for number, (row, places) in enumerate(masked):
        ids[number, : len(row.ids)] = torch.tensor(row.ids)
        attention[number, : len(row.ids)] = 1
        for place in places:
            labels[number, place] = rows[number].ids[place]
    loss = masked_next_token_loss(model.module(ids, attention) @ model.module.embed_tokens.weight.T, labels)
    loss.backward()
    with pytest.raises(ValueError, match="is a BERT: it attends both ways already"):
        opened(kind="bert").token_head()
    assert sum(len(places) for _, places in masked) > 4
    assert done.losses["loss"] == pytest.approx(loss.item(), rel=1e-5)
    assert_same_gradients(found, gradients(model), tolerance=1e-4)


def test_masked_row_hides_a_share_of_the_caption_only():
    row = TextRow([0, 9, *range(10, 40), 1], 31)
    rng = np.random.default_rng(0)
    hidden, counts = 0, {"mask": 0, "same": 0}
    for _ in range(300):
        changed, places = masked_row(row, 1, 2, 48, 0.2, rng)
        assert all(2 <= place < 32 for place in places)
        assert [a for n, a in enumerate(changed.ids) if n not in places] == [
            a for n, a in enumerate(row.ids) if n not in places
        ]
        hidden += len(places)
        counts["mask"] += sum(changed.ids[place] == 2 for place in places)
        counts["same"] += sum(changed.ids[place] == row.ids[place] for place in places)
    assert hidden / (300 * 30) == pytest.approx(0.2, abs=0.02)
    assert counts["mask"] / hidden == pytest.approx(0.8, abs=0.04)
    assert counts["same"] / hidden == pytest.approx(0.1, abs=0.03)


def test_distil_stage_minimises_the_distance_to_the_rows_of_the_teacher(opened):
    model = opened()
    vectors = np.random.default_rng(0).standard_normal((2, 16)).astype(np.float32)
    pairs = [(TEXTS[0], 0), (TEXTS[1], 0), (TEXTS[2], 1)]
    stage = DistilStage(model, TuneSettings(parts="all", micro_batch=2), pairs, vectors, size=5)
    done = stage.step(0, np.random.default_rng(3))
    chosen = np.random.default_rng(3).integers(3, size=5)
    rows = model.encode([pairs[n][0] for n in chosen]).numpy()
    wanted = vectors[[pairs[n][1] for n in chosen]]
    cosines = (rows * wanted).sum(1) / np.linalg.norm(rows, axis=1) / np.linalg.norm(wanted, axis=1)
    assert done.losses["loss"] == pytest.approx(float((1 - cosines).mean()), rel=1e-4)
    with pytest.raises(ValueError, match="teacher's vectors have 8 numbers, the model's features 16"):
        DistilStage(model, TuneSettings(parts="all"), pairs, vectors[:, :8], size=5)
    with pytest.raises(ValueError, match="'one bird' has a row that is not among the teacher's 1 vectors"):
        DistilStage(model, TuneSettings(parts="all"), pairs, vectors[:1], size=5)


def test_teacher_distance_of_known_angles():
    features, wanted = torch.tensor([[2.0, 0.0], [0.0, 1.0]]), torch.tensor([[1.0, 1.0], [0.0, 5.0]])
    assert float(teacher_distance(features, wanted, kind="cosine")) == pytest.approx((1 - math.sqrt(0.5)) / 2)
    assert float(teacher_distance(features, wanted, kind="mse")) == pytest.approx(1 - math.sqrt(0.5))


def test_caption_accuracy_counts_both_directions_by_language_and_length():
    groups = [
        CaptionGroup(
            str(n), (Caption(f"{n} {n}", "en"), Caption(f"{n}x", "en"), Caption(f"{n} z", "zh"), *extra)
        )
        for n, extra in enumerate(
            [(), (Caption("1 zz", "zh"),), (Caption("2 zz", "zh"),), (Caption("3 zz", "zh"),)]
        )
    ]
    pairs = caption_pairs(groups)
    assert [(p.language, len(p.first)) for p in pairs] == [("en", 4), ("zh", 3)]
    assert caption_pairs(groups, most=2)[0].first == ("0 0", "1 1")

    def encode(texts):
        """All English captions find each other, and Chinese ones of image 1 only; the other two are confused."""
        rows = np.zeros((len(texts), 8), np.float32)
        for row, text in zip(rows, texts, strict=True):
            number = int(text[0])
            swapped = {2: 3, 3: 2}.get(number, number) if text.endswith("zz") else number
            row[swapped] = 3.0
        return rows

    found = caption_accuracy(encode, pairs, count_tokens=lambda texts: [len(text) for text in texts])
    assert found["cra_en"] == 100
    assert found["cra_zh"] == pytest.approx(100 / 3)
    assert found["cra"] == pytest.approx((100 + 100 / 3) / 2)


def test_caption_accuracy_counts_ties_against_the_model():
    groups = [CaptionGroup(str(n), (Caption(f"a{n}"), Caption(f"b{n}"))) for n in range(30)]
    found = caption_accuracy(
        lambda texts: np.ones((len(texts), 4), np.float32),
        caption_pairs(groups),
        count_tokens=lambda t: [9] * len(t),
    )
    assert found == {"cra": 0.0, "cra_any": 0.0, "cra_9-16": 0.0}
