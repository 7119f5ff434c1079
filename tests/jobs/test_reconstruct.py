"""``python -m jobs.reconstruct``: every frame, its time, the audio; tokens back to video."""

from __future__ import annotations

import functools
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
import torch

from jobs import reconstruct
from pipeline.dataset import TokenDataset
from tests.close import assert_close_stream
from tests.pipeline import media, pictures
from tests.pipeline.runs import rows, run_inline, tar_bytes, write_shards
from tests.tokenizer.formulas import formula_model
from tokenizer import VideoTokenizer

TIMES = [2 * k + (k % 3 == 0) for k in range(22)]
"""Uneven on purpose."""


@pytest.fixture
def video(tmp_path: Path) -> Path:
    path = tmp_path / "in.mp4"
    path.write_bytes(media.encode(TIMES, time_base=Fraction(1, 60), with_audio_seconds=0.7))
    return path


def run(*arguments: object) -> int:
    return reconstruct.main([str(argument) for argument in arguments])


@functools.cache
def small_model(name: str) -> VideoTokenizer:
    """Narrower ones average so few numbers in their norms that rounding grows (2.9e-5 seen)."""
    return formula_model(name, ch=16, num_res_blocks=1)


def decoded(path: Path) -> tuple[list[np.ndarray], list[float], float]:
    """Pictures, their seconds, and seconds of audio."""
    with av.open(str(path)) as container:
        frames = list(container.decode(video=0))
        pictures = [frame.to_ndarray(format="rgb24") for frame in frames]
        seconds = [frame.time - frames[0].time for frame in frames]
    with av.open(str(path)) as container:
        audio = container.streams.audio
        samples = sum(frame.samples for frame in container.decode(audio=0)) if audio else 0
        rate = audio[0].rate if audio else 1
    return pictures, seconds, samples / rate


@pytest.mark.parametrize(
    ("mode", "name"),
    [("auto", "demo"), ("exact", "demo"), ("overlap", "fsq_8x8x8_32768_v1_1")],
)
def test_frames_stand_side_by_side_at_their_times(
    video: Path,
    tmp_path: Path,
    mode: str,
    name: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    narrow = reconstruct.load_tokenizer
    monkeypatch.setattr(
        reconstruct, "load_tokenizer", lambda *a, **k: narrow(*a, **k, ch=8, num_res_blocks=1)
    )
    out = tmp_path / "out.mp4"
    options = ("--checkpoint", "random", "--size", "16x32", "--mode", mode)
    assert run(video, out, "--tokenizer", name, *options) == 0
    pictures, seconds, audio_seconds = decoded(out)
    originals, original_seconds, original_audio = decoded(video)
    assert seconds == pytest.approx(original_seconds, abs=1e-3)
    assert audio_seconds == pytest.approx(original_audio, abs=0.05)
    assert {picture.shape for picture in pictures} == {(16, 64, 3)}
    numbers = [media.read_number(picture[:, :32]) for picture in pictures]
    assert numbers == [media.read_number(picture) for picture in originals]
    printed = capsys.readouterr().out
    assert "22 frames of 32x16" in printed
    assert "RANDOM weights" in printed
    assert [path.name for path in tmp_path.iterdir() if "unfinished" in path.name] == []


@pytest.mark.parametrize("num_frames", [1, 17, 22])
@pytest.mark.parametrize(
    ("name", "mode"),
    [
        ("fsq_4x8x8", "clips"),
        ("fsq_4x8x8", "exact"),
        ("fsq_4x8x8_noncausal", "clips"),
        ("fsq_4x8x8_32768_v1_1", "clips"),
        ("fsq_4x8x8_32768_v1_1", "exact"),
        ("fsq_4x8x8_32768_v1_1", "overlap"),
    ],
)
def test_every_frame_comes_back_in_its_place(name: str, mode: str, num_frames: int) -> None:
    model = small_model(name)
    frames = torch.randint(0, 256, (1, num_frames, 16, 16, 3), dtype=torch.uint8)
    blocks = iter(frames.split(3, dim=1))
    x_hat = torch.cat(list(reconstruct.reconstructed(model, blocks, chunk=8, mode=mode)), dim=2)
    assert num_frames <= x_hat.shape[2] < num_frames + 4
    if num_frames == 17 and mode == "exact":
        x = (frames.movedim(-1, 1).float() / 255 - 0.5) / 0.5
        assert_close_stream(x_hat, model(x))


def test_clip_of_a_run_becomes_video(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shards = write_shards(tmp_path / "in", num_shards=1, num_videos=1)
    assert run_inline(shards, tmp_path / "out") == 0
    batch = next(iter(TokenDataset(str(tmp_path / "out"), batch_size=1)))
    target = tmp_path / "clip.mp4"
    options = ("--from", tmp_path / "out", "--clip-id")
    assert run(target, *options, batch["clip_id"][0]) == 0
    pictures, seconds, _ = decoded(target)
    assert len(pictures) == len(batch["frame_seconds"][0]) == 17
    assert pictures[0].shape == (32, 32, 3)
    assert seconds[1] == pytest.approx(1 / float(batch["fps"][0]), abs=1e-3)
    capsys.readouterr()
    assert run(target, *options, "none") == 2
    assert (
        f"has no clip 'none'; ids are those in the column clip_id, such as {batch['clip_id'][0]}"
        in capsys.readouterr().err
    )


def test_an_image_of_a_run_becomes_a_video_of_one_frame(tmp_path: Path) -> None:
    shard, target = tmp_path / "0.tar", tmp_path / "clip.mp4"
    shard.write_bytes(tar_bytes([("a.png", pictures.image(pictures.corners()))]))
    assert run_inline(shard, tmp_path / "out", "dataset.image_extensions=[png]") == 0
    (clip_id,) = rows(tmp_path / "out")
    assert run(target, "--from", tmp_path / "out", "--clip-id", clip_id) == 0
    shown, _, _ = decoded(target)
    assert [picture.shape for picture in shown] == [(32, 32, 3)]


def test_mistakes_are_one_line(
    video: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    missing = tmp_path / "none.mp4"
    options = ("--tokenizer", "demo", "--size", "32")
    with pytest.raises(SystemExit, match="2"):
        run(missing, tmp_path / "out.mp4", *options)
    assert capsys.readouterr().err.startswith(f"error: IN {missing}: no such file")
    (text := tmp_path / "none.txt").write_text("no video")
    assert run(text, tmp_path / "out.mp4", *options) == 2
    assert capsys.readouterr().err.splitlines()[-1].startswith("error: ")
    assert run(video, tmp_path / "out.mp4", "--tokenizer", "kl_4x8x8_4chn") == 2
    assert "checkpoint=auto" in capsys.readouterr().err
    assert not (tmp_path / "out.mp4").exists()
    with pytest.raises(SystemExit):
        run(video, "--tokenizer", "demo")
    assert "give IN and OUT" in capsys.readouterr().err
