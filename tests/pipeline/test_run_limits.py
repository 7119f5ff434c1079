"""A decoder that is broken, or a data set that is, must not finish as if all were well."""

from pathlib import Path

from tests.pipeline import runs


def write_mostly_broken(folder: Path) -> str:
    """Two shards of six videos, the first of which is healthy."""
    folder.mkdir()
    for shard in range(2):
        videos = [runs.video(shard), *[b"no video"] * 5]
        samples = [(f"v{shard}{number}.mp4", video) for number, video in enumerate(videos)]
        (folder / f"{shard:05d}.tar").write_bytes(runs.tar_bytes(samples))
    return str(folder / "{00000..00001}.tar")


def test_run_with_too_many_broken_videos_stops_and_goes_on_when_that_is_allowed(tmp_path):
    shards, out = write_mostly_broken(tmp_path / "in"), tmp_path / "out"
    arguments = ["+dataset=tars", f"dataset.shards={shards}", f"output.root={out}", *runs.TINY]
    stopped = runs.run(*arguments, "cluster=inline", "limits.min_videos=6", cwd=tmp_path)
    assert stopped.returncode == 1
    (line,) = [line for line in stopped.stderr.splitlines() if line.startswith("error:")]
    assert "videos were quarantined, more than limits.max_bad_fraction=0.5" in line
    assert "Traceback" not in stopped.stderr
    again = runs.run_inline(shards, out, "limits.min_videos=6", "limits.max_bad_fraction=0.9")
    assert again == 0
    assert sorted(runs.quarantined(out)) == [f"v{s}{n}" for s in range(2) for n in range(1, 6)]
    assert {row["key"] for row in runs.rows(out).values()} == {"v00", "v10"}
