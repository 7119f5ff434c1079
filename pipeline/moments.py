"""Mean and standard deviation of each latent channel: of a part, and of a whole data set.

Of means, not of log-variances, as they are stored. Pure numpy, float64.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np

from pipeline.manifest import Line
from pipeline.receipts import Receipt
from pipeline.schema import TokenFormat, TokenRow


class LatentMoments(NamedTuple):
    """Of a number of values in each channel."""

    num_values: int
    """In one channel."""
    mean: tuple[float, ...]
    """``[c]``"""
    std: tuple[float, ...]
    """``[c]``, of all values, not of a sample of more."""


def moments_of(rows: Sequence[TokenRow], token_format: TokenFormat) -> LatentMoments | None:
    """Of the latents of some rows; None of indices and of no rows."""
    if token_format.is_discrete or not rows:
        return None
    return pooled(_moments_of_row(row, token_format) for row in rows)


def _moments_of_row(row: TokenRow, token_format: TokenFormat) -> LatentMoments:
    blob = token_format.expand(np.frombuffer(row.tokens, np.uint8), row.token_shape)
    means = token_format.unpack(blob[None], row.token_shape)[0, : row.token_shape[0]]
    values = means.reshape(len(means), -1).astype(np.float64)
    return LatentMoments(values.shape[1], tuple(values.mean(1)), tuple(values.std(1)))


def moments_of_parts(records: Iterable[Receipt | Line]) -> LatentMoments | None:
    """Of all parts of a data set, from its receipts or the lines of its manifest.

    None where there is no latent.
    """
    return pooled(
        LatentMoments(
            sum(
                rows * math.prod(map(int, shape.split(",")[1:]))
                for shape, rows in record.shapes.items()
            ),
            record.latent_mean,
            record.latent_std,
        )
        for record in records
        if record.latent_mean
    )


def pooled(parts: Iterable[LatentMoments]) -> LatentMoments | None:
    """Of several sets of values, those of all together; None of none.

    >>> pooled([LatentMoments(1, (0.0,), (0.0,)), LatentMoments(3, (4.0,), (0.0,))])
    LatentMoments(num_values=4, mean=(3.0,), std=(1.7320508075688772,))
    """
    found = list(parts)
    if not found:
        return None
    numbers = np.array([part.num_values for part in found], np.float64)[:, None]
    means = np.array([part.mean for part in found], np.float64)
    variances = np.array([part.std for part in found], np.float64) ** 2
    total = numbers.sum()
    mean = (numbers * means).sum(0) / total
    variance = (numbers * (variances + (means - mean) ** 2)).sum(0) / total
    return LatentMoments(
        int(total),
        tuple(float(value) for value in mean),
        tuple(float(value) for value in np.sqrt(variance)),
    )
