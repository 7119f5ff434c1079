"""Checkpoints from elsewhere: a URL becomes a file of the local cache, fetched once per machine.

Nothing is used before it is complete: a download goes to a neighbouring file, is counted and, where
a digest was given, checked, and only then takes its name. A lock makes the other processes of the
machine wait for the first.
"""

import contextlib
import fcntl
import hashlib
import logging
import os
import re
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from tokenizer.errors import CheckpointUnavailable, WrongDigest

logger = logging.getLogger(__name__)

TIMEOUT_SECONDS = 30.0
"""Without any byte; not for the whole file."""
RETRY_SECONDS = (1.0, 5.0)
"""Waits between the tries of a transfer that broke off."""
BLOCK_BYTES = 8 * 2**20

_DIGEST = re.compile(r"^(?P<source>.+)@sha256:(?P<digest>[0-9a-fA-F]{64})$")


def is_url(source: str) -> bool:
    """Whether a checkpoint is to be fetched; paths (and ``file://``) are not."""
    return "://" in source and not source.startswith("file://")


def without_secrets(source: str) -> str:
    """A source as it may be logged: no user, password, query or fragment in a URL."""
    if not is_url(source):
        return source
    parts = urllib.parse.urlsplit(_split_digest(source)[0])
    host = parts.netloc.rpartition("@")[2]
    return urllib.parse.urlunsplit((parts.scheme, host, parts.path, "", ""))


def cache_path(url: str) -> Path:
    """Where the file of a URL lies once fetched, or may be put by hand.

    Below ``$XDG_CACHE_HOME`` (default ``~/.cache``).
    """
    parts = urllib.parse.urlsplit(without_secrets(url))
    names = [urllib.parse.quote(name, safe=" ,+=@") for name in parts.path.split("/")]
    folders = [name for name in (parts.scheme, parts.netloc, *names) if name not in ("", ".", "..")]
    query = urllib.parse.urlsplit(_split_digest(url)[0]).query
    if query:  # may choose among files
        folders.insert(-1, hashlib.sha256(query.encode()).hexdigest()[:16])
    root = os.environ.get("XDG_CACHE_HOME")
    base = Path(root) if root else Path.home() / ".cache"
    return base.joinpath("vidtok-pipeline", *folders)


def fetch(source: str) -> Path:
    """Local file of a checkpoint, downloaded unless it is there already.

    Args:
        source: path, ``file://``, ``http(s)://``, ``hf://owner/repository/path`` or any other URL
            that fsspec knows; with ``@sha256:<hex>`` at its end, the digest of the file is checked
            each time.

    Raises:
        CheckpointUnavailable: it cannot be fetched; says what to get and where to put it.
        WrongDigest: the file is another one.
    """
    plain, digest = _split_digest(source)
    if not is_url(plain):
        path = Path(plain.removeprefix("file://"))
        if digest is not None and path.is_file():
            _check_digest(path, digest, plain)
        return path
    path = cache_path(source)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with _lock(path.with_name(f"{path.name}.lock")):
            if not _is_cached(path, digest):
                _download(plain, path, digest)
    except OSError as error:  # the cache itself; errors of the transfer were named below
        raise _unavailable(plain, str(error), path) from error
    return path


def _split_digest(source: str) -> tuple[str, str | None]:
    match = _DIGEST.match(source)
    return (match["source"], match["digest"].lower()) if match else (source, None)


def _is_cached(path: Path, digest: str | None) -> bool:
    if not path.is_file():
        return False
    if digest is None or file_digest(path) == digest:
        return True
    logger.warning("%s has another digest than asked for: fetching it again", path)
    return False


def _download(url: str, path: Path, digest: str | None) -> None:
    part, shown = path.with_name(f"{path.name}.part"), without_secrets(url)
    logger.info("fetching %s to %s", shown, path)
    try:
        for wait in (*RETRY_SECONDS, None):
            try:
                _transfer(url, part)
                break
            except Exception as error:  # every storage has errors of its own
                problem = _named(error)
                if wait is None or not _may_pass(error):
                    raise _unavailable(url, problem, path) from error
                logger.warning("fetching %s: %s; trying again in %g s", shown, problem, wait)
                time.sleep(wait)
        if digest is not None:
            _check_digest(part, digest, shown)
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


class _BrokenOff(OSError):
    """The transfer had begun."""


def _may_pass(error: BaseException) -> bool:
    """Whether another try makes sense: what the server decided stays so, a busy one may not."""
    if isinstance(error, urllib.error.HTTPError):
        return error.code == 429 or error.code >= 500
    return isinstance(error, (_BrokenOff, ConnectionError))


def _transfer(url: str, part: Path) -> None:
    """Copy what is behind a URL to a file, and count its bytes."""
    with _open(url) as (remote, size), part.open("wb") as local:
        copied = 0
        try:
            while block := remote.read(BLOCK_BYTES):
                local.write(block)
                copied += len(block)
        except Exception as error:  # likewise
            raise _BrokenOff(f"broke off after {copied} bytes: {_named(error)}") from error
        if size is not None and copied != size:
            raise _BrokenOff(f"got {copied} of {size} bytes")
        local.flush()
        os.fsync(local.fileno())


@contextlib.contextmanager
def _open(url: str) -> Iterator[tuple[IO[bytes], int | None]]:
    """The bytes behind a URL, and how many there are, where that is known."""
    scheme = urllib.parse.urlsplit(url).scheme
    if scheme in ("http", "https", "hf"):
        request = urllib.request.Request(_web_address(url))
        token = os.environ.get("HF_TOKEN")
        if scheme == "hf" and token:
            # Not sent on to the host that the file lies on.
            request.add_unredirected_header("Authorization", f"Bearer {token}")
        with urllib.request.urlopen(request, timeout=TIMEOUT_SECONDS) as response:
            length = response.headers.get("Content-Length")
            yield response, int(length) if length else None
    else:
        import fsspec  # object stores and the like; paths and the web do without

        with fsspec.open(url, "rb") as file:
            yield file, getattr(file, "size", None)


def _web_address(url: str) -> str:
    """``hf://owner/repository[@revision]/path`` as the address of its file; others as they are."""
    if not url.startswith("hf://"):
        return url
    owner, repository, *path = url.removeprefix("hf://").split("/")
    repository, _, revision = repository.partition("@")
    endpoint = os.environ.get("HF_ENDPOINT", "https://huggingface.co").rstrip("/")
    file = urllib.parse.quote("/".join(path))
    return f"{endpoint}/{owner}/{repository}/resolve/{revision or 'main'}/{file}"


def _unavailable(url: str, problem: str, path: Path) -> CheckpointUnavailable:
    address = without_secrets(_web_address(url))
    return CheckpointUnavailable(without_secrets(url), problem, address, str(path))


def _named(error: BaseException) -> str:
    if isinstance(error, urllib.error.HTTPError):
        return f"HTTP {error.code} {error.reason}"
    if isinstance(error, urllib.error.URLError):
        return f"no connection ({error.reason})"
    return str(error) or type(error).__name__


@contextlib.contextmanager
def _lock(path: Path) -> Iterator[None]:
    """Held by one process of this machine at a time; let go when the process ends."""
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def file_digest(path: Path) -> str:
    """SHA-256 of what a file holds, as hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _check_digest(path: Path, digest: str, source: str) -> None:
    found = file_digest(path)
    if found != digest:
        raise WrongDigest(source, digest, found)
