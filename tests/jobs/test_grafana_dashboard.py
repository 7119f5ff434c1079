"""The Grafana dashboard, and the metrics endpoint that it shows."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from pipeline.attempts import WorkerReport
from pipeline.counters import Counters
from pipeline.metrics import RUN_METRICS, WORKER_METRICS, Growth, value_of
from pipeline.tally import OutputTally, Tally

DASHBOARD = Path(__file__).parents[2] / "jobs" / "grafana_dashboard.json"
ALL = (*WORKER_METRICS, *RUN_METRICS)

READ_ENDPOINT = """
import logging, sys, time, urllib.request
import ray
ray.init(address="local", include_dashboard=False, num_cpus=1, logging_level=logging.ERROR,
         object_store_memory=100_000_000)
from pipeline.actors import Published, publish_runs
from pipeline.metrics import RUN_METRICS, WORKER_METRICS
from pipeline.tally import Tally
wanted = {metric.exported for metric in (*WORKER_METRICS, *RUN_METRICS)}
worker, run = Published(WORKER_METRICS), publish_runs()
node = ray.nodes()[0]
place = f"http://{node['NodeManagerAddress']}:{node['MetricsExportPort']}/metrics"
until, seen = time.monotonic() + 60, ""
while time.monotonic() < until and not all(f"\\n{name}{{" in seen for name in wanted):
    worker.show({metric.source: 7.0 for metric in WORKER_METRICS})
    run(Tally(num_shards=5, failed={"s": "x"}))
    time.sleep(0.5)
    try:
        seen = "\\n" + urllib.request.urlopen(place, timeout=5).read().decode()
    except OSError:
        continue  # the agent is still starting
sys.stdout.write(seen)
"""


def test_every_metric_of_the_dashboard_is_published() -> None:
    board = json.loads(DASHBOARD.read_text())
    named = {
        name
        for panel in board["panels"]
        for target in panel["targets"]
        for name in re.findall(r"\bray_\w+", target["expr"])
    }
    assert len(named) > 15
    assert named <= {metric.exported for metric in ALL}


def sums_that_are_no_rate(expression: str) -> set[str]:
    """Sums of workers that an expression shows as they are: they vanish with a worker's node."""
    rest = re.sub(r"\b(rate|increase)\([^()]*\)", "", expression)
    return {metric.exported for metric in WORKER_METRICS if metric.is_sum} & set(
        re.findall(r"\bray_\w+", rest)
    )


def test_no_panel_shows_a_sum_that_falls_when_a_node_leaves() -> None:
    board = json.loads(DASHBOARD.read_text())
    wrong = {
        (panel["title"], name)
        for panel in board["panels"]
        for target in panel["targets"]
        for name in sums_that_are_no_rate(target["expr"])
    }
    assert wrong == set()


@pytest.mark.parametrize(
    ("expression", "wrong"),
    [
        ("sum(rate(ray_vidtok_clips_total[1m]))", set()),
        ("increase(ray_vidtok_clips_total[1h]) / max(ray_vidtok_run_shards)", set()),
        ("sum(ray_vidtok_clips_total)", {"ray_vidtok_clips_total"}),
        (
            "(max(ray_vidtok_run_to_cover) - sum(ray_vidtok_covered_total)) "
            "/ sum(rate(ray_vidtok_covered_total[5m]))",
            {"ray_vidtok_covered_total"},
        ),
    ],
)
def test_a_sum_is_found_beside_a_rate_of_it(expression: str, wrong: set[str]) -> None:
    assert sums_that_are_no_rate(expression) == wrong


def test_panels_have_titles_and_do_not_overlap() -> None:
    board = json.loads(DASHBOARD.read_text())
    cells: set[tuple[int, int]] = set()
    for panel in board["panels"]:
        place = panel["gridPos"]
        assert panel["title"]
        assert place["x"] + place["w"] <= 24
        own = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert not own & cells, panel["title"]
        cells |= own
    assert len({panel["id"] for panel in board["panels"]}) == len(board["panels"])


def test_every_metric_shows_something_that_is_counted() -> None:
    counters, record = Counters.__slots__, Tally().record()
    assert [m.source for m in WORKER_METRICS if m.source not in counters] == []
    assert [m.source for m in RUN_METRICS if m.source not in record] == []
    assert len({metric.name for metric in ALL}) == len(ALL)


def test_a_sum_that_begins_anew_has_grown_by_what_it_is() -> None:
    growth, metric = Growth({}), WORKER_METRICS[0]
    assert [growth.of(metric, value) for value in (3.0, 5.0, 5.0, 2.0)] == [3.0, 2.0, 0.0, 2.0]


def test_shards_that_failed_are_counted() -> None:
    failed = next(metric for metric in RUN_METRICS if metric.name.endswith("_failed"))
    assert value_of(failed, Tally(failed={"a": "x", "b": "y"}).record()) == 2.0


def test_what_is_covered_and_quarantined_outlives_a_worker_and_is_each_outputs_own() -> None:
    def report(covered: float, quarantined: float) -> WorkerReport:
        counters = {"covered": covered, "quarantined": quarantined, "decoder_restarts": 1.0}
        return WorkerReport(counters=counters, outputs=(counters, {"covered": 5.0}))

    before = {"quarantined": 3.0}
    tally = Tally(
        to_cover=100,
        before=before,
        outputs=[OutputTally(before=before, to_cover=100), OutputTally(before={}, to_cover=50)],
    )
    gone, at_work = report(40.0, 2.0), report(20.0, 1.0)
    tally.take_reports([gone, at_work])
    shown = {m.name: value_of(m, tally.record()) for m in RUN_METRICS}
    assert shown["vidtok_run_covered"] == 60.0
    assert shown["vidtok_run_to_cover"] == 100.0
    assert shown["vidtok_run_quarantined"] == 6.0
    assert shown["vidtok_run_decoder_restarts"] == 2.0
    second = tally.outputs[1].record()
    assert (second["covered"], second["quarantined"]) == (10.0, 0)


@pytest.mark.slow
@pytest.mark.timeout(180)
def test_the_metrics_stand_on_rays_endpoint_under_their_documented_names() -> None:
    done = subprocess.run(
        [sys.executable, "-c", READ_ENDPOINT], capture_output=True, text=True, timeout=150
    )
    assert done.returncode == 0, done.stderr[-2000:]
    for metric in ALL:
        kind = "counter" if metric.is_sum else "gauge"
        assert f"# TYPE {metric.exported} {kind}" in done.stdout
    values = dict(re.findall(r"^(ray_vidtok_\w+)\{.*\} (\S+)$", done.stdout, re.MULTILINE))
    assert float(values["ray_vidtok_clips_total"]) == 7.0  # shown many times, counted once
    assert float(values["ray_vidtok_run_shards"]) == 5.0
    assert float(values["ray_vidtok_run_shards_failed"]) == 1.0
