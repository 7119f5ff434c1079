"""What the contestants of the pipeline benchmark all do: real clips in tars, one model, settings.

The clips are the demo's, repeated under other keys. The model is the demo tokenizer made so small
that a clip costs about as much to encode as to decode on one core: only then does it matter how
well the two halves of a worker run at once.
"""

from __future__ import annotations

import io
import itertools
import json
import tarfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.decode import decode_plan
from pipeline.demo import demo_videos
from pipeline.errors import VideoError
from pipeline.records import Clip, ClipPlan, DecodeSummary, VideoLimits

if TYPE_CHECKING:
    from pipeline.config import RunConfig
    from pipeline.worker_spec import WorkerSpec

RANDOM = "tokenizer.checkpoint=random"
MODEL = ("+tokenizer=demo", RANDOM, "tokenizer.ch=8", "sampling.resolution=72")
"""Encoding a clip takes one core about as long as decoding it, measured over the demo's clips."""
VIDEOS_PER_SHARD = 48
Figures = dict[str, float]
"""``seconds`` and ``cpu_seconds`` by the clock, and what else is known."""
WARM_UP = "warm-up"
"""Stem of the tar that makes workers warm; its clips are not counted."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """How a contestant divides the machine."""

    threads: int
    """Of the encoder."""
    decoders: int
    """Processes that decode."""

    def __repr__(self) -> str:
        return f"{self.decoders}x{self.threads}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """One run of one contestant; crosses to its process as JSON."""

    contestant: str
    """Its name in `jobs.benchmark.contestants`."""
    folder: str
    """Tars, and room for output."""
    num_clips: int
    """Clips in the tars, without the warm-up."""
    setting: Setting

    def to_json(self) -> str:
        """For a command line."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> Job:
        """The inverse of `to_json`."""
        fields = json.loads(text)
        return cls(**fields | {"setting": Setting(**fields["setting"])})

    def read_figures(self, printed: str) -> Figures:
        """The figures on the last line of what its process printed."""
        figures: Figures = json.loads(printed.splitlines()[-1])
        return figures

    @property
    def shards(self) -> list[str]:
        """Paths of the tars that count, sorted."""
        tars = Path(self.folder, "shards").glob("*.tar")
        return sorted(str(path) for path in tars if path.stem != WARM_UP)

    @property
    def warm_up(self) -> str:
        """Path of the tar that does not count."""
        return str(Path(self.folder, "shards", f"{WARM_UP}.tar"))


def clips_by_video(plan: ClipPlan) -> dict[Path, int]:
    """Clips of each demo video that gives any."""
    found = {}
    for path in demo_videos():
        try:
            *_, summary = decode_plan(path.read_bytes(), plan, VideoLimits())
        except VideoError:
            continue
        assert isinstance(summary, DecodeSummary)
        if clips := sum(summary.num_clips.values()):
            found[path] = clips
    return found


def repeated(clips: dict[Path, int], num_clips: int) -> list[Path]:
    """Videos in turn, until they hold at least so many clips."""
    turns = itertools.cycle(clips)
    chosen: list[Path] = []
    held = 0
    while held < num_clips:
        chosen.append(next(turns))
        held += clips[chosen[-1]]
    return chosen


def write_shards(folder: Path, num_clips: int) -> int:
    """Write the tars, at least two of them; returns how many clips they hold."""
    clips = clips_by_video(
        plan_of(run_config([], folder / "unused", Setting(threads=1, decoders=1)))
    )
    videos = repeated(clips, num_clips)
    num_shards = max(2, round(len(videos) / VIDEOS_PER_SHARD))
    shards = folder / "shards"
    shards.mkdir(parents=True)
    for number in range(num_shards):
        first, last = (len(videos) * bound // num_shards for bound in (number, number + 1))
        _write_tar(shards / f"{number:05d}.tar", videos[first:last])
    _write_tar(shards / f"{WARM_UP}.tar", list(clips)[:4])
    return sum(clips[path] for path in videos)


def _write_tar(path: Path, videos: list[Path]) -> None:
    with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as tar:
        for number, video in enumerate(videos):
            for member in (video, video.with_suffix(".txt"), video.with_suffix(".json")):
                content = member.read_bytes()
                info = tarfile.TarInfo(f"{number:04d}-{video.stem}{member.suffix}")
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))


def run_config(shards: list[str], out: Path, setting: Setting) -> RunConfig:
    """The configuration that a user's command line would give."""
    from hydra import compose, initialize_config_module

    from pipeline.compose import register_schema, to_run_config

    register_schema()
    overrides = [
        *("+dataset=tars", *MODEL, f"dataset.shards=[{','.join(shards) or 'none'}]"),
        *(f"output.root={out}", f"encoder.threads={setting.threads}"),
        f"encoder.decoders={setting.decoders}",
    ]
    with initialize_config_module("conf", version_base="1.3"):
        return to_run_config(compose("run", overrides=overrides))


def plan_of(run: RunConfig) -> ClipPlan:
    """Which clips the run cuts."""
    from pipeline.resolve import clip_plan

    return clip_plan(run)


def worker_spec(run: RunConfig) -> WorkerSpec:
    """What workers are told, model included."""
    import torch

    from pipeline import resolve
    from pipeline.chosen_tokenizer import tokenizer_of

    weights = tokenizer_of(run).weights()
    return resolve.worker_spec(
        run, weights, has_gpus=torch.cuda.is_available(), cores=1, recorded_batch=None
    )


def some_clips(plan: ClipPlan) -> list[Clip]:
    """Decoded clips of two demo videos, to encode without decoding."""
    items = [
        item
        for path in list(clips_by_video(plan))[:2]
        for item in decode_plan(path.read_bytes(), plan, VideoLimits())
    ]
    return [item for item in items if isinstance(item, Clip)]
