"""sampling.mode=whole from a command's configuration to rows, with the real encoder."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import av
import numpy as np
import pytest
import torch

import tokenizer
from pipeline.dataset import TokenDataset
from pipeline.decode import decode_plan
from pipeline.demo import CLIPS
from pipeline.errors import ConfigError
from pipeline.records import ClipPlan, DecodeSummary, SamplingMode, TailPolicy, VideoLimits
from tests.pipeline import runs

SMALL = ["tokenizer.ch=8", "tokenizer.checkpoint=random", "encoder.threads=2"]
WHOLE = ["sampling.mode=whole", "sampling.resolution=32", "encoder.batch_clips=2"]


def frames_of(video: Path, fps: float, size: int) -> torch.Tensor:
    """All frames of a video at a rate, cut to 1 + 4k: uint8 [1, T, H, W, 3]."""
    plan = ClipPlan(
        fps=(fps,),
        clip_frames=1,
        stride_frames=1,
        max_clips_per_video=None,
        tail=TailPolicy.drop,
        buckets=((size, size),),
    )
    items = decode_plan(video.read_bytes(), plan, VideoLimits())
    frames = [item.frames[0] for item in items if not isinstance(item, DecodeSummary)]
    return torch.from_numpy(np.stack(frames[: 1 + (len(frames) - 1) // 4 * 4]))[None]


def run(out: Path, *options: str) -> dict[tuple[str, float], torch.Tensor]:
    """Tokens of the demo clips by key and rate."""
    folder = ["+dataset=folder", f"dataset.path={CLIPS}", "dataset.num_buckets=1"]
    assert runs.execute_here(*folder, *SMALL, *WHOLE, *options, f"output.root={out}") == 0
    return {
        (batch["key"][0], float(batch["fps"][0])): batch["tokens"][0]
        for batch in TokenDataset(str(out), batch_size=1)
    }


@pytest.mark.parametrize("name", ["fsq_4x8x8", "fsq_4x8x8_32768_v1_1"])
def test_tokens_of_whole_videos_equal_encoding_them_at_once(name: str, tmp_path: Path) -> None:
    found = run(tmp_path, f"+tokenizer={name}", "sampling.fps=[4]")
    model = tokenizer.load_tokenizer(name, checkpoint="random", decoder=False, ch=8)
    lengths = set()
    for key in ("beak.webm", "guitar.mkv", "short.mp4", "towers.mp4"):
        frames = frames_of(CLIPS / key, 4.0, 32)
        expected = model.encode_uint8(frames).indices
        assert expected is not None
        assert torch.equal(found[key, 4.0], expected[0]), key
        lengths.add(frames.shape[1])
    assert len(lengths) > 2


def test_one_row_per_video_and_rate_with_its_own_length(tmp_path: Path) -> None:
    found = run(tmp_path, "+tokenizer=kl_4x8x8_4chn", "sampling.fps=[2,4]")
    assert len(found) == 24  # twelve sound videos, the shortest too
    assert all(latents.shape[0] == 4 for latents in found.values())
    longer = [found[key, 4.0].shape[1] - found[key, 2.0].shape[1] for key, _ in found]
    assert min(longer) >= 0
    assert max(longer) > 2


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["+tokenizer=fsq_4x8x8_noncausal"], "is not causal"),
        (["+tokenizer=demo", "sampling.clip_frames=6"], "expected 1 \\+ k\\*4"),
        (["+tokenizer=demo", "sampling.max_clips_per_video=3"], "for mode=clips"),
        (["+tokenizer=demo", "sampling.buckets=[[32,32],[30,32]]"], "height a multiple of 8"),
    ],
)
def test_what_cannot_be_streamed_is_refused_with_the_reason(
    options: list[str], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        runs.config("+dataset=demo", *options, "tokenizer.checkpoint=random", "sampling.mode=whole")


def test_mode_and_buckets_are_part_of_the_fingerprint() -> None:
    from pipeline import resolve

    def fingerprint(*options: str) -> str:
        run = runs.config("+dataset=demo", "+tokenizer=demo", *options)
        return resolve.identity(run, "0" * 64).fingerprint

    assert SamplingMode.whole.name == "whole"
    variants = ([], ["sampling.mode=whole"], ["sampling.buckets=[[64,64]]"])
    assert len({fingerprint(*options) for options in variants}) == 3


MEASURE = """
import resource, sys
from tests.pipeline import runs
assert runs.execute_here(*sys.argv[1:]) == 0
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024)
"""


def peak_mebibytes(tmp_path: Path, minutes: int) -> int:
    """Largest memory of a process that tokenises one generated video of this length."""
    folder = tmp_path / f"{minutes}"
    folder.mkdir()
    scene = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    with av.open(folder / "v.mp4", "w") as container:
        stream = container.add_stream("libx264", rate=8, options={"preset": "ultrafast"})
        stream.width, stream.height, stream.pix_fmt = 64, 64, "yuv420p"
        for number in range(minutes * 60 * 8):
            frame = av.VideoFrame.from_ndarray(np.roll(scene, number, axis=1), format="rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    options = ["+dataset=folder", f"dataset.path={folder}", "+tokenizer=fsq_4x8x8_32768_v1_1"]
    options += [*SMALL, *WHOLE, f"output.root={tmp_path / 'out'}{minutes}"]
    done = subprocess.run(
        [sys.executable, "-c", MEASURE, *options], capture_output=True, text=True, check=True
    )
    return int(done.stdout.split()[-1])


@pytest.mark.slow
def test_memory_does_not_grow_with_the_length_of_a_video(tmp_path: Path) -> None:
    short, long = peak_mebibytes(tmp_path, 5), peak_mebibytes(tmp_path, 60)
    # the allocator settles some 100 MiB higher in the first minutes; twelve times the tokens do not
    assert long < 1.5 * short, (short, long)
