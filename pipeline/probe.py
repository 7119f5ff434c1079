"""A few videos of a data set, tokenised for real into a temporary place, and what that took.

An ordinary worker does it, with pieces of different shards in turns, until time is over.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from pipeline.attempts import Finished, Wish
from pipeline.errors import PipelineError, RunError
from pipeline.inline import OWNER, InlineWorkers
from pipeline.pieces import Piece, Sampling
from pipeline.prediction import Unit
from pipeline.receipts import Receipt
from pipeline.records import SamplingMode
from pipeline.segments import ShardTask
from pipeline.shards import Shard, ShardKind, shard_name
from pipeline.worker_spec import WorkerSpec

READ_SHARE = 0.3
"""Part of the time that may go into reading."""
SHOW_SECONDS, GRACE_SECONDS = 5.0, 30.0
"""Between two lines of progress; for what is in hand when time is over."""
WARM_UP_CLIPS = 4
"""The first clips are not timed: they load kernels and fill caches."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Probe:
    """What was measured."""

    units: tuple[Unit, ...]
    """Pieces that came to their end."""
    clips_per_second: float
    """In steady state: from the first clips encoded to the last ones."""
    encode_seconds_per_clip: float
    """Time of the encoder alone."""
    read_bytes_per_second: float
    """Of one reader, from where the data set lies."""
    counters: Mapping[str, float]
    """Of the worker, at the end."""
    elapsed_seconds: float
    """All of the probe."""


def probe(
    shards: Mapping[Shard, int],
    spec: WorkerSpec,
    *,
    folder: Path,
    open_shards: int,
    seconds: float,
    show: Callable[[str], None],
) -> Probe:
    """Tokenise for about so many seconds and measure.

    Args:
        shards: of the data set, with their sizes in bytes.
        spec: of the worker; its OUT is a temporary one.
        folder: where the pieces may lie.
        open_shards: pieces in hand at once.
        seconds: for reading and tokenising; loading the model comes on top.
        show: takes a line about how far it is.

    Raises:
        RunError: nothing could be read or encoded.
    """
    began = time.monotonic()
    sizes = {shard.name: size for shard, size in shards.items()}
    sampling = Sampling(folder, spec.read_rules, spec.input_options, sizes)
    pieces = sampling.take(tuple(shards), began + READ_SHARE * seconds)
    show(f"read {len(pieces)} pieces of {len({piece.shard.name for piece in pieces})} shards")
    spent = time.monotonic() - began
    copied = replace(spec, read_rules=replace(spec.read_rules, has_original_keys=True))
    workers = InlineWorkers(copied, open_shards=open_shards)
    try:
        run = _Run(workers, pieces, show, is_whole=spec.plan.mode is SamplingMode.whole)
        run.until(time.monotonic() + max(1.0, seconds - spent), open_shards)
        return run.result(
            read_bytes_per_second=sampling.num_bytes / spent,
            elapsed_seconds=time.monotonic() - began,
        )
    finally:
        workers.close()


class _Run:
    """Pieces on their way through a worker."""

    def __init__(
        self,
        workers: InlineWorkers,
        pieces: Sequence[Piece],
        show: Callable[[str], None],
        *,
        is_whole: bool,
    ) -> None:
        self._workers, self._show, self._is_whole = workers, show, is_whole
        self._waiting = list(reversed(pieces))
        self._running: dict[str, Piece] = {}
        self._units: list[Unit] = []
        self._warm: dict[str, float] = {}
        self._last: dict[str, float] = {}

    def until(self, deadline: float, open_shards: int) -> None:
        """Hand out pieces until none is left or time is over; those begun then end early."""
        shown = 0.0
        while (self._waiting or self._running) and (now := time.monotonic()) < deadline:
            while self._waiting and len(self._running) < open_shards:
                self._submit(self._waiting.pop())
            self._listen()
            if now - shown > SHOW_SECONDS:
                shown = now
                clips = self._last.get("encoded_clips", 0.0)
                self._show(f"tokenised {clips:.0f} clips, {deadline - now:.0f} s left")
        for attempt in self._running:
            self._workers.ask(OWNER, attempt, Wish.hand_back)
        while self._running and time.monotonic() < deadline + GRACE_SECONDS:
            self._listen()

    def _listen(self) -> None:
        for event in self._workers.events(0.2):
            if isinstance(event, Finished):
                self._take(event)
        now = dict(self._workers.reports()[OWNER].counters)
        if now["encoded_clips"] >= WARM_UP_CLIPS and not self._warm:
            self._warm = now
        if now["encoded_clips"] > self._last.get("encoded_clips", 0.0):
            self._last = now

    def _submit(self, piece: Piece) -> None:
        shard = Shard(name=shard_name(str(piece.path)), url=str(piece.path), kind=ShardKind.tar)
        task = ShardTask(shard=shard, source=None)
        self._running[task.attempt] = piece
        self._workers.submit(OWNER, task)

    def _take(self, finished: Finished) -> None:
        piece = self._running.pop(finished.task.attempt)
        if finished.error is not None:
            if isinstance(finished.error, PipelineError):
                raise finished.error
            raise RunError(f"the probe failed: {finished.error!r}") from finished.error
        self._units.append(_unit(piece, finished.receipts))

    def result(self, *, read_bytes_per_second: float, elapsed_seconds: float) -> Probe:
        """What was measured; where there are few clips, all are timed."""
        units = [unit for unit in self._units if unit.videos]
        if not self._last or not units:
            raise RunError(
                "the probe gave no clip: its videos are too short, too slow or broken, or the "
                "time was too short (--probe-seconds)"
            )
        first = self._warm if self._last["encoded_clips"] > 2 * WARM_UP_CLIPS else {}
        if first.get("encoded_clips") == self._last["encoded_clips"]:
            first = {}  # the first look came when all was done
        clips, encode, starved = (
            self._last[key] - first.get(key, 0.0)
            for key in ("encoded_clips", "encode_seconds", "starved_seconds")
        )
        if self._is_whole:  # a row is a whole video, of many pieces
            clips *= self._last["clips"] / self._last["encoded_clips"]
        return Probe(
            units=tuple(units),
            clips_per_second=clips / (encode + starved),
            encode_seconds_per_clip=encode / clips,
            read_bytes_per_second=read_bytes_per_second,
            counters=self._last,
            elapsed_seconds=elapsed_seconds,
        )


def _unit(piece: Piece, receipts: Sequence[Receipt]) -> Unit:
    """What was made of a piece; of one that ended early, the part of it that counts."""
    videos = sum(receipt.videos for receipt in receipts)
    share = videos / piece.num_videos if piece.num_videos else 1.0
    return Unit(
        group=piece.shard.name,
        covered=piece.covered * share,
        videos=videos + piece.defects * share,
        quarantined=sum(len(receipt.quarantined) for receipt in receipts) + piece.defects * share,
        clips=sum(receipt.rows for receipt in receipts),
        token_bytes=sum(receipt.part_bytes for receipt in receipts),
        decode_cpu_seconds=sum(receipt.timings["decode_cpu_seconds"] for receipt in receipts),
    )
