"""The commands as a shell sees them: exit status, and what stands on which stream."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from tests.pipeline import runs

DEMO = ("+dataset=demo", "+tokenizer=demo")


def assert_one_line(ended: subprocess.CompletedProcess[str], *texts: str) -> None:
    assert ended.returncode == 1
    lines = ended.stderr.splitlines()
    assert len(lines) == 1, ended.stderr
    assert lines[0].startswith("error: ")
    for text in texts:
        assert text in lines[0]


def test_help_lists_groups_fields_and_examples(tmp_path: Path) -> None:
    ended = runs.run("--help", cwd=tmp_path)
    assert (ended.returncode, ended.stderr) == (0, "")
    for text in (
        "usage: python -m pipeline.run +dataset=NAME +tokenizer=NAME",
        "dataset: demo, folder, images, openvid, panda70m, tars, webvid",
        "cluster: array, inline, local, ray",
        "fsq_4x8x8",
        "max_clips: 4096",
        "The same command again continues where the last one stopped.",
    ):
        assert text in ended.stdout
    assert list(tmp_path.iterdir()) == []


def test_the_configuration_can_be_printed(tmp_path: Path) -> None:
    ended = runs.run("--cfg", "job", *DEMO, "sampling.fps=[3,8]", cwd=tmp_path)
    assert (ended.returncode, ended.stderr) == (0, "")
    assert "  fps:\n  - 3.0\n  - 8.0\n" in ended.stdout
    assert list(tmp_path.iterdir()) == []


def test_a_misspelt_key_is_one_line(tmp_path: Path) -> None:
    ended = runs.run(*DEMO, "sampling.fsp=[3]", cwd=tmp_path)
    assert_one_line(ended, "Key 'fsp' not in 'SamplingConfig'")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "texts"),
    [
        (
            ["+dataset=demo", "+tokenizer=fsq_4x8x8"],
            ["needs a checkpoint", "vidtok_fsq_causal_488_262144.ckpt", "checkpoint=random"],
        ),
        ([*DEMO, "encoder.device=cuda"], ["there is no GPU here; use auto or cpu"]),
    ],
    ids=lambda value: value[-1] if "+" in value[0] else "",
)
def test_what_cannot_work_here_is_one_line(
    arguments: list[str], texts: list[str], tmp_path: Path
) -> None:
    ended = runs.run(*arguments, "cluster=inline", cwd=tmp_path, CUDA_VISIBLE_DEVICES="")
    assert_one_line(ended, *texts)
    assert "Traceback" not in ended.stdout


def test_a_refused_out_names_the_keys_that_differ(tmp_path: Path) -> None:
    pattern = runs.write_shards(tmp_path / "shards", num_shards=1, num_videos=1)
    assert runs.run_inline(pattern, tmp_path / "out") == 0
    ended = runs.run(
        *("+dataset=tars", f"dataset.shards={pattern}", *runs.TINY, "cluster=inline"),
        *(f"output.root={tmp_path / 'out'}", "sampling.fps=[4]"),
        cwd=tmp_path,
    )
    assert ended.returncode == 1
    first, *others = ended.stderr.splitlines()
    assert first.startswith(f"error: {tmp_path / 'out'} holds the output of another configuration")
    assert others == ["  sampling.fps: [8.0] there, [4.0] now"]


def test_a_run_says_what_it_did_and_where_it_is(tmp_path: Path) -> None:
    """Braces, an equals sign and spaces reach the run as typed; logs go to runs/, tokens do not."""
    folder = tmp_path / "day=1, two words"
    runs.write_shards(folder, num_shards=2, num_videos=1)
    arguments = (
        *("+dataset=tars", "dataset.shards=day=1, two words/{00000..00001}.tar", *runs.TINY),
        *("cluster=inline", "output.root=out {1}/x=2"),
    )
    ended = runs.run(*arguments, cwd=tmp_path)
    assert ended.returncode == 0
    assert "Traceback" not in ended.stderr
    assert "tars: 2 shards" in ended.stdout
    assert "shards: 2 of 2 final, 0 of them cut, 0 failed" in ended.stdout
    assert len(runs.rows(tmp_path / "out {1}/x=2")) == 4
    assert list((tmp_path / "runs").rglob("*.parquet")) == []
    assert list((tmp_path / "runs").rglob("config.yaml")) != []

    status = runs.run("out {1}/x=2", cwd=tmp_path, module="pipeline.status")
    assert status.returncode == 0
    assert status.stdout.splitlines()[0].endswith("out {1}/x=2: finished")
    verify = runs.run("out {1}/x=2", cwd=tmp_path, module="pipeline.verify")
    assert verify.returncode == 0
    assert "sound: 2 receipts, 2 parts, 4 clips" in verify.stdout


@pytest.mark.parametrize("module", ["pipeline.status", "pipeline.verify"])
def test_a_place_that_is_no_out_is_status_2(module: str, tmp_path: Path) -> None:
    ended = runs.run("NOPE", cwd=tmp_path, module=module)
    assert ended.returncode == 2
    assert ended.stderr == f"error: {tmp_path}/NOPE: no run.json there, so this is no OUT\n"
    assert ended.stdout == ""
    assert not (tmp_path / "NOPE").exists()
