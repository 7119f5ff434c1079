"""``retry=quarantined`` and ``retry=incomplete`` on whole runs."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.dataset import TokenDataset
from pipeline.status import main as status
from pipeline.verify import main as verify
from tests.pipeline import runs

VIDEOS = [runs.video(number, num_frames=40 if number % 2 else 80) for number in range(6)]
TAR = runs.tar_bytes([(f"v{number}.mp4", content) for number, content in enumerate(VIDEOS)])
STRICT = ("limits.frames=60", "limits.max_bad_fraction=1", "commit.max_clips=3")
"""Takes every second video for too long."""


@pytest.fixture(scope="module")
def oracle(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """Tokens of a run with nothing wrong."""
    folder = tmp_path_factory.mktemp("oracle")
    (folder / "in.tar").write_bytes(TAR)
    assert runs.run_inline(folder / "in.tar", folder / "out") == 0
    return runs.tokens(folder / "out")


def names(out: Path) -> list[str]:
    return sorted(path.name.split(".", 1)[1] for path in (out / "receipts").iterdir())


def contents(out: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in (out / "receipts").iterdir()}


def test_quarantined_videos_are_tried_again_with_the_limits_of_now(
    tmp_path: Path, oracle: dict[str, bytes], capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "in.tar").write_bytes(TAR)
    out = tmp_path / "out"
    assert runs.run_inline(tmp_path / "in.tar", out, *STRICT) == 0
    assert runs.quarantined(out) == dict.fromkeys(("v0", "v2", "v4"), "too_many_frames")
    before = contents(out)

    capsys.readouterr()
    assert runs.run_inline(tmp_path / "in.tar", out, "retry=quarantined", "dry_run=true") == 0
    assert "retry=quarantined: 3 videos of 1 shards" in capsys.readouterr().out
    assert contents(out) == before

    assert runs.run_inline(tmp_path / "in.tar", out, "retry=quarantined", *STRICT) == 0
    assert contents(out) == before, "the same limits change nothing"

    capsys.readouterr()
    assert runs.run_inline(tmp_path / "in.tar", out, "retry=quarantined") == 0
    said = capsys.readouterr().out
    assert "1 of 1 final, 0 of them cut, 0 failed" in said
    assert "videos: 6, clips: 18, filtered: 0, quarantined: 0" in said
    after = contents(out)
    assert {name: after[name] for name in before} == before
    assert {name.rsplit(".", 2)[1] for name in after.keys() - before.keys()} == {"r1"}
    assert runs.tokens(out) == oracle
    assert (verify([str(out)]), status([str(out)])) == (0, 0)
    assert TokenDataset(str(out), batch_size=4).num_clips == len(oracle)

    capsys.readouterr()
    assert runs.run_inline(tmp_path / "in.tar", out, "retry=quarantined") == 0
    assert "0 to do" in capsys.readouterr().out
    assert contents(out) == after


def test_what_lay_behind_a_cut_is_added_when_the_tar_is_whole(
    tmp_path: Path, oracle: dict[str, bytes], capsys: pytest.CaptureFixture[str]
) -> None:
    cut = TAR[: TAR.index(b"v3.mp4") + 1000]
    (tmp_path / "in.tar").write_bytes(cut)
    out = tmp_path / "out"
    assert runs.run_inline(tmp_path / "in.tar", out) == 1
    before = contents(out)

    assert runs.run_inline(tmp_path / "in.tar", out, "retry=incomplete") == 1
    assert contents(out) == before, "it is cut where it was"

    (tmp_path / "in.tar").write_bytes(TAR[: TAR.index(b"v5.mp4") + 1000])
    assert runs.run_inline(tmp_path / "in.tar", out, "retry=incomplete") == 1
    assert names(out) == ["00000.json", "00001.r1.json"]

    (tmp_path / "in.tar").write_bytes(TAR)
    assert runs.run_inline(tmp_path / "in.tar", out) == 1, "left alone unless asked for"
    capsys.readouterr()
    assert runs.run_inline(tmp_path / "in.tar", out, "retry=incomplete", "dry_run=true") == 0
    assert "retry=incomplete: 1 cut shards" in capsys.readouterr().out
    assert runs.run_inline(tmp_path / "in.tar", out, "retry=incomplete", "commit.max_clips=2") == 0
    found = names(out)
    assert found[:3] == ["00000.json", "00001.r1.json", "00002.r2.json"]
    assert all(name.endswith("r2.json") for name in found[2:])
    assert {name: contents(out)[name] for name in before} == before
    assert runs.tokens(out) == oracle
    assert (verify([str(out)]), status([str(out)])) == (0, 0)
    capsys.readouterr()
    assert runs.run_inline(tmp_path / "in.tar", out) == 0
    assert "changed" not in capsys.readouterr().out


@pytest.mark.slow
def test_a_tar_that_only_lacked_its_end_is_complete_without_another_row(tmp_path: Path) -> None:
    (tmp_path / "in.tar").write_bytes(TAR[: TAR.rindex(VIDEOS[-1]) + len(VIDEOS[-1])])
    out = tmp_path / "out"
    assert runs.run_inline(tmp_path / "in.tar", out) == 1
    before = len(runs.rows(out))
    (tmp_path / "in.tar").write_bytes(TAR)
    assert runs.run_inline(tmp_path / "in.tar", out, "retry=incomplete") == 0
    assert before <= len(runs.rows(out)) == 18
    assert verify([str(out)]) == 0
