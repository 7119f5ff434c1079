"""Lists the shards of a data set and what storage says of them, before anything is started."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path, PurePosixPath
from typing import Any

from pipeline.backends import is_local, open_filesystem, retried
from pipeline.errors import ConfigError, StorageError
from pipeline.listing import files_below, files_in
from pipeline.reader import Source, folder_source, source_of_entry, tar_source
from pipeline.shards import (
    Shard,
    ShardKind,
    expand_patterns,
    folder_shards,
    normalise_url,
    tar_shards,
)

_REQUESTS_AT_ONCE = 32
_LIST_FROM = 10
"""Tars of one folder from which on the folder is listed instead of asking for each."""
_LOCAL_GROUP = 1000


def list_tars(patterns: Sequence[str], options: Mapping[str, Any]) -> list[Shard]:
    """The tars that patterns name.

    Raises:
        ConfigError: a pattern that cannot be read or matches nothing.
        StorageError: storage did not answer.
    """

    def list_glob(url: str) -> Iterable[str]:
        filesystem, path = open_filesystem(url, options)
        found = retried(url, lambda: filesystem.glob(path))
        return [_with_scheme(filesystem, url, str(name)) for name in found]

    def read_lines(url: str) -> Iterable[str]:
        filesystem, path = open_filesystem(url, options)
        try:
            text: str = retried(url, lambda: filesystem.cat_file(path)).decode("utf-8")
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
    if not retried(url, lambda: filesystem.isdir(root)):
        raise ConfigError(f"dataset.path={path}: no such folder")
    found = [str(name) for name in retried(url, lambda: filesystem.find(root))]
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
    """What storage says of each shard; and, for those that are not there, what it said instead.

    On S3 tars of one folder, and the buckets of one folder, are listed together: one request per
    1,000 objects. Local files are looked at one by one, which costs less than listing them.
    """
    with ThreadPoolExecutor(_REQUESTS_AT_ONCE) as threads:
        looks = [threads.submit(_look, group, options) for group in _groups(shards)]
        answers = {name: answer for look in looks for name, answer in look.result().items()}
    found = {name: answer for name, answer in answers.items() if isinstance(answer, Source)}
    missing = {
        name: answer.message for name, answer in answers.items() if isinstance(answer, StorageError)
    }
    return found, missing


def _groups(shards: Sequence[Shard]) -> Iterator[list[Shard]]:
    """Shards that are looked at together."""
    together: dict[tuple[ShardKind, str], list[Shard]] = {}
    for shard in shards:
        folder = shard.url if shard.kind is ShardKind.folder else shard.url.rsplit("/", 1)[0]
        together.setdefault((shard.kind, folder), []).append(shard)
    for (kind, folder), group in together.items():
        is_remote = "://" in folder
        if is_remote and (kind is ShardKind.folder or len(group) >= _LIST_FROM):
            yield group
        else:
            size = 1 if is_remote else _LOCAL_GROUP
            yield from (group[at : at + size] for at in range(0, len(group), size))


def _look(group: Sequence[Shard], options: Mapping[str, Any]) -> dict[str, Source | StorageError]:
    """What storage says of shards of one kind and folder."""
    first = group[0]
    try:
        filesystem, path = open_filesystem(first.url, options)
        if first.kind is ShardKind.folder:
            files = files_below(filesystem, path, first.url)
            return {shard.name: _or_error(folder_source, shard, files) for shard in group}
        if len(group) == 1 or is_local(filesystem):
            return {shard.name: _or_error(tar_source, shard, filesystem) for shard in group}
        names = {shard.name: shard.url.rsplit("/", 1)[1] for shard in group}
        folder = path.rsplit("/", 1)[0]
        prefix = os.path.commonprefix(list(names.values()))  # noqa: RUF071 (of names, by letter)
        entries = files_in(filesystem, folder, first.url.rsplit("/", 1)[0], prefix=prefix)
    except StorageError as error:
        return dict.fromkeys((shard.name for shard in group), error)
    return {
        shard.name: source_of_entry(entries[names[shard.name]])
        if names[shard.name] in entries
        else StorageError(shard.name, f"{shard.url} is not there")
        for shard in group
    }


def _or_error(look: Callable[..., Source], *arguments: Any) -> Source | StorageError:
    try:
        return look(*arguments)
    except StorageError as error:
        return error


def _with_scheme(filesystem: Any, url: str, path: str) -> str:
    if "://" not in url:
        return str(Path(path))
    return f"{url.split('://')[0]}://{filesystem._strip_protocol(path)}"
