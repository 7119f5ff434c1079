"""Spans, own columns and captions: from a table or JSON to rows, resumed, compared, read back."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline import diff, verify
from pipeline.dataset import TokenDataset
from pipeline.errors import ConfigError, FingerprintMismatch, RunError
from tests.pipeline import runs

COLUMNS = ["dataset.columns={score: float, rank: int, license: string}", "dataset.captions=[short]"]
SAMPLING = ["sampling.clip_frames=5", "tokenizer.checkpoint=random", "commit.max_clips=4"]
ROWS = [  # videos last 5 s at 8 fps
    {"key": "v000", "start_seconds": 0.0, "end_seconds": 1.3, "caption": "first", "score": 0.5},
    {"key": "v000", "start_seconds": 2.0, "end_seconds": None, "caption": None, "short": "two"},
    {"key": "v001", "start_seconds": 4.5, "end_seconds": 99.0, "license": "cc0"},
    {"key": "v003", "start_seconds": 1.0, "end_seconds": 2.0, "rank": 7},
    {"key": "v003", "start_seconds": 50.0, "end_seconds": 60.0},
    {"key": "nobody", "start_seconds": 0.0, "end_seconds": 1.0},
]


def table(folder: Path, rows: list[dict] = ROWS) -> Path:
    path = folder / "spans.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def run(shards: str, out: Path, *options: str) -> int:
    return runs.run_inline(shards, out, *COLUMNS, *SAMPLING, *options)


def rows_of(out: Path) -> list[dict]:
    """All committed rows but tokens, by name."""
    parts = [pq.read_table(path) for path in sorted((out / "parts").iterdir())]
    return sorted(
        pa.concat_tables(parts).drop_columns(["tokens"]).to_pylist(), key=lambda r: r["clip_id"]
    )


@pytest.fixture(scope="module")
def shards(tmp_path_factory) -> str:
    return runs.write_shards(tmp_path_factory.mktemp("shards"), 2, 2)


@pytest.fixture(scope="module")
def out(shards, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("spans")
    assert run(shards, folder / "out", f"dataset.spans={table(folder)}") == 0
    return folder / "out"


def test_clips_lie_within_the_spans_of_the_table_and_carry_what_it_says(out) -> None:
    found = {
        (r["key"], r["clip_index"], r["span_index"]): (
            r["start_seconds"],
            r["end_seconds"],
            r["caption"],
            r["short"],
            r["score"],
            r["rank"],
        )
        for r in rows_of(out)
    }
    assert found == {
        ("v000", 0, 0): (0.0, 0.625, "first", None, 0.5, None),
        ("v000", 1, 0): (0.625, 1.25, "first", None, 0.5, None),
        ("v000", 2, 1): (2.0, 2.625, "caption 0", "two", None, None),
        ("v000", 3, 1): (2.625, 3.25, "caption 0", "two", None, None),
        ("v000", 4, 1): (3.25, 3.875, "caption 0", "two", None, None),
        ("v000", 5, 1): (3.875, 4.5, "caption 0", "two", None, None),
        ("v003", 0, 0): (1.0, 1.625, "caption 3", None, None, 7),
    }


def test_what_gave_no_clip_is_counted_by_reason(out) -> None:
    filtered: dict[str, int] = {}
    for path in (out / "receipts").iterdir():
        for reason, number in json.loads(path.read_text())["filtered"].items():
            filtered[reason] = filtered.get(reason, 0) + number
    assert filtered == {"not_in_spans": 1, "span_too_short": 1, "span_beyond_end": 1}


def test_own_columns_are_read_and_filtered_by_the_loader(out) -> None:
    every = TokenDataset(str(out), batch_size=7)
    (batch,) = every
    assert batch["score"].dtype.is_floating_point
    assert batch["score"].isnan().sum() == 5
    assert sorted(batch["rank"], key=str) == [7, *[None] * 6]
    chosen = TokenDataset(
        str(out), batch_size=1, columns=["key", "rank"], filters=[("rank", ">", 3)]
    )
    assert [(b["key"], b["rank"]) for b in chosen] == [(["v003"], [7])]
    with pytest.raises(ValueError, match=r"columns has motion; there are .*short"):
        TokenDataset(str(out), batch_size=1, columns=["motion"])


def test_captions_are_drawn_by_weight_and_dropped_the_same_on_every_rank(out) -> None:
    def drawn(**options: object) -> list[tuple[str, str, str]]:
        made = TokenDataset(
            str(out),
            batch_size=1,
            columns=["clip_id"],
            captions={"caption": 1.0, "short": 1.0},
            seed=3,
            **options,
        )
        return [(made["clip_id"][0], made["caption"][0], made["caption_name"][0]) for made in made]

    alone = drawn()
    assert {text for _, text, _ in alone} <= {"first", "caption 0", "caption 3", "two"}
    assert len({name for _, _, name in alone}) == 2
    ranks = [one for rank in (0, 1) for one in drawn(rank=rank, world_size=2, drop_last=False)]
    assert set(alone) <= set(ranks)
    dropped = drawn(caption_dropout=1.0)
    assert {(text, name) for _, text, name in dropped} == {("", None)}
    with pytest.raises(ValueError, match="captions has license_url; there are caption, license"):
        TokenDataset(str(out), batch_size=1, captions={"license_url": 1.0})


def test_a_run_of_many_segments_and_an_interrupted_one_give_the_same(
    out, shards, tmp_path, monkeypatch
) -> None:
    """A worker dies behind its first receipt; the same command finishes the job."""
    from pipeline import committer

    real, calls = committer.commit, []

    def once(storage, receipt):
        if calls:
            raise RunError("killed")
        calls.append(receipt)
        return real(storage, receipt)

    options = [f"dataset.spans={table(tmp_path)}", "commit.max_clips=1"]
    monkeypatch.setattr(committer, "commit", once)
    with pytest.raises(RunError, match="killed"):
        run(shards, tmp_path / "out", *options)
    monkeypatch.undo()
    assert len(list((tmp_path / "out/receipts").iterdir())) == 1
    assert run(shards, tmp_path / "out", *options) == 0
    assert diff.main([str(out), str(tmp_path / "out")]) == 0


def test_verify_deep_makes_clips_of_spans_again(out, capsys) -> None:
    assert verify.main([str(out), "--deep", "--sample", "7"]) == 0
    assert "7 bit-equal" in capsys.readouterr().out


def test_another_table_is_another_out_and_a_dry_run_counts_it(
    out, shards, tmp_path, capsys
) -> None:
    rows = [*ROWS, {"key": "v002", "start_seconds": 0, "end_seconds": 1}]
    with pytest.raises(FingerprintMismatch, match="spans_sha256"):
        run(shards, out, f"dataset.spans={table(tmp_path, rows)}")
    assert (
        run(shards, tmp_path / "new", f"dataset.spans={tmp_path}/spans.jsonl", "dry_run=true") == 0
    )
    assert "spans: 7 of 5 videos" in capsys.readouterr().out


def test_spans_in_a_samples_json_do_the_same_and_wrong_values_are_quarantined(tmp_path) -> None:
    spans = [{"start_seconds": 0, "end_seconds": 0.7, "short": "s"}, [1, 1.7]]
    samples = []
    for key, record in {
        "good": {"cuts": spans, "score": 1},
        "none": {"score": 1},
        "odd": {"cuts": [[2, 1]]},
        "typed": {"cuts": spans, "license": 4},
    }.items():
        samples += [(f"{key}.mp4", runs.video(1)), (f"{key}.json", json.dumps(record).encode())]
    (tmp_path / "a.tar").write_bytes(runs.tar_bytes(samples))
    out = tmp_path / "out"
    assert run(str(tmp_path / "a.tar"), out, "dataset.spans_key=cuts") == 0
    assert [
        (r["key"], r["span_index"], r["short"], r["score"], r["start_seconds"])
        for r in rows_of(out)
    ] == [("good", 0, "s", 1.0, 0.0), ("good", 1, None, 1.0, 1.0)]
    receipts = [json.loads(path.read_text()) for path in (out / "receipts").iterdir()]
    bad = {one["key"]: one["reason"] for receipt in receipts for one in receipt["quarantined"]}
    assert bad == {"odd": "bad_spans", "typed": "bad_column"}


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["dataset.columns={caption: string}"], "caption is a column already"),
        (
            ["dataset.columns={a: text}"],
            "dataset.columns.a must be one of float, int, bool, string",
        ),
        (["dataset.spans=a.csv", "dataset.spans_key=b"], "not both"),
        (["dataset.spans=a.csv", "sampling.mode=whole"], "for mode=clips"),
        (["dataset.captions=[tokens]"], "dataset.captions: tokens is a column already"),
    ],
)
def test_a_wrong_option_is_named(options, words) -> None:
    with pytest.raises(ConfigError, match=words):
        runs.config("+dataset=tars", "dataset.shards=x.tar", "+tokenizer=demo", *options)
