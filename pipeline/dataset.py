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

import itertools
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Literal

import torch

from pipeline.errors import RunError
from pipeline.loading.batches import side_table
from pipeline.loading.batching import Batching
from pipeline.loading.captions import CaptionChoice
from pipeline.loading.fetch import Fetch, FetchOfProcess
from pipeline.loading.packed import PackedLayout
from pipeline.loading.passes import Layout, Share, Work
from pipeline.loading.ranks import own_place
from pipeline.loading.reader import Reader
from pipeline.loading.snapshot import Filters, Snapshot, open_snapshot, token_format_of
from pipeline.loading.state import check_state, elastic_state, identity, next_step_of
from pipeline.loading.wishes import Wishes
from pipeline.storage import Storage

PREFETCH_BYTES = 64 << 20
THREADS = 4
"""That read row groups, of a worker process one; and of latents, that unpack: of indices one."""
CACHE_BYTES = 64 << 30

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

    With ``pack_length=L`` a batch is B packs of L tokens, each of clips of any shapes side by side:
    ``tokens`` ``[B, L]`` (latents and codes ``[B, L, c]``), ``positions`` (int32 ``[B, L, 3]``: t,
    h, w in its clip), ``valid`` (bool ``[B, L]``: False in padding), ``cu_seqlens`` (int32
    ``[S + 1]``: where sequences begin in the flattened ``B * L``, and the end; what is empty of a
    pack is one, too), ``padding_sequences`` (bool ``[S]``: which are that), ``max_seqlen`` (int).
    All else is of the clips, in their order; ``is_padding`` and ``samples`` are of packs.

    Every rank gets ``len(dataset)`` full batches an epoch. One pass is one epoch, the next pass
    the next one; a pass that was broken off begins again. In a DataLoader take
    ``batch_size=None``; its worker processes share the steps, and their order stays the same.
    Workers that persist go on to the next epoch also behind a pass that was broken off, as one of
    them may have ended it. Those that do not know of epochs only what ``set_epoch`` said before.
    """

    def __init__(
        self,
        root: str | os.PathLike[str],
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
        pack_length: int | None = None,
        tokens_dtype: Literal["int32", "int64", "codes"] = "int32",
        latents: Literal["mean", "sample"] = "mean",
        normalize: bool = False,
        crop_latents: tuple[int, int, int] | None = None,
        captions: Mapping[str, float] | None = None,
        caption_dropout: float = 0.0,
        join: str | os.PathLike[str] | None = None,
        transform: Callable[[Batch], Any] | None = None,
        device: str | torch.device | None = None,
        prefetch_bytes: int = PREFETCH_BYTES,
        threads: int | None = None,
        num_streams: int | None = None,
        cache_dir: str | os.PathLike[str] | None = None,
        cache_bytes: int = CACHE_BYTES,
        on_corrupt: Literal["raise", "replace"] = "raise",
        manifest: str | None = None,
        storage_options: dict[str, Any] | None = None,
    ) -> None:
        """Pin a manifest of OUT; parts are opened only where it does not say all that is needed.

        Args:
            root: OUT, a local path or URL.
            batch_size: B, of this rank: rows, or packs.
            shuffle: False: in the order of shards and clips, shape by shape.
            seed: of the shuffling.
            rank: None: that of torch.distributed where it is initialised, else 0.
            world_size: likewise, else 1. Ranks that are given by hand must be given one manifest.
            epoch: of the first pass.
            drop_last: True: what does not fill a batch on all ranks is left out of the epoch.
                False: the last batch is filled up with rows from the epoch's start.
            columns: besides tokens; None: all, (): none.
            filters: which rows; ``[("fps", "==", 8.0)]`` (or lists), or an Arrow expression.
            tokens_per_batch: instead of B rows as many as have so many tokens, by shape.
            pack_length: L, at least the tokens of the longest clip; not with tokens_per_batch.
            tokens_dtype: of indices; "codes" are those of FSQ, float32 ``[B, c, t, h, w]`` in
                [-1, 1].
            latents: "sample": ``tokens`` are drawn from the stored Gaussian, by seed and sample.
            normalize: latents get mean 0 and variance 1 by what the manifest says of channels.
            crop_latents: t, h, w that are cut out of each token grid; where says the seed.
            captions: column -> weight: ``caption`` is drawn from these by seed and sample, and
                ``caption_name`` says which; None: the stored one.
            caption_dropout: share of samples whose caption is "" instead, drawn likewise.
            join: URL of a table (parquet, csv, jsonl) whose columns are attached by ``clip_id``,
                under names that batches do not have.
            transform: of each batch, last.
            device: packed bytes are sent there and unpacked there.
            prefetch_bytes: read ahead, beyond the batch that is due.
            threads: that read ahead; None: ``THREADS``, 1 in a worker process.
            num_streams: see above, of each shape; None: as many as 256 MiB hold, at most 96.
            cache_dir: local folder that keeps row groups and footers, shared by processes.
            cache_bytes: at most kept there.
            on_corrupt: "replace": rows of a row group that is not what was committed are replaced
                by others of their shape (``num_replaced``); where it had to be looked into at
                open, they are not selected (``num_left_out``).
            manifest: digest of the manifest to pin; None: everything that is committed now.
            storage_options: fsspec options, of OUT and of ``join``.

        Raises:
            ValueError: an argument outside of what is said here.
            RunError: nothing is committed there, a receipt cannot be trusted, or there are fewer
                rows than one step takes.
        """
        super().__init__()
        if threads is not None and threads < 1:
            raise ValueError(f"threads must be at least 1, got {threads}")
        if on_corrupt not in ("raise", "replace"):
            raise ValueError(f"on_corrupt must be 'raise' or 'replace', got {on_corrupt!r}")
        self._wishes = Wishes(
            columns=columns,
            captions=CaptionChoice.of(captions, caption_dropout, seed),
            join=side_table(join, storage_options),
            tokens_dtype=tokens_dtype,
            latents=latents,
            normalize=normalize,
            device=device,
            marks_padding=not drop_last,
            marks_replaced=on_corrupt == "replace",
        )
        cache = None if cache_dir is None else (cache_dir, cache_bytes)
        self._fetch = FetchOfProcess(root, storage_options, cache)
        self._rank, self._world_size, is_group = own_place(rank, world_size)
        self._root, self._storage_options = root, storage_options
        self._batching = Batching(
            batch_size=batch_size,
            world_size=self._world_size,
            tokens_per_batch=tokens_per_batch,
            pack_length=pack_length,
            crop=crop_latents,
            num_streams=num_streams,
            shuffle=shuffle,
            seed=seed,
            drop_last=drop_last,
        )
        self._filters, self._replaces = filters, on_corrupt == "replace"
        self._transform = transform
        self._prefetch_bytes, self._threads = prefetch_bytes, threads
        self._is_group = is_group
        self._start = self._position = (epoch, 0)
        self._first_step: int | None = None
        self._next_step: int | None = None
        self._begun_in: int | None = None
        self.num_replaced = 0
        """Rows handed out by this process in the place of corrupt ones."""
        self._pin(manifest)

    def _pin(self, manifest: str | None) -> None:
        fetch = Fetch(Storage(self._root, self._storage_options))
        pins_alike = self._is_group and manifest is None
        snapshot = open_snapshot(
            fetch, manifest, self._filters, in_group=pins_alike, leave_out=self._replaces
        )
        self._use(snapshot)
        if snapshot.classes:
            token_format = token_format_of(fetch, snapshot)
            self._maker = self._wishes.maker(token_format, snapshot.moments, self._batching)

    def _use(self, snapshot: Snapshot) -> None:
        self._batching.check(snapshot.classes)
        self._snapshot = snapshot
        self._laid_out: tuple[int, int, Layout | PackedLayout] | None = None
        if snapshot.num_rows and not len(self):
            step = self._batching.global_batches(snapshot.classes)[0]
            raise RunError(
                f"{self._root}: {snapshot.num_rows} clips do not fill one step of {step} on "
                f"{self._world_size} ranks; choose a smaller batch_size, or drop_last=False"
            )

    # ---- what it holds ----

    @property
    def num_clips(self) -> int:
        """Clips in all committed segments, of those that the filters select."""
        return self._snapshot.num_rows

    @property
    def num_left_out(self) -> int:
        """Clips of row groups that were found corrupt at open; see ``on_corrupt``."""
        return self._snapshot.num_left_out

    @property
    def manifest(self) -> str:
        """Digest of the manifest that is pinned."""
        return self._snapshot.manifest

    def __len__(self) -> int:
        """Batches that every rank gets in one epoch; of packs, in the one that is next or amid."""
        return len(self._layout(self._start[0], 0).plan)

    @property
    def waste(self) -> float:
        """Fraction of tokens that are padding in packs of that epoch, in [0, 1)."""
        layout = self._layout(self._start[0], 0)
        return layout.packs.waste if isinstance(layout, PackedLayout) else 0.0

    def refresh(self, manifest: str | None = None) -> bool:
        """Pin what is committed by now; the next pass reads it. Ranks call it together.

        Args:
            manifest: digest of the one to pin instead, for ranks that were given by hand.

        Returns:
            Whether there is something new.

        Raises:
            RunError: in the middle of an epoch, whose order would change.
        """
        epoch, samples = self._position
        if samples:
            if samples < self._layout(epoch, 0).plan.samples_at_end:
                raise RunError("refresh() is for the start or end of an epoch, this is amid one")
            self.set_epoch(epoch + 1)
        before = self.manifest
        self._pin(manifest)
        self._fetch.forget()
        return before != self.manifest

    # ---- where it stands ----

    def set_epoch(self, epoch: int) -> None:
        """The next pass is the whole of this epoch."""
        self._start = self._position = (epoch, 0)
        self._first_step = self._next_step = self._begun_in = None

    def state_dict(self, after: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """What continues behind the batch handed out last; JSON, the same on all ranks.

        Args:
            after: or behind this batch: with worker processes the one used last, as others have
                been made ahead.
        """
        epoch, samples = (after["epoch"], after["samples"]) if after else self._position
        state = identity(self._snapshot, self._batching) | {
            "epoch": int(epoch),
            "samples": int(samples),
        }
        worker = torch.utils.data.get_worker_info()
        if worker is not None:
            state["num_workers"] = worker.num_workers
            state["next_step"] = self._next_step
        return state

    def _identity(self) -> dict[str, Any]:
        return identity(self._snapshot, self._batching)

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
        self._first_step = self._next_step = next_step_of(state, "TokenDataset")
        self._begun_in = None

    @staticmethod
    def state_of(loader_state: Mapping[str, Any]) -> dict[str, Any]:
        """A StatefulDataLoader's state as one of this class, for any number of workers.

        Raises:
            RunError: it holds none, or one older than the batch handed out last.
        """
        return elastic_state(loader_state)

    # ---- a pass ----

    def __iter__(self) -> Iterator[Any]:
        """Batches of one pass.

        Raises:
            RunError: a part is missing or damaged; the message names it and the row group.
            StorageError: storage did not answer.
        """
        worker = torch.utils.data.get_worker_info()
        at, num_workers = (worker.id, worker.num_workers) if worker else (0, 1)
        if worker and self._begun_in == os.getpid():
            # broken off: another worker may have made its whole share, so none begins it again
            self.set_epoch(self._start[0] + 1)
        self._begun_in = os.getpid()
        epoch, layout, first = self._begin()
        self._next_step = first + at if self._first_step is None else self._first_step
        numbers = range(self._next_step, len(layout.plan), num_workers)
        for work, batch in self._made(epoch, layout, numbers):
            self._position = epoch, work.step.samples_after
            self._next_step = work.number + num_workers
            yield batch
        self.set_epoch(epoch + 1)

    def share(self, is_mine: Iterator[bool]) -> Iterator[tuple[dict[str, int], Any]]:
        """A pass of which this process makes some batches only, as a mixture's workers do.

        Args:
            is_mine: of every batch that is left, whether it is wanted here; asked ahead of time.

        Yields:
            For every batch what ``state_dict(after=...)`` takes, and it, or None if not wanted.
        """
        epoch, layout, first = self._begin()
        numbers = range(first, len(layout.plan))
        wanted, ahead = itertools.tee(is_mine)
        made = self._made(epoch, layout, itertools.compress(numbers, ahead))
        for number in numbers:
            batch = next(made)[1] if next(wanted) else None
            self._position = epoch, layout.plan.step(number).samples_after
            yield {"epoch": epoch, "samples": self._position[1]}, batch
        self.set_epoch(epoch + 1)

    def _begin(self) -> tuple[int, Layout | PackedLayout, int]:
        epoch, samples = self._start
        layout = self._layout(epoch, samples)
        return epoch, layout, layout.plan.step_after(samples)

    def _made(
        self, epoch: int, layout: Layout | PackedLayout, numbers: Iterable[int]
    ) -> Iterator[tuple[Work, Any]]:
        """These steps and their batches."""
        if not len(layout.plan):
            return
        in_worker = torch.utils.data.get_worker_info() is not None
        reader = Reader(
            fetch=self._fetch(),
            classes=self._snapshot.classes,
            maker=self._maker,
            prefetch_bytes=self._prefetch_bytes,
            threads=self._threads or (1 if in_worker else THREADS),
        )
        works = layout.works(numbers, Share(rank=self._rank, world_size=self._world_size))
        for work, batch in reader.batches(layout, works, epoch=epoch):
            batch |= {"epoch": epoch, "samples": work.step.samples_after}
            if self._replaces:
                self.num_replaced += int(batch["replaced"].sum())
            yield work, batch if self._transform is None else self._transform(batch)

    def _layout(self, epoch: int, samples: int) -> Layout | PackedLayout:
        offset = self._batching.offset(self._snapshot.classes, samples)
        if self._laid_out is None or self._laid_out[:2] != (epoch, offset):
            layout = self._batching.layout(self._snapshot.classes, epoch, offset)
            self._laid_out = epoch, offset, layout
        return self._laid_out[2]

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_laid_out": None}
