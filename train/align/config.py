"""Configuration of stage 2."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal, TypeAlias

from llm2clip.train.core.optimizer import OptimizerName
from llm2clip.train.core.param_groups import GroupConfig
from llm2clip.train.core.stage import LoopConfig
from llm2clip.train.data.caption_rows import Columns
from llm2clip.train.data.crops import CropConfig
from llm2clip.train.data.pair_batches import CaptionMix

Trained: TypeAlias = Literal["frozen", "last", "lora", "full"]
Head: TypeAlias = Literal["linear", "adapter", "none"]


@dataclass(frozen=True, kw_only=True)
class PairData:
    """Images with captions."""

    images: tuple[str, ...]
    """Corpora: folders, tars, Parquet files, lists, as ``llm2clip-index build`` takes them."""
    captions: tuple[str, ...] = ()
    """Files of captions; empty: those beside the images."""
    columns: Columns = field(default_factory=Columns)
    """Where the captions are in them."""
    limit: int | None = None
    """Take only the first images."""


@dataclass(frozen=True, kw_only=True)
class VisionConfig:
    """The vision tower and what follows it."""

    tower: str
    """Name, folder or file of a tower that ``encoders`` holds: OpenAI CLIP, EVA02, SigLIP2, EfficientNet-Lite; or one
    of an encoder folder, such as ``nano``."""
    image_size: int | None = None
    """Side of the input in pixels, where the architecture leaves it open (EfficientNet-Lite)."""
    trained: Trained = "frozen"
    """``frozen``: its features are computed once and only the head learns; ``last``: what the lower blocks give is
    computed once and the last blocks learn (EfficientNet-Lite); ``lora``: low-rank updates; ``full``."""
    last: int = 10
    """Blocks that ``last`` trains."""
    head: Head = "linear"
    """``linear``: a projection, as published; ``adapter``: residual blocks before it; ``none``: the tower's own vector
    (SigLIP2)."""
    blocks: int = 2
    """Residual blocks of an ``adapter``."""
    expansion: int = 2
    """Inner width of a block in multiples of the outer one."""
    views: int = 1
    """Frozen and last: versions of each image that are computed: as searched, mirrored, then random crops."""
    lora_rank: int = 16
    """Rank of the updates."""
    lora_alpha: float = 32.0
    """Their scale, divided by the rank."""
    patch_dropout: float = 0.0
    """Share of the patches left out of each training image (Li et al. 2023); OpenAI and SigLIP2 towers."""
    checkpointing: bool = False
    """Recompute activations in the backward pass: slower, far less memory."""
    compiled: bool = False
    """Compile the tower with ``torch.compile``."""

    def __post_init__(self) -> None:
        if not 0 <= self.patch_dropout < 1:
            raise ValueError(f"patch_dropout must be in [0, 1), got {self.patch_dropout}")
        if min(self.views, self.last, self.expansion, self.lora_rank) < 1 or self.blocks < 0:
            raise ValueError("views, last, expansion and lora_rank must be at least 1, blocks at least 0")

    @property
    def stored(self) -> bool:
        """Whether what frozen blocks give is computed once and kept."""
        return self.trained in ("frozen", "last")


@dataclass(frozen=True, kw_only=True)
class TextConfig:
    """The frozen text model and the adapter behind it."""

    model: str
    """Name or folder of an encoder or text model, as ``load_encoder`` takes it."""
    dtype: str = "auto"
    """Precision of the text model."""
    features: str | None = None
    """Folder of ``llm2clip-train features``, whose captions hold all texts; ``None``: computed here, once."""
    feature_captions: tuple[str, ...] = ()
    """The files that folder was made from."""
    cached: bool = True
    """Compute features once; ``False``: in every step, for sets larger than the disk."""
    blocks: int = 4
    """Residual blocks of the adapter."""
    expansion: int = 2
    """Inner width of a block in multiples of the outer one."""
    normalize_input: bool = True
    """Scale the features to unit length first."""
    dropout: float = 0.0
    """Share of the adapters' inputs set to zero while training."""


@dataclass(frozen=True, kw_only=True)
class AlignLoss:
    """What is minimised."""

    kind: Literal["clip", "sigmoid"] = "clip"
    """Softmax over the batch (CLIP, LLM2CLIP) or a decision per pair (SigLIP)."""
    scale: float = 1 / 0.07
    """First factor on the cosines; it is learnt. SigLIP begins at 10."""
    bias: float = -10.0
    """First bias of the sigmoid loss; it is learnt."""
    most_scale: float = 100.0
    """The factor is held below this."""
    label_smoothing: float = 0.0
    """Probability spread over the whole batch; softmax only."""

    def __post_init__(self) -> None:
        if not 0 < self.scale <= self.most_scale:
            raise ValueError(f"scale must be in (0, {self.most_scale}], got {self.scale}")


@dataclass(frozen=True, kw_only=True)
class ClosedForm:
    """A start from regularised canonical correlation analysis."""

    used: bool = False
    """Fit the last layers of both heads in closed form before the first step."""
    image_ridge: float = 0.3
    """Added to the image covariance, in multiples of its mean variance."""
    text_ridge: float = 0.3
    """Added to the text covariance likewise."""
    power: float = 1.0
    """Weight of a pair of directions: its correlation to this power, shared by the two sides."""


@dataclass(frozen=True, kw_only=True)
class AlignConfig:
    """A run of stage 2."""

    train: PairData
    """Images and captions to learn from."""
    validation: PairData | None = None
    """Images and captions to measure on; ``None``: some of the others are kept back."""
    kept_back: int = 500
    """How many, at most a tenth."""
    vision: VisionConfig
    """The vision tower."""
    text: TextConfig
    """The text model."""
    dim: int = 512
    """Length of the vectors of both sides; a head of kind ``none`` has that of the tower."""
    loss: AlignLoss = field(default_factory=AlignLoss)
    """What is minimised."""
    closed_form: ClosedForm = field(default_factory=ClosedForm)
    """Start in closed form."""
    mix: CaptionMix = field(default_factory=CaptionMix)
    """Languages and kinds of captions."""
    crop: CropConfig = field(default_factory=CropConfig)
    """Augmentation of images."""
    groups: GroupConfig = field(default_factory=GroupConfig)
    """Learning rates and weight decay."""
    optimizer: OptimizerName = "adamw"
    """``adamw``, or ``muon`` for matrices beside it."""
    batch: int = 512
    """Pairs of a step, over all processes."""
    micro_batch: int = 256
    """Images that go through a trained tower at a time; the loss is that of the whole batch all the same."""
    precision: Literal["float32", "bfloat16"] = "float32"
    """Of the arithmetic; weights stay float32."""
    loop: LoopConfig
    """Steps, schedule, evaluation."""
    seed: int = 0
    """Of everything random."""

    def __post_init__(self) -> None:
        if self.batch < 2 or self.micro_batch < 1:
            raise ValueError(
                f"batch must be at least 2 and micro_batch 1, got {self.batch}, {self.micro_batch}"
            )
        if self.text.features and not self.text.feature_captions:
            raise ValueError("text.features needs text.feature_captions: the files that folder was made from")
        if self.vision.trained == "frozen" and self.vision.head == "none" and self.closed_form.used:
            raise ValueError("closed_form needs a head on the image side: vision.head linear or adapter")
