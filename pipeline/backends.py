"""What lies behind a URL: its file system, its timeouts, and what its errors mean for the run.

Storage fails in three ways. It is away, busy or cut short: the call is made again, a bounded number
of times with growing pauses and jitter, and then the shard is tried again (``StorageError``). It
says no, or the disk is full: no retry can help, the run stops (``StorageRefused``). Or there is
nothing of that name: only the caller knows what that means (``FileNotFoundError``).
"""

from __future__ import annotations

import contextlib
import errno
import logging
import random
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any, TypeVar

import fsspec

from pipeline.errors import StorageError, StorageRefused
from pipeline.shards import normalise_url

logger = logging.getLogger(__name__)

S3_DEFAULTS: Mapping[str, Any] = {
    "config_kwargs": {
        "connect_timeout": 10,
        "read_timeout": 60,
        # jitter is built in; a lost or refused request is repeated here, a cut body by `retried`
        "retries": {"total_max_attempts": 4, "mode": "standard"},
        "max_pool_connections": 50,
    },
    # A listing cache would hide receipts that another driver wrote a moment ago.
    "use_listings_cache": False,
}
"""Finite timeouts and backoff with jitter for every S3 call; ``storage_options`` go on top."""

RETRY_SECONDS = (0.5, 2.0, 8.0)
"""Pauses between the tries of one call, each times a random factor between 0.5 and 1.5."""

_DISK_FULL = {errno.ENOSPC, errno.EDQUOT}
_REFUSALS = {
    "400",  # all that a HEAD can say of an expired token
    "AccessDenied",
    "AccountProblem",
    "AllAccessDisabled",
    "AuthorizationHeaderMalformed",
    "ExpiredToken",
    "InvalidAccessKeyId",
    "InvalidBucketName",
    "InvalidToken",
    "RequestTimeTooSkewed",
    "SignatureDoesNotMatch",
    "TokenRefreshRequired",
}
"""S3 error codes that no retry changes."""

T = TypeVar("T")


def open_filesystem(url: str, options: Mapping[str, Any]) -> tuple[Any, str]:
    """The fsspec file system of a URL, and the path inside it.

    Raises:
        StorageRefused: no backend for the URL's scheme, or impossible options.
    """
    url = normalise_url(url)
    defaults = S3_DEFAULTS if url.startswith(("s3://", "s3a://")) else {}
    merged = {**defaults, **options}
    if defaults:
        config = {**defaults["config_kwargs"], **options.get("config_kwargs", {})}
        merged["config_kwargs"] = config
    try:
        filesystem, path = fsspec.core.url_to_fs(url, **merged)
    except (ImportError, ValueError, TypeError, KeyError) as error:
        raise StorageRefused(f"cannot open {url}: {error}") from error
    if defaults:
        filesystem.retries = 1  # its own tries have no jitter, and would multiply those made here
    return filesystem, path


def is_s3(filesystem: Any) -> bool:
    """Whether it speaks S3."""
    protocol = filesystem.protocol
    return "s3" in ((protocol,) if isinstance(protocol, str) else protocol)


def is_local(filesystem: Any) -> bool:
    """Whether its files are files of this machine."""
    protocol = filesystem.protocol
    return "file" in ((protocol,) if isinstance(protocol, str) else protocol)


@contextlib.contextmanager
def storage_errors(place: str) -> Iterator[None]:
    """Turn what storage backends raise into the fates above."""
    try:
        yield
    except Exception as error:
        fate = _fate(place, error)
        if fate is None:
            raise
        raise fate from error


def may_pass(error: BaseException) -> bool:
    """Whether another try of the same call makes sense."""
    return isinstance(_fate("", error), StorageError)


def _fate(place: str, error: BaseException) -> StorageError | StorageRefused | None:
    code = error_code(error)
    said = " ".join(str(error).split())
    if code == "NoSuchBucket" or (
        # S3's words where a HEAD or a listing has no code; a path may well hold "bucket"
        isinstance(error, FileNotFoundError) and "bucket does not exist" in said
    ):
        return StorageRefused(f"{place}: {said}")
    if isinstance(error, FileNotFoundError):
        return None
    if isinstance(error, (PermissionError, *_backend_errors("no credentials"))) or (
        code in _REFUSALS
    ):
        named = f" ({code})" if code else ""
        return StorageRefused(f"{place}: access denied or no credentials{named}: {said}")
    if isinstance(error, OSError) and error.errno in _DISK_FULL:
        return StorageRefused(f"{place}: disk full: {said}")
    if isinstance(error, (OSError, *_backend_errors("any"))):
        return StorageError(place, f"{type(error).__name__}: {said}")
    return None


def error_code(error: BaseException) -> str | None:
    """What S3 calls it, where the error came from an answer of S3."""
    for one in (error, error.__cause__):
        response = getattr(one, "response", None)
        if isinstance(response, Mapping):
            return str(response.get("Error", {}).get("Code", "")) or None
    return None


_ERRORS_OF_BACKENDS = {
    "no credentials": (
        ("botocore.exceptions", "NoCredentialsError"),
        ("botocore.exceptions", "PartialCredentialsError"),
        ("botocore.exceptions", "ProfileNotFound"),
    ),
    "any": (
        ("botocore.exceptions", "BotoCoreError"),
        ("botocore.exceptions", "ClientError"),
        ("aiohttp", "ClientError"),
        ("http.client", "HTTPException"),
    ),
}


def _backend_errors(kind: str) -> tuple[type[BaseException], ...]:
    """Error classes of backends: what is not imported has raised nothing."""
    found = (
        getattr(sys.modules.get(module), name, None) for module, name in _ERRORS_OF_BACKENDS[kind]
    )
    return tuple(one for one in found if one is not None)


def pauses() -> Iterator[float]:
    """Seconds to wait before each further try, with jitter."""
    return (seconds * random.uniform(0.5, 1.5) for seconds in RETRY_SECONDS)


def retried(place: str, action: Callable[[], T]) -> T:
    """The result of a call to storage, tried again while its failure may pass.

    Raises:
        StorageError: it failed at every try.
        StorageRefused: it never will succeed.
        FileNotFoundError: nothing of that name.
    """
    for pause in pauses():
        try:
            with storage_errors(place):
                return action()
        except StorageError as error:
            logger.info("%s; again in %.1f s", error, pause)
        time.sleep(pause)
    with storage_errors(place):
        return action()
