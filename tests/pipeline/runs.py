"""Whole runs, in this process or as commands, and what they leave behind.

Tokens are read here from receipts and parts alone (JSON and pyarrow), not by the code under test.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import signal
import subprocess
import sys
import tarfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import fsspec
import hydra
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline import compose
from pipeline.config import RunConfig
from pipeline.outputs import runs_of
from pipeline.run import execute
from tests.pipeline import media

TINY = (
    "+tokenizer=demo",
    "tokenizer.checkpoint=random",
    "tokenizer.ch=8",
    "tokenizer.num_res_blocks=1",
    "sampling.resolution=32",
    "encoder.threads=1",
    "encoder.decoders=1",
    "output.report=false",
)
"""A real tokenizer, encoding a clip in milliseconds."""


def config(*overrides: str) -> RunConfig:
    """The configuration of a command line."""
    compose.register_schema()
    with hydra.initialize_config_module("conf", version_base="1.3"):
        composed = hydra.compose("run", overrides=compose.quote_paths(overrides))
    return compose.to_run_config(composed)


def configs(*overrides: str) -> list[RunConfig]:
    """The configuration of every output that a command line asks for."""
    arguments = compose.quote_paths(overrides)
    compose.register_schema()
    with hydra.initialize_config_module("conf", version_base="1.3"):
        composed = hydra.compose("run", overrides=arguments)
    return runs_of(composed, arguments)


def run_inline(shards: Path | str, out: Path | str, *overrides: str) -> int:
    """Exit status of a tiny run over the tars that a pattern names, in this process."""
    return execute_here(*arguments(shards, out, *overrides))


def arguments(shards: Path | str, out: Path | str, *overrides: str) -> tuple[str, ...]:
    """The command line of a tiny run over the tars that a pattern names."""
    tars = ("+dataset=tars", f"dataset.shards={shards}")
    return (*tars, *TINY, f"output.root={out}", *overrides)


def execute_here(*overrides: str) -> int:
    """Exit status of ``cluster=inline`` with these overrides; torch's threads are put back."""
    import torch  # a second, and memory, that those who only read an OUT do without

    threads = torch.get_num_threads()
    try:
        return execute(*configs("cluster=inline", *overrides))
    finally:
        torch.set_num_threads(threads)


# ---- inputs ----


def video(seed: int, num_frames: int = 40, rate: int = 8) -> bytes:
    """A small mp4 that no other seed gives."""
    dice = np.random.default_rng(seed)
    scene = dice.integers(0, 256, (4, 4, 3), dtype=np.uint8).repeat(16, 0).repeat(16, 1)
    return media.encode(
        [k * 30 // rate for k in range(num_frames)],
        draw=lambda k: np.roll(scene, 3 * k, axis=1),
        options={"preset": "ultrafast"},
    )


Samples = Sequence[tuple[str, bytes]]
"""Member names and contents, in order."""


def tar_bytes(samples: Samples) -> bytes:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        for name, content in samples:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return stream.getvalue()


def write_shards(folder: Path, num_shards: int = 3, num_videos: int = 3) -> str:
    """Tars of small videos with captions; returns their pattern."""
    folder.mkdir(parents=True, exist_ok=True)
    for shard in range(num_shards):
        samples = []
        for number in range(shard * num_videos, (shard + 1) * num_videos):
            samples += [
                (f"v{number:03d}.mp4", video(number)),
                (f"v{number:03d}.txt", f"caption {number}".encode()),
            ]
        (folder / f"{shard:05d}.tar").write_bytes(tar_bytes(samples))
    return str(folder / f"{{00000..{num_shards - 1:05d}}}.tar")


# ---- outputs ----


def receipts(out: Path | str) -> list[dict[str, Any]]:
    """Receipts of an OUT, by name."""
    files, root = fsspec.core.url_to_fs(str(out), **_uncached(out))
    return [
        json.loads(files.cat_file(path)) for path in sorted(files.glob(f"{root}/receipts/*.json"))
    ]


def rows(out: Path | str) -> dict[str, dict[str, Any]]:
    """Committed rows by ``clip_id``, each there once."""
    files, root = fsspec.core.url_to_fs(str(out), **_uncached(out))
    found: dict[str, dict[str, Any]] = {}
    for receipt in receipts(out):
        if receipt["part"] is None:
            continue
        content = pa.BufferReader(files.cat_file(f"{root}/parts/{receipt['part']}"))
        for row in pq.ParquetFile(content).read().to_pylist():
            assert row["clip_id"] not in found, f"{row['clip_id']} is committed twice"
            found[row["clip_id"]] = row
    return found


def tokens(out: Path | str) -> dict[str, bytes]:
    """Tokens as stored, by ``key@fps#clip_index``: the same wherever the shards lie."""
    return {name.rsplit("/", 1)[-1]: row["tokens"] for name, row in rows(out).items()}


def quarantined(out: Path | str) -> dict[str, str]:
    """Reason by key."""
    return {
        video["key"]: video["reason"]
        for receipt in receipts(out)
        for video in receipt["quarantined"]
    }


def _uncached(out: Path | str) -> dict[str, Any]:
    return {"use_listings_cache": False, "skip_instance_cache": True} if "://" in str(out) else {}


# ---- commands ----


def exit_status(main: Callable[[list[str]], int], *arguments: str) -> int:
    """How a command ends that is called here, whether it returns or leaves."""
    try:
        return main([*arguments])
    except SystemExit as stopped:
        return int(str(stopped.code))


@dataclass(slots=True)
class Command:
    """A command in a session and process group of its own."""

    process: subprocess.Popen[str]
    shared_memory: set[str] = field(default_factory=set)
    """What was in /dev/shm before."""

    def kill(self) -> str:
        """SIGKILL to the whole group, as a scheduler does that takes a machine away."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        return self.process.communicate()[1]

    def leftovers(self, wait_seconds: float = 60.0) -> list[str]:
        """Processes and shared memory that are still there when that time has passed.

        A Ray worker that is loading its model notices only afterwards that its node is gone.
        """
        deadline = time.monotonic() + wait_seconds
        while time.monotonic() < deadline and (self.processes() or self._new_shared_memory()):
            time.sleep(0.1)
        return [*self.processes().values(), *self._new_shared_memory()]

    def processes(self) -> dict[int, str]:
        """Command lines of its processes, by id: what it started stays in its session."""
        return session(self.process.pid)

    def _new_shared_memory(self) -> list[str]:
        new = {path.name for path in Path("/dev/shm").iterdir()} - self.shared_memory
        return [f"/dev/shm/{name}" for name in sorted(new)]


def start(*arguments: str, cwd: Path, module: str = "pipeline.run", **env: str) -> Command:
    """``python -m MODULE ARGUMENTS`` in ``cwd``, in the background."""
    before = {path.name for path in Path("/dev/shm").iterdir()}
    process = subprocess.Popen(
        [sys.executable, "-m", module, *arguments],
        cwd=cwd,
        env=os.environ | env,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    return Command(process, before)


def run(
    *arguments: str,
    cwd: Path,
    module: str = "pipeline.run",
    timeout_seconds: float = 110,
    **env: str,
) -> subprocess.CompletedProcess[str]:
    """The same, to its end."""
    command = start(*arguments, cwd=cwd, module=module, **env)
    try:
        out, err = command.process.communicate(timeout=timeout_seconds)
    finally:
        command.kill()
    return subprocess.CompletedProcess(arguments, command.process.returncode, out, err)


def wait_for_receipts(
    command: Command, out: Path | str, count: int = 1, timeout_seconds: float = 100
) -> int:
    """How many there are once there are ``count``; fails when the command ends before that."""
    deadline = time.monotonic() + timeout_seconds
    files, root = fsspec.core.url_to_fs(str(out), **_uncached(out))
    while (found := len(files.glob(f"{root}/receipts/*.json"))) < count:
        if command.process.poll() is not None or time.monotonic() > deadline:
            code, said = command.process.returncode, command.kill()
            raise AssertionError(f"{found} receipts, wanted {count}; ended with {code}: {said}")
        time.sleep(0.2 if "://" in str(out) else 0.01)
    return found


def session(number: int) -> dict[int, str]:
    """Running processes of a session, and their command lines."""
    found = {}
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):  # gone meanwhile
            state, _, _, leader = (folder / "stat").read_text().rsplit(")", 1)[1].split()[:4]
            if int(leader) == number and state != "Z":
                words = (folder / "cmdline").read_bytes().replace(b"\0", b" ")
                found[int(folder.name)] = words.decode(errors="replace").strip()
    return found
