"""The tokenizer as one module: checks its input, encodes, quantises, decodes."""

# B batch · C colour · T H W frames, rows, columns · c t h w the same after the encoder

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from tokenizer.arithmetic import arithmetic, compute_dtype
from tokenizer.checks import (
    check_causal,
    check_chunk,
    check_frames,
    check_latents,
    check_video,
    parse_name,
)
from tokenizer.config import Precision, QuantizerKind, TokenizerConfig, Version
from tokenizer.decoder import Decoder
from tokenizer.encoder import Encoder
from tokenizer.errors import MissingPart, ShapeError
from tokenizer.layers.stream import Stream, StreamMode
from tokenizer.quantizers.fsq import FSQ
from tokenizer.quantizers.gaussian import Gaussian
from tokenizer.streaming import EncoderState, rechunk

if TYPE_CHECKING:
    from tokenizer.checkpoint import CheckpointInfo


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
        """Choose fp32, tf32 or bf16 for convolutions and attention; the rest stays fp32.

        Raises:
            UnknownName: none of these.
        """
        self.precision = parse_name("precision", precision, Precision)

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
        check_video(self.config, x_BCTHW)
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
        check_frames(self.config, frames_BTHWC)
        return self._encode(self.scaled(frames_BTHWC))

    def encode_chunk(
        self, x_BCTHW: Tensor, state: EncoderState | None = None
    ) -> tuple[Encoded, EncoderState]:
        """Turn the next frames of B videos into tokens; causal models only.

        A stream whose first chunk has 1 frame, or 1 + k * tdf, and whose later chunks have
        multiples of tdf frames (tdf = ``config.time_downsample_factor``) gives the tokens of the
        whole video, up to rounding. No chunk changes earlier tokens: the last may be filled up at
        its end with any frames, and the tokens of those dropped. v1.1: a first chunk of any length
        is padded at its front as a clip of that length is. A later chunk that is no multiple of
        tdf is padded at its front with copies of its own first frame, as published for v1.1.

        Args:
            x_BCTHW: as for ``encode``.
            state: what this method gave for the chunk before, of the same rows in the same order
                (see ``EncoderState.cat``); None for first chunks.

        Returns:
            The tokens of this chunk, and the state for the next one.

        Raises:
            InputError: as ``encode``; a first chunk that v1.0 would cut (ShapeError); a state of
                other rows or another frame size (ShapeError).
            MissingPart: the model is not causal.
        """
        check_causal(self.config)
        check_video(self.config, x_BCTHW, is_first=state is None)
        return self._encode_chunk(x_BCTHW.to(self.device, torch.float32), state)

    @torch.no_grad()
    def encode_chunk_uint8(
        self, frames_BTHWC: Tensor, state: EncoderState | None = None
    ) -> tuple[Encoded, EncoderState]:
        """``encode_chunk`` of decoded video, uint8 ``[B, T, H, W, 3]``; records no gradients."""
        check_causal(self.config)
        check_frames(self.config, frames_BTHWC, is_first=state is None)
        return self._encode_chunk(self.scaled(frames_BTHWC), state)

    def stream_encode(
        self, frames: Tensor | Iterable[Tensor], chunk: int = 16, *, first: int = 1
    ) -> Iterator[Encoded]:
        """Turn videos of any length into tokens, in memory that does not grow with the length.

        The chunks are ``first`` frames, then ``chunk`` at a time, then the rest; ``encode_chunk``
        says what that means for lengths other than first + k * tdf. Records no gradients.

        Args:
            frames: blocks of any lengths, one after the other or all in one: floats
                ``[B, 3, T, H, W]`` in [-1, 1], or uint8 ``[B, T, H, W, 3]``.
            chunk: frames per chunk, a multiple of tdf.
            first: frames of the first chunk; to equal ``encode`` of a whole clip of T frames (v1.1)
                it must be congruent to T modulo tdf.

        Raises:
            InputError, MissingPart: as ``encode_chunk``; a chunk that does not fit (ShapeError).
        """
        factor = self.config.time_downsample_factor
        if chunk < 1 or chunk % factor or first < 1:
            expected = f"a multiple of {factor} frames, after a first one of at least 1"
            raise ShapeError("chunk", expected, f"{chunk} after {first}")
        check_causal(self.config)
        return self._stream_encode(frames, chunk, first)

    def _stream_encode(
        self, frames: Tensor | Iterable[Tensor], chunk: int, first: int
    ) -> Iterator[Encoded]:
        blocks = iter((frames,) if isinstance(frames, Tensor) else frames)
        block = next(blocks, None)
        if block is None:
            return
        is_uint8, state = block.dtype == torch.uint8, None
        encode = self.encode_chunk_uint8 if is_uint8 else self.encode_chunk
        blocks = itertools.chain((block,), blocks)
        for part, _ in rechunk(blocks, dim=1 if is_uint8 else 2, first=first, chunk=chunk):
            with torch.no_grad():
                encoded, state = encode(part, state)
            yield encoded

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
        return self._decode(latents_Bcthw, Stream())

    def decode_indices(self, indices_Bthw: Tensor) -> Tensor:
        """Turn integers ``[B, t, h, w]`` of any integer dtype into video, as ``decode`` does.

        Raises:
            InputError: wrong rank, not integers, or an index that the codebook does not have
                (ShapeError, DtypeError, IndexRangeError).
            MissingPart: a KL model, or one loaded without its decoder.
        """
        return self.decode(self._codes(indices_Bthw))

    def stream_decode(
        self,
        latents: Tensor | Iterable[Tensor],
        chunk: int | None = None,
        mode: StreamMode | str = StreamMode.exact,
    ) -> Iterator[Tensor]:
        """Turn latents of any number into video, in memory that does not grow with the number.

        Causal models only. The chunks are 1 latent frame, then ``chunk`` at a time, then the rest;
        what they give, one after the other, has the length of ``decode``: for v1.1 the first
        tdf - 1 frames stand for the front padding. Records no gradients.

        Args:
            latents: blocks of any lengths, one after the other or all in one: floats
                ``[B, c, t, h, w]`` as for ``decode``, or integers ``[B, t, h, w]`` as for
                ``decode_indices``.
            chunk: latent frames per chunk; None: as many as make 16 frames.
            mode: exact: equal to ``decode`` up to rounding; the last tdf - 1 frames of a chunk
                come with the next one (v1.1). overlap: as the published v1.1 code decodes long
                videos, which differs a little from ``decode``. no_overlap: published, too; seams.

        Yields:
            float32 ``[B, 3, T, H, W]``, about [-1, 1] but not clamped.

        Raises:
            InputError, MissingPart: as ``decode``; not a causal model; a published mode of a
                model that is not v1.1.
            UnknownName: no such mode.
        """
        mode = parse_name("mode", mode, StreamMode)
        factor = self.config.time_downsample_factor
        chunk = max(1, 16 // factor) if chunk is None else chunk
        if chunk < 1:
            raise ShapeError("chunk", "at least 1 latent frame", str(chunk))
        check_causal(self.config)
        self._check_decoder()
        if mode is not StreamMode.exact and self.config.version is not Version.v1_1:
            raise MissingPart(self.config.name, f"mode={mode.name} is for v1.1 only; use exact")
        return self._stream_decode(latents, chunk, mode)

    def _stream_decode(
        self, latents: Tensor | Iterable[Tensor], chunk: int, mode: StreamMode
    ) -> Iterator[Tensor]:
        blocks = (latents,) if isinstance(latents, Tensor) else latents
        codes = (z if z.is_floating_point() else self._codes(z) for z in blocks)
        look_ahead = int(mode is StreamMode.overlap)
        past: list[Tensor] | None = None
        for z, is_last in rechunk(codes, dim=2, first=1, chunk=chunk, look_ahead=look_ahead):
            stream = Stream(past, keep=not is_last, mode=mode, surplus_frames=look_ahead)
            with torch.no_grad():
                x_hat_BCTHW = self._decode(z, stream)
            past = stream.left
            surplus = 0 if is_last else look_ahead * self.config.time_downsample_factor
            yield x_hat_BCTHW[:, :, : x_hat_BCTHW.shape[2] - surplus]

    def _encode(
        self,
        x_BCTHW: Tensor,
        sample: bool = False,
        generator: torch.Generator | None = None,
        stream: Stream | None = None,
    ) -> Encoded:
        with arithmetic(self.precision, self.device.type):
            h_Bcthw = self.encoder(x_BCTHW, stream, compute_dtype(self.precision))
        if isinstance(self.quantizer, FSQ):
            codes_Bcthw, indices_Bthw = self.quantizer(h_Bcthw)
            return Encoded(latents=codes_Bcthw, indices=indices_Bthw, mean=None, log_variance=None)
        mean, log_variance = self.quantizer(h_Bcthw)
        latents = self.quantizer.sample(mean, log_variance, generator) if sample else mean
        return Encoded(latents=latents, indices=None, mean=mean, log_variance=log_variance)

    def _encode_chunk(
        self, x_BCTHW: Tensor, state: EncoderState | None
    ) -> tuple[Encoded, EncoderState]:
        B, _, T, H, W = x_BCTHW.shape
        check_chunk(self.config, state, B, T, H, W)
        stream = Stream(None if state is None else state.caches, keep=True)
        encoded = self._encode(x_BCTHW, stream=stream)
        return encoded, EncoderState(caches=tuple(stream.left))

    def _decode(self, latents_Bcthw: Tensor, stream: Stream) -> Tensor:
        decoder = self._check_decoder()
        check_latents(self.config, latents_Bcthw)
        with arithmetic(self.precision, self.device.type):
            z_Bcthw = latents_Bcthw.to(self.device, compute_dtype(self.precision))
            x_hat_BCTHW: Tensor = decoder(z_Bcthw, stream)
        return x_hat_BCTHW.float()

    def _codes(self, indices_Bthw: Tensor) -> Tensor:
        if not isinstance(self.quantizer, FSQ):
            raise MissingPart(self.config.name, "is continuous (kl) and has no indices")
        if indices_Bthw.ndim != 4 or 0 in indices_Bthw.shape:
            raise ShapeError("indices", "[B, t, h, w]", str(list(indices_Bthw.shape)))
        return self.quantizer.codes(indices_Bthw.to(self.device))

    def scaled(self, frames_BTHWC: Tensor) -> Tensor:
        """Decoded video, uint8 ``[B, T, H, W, 3]``, as ``[B, 3, T, H, W]`` in [-1, 1]."""
        # uint8 travels to the device, a quarter of the bytes. The order of operations is that of
        # the published preprocessing, so that inputs are equal to the last bit.
        x_BCTHW = frames_BTHWC.movedim(-1, 1).to(self.device).to(torch.float32)
        return x_BCTHW.div_(255).sub_(0.5).div_(0.5)

    def _check_decoder(self) -> Decoder:
        if self.decoder is None:
            raise MissingPart(self.config.name, "was loaded with decoder=False")
        return self.decoder


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
