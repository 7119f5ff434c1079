"""``ray_job_submit.sh`` against a real head on this machine that wants a token."""

from __future__ import annotations

import os
import re
import secrets
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

SUBMIT = Path(__file__).parents[2] / "jobs" / "recipes" / "ray_job_submit.sh"
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

    def submit(self, *arguments: str, token_file: Path | None = None) -> tuple[int, str]:
        """Exit code and all that was printed."""
        done = subprocess.run(
            [str(SUBMIT), self.address, *arguments],
            env=_environment(RAY_AUTH_TOKEN_PATH=str(token_file or self.token_file)),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
        )
        return done.returncode, done.stdout


@pytest.fixture(scope="module")
def head(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Head]:
    folder = tmp_path_factory.mktemp("head")
    token_file = folder / "token"
    token_file.write_text(secrets.token_hex(32))
    gcs, dashboard, agent, client = _free_ports(4)
    temp = f"/tmp/recipe-{gcs}"  # sockets in it: pytest's folders have longer names than they may
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
