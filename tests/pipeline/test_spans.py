"""Spans and cuts in one video's clips; the table of spans and its one sorted file per machine."""

from __future__ import annotations

import json
import multiprocessing
import os
import shutil
from fractions import Fraction
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
import pytest

from pipeline import span_table
from pipeline.clip_sampler import ClipSampler
from pipeline.errors import ConfigError, RunError
from pipeline.reader import Sample
from pipeline.records import TailPolicy, TimeSpan
from pipeline.selection import Selection, SelectionRules
from pipeline.span_table import MAX_SPANS, SpanSource, SpanTable
from tests.pipeline.media import decoded, encode, plan_of

# ---- clips of spans and shots ----


def clips(plan, *, spans=None, cuts=(), num_frames=40, rate=8):
    """(span, first frame, last frame) of every clip of a video of numbered frames."""
    sampler = ClipSampler(plan, lambda frame: frame, too_slow=frozenset(), spans=spans)
    made = []
    for number in range(num_frames):
        made += sampler.add(Fraction(number, rate), number, is_cut=number in cuts)
    made += sampler.finish(Fraction(num_frames, rate))
    assert [clip.clip_index for clip in made] == list(range(len(made)))
    return [(clip.span_index, clip.frames[0], clip.frames[-1]) for clip in made], sampler


@pytest.mark.parametrize(
    ("spans", "expected"),
    [
        ([TimeSpan(0.0)], [(0, at, at + 3) for at in range(0, 40, 4)]),
        ([TimeSpan(1.0, 2.0)], [(0, 8, 11), (0, 12, 15)]),
        ([TimeSpan(1.01, 2.0)], [(0, 9, 12)]),
        ([TimeSpan(1.0, 1.99)], [(0, 8, 11)]),
        ([TimeSpan(2.0, 2.5), TimeSpan(0.0, 0.5)], [(1, 0, 3), (0, 16, 19)]),
        ([TimeSpan(0.0, 1.0), TimeSpan(0.25, 0.75)], [(0, 0, 3), (1, 2, 5), (0, 4, 7)]),
        ([TimeSpan(9.0, 10.0)], []),
    ],
)
def test_clips_never_leave_their_span(spans, expected) -> None:
    assert clips(plan_of(8.0), spans=spans)[0] == expected


def test_a_span_of_a_slower_video_begins_with_a_frame_of_its_own() -> None:
    """At 1.2 s the frame of 1.0 s is on screen, which is in front of the span."""
    found, _ = clips(plan_of(4.0, clip_frames=2), spans=[TimeSpan(1.2, 3.0)], rate=2, num_frames=8)
    assert found == [(0, 3, 3), (0, 4, 4), (0, 5, 5)]


def test_a_padded_tail_ends_with_its_span() -> None:
    found, _ = clips(plan_of(8.0, tail=TailPolicy.pad), spans=[TimeSpan(1.0, 1.75)])
    assert found == [(0, 8, 11), (0, 12, 13)]


def test_cuts_part_clips_inside_and_outside_of_spans() -> None:
    assert clips(plan_of(8.0), cuts=[6], num_frames=14)[0] == [
        (None, 0, 3),
        (None, 6, 9),
        (None, 10, 13),
    ]
    found, sampler = clips(plan_of(8.0), spans=[TimeSpan(0.5, 1.5)], cuts=[6, 9])
    assert found == []
    assert sampler.filtered() == {"span_too_short": 1}


def test_a_bound_of_clips_is_one_of_the_video_and_blames_no_span() -> None:
    spans = [TimeSpan(0.0, 1.0), TimeSpan(2.0, 3.0)]
    found, sampler = clips(plan_of(8.0, max_clips_per_video=1), spans=spans)
    assert found == [(0, 0, 3)]
    assert sampler.filtered() == {}


def test_a_detected_cut_of_a_real_video_is_not_crossed() -> None:
    dark, light = np.full((64, 64, 3), 40, np.uint8), np.full((64, 64, 3), 200, np.uint8)
    video = encode(list(range(0, 80, 4)), draw=lambda k: dark if k < 10 else light)
    whole, _ = decoded(video, plan_of(7.5))
    parted, _ = decoded(video, plan_of(7.5, cut_threshold=27.0))
    crossing = [c for c in whole if np.ptp(c.frames.mean(axis=(1, 2, 3))) > 50]
    assert crossing
    assert len(parted) == 4
    assert all(np.ptp(c.frames.mean(axis=(1, 2, 3))) < 5 for c in parted)


# ---- the table ----

COLUMNS = (("score", "float"), ("license", "string"))


def source(path: Path, **changes) -> SpanSource:
    return SpanSource(**{"url": str(path), "options": {}, "columns": COLUMNS} | changes)


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    """Where this machine's sorted files would lie."""
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "tmp"))
    (tmp_path / "tmp").mkdir()
    return tmp_path / "tmp" / f"vidtok-spans-{os.getuid()}"


ROWS = {
    "key": ["b", "a", "0007", "b"],
    "start_seconds": [3.0, None, 1.0, 1.0],
    "end_seconds": [4.0, 2.5, None, 2.0],
    "caption": ["late", None, "é", "early"],
    "score": [1.0, 2.0, None, 4.0],
}


def written(path: Path) -> Path:
    table = pa.table(ROWS)
    if path.suffix == ".parquet":
        pq.write_table(table, path)
    elif path.suffix == ".csv":
        pa.csv.write_csv(table, path)
    else:
        table.to_pandas().to_json(path, orient="records", lines=True)
    return path


@pytest.mark.parametrize("suffix", ["parquet", "csv", "jsonl"])
def test_every_format_gives_the_same_spans_sorted(suffix, folder, tmp_path) -> None:
    table = SpanTable(source(written(tmp_path / f"t.{suffix}")))
    assert (len(table), table.num_videos) == (4, 3)
    assert [(r.start_seconds, r.end_seconds, r.caption) for r in table.spans("b")] == [
        (1.0, 2.0, "early"),
        (3.0, 4.0, "late"),
    ]
    assert table.spans("a")[0].start_seconds == 0.0
    (zeros,) = table.spans("0007")
    assert (zeros.end_seconds, zeros.caption) == (None, "é")
    assert zeros.columns == {"score": None, "license": None}
    assert "a" in table
    assert ["" in table, "c" in table, table.spans("c")] == [False, False, ()]
    table.close()


def test_a_machine_makes_one_file_and_its_last_user_takes_it_away(
    folder, tmp_path, monkeypatch
) -> None:
    path = written(tmp_path / "t.parquet")
    first = SpanTable(source(path))
    path.unlink()  # the second one needs the sorted file only
    second = SpanTable(source(path, sha256=first.sha256))
    first.close()
    assert len(list(folder.glob("*.arrow"))) == 1
    assert second.spans("a")[0].end_seconds == 2.5
    second.close()
    assert list(folder.glob("*.arrow")) == []


def test_spans_without_start_or_end_are_counted_as_what_they_mean(folder, tmp_path) -> None:
    path = tmp_path / "t.csv"
    path.write_text("key,start_seconds,end_seconds\na,3,8\na,,\na,0,6\na,,5\na,3,\n")
    table = SpanTable(source(path))
    assert [(row.start_seconds, row.end_seconds) for row in table.spans("a")] == [
        (0.0, 5.0),
        (0.0, 6.0),
        (0.0, None),
        (3.0, 8.0),
        (3.0, None),
    ]
    table.close()


def _open_and_close(source_: SpanSource, times: int) -> None:
    for _ in range(times):
        SpanTable(source_).close()


def test_processes_that_open_and_close_one_table_at_once_never_miss_its_file(
    folder, tmp_path
) -> None:
    path = written(tmp_path / "t.csv")
    first = SpanTable(source(path))
    first.close()
    known = source(path, sha256=first.sha256)
    context = multiprocessing.get_context("fork")
    processes = [context.Process(target=_open_and_close, args=(known, 60)) for _ in range(3)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0, 0, 0]
    assert list(folder.glob("*.arrow")) == []


def test_a_table_closes_though_its_folder_was_cleaned_up(folder, tmp_path) -> None:
    table = SpanTable(source(written(tmp_path / "t.csv")))
    shutil.rmtree(folder)
    table.close()


def test_another_table_than_expected_is_refused(folder, tmp_path) -> None:
    with pytest.raises(RunError, match="is another table now"):
        SpanTable(source(written(tmp_path / "t.csv"), sha256="0" * 64))


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ('{"key": "a", "start_seconds": 2, "end_seconds": 1}', "row 0 .* does not end behind"),
        ('{"key": "a", "start_seconds": -1}', "row 0 .* starts before 0: key='a'"),
        ('{"start_seconds": 1}', "has no key"),
        ('{"key": 5}', "cannot be read as spans"),
        ('{"key": "a", "score": "high"}', "cannot be read as spans"),
    ],
)
def test_a_wrong_row_is_named(line, words, folder, tmp_path) -> None:
    path = tmp_path / "t.jsonl"
    path.write_text(line + "\n")
    with pytest.raises(ConfigError, match=words):
        SpanTable(source(path))


def test_metadata_at_any_depth_is_a_columns_or_the_samples_defect_and_stops_nothing() -> None:
    """What can just be parsed can be too deep to be told of."""
    selection = Selection(SelectionRules(columns=COLUMNS))
    reasons = []
    for depth in range(700, 1100):
        text = f'{{"score": {"[" * depth}{"]" * depth}}}'
        defect = selection.of(Sample(key="a", start_offset=0, end_offset=1, metadata=text)).defect
        assert defect is not None
        reasons.append(defect.reason)
    first = reasons.index("bad_metadata")
    assert set(reasons[:first]) <= {"bad_column"}
    assert set(reasons[first:]) == {"bad_metadata"}


def table_of(path: Path, names: list[str]) -> Path:
    """One row: a key, and numbers in the columns of the other names."""
    values = ["a", *range(1, len(names))]
    if path.suffix == ".parquet":
        pq.write_table(pa.table([pa.array([value]) for value in values], names=names), path)
    elif path.suffix == ".csv":
        path.write_text(f"{','.join(names)}\n{','.join(map(str, values))}\n")
    else:
        path.write_text(json.dumps(dict(zip(names, values, strict=True))) + "\n")
    return path


@pytest.mark.parametrize("suffix", ["parquet", "csv", "jsonl"])
@pytest.mark.parametrize(
    ("names", "column", "meant"),
    [
        (["key", "start", "end"], "start", "start_seconds"),
        (["key", " start_seconds", " end_seconds"], " start_seconds", "start_seconds"),
        (["key", "start_seconds", "End_Time"], "End_Time", "end_seconds"),
        (["key", "clipStart", "end_seconds"], "clipStart", "start_seconds"),
    ],
)
def test_a_misnamed_column_is_not_taken_for_whole_videos(
    names, column, meant, suffix, folder, tmp_path
) -> None:
    words = rf"t\.{suffix}: column '{column}' is not read; did you mean {meant}\?"
    with pytest.raises(ConfigError, match=words):
        SpanTable(source(table_of(tmp_path / f"t.{suffix}", names)))


@pytest.mark.parametrize("suffix", ["parquet", "csv", "jsonl"])
@pytest.mark.parametrize(
    "names",
    [
        ["key"],
        ["key", "trend", "end_credits", "started_by"],
        ["key", "start_seconds", "end_seconds", "start", "end"],
    ],
    ids=len,
)
def test_other_columns_are_the_users_own_affair(names, suffix, folder, tmp_path) -> None:
    table = SpanTable(source(table_of(tmp_path / f"t.{suffix}", names)))
    assert table.spans("a")[0].start_seconds == ("start_seconds" in names)
    table.close()


def test_a_column_of_a_near_name_that_is_asked_for_is_read(folder, tmp_path) -> None:
    path = table_of(tmp_path / "t.jsonl", ["key", "start", "end"])
    table = SpanTable(source(path, columns=(("start", "float"), ("end", "int"))))
    assert table.spans("a")[0].columns == {"start": 1.0, "end": 2}
    table.close()


def test_one_misnamed_row_among_others_is_found(folder, tmp_path) -> None:
    path = tmp_path / "t.jsonl"
    path.write_text('{"key": "a", "start_seconds": 1}\n{"key": "b", "start": 1, "caption": "x"}\n')
    with pytest.raises(ConfigError, match="column 'start' is not read"):
        SpanTable(source(path))


@pytest.mark.parametrize("suffix", ["parquet", "csv"])
def test_a_column_that_is_there_twice_is_named(suffix, folder, tmp_path) -> None:
    path = table_of(tmp_path / f"t.{suffix}", ["key", "score", "score"])
    with pytest.raises(ConfigError, match=rf"t\.{suffix}: column score is there twice"):
        SpanTable(source(path))


def test_a_missing_or_strange_table_is_one_line(folder, tmp_path) -> None:
    with pytest.raises(RunError, match="no such file"):
        SpanTable(source(tmp_path / "t.csv"))
    (tmp_path / "t.xlsx").write_bytes(b"")
    with pytest.raises(ConfigError, match=r"must end in \.parquet, \.csv, \.jsonl"):
        SpanTable(source(tmp_path / "t.xlsx"))
    pq.write_table(pa.table({"name": ["a"]}), tmp_path / "t.parquet")
    with pytest.raises(ConfigError, match="no column key; it has name"):
        SpanTable(source(tmp_path / "t.parquet"))


def test_many_rows_are_looked_up_without_an_object_for_each(folder, tmp_path) -> None:
    count = 400_000
    table = pa.table(
        {
            "key": pa.array(f"video-{n // 2:08d}" for n in range(count)),
            "start_seconds": pa.array(np.arange(count) % 2 * 10.0),
            "end_seconds": pa.array(np.arange(count) % 2 * 10.0 + 5.0),
        }
    )
    pq.write_table(table, tmp_path / "t.parquet")
    del table
    first = SpanTable(source(tmp_path / "t.parquet", columns=()))  # makes the sorted file
    before = pa.total_allocated_bytes()
    opened = SpanTable(source(tmp_path / "t.parquet", columns=(), sha256=first.sha256))
    assert [row.start_seconds for row in opened.spans("video-00141592")] == [0.0, 10.0]
    assert pa.total_allocated_bytes() - before < 1 << 20
    assert opened.num_videos == count // 2
    first.close()
    opened.close()


def test_more_spans_than_a_decoder_is_told_of_are_not_all_read(
    folder, tmp_path, monkeypatch
) -> None:
    monkeypatch.setattr(span_table, "MAX_SPANS", 2)
    rows = {"key": ["a"] * 9, "start_seconds": np.arange(9.0)}
    pq.write_table(pa.table(rows), tmp_path / "t.parquet")
    table = SpanTable(source(tmp_path / "t.parquet", columns=()))
    assert len(table.spans("a")) == 3
    table.close()
    assert MAX_SPANS == 4096
