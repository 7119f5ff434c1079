"""A clip beside what the decoder makes of its tokens, and how near they are. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

NUM_FRAMES = 6
"""Of a clip, side by side."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Strip:
    """One clip, before and after."""

    clip_id: str
    caption: str | None
    fps: float
    bucket: str
    psnr: float
    """Mean over the clip's frames, in dB."""
    pictures: Mapping[str, bytes] = field(default_factory=dict)
    """What each shows -> PNG or JPEG, from top to bottom."""

    @property
    def kind(self) -> str:
        """Rate and bucket."""
        return f"{self.fps:g} fps, {self.bucket}"

    def with_pictures(self, pictures: Mapping[str, bytes]) -> Strip:
        """The same clip with these."""
        return replace(self, pictures=pictures)


def psnr_by_kind(strips: Sequence[Strip]) -> dict[str, tuple[int, float]]:
    """Number of clips and median PSNR for each rate and bucket."""
    kinds: dict[str, list[float]] = {}
    for one in strips:
        kinds.setdefault(one.kind, []).append(one.psnr)
    return {kind: (len(found), float(np.median(found))) for kind, found in sorted(kinds.items())}
