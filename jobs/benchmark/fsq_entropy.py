"""FSQ's entropy term with gradients: factorised against the table of tokens x codes.

Each way and size runs in a process of its own, whose peak memory is counted above what it had with
its latents made. The table is what the published formula needs; it is left out where its
temporaries (about six) would not fit into ``--table-gigabytes``.
"""

from __future__ import annotations

import argparse
import math
import multiprocessing
import time
from collections.abc import Sequence

import torch
from torch import Tensor

from jobs.benchmark.measure import machine, median, table, write_json
from pipeline.command_line import CommandLine, count, new_file, not_negative
from pipeline.steering import peak_rss_bytes
from tokenizer.training.fsq_entropy import entropy_loss

SIZES = {4096: [8] * 4, 32768: [8] * 5, 262144: [8] * 6}
TABLE_TEMPORARIES = 6


def main(arguments: Sequence[str] | None = None) -> int:
    """Print time and memory of both ways for the codebooks of the published models."""
    parser = CommandLine(prog="python -m jobs.benchmark fsq_entropy")
    parser.add_argument("--tokens", type=count, default=5120, help="5120: one clip of 17x256x256")
    parser.add_argument("--codes", type=int, nargs="+", choices=sorted(SIZES), default=[*SIZES])
    parser.add_argument("--rounds", type=count, default=3)
    parser.add_argument("--threads", type=count, default=2)
    parser.add_argument("--table-gigabytes", type=not_negative, default=16.0)
    parser.add_argument("--json", type=new_file)
    options = parser.parse_args(arguments)
    rows, figures = [["codes, way", "seconds", "peak MB", "loss"]], []
    for codes in options.codes:
        for way in ("factorised", "table"):
            num_bytes = TABLE_TEMPORARIES * 4 * options.tokens * codes
            if way == "table" and num_bytes > options.table_gigabytes * 1e9:
                rows.append([f"{codes:,} {way}", "-", f"about {num_bytes / 1e6:,.0f}", "-"])
                continue
            found = _measured(way, codes, options)
            figures.append({"way": way, "codes": codes, "tokens": options.tokens, **found})
            megabytes = f"{found['peak_bytes'] / 1e6:,.0f}"
            seconds, loss = f"{found['seconds']:.3f}", f"{found['loss']:.5f}"
            rows.append([f"{codes:,} {way}", seconds, megabytes, loss])
    print(f"{options.tokens:,} tokens, forward and backward; {machine()}")
    print(table(rows))
    write_json(options.json, {"machine": machine(), "figures": figures})
    return 0


def _measured(way: str, codes: int, options: argparse.Namespace) -> dict[str, float]:
    """Median seconds, peak bytes above the start, and the loss, from a fresh process."""
    context = multiprocessing.get_context("spawn")
    with context.Pool(1) as pool:
        job = (way, codes, options.tokens, options.rounds, options.threads)
        return pool.apply(_run, job)


def _run(way: str, codes: int, tokens: int, rounds: int, threads: int) -> dict[str, float]:
    torch.set_num_threads(threads)
    levels, generator = SIZES[codes], torch.Generator().manual_seed(0)
    z = torch.randn(1, len(levels), tokens, 1, 1, generator=generator) * 0.25
    compute = entropy_loss if way == "factorised" else table_loss
    compute(z[:, :, :16], levels)
    before, seconds = peak_rss_bytes(), []
    for _ in range(rounds):
        z.requires_grad_().grad = None
        began = time.perf_counter()
        loss = compute(z, levels)
        loss.backward()  # type: ignore[no-untyped-call]
        seconds.append(time.perf_counter() - began)
    peak_bytes = peak_rss_bytes() - before
    return {"seconds": median(seconds), "peak_bytes": peak_bytes, "loss": float(loss.detach())}


def table_loss(z: Tensor, levels: Sequence[int]) -> Tensor:
    """The formula, with all tokens and all codes at once: latents ``[B, c, t, h, w]``."""
    codes = _codes(levels)
    probabilities = (200 * z.movedim(1, -1).flatten(0, -2) @ codes.T).softmax(dim=1)
    return _entropy(probabilities) - _entropy(probabilities.mean(dim=0, keepdim=True))


def _codes(levels: Sequence[int]) -> Tensor:
    """All codes [K, c]."""
    indices = torch.arange(math.prod(levels))
    columns, place = [], 1
    for level in levels:
        columns.append((indices // place % level - level // 2) / (level // 2))
        place *= level
    return torch.stack(columns, dim=1)


def _entropy(probabilities: Tensor) -> Tensor:
    """Mean over rows [N, K]."""
    logarithms = probabilities.clamp(min=1e-5).log()
    return -(probabilities * logarithms).sum(dim=1).mean()
