"""One of several processes that tokenise the same shards at once.

    python -m tests.pipeline.racing OUT MAX_CLIPS [--stop-before N]

Says ``ready``, begins when a line comes in, and goes on behind whatever it meets. With
``--stop-before`` it stops itself (SIGSTOP) between the part and the receipt of its N-th segment, as
a machine does that is suspended.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys

from pipeline import committer
from pipeline.ledger import Ledger, task_of
from pipeline.receipts import Receipt, commit
from pipeline.storage import Storage
from tests.pipeline.fakes import segment_writer, shard, video

SHARDS = ("a", "b", "c")
VIDEOS = 12
EXPECTED = {f"{name}/video_{number}@8fps#0" for name in SHARDS for number in range(VIDEOS)}


def tokenise_all(out: str, max_clips: int) -> None:
    """Bring every shard to its end, a clip a video."""
    storage = Storage(out)
    ledger = Ledger.open(storage)
    for name in SHARDS:
        task = task_of(shard(name), ledger.state(name))
        if task is None:
            continue
        writer = segment_writer(storage, task=task, max_clips=max_clips)
        for number in range(task.start_offset // 10, VIDEOS):
            writer.add(video(number))
        writer.finish(VIDEOS * 10, None)
        ledger.add(writer.receipts)
        assert ledger.state(name).is_complete
    ledger.publish(storage)


def stop_before(number: int) -> None:
    """Suspend this process before the N-th receipt that it tries to create."""
    left = iter(range(number - 1, -1, -1))

    def suspended_commit(storage: Storage, receipt: Receipt) -> Receipt:
        if next(left, None) == 0:
            os.kill(os.getpid(), signal.SIGSTOP)
        return commit(storage, receipt)

    committer.commit = suspended_commit  # type: ignore[attr-defined]


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("out")
    parser.add_argument("max_clips", type=int)
    parser.add_argument("--stop-before", type=int, default=0)
    options = parser.parse_args()
    if options.stop_before:
        stop_before(options.stop_before)
    print("ready", flush=True)
    sys.stdin.readline()
    tokenise_all(options.out, options.max_clips)
    return 0


if __name__ == "__main__":
    sys.exit(main())
