"""Small SVG charts as text. Pure: numbers in, markup out; colours are the page's CSS variables."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from html import escape

WIDTH, HEIGHT = 960, 190
_LEFT, _RIGHT, _TOP, _BOTTOM = 52, 8, 10, 24


def nice_ceiling(value: float) -> float:
    """The smallest 1, 2 or 5 times a power of ten that is not below the value.

    >>> nice_ceiling(0.0), nice_ceiling(7.1), nice_ceiling(0.18), nice_ceiling(200)
    (1.0, 10.0, 0.2, 200.0)
    """
    if value <= 0:
        return 1.0
    power = 10.0 ** math.floor(math.log10(value))
    for step in (1.0, 2.0, 5.0):
        if value <= step * power * (1 + 1e-9):
            return step * power
    return 10.0 * power


def short(value: float) -> str:
    """A number of about three digits.

    >>> short(1234567), short(45200), short(1200), short(12.34), short(0.123456), short(0)
    ('1.23M', '45.2k', '1,200', '12.3', '0.123', '0')
    """
    for size, letter in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e4, "k")):
        if abs(value) >= size:
            return f"{value / (1e3 if letter == 'k' else size):.3g}{letter}"
    return f"{value:,.0f}" if abs(value) >= 1000 or value == int(value) else f"{value:.3g}"


def size(num_bytes: float) -> str:
    """Bytes in decimal units.

    >>> size(84183), size(512), size(3.2e12)
    ('84.2 kB', '512 B', '3.2 TB')
    """
    for power, unit in ((12, "TB"), (9, "GB"), (6, "MB"), (3, "kB")):
        if num_bytes >= 10**power:
            return f"{num_bytes / 10**power:.3g} {unit}"
    return f"{num_bytes:.0f} B"


def bars(counts: Mapping[str, float], *, most: int = 8, unit: str = "") -> str:
    """Horizontal bars in HTML, the given order kept; what is beyond ``most`` becomes one bar.

    Args:
        counts: label -> number, from 0.
        most: bars.
        unit: of the numbers, behind each.
    """
    rows = list(counts.items())
    if len(rows) > most:
        rest = rows[most - 1 :]
        rows = [*rows[: most - 1], (f"{len(rest)} others", sum(n for _, n in rest))]
    largest, total = max((n for _, n in rows), default=0.0), sum(counts.values())
    lines = []
    for label, number in rows:
        share = number / largest if largest else 0.0
        percent = f" · {number / total:.0%}" if total and not unit else ""
        lines.append(
            f'<div class="bar"><span class="label">{escape(label)}</span>'
            f'<span class="track"><i style="width:{share:.1%}"></i></span>'
            f'<span class="number">{short(number)}{escape(unit)}{percent}</span></div>'
        )
    return f'<div class="bars">{"".join(lines)}</div>'


def histogram(
    counts: Sequence[float], *, low: float, high: float, label: str, unit: str = ""
) -> str:
    """Columns over equal steps of [low, high].

    Args:
        counts: one number a column, from 0.
        low: where the first column begins.
        high: where the last one ends.
        label: what the chart shows, for those who do not see it.
        unit: of low and high.
    """
    top = nice_ceiling(max(counts, default=0.0))
    step = (WIDTH - _LEFT - _RIGHT) / max(1, len(counts))
    columns = []
    for at, count in enumerate(counts):
        height = (HEIGHT - _TOP - _BOTTOM) * count / top
        begin, end = (low + (high - low) * (at + k) / len(counts) for k in (0, 1))
        columns.append(
            f'<rect class="column" x="{_LEFT + at * step + 0.5:.1f}" width="{step - 1:.1f}" '
            f'y="{HEIGHT - _BOTTOM - height:.1f}" height="{height:.1f}">'
            f"<title>{short(begin)} to {short(end)}{escape(unit)}: {short(count)}</title></rect>"
        )
    ticks = [(k / 4, f"{short(low + (high - low) * k / 4)}{unit}") for k in range(5)]
    return _svg(label, "".join(columns), top, ticks)


def area(
    values: Sequence[float],
    *,
    label: str,
    ticks: Sequence[tuple[float, str]],
    breaks: Sequence[float] = (),
) -> str:
    """A filled line over equal steps.

    Args:
        values: from 0; one a step.
        label: what the chart shows, for those who do not see it.
        ticks: (place 0 to 1, text) below it.
        breaks: places 0 to 1 where time that nobody worked is left out.
    """
    top = nice_ceiling(max(values, default=0.0))
    points = []
    for at, value in enumerate(values):
        x0, x1 = (_x((at + k) / len(values)) for k in (0, 1))
        y = _y(value / top)
        points += [f"{x0:.1f},{y:.1f}", f"{x1:.1f},{y:.1f}"]
    floor = _y(0)
    line = " ".join(points)
    shape = f"{_x(0):.1f},{floor:.1f} {line} {_x(1):.1f},{floor:.1f}"
    cuts = "".join(
        f'<line class="break" x1="{_x(place):.1f}" x2="{_x(place):.1f}" y1="{_TOP}" '
        f'y2="{floor:.1f}"/>'
        for place in breaks
    )
    body = f'<polygon class="area" points="{shape}"/><polyline class="line" points="{line}"/>{cuts}'
    return _svg(label, body if points else "", top, ticks)


def stacked(shares: Sequence[tuple[str, float]]) -> str:
    """One bar of several parts with a legend below it.

    Args:
        shares: (name, share), each from 0, together at most 1; the colour is the place's.
    """
    parts = "".join(
        f'<i class="s{at}" style="width:{share:.2%}" title="{escape(name)} {share:.0%}"></i>'
        for at, (name, share) in enumerate(shares)
    )
    legend = "".join(
        f'<span><b class="s{at}"></b>{escape(name)} {share:.0%}</span>'
        for at, (name, share) in enumerate(shares)
    )
    return f'<div class="stack">{parts}</div><div class="legend">{legend}</div>'


def _x(share: float) -> float:
    return _LEFT + share * (WIDTH - _LEFT - _RIGHT)


def _y(share: float) -> float:
    return HEIGHT - _BOTTOM - share * (HEIGHT - _TOP - _BOTTOM)


def _svg(label: str, body: str, top: float, ticks: Sequence[tuple[float, str]]) -> str:
    grid = "".join(
        f'<line class="grid" x1="{_LEFT}" x2="{WIDTH - _RIGHT}" y1="{_y(k / 2):.1f}" '
        f'y2="{_y(k / 2):.1f}"/><text x="{_LEFT - 6}" y="{_y(k / 2) + 4:.1f}" '
        f'text-anchor="end">{short(top * k / 2)}</text>'
        for k in range(3)
    )
    below = "".join(
        f'<text x="{_x(place):.1f}" y="{HEIGHT - 6}" text-anchor="'
        f'{"start" if place < 0.02 else "end" if place > 0.98 else "middle"}">{escape(text)}</text>'
        for place, text in ticks
    )
    return (
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(label)}">'
        f"{grid}{body}{below}</svg>"
    )
