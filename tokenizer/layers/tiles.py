"""Parts of a tensor that stay in a CPU's cache while a block of layers works on them.

Memory decides the speed of everything but the convolutions. On a CPU a block therefore takes a few
frames (or a few rows of every frame) through all of its layers before it turns to the next ones.
What lies between its layers then never leaves the cache, and comes from memory that the allocator
has at hand instead of fresh pages. A GPU gets everything at once, and so does a pass that records
gradients.
"""

# B batch · T H W frames, rows, columns · C channels

import math
from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn

from tokenizer.layers.stream import Place, Stream

TILE_VALUES = 2 * 2**20
"""Largest input or result of a tile: 8 MB in float32, in which norms are computed whatever the
dtype. glibc gives freed memory of such sizes again without asking the kernel."""
FRAMES, ROWS = 1, 2
"""Axes along which a block may be cut: it looks at no other frame, or at no other row."""

Step = Callable[[Tensor, Stream, Tensor], None]
"""From a tile ``[1, T, H, W, C]`` to its result, which is written to the third argument."""


def is_tiled(module: nn.Module, x_BTHWC: Tensor) -> bool:
    """Whether the layers of a module run tile by tile: on a CPU, unless gradients are recorded.

    Compiled code fuses by itself and is written for whole tensors.
    """
    if x_BTHWC.device.type != "cpu" or torch.compiler.is_compiling():
        return False
    records = x_BTHWC.requires_grad or any(p.requires_grad for p in module.parameters())
    return not (torch.is_grad_enabled() and records)


def by_tiles(
    step: Step, x_BTHWC: Tensor, stream: Stream, *, axis: int, channels: int, looks_back: int = 0
) -> Tensor:
    """``step`` of a whole tensor, into memory that takes the place of the input.

    Tiles of a clip do not depend on the batch around it, so neither does the rounding of its
    result.

    Args:
        step: layers that keep all axes but the channels.
        x_BTHWC: is overwritten where the result has its shape.
        stream: the place of this chunk in a longer video.
        axis: FRAMES or ROWS.
        channels: of the result.
        looks_back: layers of the step that look back in time; their axis is ROWS.
    """
    shape = (*x_BTHWC.shape[:-1], channels)
    y_BTHWC = x_BTHWC if channels == x_BTHWC.shape[-1] else x_BTHWC.new_empty(shape)
    cut = list(places(x_BTHWC, axis, growth=max(1, channels // x_BTHWC.shape[-1])))
    streams = stream.split(cut, looks_back)
    for place, part in zip(cut, streams, strict=True):
        step(x_BTHWC[place], part, y_BTHWC[place])
    stream.join(cut, streams, x_BTHWC.shape)
    return y_BTHWC


def places(x_BTHWC: Tensor, axis: int, growth: int = 1) -> Iterator[Place]:
    """Parts of nearly equal size along an axis, clip by clip.

    Args:
        x_BTHWC: what is cut.
        axis: FRAMES or ROWS.
        growth: how many times larger the result of a part is.
    """
    size = x_BTHWC.shape[axis]
    num_tiles = min(size, math.ceil(x_BTHWC[0].numel() * growth / TILE_VALUES))
    for clip in range(x_BTHWC.shape[0]):
        for tile in range(num_tiles):
            part = slice(tile * size // num_tiles, (tile + 1) * size // num_tiles)
            everything = slice(None)
            times, rows = (part, everything) if axis == FRAMES else (everything, part)
            yield slice(clip, clip + 1), times, rows
