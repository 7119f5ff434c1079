"""What the driver keeps of a run's outputs: of each its OUT and its ledger, looked at as one."""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import dataclass, replace

from pipeline.heartbeat import write_heartbeat
from pipeline.ledger import Ledger, read_chain, task_of
from pipeline.receipts import Receipt, list_receipts, read_receipts
from pipeline.segments import ShardTask, joined
from pipeline.storage import Storage
from pipeline.tally import Tally


@dataclass(frozen=True, slots=True)
class Book:
    """One output."""

    storage: Storage
    """OUT."""
    ledger: Ledger
    """What is committed there."""
    fingerprint: str = ""
    """That its receipts have; where there is one output only, it is not asked for."""


class Books:
    """The outputs of a run, in the order of their numbers. Used by one thread."""

    def __init__(self, books: Iterable[Book] = ()) -> None:
        self._books = list(books)

    def add(self, receipts: Iterable[Receipt]) -> None:
        """Take receipts into the ledgers of their outputs.

        Raises:
            RunError: one that does not fit into its shard's chain.
        """
        receipts = list(receipts)
        if len(self._books) == 1:
            self._books[0].ledger.add(receipts)
            return
        for book in self._books:
            book.ledger.add(one for one in receipts if one.fingerprint == book.fingerprint)

    def read(self, shard: str) -> None:
        """Take in what is committed of a shard now, by whomever.

        Raises:
            ShardError: storage does not answer.
            RunError: receipts that cannot be trusted.
        """
        for book in self._books:
            book.ledger.add(read_chain(book.storage, shard))

    def catch_up(self) -> None:
        """Take in whatever others have committed since."""
        for book in self._books:
            new = [name for name in list_receipts(book.storage) if not book.ledger.holds(name)]
            book.ledger.add(read_receipts(book.storage, new))

    def left_of(self, task: ShardTask) -> ShardTask | None:
        """The task behind what is committed; None: nothing is left.

        Args:
            task: as it was begun; outputs that it is not for are left alone.
        """
        tasks: list[ShardTask | None] = [None] * len(self._books)
        for one in task.each():
            state = self._books[one.output].ledger.state(task.shard.name)
            left = task_of(task.shard, state, one.retry)
            if left is not None:
                covered = left.start_offset - one.start_offset
                tasks[one.output] = replace(left, remaining=max(0, one.remaining - covered))
        return joined(tasks)

    @property
    def are_worth_publishing(self) -> bool:
        """Whether a tenth more came since the last manifests."""
        return any(book.ledger.is_worth_publishing for book in self._books)

    def publish(self) -> None:
        """Write a manifest of every output."""
        for book in self._books:
            book.ledger.publish(book.storage)

    def put(self, name: str, content: bytes) -> None:
        """Write a file into every OUT."""
        for book in self._books:
            book.storage.put(name, content)

    def beat(self, driver: str, tally: Tally, *, running: bool) -> None:
        """Say in every OUT how the run stands, with the numbers that are its own."""
        record = {"running": running, "at_seconds": time.time()} | tally.record()
        for number, book in enumerate(self._books):
            own = tally.outputs[number].record() if tally.outputs else {}
            write_heartbeat(book.storage, driver, record | own)
