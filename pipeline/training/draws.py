"""Pure: what chance says of a clip: its rate, its start, its crop, whether it is mirrored.

Draws are hashes of (seed, epoch, clip): they do not depend on ranks, order, or what was drawn
before.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from dataclasses import dataclass

from pipeline.loading.hashing import derived_key, hashes, unit_interval

_PURPOSES = ("rate", "start", "across", "down", "mirror", "zoom")


@dataclass(frozen=True, slots=True, kw_only=True)
class Draw:
    """One clip of a video."""

    fps: float
    """The rate, frames per second."""
    start: float
    """Where it starts among all places possible, in [0, 1)."""
    across: float | None
    """Where the crop lies between left and right, in [0, 1); None: in the centre."""
    down: float | None
    """Where the crop lies between top and bottom, in [0, 1); None: in the centre."""
    mirrored: bool
    """Left and right are exchanged."""
    zoom: float
    """How many times as large as the crop the short side is, at least 1."""


def draws(
    seed: int,
    epoch: int,
    clip_id: str,
    number: int,
    *,
    fps: Sequence[float],
    random_crop: bool,
    mirror: bool,
    max_zoom: float = 1.0,
) -> list[Draw]:
    """The draws of a video's clips, ``[number]``.

    Args:
        seed: of the training.
        epoch: from 0 on.
        clip_id: names the video in the data set.
        number: of clips.
        fps: rates, each as likely as the others.
        random_crop: else the centre.
        mirror: mirror half of the clips.
        max_zoom: zooms are drawn between 1 and this, evenly on a logarithmic scale.
    """
    drawn = []
    for index in range(number):
        key = derived_key(seed, epoch, clip_id, index)
        chances = dict(zip(_PURPOSES, unit_interval(hashes(range(6), key)).tolist(), strict=True))
        drawn.append(
            Draw(
                fps=fps[int(chances["rate"] * len(fps))],
                start=chances["start"],
                across=chances["across"] if random_crop else None,
                down=chances["down"] if random_crop else None,
                mirrored=mirror and chances["mirror"] < 0.5,
                zoom=max_zoom ** chances["zoom"],
            )
        )
    return drawn


def with_draws(drawn: Sequence[Draw], video: bytes) -> bytes:
    """A job of a decoder child: the draws as one line, then the video."""
    return json.dumps([dataclasses.asdict(one) for one in drawn]).encode() + b"\n" + video


def split_draws(job: bytes) -> tuple[list[Draw], bytes]:
    """The inverse of ``with_draws``.

    >>> drawn = draws(0, 0, "a", 2, fps=(3.0, 8.0), random_crop=True, mirror=False)
    >>> split_draws(with_draws(drawn, b"video")) == (drawn, b"video")
    True
    """
    line, _, video = job.partition(b"\n")
    return [Draw(**fields) for fields in json.loads(line)], video
