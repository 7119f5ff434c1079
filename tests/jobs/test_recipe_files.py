"""Recipes that Kubernetes, AWS and a container builder read: what we rely on stands in them."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from ray.autoscaler._private.util import prepare_config, validate_config

from pipeline.config import ClusterConfig

PROJECT = Path(__file__).parents[2]
RECIPES = PROJECT / "jobs" / "recipes"
HEADINGS = ["Cost", "Time", "Output", "Resuming", "Tried"]


def _yaml(name: str) -> dict[str, Any]:
    content: dict[str, Any] = yaml.safe_load((RECIPES / name).read_text())
    return content


def _plan_of(command: list[str]) -> str:
    """What the pipeline would do for a recipe's command line, on data and weights that are here."""
    assert "tokenizer.checkpoint=auto" in command
    here = ["+dataset=demo", "tokenizer.checkpoint=random", "dry_run=true", "cluster=inline"]
    done = subprocess.run(
        [sys.executable, *command, *here],
        cwd=PROJECT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


# ---- every recipe ----


@pytest.mark.parametrize("path", sorted(set(RECIPES.iterdir()) - {RECIPES / "README.md"}))
def test_every_recipe_says_what_it_costs_prints_and_what_was_tried(path: Path) -> None:
    head = re.split(r"^[^#\n]", path.read_text(), maxsplit=1, flags=re.M)[0]
    for heading in HEADINGS:
        assert re.search(rf"^# {heading}\b", head, re.M), heading


@pytest.mark.parametrize("path", sorted(set(RECIPES.iterdir()) - {RECIPES / "README.md"}))
def test_every_recipe_stands_in_the_table(path: Path) -> None:
    assert f"`{path.name}`" in (RECIPES / "README.md").read_text()


@pytest.mark.parametrize("path", sorted(set(RECIPES.iterdir()) - {RECIPES / "README.md"}))
def test_every_command_says_which_videos_and_which_weights(path: Path) -> None:
    """What has no default: a cluster that is paid for must not end at it."""
    text = path.read_text()
    assert text.count("tokenizer.checkpoint=") == text.count("+tokenizer=")
    assert text.count("dataset.shards=") == text.count("+dataset=")


@pytest.mark.parametrize("path", sorted(RECIPES.glob("*.sh")))
def test_scripts_can_be_run_and_bash_can_read_them(path: Path) -> None:
    assert path.stat().st_mode & 0o111
    subprocess.run(["bash", "-n", str(path)], check=True)


# ---- Kubernetes ----


@pytest.fixture(scope="module")
def job() -> dict[str, Any]:
    return _yaml("kuberay_rayjob.yaml")


@pytest.fixture(scope="module")
def cluster(job: dict[str, Any]) -> dict[str, Any]:
    spec: dict[str, Any] = job["spec"]["rayClusterSpec"]
    return spec


@pytest.fixture(scope="module")
def workers(cluster: dict[str, Any]) -> dict[str, Any]:
    (group,) = cluster["workerGroupSpecs"]
    assert isinstance(group, dict)
    return group


def test_a_ray_job_is_tried_again_and_its_cluster_goes_when_it_has_finished(
    job: dict[str, Any],
) -> None:
    assert (job["apiVersion"], job["kind"]) == ("ray.io/v1", "RayJob")
    spec = job["spec"]
    assert spec["shutdownAfterJobFinishes"] is True
    assert spec["ttlSecondsAfterFinished"] > 0
    assert spec["backoffLimit"] >= 1
    # each submission is an object of its own: the same file can be created again
    assert "name" not in job["metadata"]
    assert job["metadata"]["generateName"].endswith("-")


def test_a_ray_job_runs_the_tested_ray_under_a_token_from_a_secret(cluster: dict[str, Any]) -> None:
    assert f"ray=={cluster['rayVersion']}\n" in (PROJECT / "constraints.txt").read_text()
    assert cluster["authOptions"] == {"mode": "token", "secretName": "tokenise-ray-token"}
    assert "--from-literal=auth_token=" in (RECIPES / "kuberay_rayjob.yaml").read_text()


def test_workers_of_a_ray_job_are_spot_machines_with_a_gpu_each(workers: dict[str, Any]) -> None:
    pod = workers["template"]["spec"]
    (container,) = pod["containers"]
    assert container["resources"]["limits"]["nvidia.com/gpu"] == "1"
    assert container["resources"]["requests"] == container["resources"]["limits"]
    (label,) = pod["nodeSelector"]
    tolerated = {toleration["key"] for toleration in pod["tolerations"]}
    assert {label, "nvidia.com/gpu"} <= tolerated
    (memory,) = [volume for volume in pod["volumes"] if volume["name"] == "shm"]
    assert memory["emptyDir"]["medium"] == "Memory"
    assert {"name": "shm", "mountPath": "/dev/shm"} in container["volumeMounts"]


def test_the_head_of_a_ray_job_takes_no_work_and_no_spot_machine(cluster: dict[str, Any]) -> None:
    head = cluster["headGroupSpec"]
    assert head["rayStartParams"]["num-cpus"] == "0"
    assert "nodeSelector" not in head["template"]["spec"]
    (container,) = head["template"]["spec"]["containers"]
    assert "nvidia.com/gpu" not in container["resources"]["limits"]


def test_a_ray_job_grows_to_the_workers_it_asks_for_and_begins_with_one(
    job: dict[str, Any], cluster: dict[str, Any], workers: dict[str, Any]
) -> None:
    assert cluster["enableInTreeAutoscaling"] is True
    assert 1 <= workers["minReplicas"] <= workers["replicas"] <= workers["maxReplicas"]
    assert f"cluster.num_workers={workers['maxReplicas']} " in job["spec"]["entrypoint"]


def test_pods_of_a_ray_job_have_longer_to_go_than_the_run_wants_to_commit(
    job: dict[str, Any], cluster: dict[str, Any], workers: dict[str, Any]
) -> None:
    grace = ClusterConfig().grace_seconds
    pod = workers["template"]["spec"]
    command = pod["containers"][0]["lifecycle"]["preStop"]["exec"]["command"]
    assert command[:2] == ["bash", "/app/jobs/recipes/leave_node.sh"]
    assert grace < float(command[2]) < pod["terminationGracePeriodSeconds"]
    environment = yaml.safe_load(job["spec"]["runtimeEnvYAML"])["env_vars"]
    stop = float(environment["RAY_JOB_STOP_WAIT_TIME_S"])
    head = cluster["headGroupSpec"]["template"]["spec"]
    assert grace < stop < head["terminationGracePeriodSeconds"]


def test_the_pipeline_understands_the_command_of_a_ray_job(job: dict[str, Any]) -> None:
    words = shlex.split(job["spec"]["entrypoint"])
    assert words[:5] == ["python", *"-m pipeline.run cluster=ray cluster.address=auto".split()]
    placeholders = ("cluster=", "+dataset=", "dataset.shards=", "output.root=", "encoder.device=")
    kept = [word for word in words[1:] if not word.startswith(placeholders)]
    assert "4 shards" in _plan_of(kept)


# ---- AWS ----


@pytest.fixture(scope="module")
def aws() -> dict[str, Any]:
    return _yaml("ray_aws_spot.yaml")


def test_ray_accepts_the_cluster_on_aws(aws: dict[str, Any]) -> None:
    validate_config(prepare_config(aws))


def test_on_aws_workers_are_spot_machines_and_the_head_is_not(aws: dict[str, Any]) -> None:
    types = aws["available_node_types"]
    head = types[aws["head_node_type"]]
    assert "InstanceMarketOptions" not in head["node_config"]
    assert head["resources"] == {"CPU": 0}
    # Ray's own profile for a head may not pass a role on, nor look an image up
    assert "IamInstanceProfile" in head["node_config"]
    text = (RECIPES / "ray_aws_spot.yaml").read_text()
    assert "iam:PassRole" in text
    assert "ssm:GetParameters" in text
    (workers,) = [kind for name, kind in types.items() if name != aws["head_node_type"]]
    assert workers["node_config"]["InstanceMarketOptions"] == {"MarketType": "spot"}
    assert 1 <= workers["min_workers"] <= workers["max_workers"] == aws["max_workers"]
    assert aws["provider"]["cache_stopped_nodes"] is False


def test_on_aws_the_token_travels_as_a_file_and_every_ray_process_wants_it(
    aws: dict[str, Any],
) -> None:
    assert aws["file_mounts"]["~/.ray/auth_token"] == "~/.ray/auth_token"
    starts = [*aws["head_start_ray_commands"], *aws["worker_start_ray_commands"]]
    assert all("RAY_AUTH_MODE=token" in line for line in starts)
    assert not any("RAY_AUTH_TOKEN" in line for line in starts)
    (head,) = aws["head_start_ray_commands"]
    assert "--dashboard-host=127.0.0.1" in head  # nothing is open to the outside


def test_on_aws_workers_watch_for_the_spot_notice(aws: dict[str, Any]) -> None:
    (watch,) = [line for line in aws["worker_start_ray_commands"] if "--on-spot-notice" in line]
    (script,) = re.findall(r" ~/tokenise/(\S+\.sh)", watch)
    assert (PROJECT / script).exists()
    assert aws["file_mounts"]["~/tokenise"] == "."
    assert "RAY_ADDRESS=$RAY_HEAD_IP:" in watch


# ---- the image ----


def _instructions() -> list[tuple[str, str]]:
    """(keyword, rest) of the container file, continued lines joined."""
    text = re.sub(r"\\\n", " ", (RECIPES / "Containerfile").read_text())
    lines = [line for line in text.splitlines() if line and not line.startswith("#")]
    return [(word, " ".join(rest.split())) for word, _, rest in (x.partition(" ") for x in lines)]


def test_the_image_copies_what_is_there_and_all_that_is_installed() -> None:
    copied = {
        source for word, rest in _instructions() if word == "COPY" for source in rest.split()[:-1]
    }
    assert all((PROJECT / source).exists() for source in copied)
    project = (PROJECT / "pyproject.toml").read_text()
    (packages,) = re.findall(r"^packages = \[(.+)\]$", project, re.M)
    assert set(re.findall(r'"(\w+)"', packages)) <= copied
    assert {"pyproject.toml", "constraints.txt", "README.md", "LICENSE"} <= copied


def test_every_install_of_the_image_is_pinned_and_its_python_is_supported() -> None:
    installs = [rest for word, rest in _instructions() if "pip install" in rest]
    assert len(installs) == 2
    assert all("-c constraints.txt" in line for line in installs)
    (base,) = [rest for word, rest in _instructions() if word == "FROM"]
    minor = re.fullmatch(r"docker\.io/library/python:3\.(\d+)-slim", base)
    assert minor
    assert int(minor[1]) >= 11


def test_the_image_runs_the_pipeline_as_no_root() -> None:
    instructions = _instructions()
    assert ("ENTRYPOINT", '["python", "-m", "pipeline.run"]') in instructions
    user = instructions.index(("USER", "1000"))
    assert all(word in ("WORKDIR", "ENTRYPOINT") for word, _ in instructions[user + 1 :])
    # where kuberay_rayjob.yaml looks for leave_node.sh
    assert ("WORKDIR", "/app") in instructions
    assert ("COPY", "jobs jobs") in instructions
