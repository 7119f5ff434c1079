"""What every worker of a training is told: small records that cross to other processes."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.reader import ReadRules
from pipeline.records import VideoLimits
from pipeline.shards import Shard
from pipeline.training.recipe import ClipRecipe
from tokenizer import TokenizerConfig
from tokenizer.training.stages import StageConfig


@dataclass(frozen=True, slots=True, kw_only=True)
class FeedRules:
    """Where clips come from."""

    shards: tuple[Shard, ...]
    """Tars or buckets of a folder."""
    recipe: ClipRecipe
    """What makes the clips and their order."""
    options: dict[str, Any]
    """fsspec options for reading."""
    read_rules: ReadRules
    """What the reader takes for a sample."""
    limits: VideoLimits
    """Bounds for one video."""
    max_bad_fraction: float
    """More bad videos than this end the training..."""
    min_videos: int
    """...from so many on."""
    decoders: int
    """Decoder children of one worker."""
    prefetch_bytes: int
    """Decoded ahead in one worker."""


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
    feed: FeedRules
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
