"""What byte planes save on the latents of an OUT, and what they cost to write and to read.

    python -m pipeline.run +dataset=demo +tokenizer=kl_4x8x8_4chn output.latent_dtype=fp32 …
    python -m jobs.benchmark latents OUT

Clip by clip, in memory, in CPU seconds; every figure is the median of interleaved passes.
"""

from __future__ import annotations

import statistics
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from jobs.benchmark.measure import machine, write_json
from pipeline.command_line import CommandLine, count, new_file
from pipeline.errors import RunError
from pipeline.ledger import Ledger
from pipeline.packing import COMPRESSIONS, LATENT_PACKINGS
from pipeline.parts import blobs, open_part, read_row_group
from pipeline.schema import TokenFormat
from pipeline.storage import Storage


class Clip(NamedTuple):
    """Mean and log-variance of one clip."""

    values: npt.NDArray[np.float32]
    """``[2c, t, h, w]``"""
    token_shape: list[int]


def main(arguments: Sequence[str] | None = None) -> int:
    """The benchmark."""
    parser = CommandLine(prog="python -m jobs.benchmark latents", description=__doc__)
    parser.add_argument("out", metavar="OUT", help="output.root of a run of a continuous tokenizer")
    parser.add_argument("--passes", type=count, default=7)
    parser.add_argument("--json", type=new_file, metavar="FILE", help="write the figures there")
    options = parser.parse_args(arguments)
    record, clips = read_clips(options.out)
    figures = measure(record, clips, options.passes)
    num_values = sum(clip.values.size for clip in clips)
    print(f"{len(clips)} clips, {num_values:,} values, tokenizer {record.tokenizer}; {machine()}")
    print("| packing | compression | bytes/value | write MB/cpu-s | read MB/cpu-s |")
    print("|---|---|---|---|---|")
    for name, row in figures.items():
        packing, compression = name.split("+")
        print(
            f"| {packing} | {compression} | {row['bytes_per_value']:.3f} "
            f"| {row['write_mb_per_cpu_second']:,.0f} | {row['read_mb_per_cpu_second']:,.0f} |"
        )
    write_json(options.json, figures)
    return 0


def read_clips(out: str) -> tuple[TokenFormat, list[Clip]]:
    """All latents of an OUT.

    Raises:
        RunError: it holds none.
    """
    found, record = [], None
    storage = Storage(out)
    for line in Ledger.open(storage).lines():
        if not line.latent_mean:
            continue
        part = open_part(storage, line)
        record = part.token_format
        for group in range(len(line.row_groups)):
            table = read_row_group(part, group, ["tokens", "token_shape"])
            shapes = table.column("token_shape").to_pylist()
            for blob, shape in zip(blobs(table.column("tokens")), shapes, strict=True):
                values = record.unpack_row(blob, shape)
                found.append(Clip(values, shape))
    if record is None:
        raise RunError(f"{storage} holds no latents: give an OUT of a continuous tokenizer")
    return record, found


def measure(record: TokenFormat, clips: Sequence[Clip], passes: int) -> dict[str, dict[str, float]]:
    """Size and rates of every packing; MB of unpacked float32 for all, so that rates compare."""
    megabytes = sum(clip.values.nbytes for clip in clips) / 1e6
    formats = list(_formats(record))
    writes, reads = defaultdict(list), defaultdict(list)
    sizes: dict[str, int] = {}
    for _ in range(passes):
        for name, form in formats:
            began = time.process_time()
            packed = [form.pack(clip.values) for clip in clips]
            wrote = time.process_time()
            for blob, clip in zip(packed, clips, strict=True):
                _read(form, blob, clip.token_shape)
            writes[name].append(wrote - began)
            reads[name].append(time.process_time() - wrote)
            sizes[name] = sum(map(len, packed))
    num_values = sum(clip.values.size for clip in clips)
    return {
        name: {
            "bytes_per_value": sizes[name] / num_values,
            "write_mb_per_cpu_second": megabytes / statistics.median(writes[name]),
            "read_mb_per_cpu_second": megabytes / statistics.median(reads[name]),
        }
        for name, _ in formats
    }


def _formats(record: TokenFormat) -> Iterator[tuple[str, TokenFormat]]:
    for packing in LATENT_PACKINGS:
        for compression in COMPRESSIONS:
            name = f"{packing}+{compression}"
            yield name, replace(record, packing=packing, compression=compression)


def _read(form: TokenFormat, blob: bytes, token_shape: list[int]) -> npt.NDArray[Any]:
    expanded = form.expand(np.frombuffer(blob, np.uint8), token_shape)
    return form.unpack(expanded[None], token_shape)
