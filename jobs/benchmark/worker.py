"""A whole worker without Ray: tars to decoder children to encoder to committed parts.

    python -m jobs.benchmark worker --precision bf16 --decoders 12 --tars /data/webvid/*.tar

Without ``--tars`` it reads the clips that come with the project, ``--repeat`` times. Needs torch,
numpy, safetensors, omegaconf, pyarrow, fsspec, av and webdataset, and no Ray, Hydra or S3 client.
Starting up (model, compilation, graphs, decoder children) is timed by itself.
"""

from __future__ import annotations

import argparse
import resource
import shutil
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from jobs.benchmark.encoder import (
    Setting,
    encoder_spec,
    options_of,
    peak_memory,
    summary,
    to_setting,
)
from jobs.benchmark.measure import machine, write_json
from pipeline.command_line import count, file_there, positive


def main(arguments: Sequence[str]) -> int:
    """Measure, print, write."""
    parser = options_of("worker")
    parser.add_argument(
        "--tars", nargs="+", type=file_there, metavar="TAR", help="default: the demo's"
    )
    parser.add_argument("--repeat", type=count, default=1, help="times that each tar is read (1)")
    parser.add_argument("--decoders", type=count, default=2, help="decoder children (2)")
    parser.add_argument("--open-shards", type=count, default=3, help="tars open at once (3)")
    parser.add_argument("--fps", type=positive, default=8.0, help="frames per second of clips (8)")
    options = parser.parse_args(arguments)
    setting = to_setting(options)
    print(f"{machine()}; {setting.tokenizer} {setting.precision} on {setting.device}, ", end="")
    print(f"{options.decoders} decoders, {setting.threads} threads", flush=True)
    with tempfile.TemporaryDirectory(prefix="vidtok-benchmark-") as folder:
        figures = measure(setting, options, Path(folder))
    print(summary(figures))
    write_json(setting.json, figures)
    return 0


def measure(setting: Setting, options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Run every tar through one worker."""
    import numpy as np

    from pipeline.encode import ClipEncoder
    from pipeline.segments import ShardTask
    from pipeline.shards import tar_shards
    from pipeline.worker import Worker

    tars = link_tars(options.tars, options.repeat, folder / "tars")
    tasks = [ShardTask(shard=shard, source=None) for shard in tar_shards(map(str, tars))]
    spec = worker_spec(setting, options, folder / "out")
    began = time.perf_counter()
    encoder = ClipEncoder(spec.encoder)
    shape = (setting.batch, setting.frames, setting.height, setting.width, 3)
    encoder.encode(np.zeros(shape, dtype=np.uint8), setting.batch)
    worker = Worker(spec, encoder)
    start_seconds = time.perf_counter() - began
    try:
        began, cpu, busy = time.perf_counter(), time.process_time(), encoder.busy_seconds
        with ThreadPoolExecutor(options.open_shards) as threads:
            receipts = [r for found in threads.map(worker.run_shard, tasks) for r in found]
        seconds = time.perf_counter() - began
        cpu, busy = time.process_time() - cpu, encoder.busy_seconds - busy
        counters = worker.report().counters
    finally:
        worker.close()
    cores = (cpu + counters["decode_cpu_seconds"]) / seconds
    return {
        "machine": machine(),
        "setting": {name: getattr(setting, name) for name in Setting.__slots__ if name != "json"},
        "clips": int(counters["clips"]),
        "videos": int(counters["videos"]),
        "quarantined": int(counters["quarantined"]),
        "segments": len(receipts),
        "seconds": seconds,
        "clips_per_second": counters["clips"] / seconds,
        "source_seconds_per_second": counters["source_seconds"] / seconds,
        "encoder_busy": busy / seconds,
        "encoder_waited": counters["starved_seconds"] / seconds,
        "cores_used": cores,
        "decode_cpu_seconds": counters["decode_cpu_seconds"],
        "bytes_read": int(counters["covered"]),
        "bytes_written": int(counters["token_bytes"]),
        "start_seconds": start_seconds,
        "encoder_start_seconds": encoder.start_seconds,
        "peak_bytes": peak_memory(setting.device),
        "children_peak_bytes": resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024,
    }


def link_tars(given: Sequence[Path] | None, repeat: int, folder: Path) -> list[Path]:
    """The tars, each under ``repeat`` names: a worker does one name once."""
    from pipeline.demo import demo_shards

    folder.mkdir(parents=True)
    tars = list(given) if given else demo_shards(folder / "demo")
    links = []
    for number in range(repeat):
        for tar in tars:
            link = folder / f"{number:03d}-{tar.name}"
            try:
                link.symlink_to(tar.resolve(strict=True))
            except OSError:  # no links on this file system, or a tar that is not there
                shutil.copyfile(tar, link)
            links.append(link)
    return links


def worker_spec(setting: Setting, options: argparse.Namespace, out: Path) -> Any:
    """The specification of a worker of a run with default limits."""
    from pipeline.reader import ReadRules
    from pipeline.records import ClipPlan, TailPolicy, VideoLimits
    from pipeline.segments import CommitRules
    from pipeline.worker_spec import WorkerSpec

    return WorkerSpec(
        encoder=encoder_spec(setting),
        plan=ClipPlan(
            fps=(options.fps,),
            clip_frames=setting.frames,
            stride_frames=setting.frames,
            max_clips_per_video=None,
            tail=TailPolicy.drop,
            buckets=((setting.height, setting.width),),
        ),
        limits=VideoLimits(),
        read_rules=ReadRules(
            video_extensions=frozenset({"mp4", "mkv", "webm", "mov", "3gp", "avi"}),
            caption_key="caption",
            video_bytes=VideoLimits().video_bytes,
            sidecar_bytes=16 << 20,
        ),
        read_ahead_bytes=256 << 20,
        range_bytes=32 << 20,
        decoders=options.decoders,
        commit_rules=CommitRules(
            max_clips=4096, max_seconds=300.0, row_group_rows=256, max_quarantine_bytes=0
        ),
        output_root=str(out),
        output_options={},
        input_options={},
        strict_numerics=False,
    )
