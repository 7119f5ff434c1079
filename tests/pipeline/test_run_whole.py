"""sampling.mode=whole from a command's configuration to rows, with the real encoder."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

import tokenizer
from pipeline.dataset import TokenDataset
from pipeline.decode import decode_clips
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
    items = decode_clips(video.read_bytes(), plan, VideoLimits())
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
