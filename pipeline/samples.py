"""``OUT/samples/``: source frames above their reconstruction, of the clips that were decoded again.

``<slot>.json`` is one line about a clip, ``<slot>.png`` its strip. A clip's slot follows from its
name; the first clip takes it, so that there are no more than ``quality.max_samples``.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass

import numpy as np
import numpy.typing as npt

from pipeline.storage import Storage

FOLDER = "samples"
MAX_FRAMES = 4
"""In a strip."""
MAX_PIXELS = 600_000
"""Of a strip: with three bytes each, and some for the file, less than 2 MB."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SampleLine:
    """The line of ``<slot>.json``."""

    clip_id: str
    fps: float
    """Of the clip."""
    bucket: str
    """Height and width of the clip, ``256x256``."""
    recon_psnr: float
    """dB."""
    frames: tuple[int, ...]
    """Which of the clip's frames the strip shows, from left to right."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sampled:
    """A line and its picture."""

    slot: int
    line: SampleLine
    png: bytes


def shown_frames(num_frames: int) -> tuple[int, ...]:
    """At most four, from the first to the last.

    >>> shown_frames(17), shown_frames(1)
    ((0, 5, 11, 16), (0,))
    """
    return tuple(sorted({round(at) for at in np.linspace(0, num_frames - 1, MAX_FRAMES).tolist()}))


def strip(
    source: npt.NDArray[np.uint8], made: npt.NDArray[np.uint8], shown: tuple[int, ...]
) -> npt.NDArray[np.uint8]:
    """Source frames from left to right, their reconstructions below; uint8 ``[rows, columns, 3]``.

    Of large frames every second, third ... pixel is shown, so that the strip stays small.

    Args:
        source: uint8 ``[T, H, W, 3]``.
        made: likewise.
        shown: frames to show.
    """
    rows = [np.concatenate([video[at] for at in shown], axis=1) for video in (source, made)]
    step = 1
    while 2 * (-(-source.shape[1] // step)) * -(-rows[0].shape[1] // step) > MAX_PIXELS:
        step += 1
    return np.concatenate([row[::step, ::step] for row in rows])


def keep_sample(storage: Storage, sample: Sampled) -> None:
    """Write a clip's sample unless another clip has its slot; again after a kill in between.

    Raises:
        StorageError: storage did not answer.
    """
    name = f"{FOLDER}/{sample.slot:04d}"
    line = json.dumps(asdict(sample.line), sort_keys=True).encode() + b"\n"
    if not storage.put_if_absent(f"{name}.json", line):
        owner = json.loads(storage.read(f"{name}.json"))
        if owner["clip_id"] != sample.line.clip_id:
            return
    storage.put_if_absent(f"{name}.png", sample.png)
