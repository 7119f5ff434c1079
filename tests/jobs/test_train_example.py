"""``jobs.train_example``: a run that was killed has the curve of one that was not."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from jobs.loss_curve import Curve
from jobs.token_transformer import TokenTransformer
from jobs.train_example import main, token_grid
from pipeline.errors import RunError
from pipeline.loading.snapshot import pin
from pipeline.packing import pack_indices
from pipeline.receipts import commit
from pipeline.storage import Storage
from pipeline.writer import write_part
from tests.pipeline.fakes import indices_of, row, token_format
from tests.pipeline.receipts import receipt

SHAPE = (3, 4, 4)
SMALL = ["--dim", "16", "--layers", "1", "--device", "cpu", "--epochs", "2"]


def tokens(root: Path, *, shape: tuple[int, ...] = SHAPE, clips: int = 41) -> str:
    """An OUT of clips with indices, 20 steps an epoch of two ranks."""
    storage = Storage(str(root / "out"))
    rows = [
        row(n, shape=shape, tokens=pack_indices(indices_of(n, shape), "u16+u2"))
        for n in range(clips)
    ]
    digest = write_part(root / "part", rows, token_format(), row_group_rows=4)
    storage.publish(root / "part", "parts/p")
    commit(storage, receipt(part="p", rows=clips, final=True, **digest.receipt_fields()))
    return storage.root


def start(out: str, run: Path, *, of_its_own: bool = False) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "jobs.train_example", out, str(run), *SMALL]
    return subprocess.Popen(
        [*command, "--processes", "2", "--checkpoint-every", "3"],
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        start_new_session=of_its_own,
    )  # fmt: skip


def finish(process: subprocess.Popen[str]) -> str:
    output, _ = process.communicate(timeout=100)
    assert process.returncode == 0, output
    return output


def kill_after(process: subprocess.Popen[str], curve: Path, lines: int) -> None:
    """SIGKILL of the command as soon as the curve has so many lines."""
    while not curve.exists() or curve.read_bytes().count(b"\n") < lines:
        assert process.poll() is None, process.communicate()[0]
        time.sleep(0.002)
    os.kill(process.pid, signal.SIGKILL)
    process.communicate(timeout=100)  # ends when its ranks, which hold the pipe, are gone too


@pytest.mark.slow
def test_two_ranks_killed_amid_an_epoch_end_with_the_curve_of_a_quiet_run(tmp_path: Path) -> None:
    out = tokens(tmp_path)
    finish(start(out, tmp_path / "quiet"))
    quiet = (tmp_path / "quiet/curve.jsonl").read_bytes()
    assert [json.loads(line)["step"] for line in quiet.splitlines()] == list(range(1, 41))

    run, curve = tmp_path / "killed", tmp_path / "killed/curve.jsonl"
    kill_after(start(out, run), curve, 5)
    assert curve.read_bytes().count(b"\n") < 40
    with curve.open("ab") as file:
        file.write(b'{"step": 4')  # as a machine leaves it that dies while it writes
    output = finish(start(out, run))
    assert "continuing behind step" in output
    assert curve.read_bytes() == quiet


@pytest.mark.slow
def test_ctrl_c_ends_both_ranks_with_one_line(tmp_path: Path) -> None:
    curve = tmp_path / "run/curve.jsonl"
    process = start(tokens(tmp_path), tmp_path / "run", of_its_own=True)
    while not curve.exists() or curve.read_bytes().count(b"\n") < 4:
        assert process.poll() is None, process.communicate()[0]
        time.sleep(0.002)
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does: to all of them
    output, _ = process.communicate(timeout=100)
    assert process.returncode == 1, output
    line = "interrupted; the same command continues at the last checkpoint"
    assert [one for one in output.splitlines() if not one.startswith("step ")] == [line]


def test_a_curve_keeps_the_steps_of_the_checkpoint_and_cuts_the_rest(tmp_path: Path) -> None:
    path = tmp_path / "curve.jsonl"
    path.write_text('{"loss": 2.0}\n{"loss": 1.0}\n{"lo')
    assert Curve(path, 1).losses == [2.0]
    assert path.read_text() == '{"loss": 2.0}\n'
    with pytest.raises(RunError, match="fewer lines"):
        Curve(path, 2)


def test_the_loss_is_that_of_later_frames_and_no_token_sees_itself_or_what_follows() -> None:
    torch.manual_seed(0)
    model = TokenTransformer((8,) * 6, SHAPE, 16, 1, 2, 0.0).eval()
    clip = torch.from_numpy(indices_of(0, SHAPE))[None]
    seen: list[torch.Tensor] = []
    model.head.register_forward_hook(lambda _, __, logits: seen.append(logits))
    other = clip.clone()
    other[0, 2, 0, 0] ^= 1
    losses = [float(model(one).detach()) for one in (clip, other)]
    assert losses[0] != losses[1]
    assert seen[0].shape == (1, 32, 48)
    first = 16  # the token that differs is the 17th predicted one
    assert torch.equal(seen[0][:, : first + 1], seen[1][:, : first + 1])
    assert not torch.equal(seen[0][:, first + 1 :], seen[1][:, first + 1 :])


def test_tokens_that_cannot_be_trained_on_are_refused_with_the_reason(tmp_path: Path) -> None:
    storage = Storage(tokens(tmp_path, shape=(1, 4, 4), clips=3))
    with pytest.raises(RunError, match=r"one latent frame, \(1, 4, 4\)"):
        token_grid(storage, pin(storage, None)[0])


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (["--dim", "10", "--heads", "4"], "--dim must be a multiple of --heads"),
        (["--checkpoint-every", "0"], "argument --checkpoint-every: must be above 0, got 0"),
    ],
)
def test_wrong_options_are_named(
    wrong: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(["out", "run", *wrong])
    assert message in capsys.readouterr().err
