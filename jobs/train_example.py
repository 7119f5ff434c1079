"""Trains a small autoregressive transformer on tokens: the first latent frame is given.

    python -m jobs.train_example outputs/demo/demo runs/example --processes 2
    torchrun --nproc-per-node 8 -m jobs.train_example outputs/demo/demo runs/example

RUN gets checkpoint.pt and curve.jsonl, a line a step. Killed at any instant, the same command
continues at the last checkpoint, and the curve becomes that of a run nothing happened to.
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from jobs.loss_curve import Curve
from jobs.ranks import run_ranks, take_lock
from jobs.token_transformer import TokenTransformer
from pipeline.command_line import CommandLine, carry_out, count, not_negative, positive
from pipeline.dataset import TokenDataset
from pipeline.errors import RunError
from pipeline.loading.fetch import Fetch
from pipeline.loading.ranks import agree_on
from pipeline.loading.snapshot import pin, take_snapshot, token_format_of
from pipeline.storage import Storage

PROGRESS_SECONDS = 2.0
ORDER = ("batch_size", "dim", "layers", "heads", "dropout", "learning_rate", "seed", "threads")
"""Options that decide what a step computes: a run that goes on must have the same."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Status 0, or 2 after one line about what is wrong."""
    parser = _parser()
    options = parser.parse_args(arguments)
    if options.dim % options.heads:
        parser.error("--dim must be a multiple of --heads")
    return run_ranks(train, options)


def train(options: argparse.Namespace, device: torch.device, parent: int | None) -> None:
    """Train what is left of ``options.epochs`` epochs.

    Args:
        options: of the command.
        device: of this rank.
        parent: process without which this one must not go on.

    Raises:
        RunError: tokens or RUN are not what can be trained on or continued.
    """
    rank = dist.get_rank()
    options.run.mkdir(parents=True, exist_ok=True)
    with (options.run / "lock").open("w") as lock:
        agree_on(lambda: take_lock(lock, options.run))
        run = _Run(options, device)
        curve = Curve(options.run / "curve.jsonl", run.step) if rank == 0 else None
        said = time.monotonic()
        for batch in run.batches():
            loss = run.train_step(batch["tokens"])
            if parent is not None and os.getppid() != parent:
                raise RunError("the process that started this one is gone")
            if curve is not None:
                curve.add(step=run.step, epoch=batch["epoch"], samples=batch["samples"], loss=loss)
                if time.monotonic() - said > PROGRESS_SECONDS:
                    said = time.monotonic()
                    print(f"step {run.step} of {run.num_steps}, loss {loss:.4f}", flush=True)
            if run.step % options.checkpoint_every == 0 or run.step == run.num_steps:
                run.save(curve)
        if curve is not None:
            print(f"{options.run}/curve.jsonl: nats per token\n{curve.picture()}", flush=True)


class _Run:
    """Everything that a checkpoint holds."""

    def __init__(self, options: argparse.Namespace, device: torch.device) -> None:
        self._path, self._epochs = options.run / "checkpoint.pt", options.epochs
        self._settings = {name: getattr(options, name) for name in ORDER}
        self._settings |= {"world_size": dist.get_world_size(), "device": device.type}
        saved = torch.load(self._path, "cpu", weights_only=True) if self._path.exists() else None
        self._check(saved)
        storage = Storage(options.tokens)
        manifest = saved["loader"]["manifest"] if saved else agree_on(lambda: pin(storage, None)[0])
        levels, shape = token_grid(storage, manifest)
        self._data = TokenDataset(
            options.tokens, batch_size=options.batch_size, shuffle=True, seed=options.seed,
            columns=(), device=device, manifest=manifest,
        )  # fmt: skip
        self.step, self.num_steps = 0, len(self._data) * options.epochs
        torch.manual_seed(options.seed)
        sizes = options.dim, options.layers, options.heads, options.dropout
        model = TokenTransformer(levels, shape, *sizes).to(device)
        self._model = DistributedDataParallel(model)
        # DDP sorts its buckets by the first backward pass, and sums depend on buckets: done before
        # the first step, it is the same for a run that goes on.
        self._model(torch.zeros(1, *shape, dtype=torch.int32, device=device)).backward()
        self._optimizer = torch.optim.AdamW(model.parameters(), options.learning_rate)
        torch.manual_seed(options.seed + 1 + dist.get_rank())
        if saved:
            self._load(saved)

    def _check(self, saved: dict[str, Any] | None) -> None:
        for name, value in self._settings.items() if saved else ():
            if saved and saved["settings"].get(name) != value:
                raise RunError(
                    f"{self._path} was trained with {name} {saved['settings'].get(name)}, not "
                    f"{value}: continue with the same, or choose another RUN"
                )

    def _load(self, saved: dict[str, Any]) -> None:
        self.step = saved["step"]
        self._model.module.load_state_dict(saved["model"])
        self._optimizer.load_state_dict(saved["optimizer"])
        self._data.load_state_dict(saved["loader"])
        cpu, cuda = saved["random"][dist.get_rank()]
        torch.set_rng_state(cpu)
        if cuda is not None:
            torch.cuda.set_rng_state(cuda)
        if dist.get_rank() == 0:
            print(f"continuing behind step {self.step} of {self.num_steps}", flush=True)

    def batches(self) -> Iterator[dict[str, Any]]:
        """Of what is left of all epochs."""
        while self._data.state_dict()["epoch"] < self._epochs:
            yield from self._data

    def train_step(self, tokens: Tensor) -> float:
        """Mean loss of all ranks before the step."""
        self._optimizer.zero_grad()
        loss = self._model(tokens)
        loss.backward()
        self._optimizer.step()
        self.step += 1
        mean = loss.detach() / dist.get_world_size()
        dist.all_reduce(mean)
        return float(mean)

    def save(self, curve: Curve | None) -> None:
        """Replace the checkpoint in one step, by rank 0."""
        cuda = torch.cuda.get_rng_state() if self._settings["device"] == "cuda" else None
        random: list[Any] = [None] * dist.get_world_size()
        dist.all_gather_object(random, (torch.get_rng_state(), cuda))
        if curve is None:
            return
        curve.sync()
        unfinished = self._path.with_name("unfinished-checkpoint.pt")
        record = {
            "step": self.step,
            "settings": self._settings,
            "model": self._model.module.state_dict(),
            "optimizer": self._optimizer.state_dict(),
            "loader": self._data.state_dict(),
            "random": random,
        }
        with unfinished.open("wb") as file:
            torch.save(record, file)
            file.flush()
            os.fsync(file.fileno())
        unfinished.replace(self._path)


def token_grid(storage: Storage, manifest: str) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """FSQ levels and token shape of what is trained on.

    Raises:
        RunError: latents, single frames, or clips of several shapes.
    """
    fetch = Fetch(storage)
    snapshot = take_snapshot(*pin(storage, manifest), fetch, None)
    shapes = [one.shape for one in snapshot.classes]
    if len(shapes) != 1:
        raise RunError(
            f"{storage} has clips of {len(shapes)} token shapes, {shapes}; one is needed"
        )
    levels = token_format_of(fetch, snapshot).levels
    if not levels:
        raise RunError(f"{storage} holds latents; this example is for the indices of FSQ")
    if shapes[0][0] < 2:
        raise RunError(
            f"{storage}: clips of one latent frame, {shapes[0]}: none is left to predict"
        )
    return levels, shapes[0]


def _parser() -> argparse.ArgumentParser:
    parser = CommandLine(
        prog="python -m jobs.train_example",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("tokens", metavar="OUT", help="path or URL of a run's tokens")
    add("run", type=Path, metavar="RUN", help="folder of checkpoint and curve")
    add("--processes", type=count, default=1, help="ranks on this machine (without torchrun)")
    add("--device", default="cuda" if torch.cuda.is_available() else "cpu", choices=["cpu", "cuda"])
    add("--epochs", type=count, default=5, help="in all (default: %(default)s)")
    add("--batch-size", type=count, default=1, help="clips a rank (default: %(default)s)")
    add("--checkpoint-every", type=count, default=5, metavar="STEPS", help="default: %(default)s")
    add("--dim", type=count, default=64)
    add("--layers", type=count, default=2)
    add("--heads", type=count, default=4)
    add("--dropout", type=not_negative, default=0.1)
    add("--learning-rate", type=positive, default=1e-3)
    add("--seed", type=int, default=0)
    add("--threads", type=count, default=1, help="CPU threads a rank (default: %(default)s)")
    return parser


if __name__ == "__main__":
    carry_out(main, interrupted="interrupted; the same command continues at the last checkpoint")
