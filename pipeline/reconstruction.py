"""Decodes the tokens of a few clips again, and says how near the pixels come to the source.

One clip at a time, in the thread that encodes, between two batches: on a GPU the other thread's
batch goes on meanwhile. What is chosen, and when it stops the run, says ``quality_gate``.
"""

from __future__ import annotations

import logging
import threading
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from pipeline.encode import Encoder, Frames
from pipeline.errors import QualityCollapsed
from pipeline.film import spread
from pipeline.png import png
from pipeline.quality_gate import PsnrGate, QualityRules
from pipeline.samples import MAX_FRAMES, Sampled, SampleLine, strip
from pipeline.schema import clip_id
from pipeline.segments import OpenVideo

logger = logging.getLogger(__name__)

_DIGITS = 2
"""Decimals of a dB that are stored."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Look:
    """What came out of a clip's tokens."""

    recon_psnr: float | None = None
    """dB; None: not decoded."""
    sample: Sampled | None = None
    """Its picture."""


NOT_LOOKED = Look()


class Reconstructions:
    """One worker's; may be called from several threads."""

    def __init__(self, rules: QualityRules, encoder: Encoder) -> None:
        self._rules, self._gate, self._lock = rules, PsnrGate(rules), threading.Lock()
        self._decode = getattr(encoder, "decode", None)
        self._drawn: dict[int, str] = {}
        """Slot -> clip: a picture is made for the first one only, which bounds their memory."""

    def chooses(self, video: OpenVideo, fps: float, clip_index: int) -> bool:
        """Whether a clip is decoded again."""
        if not self._rules.sample_fraction or self._decode is None:
            return False
        return self._rules.chooses(clip_id(video.shard, video.sample.key, fps, clip_index))

    def look(
        self,
        video: OpenVideo,
        *,
        fps: float,
        clip_index: int,
        frames: Frames,
        tokens: npt.NDArray[Any],
    ) -> Look:
        """Decode a clip's tokens, if it is one of those that are chosen.

        Args:
            video: whose it is.
            fps: target rate.
            clip_index: position at that rate.
            frames: uint8 ``[T, H, W, 3]``, RGB; may be fewer than the tokens give.
            tokens: int32 ``[t, h, w]``, or float32 ``[2c, t, h, w]``.

        Raises:
            QualityCollapsed: this and the ones before are too bad, or it is of another size.
            RunError: the decoder gave no such frames, or memory is short.
        """
        if not self.chooses(video, fps, clip_index):
            return NOT_LOOKED
        assert self._decode is not None
        made = self._decode(tokens)
        if made is None:  # a tokenizer without a decoder
            return NOT_LOOKED
        if (shown := made[: len(frames)]).shape != frames.shape:
            raise QualityCollapsed(
                f"decode gave {list(made.shape)} for a clip of {list(frames.shape)}: correct "
                "decode, or leave it out"
            )
        made = shown
        psnr = frame_psnr(frames, made)
        name = clip_id(video.shard, video.sample.key, fps, clip_index)
        logger.info("recon_psnr of %s: %.2f dB", name, psnr)
        with self._lock:
            self._gate.note(name, psnr)
            slot = self._rules.slot(name)
            draws = slot is not None and self._drawn.setdefault(slot, name) == name
        sample = (
            _sample(slot, name, fps, psnr, frames, made) if draws and slot is not None else None
        )
        return Look(recon_psnr=psnr, sample=sample)


def _sample(slot: int, name: str, fps: float, psnr: float, source: Frames, made: Frames) -> Sampled:
    shown = spread(len(source), MAX_FRAMES)
    height, width = source.shape[1:3]
    line = SampleLine(
        clip_id=name, fps=fps, bucket=f"{height}x{width}", recon_psnr=psnr, frames=shown
    )
    return Sampled(slot=slot, line=line, png=png(strip(source, made, shown)))


def frame_psnr(source: Frames, made: Frames) -> float:
    """Mean over the frames of their PSNR in dB, as `tokenizer.metrics.distortion` has it.

    Args:
        source: uint8 ``[T, H, W, 3]``.
        made: likewise; equal frames count as 80 dB.
    """
    gaps = source.astype(np.int32) - made
    mse = np.square(gaps).mean(axis=(1, 2, 3)) / 255**2
    return round(float((-10 * np.log10(mse + 1e-8)).mean()), _DIGITS)
