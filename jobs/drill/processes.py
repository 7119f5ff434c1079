"""Processes that the drill has started, found by their session: nobody else's is ever touched."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

WORKER = r"^ray::EncoderActor"
DECODER = r"pipeline\.decode_child"
RAYLET = r"/raylet/raylet "
END_SECONDS = 60.0
"""Longest wait for processes to be gone."""


@dataclass(frozen=True, slots=True)
class Process:
    """A running process."""

    pid: int
    words: str
    """Its command line."""
    session: int
    """Process that it descends from."""
    age_seconds: float

    def send(self, number: signal.Signals) -> None:
        """A signal; without effect when it has ended meanwhile."""
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, number)


def start(
    arguments: Sequence[str], *, env: Mapping[str, str], cwd: Path, log: Path
) -> subprocess.Popen[bytes]:
    """A command in a session of its own, its output appended to a file."""
    with log.open("ab") as file:
        return subprocess.Popen(
            arguments,
            env=os.environ | dict(env),
            cwd=cwd,
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=file,
            start_new_session=True,
        )


def running(sessions: Iterable[int], pattern: str = "") -> list[Process]:
    """Processes of these sessions whose command line matches, the oldest first."""
    wanted, found = set(sessions), []
    uptime = float(Path("/proc/uptime").read_text().split()[0])
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):  # gone meanwhile
            fields = (folder / "stat").read_text().rsplit(")", 1)[1].split()
            if int(fields[3]) not in wanted or fields[0] == "Z":
                continue
            words = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
            if re.search(pattern, words):
                age = uptime - int(fields[19]) / os.sysconf("SC_CLK_TCK")
                found.append(Process(int(folder.name), words.strip(), int(fields[3]), age))
    return sorted(found, key=lambda process: -process.age_seconds)


def kill(sessions: Iterable[int]) -> list[Process]:
    """SIGKILL to all of these sessions; returns what is left of them after a while."""
    wanted = list(sessions)
    deadline = time.monotonic() + END_SECONDS
    while (left := running(wanted)) and time.monotonic() < deadline:
        for process in left:
            process.send(signal.SIGKILL)
        time.sleep(0.1)
    return left


def gone(sessions: Iterable[int], pattern: str, seconds: float = END_SECONDS) -> list[Process]:
    """What matches and is still there when so much time has passed."""
    wanted = list(sessions)
    deadline = time.monotonic() + seconds
    while (left := running(wanted, pattern)) and time.monotonic() < deadline:
        time.sleep(0.5)
    return left


def shared_memory(sessions: Iterable[int]) -> set[str]:
    """Named files of /dev/shm that these processes have open or mapped."""
    found = set()
    for process in running(sessions):
        folder = Path("/proc", str(process.pid))
        with contextlib.suppress(OSError):  # gone meanwhile
            for line in (folder / "maps").read_text().splitlines():
                path = line.partition("/dev/shm/")
                if path[1] and not line.endswith("(deleted)"):
                    found.add(path[1] + path[2])
    return found
