"""Cuts between shots, found in decoded pictures as they come.

The measure is that of PySceneDetect's ``ContentDetector`` with ``luma_only`` (Brandon Castellano,
scenedetect.com, ``detectors/content_detector.py``): the mean absolute difference of luma, in grey
levels of 0 to 255, between a picture and the one before it; from a threshold on, it is a cut. The
library itself needs OpenCV, whose own FFmpeg and threads have no place in a decoder child.

Pictures are first brought to ``SIDE`` x ``SIDE`` grey levels by averaging areas: that takes noise
and small motion out, and costs the same whatever the picture's size and pixel format. Fades have
no cut in them; a flash is two.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from av.video.frame import VideoFrame
from av.video.reformatter import Interpolation, VideoReformatter

SIDE = 64
"""Pixels of the small picture's sides."""


def luma_change(before: npt.NDArray[np.uint8], after: npt.NDArray[np.uint8]) -> float:
    """Mean absolute difference of two pictures uint8 ``[H, W]``, in grey levels, 0 to 255.

    >>> luma_change(np.zeros((2, 2), np.uint8), np.array([[0, 0], [10, 30]], np.uint8))
    10.0
    """
    return float(np.abs(after.astype(np.int16) - before).mean())


class CutDetector:
    """Tells of each picture of a video, in order, whether another shot begins with it.

    Args:
        threshold: mean change of luma that is a cut, in grey levels.
    """

    def __init__(self, threshold: float) -> None:
        self._threshold = threshold
        self._scale = VideoReformatter()
        self._before: npt.NDArray[np.uint8] | None = None

    def is_cut(self, frame: VideoFrame) -> bool:
        """Take the next picture."""
        small = self._scale.reformat(
            frame, width=SIDE, height=SIDE, format="gray", interpolation=Interpolation.AREA
        )
        plane = small.planes[0]
        luma = (
            np.frombuffer(memoryview(plane), np.uint8)
            .reshape(SIDE, plane.line_size)[:, :SIDE]
            .copy()
        )
        before, self._before = self._before, luma
        return before is not None and luma_change(before, luma) >= self._threshold
