"""The configuration of an evaluation: every field, its unit, its default."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from pipeline.config import ClusterConfig, DatasetConfig, Device, LimitsConfig, TokenizerSection
from tokenizer.evaluation import Mode

LPIPS_NETS = ("alex", "vgg", "none")


@dataclass(kw_only=True, slots=True)
class EvaluateSection:
    """What is judged, and how."""

    fps: float = 30.0
    """Every round(native / fps)-th frame of a video is taken."""
    mode: Mode | None = None
    """clips: of 17 frames (non-causal: 16), each by itself; whole: videos as one stream (causal
    only); null: as published, whole for v1.1 and clips for all others."""
    resolution: int | None = None
    """Rows and columns: short side resized to it, centre cropped; null: the tokenizer's own."""
    videos: Any = None
    """Only these videos, for example those held out of a training: a list of keys as the table
    shows them (of files also without folder or ending), or @FILE with one a line; null: all."""
    lpips: str = "alex"
    """alex, as shipped; vgg, as published (needs evaluate.lpips_weights); none."""
    lpips_weights: str | None = None
    """File with the weights of that network."""
    i3d: str | None = None
    """TorchScript file of I3D, which FVD needs; null: no FVD."""
    sample: bool = False
    """Continuous tokenizers: draw latents, as the published figures did, instead of the mean."""
    pictures: int = 4
    """How many of the best and of the worst clips are shown as pictures."""
    device: Device = Device.auto
    """auto: GPUs if there are any, else CPUs."""
    threads: int = 2
    """CPU threads of a worker."""

    def __post_init__(self) -> None:
        """Check what one field alone can tell."""
        if not 0 < self.fps <= 1000:
            raise ValueError(f"evaluate.fps must be in (0, 1000], got {self.fps}")
        if self.lpips not in LPIPS_NETS:
            allowed = ", ".join(LPIPS_NETS)
            raise ValueError(f"evaluate.lpips must be one of {allowed}, got {self.lpips!r}")
        if self.lpips == "vgg" and self.lpips_weights is None:
            raise ValueError(
                "evaluate.lpips=vgg needs evaluate.lpips_weights=PATH "
                "(tokenizer/metrics/weights/README.md has the layout); alex is shipped"
            )
        for name, least in (("resolution", 1), ("pictures", 0), ("threads", 1)):
            value = getattr(self, name)
            if value is not None and value < least:
                raise ValueError(f"evaluate.{name} must be at least {least}, got {value}")


@dataclass(kw_only=True, slots=True)
class PlaceSection:
    """Where the evaluation is written."""

    root: str = "evaluations/${dataset.name}/${tokenizer.name}"
    """A local path or s3://bucket/prefix."""
    storage_options: dict[str, Any] = field(default_factory=dict)
    """fsspec options for it; prefer the environment for credentials."""


@dataclass(kw_only=True, slots=True)
class EvaluationConfig:
    """``python -m jobs.evaluate_tokenizer``."""

    dataset: DatasetConfig
    tokenizer: TokenizerSection
    evaluate: EvaluateSection = field(default_factory=EvaluateSection)
    output: PlaceSection = field(default_factory=PlaceSection)
    limits: LimitsConfig = field(default_factory=LimitsConfig)
    cluster: ClusterConfig = field(default_factory=ClusterConfig)
