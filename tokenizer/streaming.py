"""Long videos in chunks: what a stream remembers, and how blocks of any size become chunks."""

# B batch · n T H W frames, rows, columns · C channels

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from tokenizer.errors import ShapeError


@dataclass(frozen=True, slots=True, kw_only=True)
class EncoderState:
    """What the encoder remembers of B videos between two chunks; one row per video.

    ``TokenizerConfig.state_bytes`` says how large a row is.
    """

    caches: tuple[Tensor, ...]
    """``[B, n, H, W, C]`` per layer that looks back, in the order in which they run: its last one
    or two input frames, float32, or bfloat16 under that precision."""

    @property
    def num_rows(self) -> int:
        """B: videos in this state."""
        return self.caches[0].shape[0]

    @property
    def row_shape(self) -> tuple[int, int, int]:
        """B, H, W: number of rows and frame size of the videos."""
        B, _, H, W, _ = self.caches[0].shape
        return B, H, W

    @property
    def nbytes(self) -> int:
        """Memory of all rows together."""
        return sum(cache.nbytes for cache in self.caches)

    @classmethod
    def cat(cls, states: Sequence[EncoderState]) -> EncoderState:
        """States of several videos as the rows of one, in this order.

        A batch is filled up to a fixed size by naming a state twice and dropping what its copy
        gives.

        Raises:
            ShapeError: videos of different sizes or models.
        """
        if len(states) == 1:
            return states[0]
        shapes = {tuple((cache.shape[1:], cache.dtype) for cache in s.caches) for s in states}
        if len(shapes) != 1:
            raise ShapeError(
                "states", "one model, precision and frame size", f"{len(shapes)} different ones"
            )
        columns = zip(*(state.caches for state in states), strict=True)
        return cls(caches=tuple(torch.cat(column) for column in columns))

    def split(self) -> list[EncoderState]:
        """One state per row; each has its own memory, so that dropping one frees it."""
        if self.num_rows == 1:
            return [self]
        return [
            EncoderState(caches=tuple(cache[row : row + 1].clone() for cache in self.caches))
            for row in range(self.num_rows)
        ]

    def to(self, device: torch.device | str) -> EncoderState:
        """The same on another device, for example to keep waiting streams off the GPU."""
        return EncoderState(caches=tuple(cache.to(device) for cache in self.caches))


def rechunk(
    blocks: Tensor | Iterable[Tensor],
    *,
    dim: int,
    first: int,
    chunk: int,
    look_ahead: int = 0,
) -> Iterator[tuple[Tensor, bool]]:
    """Cut blocks of any lengths along ``dim`` into chunks; the last may be shorter.

    Holds one chunk and one block at a time. A chunk is given when it is known whether it is the
    last, that is when one frame more has come.

    >>> blocks = torch.arange(10).split([4, 1, 5])
    >>> [(c.tolist(), last) for c, last in rechunk(blocks, dim=0, first=1, chunk=5)]
    [([0], False), ([1, 2, 3, 4, 5], False), ([6, 7, 8, 9], True)]

    Args:
        blocks: all at once or one after the other.
        dim: axis of time.
        first: length of the first chunk.
        chunk: length of the others.
        look_ahead: frames of the next chunk to add at the end of each (0 or 1).

    Yields:
        A chunk, and whether it is the last.
    """
    sizes = itertools.chain([first], itertools.repeat(chunk))
    size = next(sizes)
    held: list[Tensor] = []
    for block in (blocks,) if isinstance(blocks, Tensor) else blocks:
        held.append(block)
        num_held = sum(part.shape[dim] for part in held)
        if num_held <= size:
            continue
        frames, start = (held[0] if len(held) == 1 else torch.cat(held, dim)), 0
        while num_held - start > size:
            yield frames.narrow(dim, start, size + look_ahead), False
            start += size
            size = next(sizes)
        held = [frames.narrow(dim, start, num_held - start)]
    if held:
        yield (held[0] if len(held) == 1 else torch.cat(held, dim)), True
