"""Samples of a shard, one after the other, with the place in the source where each begins and ends.

A tar is read member by member in WebDataset's convention (neighbouring files with one base name are
one sample; the key ends at the first dot of the file name). It is never trusted: sizes are
bounded before anything is read, links and folders are passed over, and a header that does not check
ends the shard as *cut*, with the place. Python's own ``TarFile.next`` takes such a header, and a
missing end, for the end of the archive, which would lose the rest in silence.
"""

from __future__ import annotations

import hashlib
import io
import json
import re
import tarfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

from pipeline.errors import StorageError, VideoError
from pipeline.shards import Shard, ShardKind
from pipeline.storage import entry_of, open_filesystem, storage_errors

READ_BYTES = 8 << 20
"""Size of one range request."""

_BLOCK = tarfile.BLOCKSIZE
_SAMPLE_NAME = re.compile(r"^((?:.*/)?[^/.]+)\.([^/]+)$", re.DOTALL)
_MAX_LONG_HEADER_BYTES = 1 << 20
_MAX_HEADER_READS = 200


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


@dataclass(frozen=True, slots=True, kw_only=True)
class ShardEnd:
    """The last thing that a shard yields."""

    offset: int
    """Where reading ended."""
    cut: str | None = None
    """None: the whole shard was read; else what is wrong there."""


class _TarCut(Exception):
    """The archive cannot be followed beyond this place."""

    def __init__(self, offset: int, reason: str) -> None:
        super().__init__(offset, reason)
        self.offset, self.reason = offset, reason


class _HeaderSource:
    """What `tarfile` reads the headers of one member from: whole or not at all, and bounded."""

    def __init__(self, reader: _TarReader, offset: int) -> None:
        self.reader, self.offset, self.num_reads = reader, offset, 0

    def tell(self) -> int:
        return self.offset

    def seek(self, offset: int) -> None:
        self.offset = offset

    def read(self, size: int) -> bytes:
        self.num_reads += 1
        if not 0 <= size <= _MAX_LONG_HEADER_BYTES:
            raise tarfile.HeaderError(f"an extended header of {size:,} bytes")
        if self.num_reads > _MAX_HEADER_READS:  # tarfile calls itself for each
            raise tarfile.HeaderError("too many extended headers for one member")
        data = self.reader.read(self.offset, size)
        self.offset += len(data)
        return data


def key_digest(key: str) -> bytes:
    """Eight bytes that stand for a key when a resumed shard looks for duplicates."""
    return hashlib.sha256(key.encode("utf-8", "surrogateescape")).digest()[:8]


def split_digests(joined: bytes) -> set[bytes]:
    """Digests of keys that stand one after the other, as a set."""
    size = len(key_digest(""))
    return {joined[at : at + size] for at in range(0, len(joined), size)}


def source_of(shard: Shard, options: Mapping[str, Any]) -> Source:
    """What storage says of a shard now.

    Raises:
        StorageError: it cannot be reached, or is not there.
        StorageRefused: it never will.
    """
    filesystem, path = open_filesystem(shard.url, options)
    with storage_errors(shard.url):
        try:
            if shard.kind is ShardKind.tar:
                entry = entry_of(filesystem.info(path))
                return Source(size_bytes=entry.size_bytes, version=entry.version)
            sizes = [int(filesystem.info(f"{path}/{name}")["size"]) for name in shard.members]
        except FileNotFoundError as error:
            raise StorageError(shard.name, f"{shard.url} is not there") from error
    listing = json.dumps([shard.members, sizes]).encode("utf-8", "surrogateescape")
    return Source(size_bytes=sum(sizes), version=hashlib.sha256(listing).hexdigest())


def read_shard(
    shard: Shard,
    *,
    rules: ReadRules,
    options: Mapping[str, Any],
    start_offset: int = 0,
    seen: set[bytes] | None = None,
) -> Iterator[Sample | ShardEnd]:
    """Samples from ``start_offset`` on, then one ``ShardEnd``.

    Args:
        shard: which.
        rules: what counts as a sample.
        options: fsspec options.
        start_offset: ``end_offset`` of the last sample that is already committed.
        seen: ``key_digest`` of the keys before it; keys met are added.

    Raises:
        StorageError: storage did not answer, or gave fewer bytes than it holds.
    """
    seen = set() if seen is None else seen
    if shard.kind is ShardKind.folder:
        yield from _read_folder(shard, rules, options, start_offset)
        return
    filesystem, path = open_filesystem(shard.url, options)
    with storage_errors(shard.name):
        try:
            size = int(filesystem.info(path)["size"])
            extra = {} if shard.url.startswith("/") else {"cache_type": "readahead"}
            file = filesystem.open(path, "rb", block_size=READ_BYTES, **extra)
        except FileNotFoundError as error:
            raise StorageError(shard.name, f"{shard.url} is not there") from error
    with file:
        yield from _TarReader(shard.name, file, size, rules, seen).samples(start_offset)


class _TarReader:
    """One pass over one tar."""

    def __init__(
        self, shard: str, file: Any, size: int, rules: ReadRules, seen: set[bytes]
    ) -> None:
        self.shard, self.file, self.size, self.rules, self.seen = shard, file, size, rules, seen

    def samples(self, offset: int) -> Iterator[Sample | ShardEnd]:
        """Group members into samples; the group at which the archive is cut is left out."""
        group: dict[str, bytes | VideoError | None] = {}
        key, begin = "", offset
        try:
            for member in self.members(offset):
                match = _SAMPLE_NAME.match(member.name)
                if not member.isreg() or member.sparse is not None or match is None:
                    continue
                base, extension = match[1], match[2].lower()
                if group and (base != key or extension in group):
                    yield self.sample(key, group, begin, member.offset)
                    group, begin = {}, member.offset
                elif not group:
                    begin = member.offset
                key = base
                group[extension] = self.content(member, extension)
                offset = member.offset
        except _TarCut as cut:
            yield ShardEnd(
                offset=begin if group else cut.offset, cut=f"byte {cut.offset}: {cut.reason}"
            )
            return
        if group:
            yield self.sample(key, group, begin, self.end)
        yield ShardEnd(offset=self.end)

    def members(self, offset: int) -> Iterator[tarfile.TarInfo]:
        """Headers up to the end-of-archive marker, whose place is kept in ``self.end``."""
        # Opened on an empty archive, because opening reads a header; headers come from `source`.
        archive = tarfile.TarFile(
            fileobj=io.BytesIO(bytes(2 * _BLOCK)), encoding="utf-8", errors="surrogateescape"
        )
        while True:
            header = self.read(offset, _BLOCK)
            if not header:
                raise _TarCut(offset, "the archive stops without its end marker")
            if len(header) < _BLOCK:
                raise _TarCut(offset, "the archive is cut inside a header")
            if not header.strip(b"\0"):
                self.check_nothing_follows(offset)
                self.end = offset
                return
            try:
                archive.fileobj = _HeaderSource(self, offset)  # type: ignore[assignment] # it reads only
                archive.offset = offset
                info = tarfile.TarInfo.fromtarfile(archive)
            except (tarfile.TarError, ValueError) as error:
                raise _TarCut(offset, f"not a tar header ({error})") from error
            data_end = info.offset_data + info.size
            is_stored = info.isreg() and info.sparse is None  # a sparse size is not what is stored
            if info.size < 0 or archive.offset <= offset or (is_stored and data_end > self.size):
                raise _TarCut(
                    offset, f"{info.name!r} says {info.size:,} bytes, the archive ends before that"
                )
            yield info
            offset = archive.offset

    def check_nothing_follows(self, offset: int) -> None:
        """The end marker is followed by zeros only; anything else was lost or appended."""
        for at in range(offset, self.size, READ_BYTES):
            if self.read(at, READ_BYTES).strip(b"\0"):
                raise _TarCut(offset, "an empty block, as at the end, but data follow it")

    def read(self, offset: int, size: int) -> bytes:
        """Bytes at a place; fewer only where the archive ends."""
        with storage_errors(self.shard):
            self.file.seek(offset)
            data: bytes = self.file.read(size)
        if len(data) < min(size, self.size - offset):
            raise StorageError(self.shard, f"{len(data)} of {size} bytes came at byte {offset:,}")
        return data

    def content(self, member: tarfile.TarInfo, extension: str) -> bytes | VideoError | None:
        """A member's bytes if the pipeline wants them; too large is said instead of read."""
        is_video = extension.rsplit(".", 1)[-1] in self.rules.video_extensions
        if not is_video and extension not in ("txt", "json"):
            return None
        limit = self.rules.video_bytes if is_video else self.rules.sidecar_bytes
        if member.size > limit:
            return VideoError(
                "too_large", f".{extension} has {member.size:,} bytes, limit {limit:,}"
            )
        return self.read(member.offset_data, member.size)

    def sample(
        self, key: str, group: Mapping[str, bytes | VideoError | None], begin: int, end: int
    ) -> Sample:
        """Put the members of one key together, or say what is wrong with them."""
        printable = key.encode("utf-8", "backslashreplace").decode()
        digest = key_digest(printable)  # as in receipts, and as clips will be named
        duplicate = digest in self.seen
        self.seen.add(digest)
        if duplicate:
            defect = VideoError("duplicate_key", "an earlier sample of this shard has the same key")
            return Sample(key=printable, start_offset=begin, end_offset=end, defect=defect)
        return assemble_sample(printable, group, self.rules, begin, end)


def assemble_sample(
    key: str,
    group: Mapping[str, bytes | VideoError | None],
    rules: ReadRules,
    begin: int,
    end: int,
) -> Sample:
    """A sample from its files by extension; whatever is wrong becomes its ``defect``."""
    videos = [name for name in group if name.rsplit(".", 1)[-1] in rules.video_extensions]
    try:
        for content in group.values():
            if isinstance(content, VideoError):
                raise content
        if len(videos) != 1:
            members = ", ".join(sorted(group))
            reason = "several_videos" if videos else "no_video"
            raise VideoError(reason, f"wanted one video member, found: {members}")
        caption, metadata = _sidecars(group.get("txt"), group.get("json"), rules.caption_key)
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
    )


def _sidecars(text: Any, record: Any, caption_key: str) -> tuple[str | None, str | None]:
    caption = None if text is None else text.decode("utf-8", "replace").strip()
    if record is None:
        return caption, None
    try:
        decoded = record.decode("utf-8")
        fields = json.loads(decoded)
        if caption is None and isinstance(fields, dict) and fields.get(caption_key) is not None:
            # JSON can spell lone surrogates, which no UTF-8 column holds
            caption = str(fields[caption_key]).encode("utf-8", "replace").decode()
    except (ValueError, RecursionError) as error:  # not JSON, not UTF-8, numbers without end
        raise VideoError("bad_metadata", f"the .json cannot be read: {error}") from error
    return caption, decoded


def _read_folder(
    shard: Shard, rules: ReadRules, options: Mapping[str, Any], start: int
) -> Iterator[Sample | ShardEnd]:
    filesystem, root = open_filesystem(shard.url, options)

    def content(path: str, limit: int) -> bytes | VideoError | None:
        with storage_errors(shard.name):
            try:
                size = int(filesystem.info(path)["size"])
                if size > limit:
                    return VideoError("too_large", f"{size:,} bytes, limit {limit:,}")
                return bytes(filesystem.cat_file(path))
            except FileNotFoundError:
                return None

    for index in range(start, len(shard.members)):
        name = shard.members[index]
        path = PurePosixPath(name)
        group: dict[str, bytes | VideoError | None] = {}
        video = content(f"{root}/{name}", rules.video_bytes)
        if video is not None:
            group[path.suffix.lstrip(".").lower()] = video
        for extension in ("txt", "json"):
            sidecar = content(f"{root}/{path.with_suffix('.' + extension)}", rules.sidecar_bytes)
            if sidecar is not None:
                group[extension] = sidecar
        key = name.encode("utf-8", "backslashreplace").decode()
        yield assemble_sample(key, group, rules, index, index + 1)
    yield ShardEnd(offset=len(shard.members))
