"""The row of a token shard: its columns, its Arrow schema, and how the footer says to read it.

Pure; one row per clip. What a reader needs to turn ``tokens`` into numbers stands in the footer's
key-value metadata, so that a part can be read without anything else at hand.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from pipeline.columns import ARROW_TYPES, Columns
from pipeline.packing import (
    COMPRESSIONS,
    INDEX_PACKINGS,
    compress_planes,
    expand_planes,
    pack_indices,
    pack_latents,
    packed_bytes,
    unpack_indices,
    unpack_latents,
)

FORMAT_VERSION = 2
"""Raised when a reader of the older version could no longer read new parts rightly."""

FOOTER_KEY = b"vidtok.tokens"


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenFormat:
    """How ``tokens`` is encoded: the footer's record, the same in every part of an OUT."""

    format_version: int
    """``FORMAT_VERSION`` of the writer."""
    tokenizer: str
    """Name of the tokenizer."""
    checkpoint_digest: str
    """SHA-256 of its weights."""
    random_weights: bool
    """True: ``checkpoint=random``; the tokens mean nothing."""
    packing: str
    """One of ``packing.INDEX_PACKINGS`` or ``LATENT_PACKINGS``."""
    compression: str = "none"
    """One of ``packing.COMPRESSIONS``; indices have none."""
    axes: str
    """``t h w`` for indices, ``c t h w`` for latents; C order."""
    codebook_size: int | None
    """Indices lie in [0, codebook_size); None for latents."""
    levels: tuple[int, ...]
    """FSQ levels per latent channel, first one least significant; empty for latents."""
    channels: int | None
    """Latents: channels of the mean; the log-variance follows with as many, where there is one."""
    has_log_variance: bool = True
    """Latents: False for a tokenizer that gives no more than a mean."""
    fingerprint: str
    """Fingerprint of the run's configuration."""
    columns: Columns = ()
    """The data set's own columns and their types, in the order of the schema, before tokens."""

    @property
    def is_discrete(self) -> bool:
        """Whether tokens are FSQ indices."""
        return self.packing in INDEX_PACKINGS

    def stored_shape(self, token_shape: Sequence[int]) -> tuple[int, ...]:
        """Of one clip: ``[t, h, w]``; ``[2c, t, h, w]``, or ``[c, t, h, w]`` of means alone."""
        if self.is_discrete or not self.has_log_variance:
            return tuple(token_shape)
        return (2 * token_shape[0], *token_shape[1:])

    def token_shape(self, stored_shape: Sequence[int]) -> tuple[int, ...]:
        """The inverse of ``stored_shape``."""
        if self.is_discrete or not self.has_log_variance:
            return tuple(stored_shape)
        return (stored_shape[0] // 2, *stored_shape[1:])

    def clip_bytes(self, token_shape: Sequence[int]) -> int:
        """Bytes of one clip's ``tokens``, when expanded."""
        return packed_bytes(self.packing, math.prod(self.stored_shape(token_shape)))

    def pack(self, tokens: npt.NDArray[Any]) -> bytes:
        """int32 ``[t, h, w]``, or float32 ``[2c, t, h, w]``, to the bytes of ``tokens``.

        Raises:
            ValueError: values that the packing cannot hold.
        """
        if self.is_discrete:
            return pack_indices(tokens, self.packing)
        packed = pack_latents(tokens, self.packing)
        return compress_planes(packed, self.packing) if self.is_compressed else packed

    @property
    def is_compressed(self) -> bool:
        """Whether ``tokens`` must be expanded before they are unpacked."""
        return self.compression != "none"

    def expand(
        self, blob: npt.NDArray[np.uint8], token_shape: Sequence[int]
    ) -> npt.NDArray[np.uint8]:
        """One row's ``tokens`` as uint8 ``[clip_bytes]``: themselves, unless they are compressed.

        Raises:
            ValueError: not the bytes of a clip of this shape.
        """
        num_bytes = self.clip_bytes(token_shape)
        if self.is_compressed:
            return expand_planes(blob, self.packing, num_bytes)
        if blob.size != num_bytes:
            raise ValueError(f"{blob.size} bytes of tokens for shape {list(token_shape)}")
        return blob

    def unpack_row(
        self, blob: npt.NDArray[np.uint8], token_shape: Sequence[int]
    ) -> npt.NDArray[Any]:
        """One row's ``tokens``, compressed or not.

        Returns:
            int32 ``[t, h, w]`` or float32 ``[2c, t, h, w]``.

        Raises:
            ValueError: not the bytes of a clip of this shape.
        """
        return self.unpack(self.expand(blob, token_shape)[None], token_shape)[0]  # type: ignore[no-any-return]

    def unpack(self, blob: npt.NDArray[np.uint8], token_shape: Sequence[int]) -> npt.NDArray[Any]:
        """What was expanded, as numbers.

        Args:
            blob: uint8 ``[B, clip_bytes]``.
            token_shape: of one clip.

        Returns:
            int32 ``[B, t, h, w]``, or float32 ``[B, 2c, t, h, w]``.
        """
        shape = self.stored_shape(token_shape)
        if self.is_discrete:
            return unpack_indices(blob, self.packing, shape)
        return unpack_latents(blob, self.packing, shape)

    def to_json(self) -> str:
        """Text for the footer; without what a reader takes for granted, as it always was."""
        record = asdict(self)
        if not self.columns:
            del record["columns"]
        if self.has_log_variance:
            del record["has_log_variance"]
        return json.dumps(record, sort_keys=True)

    @classmethod
    def from_json(cls, text: str | bytes) -> TokenFormat:
        """Read the footer's text.

        Raises:
            ValueError: another format version, or not such a record.
        """
        fields = json.loads(text)
        version = fields.get("format_version") if isinstance(fields, dict) else None
        if version != FORMAT_VERSION:
            raise ValueError(f"token format version {version!r}; this code reads {FORMAT_VERSION}")
        try:
            columns = tuple((name, kind) for name, kind in fields.get("columns", ()))
            levels = tuple(fields["levels"])
            record = cls(**{**fields, "levels": levels, "columns": columns})
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"broken token format record: {error}") from error
        if record.compression not in COMPRESSIONS:
            raise ValueError(f"compression {record.compression!r}; known are {COMPRESSIONS}")
        if unknown := {kind for _, kind in columns} - set(ARROW_TYPES):
            raise ValueError(f"columns of types {unknown}; known are {list(ARROW_TYPES)}")
        return record


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenRow:
    """One clip, ready to be written."""

    clip_id: str
    shard: str
    key: str
    clip_index: int
    fps: float
    start_seconds: float
    end_seconds: float
    frame_seconds: Sequence[float]
    source_width: int
    source_height: int
    source_fps: float
    bucket: str
    caption: str | None
    metadata: str | None
    token_shape: Sequence[int]
    tokens: bytes
    columns: Mapping[str, Any] = field(default_factory=dict)
    """The data set's own; one that is not there is null."""


def clip_id(shard: str, key: str, fps: float, clip_index: int) -> str:
    """Stable, unique name of a clip.

    >>> clip_id("00017-1b3b", "video_3", 8.0, 2)
    '00017-1b3b/video_3@8fps#2'
    """
    rate = repr(float(fps)).removesuffix(".0")  # all digits: two rates never share a name
    return f"{shard}/{key}@{rate}fps#{clip_index}"


def arrow_schema(token_bytes: int | None, token_format: TokenFormat) -> pa.Schema:
    """Schema of a part.

    Args:
        token_bytes: bytes of every row's ``tokens``, or None when rows differ.
        token_format: written into the metadata.
    """
    fields = [
        ("clip_id", pa.string(), False),
        ("shard", pa.string(), False),
        ("key", pa.string(), False),
        ("clip_index", pa.int32(), False),
        ("fps", pa.float64(), False),
        ("start_seconds", pa.float64(), False),
        ("end_seconds", pa.float64(), False),
        ("frame_seconds", pa.list_(pa.field("item", pa.float64(), nullable=False)), False),
        ("source_width", pa.int32(), False),
        ("source_height", pa.int32(), False),
        ("source_fps", pa.float64(), False),
        ("bucket", pa.string(), False),
        ("caption", pa.string(), True),
        ("metadata", pa.string(), True),
        ("token_shape", pa.list_(pa.field("item", pa.int32(), nullable=False)), False),
        *((name, ARROW_TYPES[kind], True) for name, kind in token_format.columns),
        ("tokens", pa.binary(token_bytes) if token_bytes else pa.large_binary(), False),
    ]
    return pa.schema(
        [pa.field(name, kind, nullable=nullable) for name, kind, nullable in fields],
        metadata={FOOTER_KEY: token_format.to_json().encode()},
    )


def read_token_format(metadata: Mapping[bytes, bytes] | None) -> TokenFormat:
    """The record in a part's footer.

    Raises:
        ValueError: the file is no token part, or of another version.
    """
    if not metadata or FOOTER_KEY not in metadata:
        raise ValueError("not a token part: its footer has no vidtok.tokens record")
    return TokenFormat.from_json(metadata[FOOTER_KEY])


def rows_to_table(rows: Sequence[TokenRow], token_format: TokenFormat) -> pa.Table:
    """Arrow table of rows in the order given; ``fixed_size_binary`` where all have one size."""
    sizes = {len(row.tokens) for row in rows}
    schema = arrow_schema(sizes.pop() if len(sizes) == 1 else None, token_format)
    own = {name for name, _ in token_format.columns}

    def value(row: TokenRow, name: str) -> Any:
        return row.columns.get(name) if name in own else getattr(row, name)

    columns = [pa.array([value(row, one.name) for row in rows], type=one.type) for one in schema]
    return pa.Table.from_arrays(columns, schema=schema)
