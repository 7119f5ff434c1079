"""Arithmetic of lengths and sizes, and the rules between fields."""

from __future__ import annotations

import pickle

import pytest

from tokenizer import (
    CheckpointMismatch,
    ConfigError,
    QuantizerConfig,
    QuantizerKind,
    ShapeError,
    TokenizerConfig,
    UnknownName,
    get_config,
)
from tokenizer.config import WEIGHTS

LENGTHS = [
    # name, frames, latent frames, decoded frames; v1.0 drops what its fixed padding cannot restore
    ("fsq_4x8x8", 1, 1, 1),
    ("fsq_4x8x8", 5, 2, 5),
    ("fsq_4x8x8", 8, 2, 5),
    ("fsq_4x8x8", 10, 3, 9),
    ("fsq_4x8x8", 16, 4, 13),
    ("fsq_4x8x8", 17, 5, 17),
    ("fsq_4x8x8", 33, 9, 33),
    ("kl_2x8x8_8chn", 8, 4, 7),
    ("kl_2x8x8_8chn", 17, 9, 17),
    ("fsq_4x8x8_32768_v1_1", 1, 1, 4),
    ("fsq_4x8x8_32768_v1_1", 10, 3, 12),
    ("fsq_4x8x8_32768_v1_1", 16, 4, 16),
    ("fsq_4x8x8_32768_v1_1", 17, 5, 20),
    ("fsq_8x8x8_32768_v1_1", 33, 5, 40),
    ("fsq_4x8x8_noncausal", 5, 1, 4),
    ("fsq_4x8x8_noncausal", 10, 2, 8),
    ("fsq_4x8x8_noncausal", 16, 4, 16),
    ("fsq_4x8x8_noncausal", 17, 4, 16),
]


@pytest.mark.parametrize(("name", "frames", "latent", "decoded"), LENGTHS)
def test_lengths_follow_the_table(name: str, frames: int, latent: int, decoded: int) -> None:
    config = get_config(name)
    assert config.latent_shape(frames, 64, 64) == (latent, 8, 8)
    assert config.decoded_frames(latent) == decoded


def test_odd_sizes_are_floored() -> None:
    assert get_config("fsq_4x8x8").latent_shape(17, 47, 52) == (5, 5, 6)


@pytest.mark.parametrize(
    ("name", "clip"),
    [
        ("fsq_4x8x8", (0, 64, 64)),
        ("fsq_4x8x8", (17, 7, 64)),
        ("fsq_4x16x16", (17, 64, 15)),
        ("fsq_4x8x8_noncausal", (3, 64, 64)),
    ],
)
def test_clip_without_a_single_token_has_no_shape(name: str, clip: tuple[int, int, int]) -> None:
    with pytest.raises(ShapeError, match="expected at least"):
        get_config(name).latent_shape(*clip)


@pytest.mark.parametrize(
    ("name", "good", "bad"),
    [
        ("fsq_4x8x8", 17, [0, 16, 18]),
        ("kl_2x8x8_8chn", 3, [2, 4]),
        ("fsq_8x8x8_32768_v1_1", 9, [8, 13]),
        ("fsq_4x8x8_noncausal", 16, [0, 17]),
    ],
)
def test_check_clip_knows_the_family_s_lengths(name: str, good: int, bad: list[int]) -> None:
    config = get_config(name)
    config.check_clip(good, 64, 64)
    for frames in bad:
        with pytest.raises(ShapeError, match=f"{name}.*got {frames} frames"):
            config.check_clip(frames, 64, 64)


@pytest.mark.parametrize("size", [(60, 64), (64, 60), (0, 64)])
def test_check_clip_refuses_sizes_off_the_stride(size: tuple[int, int]) -> None:
    with pytest.raises(ShapeError, match="height a multiple of 8"):
        get_config("demo").check_clip(17, *size)


def test_helpers_of_discrete_and_continuous_models() -> None:
    fsq, kl = get_config("fsq_4x8x8_4096"), get_config("kl_4x4x4_4chn")
    assert (fsq.codebook_size, fsq.double_z, fsq.latent_channels) == (4096, False, 4)
    assert (kl.codebook_size, kl.double_z, kl.latent_channels) == (None, True, 4)
    assert (fsq.stride, kl.stride) == ((4, 8, 8), (4, 4, 4))


def test_checkpoint_url_knows_the_folder_of_each_version() -> None:
    root = "hf://microsoft/VidTok/checkpoints/"
    assert get_config("fsq_4x8x8").checkpoint_url == f"{root}vidtok_fsq_causal_488_262144.ckpt"
    assert str(get_config("fsq_4x16x16_v1_1").checkpoint_url).startswith(f"{root}vidtok_v1_1/")
    assert get_config("demo").checkpoint_url == str(WEIGHTS / "demo.safetensors")
    assert get_config("demo", checkpoint_file=None).checkpoint_url is None


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"quantizer": {"levels": []}}, r"^tokenizer\.quantizer\.levels is required"),
        ({"quantizer": {"kind": "kl"}}, r"^tokenizer\.quantizer\.levels is for kind=fsq"),
        ({"quantizer": {"levels": [8, 1]}}, r"^tokenizer\.quantizer\.levels must all be"),
        ({"quantizer": {"levels": [64] * 5}}, r"^tokenizer\.quantizer\.levels must have a prod"),
        ({"z_channels": 5}, r"^tokenizer\.z_channels must equal .* got 5"),
        ({"tempo_ds": [2]}, r"^tokenizer\.time_downsample_factor .*len\(tempo_ds\) = 2, got 4"),
        ({"tempo_us": [2]}, r"^tokenizer\.time_downsample_factor .*len\(tempo_us\) = 2, got 4"),
        ({"tempo_ds": [3, 2]}, r"^tokenizer\.tempo_ds must be distinct levels out of \[0, 1, 2\]"),
        ({"spatial_ds": [0, 0]}, r"^tokenizer\.spatial_ds must be distinct"),
        ({"spatial_us": [1, 2]}, r"^tokenizer\.spatial_us must have as many levels"),
        ({"ch": 0}, r"^tokenizer\.ch must be positive"),
        ({"ch_mult": []}, r"^tokenizer\.ch_mult must be positive"),
        ({"norm": "groupnorm"}, r"^tokenizer\.ch must be a multiple of 32"),
        ({"version": "v1_1", "is_causal": False}, r"^tokenizer\.is_causal must be true"),
    ],
)
def test_contradiction_names_the_field(overrides: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        get_config("demo", **overrides)


def test_kl_needs_its_number_of_channels() -> None:
    with pytest.raises(ConfigError, match="z_channels must be given"):
        TokenizerConfig(name="mine", quantizer=QuantizerConfig(kind=QuantizerKind.kl))


@pytest.mark.parametrize(
    "error",
    [
        ConfigError("tokenizer.ch", "is odd"),
        UnknownName("tokenizer", "x", ["y"]),
        ShapeError("video", "a", "b"),
        CheckpointMismatch("a.ckpt", "demo", ["k"], [], [], ["demo"]),
    ],
)
def test_errors_survive_pickling(error: ValueError) -> None:
    again = pickle.loads(pickle.dumps(error))
    assert type(again) is type(error)
    assert str(again) == str(error)
