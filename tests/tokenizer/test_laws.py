"""Laws: no look into the future, and no influence among the clips of a batch."""

from __future__ import annotations

import pytest
import torch

from tests.close import assert_close_fp32, assert_close_stream, assert_exact
from tests.tokenizer.formulas import formula_model, pattern


def changed_latent_frames(name: str, num_frames: int, frame: int) -> list[int]:
    model, x_BCTHW = formula_model(name, ch=16), pattern(1, num_frames, 16, 16)
    before = model.encoder(x_BCTHW)
    x_BCTHW[:, :, frame] *= -1
    difference = (model.encoder(x_BCTHW) - before).abs().amax(dim=(0, 1, 3, 4))
    return difference.nonzero().flatten().tolist()


@pytest.mark.parametrize("name", ["fsq_4x8x8", "fsq_4x8x8_32768_v1_1"])
@pytest.mark.parametrize(("frame", "first"), [(0, 0), (1, 1), (4, 1), (5, 2), (16, 4)])
def test_causal_latents_never_see_later_frames(name: str, frame: int, first: int) -> None:
    assert changed_latent_frames(name, 17, frame) == list(range(first, 5))


def test_noncausal_latents_do_see_later_frames() -> None:
    assert 0 in changed_latent_frames("fsq_4x8x8_noncausal", 16, 8)


@pytest.mark.parametrize(("name", "look_ahead"), [("fsq_4x8x8", 0), ("fsq_4x8x8_32768_v1_1", 3)])
def test_causal_decoder_sees_later_latents_by_interpolation_only(
    name: str, look_ahead: int
) -> None:
    model = formula_model(name, ch=16)
    generator = torch.Generator().manual_seed(0)
    z = torch.rand(1, model.config.latent_channels, 3, 2, 2, generator=generator) - 0.5
    before = model.decode(z)
    z[:, :, 2] *= -1
    same = (model.decode(z) == before).all(dim=(0, 1, 3, 4)).tolist()
    assert same.index(False) == before.shape[2] - 4 - look_ahead


@pytest.mark.parametrize("threads", [2, 3])
def test_tokens_do_not_depend_on_place_or_company_in_the_batch(threads: int) -> None:
    """Bitwise, for a fixed batch shape; three threads share four clips unevenly."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        model = formula_model("fsq_4x8x8", ch=16)
        generator = torch.Generator().manual_seed(0)
        x_BCTHW, others = (torch.rand(2, 4, 3, 17, 64, 64, generator=generator) * 2 - 1).unbind()
        expected = model.encoder(x_BCTHW)
        for shift in (1, 2, 3):
            assert_exact(model.encoder(x_BCTHW.roll(shift, 0)).roll(-shift, 0), expected)
        for place in range(4):
            mixed = others.clone()
            mixed[place] = x_BCTHW[0]
            assert_exact(model.encoder(mixed)[place], expected[0])
    finally:
        torch.set_num_threads(before)


def test_batch_size_changes_rounding_only() -> None:
    model, x_BCTHW = formula_model("fsq_4x8x8", ch=16), pattern(3, 5, 32, 32)
    alone = torch.cat([model.encoder(x_BCTHW[b : b + 1]) for b in range(3)])
    assert_close_fp32(model.encoder(x_BCTHW), alone)


@pytest.mark.parametrize("name", ["fsq_4x8x8", "fsq_4x8x8_32768_v1_1", "kl_2x8x8_8chn"])
def test_first_frame_alone_gives_the_first_latent_of_its_clip(name: str) -> None:
    model, x_BCTHW = formula_model(name, ch=16), pattern(1, 9, 32, 32)
    alone, clip = model.encoder(x_BCTHW[:, :, :1]), model.encoder(x_BCTHW)
    assert_close_stream(alone, clip[:, :, :1])


@pytest.mark.parametrize("value", [-1.0, 1.0, "noise", "checkers"])
@pytest.mark.parametrize("name", ["fsq_4x8x8", "fsq_8x8x8_32768_v1_1", "kl_4x8x8_4chn_noncausal"])
def test_extreme_pictures_give_finite_tokens_and_video(name: str, value: float | str) -> None:
    model = formula_model(name, ch=16)
    x_BCTHW = torch.full((1, 3, 8, 16, 16), 1.0 if isinstance(value, str) else value)
    if value == "noise":
        x_BCTHW = torch.rand(x_BCTHW.shape).round() * 2 - 1
    if value == "checkers":
        x_BCTHW[..., ::2, 1::2] = x_BCTHW[..., 1::2, ::2] = -1
    if model.config.is_causal:
        x_BCTHW = x_BCTHW[:, :, :5]
    encoded = model.encode(x_BCTHW)
    assert model.decode(encoded.latents).isfinite().all()
    if encoded.indices is not None:
        assert int(encoded.indices.min()) >= 0
        assert int(encoded.indices.max()) < (model.config.codebook_size or 0)
