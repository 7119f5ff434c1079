"""Training reads tokens back here: batches over committed segments only.

>>> from pipeline.dataset import TokenDataset            # doctest: +SKIP
>>> for batch in TokenDataset("outputs/demo/demo", batch_size=4):
...     batch["tokens"]                                  # int32 [4, 5, 16, 16]
"""

from __future__ import annotations

import functools
import random
from collections.abc import Iterator
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from pipeline.errors import RunError
from pipeline.ledger import Ledger
from pipeline.parts import Part, blobs, open_part, read_row_group
from pipeline.storage import Storage

SHUFFLE_GROUPS = 16
"""Row groups held at once when shuffling; rows are mixed among them."""
MAX_OPEN_PARTS = 64
"""Files held open at once when shuffling; a data set has more parts than a process may open."""

Batch = dict[str, Any]


class TokenDataset(torch.utils.data.IterableDataset[Batch]):
    """Batches of tokens, in the order of shards and clips, or shuffled.

    A batch is a dict: ``tokens`` (int32 ``[B, t, h, w]``; continuous tokenizers float32
    ``[B, c, t, h, w]``, the mean, beside ``log_variance``), numbers as tensors ``[B]``
    (``clip_index``, ``fps``, ``start_seconds``, ``end_seconds``, ``source_width``,
    ``source_height``, ``source_fps``), the rest as lists of length B (``clip_id``, ``shard``,
    ``key``, ``frame_seconds``, ``bucket``, ``caption``, ``metadata``). All clips of a batch have
    one token shape; the last batch of a shape may be short.
    """

    def __init__(
        self,
        root: str,
        *,
        batch_size: int,
        shuffle: bool = False,
        seed: int = 0,
        manifest: str | None = None,
        storage_options: dict[str, Any] | None = None,
    ) -> None:
        """Read the receipts of OUT; no part is opened yet.

        Args:
            root: OUT, a local path or URL.
            batch_size: B.
            shuffle: row groups are permuted, then rows among ``SHUFFLE_GROUPS`` neighbours.
            seed: of the shuffling; the same seed and receipts give the same order.
            manifest: digest of a manifest to pin; None: everything that is committed now.
            storage_options: fsspec options.

        Raises:
            ValueError: a batch size below 1.
            RunError: nothing is committed there, or a receipt cannot be trusted.
        """
        super().__init__()
        if batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, got {batch_size}")
        self._storage = Storage(root, storage_options)
        self._batch_size, self._shuffle, self._seed = batch_size, shuffle, seed
        ledger = (
            Ledger.of_manifest(self._storage, manifest) if manifest else Ledger.open(self._storage)
        )
        if not len(ledger):
            raise RunError(f"{self._storage}: no receipts there, so nothing is committed")
        self._lines = [line for line in ledger.lines() if line.part is not None]
        self._lines.sort(key=lambda line: (line.shard, line.segment, line.generation))

    @property
    def num_clips(self) -> int:
        """Clips in all committed segments."""
        return sum(line.rows for line in self._lines)

    def __iter__(self) -> Iterator[Batch]:
        """Batches of one pass.

        Raises:
            RunError: a part is missing or damaged; the message names it.
        """
        worker = torch.utils.data.get_worker_info()
        if worker is not None and worker.num_workers > 1:
            raise RunError("TokenDataset reads in one process: use DataLoader(num_workers=0 or 1)")
        waiting: dict[tuple[int, ...], list[dict[str, Any]]] = {}
        for row in self._rows():
            rows = waiting.setdefault(row["tokens"].shape, [])
            rows.append(row)
            if len(rows) == self._batch_size:
                yield _collate(rows)
                rows.clear()
        for rows in waiting.values():
            if rows:
                yield _collate(rows)

    def _rows(self) -> Iterator[dict[str, Any]]:
        """Single clips, in the order of the pass."""
        if not self._shuffle:
            for line in self._lines:
                part = open_part(self._storage, line)
                for group in range(part.file.num_row_groups):
                    yield from _unpacked(part, read_row_group(part, group))
            return
        dice = random.Random(self._seed)

        @functools.lru_cache(maxsize=MAX_OPEN_PARTS)
        def part_of(index: int) -> Part:
            return open_part(self._storage, self._lines[index])

        groups = [
            (index, group)
            for index in range(len(self._lines))
            for group in range(part_of(index).file.num_row_groups)
        ]
        dice.shuffle(groups)
        for at in range(0, len(groups), SHUFFLE_GROUPS):
            window = [
                row
                for index, group in groups[at : at + SHUFFLE_GROUPS]
                for row in _unpacked(part_of(index), read_row_group(part_of(index), group))
            ]
            dice.shuffle(window)
            yield from window


def _unpacked(part: Part, table: pa.Table) -> Iterator[dict[str, Any]]:
    rows = table.drop_columns(["tokens"]).to_pylist()
    for row, blob in zip(rows, blobs(table.column("tokens")), strict=True):
        shape = row.pop("token_shape")
        tokens = part.token_format.unpack(part.token_format.expand(blob, shape)[None], shape)[0]
        if part.token_format.is_discrete:
            row["tokens"] = tokens
        else:
            row["tokens"], row["log_variance"] = np.split(tokens, 2)
        yield row


def _collate(rows: list[dict[str, Any]]) -> Batch:
    batch: Batch = {}
    for name, first in rows[0].items():
        values = [row[name] for row in rows]
        if isinstance(first, np.ndarray):
            batch[name] = torch.from_numpy(np.stack(values))
        elif isinstance(first, (int, float)):
            kind = torch.float64 if isinstance(first, float) else torch.int64
            batch[name] = torch.tensor(values, dtype=kind)
        else:
            batch[name] = values
    return batch
