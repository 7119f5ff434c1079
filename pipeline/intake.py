"""What comes into a worker: one reader thread per open shard, bounded in bytes over all of them."""

from __future__ import annotations

import contextlib
import threading
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from pipeline.attempts import Wish
from pipeline.errors import WorkerLost
from pipeline.ranges import RangeBuffers
from pipeline.reader import ReadRules, Sample, ShardEnd, Source, read_shard, split_digests
from pipeline.segments import OpenVideo, ShardTask
from pipeline.selection import Selection

MAX_VIDEOS_AHEAD = 4096
"""Videos of one shard that are read while an earlier one is not done."""


class ByteBudget:
    """Bytes that may be held; one item larger than all of it passes alone."""

    def __init__(self, limit: int, max_items: int) -> None:
        self._limit, self._max_items = limit, max_items
        self._used, self._items = 0, 0
        self._changed = threading.Condition()

    def take(self, size: int, stopped: threading.Event) -> None:
        """Wait until ``size`` more bytes may be held.

        Raises:
            WorkerLost: the worker was closed meanwhile.
        """
        with self._changed:
            while self._items and (
                self._used + size > self._limit or self._items >= self._max_items
            ):
                if stopped.is_set():
                    raise WorkerLost("worker", "closed")
                self._changed.wait(0.5)
            self._used, self._items = self._used + size, self._items + 1

    def give_back(self, size: int) -> None:
        """They are held no longer."""
        with self._changed:
            self._used, self._items = self._used - size, self._items - 1
            self._changed.notify_all()


@dataclass(slots=True)
class OpenAttempt:
    """An attempt that is under way, as the driver sees it."""

    wish: Wish | None = None
    """What the driver asks of it."""
    covered: int = 0
    """Bytes (members of a bucket) that are done with, from the task's start."""


@dataclass(slots=True)
class Lane:
    """What one output gets of a shard."""

    task: ShardTask
    """Where it begins, and which output it is."""
    wants: Callable[[Sample], bool]
    """Whether a video is to be decoded for it; others are passed over."""
    videos: deque[OpenVideo] = field(default_factory=deque)
    """Read so far and not taken out yet, in order."""
    done_offset: int = 0
    """Where the last video ends that was taken out, or where the output begins."""

    def __post_init__(self) -> None:
        """It begins where its task says."""
        self.done_offset = self.task.start_offset


class ShardReading(threading.Thread):
    """The reader thread of one open shard, and what it has read so far, in order.

    It reads once for all outputs, from where the one that is least far begins.
    """

    def __init__(
        self,
        lanes: Sequence[Lane],
        *,
        source: Source,
        rules: ReadRules,
        buffers: RangeBuffers,
        options: Mapping[str, Any],
        selection: Selection,
        end_offset: int | None,
        open_attempt: OpenAttempt,
        submit: Callable[[Mapping[int, OpenVideo]], None],
        count: Callable[[int], None],
    ) -> None:
        """Not started yet.

        Args:
            lanes: of every output; all of the same shard.
            source: size and version that the shard must have.
            rules: what counts as a sample.
            buffers: memory for reading ahead, of all open shards of the worker.
            options: fsspec options.
            selection: gives samples their spans and columns.
            end_offset: reading ends where a sample begins behind this; None: at the shard's end.
            open_attempt: what the driver asks of it, and how far it is.
            submit: hands a video to the decoders, by output; may block.
            count: called with -1 when it supplies no more videos, with 1 when it does again.
        """
        self.task = min((lane.task for lane in lanes), key=lambda task: task.start_offset)
        super().__init__(name=f"read {self.task.shard.name}", daemon=True)
        self.lanes = lanes
        self._source, self._rules, self._buffers = source, rules, buffers
        self._options = options
        self._selection = selection
        self._end_offset = end_offset
        self.open_attempt = open_attempt
        self._submit, self._count = submit, count
        self.end: ShardEnd | None = None
        self.failure: BaseException | None = None
        self.abandoned = threading.Event()

    def run(self) -> None:
        """Read to the end of the shard, as fast as the worker's budget lets through."""
        try:
            self._read()
        except BaseException as error:  # noqa: BLE001 (raised again in run_shard)
            self.failure = error
        finally:
            self._count(-1)

    def _read(self) -> None:
        task = self.task
        items = read_shard(
            task.shard,
            rules=self._rules,
            options=self._options,
            start_offset=task.start_offset,
            seen=split_digests(task.seen),
            source=self._source,
            buffers=self._buffers,
            wants=self._selection.wants,
        )
        with contextlib.closing(items):
            for item in items:
                if self.abandoned.is_set():
                    return
                if isinstance(item, ShardEnd):
                    self.end = item
                    return
                if self._end_offset is not None and item.start_offset >= self._end_offset:
                    self.end = ShardEnd(offset=item.start_offset)
                    return
                wanting = [lane for lane in self.lanes if lane.wants(item)]
                if wanting:
                    self._take(self._selection.of(item), wanting)

    def _take(self, sample: Sample, wanting: Sequence[Lane]) -> None:
        self._wait_for_room()
        stripped, videos = replace(sample, video=b""), {}
        for lane in wanting:
            video = OpenVideo(
                sample=stripped,
                shard=self.task.shard.name,
                original=sample.video,
                failure=sample.defect,
            )
            lane.videos.append(video)
            videos[lane.task.output] = video
        if sample.defect is None and sample.skipped is None:
            self._submit(videos)

    @property
    def num_ahead(self) -> int:
        """Videos that are read and not taken out, of the output that has most."""
        return max(len(lane.videos) for lane in self.lanes)

    @property
    def covered(self) -> int:
        """Bytes (members of a bucket) that every output is done with, from where it began."""
        return min(lane.done_offset for lane in self.lanes) - self.task.start_offset

    def _wait_for_room(self) -> None:
        """A million bad samples behind one slow video must not fill the memory."""
        if self.num_ahead < MAX_VIDEOS_AHEAD:
            return
        self._count(-1)  # the first one's clips may sit in a batch that waits for more
        while self.num_ahead > MAX_VIDEOS_AHEAD // 2 and not self.abandoned.is_set():
            self.abandoned.wait(0.05)
        self._count(1)
