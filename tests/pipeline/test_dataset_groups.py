"""Ranks of torch.distributed, or given by hand, read one manifest, and fail together."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from pipeline.dataset import TokenDataset
from pipeline.storage import Storage
from tests.pipeline.fakes import make_out, video, write_shard


@pytest.fixture
def storage(tmp_path: Path) -> Storage:
    """48 clips, two in each row group."""
    return make_out(tmp_path / "out", shards=4, videos=12, max_clips=4)


def run_two(script: str, root: str, place: str, *more: str) -> list[str]:
    """What two ranks print."""
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", textwrap.dedent(script), root, place, rank, *more],
            stdout=subprocess.PIPE,
            text=True,
            env=os.environ | {"GLOO_SOCKET_IFNAME": "lo"},
        )
        for rank in ("0", "1")
    ]
    said = [process.communicate(timeout=100)[0] for process in processes]
    assert [process.returncode for process in processes] == [0, 0]
    return said


RANK = """
    import sys
    import torch
    import torch.distributed as dist
    from pipeline.dataset import TokenDataset

    root, place, rank = sys.argv[1], sys.argv[2], int(sys.argv[3])
    dist.init_process_group("gloo", init_method=f"file://{place}", rank=rank, world_size=2)
    dataset = TokenDataset(root, batch_size=5, shuffle=True, seed=1)
    for batch in dataset:
        sum_of = batch["tokens"].double().sum()
        dist.all_reduce(sum_of)  # hangs where one rank has a batch less
        print(*batch["clip_id"])
    dist.barrier()
    dist.destroy_process_group()
"""


def test_processes_of_a_group_get_equal_steps_and_one_manifest(
    storage: Storage, tmp_path: Path
) -> None:
    said = [text.splitlines() for text in run_two(RANK, storage.root, str(tmp_path / "meet"))]
    assert [len(lines) for lines in said] == [4, 4]
    one = TokenDataset(storage.root, batch_size=10, shuffle=True, seed=1)
    for batch, lines in zip(one, zip(*said, strict=True), strict=True):
        pairs = zip(*(line.split() for line in lines), strict=True)
        assert batch["clip_id"] == [name for pair in pairs for name in pair]


REFRESHED = """
    import sys
    import time
    import torch.distributed as dist
    from pipeline.dataset import TokenDataset
    from pipeline.storage import Storage
    from tests.pipeline.fakes import video, write_shard

    root, place, rank, manifest = sys.argv[1], sys.argv[2], int(sys.argv[3]), sys.argv[4]
    dist.init_process_group("gloo", init_method=f"file://{place}", rank=rank, world_size=2)
    dataset = TokenDataset(root, batch_size=2, manifest=manifest)
    if rank == 1:  # comes late: more is committed than rank 0 found
        time.sleep(1)
        write_shard(Storage(root), "late", [video(n) for n in range(12)])
    print(dataset.refresh(), len(dataset), dataset.manifest)
    dist.destroy_process_group()
"""


def test_processes_of_a_group_that_were_given_a_manifest_refresh_to_one(
    storage: Storage, tmp_path: Path
) -> None:
    manifest = TokenDataset(storage.root, batch_size=2).manifest
    write_shard(storage, "shard9", [video(n) for n in range(12)])
    first, second = run_two(REFRESHED, storage.root, str(tmp_path / "meet"), manifest)
    assert first == second


def test_ranks_given_by_hand_refresh_to_one_manifest(storage: Storage) -> None:
    def rank(number: int) -> TokenDataset:
        return TokenDataset(storage.root, batch_size=6, rank=number, world_size=2)

    first, second = rank(0), rank(1)
    write_shard(storage, "shard8", [video(n) for n in range(12)])
    assert first.refresh() is True
    write_shard(storage, "shard9", [video(n) for n in range(12)])
    assert second.refresh(first.manifest) is True
    assert second.refresh(first.manifest) is False
    assert (first.manifest, len(first)) == (second.manifest, len(second)) == (first.manifest, 5)


ONE_SEES_DAMAGE = """
    import sys
    import torch.distributed as dist
    from pipeline.dataset import TokenDataset
    from pipeline.errors import CorruptPart, RunError
    from pipeline.loading import fetch

    root, place, rank = sys.argv[1], sys.argv[2], int(sys.argv[3])
    dist.init_process_group("gloo", init_method=f"file://{place}", rank=rank, world_size=2)
    if rank:
        read, seen = fetch.read_group, []

        def damaged(*args):
            content = bytearray(read(*args))
            seen.append(0)
            if len(seen) == 1:
                raise CorruptPart("a bit has flipped")
            return content

        fetch.read_group = damaged
    try:
        TokenDataset(root, batch_size=2, filters=[("fps", ">", 0)], on_corrupt=sys.argv[4])
    except RunError as error:
        print(error)
    dist.destroy_process_group()
"""


@pytest.mark.parametrize(
    ("on_corrupt", "words"), [("replace", "selects other rows"), ("raise", "a bit has flipped")]
)
def test_ranks_that_read_other_bytes_fail_together_and_none_waits(
    storage: Storage, tmp_path: Path, on_corrupt: str, words: str
) -> None:
    said = run_two(ONE_SEES_DAMAGE, storage.root, str(tmp_path / "meet"), on_corrupt)
    assert all(words in text for text in said), said
