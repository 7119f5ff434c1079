"""What encoding and decoding cost, from the configuration alone: operations, and memory of streams.

Operations are those of the published formulas; where they repeat pixels or frames, the network here
does with fewer (``layers/resample.py``). Standard library only. Each convolution of the network is
listed once; sums over the list give the rest. The network itself is in ``encoder.py`` and
``decoder.py``; the tests hold the two together.
"""

# c channels of a level · t h w frames, rows, columns at that place of the network

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from tokenizer.config import Precision, TokenizerConfig

COLOURS = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class Product:
    """One convolution, or the two matrix products of an attention layer."""

    taps: int
    """Positions that each output sums over, all axes together."""
    in_channels: int
    """Channels per position."""
    out_channels: int
    """Channels of the output."""
    shape: tuple[int, int, int]
    """Frames, rows and columns of the output."""
    past_frames: int = 0
    """Input frames that a causal layer keeps between two chunks."""
    has_norm: bool = False
    """Whether a normalisation of its input goes before it."""
    has_blend: bool = False
    """Whether a learned factor blends its output with a plain resampling."""
    has_weights: bool = True
    """False for attention."""

    @property
    def flops(self) -> int:
        """A multiplication and an addition count as two; biases are left out."""
        t, h, w = self.shape
        return 2 * self.taps * self.in_channels * self.out_channels * t * h * w

    @property
    def parameters(self) -> int:
        """Learned numbers: weights, biases, those of the normalisation, and the factor."""
        weights = (self.taps * self.in_channels + 1) * self.out_channels
        return self.has_weights * weights + self.has_norm * 2 * self.in_channels + self.has_blend


def encode_flops(config: TokenizerConfig, num_frames: int, height: int, width: int) -> int:
    """Operations of encoding one clip: convolutions and attention, a multiply-add counting two.

    >>> from tokenizer import get_config
    >>> f"{encode_flops(get_config('fsq_4x8x8'), 17, 256, 256):.3e}"
    '5.824e+12'
    """
    return sum(product.flops for product in encoder_products(config, num_frames, height, width))


def decode_flops(config: TokenizerConfig, num_frames: int, height: int, width: int) -> int:
    """Operations of decoding the tokens of one clip of num_frames x height x width.

    >>> from tokenizer import get_config
    >>> f"{decode_flops(get_config('fsq_4x8x8'), 17, 256, 256):.3e}"
    '1.487e+13'
    """
    t, h, w = config.latent_shape(num_frames, height, width)
    return sum(product.flops for product in decoder_products(config, t, h, w))


def num_parameters(config: TokenizerConfig) -> tuple[int, int]:
    """Learned numbers of encoder and decoder.

    >>> from tokenizer import get_config
    >>> num_parameters(get_config("fsq_4x8x8"))
    (69230472, 88221189)
    """
    factor = config.time_downsample_factor
    encoder, decoder = (
        encoder_products(config, factor, 64, 64),
        decoder_products(config, factor, 64, 64),
    )
    return sum(part.parameters for part in encoder), sum(part.parameters for part in decoder)


def state_bytes(
    config: TokenizerConfig, height: int, width: int, precision: Precision = Precision.fp32
) -> int:
    """Memory of the ``EncoderState`` of one stream of height x width; 0 where there is none.

    >>> from tokenizer import get_config
    >>> state_bytes(get_config("fsq_4x8x8"), 256, 256) / 1e6
    515.375104
    """
    if not config.is_causal:
        return 0
    size = 2 if precision is Precision.bf16 else 4
    first, *inner, last = (
        product.past_frames * product.in_channels * product.shape[1] * product.shape[2]
        for product in encoder_products(config, 1, height, width)
    )
    return size * sum(inner) + 4 * (first + last)  # these two compute in float32


def encoder_products(config: TokenizerConfig, t: int, h: int, w: int) -> Iterator[Product]:
    """Every product of encoding a clip of t x h x w, in the order in which they run."""
    t += config.front_padding(t)
    widths = [config.ch * factor for factor in config.ch_mult]
    yield _volume(COLOURS, config.ch, (t, h, w))
    before = config.ch
    for level, c in enumerate(widths):
        for _ in range(config.num_res_blocks):
            yield from _unit(before, c, (t, h, w))
            before = c
        if level in config.spatial_levels_down:
            h, w = h // 2, w // 2
            yield _product(9, c, c, (t, h, w))
            if level in config.time_levels_down:
                t //= 2
                yield _product(27, c, c, (t, h, w), past_frames=1, has_blend=True)
    yield from _middle(before, (t, h, w))
    out_channels = config.latent_channels * (2 if config.double_z else 1)
    yield _volume(before, out_channels, (t, h, w), has_norm=True)


def decoder_products(config: TokenizerConfig, t: int, h: int, w: int) -> Iterator[Product]:
    """Every product of decoding latents of t x h x w, in the order in which they run."""
    widths = [config.ch * factor for factor in config.ch_mult]
    before = widths[-1]
    yield _volume(config.latent_channels, before, (t, h, w))
    yield from _middle(before, (t, h, w))
    for level, c in reversed(list(enumerate(widths))):
        for _ in range(config.num_res_blocks + 1):
            yield from _unit(before, c, (t, h, w))
            before = c
        if level in config.spatial_levels_up:
            h, w = 2 * h, 2 * w
            yield _product(9, c, c, (t, h, w))
            if level in config.time_levels_up:
                t *= 2
                yield _volume(c, c, (t, h, w), has_blend=True)
    yield _volume(before, COLOURS, (t, h, w), has_norm=True)


Shape = tuple[int, int, int]


def _product(taps: int, before: int, c: int, shape: Shape, **more: Any) -> Product:
    return Product(taps=taps, in_channels=before, out_channels=c, shape=shape, **more)


def _volume(before: int, c: int, shape: Shape, **more: Any) -> Product:
    return _product(27, before, c, shape, past_frames=2, **more)


def _unit(before: int, c: int, shape: Shape) -> Iterator[Product]:
    """Residual block in the frame, residual block in time."""
    yield _product(9, before, c, shape, has_norm=True)
    yield _product(9, c, c, shape, has_norm=True)
    if before != c:
        yield _product(1, before, c, shape)
    for _ in range(2):
        yield _product(3, c, c, shape, has_norm=True, past_frames=2)


def _middle(c: int, shape: Shape) -> Iterator[Product]:
    yield from (_volume(c, c, shape, has_norm=True) for _ in range(4))
    yield from (_product(1, c, c, shape, has_norm=role == "q") for role in ("q", "k", "v", "out"))
    # Each position with all of its frame: similarities, then the weighted sum.
    yield _product(2 * shape[1] * shape[2], 1, c, shape, has_weights=False)
