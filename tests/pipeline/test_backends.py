"""What the errors of storage backends mean for a run, and what is made again."""

from __future__ import annotations

import errno
import itertools
import subprocess
import sys
from pathlib import Path

import aiohttp
import botocore.exceptions
import pytest
from s3fs.errors import translate_boto_error

from pipeline import backends
from pipeline.backends import may_pass, retried, storage_errors
from pipeline.errors import StorageError, StorageRefused
from tests.pipeline.tars import tar_bytes, three_samples


def said_by_s3(code: str) -> Exception:
    """As it leaves s3fs."""
    answer = {"Error": {"Code": code, "Message": "in two\nlines"}}
    error: Exception = translate_boto_error(botocore.exceptions.ClientError(answer, "GetObject"))
    return error


@pytest.mark.parametrize(
    ("code", "fate"),
    [
        *((code, StorageError) for code in ("SlowDown", "InternalError", "ServiceUnavailable")),
        *((code, StorageError) for code in ("RequestTimeout", "500", "503", "Unheard")),
        *((code, StorageRefused) for code in sorted(backends._REFUSALS)),
        *((code, StorageRefused) for code in ("403", "NoSuchBucket")),
        *((code, FileNotFoundError) for code in ("NoSuchKey", "404")),
    ],
)
def test_an_answer_of_s3_has_this_fate(code: str, fate: type[Exception]) -> None:
    with pytest.raises(fate) as caught, storage_errors("place"):
        raise said_by_s3(code)
    assert may_pass(said_by_s3(code)) == (fate is StorageError)
    if fate is not FileNotFoundError:
        assert "\n" not in str(caught.value)
        assert str(caught.value).startswith("place")


@pytest.mark.parametrize(
    ("error", "fate"),
    [
        (botocore.exceptions.NoCredentialsError(), StorageRefused),
        (botocore.exceptions.ProfileNotFound(profile="p"), StorageRefused),
        (botocore.exceptions.ReadTimeoutError(endpoint_url="u"), StorageError),
        (botocore.exceptions.ConnectionClosedError(endpoint_url="u"), StorageError),
        (aiohttp.ClientPayloadError("cut"), StorageError),
        (TimeoutError(), StorageError),
        (OSError(errno.ENOSPC, "full"), StorageRefused),
        (OSError(errno.EDQUOT, "full"), StorageRefused),
        (KeyError("a mistake of ours"), KeyError),
    ],
)
def test_an_error_without_an_answer_has_this_fate(error: Exception, fate: type[Exception]) -> None:
    with pytest.raises(fate), storage_errors("place"):
        raise error


def test_a_call_is_made_again_a_bounded_number_of_times(
    monkeypatch: pytest.MonkeyPatch, hurried: None
) -> None:
    calls = itertools.count(1)

    def fails() -> None:
        next(calls)
        raise said_by_s3("SlowDown")

    with pytest.raises(StorageError):
        retried("place", fails)
    assert next(calls) == 1 + 1 + len(backends.RETRY_SECONDS)


def test_pauses_grow_and_differ() -> None:
    first, second = list(backends.pauses()), list(backends.pauses())
    assert first != second, "workers that failed together do not come back together"
    assert first == sorted(first)
    assert sum(first) < 60


@pytest.mark.parametrize("error", [said_by_s3("AccessDenied"), said_by_s3("NoSuchKey")])
def test_what_no_retry_changes_is_not_tried_again(error: Exception) -> None:
    calls = itertools.count()

    def refused() -> None:
        next(calls)
        raise error

    with pytest.raises((StorageRefused, FileNotFoundError)):
        retried("place", refused)
    assert next(calls) == 1


WITHOUT_S3 = """
import sys
sys.modules |= dict.fromkeys(["s3fs", "botocore", "aiobotocore", "aiohttp", "boto3"])
from pipeline.errors import StorageRefused
from pipeline.inputs import list_tars, sources_of
from pipeline.reader import read_shard
from pipeline.storage import Storage
from tests.pipeline.tars import read
shards = list_tars([sys.argv[1] + "/*.tar"], {})
assert len(sources_of(shards, {})[0]) == 1
assert len(read(shards[0])[0]) == 3
storage = Storage(sys.argv[1] + "/out")
storage.check_safe_commits()
assert storage.entries("nowhere") == {}
try:
    Storage("s3://bucket/out")
except StorageRefused as refusal:
    print(refusal)
"""


def test_local_disks_need_no_s3_library(tmp_path: Path) -> None:
    (tmp_path / "a.tar").write_bytes(tar_bytes(three_samples()))
    said = subprocess.run(
        [sys.executable, "-c", WITHOUT_S3, str(tmp_path)],
        capture_output=True,
        text=True,
        check=True,
    )
    assert "s3fs" in said.stdout
