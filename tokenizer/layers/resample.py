"""Halving and doubling of space and time, on ``[B, T, H, W, C]``.

Time is resampled by a plain average (or repetition) blended with a learned convolution; the weight
of the blend is the sigmoid of one learned scalar (arXiv 2412.13061, section 3).
"""

# B batch · T H W frames, rows, columns · C channels

import itertools

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tokenizer.layers.conv import CausalConv, FrameConv, TimePadding, clips, frames, volume_conv
from tokenizer.layers.packed import PackedWeights
from tokenizer.layers.stream import Stream, StreamMode
from tokenizer.layers.tiles import FRAMES, is_tiled, places


class FrameDownsample(nn.Module):
    """Halves height and width; an odd last row or column is dropped."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = FrameConv(channels, channels, halve=True)

    def forward(self, x_BTHWC: Tensor, stream: Stream) -> Tensor:
        """``[B, T, H, W, C]`` -> ``[B, T, H // 2, W // 2, C]``."""
        if not is_tiled(self, x_BTHWC):
            return self._step(x_BTHWC)
        B, T, H, W, C = x_BTHWC.shape
        y_BTHWC = x_BTHWC.new_empty(B, T, H // 2, W // 2, C)
        for place in places(x_BTHWC, FRAMES):
            y_BTHWC[place] = self._step(x_BTHWC[place])
        return y_BTHWC

    def _step(self, x_BTHWC: Tensor) -> Tensor:
        # Zeros right and below only: the published weights were trained so.
        y_BTHWC: Tensor = self.conv(F.pad(x_BTHWC, (0, 0, 0, 1, 0, 1)))
        return y_BTHWC


class FrameUpsample(nn.Module):
    """Doubles height and width: every pixel is repeated, then a convolution smooths.

    The repetition is never made. Where the four copies of a pixel lie under the kernel, its taps
    are added up beforehand, so that each of the four phases of the result (even or odd row, even or
    odd column) is a 2x2 convolution of the small picture: 4/9 of the operations.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = FrameConv(channels, channels)
        self._packed = PackedWeights(frame_phases)

    def forward(self, x_BTHWC: Tensor, stream: Stream) -> Tensor:
        """``[B, T, H, W, C]`` -> ``[B, T, 2 * H, 2 * W, C]``."""
        if not is_tiled(self, x_BTHWC):
            return self._step(x_BTHWC)
        B, T, H, W, C = x_BTHWC.shape
        y_BTHWC = x_BTHWC.new_empty(B, T, 2 * H, 2 * W, C)
        for place in places(x_BTHWC, FRAMES, growth=4):
            y_BTHWC[place] = self._step(x_BTHWC[place])
        return y_BTHWC

    def _step(self, x_BTHWC: Tensor) -> Tensor:
        B, T, H, W, C = x_BTHWC.shape
        weight, bias = self._packed.of(self.conv, x_BTHWC.dtype)
        y_BTHWP = clips(F.conv2d(frames(x_BTHWC), weight, bias, padding=1), num_clips=B)
        # The zeros around the picture are those around the large one: odd phases begin at them.
        phases = [
            y_BTHWP[:, :, row : row + H, column : column + W, phase * C : (phase + 1) * C]
            for phase, (row, column) in enumerate(itertools.product((0, 1), repeat=2))
        ]
        rows = [torch.stack(phases[:2], dim=4), torch.stack(phases[2:], dim=4)]
        return torch.stack(rows, dim=3).reshape(B, T, 2 * H, 2 * W, C)


class TimeDownsample(nn.Module):
    """Halves time: mean of three frames at stride 2, blended with a convolution at stride 2."""

    def __init__(self, channels: int, padding: TimePadding) -> None:
        super().__init__()
        self.mix_factor = nn.Parameter(torch.tensor([2.0]))
        self.conv = volume_conv(channels, channels, padding, halve_time=True)
        self.time_padding = padding
        self.sides = padding.sides(kernel=3, stride=2)

    def forward(self, x_BTHWC: Tensor, stream: Stream) -> Tensor:
        """``[B, T, H, W, C]`` -> ``[B, T // 2, H, W, C]``; T of at least 2."""
        x_BTHWC = stream.put_held_copies(x_BTHWC)
        x_BTHWC = self.time_padding.pad(x_BTHWC, *self.sides, stream)
        # The divisor is 3 at the padded edge, too.
        first, second, third = (x_BTHWC[:, k : x_BTHWC.shape[1] - 2 + k : 2] for k in range(3))
        mean_BTHWC = (first.float() + second + third) / 3
        return blend(self.mix_factor, mean_BTHWC, self.conv(x_BTHWC, stream))


class TimeUpsample(nn.Module):
    """Doubles time: frames repeated (v1.1: interpolated), blended with a convolution of them.

    Frames that are repeated are not made twice: the convolution of the even and that of the odd
    frames of the result see two different frames each, so that two taps of three can be added up.

    Args:
        head_frames: v1.1 only: frames that one latent frame has become when it arrives here. The
            first so many frames of a clip are interpolated among themselves, as the first latent
            of a long video is decoded on its own.
    """

    def __init__(self, channels: int, padding: TimePadding, head_frames: int) -> None:
        super().__init__()
        self.mix_factor = nn.Parameter(torch.tensor([2.0]))
        self.conv = volume_conv(channels, channels, padding)
        self.time_padding = padding
        self.is_linear = padding is TimePadding.causal_replicate
        self.head_frames = head_frames
        self._packed = PackedWeights(
            causal_time_phases if padding.is_causal else symmetric_time_phases
        )

    def forward(self, x_BTHWC: Tensor, stream: Stream) -> Tensor:
        """``[B, T, H, W, C]`` -> ``[B, 2 * T, H, W, C]``, in the chunks of a stream ``± 1``."""
        if not self.is_linear:
            y_BTHWC = self._double_nearest(x_BTHWC, stream)
            stream.surplus_frames *= 2
            return y_BTHWC
        if stream.mode is StreamMode.exact:
            u_BTHWC = self._double_exact(x_BTHWC, stream)
        else:
            u_BTHWC = self._double_as_published(x_BTHWC, stream)
        stream.surplus_frames *= 2
        return blend(self.mix_factor, u_BTHWC, self.conv(u_BTHWC, stream))

    def _double_nearest(self, x_BTHWC: Tensor, stream: Stream) -> Tensor:
        """Both phases at once, as a convolution of two taps in time with twice the channels."""
        B, T, H, W, C = x_BTHWC.shape
        conv = self.conv.conv if isinstance(self.conv, CausalConv) else self.conv
        weight, bias = self._packed.of(conv, x_BTHWC.dtype)
        # A causal model sees the last frame of before, the other ones a zero frame on each side.
        odd = 0 if self.time_padding.is_causal else 1
        padded_BTHWC = self.time_padding.pad(x_BTHWC, 1, odd, stream)
        if not is_tiled(self, x_BTHWC):
            return self._phases(x_BTHWC, padded_BTHWC, weight, bias)
        y_BTHWC = x_BTHWC.new_empty(B, 2 * T, H, W, C)
        for clip, times, _ in places(x_BTHWC, FRAMES, growth=2):
            seen = slice(times.start, times.stop + 1 + odd)
            y_BTHWC[clip, 2 * times.start : 2 * times.stop] = self._phases(
                x_BTHWC[clip, times], padded_BTHWC[clip, seen], weight, bias
            )
        return y_BTHWC

    def _phases(
        self, x_BTHWC: Tensor, padded_BTHWC: Tensor, weight: Tensor, bias: Tensor
    ) -> Tensor:
        T, C = x_BTHWC.shape[1], x_BTHWC.shape[-1]
        y_BPTHW = F.conv3d(padded_BTHWC.permute(0, 4, 1, 2, 3), weight, bias, padding=(0, 1, 1))
        y_BTHWP = y_BPTHW.permute(0, 2, 3, 4, 1)
        even_BTHWC, odd_BTHWC = y_BTHWP[:, :T, ..., :C], y_BTHWP[:, -T:, ..., C:]
        phases = [blend(self.mix_factor, x_BTHWC, phase) for phase in (even_BTHWC, odd_BTHWC)]
        return torch.stack(phases, dim=2).flatten(1, 2)

    def _double_exact(self, x_BTHWC: Tensor, stream: Stream) -> Tensor:
        """A frame that lies between the last of this chunk and the first of the next waits."""
        waiting_BTHWC = stream.recall()
        done = []
        if waiting_BTHWC is None:
            head_BTHWC, x_BTHWC = x_BTHWC[:, : self.head_frames], x_BTHWC[:, self.head_frames :]
            done.append(double_linear(head_BTHWC))
            waiting_BTHWC = x_BTHWC[:, :0]
        num_waiting = waiting_BTHWC.shape[1]
        x_BTHWC = stream.put_before(waiting_BTHWC, x_BTHWC)
        stream.leave(x_BTHWC[:, -1:])
        if x_BTHWC.shape[1]:
            u_BTHWC = double_linear(x_BTHWC)
            done.append(u_BTHWC[:, num_waiting : u_BTHWC.shape[1] - (not stream.is_last)])
        return torch.cat(done, dim=1)

    def _double_as_published(self, x_BTHWC: Tensor, stream: Stream) -> Tensor:
        """The frames of the latent before go first, and what they become is dropped.

        After the first chunk these are its last frames, those of the surplus latent, so that the
        first frame of the second chunk gets a wrong neighbour. Kept: published figures of v1.1
        were measured so.
        """
        n, past_BTHWC = self.head_frames, stream.recall()
        if past_BTHWC is None:
            stream.leave(x_BTHWC[:, -n:])
            halves = (x_BTHWC[:, :n], x_BTHWC[:, n:])
            return torch.cat([double_linear(half) for half in halves if half.shape[1]], dim=1)
        x_BTHWC = stream.put_before(past_BTHWC, x_BTHWC)
        stream.leave(x_BTHWC[:, -2 * n : -n])
        return double_linear(x_BTHWC)[:, 2 * n :]


def blend(mix_factor: Tensor, plain_BTHWC: Tensor, learned_BTHWC: Tensor) -> Tensor:
    """``alpha * plain + (1 - alpha) * learned`` with alpha the sigmoid of mix_factor.

    Computed in float32, in the dtype of the learned part.
    """
    alpha = torch.sigmoid(mix_factor)
    mixed_BTHWC = torch.lerp(learned_BTHWC.float(), plain_BTHWC.float(), alpha)
    return mixed_BTHWC.to(learned_BTHWC.dtype)


def frame_phases(weight_OCHW: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
    """A 3x3 convolution of a picture with all pixels doubled, as 2x2 of the picture itself.

    Output channels: those of the phases (even or odd row, even or odd column) one after the other.
    """
    rows = _phase_taps(weight_OCHW, dim=2)
    phases = [columns for row in rows for columns in _phase_taps(row, dim=3)]
    return torch.cat(phases), bias.repeat(4)


def causal_time_phases(weight_OCTHW: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
    """A causal 3x3x3 convolution of frames that are all doubled, as 2x3x3 of the frames."""
    first, second, third = torch.split(weight_OCTHW, 1, dim=2)
    even = torch.cat([first + second, third], dim=2)
    odd = torch.cat([first, second + third], dim=2)
    return torch.cat([even, odd]), bias.repeat(2)


def symmetric_time_phases(weight_OCTHW: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
    """The same for a convolution that also sees the next frame."""
    return torch.cat(_phase_taps(weight_OCTHW, dim=2)), bias.repeat(2)


def _phase_taps(weight: Tensor, dim: int) -> list[Tensor]:
    """Two taps for even and two for odd places, of three taps around a place."""
    first, second, third = torch.split(weight, 1, dim)
    return [
        torch.cat([first, second + third], dim),  # before | here, twice
        torch.cat([first + second, third], dim),  # here, twice | behind
    ]


def double_linear(x_BTHWC: Tensor) -> Tensor:
    """Twice as many frames by linear interpolation: half-pixel centres, edges clamped, float32."""
    s_BTHWC = x_BTHWC.float()
    before_BTHWC = torch.cat([s_BTHWC[:, :1], s_BTHWC[:, :-1]], dim=1)
    after_BTHWC = torch.cat([s_BTHWC[:, 1:], s_BTHWC[:, -1:]], dim=1)
    pairs = [0.25 * before_BTHWC + 0.75 * s_BTHWC, 0.75 * s_BTHWC + 0.25 * after_BTHWC]
    return torch.stack(pairs, dim=2).flatten(1, 2).to(x_BTHWC.dtype)
