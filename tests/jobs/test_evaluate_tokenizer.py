"""``python -m jobs.evaluate_tokenizer``: its figures, its folder, and what it refuses."""

from __future__ import annotations

import contextlib
import io
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
import torch
from hydra.core.global_hydra import GlobalHydra
from torch import Tensor, nn

from jobs import evaluate_tokenizer
from jobs.evaluation import pictures, workers
from jobs.evaluation.compose import composed
from jobs.evaluation.records import ShardJudged, Strip, VideoJudged, extremes
from jobs.evaluation.shard import ShardJudge
from pipeline.errors import ConfigError, FingerprintMismatch, RunError, VideoError
from pipeline.records import VideoLimits
from pipeline.storage import Storage
from tests.pipeline import media
from tests.pipeline.tars import tar_bytes
from tokenizer.evaluation import Judge, Mode, Quality, mean_quality
from tokenizer.metrics.codebook import num_used, perplexity

CLIPS = Path(__file__).parents[2] / "pipeline" / "demo_clips"
TINY = (
    "+tokenizer=demo",
    "tokenizer.checkpoint=random",
    "tokenizer.ch=8",
    "tokenizer.num_res_blocks=1",
    "evaluate.resolution=32",
    "evaluate.threads=1",
    "evaluate.lpips=none",
    "evaluate.pictures=2",
)


@pytest.fixture(autouse=True)
def _threads_put_back() -> Iterator[None]:
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def tars(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three tars: real clips, one of them damaged, and one that is too short for whole videos."""
    folder = tmp_path_factory.mktemp("tars")
    short = media.encode(list(range(9)))
    content = [
        [("short.mp4", short)],
        [(name, (CLIPS / name).read_bytes()) for name in ("short.mp4", "damaged.mp4")],
        [("again.mp4", (CLIPS / "short.mp4").read_bytes())],
    ]
    content[1][0] = ("real.mp4", content[1][0][1])
    for number, members in enumerate(content):
        (folder / f"{number}.tar").write_bytes(tar_bytes(members))
    return folder


def run(tars: Path, out: Path, *overrides: str) -> tuple[int, dict[str, Any]]:
    """Status and record."""
    arguments = ("+dataset=tars", f"dataset.shards={tars}/*.tar", *TINY, f"output.root={out}")
    status = evaluate_tokenizer.execute(composed([*arguments, *overrides]))
    return status, json.loads((out / "evaluation.json").read_text())


def test_figures_are_those_of_the_library_and_the_damaged_video_is_named(
    tars: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    status, record = run(tars, tmp_path / "out")
    assert status == 0
    assert [video["key"] for video in record["videos"]] == ["again", "real", "short"]
    assert list(record["bad"]) == ["damaged"]
    assert record["bad"]["damaged"].startswith("not_a_video: ")

    from tokenizer import load_tokenizer

    model = load_tokenizer("demo", "random", ch=8, num_res_blocks=1)
    shown = pictures.shown_pictures((CLIPS / "short.mp4").read_bytes(), VideoLimits(), 30)
    clips = [one.quality for one in Judge(model, lpips=None).clips(shown, Mode.clips, 32, 32)]
    real = record["videos"][1]
    assert len(real["clips"]) == len(clips)
    assert real["psnr"] == pytest.approx(mean_quality(clips).psnr, abs=1e-4)
    total = mean_quality([Quality(**clip) for v in record["videos"] for clip in v["clips"]])
    assert record["measured"]["ssim"] == pytest.approx(total.ssim)
    assert record["num_frames"] == total.num_frames

    printed = capsys.readouterr().out
    assert "demo with RANDOM weights on tars, 32x32, 30 fps, mode clips: 3 videos" in printed
    assert "bad: damaged: not_a_video" in printed
    assert "no FVD: FVD needs evaluate.i3d=PATH: i3d_torchscript.pt" in printed
    assert record["measured"]["fvd"] is None
    assert f"of {8**6:,} codes used" in printed


def test_videos_and_results_may_lie_on_s3(tars: Path, bucket: str) -> None:
    storage = Storage(f"s3://{bucket}")
    storage.put("in/0.tar", (tars / "0.tar").read_bytes())
    places = (f"dataset.shards=s3://{bucket}/in/*.tar", f"output.root=s3://{bucket}/out")
    for _ in range(2):
        assert evaluate_tokenizer.execute(composed(["+dataset=tars", *TINY, *places])) == 0
    record = json.loads(storage.read("out/evaluation.json"))
    assert [video["key"] for video in record["videos"]] == ["short"]
    assert len(storage.entries("out/pictures")) == 1


def test_pictures_show_the_best_and_the_worst_clips(tars: Path, tmp_path: Path) -> None:
    _, record = run(tars, tmp_path / "out")
    names = sorted(path.name for path in (tmp_path / "out" / "pictures").iterdir())
    values = sorted((clip["psnr"] for v in record["videos"] for clip in v["clips"]), reverse=True)
    assert [f"{psnr:.2f}dB" for psnr in (*values[:2], *values[-2:])] == [
        name.split("-")[1] for name in names
    ]
    with av.open(str(tmp_path / "out" / "pictures" / names[0])) as container:
        (frame,) = container.decode(video=0)
    assert (frame.height, frame.width) == (64, 6 * 32)


def test_a_strip_has_the_source_above_and_the_output_below() -> None:
    source, output = torch.full((1, 3, 17, 8, 8), -1.0), torch.full((1, 3, 17, 8, 8), 1.0)
    source[:, :, 16] = 0
    with av.open(io.BytesIO(pictures.strip(source, output))) as container:
        (frame,) = container.decode(video=0)
        shown = frame.to_ndarray(format="rgb24")
    assert shown.shape == (16, 48, 3)
    assert set(np.unique(shown[:8, :40])) == {0}
    assert set(np.unique(shown[:8, 40:])) == {127}
    assert set(np.unique(shown[8:])) == {255}


def test_the_same_command_judges_only_what_is_not_finished(
    tars: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, seen = tmp_path / "out", []
    judge = ShardJudge.judge

    def watched(self: ShardJudge, shard: Any, *rest: Any) -> ShardJudged:
        seen.append(shard.url[-5:])
        return judge(self, shard, *rest)

    monkeypatch.setattr(ShardJudge, "judge", watched)
    _, first = run(tars, out)
    run(tars, out)
    assert seen == ["0.tar", "1.tar", "2.tar"]
    (gone,) = (out / "shards").glob("1-*.npz")
    gone.unlink()
    _, second = run(tars, out)
    assert seen[3:] == ["1.tar"]
    assert second == first


def test_a_shard_that_changed_is_judged_again(tars: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(tars, tmp_path / "tars")
    _, before = run(copy, tmp_path / "out")
    (copy / "0.tar").write_bytes(tar_bytes([("other.mp4", (CLIPS / "short.mp4").read_bytes())]))
    _, after = run(copy, tmp_path / "out")
    assert before["num_videos"] == after["num_videos"]
    assert [video["key"] for video in after["videos"]] == ["again", "other", "real"]


def test_another_setting_in_the_same_folder_is_refused(tars: Path, tmp_path: Path) -> None:
    run(tars, tmp_path / "out", "evaluate.videos=[short]")
    with pytest.raises(FingerprintMismatch, match=r"evaluate\.fps: 30.* there, 15"):
        run(tars, tmp_path / "out", "evaluate.videos=[short]", "evaluate.fps=15")


def test_a_damaged_result_is_named(tars: Path, tmp_path: Path) -> None:
    run(tars, tmp_path / "out")
    (damaged,) = (tmp_path / "out" / "shards").glob("2-*.npz")
    damaged.write_bytes(damaged.read_bytes()[:50])
    with pytest.raises(RunError, match=rf"{damaged.name} is damaged.*delete it"):
        run(tars, tmp_path / "out")


def test_only_named_videos_are_judged_and_missing_ones_end_the_command_with_1(
    tars: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    status, record = run(tars, tmp_path / "a", "evaluate.videos=[real,rael]")
    assert (status, record["num_videos"]) == (1, 1)
    assert "not found: rael (evaluate.videos)" in capsys.readouterr().err
    (tmp_path / "held_out.txt").write_text("real\n\nagain\n")
    status, record = run(tars, tmp_path / "b", f"evaluate.videos=@{tmp_path}/held_out.txt")
    assert status == 0
    assert [video["key"] for video in record["videos"]] == ["again", "real"]


def test_whole_videos_leave_out_the_short_ones_and_say_so(
    tars: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    _, record = run(tars, tmp_path / "out", "evaluate.mode=whole")
    assert record["too_short"] == ["short"]
    assert "too short: short" in capsys.readouterr().out
    assert [clip["num_frames"] for clip in record["videos"][0]["clips"]][:2] == [17, 16]


def test_nothing_judged_is_an_error_with_the_reasons(tars: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="could be judged: damaged: not_a_video"):
        run(tars, tmp_path / "out", "evaluate.videos=[damaged]")


def test_a_video_of_half_the_rate_is_bad() -> None:
    data = media.encode([4 * k for k in range(9)])
    with pytest.raises(VideoError, match=r"too_slow: .*more than twice"):
        next(pictures.shown_pictures(data, VideoLimits(), 500))


def test_every_second_picture_is_taken_at_half_the_rate() -> None:
    data = media.encode(list(range(12)))
    every = [media.read_number(p.numpy()) for p in pictures.shown_pictures(data, VideoLimits(), 30)]
    half = [media.read_number(p.numpy()) for p in pictures.shown_pictures(data, VideoLimits(), 15)]
    assert every == list(range(12))
    assert half == every[::2]


class Probe(nn.Module):
    """In the place of I3D: means of colours."""

    def forward(
        self, x: Tensor, rescale: bool = False, resize: bool = False, return_features: bool = True
    ) -> Tensor:
        return x.mean(dim=[2, 3, 4])


def test_fvd_is_computed_with_a_network_by_path(tars: Path, tmp_path: Path) -> None:
    with pytest.warns(DeprecationWarning, match=r"torch\.jit"):
        torch.jit.script(Probe()).save(str(tmp_path / "i3d.pt"))
    _, record = run(tars, tmp_path / "out", f"evaluate.i3d={tmp_path}/i3d.pt")
    assert record["measured"]["fvd"] > 0
    assert record["no_fvd"] is None


def test_results_survive_their_file() -> None:
    quality = Quality(num_frames=17, psnr=20.5, ssim=0.5, lpips=None)
    strips = (Strip(key="a", clip=0, psnr=20.5, png=b"\x89PNG"),)
    videos = (VideoJudged(key="a", clips=(quality,)), VideoJudged(key="b", problem="why"))
    result = ShardJudged(name="s", version="v", videos=videos, strips=strips, cut="byte 5",
        codes=np.array([[3, 9], [1, 2]]), features=np.ones((2, 1, 4), "f4"))  # fmt: skip
    again = ShardJudged.from_bytes(result.to_bytes(), "place")
    assert (again.videos, again.strips, again.cut) == (videos, strips, "byte 5")
    assert (again.codes == result.codes).all()
    assert (again.features == result.features).all()


def test_extremes_are_the_worst_and_the_best_and_none_twice() -> None:
    strips = [Strip(key=str(n), clip=0, psnr=n, png=b"") for n in (3, 1, 5, 2, 4)]
    assert [strip.psnr for strip in extremes(strips, 2)] == [1, 2, 4, 5]
    assert [strip.psnr for strip in extremes(strips, 3)] == [1, 2, 3, 4, 5]
    assert extremes(strips, 0) == []


def test_perplexity_counts_how_evenly_codes_are_used() -> None:
    assert perplexity(torch.tensor([7, 0, 0])) == pytest.approx(1)
    assert perplexity(torch.tensor([2, 2, 0, 2, 2])) == pytest.approx(4)
    assert perplexity(torch.tensor([1, 3])) == pytest.approx(2 ** (2 - 0.75 * np.log2(3)))
    assert num_used(torch.tensor([7, 0, 1])) == 2
    with pytest.raises(ValueError, match="at least one token"):
        perplexity(torch.zeros(3))


MISTAKES = [
    (["+tokenizer=demo"], "no dataset chosen; add +dataset=NAME"),
    (["+dataset=demo", "+tokenizer=demo", "evaluate.fsp=3"], "Key 'fsp' not in 'EvaluateSection'"),
    (["+dataset=demo", "+tokenizer=demo", "evaluate.fps=0"], "evaluate.fps must be in (0, 1000]"),
    (["+dataset=demo", "+tokenizer=demo", "evaluate.mode=all"], "expected one of [clips, whole]"),
    (["+dataset=demo", "+tokenizer=demo", "evaluate.lpips=vgg"], "needs evaluate.lpips_weights"),
    (["+dataset=demo", "+tokenizer=demo", "evaluate.lpips=x"], "must be one of alex, vgg, none"),
    (["+dataset=demo", "+tokenizer=demo", "evaluate.resolution=100"], "does not suit tokenizer"),
    (["+dataset=demo", "+tokenizer=fsq_4x8x8_noncausal", "evaluate.mode=whole"], "not causal"),
    (["+dataset=tars", "+tokenizer=demo"], "dataset tars has no shards"),
    (["+dataset=demo", "+tokenizer=demo", "output.root="], "output.root is empty"),
]


@pytest.mark.parametrize(("arguments", "expected"), MISTAKES)
def test_a_mistake_is_answered_in_one_line(
    arguments: list[str],
    expected: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(sys, "argv", ["jobs.evaluate_tokenizer", *arguments])
    with pytest.raises(SystemExit) as stop:
        evaluate_tokenizer.main()
    GlobalHydra.instance().clear()
    assert isinstance(stop.value.code, str)
    assert expected in stop.value.code
    assert "\n" not in stop.value.code
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("evaluate.i3d=/no/such.pt", r"evaluate\.i3d=/no/such\.pt: no such file"),
        ("evaluate.videos=@/no/such.txt", "cannot read the list"),
        ("evaluate.videos=[]", "must be a list of names or @FILE"),
        ("evaluate.device=cuda", "there is no GPU here"),
    ],
)
def test_what_is_not_there_is_named(
    tars: Path, tmp_path: Path, override: str, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ConfigError, match=expected):
        run(tars, tmp_path / "out", override)


def command(tars: Path, out: Path, *overrides: str) -> list[str]:
    return [sys.executable, "-m", "jobs.evaluate_tokenizer", "+dataset=tars",
        f"dataset.shards={tars}/*.tar", *TINY, f"output.root={out}", *overrides]  # fmt: skip


@pytest.mark.slow
def test_a_killed_command_continues_behind_the_last_finished_shard(tmp_path: Path) -> None:
    tars, out = tmp_path / "tars", tmp_path / "out"
    tars.mkdir()
    for number, name in enumerate(("short.mp4", "city.mp4", "box.mp4", "bunny.mp4")):
        members = [(name, (CLIPS / name).read_bytes())]
        (tars / f"{number}.tar").write_bytes(tar_bytes(members))
    process = subprocess.Popen(command(tars, out), cwd=tmp_path)
    deadline = time.monotonic() + 100
    while not list(out.glob("shards/*.npz")):
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    finished = {path.name: path.stat().st_mtime_ns for path in out.glob("shards/*.npz")}
    assert len(finished) < 4
    assert subprocess.run(command(tars, out), cwd=tmp_path, check=False).returncode == 0
    assert {name: (out / "shards" / name).stat().st_mtime_ns for name in finished} == finished
    _, straight = run(tars, tmp_path / "straight")
    assert json.loads((out / "evaluation.json").read_text()) == straight


@pytest.mark.slow
def test_ray_gives_the_figures_of_the_inline_evaluation(tars: Path, tmp_path: Path) -> None:
    on_ray = command(tars, tmp_path / "ray", "cluster=local", "cluster.num_workers=2")
    assert subprocess.run(on_ray, cwd=tmp_path, check=False).returncode == 0
    _, inline = run(tars, tmp_path / "inline")
    assert json.loads((tmp_path / "ray" / "evaluation.json").read_text()) == inline


def descendants(pid: int, title: bytes) -> list[int]:
    """Processes of this title that were started by that one, or by one that it started."""
    found = []
    for entry in Path("/proc").iterdir():
        with contextlib.suppress(OSError, ValueError):  # it may be gone by now
            if (entry / "cmdline").read_bytes().startswith(title):
                ancestor = int(entry.name)
                while ancestor > 1 and ancestor != pid:
                    stat = Path(f"/proc/{ancestor}/stat").read_text()
                    ancestor = int(stat.rsplit(")", 1)[1].split()[1])
                if ancestor == pid:
                    found.append(int(entry.name))
    return found


@pytest.mark.slow
def test_a_killed_worker_is_started_again_and_nothing_is_lost(tars: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    on_ray = command(tars, out, "cluster=local", "cluster.num_workers=1")
    process = subprocess.Popen(on_ray, cwd=tmp_path)
    deadline = time.monotonic() + 100
    while not (workers_ := descendants(process.pid, b"ray::JudgeActor.judge")):
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.005)
    os.kill(workers_[0], signal.SIGKILL)
    assert process.wait(100) == 0
    _, inline = run(tars, tmp_path / "inline")
    assert json.loads((out / "evaluation.json").read_text()) == inline


def test_workers_use_the_device_that_is_there() -> None:
    assert workers._device(workers.Device.auto, True) == "cuda"
    assert workers._device(workers.Device.cpu, True) == "cpu"
    assert workers._device(workers.Device.auto, False) == "cpu"
