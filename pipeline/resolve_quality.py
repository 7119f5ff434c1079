"""From a checked ``RunConfig`` to what workers are told of quality, and to the fingerprint."""

from __future__ import annotations

from typing import Any

from pipeline.config import RunConfig
from pipeline.quality_gate import MAX_PSNR_DROP, MIN_RECON_PSNR, QualityRules


def quality_rules(run: RunConfig, *, is_random: bool) -> QualityRules:
    """What workers are told.

    Args:
        run: the configuration.
        is_random: of the weights; what they reconstruct is noise, and no reason to stop unless a
            bound is given.
    """
    quality = run.quality
    if not quality.columns:
        return QualityRules()

    def bound(given: float | None, default: float) -> float:
        return (0.0 if is_random else default) if given is None else given

    return QualityRules(
        sample_fraction=quality.sample_fraction,
        max_samples=quality.max_samples,
        min_recon_psnr=bound(quality.min_recon_psnr, MIN_RECON_PSNR),
        max_psnr_drop=bound(quality.max_psnr_drop, MAX_PSNR_DROP),
        window=quality.window,
    )


def quality_identity(run: RunConfig) -> dict[str, Any]:
    """The fingerprint's material: which rows have a ``recon_psnr``; bounds change no row."""
    quality = run.quality
    return {"quality": {"sample_fraction": quality.sample_fraction}} if quality.columns else {}
