"""Weights are fetched once per machine, however many workers start on it at the same moment."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import boto3
import pytest

from jobs.drill.proxy import Fault, FaultProxy

WEIGHTS = bytes(range(256)) * 4096
FETCH = "import sys; from tokenizer.fetch import fetch; print(fetch(sys.argv[1]))"


@pytest.fixture
def proxy(
    s3_endpoint: str, bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[FaultProxy]:
    boto3.client("s3").put_object(Bucket=bucket, Key="a.ckpt", Body=WEIGHTS, ACL="public-read")
    # late, so that all workers ask before the first is served
    with FaultProxy(s3_endpoint, rates={Fault.delay: 1.0}, delay_seconds=0.5) as running:
        monkeypatch.setenv("AWS_ENDPOINT_URL", running.url)
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
        monkeypatch.setenv("no_proxy", "*")
        yield running


@pytest.mark.parametrize(
    ("url", "requests"),
    [("{proxy}/{bucket}/a.ckpt", {"GET": 1}), ("s3://{bucket}/a.ckpt", {"HEAD": 1, "GET": 1})],
    ids=["URL", "object"],
)
def test_four_workers_that_start_at_once_fetch_weights_once(
    proxy: FaultProxy, bucket: str, url: str, requests: dict[str, int]
) -> None:
    url = url.format(proxy=proxy.url, bucket=bucket)
    workers = [
        subprocess.Popen([sys.executable, "-c", FETCH, url], stdout=subprocess.PIPE, text=True)
        for _ in range(4)
    ]
    answers = [worker.communicate(timeout=60)[0] for worker in workers]
    assert [worker.returncode for worker in workers] == [0] * 4
    (path,) = {Path(answer.strip()) for answer in answers}
    assert path.read_bytes() == WEIGHTS
    assert proxy.requests == requests
