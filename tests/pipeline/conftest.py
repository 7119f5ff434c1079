"""S3 without the internet: one server for the session, one bucket for each test."""

from __future__ import annotations

import logging
import uuid
from collections.abc import Iterator

import boto3
import pytest
from moto.server import ThreadedMotoServer

from pipeline import backends


@pytest.fixture(scope="session")
def s3_server() -> Iterator[str]:
    """URL of an S3 that lives as long as the session."""
    # Its web server would write each request to whatever stderr was when it wrote the first.
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = ThreadedMotoServer(port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


@pytest.fixture
def s3_endpoint(s3_server: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """The server, where every client of this process looks for S3."""
    for name, value in {
        "AWS_ACCESS_KEY_ID": "testing",
        "AWS_SECRET_ACCESS_KEY": "a-secret-of-the-test",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_ENDPOINT_URL": s3_server,
        "AWS_EC2_METADATA_DISABLED": "true",
    }.items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("AWS_PROFILE", raising=False)
    return s3_server


@pytest.fixture
def bucket(s3_endpoint: str) -> str:
    """Name of an empty bucket."""
    name = f"bucket-{uuid.uuid4().hex[:12]}"
    boto3.client("s3").create_bucket(Bucket=name)
    return name


@pytest.fixture
def hurried(monkeypatch: pytest.MonkeyPatch) -> None:
    """A call to storage is made again as often as ever, without the pauses between."""
    monkeypatch.setattr(backends, "RETRY_SECONDS", (0.01,) * len(backends.RETRY_SECONDS))
