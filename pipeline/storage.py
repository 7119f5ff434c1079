"""One place to read from and write to: a local folder or an S3 prefix, behind five verbs.

The only promise that the commit protocol needs beyond plain files is *put-if-absent*: of all
writers of one name exactly one wins, and no reader ever sees half of it. Local: a synced temporary
file and ``os.link``. S3: a conditional write. fsspec's generic "create" is exists-then-write, so
other backends are refused as output. All failures leave here as errors of ``pipeline.errors``.
"""

from __future__ import annotations

import contextlib
import errno
import os
import uuid
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import fsspec

from pipeline.errors import StorageError, StorageRefused
from pipeline.shards import normalise_url

S3_DEFAULTS: Mapping[str, Any] = {
    "config_kwargs": {
        "connect_timeout": 10,
        "read_timeout": 60,
        "retries": {"max_attempts": 6, "mode": "adaptive"},
        "max_pool_connections": 50,
    },
    # A listing cache would hide receipts that another driver wrote a moment ago.
    "use_listings_cache": False,
}
"""Finite timeouts and backoff with jitter for every S3 call; ``storage_options`` go on top."""

_DISK_FULL = {errno.ENOSPC, errno.EDQUOT}
_TEMPORARY = ".tmp-"


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """What storage says of one object."""

    size_bytes: int
    """Its length."""
    version: str
    """Changes with the content: an S3 ETag, or the local modification time in nanoseconds."""
    modified_seconds: float
    """When it was last written, by the storage's clock, as seconds since 1970."""


def open_filesystem(url: str, options: Mapping[str, Any]) -> tuple[Any, str]:
    """The fsspec file system of a URL, and the path inside it.

    Raises:
        StorageRefused: no backend for the URL's scheme, or impossible options.
    """
    url = normalise_url(url)
    merged = dict(S3_DEFAULTS) if url.startswith(("s3://", "s3a://")) else {}
    merged.update(options)
    try:
        filesystem, path = fsspec.core.url_to_fs(url, **merged)
    except (ImportError, ValueError, TypeError, KeyError) as error:
        raise StorageRefused(f"cannot open {url}: {error}") from error
    return filesystem, path


@contextlib.contextmanager
def storage_errors(place: str) -> Iterator[None]:
    """Turn what storage backends raise into the two fates: try again, or stop the run.

    ``FileNotFoundError`` passes through, as only the caller knows whether it is a failure.
    """
    denied, failed = _backend_errors()
    try:
        yield
    except FileNotFoundError as error:
        if "bucket does not exist" in str(error):  # S3's words; a path may well hold "bucket"
            raise StorageRefused(f"{place}: {error}") from error
        raise
    except denied as error:
        raise StorageRefused(f"{place}: access denied or no credentials: {error}") from error
    except failed as error:
        if isinstance(error, OSError) and error.errno in _DISK_FULL:
            raise StorageRefused(f"{place}: disk full: {error}") from error
        raise StorageError(place, f"{type(error).__name__}: {error}") from error


def _backend_errors() -> tuple[tuple[type[Exception], ...], tuple[type[Exception], ...]]:
    """What says that access is denied, and what says that storage failed."""
    denied: tuple[type[Exception], ...] = (PermissionError,)
    failed: tuple[type[Exception], ...] = (OSError, TimeoutError)
    try:
        from botocore import exceptions
    except ModuleNotFoundError:  # no S3 here, so none of its errors
        return denied, failed
    denied += (exceptions.NoCredentialsError, exceptions.PartialCredentialsError)
    return denied, (*failed, exceptions.BotoCoreError)


class Storage:
    """Files below one root, named by relative paths with ``/``."""

    def __init__(self, root: str, options: Mapping[str, Any] | None = None) -> None:
        """Open ``root`` (nothing is created yet).

        Args:
            root: a local path or an ``s3://`` URL.
            options: fsspec options; never logged.

        Raises:
            StorageRefused: no such backend.
        """
        self.root = normalise_url(root).rstrip("/") or "/"
        self._filesystem, self._path = open_filesystem(self.root, options or {})
        protocol = self._filesystem.protocol
        self._protocols = {protocol} if isinstance(protocol, str) else set(protocol)
        self.is_local = "file" in self._protocols

    def __str__(self) -> str:
        return self.root

    def path(self, name: str) -> str:
        """Path of a file inside the file system."""
        return f"{self._path.rstrip('/')}/{name}" if name else self._path

    def check_safe_commits(self) -> None:
        """Show that a second conditional create fails here.

        Raises:
            StorageRefused: the backend cannot promise put-if-absent, or cannot be written to.
        """
        if not self.is_local and "s3" not in self._protocols:
            raise StorageRefused(
                f"output.root={self.root}: no safe commit on this storage (its conditional create "
                "is exists-then-write); use a local path or s3://"
            )
        name = f"progress/probe-{uuid.uuid4().hex}"
        try:
            first = self.put_if_absent(name, b"probe")
            second = self.put_if_absent(name, b"probe")
        except (StorageError, FileNotFoundError) as error:
            raise StorageRefused(f"output.root={self.root} cannot be written: {error}") from error
        finally:
            with contextlib.suppress(StorageError, StorageRefused):  # what put said is what matters
                self.delete(name)
        if not first or second:
            raise StorageRefused(f"output.root={self.root}: its conditional create does not hold")

    def entries(self, folder: str) -> dict[str, Entry]:
        """All files directly in ``folder``, by their bare names; a missing folder is empty.

        Raises:
            StorageError: storage did not answer.
            StorageRefused: it never will.
        """
        with storage_errors(f"{self.root}/{folder}"):
            try:
                listing = self._filesystem.ls(self.path(folder), detail=True)
            except (FileNotFoundError, NotADirectoryError):
                return {}
        found = {}
        for info in listing:
            name = str(info["name"]).rsplit("/", 1)[-1]
            if info["type"] == "file" and name and not name.startswith(_TEMPORARY):
                found[name] = entry_of(info)
        return found

    def read(self, name: str) -> bytes:
        """The whole of a file.

        Raises:
            FileNotFoundError: there is none.
            StorageError: storage did not answer.
        """
        with storage_errors(f"{self.root}/{name}"):
            return bytes(self._filesystem.cat_file(self.path(name)))

    def read_many(self, names: Sequence[str]) -> dict[str, bytes]:
        """Several small files, side by side where the backend can; a missing one is left out.

        Raises:
            StorageError: storage did not answer for one of them.
        """
        if not names:
            return {}
        with storage_errors(self.root):
            # not cat(), which takes brackets in a path for a glob
            paths = [self.path(name) for name in names]
            found = self._filesystem.cat_ranges(paths, None, None, on_error="return")
        contents: dict[str, bytes] = {}
        for name, content in zip(names, found, strict=True):
            if isinstance(content, BaseException):
                with storage_errors(f"{self.root}/{name}"), contextlib.suppress(FileNotFoundError):
                    raise content
            else:
                contents[name] = content
        return contents

    def open(self, name: str) -> IO[bytes]:
        """A file opened for reading at any place."""
        with storage_errors(f"{self.root}/{name}"):
            opened: IO[bytes] = self._filesystem.open(self.path(name), "rb")
            return opened

    def entry(self, name: str) -> Entry:
        """Size, version and age of one file.

        Raises:
            FileNotFoundError: there is none.
        """
        with storage_errors(f"{self.root}/{name}"):
            return entry_of(self._filesystem.info(self.path(name)))

    def put_if_absent(self, name: str, content: bytes) -> bool:
        """Create a file unless there is one of this name; whole or not at all.

        Returns:
            True: this call made it. False: a file of this name is there. After False (also when an
            answer was lost on the way and the call was repeated) read it to learn whose it is.
        """
        with storage_errors(f"{self.root}/{name}"):
            if self.is_local:
                return self._link_if_absent(Path(self.path(name)), content)
            try:
                self._filesystem.pipe_file(self.path(name), content, mode="create")
            except OSError:
                # s3fs reports a lost race as EINVAL or EBUSY, which other failures share
                if self._filesystem.exists(self.path(name)):
                    return False
                raise
            return True

    @staticmethod
    def _link_if_absent(target: Path, content: bytes) -> bool:
        """An O_EXCL open would leave a torn file after a kill: link a synced one instead."""
        target.parent.mkdir(parents=True, exist_ok=True)
        temporary = target.with_name(f"{_TEMPORARY}{uuid.uuid4().hex}")
        try:
            _write_synced(temporary, content)
            try:
                os.link(temporary, target)
            except FileExistsError:
                return False
            _sync_folder(target.parent)
            return True
        finally:
            temporary.unlink(missing_ok=True)

    def put(self, name: str, content: bytes) -> None:
        """Write or replace a small file; readers see the old or the new one."""
        with storage_errors(f"{self.root}/{name}"):
            if not self.is_local:
                self._filesystem.pipe_file(self.path(name), content)
                return
            target = Path(self.path(name))
            target.parent.mkdir(parents=True, exist_ok=True)
            temporary = target.with_name(f"{_TEMPORARY}{uuid.uuid4().hex}")
            try:
                _write_synced(temporary, content)
                temporary.replace(target)
            finally:
                temporary.unlink(missing_ok=True)

    def publish(self, local: Path, name: str) -> None:
        """Move a finished local file to ``name``, whole or not at all.

        Raises:
            StorageError: it did not arrive in its full size.
        """
        size = local.stat().st_size
        with storage_errors(f"{self.root}/{name}"):
            if self.is_local:
                target = Path(self.path(name))
                target.parent.mkdir(parents=True, exist_ok=True)
                with local.open("rb") as file:
                    os.fsync(file.fileno())
                try:
                    local.replace(target)
                except OSError as error:
                    if error.errno != errno.EXDEV:
                        raise
                    self.put(name, local.read_bytes())
                    local.unlink()
                _sync_folder(target.parent)
                return
            self._filesystem.put_file(str(local), self.path(name))
        arrived = self.entry(name).size_bytes
        if arrived != size:
            raise StorageError(f"{self.root}/{name}", f"{arrived} of {size} bytes arrived")
        local.unlink()

    def scratch(self, fallback: Path) -> Path:
        """Folder for files to be published: on the same disk when local, else ``fallback``."""
        folder = (
            Path(self.path("parts")) / f"{_TEMPORARY}{uuid.uuid4().hex}"
            if self.is_local
            else fallback
        )
        with storage_errors(self.root):
            folder.mkdir(parents=True, exist_ok=True)
        return folder

    def delete(self, name: str) -> None:
        """Remove a file; one that is not there is no failure."""
        with storage_errors(f"{self.root}/{name}"), contextlib.suppress(FileNotFoundError):
            self._filesystem.rm_file(self.path(name))


def entry_of(info: Mapping[str, Any]) -> Entry:
    """Read an fsspec ``info`` dict of a local file or an S3 object."""
    modified = info.get("mtime") or info.get("LastModified") or 0.0
    seconds = modified.timestamp() if hasattr(modified, "timestamp") else float(modified)
    version = str(info.get("ETag") or int(seconds * 1e9)).strip('"')
    return Entry(size_bytes=int(info["size"] or 0), version=version, modified_seconds=seconds)


def _write_synced(path: Path, content: bytes) -> None:
    with path.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
