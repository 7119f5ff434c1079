"""The processes of a training: started here or by torchrun, and ended together."""

from __future__ import annotations

import argparse
import fcntl
import os
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from multiprocessing.connection import wait
from pathlib import Path
from typing import TextIO, TypeAlias

import torch
import torch.distributed as dist

from pipeline.errors import PipelineError, RunError

LOCK_SECONDS = 60.0

Work: TypeAlias = Callable[[argparse.Namespace, torch.device, int | None], None]
"""Options, device of the rank, and the process without which it must not go on."""


def run_ranks(work: Work, options: argparse.Namespace) -> int:
    """Exit status of ``work`` on all ranks: those of torchrun, or ``options.processes`` here."""
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # what deterministic CUDA asks for
    if "RANK" in os.environ:
        rank, world_size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
        return _process(work, rank, options, "env://", world_size, os.getppid())
    with tempfile.TemporaryDirectory() as place:
        if options.processes == 1:
            return _process(work, 0, options, f"file://{place}/meeting", 1)
        return _spawn(work, options, f"file://{place}/meeting")


def _spawn(work: Work, options: argparse.Namespace, address: str) -> int:
    """All ranks on this machine; where one fails the others end, too."""
    context = torch.multiprocessing.get_context("spawn")
    children = [
        context.Process(
            target=_child, args=(work, rank, options, address, os.getpid()), daemon=True
        )
        for rank in range(options.processes)
    ]
    # A terminal's Ctrl-C goes to the children, too: they inherit that it is left to this process.
    answer = signal.signal(signal.SIGINT, signal.SIG_IGN)
    for child in children:
        child.start()
    signal.signal(signal.SIGINT, answer)
    try:
        while waiting := [child.sentinel for child in children if child.is_alive()]:
            wait(waiting)
            failed = [abs(child.exitcode) for child in children if child.exitcode]
            if failed:
                return failed[0]
        return 0
    finally:
        for child in children:
            child.terminate()
            child.join()


def _child(work: Work, rank: int, options: argparse.Namespace, address: str, parent: int) -> None:
    sys.exit(_process(work, rank, options, address, options.processes, parent))


def _process(
    work: Work,
    rank: int,
    options: argparse.Namespace,
    address: str,
    world_size: int,
    parent: int | None = None,
) -> int:
    """One rank, from the meeting of all to its end."""
    is_cuda = options.device == "cuda"
    device = torch.device("cpu")
    if is_cuda:
        device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", rank)))
        torch.cuda.set_device(device)
    torch.use_deterministic_algorithms(True)
    torch.set_num_threads(options.threads)
    backend = "nccl" if is_cuda else "gloo"
    dist.init_process_group(backend, init_method=address, rank=rank, world_size=world_size)
    try:
        work(options, device, parent)
    except (PipelineError, OSError, ValueError) as error:
        print(f"error: rank {rank}: {error}", file=sys.stderr)
        return 2
    finally:
        dist.destroy_process_group()
    return 0


def take_lock(lock: TextIO, run: Path) -> str:
    """Wait until ranks of a killed run are gone; their last steps must not mix with ours."""
    deadline = time.monotonic() + LOCK_SECONDS
    while True:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() > deadline:
                raise RunError(f"{run}: another process trains there") from None
            time.sleep(0.1)
        else:
            return ""
