from __future__ import annotations

import itertools
import json
import time
from pathlib import Path

import pytest

from jobs.benchmark import contestants, pipeline, workload
from jobs.benchmark.clock import clocked
from jobs.benchmark.workload import Figures, Job, Setting, repeated
from tests.pipeline import runs


def test_settings_divide_the_cores_in_several_ways() -> None:
    pairs = [(one.decoders, one.threads) for one in pipeline.settings(2)]
    assert pairs == [(1, 1), (2, 1), (2, 2)]
    for cores in (1, 4, 16):
        found = pipeline.settings(cores)
        assert len(set(found)) == len(found)
        assert all(1 <= one.decoders <= cores and 1 <= one.threads <= cores for one in found)


def test_settings_are_read_as_decoders_by_threads(capsys: pytest.CaptureFixture[str]) -> None:
    assert pipeline.read_settings("1x2,3x1") == [
        Setting(decoders=1, threads=2),
        Setting(decoders=3, threads=1),
    ]
    for wrong in ("1", "0x1", "axb", "1x1x1"):
        with pytest.raises(SystemExit):
            pipeline.main(["--settings", wrong])
        assert "argument --settings: " in capsys.readouterr().err


def test_videos_are_taken_in_turn_until_there_are_enough_clips() -> None:
    clips = {Path("a"): 2, Path("b"): 3}
    assert repeated(clips, 8) == [Path("a"), Path("b"), Path("a"), Path("b")]
    assert repeated(clips, 1) == [Path("a")]


def test_a_job_survives_the_command_line() -> None:
    job = Job(contestant="x", folder="f", num_clips=3, setting=Setting(threads=1, decoders=2))
    assert Job.from_json(job.to_json()) == job


def test_the_last_line_of_a_process_holds_its_figures() -> None:
    job = Job(contestant="x", folder="f", num_clips=3, setting=Setting(threads=1, decoders=2))
    assert job.read_figures('a warning\n{"seconds": 1.5}\n') == {"seconds": 1.5}


def test_the_clock_counts_work_and_leaves_waiting_out() -> None:
    with clocked() as waiting:
        time.sleep(0.3)
    with clocked() as working:
        until = time.process_time() + 0.3
        while time.process_time() < until:
            pass
    assert waiting["seconds"] >= 0.3
    # the whole session is counted: what else runs in it may add, never take away
    assert working["cpu_seconds"] >= 0.25


def _runs() -> dict[str, list[Figures]]:
    """All contestants three times at given rates, 100 clips each."""
    rates = {
        "decode alone": 12.0,
        "encode alone": 11.0,
        "both, uncoupled": 10.0,
        "pipeline inline": 9.5,
        "pipeline on Ray": 9.0,
        "same on Ray Data": 8.0,
        "documented Ray Data": 4.0,
    }
    return {
        name: [
            {
                "clips": 100.0,
                "seconds": 100 / (rate * factor),
                "cpu_seconds": 200 / rate,
                "starved_seconds": 0.02 * 100 / (rate * factor),
            }
            for factor in (1.0, 0.5, 1.1)
        ]
        for name, rate in rates.items()
    }


def test_ratios_are_of_medians_and_ours_is_the_better_one() -> None:
    figures = pipeline.conclude(_runs())
    assert figures["efficiency"] == pytest.approx(0.95)
    assert figures["vs_ray_data_same"] == pytest.approx(9.5 / 8)
    assert figures["vs_ray_data_documented"] == pytest.approx(9.5 / 4)
    assert figures["clips_per_second"] == pytest.approx(9.5)
    assert figures["cpu_efficiency"] == pytest.approx(0.95)


def test_targets_are_called_met_or_missed() -> None:
    figures = pipeline.conclude(_runs())
    said = pipeline.verdict(figures | {"efficiency": 0.9})
    assert "0.90" in said
    assert "0.93 missed" in said
    assert "2.00 met" in said


def test_the_report_names_every_contestant_and_where_the_rest_goes() -> None:
    chosen = {name: Setting(threads=1, decoders=2) for name in contestants.CONTESTANTS}
    said = pipeline.report(_runs(), chosen)
    assert all(name in said for name in contestants.CONTESTANTS)
    assert "pipeline inline: +11 ms CPU a clip beside the pieces" in said
    assert "nothing to do 2.0% of the time" in said


def test_options_that_measure_nothing_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    for wrong in ("--rounds 0: must be above 0", "--clips 5: must be at least 20"):
        option, value = wrong.split(":")[0].split()
        with pytest.raises(SystemExit):
            pipeline.main([option, value])
        said = capsys.readouterr().err
        assert option in said
        assert wrong.split(": ")[1] in said


def test_shards_hold_what_they_say(tmp_path: Path) -> None:
    num_clips = workload.write_shards(tmp_path, 20)
    assert num_clips >= 20
    job = Job(
        contestant="pipeline inline",
        folder=str(tmp_path),
        num_clips=num_clips,
        setting=Setting(threads=1, decoders=1),
    )
    assert len(job.shards) == 2
    assert job.warm_up not in job.shards


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_the_whole_benchmark_gives_the_promised_figures(tmp_path: Path) -> None:
    ended = runs.run(
        *("pipeline", "--rounds", "1", "--clips", "24", "--settings", "1x1"),
        *("--json", "figures.json"),
        cwd=tmp_path,
        module="jobs.benchmark",
        timeout_seconds=1100,
    )
    assert ended.returncode == 0, ended.stderr
    figures = json.loads((tmp_path / "figures.json").read_text())
    for name in itertools.chain(pipeline.TARGETS, ["clips_per_second"]):
        assert figures[name] > 0
