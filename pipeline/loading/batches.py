"""Rows of loaded groups to one batch."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from pipeline.columns import BATCH_NAMES, Columns
from pipeline.loading.buffers import Take
from pipeline.loading.captions import CaptionChoice
from pipeline.loading.join import JOINED, KEY, SideTable
from pipeline.loading.order import Numbers
from pipeline.loading.packs import lay_out, lay_tokens
from pipeline.loading.passes import Work
from pipeline.loading.rows import Loaded
from pipeline.loading.tokens import TokenMaker
from pipeline.schema import TokenRow

COLUMNS = tuple(
    one.name for one in fields(TokenRow) if one.name not in ("tokens", "token_shape", "columns")
)
"""What may be asked for besides tokens, and besides the data set's own columns."""

TAKEN = (*COLUMNS, *sorted(BATCH_NAMES - {JOINED}))
"""Names that a joined column must not have: a batch has them already, or may have."""


def checked_columns(columns: Sequence[str] | None, own: Columns = ()) -> tuple[str, ...]:
    """The columns that are wanted, of all data sets or this one's own; None: all.

    Raises:
        ValueError: there is no such column.
    """
    known = (*COLUMNS, *(name for name, _ in own))
    wanted = known if columns is None else tuple(columns)
    unknown = [name for name in wanted if name not in known]
    if unknown:
        raise ValueError(f"columns has {', '.join(unknown)}; there are {', '.join(known)}")
    return wanted


def side_table(
    join: str | os.PathLike[str] | None, storage_options: dict[str, Any] | None
) -> SideTable | None:
    """The columns to be attached, under names that no batch has."""
    if join is None:
        return None
    return SideTable(join, taken=TAKEN, storage_options=storage_options)


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchMaker:
    """What a user asked to get of every row."""

    tokens: TokenMaker
    """Of the packed bytes."""
    columns: tuple[str, ...]
    """Besides tokens."""
    join: SideTable | None
    """Columns that came later."""
    device: str | torch.device | None
    """Packed bytes go there and are unpacked there; None: the CPU."""
    marks_padding: bool
    """Whether batches have ``is_padding``."""
    marks_replaced: bool
    """Whether batches have ``replaced``."""
    pack_length: int | None = None
    """Tokens of a pack, where there are packs."""
    captions: CaptionChoice | None = None
    """Which of a row's captions is its ``caption``; None: the stored one."""

    @property
    def stored_columns(self) -> list[str]:
        """What must be read of a part."""
        joined = {KEY} if self.join is not None else set()
        captions = self.captions.weights if self.captions is not None else ()
        return ["tokens", *sorted({*self.columns, *joined, *captions})]

    def __call__(
        self,
        picks: Sequence[tuple[Loaded, int]],
        shape: Sequence[int],
        samples: Numbers,
        is_padding: npt.NDArray[np.bool_],
        *,
        epoch: int,
        take: Take,
    ) -> dict[str, Any]:
        """One batch of one token shape.

        Args:
            picks: where each row is: a row group, and a row of it.
            shape: ``token_shape`` of all.
            samples: numbers in the order of the epoch; int64 ``[B]``.
            is_padding: bool ``[B]``.
            epoch: from 0.
            take: gives memory for bytes and tokens.

        Returns:
            As `TokenDataset` says.
        """
        batch: dict[str, Any] = dict(self._tokens(picks, shape, samples, epoch, take))
        return self._completed(batch, picks, is_padding, samples, epoch)

    def packed(
        self,
        picks: Sequence[tuple[Loaded, int]],
        shapes: Sequence[tuple[int, ...]],
        work: Work,
        *,
        epoch: int,
        take: Take,
    ) -> dict[str, Any]:
        """One batch of packs.

        Args:
            picks: where the row of each sample of the step is.
            shapes: ``token_shape`` of each.
            work: the step, of ``pack_sizes``.
            epoch: from 0.
            take: gives memory for bytes and tokens.

        Returns:
            As `TokenDataset` says of ``pack_length``.
        """
        assert self.pack_length is not None
        clips: list[dict[str, Tensor]] = [{}] * len(picks)
        for shape in dict.fromkeys(shapes):  # unpacked together
            alike = [index for index, other in enumerate(shapes) if other == shape]
            made = self._tokens([picks[i] for i in alike], shape, work.samples[alike], epoch, take)
            for nth, index in enumerate(alike):
                clips[index] = {name: tensor[nth] for name, tensor in made.items()}
        ends = np.cumsum(work.pack_sizes).tolist()
        spans = [slice(end - size, end) for size, end in zip(work.pack_sizes, ends, strict=True)]
        batch: dict[str, Any] = {
            name: lay_tokens(
                [[clip[name] for clip in clips[span]] for span in spans], self.pack_length
            )
            for name in clips[0]
        }
        grids = [_grid_of(clip["tokens"]) for clip in clips]
        layout = lay_out([grids[span] for span in spans], self.pack_length)
        batch |= {
            "positions": torch.from_numpy(layout.positions),
            "valid": torch.from_numpy(layout.valid),
            "cu_seqlens": torch.from_numpy(layout.cu_seqlens),
            "padding_sequences": torch.from_numpy(layout.is_padding),
            "max_seqlen": layout.max_seqlen,
        }
        return self._completed(batch, picks, work.is_padding, work.samples, epoch)

    def _tokens(
        self,
        picks: Sequence[tuple[Loaded, int]],
        shape: Sequence[int],
        samples: Numbers,
        epoch: int,
        take: Take,
    ) -> dict[str, Tensor]:
        """Of rows of one shape, unpacked on the device."""
        token_format = self.tokens.token_format
        num_bytes, is_compressed = token_format.clip_bytes(shape), token_format.is_compressed
        packed: Any = take(len(picks) * num_bytes)
        # numpy would let go of the interpreter's lock for each row, and wait for it again
        target = memoryview(packed)
        for at, (one, row) in zip(range(0, packed.size, num_bytes), picks, strict=True):
            if one.row_bytes == num_bytes and not is_compressed:
                start = row * num_bytes
                target[at : at + num_bytes] = one.flat[start : start + num_bytes]
            else:
                # or raises, where it has another size
                target[at : at + num_bytes] = token_format.expand(one.blobs[row], shape).data
        packed = packed.reshape(len(picks), num_bytes)
        if self.device is not None:
            packed = torch.from_numpy(packed).to(self.device, non_blocking=True)
        return self.tokens(packed, shape, samples, epoch=epoch, take=take)

    def _completed(
        self,
        batch: dict[str, Any],
        picks: Sequence[tuple[Loaded, int]],
        is_padding: npt.NDArray[np.bool_],
        samples: Numbers,
        epoch: int,
    ) -> dict[str, Any]:
        """With all that is no token, on the device."""
        for name in self.columns:
            batch[name] = self._column(name, picks)
        if self.captions is not None:
            texts = {name: self._column(name, picks) for name in self.captions.weights}
            batch |= self.captions(texts, samples, epoch=epoch)
        if self.join is not None:
            batch |= self.join.values([one.values[KEY][row] for one, row in picks])
        if self.marks_padding:
            batch["is_padding"] = torch.from_numpy(is_padding)
        if self.marks_replaced:
            batch["replaced"] = torch.tensor([one.is_replaced for one, _ in picks])
        if self.device is not None:
            for name, value in batch.items():
                batch[name] = value.to(self.device) if torch.is_tensor(value) else value
        return batch

    @staticmethod
    def _column(name: str, picks: Sequence[tuple[Loaded, int]]) -> Any:
        values = [one.values[name][row] for one, row in picks]
        if isinstance(picks[0][0].values[name], np.ndarray):
            return torch.from_numpy(np.array(values))
        return values


def _grid_of(tokens: Tensor) -> tuple[int, int, int]:
    t, h, w = tokens.shape[-3:]
    return t, h, w
