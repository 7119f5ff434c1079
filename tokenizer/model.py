"""The tokenizer as one module: checks its input, encodes, quantises, decodes."""

# B batch · C colour · T H W frames, rows, columns · c t h w the same after the encoder

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from tokenizer.config import Precision, QuantizerKind, TokenizerConfig, Version
from tokenizer.decoder import Decoder
from tokenizer.encoder import COLOURS, Encoder
from tokenizer.errors import (
    DtypeError,
    MissingPart,
    NonFiniteError,
    RangeError,
    ShapeError,
    UnknownName,
)
from tokenizer.quantizers.fsq import FSQ
from tokenizer.quantizers.gaussian import Gaussian

if TYPE_CHECKING:
    from tokenizer.checkpoint import CheckpointInfo

RANGE_TOLERANCE = 1e-3
"""How far pixels may lie outside [-1, 1]: rounding is forgiven, another scale is not."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Encoded:
    """Tokens of a batch of clips, on the device of the model."""

    latents: Tensor
    """float32 ``[B, c, t, h, w]``: FSQ codes in [-1, 1], or the KL mean (on request a sample)."""
    indices: Tensor | None
    """int32 ``[B, t, h, w]`` in [0, codebook_size); None for KL."""
    mean: Tensor | None
    """float32 ``[B, c, t, h, w]``; None for FSQ."""
    log_variance: Tensor | None
    """float32 ``[B, c, t, h, w]`` in [-30, 20]; None for FSQ."""


class VideoTokenizer(nn.Module):
    """VidTok autoencoder (arXiv 2412.13061); its state dict has exactly the published keys.

    ``encoder`` and ``decoder`` can be called directly; ``encode`` and ``decode`` add checks,
    precision and the quantiser. Gradients flow through all of them except ``encode_uint8``.

    Args:
        config: what to build.
        decoder: False leaves the decoder out, for workers that only encode.
    """

    def __init__(self, config: TokenizerConfig, *, decoder: bool = True) -> None:
        super().__init__()
        self.config = config
        self.precision = Precision.fp32
        self.checkpoint: CheckpointInfo | None = None
        """Origin of the weights; None for a model that was only built."""
        self.encoder = Encoder(config)
        self.decoder = Decoder(config) if decoder else None
        self.quantizer = make_quantizer(config)

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return next(self.parameters()).device

    def set_precision(self, precision: Precision | str) -> None:
        """Choose fp32, or bf16 for convolutions and attention (norms and quantiser stay fp32).

        Raises:
            UnknownName: neither of these.
        """
        self.precision = parse_precision(precision)

    def forward(
        self, x_BCTHW: Tensor, *, sample: bool = False, generator: torch.Generator | None = None
    ) -> Tensor:
        """Reconstruct: float ``[B, 3, T, H, W]`` in [-1, 1] to the same layout, not clamped.

        Lengths and sizes that do not fit are cut as in the published model: v1.0 models give
        ``config.decoded_frames(t)`` frames, v1.1 models the last T. Raises as ``encode``.
        """
        x_hat_BCTHW = self.decode(self.encode(x_BCTHW, sample=sample, generator=generator).latents)
        if self.config.version is Version.v1_1:
            x_hat_BCTHW = x_hat_BCTHW[:, :, -x_BCTHW.shape[2] :]
        return x_hat_BCTHW

    def encode(
        self, x_BCTHW: Tensor, *, sample: bool = False, generator: torch.Generator | None = None
    ) -> Encoded:
        """Turn clips into tokens.

        Args:
            x_BCTHW: any float dtype ``[B, 3, T, H, W]``, RGB in [-1, 1].
            sample: KL only: draw from the posterior instead of taking its mean.
            generator: source of the noise; None uses torch's global CPU generator.

        Raises:
            InputError: wrong rank, channels or dtype, too small, out of range, or not finite
                (ShapeError, DtypeError, RangeError, NonFiniteError).
            MissingPart: sample asked of an FSQ model.
        """
        if sample and isinstance(self.quantizer, FSQ):
            raise MissingPart(self.config.name, "sample=True is for kl models only")
        self._check_video(x_BCTHW)
        return self._encode(x_BCTHW.to(self.device, torch.float32), sample, generator)

    @torch.no_grad()
    def encode_uint8(self, frames_BTHWC: Tensor) -> Encoded:
        """Turn decoded video into tokens, without recording gradients.

        Args:
            frames_BTHWC: uint8 ``[B, T, H, W, 3]``, RGB in 0..255, on any device.

        Raises:
            ShapeError: wrong rank, channels, or too small.
            DtypeError: not uint8.
        """
        if frames_BTHWC.dtype != torch.uint8:
            raise DtypeError("frames", "uint8 [B, T, H, W, 3]", str(frames_BTHWC.dtype))
        x_BCTHW = frames_BTHWC.movedim(-1, 1) if frames_BTHWC.ndim == 5 else frames_BTHWC
        self._check_video_shape(x_BCTHW, given=frames_BTHWC, layout="[B, T, H, W, 3]")
        # uint8 travels to the device, a quarter of the bytes. The order of operations is that of
        # the published preprocessing, so that inputs are equal to the last bit.
        x_BCTHW = x_BCTHW.to(self.device).to(torch.float32).div_(255).sub_(0.5).div_(0.5)
        return self._encode(x_BCTHW, sample=False, generator=None)

    def decode(self, latents_Bcthw: Tensor) -> Tensor:
        """Turn latents into video.

        Args:
            latents_Bcthw: float ``[B, c, t, h, w]``: FSQ codes, KL means or samples.

        Returns:
            float32 ``[B, 3, T, H, W]``, about [-1, 1] but not clamped, with
            T = ``config.decoded_frames(t)``. v1.1: keep the last frames of the original length.

        Raises:
            InputError: wrong rank, channels or dtype, or not finite.
            MissingPart: the model was loaded without its decoder.
        """
        if self.decoder is None:
            raise MissingPart(self.config.name, "was loaded with decoder=False")
        channels = self.config.latent_channels
        if (
            latents_Bcthw.ndim != 5
            or latents_Bcthw.shape[1] != channels
            or 0 in latents_Bcthw.shape
        ):
            raise ShapeError("latents", f"[B, {channels}, t, h, w]", str(list(latents_Bcthw.shape)))
        _check_floating("latents", latents_Bcthw)
        _check_range("latents", latents_Bcthw, math.inf)
        with self._autocast():
            x_hat_BCTHW: Tensor = self.decoder(latents_Bcthw.to(self.device, torch.float32))
        return x_hat_BCTHW.float()

    def decode_indices(self, indices_Bthw: Tensor) -> Tensor:
        """Turn integers ``[B, t, h, w]`` of any integer dtype into video, as ``decode`` does.

        Raises:
            InputError: wrong rank, not integers, or an index that the codebook does not have
                (ShapeError, DtypeError, IndexRangeError).
            MissingPart: a KL model, or one loaded without its decoder.
        """
        if not isinstance(self.quantizer, FSQ):
            raise MissingPart(self.config.name, "is continuous (kl) and has no indices")
        if indices_Bthw.ndim != 4 or 0 in indices_Bthw.shape:
            raise ShapeError("indices", "[B, t, h, w]", str(list(indices_Bthw.shape)))
        return self.decode(self.quantizer.codes(indices_Bthw.to(self.device)))

    def _encode(self, x_BCTHW: Tensor, sample: bool, generator: torch.Generator | None) -> Encoded:
        with self._autocast():
            h_Bcthw = self.encoder(x_BCTHW)
        if isinstance(self.quantizer, FSQ):
            codes_Bcthw, indices_Bthw = self.quantizer(h_Bcthw)
            return Encoded(latents=codes_Bcthw, indices=indices_Bthw, mean=None, log_variance=None)
        mean, log_variance = self.quantizer(h_Bcthw)
        latents = self.quantizer.sample(mean, log_variance, generator) if sample else mean
        return Encoded(latents=latents, indices=None, mean=mean, log_variance=log_variance)

    def _autocast(self) -> torch.autocast:
        enabled = self.precision is Precision.bf16
        return torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=enabled)

    def _check_video(self, x_BCTHW: Tensor) -> None:
        self._check_video_shape(x_BCTHW, given=x_BCTHW, layout="[B, 3, T, H, W]")
        _check_floating("video", x_BCTHW)
        _check_range("video", x_BCTHW, 1.0)

    def _check_video_shape(self, x_BCTHW: Tensor, *, given: Tensor, layout: str) -> None:
        if x_BCTHW.ndim != 5 or x_BCTHW.shape[1] != COLOURS or x_BCTHW.shape[0] < 1:
            raise ShapeError("video", layout, str(list(given.shape)))
        self.config.latent_shape(*x_BCTHW.shape[2:])


def build(config: TokenizerConfig) -> VideoTokenizer:
    """Model with freshly drawn weights (torch's global generator and default device), for training.

    To use a trained or a reproducible random one, see ``load_tokenizer``.
    """
    return VideoTokenizer(config)


def make_quantizer(config: TokenizerConfig) -> FSQ | Gaussian:
    """Bottleneck of a model."""
    if config.quantizer.kind is QuantizerKind.fsq:
        return FSQ(config.quantizer.levels)
    return Gaussian()


def parse_precision(precision: Precision | str) -> Precision:
    """Precision of that name.

    Raises:
        UnknownName: there is none.
    """
    if isinstance(precision, Precision):
        return precision
    names = [member.name for member in Precision]
    if precision not in names:
        raise UnknownName("precision", precision, names)
    return Precision[precision]


def _check_floating(what: str, x: Tensor) -> None:
    if not x.is_floating_point():
        hint = " (uint8 frames: see encode_uint8)" if x.dtype == torch.uint8 else ""
        raise DtypeError(what, "a float dtype", f"{x.dtype}{hint}")


def _check_range(what: str, x: Tensor, limit: float) -> None:
    """One pass over the tensor; NaN survives aminmax, so it is seen as well."""
    low, high = (float(bound) for bound in x.detach().aminmax())
    if not (math.isfinite(low) and math.isfinite(high)):
        raise NonFiniteError(what, "finite values", "NaN or infinity")
    if low < -limit - RANGE_TOLERANCE or high > limit + RANGE_TOLERANCE:
        raise RangeError(what, f"values in [{-limit:g}, {limit:g}]", f"[{low:g}, {high:g}]")
