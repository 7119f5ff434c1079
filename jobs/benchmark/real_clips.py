"""Clips of the videos that come with the project, as the pipeline cuts them."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from pipeline.decode import decode_plan
from pipeline.demo import demo_videos
from pipeline.records import Clip, ClipPlan, TailPolicy, VideoLimits

WHOLE_VIDEOS = ("bunny", "city", "cockatoo", "cup")
"""Two filmed ones, two that are not; each gives a clip."""


def real_clips(num: int, *, frames: int, height: int, width: int) -> npt.NDArray[np.uint8]:
    """uint8 ``[num, T, H, W, 3]`` at 8 fps, over and over where there are fewer."""
    plan = ClipPlan(
        fps=(8.0,),
        clip_frames=frames,
        stride_frames=frames,
        max_clips_per_video=1,
        tail=TailPolicy.pad,
        buckets=((height, width),),
    )
    found = []
    for video in demo_videos():
        if video.stem in WHOLE_VIDEOS[:num]:
            clips = decode_plan(video.read_bytes(), plan, VideoLimits())
            found += [clip.frames for clip in clips if isinstance(clip, Clip)]
    return np.stack([found[index % len(found)] for index in range(num)])
