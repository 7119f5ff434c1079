"""Quality of a tokenizer by the published protocol: which frames, which clips, which means.

Videos are taken at every ``frame_step``-th frame, the short side resized, the centre cut out. v1.0
models are judged in clips of 17 frames (non-causal: 16), v1.1 models on whole videos, streamed. A
mean is one over frames: a clip counts by its length, and so do the copies that fill a last clip.
"""

# T H W frames, rows, columns · B batch · C colour · N frames · c t h w latent · D features

import enum
import itertools
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor
from torch.nn import functional as F

from tokenizer.config import Version
from tokenizer.errors import ConfigError, DtypeError, ShapeError
from tokenizer.metrics.distortion import frames, psnr, ssim
from tokenizer.metrics.fvd import VideoFeatures
from tokenizer.metrics.lpips import LPIPS
from tokenizer.model import Encoded, VideoTokenizer
from tokenizer.quantizers.gaussian import Gaussian
from tokenizer.streaming import rechunk

WHOLE_CHUNK = 16
"""Frames of a piece of a whole video; the first has one more."""
LPIPS_FRAMES = 16
"""Frames compared at once: bounds memory, changes nothing."""
SEED = 42
"""Of the published evaluation; continuous models draw their latents there."""

Item = TypeVar("Item")


class Mode(enum.Enum):
    """What a model gets to see of a video."""

    clips = "clips"
    whole = "whole"


def frame_step(native_fps: float, fps: float) -> int:
    """Every how manyth frame is taken; halves are rounded to even, as published.

    >>> frame_step(59.94, 30), frame_step(25, 30), frame_step(30, 8)
    (2, 1, 4)

    Raises:
        ConfigError: the video is so slow that no step comes out.
    """
    step = round(native_fps / fps)
    if step < 1:
        raise ConfigError(
            "evaluate.fps", f"{fps:g} is more than twice the {native_fps:g} frames/s of the video"
        )
    return step


def clip_groups(items: Iterable[Item], size: int) -> Iterator[list[Item]]:
    """One after the other without overlap; the last one is filled up with its last item.

    >>> list(clip_groups("abcde", 3))
    [['a', 'b', 'c'], ['d', 'e', 'e']]
    """
    items = iter(items)
    while group := list(itertools.islice(items, size)):
        yield group + [group[-1]] * (size - len(group))


def whole_groups(items: Iterable[Item], chunk: int = WHOLE_CHUNK) -> Iterator[list[Item]]:
    """Pieces of 1 + chunk, then chunk items; what does not fill a piece is left out, as published.

    >>> [len(group) for group in whole_groups(range(40), 16)], list(whole_groups(range(16), 16))
    ([17, 16], [])
    """
    items = iter(items)
    size = chunk + 1
    while len(group := list(itertools.islice(items, size))) == size:
        yield group
        size = chunk


def pixels(frames_THWC: Tensor, height: int, width: int) -> Tensor:
    """Decoded frames as the model wants them: float32 ``[1, 3, T, height, width]`` in [-1, 1].

    The short side becomes ``height`` (bilinear with antialiasing; the long side is cut off to an
    integer), the centre is cut out, a half of an offset rounded to even. What a wide crop lacks is
    black, as in torchvision, whose ``Resize`` and ``CenterCrop`` these are.

    Args:
        frames_THWC: uint8 ``[T, H, W, 3]``, RGB.
        height: rows, a multiple of the tokenizer's.
        width: columns, likewise.

    Raises:
        ShapeError: wrong rank or channels.
        DtypeError: not uint8.
    """
    if frames_THWC.ndim != 4 or frames_THWC.shape[-1] != 3 or 0 in frames_THWC.shape:
        raise ShapeError("frames", "[T, H, W, 3]", str(list(frames_THWC.shape)))
    if frames_THWC.dtype != torch.uint8:
        raise DtypeError("frames", "uint8", str(frames_THWC.dtype))
    H, W = frames_THWC.shape[1:3]
    x_TCHW = frames_THWC.permute(0, 3, 1, 2).float() / 255
    size = (height, int(height * W / H)) if H <= W else (int(height * H / W), height)
    if size != (H, W):
        x_TCHW = F.interpolate(x_TCHW, size, mode="bilinear", antialias=True, align_corners=False)
    x_TCHW = _padded(x_TCHW, height, width)
    top, left = (round((x_TCHW.shape[2] - height) / 2), round((x_TCHW.shape[3] - width) / 2))
    x_TCHW = x_TCHW[..., top : top + height, left : left + width]
    return ((x_TCHW - 0.5) / 0.5).transpose(0, 1)[None].contiguous()


def _padded(x_TCHW: Tensor, height: int, width: int) -> Tensor:
    """At least as large as the crop; the smaller half of what is missing comes first."""
    down, across = (
        max(0, wanted - there)
        for wanted, there in zip((height, width), x_TCHW.shape[2:], strict=True)
    )
    return F.pad(x_TCHW, (across // 2, (across + 1) // 2, down // 2, (down + 1) // 2))


@dataclass(frozen=True, slots=True, kw_only=True)
class Quality:
    """Means over frames."""

    num_frames: int
    """How many; copies that fill a clip included."""
    psnr: float
    """dB, up to 80."""
    ssim: float
    """Up to 1."""
    lpips: float | None
    """Lower is better; None where it was not asked for."""


def mean_quality(parts: Sequence[Quality]) -> Quality:
    """Of all frames together: each part counts by its frames.

    Raises:
        ShapeError: no part.
    """
    total = sum(part.num_frames for part in parts)
    if not total:
        raise ShapeError("qualities", "at least one frame", "none")

    def mean(values: Iterable[float]) -> float:
        pairs = zip(values, parts, strict=True)
        return sum(value * part.num_frames for value, part in pairs) / total

    lpips = [part.lpips for part in parts if part.lpips is not None]
    return Quality(
        num_frames=total,
        psnr=mean(part.psnr for part in parts),
        ssim=mean(part.ssim for part in parts),
        lpips=mean(lpips) if len(lpips) == len(parts) else None,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Judged:
    """A clip, or a piece of a whole video, and what became of it."""

    source: Tensor
    """float32 ``[1, 3, T, H, W]`` in [-1, 1], on the CPU."""
    output: Tensor
    """Likewise, clamped."""
    quality: Quality
    """Of its frames."""
    features: Tensor | None
    """float32 ``[2, D]`` of source and output, for FVD; None without a network."""


class Judge:
    """A model and the networks that look at its output."""

    def __init__(
        self,
        model: VideoTokenizer,
        *,
        lpips: LPIPS | None,
        features: VideoFeatures | None = None,
        is_sampled: bool = False,
    ) -> None:
        """Models and networks are on one device.

        Args:
            model: with its decoder.
            lpips: None leaves the value out.
            features: None leaves FVD out.
            is_sampled: continuous models: draw latents, as the published figures did, instead of
                taking the mean; every video begins with the same seed. Nothing for FSQ.
        """
        self.model, self.lpips, self.features = model, lpips, features
        self._is_sampled = is_sampled and isinstance(model.quantizer, Gaussian)
        self.index_counts: Tensor | None = None
        """int64 ``[codes]``: how often each was used, since the last ``new_counts``; FSQ only."""
        self.new_counts()

    def new_counts(self) -> None:
        """Forget which codes were used."""
        size = self.model.config.codebook_size
        self.index_counts = torch.zeros(size, dtype=torch.int64) if size else None

    @torch.no_grad()
    def clips(
        self, pictures: Iterable[Tensor], mode: Mode, height: int, width: int
    ) -> Iterator[Judged]:
        """Clip by clip, in memory that does not grow with the video.

        Args:
            pictures: uint8 ``[H, W, 3]`` each, all of one size, at the rate of the evaluation.
            mode: clips: each by itself; whole: pieces of one stream, causal models only. A
                video of 16 frames or fewer has no piece.
            height: rows that the model gets.
            width: columns.

        Raises:
            InputError: pictures that are none.
            MissingPart: mode whole of a model that is not causal.
        """
        generator = torch.Generator().manual_seed(SEED)
        if mode is Mode.clips:
            for group in clip_groups(pictures, self.model.config.clip_frames):
                x = pixels(torch.stack(group), height, width)
                encoded = self.model.encode(x)
                x_hat = self.model.decode(self._latents(encoded, generator))
                yield self._judged(x, x_hat[:, :, -x.shape[2] :])
            return
        groups = (pixels(torch.stack(group), height, width) for group in whole_groups(pictures))
        for x, x_hat in self._streamed(groups, generator):
            yield self._judged(x, x_hat)

    def _streamed(
        self, groups: Iterator[Tensor], generator: torch.Generator
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Pieces with what a single stream through the model makes of them."""
        config = self.model.config
        waiting: list[Tensor] = []

        def sources() -> Iterator[Tensor]:
            for x in groups:
                waiting.append(x)
                yield x

        encoded = self.model.stream_encode(sources(), WHOLE_CHUNK)
        latents = (self._latents(tokens, generator) for tokens in encoded)
        # v1.1 models decode as they were published, in chunks with overlap.
        mode = "overlap" if config.version is Version.v1_1 else "exact"
        outputs = self.model.stream_decode(
            latents, WHOLE_CHUNK // config.time_downsample_factor, mode
        )
        # Frames that stand for the front padding of the first one, beyond those decode drops.
        outputs = without_first(outputs, config.time_downsample_factor - 1 - config.dropped_frames)
        for x_hat, _ in rechunk(outputs, dim=2, first=WHOLE_CHUNK + 1, chunk=WHOLE_CHUNK):
            yield waiting.pop(0), x_hat

    def _latents(self, encoded: Encoded, generator: torch.Generator) -> Tensor:
        if encoded.indices is not None and self.index_counts is not None:
            indices = encoded.indices.flatten().cpu().long()
            self.index_counts += indices.bincount(minlength=len(self.index_counts))
        if not self._is_sampled:
            return encoded.latents
        assert isinstance(self.model.quantizer, Gaussian)
        assert encoded.mean is not None
        assert encoded.log_variance is not None
        return self.model.quantizer.sample(encoded.mean, encoded.log_variance, generator)

    def _judged(self, x: Tensor, x_hat: Tensor) -> Judged:
        x_hat = x_hat.clamp(-1, 1)
        x = x.to(x_hat.device)
        a, b = frames(x_hat), frames(x)
        features = None
        if self.features is not None:
            features = torch.cat([self.features(x), self.features(x_hat)]).cpu()
        return Judged(
            source=x.cpu(),
            output=x_hat.cpu(),
            quality=Quality(
                num_frames=len(a),
                psnr=float(psnr(a, b).double().mean()),
                ssim=float(ssim(a, b).double().mean()),
                lpips=self._lpips(a, b),
            ),
            features=features,
        )

    def _lpips(self, a_NCHW: Tensor, b_NCHW: Tensor) -> float | None:
        if self.lpips is None:
            return None
        parts = [
            self.lpips(
                2 * a_NCHW[at : at + LPIPS_FRAMES] - 1, 2 * b_NCHW[at : at + LPIPS_FRAMES] - 1
            )
            for at in range(0, len(a_NCHW), LPIPS_FRAMES)
        ]
        return float(torch.cat(parts).double().mean())


def without_first(videos: Iterable[Tensor], surplus: int) -> Iterator[Tensor]:
    """Blocks ``[B, C, T, H, W]`` of a video without its first frames; no empty block is given."""
    for x_BCTHW in videos:
        left = x_BCTHW[:, :, surplus:]
        surplus = max(0, surplus - x_BCTHW.shape[2])
        if left.shape[2]:
            yield left
