"""What a user asked to get of every row, said before it is known what OUT holds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from pipeline.loading.batches import BatchMaker, checked_columns
from pipeline.loading.batching import Batching
from pipeline.loading.captions import CaptionChoice
from pipeline.loading.join import SideTable
from pipeline.loading.tokens import Moments, TokenMaker
from pipeline.moments import LatentMoments
from pipeline.schema import TokenFormat


@dataclass(frozen=True, slots=True, kw_only=True)
class Wishes:
    """The arguments of `TokenDataset` of these names, and what it made of them."""

    columns: Sequence[str] | None
    """Besides tokens; None: all."""
    captions: CaptionChoice | None
    """Which of a row's captions is its ``caption``."""
    join: SideTable | None
    """Columns that came later."""
    tokens_dtype: str
    """Of indices."""
    latents: str
    """Of continuous tokens."""
    normalize: bool
    """Whether latents get mean 0 and variance 1."""
    device: str | torch.device | None
    """Where bytes are unpacked."""
    marks_padding: bool
    """Whether batches have ``is_padding``."""
    marks_replaced: bool
    """Whether batches have ``replaced``."""

    def maker(
        self, token_format: TokenFormat, moments: LatentMoments | None, batching: Batching
    ) -> BatchMaker:
        """What makes batches of a data set.

        Args:
            token_format: of its rows.
            moments: of its latents.
            batching: with the seed, the cut, and the length of packs.

        Raises:
            ValueError: this cannot be had of these rows.
        """
        own = token_format.columns
        if self.captions is not None:
            self.captions.check(own)
        if self.join is not None:
            self.join.check(own)
        return BatchMaker(
            tokens=TokenMaker(
                token_format=token_format,
                seed=batching.seed,
                tokens_dtype=self.tokens_dtype,
                latents=self.latents,
                moments=Moments.of(moments) if self.normalize else None,
                crop=batching.crop,
            ),
            columns=checked_columns(self.columns, own),
            captions=self.captions,
            join=self.join,
            device=self.device,
            marks_padding=self.marks_padding,
            marks_replaced=self.marks_replaced,
            pack_length=batching.pack_length,
        )
