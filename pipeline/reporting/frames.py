"""Frames of videos that are not trusted: decoded by a child process, within limits and a time."""

from __future__ import annotations

import time
from collections.abc import Collection, Mapping

import numpy as np
import numpy.typing as npt

from pipeline.decode_events import ClipDecoded, VideoDecoded, VideoFailed, VideoRetried
from pipeline.decode_pool import DecodePool
from pipeline.records import ClipPlan, VideoLimits

Clips = dict[tuple[float, int], npt.NDArray[np.uint8]]
"""Frames uint8 ``[T, H, W, 3]`` by rate and index."""


def decode_frames(
    videos: Mapping[int, bytes],
    plan: ClipPlan,
    limits: VideoLimits,
    *,
    seconds: float,
    keep_failed: bool = False,
    images: Collection[int] = (),
) -> dict[int, Clips]:
    """Clips of each video that can be decoded in time.

    Args:
        videos: encoded files by ticket.
        plan: which clips.
        limits: of each video.
        seconds: for all together.
        keep_failed: also what a video gave before its decoding failed.
        images: tickets of those that are images.
    """
    found: dict[int, Clips] = {ticket: {} for ticket in videos}
    left, until = set(videos), time.monotonic() + seconds
    with DecodePool(num_children=1, plans=(plan,), limits=limits) as pool:
        for ticket, content in videos.items():
            pool.submit(ticket, content, is_image=ticket in images)
        while left and (remaining := until - time.monotonic()) > 0:
            event = pool.next_event(remaining)
            if isinstance(event, ClipDecoded):
                clip = event.clip
                found[event.ticket][clip.fps, clip.clip_index] = clip.frames.copy()
                event.release()
            elif isinstance(event, VideoRetried):
                found[event.ticket] = {}
            elif isinstance(event, VideoDecoded):
                left.discard(event.ticket)
            elif isinstance(event, VideoFailed):
                left.discard(event.ticket)
                if not keep_failed:
                    found[event.ticket] = {}
    return {ticket: clips for ticket, clips in found.items() if clips}
