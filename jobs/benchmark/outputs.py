"""One decoding pass for several outputs against a pass for each: CPU seconds on the demo's clips.

Three outputs that a lab might want of the same videos: 8 fps at 256x256, 4 fps at 128x128, and
8 fps at 256x256 again in clips of another length. Both ways make the same clips.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace
from functools import partial

from jobs.benchmark.measure import interleave, machine, median, table, write_json
from pipeline.command_line import CommandLine, count, new_file
from pipeline.decode import decode_clips
from pipeline.demo import demo_videos
from pipeline.errors import VideoError
from pipeline.records import Clip, ClipPlan, TailPolicy, VideoLimits

FIRST = ClipPlan(
    fps=(8.0,),
    clip_frames=17,
    stride_frames=17,
    max_clips_per_video=None,
    tail=TailPolicy.drop,
    buckets=((256, 256),),
)
PLANS = (
    FIRST,
    replace(FIRST, fps=(4.0,), buckets=((128, 128),)),
    replace(FIRST, clip_frames=16, stride_frames=16),
)


def one_pass(video: bytes) -> int:
    """Clips of all outputs, from one pass."""
    items = decode_clips(video, PLANS, VideoLimits())
    return sum(isinstance(item, Clip) for _, item in items)


def several_passes(video: bytes) -> int:
    """The same clips, from a pass for each output."""
    passes = (decode_clips(video, (plan,), VideoLimits()) for plan in PLANS)
    return sum(isinstance(item, Clip) for items in passes for _, item in items)


WAYS = {"one pass": one_pass, "a pass each": several_passes}


def measure(video: bytes, rounds: int) -> dict[str, float]:
    """Median CPU seconds of each way, and how many times as long the second takes."""
    clips = {name: way(video) for name, way in WAYS.items()}
    if len(set(clips.values())) > 1:
        raise RuntimeError(f"the ways give different numbers of clips: {clips}")
    ways = {name: partial(_cpu_seconds, name, video) for name in WAYS}
    seconds = {name: median(times) for name, times in interleave(ways, rounds=rounds).items()}
    return {
        "clips": clips["one pass"],
        "one_pass_cpu_seconds": seconds["one pass"],
        "pass_each_cpu_seconds": seconds["a pass each"],
        "ratio": seconds["a pass each"] / seconds["one pass"],
    }


def _cpu_seconds(name: str, video: bytes) -> float:
    began = time.process_time()
    WAYS[name](video)
    return time.process_time() - began


def measure_all(videos: int, rounds: int) -> dict[str, dict[str, float]]:
    """Figures of the first demo videos that can be decoded, and ``all``, their sums."""
    found: dict[str, dict[str, float]] = {}
    for path in demo_videos():
        if len(found) == videos:
            break
        try:
            found[path.name] = measure(path.read_bytes(), rounds)
        except VideoError:  # the demo holds a damaged one on purpose
            continue
    keys = ("clips", "one_pass_cpu_seconds", "pass_each_cpu_seconds")
    total = {key: sum(figures[key] for figures in found.values()) for key in keys}
    total["ratio"] = total["pass_each_cpu_seconds"] / total["one_pass_cpu_seconds"]
    return found | {"all": total}


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure and print."""
    parser = CommandLine(
        prog="python -m jobs.benchmark outputs",
        description="CPU seconds of one decoding pass for three outputs, and of three passes.",
    )
    parser.add_argument("--videos", type=count, default=6, help="of the demo's; default: 6")
    parser.add_argument("--rounds", type=count, default=7, help="times that each way decodes each")
    parser.add_argument("--json", type=new_file, metavar="FILE", help="write the figures there")
    options = parser.parse_args(arguments)
    figures = measure_all(options.videos, options.rounds)
    rows = [["video", "clips", "one pass", "a pass each", "ratio"]]
    rows += [
        [
            name,
            f"{of['clips']:.0f}",
            f"{of['one_pass_cpu_seconds']:.3f} s",
            f"{of['pass_each_cpu_seconds']:.3f} s",
            f"{of['ratio']:.2f}",
        ]
        for name, of in figures.items()
    ]
    print(f"{machine()}; CPU seconds, medians of {options.rounds}")
    print(table(rows))
    write_json(options.json, figures)
    return 0
