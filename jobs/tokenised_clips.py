"""Single clips out of a run's tokens, and the model that made them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import numpy as np
import pyarrow.compute as pc
import torch
from torch import Tensor

from pipeline.errors import RunError
from pipeline.ledger import Ledger
from pipeline.parts import open_part, read_row_group
from pipeline.run_record import read_run_record
from pipeline.storage import Storage
from tokenizer import (
    CheckpointInfo,
    PluginConfig,
    VideoTokenizer,
    load_tokenizer,
    open_tokenizer,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenisedClip:
    """One row of OUT, and what is known of its tokenizer."""

    tokens: Tensor
    """int32 ``[t, h, w]``, or float32 ``[c, t, h, w]``, the mean."""
    num_frames: int
    """Frames of the clip."""
    fps: float
    """At this rate."""
    tokenizer: str
    """Name."""
    digest: str
    """Of the weights."""
    fields: dict[str, Any]
    """Of the tokenizer's configuration, as the run used it; of a plugin its options."""
    plugin: str | None
    """``tokenizer.plugin``."""
    checkpoint: str | None
    """As the run was given it."""
    seed: int
    """For random weights."""

    @property
    def shown_rate(self) -> Fraction:
        """Frames per second of a file that shows it; an image is shown for a second."""
        return Fraction(self.fps).limit_denominator(1001) or Fraction(1)


def find_clip(root: str, clip_id: str) -> TokenisedClip:
    """The clip of that id.

    Raises:
        RunError: there is none, or the place cannot be trusted.
    """
    storage = Storage(root)
    record = read_run_record(storage)
    if record is None:
        raise RunError(f"{storage} has no run.json: no run has written there")
    example = None
    for line in Ledger.open(storage).lines():
        if line.part is None:
            continue
        part = open_part(storage, line)
        for group in range(part.file.num_row_groups):
            ids = read_row_group(part, group, ["clip_id"]).column("clip_id")
            example = example or ids[0].as_py()
            row = pc.index(ids, clip_id).as_py()
            if row < 0:
                continue
            table = read_row_group(part, group).slice(row, 1)
            values = table.to_pylist()[0]
            shape = values["token_shape"]
            blob = part.token_format.expand(np.frombuffer(values["tokens"], np.uint8), shape)
            tokens = part.token_format.unpack_row(blob, shape)
            if not part.token_format.is_discrete:
                tokens = tokens[: part.token_format.channels]
            settings = record["config"]["tokenizer"]
            plugin = settings.get("plugin")
            return TokenisedClip(
                tokens=torch.from_numpy(np.array(tokens)),
                num_frames=len(values["frame_seconds"]),
                fps=values["fps"],
                tokenizer=part.token_format.tokenizer,
                digest=part.token_format.checkpoint_digest,
                fields=_fields(record["fingerprint_of"]["tokenizer"], plugin),
                plugin=plugin,
                checkpoint=settings["checkpoint"],
                seed=settings["seed"],
            )
    hint = f", such as {example}" if example else ""
    raise RunError(f"{storage} has no clip {clip_id!r}; ids are those in the column clip_id{hint}")


def _fields(recorded: Mapping[str, Any], plugin: str | None) -> dict[str, Any]:
    if plugin is not None:
        return dict(recorded["options"])
    return {name: value for name, value in recorded.items() if name not in ("name", "published")}


def plugin_frames(
    clip: TokenisedClip, checkpoint: str | None, device: str, precision: str
) -> Tensor:
    """Frames of a clip whose tokenizer is a plugin: uint8 ``[T, H, W, 3]``.

    Args:
        clip: one clip.
        checkpoint: None: the one that the run was given.
        device: where it shall run.
        precision: of decoding.

    Raises:
        RunError: these are other weights, or it has no ``decode``.
        TokenizerError: the plugin cannot be had.
    """
    assert clip.plugin is not None
    config = PluginConfig(name=clip.tokenizer, plugin=clip.plugin, options=clip.fields)
    source = checkpoint or clip.checkpoint
    tokenizer = open_tokenizer(config, source, seed=clip.seed, precision=precision)
    decode = getattr(tokenizer, "decode", None)
    if decode is None:
        raise RunError(
            f"tokenizer {clip.tokenizer!r} ({clip.plugin}) has no method decode: its tokens cannot "
            "be shown"
        )
    tokenizer.load(device)
    _check_digest(clip, tokenizer.weights())
    frames: Tensor = decode(clip.tokens[None].to(device))[0].cpu()
    wanted = (clip.num_frames, *(n * s for n, s in zip(clip.tokens.shape[-2:],
              tokenizer.spec.stride[1:], strict=True)), 3)  # fmt: skip
    if frames.dtype != torch.uint8 or frames.shape[0] < wanted[0] or frames.shape[1:] != wanted[1:]:
        raise RunError(
            f"tokenizer {clip.tokenizer!r}: decode gave {frames.dtype} {list(frames.shape)}, "
            f"torch.uint8 {list(wanted)} is wanted of each clip"
        )
    return frames[: clip.num_frames]


def model_of(
    clip: TokenisedClip, checkpoint: str | None, device: str, precision: str
) -> VideoTokenizer:
    """The model whose tokens these are.

    Args:
        clip: one clip.
        checkpoint: None: the one that the run was given.
        device: where it shall run.
        precision: of decoding.

    Raises:
        RunError: these are other weights.
        TokenizerError: the checkpoint cannot be loaded.
    """
    model = load_tokenizer(
        clip.tokenizer,
        checkpoint or clip.checkpoint,
        device,
        precision,
        clip.seed,
        **clip.fields,
    )
    assert model.checkpoint is not None
    _check_digest(clip, model.checkpoint)
    return model


def _check_digest(clip: TokenisedClip, found: CheckpointInfo) -> None:
    if found.digest != clip.digest:
        raise RunError(
            f"the tokens were made with weights {clip.digest[:12]}, checkpoint "
            f"{found.source} holds {found.digest[:12]}; give --checkpoint"
        )
