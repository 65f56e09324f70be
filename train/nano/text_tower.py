"""nano's language model: pre-training (next token), then stage 1, caption-contrastive fine-tuning."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn

from llm2clip.encoders.layers.llama import BidirectionalLlama
from llm2clip.train.core.losses import candidate_loss, contrastive_loss, masked_next_token_loss
from llm2clip.train.core.text_states import TextEncoder
from llm2clip.train.core.trainer import Run, Trainee, train_loop
from llm2clip.train.nano.caption_batches import ContrastiveStage, LanguageConfig, Prototypes
from llm2clip.train.nano.scene_targets import SceneTargets, SentenceHead
from llm2clip.train.synthetic.scenes import caption, last_twin, move_twin, sample_scene, swap_twin


def pretrain(
    run: Run, model: BidirectionalLlama, encoder: TextEncoder, corpus: Sequence[str], config: LanguageConfig
) -> None:
    """Train the model to predict the next token of names, keywords, queries and scene captions."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3, betas=(0.9, 0.98), weight_decay=0.01)
    rows = encoder.tokenize(corpus)
    lengths = np.array([len(row) for row in rows])

    def step(rng: np.random.Generator, _: int) -> dict[str, Tensor]:
        # One draw in four is weighted by length, so that paragraphs take part in spite of their small number.
        picked = rng.choice(len(rows), config.pretrain_batch)
        centre = lengths[picked[0]]
        near = np.flatnonzero(np.abs(lengths - centre) <= max(1, centre // 8))
        budget = max(8, config.pretrain_batch * 8 // max(8, int(centre)))
        ids, mask = encoder.batch([rows[i] for i in rng.choice(near, min(budget, len(near)), replace=False)])
        hidden = model(ids, mask, causal=True)
        logits = hidden @ model.embed_tokens.weight.T
        return {"loss": masked_next_token_loss(logits, ids.masked_fill(mask == 0, -100))}

    trainee = Trainee({"model": model}, optimizer)
    train_loop(run, "pretrain", trainee, step, config=config.pretrain, settings=config)


def silence_blocks(model: BidirectionalLlama) -> None:
    """Zero the output projections of all blocks: they pass the residual stream unchanged."""
    with torch.no_grad():
        for block in model.layers:
            block.self_attn.o_proj.weight.zero_()  # type: ignore[union-attr, operator]
            block.mlp.down_proj.weight.zero_()  # type: ignore[union-attr, operator]


def tune_embeddings(
    run: Run,
    model: BidirectionalLlama,
    prototypes: Prototypes,
    encoders: tuple[TextEncoder, TextEncoder],
    stage: ContrastiveStage,
    config: LanguageConfig,
) -> None:
    """First part of stage 1: token embeddings and prototypes, with the blocks left out."""
    silence_blocks(model)
    blocks, model.layers = model.layers, nn.ModuleList()
    optimizer = torch.optim.AdamW(
        [
            {"params": [model.embed_tokens.weight], "lr": 1e-2},
            {"params": [model.norm.weight], "lr": 1e-3},
            {"params": [prototypes.weight], "lr": 3e-3},
        ],
        betas=(0.9, 0.98),
        weight_decay=0.0,
    )

    def step(rng: np.random.Generator, number: int) -> dict[str, Tensor]:
        texts, target = stage.short_batch(config.warm_batch, rng, config)
        features = encoders[number % 2].pool(model, texts)
        return {"loss": candidate_loss(features, prototypes.weight, target, scale=config.scale)}

    trainee = Trainee({"model": model, "prototypes": prototypes}, optimizer)

    def evaluate() -> dict[str, float]:
        return text_scores(model, prototypes, encoders[0], stage)

    train_loop(run, "warm", trainee, step, config=config.warm, settings=config, evaluate=evaluate)
    model.layers = blocks


def bind_places(
    run: Run,
    model: BidirectionalLlama,
    prototypes: Prototypes,
    encoder: TextEncoder,
    stage: ContrastiveStage,
    config: LanguageConfig,
) -> None:
    """Second part of stage 1: the blocks learn which object is in which place; the embeddings are frozen.

    On short sentences this takes minutes; from long captions alone it was not learned.
    """
    torch.manual_seed(run.seed)
    head = SentenceHead(prototypes.weight.shape[1])
    # Small random outputs: from zeros, neither a block nor what reads it would begin to learn.
    for block in model.layers:
        nn.init.normal_(block.self_attn.o_proj.weight, std=0.01)  # type: ignore[union-attr, arg-type]
        nn.init.normal_(block.mlp.down_proj.weight, std=0.01)  # type: ignore[union-attr, arg-type]
    optimizer = torch.optim.AdamW(
        [*model.layers.parameters(), *head.parameters()], lr=3e-3, betas=(0.9, 0.98), weight_decay=0.01
    )
    composed = SceneTargets(prototypes.weight, seed=run.seed)

    def step(rng: np.random.Generator, _: int) -> dict[str, Tensor]:
        batch = stage.told_scenes(config.bind_scenes, (1, 2), rng)
        read = encoder.read_sentences(model, batch.captions)
        placed, known = head(read, batch, composed, scale=config.composition_scale)
        return {"loss": placed + known, "placed": placed, "known": known}

    trainee = Trainee({"model": model, "head": head}, optimizer)
    train_loop(run, "bind", trainee, step, config=config.bind, settings=config)


def tune_model(
    run: Run,
    model: BidirectionalLlama,
    prototypes: Prototypes,
    encoders: tuple[TextEncoder, TextEncoder],
    stage: ContrastiveStage,
    config: LanguageConfig,
) -> None:
    """Third part of stage 1: the whole model, on short texts and scenes; the prototypes are frozen."""
    torch.manual_seed(run.seed)
    head = SentenceHead(prototypes.weight.shape[1])
    embeddings = [model.embed_tokens.weight]
    matrices = [p for p in model.layers.parameters() if p.ndim == 2]
    vectors = [p for p in model.parameters() if p.ndim == 1]
    optimizer = torch.optim.AdamW(
        [
            {"params": embeddings, "lr": 1e-3, "weight_decay": 0.0},
            {"params": [*matrices, *head.parameters()], "lr": 1.5e-3, "weight_decay": 0.01},
            {"params": vectors, "lr": 1e-3, "weight_decay": 0.0},
        ],
        betas=(0.9, 0.98),
    )
    # The prototypes stay where the first part left them: the vision tower may already be learning from them.
    anchors = prototypes.weight.detach()

    composed = SceneTargets(anchors, seed=run.seed)

    def scene_losses(
        count: int, objects: tuple[int, int], rng: np.random.Generator
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        batch = stage.scene_batch(count, objects, rng, config)
        read = encoders[0].read_sentences(model, batch.captions)
        pairs = contrastive_loss(
            read.texts[0::3], read.texts[1::3], read.texts[2::3], scale=config.scene_scale
        )
        moved = [move_twin(scene, rng) for scene in batch.scenes]
        whole = candidate_loss(
            read.texts,
            composed([*batch.scenes, *moved]),
            torch.arange(len(read.texts)),
            scale=config.composition_scale,
        )
        placed, known = head(read, batch, composed, scale=config.composition_scale)
        return pairs, whole, placed, known

    def step(rng: np.random.Generator, number: int) -> dict[str, Tensor]:
        texts, target = stage.short_batch(config.tune_batch, rng, config)
        features = encoders[number % 2].pool(model, texts)
        short = candidate_loss(features, anchors, target, scale=config.scale)
        few = scene_losses(config.short_scenes, (1, 2), rng)
        many = scene_losses(config.long_scenes, (4, 8), rng)
        pairs, whole, placed, known = (0.5 * (a + b) for a, b in zip(few, many, strict=True))
        return {
            "loss": 2 * short + pairs + whole + placed + known,
            "text": short,
            "pairs": pairs,
            "whole": whole,
            "placed": placed,
            "known": known,
        }

    trainee = Trainee({"model": model, "head": head}, optimizer)

    def evaluate() -> dict[str, float]:
        return text_scores(model, prototypes, encoders[0], stage)

    train_loop(run, "tune", trainee, step, config=config.tune, settings=config, evaluate=evaluate)


@torch.no_grad()
def text_scores(
    model: BidirectionalLlama, prototypes: Prototypes, encoder: TextEncoder, stage: ContrastiveStage
) -> dict[str, float]:
    """Progress of stage 1 in percent: name -> prototype R@1 by language, mean cosine to it, twins distinguished."""
    anchors = nn.functional.normalize(prototypes.weight, dim=-1)
    scores: dict[str, float] = {}
    rows = np.random.default_rng(1).choice(len(stage.emoji), min(500, len(stage.emoji)), replace=False)
    for language in ("en", "zh", "es", "ar", "hi", "th"):
        named = [i for i in rows if language in stage.emoji[i].names]
        if not named:
            continue
        features = encoder.pool(model, [stage.emoji[i].names[language] for i in named])
        cosines = nn.functional.normalize(features, dim=-1) @ anchors.T
        own = cosines[torch.arange(len(named)), torch.tensor(named)]
        scores[language] = 100 * float((cosines.argmax(1) == torch.tensor(named)).float().mean())
        scores[f"{language}_cos"] = 100 * float(own.mean())
    if len(model.layers):
        rng = np.random.default_rng(2)
        for name, twin_of in (("swap", swap_twin), ("last", lambda s, r: last_twin(s, stage.scene_pool, r))):
            scenes = [sample_scene(stage.scene_pool, rng) for _ in range(100)]
            triples = [(s, s, twin_of(s, rng)) for s in scenes]
            texts = [
                caption(scene, stage.emoji, wording=wording)
                for wording, column in ((0, 0), (1, 1), (1, 2))
                for scene in (triple[column] for triple in triples)
            ]
            query, right, wrong = nn.functional.normalize(encoder.pool(model, texts), dim=-1).split(
                len(scenes)
            )
            told = (query * right).sum(1) > (query * wrong).sum(1)
            scores[name] = 100 * float(told.float().mean())
    return scores
