"""Weights: formats, digest, strictness, and every way a file can be wrong."""

from __future__ import annotations

import logging
import os
from pathlib import Path

import pytest
import safetensors.torch
import torch
from torch import Tensor

from tests.close import assert_exact
from tokenizer import (
    BadWeights,
    CheckpointMismatch,
    MissingCheckpoint,
    UnreadableCheckpoint,
    build,
    checkpoint_digest,
    get_config,
    load_tokenizer,
)


@pytest.fixture(scope="module")
def weights() -> dict[str, Tensor]:
    return load_tokenizer("demo", "random", seed=7).state_dict()


def write_lightning(path: Path, weights: dict[str, Tensor]) -> None:
    extra = {"loss.logvar": torch.zeros(()), "model_ema.num_updates": torch.tensor(3)}
    torch.save({"state_dict": {**weights, **extra}, "epoch": 3, "callbacks": {}}, path)


def write_old(path: Path, weights: dict[str, Tensor]) -> None:
    torch.save(weights, path, _use_new_zipfile_serialization=False)


def write_compiled(path: Path, weights: dict[str, Tensor]) -> None:
    torch.save({key.replace(".", "._orig_mod.", 1): v for key, v in weights.items()}, path)


def write_safetensors(path: Path, weights: dict[str, Tensor]) -> None:
    safetensors.torch.save_file(weights, path)


FORMATS = [
    ("a.ckpt", write_lightning, 2),
    ("a.ckpt", write_old, 0),
    ("a.ckpt", write_compiled, 0),
    ("a.safetensors", write_safetensors, 0),
]


@pytest.mark.parametrize(("name", "write", "ignored"), FORMATS)
def test_every_format_gives_the_same_weights_and_digest(
    tmp_path: Path, weights: dict[str, Tensor], name: str, write, ignored: int
) -> None:
    path = tmp_path / name
    write(path, weights)
    model = load_tokenizer("demo", path)
    assert list(model.state_dict()) == list(weights)
    for key, value in model.state_dict().items():
        assert_exact(value, weights[key])
    info = model.checkpoint
    assert info is not None
    assert (info.source, info.num_ignored, info.is_random) == (str(path), ignored, False)
    assert info.digest == checkpoint_digest(get_config("demo"), "random", seed=7).digest
    assert checkpoint_digest(get_config("demo"), path) == info


def test_half_precision_weights_are_widened(tmp_path: Path, weights: dict[str, Tensor]) -> None:
    torch.save({key: value.half() for key, value in weights.items()}, tmp_path / "half.ckpt")
    model = load_tokenizer("demo", tmp_path / "half.ckpt")
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    assert model.checkpoint is not None
    assert model.checkpoint.digest != checkpoint_digest(get_config("demo"), "random", seed=7).digest


def test_loaded_model_is_ready_for_inference(weights: dict[str, Tensor]) -> None:
    model = load_tokenizer("demo", precision="bf16")
    assert not model.training
    assert not any(parameter.requires_grad for parameter in model.parameters())
    assert model.precision.name == "bf16"


def test_model_outlives_its_file(tmp_path: Path, weights: dict[str, Tensor]) -> None:
    path = tmp_path / "a.ckpt"
    torch.save(weights, path)
    model = load_tokenizer("demo", path)
    os.truncate(path, 10)
    assert_exact(model.state_dict()["decoder.conv_out.conv.bias"], list(weights.values())[-1])


def test_decoder_is_checked_but_not_kept(tmp_path: Path, weights: dict[str, Tensor]) -> None:
    path = tmp_path / "a.ckpt"
    torch.save(weights, path)
    model = load_tokenizer("demo", path, decoder=False)
    assert all(key.startswith("encoder.") for key in model.state_dict())
    assert model.checkpoint == checkpoint_digest(get_config("demo"), path)
    torch.save({k: v for k, v in weights.items() if k.startswith("encoder.")}, path)
    with pytest.raises(CheckpointMismatch, match=r"missing: decoder\.conv_in"):
        load_tokenizer("demo", path, decoder=False)


def test_random_weights_follow_the_seed_alone(caplog: pytest.LogCaptureFixture) -> None:
    first = checkpoint_digest(get_config("demo"), "random", seed=1)
    torch.rand(17)
    state = torch.get_rng_state()
    with caplog.at_level(logging.WARNING, "tokenizer.checkpoint"):
        again = load_tokenizer("demo", "random", seed=1, decoder=False).checkpoint
    assert_exact(torch.get_rng_state(), state)
    assert again == first
    assert (first.is_random, first.seed, first.source) == (True, 1, "random")
    assert first.digest != checkpoint_digest(get_config("demo"), "random", seed=2).digest
    assert "RANDOM" in caplog.text


def test_random_weights_of_demo_are_the_known_ones() -> None:
    """Would change with torch's generator or initialisation: then runs with them cannot go on."""
    digest = checkpoint_digest(get_config("demo"), "random").digest
    assert digest == "341532e03c3e244d87a29e23b62650f0649f2b6b62249e91e3f67fb719c27205"


def test_published_model_needs_a_checkpoint() -> None:
    with pytest.raises(MissingCheckpoint) as caught:
        load_tokenizer("fsq_4x8x8_32768_v1_1")
    assert (
        "hf://microsoft/VidTok/checkpoints/vidtok_v1_1/vidtok_fsq_causal_488_32768_v1_1.ckpt"
        in str(caught.value)
    )
    assert "checkpoint=random" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_weights_of_another_tokenizer_name_their_own(tmp_path: Path) -> None:
    with torch.device("meta"):
        state = build(get_config("kl_4x8x8_4chn")).state_dict()
    zeros = {key: torch.zeros(1).expand(value.shape) for key, value in state.items()}
    torch.save(zeros, tmp_path / "a.ckpt")
    with pytest.raises(CheckpointMismatch) as caught:
        load_tokenizer("fsq_4x8x8", tmp_path / "a.ckpt")
    assert caught.value.fitting == ["kl_4x8x8_4chn", "kl_4x8x8_4chn_v1_1"]
    assert "3 wrong shape: encoder.conv_out.conv.weight [8, 512, 3, 3, 3] instead of [6" in str(
        caught.value
    )


def test_mismatch_lists_what_differs(tmp_path: Path, weights: dict[str, Tensor]) -> None:
    changed = {f"{key}.x" if ".mid." in key else key: value for key, value in weights.items()}
    changed["encoder.conv_in.conv.bias"] = torch.zeros(3)
    torch.save(changed, tmp_path / "a.ckpt")
    with pytest.raises(CheckpointMismatch) as caught:
        load_tokenizer("demo", tmp_path / "a.ckpt")
    lines = str(caught.value).splitlines()
    assert len(caught.value.missing) == len(caught.value.unexpected) == 52
    assert lines[1].startswith("  52 missing: encoder.mid.block_1.norm1.norm.weight, ")
    assert lines[1].endswith(", …")
    assert lines[3] == "  1 wrong shape: encoder.conv_in.conv.bias [3] instead of [16]"
    assert lines[4] == "  these weights fit: none of the named tokenizers"


@pytest.mark.parametrize(
    ("value", "message"),
    [(torch.full((16,), float("nan")), "holds NaN"), (torch.zeros(16).int(), "is torch.int32")],
)
def test_broken_weights_are_refused(
    tmp_path: Path, weights: dict[str, Tensor], value: Tensor, message: str
) -> None:
    torch.save({**weights, "encoder.conv_in.conv.bias": value}, tmp_path / "a.ckpt")
    with pytest.raises(BadWeights, match=rf"encoder\.conv_in\.conv\.bias {message}"):
        load_tokenizer("demo", tmp_path / "a.ckpt")


@pytest.mark.parametrize("name", ["a.ckpt", "a.safetensors"])
@pytest.mark.parametrize(
    "content", [b"", b"PK", b"\x80\x02", b"<html>404</html>", b"hello " * 50, bytes(1000)]
)
def test_file_of_another_kind_is_refused(tmp_path: Path, name: str, content: bytes) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UnreadableCheckpoint, match=f"cannot read checkpoint .*{name}"):
        load_tokenizer("demo", tmp_path / name)


@pytest.mark.parametrize("part", [0.001, 0.5, 0.99])
@pytest.mark.parametrize(("name", "write"), [pair[:2] for pair in FORMATS])
def test_cut_file_is_refused(
    tmp_path: Path, weights: dict[str, Tensor], name: str, write, part: float
) -> None:
    path = tmp_path / name
    write(path, weights)
    os.truncate(path, int(path.stat().st_size * part))
    with pytest.raises(UnreadableCheckpoint, match=f"{name}: the file is cut"):
        load_tokenizer("demo", path)


@pytest.mark.parametrize("name", ["missing.ckpt", "."])
def test_path_without_a_file_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(UnreadableCheckpoint, match=r"no such file|a folder"):
        load_tokenizer("demo", tmp_path / name)


class Code:
    """Pickles as a call."""

    def __reduce__(self) -> tuple:
        return os.mkdir, ("ran",)


@pytest.mark.parametrize("is_zip", [True, False])
def test_code_in_a_checkpoint_is_refused_and_not_run(
    tmp_path: Path, weights: dict[str, Tensor], is_zip: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    content = {"state_dict": weights, "hyper_parameters": Code()}
    torch.save(content, tmp_path / "a.ckpt", _use_new_zipfile_serialization=is_zip)
    with pytest.raises(UnreadableCheckpoint, match=r"foreign code.*state_dict"):
        load_tokenizer("demo", tmp_path / "a.ckpt")
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    ("content", "message"),
    [({}, "no state dict"), ([1], "no state dict"), ({"a": 3}, "'a' is of type int")],
)
def test_checkpoint_without_tensors_is_refused(
    tmp_path: Path, content: object, message: str
) -> None:
    torch.save(content, tmp_path / "a.ckpt")
    with pytest.raises(UnreadableCheckpoint, match=message):
        load_tokenizer("demo", tmp_path / "a.ckpt")


def test_overrides_go_with_names_only() -> None:
    with pytest.raises(TypeError, match="overrides"):
        load_tokenizer(get_config("demo"), ch=32)
