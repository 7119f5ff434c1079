"""The choice of the batch size, on measurements as a GPU would give them."""

from __future__ import annotations

import pickle

import pytest

from pipeline.batch_probe import Measured, ProbeResult, choose, probe_batch, try_sizes
from pipeline.errors import RunError
from tests.pipeline.test_encode import spec

Row = tuple[int, float | None, float]


def table(*rows: Row) -> list[Measured]:
    return [
        Measured(batch_clips=size, clips_per_second=rate, memory_fraction=memory)
        for size, rate, memory in rows
    ]


@pytest.mark.parametrize(
    ("rows", "chosen"),
    [
        ([(1, 10.0, 0.1)], 1),
        ([(1, 20.0, 0.1), (2, 35.0, 0.2), (4, 40.0, 0.3), (8, 40.5, 0.6)], 4),
        ([(1, 40.0, 0.1), (2, 39.0, 0.2), (4, 38.0, 0.3)], 1),
        ([(1, 20.0, 0.3), (2, 35.0, 0.6), (4, None, 1.0)], 2),
        ([(1, 20.0, 0.3), (2, 35.0, 0.6), (4, 60.0, 0.95)], 2),
        ([(1, 20.0, 0.1), (2, 20.1, 0.2), (4, 50.0, 0.3)], 4),
    ],
    ids=["one", "knee", "no gain", "out of memory", "too near the limit", "late gain"],
)
def test_the_smallest_batch_near_the_best_rate_is_chosen(rows: list[Row], chosen: int) -> None:
    assert choose(table(*rows)) == chosen


@pytest.mark.parametrize("rows", [[(1, None, 1.0)], [(1, 5.0, 0.9)]])
def test_a_clip_that_does_not_fit_is_an_error_with_a_remedy(rows: list[Row]) -> None:
    with pytest.raises(RunError, match=r"lower sampling\.resolution"):
        choose(table(*rows))


@pytest.mark.parametrize(
    ("rates", "tried"),
    [
        ({1: 10.0, 2: 20.0, 4: 30.0, 8: None, 16: 99.0}, [1, 2, 4, 8]),
        ({1: 10.0, 2: 10.0, 4: 10.0, 8: 99.0}, [1, 2, 4]),
        ({1: 10.0, 2: 10.0, 4: 20.0, 8: 20.0, 16: 20.0, 32: 99.0}, [1, 2, 4, 8, 16]),
        ({1: 10.0, 2: 20.0}, [1, 2]),
    ],
    ids=["does not fit", "two without gain", "one disturbed", "all"],
)
def test_sizes_grow_until_it_makes_no_sense(
    rates: dict[int, float | None], tried: list[int]
) -> None:
    def measure(size: int) -> Measured:
        return Measured(batch_clips=size, clips_per_second=rates[size])

    assert [one.batch_clips for one in try_sizes(measure, tuple(rates))] == tried


def test_a_result_crosses_processes_and_stands_in_a_record() -> None:
    result = ProbeResult(batch_clips=2, device="GPU", measured=tuple(table((2, 1.5, 0.5))))
    assert pickle.loads(pickle.dumps(result)) == result
    measured = {"batch_clips": 2, "clips_per_second": 1.5, "memory_fraction": 0.5}
    assert result.record() == {"batch_clips": 2, "device": "GPU", "measured": (measured,)}


@pytest.mark.gpu
def test_a_gpu_is_measured() -> None:
    result = probe_batch(spec(device="cuda", precision="bf16"))
    assert result.batch_clips in [one.batch_clips for one in result.measured]
    assert result.measured[0].clips_per_second
