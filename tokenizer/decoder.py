"""The decoder: latents to video (arXiv 2412.13061, section 3)."""

# B batch · C colour · T H W frames, rows, columns · c t h w the same after the encoder

from torch import Tensor, nn

from tokenizer.config import TokenizerConfig
from tokenizer.cost import COLOURS
from tokenizer.encoder import time_padding
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
from tokenizer.layers.conv import volume_conv
from tokenizer.layers.resample import FrameUpsample, TimeUpsample
from tokenizer.layers.stream import Stream


class Decoder(nn.Module):
    """Latents ``[B, c, t, h, w]`` to video ``[B, 3, T, H, W]``, not clamped."""

    def __init__(self, config: TokenizerConfig) -> None:
        super().__init__()
        padding, norm = time_padding(config), config.norm
        widths = [config.ch * factor for factor in config.ch_mult]
        deepest = len(widths) - 1
        self.config = config
        self.conv_in = volume_conv(config.latent_channels, widths[-1], padding)
        self.mid = Middle(widths[-1], norm, padding)
        self.up = nn.ModuleList()
        self.up_temporal = nn.ModuleList()
        for level, width in enumerate(widths):
            above = widths[min(level + 1, deepest)]
            blocks = [
                frame_block(above if j == 0 else width, width, norm)
                for j in range(config.num_res_blocks + 1)
            ]
            in_space = level in config.spatial_levels_up
            self.up.append(Level(blocks, upsample=FrameUpsample(width) if in_space else None))
        # From the deepest level upwards, a latent frame becomes 1, 2, 4 … frames.
        deepest_first = sorted(config.time_levels_up, reverse=True)
        heads = {level: 2**order for order, level in enumerate(deepest_first)}
        for level, width in enumerate(widths):
            blocks = [time_block(width, norm, padding) for _ in range(config.num_res_blocks + 1)]
            upsample = TimeUpsample(width, padding, heads[level]) if level in heads else None
            self.up_temporal.append(Level(blocks, upsample=upsample))
        self.norm_out = make_norm(norm, widths[0], volume_scope(padding))
        self.conv_out = volume_conv(widths[0], COLOURS, padding)

    def forward(self, z_Bcthw: Tensor, stream: Stream | None = None) -> Tensor:
        """Decode, without any check of the input.

        Args:
            z_Bcthw: float ``[B, c, t, h, w]``.
            stream: causal models only: the place of this chunk in a longer video; None for a
                whole clip.

        Returns:
            Float ``[B, 3, T, H, W]``, about [-1, 1]; T is ``TokenizerConfig.decoded_frames(t)``.
            A chunk of a v1.1 stream gives its last frames with the next chunk.
        """
        stream = Stream() if stream is None else stream
        h_BTHWC: Tensor = self.conv_in(z_Bcthw.permute(0, 2, 3, 4, 1).contiguous(), stream)
        h_BTHWC = self.mid(h_BTHWC, stream)
        for frame_level, time_level in zip(
            reversed(levels(self.up)), reversed(levels(self.up_temporal)), strict=True
        ):
            h_BTHWC = run_level(frame_level, time_level, h_BTHWC, stream)
        h_BTHWC = self.conv_out(norm_silu(self.norm_out, h_BTHWC), stream)
        # v1.0 causal: the first frames stand for the front padding of the encoder.
        if stream.is_first:
            h_BTHWC = h_BTHWC[:, self.config.dropped_frames :]
        return h_BTHWC.permute(0, 4, 1, 2, 3).contiguous()
