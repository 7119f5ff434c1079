"""COMMANDS.md: every command of the project, and what it says to a wrong argument."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.documented import ROOT

PAGE = (ROOT / "COMMANDS.md").read_text(encoding="utf-8")
HELP_SECONDS = 30.0
"""Seconds on an idle machine; tests run beside others."""
INNER = {
    "pipeline.decode_child",
    "pipeline.training.clip_child",
    "jobs.benchmark.contestants",
    "jobs.benchmark.token_pass",
    "jobs.benchmark.s3_server",
}
"""Processes that the project starts itself; nobody types them."""


@dataclass(frozen=True, slots=True)
class Row:
    """A line of the tables."""

    module: str
    wrong: list[str]
    prints: str
    status: int


def rows() -> list[Row]:
    found = []
    for line in PAGE.splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if len(cells) == 6 and cells[5].isdigit():
            module, wrong, prints = (cells[place].strip("`") for place in (0, 3, 4))
            found.append(Row(module, wrong.split(), prints, int(cells[5])))
    return found


ROWS = rows()
NAMES = [row.module for row in ROWS]
IMPORTS_TORCH = {
    "jobs.train_tokenizer",
    "jobs.evaluate_tokenizer",
    "jobs.reproduce",
    "jobs.reconstruct",
    "jobs.train_example",
    "jobs.config_docs",
}
"""Some five seconds each before they look at an argument: with the slow tests."""
FAST = [row for row in ROWS if row.module not in IMPORTS_TORCH]
SLOW = [row for row in ROWS if row.module in IMPORTS_TORCH]


def given(module: str, arguments: list[str], cwd: Path) -> tuple[int, str, str, float]:
    """Status, both outputs and seconds of a command in a process of its own."""
    began = time.monotonic()
    ended = subprocess.run(
        [sys.executable, "-m", module, *arguments],
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_WAIT_POLICY": "passive"},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=110,
        check=False,
    )
    return ended.returncode, ended.stdout, ended.stderr, time.monotonic() - began


def answers_as_documented(row: Row, cwd: Path) -> str | None:
    """What is wrong with the answer."""
    status, printed, said, _ = given(row.module, row.wrong, cwd)
    pattern = ".*".join(map(re.escape, row.prints.split("…")))
    if (status, printed) == (row.status, "") and re.fullmatch(pattern, said.rstrip("\n")):
        return None
    return f"{row.module} {' '.join(row.wrong)}: status {status}, {printed!r}, {said!r}"


def explains_itself(row: Row, cwd: Path) -> str | None:
    """What is wrong with ``--help``."""
    status, printed, said, seconds = given(row.module, ["--help"], cwd)
    if status == 0 and not said and f"python -m {row.module}" in printed:
        return None if seconds < HELP_SECONDS else f"{row.module} --help: {seconds:.0f} s"
    return f"{row.module} --help: status {status}, {said!r}"


def check(of: list[Row], cwd: Path) -> list[str]:
    """What is wrong, of wrong arguments and of help; two processes at a time."""
    with ThreadPoolExecutor(2) as threads:
        answers = threads.map(lambda row: answers_as_documented(row, cwd), of)
        helps = threads.map(lambda row: explains_itself(row, cwd), of)
        return [problem for problem in (*answers, *helps) if problem]


def test_a_wrong_argument_prints_the_documented_line(tmp_path: Path) -> None:
    assert check(FAST, tmp_path) == []
    assert [*tmp_path.iterdir()] == []


@pytest.mark.slow
def test_a_wrong_argument_of_a_training_prints_the_documented_line(tmp_path: Path) -> None:
    assert check(SLOW, tmp_path) == []
    assert [*tmp_path.iterdir()] == []


def test_every_command_has_a_row() -> None:
    commands = {
        ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__main__")
        for folder in ("pipeline", "tokenizer", "jobs")
        for path in (ROOT / folder).rglob("*.py")
        if '__name__ == "__main__"' in path.read_text(encoding="utf-8")
    }
    assert commands - INNER == set(NAMES)
    assert commands >= INNER
    assert len(NAMES) == len(set(NAMES))


def test_every_command_answers_ctrl_c_in_one_line() -> None:
    for name in set(NAMES) - {"tokenizer.list"}:  # which knows nothing of the pipeline
        place = ROOT / name.replace(".", "/")
        file = place / "__main__.py" if place.is_dir() else place.with_suffix(".py")
        _, start = file.read_text(encoding="utf-8").split('if __name__ == "__main__":\n')
        assert re.match(r"    carry_out\(\s*main", start), name


def test_each_answer_is_one_error_line() -> None:
    assert all(row.prints.startswith("error: ") and row.status in (1, 2) for row in ROWS)
