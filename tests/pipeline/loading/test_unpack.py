"""Bytes to tokens: numpy and torch give the bits of the writer's inverse; draws repeat."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch

from pipeline.loading.hashing import GOLDEN as STEP
from pipeline.loading.hashing import derived_key, hashes, splitmix64, unit_interval
from pipeline.loading.noise import crop_grids, crop_starts, normal_noise
from pipeline.loading.tokens import Moments, TokenMaker
from pipeline.loading.unpack import fsq_codes, unpack, unpack_on_device
from pipeline.packing import pack_indices, pack_latents
from pipeline.schema import TokenFormat
from tokenizer.quantizers.fsq import FSQ

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]
BOUNDS = {"u16": 1 << 16, "u16+u2": 1 << 18, "i32": 1 << 31}
SHAPES = ((5, 16, 16), (1, 3, 5), (1, 1, 2), (1, 1, 1), (2, 1, 3))


def token_format(packing: str, **changes: Any) -> TokenFormat:
    discrete = packing in BOUNDS
    fields: dict[str, Any] = {
        "format_version": 1, "tokenizer": "some_tokenizer", "checkpoint_digest": "0" * 64,
        "random_weights": False, "packing": packing, "axes": "t h w" if discrete else "c t h w",
        "codebook_size": 32768 if discrete else None,
        "levels": (8, 8, 8, 8, 8) if discrete else (), "channels": None if discrete else 3,
        "fingerprint": "f",
    }  # fmt: skip
    return TokenFormat(**{**fields, **changes})


def packed(values: list[np.ndarray], packing: str) -> np.ndarray:
    pack = pack_indices if packing in BOUNDS else pack_latents
    return np.stack([np.frombuffer(pack(one, packing), dtype=np.uint8) for one in values])


def drawn(packing: str, shape: tuple[int, ...]) -> list[np.ndarray]:
    dice = np.random.default_rng(2)
    if packing in BOUNDS:
        indices = [dice.integers(0, BOUNDS[packing], shape, dtype=np.int32) for _ in range(3)]
        indices[0].flat[0], indices[1].flat[-1] = BOUNDS[packing] - 1, 0
        return indices
    exact = dice.integers(-128, 128, (3, 6, *shape)).astype(np.float32) / 32  # in each of the types
    return list(exact)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("packing", ["u16", "u16+u2", "i32", "fp32", "fp16", "bf16"])
def test_numpy_gives_back_what_was_packed(packing: str, shape: tuple[int, ...]) -> None:
    values = drawn(packing, shape)
    blob = packed(values, packing)
    blob.flags.writeable = False  # as Arrow gives it
    unpacked = unpack(blob, packing, values[0].shape)
    assert np.array_equal(unpacked, np.stack(values))
    assert unpacked.dtype == (np.int32 if packing in BOUNDS else np.float32)
    assert unpacked.flags.writeable


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("packing", ["u16", "u16+u2", "i32", "fp32", "fp16", "bf16"])
def test_torch_gives_the_bits_of_numpy(packing: str, shape: tuple[int, ...], device: str) -> None:
    values = drawn(packing, shape)
    blob = packed(values, packing)
    expected = unpack(blob, packing, values[0].shape)
    unpacked = unpack_on_device(torch.from_numpy(blob).to(device), packing, values[0].shape)
    assert unpacked.device.type == device
    assert np.array_equal(unpacked.cpu().numpy(), expected)
    assert unpacked.cpu().numpy().dtype == expected.dtype


def test_rows_may_be_a_window_into_a_wider_array() -> None:
    values = drawn("u16+u2", (1, 3, 5))
    blob = packed(values, "u16+u2")
    wide = np.zeros((3, blob.shape[1] + 7), dtype=np.uint8)
    wide[:, 3 : 3 + blob.shape[1]] = blob
    unpacked = unpack(wide[:, 3 : 3 + blob.shape[1]], "u16+u2", (1, 3, 5))
    assert np.array_equal(unpacked, np.stack(values))


@pytest.mark.parametrize("levels", [(8, 8, 8, 5, 5, 5), (8, 8, 8, 8, 8), (3, 4, 5), (8,) * 6])
def test_codes_are_those_of_the_tokenizer(levels: tuple[int, ...]) -> None:
    indices = torch.from_numpy(
        np.random.default_rng(0).integers(0, math.prod(levels), (4, 2, 8, 8), dtype=np.int32)
    )
    assert torch.equal(fsq_codes(indices, levels), FSQ(levels).codes(indices))


def test_an_index_outside_the_codebook_has_no_codes() -> None:
    with pytest.raises(IndexError):
        fsq_codes(torch.tensor([[[[0, 60]]]]), (3, 4, 5))


def test_hashes_are_pinned_for_ever() -> None:
    first = splitmix64(np.array([0, 1, 2**64 - 1], dtype=np.uint64)).tolist()
    assert first == [0xE220A8397B1DCDAF, 0x910A2DEC89025CC1, 0xE4D971771B652C20]
    assert derived_key(0, 1, "crop") == derived_key(np.int64(0), np.int32(1), "crop")
    keys = [derived_key(*words) for words in ((0, 1), (1, 0), (0, "1"), ("0", 1), (0, 1, ""))]
    assert len(set(keys)) == 5
    uniform = unit_interval(hashes(np.arange(100_000), derived_key(5, 0, "test")))
    assert 0 <= uniform.min() < 1e-3 < 1 - 1e-3 < uniform.max() < 1
    assert np.histogram(uniform, 100)[0].std() < 50  # 32 is expected


def test_noise_is_that_of_the_hash_of_its_sample() -> None:
    samples = np.array([3, 10**12], dtype=np.int64)
    keys = hashes(samples, derived_key(7, 2, "noise"))
    with np.errstate(over="ignore"):
        counters = keys[:, None] + np.arange(3, dtype=np.uint64) * np.uint64(STEP)
        hashed = splitmix64(counters - np.uint64(STEP))  # which adds it again
    radius = np.sqrt(-2 * np.log(((hashed >> np.uint64(40)) + np.uint64(1)) * 2.0**-24))
    angle = 2 * np.pi * ((hashed >> np.uint64(8)) & np.uint64(0xFFFFFF)) * 2.0**-24
    expected = np.stack((radius * np.cos(angle), radius * np.sin(angle)), -1).reshape(2, 6)[:, :5]
    noise = normal_noise(samples, (5,), seed=7, epoch=2, device="cpu")
    np.testing.assert_allclose(noise.numpy(), expected, atol=2e-6)


def test_noise_does_not_know_the_batch_and_is_normal() -> None:
    samples = np.arange(64, dtype=np.int64)
    noise = normal_noise(samples, (4, 2, 16, 16), seed=0, epoch=0, device="cpu")
    alone = normal_noise(samples[17:18], (4, 2, 16, 16), seed=0, epoch=0, device="cpu")
    assert torch.equal(alone[0], noise[17])
    assert abs(float(noise.mean())) < 0.01
    assert float(noise.std()) == pytest.approx(1, abs=0.01)
    assert float((noise.abs() < 1).float().mean()) == pytest.approx(0.6827, abs=0.005)
    even, odd = noise.reshape(-1, 2).T
    assert abs(float((even * odd).mean())) < 0.02
    for seed, epoch in ((1, 0), (0, 1)):
        other = normal_noise(samples, (4, 2, 16, 16), seed=seed, epoch=epoch, device="cpu")
        assert abs(float((other * noise).mean())) < 0.02


@pytest.mark.gpu
def test_noise_is_the_same_on_a_gpu() -> None:
    samples = np.arange(8, dtype=np.int64)
    here, there = (
        normal_noise(samples, (4, 5, 16, 16), seed=3, epoch=1, device=device).cpu()
        for device in ("cpu", "cuda")
    )
    torch.testing.assert_close(here, there, atol=1e-5, rtol=1e-5)


def test_crops_reach_every_place_alike_and_repeat() -> None:
    samples = np.arange(30_000, dtype=np.int64)
    starts = crop_starts(samples, (5, 16, 16), (5, 14, 7), seed=0, epoch=0)
    assert set(starts[:, 0].tolist()) == {0}
    assert np.bincount(starts[:, 1], minlength=3) == pytest.approx([10_000] * 3, rel=0.04)
    assert np.bincount(starts[:, 2], minlength=10) == pytest.approx([3_000] * 10, rel=0.1)
    assert abs(np.corrcoef(starts[:, 1], starts[:, 2])[0, 1]) < 0.02
    again = crop_starts(samples[5:6], (5, 16, 16), (5, 14, 7), seed=0, epoch=0)
    assert again.tolist() == starts[5:6].tolist()
    assert (
        crop_starts(samples, (5, 16, 16), (5, 14, 7), seed=0, epoch=1).tolist() != starts.tolist()
    )


def test_a_crop_is_cut_where_it_starts() -> None:
    tokens = torch.arange(2 * 3 * 4 * 5 * 6).reshape(2, 3, 4, 5, 6)
    cut = crop_grids(tokens, np.array([[0, 1, 2], [2, 3, 4]]), (2, 2, 2))
    assert torch.equal(cut[0], tokens[0, :, 0:2, 1:3, 2:4])
    assert torch.equal(cut[1], tokens[1, :, 2:4, 3:5, 4:6])


@pytest.mark.parametrize("crop", [(6, 4, 4), (1, 17, 1), (0, 1, 1)])
def test_a_crop_outside_the_grid_is_refused(crop: tuple[int, int, int]) -> None:
    with pytest.raises(ValueError, match=r"crop_latents=.* must lie inside .*\(5, 16, 16\)"):
        crop_starts(np.arange(2), (5, 16, 16), crop, seed=0, epoch=0)


@pytest.mark.parametrize("on_torch", [False, True])
def test_indices_come_in_the_dtype_asked_for(on_torch: bool) -> None:
    indices = [one % 32768 for one in drawn("u16", (5, 16, 16))]
    blob: Any = packed(indices, "u16")
    blob = torch.from_numpy(blob) if on_torch else blob
    samples = np.arange(3)
    made = {
        dtype: TokenMaker(token_format=token_format("u16"), tokens_dtype=dtype)(
            blob, (5, 16, 16), samples, epoch=0
        )["tokens"]
        for dtype in ("int32", "int64", "codes")
    }
    assert made["int32"].dtype == torch.int32
    assert made["int64"].dtype == torch.int64
    assert torch.equal(made["int64"], torch.from_numpy(np.stack(indices)).long())
    assert made["codes"].shape == (3, 5, 5, 16, 16)
    cut = TokenMaker(token_format=token_format("u16"), tokens_dtype="codes", crop=(1, 8, 8))(
        blob, (5, 16, 16), samples, epoch=0
    )["tokens"]
    starts = crop_starts(samples, (5, 16, 16), (1, 8, 8), seed=0, epoch=0)
    assert torch.equal(cut, crop_grids(made["codes"], starts, (1, 8, 8)))


def test_latents_are_a_mean_or_a_sample_and_normalised_alike() -> None:
    stored = drawn("bf16", (2, 4, 4))
    blob, samples = packed(stored, "bf16"), np.array([4, 9, 2])
    plain = TokenMaker(token_format=token_format("bf16"))(blob, (3, 2, 4, 4), samples, epoch=1)
    mean, log_variance = torch.from_numpy(np.stack(stored)).chunk(2, dim=1)
    assert torch.equal(plain["tokens"], mean)
    assert torch.equal(plain["log_variance"], log_variance)
    noise = normal_noise(samples, (3, 2, 4, 4), seed=5, epoch=1, device="cpu")
    drawn_sample = TokenMaker(token_format=token_format("bf16"), latents="sample", seed=5)(
        blob, (3, 2, 4, 4), samples, epoch=1
    )
    assert list(drawn_sample) == ["tokens"]
    torch.testing.assert_close(drawn_sample["tokens"], mean + (log_variance / 2).exp() * noise)
    moments = Moments(mean=(1.0, 0.0, -1.0), std=(2.0, 1.0, 0.5))
    normal = TokenMaker(token_format=token_format("bf16"), moments=moments)(
        blob, (3, 2, 4, 4), samples, epoch=1
    )
    torch.testing.assert_close(normal["tokens"][:, 0], (mean[:, 0] - 1) / 2)
    torch.testing.assert_close(
        (normal["log_variance"][:, 2] / 2).exp(), (log_variance[:, 2] / 2).exp() / 0.5
    )


@pytest.mark.parametrize(
    ("packing", "wishes", "said"),
    [
        ("u16", {"tokens_dtype": "int16"}, "int32, int64, codes, got 'int16'"),
        ("bf16", {"latents": "mode"}, "mean, sample, got 'mode'"),
        ("u16", {"latents": "sample"}, "is discrete"),
        ("bf16", {"tokens_dtype": "codes"}, "is for indices"),
        ("bf16", {"moments": Moments(mean=(0.0,), std=(1.0,))}, "3 means"),
        ("bf16", {"moments": Moments(mean=(0.0,) * 3, std=(1.0, 0.0, 1.0))}, "positive"),
    ],
)
def test_what_cannot_be_had_is_refused_when_asked(packing: str, wishes: Any, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        TokenMaker(token_format=token_format(packing), **wishes)
