"""Later columns find their clips, say which clips they miss, and refuse what is ambiguous."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import boto3
import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
import pytest
import torch

from pipeline.errors import RunError
from pipeline.loading.join import SideTable

IDS = ["s/b@8fps#0", "s/a@8fps#1", "s/ä@8fps#0", "s/\U0001f3ac@8fps#0", "s/\uffee@8fps#0"]
TABLE = pa.table(
    {
        "clip_id": IDS,
        "caption_long": ["b", "a", None, "film", "wide"],
        "score": [0.5, 1.5, 2.5, 3.5, 4.5],
        "rank": [1, 2, 3, 4, 5],
    }
)


def written(table: pa.Table, path: Path) -> str:
    if path.suffix == ".parquet":
        pq.write_table(table, path)
    elif path.suffix == ".csv":
        pyarrow.csv.write_csv(table, path)
    else:
        path.write_text("\n".join(json.dumps(row) for row in table.to_pylist()))
    return str(path)


@pytest.mark.parametrize("kind", ["table", ".parquet", ".csv", ".jsonl"])
def test_every_kind_of_table_is_attached_by_clip_id(tmp_path: Path, kind: str) -> None:
    table = TABLE if kind == "table" else written(TABLE, tmp_path / f"side{kind}")
    side = SideTable(table)
    assert (len(side), side.columns) == (5, ["caption_long", "score", "rank"])
    rows = side.rows([IDS[3], IDS[0], IDS[4], IDS[1], IDS[0]])
    assert rows.column("caption_long").to_pylist() == ["film", "b", "wide", "a", "b"]
    assert rows.column("rank").to_pylist() == [4, 1, 5, 2, 1]
    assert side.num_missing == 0


def test_a_path_without_a_folder_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written(TABLE, tmp_path / "side.csv")
    monkeypatch.chdir(tmp_path)
    assert len(SideTable("side.csv")) == 5


def test_a_table_on_s3_is_read(bucket: str, tmp_path: Path) -> None:
    path = written(TABLE, tmp_path / "side.parquet")
    boto3.client("s3").upload_file(path, bucket, "deep/side.parquet")
    assert len(SideTable(f"s3://{bucket}/deep/side.parquet")) == 5


def test_missing_clips_are_null_and_counted() -> None:
    side = SideTable(TABLE)
    values = side.values(["nobody", IDS[1], ""])
    assert values["caption_long"] == [None, "a", None]
    assert values["rank"] == [None, 2, None]
    assert values["score"].dtype == torch.float64
    assert [math.isnan(score) for score in values["score"].tolist()] == [True, False, True]
    assert values["joined"].tolist() == [False, True, False]
    assert side.num_missing == 2
    side.values(["nobody"])
    assert side.num_missing == 3


def test_types_do_not_depend_on_who_is_missing() -> None:
    side = SideTable(TABLE)
    for ids in (IDS[:2], [IDS[0], "nobody"], ["nobody"]):
        values = side.values(ids)
        assert {name: type(value) for name, value in values.items()} == {
            "caption_long": list, "score": torch.Tensor, "rank": list, "joined": torch.Tensor,
        }  # fmt: skip


@pytest.mark.parametrize("kind", ["table", ".parquet", ".jsonl"])
def test_embeddings_become_one_tensor(tmp_path: Path, kind: str) -> None:
    vectors = [[0.5, 1.0, 2.0], None, [1, 2, 3], [0, 0, 0], [9, 9, 9]]
    table: Any = pa.table({"clip_id": IDS, "embedding": pa.array(vectors, pa.list_(pa.float64()))})
    table = table if kind == "table" else written(table, tmp_path / f"side{kind}")
    embedding = SideTable(table).values([IDS[2], "nobody", IDS[0], IDS[1]])["embedding"]
    assert (embedding.dtype, embedding.shape) == (torch.float32, (4, 3))
    assert embedding[[0, 2]].tolist() == [[1, 2, 3], [0.5, 1, 2]]
    assert embedding[[1, 3]].isnan().all()


def test_lists_of_unequal_length_stay_lists() -> None:
    side = SideTable(pa.table({"clip_id": IDS[:2], "words": [[1, 2], [3]]}))
    assert side.values([IDS[1], IDS[0]])["words"] == [[3], [1, 2]]


def test_ids_of_digits_keep_their_zeros(tmp_path: Path) -> None:
    (tmp_path / "side.csv").write_text("clip_id,caption_long\n0017,a\n17,b\n")
    assert SideTable(str(tmp_path / "side.csv")).values(["0017"])["caption_long"] == ["a"]


def test_every_one_of_many_clips_is_found() -> None:
    ids = [f"s/{number * 7919 % 5000}@8fps#0" for number in range(5000)]
    chunks = pa.chunked_array([ids[:10], [], ids[10:]], type=pa.string())
    side = SideTable(pa.table({"clip_id": chunks, "number": np.arange(5000)}))
    wanted = ids[::13]
    assert side.rows(wanted).column("number").to_pylist() == list(range(0, 5000, 13))


def test_some_columns_may_be_chosen() -> None:
    assert SideTable(TABLE, columns=["rank"]).columns == ["rank"]


REFUSALS = [
    (pa.table({"clip_id": ["b", "a", "b", "b"]}), {}, "2 rows repeat a clip_id, 'b' for one"),
    (pa.table({"id": ["b"]}), {}, "no column clip_id; it has id"),
    (pa.table({"clip_id": pa.array(["b", None])}), {}, "1 rows have no clip_id"),
    (pa.table({"clip_id": [1, 2]}), {}, "clip_id must be text, it is int64"),
    (TABLE, {"columns": ["captions"]}, "no column 'captions'; it has clip_id, caption_long"),
    (TABLE, {"taken": ["tokens", "score"]}, "batches have a 'score' already; rename"),
    (pa.table({"clip_id": ["b"], "joined": [1]}), {}, "batches have a 'joined' already"),
    (pa.Table.from_arrays([pa.array(["b"])] * 3, ["clip_id", "x", "x"]), {}, "two columns .* 'x'"),
]  # fmt: skip


@pytest.mark.parametrize(("table", "options", "said"), REFUSALS)
def test_a_table_that_cannot_be_joined_is_refused(table: pa.Table, options: Any, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        SideTable(table, **options)


def test_a_repeated_clip_in_a_file_is_told_with_the_files_name(tmp_path: Path) -> None:
    (tmp_path / "side.csv").write_text("clip_id,x\nb,1\na,2\nb,3\n")
    with pytest.raises(ValueError, match=r"side\.csv: 1 rows repeat a clip_id, 'b'"):
        SideTable(str(tmp_path / "side.csv"))


def test_an_empty_table_knows_nobody() -> None:
    side = SideTable(pa.table({"clip_id": pa.array([], pa.string()), "x": pa.array([], pa.int8())}))
    assert side.values(["b"])["x"] == [None]


def test_files_that_cannot_be_read_are_named(tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"side\.csv is missing"):
        SideTable(str(tmp_path / "side.csv"))
    (tmp_path / "side.parquet").write_bytes(b"no parquet")
    with pytest.raises(RunError, match=r"side\.parquet cannot be read"):
        SideTable(str(tmp_path / "side.parquet"))
    with pytest.raises(ValueError, match=r"must end in \.parquet, \.csv, \.jsonl"):
        SideTable("side.xlsx")
