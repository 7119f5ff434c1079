"""The training feed over the clips of the demo: killed, on S3, and with a damaged video."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import boto3
import numpy as np
import pytest

from pipeline.demo import demo_shards
from pipeline.inputs import list_tars
from pipeline.training.clips import TrainingClips
from tests.pipeline.training.consumer import RECIPE, RULES
from tests.pipeline.training.feeds import digests, take


@pytest.fixture(scope="module")
def tars(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    return demo_shards(tmp_path_factory.mktemp("tars"))


def feed_over(tars: list[Path]) -> TrainingClips:
    shards = list_tars([str(path) for path in tars], {})
    return TrainingClips(shards, RECIPE, batch_clips=2, rules=RULES)


def consume(state: Path, number: int, tars: list[Path]) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "tests.pipeline.training.consumer", state, number, *tars]
    return subprocess.Popen([str(word) for word in command], stdout=subprocess.PIPE, text=True)


def test_after_sigkill_the_next_process_goes_on_with_the_next_batch(
    tars: list[Path], tmp_path: Path
) -> None:
    state = tmp_path / "state.json"
    with consume(state, 6, tars) as process:
        assert process.stdout is not None
        for _ in range(2):
            assert process.stdout.readline()
        process.kill()
    with consume(state, 2, tars) as process:
        assert process.wait() == 0
    met = json.loads(state.read_text())["met"]
    assert len(met) >= 4
    assert met == digests(take(feed_over(tars), len(met)))


def test_a_damaged_video_of_the_demo_is_skipped_with_its_reason(
    tars: list[Path], caplog: pytest.LogCaptureFixture
) -> None:
    feed = feed_over(tars)
    batches = take(feed, 7)
    assert np.stack(batches).shape == (7, 2, 5, 32, 32, 3)
    assert all(batch.std() > 10 for batch in batches)
    assert feed.tally.bad["not_a_video"] >= 1
    assert "damaged was skipped: not_a_video: " in caplog.text


def test_s3_gives_the_same_clips_and_continues_a_state_of_local_files(
    tars: list[Path], s3_endpoint: str, bucket: str
) -> None:
    client = boto3.client("s3")
    for path in tars:
        client.upload_file(str(path), bucket, f"data/{path.name}")
    local = feed_over(tars)
    take(local, 2)
    shards = list_tars([f"s3://{bucket}/data/demo-{{00000..00003}}.tar"], {})
    remote = TrainingClips(shards, RECIPE, batch_clips=2, rules=RULES)
    remote.load_state_dict(local.state_dict())
    assert digests(take(remote, 2)) == digests(take(local, 2))
