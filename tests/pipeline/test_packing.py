"""Tokens to bytes and back, bit-exact."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from pipeline.packing import (
    compress_planes,
    expand_planes,
    index_packing,
    pack_indices,
    pack_latents,
    packed_bytes,
    unpack_indices,
    unpack_latents,
)

BOUNDS = {"u16": 1 << 16, "u16+u2": 1 << 18, "i32": (1 << 31)}


def blob(*clips: bytes) -> np.ndarray:
    return np.frombuffer(b"".join(clips), np.uint8).reshape(len(clips), -1)


@pytest.mark.parametrize(
    ("size", "plain", "packing"),
    [
        (2, False, "u16"),
        (32768, False, "u16"),
        (65536, False, "u16"),
        (65537, False, "u16+u2"),
        (262144, False, "u16+u2"),
        (262145, False, "i32"),
        (4096, True, "i32"),
    ],
)
def test_packing_of_a_codebook(size: int, plain: bool, packing: str) -> None:
    assert index_packing(size, plain=plain) == packing


@pytest.mark.parametrize("packing", BOUNDS)
@pytest.mark.parametrize("shape", [(1, 1, 1), (1, 1, 2), (1, 1, 3), (2, 3, 5), (5, 16, 16)])
def test_indices_come_back_as_they_were(packing: str, shape: tuple[int, ...]) -> None:
    clips = np.random.default_rng(0).integers(0, BOUNDS[packing], (3, *shape), dtype=np.int64)
    clips = clips.astype(np.int32)
    packed = [pack_indices(clip, packing) for clip in clips]
    assert {len(one) for one in packed} == {packed_bytes(packing, clips[0].size)}
    back = unpack_indices(blob(*packed), packing, shape)
    assert back.dtype == np.int32
    np.testing.assert_array_equal(back, clips)


@pytest.mark.parametrize("packing", BOUNDS)
def test_the_smallest_and_the_largest_index_are_held(packing: str) -> None:
    edges = np.array([0, BOUNDS[packing] - 1, 0, BOUNDS[packing] - 1, 1], dtype=np.int32)
    back = unpack_indices(blob(pack_indices(edges, packing)), packing, (5,))
    np.testing.assert_array_equal(back[0], edges)


@pytest.mark.parametrize(("packing", "bad"), [("u16", 1 << 16), ("u16+u2", 1 << 18), ("i32", -1)])
def test_an_index_out_of_range_is_refused(packing: str, bad: int) -> None:
    with pytest.raises(ValueError, match=rf"must lie in \[0, {BOUNDS[packing]}\)"):
        pack_indices(np.array([0, bad], dtype=np.int32), packing)


@pytest.mark.parametrize("packing", BOUNDS)
def test_a_negative_index_is_refused(packing: str) -> None:
    with pytest.raises(ValueError, match="must lie in"):
        pack_indices(np.array([-1, 3], dtype=np.int32), packing)


def test_strided_indices_are_packed_in_c_order() -> None:
    clip = np.arange(24, dtype=np.int32).reshape(2, 3, 4)
    turned = clip.transpose(2, 0, 1)
    back = unpack_indices(blob(pack_indices(turned, "u16+u2")), "u16+u2", turned.shape)
    np.testing.assert_array_equal(back[0], turned)


@pytest.mark.parametrize(("packing", "bits"), [("u16", 16.0), ("u16+u2", 18.0), ("i32", 32.0)])
def test_bits_of_an_index(packing: str, bits: float) -> None:
    num = 5 * 32 * 32
    assert len(pack_indices(np.zeros(num, np.int32), packing)) * 8 / num == bits


def test_bytes_are_little_endian_whatever_the_machine() -> None:
    assert pack_indices(np.array([0x0102], np.int32), "u16") == b"\x02\x01"
    assert pack_indices(np.array([0x0102], np.int32), "i32") == b"\x02\x01\0\0"
    assert pack_indices(np.array([0x10000, 0x20000, 0, 0x30000, 0x10000]), "u16+u2") == (
        bytes(10) + bytes([0b11_00_10_01, 0b01])
    )


def awkward_floats() -> np.ndarray:
    """Ties, subnormals and ordinary values."""
    dice = np.random.default_rng(1)
    ties = np.array([0x3F808000, 0x3F818000, 0x3F808001, 0x3F807FFF, 0x00000001], np.uint32)
    halves = np.array([1 + 2**-11, 1 + 3 * 2**-11, 2**-25, 65504.0, -65504.0, -0.0], np.float32)
    return np.concatenate([ties.view(np.float32), halves, dice.normal(0, 3, 2000)]).astype(
        np.float32
    )


@pytest.mark.parametrize(
    ("packing", "dtype"),
    [("fp32", torch.float32), ("fp16", torch.float16), ("bf16", torch.bfloat16)],
)
def test_latents_are_rounded_as_torch_rounds(packing: str, dtype: torch.dtype) -> None:
    values = awkward_floats()
    packed = pack_latents(values, packing)
    assert len(packed) == packed_bytes(packing, values.size)
    expected = torch.from_numpy(values).to(dtype).float().numpy()
    back = unpack_latents(blob(packed), packing, values.shape)[0]
    assert back.dtype == np.float32
    np.testing.assert_array_equal(back.view(np.uint32), expected.view(np.uint32))


@pytest.mark.parametrize("packing", ["fp32", "fp16", "bf16"])
def test_latents_of_several_clips_keep_their_shape(packing: str) -> None:
    clips = np.arange(2 * 4 * 2 * 3 * 3, dtype=np.float32).reshape(2, 4, 2, 3, 3)
    back = unpack_latents(blob(*(pack_latents(c, packing) for c in clips)), packing, (4, 2, 3, 3))
    np.testing.assert_array_equal(back, clips)


@pytest.mark.parametrize("packing", ["fp32", "fp16", "bf16"])
def test_byte_planes_give_back_every_bit(packing: str) -> None:
    smooth = np.linspace(-2, 2, 5000, dtype=np.float32) ** 3
    for values in (awkward_floats(), smooth, smooth[:1], smooth[:0]):
        raw = pack_latents(values, packing)
        compressed = compress_planes(raw, packing)
        assert expand_planes(compressed, packing, len(raw)).tobytes() == raw
    assert len(compress_planes(pack_latents(smooth, packing), packing)) < 0.9 * len(
        pack_latents(smooth, packing)
    )


@pytest.mark.parametrize("size", [7998, 8002, 0, 16000])
def test_byte_planes_of_another_length_are_refused(size: int) -> None:
    compressed = compress_planes(bytes(8000), "bf16")
    with pytest.raises(ValueError, match="compressed latents"):
        expand_planes(compressed, "bf16", size)


@pytest.mark.parametrize("blob", [b"", b"nothing of the kind", bytes(100)])
def test_what_is_no_frame_is_refused(blob: bytes) -> None:
    with pytest.raises(ValueError, match="compressed latents"):
        expand_planes(blob, "bf16", 100)


@pytest.mark.parametrize("packing", ["fp32", "fp16", "bf16"])
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_nan_and_infinity_are_refused(packing: str, bad: float) -> None:
    with pytest.raises(ValueError, match="NaN, infinity"):
        pack_latents(np.array([0.0, bad], np.float32), packing)


@pytest.mark.parametrize(("packing", "bad"), [("fp16", 65520.0), ("bf16", 3.4e38)])
def test_a_value_that_rounds_to_infinity_is_refused(packing: str, bad: float) -> None:
    with pytest.raises(ValueError, match=f"beyond {packing}"):
        pack_latents(np.array([bad], np.float32), packing)


@pytest.mark.parametrize("bits", [0x7F800001, 0xFF800001, 0x7FFFFFFF, 0xFFFFFFFF])
def test_no_bit_pattern_of_nan_slips_through_bf16(bits: int) -> None:
    with pytest.raises(ValueError, match="NaN"):
        pack_latents(np.array([bits], np.uint32).view(np.float32), "bf16")
