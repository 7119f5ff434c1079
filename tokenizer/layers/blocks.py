"""Residual blocks, normalisation and attention, on ``[B, T, H, W, C]``."""

# B batch · T H W frames, rows, columns · C channels · G one group that is normalised together
# P = H * W pixels of a frame

import enum
from collections.abc import Callable
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from tokenizer.config import NormKind
from tokenizer.layers.conv import (
    CausalConv,
    FrameConv,
    TimeConv,
    TimePadding,
    time_conv,
    volume_conv,
)
from tokenizer.layers.stream import Stream
from tokenizer.layers.tiles import FRAMES, ROWS, by_tiles, is_tiled

EPS = 1e-6
NUM_GROUPS = 32


class NormScope(enum.Enum):
    """Which positions share their statistics under groupnorm; layernorm has no such choice."""

    position = "position"
    frame = "frame"
    time_line = "time_line"
    clip = "clip"


class LayerNorm(nn.Module):
    """Normalisation over the channels of each position, in float32."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(channels, eps=EPS)

    def forward(self, x_BTHWC: Tensor) -> Tensor:
        """Same shape; float32 (also under autocast)."""
        return cast(Tensor, self.norm(x_BTHWC.float()))


class GroupNorm(nn.GroupNorm):
    """Group normalisation over the positions that the published model folds together."""

    def __init__(self, channels: int, scope: NormScope) -> None:
        super().__init__(NUM_GROUPS, channels, eps=EPS)
        self.scope = scope

    def forward(self, x_BTHWC: Tensor) -> Tensor:
        """Same shape; float32 (also under autocast)."""
        B, T, H, W, C = x_BTHWC.shape
        x_BTHWC = x_BTHWC.float()
        if self.scope is NormScope.time_line:
            x_GCT = x_BTHWC.permute(0, 2, 3, 4, 1).reshape(B * H * W, C, T)
            y_BHWCT = super().forward(x_GCT).reshape(B, H, W, C, T)
            return y_BHWCT.permute(0, 4, 1, 2, 3).contiguous()
        groups = {NormScope.position: B * T * H * W, NormScope.frame: B * T, NormScope.clip: B}
        y_GCP = super().forward(x_BTHWC.reshape(groups[self.scope], -1, C).transpose(1, 2))
        return y_GCP.transpose(1, 2).reshape(B, T, H, W, C)


def make_norm(kind: NormKind, channels: int, scope: NormScope) -> nn.Module:
    """Normalisation layer of the given kind."""
    return LayerNorm(channels) if kind is NormKind.layernorm else GroupNorm(channels, scope)


def volume_scope(padding: TimePadding) -> NormScope:
    """Scope in blocks that see space and time: causal models must not mix frames."""
    return NormScope.frame if padding.is_causal else NormScope.clip


def norm_silu(norm: nn.Module, x_BTHWC: Tensor) -> Tensor:
    """SiLU of the normalised input, both in float32, in the dtype of the input.

    On the CPU one clip at a time: torch shares a tensor out among threads in equal runs of elements
    and computes the last few of a run by another exponential, which rounds differently. Over the
    whole batch the tokens of a clip would depend, in the last bit, on its position; clip by clip
    they do not.
    """
    h_BTHWC: Tensor = norm(x_BTHWC)
    if h_BTHWC.requires_grad:
        return F.silu(h_BTHWC).to(x_BTHWC.dtype)
    for part in h_BTHWC if h_BTHWC.device.type == "cpu" else (h_BTHWC,):
        F.silu(part, inplace=True)
    return h_BTHWC.to(x_BTHWC.dtype)


def norm_silu_with_room(norm: nn.Module, x_1THWC: Tensor, front: int, back: int) -> Tensor:
    """The same of one tile, with frames before and behind that are still to be written.

    The last pass over the values puts them where a convolution in time wants them.
    """
    h_1THWC: Tensor = norm(x_1THWC)
    T = h_1THWC.shape[1]
    room_1THWC = x_1THWC.new_empty(1, front + T + back, *h_1THWC.shape[2:])
    inner_1THWC = room_1THWC[:, front : front + T]
    if inner_1THWC.dtype == h_1THWC.dtype:
        torch.ops.aten.silu.out(h_1THWC, out=inner_1THWC)
    else:
        inner_1THWC.copy_(F.silu(h_1THWC, inplace=True))
    return room_1THWC


class ResBlock(nn.Module):
    """``shortcut(x) + conv2(silu(norm2(conv1(silu(norm1(x))))))``, for any kind of convolution.

    Args:
        make_conv: builds one convolution from its input and output channels.
        make_norm: builds one normalisation from its channels.
        tile_axis: FRAMES or ROWS where the block looks at no other ones; None: at all.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        make_conv: Callable[[int, int], nn.Module],
        make_norm: Callable[[int], nn.Module],
        tile_axis: int | None,
    ) -> None:
        super().__init__()
        self.out_channels, self.tile_axis = out_channels, tile_axis
        self.computes_again = False
        """In a pass that records gradients: keep the input alone, and compute the rest again."""
        self.norm1 = make_norm(in_channels)
        self.conv1 = make_conv(in_channels, out_channels)
        self.norm2 = make_norm(out_channels)
        self.conv2 = make_conv(out_channels, out_channels)
        self.nin_shortcut = (
            None if in_channels == out_channels else FrameConv(in_channels, out_channels, 1)
        )

    def forward(self, x_BTHWC: Tensor, stream: Stream) -> Tensor:
        """``[B, T, H, W, in_channels]`` -> ``[B, T, H, W, out_channels]``.

        In tiles, that is on a CPU without gradients, the input is overwritten.
        """
        if self.computes_again and torch.is_grad_enabled():
            y_BTHWC: Tensor = checkpoint(
                self._whole, x_BTHWC, stream, use_reentrant=False, preserve_rng_state=False
            )
            return y_BTHWC
        if self.tile_axis is None or not is_tiled(self, x_BTHWC):
            return self._whole(x_BTHWC, stream)
        looks_back = 2 if self.tile_axis == ROWS else 0
        return by_tiles(
            self._tile,
            x_BTHWC,
            stream,
            axis=self.tile_axis,
            channels=self.out_channels,
            looks_back=looks_back,
        )

    def _whole(self, x_BTHWC: Tensor, stream: Stream) -> Tensor:
        h_BTHWC: Tensor = self.conv1(norm_silu(self.norm1, x_BTHWC), stream)
        h_BTHWC = self.conv2(norm_silu(self.norm2, h_BTHWC), stream)
        return h_BTHWC.add_(self._shortcut(x_BTHWC))

    def _shortcut(self, x_BTHWC: Tensor) -> Tensor:
        return x_BTHWC if self.nin_shortcut is None else cast(Tensor, self.nin_shortcut(x_BTHWC))

    def _tile(self, x_1THWC: Tensor, stream: Stream, out_1THWC: Tensor) -> None:
        h_1THWC = x_1THWC
        for norm, module in ((self.norm1, self.conv1), (self.norm2, self.conv2)):
            conv = module.conv if isinstance(module, CausalConv) else module
            if isinstance(conv, TimeConv):
                h_1THWC = norm_silu_with_room(norm, h_1THWC, *conv.sides)
                conv.time_padding.fill(h_1THWC, *conv.sides, stream)
                h_1THWC = conv.convolve(h_1THWC)
            else:
                h_1THWC = conv(norm_silu(norm, h_1THWC), stream)
        torch.add(h_1THWC, self._shortcut(x_1THWC), out=out_1THWC)


def frame_block(in_channels: int, out_channels: int, norm: NormKind) -> ResBlock:
    """Residual block within each frame (2D)."""
    return ResBlock(
        in_channels,
        out_channels,
        FrameConv,
        lambda c: make_norm(norm, c, NormScope.frame),
        tile_axis=FRAMES,
    )


def time_block(channels: int, norm: NormKind, padding: TimePadding) -> ResBlock:
    """Residual block along the time line of each pixel (1D); starts as the identity."""
    scope = NormScope.position if padding.is_causal else NormScope.time_line
    block = ResBlock(
        channels,
        channels,
        lambda c, _: time_conv(c, padding),
        lambda c: make_norm(norm, c, scope),
        tile_axis=ROWS,
    )
    for parameter in block.conv2.parameters():
        nn.init.zeros_(parameter)
    return block


def volume_block(channels: int, norm: NormKind, padding: TimePadding) -> ResBlock:
    """Residual block over space and time (3D)."""
    return ResBlock(
        channels,
        channels,
        lambda c, o: volume_conv(c, o, padding),
        lambda c: make_norm(norm, c, volume_scope(padding)),
        tile_axis=None,
    )


class Attention(nn.Module):
    """Single-head self-attention among the positions of each frame, with a residual connection."""

    def __init__(self, channels: int, norm: NormKind, padding: TimePadding) -> None:
        super().__init__()
        self.norm = make_norm(norm, channels, volume_scope(padding))
        self.q = volume_conv(channels, channels, padding, kernel=1)
        self.k = volume_conv(channels, channels, padding, kernel=1)
        self.v = volume_conv(channels, channels, padding, kernel=1)
        self.proj_out = volume_conv(channels, channels, padding, kernel=1)

    def forward(self, x_BTHWC: Tensor, stream: Stream) -> Tensor:
        """Same shape; every frame attends to itself only."""
        n_BTHWC = self.norm(x_BTHWC).to(x_BTHWC.dtype)
        q_BTPC, k_BTPC, v_BTPC = (
            project(n_BTHWC, stream).flatten(2, 3) for project in (self.q, self.k, self.v)
        )
        a_BTPC = F.scaled_dot_product_attention(q_BTPC, k_BTPC, v_BTPC)
        a_BTHWC: Tensor = self.proj_out(a_BTPC.reshape(x_BTHWC.shape), stream)
        return a_BTHWC.add_(x_BTHWC)


class Middle(nn.Module):
    """The bottleneck at the lowest resolution: block, attention, block."""

    def __init__(self, channels: int, norm: NormKind, padding: TimePadding) -> None:
        super().__init__()
        self.block_1 = volume_block(channels, norm, padding)
        self.attn_1 = Attention(channels, norm, padding)
        self.block_2 = volume_block(channels, norm, padding)

    def forward(self, x_BTHWC: Tensor, stream: Stream) -> Tensor:
        """Same shape."""
        for module in (self.block_1, self.attn_1, self.block_2):
            x_BTHWC = module(x_BTHWC, stream)
        return x_BTHWC


class Level(nn.Module):
    """Residual blocks of one resolution and what changes it; only groups parameter names."""

    def __init__(
        self,
        blocks: list[ResBlock],
        *,
        downsample: nn.Module | None = None,
        upsample: nn.Module | None = None,
    ) -> None:
        super().__init__()
        self.block = nn.ModuleList(blocks)
        self.downsample = downsample
        self.upsample = upsample


def levels(modules: nn.ModuleList) -> list[Level]:
    """The same modules, for the type checker."""
    return [cast(Level, module) for module in modules]


def run_level(frame_level: Level, time_level: Level, x_BTHWC: Tensor, stream: Stream) -> Tensor:
    """One level of encoder or decoder: space-time units, then space and time are resampled."""
    for in_frame, in_time in zip(frame_level.block, time_level.block, strict=True):
        x_BTHWC = in_time(in_frame(x_BTHWC, stream), stream)
    for resample in (
        frame_level.downsample,
        time_level.downsample,
        frame_level.upsample,
        time_level.upsample,
    ):
        if resample is not None:
            x_BTHWC = resample(x_BTHWC, stream)
    return x_BTHWC
