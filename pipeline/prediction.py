"""From what a probe measured to what a whole data set will take. Pure arithmetic.

Amounts are scaled by how much of the data set the probe has covered (bytes of tars, or files of a
folder). Their uncertainty is the variation between the units of the sample: the standard error of a
ratio of two sums, smaller the more of the data set was seen, and none when all of it was.

Rates are those of the machine that probed. A worker gives as many clips a second as the slower of
its encoder and its decoders: ``1 / e`` with e seconds a clip for the encoder, and ``c / d`` with d
CPU seconds a clip spread over c cores that decode.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

NORMAL_90 = 1.645
"""Standard errors on either side that hold nine of ten cases."""
PUTS_PER_SEGMENT = 2
"""A part and its receipt; large parts take one more for every few megabytes."""
GETS_PER_OBJECT = 2
"""Beside those for its ranges: size and version, and a last one that is not full."""
RATE_UNCERTAINTY = 0.1
"""Relative, of a rate measured over a minute or two on one machine."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Unit:
    """A few neighbouring videos that the probe tokenised."""

    group: str
    """Where they come from: neighbours resemble each other, so what varies is the group."""
    covered: float
    """Bytes of a tar, or files of a folder."""
    videos: float
    """Videos, broken ones included."""
    quarantined: float
    """Of them, broken."""
    clips: float
    """Clips they gave."""
    token_bytes: float
    """Size of the parts."""
    decode_cpu_seconds: float
    """CPU time of the decoders."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DataSet:
    """What is to be done, as listed."""

    num_shards: int
    """Tars, or buckets of a folder."""
    num_objects: int
    """Tars, or files of a folder."""
    to_cover: float
    """Bytes of tars, or files of a folder."""
    read_bytes: float
    """Bytes of all sources."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Machine:
    """One worker as it was measured and will be paid, and how many there will be."""

    num_workers: int
    """GPUs, or workers on CPUs."""
    cores: float
    """Cores of a worker."""
    encoder_cores: float
    """Of them, busy with feeding a GPU or with encoding."""
    clips_per_second: float
    """As measured: encoder and decoders coupled, start and end left out."""
    encode_seconds_per_clip: float
    """Of the encoder alone, while decoders ran beside it."""
    gpu_usd_per_hour: float | None
    """Price of a worker's GPU; 0 where there is none."""
    core_usd_per_hour: float | None
    """Price of a core."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Rules:
    """What of the configuration decides how often storage is asked."""

    max_clips: int
    """Clips of a segment at most."""
    max_seconds: float
    """Seconds of a segment at most."""
    open_shards: int
    """Shards that a worker has open at once."""
    range_bytes: int
    """Bytes of one read."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Estimate:
    """A number, and between which it lies in nine of ten cases."""

    value: float
    low: float
    high: float

    def scaled(self, factor: float) -> Estimate:
        """The same in other units."""
        return Estimate(value=self.value * factor, low=self.low * factor, high=self.high * factor)


@dataclass(frozen=True, slots=True, kw_only=True)
class Prediction:
    """What the whole data set will give and take."""

    videos: Estimate
    quarantined: Estimate
    clips: Estimate
    token_bytes: Estimate
    hours: Estimate
    """Of all workers together, until everything is done."""
    usd: Estimate | None
    """None without prices."""
    num_workers: int
    """Those that find work: a shard is not shared, so at most one for each."""
    clips_per_second: float
    """All workers together."""
    cores_wanted: float
    """Of one worker, so that its encoder never waits."""
    with_another_core: float
    """Clips per second of one worker with one more core, on those without."""
    usd_with_another_core: float | None
    """The whole data set then; None without prices."""
    read_bytes_per_second: float
    gets_per_second: float
    puts_per_second: float
    written_bytes_per_second: float
    sampled_share: float
    """Part of the data set that the probe has covered, 0 to 1."""


def ratio(units: Sequence[Unit], amount: str, total: float) -> Estimate:
    """The sum of an amount over the whole data set.

    Args:
        units: the sample.
        amount: a field of `Unit`.
        total: what the whole data set has to cover.

    >>> units = [Unit(group=g, covered=10.0, videos=1, quarantined=0, clips=c, token_bytes=0,
    ...               decode_cpu_seconds=0) for g, c in (("a", 3.0), ("b", 5.0))]
    >>> ratio(units, "clips", 20.0), ratio(units, "clips", 2000.0).value
    (Estimate(value=8.0, low=8.0, high=8.0), 800.0)
    """
    groups: dict[str, tuple[float, float]] = {}
    for number, unit in enumerate(units):
        # one shard alone says nothing of how shards differ: take its parts instead
        name = unit.group if len({u.group for u in units}) > 1 else str(number)
        covered, sum_ = groups.get(name, (0.0, 0.0))
        groups[name] = (covered + unit.covered, sum_ + getattr(unit, amount))
    covered = sum(x for x, _ in groups.values())
    rate = sum(y for _, y in groups.values()) / covered
    unseen = max(0.0, 1.0 - covered / total)
    n = len(groups)
    if n > 1:
        squares = sum((y - rate * x) ** 2 for x, y in groups.values())
        error = math.sqrt(n / (n - 1) * squares * unseen) / covered * NORMAL_90
    else:
        error = rate * unseen  # nothing is known but that it is not less than what was seen
    seen = min(covered, total) * rate
    value = rate * total
    return Estimate(value=value, low=max(seen, value - error * total), high=value + error * total)


def predict(units: Sequence[Unit], data: DataSet, machine: Machine, rules: Rules) -> Prediction:
    """What the whole data set will give and take.

    Raises:
        ValueError: the probe gave no clip.
    """
    clips = ratio(units, "clips", data.to_cover)
    if clips.value <= 0 or machine.clips_per_second <= 0:
        raise ValueError("the probe gave no clip, so nothing can be said")
    num_workers = min(machine.num_workers, data.num_shards)
    rate = machine.clips_per_second * num_workers
    hours = _spread(clips.scaled(1 / rate / 3600), RATE_UNCERTAINTY)
    seconds = clips.value / rate
    token_bytes = ratio(units, "token_bytes", data.to_cover)
    decode = sum(unit.decode_cpu_seconds for unit in units) / sum(unit.clips for unit in units)
    gain = _gain(machine, decode)
    num_segments = _segments(clips.value / data.num_shards, machine, rules) * data.num_shards
    num_gets = data.read_bytes / rules.range_bytes + GETS_PER_OBJECT * data.num_objects
    usd, usd_then = _money(hours, machine, num_workers, gain)
    return Prediction(
        videos=ratio(units, "videos", data.to_cover),
        quarantined=ratio(units, "quarantined", data.to_cover),
        clips=clips,
        token_bytes=token_bytes,
        hours=hours,
        usd=usd,
        num_workers=num_workers,
        clips_per_second=rate,
        cores_wanted=machine.encoder_cores + decode / machine.encode_seconds_per_clip,
        with_another_core=gain,
        usd_with_another_core=usd_then,
        read_bytes_per_second=data.read_bytes / seconds,
        gets_per_second=num_gets / seconds,
        puts_per_second=PUTS_PER_SEGMENT * num_segments / seconds,
        written_bytes_per_second=token_bytes.value / seconds,
        sampled_share=min(1.0, sum(unit.covered for unit in units) / data.to_cover),
    )


def _money(
    hours: Estimate, machine: Machine, num_workers: int, gain: float
) -> tuple[Estimate | None, float | None]:
    """What the hours cost, and what they would with one more core for each worker."""
    if machine.gpu_usd_per_hour is None or machine.core_usd_per_hour is None:
        return None, None
    price = machine.gpu_usd_per_hour + machine.cores * machine.core_usd_per_hour
    usd = hours.scaled(num_workers * price)
    return usd, hours.value / gain * num_workers * (price + machine.core_usd_per_hour)


def _gain(machine: Machine, decode_cpu_seconds_per_clip: float) -> float:
    """Clips per second with one more core for decoding, on those without.

    A core brings ``1 / d`` clips a second, up to what the encoder takes.
    """
    most = max(machine.clips_per_second, 1 / machine.encode_seconds_per_clip)
    if decode_cpu_seconds_per_clip <= 0:
        return most / machine.clips_per_second
    brought = machine.clips_per_second + 1 / decode_cpu_seconds_per_clip
    return min(most, brought) / machine.clips_per_second


def _segments(clips_per_shard: float, machine: Machine, rules: Rules) -> int:
    """Segments of one shard: by clips, or by time where that comes first."""
    seconds = clips_per_shard / machine.clips_per_second * rules.open_shards
    return max(
        1, math.ceil(clips_per_shard / rules.max_clips), math.ceil(seconds / rules.max_seconds)
    )


def _spread(estimate: Estimate, uncertainty: float) -> Estimate:
    """With a further relative uncertainty, independent of the first."""

    def widened(bound: float) -> float:
        return math.hypot(bound / estimate.value - 1, uncertainty)

    return Estimate(
        value=estimate.value,
        low=estimate.value * max(0.0, 1 - widened(estimate.low)),
        high=estimate.value * (1 + widened(estimate.high)),
    )
