"""What storage says of its files: sizes, versions, ages.

Folders are listed instead of asking for each file; on S3 that is one request per 1,000 objects.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from pipeline.backends import is_local, is_s3, retried


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """What storage says of one object."""

    size_bytes: int
    """Its length."""
    version: str
    """Changes with the content: an S3 ETag, or the local modification time in nanoseconds."""
    modified_seconds: float
    """When it was last written, by the storage's clock, as seconds since 1970."""


def entry_of(info: Mapping[str, Any]) -> Entry:
    """Read an fsspec ``info`` dict of a local file or an S3 object."""
    modified = info.get("mtime") or info.get("LastModified") or 0.0
    seconds = modified.timestamp() if hasattr(modified, "timestamp") else float(modified)
    version = str(info.get("ETag") or int(seconds * 1e9)).strip('"')
    return Entry(size_bytes=int(info["size"] or 0), version=version, modified_seconds=seconds)


def entry_of_stat(status: os.stat_result) -> Entry:
    """The same of a local file, as ``os.stat`` describes it."""
    return entry_of({"size": status.st_size, "mtime": status.st_mtime})


def look_at(filesystem: Any, url: str) -> Entry:
    """One file, in one request.

    Raises:
        FileNotFoundError: there is none.
        StorageError: storage did not answer.
        StorageRefused: it never will.
    """
    if is_local(filesystem):
        return retried(url, lambda: entry_of_stat(os.stat(url)))  # noqa: PTH116 (100,000 of them)
    return entry_of(retried(url, lambda: filesystem.info(filesystem._strip_protocol(url))))


def files_in(filesystem: Any, folder: str, place: str, *, prefix: str = "") -> dict[str, Entry]:
    """Files directly in a folder, by their bare names; a missing folder is empty.

    Args:
        filesystem: of ``backends.open_filesystem``.
        folder: path inside it.
        place: for messages.
        prefix: only files whose name begins so (S3; elsewhere all are listed).

    Raises:
        StorageError: storage did not answer.
        StorageRefused: it never will.
    """
    if is_local(filesystem):
        return retried(place, lambda: _scan(folder))

    def listing() -> list[Mapping[str, Any]]:
        if prefix and is_s3(filesystem):
            found = filesystem.find(folder, maxdepth=1, prefix=prefix, detail=True)
            return list(found.values())
        return list(filesystem.ls(folder, detail=True))

    try:
        infos = retried(place, listing)
    except (FileNotFoundError, NotADirectoryError):
        return {}
    return {
        name: entry_of(info)
        for info in infos
        if info["type"] == "file" and (name := str(info["name"]).rsplit("/", 1)[-1])
    }


def _scan(folder: str) -> dict[str, Entry]:
    found = {}
    try:
        with os.scandir(folder) as files:
            for file in files:
                try:
                    if file.is_file():
                        found[file.name] = entry_of_stat(file.stat())
                except FileNotFoundError:  # gone meanwhile
                    continue
    except (FileNotFoundError, NotADirectoryError):
        return {}
    return found


def files_below(filesystem: Any, root: str, place: str) -> Callable[[str], Entry | None]:
    """What storage says of a file by its path below a folder, None where there is none.

    One listing in depth; on a local disk each file is looked at when it is asked for.

    Raises:
        StorageError: storage did not answer.
        StorageRefused: it never will.
    """
    if is_local(filesystem):

        def look(name: str) -> Entry | None:
            try:
                return look_at(filesystem, f"{root}/{name}")
            except (FileNotFoundError, NotADirectoryError):
                return None

        return look
    try:
        found = retried(place, lambda: filesystem.find(root, detail=True))
    except FileNotFoundError:
        found = {}
    begin = root.rstrip("/") + "/"
    entries = {str(path).removeprefix(begin): entry_of(info) for path, info in found.items()}
    return entries.get
