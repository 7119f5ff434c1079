"""Recipes for clusters, run with the cluster's own commands replaced by short scripts."""

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

RECIPES = Path(__file__).parents[2] / "jobs" / "recipes"
SLURM = RECIPES / "slurm_ray.sbatch"

SRUN = """#!/usr/bin/env bash
while [[ $1 == --* ]]; do shift; done
trap 'kill $(jobs -p) 2>/dev/null; exit 143' TERM
for node in 1 0; do SLURM_NODEID=$node "$@" & done
wait
"""
SCONTROL = """#!/usr/bin/env bash
echo "scontrol $*" >> "$LOG"
[[ $1 == show ]] && printf '127.0.0.1\\n127.0.0.2\\n' || true
"""
RAY = f"""#!{sys.executable}
import os, socket, sys, time
with open(os.environ["LOG"], "a") as log:
    print("ray", *sys.argv[1:], "|", os.environ["RAY_AUTH_MODE"], os.environ["RAY_AUTH_TOKEN"],
          file=log)
if os.environ.get("NO_HEAD"):
    sys.exit("port taken")
if "--head" in sys.argv:
    listener = socket.create_server(("127.0.0.1", int(os.environ["PORT"])))
time.sleep(60)
"""
DRIVER = """#!/usr/bin/env bash
echo "python $* | $RAY_AUTH_TOKEN" >> "$LOG"
[[ $DRIVES == long ]] || exit "$DRIVES"
trap 'sleep 0.5; echo committed >> "$LOG"; exit 1' TERM
sleep 60 & wait
"""


def _free_port() -> int:
    """In the range that job numbers map to."""
    for port in range(20100, 30000):
        with socket.socket() as one:
            if one.connect_ex(("127.0.0.1", port)):
                return port
    raise AssertionError("no port")


class SlurmJob:
    """The recipe as Slurm would start it on the first of two nodes."""

    def __init__(self, folder: Path, **environment: str) -> None:
        for name, text in {
            "srun": SRUN,
            "scontrol": SCONTROL,
            "ray": RAY,
            "python": DRIVER,
        }.items():
            (folder / name).write_text(text)
            (folder / name).chmod(0o755)
        self.log, self.port = folder / "log", _free_port()
        self.log.touch()
        self.process = subprocess.Popen(
            ["bash", str(SLURM), "+dataset=webvid", "dataset.caption_key=a b"],
            env={
                **{key: value for key, value in os.environ.items() if not key.startswith("RAY_")},
                "PATH": f"{folder}:{os.environ['PATH']}",
                "LOG": str(self.log),
                "SLURM_JOB_ID": str(self.port - 20000),
                "SLURM_JOB_NODELIST": "node[1-2]",
                **environment,
            },
            stderr=subprocess.DEVNULL,
        )

    def wait_for(self, text: str) -> None:
        deadline = time.monotonic() + 20
        while text not in self.log.read_text():
            assert time.monotonic() < deadline, self.log.read_text()
            assert self.process.poll() is None, self.log.read_text()
            time.sleep(0.05)

    def end(self) -> tuple[int, list[str]]:
        """Exit code, lines of the log."""
        code = self.process.wait(timeout=30)
        return code, self.log.read_text().splitlines()


@pytest.mark.parametrize("code", [0, 1])
def test_a_slurm_job_starts_a_node_each_under_one_token_and_ends_as_its_driver(
    tmp_path: Path, code: int
) -> None:
    job = SlurmJob(tmp_path, DRIVES=str(code))
    returned, lines = job.end()
    assert returned == code
    (head,) = [line for line in lines if line.startswith("ray start --head")]
    (driver,) = [line for line in lines if line.startswith("python")]
    token = head.split()[-1]
    assert len(token) == 64
    assert f"--port={job.port} " in head
    assert head.split(" | ")[1] == f"token {token}"
    assert driver == (
        f"python -m pipeline.run cluster=ray cluster.address=127.0.0.1:{job.port} "
        f"+dataset=webvid dataset.caption_key=a b | {token}"
    )
    assert not any("requeue" in line for line in lines)


def test_the_second_node_of_a_slurm_job_joins_the_head_with_the_same_token(tmp_path: Path) -> None:
    job = SlurmJob(tmp_path, DRIVES="long")
    job.wait_for(f"ray start --address=127.0.0.1:{job.port} ")
    job.wait_for("python")
    job.process.send_signal(signal.SIGTERM)
    _, lines = job.end()
    assert len({line.split()[-1] for line in lines if line.startswith("ray")}) == 1


def test_a_slurm_job_at_its_limit_lets_the_driver_commit_and_queues_itself_again(
    tmp_path: Path,
) -> None:
    job = SlurmJob(tmp_path, DRIVES="long")
    job.wait_for("python")
    time.sleep(0.3)  # until the stand-in has its trap
    job.process.send_signal(signal.SIGTERM)
    code, lines = job.end()
    assert code == 1
    assert lines.index("committed") < lines.index(f"scontrol requeue {job.port - 20000}")


def test_a_slurm_job_that_ends_before_its_head_answers_starts_no_driver(tmp_path: Path) -> None:
    job = SlurmJob(tmp_path, DRIVES="0", NO_HEAD="1")
    job.wait_for("ray start --head")
    job.process.send_signal(signal.SIGTERM)
    code, lines = job.end()
    assert code != 0
    assert not any(line.startswith("python") for line in lines)


@pytest.mark.skipif(shutil.which("shellcheck") is None, reason="shellcheck is not installed")
def test_shellcheck_finds_nothing_in_the_recipes() -> None:
    subprocess.run(["shellcheck", str(SLURM)], check=True)
