"""``python -m tokenizer.list [--json] [NAME …]``: all tokenizers, their costs, their quality.

Needs no torch and answers at once.
"""

import argparse
import dataclasses
import json
import sys
from collections.abc import Sequence
from typing import Any, NoReturn

from tokenizer.config import TokenizerConfig
from tokenizer.cost import decode_flops, encode_flops, num_parameters, state_bytes
from tokenizer.errors import UnknownName
from tokenizer.registry import get_config, list_tokenizers

CLIP = (17, 256, 256)
"""Frames, rows and columns of the clip that costs are stated for."""

_LEGEND = """\
TxHxW: input frames, rows and columns per token. tokens: codes of a vocabulary, or float channels.
Costs: GFLOP of encoding and decoding 17 frames of 256x256, one multiply-add counting two; state:
MB that one stream of that size takes between two chunks, in fp32.
PSNR to FVD: as published, MCL-JCV, 256x256, 30 fps; v1.1 in whole videos, the others in clips.
Weights of each are fetched by checkpoint=auto; --json adds where from."""


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        """One line, as of every other command."""
        self.exit(2, f"error: {message}; see --help\n")


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the table; 2 for an unknown name."""
    parser = _Parser(prog="python -m tokenizer.list", description="All tokenizers by name.")
    parser.add_argument("names", nargs="*", metavar="NAME", help="only these; default: all")
    parser.add_argument("--json", action="store_true", help="everything, as a JSON list")
    options = parser.parse_args(arguments)
    try:
        rows = [describe(get_config(name)) for name in options.names or list_tokenizers()]
    except UnknownName as error:
        sys.stderr.write(f"error: {error}\n")
        return 2
    text = json.dumps(rows, indent=2) if options.json else f"{_table(rows)}\n\n{_LEGEND}"
    sys.stdout.write(f"{text}\n")
    return 0


def describe(config: TokenizerConfig) -> dict[str, Any]:
    """One tokenizer in plain values.

    ``compression`` is input values (3 colours) per latent value for kl; for fsq, input bits (8 per
    value) per bit of tokens.
    """
    encoder, decoder = num_parameters(config)
    values_per_position = 3
    for factor in config.stride:
        values_per_position *= factor
    bits = config.codebook_size.bit_length() - 1 if config.codebook_size else None
    return {
        "name": config.name,
        "official": config.official,
        "checkpoint_file": config.checkpoint_file,
        "checkpoint_url": config.checkpoint_url,
        "version": config.version.name,
        "is_causal": config.is_causal,
        "stride": list(config.stride),
        "codebook_size": config.codebook_size,
        "latent_channels": config.latent_channels,
        "compression": 8 * values_per_position / bits
        if bits
        else values_per_position / config.latent_channels,
        "clip_frames": config.clip_frames,
        "encoder_parameters": encoder,
        "decoder_parameters": decoder,
        "encode_gflop": encode_flops(config, *CLIP) / 1e9,
        "decode_gflop": decode_flops(config, *CLIP) / 1e9,
        "state_bytes": state_bytes(config, *CLIP[1:]),
        "published": dataclasses.asdict(config.published) if config.published else None,
    }


def _table(rows: Sequence[dict[str, Any]]) -> str:
    head = ("name", "TxHxW", "model", "tokens", "ratio", "M params", "enc GFLOP", "dec GFLOP")
    lines = [(*head, "state", "PSNR", "SSIM", "LPIPS", "FVD", "official configuration")]
    for row in rows:
        family = "causal" if row["is_causal"] else "non-causal"
        size = row["codebook_size"]
        quality = row["published"] or {}
        lines.append(
            (
                row["name"],
                "x".join(map(str, row["stride"])),
                f"{row['version'].replace('_', '.')} {family}",
                f"{size} codes" if size else f"{row['latent_channels']} floats",
                f"{row['compression']:.0f}",
                f"{(row['encoder_parameters'] + row['decoder_parameters']) / 1e6:.1f}",
                f"{row['encode_gflop']:.0f}",
                f"{row['decode_gflop']:.0f}",
                f"{row['state_bytes'] / 1e6:.0f}" if row["state_bytes"] else "-",
                *(
                    f"{quality[key]:.{digits}f}" if quality else "-"
                    for key, digits in (("psnr", 2), ("ssim", 3), ("lpips", 3), ("fvd", 1))
                ),
                row["official"] or "(ours)",
            )
        )
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    is_text = {0, 2, 3, len(widths) - 1}
    return "\n".join(
        "  ".join(
            cell.ljust(width) if place in is_text else cell.rjust(width)
            for place, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in lines
    )


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit("interrupted")
