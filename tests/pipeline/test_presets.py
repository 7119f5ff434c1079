"""Presets of data sets read the layout that their first lines describe."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.pipeline import runs


@pytest.mark.parametrize(
    ("preset", "table", "expected"),
    [
        (
            "openvid",
            "key,caption,aesthetic,motion,camera,start_seconds,end_seconds\n"
            "a.mp4,a dog,5.5,2,pan,0,5\n",
            {"caption": "a dog", "aesthetic": 5.5, "motion": 2.0, "camera": "pan"},
        ),
        (
            "panda70m",
            "key,start_seconds,end_seconds,caption,matching_score\na.mp4,0,2.2,a cat,0.43\n",
            {"caption": "a cat", "matching_score": 0.43},
        ),
    ],
)
def test_a_folder_with_its_table(
    preset: str, table: str, expected: dict[str, object], tmp_path: Path
) -> None:
    videos, out = tmp_path / "videos", tmp_path / "out"
    videos.mkdir()
    for seed, name in enumerate(("a.mp4", "not_in_the_table.mp4")):
        (videos / name).write_bytes(runs.video(seed))
    (tmp_path / "table.csv").write_text(table)
    status = runs.execute_here(
        *(f"+dataset={preset}", f"dataset.path={videos}", f"dataset.spans={tmp_path}/table.csv"),
        *(*runs.TINY, "dataset.num_buckets=2", f"output.root={out}"),
    )
    assert status == 0
    rows = list(runs.rows(out).values())
    assert len(rows) == (2 if preset == "openvid" else 1), "of 5 and of 2.2 seconds"
    for row in rows:
        assert row["key"] == "a.mp4"
        assert {name: row[name] for name in expected} == expected
