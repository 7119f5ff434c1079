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
trap 'sleep 0.5; echo committed >> "$LOG"; exit 1' TERM
echo "python $* | $RAY_AUTH_TOKEN" >> "$LOG"
[[ $DRIVES == long ]] || exit "$DRIVES"
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
    assert "#SBATCH --signal=B:USR1@600\n" in SLURM.read_text()
    job.process.send_signal(signal.SIGUSR1)
    code, lines = job.end()
    assert code == 1
    assert lines.index("committed") < lines.index(f"scontrol requeue {job.port - 20000}")


def test_a_cancelled_slurm_job_lets_the_driver_commit_and_does_not_come_back(
    tmp_path: Path,
) -> None:
    job = SlurmJob(tmp_path, DRIVES="long")
    job.wait_for("python")
    job.process.send_signal(signal.SIGTERM)
    code, lines = job.end()
    assert code == 1
    assert "committed" in lines
    assert not any("requeue" in line for line in lines)


def test_a_slurm_job_takes_whole_nodes_as_ray_counts_all_their_cores() -> None:
    text = SLURM.read_text()
    assert "#SBATCH --exclusive\n" in text
    assert "#SBATCH --mem=0\n" in text


def test_a_slurm_job_that_ends_before_its_head_answers_starts_no_driver(tmp_path: Path) -> None:
    job = SlurmJob(tmp_path, DRIVES="0", NO_HEAD="1")
    job.wait_for("ray start --head")
    job.process.send_signal(signal.SIGTERM)
    code, lines = job.end()
    assert code != 0
    assert not any(line.startswith("python") for line in lines)


SHELLCHECK = shutil.which(
    "shellcheck", path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
)


@pytest.mark.skipif(SHELLCHECK is None, reason="shellcheck is not installed")
def test_shellcheck_finds_nothing_in_the_recipes() -> None:
    subprocess.run([str(SHELLCHECK), str(SLURM), *map(str, RECIPES.glob("*.sh"))], check=True)


# ---- one machine, and a submission: the driver, or Ray's command, replaced ----

ONE_DRIVER = """#!/usr/bin/env bash
echo "python $*" >> "$LOG"
trap 'sleep 0.5; echo committed >> "$LOG"; kill $!; exit 1' TERM
case $DRIVES in
killed) kill -KILL $$ ;;
killed_once) [[ -e $LOG.killed ]] || { touch "$LOG.killed"; kill -KILL $$; }; exit 0 ;;
long) sleep 60 & echo ready >> "$LOG"; wait ;;
*) exit "$DRIVES" ;;
esac
"""
SUBMITTING_RAY = """#!/usr/bin/env bash
echo "ray $*" >> "$LOG"
if [[ $2 == submit ]]; then
    trap 'exit 143' TERM INT
    echo ready >> "$LOG"
    until grep -q "ray job stop" "$LOG"; do sleep 0.05; done
    sleep 0.3; echo "last lines" >> "$LOG"; exit 1
fi
"""
METADATA_CURL = """#!/usr/bin/env bash
echo "curl ${*: -1}" >> "$LOG"
case "$*" in
*api/token*) echo secret ;;
*instance-action*) (($(grep -c instance-action "$LOG") >= 2)) ;;
esac
"""


class Script:
    """A recipe for a shell, with short scripts before all other commands."""

    def __init__(
        self, folder: Path, *command: str, stand_ins: dict[str, str], **environment: str
    ) -> None:
        for name, text in stand_ins.items():
            (folder / name).write_text(text)
            (folder / name).chmod(0o755)
        self.log = folder / "log"
        self.log.touch()
        self.process = subprocess.Popen(
            [str(RECIPES / command[0]), *command[1:]],
            env={
                **{key: value for key, value in os.environ.items() if not key.startswith("RAY_")},
                "PATH": f"{folder}:{os.environ['PATH']}",
                "LOG": str(self.log),
                **environment,
            },
            stderr=subprocess.PIPE,
            text=True,
        )

    def interrupt_when_ready(self, number: signal.Signals) -> None:
        deadline = time.monotonic() + 20
        while "ready" not in self.log.read_text():
            assert time.monotonic() < deadline, self.log.read_text()
            time.sleep(0.05)
        self.process.send_signal(number)

    def end(self) -> tuple[int, list[str], str]:
        """Exit code, lines of the log, what went to stderr."""
        _, errors = self.process.communicate(timeout=30)
        return self.process.returncode, self.log.read_text().splitlines(), errors


@pytest.mark.parametrize(
    ("drives", "code", "attempts"),
    [
        ("0", 0, 1),
        ("1", 1, 1),  # incomplete, or a mistake: the driver has said which
        ("killed_once", 0, 2),
        ("killed", 137, 3),
    ],
)
def test_one_machine_begins_again_only_what_was_killed(
    tmp_path: Path, drives: str, code: int, attempts: int
) -> None:
    script = Script(
        tmp_path,
        *("single_node.sh", "+dataset=demo", "dataset.caption_key=a b"),
        stand_ins={"python": ONE_DRIVER},
        DRIVES=drives,
    )
    returned, lines, errors = script.end()
    assert returned == code
    line = "python -m pipeline.run cluster=local +dataset=demo dataset.caption_key=a b"
    assert lines == [line] * attempts
    assert errors.count("the driver was killed (code 137)") == attempts - 1


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_one_machine_told_to_stop_lets_the_driver_commit_and_does_not_begin_again(
    tmp_path: Path, number: signal.Signals
) -> None:
    script = Script(tmp_path, "single_node.sh", stand_ins={"python": ONE_DRIVER}, DRIVES="long")
    script.interrupt_when_ready(number)
    code, lines, _ = script.end()
    assert code == 1
    assert lines[-2:] == ["ready", "committed"]
    assert len([line for line in lines if line.startswith("python")]) == 1


def test_a_submission_told_to_stop_stops_its_job_and_waits_for_its_last_lines(
    tmp_path: Path,
) -> None:
    script = Script(
        tmp_path,
        *("ray_job_submit.sh", "http://head:8265", "output.root=s3://bucket/out"),
        stand_ins={"ray": SUBMITTING_RAY},
        RAY_AUTH_TOKEN="secret",
    )
    script.interrupt_when_ready(signal.SIGINT)
    code, lines, _ = script.end()
    assert code == 1
    submit, _, stop, last = lines
    job = submit.split("--submission-id ")[1].split()[0]
    assert submit.endswith(
        "-- python -m pipeline.run cluster=ray cluster.address=auto output.root=s3://bucket/out"
    )
    assert stop == f"ray job stop --no-wait --address http://head:8265 {job}"
    assert last == "last lines"
    assert not any("secret" in line for line in lines)


def test_a_node_that_leaves_tells_the_driver_how_long_it_has(tmp_path: Path) -> None:
    script = Script(
        tmp_path, "leave_node.sh", "1", stand_ins={"ray": SUBMITTING_RAY}, RAY_ADDRESS="head:6379"
    )
    code, lines, _ = script.end()
    assert code == 0
    (drain,) = lines
    assert drain.startswith("ray drain-node --reason DRAIN_NODE_REASON_PREEMPTION ")
    assert drain.endswith("--deadline-remaining-seconds 1")


def test_a_spot_machine_is_drained_once_its_end_is_announced(tmp_path: Path) -> None:
    script = Script(
        tmp_path,
        *("leave_node.sh", "--on-spot-notice"),
        stand_ins={
            "ray": SUBMITTING_RAY,
            "curl": METADATA_CURL,
            "sleep": "#!/usr/bin/env bash\necho sleep $1 >> $LOG\n",
        },
    )
    code, lines, _ = script.end()
    assert code == 0
    paths = [line.removeprefix("curl http://169.254.169.254/latest/") for line in lines]
    notice = ["api/token", "meta-data/spot/instance-action"]
    assert paths[:5] == [*notice, "sleep 5", *notice]
    assert lines[5].endswith("--deadline-remaining-seconds 110")
    assert lines[6:] == ["sleep 110"]


@pytest.mark.parametrize("argument", ["", "soon", "--now"])
def test_a_node_is_not_drained_by_a_mistake(tmp_path: Path, argument: str) -> None:
    script = Script(tmp_path, "leave_node.sh", argument, stand_ins={"ray": SUBMITTING_RAY})
    code, lines, errors = script.end()
    assert (code, lines) == (2, [])
    assert errors.endswith(f"got '{argument}'\n")
