"""Recipes that can run here, as they are: one machine, and a head that wants a token."""

from __future__ import annotations

import os
import re
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

RECIPES = Path(__file__).parents[2] / "jobs" / "recipes"
SUBMIT = RECIPES / "ray_job_submit.sh"
START_SECONDS = 180.0


def _environment(**more: str) -> dict[str, str]:
    """Of a shell in which the project's environment is activated, and no Ray is known."""
    kept = {key: value for key, value in os.environ.items() if not key.startswith("RAY_")}
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    return {**kept, "PATH": path, "OMP_WAIT_POLICY": "passive", **more}


def _free_ports(number: int) -> list[int]:
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(number)]
    ports = [one.getsockname()[1] for one in sockets]
    for one in sockets:
        one.close()
    return ports


@dataclass(frozen=True, slots=True)
class Head:
    """A Ray head with a dashboard."""

    address: str
    token_file: Path

    def start(self, *arguments: str, token_file: Path | None = None) -> subprocess.Popen[str]:
        """A submission."""
        return subprocess.Popen(
            [str(SUBMIT), self.address, *arguments],
            env=_environment(RAY_AUTH_TOKEN_PATH=str(token_file or self.token_file)),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def submit(self, *arguments: str, token_file: Path | None = None) -> tuple[int, str]:
        """Exit code and all that was printed."""
        process = self.start(*arguments, token_file=token_file)
        printed, _ = process.communicate()
        return process.returncode, printed


@pytest.fixture(scope="module")
def head(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Head]:
    folder = tmp_path_factory.mktemp("head")
    token_file = folder / "token"
    token_file.write_text(secrets.token_hex(32))
    gcs, dashboard, agent, client = _free_ports(4)
    temp = tempfile.mkdtemp()  # sockets in it: pytest's folders have longer names than they may
    with (folder / "head.log").open("w") as log:
        process = subprocess.Popen(
            [
                *(sys.executable, "-m", "ray.scripts.scripts", "start", "--head", "--block"),
                *("--node-ip-address=127.0.0.1", f"--port={gcs}", "--num-cpus=2"),
                *("--dashboard-host=127.0.0.1", f"--dashboard-port={dashboard}"),
                *(f"--dashboard-agent-listen-port={agent}", f"--ray-client-server-port={client}"),
                *(f"--temp-dir={temp}", "--object-store-memory=100000000"),
                "--disable-usage-stats",
            ],
            env=_environment(
                RAY_AUTH_MODE="token",
                RAY_AUTH_TOKEN_PATH=str(token_file),
                RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S="0",
            ),
            stdout=log,
            stderr=subprocess.STDOUT,
        )
    deadline = time.monotonic() + START_SECONDS
    while "--block" not in (folder / "head.log").read_text():  # the last thing that it says
        assert process.poll() is None, (folder / "head.log").read_text()
        assert time.monotonic() < deadline, (folder / "head.log").read_text()
        time.sleep(0.5)
    yield Head(address=f"http://127.0.0.1:{dashboard}", token_file=token_file)
    process.terminate()  # ends what it has started, too
    process.wait(timeout=60)
    shutil.rmtree(temp)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_submitted_run_is_whole_and_the_same_line_again_has_nothing_to_do(
    head: Head, tmp_path: Path
) -> None:
    out = tmp_path / "a folder with $pecial signs"
    line = ["+dataset=demo", "+tokenizer=demo", f"output.root='{out}'", "output.report=false"]
    code, printed = head.submit(*line)
    assert code == 0, printed
    assert "4 of 4 final" in printed
    assert head.token_file.read_text() not in printed
    receipts = {path: path.stat().st_mtime_ns for path in (out / "receipts").iterdir()}

    code, again = head.submit(*line)
    assert code == 0, again
    assert "4 final, 0 to do" in again
    assert {path: path.stat().st_mtime_ns for path in (out / "receipts").iterdir()} == receipts
    jobs = {re.search(r"tokenise-[\w-]+", text)[0] for text in (printed, again)}  # type: ignore[index]
    assert len(jobs) == 2


def _receipts(out: Path) -> list[Path]:
    return sorted((out / "receipts").glob("*")) if out.exists() else []


def _wait_for_a_receipt(process: subprocess.Popen[str], out: Path) -> None:
    deadline = time.monotonic() + START_SECONDS
    while not _receipts(out):
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < deadline
        time.sleep(0.1)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_submission_stopped_by_ctrl_c_keeps_what_is_done_and_goes_on_when_submitted_again(
    head: Head, tmp_path: Path
) -> None:
    line = ["+dataset=demo", "+tokenizer=demo", f"output.root={tmp_path / 'out'}"]
    process = head.start(*line)
    _wait_for_a_receipt(process, tmp_path / "out")
    process.send_signal(signal.SIGINT)
    printed, _ = process.communicate(timeout=120)
    assert process.returncode == 1, printed
    assert "stopping: open segments are committed" in printed
    assert "the same command continues behind the last committed segments" in printed
    kept = _receipts(tmp_path / "out")

    code, printed = head.submit(*line)
    assert code == 0, printed
    assert "4 of 4 final" in printed
    assert set(kept) <= set(_receipts(tmp_path / "out"))


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_one_machine_goes_on_by_itself_when_its_driver_is_killed(tmp_path: Path) -> None:
    out = tmp_path / "out"
    process = subprocess.Popen(
        [
            *(str(RECIPES / "single_node.sh"), "+dataset=demo", "+tokenizer=demo"),
            *(f"output.root={out}", "output.report=false", "cluster.num_workers=1"),
        ],
        env=_environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    _wait_for_a_receipt(process, out)
    (driver,) = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    os.kill(int(driver), signal.SIGKILL)
    printed, _ = process.communicate()
    assert process.returncode == 0, printed
    assert "the driver was killed (code 137); it goes on behind its receipts" in printed
    assert "4 of 4 final" in printed


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_run_that_fails_makes_the_submission_fail(head: Head, tmp_path: Path) -> None:
    code, printed = head.submit(
        "+dataset=demo", "+tokenizer=demo", f"output.root={tmp_path}", "dataset.nonsense=1"
    )
    assert code == 1
    assert "nonsense" in printed


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_submission_with_another_token_is_refused(head: Head, tmp_path: Path) -> None:
    wrong = tmp_path / "wrong"
    wrong.write_text(secrets.token_hex(32))
    code, printed = head.submit(
        "+dataset=demo", "+tokenizer=demo", f"output.root={tmp_path}/out", token_file=wrong
    )
    assert code == 1
    assert "token" in printed.lower()
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "the first argument is the cluster's dashboard, http://HEAD:8265; got ''"),
        (["head:8265"], "got 'head:8265'"),
        (["http://head:8265", "+dataset=demo"], "output.root=… is missing or relative"),
        (["http://head:8265", "output.root=out"], "output.root=… is missing or relative"),
        (["http://head:8265", "output.root=/out"], "no token: set RAY_AUTH_TOKEN, or put"),
    ],
)
def test_a_submission_that_cannot_work_says_so_in_a_line(
    tmp_path: Path, arguments: list[str], said: str
) -> None:
    done = subprocess.run(
        [str(SUBMIT), *arguments],
        env=_environment(HOME=str(tmp_path)),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert said in done.stderr
    assert done.stderr.count("\n") == 1
