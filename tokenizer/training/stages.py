"""How a step of a training is computed; the defaults are the published recipe's."""

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
    """Of both Adam optimisers (betas 0.9 and 0.999, no weight decay, no schedule)."""
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
    objective: ObjectiveConfig = field(default_factory=ObjectiveConfig)
    """Reconstruction and adversarial terms."""
    penalty: FsqPenalty = field(default_factory=FsqPenalty)
    """Terms of FSQ's codes."""
