"""How a step of a training is computed; the defaults are the published recipe's."""

import math
from dataclasses import dataclass, field

from tokenizer.config import Precision
from tokenizer.training.fsq_entropy import FsqPenalty
from tokenizer.training.objective import ObjectiveConfig


@dataclass(frozen=True, slots=True, kw_only=True)
class StageConfig:
    """One stage; resolution, clips and batch belong to whoever feeds it."""

    steps: int = 50_000
    """Batches in all."""
    learning_rate: float = 1e-5
    """Of both Adam optimisers (beta1 0.9, no weight decay)."""
    warmup_steps: int = 0
    """Steps in which the learning rate grows to that, in a line."""
    final_rate: float = 1.0
    """Share of the learning rate that is left at the last step, after a cosine; 1: constant."""
    adam_beta2: float = 0.999
    """Decay of Adam's mean of squares."""
    encoder_fixed: bool = False
    """Only decoder, log-variance and discriminator learn."""
    precision: Precision = Precision.bf16
    """Of convolutions and attention; weights, norms and losses are float32."""
    accumulate: int = 1
    """Parts of a batch, computed one after the other."""
    clip_norm: float = 20.0
    """Gradients of each optimiser are scaled down to this total norm."""
    ema_decay: float | None = None
    """Of the running mean of weights; None: none is kept."""
    activation_checkpointing: bool = False
    """Activations are computed again in the backward pass."""
    kl_weight: float = 1e-6
    """Of the divergence of continuous models."""
    judge_from_start: bool = True
    """Batch norm and LeCAM's means see batches before the discriminator takes part, as published;
    False saves that time."""
    objective: ObjectiveConfig = field(default_factory=ObjectiveConfig)
    """Reconstruction and adversarial terms."""
    penalty: FsqPenalty = field(default_factory=FsqPenalty)
    """Terms of FSQ's codes."""

    def __post_init__(self) -> None:
        for name in ("steps", "accumulate"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        for name in ("learning_rate", "clip_norm"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} must be above 0, got {getattr(self, name)}")
        if not 0 <= self.warmup_steps <= self.steps:
            raise ValueError(
                f"warmup_steps must be in [0, steps = {self.steps}], got {self.warmup_steps}"
            )
        if not 0 <= self.final_rate <= 1:
            raise ValueError(f"final_rate must be in [0, 1], got {self.final_rate}")


def learning_rate(config: StageConfig, step: int) -> float:
    """Of the step that follows ``step`` others: warm-up in a line, then a cosine.

    >>> config = StageConfig(steps=12, learning_rate=1.0, warmup_steps=2, final_rate=0.0)
    >>> [round(learning_rate(config, step), 3) for step in (0, 1, 2, 7, 12)]
    [0.5, 1.0, 1.0, 0.5, 0.0]
    >>> learning_rate(StageConfig(), 49_999)
    1e-05
    """
    if step < config.warmup_steps:
        return config.learning_rate * (step + 1) / config.warmup_steps
    done = (step - config.warmup_steps) / max(1, config.steps - config.warmup_steps)
    cosine = (1 + math.cos(math.pi * min(1.0, done))) / 2
    return config.learning_rate * (config.final_rate + (1 - config.final_rate) * cosine)
