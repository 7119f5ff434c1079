"""One decoding pass, several outputs: each is what a run of its own writes, whatever happens."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch

from pipeline.errors import ConfigError
from pipeline.run import execute
from pipeline.status import Looks
from pipeline.storage import Storage
from pipeline.verify import main as verify
from tests.pipeline import runs

ENTRIES: dict[str, dict[str, str]] = {
    "wide": {"sampling.resolution": "64"},
    "rates": {"sampling.fps": "[4,8]", "encoder.batch_clips": "2"},
    "film": {"sampling.mode": "whole", "sampling.clip_frames": "4"},
}
"""Name -> what an entry of ``outputs`` says."""
_SPELLED = (
    f"{{name: {name}, {', '.join(f'{key}: {value}' for key, value in entry.items())}}}"
    for name, entry in ENTRIES.items()
)
OUTPUTS = f"outputs=[{', '.join(_SPELLED)}]"
COMMIT = ("commit.max_clips=3", "quality.sample_fraction=0.3")


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("shards")
    pattern = runs.write_shards(folder, num_shards=2, num_videos=3)
    good = runs.video(99)
    broken = [("x0.mp4", good[: len(good) // 2]), ("x1.mp4", b"no video"), ("x2.mp4", good)]
    (folder / "00001.tar").write_bytes(runs.tar_bytes(broken))
    return pattern


@pytest.fixture(scope="module")
def alone(shards: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """OUTs of runs of their own, by the name of the output."""
    folder = tmp_path_factory.mktemp("alone")
    for name in ENTRIES:
        assert runs.run_inline(shards, folder / name, *COMMIT, *overrides(name)) == 0
    return folder


def overrides(name: str) -> list[str]:
    """An entry as a command line of its own."""
    return [f"{key}={value}" for key, value in ENTRIES[name].items()]


def together(shards: str, out: Path, *further: str) -> int:
    return runs.run_inline(shards, out, *COMMIT, OUTPUTS, *further)


def attempts(out: Path) -> dict[str, str]:
    """Receipt -> the attempt that made it."""
    return {f"{r['shard']}.{r['segment']}": r["attempt"] for r in runs.receipts(out)}


def check(out: Path, alone: Path) -> None:
    """Every output holds what a run of its own wrote."""
    for name in ENTRIES:
        assert runs.rows(out / name) == runs.rows(alone / name), name
        assert runs.quarantined(out / name) == runs.quarantined(alone / name), name
        assert _filtered(out / name) == _filtered(alone / name), name
        run, other = (json.loads((one / name / "run.json").read_text()) for one in (out, alone))
        assert run["fingerprint"] == other["fingerprint"]
        assert run["config"]["outputs"] is None
        assert verify([str(out / name)]) == 0


def _filtered(out: Path) -> dict[str, int]:
    found: dict[str, int] = {}
    for receipt in runs.receipts(out):
        for reason, number in receipt["filtered"].items():
            found[reason] = found.get(reason, 0) + number
    return found


def test_every_output_equals_a_run_of_its_own(shards: str, alone: Path, tmp_path: Path) -> None:
    assert together(shards, tmp_path) == 0
    check(tmp_path, alone)
    for name in ENTRIES:
        facts, beats = Looks(Storage(str(tmp_path / name))).now()
        assert facts["finished"]
        assert beats[0]["counters"]["clips"] == facts["clips"]
        assert beats[0]["counters"]["decoder_seconds"] > 0


def test_an_output_that_is_new_is_made_without_touching_the_others(
    shards: str, alone: Path, tmp_path: Path
) -> None:
    assert together(shards, tmp_path) == 0
    before = attempts(tmp_path / "wide")
    shutil.rmtree(tmp_path / "film")
    assert together(shards, tmp_path) == 0
    assert attempts(tmp_path / "wide") == before
    check(tmp_path, alone)


def test_outputs_that_are_differently_far_go_on_from_where_each_is(
    shards: str, alone: Path, tmp_path: Path
) -> None:
    shutil.copytree(alone / "wide", tmp_path / "wide")  # complete, by a run of its own
    shutil.copytree(alone / "rates", tmp_path / "rates")
    shutil.rmtree(tmp_path / "rates" / "manifests")
    for receipt in sorted((tmp_path / "rates" / "receipts").iterdir())[1:]:
        receipt.unlink()  # killed behind its first segment
    first = attempts(tmp_path / "rates")
    assert len(first) == 1
    assert together(shards, tmp_path) == 0
    assert attempts(tmp_path / "wide") == attempts(alone / "wide")
    assert first.items() <= attempts(tmp_path / "rates").items()
    check(tmp_path, alone)


def test_one_output_can_be_continued_by_a_run_of_its_own(
    shards: str, alone: Path, tmp_path: Path
) -> None:
    assert together(shards, tmp_path) == 0
    before = attempts(tmp_path / "rates")
    assert runs.run_inline(shards, tmp_path / "rates", *COMMIT, *overrides("rates")) == 0
    assert attempts(tmp_path / "rates") == before


def test_killed_at_any_moment_the_same_command_finishes_all_outputs(
    shards: str, alone: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    command = runs.arguments(shards, out, *COMMIT, OUTPUTS, "cluster=inline")
    started = runs.start(*command, cwd=tmp_path, OMP_WAIT_POLICY="passive")
    runs.wait_for_receipts(started, out / "rates")
    started.kill()
    assert not started.leftovers()
    assert together(shards, out) == 0
    check(out, alone)


def test_ranks_of_an_array_share_the_shards_of_all_outputs(
    shards: str, alone: Path, tmp_path: Path
) -> None:
    for rank in range(2):
        array = ("cluster=array", f"cluster.rank={rank}", "cluster.ranks=2")
        threads = torch.get_num_threads()
        try:
            command = runs.arguments(shards, tmp_path, *COMMIT, OUTPUTS, *array)
            assert execute(*runs.configs(*command)) == 0
        finally:
            torch.set_num_threads(threads)
    check(tmp_path, alone)


def test_quarantined_videos_are_tried_again_in_every_output(
    shards: str, alone: Path, tmp_path: Path
) -> None:
    assert together(shards, tmp_path, "limits.frames=10") == 0
    assert runs.quarantined(tmp_path / "wide")
    assert together(shards, tmp_path, "retry=quarantined") == 0
    for name in ENTRIES:
        assert runs.tokens(tmp_path / name) == runs.tokens(alone / name), name


def test_the_same_tokens_twice_are_refused(shards: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="would hold the same tokens"):
        runs.run_inline(
            shards, tmp_path, "outputs=[{name: a, resolution: 32}, {name: b, fps: [8]}]"
        )
    assert not any(tmp_path.iterdir())


def test_a_dry_run_says_what_each_output_would_get(
    shards: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert together(shards, tmp_path, "dry_run=true") == 0
    text = capsys.readouterr().out
    for name in ENTRIES:
        assert f"2 to do (dry run) -> {tmp_path / name}" in text
    assert text.count("would begin 2 shards") == len(ENTRIES)
    assert not any(tmp_path.iterdir())


@pytest.mark.slow
def test_killed_on_ray_every_output_equals_a_run_of_its_own(
    shards: str, alone: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    command = runs.arguments(shards, out, *COMMIT, OUTPUTS, "cluster=local")
    started = runs.start(*command, cwd=tmp_path)
    runs.wait_for_receipts(started, out / "rates")
    started.kill()
    assert not started.leftovers()
    again = runs.run(*command, cwd=tmp_path)
    assert again.returncode == 0, again.stderr
    check(out, alone)
