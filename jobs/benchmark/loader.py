"""``loader``: how small token parts are and how fast they are read, beside other formats.

The same synthetic clips, indices ``[5, 32, 32]`` of 262,144 codes, are written by our committer and
in the formats of the peers that are installed; batches of 32 are read shuffled, in turns, each
time in a process of its own. Ours also as the first epoch of a process, whose row groups are
compared with their SHA-256 (later ones with a checksum of what matched it), and from a cold page
cache; then alone from an S3 of this machine (moto, in another process), and the first batch of an
OUT with very many parts. On a busy machine
read the CPU seconds and the ratios, which are medians of the ratios of each round.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import fsspec

from jobs.benchmark.measure import interleave, machine, median, table, write_json
from jobs.benchmark.s3_server import S3Server
from jobs.benchmark.token_formats import FORMATS
from jobs.benchmark.token_parts import TOKENS_PER_CLIP, write_token_parts
from jobs.benchmark.token_pass import Figures, Job
from pipeline.command_line import CommandLine, count, new_file

BUCKET = "benchmark"
CLIPS_OF_A_SMALL_PART = 4
MOST_SECONDS = 2.0
"""To the first batch of very many parts."""
MOST_BYTES = 512 << 20
"""Peak memory of a process that reads."""
LEAST_RATIOS: Mapping[str, float] = {"mds": 4.0, "webdataset": 5.0, "hf": 4.0, "litdata": 1.0}
"""Our tokens per CPU second over a peer's."""

Runs = dict[str, list[Figures]]


def main(arguments: Sequence[str] | None = None) -> int:
    """The benchmark; a missed aim is marked in the table and does not change the exit code."""
    parser = CommandLine(prog="python -m jobs.benchmark loader", description=__doc__)
    parser.add_argument("--clips", type=count, default=8192)
    parser.add_argument("--rounds", type=count, default=3, help="times that each format is read")
    parser.add_argument("--passes", type=count, default=2, help="epochs timed in each round")
    parser.add_argument("--parts", type=count, default=5000, help="of the OUT with very many parts")
    parser.add_argument(
        "--peer-path",
        action="append",
        default=[],
        metavar="NAME=DIR",
        help="where a peer is installed (pip install --target DIR), if not in this environment; "
        f"NAME is one of {', '.join(LEAST_RATIOS)}",
    )
    parser.add_argument("--json", type=new_file, metavar="FILE", help="write the figures there")
    options = parser.parse_args(arguments)
    paths = dict(text.partition("=")[::2] for text in options.peer_path)
    if unknown := paths.keys() - LEAST_RATIOS.keys():
        parser.error(f"--peer-path {unknown.pop()}: NAME is one of {', '.join(LEAST_RATIOS)}")
    with tempfile.TemporaryDirectory(prefix="benchmark-") as name:
        folder = Path(name)
        jobs, sizes = write_all(folder, options.clips, options.passes, paths)
        others = {
            "ours, first epoch": replace(jobs["ours"], is_first=True),
            "ours, cold cache": replace(jobs["ours"], is_cold=True),
        }
        runs = read_all(jobs | others, options.rounds, paths)
        runs["ours, S3 (moto)"] = read_from_s3(jobs["ours"], options.rounds)
        figures = figures_of(runs, sizes, options.clips)
        print(f"{options.clips:,} clips, medians of {options.rounds} rounds; {machine()}")
        print(as_table(figures["formats"]), flush=True)
        first = first_of_many(folder / "many", options.parts, options.rounds)
    figures |= {
        "first_batch_many_parts_seconds": first,
        "parts": options.parts,
        "clips": options.clips,
        "machine": machine(),
    }
    print(_verdicts(figures), flush=True)
    write_json(options.json, figures)
    return 0


def write_all(
    folder: Path, num_clips: int, passes: int, paths: Mapping[str, str]
) -> tuple[dict[str, Job], dict[str, int]]:
    """Write every format that is installed; the others are named and left out.

    Returns:
        What reads each, and its bytes on disk.
    """
    jobs, sizes = {}, {}
    for name in FORMATS:
        place = str(folder / name)
        job = Job(what="write", format=name, place=place, num_clips=num_clips, passes=passes)
        written = in_a_process(job, paths)
        if "missing" in written:
            print(f"skipped {name}: {written['missing']}", file=sys.stderr)
            continue
        jobs[name], sizes[name] = replace(job, what="read"), written["bytes"]
    return jobs, sizes


def read_all(jobs: Mapping[str, Job], rounds: int, paths: Mapping[str, str]) -> Runs:
    """All of them in turns."""
    runs: Runs = {name: [] for name in jobs}

    def run(name: str) -> float:
        runs[name].append(in_a_process(jobs[name], paths))
        return float(runs[name][-1]["tokens_per_cpu_second"])

    interleave({name: partial(run, name) for name in jobs}, rounds=rounds)
    return runs


def read_from_s3(job: Job, rounds: int) -> list[Figures]:
    """The same OUT, put on an S3 of this machine; with the requests that a process makes."""
    with S3Server() as server:
        filesystem = fsspec.filesystem("s3", **server.options)
        filesystem.call_s3("create_bucket", Bucket=BUCKET)
        for path in Path(job.place).rglob("*"):
            if path.is_file():
                name = path.relative_to(job.place)
                filesystem.put_file(str(path), f"{BUCKET}/out/{name}")
        remote = replace(job, place=f"s3://{BUCKET}/out", storage_options=server.options)
        runs = []
        for _ in range(rounds):
            before = server.requests()
            runs.append(in_a_process(remote, {}))
            runs[-1]["requests"] = server.requests() - before
    return runs


def first_of_many(root: Path, num_parts: int, rounds: int) -> float:
    """Seconds from opening an OUT with so many parts to its first batch."""
    num_clips = num_parts * CLIPS_OF_A_SMALL_PART
    write_token_parts(root, num_clips=num_clips, clips_per_part=CLIPS_OF_A_SMALL_PART)
    job = Job(what="first", format="ours", place=str(root), num_clips=num_clips)
    return median([in_a_process(job, {})["first_batch_seconds"] for _ in range(rounds)])


def in_a_process(job: Job, paths: Mapping[str, str]) -> Figures:
    """What a child prints; a peer's folder is behind the project on its path."""
    here = str(Path(__file__).parents[2])
    behind = [paths[job.format]] if job.format in paths else []
    inherited = os.environ.get("PYTHONPATH")
    path = os.pathsep.join([here, *behind, *([inherited] if inherited else [])])
    done = subprocess.run(
        [sys.executable, "-m", "jobs.benchmark.token_pass", job.to_json()],
        env=os.environ | {"PYTHONPATH": path, "HF_HUB_OFFLINE": "1"},  # no network
        capture_output=True,
        check=False,
        text=True,
    )
    if done.returncode:
        raise RuntimeError(f"{job.what} {job.format} ended with {done.returncode}:\n{done.stderr}")
    figures: Figures = json.loads(done.stdout.splitlines()[-1])
    return figures


def figures_of(runs: Runs, sizes: Mapping[str, int], num_clips: int) -> dict[str, Any]:
    """Medians of each format, and our figures beside the peers'; None for a peer not installed."""
    formats = {
        name: {key: median([one[key] for one in passes]) for key in passes[0]}
        for name, passes in runs.items()
    }
    for name, size in sizes.items():
        formats[name]["bytes_per_token"] = size / (num_clips * TOKENS_PER_CLIP)
    names = ("bytes_per_token", "tokens_per_cpu_second", "peak_rss_bytes", "first_batch_seconds")
    ratios = {f"vs_{name}": _ratio(runs, name) for name in LEAST_RATIOS}
    return {name: formats["ours"][name] for name in names} | ratios | {"formats": formats}


def _ratio(runs: Runs, peer: str) -> float | None:
    key = "tokens_per_cpu_second"
    if peer not in runs:
        return None
    pairs = zip(runs["ours"], runs[peer], strict=True)
    return median([mine[key] / theirs[key] for mine, theirs in pairs])


def as_table(formats: Mapping[str, Mapping[str, float]]) -> str:
    """One row a format."""
    head = ["bytes/token", "Mtok/CPU-s", "Mtok/s", "clips/CPU-s", "clips/s", "peak MB", "first s"]
    rows = [["", *head]]
    for name, one in formats.items():
        size = one.get("bytes_per_token")
        rows.append(
            [
                name,
                "" if size is None else f"{size:.3f}",
                f"{one['tokens_per_cpu_second'] / 1e6:,.0f}",
                f"{one['tokens_per_second'] / 1e6:,.0f}",
                f"{one['samples_per_cpu_second']:,.0f}",
                f"{one['samples_per_second']:,.0f}",
                f"{one['peak_rss_bytes'] / 1e6:,.0f} ({one['rss_before_bytes'] / 1e6:,.0f})",
                f"{one['first_batch_seconds']:.2f}",
            ]
        )
    return table(rows)


def _verdicts(figures: Mapping[str, Any]) -> str:
    """Each aim, and whether it is reached."""
    rows = [["", "measured", "aim", ""]]
    for peer, least in LEAST_RATIOS.items():
        ratio = figures[f"vs_{peer}"]
        measured = "not installed" if ratio is None else f"{ratio:.2f}"
        rows.append([f"tokens per CPU-second, of {peer}", measured, f">= {least:g}"])
        rows[-1].append("" if ratio is None else _verdict(ratio >= least))
    peak, first = figures["peak_rss_bytes"], figures["first_batch_many_parts_seconds"]
    rows.append(["peak memory, MiB", f"{peak / 2**20:.0f}", f"< {MOST_BYTES >> 20}"])
    rows[-1].append(_verdict(peak < MOST_BYTES))
    label = f"first batch of {figures['parts']:,} parts, s"
    rows.append([label, f"{first:.2f}", f"<= {MOST_SECONDS:g}", _verdict(first <= MOST_SECONDS)])
    return table(rows)


def _verdict(is_reached: bool) -> str:
    return "reached" if is_reached else "missed"
