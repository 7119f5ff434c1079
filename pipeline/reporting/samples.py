"""``OUT/samples/``: clips that workers decoded again, ``<slot>.json`` and ``<slot>.png``.

The picture has source frames above their reconstruction.
"""

from __future__ import annotations

import json
from collections import Counter

from pipeline.errors import RunError
from pipeline.reporting.strips import Strip
from pipeline.storage import Storage

MAX_LINES = 2000
"""Samples that are counted; an OUT has fewer unless it is asked for more."""
MAX_LINE_BYTES = 64 << 10
MAX_PICTURE_BYTES = 2 << 20
"""A larger picture is left out."""


def read_samples(storage: Storage, *, num_shown: int) -> tuple[list[Strip], list[Strip]]:
    """All samples, without pictures; and some of every rate and bucket, with theirs.

    Raises:
        RunError: a file there that no run wrote.
    """
    entries = storage.entries("samples")
    names = sorted(name for name in entries if name.endswith(".json"))[:MAX_LINES]
    contents = storage.read_many([f"samples/{n}" for n in names], max_bytes=MAX_LINE_BYTES)
    lines = {place: _line(storage, place, content) for place, content in contents.items()}
    kinds: Counter[str] = Counter()
    order = []
    for place, line in lines.items():
        order.append((kinds[line.kind], place))
        kinds[line.kind] += 1
    pictured = [
        place
        for _, place in sorted(order)
        if (entry := entries.get(_picture(place).removeprefix("samples/"))) is not None
        and entry.size_bytes <= MAX_PICTURE_BYTES
    ][:num_shown]
    pictures = storage.read_many(list(map(_picture, pictured)), max_bytes=MAX_PICTURE_BYTES)
    shown = [
        lines[place].with_pictures({"source and reconstruction": pictures[_picture(place)]})
        for place in pictured
        if pictures.get(_picture(place), b"").startswith(b"\x89PNG")
    ]
    return list(lines.values()), shown


def _picture(place: str) -> str:
    return place.removesuffix(".json") + ".png"


def _line(storage: Storage, place: str, content: bytes) -> Strip:
    try:
        line = json.loads(content)
        return Strip(
            clip_id=str(line["clip_id"]),
            caption=None,
            fps=float(line["fps"]),
            bucket=str(line["bucket"]),
            psnr=float(line["recon_psnr"]),
        )
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise RunError(f"{storage}/{place} is no sample: {error!r}") from error
