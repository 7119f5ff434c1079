"""``python -m jobs.benchmark scheduler``: the real driver code against a thousand simulated GPUs.

Time is virtual: hours of a cluster pass in seconds. Makespan over ideal is the GPU-seconds that
were there until the last shard was final, over the GPU-seconds of useful work.
"""

from __future__ import annotations

import logging
import resource
import time
from collections.abc import Sequence
from dataclasses import replace
from typing import cast

from jobs.benchmark.measure import machine, table, write_json
from jobs.benchmark.simulated import SimulatedCluster, SimulatedStorage, World
from pipeline.books import Book, Books
from pipeline.command_line import CommandLine, count, new_file, not_negative
from pipeline.ledger import Ledger
from pipeline.schedule import RetryRules, Scheduler
from pipeline.storage import Storage
from pipeline.tally import Tally


def main(arguments: Sequence[str] | None = None) -> int:
    """The command."""
    world = World()
    parser = CommandLine(
        prog="python -m jobs.benchmark scheduler", description=str(__doc__).split("\n\n")[0]
    )
    parser.add_argument("--gpus", type=count, default=world.num_gpus)
    parser.add_argument("--shards-per-gpu", type=count, nargs="+", default=[20, 100], metavar="N")
    parser.add_argument("--size-error", type=not_negative, default=world.size_error)
    parser.add_argument("--seed", type=int, default=world.seed)
    parser.add_argument(
        "--json", type=new_file, metavar="FILE", help="write the figures of the first N here"
    )
    options = parser.parse_args(arguments)
    logging.getLogger("pipeline.schedule").setLevel(logging.CRITICAL)
    world = replace(world, num_gpus=options.gpus, size_error=options.size_error, seed=options.seed)
    print(machine())
    print(f"{world}")
    rows = [["", *COLUMNS]]
    first: dict[str, float] = {}
    for shards_per_gpu in options.shards_per_gpu:
        figures = simulate(replace(world, shards_per_gpu=shards_per_gpu))
        first = first or figures
        cells = [shape.format(figures[key]) for key, shape in COLUMNS.values()]
        rows.append([f"{shards_per_gpu} shards a GPU", *cells])
    print(table(rows))
    write_json(options.json, first)
    return 0


COLUMNS = {
    "driver CPU ms/shard": ("driver_cpu_ms_per_shard", "{:.3f}"),
    "peak RSS MiB": ("peak_rss_mib", "{:.0f}"),
    "makespan h": ("makespan_hours", "{:.2f}"),
    "over ideal": ("makespan_over_ideal", "{:.3f}"),
    "lost s/preemption": ("lost_gpu_seconds_per_preemption", "{:.0f}"),
    "preemptions": ("preemptions", "{:.0f}"),
    "retries": ("retries", "{:.0f}"),
    "moved": ("handed_back", "{:.0f}"),
    "copies": ("copies", "{:.0f}"),
}


def simulate(world: World) -> dict[str, float]:
    """One run over a simulated cluster."""
    cluster = SimulatedCluster(world)
    num_shards = len(cluster.tasks)
    tally = Tally(num_shards=num_shards)
    scheduler = Scheduler(
        workers=cluster,
        rules=RetryRules(max_attempts=8, retry_seconds=2, max_bad_fraction=0.5, min_videos=100),
        tally=tally,
        show=lambda tally: None,
        clock=lambda: cluster.now,
    )
    cluster.own_seconds = 0.0
    began = time.process_time()
    storage = cast(Storage, SimulatedStorage(cluster))
    scheduler.run(cluster.tasks, Books([Book(storage, Ledger())]))
    driver_seconds = time.process_time() - began - cluster.own_seconds
    cluster.finish()
    useful = sum(cluster.work.values())
    assert tally.done_shards == num_shards, f"{tally.done_shards} of {num_shards} shards are final"
    assert not tally.failed, tally.failed
    peak_bytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return {
        "driver_cpu_ms_per_shard": driver_seconds / num_shards * 1000,
        "peak_rss_bytes": peak_bytes,
        "peak_rss_mib": peak_bytes / 2**20,
        "makespan_hours": cluster.now / 3600,
        "makespan_over_ideal": cluster.available_seconds / useful,
        "lost_gpu_seconds": cluster.lost_seconds,
        "lost_gpu_seconds_per_preemption": cluster.lost_preempted_seconds
        / max(1, cluster.preemptions),
        "preemptions": cluster.preemptions,
        "retries": tally.retries,
        "handed_back": tally.handed_back,
        "copies": tally.copies,
    }
