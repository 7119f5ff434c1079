"""Samples of a shard, one after the other, with the place in the source where each begins and ends.

A tar is read member by member in WebDataset's convention (neighbouring files with one base name are
one sample; the key ends at the first dot of the file name). It is never trusted: sizes are bounded
before anything is read, links, folders and sparse files are passed over, a name is a key and never
a path, and what cannot be followed ends the shard as *cut*, with the place.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import re
import tarfile
from collections.abc import Callable, Generator, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Any

from pipeline.backends import open_filesystem
from pipeline.errors import StorageError, VideoError
from pipeline.listing import Entry, files_below, look_at
from pipeline.members import media_of, sidecars, text_of
from pipeline.ranges import RangeBuffers, ReadsPlaces, open_places
from pipeline.shards import Shard, ShardKind
from pipeline.tar_walk import TarCut, TarWalk

if TYPE_CHECKING:
    from pipeline.span_table import SpanRow

MAX_KEY_BYTES = 1024
"""Of a key as UTF-8; tar allows a name of a megabyte, and receipts hold keys."""
MAX_MEMBERS = 1000
"""Files of one sample."""
NOT_IN_SPANS = "not_in_spans"
"""Filter reason: the table has no row of the video, or its JSON no spans."""

_SAMPLE_NAME = re.compile(r"^((?:.*/)?[^/.]+)\.([^/]+)$", re.DOTALL)


@dataclass(frozen=True, slots=True, kw_only=True)
class ReadRules:
    """What counts as a sample and how large its files may be."""

    video_extensions: frozenset[str]
    """Lower case, without the dot."""
    caption_key: str
    """Where the caption stands in the JSON."""
    video_bytes: int
    """Largest video."""
    sidecar_bytes: int
    """Largest .json or .txt."""
    image_extensions: frozenset[str] = frozenset()
    """Of images, likewise; empty: they are not looked for."""
    has_original_keys: bool = False
    """Whether a .key member says what the sample was called where it was copied from."""

    @property
    def media_extensions(self) -> frozenset[str]:
        """Of videos and of images."""
        return self.video_extensions | self.image_extensions


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """What a shard's source was when it was opened; compared when a run is resumed."""

    size_bytes: int
    """Length of the tar, or the sum over a folder bucket."""
    version: str
    """ETag or modification time; for a bucket a digest of its members and sizes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """One video as it stands in the shard."""

    key: str
    """Base name in the tar, or path with extension in a folder."""
    start_offset: int
    """Where it begins: a byte of the tar, or a position in the bucket."""
    end_offset: int
    """Where the next one begins."""
    extension: str = ""
    """Of the video member, lower case."""
    video: bytes = b""
    """The encoded video; empty when there is a defect."""
    caption: str | None = None
    """From the .txt or the JSON."""
    metadata: str | None = None
    """The JSON, as text."""
    defect: VideoError | None = None
    """Why the sample cannot even be handed to a decoder."""
    is_image: bool = False
    """``video`` is an image: one clip of one frame."""
    original_key: str | None = None
    """What it is called where it was copied from; None: here."""
    skipped: str | None = None
    """Filter reason of a video that is not to be tokenised at all."""
    spans: tuple[SpanRow, ...] | None = None
    """Stretches that its clips lie within; None: anywhere (``selection``)."""
    columns: Mapping[str, Any] = field(default_factory=dict)
    """Values of the data set's own columns."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ShardEnd:
    """The last thing that a shard yields."""

    offset: int
    """Where reading ended."""
    cut: str | None = None
    """None: the whole shard was read; else what is wrong there."""


def key_digest(key: str) -> bytes:
    """Eight bytes that stand for a key when a resumed shard looks for duplicates."""
    return hashlib.sha256(key.encode("utf-8", "surrogateescape")).digest()[:8]


def split_digests(joined: bytes) -> set[bytes]:
    """Digests of keys that stand one after the other, as a set."""
    size = len(key_digest(""))
    return {joined[at : at + size] for at in range(0, len(joined), size)}


def shown(key: str) -> str:
    r"""A key as a log may show it: nothing in it breaks the line or drives a terminal.

    >>> shown("two\nlines")
    'two\\nlines'
    """
    return "".join(one if one.isprintable() else repr(one)[1:-1] for one in key)


def source_of(shard: Shard, options: Mapping[str, Any]) -> Source:
    """What storage says of a shard now: one request for a tar, one listing for a folder.

    Raises:
        StorageError: it cannot be reached, or is not there.
        StorageRefused: it never will.
    """
    filesystem, path = open_filesystem(shard.url, options)
    if shard.kind is ShardKind.folder:
        return folder_source(shard, files_below(filesystem, path, shard.url))
    return tar_source(shard, filesystem)


def tar_source(shard: Shard, filesystem: Any) -> Source:
    """The source that a tar is, in its file system.

    Raises:
        StorageError: it cannot be reached, or is not there.
        StorageRefused: it never will.
    """
    try:
        return source_of_entry(look_at(filesystem, shard.url))
    except FileNotFoundError as error:
        raise StorageError(shard.name, f"{shard.url} is not there") from error


def source_of_entry(entry: Entry) -> Source:
    """The source that a tar is, from what a listing says of it."""
    return Source(size_bytes=entry.size_bytes, version=entry.version)


def folder_source(shard: Shard, files: Callable[[str], Entry | None]) -> Source:
    """The source that a bucket is, from what ``listing.files_below`` says of its folder.

    Raises:
        StorageError: one of its videos is not there any more.
    """
    sizes = []
    for name in shard.members:
        entry = files(name)
        if entry is None:
            raise StorageError(shard.name, f"{shard.url}/{name} is not there")
        sizes.append(entry.size_bytes)
    listing = json.dumps([shard.members, sizes]).encode("utf-8", "surrogateescape")
    return Source(size_bytes=sum(sizes), version=hashlib.sha256(listing).hexdigest())


def read_shard(
    shard: Shard,
    *,
    rules: ReadRules,
    options: Mapping[str, Any],
    start_offset: int = 0,
    seen: set[bytes] | None = None,
    source: Source | None = None,
    buffers: RangeBuffers | None = None,
    wants: Callable[[str], bool] = lambda key: True,
) -> Generator[Sample | ShardEnd]:
    """Samples from ``start_offset`` on, then one ``ShardEnd``; close it when it is left early.

    Args:
        shard: which.
        rules: what counts as a sample.
        options: fsspec options.
        start_offset: ``end_offset`` of the last sample that is already committed.
        seen: ``key_digest`` of the keys before it; keys met are added.
        source: size and version that a tar must have; null: as it is now.
        buffers: memory for reading ahead, of the worker.
        wants: whether a video of this key is to be read; others come without content, skipped.

    Raises:
        StorageError: storage did not answer, gave fewer bytes than it holds, or holds something
            else than it did.
    """
    seen = set() if seen is None else seen
    buffers = buffers or RangeBuffers()
    filesystem, path = open_filesystem(shard.url, options)
    if shard.kind is ShardKind.folder:
        yield from _read_folder(shard, rules, filesystem, path, buffers, start_offset, wants)
        return
    source = source or source_of(shard, options)
    places = open_places(shard.name, filesystem, path, source.size_bytes, source.version, buffers)
    with contextlib.closing(places) as file:
        yield from _TarReader(shard.name, file, rules, seen, wants).samples(start_offset)


class _TarReader:
    """One pass over one tar."""

    def __init__(
        self,
        shard: str,
        file: ReadsPlaces,
        rules: ReadRules,
        seen: set[bytes],
        wants: Callable[[str], bool],
    ) -> None:
        self.shard, self.file, self.rules, self.seen = shard, file, rules, seen
        self.wants, self.is_wanted = wants, True

    def samples(self, offset: int) -> Iterator[Sample | ShardEnd]:
        """Group members into samples; the group at which the archive is cut is left out."""
        group: dict[str, bytes | VideoError | None] = {}
        key, begin = "", offset
        walk = TarWalk(self.file)
        try:
            for member in walk.members(offset):
                match = _SAMPLE_NAME.match(member.name)
                if not member.isreg() or member.sparse is not None or match is None:
                    continue
                base, extension = match[1], _printable(match[2].lower())
                if group and (base != key or extension in group):
                    yield self.sample(key, group, begin, member.offset)
                    group, begin = {}, member.offset
                elif not group:
                    begin = member.offset
                if not group:
                    self.is_wanted = self.rules.has_original_keys or self.wants(_printable(base))
                key = base
                if len(extension) > MAX_KEY_BYTES:
                    group[""] = VideoError(
                        "name_too_long", f"an extension of {len(extension):,} characters"
                    )
                elif len(group) < MAX_MEMBERS:
                    group[extension] = self.content(member, extension)
                else:
                    group[""] = VideoError(
                        "too_many_members", f"more than {MAX_MEMBERS:,} files have this key"
                    )
        except TarCut as cut:
            yield ShardEnd(
                offset=begin if group else cut.offset, cut=f"byte {cut.offset}: {cut.reason}"
            )
            return
        if group:
            yield self.sample(key, group, begin, walk.end)
        yield ShardEnd(offset=walk.end)

    def content(self, member: tarfile.TarInfo, extension: str) -> bytes | VideoError | None:
        """A member's bytes if the pipeline wants them; too large is said instead of read."""
        is_video = extension.rsplit(".", 1)[-1] in self.rules.media_extensions
        is_key = self.rules.has_original_keys and extension == "key"
        if not self.is_wanted or not (is_video or is_key or extension in ("txt", "json")):
            return None
        limit = self.rules.video_bytes if is_video else self.rules.sidecar_bytes
        if member.size > limit:
            return VideoError(
                "too_large", f".{extension} has {member.size:,} bytes, limit {limit:,}"
            )
        return self.file.read(member.offset_data, member.size)

    def sample(
        self, key: str, group: Mapping[str, bytes | VideoError | None], begin: int, end: int
    ) -> Sample:
        """Put the members of one key together, or say what is wrong with them."""
        printable = _printable(key)
        defect = None
        if (size := len(printable.encode())) > MAX_KEY_BYTES:
            defect = VideoError("name_too_long", f"{size:,} bytes, limit {MAX_KEY_BYTES:,}")
            printable = f"{printable[:100]}-{key_digest(printable).hex()}"
        digest = key_digest(printable)  # as in receipts, and as clips will be named
        if digest in self.seen:
            defect = VideoError("duplicate_key", "an earlier sample of this shard has the same key")
        self.seen.add(digest)
        if not self.is_wanted:
            return Sample(key=printable, start_offset=begin, end_offset=end, skipped=NOT_IN_SPANS)
        if defect is not None:
            return Sample(key=printable, start_offset=begin, end_offset=end, defect=defect)
        return assemble_sample(printable, group, self.rules, begin, end)


def _printable(key: str) -> str:
    """A key or an extension as receipts, clips and reports have it: UTF-8."""
    return key.encode("utf-8", "backslashreplace").decode()


def assemble_sample(
    key: str,
    group: Mapping[str, bytes | VideoError | None],
    rules: ReadRules,
    begin: int,
    end: int,
) -> Sample:
    """A sample from its files by extension; whatever is wrong becomes its ``defect``."""
    videos, is_image = media_of(group, rules.video_extensions, rules.image_extensions)
    try:
        for content in group.values():
            if isinstance(content, VideoError):
                raise content
        if len(videos) != 1:
            members = ", ".join(sorted(group))[:200]
            kind = "image" if is_image else "video"
            reason = f"several_{kind}s" if videos else "no_video"
            raise VideoError(reason, f"wanted one {kind} member, found: {members}")
        caption, metadata = sidecars(group.get("txt"), group.get("json"), rules.caption_key)
    except VideoError as defect:
        return Sample(key=key, start_offset=begin, end_offset=end, defect=defect)
    video = group[videos[0]]
    return Sample(
        key=key,
        start_offset=begin,
        end_offset=end,
        extension=videos[0].rsplit(".", 1)[-1],
        video=video if isinstance(video, bytes) else b"",
        caption=caption,
        metadata=metadata,
        is_image=is_image,
        original_key=text_of(group.get("key")),
    )


def _read_folder(
    shard: Shard,
    rules: ReadRules,
    filesystem: Any,
    root: str,
    buffers: RangeBuffers,
    start: int,
    wants: Callable[[str], bool],
) -> Iterator[Sample | ShardEnd]:
    """One listing says which files there are and how large; then each is read."""
    files = files_below(filesystem, root, shard.url)

    def content(name: str, limit: int) -> bytes | VideoError | None:
        entry = files(name)
        if entry is None:
            return None
        size = entry.size_bytes
        if size > limit:
            return VideoError("too_large", f"{size:,} bytes, limit {limit:,}")
        path = f"{root}/{name}"
        places = open_places(shard.name, filesystem, path, size, entry.version, buffers)
        with contextlib.closing(places) as file:
            return file.read(0, size)

    for index in range(start, len(shard.members)):
        name = shard.members[index]
        path = PurePosixPath(name)
        key = _printable(name)
        if not wants(key):
            yield Sample(key=key, start_offset=index, end_offset=index + 1, skipped=NOT_IN_SPANS)
            continue
        group: dict[str, bytes | VideoError | None] = {}
        video = content(name, rules.video_bytes)
        if video is None:  # the whole folder may be away: nothing that a video is to blame for
            raise StorageError(shard.name, f"{shard.url}/{name} is not there any more")
        group[path.suffix.lstrip(".").lower()] = video
        for extension in ("txt", "json"):
            sidecar = content(str(path.with_suffix(f".{extension}")), rules.sidecar_bytes)
            if sidecar is not None:
                group[extension] = sidecar
        yield assemble_sample(key, group, rules, index, index + 1)
    yield ShardEnd(offset=len(shard.members))
