"""``OUT/README.md``: what a data set of tokens is, in words and in Hugging Face's header.

Made of what is committed and of ``run.json`` alone, so that the same OUT has the same card. Written
at the end of every run, finished or not.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

import pyarrow as pa

from pipeline.ledger import Ledger
from pipeline.manifest import Line
from pipeline.parts import open_part
from pipeline.pixel_stats import BLACK_LUMA
from pipeline.records import Variant
from pipeline.resolve_sampling import describe_variant, recorded_variant
from pipeline.run_record import read_run_record
from pipeline.schema import TokenFormat
from pipeline.storage import Storage

CARD = "README.md"

MARK = "<!-- Written at the end of every run. Without this line it is left as it is. -->"

LICENSES = frozenset(
    "afl-3.0 agpl-3.0 apache-2.0 artistic-2.0 bsd-2-clause bsd-3-clause bsl-1.0 cc cc0-1.0 "
    "cc-by-2.0 cc-by-2.5 cc-by-3.0 cc-by-4.0 cc-by-sa-3.0 cc-by-sa-4.0 cc-by-nc-2.0 cc-by-nc-3.0 "
    "cc-by-nc-4.0 cc-by-nd-4.0 cc-by-nc-nd-3.0 cc-by-nc-nd-4.0 cc-by-nc-sa-2.0 cc-by-nc-sa-3.0 "
    "cc-by-nc-sa-4.0 cdla-permissive-1.0 cdla-permissive-2.0 cdla-sharing-1.0 c-uda gfdl gpl "
    "gpl-2.0 gpl-3.0 lgpl lgpl-2.1 lgpl-3.0 mit mpl-2.0 odbl odc-by openrail other pddl unknown "
    "unlicense wtfpl zlib".split()
)
"""Identifiers that the header may hold; anything else is ``other`` with a name."""

_SIZES = ((1_000, "n<1K"), (10_000, "1K<n<10K"), (100_000, "10K<n<100K"), (1_000_000, "100K<n<1M"),
          (10_000_000, "1M<n<10M"), (100_000_000, "10M<n<100M"))  # fmt: skip

COLUMNS = {
    "clip_id": "name of the clip, unique: `shard/key@fps#clip_index`",
    "shard": "name of the source's shard",
    "key": "name of the video in its shard",
    "clip_index": "position of the clip among those of its video and rate, from 0",
    "fps": "frames per second of the clip; 0: an image, a clip of one frame",
    "start_seconds": "where the clip starts in its video, in seconds from the first frame",
    "end_seconds": "where it ends, in seconds",
    "frame_seconds": "of each frame, when the source shows it, in seconds",
    "source_width": "pixels of the source",
    "source_height": "pixels of the source",
    "source_fps": "mean frames per second of the source",
    "bucket": "`HxW`, pixels of the clip's frames as they were encoded",
    "caption": "text that came with the video; null: none",
    "metadata": "JSON that came with the video; null: none",
    "token_shape": "`[t, h, w]` of indices, `[c, t, h, w]` of latents",
    "span_index": "which span of its video the clip lies in, from 0, counted by start, then end; "
    "null: it has none",
    "luma_mean": "mean luma of the clip's pixels, 0 (black) to 255",
    "frame_difference": "mean change of luma from a frame to the next, 0 (static) to 255; null: "
    "one frame",
    "black_fraction": f"share of pixels whose luma is at most {BLACK_LUMA}, 0 to 1",
    "token_entropy": "Shannon entropy of the clip's indices, in bits; null: latents",
    "recon_psnr": "PSNR of the decoded tokens in dB, of a few clips drawn by hash; null: not drawn",
    "tokens": "bytes of the tokens; the footer's `vidtok.tokens` says how they are packed",
}
"""Name -> meaning and unit."""


def write_card(storage: Storage, ledger: Ledger, *, license_name: str | None) -> None:
    """Write or refresh the card.

    Nothing is written where no run has begun, nothing has changed, or somebody put a text of his
    own in its place.

    Args:
        storage: OUT.
        ledger: what is committed.
        license_name: ``dataset.license`` of now.
    """
    record, before = read_run_record(storage), _current(storage)
    if record is None or (before is not None and MARK not in before):
        return
    newest = None
    for line in ledger.lines(with_groups=False):
        newest = line if line.part is not None else newest
    if newest is not None:
        among = ledger.lines(shards=[newest.shard])
        newest = next(line for line in among if line.part == newest.part)
    part = None if newest is None else open_part(storage, newest)
    text = card(
        record,
        ledger,
        license_name=license_name,
        schema=None if part is None else part.file.schema_arrow,
        token_format=None if part is None else part.token_format,
    )
    if before != text:
        storage.put(CARD, text.encode())


def _current(storage: Storage) -> str | None:
    try:
        return storage.read(CARD).decode("utf-8", "replace")
    except FileNotFoundError:
        return None


def card(
    record: Mapping[str, Any],
    ledger: Ledger,
    *,
    license_name: str | None,
    schema: pa.Schema | None,
    token_format: TokenFormat | None,
) -> str:
    """The card's text.

    Args:
        record: ``run.json``.
        ledger: what is committed.
        license_name: of the source's owner, or None.
        schema: of a part; None: there is none yet.
        token_format: of the same.
    """
    shapes: Counter[str] = Counter()
    environments: set[str] = set()
    for line in ledger.lines(with_groups=False):
        shapes.update(line.shapes)
        environments.add(_environment(line))
    parts = [
        _header(record, ledger.counts().clips, license_name),
        _introduction(record),
        _counts(ledger, shapes),
        _reading(max(shapes.values(), default=1)),
    ]
    if schema is not None and token_format is not None:
        parts.append(_schema(schema, token_format))
    parts += [_provenance(record, sorted(environments)), _license(license_name)]
    return "\n".join(parts)


def _name(record: Mapping[str, Any]) -> str:
    tokenizer = record["fingerprint_of"]["tokenizer"]["name"]
    return f"{record['config']['dataset']['name']}, tokens of {tokenizer}"


def _header(record: Mapping[str, Any], clips: int, license_name: str | None) -> str:
    """YAML between dashes; texts are quoted as JSON, which YAML reads."""
    known = (license_name or "unknown").lower()
    lines = ["---", f"pretty_name: {json.dumps(_name(record))}"]
    if known in LICENSES:
        lines.append(f"license: {json.dumps(known)}")
    else:
        lines += ["license: other", f"license_name: {json.dumps(license_name)}"]
    size = next((name for bound, name in _SIZES if clips < bound), "100M<n<1B")
    lines += [
        "size_categories:",
        f"- {json.dumps(size)}",
        "tags:",
        *("- video", "- video-tokens", "- vidtok"),
        "configs:",
        "- config_name: default",
        '  data_files: "parts/*.parquet"',
        "---",
    ]
    return "\n".join(lines) + "\n"


def _introduction(record: Mapping[str, Any]) -> str:
    text = (
        f"{MARK}\n\n# {_name(record)}\n\n"
        "One row is one clip of a video, encoded by a video tokenizer.\n"
    )
    if record["random_weights"]:
        text += "\n**The weights are random: these tokens carry no meaning.**\n"
    return text


def _counts(ledger: Ledger, shapes: Mapping[str, int]) -> str:
    counts = ledger.counts()
    begun = f", {counts.begun_shards:,} more have begun" if counts.begun_shards else ""
    rows = [
        ("shards", f"{counts.final_shards:,} complete{begun}"),
        ("videos", f"{counts.videos:,}"),
        ("clips (rows)", f"{counts.clips:,}"),
        ("latent positions", f"{sum(n * _positions(shape) for shape, n in shapes.items()):,}"),
        ("bytes of parts", f"{counts.part_bytes:,}"),
        *((f"clips of shape [{shape}]", f"{n:,}") for shape, n in sorted(shapes.items())),
        *((f"gave no clip: {name}", f"{n:,}") for name, n in sorted(counts.filtered.items())),
        *((f"quarantined: {name}", f"{n:,}") for name, n in sorted(counts.quarantined.items())),
        *((f"cut: {name}", _cell(reason)) for name, reason in sorted(counts.cut.items())),
    ]
    return _table("## Counts", ("what", "how many"), rows)


def _positions(shape: str) -> int:
    """Of ``t,h,w`` or ``c,t,h,w``.

    >>> _positions("16,5,32,32")
    5120
    """
    time, height, width = (int(number) for number in shape.split(",")[-3:])
    return time * height * width


def _reading(num_clips: int) -> str:
    return f"""## How to read it

In this folder (or with `s3://bucket/prefix` for the dot), where vidtok-pipeline is installed:

```python
from pipeline.dataset import TokenDataset

dataset = TokenDataset(".", batch_size={max(1, min(8, num_clips))}, shuffle=True)
for batch in dataset:
    print(batch["clip_id"][0], batch["caption"][0])
    print(batch["tokens"].dtype, list(batch["tokens"].shape))
```

The files `parts/*.parquet` are plain Parquet. Only those that `receipts/` name are part of the data
set: before copying it, `python -m pipeline.verify OUT --clean` removes what killed processes left.
"""


def _schema(schema: pa.Schema, token_format: TokenFormat) -> str:
    columns = [
        (
            f"`{field.name}`",
            f"{field.type}{', may be null' if field.nullable else ''}",
            COLUMNS.get(field.name, "of the data set"),
        )
        for field in schema
    ]
    table = _table("## Columns", ("column", "type", "meaning, unit"), columns)
    what = (
        f"indices in [0, {token_format.codebook_size:,})"
        if token_format.is_discrete
        else f"{token_format.channels} channels"
        + (", mean and log-variance" if token_format.has_log_variance else "")
    )
    return (
        f"{table}\nTokens: {what}; axes `{token_format.axes}`, packed as `{token_format.packing}`, "
        f"compression `{token_format.compression}`.\n"
    )


def _provenance(record: Mapping[str, Any], environments: Iterable[str]) -> str:
    made = record["fingerprint_of"]
    sampling, variant = made["sampling"], recorded_variant(made)
    rows = [
        ("fingerprint", f"`{record['fingerprint']}`"),
        ("tokenizer", _cell(made["tokenizer"]["name"])),
        ("checkpoint digest (SHA-256)", f"`{made['checkpoint_digest']}`"),
        ("precision", made["precision"]),
        ("frames per second", ", ".join(f"{rate:g}" for rate in sampling["fps"])),
        ("frames of a clip", f"{sampling['clip_frames']} ({sampling['mode']})"),
        ("pixels, H x W", ", ".join(f"{h} x {w}" for h, w in sampling["buckets"])),
        *([("variant", describe_variant(variant))] if variant is not Variant.none else []),
        *((f"made on (environment {n})", _cell(text)) for n, text in enumerate(environments)),
        *((f"version of {name}", text) for name, text in sorted(record["versions"].items())),
        ("version of python", record["python"]),
        ("format version", str(record["format_version"])),
    ]
    return _table("## Provenance", ("what", "value"), rows)


def _environment(line: Line) -> str:
    numerics = json.loads(line.numerics)
    return f"{numerics.get('device')}, torch {numerics.get('torch')}, av {numerics.get('av')}"


def _license(license_name: str | None) -> str:
    said = license_name or (
        "unknown: nobody gave `dataset.license`; the tokens are derived from the source's videos"
    )
    return f"## License\n\n{said}\n"


def _table(title: str, head: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> str:
    lines = [head, tuple("---" for _ in head), *rows]
    return "\n".join([f"{title}\n", *(f"| {' | '.join(line)} |" for line in lines)]) + "\n"


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")
