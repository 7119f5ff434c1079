"""Videos that were quarantined, tried again: those that succeed are added by later generations.

The receipts of a segment stay as they are. A retry commits ``<shard>.<segment>.r1.json`` with the
rows of the videos that now succeed and the list of those that still do not; the next one r2, and so
on. One that would change nothing is not written. Two retries at once are told apart as any two
attempts: one receipt wins, and the loser adds only what the winner's list still holds.
"""

from __future__ import annotations

import bisect
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

from pipeline.committer import Committer, Span
from pipeline.errors import VideoError
from pipeline.ledger import read_chain
from pipeline.reader import Sample
from pipeline.receipts import NEVER_RETRIED, Receipt, read_receipt, receipt_name
from pipeline.segments import CommitRules, OpenVideo, ShardTask
from pipeline.storage import Storage


class AmendmentWriter:
    """Adds to the committed segments of one shard. Used by one thread."""

    def __init__(
        self,
        task: ShardTask,
        committer: Committer,
        storage: Storage,
        rules: CommitRules,
        on_commit: Callable[[Receipt], None] = lambda receipt: None,
    ) -> None:
        """Read what is committed of the shard.

        Raises:
            RunError: receipts that cannot be trusted.
        """
        self._committer, self._storage, self._on_commit = committer, storage, on_commit
        self._rules = rules
        chain = read_chain(storage, task.shard.name)
        self.receipts: list[Receipt] = list(chain)
        self._latest = [self._latest_of(receipt) for receipt in chain]
        self._tried: list[OpenVideo] = []
        self._num_clips = 0
        self._failures: dict[str, VideoError] = {}
        """Of the segment at work, by key."""
        self._wanted = [_keys(receipt) for receipt in self._latest]
        wanted = [receipt for receipt in self._latest if _keys(receipt)]
        before = wanted[0].segment if wanted else len(chain)
        self.task = replace(
            task,
            start_offset=wanted[0].start_offset if wanted else 0,
            seen=b"".join(bytes.fromhex(receipt.key_digests) for receipt in chain[:before]),
        )
        self.end_offset = wanted[-1].end_offset if wanted else 0
        """Where reading may stop; 0: there is nothing to try."""
        self._ends = [receipt.end_offset for receipt in chain]
        self._at = before
        self._began = time.monotonic()

    def _latest_of(self, receipt: Receipt) -> Receipt:
        """The last generation of a segment."""
        while receipt.quarantined:
            name = receipt_name(receipt.shard, receipt.segment, receipt.generation + 1)
            try:
                receipt = read_receipt(self._storage, name)
            except FileNotFoundError:
                break
            self.receipts.append(receipt)
        return receipt

    def wants(self, sample: Sample) -> bool:
        """Whether a video is one of those that were quarantined at the beginning."""
        if sample.defect is not None and sample.defect.reason in NEVER_RETRIED:
            return False  # it only bears the key of one that may be wanted
        return sample.key in self._wanted[self._segment_of(sample)]

    @property
    def seconds_to_commit(self) -> float:
        """Until time alone makes a commit due; nothing is while none has been tried."""
        if not self._tried:
            return math.inf
        return max(0.0, self._began + self._rules.max_seconds - time.monotonic())

    def _segment_of(self, sample: Sample) -> int:
        """Chains have no gaps: the first segment that ends behind the sample."""
        return bisect.bisect_right(self._ends, sample.start_offset)

    def add(self, video: OpenVideo) -> None:
        """Take the next of the wanted videos, done; commits what is due.

        That is all of the segment before, and as much of one as a first attempt would hold, in a
        generation of its own.
        """
        segment = self._segment_of(video.sample)
        if segment != self._at:
            self._commit()
            self._at, self._failures = segment, {}
        video.original = b""  # kept since the first time
        self._tried.append(video)
        self._num_clips += video.num_clips
        if video.failure is not None:
            self._failures[video.sample.key] = video.failure
        if self._num_clips >= self._rules.max_clips or self.seconds_to_commit == 0:
            self._commit()

    def commit_due(self) -> None:
        """Commit what has been tried so far: time has passed, or the attempt ends early."""
        self._commit()

    def finish(self, end_offset: int, cut: str | None) -> None:
        """Commit the rest; where the source ends was said by earlier receipts."""
        self._commit()

    def _commit(self) -> None:
        tried, self._tried, self._num_clips = self._tried, [], 0
        while rescued := self._rescued(tried):
            latest = self._latest[self._at]
            retry = (len(tried), _still_quarantined(latest, rescued, self._failures))
            span = Span(
                segment=latest.segment,
                generation=latest.generation + 1,
                start_offset=latest.start_offset,
                end_offset=latest.end_offset,
                final=latest.final,
                cut_reason=latest.cut_reason,
            )
            holds = self._committer.commit(span, rescued, began=self._began, retry=retry)
            self.receipts.append(holds)
            self._on_commit(holds)
            self._latest[self._at] = holds
        self._began = time.monotonic()

    def _rescued(self, tried: Sequence[OpenVideo]) -> list[OpenVideo]:
        """Videos that succeeded and that nobody has added yet."""
        return [
            video
            for video in tried
            if video.failure is None and video.sample.key in _keys(self._latest[self._at])
        ]


def _keys(receipt: Receipt) -> set[str]:
    """Keys of the videos that another attempt may save."""
    return {video["key"] for video in receipt.quarantined if video["reason"] not in NEVER_RETRIED}


def _still_quarantined(
    latest: Receipt, rescued: Sequence[OpenVideo], failures: Mapping[str, VideoError]
) -> list[dict[str, str]]:
    """The list of the generation before without those that succeeded, with the newest reasons."""
    saved = {video.sample.key for video in rescued}
    still = []
    for record in latest.quarantined:
        key, failure = record["key"], failures.get(record["key"])
        if record["reason"] in NEVER_RETRIED:
            still.append(record)
        elif failure is not None:
            still.append({"key": key, "reason": failure.reason, "message": failure.message})
        elif key not in saved:
            still.append(record)
    return still
