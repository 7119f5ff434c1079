"""A training of a small model on moving patterns: what its steps keep, share and repeat."""

from __future__ import annotations

import copy
import dataclasses
import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.optim.optimizer import register_optimizer_step_pre_hook

from tests.tokenizer.small_training import (
    FSQ_SMALL,
    KL_SMALL,
    clips,
    equal,
    stage,
    training_of,
)
from tokenizer import DivergedTraining, ShapeError, load_tokenizer
from tokenizer.config import Precision, TokenizerConfig, Version
from tokenizer.training import loop
from tokenizer.training.loop import Training


@pytest.fixture(autouse=True)
def _one_torch_thread() -> Iterator[None]:
    """Layers this small only wait for each other where they share cores."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def saved(training: Training) -> dict[str, Any]:
    """Its state through a file."""
    file = io.BytesIO()
    torch.save({"all": training.state_dict(), "own": training.random_state()}, file)
    file.seek(0)
    state: dict[str, Any] = torch.load(file, weights_only=True)
    return state


@pytest.mark.parametrize("config", [FSQ_SMALL, KL_SMALL], ids=["fsq", "kl"])
def test_a_resumed_training_takes_the_identical_next_steps(config: TokenizerConfig) -> None:
    stage_config = stage(ema_decay=0.9, adversarial_start=1)
    straight = training_of(config, stage_config)
    torch.manual_seed(5)
    for step in range(3):
        straight.step([clips(step)])
    state = saved(straight)
    expected = [straight.step([clips(step)]) for step in (3, 4, 5)]

    resumed = training_of(config, stage_config, seed=99)
    torch.manual_seed(77)
    resumed.load_state_dict(state["all"])
    resumed.load_random_state(state["own"])
    assert [resumed.step([clips(step)]) for step in (3, 4, 5)] == expected
    assert equal(resumed.state_dict(), straight.state_dict())
    assert torch.equal(resumed.random_state()["cpu"], straight.random_state()["cpu"])


def test_a_fixed_encoder_keeps_its_bits_and_the_decoder_learns() -> None:
    training = training_of(FSQ_SMALL, stage(encoder_fixed=True))
    before = copy.deepcopy(training.model.state_dict())
    tokens = training.model.encode_uint8(clips(0)).indices
    training.step([clips(0)])
    after = training.model.state_dict()
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert moved
    assert not [name for name in moved if not name.startswith("decoder.")]
    assert torch.equal(training.model.encode_uint8(clips(0)).indices, tokens)


def test_both_optimisers_forget_squares_as_told() -> None:
    """By torch's own state: after one step the mean of squares is (1 - beta2) g^2."""
    slow, fast = (
        training_of(FSQ_SMALL, stage(adversarial_start=0, clip_norm=1e9, adam_beta2=beta2))
        for beta2 in (0.999, 0.9)
    )
    for training in (slow, fast):
        training.step([clips(0)])
    for side in ("autoencoder", "discriminator"):
        a, b = (training.state_dict()[side]["state"] for training in (slow, fast))
        for key in a:
            torch.testing.assert_close(100 * a[key]["exp_avg_sq"], b[key]["exp_avg_sq"])


def test_the_discriminator_moves_from_its_step_on() -> None:
    training = training_of(FSQ_SMALL, stage(adversarial_start=1))
    weights = [value.detach().clone() for value in training.objective.discriminator.parameters()]
    first = training.step([clips(0)])
    now = list(training.objective.discriminator.parameters())
    assert all(torch.equal(a, b) for a, b in zip(weights, now, strict=True))
    assert "g_loss" not in first
    assert first["disc_loss"] == 0
    second = training.step([clips(1)])
    assert not any(torch.equal(a, b) for a, b in zip(weights, now, strict=True))
    assert second["g_loss"] > 0
    assert second["disc_loss"] > 0


def test_ranks_average_what_moves_and_leave_the_fixed_network_alone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    training = training_of(FSQ_SMALL, stage())
    averaged: set[int] = set()
    monkeypatch.setattr(loop, "average", lambda given: averaged.update(t.data_ptr() for t in given))
    training.step([clips(0)])
    objective = training.objective
    assert isinstance(objective.lpips, nn.Module)
    assert averaged.isdisjoint(buffer.data_ptr() for buffer in objective.lpips.buffers())
    moving = {
        name: buffer.data_ptr()
        for name, buffer in objective.state_dict().items()
        if name.endswith(("_mean", "running_var"))
    }
    assert {"lecam.real_mean", "lecam.fake_mean"} < moving.keys()
    assert averaged.issuperset(moving.values())


def test_an_idle_discriminator_can_be_left_out() -> None:
    training = training_of(FSQ_SMALL, stage(judge_from_start=False))
    before = copy.deepcopy(training.objective.state_dict())
    assert "disc_loss" not in training.step([clips(0)])
    after = training.objective.state_dict()
    assert {name for name in before if not torch.equal(before[name], after[name])} == {"logvar"}


def gradients(training: Training, parts: list[Tensor]) -> dict[str, Tensor]:
    """Those of the autoencoder's step."""
    found: dict[str, Tensor] = {}

    def keep(optimizer: object, *_: object) -> None:
        for name, value in training.model.named_parameters():
            if value.grad is not None:
                found[name] = value.grad.clone()

    hook = register_optimizer_step_pre_hook(keep)
    training.step(parts)
    hook.remove()
    return found


def assert_same_gradients(a: dict[str, Tensor], b: dict[str, Tensor]) -> None:
    assert a.keys() == b.keys()
    assert a
    # Against the largest of all: those of a key's bias are nothing but rounding.
    largest = max(float(value.abs().max()) for value in b.values())
    for name in a:
        assert float((a[name] - b[name]).abs().max()) < 1e-4 * largest, name


def test_parts_of_a_batch_give_the_gradients_of_the_whole() -> None:
    # A fixed encoder: the entropy of the codebook, no mean over videos, then has no gradient.
    config, batch = stage(encoder_fixed=True), clips(0, num_clips=4)
    whole = gradients(training_of(FSQ_SMALL, config), [batch])
    assert_same_gradients(gradients(training_of(FSQ_SMALL, config), list(batch.split(1))), whole)


def test_activations_computed_again_give_the_same_step() -> None:
    plain, again = (
        training_of(FSQ_SMALL, stage(activation_checkpointing=value, adversarial_start=0))
        for value in (False, True)
    )
    assert plain.step([clips(0)]) == again.step([clips(0)])
    assert equal(plain.state_dict()["model"], again.state_dict()["model"])


def test_activations_computed_again_take_less_memory() -> None:
    def kept_bytes(again: bool) -> int:
        training, kept = training_of(FSQ_SMALL, stage(activation_checkpointing=again)), 0

        def count(tensor: Tensor) -> Tensor:
            nonlocal kept
            kept += tensor.nbytes
            return tensor

        x_BCTHW = training.model.scaled(clips(0))
        with torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
            training.model.decode(training.model.encode(x_BCTHW).latents)
        return kept

    assert kept_bytes(True) < 0.6 * kept_bytes(False)


def test_gradients_are_cut_to_the_norm() -> None:
    found = gradients(training_of(FSQ_SMALL, stage(clip_norm=0.5)), [clips(0)])
    norm = torch.stack([value.norm() for value in found.values()]).norm()
    assert 0.4 < float(norm) <= 0.5001


def test_bf16_steps_stay_near_those_of_fp32_and_keep_float32_weights() -> None:
    exact, rounded = (
        training_of(FSQ_SMALL, stage(precision=precision, adversarial_start=0))
        for precision in (Precision.fp32, Precision.bf16)
    )
    a, b = exact.step([clips(0)]), rounded.step([clips(0)])
    assert b["loss"] == pytest.approx(a["loss"], rel=0.02)
    assert b["rec_loss"] != a["rec_loss"]
    assert {value.dtype for value in rounded.model.state_dict().values()} == {torch.float32}


def test_a_loss_that_is_not_finite_stops_the_training_before_weights_move() -> None:
    training = training_of(FSQ_SMALL, stage())
    training.step([clips(0)])
    before = copy.deepcopy(training.model.state_dict())
    with torch.no_grad():
        training.objective.logvar.fill_(-200.0)
    with pytest.raises(
        DivergedTraining, match=r"step 2: the loss is .*train\.start=RUN .*precision=fp32"
    ):
        training.step([clips(1)])
    assert equal(before, training.model.state_dict())


def test_what_is_no_video_for_the_model_is_refused() -> None:
    with pytest.raises(ShapeError, match=r"video: expected \[B, T, H, W, 3\]"):
        training_of(FSQ_SMALL, stage()).step([clips(0)[..., :2]])


def test_long_clips_train_the_causal_models_of_version_1_1() -> None:
    config = dataclasses.replace(FSQ_SMALL, version=Version.v1_1)
    training = training_of(config, stage(steps=2, learning_rate=1e-3))
    clip = clips(0, num_clips=1, num_frames=33)
    losses = [training.step([clip])["rec_loss"] for _ in range(3)]
    assert losses[-1] < losses[0]
    assert training.reconstruct(clip).shape == clip.shape


@pytest.mark.parametrize("ema", [False, True])
def test_the_published_layout_loads_as_a_tokenizer(tmp_path: Path, ema: bool) -> None:
    training = training_of(FSQ_SMALL, stage(ema_decay=0.9, learning_rate=1e-3))
    training.step([clips(0)])
    training.step([clips(1)])
    path = tmp_path / "trained.safetensors"
    save_file(training.published_state_dict(ema=ema), path)
    model = load_tokenizer(FSQ_SMALL, path)
    same = equal(dict(model.state_dict()), dict(training.model.state_dict()))
    assert same is not ema
    mean_frames = training.reconstruct(clips(2))
    x_hat = model.decode(model.encode_uint8(clips(2)).latents)
    frames = ((x_hat.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8).movedim(1, -1)
    assert torch.equal(frames, mean_frames) is ema
