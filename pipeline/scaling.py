"""Decoded pictures to the RGB pixels of clips: scaled, cropped, turned, in the right colours."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from fractions import Fraction
from typing import Any

import numpy as np
import numpy.typing as npt
from av.video.frame import VideoFrame
from av.video.reformatter import ColorRange, Interpolation, VideoReformatter

from pipeline.limits import check_pixels
from pipeline.records import ClipPlan, Variant, VideoLimits
from pipeline.transforms import (
    Geometry,
    Orientation,
    clip_geometry,
    drawn_offset,
    nearest_bucket,
    scaler_matrix,
)

RgbFrame = npt.NDArray[np.uint8]
"""uint8 ``[H, W, 3]``."""

# Bilinear widens its triangle when it shrinks a picture, as the reference's antialiasing does: on
# natural video at 128 and 256 rows the two differ by 0.2 to 0.6 of 255 on average (PSNR 48 to
# 60 dB; area gives 34 to 58, bicubic 32 to 54). The other flags cost nothing measurable: exact
# rounding, the same on every CPU, and chroma interpolated to full width instead of repeated.
_SCALING = (
    Interpolation.BILINEAR
    | Interpolation.ACCURATE_RND
    | Interpolation.BITEXACT
    | Interpolation.FULL_CHR_H_INT
)


class RgbScaler:
    """Decoded pictures to RGB clip pixels; sizes may change from one frame to the next."""

    def __init__(
        self,
        plan: ClipPlan,
        pixel_aspect: Fraction | None,
        limits: VideoLimits,
        *,
        orientation: Orientation | None = None,
    ) -> None:
        """Args: sizes of clips; shape of coded pixels; bounds; a turn that replaces the tags'."""
        self._orientation = orientation
        self._plan, self._pixel_aspect, self._limits = plan, pixel_aspect, limits
        self._reformatter = VideoReformatter()
        self._geometries: dict[tuple[int, int, Orientation], Geometry] = {}
        self._bucket: tuple[int, int] | None = None
        self._orientations: dict[int, Orientation] = {}

    def orientation(self, frame: VideoFrame) -> Orientation:
        """How the frame is turned, read once for each rotation.

        To read it ties a frame into a reference cycle, so that its pixels would stay in memory
        until the garbage collector comes: at 1080p that made 500 MB of a video of ten seconds.
        """
        if self._orientation is not None:
            return self._orientation
        if frame.rotation not in self._orientations:
            self._orientations[frame.rotation] = orientation(frame)
        return self._orientations[frame.rotation]

    def bucket(self, frame: VideoFrame) -> tuple[int, int]:
        """Clip (H, W) of the video, by the shape of its first frame."""
        if self._bucket is None:
            shown = clip_geometry(
                frame.width,
                frame.height,
                pixel_aspect=self._pixel_aspect,
                orientation=self.orientation(frame),
                clip_width=1,
                clip_height=1,
            )
            self._bucket = nearest_bucket(shown.shown_width, shown.shown_height, self._plan.buckets)
        return self._bucket

    def geometry(self, frame: VideoFrame) -> Geometry:
        """How this frame is scaled and cropped.

        Raises:
            VideoError: ``too_many_pixels`` for pictures so narrow that the scaled one is huge.
        """
        key = (frame.width, frame.height, self.orientation(frame))
        if key not in self._geometries:
            clip_height, clip_width = self.bucket(frame)
            geometry = clip_geometry(
                frame.width,
                frame.height,
                pixel_aspect=self._pixel_aspect,
                orientation=key[2],
                clip_width=clip_width,
                clip_height=clip_height,
                variant=self._plan.variant,
            )
            check_pixels(geometry.scaled_width, geometry.scaled_height, self._limits)
            self._geometries = {key: geometry}  # the last size only: a file may hold thousands
        return self._geometries[key]

    def rgb(
        self, frame: VideoFrame, *, across: float | None = None, down: float | None = None
    ) -> RgbFrame:
        """The frame as uint8 ``[H, W, 3]`` of the clip, contiguous and owned by the caller.

        Args:
            frame: a decoded picture.
            across: where the crop lies between left and right, in [0, 1); None: where the plan's
                variant has it, by default in the centre.
            down: where it lies between top and bottom, likewise.
        """
        return self.cut(frame, self.scaled(frame), across=across, down=down)

    def scaled(self, frame: VideoFrame) -> RgbFrame:
        """The whole picture as it is shown, just covering the clip: the same for every variant."""
        geometry = self.geometry(frame)
        matrix, color_range = self._source_colours(frame)
        scaled = self._reformatter.reformat(
            frame,
            geometry.scaled_width,
            geometry.scaled_height,
            "rgb24",
            src_colorspace=matrix,
            src_color_range=color_range,
            dst_color_range=ColorRange.JPEG,
            interpolation=_SCALING,
            threads=1,
        )
        plane = scaled.planes[0]
        rows = np.frombuffer(memoryview(plane), np.uint8).reshape(-1, plane.line_size)[
            : scaled.height
        ]
        picture = rows[:, : scaled.width * 3].reshape(scaled.height, scaled.width, 3)
        return self.orientation(frame).apply(picture)

    def cut(
        self,
        frame: VideoFrame,
        picture: RgbFrame,
        *,
        across: float | None = None,
        down: float | None = None,
    ) -> RgbFrame:
        """What the clip shows of a `scaled` picture; arguments and result as of `rgb`."""
        geometry = self.geometry(frame)
        clip_height, clip_width = self.bucket(frame)
        top = drawn_offset(picture.shape[0], clip_height, down, centre=geometry.top)
        left = drawn_offset(picture.shape[1], clip_width, across, centre=geometry.left)
        kept = picture[top : top + clip_height, left : left + clip_width]
        return np.ascontiguousarray(kept[:, ::-1] if geometry.is_flipped else kept)

    @staticmethod
    def _source_colours(frame: VideoFrame) -> tuple[int | None, int | None]:
        """Matrix and range of a YUV frame by its tags; both None where there is no matrix."""
        if frame.format.is_rgb or frame.format.has_palette or len(frame.format.components) < 3:
            return None, None
        color_range = frame.color_range or ColorRange.MPEG
        return scaler_matrix(frame.colorspace, frame.height), int(color_range)


class SharedScaler:
    """An `RgbScaler` whose last picture is there for the next who asks for it.

    Args:
        scaler: makes it; nobody changes what it made.
        pictures: of the same size before the crop, scaled once for all variants.
    """

    def __init__(self, scaler: RgbScaler, pictures: _LastPicture) -> None:
        self.geometry = scaler.geometry
        self._scaler, self._pictures, self._cut = scaler, pictures, _LastPicture()

    def rgb(self, frame: VideoFrame) -> RgbFrame:
        """As `RgbScaler.rgb`, with the plan's crop; not to be written to.

        Raises:
            VideoError: ``too_many_pixels``.
        """
        return self._cut.of(frame, self._make)

    def _make(self, frame: VideoFrame) -> RgbFrame:
        return self._scaler.cut(frame, self._pictures.of(frame, self._scaler.scaled))

    def forget(self) -> None:
        """Nobody asks for the last picture again: let its memory go."""
        self._cut.forget()
        self._pictures.forget()


class _LastPicture:
    """What was made of the last frame."""

    def __init__(self) -> None:
        self._last: tuple[VideoFrame, RgbFrame] | None = None

    def of(self, frame: VideoFrame, make: Callable[[VideoFrame], RgbFrame]) -> RgbFrame:
        if self._last is None or self._last[0] is not frame:
            self._last = None
            self._last = frame, make(frame)
        return self._last[1]

    def forget(self) -> None:
        self._last = None


class SharedScalers:
    """One scaler for all plans whose clips look the same, one scaling for all of one size.

    Args:
        pixel_aspect: shape of coded pixels.
        limits: bounds.
        orientation: a turn that replaces the tags'.
    """

    def __init__(
        self,
        pixel_aspect: Fraction | None,
        limits: VideoLimits,
        *,
        orientation: Orientation | None = None,
    ) -> None:
        self._pixel_aspect, self._limits, self._orientation = pixel_aspect, limits, orientation
        self._by_look: dict[tuple[Hashable, Variant], SharedScaler] = {}
        self._by_size: dict[Hashable, _LastPicture] = {}

    def of(self, plan: ClipPlan) -> SharedScaler:
        """The scaler for this plan."""
        look = plan.buckets, plan.variant
        if look not in self._by_look:
            pictures = self._by_size.setdefault(plan.buckets, _LastPicture())
            scaler = RgbScaler(
                plan, self._pixel_aspect, self._limits, orientation=self._orientation
            )
            self._by_look[look] = SharedScaler(scaler, pictures)
        return self._by_look[look]

    def forget(self) -> None:
        """The frame at hand is done with."""
        for scaler in self._by_look.values():
            scaler.forget()


def orientation(frame: VideoFrame) -> Orientation:
    """How the container says that this frame is turned; the decoder leaves it as coded."""
    try:
        matrix: Any = frame.side_data.get("DISPLAYMATRIX")  # a buffer that the stubs do not know
    except ValueError:  # EXIF beside a frame, which PyAV has no name for, hides all the rest
        return Orientation.from_degrees(frame.rotation)
    if matrix is None:
        return Orientation()
    return Orientation.from_matrix(np.frombuffer(matrix, np.int32).tolist())
