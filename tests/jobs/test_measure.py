from __future__ import annotations

import json
from pathlib import Path

from jobs.benchmark.__main__ import BENCHMARKS
from jobs.benchmark.measure import interleave, machine, median, table, write_json

BENCHMARK_FOLDER = Path(__file__).parents[2] / "jobs" / "benchmark"


def test_contestants_take_turns_and_none_is_always_first() -> None:
    order: list[str] = []

    def contestant(name: str):
        def run() -> float:
            order.append(name)
            return float(len(order))

        return run

    figures = interleave({"a": contestant("a"), "b": contestant("b")}, rounds=3)
    assert order == ["a", "b", "b", "a", "a", "b"]
    assert figures == {"a": [1.0, 4.0, 5.0], "b": [2.0, 3.0, 6.0]}


def test_one_outlier_does_not_move_the_median() -> None:
    assert median([1.0, 1.1, 90.0]) == 1.1


def test_a_table_is_aligned() -> None:
    assert (
        table([["", "s"], ["one", "1.5"], ["three", "10.5"]])
        == "          s\none     1.5\nthree  10.5"
    )


def test_figures_are_written_where_asked(tmp_path: Path) -> None:
    write_json(None, {"x": 1})
    write_json(str(tmp_path / "f.json"), {"x": 1.5})
    assert json.loads((tmp_path / "f.json").read_text()) == {"x": 1.5}


def test_the_machine_is_told() -> None:
    assert "cores" in machine()


def test_every_benchmark_named_has_a_file_and_every_file_a_name() -> None:
    shared = {"__init__", "__main__", "measure"}
    files = {path.stem for path in BENCHMARK_FOLDER.glob("*.py")}
    assert set(BENCHMARKS) <= files
    mains = {path.stem for path in BENCHMARK_FOLDER.glob("*.py") if "def main(" in path.read_text()}
    assert mains - shared == set(BENCHMARKS)
