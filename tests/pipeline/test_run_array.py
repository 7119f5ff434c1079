"""Several processes that only meet in storage do what one does, whoever of them is killed."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from pipeline.errors import ConfigError, PipelineError
from pipeline.inputs import list_tars
from pipeline.rank import VARIABLES, Rank
from pipeline.run import execute
from pipeline.verify import main as verify
from tests.pipeline import runs

NUM_SHARDS = 4
SMALL = ("encoder.batch_clips=2", "commit.max_clips=2", "cluster.open_shards=1")
SLOW = ("tokenizer.num_res_blocks=2", "sampling.resolution=64")
"""Slow enough to be killed in the middle."""


@pytest.fixture(autouse=True)
def _outside_of_any_scheduler(monkeypatch: pytest.MonkeyPatch) -> None:
    for rank, ranks in VARIABLES.items():
        monkeypatch.delenv(rank, raising=False)
        monkeypatch.delenv(ranks or rank, raising=False)


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> str:
    return runs.write_shards(tmp_path_factory.mktemp("shards"), num_shards=NUM_SHARDS, num_videos=1)


def arguments(shards: str, out: Path, *overrides: str) -> tuple[str, ...]:
    return (
        *("+dataset=tars", f"dataset.shards={shards}"),
        *(*runs.TINY, *SMALL, "cluster=array", f"output.root={out}", *overrides),
    )


def run_rank(shards: str, out: Path, *overrides: str) -> int:
    """Exit status of one rank in this process."""
    threads = torch.get_num_threads()
    try:
        return execute(runs.config(*arguments(shards, out, *overrides)))
    finally:
        torch.set_num_threads(threads)


def start_rank(number: int, ranks: int, shards: str, out: Path, cwd: Path) -> runs.Command:
    """One rank as Slurm starts it."""
    return runs.start(
        *arguments(shards, out, *SLOW),
        cwd=cwd,
        SLURM_ARRAY_TASK_ID=str(number),
        SLURM_ARRAY_TASK_COUNT=str(ranks),
        OMP_WAIT_POLICY="passive",
    )


def test_a_rank_whose_neighbours_never_come_does_their_shares_too(
    shards: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = list_tars([shards], {})  # whose names depend on where they lie
    shares = [sum(Rank(number=n, ranks=3).owns(shard.name) for shard in found) for n in range(3)]
    number, own = next((n, own) for n, own in enumerate(shares) if own)
    assert run_rank(shards, tmp_path / "out", f"cluster.rank={number}", "cluster.ranks=3") == 0
    said = capsys.readouterr().out
    assert f"rank {number} of 3: {own} of them are its share" in said
    assert f"shards: {NUM_SHARDS} of {NUM_SHARDS} final" in said
    assert runs.run_inline(shards, tmp_path / "oracle", *SMALL) == 0
    assert verify([str(tmp_path / "out")]) == 0
    assert runs.rows(tmp_path / "out") == runs.rows(tmp_path / "oracle")


@pytest.mark.parametrize(
    ("overrides", "text"),
    [
        ([], "cluster=array does not know which rank this is"),
        (["cluster.rank=2"], "the number of ranks is not"),
        (["cluster.rank=2", "cluster.ranks=2"], "must be from 0 to 1"),
        (["cluster.rank=-1", "cluster.ranks=2"], "cluster.rank must be at least 0"),
        (["cluster.rank=0", "cluster.ranks=0"], "cluster.ranks must be at least 1"),
        (
            ["cluster.rank=0", "cluster.ranks=2", "changed_inputs=redo"],
            "changed_inputs=redo removes receipts",
        ),
        (["cluster.rank=0", "cluster.ranks=2", "cluster.num_workers=2"], "start more ranks"),
    ],
)
def test_what_ranks_cannot_do_is_refused_before_anything_is_written(
    overrides: list[str], text: str, shards: str, tmp_path: Path
) -> None:
    with pytest.raises(PipelineError) as refusal:
        run_rank(shards, tmp_path / "out", *overrides)
    assert text in str(refusal.value)
    assert not (tmp_path / "out").exists()


def test_ranks_are_of_arrays_only(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="are of cluster=array only"):
        runs.run_inline("x.tar", tmp_path, "cluster.rank=0")


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_four_ranks_of_which_one_is_killed_and_three_that_go_on_equal_one_quiet_run(
    tmp_path: Path,
) -> None:
    shards = runs.write_shards(tmp_path / "shards", num_shards=12, num_videos=4)
    out = tmp_path / "out"
    assert runs.run_inline(shards, tmp_path / "oracle", *SMALL, *SLOW) == 0
    four = [start_rank(number, 4, shards, out, tmp_path) for number in range(4)]
    try:
        runs.wait_for_receipts(four[0], out, 5, timeout_seconds=300)
        four[2].kill()
        runs.wait_for_receipts(four[0], out, 12, timeout_seconds=300)
    finally:
        errors = [command.kill() for command in four]
    assert not any("Traceback" in error for error in errors), errors
    kept = {path.name: path.read_bytes() for path in (out / "receipts").glob("*.json")}
    assert len(runs.rows(out)) < len(runs.rows(tmp_path / "oracle"))
    three = [start_rank(number, 3, shards, out, tmp_path) for number in range(3)]
    try:
        said = [command.process.communicate(timeout=600) for command in three]
    finally:
        for command in three:
            command.kill()
    assert [command.process.returncode for command in three] == [0, 0, 0], said
    assert all("shards: 12 of 12 final" in text for text, _ in said)
    for name, content in kept.items():
        assert (out / "receipts" / name).read_bytes() == content
    assert verify([str(out)]) == 0
    assert runs.rows(out) == runs.rows(tmp_path / "oracle")
