"""Settings of stage 1. Every field can be overridden by name: ``--set cc.lora.rank=8``."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from llm2clip.train.core.optimizer import OptimizerName
from llm2clip.train.core.stage import LoopConfig
from llm2clip.train.data.caption_batches import BatchConfig
from llm2clip.train.data.caption_rows import Columns


@dataclass(frozen=True, kw_only=True)
class LoraSettings:
    """Size of the low-rank updates."""

    rank: int = 16
    """Rank of each update."""
    alpha: int = 32
    """The update is scaled by alpha / rank."""
    dropout: float = 0.05
    """Share of inputs of the update that are dropped while training."""
    targets: tuple[str, ...] = ()
    """Last names of the linear layers that get one, such as ``q_proj``; empty: all of every block."""

    def __post_init__(self) -> None:
        if self.rank < 1 or not 0 <= self.dropout < 1 or self.alpha <= 0:
            raise ValueError(
                f"rank must be at least 1, alpha positive and dropout in [0, 1), got {self.rank}, {self.alpha} and "
                f"{self.dropout}"
            )


@dataclass(frozen=True, kw_only=True)
class TuneSettings:
    """What of the text model is trained, and how fast."""

    parts: Literal["lora", "last", "all"] = "lora"
    """Low-rank updates, the last blocks, or everything."""
    last_layers: int = 2
    """Number of blocks trained with ``last``."""
    lora: LoraSettings = field(default_factory=LoraSettings)
    """Size of the updates with ``lora``."""
    optimizer: OptimizerName = "adamw"
    """``adamw``, or ``muon`` for matrices."""
    lr: float = 2e-4
    """Peak learning rate."""
    weight_decay: float = 0.0
    """Of matrices; vectors and embeddings have none."""
    micro_batch: int = 64
    """Texts computed at a time; gradients do not depend on it (gradient caching)."""
    precision: Literal["float32", "bfloat16"] = "float32"
    """What is computed in; with bfloat16 trained weights stay float32."""
    checkpointing: bool = False
    """Recompute each block in the backward pass instead of keeping its intermediate results."""
    sharded: bool = False
    """Spread weights, gradients and optimiser over the processes (FSDP2), for models that one device cannot train."""

    def __post_init__(self) -> None:
        if self.micro_batch < 1 or self.last_layers < 1 or self.lr <= 0:
            raise ValueError(
                f"micro_batch and last_layers must be at least 1 and lr positive, got {self.micro_batch}, "
                f"{self.last_layers} and {self.lr}"
            )


@dataclass(frozen=True, kw_only=True)
class MntpSettings:
    """Masked next-token prediction before the contrast, as LLM2Vec does to get used to attention both ways."""

    share: float = 0.2
    """Share of tokens that are to be predicted: 80 % of them masked, 10 % replaced, 10 % left."""
    mask: str = "_"
    """Token that stands for a masked one."""
    texts: int = 32
    """Captions of a batch."""
    lr: float = 5e-5
    """Peak learning rate."""
    loop: LoopConfig = field(default_factory=lambda: LoopConfig(steps=1000, decay="linear"))
    """Length and schedule."""


@dataclass(frozen=True, kw_only=True)
class DistilSettings:
    """Learning the sentence space of a teacher from translated texts, before the contrast."""

    vectors: str
    """.npy file of teacher vectors, shape (rows, dim)."""
    data: tuple[str, ...]
    """Files of captions; all texts of a row of them mean what one row of ``vectors`` stands for."""
    row: str = "row"
    """Field of ``data`` with the number of that row, from 0."""
    loss: Literal["cosine", "mse"] = "cosine"
    """1 - cosine, or squared distance of unit vectors."""
    texts: int = 256
    """Texts of a batch."""
    lr: float = 2e-4
    """Peak learning rate."""
    loop: LoopConfig = field(default_factory=lambda: LoopConfig(steps=1000, warmup=100))
    """Length and schedule."""


@dataclass(frozen=True, kw_only=True)
class EvaluationSettings:
    """Captions that are held back to measure with."""

    data: tuple[str, ...] = ()
    """Files of captions; empty: ``holdout`` groups of the training data, which are then not trained on."""
    holdout: int = 500
    """Most groups held back, and at most a tenth."""
    most: int = 1000
    """Most groups measured per language."""


@dataclass(frozen=True, kw_only=True)
class CcConfig:
    """Caption-contrastive fine-tuning of a text model."""

    model: str
    """Name or folder of the language model or text encoder."""
    data: tuple[str, ...]
    """Files, folders or patterns of captions."""
    columns: Columns = field(default_factory=Columns)
    """Which fields of the data hold captions, where their names do not say."""
    languages: tuple[str, ...] = ()
    """Languages that are used; empty: all."""
    kinds: tuple[str, ...] = ()
    """Kinds of captions that are used, such as ``short``; empty: all."""
    seed: int = 0
    """Decides order, pairs and initial values."""
    epochs: float | None = None
    """Passes over the data; takes the place of ``loop.steps``."""
    scale: float = 50.0
    """Factor on the cosines of the loss (1 / temperature)."""
    instruction: str = ""
    """Put in front of query captions while training; attended to, not pooled."""
    batch: BatchConfig = field(default_factory=BatchConfig)
    """Size of a batch and pairs in it."""
    tune: TuneSettings = field(default_factory=TuneSettings)
    """What is trained."""
    loop: LoopConfig = field(
        default_factory=lambda: LoopConfig(steps=1000, warmup=300, decay="linear", keep_best="cra")
    )
    """Length and schedule; ``keep_best`` is a measure of the evaluation: ``cra``, ``cra_en``, ..."""
    mntp: MntpSettings | None = None
    """Masked next-token prediction first; for decoder language models."""
    distil: DistilSettings | None = None
    """Learning a teacher's space first."""
    evaluation: EvaluationSettings = field(default_factory=EvaluationSettings)
    """What is measured while training."""
    store: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """Precision of the written weights; ``auto``: that of the model it began with."""

    def __post_init__(self) -> None:
        if not self.data:
            raise ValueError("data must name at least one file of captions")
        if self.scale <= 0:
            raise ValueError(f"scale must be positive, got {self.scale}")
        if self.epochs is not None and self.epochs <= 0:
            raise ValueError(f"epochs must be positive, got {self.epochs}")
