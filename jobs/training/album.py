"""RUN/pictures: one clip, always the same, over what the model of a step makes of it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from jobs.training.checkpoints import write_atomically
from jobs.training.plan import ShowRules
from pipeline.film import film, spread
from pipeline.png import png
from tokenizer.training.loop import Training

GAP = 2
"""White pixels between the frames of a picture."""


class Album:
    """The pictures of one RUN; ``clip.npy`` beside them is the clip that they show."""

    def __init__(self, folder: Path, rules: ShowRules, training: Training) -> None:
        self._folder, self._rules, self._training = folder, rules, training
        self._clip: NDArray[np.uint8] | None = None

    def open(self, clip: NDArray[np.uint8], step: int) -> None:
        """Take the clip of before or this one, uint8 ``[T, H, W, 3]``; draw step 0."""
        if self._clip is not None or not self._rules.pictures_every_steps:
            return
        path = self._folder / "clip.npy"
        if not path.exists():
            self._folder.mkdir(parents=True, exist_ok=True)
            write_atomically(path, lambda unfinished: _write_array(unfinished, clip))
        self._clip = np.load(path)
        if step == 0:
            self._draw(0)

    def step(self, step: int) -> None:
        """A picture, when one is due."""
        every = self._rules.pictures_every_steps
        if every and step % every == 0:
            self._draw(step)

    def _draw(self, step: int) -> None:
        assert self._clip is not None
        made = self._training.reconstruct(torch.from_numpy(self._clip[None]))
        shown = spread(len(self._clip), self._rules.picture_frames)
        picture = png(film(self._clip, made[0].cpu().numpy(), shown=shown, gap=GAP))
        path = self._folder / f"step-{step:08d}.png"
        write_atomically(path, lambda unfinished: unfinished.write_bytes(picture))


def _write_array(path: Path, array: NDArray[np.uint8]) -> None:
    with path.open("wb") as file:
        np.save(file, array)
