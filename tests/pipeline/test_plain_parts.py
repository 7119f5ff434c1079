"""Parts of ``output.packing=plain`` in tools that know nothing of this project."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest

from pipeline.packing import pack_indices
from pipeline.writer import write_part
from tests.pipeline.fakes import SHAPE, indices_of, row, token_format

NUMBERS = range(5)


@pytest.fixture
def part(tmp_path: Path) -> str:
    """Five clips in three row groups."""
    rows = [row(number, tokens=pack_indices(indices_of(number), "i32")) for number in NUMBERS]
    path = tmp_path / "part.parquet"
    write_part(path, rows, token_format("i32"), row_group_rows=2)
    return str(path)


def check(rows: list[dict[str, Any]]) -> None:
    """What anybody would write who has read the table of columns."""
    assert [one["key"] for one in rows] == [f"video_{number}" for number in NUMBERS]
    for number, one in zip(NUMBERS, rows, strict=True):
        assert list(one["token_shape"]) == list(SHAPE)
        tokens = np.frombuffer(one["tokens"], "<i4").reshape(one["token_shape"])
        np.testing.assert_array_equal(tokens, indices_of(number))
        assert one["caption"] == (None if number % 2 else f"caption {number} ü")


def test_pyarrow_reads_them(part: str) -> None:
    check(pq.read_table(part).to_pylist())


def test_pandas_reads_them(part: str) -> None:
    frame = pd.read_parquet(part)
    check(frame.astype(object).where(frame.notna(), None).to_dict("records"))


def test_datasets_reads_them(part: str, tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    found = datasets.Dataset.from_parquet(part, cache_dir=str(tmp_path / "cache"))
    check(list(found))


@pytest.fixture
def ray_data() -> Iterator[Any]:
    """``ray.data`` on a Ray of this test's own."""
    ray = pytest.importorskip("ray")
    data = pytest.importorskip("ray.data")
    ray.init(num_cpus=1, include_dashboard=False, object_store_memory=100 << 20)
    yield data
    ray.shutdown()


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # Ray's, of its own settings
def test_ray_data_reads_them(part: str, ray_data: Any) -> None:
    found = ray_data.read_parquet(part).take_all()
    check(sorted(found, key=lambda one: str(one["key"])))
