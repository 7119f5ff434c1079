"""``python -m jobs.benchmark pipeline``: the pipeline against its pieces, and against Ray Data.

The limit is decoding and encoding at once in processes that know nothing of each other. Each
contestant first tries a few ways to divide the cores and keeps its fastest; then all take turns.
Each run is a process of its own; the clock leaves start-up apart (`jobs.benchmark.contestants`).
"""

from __future__ import annotations

import argparse
import importlib.util
import itertools
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from jobs.benchmark.contestants import CONTESTANTS
from jobs.benchmark.measure import interleave, machine, median, table, write_json
from jobs.benchmark.workload import Figures, Job, Setting, write_shards
from pipeline.command_line import CommandLine, count, new_file

LIMIT, OURS = "both, uncoupled", ("pipeline inline", "pipeline on Ray")
SAME, DOCUMENTED = "same on Ray Data", "documented Ray Data"
TARGETS = {"efficiency": 0.93, "vs_ray_data_same": 1.15, "vs_ray_data_documented": 2.0}
BUSY_LOAD = 0.25
"""Load average per core beyond which wall times are not to be trusted."""
TRIES = 1
"""Runs of each setting on fewer clips, of which the fastest counts when settings are chosen."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure and print; exit status 0 whatever the figures are."""
    parser = CommandLine(prog="python -m jobs.benchmark pipeline", description=__doc__)
    parser.add_argument(
        "--rounds", type=count, default=5, help="times that each runs (%(default)s)"
    )
    parser.add_argument("--clips", type=count, default=288, help="clips a run (%(default)s)")
    parser.add_argument(
        "--settings",
        type=read_settings,
        default=settings(len(os.sched_getaffinity(0))),
        metavar="DxT,...",
        help="decoders x encoder threads; each contestant gets its best of these (%(default)s)",
    )
    parser.add_argument("--json", type=new_file, metavar="FILE", help="write the figures there")
    options = parser.parse_args(arguments)
    if options.clips < 20:
        parser.error(f"--clips {options.clips}: must be at least 20")
    if importlib.util.find_spec("pandas") is None:
        parser.error("Ray Data needs pandas, which comes with pip install -e '.[dev]'")
    load = os.getloadavg()[0]
    print(f"{machine()}, load {load:.1f} before we began", flush=True)
    with tempfile.TemporaryDirectory(prefix="bench-") as folder:
        chosen = choose_settings(Path(folder, "try"), max(20, options.clips // 4), options.settings)
        runs = measure(Path(folder, "full"), options.clips, chosen, options.rounds)
    figures = conclude(runs)
    print(report(runs, chosen))
    print(verdict(figures))
    if load > BUSY_LOAD * len(os.sched_getaffinity(0)):
        print("others used this machine: its wall times say little, go by CPU time")
    write_json(options.json, figures | {"machine": machine(), "load_before": load, "runs": runs})
    return 0


def settings(cores: int) -> list[Setting]:
    """Ways to divide the cores: the encoder on one, on half or on all; decoders on the rest or all.

    >>> settings(2)
    [1x1, 2x1, 2x2]
    """
    pairs = [
        (threads, decoders)
        for threads in sorted({1, max(1, cores // 2), cores})
        for decoders in sorted({max(1, cores - threads), cores})
        if not (threads == cores > 1 and decoders == 1)
    ]
    return [Setting(threads=threads, decoders=decoders) for threads, decoders in pairs]


def read_settings(text: str) -> list[Setting]:
    """``1x1,2x1``: decoders x threads.

    Raises:
        argparse.ArgumentTypeError: something else.
    """
    pairs = [tuple(map(count, pair.split("x"))) for pair in text.split(",")]
    if any(len(pair) != 2 for pair in pairs):
        raise argparse.ArgumentTypeError(f"decoders x threads are needed, like 1x1,2x1; got {text}")
    return [Setting(decoders=decoders, threads=threads) for decoders, threads in pairs]


def choose_settings(folder: Path, clips: int, among: Sequence[Setting]) -> dict[str, Setting]:
    """The fastest setting of each contestant, on fewer clips."""
    if len(among) == 1:
        return dict.fromkeys(CONTESTANTS, among[0])
    num_clips = write_shards(folder, clips)
    fastest: dict[str, tuple[float, Setting]] = {}
    for name, setting in list(itertools.product(CONTESTANTS, among)) * TRIES:
        seconds = run(name, folder, num_clips, setting)["seconds"]
        print(f"  {name}, {setting}: {num_clips / seconds:.2f} clips/s", flush=True)
        if name not in fastest or seconds < fastest[name][0]:
            fastest[name] = seconds, setting
    return {name: setting for name, (_, setting) in fastest.items()}


def measure(
    folder: Path, clips: int, chosen: Mapping[str, Setting], rounds: int
) -> dict[str, list[Figures]]:
    """Figures of every run, by contestant; ``clips`` among them."""
    num_clips = write_shards(folder, clips)
    runs: dict[str, list[Figures]] = {name: [] for name in chosen}

    def contestant(name: str) -> float:
        figures = run(name, folder, num_clips, chosen[name]) | {"clips": float(num_clips)}
        runs[name].append(figures)
        rate = num_clips / figures["seconds"]
        print(f"  {name}: {rate:.2f} clips/s, {cpu_ms([figures]):.0f} ms CPU/clip", flush=True)
        return rate

    interleave({name: lambda name=name: contestant(name) for name in chosen}, rounds=rounds)  # type: ignore[misc]
    return runs


def run(name: str, folder: Path, num_clips: int, setting: Setting) -> Figures:
    """One contestant once, in a process and session of its own.

    Raises:
        RuntimeError: it failed; the end of what it said.
    """
    job = Job(contestant=name, folder=str(folder), num_clips=num_clips, setting=setting)
    process = subprocess.Popen(
        [sys.executable, "-m", "jobs.benchmark.contestants", job.to_json()],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        out, err = process.communicate()
    finally:
        if process.poll() is None:  # Ctrl-C here does not reach its session
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    if process.returncode:
        raise RuntimeError(f"{name} ({setting}) failed:\n{err[-3000:]}")
    return job.read_figures(out)


# ---- what the figures say ----


def rate(runs: Sequence[Figures]) -> float:
    """Median clips/s."""
    return median([figures["clips"] / figures["seconds"] for figures in runs])


def cpu_ms(runs: Sequence[Figures]) -> float:
    """Median CPU milliseconds a clip, of all processes of the contestant."""
    return median([1000 * figures["cpu_seconds"] / figures["clips"] for figures in runs])


def conclude(runs: Mapping[str, Sequence[Figures]]) -> dict[str, float]:
    """The ratios that are promised, of medians; the better of inline and Ray is ours."""
    ours = max(rate(runs[name]) for name in OURS)
    cpu = min(cpu_ms(runs[name]) for name in OURS)
    return {
        "efficiency": ours / rate(runs[LIMIT]),
        "vs_ray_data_same": ours / rate(runs[SAME]),
        "vs_ray_data_documented": ours / rate(runs[DOCUMENTED]),
        "clips_per_second": ours,
        "cpu_efficiency": cpu_ms(runs[LIMIT]) / cpu,
        "cpu_vs_ray_data_same": cpu_ms(runs[SAME]) / cpu,
        "cpu_vs_ray_data_documented": cpu_ms(runs[DOCUMENTED]) / cpu,
    }


def report(runs: Mapping[str, Sequence[Figures]], chosen: Mapping[str, Setting]) -> str:
    """A line for each contestant, then where the pipeline's time goes."""
    rows = [["", "clips/s", "lowest", "highest", "CPU ms/clip", "decoders x threads"]]
    for name, figures in runs.items():
        rates = [one["clips"] / one["seconds"] for one in figures]
        numbers = [f"{value:.2f}" for value in (median(rates), min(rates), max(rates))]
        rows.append([name, *numbers, f"{cpu_ms(figures):.0f}", str(chosen[name])])
    return table(rows) + "\n" + where_the_rest_goes(runs)


def where_the_rest_goes(runs: Mapping[str, Sequence[Figures]]) -> str:
    """What the better one of ours does beside decoding and encoding."""
    best = max(OURS, key=lambda name: rate(runs[name]))
    waited = median([one["starved_seconds"] / one["seconds"] for one in runs[best]])
    more = cpu_ms(runs[best]) - cpu_ms(runs[LIMIT])
    return (
        f"{best}: {more:+.0f} ms CPU a clip beside the pieces' own (reading, handing over, "
        f"committing, Ray); the encoder had nothing to do {waited:.1%} of the time"
    )


def verdict(figures: Mapping[str, float]) -> str:
    """Ratios beside their targets."""
    rows = [["", "wall", "CPU", "target"]]
    for name, target in TARGETS.items():
        cpu = figures[f"cpu_{name}"]
        met = "met" if figures[name] >= target else "missed"
        rows.append([name, f"{figures[name]:.2f}", f"{cpu:.2f}", f"{target:.2f} {met}"])
    return table(rows)
