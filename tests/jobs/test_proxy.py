"""The fault-injecting proxy, seen by an S3 client that does not try again."""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import boto3
import botocore.exceptions
import pytest
from botocore.config import Config

from jobs.drill.proxy import Fault, FaultProxy

CONTENT = bytes(range(256)) * 4000
BROKEN = (
    botocore.exceptions.ConnectionClosedError,
    botocore.exceptions.EndpointConnectionError,
    botocore.exceptions.HTTPClientError,
    botocore.exceptions.ResponseStreamingError,
    botocore.exceptions.IncompleteReadError,
)


@pytest.fixture
def proxy(s3_endpoint: str) -> Iterator[FaultProxy]:
    with FaultProxy(s3_endpoint, delay_seconds=0.3, stall_seconds=30) as running:
        yield running


def client(proxy: FaultProxy, *, tries: int = 1, read_timeout: float = 20) -> Any:
    retries = {"total_max_attempts": tries, "mode": "standard"}
    config = Config(retries=retries, connect_timeout=5, read_timeout=read_timeout)
    return boto3.client("s3", endpoint_url=proxy.url, config=config)


def get(s3: Any, bucket: str, key: str = "a") -> bytes:
    body: bytes = s3.get_object(Bucket=bucket, Key=key)["Body"].read()
    return body


def error_code(call: Any, *args: Any, **kwargs: Any) -> str:
    with pytest.raises(botocore.exceptions.ClientError) as caught:
        call(*args, **kwargs)
    return str(caught.value.response["Error"]["Code"])


def test_without_rates_everything_passes_and_is_counted(proxy: FaultProxy, bucket: str) -> None:
    s3 = client(proxy)
    s3.put_object(Bucket=bucket, Key="a", Body=CONTENT)
    s3.put_object(Bucket=bucket, Key="empty", Body=b"")
    assert (get(s3, bucket), get(s3, bucket, "empty")) == (CONTENT, b"")
    ranged = s3.get_object(Bucket=bucket, Key="a", Range="bytes=1000-1999")
    assert ranged["Body"].read() == CONTENT[1000:2000]
    assert s3.head_object(Bucket=bucket, Key="a")["ContentLength"] == len(CONTENT)
    assert s3.list_objects_v2(Bucket=bucket)["KeyCount"] == 2
    assert error_code(s3.get_object, Bucket=bucket, Key="gone") == "NoSuchKey"
    s3.delete_object(Bucket=bucket, Key="a")
    assert proxy.requests == {"PUT": 2, "GET": 4, "HEAD": 1, "LIST": 1, "DELETE": 1}
    assert proxy.faults == {}


@pytest.mark.parametrize(
    ("fault", "code"), [(Fault.slow_down, "SlowDown"), (Fault.internal_error, "InternalError")]
)
def test_a_refused_request_is_not_carried_out(
    proxy: FaultProxy, bucket: str, fault: Fault, code: str
) -> None:
    s3 = client(proxy)
    proxy.force(fault)
    assert error_code(s3.put_object, Bucket=bucket, Key="a", Body=b"1") == code
    assert s3.list_objects_v2(Bucket=bucket)["KeyCount"] == 0
    assert proxy.faults == {fault: 1}


def test_a_dropped_request_is_not_carried_out(proxy: FaultProxy, bucket: str) -> None:
    s3 = client(proxy)
    proxy.force(Fault.drop)
    with pytest.raises(BROKEN):
        s3.put_object(Bucket=bucket, Key="a", Body=CONTENT)
    assert s3.list_objects_v2(Bucket=bucket)["KeyCount"] == 0


def test_a_write_whose_answer_is_lost_was_carried_out(proxy: FaultProxy, bucket: str) -> None:
    s3 = client(proxy)
    proxy.force(Fault.lost_answer)
    assert error_code(s3.get_object, Bucket=bucket, Key="a") == "NoSuchKey", "not for reads"
    with pytest.raises(BROKEN):
        s3.put_object(Bucket=bucket, Key="a", Body=CONTENT)
    assert get(s3, bucket) == CONTENT
    assert proxy.faults == {Fault.lost_answer: 1}


def test_a_conditional_write_whose_answer_is_lost_loses_against_itself(
    proxy: FaultProxy, bucket: str
) -> None:
    proxy.force(Fault.lost_answer)
    put = client(proxy, tries=3).put_object
    assert error_code(put, Bucket=bucket, Key="a", Body=b"1", IfNoneMatch="*") == (
        "PreconditionFailed"
    )


def test_a_cut_answer_is_shorter_than_it_says(proxy: FaultProxy, bucket: str) -> None:
    s3 = client(proxy)
    s3.put_object(Bucket=bucket, Key="a", Body=CONTENT)
    proxy.force(Fault.cut)
    with pytest.raises(BROKEN):
        get(s3, bucket)
    assert get(s3, bucket) == CONTENT


def test_a_delayed_answer_is_whole(proxy: FaultProxy, bucket: str) -> None:
    s3 = client(proxy)
    proxy.force(Fault.delay)
    began = time.monotonic()
    s3.put_object(Bucket=bucket, Key="a", Body=CONTENT)
    assert time.monotonic() - began >= 0.3
    assert get(s3, bucket) == CONTENT


def test_a_stalled_answer_ends_by_the_clients_timeout(proxy: FaultProxy, bucket: str) -> None:
    s3 = client(proxy, read_timeout=0.5)
    s3.put_object(Bucket=bucket, Key="a", Body=CONTENT)
    proxy.force(Fault.stall)
    with pytest.raises((*BROKEN, botocore.exceptions.ReadTimeoutError)):
        get(s3, bucket)
    assert proxy.faults == {Fault.stall: 1}


def test_conditions_are_taken_off_on_demand(s3_endpoint: str, bucket: str) -> None:
    with FaultProxy(s3_endpoint, ignores_conditions=True) as proxy:
        s3 = client(proxy)
        for body in (b"1", b"2"):
            s3.put_object(Bucket=bucket, Key="a", Body=body, IfNoneMatch="*")
        assert get(s3, bucket) == b"2"


def schedule(seed: int) -> list[Fault | None]:
    with FaultProxy(
        "http://127.0.0.1:9", seed=seed, rates={Fault.cut: 0.2, Fault.drop: 0.3}
    ) as proxy:
        return [proxy.draw("GET")[0] for _ in range(400)]


def test_the_schedule_follows_seed_and_rates() -> None:
    drawn = schedule(1)
    assert drawn == schedule(1)
    assert drawn != schedule(2)
    assert 40 < drawn.count(Fault.cut) < 120
    assert 80 < drawn.count(Fault.drop) < 160
    assert set(drawn) == {Fault.cut, Fault.drop, None}


def test_rates_change_while_it_runs(proxy: FaultProxy, bucket: str) -> None:
    s3 = client(proxy)
    proxy.set_rates({Fault.slow_down: 1.0})
    assert error_code(s3.list_objects_v2, Bucket=bucket) == "SlowDown"
    proxy.set_rates({})
    s3.list_objects_v2(Bucket=bucket)
    with pytest.raises(ValueError, match="together at most 1"):
        proxy.set_rates({Fault.cut: 0.6, Fault.drop: 0.6})


def test_many_clients_at_once_get_their_own_answers(proxy: FaultProxy, bucket: str) -> None:
    s3 = client(proxy)
    proxy.set_rates({Fault.slow_down: 0.1, Fault.drop: 0.1})

    def there_and_back(number: int) -> bool:
        content = b"%d" % number * 1000
        while True:
            try:
                s3.put_object(Bucket=bucket, Key=str(number), Body=content)
                return get(s3, bucket, str(number)) == content
            except (*BROKEN, botocore.exceptions.ClientError):
                continue

    with ThreadPoolExecutor(8) as threads:
        assert all(threads.map(there_and_back, range(24)))


def test_a_server_behind_that_is_away_is_a_bad_gateway(s3_endpoint: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as closed:
        nobody = f"http://127.0.0.1:{closed.getsockname()[1]}"
    with FaultProxy(nobody) as proxy:
        assert error_code(client(proxy).head_object, Bucket="b", Key="a") == "502"
