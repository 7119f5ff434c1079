"""What workers of an evaluation are told, and what they tell: values that cross processes."""

from __future__ import annotations

import io
import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any
from zipfile import BadZipFile

import numpy as np
import numpy.typing as npt

from pipeline.errors import RunError
from pipeline.reader import ReadRules
from pipeline.records import VideoLimits
from tokenizer import Precision, TokenizerConfig
from tokenizer.evaluation import Mode, Quality


@dataclass(frozen=True, slots=True, kw_only=True)
class JudgeSpec:
    """Everything a worker needs to judge shards."""

    tokenizer: TokenizerConfig
    checkpoint: str | None
    """Path, URL, auto, random or None, as for ``load_tokenizer``."""
    seed: int
    precision: Precision
    device: str
    threads: int
    mode: Mode
    fps: float
    size: int
    """Rows and columns."""
    lpips: str
    """alex, vgg or none."""
    lpips_weights: str | None
    i3d: str | None
    is_sampled: bool
    num_pictures: int
    """Best, and worst, clips of a shard that are kept as pictures."""
    videos: tuple[str, ...] | None
    """Names of the videos that are judged; None: all."""
    rules: ReadRules
    limits: VideoLimits
    storage_options: Mapping[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class VideoJudged:
    """One video."""

    key: str
    """Its key in the shard."""
    clips: tuple[Quality, ...] = ()
    """In order; whole videos: of their pieces. Empty for a video that is too short or bad."""
    problem: str | None = None
    """Why it could not be judged: reason and message."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Strip:
    """A clip as a picture."""

    key: str
    clip: int
    """Its place in the video."""
    psnr: float
    png: bytes


def extremes(strips: Iterable[Strip], number: int) -> list[Strip]:
    """The worst, then the best clips by PSNR, ``number`` of each; fewer where there are fewer.

    Equal ones come in an order that does not depend on chance.
    """
    rising = sorted(strips, key=lambda strip: (strip.psnr, strip.key, strip.clip))
    return (
        rising if len(rising) <= 2 * number else rising[:number] + rising[-number:] * (number > 0)
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class ShardJudged:
    """One shard, and where it ended."""

    name: str
    version: str
    """Of its source."""
    videos: tuple[VideoJudged, ...]
    strips: tuple[Strip, ...] = ()
    cut: str | None = None
    """Why the shard could not be read to its end."""
    codes: npt.NDArray[np.int64] = field(default_factory=lambda: np.zeros((2, 0), np.int64))
    """``[2, codes used]``: code, and how often."""
    features: npt.NDArray[np.float32] = field(default_factory=lambda: np.zeros((2, 0, 0), "f4"))
    """``[2, clips, D]`` of sources and outputs, for FVD; empty without a network."""

    def to_bytes(self) -> bytes:
        """As an .npz without any pickle."""
        record = {
            "name": self.name,
            "version": self.version,
            "cut": self.cut,
            "videos": [asdict(video) for video in self.videos],
            "strips": [
                {"key": strip.key, "clip": strip.clip, "psnr": strip.psnr} for strip in self.strips
            ],
        }
        pictures: dict[str, Any] = {
            f"strip{number}": np.frombuffer(strip.png, np.uint8)
            for number, strip in enumerate(self.strips)
        }
        text = np.frombuffer(json.dumps(record).encode(), np.uint8)
        stream = io.BytesIO()
        np.savez_compressed(
            stream, record=text, codes=self.codes, features=self.features, **pictures
        )
        return stream.getvalue()

    @classmethod
    def from_bytes(cls, content: bytes, place: str) -> ShardJudged:
        """What ``to_bytes`` made.

        Raises:
            RunError: the file at this place is damaged.
        """
        try:
            with np.load(io.BytesIO(content), allow_pickle=False) as arrays:
                record = json.loads(arrays["record"].tobytes())
                strips = tuple(
                    Strip(**strip, png=arrays[f"strip{number}"].tobytes())
                    for number, strip in enumerate(record.pop("strips"))
                )
                videos = tuple(
                    VideoJudged(
                        key=video["key"],
                        clips=tuple(Quality(**clip) for clip in video["clips"]),
                        problem=video["problem"],
                    )
                    for video in record.pop("videos")
                )
                return cls(
                    **record,
                    videos=videos,
                    strips=strips,
                    codes=arrays["codes"],
                    features=arrays["features"],
                )
        except (BadZipFile, ValueError, KeyError, TypeError, OSError, EOFError) as error:
            raise RunError(f"{place} is damaged ({error}); delete it and start again") from error
