"""Pure: how the rows of a snapshot become the steps of an epoch, by what a user asked for."""

from __future__ import annotations

import itertools
import math
import operator
from dataclasses import dataclass
from typing import Any

from pipeline.loading.hashing import derived_key
from pipeline.loading.order import count_streams
from pipeline.loading.packed import PackedLayout, Unit
from pipeline.loading.passes import Layout
from pipeline.loading.snapshot import ShapeClass


@dataclass(frozen=True, slots=True, kw_only=True)
class Batching:
    """What a user asked for; raises ValueError where the clips cannot be had like that."""

    batch_size: int
    """Rows of a rank, or packs."""
    world_size: int
    """Ranks."""
    tokens_per_batch: int | None = None
    """Instead of ``batch_size`` rows as many as have so many tokens."""
    pack_length: int | None = None
    """Tokens of a pack; None: a batch holds one shape."""
    crop: tuple[int, int, int] | None = None
    """What is cut out of each token grid."""
    num_streams: int | None = None
    """Of each order; None: see `count_streams`."""
    shuffle: bool = False
    """Whether epochs have orders of their own."""
    seed: int = 0
    """Of these."""
    drop_last: bool = True
    """Whether what fills no step is left out."""

    def __post_init__(self) -> None:
        for name in ("batch_size", "tokens_per_batch", "pack_length", "num_streams"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")
        if self.crop is not None and not self._is_cut(self.crop):
            raise ValueError(
                f"crop_latents must be three numbers from 1 on, t, h, w; got {self.crop!r}"
            )
        if self.pack_length is not None and self.tokens_per_batch is not None:
            raise ValueError(
                f"pack_length={self.pack_length} and tokens_per_batch={self.tokens_per_batch} "
                "exclude each other: packs are batch_size * pack_length tokens; leave one out"
            )

    @staticmethod
    def _is_cut(crop: Any) -> bool:
        """Whether it is t, h, w, as a tuple or, out of a file, as a list."""
        if not isinstance(crop, (tuple, list)) or len(crop) != 3:
            return False
        return all(type(size) is int and size >= 1 for size in crop)

    @property
    def text(self) -> str:
        """What of it says which clips share a step; part of a state."""
        if self.pack_length is None:
            return "shape"  # how many of each, says the global batch
        cut = "" if self.crop is None else f", crop_latents={list(self.crop)}"
        return f"pack_length={self.pack_length}{cut}"

    def length(self, shape: tuple[int, ...]) -> int:
        """Tokens that a clip of this ``token_shape`` gives."""
        return math.prod(self.crop or shape[-3:])

    def check(self, classes: tuple[ShapeClass, ...]) -> None:
        """Refuse clips that are smaller than the cut, or fit in no pack.

        Raises:
            ValueError: one is; the longest does not; names its shape, what is needed, what helps.
        """
        for one in classes:
            if self.crop is not None and any(map(operator.gt, self.crop, one.shape[-3:])):
                raise ValueError(
                    f"crop_latents={list(self.crop)} must lie inside the token grid "
                    f"{list(one.shape[-3:])} that some clips have; choose a smaller crop, or leave "
                    "them out with filters"
                )
        longest = max((one.shape for one in classes), key=self.length, default=None)
        if self.pack_length is None or longest is None or self.length(longest) <= self.pack_length:
            return
        raise ValueError(
            f"pack_length={self.pack_length} holds no clip of token shape {list(longest)}, which "
            f"has {self.length(longest)} tokens; choose pack_length={self.length(longest)} or "
            "more, cut clips down with crop_latents, or leave the long ones out with filters"
        )

    def global_batches(self, classes: tuple[ShapeClass, ...]) -> list[int]:
        """Rows that all ranks take in a step, of each shape; or packs, of all shapes."""
        if self.pack_length is not None:
            return [self.batch_size * self.world_size]
        return [self._batch_of(one.shape) * self.world_size for one in classes]

    def _batch_of(self, shape: tuple[int, ...]) -> int:
        if self.tokens_per_batch is None:
            return self.batch_size
        return max(1, self.tokens_per_batch // self.length(shape))

    def streams(self, classes: tuple[ShapeClass, ...]) -> list[int]:
        """Streams of each shape's order; or of the one order that packs are made of."""
        if self.pack_length is None:
            return [
                self.num_streams or count_streams(len(one.groups), one.group_bytes * len(classes))
                for one in classes
            ]
        groups = {group.range for one in classes for group in one.groups}
        num_bytes = sum(group.end - group.start for group in groups)
        return [self.num_streams or count_streams(len(groups), num_bytes // max(1, len(groups)))]

    def offset(self, classes: tuple[ShapeClass, ...], samples: int) -> int:
        """Where whole steps begin so that one begins behind so many samples, or packs."""
        global_batches = self.global_batches(classes)
        return samples % global_batches[0] if len(global_batches) == 1 else 0

    def layout(
        self, classes: tuple[ShapeClass, ...], epoch: int, offset: int
    ) -> Layout | PackedLayout:
        """Orders and steps of an epoch, whose first step begins at ``offset``."""
        global_batches, streams = self.global_batches(classes), self.streams(classes)
        key = derived_key(self.seed, epoch) if self.shuffle else None
        counts = [one.counts for one in classes]
        if self.pack_length is None:
            return Layout(
                counts, streams, global_batches, key=key, drop_last=self.drop_last, offset=offset
            )
        return PackedLayout(
            counts,
            [self.length(one.shape) for one in classes],
            _groups(classes),
            pack_length=self.pack_length,
            num_streams=streams[0],
            global_batch=global_batches[0],
            key=key,
            drop_last=self.drop_last,
            offset=offset,
        )


def _groups(classes: tuple[ShapeClass, ...]) -> list[list[Unit]]:
    """Of every row group every shape's part, in the order of shards and segments."""

    def place(unit: Unit) -> tuple[str, int, int, int]:
        group = classes[unit[0]].groups[unit[1]]
        line = group.line
        return line.shard, line.segment, line.generation, group.index

    units = [(kind, at) for kind, one in enumerate(classes) for at in range(len(one.groups))]
    return [list(parts) for _, parts in itertools.groupby(sorted(units, key=place), key=place)]
