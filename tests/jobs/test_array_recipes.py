"""Recipes for ``cluster=array``: what they start is what the pipeline understands."""

import os
import shlex
import subprocess
from pathlib import Path

import pytest
import yaml

from pipeline.config import ClusterKind
from pipeline.rank import VARIABLES
from tests.pipeline import runs

RECIPES = Path(__file__).parents[2] / "jobs" / "recipes"


def test_the_slurm_array_runs_a_rank_and_hands_on_arguments_and_its_exit_code(tmp_path):
    python = tmp_path / "python"
    python.write_text('#!/usr/bin/env bash\nprintf "%s\\n" "$@"\nexit 7\n')
    python.chmod(0o755)
    done = subprocess.run(
        ["bash", str(RECIPES / "slurm_array.sbatch"), "+dataset=webvid", "dataset.caption_key=a b"],
        env=os.environ | {"PATH": f"{tmp_path}:{os.environ['PATH']}"},
        capture_output=True,
        text=True,
        check=False,
    )
    words = ["-m", "pipeline.run", "cluster=array", "+dataset=webvid", "dataset.caption_key=a b"]
    assert (done.returncode, done.stdout.splitlines()) == (7, words)


def test_the_kubernetes_job_is_indexed_and_says_how_many_ranks_there_are():
    spec = yaml.safe_load((RECIPES / "kubernetes_indexed_job.yaml").read_text())["spec"]
    (container,) = spec["template"]["spec"]["containers"]
    assert container["command"] == ["python", "-m", "pipeline.run"]
    cluster = runs.config(*container["args"]).cluster
    assert cluster.kind is ClusterKind.array
    assert cluster.ranks == spec["completions"]
    assert cluster.rank is None
    assert spec["completionMode"] == "Indexed"  # else there is no JOB_COMPLETION_INDEX
    assert VARIABLES["JOB_COMPLETION_INDEX"] is None
    grace = spec["template"]["spec"]["terminationGracePeriodSeconds"]
    assert grace > cluster.grace_seconds


def test_skypilot_runs_a_rank_on_every_node_of_one_gpu():
    recipe = yaml.safe_load((RECIPES / "skypilot.yaml").read_text())
    words = shlex.split(recipe["run"].replace("\\\n", " "))
    assert words[:4] == ["exec", "python", "-m", "pipeline.run"]
    cluster = runs.config(*words[4:]).cluster
    assert (cluster.kind, cluster.rank, cluster.ranks) == (ClusterKind.array, None, None)
    assert recipe["num_nodes"] > 1
    assert recipe["resources"]["accelerators"].endswith(":1")


@pytest.mark.parametrize(
    "name", ["slurm_array.sbatch", "kubernetes_indexed_job.yaml", "skypilot.yaml"]
)
def test_the_head_says_what_it_costs_and_what_was_tried(name):
    text = (RECIPES / name).read_text()
    for word in ("Cost:", "Time:", "Output:", "Resuming:", "Tried:"):
        assert f"# {word}" in text
