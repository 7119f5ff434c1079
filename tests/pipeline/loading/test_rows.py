"""Loaded row groups: what stands in for a corrupt one has a row for each of its places."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from pipeline.errors import CorruptPart
from pipeline.loading.fetch import Rows
from pipeline.loading.order import Order
from pipeline.loading.rows import load_group
from tests.pipeline.fakes import token_format


class FakeGroup:
    def __init__(self, name: str, rows: int) -> None:
        self.name, self.rows = name, rows

    def __str__(self) -> str:
        return self.name


class FakeKind:
    """Row groups of 7 (corrupt), 3 and 12 rows; of some only these rows."""

    def __init__(self, selected: Sequence[int] | None) -> None:
        self.groups = [FakeGroup("broken", 7), FakeGroup("small", 3), FakeGroup("large", 12)]
        rows = None if selected is None else np.array(selected)
        self.rows = [None if rows is None else rows[rows < group.rows] for group in self.groups]


class FakeFetch:
    def __init__(self, *corrupt: str) -> None:
        self.corrupt = corrupt

    def rows(self, group: FakeGroup, columns: Any) -> Rows:
        if group.name in self.corrupt:
            raise CorruptPart(group.name)
        blobs = np.arange(4 * group.rows, dtype=np.uint8).reshape(group.rows, 4)
        return Rows(token_format=token_format(), table=pa.table({}), blobs=blobs)


@pytest.mark.parametrize("are_alike", [True, False])
def test_only_the_selected_rows_stay_in_memory(are_alike: bool) -> None:
    blobs: Any = np.arange(48, dtype=np.uint8).reshape(12, 4)
    blobs = blobs if are_alike else list(blobs)
    table = pa.table({"key": [f"clip {row}" for row in range(12)]})

    class OneGroup:
        def rows(self, group: FakeGroup, columns: Any) -> Rows:
            return Rows(token_format=token_format(), table=table, blobs=blobs)

    fetch: Any = OneGroup()
    kind: Any = FakeKind([1, 5, 11])
    order = Order([2, 1, 3], num_streams=1, key=3)
    loaded = load_group(fetch, kind, order, 2, ["tokens", "key"], replace=False)
    assert [blob.tolist() for blob in loaded.blobs] == [
        list(range(4 * n, 4 * n + 4)) for n in (1, 5, 11)
    ]
    assert loaded.values == {"key": ["clip 1", "clip 5", "clip 11"]}
    assert sorted(loaded.order) == [0, 1, 2]
    owners = [loaded.blobs] if are_alike else loaded.blobs
    assert all(owner.flags.owndata for owner in owners), "a view keeps all twelve"


@pytest.mark.parametrize("selected", [None, [0, 2, 4, 6]])
@pytest.mark.parametrize(("stands_in", "corrupt"), [("small", "large"), ("large", "small")])
def test_a_substitute_has_a_row_for_every_place_and_repeats_where_it_has_fewer(
    stands_in: str, corrupt: str, selected: list[int] | None
) -> None:
    kind: Any = FakeKind(selected)
    order = Order([7, 3, 12], num_streams=2, key=3)
    fetch: Any = FakeFetch("broken", corrupt)
    loaded = load_group(fetch, kind, order, 0, ["tokens"], replace=True)
    other = load_group(
        fetch, kind, order, ["broken", "small", "large"].index(stands_in), [], replace=False
    )
    places = 7 if selected is None else 4
    assert loaded.is_replaced
    assert not other.is_replaced
    assert loaded.order == [other.order[at % len(other.order)] for at in range(places)]
    assert bytes(loaded.flat) == loaded.blobs.tobytes() == other.blobs.tobytes()
    assert loaded.row_bytes == 4
