"""From a checked ``RunConfig`` to what workers are told of spans and the data set's own columns."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import Any

from pipeline.columns import BATCH_NAMES, QUALITY, SPAN_INDEX, Columns, check_columns
from pipeline.config import RunConfig
from pipeline.errors import ConfigError
from pipeline.records import SamplingMode
from pipeline.schema import TokenRow
from pipeline.selection import SelectionRules
from pipeline.shards import normalise_url
from pipeline.span_table import SpanSource, SpanTable

_TAKEN = (
    BATCH_NAMES
    | {SPAN_INDEX}
    | {name for name, _ in QUALITY}
    | {one.name for one in fields(TokenRow)}
)

_TABLE_VARIABLES = {"openvid": "OPENVID_TABLE", "panda70m": "PANDA70M_SPANS"}
"""Data sets that are stretches of longer videos or a choice of them -> where else the table is."""


def check_spans(run: RunConfig) -> None:
    """Whether spans, cuts and columns go together with the rest.

    Raises:
        ConfigError: they do not.
    """
    dataset, sampling = run.dataset, run.sampling
    own_columns(run)
    if dataset.spans is not None and dataset.spans_key is not None:
        raise ConfigError("give dataset.spans or dataset.spans_key, not both")
    if dataset.name in _TABLE_VARIABLES and not (dataset.spans or dataset.spans_key):
        raise ConfigError(
            f"dataset {dataset.name} has no table of spans: give dataset.spans=TABLE or the "
            f"environment variable {_TABLE_VARIABLES[dataset.name]}; +dataset=folder takes whole "
            "videos without one"
        )
    if dataset.spans_sha256 is not None and dataset.spans is None:
        raise ConfigError("dataset.spans_sha256 is of a table: give dataset.spans=TABLE")
    if sampling.mode is SamplingMode.whole and (has_spans(run) or sampling.cuts.name != "none"):
        raise ConfigError(
            "sampling.mode=whole makes one row of a video: dataset.spans, dataset.spans_key and "
            "sampling.cuts are for mode=clips"
        )


def has_spans(run: RunConfig) -> bool:
    """Whether clips lie within spans."""
    return run.dataset.spans is not None or run.dataset.spans_key is not None


def own_columns(run: RunConfig) -> Columns:
    """``dataset.columns``, then ``dataset.captions``.

    Raises:
        ConfigError: a name or type that cannot be.
    """
    given = {} if run.dataset.columns is None else run.dataset.columns
    if not isinstance(given, dict):
        raise ConfigError(
            "dataset.columns must be names and types like {aesthetic: float, license: string}, "
            f"got {given!r}"
        )
    columns: dict[str, Any] = dict(given)
    check_columns(columns, _TAKEN, place="dataset.columns")
    captions = dict.fromkeys(run.dataset.captions, "string")
    check_columns(captions, _TAKEN | columns.keys(), place="dataset.captions")
    return tuple((columns | captions).items())


def stored_columns(run: RunConfig) -> Columns:
    """What parts hold of them, behind what is said of every clip: with spans also which one."""
    every = QUALITY if run.quality.columns else ()
    return (*every, *(((SPAN_INDEX, "int"),) if has_spans(run) else ()), *own_columns(run))


def selection_rules(run: RunConfig) -> SelectionRules:
    """What workers are told."""
    dataset, table = run.dataset, None
    if dataset.spans is not None:
        table = SpanSource(
            url=normalise_url(dataset.spans),
            options=dict(dataset.storage_options),
            columns=own_columns(run),
            sha256=dataset.spans_sha256,
        )
    return SelectionRules(table=table, spans_key=dataset.spans_key, columns=own_columns(run))


def spans_identity(run: RunConfig) -> dict[str, Any]:
    """The fingerprint's material; empty where nothing is asked for, as before there was any."""
    material: dict[str, Any] = {}
    if run.dataset.spans is not None:
        material["spans_sha256"] = run.dataset.spans_sha256
    if run.dataset.spans_key is not None:
        material["spans_key"] = run.dataset.spans_key
    if columns := own_columns(run):
        material["columns"] = dict(columns)
    return material


@dataclass(frozen=True, slots=True, kw_only=True)
class SpanCounts:
    """What a table holds."""

    spans: int
    videos: int


def with_spans(run: RunConfig) -> tuple[RunConfig, SpanCounts | None]:
    """The configuration with the table's digest, and what is in the table; None: there is none.

    Raises:
        PipelineError: the table cannot be had, is none of spans, or another one than was asked for.
    """
    source = selection_rules(run).table
    if source is None:
        return run, None
    table = SpanTable(source)
    try:
        counts = SpanCounts(spans=len(table), videos=table.num_videos)
        return replace(run, dataset=replace(run.dataset, spans_sha256=table.sha256)), counts
    finally:
        table.close()


def describe_spans(counts: SpanCounts) -> str:
    """One line for a person."""
    return f"spans: {counts.spans:,} of {counts.videos:,} videos; other videos are left out"
