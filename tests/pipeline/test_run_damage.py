"""Runs over inputs that are broken, doubled, cut off or missing: what is lost, and what is said."""

from __future__ import annotations

import json
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pipeline import intake
from pipeline.errors import TooManyBadVideos
from pipeline.reader import Sample, ShardEnd, read_shard
from pipeline.status import main as status
from pipeline.verify import main as verify
from tests.pipeline import runs

GOOD = [(f"v{number:03d}.mp4", runs.video(number)) for number in range(4)]


def facts(out: Path, capsys: pytest.CaptureFixture[str]) -> dict[str, object]:
    capsys.readouterr()
    status([str(out), "--json"])
    found: dict[str, object] = json.loads(capsys.readouterr().out)
    return found


def run(tmp_path: Path, content: bytes, *overrides: str) -> tuple[int, Path]:
    """A run over one tar."""
    (tmp_path / "in.tar").write_bytes(content)
    out = tmp_path / "out"
    return runs.run_inline(tmp_path / "in.tar", out, *overrides), out


def keys(out: Path) -> set[str]:
    return {row["key"] for row in runs.rows(out).values()}


def test_a_damaged_video_is_quarantined_and_the_others_go_on(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    samples = [
        *GOOD[:2],
        ("noise.mp4", b"no video at all" * 100),
        ("cut.mp4", GOOD[3][1][: len(GOOD[3][1]) // 2]),
        ("empty.mp4", b""),
        ("alone.txt", b"a caption without a video"),
        ("odd.mp4", GOOD[3][1]),
        ("odd.json", b"{broken"),
        GOOD[2],
    ]
    code, out = run(tmp_path, runs.tar_bytes(samples), "commit.max_clips=2")
    assert code == 0
    assert keys(out) == {"v000", "v001", "v002"}
    assert runs.quarantined(out) == {
        "noise": "not_a_video",
        "cut": "not_a_video",
        "empty": "empty",
        "alone": "no_video",
        "odd": "bad_metadata",
    }
    assert (
        "quarantined: 5 (bad_metadata 1, empty 1, no_video 1, not_a_video 2)"
        in capsys.readouterr().out
    )
    assert verify([str(out)]) == 0
    assert facts(out, capsys)["quarantined"] == {
        "not_a_video": 2,
        "empty": 1,
        "no_video": 1,
        "bad_metadata": 1,
    }


def test_quarantined_originals_are_kept_with_their_reasons(tmp_path: Path) -> None:
    _, out = run(tmp_path, runs.tar_bytes([*GOOD[:1], ("noise.mp4", b"no video")]))
    [path] = (out / "quarantine").iterdir()
    with tarfile.open(path) as tar:
        members = {info.name: tar.extractfile(info).read() for info in tar}  # type: ignore[union-attr]
    assert members["noise.mp4"] == b"no video"
    reason = json.loads(members["noise.reason.json"])
    assert (reason["key"], reason["reason"]) == ("noise", "not_a_video")


def test_originals_are_not_kept_when_that_is_switched_off(tmp_path: Path) -> None:
    samples = runs.tar_bytes([*GOOD[:1], ("noise.mp4", b"no video")])
    _, out = run(tmp_path, samples, "output.keep_quarantined=false")
    assert runs.quarantined(out) == {"noise": "not_a_video"}
    assert not (out / "quarantine").exists()


@pytest.mark.parametrize("max_clips", [1, 1000])
def test_the_second_sample_of_a_key_is_quarantined(max_clips: int, tmp_path: Path) -> None:
    samples = [*GOOD[:2], ("v000.mp4", runs.video(77)), GOOD[2]]
    code, out = run(tmp_path, runs.tar_bytes(samples), f"commit.max_clips={max_clips}")
    assert code == 0
    assert runs.quarantined(out) == {"v000": "duplicate_key"}
    assert verify([str(out)]) == 0
    single = tmp_path / "single"
    single.mkdir()
    _, alone = run(single, runs.tar_bytes(GOOD[:3]))
    assert runs.tokens(out) == runs.tokens(alone)


def test_names_that_are_not_utf8_do_not_keep_a_run_from_its_report(tmp_path: Path) -> None:
    samples = [*GOOD[:1], ("odd.caf\udcff", b"?"), ("also\udcff.txt", b"?")]
    code, out = run(tmp_path, runs.tar_bytes(samples), "output.report=true")
    assert code == 0
    assert runs.quarantined(out) == {"odd": "no_video", "also\\udcff": "no_video"}
    assert (out / "report/index.html").is_file()


def test_a_video_deleted_while_its_folder_is_read_fails_that_run_and_not_the_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, out = tmp_path / "videos", tmp_path / "out"
    folder.mkdir()
    for name, content in GOOD[:3]:
        (folder / name).write_bytes(content)

    def read_and_delete(*args: Any, **options: Any) -> Iterator[Sample | ShardEnd]:
        for item in read_shard(*args, **options):
            yield item
            (folder / "v001.mp4").unlink(missing_ok=True)

    def run_folder() -> int:
        place = ("+dataset=folder", f"dataset.path={folder}", "dataset.num_buckets=1")
        return runs.execute_here(*place, *runs.TINY, f"output.root={out}")

    with monkeypatch.context() as patch:
        patch.setattr(intake, "read_shard", read_and_delete)
        assert run_folder() == 1
    assert "v001.mp4 is not there" in capsys.readouterr().out
    assert runs.receipts(out) == []
    assert run_folder() == 0
    assert keys(out) == {"v000.mp4", "v002.mp4"}
    assert runs.quarantined(out) == {}
    assert verify([str(out)]) == 0


def test_a_cut_tar_gives_what_comes_before_the_cut(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = runs.tar_bytes(GOOD)
    code, out = run(tmp_path, whole[: whole.index(b"v003.mp4") + 3000])
    assert code == 1
    # v002 may be left out: only the next sample would show that no file of it is missing
    assert {"v000", "v001"} <= keys(out) <= {"v000", "v001", "v002"}
    [receipt] = runs.receipts(out)
    assert (receipt["final"], receipt["complete"]) == (True, False)
    said = capsys.readouterr().out
    assert "1 of 1 final, 1 of them cut" in said
    assert f"cut: {receipt['shard']}: byte " in said
    assert "'v003.mp4' says" in said
    found = facts(out, capsys)
    assert found["finished"] is False
    assert list(found["cut_shards"]) == [receipt["shard"]]  # type: ignore[call-overload]
    assert verify([str(out)]) == 0


def test_a_second_run_over_a_cut_tar_still_ends_in_failure(tmp_path: Path) -> None:
    whole = runs.tar_bytes(GOOD)
    (tmp_path / "in.tar").write_bytes(whole[: whole.index(b"v003.mp4") + 100])
    for _ in range(2):
        assert runs.run_inline(tmp_path / "in.tar", tmp_path / "out") == 1


def test_an_empty_tar_is_final_and_without_clips(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, out = run(tmp_path, runs.tar_bytes([]))
    assert code == 0
    [receipt] = runs.receipts(out)
    assert (receipt["part"], receipt["rows"], receipt["final"]) == (None, 0, True)
    assert verify([str(out)]) == 0
    assert facts(out, capsys)["finished"] is True


def test_a_video_too_short_for_a_clip_is_filtered_not_quarantined(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    samples = [*GOOD[:1], ("short.mp4", runs.video(9, num_frames=8))]
    code, out = run(tmp_path, runs.tar_bytes(samples))
    assert code == 0
    assert "filtered: 1 (too_short 1), quarantined: 0" in capsys.readouterr().out
    assert keys(out) == {"v000"}


def test_a_missing_shard_is_named_and_the_others_are_done(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "0.tar").write_bytes(runs.tar_bytes(GOOD[:1]))
    assert runs.run_inline(tmp_path / "{0..1}.tar", tmp_path / "out") == 1
    said = capsys.readouterr().out
    assert f"{tmp_path / '1.tar'} is not there" in said
    assert "1 of 2 final, 0 of them cut, 1 failed" in said
    assert keys(tmp_path / "out") == {"v000"}
    assert facts(tmp_path / "out", capsys)["finished"] is False


def test_a_run_stops_when_too_many_videos_are_bad(tmp_path: Path) -> None:
    bad = [(f"bad{number}.mp4", b"no video") for number in range(8)]
    samples = runs.tar_bytes([*GOOD[:2], *bad])
    limits = ("limits.max_bad_fraction=0.5", "limits.min_videos=5", "commit.max_clips=1")
    with pytest.raises(TooManyBadVideos, match=r"videos were quarantined.*max_bad_fraction=0\.5"):
        run(tmp_path, samples, *limits)


def test_few_bad_videos_do_not_stop_a_small_run(tmp_path: Path) -> None:
    bad = [(f"bad{number}.mp4", b"no video") for number in range(3)]
    code, _ = run(tmp_path, runs.tar_bytes(bad), "limits.max_bad_fraction=0.5")
    assert code == 0


def change(tmp_path: Path) -> Path:
    """A finished run whose input has changed since."""
    _, out = run(tmp_path, runs.tar_bytes(GOOD[:2]))
    (tmp_path / "in.tar").write_bytes(runs.tar_bytes(GOOD[1:4]))
    return out


def test_a_changed_input_is_reported_and_kept(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = change(tmp_path)
    before = runs.rows(out)
    capsys.readouterr()
    assert runs.run_inline(tmp_path / "in.tar", out) == 0
    said = capsys.readouterr().out
    assert "changed since it was tokenised: in-" in said
    assert "(changed_inputs=keep)" in said
    assert runs.rows(out) == before


def test_a_changed_input_is_redone_when_asked(tmp_path: Path) -> None:
    out = change(tmp_path)
    assert runs.run_inline(tmp_path / "in.tar", out, "changed_inputs=redo") == 0
    assert keys(out) == {"v001", "v002", "v003"}
    assert verify([str(out)]) == 0


def test_a_dry_run_redoes_nothing(tmp_path: Path) -> None:
    out = change(tmp_path)
    before = runs.rows(out)
    assert runs.run_inline(tmp_path / "in.tar", out, "changed_inputs=redo", "dry_run=true") == 0
    assert runs.rows(out) == before
