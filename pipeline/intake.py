"""What comes into a worker: one reader thread per open shard, bounded in bytes over all of them."""

from __future__ import annotations

import contextlib
import threading
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
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


class ShardReading(threading.Thread):
    """The reader thread of one open shard, and what it has read so far, in order."""

    def __init__(
        self,
        task: ShardTask,
        *,
        source: Source,
        rules: ReadRules,
        buffers: RangeBuffers,
        options: Mapping[str, Any],
        selection: Selection,
        wants: Callable[[Sample], bool],
        end_offset: int | None,
        open_attempt: OpenAttempt,
        submit: Callable[[OpenVideo], None],
        count: Callable[[int], None],
    ) -> None:
        """Not started yet.

        Args:
            task: the shard, and where to begin.
            source: size and version that the shard must have.
            rules: what counts as a sample.
            buffers: memory for reading ahead, of all open shards of the worker.
            options: fsspec options.
            selection: gives samples their spans and columns.
            wants: whether a video is to be decoded; others are passed over.
            end_offset: reading ends where a sample begins behind this; None: at the shard's end.
            open_attempt: what the driver asks of it, and how far it is.
            submit: hands a video to the decoders; may block.
            count: called with -1 when it supplies no more videos, with 1 when it does again.
        """
        super().__init__(name=f"read {task.shard.name}", daemon=True)
        self.task = task
        self._source, self._rules, self._buffers = source, rules, buffers
        self._options = options
        self._selection = selection
        self._wants, self._end_offset = wants, end_offset
        self.open_attempt = open_attempt
        self._submit, self._count = submit, count
        self.videos: deque[OpenVideo] = deque()
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
                if self._wants(item):
                    self._take(self._selection.of(item))

    def _take(self, sample: Sample) -> None:
        self._wait_for_room()
        video = OpenVideo(
            sample=replace(sample, video=b""),
            shard=self.task.shard.name,
            original=sample.video,
            failure=sample.defect,
        )
        self.videos.append(video)
        if sample.defect is None and sample.skipped is None:
            self._submit(video)

    def _wait_for_room(self) -> None:
        """A million bad samples behind one slow video must not fill the memory."""
        if len(self.videos) < MAX_VIDEOS_AHEAD:
            return
        self._count(-1)  # the first one's clips may sit in a batch that waits for more
        while len(self.videos) > MAX_VIDEOS_AHEAD // 2 and not self.abandoned.is_set():
            self.abandoned.wait(0.05)
        self._count(1)
