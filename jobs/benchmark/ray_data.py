"""The same job on Ray Data: once with our functions as its stages, once as its documentation says.

Ray Data starts its workers anew for every job. So that all contestants obey one clock, the first
stage waits for a file that the encoder's actor writes when its model is loaded and has run once;
the clock starts there, and stops with the last Parquet file on disk.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import ray
import ray.data

from jobs.benchmark.clock import session_cpu_seconds
from jobs.benchmark.workload import Figures, Job, run_config, worker_spec

Row = dict[str, Any]
Batch = dict[str, Any]

_READY = "encoder-is-ready"
# its stubs know neither fn_args nor generators
_data: Any = ray.data


def same_functions(job: Job) -> Figures:
    """Our reader, decoder, encoder and writer, one stage each."""
    run = run_config(job.shards, Path(job.folder, "unused"), job.setting)
    spec = worker_spec(run)

    def build() -> Any:
        shards = _data.from_items(
            [{"url": url} for url in job.shards], override_num_blocks=len(job.shards)
        )
        return (
            shards.flat_map(_read, fn_args=(spec, job.folder), num_cpus=0.1, concurrency=1)
            .flat_map(_decode, fn_args=(spec,), num_cpus=1, concurrency=job.setting.decoders)
            .map_batches(
                _Encode,
                fn_constructor_args=(spec, job.folder),
                batch_size=1,
                num_cpus=1,
                compute=_data.ActorPoolStrategy(size=1),
            )
            .map_batches(
                _write, fn_args=(spec, job.folder), batch_size=256, num_cpus=0.1, concurrency=1
            )
        )

    return _measure(job, lambda: build().materialize())


def _read(row: Row, spec: Any, folder: str) -> Iterator[Row]:
    from pipeline.reader import Sample, read_shard
    from pipeline.shards import tar_shards

    _await_encoder(folder)
    [shard] = tar_shards([row["url"]])
    for sample in read_shard(shard, rules=spec.read_rules, options={}):
        if isinstance(sample, Sample):
            yield {
                "shard": shard.name,
                "key": sample.key,
                "video": sample.video,
                "caption": sample.caption,
                "metadata": sample.metadata,
            }


def _decode(row: Row, spec: Any) -> Iterator[Row]:
    from pipeline.decode import decode_plan
    from pipeline.records import Clip, DecodeSummary

    items = list(decode_plan(row["video"], spec.plan, spec.limits))
    summary = items.pop()
    assert isinstance(summary, DecodeSummary)
    about = {name: row[name] for name in ("shard", "key", "caption", "metadata")}
    for clip in items:
        assert isinstance(clip, Clip)
        yield about | {
            "fps": clip.fps,
            "clip_index": clip.clip_index,
            "start_seconds": clip.start_seconds,
            "end_seconds": clip.end_seconds,
            "frame_seconds": np.array(clip.frame_seconds),
            "width": summary.source.width,
            "height": summary.source.height,
            "source_fps": summary.source.fps,
            "frames": clip.frames,
        }


class _Encode:
    """Our encoder as a stage."""

    def __init__(self, spec: Any, folder: str) -> None:
        from pipeline.encode import ClipEncoder

        self._encoder = ClipEncoder(spec.encoder)
        self._encoder.encode(np.zeros((1, *_clip_shape(spec.plan)), np.uint8), 1)
        _say_ready(folder)

    def __call__(self, batch: Batch) -> Batch:
        frames = np.ascontiguousarray(batch.pop("frames"))
        return batch | {"tokens": np.stack(self._encoder.encode(frames, len(frames)))}


def _write(batch: Batch, spec: Any, folder: str) -> Batch:
    from pipeline.schema import TokenRow, clip_id
    from pipeline.writer import write_part

    token_format = spec.encoder.token_format
    rows = []
    for number, tokens in enumerate(batch["tokens"]):
        row = {name: column[number] for name, column in batch.items()}
        rows.append(
            TokenRow(
                clip_id=clip_id(row["shard"], row["key"], row["fps"], row["clip_index"]),
                shard=row["shard"],
                key=row["key"],
                clip_index=int(row["clip_index"]),
                fps=float(row["fps"]),
                start_seconds=float(row["start_seconds"]),
                end_seconds=float(row["end_seconds"]),
                frame_seconds=tuple(row["frame_seconds"].tolist()),
                source_width=int(row["width"]),
                source_height=int(row["height"]),
                source_fps=float(row["source_fps"]),
                bucket="{1}x{2}".format(*_clip_shape(spec.plan)),
                caption=row["caption"],
                metadata=row["metadata"],
                token_shape=token_format.token_shape(tokens.shape),
                tokens=token_format.pack(tokens),
            )
        )
    path = Path(folder, "out", f"{os.getpid()}-{time.monotonic_ns()}.parquet")
    write_part(path, rows, token_format, row_group_rows=256)
    return {"rows": np.array([len(rows)])}


# ---- as a user would write it after reading the documentation ----


def documented(job: Job) -> Figures:
    """``read_webdataset``, frames to RGB with PyAV, resized in torch, an actor pool, Parquet."""
    run = run_config(job.shards, Path(job.folder, "unused"), job.setting)
    spec = worker_spec(run)

    def build_and_write() -> None:
        (
            _data.read_webdataset(job.shards)
            .flat_map(
                _frames_of_video, fn_args=(spec.plan, job.folder), concurrency=job.setting.decoders
            )
            .map_batches(
                _Tokenize,
                fn_constructor_args=(spec, job.folder),
                batch_size=1,
                num_cpus=1,
                compute=_data.ActorPoolStrategy(size=1),
            )
            .write_parquet(str(Path(job.folder, "out")))
        )

    return _measure(job, build_and_write)


def _frames_of_video(row: Row, plan: Any, folder: str) -> Iterator[Row]:
    """Clips of T frames at the target rate, resized and cropped, float ``[3, T, H, W]``."""
    import io

    import av
    import torch
    import torch.nn.functional as F

    _await_encoder(folder)
    endings = ("mp4", "webm", "mkv", "3gp")
    data = next(row[ending] for ending in endings if isinstance(row.get(ending), bytes))
    frames: list[Any] = []
    seconds: list[float] = []
    with av.open(io.BytesIO(data), "r") as container:
        for frame in container.decode(video=0):
            frames.append(frame.to_ndarray(format="rgb24"))
            seconds.append(frame.time)
    times = np.sort(np.array(seconds) - min(seconds))
    [rate], side = plan.fps, plan.buckets[0][0]
    wanted = np.arange(0, times[-1] + 1e-6, 1 / rate)
    picked = np.searchsorted(times, wanted + 1e-6, side="right") - 1
    for index in range(len(picked) // plan.clip_frames):
        numbers = picked[index * plan.clip_frames :][: plan.clip_frames]
        video = torch.from_numpy(np.stack([frames[number] for number in numbers]))
        video = video.permute(0, 3, 1, 2).float() / 127.5 - 1
        height, width = video.shape[2:]
        scale = side / min(height, width)
        size = (max(side, round(height * scale)), max(side, round(width * scale)))
        video = F.interpolate(video, size=size, mode="bilinear", antialias=True)
        top, left = (size[0] - side) // 2, (size[1] - side) // 2
        video = video[:, :, top : top + side, left : left + side].clamp(-1, 1)
        yield {
            "key": row["__key__"],
            "clip_index": index,
            "caption": row["txt"],
            "metadata": json.dumps(row["json"]),
            "video": video.permute(1, 0, 2, 3).numpy(),
        }


class _Tokenize:
    """The model behind ``map_batches``."""

    def __init__(self, spec: Any, folder: str) -> None:
        import torch

        from tokenizer import load_tokenizer

        torch.set_num_threads(spec.encoder.threads)
        self._model = load_tokenizer(
            spec.encoder.tokenizer, device=spec.encoder.device, seed=spec.encoder.seed
        )
        frames, height, width, _ = _clip_shape(spec.plan)
        self({"video": np.zeros((1, 3, frames, height, width), np.float32)})
        _say_ready(folder)

    def __call__(self, batch: Batch) -> Batch:
        import torch

        with torch.inference_mode():
            encoded = self._model.encode(torch.from_numpy(np.ascontiguousarray(batch.pop("video"))))
        assert encoded.indices is not None
        return batch | {"tokens": encoded.indices.cpu().numpy()}


# ---- the clock ----


def _clip_shape(plan: Any) -> tuple[int, int, int, int]:
    return (plan.clip_frames, *plan.buckets[0], 3)


def _say_ready(folder: str) -> None:
    Path(folder, _READY).touch()


def _await_encoder(folder: str) -> None:
    while not Path(folder, _READY).exists():
        time.sleep(0.01)


def _measure(job: Job, action: Any) -> Figures:
    """Seconds from the encoder's readiness to the last file of output."""
    out, ready = Path(job.folder, "out"), Path(job.folder, _READY)
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir()
    ready.unlink(missing_ok=True)
    # more than there are, so that Ray's own counting of cores keeps no stage from running
    ray.init(
        address="local",
        num_cpus=job.setting.decoders + 3,
        include_dashboard=False,
        logging_level=logging.ERROR,
        log_to_driver=False,
    )
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    cpu_seconds: list[float] = []

    def note_start() -> None:
        _await_encoder(job.folder)
        cpu_seconds.append(session_cpu_seconds())

    watch = threading.Thread(target=note_start, daemon=True)
    watch.start()
    try:
        action()
        cpu_seconds.append(session_cpu_seconds())
        files = list(out.rglob("*.parquet"))
        rows = sum(_num_rows(path) for path in files)
        seconds = max(path.stat().st_mtime for path in files) - ready.stat().st_mtime
    finally:
        ray.shutdown()
    if rows != job.num_clips:
        raise RuntimeError(f"Ray Data wrote {rows} clips of {job.num_clips}")
    return {"seconds": seconds, "cpu_seconds": cpu_seconds[1] - cpu_seconds[0]}


def _num_rows(path: Path) -> int:
    import pyarrow.parquet as pq

    return int(pq.ParquetFile(path).metadata.num_rows)
