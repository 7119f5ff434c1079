"""``python -m jobs.reproduce``: the published protocol, and when a figure counts as reproduced."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from jobs import reproduce
from jobs.evaluation.compose import mode_of
from jobs.evaluation.config import EvaluationConfig
from tokenizer import PublishedMetrics, get_config, list_tokenizers, load_tokenizer
from tokenizer.evaluation import Mode

CLIPS = Path(__file__).parents[2] / "pipeline" / "demo_clips"
SMALL = {"ch": 8, "num_res_blocks": 1}


@pytest.mark.parametrize(
    ("difference", "num_videos", "num_unjudged", "expected"),
    [
        (0.0, 30, 0, None),
        (0.05, 30, 0, None),
        (-0.05, 30, 0, None),
        (29.87 - 29.82, 30, 0, None),
        (0.051, 30, 0, "PSNR differs by +0.051 dB"),
        (-0.06, 30, 0, "PSNR differs by -0.060 dB"),
        (float("nan"), 30, 0, "PSNR differs"),
        (0.0, 29, 0, "29 videos, the published figures are of 30"),
        (0.0, 30, 1, "1 videos could not be judged"),
    ],
)
def test_what_counts_as_reproduced(
    difference: float, num_videos: int, num_unjudged: int, expected: str | None
) -> None:
    found = reproduce.objections(difference, num_videos, num_unjudged)
    assert (not found) if expected is None else expected in found[0]


def configured(*arguments: str) -> EvaluationConfig:
    return reproduce.configuration(reproduce._parser().parse_args(arguments))


@pytest.mark.parametrize("name", [n for n in list_tokenizers() if get_config(n).published])
def test_every_published_tokenizer_is_judged_by_its_protocol(name: str) -> None:
    config = configured(str(CLIPS), "--tokenizer", name)
    is_long = name.endswith("v1_1")
    assert mode_of(config) is (Mode.whole if is_long else Mode.clips)
    assert (config.evaluate.fps, config.evaluate.resolution) == (30, 256)
    assert (config.evaluate.sample, config.tokenizer.checkpoint) == (True, "auto")


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--tokenizer", "demo"], "--tokenizer demo: no published figures; there are for: fsq_4x"),
        (["--tokenizer", "fsq_4x8x9"], "unknown tokenizer 'fsq_4x8x9': did you mean fsq_4x8x8"),
        (["--tokenizer", "fsq_4x8x8", "--checkpoint", "random"], "only trained weights"),
        (["--tokenizer", "fsq_4x8x8", "--checkpoint", "/no.ckpt"], "/no.ckpt"),
        (["--tokenizer", "fsq_4x8x8", "--i3d", "/no.pt"], "evaluate.i3d=/no.pt: no such file"),
    ],
)
def test_what_cannot_be_tried_ends_with_2_and_one_line(
    arguments: list[str], expected: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert reproduce.main([str(CLIPS), *arguments, "--out", str(tmp_path / "out")]) == 2
    printed = capsys.readouterr()
    assert expected in printed.err
    assert printed.err.count("\n") == 1
    assert printed.out == ""


@pytest.fixture
def clip_and_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[tuple[Path, Path]]:
    """A folder with one clip, and weights of a narrow fsq_4x8x8 that stands for the real one."""
    (tmp_path / "clips").mkdir()
    shutil.copy(CLIPS / "short.mp4", tmp_path / "clips")
    model = load_tokenizer("fsq_4x8x8", "random", **SMALL)
    save_file(model.state_dict(), tmp_path / "weights.safetensors")
    full = reproduce.composed

    def narrow(overrides: list[str]) -> EvaluationConfig:
        small = [f"tokenizer.{key}={value}" for key, value in SMALL.items()]
        smaller = [text.replace("resolution=256", "resolution=32") for text in overrides]
        return full([*smaller, *small, "evaluate.threads=1"])

    monkeypatch.setattr(reproduce, "composed", narrow)
    threads = torch.get_num_threads()
    yield tmp_path / "clips", tmp_path / "weights.safetensors"
    torch.set_num_threads(threads)


def test_a_checkpoint_is_compared_with_its_published_row(
    clip_and_checkpoint: tuple[Path, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    clips, weights = clip_and_checkpoint
    out = tmp_path / "out"
    arguments = [str(clips), "--tokenizer", "fsq_4x8x8", "--checkpoint", str(weights)]
    arguments += ["--out", str(out)]
    assert reproduce.main(arguments) == 1
    printed = capsys.readouterr().out
    assert "not reproduced: 1 videos, the published figures are of 30" in printed
    assert "not reproduced: PSNR differs by -" in printed
    record = json.loads((out / "evaluation.json").read_text())
    psnr, lpips = record["measured"]["psnr"], record["measured"]["lpips"]
    assert f"| `fsq_4x8x8` | {psnr:.2f} / 29.82 | " in printed
    assert record["difference"]["psnr"] == pytest.approx(psnr - 29.82)
    assert record["published"] == {"psnr": 29.82, "ssim": 0.867, "lpips": 0.106, "fvd": 160.1}
    assert lpips > 0
    assert record["difference"]["lpips"] is None  # AlexNet here, VGG16 there

    stated = PublishedMetrics(psnr=psnr + 0.04, ssim=0.8, lpips=0.1, fvd=1.0)
    monkeypatch.setattr(reproduce, "published_row", lambda name: stated)
    monkeypatch.setattr(reproduce, "NUM_VIDEOS", 1)
    assert reproduce.main(arguments) == 0
    assert "reproduced: PSNR within 0.05 dB" in capsys.readouterr().out
