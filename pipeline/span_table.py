"""The table of spans: which stretches of which videos are tokenised, and what is said of them.

A table may have tens of millions of rows, so no process holds it as objects. Each machine makes one
Arrow file of it, sorted by key and start, under a name that follows from the table's digest; its
workers map that file and look a key up by binary search. Whoever closes it last deletes it.
"""

from __future__ import annotations

import bisect
import fcntl
import hashlib
import math
import os
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import urlsplit

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.json
import pyarrow.parquet as pq

from pipeline.backends import open_filesystem, storage_errors
from pipeline.columns import ARROW_TYPES, Columns
from pipeline.errors import ConfigError, RunError
from pipeline.span_columns import check_json_lines, check_names

SUFFIXES = (".parquet", ".csv", ".jsonl")
MAX_SPANS = 4096
"""Of one video: a decoder child is told of them in one message."""
_VERSION = 2
"""Of the sorted file and of what is asked of a table."""
_CHUNK_BYTES = 8 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class SpanSource:
    """Where a table is and what it must be; picklable."""

    url: str
    """Absolute path or URL of a ``.parquet``, ``.csv`` or ``.jsonl`` file."""
    options: Mapping[str, Any]
    """fsspec options."""
    columns: Columns
    """Wanted beside key, start_seconds, end_seconds and caption, where the table has them."""
    sha256: str | None = None
    """Of the file; None: whatever it is now."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SpanRow:
    """One row of the table, or one span of a sample's JSON."""

    start_seconds: float
    """From the video's first frame."""
    end_seconds: float | None
    """None: the video's end."""
    caption: str | None
    """None: the sample's own."""
    columns: Mapping[str, Any]
    """By name; None: what the sample's JSON says."""


class SpanTable:
    """An open table; to be closed. Safe for threads, as nothing changes."""

    def __init__(self, source: SpanSource) -> None:
        """Map the machine's sorted file, which is made where there is none.

        Raises:
            ConfigError: a table that is not one of spans; names the first row that is wrong.
            RunError: no such file, or another one than ``sha256`` says.
            StorageError: storage did not answer.
        """
        self._columns = source.columns
        digest, self._file, self._path = _opened(source)
        self.sha256 = digest
        """Of the table's file."""
        with pa.memory_map(str(self._path)) as memory:
            self._table = pa.ipc.open_file(memory).read_all()
        self._keys = self._chunk("key")

    def _chunk(self, name: str) -> Any:
        column = self._table.column(name)
        return column.chunk(0) if column.num_chunks else pa.array([], column.type)

    def __len__(self) -> int:
        return len(self._keys)

    @property
    def num_videos(self) -> int:
        """Different keys."""
        keys = self._keys
        if not len(keys):
            return 0
        return 1 + int(pc.sum(pc.not_equal(keys[1:], keys[:-1])).as_py() or 0)

    def __contains__(self, key: str) -> bool:
        at = self._first(key)
        return at < len(self) and bool(self._keys[at].as_py() == key)

    def spans(self, key: str) -> tuple[SpanRow, ...]:
        """Spans of a video by start, at most `MAX_SPANS` + 1 of them; none: it is not there."""
        begin = at = self._first(key)
        while at < len(self) and at - begin <= MAX_SPANS and self._keys[at].as_py() == key:
            at += 1
        rows = self._table.slice(begin, at - begin).to_pylist()
        return tuple(
            SpanRow(
                start_seconds=row["start_seconds"],
                end_seconds=None if row["end_seconds"] == math.inf else row["end_seconds"],
                caption=row["caption"],
                columns={name: row[name] for name, _ in self._columns},
            )
            for row in rows
        )

    def _first(self, key: str) -> int:
        # code points and UTF-8 bytes sort alike, so Python's order is Arrow's
        return bisect.bisect_left(range(len(self)), key, key=lambda at: self._keys[at].as_py())

    def close(self) -> None:
        """Unmap; the file goes with its last user."""
        del self._table, self._keys
        self._path.parent.mkdir(mode=0o700, exist_ok=True)  # somebody may have cleaned up
        with _Locked(self._path.parent / ".lock"):  # else another process has just found the file
            try:
                fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                pass  # somebody else has it open
            else:
                self._path.unlink(missing_ok=True)
            os.close(self._file)


def _opened(source: SpanSource) -> tuple[str, int, Path]:
    """The table's digest; its sorted file, open under a shared lock, and the path of that."""
    folder = _own_folder()
    with _Locked(folder / ".lock"):  # one process of the machine makes it, none takes it away
        if source.sha256 is not None:
            path = folder / _name(source.sha256, source.columns)
            if path.exists():
                return source.sha256, _shared(path), path
        with _Fetched(source, folder) as (table, digest):
            if source.sha256 not in (None, digest):
                raise RunError(
                    f"dataset.spans={source.url} is another table now: SHA-256 {digest}, "
                    f"expected {source.sha256}"
                )
            path = folder / _name(digest, source.columns)
            if not path.exists():
                _write(sorted_table(read_table(table, source), source.url), path)
        return digest, _shared(path), path


def _shared(path: Path) -> int:
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    fcntl.flock(descriptor, fcntl.LOCK_SH)
    return descriptor


def _own_folder() -> Path:
    """Of this user alone: what lies there is trusted.

    Raises:
        RunError: somebody else's.
    """
    folder = Path(tempfile.gettempdir()) / f"vidtok-spans-{os.getuid()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    found = folder.lstat()
    if found.st_uid != os.getuid() or found.st_mode & 0o077 or folder.is_symlink():
        raise RunError(f"{folder} is not this user's alone: remove it, or set TMPDIR")
    return folder


def _name(digest: str, columns: Columns) -> str:
    made_of = f"{_VERSION} {digest} {columns}"
    return f"{hashlib.sha256(made_of.encode()).hexdigest()[:32]}.arrow"


class _Locked:
    """Holds an exclusive lock on a file."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def __enter__(self) -> None:
        self._file = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        fcntl.flock(self._file, fcntl.LOCK_EX)

    def __exit__(self, *_: object) -> None:
        os.close(self._file)


class _Fetched:
    """The table's bytes in a local file, for a while, and their SHA-256."""

    def __init__(self, source: SpanSource, folder: Path) -> None:
        self._source, self._folder = source, folder

    def __enter__(self) -> tuple[Path, str]:
        url = self._source.url
        filesystem, path = open_filesystem(url, self._source.options)
        digest = hashlib.sha256()
        descriptor, name = tempfile.mkstemp(dir=self._folder, suffix=".table")
        self._path = Path(name)
        try:
            with (
                os.fdopen(descriptor, "wb") as copy,
                storage_errors(f"dataset.spans={url}"),
                filesystem.open(path, "rb") as file,
            ):
                while chunk := file.read(_CHUNK_BYTES):
                    digest.update(chunk)
                    copy.write(chunk)
        except FileNotFoundError as error:
            self._path.unlink()
            raise RunError(f"dataset.spans={url}: no such file") from error
        except BaseException:
            self._path.unlink()
            raise
        return self._path, digest.hexdigest()

    def __exit__(self, *_: object) -> None:
        self._path.unlink()


def table_schema(columns: Columns) -> pa.Schema:
    """Columns of the sorted file. Text has offsets of 64 bits: the rows are one array."""
    large = {name: pa.large_string() for name, kind in columns if kind == "string"}
    return pa.schema(
        {
            "key": pa.large_string(),
            "start_seconds": pa.float64(),
            "end_seconds": pa.float64(),
            "caption": pa.large_string(),
            **{name: ARROW_TYPES[kind] for name, kind in columns},
            **large,
        }
    )


def read_table(path: Path, source: SpanSource) -> pa.Table:
    """What is wanted of a local copy of the table; a column that it lacks is null.

    Raises:
        ConfigError: not such a table.
    """
    schema, place = table_schema(source.columns), f"dataset.spans={source.url}"
    try:
        table = _parse(path, PurePosixPath(urlsplit(source.url).path).suffix.lower(), schema, place)
        if "key" not in table.column_names:
            raise ConfigError(f"{place}: no column key; it has {', '.join(table.column_names)}")
        key = table.schema.field("key").type
        if not (pa.types.is_string(key) or pa.types.is_large_string(key)):
            raise ConfigError(f"{place}: key must be text, it is {key}")
        found = [
            table.column(name).cast(kind) if name in table.column_names else _nulls(table, kind)
            for name, kind in zip(schema.names, schema.types, strict=True)
        ]
    except (pa.ArrowException, OSError) as error:
        text = str(error).splitlines()[0]
        raise ConfigError(f"{place} cannot be read as spans: {text}") from error
    return pa.Table.from_arrays(found, schema=schema)


def _nulls(table: pa.Table, kind: pa.DataType) -> pa.ChunkedArray:
    return pa.chunked_array([pa.nulls(table.num_rows, kind)])


def _parse(path: Path, suffix: str, schema: pa.Schema, place: str) -> pa.Table:
    if suffix == ".parquet":
        with pq.ParquetFile(path) as file:
            check_names(file.schema_arrow.names, schema.names, place)
            names = [name for name in schema.names if name in file.schema_arrow.names]
            return file.read(columns=names, use_threads=False) if names else file.read()
    if suffix == ".csv":
        types = {field.name: field.type for field in schema}
        table = pyarrow.csv.read_csv(
            path,
            read_options=pyarrow.csv.ReadOptions(use_threads=False),
            parse_options=pyarrow.csv.ParseOptions(newlines_in_values=True),
            convert_options=pyarrow.csv.ConvertOptions(
                column_types=types,
                null_values=[""],
                strings_can_be_null=True,
                quoted_strings_can_be_null=False,
            ),
        )
        check_names(table.column_names, schema.names, place)
        return table
    if suffix == ".jsonl":
        table = pyarrow.json.read_json(
            path,
            read_options=pyarrow.json.ReadOptions(use_threads=False),
            parse_options=pyarrow.json.ParseOptions(
                explicit_schema=schema, unexpected_field_behavior="ignore"
            ),
        )
        if table.column("start_seconds").null_count or table.column("end_seconds").null_count:
            check_json_lines(path, schema.names, place)
        return table
    raise ConfigError(f"dataset.spans must end in {', '.join(SUFFIXES)}, got {suffix or 'nothing'}")


def sorted_table(table: pa.Table, url: str) -> pa.Table:
    """Rows by key, start and end; of equal ones in the table's order.

    No start is 0, no end infinity: so they sort as what they mean.

    Raises:
        ConfigError: a row that is no span.
    """
    start = pc.fill_null(table.column("start_seconds"), 0.0)
    end = pc.fill_null(table.column("end_seconds"), math.inf)
    for wrong, what in (
        (pc.is_null(table.column("key")), "has no key"),
        (pc.invert(pc.and_(pc.is_finite(start), pc.greater_equal(start, 0.0))), "starts before 0"),
        (pc.is_nan(end), "has an end that is no number"),
        (pc.less_equal(end, start), "does not end behind its start"),
    ):
        at = pc.index(wrong, True).as_py()
        if at >= 0:
            row = table.slice(at, 1).to_pylist()[0]
            text = f"key={row['key']!r}, {row['start_seconds']} to {row['end_seconds']} seconds"
            raise ConfigError(f"dataset.spans={url}: row {at:,} (from 0) {what}: {text}")
    for name, column in (("start_seconds", start), ("end_seconds", end)):
        table = table.set_column(table.schema.get_field_index(name), name, column)
    order = pc.sort_indices(
        table, [(name, "ascending") for name in ("key", "start_seconds", "end_seconds")]
    )
    return table.take(order).combine_chunks()


def _write(table: pa.Table, path: Path) -> None:
    """Whole or not at all."""
    temporary = path.with_suffix(".tmp")
    with (
        storage_errors(str(path.parent)),  # the disk may be full
        pa.OSFile(str(temporary), "wb") as file,
        pa.ipc.new_file(file, table.schema) as writer,
    ):
        writer.write_table(table)
    temporary.replace(path)
