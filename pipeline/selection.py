"""What a sample's spans and columns are: from the table of spans, or from its own JSON."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from pipeline.columns import Columns, typed_values
from pipeline.errors import VideoError
from pipeline.reader import NOT_IN_SPANS, Sample
from pipeline.span_table import MAX_SPANS, SpanRow, SpanSource, SpanTable


@dataclass(frozen=True, slots=True, kw_only=True)
class SelectionRules:
    """Where spans and columns come from; picklable."""

    table: SpanSource | None = None
    """The table of spans."""
    spans_key: str | None = None
    """Or where they stand in a sample's JSON."""
    columns: Columns = ()
    """Wanted of the table or the JSON."""


class Selection:
    """Gives samples their spans and columns; to be closed."""

    def __init__(self, rules: SelectionRules) -> None:
        """Open the table.

        Raises:
            PipelineError: it cannot be opened, or is none of spans.
        """
        self._rules = rules
        self._table = None if rules.table is None else SpanTable(rules.table)

    def wants(self, key: str) -> bool:
        """Whether a video of this key can have spans: others need not be read."""
        return self._table is None or key in self._table

    def of(self, sample: Sample) -> Sample:
        """The sample with spans and columns, or with the reason why it gives no clip."""
        if sample.defect is not None or sample.skipped is not None:
            return sample
        try:
            record = self._record(sample)
            spans = self._spans(sample, record)
            if spans == ():
                return replace(sample, skipped=NOT_IN_SPANS, video=b"")
            return replace(sample, spans=spans, columns=typed_values(record, self._rules.columns))
        except VideoError as defect:
            return replace(sample, defect=defect)
        except RecursionError:  # what the reader could just parse is too deep to be told of
            too_deep = VideoError("bad_metadata", "the .json is nested too deeply")
            return replace(sample, defect=too_deep)

    def _record(self, sample: Sample) -> Mapping[str, Any]:
        """The JSON, where it is wanted; the reader has seen that it is JSON."""
        if sample.metadata is None or not (self._rules.columns or self._rules.spans_key):
            return {}
        found = json.loads(sample.metadata)
        return found if isinstance(found, dict) else {}

    def _spans(self, sample: Sample, record: Mapping[str, Any]) -> tuple[SpanRow, ...] | None:
        if self._table is not None:
            found = self._table.spans(sample.original_key or sample.key)
        elif self._rules.spans_key is not None:
            found = spans_of(record.get(self._rules.spans_key), self._rules.columns)
        else:
            return None
        if len(found) > MAX_SPANS:
            raise VideoError("bad_spans", f"more than {MAX_SPANS:,} spans")
        return found

    def close(self) -> None:
        """Let go of the table."""
        if self._table is not None:
            self._table.close()


def spans_of(value: Any, columns: Columns) -> tuple[SpanRow, ...]:
    """Spans in a sample's JSON, by start and end: pairs of seconds, or objects.

    >>> [(one.start_seconds, one.end_seconds) for one in spans_of([[2, 3.5], [0, None]], ())]
    [(0.0, None), (2.0, 3.5)]
    >>> spans_of([{"start_seconds": 1, "end_seconds": 2, "caption": "a cat"}], ())[0].caption
    'a cat'

    Raises:
        VideoError: ``bad_spans`` or ``bad_column``.
    """
    if value is None:
        return ()
    if not isinstance(value, list):
        raise VideoError("bad_spans", f"spans must be a list, got {value!r:.100}")
    rows = [_span_of(one, columns) for one in value]
    return tuple(sorted(rows, key=lambda row: (row.start_seconds, row.end_seconds or math.inf)))


def _span_of(value: Any, columns: Columns) -> SpanRow:
    record = value
    if isinstance(value, list) and len(value) == 2:
        record = {"start_seconds": value[0], "end_seconds": value[1]}
    if not isinstance(record, dict):
        raise VideoError("bad_spans", f"not a span: {value!r:.100}")
    kinds: Columns = (("start_seconds", "float"), ("end_seconds", "float"), ("caption", "string"))
    found = typed_values(record, kinds)
    start, end = found["start_seconds"] or 0.0, found["end_seconds"]
    if not 0 <= start < math.inf or (end is not None and not start < end):
        raise VideoError("bad_spans", f"a span from {start} to {end} seconds")
    return SpanRow(
        start_seconds=start,
        end_seconds=None if end == math.inf else end,
        caption=found["caption"],
        columns=typed_values(record, columns),
    )
