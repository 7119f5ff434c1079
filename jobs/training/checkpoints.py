"""The checkpoints of a RUN: each a folder that appears whole or not at all.

RUN/checkpoints/step-00001000/
training.pt                everything that the next step depends on
weights.safetensors        published layout, float32: encoder, decoder, loss
weights_ema.safetensors    encoder and decoder of the running mean, where there is one
weights_fp16.safetensors   encoder and decoder in half precision, on request
"""

from __future__ import annotations

import os
import pickle
import re
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from pipeline.errors import ConfigError, RunError

WEIGHTS, EMA_WEIGHTS = "weights.safetensors", "weights_ema.safetensors"
FP16_WEIGHTS = "weights_fp16.safetensors"
_STATE = "training.pt"
_NAME = re.compile(r"step-(\d{8,})")
_TRAINING_ONLY = ("loss.", "model_ema.")


class Checkpoints:
    """Those of one RUN; written by one process."""

    def __init__(self, run: Path, *, keep: int) -> None:
        """Args: keep, how many stay, the latest ones."""
        self._root, self._keep = run / "checkpoints", keep

    def latest(self) -> Path | None:
        """Folder of the one with the most steps."""
        return latest_checkpoint(self._root.parent)

    def save(
        self,
        step: int,
        state: Mapping[str, Any],
        weights: Mapping[str, Tensor],
        *,
        ema: Mapping[str, Tensor] | None = None,
        fp16: bool = False,
    ) -> Path:
        """Write a checkpoint; when this returns it is on the disk, and older ones are gone.

        Args:
            step: batches trained.
            state: what ``read_state`` gives back.
            weights: in the published layout, loss included.
            ema: the running mean, in the published layout.
            fp16: write half precision too, of the mean where there is one.

        Raises:
            RunError: it cannot be written, for example on a full disk; those before stay.
        """
        try:
            return self._save(step, state, weights, ema=ema, fp16=fp16)
        # torch and safetensors have errors of their own for a disk that takes no more
        except (OSError, RuntimeError, SafetensorError) as error:
            raise RunError(
                f"{self._root}: the checkpoint of step {step} cannot be written "
                f"({_first_line(error)}); make room, then the same command continues at the "
                "checkpoint before"
            ) from error

    def _save(
        self,
        step: int,
        state: Mapping[str, Any],
        weights: Mapping[str, Tensor],
        *,
        ema: Mapping[str, Tensor] | None,
        fp16: bool,
    ) -> Path:
        final = self._root / f"step-{step:08d}"
        if final.exists():  # the same steps give the same
            return final
        self._root.mkdir(parents=True, exist_ok=True)
        self._clear_unfinished()
        unfinished = self._root / f"unfinished-{step:08d}"
        unfinished.mkdir()
        torch.save(dict(state), unfinished / _STATE)
        save_file(_plain(weights), unfinished / WEIGHTS)
        if ema is not None:
            save_file(_plain(_model_only(ema)), unfinished / EMA_WEIGHTS)
        if fp16:
            best = _model_only(weights if ema is None else ema)
            half = {name: value.half() for name, value in best.items()}
            save_file(_plain(half), unfinished / FP16_WEIGHTS)
        for path in unfinished.iterdir():
            # safetensors makes files that only their owner reads.
            path.chmod((unfinished / _STATE).stat().st_mode)
            sync(path)
        sync(unfinished)
        unfinished.rename(final)
        sync(self._root)
        self._drop_old()
        return final

    def _clear_unfinished(self) -> None:
        for path in self._root.glob("unfinished-*"):
            shutil.rmtree(path)

    def _drop_old(self) -> None:
        for path in _finished(self._root)[: -self._keep]:
            # Out of the way in one step, so that none is ever seen half gone.
            away = path.with_name(f"unfinished-old-{path.name}")
            path.rename(away)
            shutil.rmtree(away)


def latest_checkpoint(run: Path) -> Path | None:
    """Folder of the last whole checkpoint of a RUN; None where there is none."""
    found = _finished(run / "checkpoints")
    return found[-1] if found else None


def read_state(checkpoint: Path) -> dict[str, Any]:
    """What ``save`` was given as state, on the CPU.

    Raises:
        RunError: it is damaged.
    """
    path = checkpoint / _STATE
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, EOFError, RuntimeError, ValueError, pickle.UnpicklingError) as error:
        raise RunError(
            f"{path} cannot be read ({_first_line(error)}); remove {checkpoint} to "
            "continue at the checkpoint before"
        ) from error
    assert isinstance(state, dict)
    return state


def start_weights(start: str) -> str:
    """``train.start`` as a file's path or URL: of a RUN, the weights of its last checkpoint.

    Raises:
        ConfigError: a folder without a checkpoint, or nothing of that name.
    """
    path = Path(start).expanduser()
    if start == "auto" or "://" in start or "@sha256:" in start or path.is_file():
        return start if start == "auto" or "://" in start else str(path.absolute())
    if not path.is_dir():
        raise ConfigError(
            f"train.start={start}: no such file or folder; give a RUN or a checkpoint"
        )
    for folder in (path, latest_checkpoint(path)):
        if folder is not None and (folder / WEIGHTS).is_file():
            return str((folder / WEIGHTS).absolute())
    raise ConfigError(
        f"train.start={start}: it has no checkpoint yet (checkpoints/step-*/{WEIGHTS})"
    )


def write_atomically(path: Path, write: Callable[[Path], object]) -> None:
    """``write`` fills a file beside it that then takes its place, on the disk."""
    unfinished = path.with_name(f"unfinished-{path.name}")
    write(unfinished)
    sync(unfinished)
    unfinished.replace(path)
    sync(path.parent)


def sync(path: Path) -> None:
    """What a file or a folder holds is on the disk."""
    number = os.open(path, os.O_RDONLY)
    try:
        os.fsync(number)
    finally:
        os.close(number)


def _first_line(error: Exception) -> str:
    return (str(error) or type(error).__name__).splitlines()[0]


def _finished(root: Path) -> list[Path]:
    return sorted(
        (path for path in root.glob("step-*") if _NAME.fullmatch(path.name)),
        key=lambda path: int(path.name.removeprefix("step-")),
    )


def _model_only(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: value for name, value in tensors.items() if not name.startswith(_TRAINING_ONLY)}


def _plain(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Contiguous, on the CPU, none sharing memory with another."""
    return {name: value.detach().cpu().contiguous().clone() for name, value in tensors.items()}
