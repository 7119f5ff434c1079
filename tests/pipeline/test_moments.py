"""Mean and standard deviation of latent channels, put together from parts."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from pipeline.ledger import Ledger
from pipeline.moments import LatentMoments, moments_of, moments_of_parts, pooled
from pipeline.receipts import commit
from pipeline.schema import TokenRow
from pipeline.storage import Storage
from pipeline.writer import write_part
from tests.pipeline.fakes import latent_row, row, token_format
from tests.pipeline.receipts import receipt

SHAPES = [(4, 1, 2, 3), (4, 5, 2, 2), (4, 1, 2, 3)]


def latents(seed: int) -> np.ndarray:
    """Mean and log-variance of two channels far from each other and from zero."""
    dice = np.random.default_rng(seed)
    place = np.array([1000.0, -3.0, 7.0, 50.0]).reshape(4, 1, 1, 1)
    return (place + dice.normal(size=SHAPES[seed % 3])).astype(np.float32)


def rows(seeds: range) -> list[TokenRow]:
    return [latent_row(seed, latents(seed)) for seed in seeds]


def expected(seeds: range) -> tuple[np.ndarray, np.ndarray]:
    """By numpy, of all values at once."""
    values = np.concatenate([latents(seed)[:2].reshape(2, -1) for seed in seeds], axis=1)
    return values.mean(1, dtype=np.float64), values.std(1, dtype=np.float64)


def check(found: LatentMoments | None, seeds: range) -> None:
    assert found is not None
    mean, std = expected(seeds)
    np.testing.assert_allclose(found.mean, mean, rtol=1e-12)
    np.testing.assert_allclose(found.std, std, rtol=1e-9)


def test_moments_of_rows_are_those_of_all_their_values() -> None:
    check(moments_of(rows(range(7)), token_format("fp32")), range(7))


def test_indices_have_none() -> None:
    assert moments_of([row(0)], token_format()) is None
    assert moments_of([], token_format("fp32")) is None
    assert moments_of_parts([receipt(part="p", rows=3)]) is None


@pytest.mark.parametrize("cut", [1, 3, 6])
def test_moments_do_not_depend_on_where_parts_are_cut(cut: int) -> None:
    halves = [
        moments_of(rows(seeds), token_format("fp32")) for seeds in (range(cut), range(cut, 7))
    ]
    check(pooled(half for half in halves if half), range(7))


def test_those_of_a_data_set_stand_in_its_manifest(tmp_path: Path) -> None:
    storage = Storage(str(tmp_path / "out"))
    for segment, seeds in enumerate((range(2), range(2, 7))):
        path = tmp_path / "part"
        digest = write_part(path, rows(seeds), token_format("fp32"), row_group_rows=2)
        commit(
            storage,
            receipt(
                segment,
                10 * segment,
                10 * segment + 10,
                part=f"p{segment}",
                rows=digest.rows,
                **digest.receipt_fields(),
            ),
        )
    pinned = Ledger.open(storage).publish(storage)
    assert pinned is not None
    found = moments_of_parts(Ledger.of_manifest(storage, pinned).lines())
    check(found, range(7))
    assert found is not None
    assert found.num_values == sum(latents(seed)[0].size for seed in range(7))
