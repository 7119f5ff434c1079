"""Two processes that train together: their replicas stay equal, and equal one process's."""

from __future__ import annotations

import socket
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, distributed, multiprocessing

from tests.tokenizer.small_training import FSQ_SMALL, clips, equal, stage, training_of
from tokenizer.training.loop import Training
from tokenizer.training.stages import StageConfig

STEPS = 2
NON_ADVERSARIAL = {"ema_decay": 0.9, "judge_from_start": False}
"""Every term is then a mean over videos, or, as the codebook's entropy, exact over ranks."""


def train(parts: list[Tensor], config: StageConfig, seed: int) -> tuple[Training, list[Any]]:
    torch.set_num_threads(1)
    training = training_of(FSQ_SMALL, config, seed)
    return training, [training.step([part]) for part in parts]


def rank_main(rank: int, port: int, folder: str) -> None:
    address = f"tcp://127.0.0.1:{port}"
    distributed.init_process_group("gloo", init_method=address, rank=rank, world_size=2)
    for name, config in (
        ("plain", stage(**NON_ADVERSARIAL)),
        ("adversarial", stage(adversarial_start=1)),
    ):
        parts = [clips(step)[rank : rank + 1] for step in range(STEPS)]
        # Ranks draw other weights at first: those of rank 0 count.
        training, logs = train(parts, config, seed=rank)
        torch.save({"state": training.state_dict(), "logs": logs}, f"{folder}/{name}{rank}.pt")
    distributed.destroy_process_group()


def test_two_ranks_stay_equal_and_train_as_one_process_does(tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    multiprocessing.spawn(rank_main, args=(port, str(tmp_path)), nprocs=2)  # type: ignore[no-untyped-call]
    for name in ("plain", "adversarial"):
        first, second = (torch.load(tmp_path / f"{name}{rank}.pt") for rank in (0, 1))
        assert equal(first, second)
    ranks = torch.load(tmp_path / "plain0.pt")
    threads = torch.get_num_threads()
    one, logs = train([clips(step) for step in range(STEPS)], stage(**NON_ADVERSARIAL), seed=0)
    torch.set_num_threads(threads)
    assert ranks["logs"][0]["perplexity"] == logs[0]["perplexity"]
    for name in ("loss", "rec_loss", "p_loss", "gradient_norm"):
        torch.testing.assert_close(ranks["logs"][0][name], logs[0][name], rtol=2e-3, atol=0)
    # Adam's first moment is the mean gradient: the steps themselves are all of the same size.
    assert_same_moments(ranks["state"], one.state_dict())


def assert_same_moments(ranks: dict[str, Any], one: dict[str, Any]) -> None:
    a, b = (state["autoencoder"]["state"] for state in (ranks, one))
    x, y = (torch.cat([s["exp_avg"].flatten() for s in state.values()]) for state in (a, b))
    assert float((x - y).norm() / y.norm()) < 0.02
