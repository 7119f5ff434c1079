"""The section ``quality`` of a run: values of every clip, and a look at some reconstructions."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(kw_only=True, slots=True)
class QualityConfig:
    """Columns about every clip, and what stops a run that makes bad tokens."""

    columns: bool = True
    """Rows have luma_mean, frame_difference, black_fraction, token_entropy and recon_psnr; false:
    for going on with an OUT that was begun before there were any."""
    sample_fraction: float = 0.002
    """Of the clips, chosen by the hash of their names, whose tokens are decoded again; 0: none, and
    no decoder is loaded."""
    max_samples: int = 256
    """Pictures of them in OUT/samples/ at most, each of 2 MB at most; 0: none."""
    min_recon_psnr: float | None = None
    """dB: the run stops when the median of the last reconstructions is below; 0: never. null: 15,
    and never with checkpoint=random."""
    max_psnr_drop: float | None = None
    """dB: or when it is so far below the worker's own earlier median; 0: never. null: 10, and never
    with checkpoint=random."""
    window: int = 16
    """Reconstructions that a median is taken of."""

    def __post_init__(self) -> None:
        """Check numbers."""
        if not 0 <= self.sample_fraction <= 1:
            raise ValueError(
                f"quality.sample_fraction must be between 0 and 1, got {self.sample_fraction}"
            )
        if not 0 <= self.max_samples <= 10_000:
            raise ValueError(f"quality.max_samples must be in 0..10000, got {self.max_samples}")
        if self.window < 1:
            raise ValueError(f"quality.window must be at least 1, got {self.window}")
        for name in ("min_recon_psnr", "max_psnr_drop"):
            value = getattr(self, name)
            if value is not None and not 0 <= value <= 80:
                raise ValueError(f"quality.{name} must be in 0..80 dB or null, got {value}")
        if not self.columns and self.sample_fraction not in (0, 0.002):
            raise ValueError("quality.sample_fraction needs quality.columns=true")
