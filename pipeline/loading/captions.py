"""Which of a clip's captions a step sees, and when it sees none."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from pipeline.columns import Columns
from pipeline.loading.hashing import derived_key, hashes, unit_interval
from pipeline.loading.noise import Samples

CAPTION, CAPTION_NAME = "caption", "caption_name"
DROPPED = ""
"""The caption that stands for none, as in classifier-free guidance."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CaptionChoice:
    """Draws one of the named captions of every sample; depends on seed, epoch and its number."""

    weights: Mapping[str, float] = field(default_factory=lambda: {CAPTION: 1.0})
    """Column of text -> how often it is taken, relative to the others that the clip has."""
    dropout: float = 0.0
    """Probability that a sample gets `DROPPED`, in [0, 1]."""
    seed: int = 0

    def __post_init__(self) -> None:
        if not self.weights:
            raise ValueError("captions names none; give {'caption': 1.0}, or leave it out")
        wrong = [w for w in self.weights.values() if not 0 < w < math.inf]
        if wrong:
            raise ValueError(f"captions has weight {wrong[0]}; weights are above 0")
        if not 0 <= self.dropout <= 1:
            raise ValueError(f"caption_dropout must be in [0, 1], got {self.dropout}")

    @classmethod
    def of(
        cls, weights: Mapping[str, float] | None, dropout: float, seed: int
    ) -> CaptionChoice | None:
        """What a user's arguments ask for; None: the stored caption, always."""
        if weights is None and not dropout:
            return None
        given = {CAPTION: 1.0} if weights is None else dict(weights)
        return cls(weights=given, dropout=dropout, seed=seed)

    def check(self, own: Columns) -> None:
        """Whether the data set has these captions.

        Raises:
            ValueError: one is missing, or is no text.
        """
        there = [CAPTION, *(name for name, kind in own if kind == "string")]
        if unknown := [name for name in self.weights if name not in there]:
            raise ValueError(f"captions has {', '.join(unknown)}; there are {', '.join(there)}")

    def __call__(
        self, texts: Mapping[str, Sequence[str | None]], samples: Samples, *, epoch: int
    ) -> dict[str, Any]:
        """The captions of a batch.

        Args:
            texts: every column of ``weights``, lists of length B; None: the clip has none.
            samples: numbers of the clips in the global order, int64 ``[B]``.
            epoch: from 0.

        Returns:
            ``caption``: list of length B, None where a clip has no caption at all; and
            ``caption_name``: the column that it is of, None where it was dropped or there is none.
        """
        draw, drop = (
            unit_interval(hashes(samples, derived_key(self.seed, epoch, purpose)))
            for purpose in ("caption", "caption dropout")
        )
        names = [
            self._name({name: column[at] for name, column in texts.items()}, float(draw[at]))
            for at in range(len(samples))
        ]
        captions = [name and texts[name][at] for at, name in enumerate(names)]
        for at in np.flatnonzero(drop < self.dropout):
            captions[at], names[at] = DROPPED, None
        return {CAPTION: captions, CAPTION_NAME: names}

    def _name(self, texts: Mapping[str, str | None], draw: float) -> str | None:
        """The caption on which a number in [0, 1) falls, of those that are there."""
        there = [(name, self.weights[name]) for name, text in texts.items() if text is not None]
        left = draw * sum(weight for _, weight in there)
        for name, weight in there:
            if left < weight:
                return name
            left -= weight
        return there[-1][0] if there else None
