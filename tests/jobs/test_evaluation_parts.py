"""What an evaluation is made of: videos' time, places on Ray, the settings of a folder."""

from __future__ import annotations

import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from jobs import evaluate_tokenizer
from jobs.evaluation import pictures
from jobs.evaluation.compose import composed
from pipeline.decode_pictures import Work
from pipeline.errors import ConfigError, FingerprintMismatch, VideoError
from pipeline.records import VideoLimits
from tests.jobs.test_evaluate_tokenizer import TINY

CLIPS = Path(__file__).parents[2] / "pipeline" / "demo_clips"


def test_what_a_model_does_with_pictures_is_not_booked_to_their_video(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A step of the clock stands for a large model's work on the picture before it."""
    clock, added = time.process_time, 0.0
    monkeypatch.setattr(time, "process_time", lambda: clock() + added)
    clip = (CLIPS / "short.mp4").read_bytes()
    number = 0
    for _ in pictures.shown_pictures(clip, VideoLimits(), 30):
        number += 1
        added += 1000.0
    assert number > 10


def test_work_counts_all_of_its_time_but_that_spent_elsewhere(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    now = 5.0
    monkeypatch.setattr(time, "process_time", lambda: now)
    limits = VideoLimits()
    work = Work(limits)
    now += 1
    with work.elsewhere():
        now += 10 * limits.cpu_seconds
    now += 2
    assert work.cpu_seconds == work.new_seconds() == 3
    work.check(1, 100)
    now += limits.cpu_seconds
    with pytest.raises(VideoError, match="too_much_work"):
        work.check(1, 100)


def test_another_limit_in_the_same_folder_is_refused_for_it_decides_which_videos_are_bad(
    tmp_path: Path,
) -> None:
    (tmp_path / "clips").mkdir()
    shutil.copy(CLIPS / "short.mp4", tmp_path / "clips")
    command = ["+dataset=folder", f"dataset.path={tmp_path}/clips", *TINY,
               f"output.root={tmp_path}/out"]  # fmt: skip
    with pytest.raises(ConfigError, match=r"short.*: too_large"):
        evaluate_tokenizer.execute(composed([*command, "limits.video_bytes=1000"]))
    with pytest.raises(FingerprintMismatch, match=r"limits\.video_bytes: 1000 there, "):
        evaluate_tokenizer.execute(composed(command))


CROWDED = """
import time
from types import SimpleNamespace
import ray
from jobs.evaluation import workers
from pipeline import driver
from pipeline.cluster import Cluster
from pipeline.config import ClusterConfig, ClusterKind, Device
from jobs.evaluation.records import JudgeSpec

class Judge(workers.JudgeActor):
    def judge(self, shard):
        time.sleep(0.2)
        return shard.name

def start_ray(address):
    ray.init(address="local", num_cpus=2, include_dashboard=False, object_store_memory=100 << 20)
    return Cluster(nodes=tuple(driver._nodes()))

workers.JudgeActor, driver.start_ray = Judge, start_ray
names = {item: None for item in JudgeSpec.__dataclass_fields__} | {"threads": 1}
cluster = ClusterConfig(kind=ClusterKind.local, num_workers=4, cpus_per_worker=1)
shards = [SimpleNamespace(name=f"s{number}") for number in range(8)]
print(sorted(workers.judged_shards(JudgeSpec(**names), shards, cluster, Device.cpu, print)))
"""


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_more_workers_than_places_on_ray_still_judge_every_shard() -> None:
    crowded = [sys.executable, "-c", CROWDED]
    ended = subprocess.run(crowded, stdout=subprocess.PIPE, text=True, timeout=500, check=True)
    assert ended.stdout.splitlines()[-1] == str([f"s{number}" for number in range(8)])
