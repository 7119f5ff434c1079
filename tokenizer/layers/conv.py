"""Convolutions over video, for all families: only the padding in time differs.

Everything here takes and returns contiguous ``[B, T, H, W, C]``: channels last, so that a frame
batch, a time line and the whole volume are views of the same memory in the layout that the
convolution kernels want. Parameters keep the published shapes and dtype; what a layer computes in
is the dtype of its input.
"""

# B batch · T H W frames, rows, columns · C channels · O output channels
# K taps in time · N = B * T frames · P = H * W pixels

import enum
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tokenizer.layers.packed import PackedWeights
from tokenizer.layers.stream import Stream
from tokenizer.layers.tiles import FRAMES, is_tiled, places


class TimePadding(enum.Enum):
    """What a convolution sees where the clip has no frames; the families differ in this."""

    causal_zero = "causal_zero"  # v1.0: zeros before the clip, nothing after
    causal_replicate = "causal_replicate"  # v1.1: copies of the first frame before the clip
    symmetric_zero = "symmetric_zero"  # non-causal: zeros on both sides

    @property
    def is_causal(self) -> bool:
        """Whether padding is at the front only."""
        return self is not TimePadding.symmetric_zero

    def sides(self, kernel: int, stride: int) -> tuple[int, int]:
        """Frames to add before and after a clip, for one convolution."""
        total = kernel - stride
        if self.is_causal:
            return total, 0
        return total // 2, total - total // 2

    def pad(self, x_BTHWC: Tensor, front: int, back: int, stream: Stream | None) -> Tensor:
        """Add ``front`` frames, in later chunks those of the chunk before, and ``back`` zeros."""
        if front == 0 and back == 0:
            return x_BTHWC
        stream = Stream() if stream is None else stream
        past_BTHWC = self._past(x_BTHWC[:, :1], front, stream)
        if past_BTHWC is not None:
            x_BTHWC = stream.put_before(past_BTHWC, x_BTHWC)
        else:
            x_BTHWC = F.pad(x_BTHWC, (0, 0, 0, 0, 0, 0, front, back))
        self._leave(x_BTHWC, front, stream)
        return x_BTHWC

    def fill(self, x_BTHWC: Tensor, front: int, back: int, stream: Stream) -> None:
        """The same where there is room for these frames already: only they are written."""
        if front == 0 and back == 0:
            return
        past_BTHWC = self._past(x_BTHWC[:, front : front + 1], front, stream)
        if past_BTHWC is not None:
            x_BTHWC[:, :front] = past_BTHWC
        else:
            x_BTHWC[:, :front] = 0
            x_BTHWC[:, x_BTHWC.shape[1] - back :] = 0
        self._leave(x_BTHWC, front, stream)

    def _past(self, first_BTHWC: Tensor, front: int, stream: Stream) -> Tensor | None:
        """What is before the first frame; None for zeros."""
        past_BTHWC = stream.recall() if self.is_causal else None
        if past_BTHWC is None and self is TimePadding.causal_replicate:
            past_BTHWC = first_BTHWC.expand(-1, front, -1, -1, -1)
        return past_BTHWC

    def _leave(self, x_BTHWC: Tensor, front: int, stream: Stream) -> None:
        if self.is_causal:
            end = x_BTHWC.shape[1] - stream.surplus_frames
            stream.leave(x_BTHWC[:, end - front : end])


class FrameConv(nn.Conv2d):
    """2D convolution of every frame; odd kernels keep the size unless told otherwise."""

    def __init__(
        self, in_channels: int, out_channels: int, kernel: int = 3, *, halve: bool = False
    ) -> None:
        super().__init__(
            in_channels,
            out_channels,
            kernel,
            stride=2 if halve else 1,
            padding=0 if halve else kernel // 2,
        )
        self._packed = PackedWeights(as_they_are)

    def forward(self, x_BTHWC: Tensor, stream: Stream | None = None) -> Tensor:
        """``[B, T, H, W, C]`` -> ``[B, T, H, W, O]``; needs no stream, as it looks at no time."""
        weight, bias = self._packed.of(self, x_BTHWC.dtype)
        y_NOHW = F.conv2d(frames(x_BTHWC), weight, bias, self.stride, self.padding)
        return clips(y_NOHW, num_clips=x_BTHWC.shape[0])


class TimeConv(nn.Conv1d):
    """1D convolution with kernel 3 along the time line of every pixel, C -> C."""

    def __init__(self, channels: int, padding: TimePadding) -> None:
        super().__init__(channels, channels, 3)
        self.time_padding = padding
        self.sides = padding.sides(kernel=3, stride=1)
        """Frames that it sees before and after those that it gives."""
        self._packed = PackedWeights(as_columns)

    def forward(self, x_BTHWC: Tensor, stream: Stream | None = None) -> Tensor:
        """``[B, T, H, W, C]`` -> the same shape."""
        return self.convolve(self.time_padding.pad(x_BTHWC, *self.sides, stream))

    def convolve(self, x_BTHWC: Tensor) -> Tensor:
        """The same of frames that are padded already."""
        B, T, H, W, C = x_BTHWC.shape
        weight, bias = self._packed.of(self, x_BTHWC.dtype)
        # As a (3, 1) convolution of a picture with T rows and H * W columns: no transposed copy.
        y_BCTP = F.conv2d(x_BTHWC.reshape(B, T, H * W, C).permute(0, 3, 1, 2), weight, bias)
        return y_BCTP.permute(0, 2, 3, 1).reshape(B, -1, H, W, C)


class VolumeConv(nn.Conv3d):
    """3D convolution with a cubic kernel that keeps height and width.

    With ``halve_time`` its stride in time is 2 and its caller pads in time.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        padding: TimePadding,
        *,
        kernel: int = 3,
        halve_time: bool = False,
    ) -> None:
        super().__init__(in_channels, out_channels, kernel, stride=(1 + halve_time, 1, 1))
        self.time_padding = padding
        self.sides = (0, 0) if halve_time else padding.sides(kernel, stride=1)
        # 3D kernels are slow for the 3 colours and the few latent channels.
        self.has_few_channels = in_channels < 8
        self._packed = PackedWeights(taps_as_channels if self.has_few_channels else as_they_are)

    def forward(
        self, x_BTHWC: Tensor, stream: Stream | None = None, dtype: torch.dtype | None = None
    ) -> Tensor:
        """``[B, T, H, W, C]`` -> ``[B, T', H, W, O]``; computed in the dtype of the input.

        Args:
            x_BTHWC: the frames.
            stream: the place of this chunk in a longer video.
            dtype: of the result; None: that of the input.
        """
        x_BTHWC = self.time_padding.pad(x_BTHWC, *self.sides, stream)
        dtype = x_BTHWC.dtype if dtype is None else dtype
        if self.has_few_channels:
            return self._few_channels(x_BTHWC, dtype)
        weight, bias = self._packed.of(self, x_BTHWC.dtype)
        side = self.kernel_size[1] // 2
        x_BCTHW = x_BTHWC.permute(0, 4, 1, 2, 3)
        y_BOTHW = F.conv3d(x_BCTHW, weight, bias, self.stride, padding=(0, side, side))
        return y_BOTHW.permute(0, 2, 3, 4, 1).contiguous().to(dtype)

    def _few_channels(self, x_BTHWC: Tensor, dtype: torch.dtype) -> Tensor:
        """The taps in time side by side as channels of a 2D convolution."""
        K = self.kernel_size[0]
        B, T, H, W, _ = x_BTHWC.shape
        T = T - K + 1
        taps_BTHWC = torch.cat([x_BTHWC[:, k : k + T] for k in range(K)], dim=-1)
        if not is_tiled(self, x_BTHWC):
            return self._of_taps(taps_BTHWC).to(dtype)
        y_BTHWC = x_BTHWC.new_empty(B, T, H, W, self.out_channels, dtype=dtype)
        growth = max(1, self.out_channels // taps_BTHWC.shape[-1])
        for place in places(taps_BTHWC, FRAMES, growth=growth):
            y_BTHWC[place] = self._of_taps(taps_BTHWC[place])
        return y_BTHWC

    def _of_taps(self, taps_BTHWC: Tensor) -> Tensor:
        weight, bias = self._packed.of(self, taps_BTHWC.dtype)
        y_NOHW = F.conv2d(frames(taps_BTHWC), weight, bias, padding=self.kernel_size[1] // 2)
        return clips(y_NOHW, num_clips=taps_BTHWC.shape[0])


def as_they_are(weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
    """Weight and bias of an ordinary convolution."""
    return weight, bias


def as_columns(weight_OCK: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
    """A 1D convolution as a 2D one that is one column wide."""
    return weight_OCK[..., None], bias


def taps_as_channels(weight_OCKHW: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
    """A 3D convolution as a 2D one, the taps in time side by side as channels."""
    return weight_OCKHW.transpose(1, 2).flatten(1, 2), bias


class CausalConv(nn.Module):
    """Only adds the ``conv`` part that the published parameter names of causal models have."""

    def __init__(self, conv: nn.Module) -> None:
        super().__init__()
        self.conv = conv

    def forward(
        self, x_BTHWC: Tensor, stream: Stream | None = None, *more: torch.dtype | None
    ) -> Tensor:
        """Calls the convolution."""
        return cast(Tensor, self.conv(x_BTHWC, stream, *more))


def time_conv(channels: int, padding: TimePadding) -> nn.Module:
    """TimeConv under the parameter names of its family."""
    conv = TimeConv(channels, padding)
    return CausalConv(conv) if padding.is_causal else conv


def volume_conv(
    in_channels: int,
    out_channels: int,
    padding: TimePadding,
    *,
    kernel: int = 3,
    halve_time: bool = False,
) -> nn.Module:
    """VolumeConv under the parameter names of its family."""
    conv = VolumeConv(in_channels, out_channels, padding, kernel=kernel, halve_time=halve_time)
    return CausalConv(conv) if padding.is_causal else conv


def frames(x_BTHWC: Tensor) -> Tensor:
    """View as a batch of frames [N, C, H, W] in channels-last memory."""
    return x_BTHWC.flatten(0, 1).permute(0, 3, 1, 2)


def clips(x_NCHW: Tensor, num_clips: int) -> Tensor:
    """The frames as clips again."""
    x_NHWC = x_NCHW.permute(0, 2, 3, 1)
    return x_NHWC.reshape(num_clips, -1, *x_NHWC.shape[1:])
