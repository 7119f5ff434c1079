"""What every worker of a training is told: small records that cross to other processes."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.reader import ReadRules
from pipeline.records import VideoLimits
from pipeline.shards import Shard
from tokenizer import TokenizerConfig
from tokenizer.training.stages import StageConfig


@dataclass(frozen=True, slots=True, kw_only=True)
class ClipRules:
    """Which clips are read, and how."""

    shards: tuple[Shard, ...]
    """Tars or buckets of a folder."""
    storage_options: dict[str, Any]
    """fsspec options for them."""
    read_rules: ReadRules
    """What the reader takes for a sample."""
    limits: VideoLimits
    """Bounds for one video."""
    max_bad_fraction: float
    """More bad videos than this end the training..."""
    min_videos: int
    """...from so many on."""
    fps: tuple[float, ...]
    """Rates, drawn per clip."""
    clip_frames: int
    """T."""
    resolution: int
    """H and W."""
    clips_per_video: int
    """Cut out of one video, each time that it is read."""
    flip: bool
    """Mirror half of the clips."""
    random_crop: bool
    """Else at the centre."""
    shuffle_bytes: int
    """Held and mixed by one worker."""
    prefetch_bytes: int
    """Ready ahead in one worker."""
    seed: int
    """Of order and draws."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SaveRules:
    """When checkpoints are written."""

    every_steps: int
    """Steps between two..."""
    every_seconds: float
    """...or so much time."""
    keep: int
    """The latest ones."""
    fp16: bool
    """Half precision too."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ShowRules:
    """What is written for people."""

    pictures_every_steps: int
    """0: none."""
    picture_frames: int
    """In one picture."""
    tensorboard: bool
    """Write events."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingPlan:
    """A whole training."""

    run: Path
    """RUN, absolute."""
    steps: int
    """Batches in all."""
    batch: int
    """Clips of a step, all workers together."""
    tokenizer: TokenizerConfig
    """What is trained."""
    start: str | None
    """File or URL of the weights at first, ``auto``, or None for random ones."""
    stage: StageConfig
    """How a step is computed."""
    lpips_net: str | None
    """alex, vgg, or None for no perceptual loss."""
    lpips_weights: str | None
    """Path of its weights; None: those shipped."""
    clips: ClipRules
    """What it is trained on."""
    save: SaveRules
    """Checkpoints."""
    show: ShowRules
    """Pictures and scalars."""
    seed: int
    """Of random weights and everything drawn."""
    threads: int
    """CPU threads of a worker."""
    deterministic: bool
    """The same bits each time."""
    device: str
    """cpu or cuda."""
    workers: int
    """Processes that share a batch."""

    @property
    def worker_batch(self) -> int:
        """Clips that one worker takes in a step."""
        return self.batch // self.workers
