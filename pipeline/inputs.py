"""Lists the shards of a data set and what storage says of them, before anything is started."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path, PurePosixPath
from typing import Any

from pipeline.errors import ConfigError, StorageError
from pipeline.reader import Source, source_of
from pipeline.shards import (
    Shard,
    expand_patterns,
    folder_shards,
    normalise_url,
    tar_shards,
)
from pipeline.storage import open_filesystem, storage_errors

_REQUESTS_AT_ONCE = 32


def list_tars(patterns: Sequence[str], options: Mapping[str, Any]) -> list[Shard]:
    """The tars that patterns name.

    Raises:
        ConfigError: a pattern that cannot be read or matches nothing.
        StorageError: storage did not answer.
    """

    def list_glob(url: str) -> Iterable[str]:
        filesystem, path = open_filesystem(url, options)
        with storage_errors(url):
            return [_with_scheme(filesystem, url, str(found)) for found in filesystem.glob(path)]

    def read_lines(url: str) -> Iterable[str]:
        filesystem, path = open_filesystem(url, options)
        try:
            with storage_errors(url):
                text: str = filesystem.cat_file(path).decode("utf-8")
        except (FileNotFoundError, UnicodeDecodeError) as error:
            raise ConfigError(f"dataset.shards: cannot read the list {url}: {error}") from error
        return text.splitlines()

    return tar_shards(expand_patterns(patterns, list_glob=list_glob, read_lines=read_lines))


def list_folder(
    path: str, extensions: frozenset[str], *, num_buckets: int, options: Mapping[str, Any]
) -> list[Shard]:
    """The videos of a folder, in buckets.

    Raises:
        ConfigError: no such folder, or no video in it.
    """
    url = normalise_url(path)
    filesystem, root = open_filesystem(url, options)
    with storage_errors(url):
        if not filesystem.isdir(root):
            raise ConfigError(f"dataset.path={path}: no such folder")
        found = [str(name) for name in filesystem.find(root)]
    videos = [
        name.removeprefix(root.rstrip("/") + "/")
        for name in found
        if PurePosixPath(name).suffix.lstrip(".").lower() in extensions
    ]
    if not videos:
        endings = ", ".join(sorted(extensions))
        raise ConfigError(f"dataset.path={path}: no video there (endings looked for: {endings})")
    return folder_shards(url, videos, num_buckets=num_buckets)


def sources_of(
    shards: Sequence[Shard], options: Mapping[str, Any]
) -> tuple[dict[str, Source], dict[str, str]]:
    """What storage says of each shard; and, for those that are not there, what it said instead."""

    def look(shard: Shard) -> Source | StorageError:
        try:
            return source_of(shard, options)
        except StorageError as error:
            return error

    with ThreadPoolExecutor(_REQUESTS_AT_ONCE) as threads:
        answers = dict(zip((s.name for s in shards), threads.map(look, shards), strict=True))
    found = {name: answer for name, answer in answers.items() if isinstance(answer, Source)}
    missing = {
        name: answer.message for name, answer in answers.items() if isinstance(answer, StorageError)
    }
    return found, missing


def _with_scheme(filesystem: Any, url: str, path: str) -> str:
    if "://" not in url:
        return str(Path(path))
    return f"{url.split('://')[0]}://{filesystem._strip_protocol(path)}"
