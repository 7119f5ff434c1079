"""The encoder: video to the tensor that the quantiser takes (arXiv 2412.13061, section 3)."""

# B batch · C colour · T H W frames, rows, columns · c t h w the same after the encoder

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tokenizer.config import PadMode, TokenizerConfig, Version
from tokenizer.cost import COLOURS
from tokenizer.layers.blocks import (
    Level,
    Middle,
    frame_block,
    levels,
    make_norm,
    norm_silu,
    run_level,
    time_block,
    volume_scope,
)
from tokenizer.layers.conv import TimePadding, volume_conv
from tokenizer.layers.resample import FrameDownsample, TimeDownsample
from tokenizer.layers.stream import Stream


class Encoder(nn.Module):
    """Video ``[B, 3, T, H, W]`` to ``[B, c, t, h, w]``; twice the channels for kl."""

    def __init__(self, config: TokenizerConfig) -> None:
        super().__init__()
        padding, norm = time_padding(config), config.norm
        widths = [config.ch * factor for factor in config.ch_mult]
        self.config = config
        self.copies_stay_equal = (
            padding is TimePadding.causal_replicate and config.init_pad_mode is PadMode.replicate
        )
        self.conv_in = volume_conv(COLOURS, config.ch, padding)
        self.down = nn.ModuleList()
        self.down_temporal = nn.ModuleList()
        channels = config.ch
        for level, width in enumerate(widths):
            blocks = []
            for _ in range(config.num_res_blocks):
                blocks.append(frame_block(channels, width, norm))
                channels = width
            in_space = level in config.spatial_levels_down
            self.down.append(Level(blocks, downsample=FrameDownsample(width) if in_space else None))
        for level, width in enumerate(widths):
            blocks = [time_block(width, norm, padding) for _ in range(config.num_res_blocks)]
            in_time = level in config.time_levels_down
            self.down_temporal.append(
                Level(blocks, downsample=TimeDownsample(width, padding) if in_time else None)
            )
        self.mid = Middle(channels, norm, padding)
        self.norm_out = make_norm(norm, channels, volume_scope(padding))
        out_channels = config.latent_channels * (2 if config.double_z else 1)
        self.conv_out = volume_conv(channels, out_channels, padding)

    def forward(
        self, x_BCTHW: Tensor, stream: Stream | None = None, inner_dtype: torch.dtype | None = None
    ) -> Tensor:
        """Encode, without any check of the input.

        Args:
            x_BCTHW: float ``[B, 3, T, H, W]`` in [-1, 1].
            inner_dtype: what everything between the first and the last convolution computes in;
                None: the dtype of the input. These two see pixels and give latents, where rounding
                to bfloat16 shows most, and cost next to nothing.
            stream: causal models only: the place of this chunk in a longer video; None for a
                whole clip.

        Returns:
            ``[B, c, t, h, w]``, the tensor before the quantiser, with [t, h, w] as
            ``TokenizerConfig.latent_shape`` says.
        """
        stream = Stream() if stream is None else stream
        num_new = self.config.front_padding(x_BCTHW.shape[2], is_first=stream.is_first)
        # v1.1 pads every layer with its first frame, so copies of it stay equal to it up to the
        # first stride in time: they are put there, not computed.
        if num_new and stream.is_first and self.copies_stay_equal:
            stream.held_copies = num_new
        elif num_new:
            mode = self.config.init_pad_mode.value
            x_BCTHW = F.pad(x_BCTHW, (0, 0, 0, 0, num_new, 0), mode=mode)
        x_BTHWC = x_BCTHW.permute(0, 2, 3, 4, 1).contiguous()
        h_BTHWC: Tensor = self.conv_in(x_BTHWC, stream, inner_dtype)
        for frame_level, time_level in zip(
            levels(self.down), levels(self.down_temporal), strict=True
        ):
            h_BTHWC = run_level(frame_level, time_level, h_BTHWC, stream)
        h_BTHWC = self.mid(h_BTHWC, stream)
        h_BTHWC = h_BTHWC.to(x_BCTHW.dtype)
        h_BTHWC = self.conv_out(norm_silu(self.norm_out, h_BTHWC), stream)
        return h_BTHWC.permute(0, 4, 1, 2, 3).contiguous()


def time_padding(config: TokenizerConfig) -> TimePadding:
    """Padding in time of all convolutions of a model."""
    if not config.is_causal:
        return TimePadding.symmetric_zero
    if config.version is Version.v1_0:
        return TimePadding.causal_zero
    return TimePadding.causal_replicate
