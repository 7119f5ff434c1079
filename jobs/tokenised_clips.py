"""Single clips out of a run's tokens, and the model that made them."""

from __future__ import annotations

from dataclasses import dataclass
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
from tokenizer import VideoTokenizer, load_tokenizer


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
    """Of the tokenizer's configuration, as the run used it."""
    checkpoint: str | None
    """As the run was given it."""
    seed: int
    """For random weights."""


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
                tokens = np.split(tokens, 2)[0]
            settings = record["config"]["tokenizer"]
            return TokenisedClip(
                tokens=torch.from_numpy(np.array(tokens)),
                num_frames=len(values["frame_seconds"]),
                fps=values["fps"],
                tokenizer=part.token_format.tokenizer,
                digest=part.token_format.checkpoint_digest,
                fields={
                    name: value
                    for name, value in record["fingerprint_of"]["tokenizer"].items()
                    if name not in ("name", "published")
                },
                checkpoint=settings["checkpoint"],
                seed=settings["seed"],
            )
    hint = f", such as {example}" if example else ""
    raise RunError(f"{storage} has no clip {clip_id!r}; ids are those in the column clip_id{hint}")


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
    if model.checkpoint.digest != clip.digest:
        raise RunError(
            f"the tokens were made with weights {clip.digest[:12]}, checkpoint "
            f"{model.checkpoint.source} holds {model.checkpoint.digest[:12]}; give --checkpoint"
        )
    return model
