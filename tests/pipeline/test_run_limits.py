"""A decoder that is broken, or a data set that is, must not finish as if all were well."""

from pathlib import Path

import pytest

from pipeline.errors import ConfigError
from tests.pipeline import poison, runs


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


def test_hostile_videos_are_quarantined_by_name_and_others_keep_their_tokens(tmp_path):
    healthy = [(f"h{number}.mp4", runs.video(number)) for number in range(3)]
    jpeg = poison.jpeg(64, 64)
    hostile = {
        "giant_png": (poison.png(poison.GIANT, poison.GIANT), "decode_error"),
        "giant_h264": (poison.h264(16_000, 16_000), "too_many_pixels"),
        "grows": (
            poison.muxed([jpeg, poison.jpeg(9_000, 9_000)], container="mp4", codec="mjpeg"),
            "decode_error",
        ),
        "hours": (poison.matroska_of_hours(100), "too_long"),
        "streams": (poison.many_streams(100), "too_many_streams"),
        "for_ever": (poison.gif(2001), "too_many_frames"),
        "billion": (poison.mp4_of_many_samples(), "no_frames"),
    }
    samples = [(f"{key}.mp4", data) for key, (data, _) in hostile.items()]
    mixed = [sample for pair in zip(samples, healthy * 3, strict=False) for sample in pair]
    mixed = list(dict(mixed).items())
    (tmp_path / "mixed.tar").write_bytes(runs.tar_bytes(mixed))
    (tmp_path / "clean.tar").write_bytes(runs.tar_bytes(healthy))
    for name in ("mixed", "clean"):
        pattern = tmp_path / f"{name}.tar"
        assert runs.run_inline(pattern, tmp_path / name, "limits.frames=2000") == 0
    expected = {key: reason for key, (_, reason) in hostile.items()}
    assert runs.quarantined(tmp_path / "mixed") == expected
    assert runs.tokens(tmp_path / "mixed") == runs.tokens(tmp_path / "clean")
    assert runs.tokens(tmp_path / "clean")


@pytest.mark.parametrize(
    "override",
    ["limits.frames=0", "limits.no_progress_seconds=-1", "limits.max_bad_fraction=1.5"],
)
def test_limit_that_cannot_be_is_refused(override):
    with pytest.raises(ConfigError, match=override.split("=")[0]):
        runs.config("+dataset=demo", "+tokenizer=demo", override)
