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
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import IO, Any, TypeVar

from pipeline.backends import (
    error_code,
    is_local,
    is_s3,
    open_filesystem,
    retried,
    storage_errors,
)
from pipeline.errors import StorageError, StorageRefused
from pipeline.listing import Entry, entry_of, files_in
from pipeline.shards import normalise_url

UPLOAD_BYTES = 50 << 20
"""Of one step of an upload to S3; a file of twice as many goes up in several."""

_TEMPORARY = ".tmp-"

T = TypeVar("T")


class Storage:
    """Files below one root, named by relative paths with ``/``."""

    def __init__(
        self, root: str | os.PathLike[str], options: Mapping[str, Any] | None = None
    ) -> None:
        """Open ``root`` (nothing is created yet).

        Args:
            root: a local path or an ``s3://`` URL.
            options: fsspec options; never logged.

        Raises:
            StorageRefused: no such backend.
        """
        self.root = normalise_url(os.fspath(root)).rstrip("/") or "/"
        self._filesystem, self._path = open_filesystem(self.root, options or {})
        self.is_local = is_local(self._filesystem)

    def __str__(self) -> str:
        return self.root

    def path(self, name: str) -> str:
        """Path of a file inside the file system."""
        return f"{self._path.rstrip('/')}/{name}" if name else self._path

    def _call(self, name: str, action: Callable[[], T]) -> T:
        """A call to storage; one over a network is tried again while its failure may pass."""
        place = f"{self.root}/{name}"
        if not self.is_local:
            return retried(place, action)
        with storage_errors(place):
            return action()

    def check_safe_commits(self) -> None:
        """Show that a second conditional create fails here.

        Raises:
            StorageRefused: the backend cannot promise put-if-absent, or cannot be written to.
        """
        if not self.is_local and not is_s3(self._filesystem):
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
        found = files_in(self._filesystem, self.path(folder), f"{self.root}/{folder}")
        return {name: entry for name, entry in found.items() if not name.startswith(_TEMPORARY)}

    def read(self, name: str, *, max_bytes: int | None = None) -> bytes:
        """The whole of a file, or its first ``max_bytes``: then it takes one request, not two.

        Raises:
            FileNotFoundError: there is none.
            StorageError: storage did not answer.
        """
        start = None if max_bytes is None else 0
        return bytes(
            self._call(
                name,
                lambda: self._filesystem.cat_file(self.path(name), start=start, end=max_bytes),
            )
        )

    def read_range(self, name: str, start: int, end: int) -> bytes:
        """Bytes ``[start, end)`` of a file in one request; fewer where it is shorter.

        Raises:
            FileNotFoundError: there is none.
            StorageError: storage did not answer.
        """
        return bytes(
            self._call(
                name, lambda: self._filesystem.cat_file(self.path(name), start=start, end=end)
            )
        )

    def read_into(self, name: str, start: int, target: memoryview) -> int:
        """Fill ``target`` with the bytes from ``start`` on: no copy, and no memory of its own.

        Returns:
            Bytes read; fewer than it has room for where the file is shorter.

        Raises:
            FileNotFoundError: there is none.
            StorageError: storage did not answer.
        """
        if not self.is_local:
            content = self.read_range(name, start, start + len(target))
            target[: len(content)] = content
            return len(content)
        return self._call(name, lambda: _read_into(self.path(name), start, target))

    def read_many(self, names: Sequence[str], *, max_bytes: int | None = None) -> dict[str, bytes]:
        """Several small files, side by side where the backend can; a missing one is left out.

        ``max_bytes`` is as for ``read``; no file may be empty then.

        Raises:
            StorageError: storage did not answer for one of them.
        """
        if not names:
            return {}
        # not cat(), which takes brackets in a path for a glob
        paths = [self.path(name) for name in names]
        start = None if max_bytes is None else 0
        found = self._call(
            "", lambda: self._filesystem.cat_ranges(paths, start, max_bytes, on_error="return")
        )
        contents: dict[str, bytes] = {}
        for name, content in zip(names, found, strict=True):
            if isinstance(content, FileNotFoundError):
                with storage_errors(f"{self.root}/{name}"), contextlib.suppress(FileNotFoundError):
                    raise content  # a missing bucket is no missing file
            elif isinstance(content, BaseException):
                contents[name] = self.read(name, max_bytes=max_bytes)
            else:
                contents[name] = content
        return contents

    def open(self, name: str) -> IO[bytes]:
        """A file opened for reading at any place."""
        opened: IO[bytes] = self._call(name, lambda: self._filesystem.open(self.path(name), "rb"))
        return opened

    def entry(self, name: str) -> Entry:
        """Size, version and age of one file.

        Raises:
            FileNotFoundError: there is none.
        """
        return entry_of(self._call(name, lambda: self._filesystem.info(self.path(name))))

    def put_if_absent(self, name: str, content: bytes) -> bool:
        """Create a file unless there is one of this name; whole or not at all.

        Returns:
            True: this call made it. False: a file of this name is there. After False (also when an
            answer was lost on the way and the call was repeated) read it to learn whose it is.
        """
        if self.is_local:
            with storage_errors(f"{self.root}/{name}"):
                return self._link_if_absent(Path(self.path(name)), content)

        def create() -> bool:
            try:
                self._filesystem.pipe_file(self.path(name), content, mode="create")
            except OSError:
                # s3fs reports a lost race as EINVAL or EBUSY, which other failures share
                if self._filesystem.exists(self.path(name)):
                    return False
                raise
            return True

        return self._call(name, create)

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
        if not self.is_local:
            self._call(name, lambda: self._filesystem.pipe_file(self.path(name), content))
            return
        with storage_errors(f"{self.root}/{name}"):
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
        if self.is_local:
            with storage_errors(f"{self.root}/{name}"):
                self._move(local, name)
            return
        self._call(name, lambda: self._upload(local, name))
        local.unlink()

    def _move(self, local: Path, name: str) -> None:
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

    def _upload(self, local: Path, name: str) -> None:
        """Whole or not at all, also in several parts; an answer may be lost on the way."""
        size, problem = local.stat().st_size, None
        try:
            self._filesystem.put_file(str(local), self.path(name), chunksize=UPLOAD_BYTES)
        except Exception as error:  # noqa: BLE001 (raised below, unless all has arrived)
            problem = error
        with contextlib.suppress(FileNotFoundError):
            if int(self._filesystem.info(self.path(name))["size"]) == size:
                return
        if problem is None or error_code(problem) == "NoSuchUpload":
            raise OSError(f"{size:,} bytes did not arrive whole") from problem
        raise problem

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
        with contextlib.suppress(FileNotFoundError):
            self._call(name, lambda: self._filesystem.rm_file(self.path(name)))


def _read_into(path: str, start: int, target: memoryview) -> int:
    """Of a local file; one call of the system may read less than is asked for."""
    descriptor, filled = os.open(path, os.O_RDONLY), 0
    try:
        while filled < len(target):
            got = os.preadv(descriptor, [target[filled:]], start + filled)
            if not got:
                break
            filled += got
    finally:
        os.close(descriptor)
    return filled


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
