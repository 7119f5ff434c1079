"""``OUT/samples/``: source frames above their reconstruction, of the clips that were decoded again.

``<slot>.json`` is one line about a clip, ``<slot>.png`` its strip. A clip's slot follows from its
name; the first clip takes it, so that there are no more than ``quality.max_samples``.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from dataclasses import asdict, dataclass

import numpy as np
import numpy.typing as npt

from pipeline.film import Rgb, film
from pipeline.storage import Storage

logger = logging.getLogger(__name__)

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


def strip(source: npt.NDArray[np.uint8], made: npt.NDArray[np.uint8], shown: Sequence[int]) -> Rgb:
    """Source frames from left to right, their reconstructions below; uint8 ``[rows, columns, 3]``.

    Of large frames every second, third ... pixel is shown, so that the strip stays small.

    Args:
        source: uint8 ``[T, H, W, 3]``.
        made: likewise.
        shown: frames to show.
    """
    height, width = source.shape[1:3]
    step = 1
    while 2 * -(-height // step) * -(-width // step) * len(shown) > MAX_PIXELS:
        step += 1
    return film(source[:, ::step, ::step], made[:, ::step, ::step], shown=shown)


def keep_sample(storage: Storage, sample: Sampled) -> None:
    """Write a clip's sample unless another clip has its slot; again after a kill in between.

    Raises:
        StorageError: storage did not answer.
    """
    name = f"{FOLDER}/{sample.slot:04d}"
    line = json.dumps(asdict(sample.line), sort_keys=True).encode() + b"\n"
    is_new = storage.put_if_absent(f"{name}.json", line)
    if is_new or _owner(storage, f"{name}.json") == sample.line.clip_id:
        storage.put_if_absent(f"{name}.png", sample.png)


def _owner(storage: Storage, name: str) -> str | None:
    """The clip whose line is there; None: what is there is none, which costs no token."""
    try:
        return str(json.loads(storage.read(name))["clip_id"])
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        place = storage.path(name)
        logger.warning("%s is no sample, remove it to have one there: %r", place, error)
        return None
