"""Videos as pictures for a tokenizer, and clips as pictures for people."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import torch
from av.video.frame import VideoFrame
from torch import Tensor

from pipeline.decode_pictures import Pictures, Work, scanned
from pipeline.errors import VideoError
from pipeline.film import film, spread
from pipeline.png import png
from pipeline.records import ClipPlan, TailPolicy, VideoLimits
from pipeline.scaling import RgbScaler, orientation
from pipeline.scan import Announced, open_video
from pipeline.transforms import clip_geometry
from tokenizer import ConfigError
from tokenizer.evaluation import frame_step

STRIP_FRAMES = 6
"""Frames shown of a clip."""


def shown_pictures(data: bytes, limits: VideoLimits, fps: float) -> Iterator[Tensor]:
    """Every ``frame_step``-th picture of a video in its own size, uint8 ``[H, W, 3]``.

    Args:
        data: the encoded file; not trusted.
        limits: what it may cost.
        fps: of the evaluation.

    Raises:
        VideoError: the decoder's reasons; ``too_slow`` for a video of half the rate or less.
    """
    announced = scanned(data, limits, lambda: None)
    try:
        step = frame_step(float(announced.mean_rate or fps), fps)
    except ConfigError as error:
        raise VideoError("too_slow", str(error)) from error
    work = Work(limits)
    shown = Pictures(announced, limits, work, lambda: None)
    with open_video(data, limits) as container:
        scaler: RgbScaler | None = None
        for _, frame in itertools.islice(shown.shown(container), 0, None, step):
            scaler = scaler or _own_size(frame, announced, limits)
            picture = torch.from_numpy(scaler.rgb(frame))
            # Who takes it may run a model on it, in this very process.
            with work.elsewhere():
                yield picture


def _own_size(frame: VideoFrame, announced: Announced, limits: VideoLimits) -> RgbScaler:
    """Colours and orientation only; pixels that are not square become square."""
    shown = clip_geometry(
        frame.width,
        frame.height,
        pixel_aspect=announced.pixel_aspect,
        orientation=orientation(frame),
        clip_width=1,
        clip_height=1,
    )
    plan = ClipPlan(
        fps=(1.0,),
        clip_frames=1,
        stride_frames=1,
        max_clips_per_video=None,
        tail=TailPolicy.drop,
        buckets=((shown.shown_height, shown.shown_width),),
    )
    return RgbScaler(plan, announced.pixel_aspect, limits)


def strip(source: Tensor, output: Tensor) -> bytes:
    """A PNG: some frames of the first clip in a row, below each what was made of it.

    Args:
        source: ``[1, 3, T, H, W]`` in [-1, 1].
        output: likewise; cut off, not rounded, as the published code writes videos.
    """
    at = spread(source.shape[2], STRIP_FRAMES)
    videos = (
        ((video[:, list(at)].clamp(-1, 1) + 1) / 2 * 255).to(torch.uint8).movedim(0, -1).numpy()
        for video in (source[0], output[0])
    )
    return png(film(*videos, shown=range(len(at))))
