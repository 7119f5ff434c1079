"""What the model accepts, refuses and gives back."""

from __future__ import annotations

import pytest
import torch

from tests.close import assert_close_bf16, assert_exact
from tests.tokenizer.formulas import formula_model, pattern
from tokenizer import (
    DtypeError,
    IndexRangeError,
    InputError,
    MissingPart,
    NonFiniteError,
    RangeError,
    ShapeError,
    UnknownName,
    VideoTokenizer,
    load_tokenizer,
)
from tokenizer.arithmetic import tf32_products


@pytest.fixture(scope="module")
def demo() -> VideoTokenizer:
    return formula_model("demo")


def good() -> torch.Tensor:
    return pattern(1, 5, 16, 16)


def test_tokens_have_the_promised_shapes_and_dtypes(demo: VideoTokenizer) -> None:
    encoded = demo.encode(pattern(2, 5, 16, 24))
    assert encoded.latents.shape == (2, 6, 2, 2, 3)
    assert encoded.indices is not None
    assert (encoded.indices.shape, encoded.indices.dtype) == ((2, 2, 2, 3), torch.int32)
    assert encoded.mean is encoded.log_variance is None
    assert demo.decode(encoded.latents).shape == (2, 3, 5, 16, 24)


def test_indices_decode_like_their_codes(demo: VideoTokenizer) -> None:
    encoded = demo.encode(good())
    assert encoded.indices is not None
    assert_exact(demo.decode_indices(encoded.indices), demo.decode(encoded.latents))


@pytest.mark.parametrize(
    ("x", "error", "message"),
    [
        (torch.zeros(3, 5, 16, 16), ShapeError, r"\[B, 3, T, H, W\], got \[3, 5, 16, 16\]"),
        (torch.zeros(1, 5, 3, 16, 16), ShapeError, r"got \[1, 5, 3, 16, 16\]"),
        (torch.zeros(1, 1, 5, 16, 16), ShapeError, r"got \[1, 1, 5, 16, 16\]"),
        (torch.zeros(0, 3, 5, 16, 16), ShapeError, r"got \[0, 3, 5, 16, 16\]"),
        (torch.zeros(1, 3, 5, 7, 16), ShapeError, "at least 1x8x8.* got 5x7x16"),
        (torch.zeros(1, 3, 0, 16, 16), ShapeError, "got 0x16x16"),
        (torch.zeros(1, 3, 5, 16, 16, dtype=torch.uint8), DtypeError, "uint8.*encode_uint8"),
        (torch.zeros(1, 3, 5, 16, 16, dtype=torch.int64), DtypeError, "float dtype.*int64"),
        (good() * 1.1, RangeError, r"\[-1, 1\], got \["),
        ((good() + 1) * 127.5, RangeError, r"\[-1, 1\]"),
        (torch.full_like(good(), float("nan")), NonFiniteError, "NaN"),
        (torch.full_like(good(), float("inf")), NonFiniteError, "infinity"),
    ],
)
def test_bad_video_is_refused(
    demo: VideoTokenizer, x: torch.Tensor, error: type[InputError], message: str
) -> None:
    with pytest.raises(error, match=message):
        demo.encode(x)


def test_one_bad_value_is_found(demo: VideoTokenizer) -> None:
    x_BCTHW = good()
    x_BCTHW[0, 1, 2, 3, 4] = float("nan")
    with pytest.raises(NonFiniteError):
        demo.encode(x_BCTHW)


def test_rounding_just_outside_the_range_is_forgiven(demo: VideoTokenizer) -> None:
    demo.encode(torch.full((1, 3, 1, 8, 8), 1.0005))


@pytest.mark.parametrize("frames", [1, 2, 3, 4, 6, 8])
def test_lengths_that_do_not_fit_are_accepted(demo: VideoTokenizer, frames: int) -> None:
    x_BCTHW = pattern(1, frames, 19, 21)
    encoded = demo.encode(x_BCTHW)
    assert encoded.latents.shape[2:] == demo.config.latent_shape(frames, 19, 21)
    assert demo(x_BCTHW).shape[2] == demo.config.decoded_frames(encoded.latents.shape[2])


@pytest.mark.parametrize("mode", ["constant", "reflect"])
def test_other_front_paddings_change_the_tokens(demo: VideoTokenizer, mode: str) -> None:
    other = formula_model("demo", init_pad_mode=mode)
    x_BCTHW = pattern(1, 5, 16, 16)
    assert not torch.equal(other.encoder(x_BCTHW), demo.encoder(x_BCTHW))


def test_uint8_frames_give_the_tokens_of_scaled_ones(demo: VideoTokenizer) -> None:
    generator = torch.Generator().manual_seed(0)
    frames = torch.randint(0, 256, (2, 5, 16, 16, 3), dtype=torch.uint8, generator=generator)
    x_BCTHW = ((frames / 255 - 0.5) / 0.5).permute(0, 4, 1, 2, 3)
    before = frames.clone()
    assert_exact(demo.encode_uint8(frames).indices, demo.encode(x_BCTHW).indices)
    assert_exact(frames, before)


@pytest.mark.parametrize(
    ("frames", "error"),
    [
        (torch.zeros(1, 5, 16, 16, 3), DtypeError),
        (torch.zeros(1, 3, 5, 16, 16, dtype=torch.uint8), ShapeError),
        (torch.zeros(5, 16, 16, 3, dtype=torch.uint8), ShapeError),
    ],
)
def test_bad_frames_are_refused(
    demo: VideoTokenizer, frames: torch.Tensor, error: type[InputError]
) -> None:
    with pytest.raises(error, match=r"\[B, T, H, W, 3\]"):
        demo.encode_uint8(frames)


@pytest.mark.parametrize(
    ("latents", "error"),
    [
        (torch.zeros(1, 5, 1, 2, 2), ShapeError),
        (torch.zeros(6, 1, 2, 2), ShapeError),
        (torch.zeros(1, 6, 1, 2, 2, dtype=torch.int32), DtypeError),
        (torch.full((1, 6, 1, 2, 2), float("nan")), NonFiniteError),
    ],
)
def test_bad_latents_are_refused(
    demo: VideoTokenizer, latents: torch.Tensor, error: type[InputError]
) -> None:
    with pytest.raises(error, match="latents"):
        demo.decode(latents)


def test_index_outside_the_codebook_is_refused(demo: VideoTokenizer) -> None:
    with pytest.raises(IndexRangeError, match="262144"):
        demo.decode_indices(torch.full((1, 1, 2, 2), 262144))
    with pytest.raises(ShapeError, match=r"\[B, t, h, w\]"):
        demo.decode_indices(torch.zeros(4, dtype=torch.int32))


def test_what_a_model_does_not_have_is_said(demo: VideoTokenizer) -> None:
    with pytest.raises(MissingPart, match="kl models only"):
        demo.encode(good(), sample=True)
    with pytest.raises(MissingPart, match="no indices"):
        formula_model("kl_4x8x8_4chn", ch=16).decode_indices(torch.zeros(1, 1, 2, 2).int())
    with pytest.raises(MissingPart, match="decoder=False"):
        load_tokenizer("demo", decoder=False).decode(torch.zeros(1, 6, 1, 2, 2))


def test_bf16_stays_near_fp32() -> None:
    model, x_BCTHW = formula_model("kl_4x8x8_4chn", ch=16), pattern(1, 5, 32, 32)
    exact = model.encode(x_BCTHW).latents
    model.set_precision("bf16")
    rounded = model.encode(x_BCTHW).latents
    assert rounded.dtype == model.decode(rounded).dtype == torch.float32
    assert not torch.equal(rounded, exact)
    assert_close_bf16(rounded, exact)


def test_unknown_precision_is_refused(demo: VideoTokenizer) -> None:
    with pytest.raises(UnknownName, match=r"'fp16'.*known: fp32, tf32, bf16"):
        demo.set_precision("fp16")


def test_gradients_reach_every_parameter() -> None:
    model = formula_model("demo").requires_grad_(True).train()
    model(good()).square().mean().backward()
    assert [name for name, p in model.named_parameters() if p.grad is None] == []


def test_tf32_is_fp32_on_a_cpu() -> None:
    model, x_BCTHW = formula_model("fsq_4x8x8", ch=16), pattern(1, 5, 16, 16)
    expected = model.encode(x_BCTHW).latents
    model.set_precision("tf32")
    assert_exact(model.encode(x_BCTHW).latents, expected)


@pytest.mark.parametrize("allowed", [True, False])
def test_rounding_of_cuda_products_is_switched_and_put_back(allowed: bool) -> None:
    """fp32 must switch it off: torch leaves it on for convolutions."""
    backends = torch.backends
    before = (backends.cudnn.allow_tf32, backends.cuda.matmul.allow_tf32)
    with tf32_products(allowed):
        wanted = "tf32" if allowed else "ieee"
        assert backends.cudnn.conv.fp32_precision == wanted
        assert backends.cuda.matmul.fp32_precision == wanted
    assert (backends.cudnn.allow_tf32, backends.cuda.matmul.allow_tf32) == before
