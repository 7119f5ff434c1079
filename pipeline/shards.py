"""Names and lists of shards: which inputs a run reads and what they are called in OUT.

Pure: listing a bucket or a folder is handed in as a function. A shard's name comes from its URL
alone, never from its position in a list, so that it stays the same when the list grows.
"""

from __future__ import annotations

import enum
import hashlib
import os
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from braceexpand import braceexpand

from pipeline.errors import ConfigError

MAX_SHARDS = 10_000_000
"""More than this from one pattern is taken for a typing error."""

_SCHEME = re.compile(r"^[a-z][a-z0-9+.-]*://")
_GLOB = re.compile(r"[*?\[]")
_COMMENT = re.compile(r"(^|\s)#.*")
_RANGE = re.compile(r"\{(-?\d+)\.\.(-?\d+)")


class ShardKind(enum.Enum):
    """How the videos of a shard are stored."""

    tar = "tar"
    folder = "folder"


@dataclass(frozen=True, slots=True, kw_only=True)
class Shard:
    """One input tar, or one stable hash bucket of a folder."""

    name: str
    """Name in OUT: readable, stable, unique; safe as part of a file name."""
    url: str
    """The tar, or the folder."""
    kind: ShardKind
    """tar or folder."""
    members: tuple[str, ...] = ()
    """folder only: paths of the videos below ``url``, sorted."""


def normalise_url(text: str) -> str:
    """Absolute path of a local file (``file://`` taken off), any other URL as it stands.

    Raises:
        ConfigError: ``pipe:`` commands, which would run a shell.
    """
    if text.startswith("pipe:"):
        raise ConfigError(
            f"dataset.shards: pipe: commands are not run, got {text!r}; give a path or URL"
        )
    if text.startswith("file://"):
        text = text.removeprefix("file://")
    if _SCHEME.match(text):
        return text
    return os.path.abspath(Path(text).expanduser())  # noqa: PTH100 (no links followed)


def shard_name(url: str) -> str:
    """``<stem>-<12 hex digits of the URL's SHA-256>``.

    >>> shard_name("s3://bucket/webvid/00017.tar")
    '00017-a89927196642'
    """
    stem = PurePosixPath(url).name.split(".")[0]
    readable = re.sub(r"[^A-Za-z0-9_-]+", "_", stem)[:60] or "shard"
    digest = hashlib.sha256(url.encode("utf-8", "surrogateescape")).hexdigest()
    return f"{readable}-{digest[:12]}"


def expand_patterns(
    patterns: Sequence[str],
    *,
    list_glob: Callable[[str], Iterable[str]],
    read_lines: Callable[[str], Iterable[str]],
) -> list[str]:
    """URLs of all shards, each once, in the order given; a glob's matches are sorted.

    Args:
        patterns: paths or URLs, with brace ranges (``{000..127}``), globs (``*?[]``), or ``@file``
            for a text file with one pattern a line (``#`` after a blank starts a comment).
        list_glob: URLs that match a glob.
        read_lines: lines of a text file.

    Raises:
        ConfigError: a pattern that cannot be read or that matches nothing.
    """
    found: dict[str, None] = {}
    for pattern in patterns:
        if pattern.startswith("@"):
            given = read_lines(normalise_url(pattern[1:]))
            lines = [_COMMENT.sub("", line).strip() for line in given]
            if any(line.startswith("@") for line in lines):
                raise ConfigError(f"dataset.shards: {pattern} names another @file; one level only")
            inner = expand_patterns(
                [line for line in lines if line], list_glob=list_glob, read_lines=read_lines
            )
            found.update(dict.fromkeys(inner))
            continue
        for text in _braces(pattern):
            url = normalise_url(text)
            urls = sorted(list_glob(url)) if _GLOB.search(url) else [url]
            if not urls:
                raise ConfigError(f"dataset.shards: nothing matches {url!r}")
            found.update(dict.fromkeys(urls))
            if len(found) > MAX_SHARDS:
                raise _too_many(pattern)
    return list(found)


def _too_many(pattern: str) -> ConfigError:
    return ConfigError(f"dataset.shards: {pattern!r} gives more than {MAX_SHARDS:,} shards")


def _braces(pattern: str) -> Iterable[str]:
    # braceexpand builds every range as a list before it yields the first text
    for first, last in _RANGE.findall(pattern):
        if abs(int(last) - int(first)) >= MAX_SHARDS:
            raise _too_many(pattern)
    try:
        return braceexpand(pattern) if "{" in pattern else [pattern]
    except ValueError as error:
        raise ConfigError(f"dataset.shards: cannot expand {pattern!r}: {error}") from error


def tar_shards(urls: Iterable[str]) -> list[Shard]:
    """One shard per tar.

    Raises:
        ConfigError: two URLs with one name.
    """
    shards = [Shard(name=shard_name(url), url=url, kind=ShardKind.tar) for url in urls]
    by_name: dict[str, str] = {}
    for shard in shards:
        if by_name.setdefault(shard.name, shard.url) != shard.url:
            raise ConfigError(f"{shard.url} and {by_name[shard.name]} share the name {shard.name}")
    return shards


def folder_shards(url: str, files: Iterable[str], *, num_buckets: int) -> list[Shard]:
    """Videos of a folder in ``num_buckets`` buckets by the hash of their path; empty ones left out.

    A file stays in its bucket whatever else is added to the folder.
    """
    buckets: dict[int, list[str]] = {}
    for path in files:
        digest = hashlib.sha256(path.encode("utf-8", "surrogateescape")).digest()
        buckets.setdefault(int.from_bytes(digest[:8], "big") % num_buckets, []).append(path)
    name = shard_name(url)
    return [
        Shard(
            name=f"{name}-{bucket:04d}of{num_buckets:04d}",
            url=url,
            kind=ShardKind.folder,
            members=tuple(sorted(members)),
        )
        for bucket, members in sorted(buckets.items())
    ]
