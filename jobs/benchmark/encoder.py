"""The encoder alone: how near it comes to what the machine can do, and what its precision costs.

    python -m jobs.benchmark encoder --precision bf16 --json encoder.json

A batch is encoded as a worker encodes it (`pipeline.encode`), with random weights. The rates of the
machine are measured before and after each run. On a machine that is not idle look at the shares,
and there at those by CPU seconds.
"""

from __future__ import annotations

import argparse
import os
import resource
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from jobs.benchmark.measure import machine, median, table, write_json
from pipeline.command_line import CommandLine, count, new_file, size


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """What is measured."""

    tokenizer: str
    precision: str
    device: str
    batch: int
    frames: int
    height: int
    width: int
    threads: int
    rounds: int
    compiled: bool
    json: str | None


def parse(arguments: Sequence[str], *, prog: str) -> Setting:
    """The setting that the options describe."""
    return to_setting(options_of(prog).parse_args(arguments))


def options_of(prog: str) -> argparse.ArgumentParser:
    """What can be chosen."""
    parser = CommandLine(prog=f"python -m jobs.benchmark {prog}")
    parser.add_argument("--device", choices=("cpu", "cuda"), help="default: cuda if it is there")
    parser.add_argument("--tokenizer", default="fsq_4x8x8", metavar="NAME")
    parser.add_argument("--precision", default="fp32", choices=("fp32", "tf32", "bf16"))
    parser.add_argument("--batch", type=count, metavar="B", help="default: 1 on a CPU, 8 on a GPU")
    parser.add_argument(
        "--size", type=size, metavar="HxW", help="default: 128x128 on a CPU, else 256x256"
    )
    parser.add_argument("--frames", type=count, metavar="T", help="default: the tokenizer's own")
    parser.add_argument("--threads", type=count, default=2, help="of torch on the CPU (2)")
    parser.add_argument("--rounds", type=count, default=5, help="times that everything is run (5)")
    parser.add_argument(
        "--compiled",
        action=argparse.BooleanOptionalAction,
        help="torch.compile; default: on a GPU",
    )
    parser.add_argument("--json", type=new_file, metavar="FILE", help="write the figures there")
    return parser


def to_setting(options: argparse.Namespace) -> Setting:
    """Options with the defaults that suit the device."""
    import torch

    from tokenizer import get_config

    device = options.device or ("cuda" if torch.cuda.is_available() else "cpu")
    height, width = options.size or ((128, 128) if device == "cpu" else (256, 256))
    return Setting(
        tokenizer=options.tokenizer,
        precision=options.precision,
        device=device,
        batch=options.batch or (1 if device == "cpu" else 8),
        frames=options.frames or get_config(options.tokenizer).clip_frames,
        height=height,
        width=width,
        threads=options.threads,
        rounds=options.rounds,
        compiled=device == "cuda" if options.compiled is None else options.compiled,
        json=options.json,
    )


def main(arguments: Sequence[str]) -> int:
    """Measure, print, write."""
    setting = parse(arguments, prog="encoder")
    print(f"{machine()}; {setting.tokenizer} {setting.precision} on {setting.device}, ", end="")
    print(f"batch {setting.batch} of {setting.frames}x{setting.height}x{setting.width}", flush=True)
    figures, layers = measure(setting)
    print(layers, summary(figures), sep="\n\n")
    write_json(setting.json, figures)
    return 0


def encoder_spec(setting: Setting) -> Any:
    """The specification that a worker would get."""
    from pipeline.encode import EncoderSpec
    from pipeline.packing import index_packing
    from pipeline.schema import FORMAT_VERSION, TokenFormat
    from tokenizer import QuantizerKind, checkpoint_digest, get_config

    config = get_config(setting.tokenizer)
    is_fsq = config.quantizer.kind is QuantizerKind.fsq
    return EncoderSpec(
        tokenizer=config,
        checkpoint="random",
        seed=0,
        precision=setting.precision,
        device=setting.device,
        threads=setting.threads,
        batch_clips=setting.batch,
        clip_frames=setting.frames,
        buckets=((setting.height, setting.width),),
        token_format=TokenFormat(
            format_version=FORMAT_VERSION,
            tokenizer=config.name,
            checkpoint_digest=checkpoint_digest(config, "random").digest,
            random_weights=True,
            packing=index_packing(config.codebook_size or 0, plain=False) if is_fsq else "fp16",
            axes="t h w" if is_fsq else "c t h w",
            codebook_size=config.codebook_size,
            levels=tuple(config.quantizer.levels),
            channels=None if is_fsq else config.latent_channels,
            fingerprint="benchmark",
        ),
        compiled=setting.compiled,
    )


def measure(setting: Setting) -> tuple[dict[str, Any], str]:
    """The figures, and the table of layers."""
    import torch

    from jobs.benchmark.layers import LayerTimes
    from jobs.benchmark.rates import Rates, stopwatch
    from jobs.benchmark.real_clips import real_clips
    from pipeline.encode import ClipEncoder
    from tokenizer import load_tokenizer
    from tokenizer.arithmetic import arithmetic, compute_dtype
    from tokenizer.cost import encoder_products

    size = {"frames": setting.frames, "height": setting.height, "width": setting.width}
    frames = real_clips(setting.batch, **size)
    encoder = ClipEncoder(encoder_spec(setting))
    tokens = np.stack(encoder.encode(frames, setting.batch))
    if setting.device == "cuda":
        torch.cuda.reset_peak_memory_stats()
    encoder.encode(frames, setting.batch)
    peak_bytes = peak_memory(setting.device)

    model = load_tokenizer(setting.tokenizer, "random", setting.device, "fp32", decoder=False)
    with torch.inference_mode():
        expected = tokens_of(model, frames)
    model.set_precision(setting.precision)
    times = LayerTimes(model.encoder, setting.device)
    on_device = torch.from_numpy(frames[:1]).to(setting.device)
    rates = Rates(
        list(encoder_products(model.config, setting.frames, setting.height, setting.width)),
        batch=setting.batch,
        dtype=compute_dtype(model.precision),
        device=setting.device,
    )
    seen = []
    with torch.inference_mode(), arithmetic(model.precision, setting.device):
        with times.counting():
            model.encode_uint8(on_device)
        for _ in range(setting.rounds):
            rates.measure()
            seen.append(stopwatch(lambda: encoder.encode(frames, setting.batch), setting.device))
            rates.measure()
            with times.timing():
                model.encode_uint8(on_device)
    figures = speed(setting, seen, times.total_flops, rates)
    figures |= {
        "peak_bytes": peak_bytes,
        "index_agreement": float((tokens == expected).mean()),
        "start_seconds": encoder.start_seconds,
        "layers": times.figures(rates),
    }
    return figures, times.table(rates)


def speed(setting: Setting, seen: Sequence[Any], flops: int, rates: Any) -> dict[str, Any]:
    """Figures that encoder and decoder have in common.

    Args:
        setting: what was measured.
        seen: wall and CPU seconds of each run of a batch.
        flops: that one clip really takes.
        rates: of the machine, measured in between.
    """
    wall, cpu = (
        median([getattr(seconds, clock) for seconds in seen]) / setting.batch
        for clock in ("wall", "cpu")
    )
    figures = {
        "machine": machine(),
        "setting": {name: getattr(setting, name) for name in Setting.__slots__ if name != "json"},
        "clips_per_second": 1 / wall,
        "ms_per_clip": 1e3 * wall,
        "tflops": flops / wall / 1e12,
        "flops_per_clip": flops,
        "conv_tflops": rates.mean_conv() / 1e12,
        "matmul_tflops": rates.matmul() / 1e12,
        "copy_bytes_per_second": rates.copy(),
        "fraction_of_conv_rate": flops / wall / rates.mean_conv(),
        "fraction_of_matmul_rate": flops / wall / rates.matmul(),
        "cpu_seconds_per_clip": cpu,
    }
    if setting.device == "cpu":
        figures |= {
            "fraction_of_conv_rate_by_cpu_seconds": flops / cpu / rates.mean_conv("cpu"),
            "fraction_of_matmul_rate_by_cpu_seconds": flops / cpu / rates.matmul("cpu"),
        }
    return figures


def summary(figures: dict[str, Any]) -> str:
    """The figures that one quotes."""
    rows = [["", ""]]
    for name, value in figures.items():
        if isinstance(value, float):
            rows.append([name, f"{value:,.4g}" if abs(value) < 1e4 else f"{value:,.0f}"])
        elif isinstance(value, int):
            rows.append([name, f"{value:,}"])
    return table(rows[1:])


def tokens_of(model: Any, frames: Any) -> Any:
    """Indices, or means, of clips, one at a time; on the CPU."""
    import torch

    found = []
    for clip in frames:
        encoded = model.encode_uint8(torch.from_numpy(clip[None]).to(model.device))
        both = encoded.indices
        if both is None:
            both = torch.cat([encoded.mean, encoded.log_variance], dim=1)
        found.append(both.cpu())
    return torch.cat(found).numpy()


def peak_memory(device: str) -> int:
    """Largest memory so far: of torch on a GPU, of the process on a CPU."""
    import torch

    if device == "cuda":
        return int(torch.cuda.max_memory_allocated())
    unit = 1 if os.uname().sysname == "Darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
