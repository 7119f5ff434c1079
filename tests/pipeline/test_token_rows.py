"""Packed tokens of a row group as they lie there: what Arrow reads, or nothing."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.parts import Footer, group_range, table_of_group, token_rows
from pipeline.schema import read_token_format, rows_to_table
from pipeline.writer import digest_part, write_part
from tests.pipeline.fakes import row, token_format
from tests.pipeline.receipts import receipt


def rows_of(path: Path) -> list[tuple[np.ndarray | None, list[bytes]]]:
    """Of each row group of a file: ``token_rows``, and what Arrow reads."""
    content = path.read_bytes()
    metadata = pq.read_metadata(path)
    schema = metadata.schema.to_arrow_schema()
    footer = Footer(
        metadata=metadata, schema=schema, token_format=read_token_format(schema.metadata)
    )
    one = receipt(row_groups=digest_part(content, {}).row_groups)
    found = []
    for group in range(metadata.num_row_groups):
        start, end = group_range(one, group)
        table = table_of_group(footer, one, group, content[start:end], ["tokens"])
        blobs = token_rows(footer, one, group, content[start:end])
        found.append((blobs, table.column("tokens").to_pylist()))
    return found


def noise(sizes: list[int]) -> list:
    dice = np.random.default_rng(0)
    return [row(number, tokens=dice.bytes(size)) for number, size in enumerate(sizes)]


@pytest.mark.parametrize("width", [1, 2, 31, 63, 64, 65, 8191, 8192, 11520])
def test_rows_of_one_size_are_what_arrow_reads(tmp_path: Path, width: int) -> None:
    write_part(tmp_path / "part", noise([width] * 10), token_format(), row_group_rows=4)
    found = rows_of(tmp_path / "part")
    assert [len(read) for _, read in found] == [4, 4, 2]
    for blobs, read in found:
        assert blobs is not None
        assert [one.tobytes() for one in blobs] == read


def test_rows_of_several_sizes_are_left_to_arrow(tmp_path: Path) -> None:
    write_part(tmp_path / "part", noise([5, 6, 5]), token_format(), row_group_rows=4)
    assert [blobs for blobs, _ in rows_of(tmp_path / "part")] == [None]


@pytest.mark.parametrize(
    "how",
    [
        {"compression": "zstd"},
        {"use_dictionary": ["tokens"]},
        {"use_dictionary": False, "column_encoding": {"tokens": "BYTE_STREAM_SPLIT"}},
        {"use_dictionary": False, "data_page_version": "2.0"},
        {"use_dictionary": False, "data_page_size": 1, "write_batch_size": 2},  # many pages
    ],
)  # fmt: skip
def test_other_layouts_are_left_to_arrow(tmp_path: Path, how: dict) -> None:
    table = rows_to_table(noise([100] * 8), token_format())
    pq.write_table(table, tmp_path / "part", **({"compression": "none"} | how))
    ((blobs, read),) = rows_of(tmp_path / "part")
    assert blobs is None
    assert len(read) == 8


def test_rows_that_may_be_missing_are_left_to_arrow(tmp_path: Path) -> None:
    table = rows_to_table(noise([100] * 8), token_format())
    at = table.schema.get_field_index("tokens")
    table = table.cast(table.schema.set(at, pa.field("tokens", pa.binary(100), nullable=True)))
    pq.write_table(table, tmp_path / "part", compression="none", use_dictionary=False)
    assert [blobs for blobs, _ in rows_of(tmp_path / "part")] == [None]
