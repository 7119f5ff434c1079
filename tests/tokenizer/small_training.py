"""A model that trains in a moment, and moving patterns to train it on."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from tokenizer.config import Precision, QuantizerConfig, QuantizerKind, TokenizerConfig
from tokenizer.metrics.lpips import LPIPS
from tokenizer.model import build
from tokenizer.training.loop import Training
from tokenizer.training.objective import ObjectiveConfig
from tokenizer.training.stages import StageConfig

_SMALL: dict[str, Any] = {
    "name": "small",
    "ch": 8,
    "num_res_blocks": 1,
    "default_checkpoint": "random",
}
FSQ_SMALL = TokenizerConfig(
    **_SMALL, quantizer=QuantizerConfig(kind=QuantizerKind.fsq, levels=[8, 5, 5, 5])
)
KL_SMALL = TokenizerConfig(
    **_SMALL, z_channels=4, quantizer=QuantizerConfig(kind=QuantizerKind.kl, levels=[])
)


def stage(**changes: Any) -> StageConfig:
    """In fp32; ``adversarial_start`` belongs to the objective."""
    objective = ObjectiveConfig(adversarial_start=changes.pop("adversarial_start", 100))
    return StageConfig(
        **{"precision": Precision.fp32, "learning_rate": 1e-4, "objective": objective} | changes
    )


def training_of(config: TokenizerConfig, stage_config: StageConfig, seed: int = 0) -> Training:
    """From random weights of that seed."""
    torch.manual_seed(seed)
    return Training(build(config), stage_config, LPIPS())


def clips(seed: int, *, num_clips: int = 2, num_frames: int = 5, size: int = 32) -> Tensor:
    """Waves that move, other ones for each clip and seed: uint8 ``[B, T, H, W, 3]``."""
    generator = torch.Generator().manual_seed(seed)
    speed = torch.rand(num_clips, 1, 1, 1, 3, generator=generator)
    t, y, x = (torch.arange(n).float() for n in (num_frames, size, size))
    phase = t.view(1, -1, 1, 1, 1) * speed + 0.3 * y.view(1, 1, -1, 1, 1) * speed
    wave = torch.sin(phase + 0.2 * x.view(1, 1, 1, -1, 1) * (1 + speed))
    return (127.5 * (1 + wave)).to(torch.uint8)


def equal(a: Any, b: Any) -> bool:
    """Same structure, and tensors with the same bits."""
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(equal(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(equal(x, y) for x, y in zip(a, b, strict=True))
    if isinstance(a, Tensor):
        return a.dtype == b.dtype and torch.equal(a, b)
    return bool(a == b)
