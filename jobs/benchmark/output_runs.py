"""``python -m jobs.benchmark output_runs``: a run with several outputs, or a run of each.

Both make the same tokens, which is checked. Every run is a process of its own, start-up included,
and takes its turn; CPU time is that of the process and of its decoders. The models are small, as
decoding is what is shared: how much a run saves is the share that decoding has of it.
"""

from __future__ import annotations

import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from jobs.benchmark.measure import interleave, machine, median, table, write_json
from jobs.benchmark.workload import write_shards
from pipeline.command_line import CommandLine, count, new_file

ENTRIES: Mapping[str, Mapping[str, str]] = {
    "wide": {"sampling.resolution": "128"},
    "small": {"sampling.resolution": "64", "sampling.fps": "[3,8]"},
    "flip": {"sampling.resolution": "128", "sampling.variant": "flip"},
}
"""Name of an output -> what it says beyond the rest."""
MODEL = (
    *("+tokenizer=demo", "tokenizer.checkpoint=random", "tokenizer.ch=8"),
    *("tokenizer.num_res_blocks=1", "encoder.threads=1"),
)
Figures = dict[str, float]
COLUMNS = {
    "wall s": ("seconds", "{:.1f}"),
    "CPU s": ("cpu_seconds", "{:.1f}"),
    "of it decoding s": ("decode_cpu_seconds", "{:.1f}"),
    "encoding s": ("encode_seconds", "{:.1f}"),
    "read MB": ("read_mb", "{:.1f}"),
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure and print."""
    parser = CommandLine(prog="python -m jobs.benchmark output_runs", description=__doc__)
    parser.add_argument(
        "--rounds", type=count, default=5, help="times that each runs (%(default)s)"
    )
    parser.add_argument("--clips", type=count, default=96, help="of the shards; default: 96")
    parser.add_argument("--json", type=new_file, metavar="FILE", help="write the figures there")
    options = parser.parse_args(arguments)
    print(machine(), flush=True)
    with tempfile.TemporaryDirectory(prefix="bench-") as name:
        folder = Path(name)
        write_shards(folder, options.clips)
        runs = measure(folder, options.rounds)
        check_same(folder)
    rows = [["", *COLUMNS]]
    rows += [
        [
            name,
            *(form.format(median([run[key] for run in found])) for key, form in COLUMNS.values()),
        ]
        for name, found in runs.items()
    ]
    print(table(rows))
    figures = savings(runs)
    shares = (
        f"{100 * value:.0f} % of {name.removesuffix('_ratio').replace('_', ' ')}"
        for name, value in figures.items()
    )
    print(f"one pass takes, of what a run of each takes: {', '.join(shares)}")
    write_json(options.json, figures | {"machine": machine(), "runs": runs})
    return 0


def measure(folder: Path, rounds: int) -> dict[str, list[Figures]]:
    """Figures of every run, by contestant."""
    runs: dict[str, list[Figures]] = {"one pass": [], "a run of each": []}

    def together() -> float:
        entries = ", ".join(
            "{name: " + name + "".join(f", {key}: {value}" for key, value in entry.items()) + "}"
            for name, entry in ENTRIES.items()
        )
        figures = run(folder, folder / "together", f"outputs=[{entries}]")
        runs["one pass"].append(figures)
        return figures["seconds"]

    def alone() -> float:
        parts = [
            run(folder, folder / "alone" / name, *(f"{k}={v}" for k, v in entry.items()))
            for name, entry in ENTRIES.items()
        ]
        total = {key: sum(part[key] for part in parts) for key in parts[0]}
        runs["a run of each"].append(total)
        return total["seconds"]

    interleave({"one pass": together, "a run of each": alone}, rounds=rounds)
    return runs


def run(folder: Path, out: Path, *overrides: str) -> Figures:
    """One run from nothing, as its user starts it.

    Raises:
        RuntimeError: it failed; what it said.
    """
    shutil.rmtree(out, ignore_errors=True)
    command = (
        *(sys.executable, "-m", "pipeline.run", "+dataset=tars"),
        f"dataset.shards={folder}/shards/[0-9]*.tar",
        *(*MODEL, "cluster=inline", "output.report=false", f"output.root={out}", *overrides),
    )
    before, began = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    seconds, after = time.perf_counter() - began, resource.getrusage(resource.RUSAGE_CHILDREN)
    if done.returncode:
        raise RuntimeError(f"a run ended with {done.returncode}: {done.stderr[-2000:]}")
    counters = [_counters(path.parent) for path in out.rglob("run.json")]
    shards = sum(path.stat().st_size for path in folder.glob("shards/[0-9]*.tar"))
    return {
        "seconds": seconds,
        "cpu_seconds": (after.ru_utime + after.ru_stime) - (before.ru_utime + before.ru_stime),
        "decode_cpu_seconds": sum(one["decode_cpu_seconds"] for one in counters),
        "encode_seconds": sum(one["encode_seconds"] for one in counters),
        "read_mb": shards / 1e6,  # once for all outputs: there is one reader
    }


def _counters(out: Path) -> dict[str, float]:
    from pipeline.heartbeat import read_heartbeats
    from pipeline.storage import Storage

    return dict(read_heartbeats(Storage(str(out)))[0]["counters"])


def check_same(folder: Path) -> None:
    """Whether both ways made the same rows.

    Raises:
        RuntimeError: they did not.
    """
    for name in ENTRIES:
        command = (sys.executable, "-m", "pipeline.diff", f"{folder}/together/{name}")
        done = subprocess.run(
            [*command, f"{folder}/alone/{name}"], capture_output=True, text=True, check=False
        )
        if done.returncode:
            raise RuntimeError(f"output {name} is another one: {done.stdout}{done.stderr}")


def savings(runs: Mapping[str, Sequence[Figures]]) -> Figures:
    """What one pass takes of what a run of each takes: ratios of medians."""
    one, each = runs["one pass"], runs["a run of each"]
    keys = ("seconds", "cpu_seconds", "decode_cpu_seconds", "read_mb")
    return {
        f"{key}_ratio": median([run[key] for run in one]) / median([run[key] for run in each])
        for key in keys
    }
