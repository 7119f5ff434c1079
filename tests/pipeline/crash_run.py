"""A whole run in one process: reader, decoder children, a real tokenizer, scheduler, commits.

The input is the tar that the environment variable ``CRASH_INPUT`` names: see ``write_input``.
"""

from __future__ import annotations

import os
from pathlib import Path

from pipeline.status import main as status
from tests.pipeline import runs
from tests.pipeline.crash_segments import clean, receipts, remove

__all__ = ["command", "problem", "receipts", "remove"]

NUM_VIDEOS = 4


def write_input(path: Path) -> None:
    """Four sound videos and one that is none."""
    samples = [(f"v{number}.mp4", runs.video(number)) for number in range(NUM_VIDEOS)]
    path.write_bytes(runs.tar_bytes([*samples[:2], ("bad.mp4", b"no video"), *samples[2:]]))


def command(out: str) -> None:
    """``python -m pipeline.run``, in this process."""
    assert runs.run_inline(os.environ["CRASH_INPUT"], out, "commit.max_clips=2") == 0


def problem(out: str, kept: dict[str, bytes]) -> str:
    """What is wrong with an OUT that should be finished; empty when nothing is."""
    keys = sorted(row["key"] for row in runs.rows(out).values())
    if keys != sorted(2 * [f"v{number}" for number in range(NUM_VIDEOS)]):
        return f"clips of {keys}"
    if runs.quarantined(out) != {"bad": "not_a_video"}:
        return f"quarantined: {runs.quarantined(out)}"
    if said := clean(out):
        return said
    now = receipts(out)
    if {name: now.get(name) for name in kept} != kept:
        return "a receipt was changed"
    return "" if status([out]) == 0 else "status: not finished"
