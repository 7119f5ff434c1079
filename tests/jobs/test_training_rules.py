"""Rules of a training: where it begins, its files by path, its record, mistakes in one line."""

from __future__ import annotations

import json
import re
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from jobs import train_tokenizer
from jobs.training import compose
from jobs.training.beginning import begin, make_training
from jobs.training.checkpoints import Checkpoints, latest_checkpoint, read_state
from jobs.training.plan import TrainingPlan
from jobs.training.record import check_record, write_record
from jobs.training.resolve import material, training_plan
from jobs.training.workers import Worker
from pipeline.errors import ConfigError, RunError
from tests.jobs.test_train_tokenizer import CHOSEN, TINY, composed, train


def plan_of(run: Path, *arguments: str) -> TrainingPlan:
    config = composed(*CHOSEN, *TINY, f"train.run={run}", *arguments)
    return training_plan(config, num_gpus=0, workers=1)


def test_a_start_without_lecams_means_still_brings_log_variance_and_discriminator(
    tmp_path: Path,
) -> None:
    worker = Worker(device=torch.device("cpu"))
    before = make_training(plan_of(tmp_path / "one"), worker)
    with torch.no_grad():
        before.objective.logvar.fill_(5)
        for parameter in before.objective.discriminator.parameters():
            parameter.add_(1)
    published = {
        name: value.detach().clone()
        for name, value in before.published_state_dict().items()
        if "lecam" not in name
    }
    save_file(published, tmp_path / "published.safetensors")
    plan = plan_of(tmp_path / "two", f"train.start={tmp_path}/published.safetensors")
    after = make_training(plan, worker)
    begin(after, plan)
    assert after.objective.logvar.item() == 5
    assert float(after.objective.lecam.real_mean) == 0
    for name, value in before.objective.discriminator.state_dict().items():
        assert torch.equal(value, after.objective.discriminator.state_dict()[name]), name


def test_a_missing_lpips_file_is_named_before_anything_is_written(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"lpips\.weights=no/such\.safetensors: no such file"):
        train(f"train.run={tmp_path}/run", "lpips.weight=1", "lpips.weights=no/such.safetensors")
    assert not (tmp_path / "run").exists()
    assert plan_of(tmp_path, "lpips.weights=no/such.safetensors").lpips_weights is None


def test_lpips_weights_count_by_what_they_hold_and_workers_get_an_absolute_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    for name, content in (("a", b"same"), ("home/b", b"same"), ("c", b"other")):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(content)
    found = []
    for given, place in (("a", "a"), ("~/b", "home/b"), ("c", "c")):
        config = composed(
            *CHOSEN, *TINY, "train.run=run", "lpips.weight=1", f"lpips.weights='{given}'"
        )
        plan = training_plan(config, num_gpus=0, workers=1)
        assert plan.lpips_weights == str(tmp_path / place)
        found.append(material(config, plan))
    assert found[0] == found[1] != found[2]


def test_a_record_without_a_checkpoint_says_that_it_may_be_removed(tmp_path: Path) -> None:
    before = {"train": {"steps": 5, "batch": 2}}
    after = {"train": {"steps": 5, "batch": 4}}
    write_record(tmp_path, before, {})
    remedy = re.escape(f"it has no checkpoint yet: remove {tmp_path} to begin anew")
    with pytest.raises(RunError, match=remedy):
        check_record(tmp_path, after)
    (tmp_path / "checkpoints/step-00000001").mkdir(parents=True)
    with pytest.raises(RunError, match=r"or another train\.run\)$"):
        check_record(tmp_path, after)


def test_a_place_where_no_folder_can_be_is_an_error_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("not a folder")
    for place, problem in ((f"{tmp_path}/file", "File exists"), ("/proc/nope", "No such file")):
        compose.register_schema()
        config = compose.compose_overrides([*CHOSEN, *TINY, f"train.run={place}"])
        with pytest.raises(SystemExit) as stop:
            train_tokenizer.run_composed(config)
        line = str(stop.value.code)
        assert line.startswith("error: ")
        assert problem in line
        assert place in line
        assert "\n" not in line


@contextmanager
def largest_file(num_bytes: int) -> Iterator[None]:
    """The system refuses to write more into one file, as a full disk does."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize("large", ["state", "weights"])
def test_a_checkpoint_that_the_disk_does_not_take_is_named_and_those_before_stay(
    tmp_path: Path, large: str
) -> None:
    values = {"encoder.a": torch.ones(50_000)}
    few = {"encoder.a": torch.ones(2)}
    checkpoints = Checkpoints(tmp_path, keep=1)
    first = checkpoints.save(1, {}, few)
    state, weights = (values, few) if large == "state" else ({}, values)
    with (
        pytest.raises(RunError, match=r"checkpoint of step 2 cannot be written \(.+\); make room"),
        largest_file(20_000),
    ):
        checkpoints.save(2, state, weights)
    assert latest_checkpoint(tmp_path) == first
    checkpoints.save(2, state, weights)


def test_an_empty_checkpoint_is_named_with_the_way_out(tmp_path: Path) -> None:
    path = Checkpoints(tmp_path, keep=1).save(1, {"step": 1}, {"encoder.a": torch.ones(2)})
    (path / "training.pt").write_bytes(b"")
    with pytest.raises(RunError, match=r"cannot be read \(.+\); remove .*step-00000001"):
        read_state(path)


def test_a_run_that_goes_on_keeps_where_it_started(tmp_path: Path) -> None:
    write_record(tmp_path, {"train": {"steps": 5}}, {"start": "one/weights", "device": "cpu"})
    write_record(tmp_path, {"train": {"steps": 9}}, {"start": None, "device": "cuda"})
    assert json.loads((tmp_path / "run.json").read_text()) == {
        "material": {"train": {"steps": 9}},
        "start": "one/weights",
        "device": "cuda",
    }
