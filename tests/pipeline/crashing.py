"""Kills a process at every step that changes storage, and looks at what the next one makes of it.

    python -m tests.pipeline.crashing OUT SCENARIO [--every N]

A step is the moment before or after a call that changes a file (``os.link``, ``os.fsync``,
``os.replace``, ``os.unlink``...), a Parquet file being written, or an HTTP request: calls are
watched where Python makes them, so that a step added to the product later is not forgotten. This
process imports everything once and forks: one child that kills itself at step n, and one that is
the same command again.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import os
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from types import FrameType
from typing import Any

CHANGES_FILES = {"link", "fsync", "replace", "rename", "unlink", "remove", "rmdir", "mkdir"}
"""Of the module ``posix``."""
SURVIVED, DIED = 0, -signal.SIGKILL


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of a process that died at one step."""

    number: int
    step: str
    kept: int
    """Receipts that were there."""
    result: str
    """``ok``, or what is wrong after the same command was given again."""


class Steps:
    """Counts steps; kills this process at one of them."""

    def __init__(self, fatal: int, report: int) -> None:
        """Die at the ``fatal``-th step, after writing its name to file descriptor ``report``."""
        self._fatal, self._report = fatal, report
        self._count = 0
        self._lock = threading.Lock()

    def step(self, name: str) -> None:
        with self._lock:
            self._count += 1
            if self._count == self._fatal:
                os.write(self._report, name.encode())
                os.kill(os.getpid(), signal.SIGKILL)

    @contextlib.contextmanager
    def watched(self) -> Iterator[None]:
        """Count what this process does to storage, in all threads that are started inside."""
        from aiobotocore.httpsession import AIOHTTPSession

        send = AIOHTTPSession.send

        async def watched_send(session: Any, request: Any) -> Any:
            place = request.url.split("://", 1)[1].partition("/")[2].partition("?")
            if request.method in ("GET", "HEAD"):
                return await send(session, request)
            name = f"{request.method} {place[0]}" + ("?uploads" if "upload" in place[2] else "")
            self.step(f"before {name}")
            answer = await send(session, request)
            self.step(f"after {name}")
            return answer

        AIOHTTPSession.send = watched_send
        threading.setprofile(self._profile)
        sys.setprofile(self._profile)
        try:
            yield
        finally:
            sys.setprofile(None)
            threading.setprofile(None)  # type: ignore[arg-type]
            AIOHTTPSession.send = send

    def _profile(self, frame: FrameType, event: str, called: Any) -> None:
        when = "before" if event in ("call", "c_call") else "after"
        if event.startswith("c_"):
            if getattr(called, "__module__", "") != "posix" or called.__name__ not in CHANGES_FILES:
                return
            name = f"{called.__name__} {place_of(frame)}"
        elif frame.f_code.co_name == "write_table" and "parquet" in frame.f_code.co_filename:
            name = "write_table"
        else:
            return
        self.step(f"{when} {name}")


def place_of(frame: FrameType | None) -> str:
    """Which file a call is about, from the variables of its callers; random ids are cut off."""
    while frame is not None:
        for variable in ("target", "folder", "name", "path", "local"):
            value = frame.f_locals.get(variable)
            parts = str(value).split("/") if isinstance(value, (str, Path)) else []
            if len(parts) > 1 or (parts and "." in parts[0]):
                return "/".join(parts[-2:])
        frame = frame.f_back
    return ""


def in_a_child(work: Callable[[int], None]) -> tuple[int, str]:
    """Carry out work in a fork: its exit status (negative for a signal), and what it wrote into
    the file descriptor that it is given, or its traceback."""
    reader, writer = os.pipe()
    sys.stdout.flush()
    pid = os.fork()
    if pid == 0:
        os.close(reader)
        status = 1
        try:
            work(writer)
            status = 0
        except BaseException:  # noqa: BLE001 (told to the parent)
            os.write(writer, traceback.format_exc().encode()[-4000:])
        finally:
            os._exit(status)
    os.close(writer)
    with os.fdopen(reader, "rb") as stream:
        said = stream.read().decode()
    _, wait_status = os.waitpid(pid, 0)
    return os.waitstatus_to_exitcode(wait_status), said


def crash_at_every_step(scenario: Any, out: str, *, every: int = 1) -> Iterator[Outcome]:
    """One outcome for each step, until the command comes to its end.

    Args:
        scenario: a module with ``command(out)``, ``receipts(out)``, ``problem(out, kept)`` and
            ``remove(out)``.
        out: where to; each step has an OUT of its own below it.
        every: look at every N-th step only, the N-th first.
    """
    number = every
    while True:
        place = f"{out}/{number:04d}"

        def dies(writer: int, place: str = place, number: int = number) -> None:
            with Steps(number, writer).watched(), contextlib.redirect_stdout(io.StringIO()):
                scenario.command(place)

        status, step = in_a_child(dies)
        if status == SURVIVED:
            return
        if status != DIED:
            yield Outcome(number, step, 0, f"ended with {status} instead of being killed")
            return

        def again(writer: int, place: str = place) -> None:
            kept = scenario.receipts(place)
            with contextlib.redirect_stdout(io.StringIO()):
                scenario.command(place)
                problem = scenario.problem(place, kept)
            os.write(writer, json.dumps([len(kept), problem]).encode())

        status, said = in_a_child(again)
        kept, problem = json.loads(said) if status == SURVIVED else (0, said)
        if not problem:
            scenario.remove(place)
        yield Outcome(number, step, kept, problem or "ok")
        number += every


def main() -> int:
    """Print one line of JSON for each step."""
    parser = argparse.ArgumentParser()
    parser.add_argument("out")
    parser.add_argument("scenario")
    parser.add_argument("--every", type=int, default=1, help="look at every N-th step only")
    options = parser.parse_args()
    from importlib import import_module

    scenario = import_module(f"tests.pipeline.{options.scenario}")
    for outcome in crash_at_every_step(scenario, options.out, every=options.every):
        print(json.dumps(asdict(outcome)), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
