"""nano's language model: pre-training (next token), then stage 1, caption-contrastive fine-tuning."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from llm2clip.encoders.llama import BidirectionalLlama
from llm2clip.train.device import tensor_of
from llm2clip.train.encode import TextEncoder
from llm2clip.train.losses import candidate_loss, contrastive_loss, masked_next_token_loss
from llm2clip.train.phrases import SCENE_LANGUAGES
from llm2clip.train.run import LoopConfig, Run, Trainee, train_loop
from llm2clip.train.scenes import Scene, caption, last_twin, sample_scene, swap_twin
from llm2clip.train.texts import Text, TextPool, target_matrix

if TYPE_CHECKING:
    from llm2clip.train.emoji import Emoji


@dataclass(frozen=True, kw_only=True)
class LanguageConfig:
    """Recipe of the text side."""

    pretrain: LoopConfig
    """Next-token pre-training."""
    warm: LoopConfig
    """Contrastive fine-tuning of the token embeddings alone, the blocks passing through."""
    tune: LoopConfig
    """Contrastive fine-tuning of the whole model."""
    pretrain_batch: int = 256
    """Texts per pre-training step."""
    warm_batch: int = 2048
    """Short texts per step of the first contrastive part."""
    tune_batch: int = 512
    """Short texts per step of the second."""
    long_scenes: int = 16
    """Scenes of six to eight objects per step."""
    short_scenes: int = 48
    """Scenes of two or three objects per step: the cheapest place to learn what stands where."""
    taught: float = 0.15
    """Part of the short texts that are English queries with the sentence encoder's soft targets."""
    scale: float = 12.0
    """Factor on cosines to pictures' prototypes. Low on purpose: it asks for a wide margin, so that plain inner
    products rank well afterwards."""
    scene_scale: float = 50.0
    """Factor on cosines between scene captions (LLM2CLIP's stage 1 uses 50). High on purpose: a scene and its twin
    share almost every word."""
    same_language: float = 0.6
    """Part of the scenes that are told twice in one language; the rest in two. What stands where is learned within a
    language first."""
    neighbour_share: float = 0.1
    """Part of every target that goes to pictures of similar meaning."""


@dataclass(frozen=True)
class Teacher:
    """What a sentence encoder says about English texts."""

    neighbours: NDArray[np.float32]
    """Shape: (pictures, pictures), rows sum to 1: how alike two pictures' English names and keywords are."""
    queries: list[Text]
    """English queries."""
    query_targets: NDArray[np.float16]
    """Shape: (queries, pictures), rows sum to 1."""


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

    train_loop(
        run, "pretrain", Trainee({"model": model}, optimizer), step, config=config.pretrain, evaluate=None
    )


class ContrastiveStage:
    """Stage 1: texts true of one picture lie together, texts of different pictures apart.

    Short texts are drawn against a prototype of every picture at once (the mean direction of all its captions, learned
    with the model), which is the supervised SimCSE loss with the whole set of pictures as the batch. Scene captions are
    drawn against each other, wording against wording and language against language, with a twin as hard negative.
    """

    def __init__(
        self, emoji: Sequence[Emoji], pool: TextPool, teacher: Teacher, scene_pool: Sequence[int]
    ) -> None:
        self.emoji = emoji
        self.pool = pool
        self.teacher = teacher
        self.scene_pool = scene_pool

    def short_batch(
        self, count: int, rng: np.random.Generator, config: LanguageConfig
    ) -> tuple[list[str], Tensor]:
        """Texts and their target distribution. Shape of the target: (count, pictures)."""
        taught = int(count * config.taught) if self.teacher.queries else 0
        texts = self.pool.sample(count - taught, rng)
        target = target_matrix(texts, len(self.emoji))
        share = config.neighbour_share
        target = (1 - share) * target + share * _spread(texts, self.teacher.neighbours)
        if taught:
            picked = rng.choice(len(self.teacher.queries), taught)
            queries = [self.teacher.queries[i] for i in picked]
            own = target_matrix(queries, len(self.emoji))
            target = np.concatenate(
                (target, 0.5 * own + 0.5 * self.teacher.query_targets[picked].astype(np.float32))
            )
            texts += queries
        return [text.text for text in texts], tensor_of(target)

    def scene_batch(
        self, count: int, objects: tuple[int, int], rng: np.random.Generator, config: LanguageConfig
    ) -> tuple[list[str], list[str], list[str]]:
        """Captions, other captions of the same scenes, and captions of their twins in the latter's wording."""
        queries, positives, negatives = [], [], []
        for _ in range(count):
            scene = sample_scene(self.scene_pool, rng, objects=objects)
            twin = swap_twin(scene, rng) if rng.random() < 0.6 else last_twin(scene, self.scene_pool, rng)
            first = _language(rng)
            second = first if rng.random() < config.same_language else _language(rng)
            words = rng.integers(6, size=2)
            shuffled, shuffled_twin = _reorder(scene, twin, rng)
            queries.append(caption(scene, self.emoji, language=first, wording=int(words[0])))
            positives.append(caption(shuffled, self.emoji, language=second, wording=int(words[1])))
            negatives.append(caption(shuffled_twin, self.emoji, language=second, wording=int(words[1])))
        return queries, positives, negatives


def _spread(texts: Sequence[Text], neighbours: NDArray[np.float32]) -> NDArray[np.float32]:
    """Mean of the neighbourhoods of the pictures each text fits. Shape: (texts, pictures)."""
    return np.stack([neighbours[list(text.pictures[:16])].mean(axis=0) for text in texts])


def _language(rng: np.random.Generator) -> str:
    return "en" if rng.random() < 0.35 else SCENE_LANGUAGES[int(rng.integers(len(SCENE_LANGUAGES)))]


def _reorder(scene: Scene, twin: Scene, rng: np.random.Generator) -> tuple[Scene, Scene]:
    """Tell both in the same new order (in half of the cases), since order in the text is not part of the picture."""
    if rng.random() < 0.5:
        return scene, twin
    order = rng.permutation(len(scene.objects))

    def told(one: Scene) -> Scene:
        return Scene(
            background=one.background,
            objects=tuple(one.objects[i] for i in order),
            cells=tuple(one.cells[i] for i in order),
        )

    return told(scene), told(twin)


def silence_blocks(model: BidirectionalLlama) -> None:
    """Zero the output projections of all blocks, so that the residual stream passes unchanged until they learn."""
    with torch.no_grad():
        for block in model.layers:
            block.self_attn.o_proj.weight.zero_()  # type: ignore[union-attr, operator]
            block.mlp.down_proj.weight.zero_()  # type: ignore[union-attr, operator]


class Prototypes(nn.Module):
    """One learned direction per picture."""

    def __init__(self, count: int, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(count, width) / width**0.5)


def tune_embeddings(
    run: Run,
    model: BidirectionalLlama,
    prototypes: Prototypes,
    encoders: tuple[TextEncoder, TextEncoder],
    stage: ContrastiveStage,
    config: LanguageConfig,
) -> None:
    """First part of stage 1: token embeddings and prototypes, with the blocks silenced and left out."""
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
    train_loop(
        run,
        "warm",
        trainee,
        step,
        config=config.warm,
        evaluate=lambda: text_scores(model, prototypes, encoders[0], stage),
    )
    model.layers = blocks


def tune_model(
    run: Run,
    model: BidirectionalLlama,
    prototypes: Prototypes,
    encoders: tuple[TextEncoder, TextEncoder],
    stage: ContrastiveStage,
    config: LanguageConfig,
) -> None:
    """Second part of stage 1: the whole model, on short texts and on scenes; the prototypes stay."""
    embeddings = [model.embed_tokens.weight]
    matrices = [p for p in model.layers.parameters() if p.ndim == 2]
    vectors = [p for p in model.parameters() if p.ndim == 1]
    optimizer = torch.optim.AdamW(
        [
            {"params": embeddings, "lr": 2e-3, "weight_decay": 0.0},
            {"params": matrices, "lr": 1e-3, "weight_decay": 0.01},
            {"params": vectors, "lr": 1e-3, "weight_decay": 0.0},
        ],
        betas=(0.9, 0.98),
    )
    # The prototypes stay where the first part left them: the vision tower may already be learning from them.
    anchors = prototypes.weight.detach()

    def scene_loss(count: int, objects: tuple[int, int], rng: np.random.Generator) -> Tensor:
        queries, positives, negatives = stage.scene_batch(count, objects, rng, config)
        features = encoders[0].pool(model, [*queries, *positives, *negatives])
        return contrastive_loss(*features.split(count), scale=config.scene_scale)

    def step(rng: np.random.Generator, number: int) -> dict[str, Tensor]:
        texts, target = stage.short_batch(config.tune_batch, rng, config)
        features = encoders[number % 2].pool(model, texts)
        short = candidate_loss(features, anchors, target, scale=config.scale)
        few = scene_loss(config.short_scenes, (2, 3), rng)
        many = scene_loss(config.long_scenes, (6, 8), rng)
        return {"loss": short + 2 * few + many, "text": short, "few": few, "many": many}

    trainee = Trainee({"model": model}, optimizer)
    train_loop(
        run,
        "tune",
        trainee,
        step,
        config=config.tune,
        evaluate=lambda: text_scores(model, prototypes, encoders[0], stage),
    )


@torch.no_grad()
def text_scores(
    model: BidirectionalLlama, prototypes: Prototypes, encoder: TextEncoder, stage: ContrastiveStage
) -> dict[str, float]:
    """Progress of stage 1 in percent: name -> prototype R@1 by language, mean cosine to it, twins told apart."""
    anchors = nn.functional.normalize(prototypes.weight, dim=-1)
    scores: dict[str, float] = {}
    rows = np.random.default_rng(1).choice(len(stage.emoji), min(500, len(stage.emoji)), replace=False)
    for language in ("en", "zh", "es", "ar", "hi", "th"):
        named = [i for i in rows if language in stage.emoji[i].names]
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
