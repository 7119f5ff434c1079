"""Training reads tokens back here: batches over committed segments only.

>>> from pipeline.dataset import TokenDataset            # doctest: +SKIP
>>> for batch in TokenDataset("outputs/demo/demo", batch_size=4):
...     batch["tokens"]                                  # int32 [4, 5, 16, 16]

Which rows a step holds is a function of seed, epoch, manifest and filters: never of ranks, worker
processes, threads or time. Shuffled, a sample comes from one of ``num_streams`` streams, each of
which reads whole row groups in random order; of W ranks each reads its share of the streams where
W divides their number, else W / gcd(W, num_streams) ranks read the same row group.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import fields
from typing import Any, Literal

import numpy as np
import torch

from pipeline.errors import RunError
from pipeline.loading.fetch import Fetch
from pipeline.loading.order import count_streams, key_of
from pipeline.loading.passes import Layout, Share, Slot, Work
from pipeline.loading.prefetch import ahead
from pipeline.loading.ranks import agree_on, own_place
from pipeline.loading.rows import Loaded, collate, load_group
from pipeline.loading.snapshot import Filters, Snapshot, pin, take_snapshot
from pipeline.loading.state import STATE_VERSION, check_state, elastic_state
from pipeline.schema import TokenRow
from pipeline.storage import Storage

PREFETCH_BYTES = 64 << 20
THREADS = 4
"""That read and unpack; of a worker process one."""
COLUMNS = tuple(one.name for one in fields(TokenRow) if one.name not in ("tokens", "token_shape"))
"""What may be asked for besides tokens."""

Batch = dict[str, Any]


class TokenDataset(torch.utils.data.IterableDataset[Batch]):
    """Batches of tokens, in the order of shards and clips, or shuffled.

    A batch is a dict: ``tokens`` (int32 ``[B, t, h, w]``; continuous tokenizers float32
    ``[B, c, t, h, w]``, the mean, beside ``log_variance``), numbers as tensors ``[B]``
    (``clip_index``, ``fps``, ``start_seconds``, ``end_seconds``, ``source_width``,
    ``source_height``, ``source_fps``), the rest as lists of length B (``clip_id``, ``shard``,
    ``key``, ``frame_seconds``, ``bucket``, ``caption``, ``metadata``). All clips of a batch have
    one token shape, the same on all ranks; batches of several shapes take turns.

    Beside them ``epoch`` and ``samples`` (int: how far all ranks are when the batch is used);
    ``is_padding`` (bool ``[B]``, with ``drop_last=False``); ``replaced`` (bool ``[B]``, with
    ``on_corrupt="replace"``).

    Every rank gets ``len(dataset)`` full batches an epoch. One pass is one epoch, the next pass
    the next one; a pass that was broken off begins again. In a DataLoader take
    ``batch_size=None``; its worker processes share the steps, and their order stays the same.
    Worker processes that do not persist know of epochs only what ``set_epoch`` said before.
    """

    def __init__(
        self,
        root: str,
        *,
        batch_size: int,
        shuffle: bool = False,
        seed: int = 0,
        rank: int | None = None,
        world_size: int | None = None,
        epoch: int = 0,
        drop_last: bool = True,
        columns: Sequence[str] | None = None,
        filters: Filters | None = None,
        tokens_per_batch: int | None = None,
        transform: Callable[[Batch], Any] | None = None,
        device: str | torch.device | None = None,
        prefetch_bytes: int = PREFETCH_BYTES,
        threads: int | None = None,
        num_streams: int | None = None,
        on_corrupt: Literal["raise", "replace"] = "raise",
        manifest: str | None = None,
        storage_options: dict[str, Any] | None = None,
    ) -> None:
        """Pin a manifest of OUT; parts are opened only where it does not say all that is needed.

        Args:
            root: OUT, a local path or URL.
            batch_size: B, of this rank.
            shuffle: False: in the order of shards and clips, shape by shape.
            seed: of the shuffling.
            rank: None: that of torch.distributed where it is initialised, else 0.
            world_size: likewise, else 1. Ranks that are given by hand must be given one manifest.
            epoch: of the first pass.
            drop_last: True: what does not fill a batch on all ranks is left out of the epoch.
                False: the last batch is filled up with rows from the epoch's start.
            columns: besides tokens; None: all, (): none.
            filters: which rows; ``[("fps", "==", 8.0)]`` or an Arrow expression.
            tokens_per_batch: instead of B rows as many as have so many tokens, by shape.
            transform: of each batch, last.
            device: where tensors go.
            prefetch_bytes: read ahead, beyond the batch that is due.
            threads: that read ahead; None: ``THREADS``, 1 in a worker process.
            num_streams: see above, of each shape; None: as many as 256 MiB hold, at most 96.
            on_corrupt: "replace": rows of a row group that is not what was committed are replaced
                by others of their shape and counted in ``num_replaced``.
            manifest: digest of the manifest to pin; None: everything that is committed now.
            storage_options: fsspec options.

        Raises:
            ValueError: an argument outside of what is said here.
            RunError: nothing is committed there, a receipt cannot be trusted, or there are fewer
                rows than one step takes.
        """
        super().__init__()
        _check_positive(
            batch_size=batch_size, tokens_per_batch=tokens_per_batch, threads=threads,
            num_streams=num_streams,
        )  # fmt: skip
        if on_corrupt not in ("raise", "replace"):
            raise ValueError(f"on_corrupt must be 'raise' or 'replace', got {on_corrupt!r}")
        self._columns = COLUMNS if columns is None else tuple(columns)
        unknown = [name for name in self._columns if name not in COLUMNS]
        if unknown:
            raise ValueError(f"columns has {unknown}, there are {', '.join(COLUMNS)}")
        self._rank, self._world_size, is_group = own_place(rank, world_size)
        self._root, self._storage_options = root, storage_options
        self._batch_size, self._tokens_per_batch = batch_size, tokens_per_batch
        self._shuffle, self._seed, self._drop_last = shuffle, seed, drop_last
        self._filters, self._num_streams, self._on_corrupt = filters, num_streams, on_corrupt
        self._transform, self._device = transform, device
        self._prefetch_bytes, self._threads = prefetch_bytes, threads
        self._is_group = is_group and manifest is None
        self._opened: tuple[int, Fetch] | None = None
        self._start = self._position = (epoch, 0)
        self._next_step: int | None = None
        self.num_replaced = 0
        """Rows handed out by this process in the place of corrupt ones."""
        self._pin(manifest)

    def _pin(self, manifest: str | None) -> None:
        storage = Storage(self._root, self._storage_options)
        if self._is_group:
            manifest = agree_on(lambda: pin(storage, None)[0])
        digest, lines = pin(storage, manifest)
        snapshot = take_snapshot(digest, lines, Fetch(storage), self._filters)
        if self._filters is not None and not snapshot.num_rows:
            raise RunError(f"{self._root}: the filters select no clip: {self._filters}")
        self._use(snapshot)

    def _use(self, snapshot: Snapshot) -> None:
        self._snapshot = snapshot
        classes = snapshot.classes
        self._streams = [
            self._num_streams or count_streams(len(one.groups), one.group_bytes * len(classes))
            for one in classes
        ]
        self._global_batches = [self._batch_of(one.shape) * self._world_size for one in classes]
        if snapshot.num_rows and not len(self):
            raise RunError(
                f"{self._root}: {snapshot.num_rows} clips do not fill one step of "
                f"{self._global_batches[0]} on {self._world_size} ranks; choose a smaller "
                "batch_size, or drop_last=False"
            )

    def _batch_of(self, shape: tuple[int, ...]) -> int:
        if self._tokens_per_batch is None:
            return self._batch_size
        return max(1, self._tokens_per_batch // int(np.prod(shape[-3:])))

    # ---- what it holds ----

    @property
    def num_clips(self) -> int:
        """Clips in all committed segments, of those that the filters select."""
        return self._snapshot.num_rows

    @property
    def manifest(self) -> str:
        """Digest of the manifest that is pinned."""
        return self._snapshot.manifest

    def __len__(self) -> int:
        """Batches that every rank gets in one epoch."""
        return len(self._layout(0, 0).plan)

    def refresh(self) -> bool:
        """Pin what is committed by now; the next pass reads it. Ranks call it together.

        Returns:
            Whether there is something new.

        Raises:
            RunError: in the middle of an epoch, whose order would change.
        """
        epoch, samples = self._position
        if samples:
            if samples < self._last_sample():
                raise RunError("refresh() is for the start or end of an epoch, this is amid one")
            self.set_epoch(epoch + 1)
        before = self.manifest
        self._pin(None)
        self._opened = None
        return before != self.manifest

    def _last_sample(self) -> int:
        plan = self._layout(self._position[0], 0).plan
        return plan.step(len(plan) - 1).samples_after if len(plan) else 0

    # ---- where it stands ----

    def set_epoch(self, epoch: int) -> None:
        """The next pass is the whole of this epoch."""
        self._start = self._position = (epoch, 0)
        self._next_step = None

    def state_dict(self, after: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """What continues behind the batch handed out last; JSON, the same on all ranks.

        Args:
            after: or behind this batch: with worker processes the one used last, as others have
                been made ahead.
        """
        epoch, samples = (after["epoch"], after["samples"]) if after else self._position
        state = self._identity() | {"epoch": int(epoch), "samples": int(samples)}
        worker = torch.utils.data.get_worker_info()
        if worker is not None:
            state["num_workers"] = worker.num_workers
            state["next_step"] = self._next_step
        return state

    def _identity(self) -> dict[str, Any]:
        batches = sorted(set(self._global_batches))
        return {
            "version": STATE_VERSION,
            "epoch": 0,
            "samples": 0,
            "manifest": self._snapshot.manifest,
            "selection": self._snapshot.selection,
            "seed": self._seed,
            "shuffle": self._shuffle,
            "drop_last": self._drop_last,
            "num_streams": sum(self._streams) if self._shuffle else 0,
            "tokens_per_batch": self._tokens_per_batch,
            "global_batch": batches[0] if len(batches) == 1 else batches,
        }

    def load_state_dict(self, state: Mapping[str, Any], *, convert_batch: bool = False) -> None:
        """The next pass continues where a state says, also one of other ranks or workers.

        Args:
            state: of ``state_dict``, of any rank.
            convert_batch: another global batch than the state's is meant: the epoch goes on at
                the sample that comes next. With several shapes their turns are other ones then,
                so it goes on at the first step behind as many samples: some are seen twice, others
                not in this epoch.

        Raises:
            RunError: not a state, or not of this order; says what differs and what to do.
        """
        check_state(state, self._identity(), convert_batch=convert_batch)
        self._start = self._position = (state["epoch"], state["samples"])
        worker = torch.utils.data.get_worker_info()
        self._next_step = None
        if worker is not None and "next_step" in state:
            if state["num_workers"] != worker.num_workers:
                raise RunError(
                    f"the state is one of {state['num_workers']} worker processes, here are "
                    f"{worker.num_workers}; load TokenDataset.state_of(state) into the data set"
                )
            self._next_step = state["next_step"]

    @staticmethod
    def state_of(loader_state: Mapping[str, Any]) -> dict[str, Any]:
        """A StatefulDataLoader's state as one of this class, for any number of workers.

        Raises:
            RunError: it holds none.
        """
        return elastic_state(loader_state)

    # ---- a pass ----

    def __iter__(self) -> Iterator[Any]:
        """Batches of one pass.

        Raises:
            RunError: a part is missing or damaged; the message names it and the row group.
            StorageError: storage did not answer.
        """
        epoch, samples = self._start
        worker = torch.utils.data.get_worker_info()
        share = Share(
            rank=self._rank,
            world_size=self._world_size,
            worker=worker.id if worker else 0,
            num_workers=worker.num_workers if worker else 1,
        )
        layout = self._layout(epoch, samples)
        first = layout.plan.step_after(samples)
        if self._next_step is not None:
            first = self._next_step - share.worker
        threads = self._threads or (1 if worker else THREADS)
        for work, batch in self._ahead(layout, layout.works(first, share), threads):
            self._position = epoch, work.step.samples_after
            self._next_step = work.number + share.num_workers if worker else None
            batch |= {"epoch": epoch, "samples": work.step.samples_after}
            if self._on_corrupt == "replace":
                self.num_replaced += int(batch["replaced"].sum())
            yield batch if self._transform is None else self._transform(batch)
        self.set_epoch(epoch + 1)

    def _layout(self, epoch: int, samples: int) -> Layout:
        offset = samples % self._global_batches[0] if len(self._global_batches) == 1 else 0
        return Layout(
            [one.counts for one in self._snapshot.classes],
            self._streams,
            self._global_batches,
            key=key_of(self._seed, epoch) if self._shuffle else None,
            drop_last=self._drop_last,
            offset=offset,
        )

    def _ahead(
        self, layout: Layout, works: Iterator[Work], threads: int
    ) -> Iterator[tuple[Work, Batch]]:
        fetch, classes = self._fetch(), self._snapshot.classes

        def load(slot: Slot) -> Loaded:
            return load_group(
                fetch,
                classes[slot.kind],
                layout.orders[slot.kind],
                slot.group,
                ["tokens", *self._columns],
                replace=self._on_corrupt == "replace",
            )

        def num_bytes(work: Work) -> int:
            one = classes[work.step.kind]
            rows = 2 * len(work.slots) * one.group_bytes // max(1, int(one.counts.mean()))
            return rows + sum(one.groups[slot.group].num_bytes for slot in work.fresh)

        return ahead(
            works, load, self._make, num_bytes, limit_bytes=self._prefetch_bytes, threads=threads
        )

    def _make(self, work: Work) -> Batch:
        loaded = [slot.loaded.result() for slot in work.slots]
        picks = [(one, one.row(at)) for one, at in zip(loaded, work.offsets, strict=True)]
        batch = collate(picks, self._snapshot.classes[work.step.kind].shape, self._columns)
        if not self._drop_last:
            batch["is_padding"] = torch.from_numpy(work.is_padding)
        if self._on_corrupt == "replace":
            batch["replaced"] = torch.tensor([one.is_replaced for one in loaded])
        if self._device is not None:
            for name, value in batch.items():
                batch[name] = value.to(self._device) if torch.is_tensor(value) else value
        return batch

    def _fetch(self) -> Fetch:
        """Of this process: connections do not survive a fork."""
        if self._opened is None or self._opened[0] != os.getpid():
            storage = Storage(self._root, self._storage_options)
            self._opened = os.getpid(), Fetch(storage)
        return self._opened[1]

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_opened": None}


def _check_positive(**values: int | None) -> None:
    for name, value in values.items():
        if value is not None and value < 1:
            raise ValueError(f"{name} must be at least 1, got {value}")
