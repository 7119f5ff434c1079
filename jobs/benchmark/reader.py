"""Reading tars: bytes per CPU second and requests per gigabyte, beside what one would write first.

Every contestant hands out all members of the same tar, from a local file and from an S3 server on
this machine (moto, in a process of its own: its speed bounds the bytes per second, not the CPU
seconds of the reader). The others: webdataset's own tar reading, and `tarfile` on an fsspec file
that reads 8 MiB ahead.
"""

from __future__ import annotations

import os
import random
import tarfile
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from io import BytesIO
from pathlib import Path
from typing import Any

import fsspec

from jobs.benchmark.measure import interleave, machine, median, table, write_json
from jobs.benchmark.s3_server import S3Server
from pipeline.command_line import CommandLine, count, new_file
from pipeline.ranges import RangeBuffers
from pipeline.reader import ReadRules, Sample, read_shard
from pipeline.shards import Shard, ShardKind

RULES = ReadRules(
    video_extensions=frozenset({"mp4"}),
    caption_key="caption",
    video_bytes=2 << 30,
    sidecar_bytes=16 << 20,
)
BUCKET = "benchmark"

Reads = Callable[[str, dict[str, Any]], Iterator[int]]
"""Sizes of the videos of a tar, by URL and fsspec options."""


@dataclass(frozen=True, slots=True)
class Pass:
    """One reading of the whole tar."""

    num_bytes: int
    seconds: float
    cpu_seconds: float
    requests: int


def ours(url: str, options: dict[str, Any], *, buffers: RangeBuffers) -> Iterator[int]:
    """The pipeline's reader, with memory that it keeps from tar to tar, as a worker does."""
    shard = Shard(name="benchmark", url=url, kind=ShardKind.tar)
    items = read_shard(shard, rules=RULES, options=options, buffers=buffers)
    # map() forgets a sample before it asks for the next: one video is held at a time
    return map(lambda item: len(item.video) if isinstance(item, Sample) else 0, items)


def webdatasets(url: str, options: dict[str, Any]) -> Iterator[int]:
    """`webdataset`'s tar reading, as ``wds.WebDataset`` does it, on an fsspec file."""
    from webdataset.tariterators import group_by_keys, tar_file_expander

    with fsspec.open(url, "rb", **options) as stream:
        members = tar_file_expander([{"url": url, "stream": stream}])
        yield from map(lambda sample: len(sample["mp4"]), group_by_keys(members))


def tarfiles(url: str, options: dict[str, Any]) -> Iterator[int]:
    """`tarfile` on an fsspec file with ``readahead`` of 8 MiB."""
    how = {"block_size": 8 << 20, "cache_type": "readahead"} if "://" in url else {}
    filesystem, path = fsspec.core.url_to_fs(url, **options)
    with filesystem.open(path, "rb", **how) as stream, tarfile.open(fileobj=stream) as archive:
        for member in archive:
            content = archive.extractfile(member)
            assert content is not None
            data = content.read()
            if member.name.endswith(".mp4"):
                yield len(data)


READERS: dict[str, Reads] = {
    "pipeline": partial(ours, buffers=RangeBuffers()),
    "webdataset over fsspec": webdatasets,
    "tarfile, 8 MiB ahead": tarfiles,
}


def write_tar(path: Path, num_bytes: int) -> int:
    """A tar of videos of 0.2 to 4 MB with captions and metadata; returns the videos' bytes."""
    dice, total, number = random.Random(0), 0, 0
    with tarfile.open(path, "w") as archive:
        while total < num_bytes:
            size = dice.randint(200_000, 4_000_000)
            for extension, content in (
                ("json", b'{"fps": 25}'),
                ("mp4", os.urandom(size)),
                ("txt", b"a caption"),
            ):
                info = tarfile.TarInfo(f"{number:06d}.{extension}")
                info.size = len(content)
                archive.addfile(info, BytesIO(content))
            total, number = total + size, number + 1
    return total


def read_once(
    reads: Reads, url: str, options: dict[str, Any], wanted: int, count: Callable[[], int]
) -> Pass:
    """Read all of a tar and see that nothing is missing."""
    requests, cpu, began = count(), time.process_time(), time.perf_counter()
    found = sum(reads(url, options))
    seconds, cpu = time.perf_counter() - began, time.process_time() - cpu
    if found != wanted:
        raise RuntimeError(f"{reads} gave {found:,} of {wanted:,} bytes")
    return Pass(found, seconds, cpu, count() - requests)


def measure(
    url: str, options: dict[str, Any], wanted: int, rounds: int, count: Callable[[], int]
) -> dict[str, list[Pass]]:
    """Every reader in turn; the first round warms caches and connections and is left out."""
    passes: dict[str, list[Pass]] = {name: [] for name in READERS}

    def run(name: str) -> float:
        passes[name].append(read_once(READERS[name], url, options, wanted, count))
        return passes[name][-1].seconds

    interleave({name: partial(run, name) for name in READERS}, rounds=rounds + 1)
    return {name: found[1:] for name, found in passes.items()}


def figures(passes: Sequence[Pass]) -> dict[str, float]:
    """Medians over the passes of one reader."""
    return {
        "gb_per_core_second": median([p.num_bytes / 1e9 / p.cpu_seconds for p in passes]),
        "gb_per_second": median([p.num_bytes / 1e9 / p.seconds for p in passes]),
        "requests_per_gb": median([p.requests * 1e9 / p.num_bytes for p in passes]),
    }


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure and print."""
    parser = CommandLine(
        prog="python -m jobs.benchmark reader", description="Speed and requests of reading tars."
    )
    parser.add_argument("--megabytes", type=count, default=400, help="of video in the tar")
    parser.add_argument("--rounds", type=count, default=5, help="times that each reader reads it")
    parser.add_argument("--json", type=new_file, metavar="FILE", help="write the figures there")
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory(prefix="benchmark-") as folder, S3Server() as server:
        path = Path(folder) / "benchmark.tar"
        wanted = write_tar(path, options.megabytes * 1_000_000)
        filesystem = fsspec.filesystem("s3", **server.options)
        filesystem.call_s3("create_bucket", Bucket=BUCKET)
        filesystem.put_file(str(path), f"{BUCKET}/benchmark.tar")
        places = {
            "local": measure(str(path), {}, wanted, options.rounds, lambda: 0),
            "moto": measure(
                f"s3://{BUCKET}/benchmark.tar",
                server.options,
                wanted,
                options.rounds,
                server.requests,
            ),
        }
    found = {
        place: {name: figures(passes) for name, passes in by_name.items()}
        for place, by_name in places.items()
    }
    rows = [["", "GB per core-second", "GB/s", "requests per GB"]]
    rows += [
        [
            f"{place}: {name}",
            f"{one['gb_per_core_second']:.2f}",
            f"{one['gb_per_second']:.2f}",
            f"{one['requests_per_gb']:.0f}" if place != "local" else "-",
        ]
        for place, by_name in found.items()
        for name, one in by_name.items()
    ]
    print(f"{machine()}; {wanted / 1e6:.0f} MB, median of {options.rounds}")
    print(table(rows))
    write_json(options.json, {"machine": machine(), "video_bytes": wanted, **found})
    return 0
