"""The configuration of a training: every field, its unit, its default.

Plain dataclasses that Hydra fills (``conf/train.yaml`` and its groups hold values only). They stop
at ``resolve``: nothing below sees them. Defaults are the published recipe's (arXiv 2412.13061).
"""

from __future__ import annotations

import enum
import math
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any

from omegaconf import MISSING

from pipeline.config import ClusterKind, DatasetConfig, LimitsConfig, TokenizerSection
from tokenizer.training.objective import DiscriminatorLoss, GeneratorLoss


class TrainingPrecision(enum.Enum):
    """Arithmetic of convolutions and attention; weights, losses and optimisers are fp32."""

    bf16 = "bf16"
    fp32 = "fp32"


class LpipsNet(enum.Enum):
    """Network of the perceptual loss."""

    alex = "alex"
    vgg = "vgg"


def _require(section: Any, name: str, least: Mapping[str, float]) -> None:
    """Raises ValueError where a number is below its least value or none; null passes."""
    for key, bound in least.items():
        value = getattr(section, key)
        if value is not None and not value >= bound:
            raise ValueError(f"{name}.{key} must be at least {bound}, got {value}")


@dataclass(kw_only=True, slots=True)
class TrainSection:
    """What is trained, how long, from what; ``+stage=NAME`` sets the recipe."""

    stage: str = MISSING
    """Name of the recipe, chosen by ``+stage=NAME``."""
    run: str = MISSING
    """RUN: folder of checkpoints, curve and pictures; on Ray every node must see it."""
    start: str | None = None
    """Weights to start from: a RUN, a checkpoint file, ``auto`` (the published ones); null: random
    ones from the seed."""
    steps: int = 50_000
    """Batches in all; may grow in a RUN that goes on."""
    batch: int = 16
    """Clips of one step, all workers together."""
    accumulate: int = 1
    """Parts that a worker's share of a batch is computed in, one after the other."""
    learning_rate: float = 1e-5
    """Of both Adam optimisers."""
    warmup_steps: int = 0
    """Steps in which the learning rate grows to that, in a line."""
    final_rate: float = 1.0
    """Share of the learning rate that is left at the last step, after a cosine; 1: constant."""
    adam_beta2: float = 0.999
    """Decay of Adam's mean of squares; a short training wants less."""
    encoder_fixed: bool = False
    """The encoder stays as it is."""
    precision: TrainingPrecision = TrainingPrecision.bf16
    """Arithmetic of convolutions and attention."""
    clip_norm: float = 20.0
    """Gradients are scaled down to this total norm."""
    ema_decay: float | None = None
    """Running mean of the weights, 0.999 in the paper's code; null: none."""
    activation_checkpointing: bool = False
    """Compute activations again in the backward pass: less memory, a third more time."""
    kl_weight: float = 1e-6
    """Continuous tokenizers: weight of the KL divergence."""
    seed: int = 0
    """Of the weights, the order of clips and their crops."""
    threads: int = 2
    """CPU threads of one worker; results depend on it in the last bits."""
    deterministic: bool = True
    """Only kernels that give the same bits each time, where torch has them (slower on GPUs)."""
    device: str = "auto"
    """auto: GPUs if there are any; cuda, cpu."""

    def __post_init__(self) -> None:
        """Check numbers."""
        least = {"steps": 1, "batch": 1, "accumulate": 1, "threads": 1, "seed": 0}
        _require(self, "train", least | {"kl_weight": 0})
        for key in ("learning_rate", "clip_norm"):
            if not 0 < getattr(self, key) < math.inf:
                raise ValueError(
                    f"train.{key} must be positive and finite, got {getattr(self, key)}"
                )
        if not 0 <= self.adam_beta2 < 1:
            raise ValueError(f"train.adam_beta2 must be in [0, 1), got {self.adam_beta2}")
        if self.ema_decay is not None and not 0 <= self.ema_decay < 1:
            raise ValueError(f"train.ema_decay must be in [0, 1) or null, got {self.ema_decay}")
        if not 0 <= self.warmup_steps <= self.steps:
            raise ValueError(
                f"train.warmup_steps must be in [0, train.steps={self.steps}], "
                f"got {self.warmup_steps}"
            )
        if not 0 <= self.final_rate <= 1:
            raise ValueError(f"train.final_rate must be in [0, 1], got {self.final_rate}")
        if self.device not in ("auto", "cuda", "cpu"):
            raise ValueError(f"train.device must be auto, cuda or cpu, got {self.device}")


@dataclass(kw_only=True, slots=True)
class ClipSection:
    """Which clips are cut out of videos."""

    fps: list[float] = field(default_factory=lambda: [3.0])
    """Reduced frame rates; each clip draws one of them."""
    clip_frames: int | None = None
    """T, frames in a clip; null: the tokenizer's own (17, 16 non-causal)."""
    resolution: int | None = None
    """Pixels of a clip's sides; null: the tokenizer's."""
    clips_per_video: int = 1
    """Clips that are cut out of a video each time that it is read."""
    random_crop: bool = True
    """Cut out anywhere, else at the centre."""
    mirror: bool = True
    """Half of the clips are mirrored, left to right."""
    max_zoom: float = 1.0
    """Up to this many times larger than the clip the short side is scaled; each clip draws."""
    window_bytes: int = 256 << 20
    """Encoded videos that are shuffled together; a worker holds two such windows."""
    decoders: int = 2
    """Decoder children of one worker."""
    prefetch_bytes: int = 256 << 20
    """What one worker has decoded ahead."""

    def __post_init__(self) -> None:
        """Check numbers."""
        if not self.fps or any(not 0 < rate <= 1000 for rate in self.fps):
            raise ValueError(f"sampling.fps must be a list of rates in (0, 1000], got {self.fps}")
        names = (
            "clip_frames resolution clips_per_video window_bytes decoders prefetch_bytes".split()
        )
        _require(self, "sampling", dict.fromkeys(names, 1))


@dataclass(kw_only=True, slots=True)
class LpipsSection:
    """The perceptual loss."""

    net: LpipsNet = LpipsNet.alex
    """alex is shipped; the published models were trained with vgg, which comes by path."""
    weights: str | None = None
    """.safetensors of the network; null: the shipped ones."""
    weight: float = 1.0
    """Of the distance, which counts for every value of its frame; 0: none."""

    def __post_init__(self) -> None:
        """Check numbers."""
        _require(self, "lpips", {"weight": 0})


@dataclass(kw_only=True, slots=True)
class LossSection:
    """Adversarial terms, and those of the quantiser's codes."""

    adversarial_weight: float = 0.2
    """Of the adversarial term, after its gradient was brought to the size of the others'."""
    adversarial_start: int = 10_000
    """Steps without a discriminator at first."""
    lecam_weight: float = 0.005
    """Of the LeCAM penalty in the discriminator's loss."""
    dims: int = 2
    """2: the discriminator sees frames, 3: videos."""
    discriminator: DiscriminatorLoss = DiscriminatorLoss.hinge
    """Loss of the discriminator."""
    generator: GeneratorLoss = GeneratorLoss.non_saturating
    """Its counterpart in the autoencoder's loss."""
    judge_from_start: bool = True
    """Batch norm and LeCAM's means see steps before adversarial_start, as published; false saves
    that time."""
    initial_log_variance: float = 0.0
    """Where the learned log-variance starts."""
    entropy_weight: float = 0.1
    """FSQ: weight of the entropy term after annealing."""
    annealing_steps: int = 2000
    """FSQ: steps in which its weight falls to that; 0: none."""
    annealing_factor: float = 3.0
    """FSQ: how many times as large it is at first."""
    commitment_weight: float = 0.25
    """FSQ: weight of the distance to the chosen code."""
    diversity_gamma: float = 1.0
    """FSQ: weight of the codebook's entropy against that of a token."""

    def __post_init__(self) -> None:
        """Check numbers."""
        if self.dims not in (2, 3):
            raise ValueError(f"loss.dims must be 2 (frames) or 3 (videos), got {self.dims}")
        names = [item.name for item in fields(self)]
        names = [name for name in names if name.endswith(("weight", "steps", "start"))]
        _require(self, "loss", dict.fromkeys(names, 0))


@dataclass(kw_only=True, slots=True)
class SaveSection:
    """Checkpoints."""

    every_steps: int = 1000
    """Steps between two..."""
    every_minutes: float = 15.0
    """...or minutes, whichever comes first."""
    keep: int = 3
    """How many are kept, the latest."""
    fp16: bool = False
    """Write ``weights_fp16.safetensors`` too (encoder and decoder; half the size)."""

    def __post_init__(self) -> None:
        """Check numbers."""
        _require(self, "save", {"every_steps": 1, "keep": 1})
        if not self.every_minutes > 0:
            raise ValueError(f"save.every_minutes must be positive, got {self.every_minutes}")


@dataclass(kw_only=True, slots=True)
class ShowSection:
    """What is written for people."""

    pictures_every_steps: int = 1000
    """Steps between two pictures of source over reconstruction; 0: none."""
    picture_frames: int = 5
    """Frames in a picture, evenly taken from one clip."""
    tensorboard: bool = True
    """Scalars for TensorBoard in RUN/tensorboard (needs the extra ``train``)."""

    def __post_init__(self) -> None:
        """Check numbers."""
        _require(self, "show", {"pictures_every_steps": 0, "picture_frames": 1})


@dataclass(kw_only=True, slots=True)
class TrainClusterSection:
    """Where the workers run."""

    kind: ClusterKind | None = None
    """inline: this process; local: Ray started here; ray: a running cluster; null: local where
    there are GPUs or several workers, else inline."""
    address: str | None = None
    """ray: HOST:PORT of the head, or auto."""
    workers: int | None = None
    """Processes that share a batch; null: one per GPU, or one."""
    cpus_per_worker: float = 1.0
    """Cores that Ray counts for a worker."""
    max_failures: int = 10
    """Times that workers may die and start again at the last checkpoint; -1: any number."""

    def __post_init__(self) -> None:
        """Check numbers."""
        _require(self, "cluster", {"workers": 1, "cpus_per_worker": 0, "max_failures": -1})


@dataclass(kw_only=True, slots=True)
class TrainConfig:
    """``python -m jobs.train_tokenizer``."""

    dataset: DatasetConfig
    tokenizer: TokenizerSection
    train: TrainSection = field(default_factory=TrainSection)
    sampling: ClipSection = field(default_factory=ClipSection)
    lpips: LpipsSection = field(default_factory=LpipsSection)
    loss: LossSection = field(default_factory=LossSection)
    save: SaveSection = field(default_factory=SaveSection)
    show: ShowSection = field(default_factory=ShowSection)
    limits: LimitsConfig = field(default_factory=LimitsConfig)
    cluster: TrainClusterSection = field(default_factory=TrainClusterSection)
    dry_run: bool = False
    """Say what would be done, change nothing."""
