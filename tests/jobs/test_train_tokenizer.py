"""``jobs.train_tokenizer``: tiny models on the demo clips, killed, stopped, continued."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from hydra.core.global_hydra import GlobalHydra
from safetensors.torch import load_file

from jobs import train_tokenizer
from jobs.training import compose, resolve
from jobs.training.checkpoints import Checkpoints, latest_checkpoint, read_state, start_weights
from jobs.training.config import TrainConfig
from jobs.training.record import check_record, write_record
from pipeline.config import ClusterKind
from pipeline.errors import ConfigError, RunError
from tokenizer import load_tokenizer

CHOSEN = ["+dataset=demo", "+tokenizer=demo", "+stage=one"]
TINY = [
    "tokenizer.ch=8",
    "tokenizer.num_res_blocks=1",
    "sampling.clip_frames=5",
    "sampling.resolution=32",
    "sampling.decoders=1",
    "train.batch=2",
    "train.threads=1",
    "train.precision=fp32",
    "lpips.weight=0",
    "loss.adversarial_start=3",
    "show.tensorboard=false",
    "show.pictures_every_steps=0",
]


def composed(*arguments: str) -> TrainConfig:
    compose.register_schema()
    return compose.to_train_config(compose.compose_overrides(arguments))


def start(*arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "jobs.train_tokenizer", *CHOSEN, *TINY, *arguments],
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip


def finish(process: subprocess.Popen[str], *, code: int = 0, seconds: float = 180) -> str:
    try:
        output, _ = process.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        process.terminate()  # it saves and ends, and Ray with it
        raise
    assert process.returncode == code, output
    return output


def wait_for_lines(process: subprocess.Popen[str], curve: Path, lines: int) -> None:
    while not curve.exists() or curve.read_bytes().count(b"\n") < lines:
        assert process.poll() is None, process.communicate()[0]
        time.sleep(0.002)


def train(*arguments: str) -> None:
    """The command in this process, after its composition."""
    threads = torch.get_num_threads()
    try:
        train_tokenizer.execute(composed(*CHOSEN, *TINY, *arguments))
    finally:
        torch.set_num_threads(threads)
        torch.use_deterministic_algorithms(False)


def curve_of(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "curve.jsonl").read_text().splitlines()]


MISTAKES = [
    ([], "no dataset chosen; add +dataset=NAME, one of: demo, folder, "),
    (CHOSEN[:2], "no stage chosen; add +stage=NAME, one of: long, one, two"),
    (CHOSEN, "no run folder; add train.run=RUN"),
    ([*CHOSEN, "train.run="], "no run folder; add train.run=RUN"),
    ([*CHOSEN, "train.run=r", "train.step=3"], "did you mean train.steps?"),
    ([*CHOSEN, "train.run=r", "train.resolution=64"], "did you mean sampling.resolution?"),
    ([*CHOSEN, "train.run=r", "train.steps=0"], "train.steps must be at least 1, got 0"),
    ([*CHOSEN, "train.run=r", "train.ema_decay=1"], "train.ema_decay must be in [0, 1) or null"),
    ([*CHOSEN, "train.run=r", "train.ema_decay=nan"], "train.ema_decay must be in [0, 1) or null"),
    ([*CHOSEN, "train.run=r", "train.learning_rate=nan"], "train.learning_rate must be positive"),
    ([*CHOSEN, "train.run=r", "train.clip_norm=inf"], "clip_norm must be positive and finite, got"),
    ([*CHOSEN, "train.run=r", "train.adam_beta2=1"], "train.adam_beta2 must be in [0, 1), got 1"),
    ([*CHOSEN, "train.run=r", "loss.lecam_weight=nan"], "loss.lecam_weight must be at least 0"),
    ([*CHOSEN, "train.run=r", "train.steps=5", "train.warmup_steps=6"], "[0, train.steps=5], got"),
    ([*CHOSEN, "train.run=r", "sampling.fps=[0]"], "list of rates in (0, 1000], got [0.0]"),
    ([*CHOSEN, "train.run=r", "lpips.net=squeeze"], "expected one of [alex, vgg]"),
    ([*CHOSEN, "train.run=r", "loss.dims=4"], "loss.dims must be 2 (frames) or 3 (videos), got 4"),
    ([*CHOSEN, "--frobnicate"], "unknown option --frobnicate; see --help"),
]


@pytest.mark.parametrize(("arguments", "text"), MISTAKES, ids=[" ".join(m[0]) for m in MISTAKES])
def test_a_mistake_is_answered_in_one_line(
    arguments: list[str], text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", ["jobs.train_tokenizer", *arguments])
    with pytest.raises(SystemExit) as stop:
        train_tokenizer.main()
    GlobalHydra.instance().clear()
    line = str(stop.value.code)
    assert line.startswith("error: ")
    assert text in line
    assert "\n" not in line


IMPOSSIBLE = [
    (["train.batch=3", "train.accumulate=2"], "train.batch=3 must be a multiple of"),
    (["sampling.clip_frames=16"], "expected 1 + k*4 frames"),
    (["sampling.resolution=100"], "height a multiple of 8"),
    (["lpips.net=vgg", "lpips.weight=1"], "lpips.net=vgg needs lpips.weights=FILE"),
    (["tokenizer.checkpoint=random"], "a training begins at train.start=FILE"),
    (["train.start=no/such"], "train.start=no/such: no such file or folder"),
    (["train.device=cuda"], "train.device=cuda, but there is no GPU here"),
]


@pytest.mark.parametrize(
    ("arguments", "text"), IMPOSSIBLE, ids=[" ".join(i[0]) for i in IMPOSSIBLE]
)
def test_what_sections_rule_out_together_is_named(
    arguments: list[str], text: str, tmp_path: Path
) -> None:
    config = composed(*CHOSEN, *TINY, f"train.run={tmp_path}", *arguments)
    with pytest.raises(ConfigError) as said:
        resolve.training_plan(config, num_gpus=0, workers=1)
    assert text in str(said.value)


def test_stages_are_those_of_the_published_recipe() -> None:
    stages = {}
    models = {"one": "fsq_4x8x8", "two": "fsq_4x8x8", "long": "fsq_4x8x8_32768_v1_1"}
    for stage, model in models.items():
        config = composed("+dataset=demo", f"+tokenizer={model}", f"+stage={stage}", "train.run=r")
        plan = resolve.training_plan(config, num_gpus=0, workers=1)
        recipe = plan.feed.recipe
        facts = plan.steps, plan.batch, plan.stage.encoder_fixed, recipe.resolution
        stages[stage] = (*facts, recipe.clip_frames)
        assert recipe.fps == (3.0,)
        assert plan.stage.learning_rate == 1e-5
    assert stages == {
        "one": (50_000, 16, False, 128, 17),
        "two": (30_000, 8, True, 256, 17),
        "long": (30_000, 8, False, 256, 33),
    }


@pytest.mark.parametrize(
    ("arguments", "num_gpus", "kind"),
    [
        ([], 0, ClusterKind.inline),
        ([], 1, ClusterKind.inline),
        ([], 8, ClusterKind.local),
        (["cluster.workers=2"], 0, ClusterKind.local),
        (["cluster=ray"], 0, ClusterKind.ray),
        (["cluster=inline"], 8, ClusterKind.inline),
    ],
)
def test_one_process_is_enough_unless_there_are_gpus_or_workers(
    arguments: list[str], num_gpus: int, kind: ClusterKind
) -> None:
    assert resolve.cluster_kind(composed(*CHOSEN, "train.run=r", *arguments), num_gpus) is kind


def test_several_workers_in_one_process_are_refused() -> None:
    config = composed(*CHOSEN, "train.run=r", "cluster=inline", "cluster.workers=2")
    with pytest.raises(ConfigError, match="cluster=inline is one process"):
        resolve.cluster_kind(config, 0)


@pytest.mark.timeout(400)  # several processes that load torch
def test_a_killed_training_ends_with_the_curve_of_a_quiet_one(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rules = ["train.steps=7", "save.every_steps=2", "train.ema_decay=0.9", "train.accumulate=2"]
    run, curve = tmp_path / "killed", tmp_path / "killed/curve.jsonl"
    process = start(f"train.run={run}", *rules)
    wait_for_lines(process, curve, 3)
    os.kill(process.pid, signal.SIGKILL)
    process.communicate(timeout=100)
    assert curve.read_bytes().count(b"\n") < 7
    with curve.open("ab") as file:
        file.write(b'{"step": 4')  # as a machine leaves it that dies while it writes
    train(f"train.run={run}", *rules)
    assert "continuing behind" in capsys.readouterr().out

    quiet = tmp_path / "quiet"
    train(f"train.run={quiet}", *rules)
    assert [line["step"] for line in curve_of(quiet)] == list(range(1, 8))
    assert curve.read_bytes() == (quiet / "curve.jsonl").read_bytes()
    for name in ("weights.safetensors", "weights_ema.safetensors"):
        files = [latest_checkpoint(one) / name for one in (run, quiet)]  # type: ignore[operator]
        assert files[0].read_bytes() == files[1].read_bytes()


@pytest.mark.timeout(400)  # several processes that load torch
def test_sigterm_saves_the_step_and_the_same_command_goes_on(tmp_path: Path) -> None:
    run = tmp_path / "run"
    process = start(f"train.run={run}", "train.steps=100000")
    wait_for_lines(process, run / "curve.jsonl", 2)
    process.send_signal(signal.SIGTERM)
    output = finish(process, code=1)
    assert "interrupted; the same command continues at the last checkpoint" in output
    assert "Traceback" not in output
    steps = len(curve_of(run))
    assert latest_checkpoint(run) == run / f"checkpoints/step-{steps:08d}"


def test_stage_two_starts_from_stage_one_and_steps_may_grow(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    shown = ["show.pictures_every_steps=2", "save.fp16=true", "train.ema_decay=0.9"]
    train(f"train.run={one}", "train.steps=2", *shown)
    pictures = sorted(path.name for path in (one / "pictures").glob("*.png"))
    assert pictures == ["step-00000000.png", "step-00000002.png"]
    first = latest_checkpoint(one)
    assert first is not None
    for name in ("weights", "weights_ema", "weights_fp16"):
        load_tokenizer("demo", first / f"{name}.safetensors", ch=8, num_res_blocks=1)

    train(f"train.run={one}", "train.steps=4", *shown)
    assert [line["step"] for line in curve_of(one)] == [1, 2, 3, 4]
    assert "continuing behind 2 steps" in capsys.readouterr().out

    train(f"train.run={two}", "train.steps=1", f"train.start={one}", "train.encoder_fixed=true")
    before, after = (
        load_tokenizer("demo", start_weights(str(run)), ch=8, num_res_blocks=1).state_dict()
        for run in (one, two)
    )
    same = {name for name, value in before.items() if torch.equal(value, after[name])}
    assert {name for name in before if name.startswith("encoder.")} <= same
    assert "decoder.conv_out.conv.weight" in before.keys() - same

    with pytest.raises(RunError, match=r"train.learning_rate was 1e-05, now 0.1") as refused:
        train(f"train.run={two}", "train.steps=1", f"train.start={one}", "train.encoder_fixed=true",
              "train.learning_rate=0.1")  # fmt: skip
    assert "train.encoder_fixed" not in str(refused.value)


@pytest.mark.slow
def test_a_start_in_the_published_layout_brings_its_discriminator_along(tmp_path: Path) -> None:
    one, two, other = (tmp_path / name for name in ("one", "two", "other"))
    train(f"train.run={one}", "train.steps=1", "loss.adversarial_start=0")
    file = start_weights(str(one))
    known = {name for name in load_file(file) if name.startswith("loss.")}
    assert "loss.logvar" in known
    assert len(known) > 20

    rules = ["train.steps=1", f"train.start={file}", "loss.adversarial_start=5",
             "train.learning_rate=1e-12"]  # fmt: skip
    train(f"train.run={two}", *rules)
    begun, gone_on = load_file(file), load_file(start_weights(str(two)))
    kept = {name for name in known if torch.equal(begun[name], gone_on[name])}
    assert {name for name in known if name.endswith("main.0.weight")} <= kept
    assert torch.allclose(begun["loss.logvar"], gone_on["loss.logvar"])
    train(f"train.run={other}", *rules, "loss.dims=3")
    assert load_file(start_weights(str(other)))["loss.discriminator.main.0.weight"].ndim == 5


@pytest.mark.parametrize(
    ("model", "arguments"),
    [
        ("kl_4x8x8_4chn", []),
        pytest.param("fsq_4x8x8_32768_v1_1", ["sampling.clip_frames=33"], marks=pytest.mark.slow),
        pytest.param("demo", ["loss.dims=3"], marks=pytest.mark.slow),
    ],
    ids=str,
)
def test_other_models_and_judges_train(tmp_path: Path, model: str, arguments: list[str]) -> None:
    sizes = ["train.steps=2", "loss.adversarial_start=1", *arguments]
    config = composed(*CHOSEN[:1], f"+tokenizer={model}", *CHOSEN[2:], *TINY, *sizes,
                      f"train.run={tmp_path}")  # fmt: skip
    threads = torch.get_num_threads()
    try:
        train_tokenizer.execute(config)
    finally:
        torch.set_num_threads(threads)
        torch.use_deterministic_algorithms(False)
    first, second = curve_of(tmp_path)
    assert "g_loss" in second.keys() - first.keys()
    assert ("perplexity" in second) is not model.startswith("kl")


@pytest.mark.weights
def test_the_networks_of_the_paper_can_judge_by_path(tmp_path: Path) -> None:
    """LPIPS_VGG is the path of its file."""
    weights = os.environ["LPIPS_VGG"]
    vgg = ["lpips.weight=1", "lpips.net=vgg", f"lpips.weights={weights}"]
    train(f"train.run={tmp_path}/vgg", "train.steps=1", *vgg)
    train(f"train.run={tmp_path}/alex", "train.steps=1", "lpips.weight=1")
    [by_vgg], [by_alex] = (curve_of(tmp_path / name) for name in ("vgg", "alex"))
    assert 0 < by_vgg["p_loss"] != by_alex["p_loss"]
    assert by_vgg["psnr"] == by_alex["psnr"]  # the same clips, the same weights


def test_a_dry_run_says_what_would_be_done_and_writes_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    train(f"train.run={tmp_path}/run", "dry_run=true")
    said = capsys.readouterr().out
    assert "tokenizer demo, stage one: 50,000 steps of 2 clips, 1 worker on cpu (dry run)" in said
    assert "from random weights (seed 0)" in said
    assert not (tmp_path / "run").exists()


def test_only_the_last_checkpoints_are_kept_and_unfinished_ones_are_cleared(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path, keep=2)
    (tmp_path / "checkpoints/unfinished-00000001").mkdir(parents=True)
    assert latest_checkpoint(tmp_path) is None
    for step in (1, 2, 10):
        checkpoints.save(step, {"step": step}, {"encoder.a": torch.ones(2)}, fp16=True)
    names = sorted(path.name for path in (tmp_path / "checkpoints").iterdir())
    assert names == ["step-00000002", "step-00000010"]
    latest = latest_checkpoint(tmp_path)
    assert latest is not None
    assert read_state(latest) == {"step": 10}
    assert start_weights(str(tmp_path)) == str(latest / "weights.safetensors")


def test_a_damaged_checkpoint_is_named_with_the_way_out(tmp_path: Path) -> None:
    path = Checkpoints(tmp_path, keep=1).save(1, {"step": 1}, {"encoder.a": torch.ones(2)})
    (path / "training.pt").write_bytes((path / "training.pt").read_bytes()[:100])
    with pytest.raises(
        RunError, match=r"remove .*step-00000001 to continue at the checkpoint before"
    ):
        read_state(path)


def test_a_record_lets_steps_grow_and_names_what_differs(tmp_path: Path) -> None:
    before = {"train": {"steps": 5, "batch": 2}, "sampling": {"fps": [3.0]}}
    check_record(tmp_path, before)
    write_record(tmp_path, before, {})
    check_record(tmp_path, before)
    check_record(tmp_path, {**before, "train": {"steps": 9, "batch": 2}})
    with pytest.raises(RunError, match=r"train.steps was 5, now 4 "):
        check_record(tmp_path, {**before, "train": {"steps": 4, "batch": 2}})
    with pytest.raises(RunError, match=r"sampling.fps was \[3.0\], now \[8.0\] "):
        check_record(tmp_path, {**before, "sampling": {"fps": [8.0]}})


@pytest.mark.slow
@pytest.mark.timeout(1000)
def test_two_workers_on_ray_survive_a_death_with_the_same_curve(tmp_path: Path) -> None:
    rules = ["train.steps=12", "save.every_steps=3", "cluster=local", "cluster.workers=2"]
    quiet, run = tmp_path / "quiet", tmp_path / "killed"
    finish(start(f"train.run={quiet}", *rules), seconds=400)
    process = start(f"train.run={run}", *rules)
    wait_for_lines(process, run / "curve.jsonl", 5)
    os.kill(worker_of(process.pid), signal.SIGKILL)
    finish(process, seconds=400)
    assert (run / "curve.jsonl").read_bytes() == (quiet / "curve.jsonl").read_bytes()


def worker_of(driver: int) -> int:
    """One of the training workers that descend from a process."""
    parents, names = {}, {}
    for entry in Path("/proc").iterdir():
        try:
            fields = (entry / "stat").read_text().rsplit(")", 1)[1].split()
            names[int(entry.name)] = (entry / "cmdline").read_text()
            parents[int(entry.name)] = int(fields[1])
        except (ValueError, OSError):  # no process, or none any more
            continue

    def descends(pid: int) -> bool:
        while pid > 1:
            pid = parents.get(pid, 0)
            if pid == driver:
                return True
        return False

    return next(pid for pid in names if "TrainWorker" in names[pid] and descends(pid))
