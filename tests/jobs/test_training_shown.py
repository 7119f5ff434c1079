"""What a training shows to people: pictures, and the line of its progress."""

from __future__ import annotations

import io

import av
import numpy as np

from jobs.training.progress import training_line
from pipeline.film import film, spread
from pipeline.png import png


def test_a_picture_has_the_source_above_and_is_a_png() -> None:
    source = np.arange(4 * 2 * 3 * 3, dtype=np.uint8).reshape(4, 2, 3, 3)
    picture = film(source, 255 - source, shown=spread(4, 3), gap=2)
    assert picture.shape == (6, 13, 3)
    assert np.array_equal(picture[:2, :3], source[0])
    assert np.array_equal(picture[4:, 10:], 255 - source[3])
    with av.open(io.BytesIO(png(picture))) as container:
        [read] = container.decode(video=0)
    assert np.array_equal(read.to_ndarray(format="rgb24"), picture)


def test_the_line_tells_rate_and_time_left() -> None:
    line = training_line(10, 110, 0.5, {"loss": 12345.6, "perplexity": 812.3, "g_loss": 1.0})
    assert line == "step 10/110  0.50 steps/s  ETA 3:20  loss 12,346  perplexity 812"
