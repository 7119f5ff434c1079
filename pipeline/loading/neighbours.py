"""Row groups that follow one another in a part and are wanted in that order: one request for all.

For orders as listed. Shuffled ones take row groups from everywhere, so that neighbours hardly ever
are due together; there a request is one row group, all its columns at once.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future

from pipeline.loading.fetch import Group
from pipeline.manifest import Line
from pipeline.parts import group_range

REQUEST_BYTES = 8 << 20
"""Of a request for several row groups, at most."""
GAP_BYTES = 256 << 10
"""Between two of them that nobody wants: cheaper to read than to ask again."""
KEEP_RUNS = 4
"""Requests whose row groups are kept until somebody wants them."""

Content = bytes | memoryview
ReadRange = Callable[[Line, int, int], Content]
"""Bytes [start, end) of a part, fewer where it is shorter."""


class Neighbours:
    """Hands out the bytes of row groups, unchecked. Threads may share it."""

    def __init__(
        self, groups: Sequence[Group], read: ReadRange, request_bytes: int = REQUEST_BYTES
    ) -> None:
        """Read nothing yet.

        Args:
            groups: in the order in which they will be wanted.
            read: asks storage.
            request_bytes: of one request for several of them.
        """
        self._groups, self._read, self._request_bytes = groups, read, request_bytes
        self._runs: dict[int, tuple[range, Future[Content]]] = {}
        self._lock = threading.Lock()

    def content(self, index: int) -> Content:
        """Bytes of the row group at a position of the list; its neighbours may come along.

        Raises:
            StorageError: storage did not answer, to this or to a neighbour's request.
        """
        with self._lock:
            run, future = self._runs.pop(index, (range(0), None))
            is_mine = future is None
            if future is None:
                run, future = self._run_from(index), Future()
                self._runs |= {other: (run, future) for other in run if other != index}
                self._forget_old()
        if is_mine:
            self._fetch(run, future)
        start, _ = self._place(run[0])
        first, last = self._place(index)
        return memoryview(future.result())[first - start : last - start]

    def _fetch(self, run: range, future: Future[Content]) -> None:
        try:
            start, end = self._place(run[0])[0], self._place(run[-1])[1]
            future.set_result(self._read(self._groups[run[0]].line, start, end))
        except BaseException as error:  # noqa: BLE001 - those who wait are told, too
            with self._lock:  # whoever comes later asks anew
                for other in run:
                    self._runs.pop(other, None)
            future.set_exception(error)

    def _run_from(self, index: int) -> range:
        """The row group and those behind it that fit into one request."""
        start, end = self._place(index)
        stop = index + 1
        while stop < len(self._groups):
            if self._groups[stop].line.part != self._groups[index].line.part:
                break
            first, last = self._place(stop)
            if not 0 <= first - end <= GAP_BYTES or last - start > self._request_bytes:
                break
            end, stop = last, stop + 1
        return range(index, stop)

    def _forget_old(self) -> None:
        """What was passed over, as a worker process does with steps of others, is not kept."""
        firsts = sorted({run[0] for run, _ in self._runs.values()})[:-KEEP_RUNS]
        for other, (run, _) in list(self._runs.items()):
            if run[0] in firsts:
                del self._runs[other]

    def _place(self, index: int) -> tuple[int, int]:
        return group_range(self._groups[index].line, self._groups[index].index)
