"""Which clips are decoded again, and when what comes out stops the run. Pure.

Wrong weights, swapped channels or a wrong colour range give tokens that look like any others; only
their reconstruction shows it. So the tokens of a few clips are decoded, and the median PSNR of the
last of them is looked at.
"""

from __future__ import annotations

import hashlib
import math
import statistics
from collections import deque
from dataclasses import dataclass

from pipeline.errors import QualityCollapsed

MIN_RECON_PSNR = 15.0
"""dB. Published tokenizers reach 25 to 36 in the median; with wrong weights, about 10."""
MAX_PSNR_DROP = 10.0
"""dB. Between videos of different kinds medians of 16 clips differ by less."""


@dataclass(frozen=True, slots=True, kw_only=True)
class QualityRules:
    """What a worker is told."""

    sample_fraction: float = 0.0
    """Of the clips, whose tokens are decoded; 0: none."""
    max_samples: int = 0
    """Pictures in ``samples/``, of all workers and runs together."""
    min_recon_psnr: float = 0.0
    """dB; 0: no bound."""
    max_psnr_drop: float = 0.0
    """dB; 0: no bound."""
    window: int = 16
    """Reconstructions that a median is of."""

    def chooses(self, clip_id: str) -> bool:
        """Whether a clip is decoded again: the same ones in every attempt, retry and run.

        >>> QualityRules(sample_fraction=1.0).chooses("a"), QualityRules().chooses("a")
        (True, False)
        """
        return _number(clip_id) < self.sample_fraction * 2**64

    def slot(self, clip_id: str) -> int | None:
        """Its place in ``samples/``, shared with other clips; None: there are no samples."""
        if not self.max_samples:
            return None
        return int.from_bytes(_digest(clip_id)[8:16], "big") % self.max_samples


def _digest(clip_id: str) -> bytes:
    return hashlib.sha256(b"quality\0" + clip_id.encode("utf-8", "surrogatepass")).digest()


def _number(clip_id: str) -> int:
    return int.from_bytes(_digest(clip_id)[:8], "big")


class PsnrGate:
    """The reconstructions of one worker, in the order in which they come. Not thread-safe."""

    def __init__(self, rules: QualityRules) -> None:
        self._rules = rules
        self._last: deque[float] = deque(maxlen=rules.window)
        self._best_median: float | None = None

    def note(self, clip_id: str, psnr: float) -> None:
        """Look at one more.

        The median is compared with the highest one before, once there are as many as a median is
        of.

        Args:
            clip_id: named in the error.
            psnr: in dB.

        Raises:
            QualityCollapsed: not a number, or the median is too low.
        """
        rules = self._rules
        if math.isnan(psnr):
            raise QualityCollapsed(f"the reconstruction of {clip_id} is not a number")
        self._last.append(psnr)
        if len(self._last) < rules.window:
            return
        median = statistics.median(self._last)
        what = f"the median recon_psnr of the last {rules.window} sampled clips is {median:.1f} dB"
        look = (
            f"last one: {clip_id}; look at samples/, check tokenizer.checkpoint and the source's "
            "colours, and do not keep what this run has committed"
        )
        if median < rules.min_recon_psnr:
            raise QualityCollapsed(
                f"{what}, below quality.min_recon_psnr={rules.min_recon_psnr:g} ({look})"
            )
        before = self._best_median
        if before is not None and rules.max_psnr_drop and before - median > rules.max_psnr_drop:
            raise QualityCollapsed(
                f"{what}, it was {before:.1f} dB: more than "
                f"quality.max_psnr_drop={rules.max_psnr_drop:g} lower ({look})"
            )
        self._best_median = median if before is None else max(before, median)
