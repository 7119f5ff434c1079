"""Mistakes on a command line: one line each, with what was meant."""

from __future__ import annotations

import argparse
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pipeline.command_line import (
    CommandLine,
    carry_out,
    count,
    file_there,
    finite,
    json_object,
    new_file,
    not_negative,
    positive,
    size,
    whole,
)


@pytest.mark.parametrize(
    ("kind", "text", "value"),
    [
        (finite, "-1.5", -1.5),
        (not_negative, "0", 0.0),
        (positive, "1e3", 1000.0),
        (whole, "0", 0),
        (count, "12", 12),
        (size, "48x64", (48, 64)),
        (size, "64", (64, 64)),
        (json_object, '{"anon": true}', {"anon": True}),
    ],
)
def test_what_is_typed_is_read(kind: Callable[[str], Any], text: str, value: Any) -> None:
    assert kind(text) == value


@pytest.mark.parametrize(
    ("kind", "text", "why"),
    [
        (finite, "x", "a number is needed, got 'x'"),
        (finite, "inf", "a number is needed, got 'inf'"),
        (not_negative, "-1", "must not be negative, got -1"),
        (positive, "0", "must be above 0, got 0"),
        (whole, "1.5", "a whole number is needed, got 1.5"),
        (count, "0", "must be above 0, got 0"),
        (count, "2.5", "a whole number is needed, got 2.5"),
        (size, "0x4", "HxW in pixels is needed, got '0x4'"),
        (size, "a", "HxW in pixels is needed, got 'a'"),
        (json_object, "[1]", "got a list"),
        (json_object, "{", "a JSON object is needed"),
        (file_there, "/nowhere", "/nowhere: no such file"),
        (new_file, "/nowhere/x", "there is no folder /nowhere"),
        (new_file, "/", "/ is a folder"),
        (new_file, "x" * 300, "File name too long"),
    ],
)
def test_what_cannot_be_is_refused_with_its_reason(
    kind: Callable[[str], Any], text: str, why: str
) -> None:
    with pytest.raises(argparse.ArgumentTypeError) as refused:
        kind(text)
    assert why in str(refused.value)


def test_a_secret_in_options_that_are_no_json_is_not_repeated() -> None:
    with pytest.raises(argparse.ArgumentTypeError) as refused:
        json_object('{"secret": "hunter2"')
    assert "hunter2" not in str(refused.value)


def test_a_file_in_a_folder_that_is_there_may_be_written(tmp_path: Path) -> None:
    assert new_file(str(tmp_path / "figures.json")) == tmp_path / "figures.json"
    (tmp_path / "there").touch()
    assert file_there(str(tmp_path / "there")) == tmp_path / "there"


def test_ctrl_c_is_one_line_and_status_1() -> None:
    code = (
        "import time\n"
        "from pipeline.command_line import carry_out\n"
        "def main():\n"
        "    print('begun', flush=True)\n"
        "    time.sleep(100)\n"
        "carry_out(main, interrupted='interrupted; what is there stays')\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "begun\n"
        process.send_signal(signal.SIGINT)
        printed, said = process.communicate(timeout=60)
    assert (process.returncode, printed, said) == (1, "", "interrupted; what is there stays\n")


@pytest.mark.parametrize(("ends_with", "status"), [(None, 0), (0, 0), (2, 2)])
def test_a_command_ends_with_the_status_of_its_main(ends_with: int | None, status: int) -> None:
    with pytest.raises(SystemExit) as stopped:
        carry_out(lambda: ends_with)
    assert (stopped.value.code or 0) == status


def command() -> CommandLine:
    made = CommandLine(prog="python -m x")
    made.add_argument("--watch", action="store_true")
    made.add_argument("--inner", action="store_true", help=argparse.SUPPRESS)
    made.add_argument("--mode", choices=["exact", "clips"])
    return made


@pytest.mark.parametrize(
    ("typed", "line"),
    [
        (["--wach"], "error: unrecognized arguments: --wach; did you mean --watch?\n"),
        (["--wach=3"], "error: unrecognized arguments: --wach=3; did you mean --watch?\n"),
        (["--iner"], "error: unrecognized arguments: --iner; see --help\n"),
        (["thing"], "error: unrecognized arguments: thing; see --help\n"),
        (["--mode", "exakt"], "did you mean exact?\n"),
        (["--mode", "zzz"], "; see --help\n"),
    ],
)
def test_a_mistake_is_one_line_with_what_was_meant(
    typed: list[str], line: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stopped:
        command().parse_args(typed)
    assert stopped.value.code == 2
    said = capsys.readouterr().err
    assert said.startswith("error: ")
    assert said.endswith(line)
    assert said.count("\n") == 1
