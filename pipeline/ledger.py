"""The ledger: what is committed in an OUT, small enough to be held whole and counted at once.

It is opened from the newest manifest and the receipts after it, grows by the receipts that a run
brings in, and publishes manifests without reading anything again. Receipts lie in Arrow columns;
of each shard there is one small `ShardState`.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import pyarrow as pa
import pyarrow.compute as pc

from pipeline.errors import RunError
from pipeline.manifest import (
    Line,
    line_of,
    lines_of,
    newest_manifest,
    publish,
    read_manifest,
    table_of,
)
from pipeline.reader import Source
from pipeline.receipts import (
    NEVER_RETRIED,
    Receipt,
    ReceiptName,
    list_receipts,
    read_receipt,
    read_receipts,
    receipt_name,
)
from pipeline.records import Retry
from pipeline.segments import ShardTask
from pipeline.shards import Shard
from pipeline.storage import Storage

logger = logging.getLogger(__name__)

_FOLD_LINES = 4096
"""New lines are turned into columns when there are so many."""


@dataclass(slots=True)
class ShardState:
    """What is committed of one shard: its chain, added up."""

    num_segments: int = 0
    """Length of the chain; the number of the next segment."""
    num_cuts: int = 0
    """Times that the source was found cut; generation of the segments behind the last cut."""
    end_offset: int = 0
    """Where the next attempt starts."""
    is_final: bool = False
    """Whether the chain's last segment is the shard's last."""
    cut_reason: str | None = None
    """Where and how the source is cut, when the last segment ends there."""
    source: Source | None = None
    """What the source was when the last segment was made."""
    key_digests: bytes = b""
    """Eight bytes for every key that is committed; empty when the shard is complete."""
    videos: int = 0
    clips: int = 0
    single_frames: int = 0
    """Of the clips, those of one latent frame: images (and videos as short as that)."""
    part_bytes: int = 0
    filtered: dict[str, int] = field(default_factory=dict)
    """Reason -> videos (per target rate)."""
    quarantined: dict[int, dict[str, int]] = field(default_factory=dict)
    """Segment -> reason -> videos that are still quarantined; segments without any are left out."""
    generations: dict[int, int] = field(default_factory=dict)
    """Segment -> its latest generation, where that is not 0."""

    @property
    def is_complete(self) -> bool:
        """Whether the shard is final and its source was whole."""
        return self.is_final and self.cut_reason is None

    @property
    def num_retriable(self) -> int:
        """Videos that are still quarantined and that another attempt may save."""
        return sum(
            number
            for reasons in self.quarantined.values()
            for reason, number in reasons.items()
            if reason not in NEVER_RETRIED
        )

    def holds(self, segment: int, generation: int) -> bool:
        """Whether this receipt is counted already."""
        return segment < self.num_segments and generation <= self.generations.get(segment, 0)

    def extend(self, line: Line, key_digests: bytes) -> None:
        """Take the chain's next receipt.

        Raises:
            RunError: it leaves a gap, overlaps, or is behind the final one.
        """
        if line.segment < self.num_segments:
            expected = self.generations.get(line.segment, 0) + 1
            if line.generation != expected:
                raise _broken(line, f"generation {line.generation}, expected {expected}")
        else:
            self._check_next(line)
            self.num_segments, self.end_offset = line.segment + 1, line.end_offset
            self.is_final, self.cut_reason = line.final, None
            if not line.complete:
                self.cut_reason, self.num_cuts = line.cut_reason or "cut", self.num_cuts + 1
            self.source = Source(size_bytes=line.source_bytes, version=line.source_version)
            self.key_digests = b"" if self.is_complete else self.key_digests + key_digests
            self.videos += line.videos
        self._count(line)

    def _check_next(self, line: Line) -> None:
        if self.is_complete:
            raise RunError(f"receipts of {line.shard} go on behind the final one: {_name(line)}")
        if line.segment != self.num_segments or line.start_offset != self.end_offset:
            raise _broken(
                line,
                f"segment {line.segment} starts at {line.start_offset:,}, expected segment "
                f"{self.num_segments} at {self.end_offset:,}",
            )
        if line.generation != self.num_cuts:
            raise _broken(line, f"generation {line.generation}, expected {self.num_cuts}")
        if not (line.complete or line.final):
            raise _broken(line, "it is cut and not the last one")

    def _count(self, line: Line) -> None:
        self.clips, self.part_bytes = self.clips + line.rows, self.part_bytes + line.part_bytes
        self.single_frames += sum(n for shape, n in line.shapes.items() if is_single_frame(shape))
        for reason, number in line.filtered.items():
            self.filtered[reason] = self.filtered.get(reason, 0) + number
        if line.generation:
            self.generations[line.segment] = line.generation
        self.quarantined.pop(line.segment, None)
        if line.quarantined:
            self.quarantined[line.segment] = line.quarantined


def is_single_frame(shape: str) -> bool:
    """Whether tokens of this shape, ``[c,]t,h,w``, are of one latent frame.

    >>> is_single_frame("1,32,32"), is_single_frame("4,1,32,32"), is_single_frame("5,32,32")
    (True, True, False)
    """
    return shape.split(",")[-3] == "1"


def _broken(line: Line, reason: str) -> RunError:
    return RunError(f"receipts of {line.shard} do not form a chain at {_name(line)}: {reason}")


def _name(line: Line) -> str:
    return receipt_name(line.shard, line.segment, line.generation)


@dataclass(slots=True)
class Counts:
    """Sums over shards."""

    segments: int = 0
    """Receipts."""
    begun_shards: int = 0
    """Shards with a receipt that are not final."""
    final_shards: int = 0
    videos: int = 0
    clips: int = 0
    single_frames: int = 0
    """Of the clips, those of one latent frame."""
    part_bytes: int = 0
    filtered: Counter[str] = field(default_factory=Counter)
    quarantined: Counter[str] = field(default_factory=Counter)
    """Reason -> videos that are still quarantined."""
    cut: dict[str, str] = field(default_factory=dict)
    """Shard -> where and how its source is cut."""
    numeric_environments: int = 0
    """Different ones in all of OUT."""


class Ledger:
    """All receipts of an OUT. Used by one thread."""

    def __init__(self) -> None:
        self._states: dict[str, ShardState] = {}
        self._tables: list[pa.Table] = []
        self._fresh: list[Line] = []
        self._environments: set[str] = set()
        self._published: str | None = None
        self._num_published = 0

    def __len__(self) -> int:
        """Receipts."""
        return len(self._fresh) + sum(len(table) for table in self._tables)

    @classmethod
    def open(cls, storage: Storage, *, use_manifest: bool = True) -> Ledger:
        """What is committed now: the newest manifest, and the receipt files that it does not hold.

        Args:
            storage: OUT.
            use_manifest: False: every receipt file is read.

        Raises:
            RunError: a receipt that cannot be trusted, or a broken chain.
        """
        names = list_receipts(storage)
        digest = newest_manifest(storage) if use_manifest else None
        # one that was removed on purpose (changed_inputs=redo) is gone, whatever a manifest says
        try:
            ledger = cls.of_manifest(storage, digest, set(names)) if digest else cls()
        except RunError as untrusted:  # it is a shortcut only: the receipts say it all
            logger.warning("%s; every receipt is read instead", untrusted)
            ledger = cls()
        missing = [name for name in names if not ledger.holds(name)]
        ledger.add(read_receipts(storage, missing))
        return ledger

    @classmethod
    def of_manifest(
        cls, storage: Storage, digest: str, among: set[ReceiptName] | None = None
    ) -> Ledger:
        """What a manifest holds, of ``among`` these receipts.

        Raises:
            RunError: it cannot be trusted.
        """
        ledger = cls()
        table, key_digests = read_manifest(storage, digest)
        keep: list[bool] = []
        try:
            for line in lines_of(table, with_groups=False):
                name = ReceiptName(line.shard, line.segment, line.generation)
                keep.append(among is None or name in among)
                if keep[-1]:
                    ledger._extend(line, b"")
        except ValueError as error:
            raise RunError(f"manifest {digest} of {storage} cannot be trusted: {error}") from error
        for shard, digests in key_digests.items():
            if shard in ledger._states and not ledger._states[shard].is_complete:
                ledger._states[shard].key_digests = digests
        whole = all(keep)
        ledger._tables = [table if whole else table.filter(pa.array(keep, pa.bool_()))]
        if whole:
            ledger._published, ledger._num_published = digest, table.num_rows
        return ledger

    def add(self, receipts: Iterable[Receipt]) -> None:
        """Take receipts in the order of their chains; those that are there already change nothing.

        Raises:
            RunError: one that does not fit into its shard's chain.
        """
        for receipt in receipts:
            if self.state(receipt.shard).holds(receipt.segment, receipt.generation):
                continue
            line = line_of(receipt)
            self._extend(line, bytes.fromhex(receipt.key_digests))
            self._fresh.append(line)
            if len(self._fresh) >= _FOLD_LINES:
                self._fold()

    def _extend(self, line: Line, key_digests: bytes) -> None:
        state = self._states.get(line.shard) or self._states.setdefault(line.shard, ShardState())
        state.extend(line, key_digests)
        self._environments.add(line.numerics)

    def _fold(self) -> None:
        if self._fresh:
            self._tables.append(table_of(self._fresh))
            self._fresh = []

    def holds(self, name: ReceiptName) -> bool:
        """Whether a receipt is counted already."""
        return self.state(name.shard).holds(name.segment, name.generation)

    def state(self, shard: str) -> ShardState:
        """What is committed of a shard; read-only."""
        return self._states.get(shard) or ShardState()

    @property
    def states(self) -> Mapping[str, ShardState]:
        """Of all shards that have a receipt."""
        return self._states

    @property
    def num_unpublished(self) -> int:
        """Receipts that came since the last manifest."""
        return len(self) - self._num_published

    @property
    def is_worth_publishing(self) -> bool:
        """Whether a tenth more came since the last manifest.

        So all manifests together stay at about ten times the size of the last one.
        """
        return self.num_unpublished * 10 > self._num_published

    def lines(self, *, with_groups: bool = True, shards: Sequence[str] = ()) -> Iterator[Line]:
        """All receipts, or those of some shards; those of one shard in the order of its chain.

        Args:
            with_groups: False: without their ``row_groups``, which take most of the time.
            shards: only of these; empty: of all.
        """
        self._fold()
        for table in self._tables:
            if shards:
                table = table.filter(pc.is_in(table.column("shard"), pa.array(shards)))
            yield from lines_of(table, with_groups=with_groups)

    def publish(self, storage: Storage) -> str | None:
        """Write a manifest of what is here; None when there is nothing.

        Returns:
            Its digest, which is that of the last one when nothing came since.
        """
        if self.num_unpublished or self._published is None:
            if not len(self):
                return None
            self._fold()
            self._tables = [pa.concat_tables(self._tables).unify_dictionaries().combine_chunks()]
            keys = {n: s.key_digests for n, s in self._states.items() if s.key_digests}
            self._published = publish(storage, self._tables[0], keys)
            self._num_published = len(self)
        return self._published

    def counts(self, shards: Iterable[str] | None = None) -> Counts:
        """Sums over these shards, or all."""
        counts = Counts(numeric_environments=len(self._environments))
        for name in self._states if shards is None else shards:
            state = self._states.get(name)
            if state is None:
                continue
            counts.segments += state.num_segments
            counts.final_shards += state.is_final
            counts.begun_shards += not state.is_final
            counts.videos += state.videos
            counts.clips += state.clips
            counts.single_frames += state.single_frames
            counts.part_bytes += state.part_bytes
            counts.filtered.update(state.filtered)
            for reasons in state.quarantined.values():
                counts.quarantined.update(reasons)
            if state.cut_reason is not None:
                counts.cut[name] = state.cut_reason
        return counts


def read_chain(storage: Storage, shard: str) -> list[Receipt]:
    """The receipts of one shard now, without a listing and without later generations.

    Raises:
        RunError: the chain cannot be trusted.
    """
    receipts: list[Receipt] = []
    state = ShardState()
    while not state.is_complete:
        name = receipt_name(shard, state.num_segments, state.num_cuts)
        try:
            receipt = read_receipt(storage, name)
        except FileNotFoundError:
            break
        state.extend(line_of(receipt), b"")
        receipts.append(receipt)
    return receipts


def task_of(
    shard: Shard, state: ShardState, retry: Retry | None = None, *, size_bytes: int = 0
) -> ShardTask | None:
    """The attempt that continues a shard from its last receipt; None when nothing is left.

    Args:
        shard: which.
        state: what is committed of it.
        retry: what of that is tried again.
        size_bytes: of the source (members of a bucket); 0: not known.
    """
    behind_cut = retry is Retry.incomplete and state.is_final and not state.is_complete
    amends = retry is Retry.quarantined and state.num_retriable > 0
    goes_on = behind_cut or not state.is_final
    if not (goes_on or amends):
        return None
    return ShardTask(
        shard=shard,
        source=None if behind_cut else state.source,
        start_offset=state.end_offset,
        next_segment=state.num_segments,
        generation=state.num_cuts,
        seen=state.key_digests,
        retry=retry if amends or behind_cut else None,
        goes_on=goes_on,
        remaining=size_bytes if amends else max(0, size_bytes - state.end_offset),
    )
