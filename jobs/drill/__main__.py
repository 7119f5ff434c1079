"""``python -m jobs.drill``: a run that everything happens to must give what a quiet run gives.

Starts a Ray cluster of three nodes on the loopback and an S3 behind a proxy that misbehaves, runs
the real ``pipeline.run`` on real clips, does faults to it by a seeded schedule, and compares what
is committed in the end with a run in one process that nothing happened to. Touches no process that
it did not start. Exit code: 0 proven, 1 not.
"""

from __future__ import annotations

import argparse
import contextlib
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from jobs.benchmark.measure import machine, write_json
from jobs.drill import processes, proof, workload
from jobs.drill.cluster import Cluster, Store
from jobs.drill.faults import Injector
from jobs.drill.run import Run
from jobs.drill.schedule import Planned, schedule
from jobs.drill.timeline import Timeline, markdown, text
from pipeline.command_line import CommandLine, carry_out, new_file, positive

LOOK_SECONDS = 0.5
EXPELLED = "computes wrongly"
"""What the run says of a worker whose canary is wrong."""
FIRST_COMMIT_SECONDS = 600.0


def main(arguments: Sequence[str] | None = None) -> int:
    """Parse, drill, report."""
    options = _options(arguments)
    timeline = Timeline()
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # as Ctrl-C: end what was started
    # paths of Ray's sockets are at most 107 bytes long
    folder = Path(tempfile.mkdtemp(prefix="drill-", dir="/tmp"))
    try:
        problems = drill(options.minutes, options.seed, folder, timeline)
    except KeyboardInterrupt:
        shutil.rmtree(folder, ignore_errors=True)
        raise
    except BaseException:
        print(f"logs: {folder}", file=sys.stderr)
        raise
    if problems:
        print(f"logs: {folder}")
    else:
        shutil.rmtree(folder, ignore_errors=True)
    return conclude(options, timeline, problems)


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = CommandLine(
        prog="python -m jobs.drill",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--minutes", type=positive, default=5, help="of faults (default: 5)")
    parser.add_argument("--seed", type=int, default=1, help="of the schedule (default: 1)")
    parser.add_argument("--json", type=new_file, metavar="FILE", help="write the figures there")
    parser.add_argument("--report", type=new_file, metavar="FILE.md", help="write the report there")
    options = parser.parse_args(arguments)
    if options.minutes > 24 * 60:
        parser.error(f"--minutes must be at most a day, got {options.minutes:g}")
    return options


def drill(minutes: float, seed: int, folder: Path, timeline: Timeline) -> list[str]:
    """Everything from the first process to the last; returns what is wrong, in sentences."""
    planned = schedule(minutes=minutes, seed=seed)
    timeline.say(f"{len(planned)} faults in {minutes:g} minutes, seed {seed}")
    with contextlib.ExitStack() as ends:
        store = Store(folder, seed=seed)
        ends.callback(store.close)
        num_shards = workload.upload(store, minutes=minutes, seed=seed)
        cluster = Cluster(folder, store.env(through_proxy=True))
        ends.callback(cluster.close)
        run = Run(cluster, store, folder, num_shards=num_shards, say=timeline.say)
        ends.callback(run.close)
        timeline.say(f"{num_shards} shards; first a run without faults, in one process")
        run.clean()
        timeline.say("now a cluster of three nodes")
        cluster.start()
        run.begin_round()
        await_commit(run, timeline)
        injector = Injector(cluster, store, run, seed=seed, say=timeline.say)
        harm(run, injector, planned, timeline)
        timeline.say("no more faults; the run goes on to its end")
        run.finish()
        timeline.committed(run.num_receipts())
        return prove(store, cluster, run, timeline)


def await_commit(run: Run, timeline: Timeline) -> None:
    """Faults begin with the first committed segment: before it there is little to lose.

    Raises:
        RuntimeError: there is none.
    """
    deadline = time.monotonic() + FIRST_COMMIT_SECONDS
    while not run.num_receipts():
        if time.monotonic() > deadline or run.num_starts > 3:
            raise RuntimeError(f"nothing is committed: {run.log.read_text()[-3000:]}")
        time.sleep(LOOK_SECONDS)
        run.watch()
    timeline.say("the first segment is committed: faults begin")


def harm(run: Run, injector: Injector, planned: list[Planned], timeline: Timeline) -> None:
    """Do all faults; one without a victim at present waits, and those behind it come first."""
    began = timeline.now_seconds
    waiting = list(planned)
    while waiting:
        time.sleep(LOOK_SECONDS)
        run.watch()
        if run.is_done:
            run.begin_round()
        receipts = run.num_receipts()
        timeline.committed(receipts)
        due = [one for one in waiting if began + one.at_seconds <= timeline.now_seconds]
        for one in due:
            at_seconds = timeline.now_seconds
            what = injector.inject(one.kind)
            if what is not None:
                waiting.remove(one)
                timeline.note(one.kind, what, receipts, at_seconds)
                break
    injector.finish()


def prove(store: Store, cluster: Cluster, run: Run, timeline: Timeline) -> list[str]:
    """Compare every round with the clean run; see that nothing is left running."""
    problems = []
    for what, pattern in (("worker", processes.WORKER), ("decoder", processes.DECODER)):
        left = processes.gone(cluster.sessions, pattern)
        problems += [f"a {what} is left: {process.words}" for process in left]
    memory = processes.shared_memory(cluster.sessions)
    problems += [f"a process cannot be killed: {left.words}" for left in cluster.close()]
    problems += [f"shared memory is left: {path}" for path in memory if Path(path).exists()]
    clean = proof.read_outcome(store, workload.CLEAN)
    problems += [f"clean: {text}" for text in clean.problems]
    if not clean.rows or not clean.quarantined:
        problems.append("the clean run gave no rows, or quarantined nothing: it proves nothing")
    for out in run.outs:
        found = proof.read_outcome(store, out)
        wrong = proof.differences(found, clean) + proof.verify(store, out)
        problems += [f"{out}: {text}" for text in wrong]
        timeline.say(
            f"{out}: {len(found.rows)} rows of {len(clean.rows)}, {len(found.quarantined)} "
            f"quarantined of {len(clean.quarantined)}, {found.num_segments} receipts, "
            f"{found.num_orphans} orphans that nobody counts; {len(wrong)} problems"
        )
    if cluster.liar is not None:
        line = run.said(EXPELLED) or "nobody: it was killed before its next canary"
        timeline.say(f"process {cluster.liar} computed wrongly, and was found out by: {line}")
    faults = {fault.value: count for fault, count in store.proxy.faults.items()}
    timeline.say(f"the command was started {run.num_starts} times; S3 requests harmed: {faults}")
    return problems


def conclude(options: argparse.Namespace, timeline: Timeline, problems: list[str]) -> int:
    """Print and write what was found."""
    kinds = {fault.kind for fault in timeline.injected}
    verdict = (
        f"{len(timeline.injected)} faults of {len(kinds)} kinds in {options.minutes:g} minutes, "
        f"seed {options.seed}: "
        + ("the result equals that of a run without faults" if not problems else "NOT PROVEN")
    )
    print(text(timeline))
    print(*(f"problem: {problem}" for problem in problems[:50]), verdict, sep="\n")
    conclusions = [machine(), "", verdict, *(f"- {problem}" for problem in problems)]
    if options.report:
        Path(options.report).write_text(markdown("Fault drill", timeline, conclusions))
    record = {
        "machine": machine(),
        "faults": len(timeline.injected),
        "kinds": len(kinds),
        "proven": not problems,
        "problems": problems,
        "rows": timeline.rows(),
    }
    write_json(options.json, record)
    return 1 if problems else 0


if __name__ == "__main__":
    carry_out(main, interrupted="interrupted; everything that was started has been ended")
