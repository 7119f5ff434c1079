"""What a child process of the loader benchmark does: write one format, or measure reading it.

``python -m jobs.benchmark.token_pass JOB`` prints its figures as a line of JSON, or which package
is missing. The first pass warms caches and is checked: every token adds up. Passes behind it are
timed whole, so that nothing read ahead before the clock counts.
"""

from __future__ import annotations

import json
import os
import resource
import sys
import time
from dataclasses import asdict, dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Any

from jobs.benchmark.token_formats import FORMATS, Format
from jobs.benchmark.token_parts import TOKENS_PER_CLIP, sum_of_tokens

Figures = dict[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """One order to a child."""

    what: str
    """write, read, or first (the first batch only)."""
    format: str
    """Name in ``FORMATS``."""
    place: str
    """Folder, or URL."""
    num_clips: int
    """In it."""
    passes: int = 1
    """Epochs that are timed."""
    is_first: bool = False
    """It is opened anew for each timed pass: nothing is remembered of an epoch before."""
    is_cold: bool = False
    """Files are dropped from the page cache before each timed pass."""
    storage_options: dict[str, Any] = field(default_factory=dict)
    """Of fsspec, for a URL."""

    def to_json(self) -> str:
        """For the command line."""
        return json.dumps(asdict(self))


def work(job: Job) -> Figures:
    """Do it; ``missing`` names a package that cannot be imported here."""
    contestant = FORMATS[job.format]
    try:
        import_module(contestant.package)
    except ImportError as error:
        return {"missing": f"{contestant.package} is not installed ({error})"}
    if job.what == "write":
        contestant.write(Path(job.place), job.num_clips)
        return {"bytes": stored_bytes(Path(job.place))}
    return _read(job, contestant)


def stored_bytes(folder: Path) -> int:
    """All files below a folder."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def _read(job: Job, contestant: Format) -> Figures:
    rss_before = _peak_rss_bytes()
    began = time.perf_counter()
    epoch = contestant.open(job.place, job.storage_options)
    first_pass = epoch(0)
    total = int(next(first_pass).sum())
    figures: Figures = {"first_batch_seconds": time.perf_counter() - began}
    if job.what == "first":
        return figures
    total += sum(int(batch.sum()) for batch in first_pass)
    wanted = sum_of_tokens(job.num_clips)
    if total != wanted:
        raise RuntimeError(f"{job.format}: tokens add up to {total:,}, written were {wanted:,}")
    seconds = cpu_seconds = 0.0
    for number in range(1, job.passes + 1):
        if job.is_first:
            epoch = contestant.open(job.place, job.storage_options)
        if job.is_cold:
            _drop_from_page_cache(Path(job.place))
        cpu, began = _cpu_seconds(), time.perf_counter()
        clips = sum(len(batch) for batch in epoch(number))
        seconds += time.perf_counter() - began
        cpu_seconds += _cpu_seconds() - cpu
        if clips != job.num_clips:
            raise RuntimeError(f"{job.format}: pass {number} gave {clips} of {job.num_clips} clips")
    clips = job.passes * job.num_clips
    return figures | {
        "samples_per_second": clips / seconds,
        "samples_per_cpu_second": clips / cpu_seconds,
        "tokens_per_second": clips * TOKENS_PER_CLIP / seconds,
        "tokens_per_cpu_second": clips * TOKENS_PER_CLIP / cpu_seconds,
        "peak_rss_bytes": _peak_rss_bytes(),
        "rss_before_bytes": rss_before,
    }


def _cpu_seconds() -> float:
    """Of this process and its ended children; finer than the ticks of ``/proc``."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(one.ru_utime + one.ru_stime for one in used)


def _peak_rss_bytes() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _drop_from_page_cache(folder: Path) -> None:
    for path in folder.rglob("*"):
        if path.is_file():
            descriptor = os.open(path, os.O_RDONLY)
            os.fsync(descriptor)  # pages that are not yet on the disk stay
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
            os.close(descriptor)


if __name__ == "__main__":
    print(json.dumps(work(Job(**json.loads(sys.argv[1])))), flush=True)
