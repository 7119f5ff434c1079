"""Videos to drawn clips in decoder children, ahead of whoever wants them, in the order of input.

Nothing here depends on time: results come in the order in which videos were given, whichever child
was first. What is on its way (encoded videos, clips that wait) is bounded in bytes by the caller,
who asks ``in_flight_bytes`` before it gives one more.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from types import TracebackType

import numpy as np
import numpy.typing as npt

from pipeline.decode_events import ClipDecoded, VideoDecoded, VideoFailed, VideoRetried
from pipeline.decode_pool import DecodePool
from pipeline.records import VideoLimits
from pipeline.training.draws import Draw, with_draws
from pipeline.training.recipe import ClipRecipe
from pipeline.training.windows import Video

Frames = npt.NDArray[np.uint8]
"""uint8 ``[T, H, W, 3]``."""

_POLL_SECONDS = 0.5


@dataclass(slots=True)
class Decoded:
    """What became of one video."""

    clip_id: str
    """Which."""
    num_bytes: int
    """What it counts for while it is in flight."""
    clips: list[Frames] = field(default_factory=list)
    """In the order of the draws; empty if it failed."""
    reason: str | None = None
    """Why it gave none."""
    words: str = ""
    """The same for a person."""
    is_done: bool = False


class DrawnClips:
    """Decoder children that are given draws; to be closed, or used as a context manager."""

    def __init__(
        self, recipe: ClipRecipe, limits: VideoLimits, *, num_children: int, ring_bytes: int
    ) -> None:
        self._recipe = recipe
        self._pool = DecodePool(
            num_children=num_children,
            plans=(recipe.plan(),),
            limits=limits,
            ring_bytes=ring_bytes,
            child_module="pipeline.training.clip_child",
        )
        self._waiting: deque[int] = deque()
        self._videos: dict[int, Decoded] = {}
        self._next_ticket = 0
        self.in_flight_bytes = 0
        """Encoded videos given and clips expected, until they are taken."""

    def __enter__(self) -> DrawnClips:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._pool.close()

    def give(self, video: Video, drawn: Sequence[Draw]) -> None:
        """One more video; with a defect it is not decoded, but keeps its place."""
        ticket = self._next_ticket
        self._next_ticket += 1
        self._waiting.append(ticket)
        if video.defect is not None:
            self._videos[ticket] = Decoded(
                video.clip_id, 0, reason=video.defect.reason, words=str(video.defect), is_done=True
            )
            return
        job = with_draws(drawn, video.data)
        size = len(job) + len(drawn) * self._recipe.clip_bytes
        self._videos[ticket] = Decoded(video.clip_id, size)
        self.in_flight_bytes += size
        self._pool.submit(ticket, job)

    def take(self) -> Decoded:
        """What became of the video given first, when it is known.

        Raises:
            RunError: no decoder child can be started.
        """
        ticket = self._waiting.popleft()
        while not self._videos[ticket].is_done:
            self._listen()
        decoded = self._videos.pop(ticket)
        self.in_flight_bytes -= decoded.num_bytes
        return decoded

    def _listen(self) -> None:
        event = self._pool.next_event(_POLL_SECONDS)
        if event is None:
            return
        video = self._videos[event.ticket]
        match event:
            case ClipDecoded():
                video.clips.append(event.clip.frames.copy())
                event.release()
            case VideoRetried():
                video.clips.clear()
            case VideoDecoded():
                video.is_done = True
            case VideoFailed():
                video.clips.clear()
                video.reason, video.is_done = event.reason, True
                video.words = f"{event.reason}: {event.message}"
