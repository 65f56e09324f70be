"""Tokens per second of stage 1, beside sentence-transformers' trainer on the same model, captions and batches.

Both train all weights with the same contrastive loss, in one process and on one thread. Tokens that texts have count,
padding does not. sentence-transformers' trainer needs ``datasets`` and ``accelerate``; without them it is left out.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors

from benchmarks.measuring import Row, Settings
from llm2clip.train.cc.config import TuneSettings
from llm2clip.train.cc.lora import choose_trained
from llm2clip.train.cc.objectives import ContrastStage
from llm2clip.train.cc.text_model import open_text_model
from llm2clip.train.data.caption_batches import BatchConfig, CaptionBatches
from llm2clip.train.data.caption_pool import CaptionPool
from llm2clip.train.data.captions import Caption, CaptionGroup

PAIRS = 64
"""Pairs of a step."""
WORDS = [
    "a",
    "dog",
    "red",
    "bicycle",
    "in",
    "the",
    "rain",
    "two",
    "children",
    "stand",
    "beside",
    "old",
    "wooden",
    "boat",
    "on",
    "sandy",
    "beach",
    "while",
    "birds",
    "circle",
    "above",
    "grey",
    "water",
    "behind",
    "them",
    "small",
    "white",
    "house",
    "with",
    "blue",
    "door",
    "and",
    "tall",
    "pine",
    "trees",
    "grows",
    "near",
    "quiet",
    "road",
]
SHAPE: dict[str, object] = {
    "model_type": "bert",
    "architectures": ["BertModel"],
    "hidden_size": 256,
    "intermediate_size": 1024,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "max_position_embeddings": 128,
    "vocab_size": 64,
    "hidden_dropout_prob": 0.0,
    "attention_probs_dropout_prob": 0.0,
    "pad_token_id": 0,
}


def measure(settings: Settings) -> list[Row]:
    """Tokens per second of both trainers, and their quotient."""
    torch.set_num_threads(1)
    folder = write_model(settings.work / "bert", SHAPE)
    pairs = captions(PAIRS * settings.times(20))
    ours = _ours(folder, pairs, settings.clock)
    rows = [Row(benchmark="cc", what="llm2clip-train cc, BERT of 4 layers", value=ours, unit="tokens/s")]
    if not all(find_spec(name) for name in ("datasets", "accelerate")):
        return rows
    theirs = _theirs(folder, pairs, settings)
    rows.append(Row(benchmark="cc", what="sentence-transformers' trainer", value=theirs, unit="tokens/s"))
    rows.append(
        Row(
            benchmark="cc",
            what="llm2clip / sentence-transformers",
            value=ours / theirs,
            unit="ratio",
            aim=1.3,
            better="higher",
            note=f"{PAIRS} pairs a step, all weights, one thread, captions of 6 to 40 words",
        )
    )
    return rows


def _ours(folder: Path, pairs: list[tuple[str, str]], clock: Callable[[], float]) -> float:
    tune = TuneSettings(parts="all", lr=1e-4, micro_batch=2 * PAIRS)
    model = open_text_model(folder, tune, device=torch.device("cpu"))
    choose_trained(model.module, tune, seed=0)
    groups = [CaptionGroup(str(n), (Caption(a), Caption(b))) for n, (a, b) in enumerate(pairs)]
    batches = CaptionBatches(CaptionPool(groups), BatchConfig(size=PAIRS), seed=0)
    stage = ContrastStage(model, tune, batches, scale=20.0)
    rng = np.random.default_rng(0)
    steps = batches.per_epoch
    tokens = sum(model.reader.count_tokens([text for pair in pairs[: steps * PAIRS] for text in pair]))

    def step(number: int) -> None:
        stage.optimizer.zero_grad()
        stage.step(number, rng)
        torch.nn.utils.clip_grad_norm_(model.module.parameters(), 1.0)
        stage.optimizer.step()

    step(0)
    began = clock()
    for number in range(steps):
        step(number)
    return tokens / (clock() - began)


def _theirs(folder: Path, pairs: list[tuple[str, str]], settings: Settings) -> float:
    from datasets import Dataset
    from sentence_transformers import (
        SentenceTransformer,
        SentenceTransformerTrainer,
        SentenceTransformerTrainingArguments,
    )
    from sentence_transformers.sentence_transformer.losses import MultipleNegativesRankingLoss

    model = SentenceTransformer(str(folder), device="cpu")
    count = len(pairs) // PAIRS * PAIRS
    tokens = sum(len(model.tokenizer(text)["input_ids"]) for pair in pairs[:count] for text in pair)
    columns = {"anchor": [a for a, _ in pairs[:count]], "positive": [b for _, b in pairs[:count]]}

    def run(data: Dataset) -> float:
        arguments = SentenceTransformerTrainingArguments(
            output_dir=str(settings.work / "theirs"),
            per_device_train_batch_size=PAIRS,
            num_train_epochs=1,
            learning_rate=1e-4,
            save_strategy="no",
            logging_strategy="no",
            report_to=[],
            disable_tqdm=True,
            use_cpu=True,
        )
        trainer = SentenceTransformerTrainer(
            model=model, args=arguments, train_dataset=data, loss=MultipleNegativesRankingLoss(model)
        )
        began = settings.clock()
        trainer.train()
        return settings.clock() - began

    whole = Dataset.from_dict(columns)
    run(whole.select(range(PAIRS)))
    return tokens / run(whole)


def captions(count: int) -> list[tuple[str, str]]:
    """Pairs of made-up captions of 6 to 40 words."""
    draw = random.Random(0)

    def caption() -> str:
        return " ".join(draw.choices(WORDS, k=int(min(40, 6 + draw.expovariate(1 / 8)))))

    return [(caption(), caption()) for _ in range(count)]


def write_model(folder: Path, shape: dict[str, object]) -> Path:
    """A random text model in transformers' layout that reads the words above."""
    from safetensors.torch import save_file

    from llm2clip.encoders.text.language_config import language_config
    from llm2clip.encoders.text.packed import build_language

    folder.mkdir(parents=True)
    vocabulary = {
        word: n for n, word in enumerate(dict.fromkeys(("[PAD]", "[CLS]", "[SEP]", "[UNK]", *WORDS)))
    }
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.add_special_tokens(["[PAD]", "[CLS]", "[SEP]"])
    tokenizer.post_processor = processors.TemplateProcessing(
        "[CLS] $A [SEP]", "[CLS] $A [SEP] $B [SEP]", [("[CLS]", 1), ("[SEP]", 2)]
    )
    tokenizer.save(str(folder / "tokenizer.json"))
    names = {"pad_token": "[PAD]", "cls_token": "[CLS]", "sep_token": "[SEP]", "unk_token": "[UNK]"}
    kind = {"tokenizer_class": "PreTrainedTokenizerFast", "model_max_length": 128}
    (folder / "tokenizer_config.json").write_text(json.dumps(names | kind))
    (folder / "config.json").write_text(json.dumps(shape))
    torch.manual_seed(0)
    save_file(build_language(language_config(shape)).state_dict(), folder / "model.safetensors")
    return folder
