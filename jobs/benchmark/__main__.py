"""``python -m jobs.benchmark NAME``: measures one part of the project and prints a table.

Each benchmark is one file of this folder with ``main(arguments) -> int``. Nothing heavy is imported
before a name is chosen, so that ``--help`` answers at once and a benchmark needs only what it uses.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from importlib import import_module

from pipeline.command_line import MISTAKE, CommandLine, carry_out
from pipeline.errors import PipelineError
from tokenizer import TokenizerError

BENCHMARKS: dict[str, str] = {
    "decoder": "the decoder, likewise",
    "encoder": "the encoder against the convolution and matmul rate of the machine",
    "fsq_entropy": "the entropy term of FSQ training against the table of tokens x codes",
    "latents": "what byte planes save on latents, and what they cost",
    "loader": "token parts against other formats: bytes, tokens per CPU second, first batch",
    "output_runs": "a whole run with several outputs against a run of each",
    "outputs": "one decoding pass for three outputs against three passes",
    "pipeline": "clips per second against decoding and encoding alone, and against Ray Data",
    "planning": "planning and resuming in an OUT with 100,000 receipts",
    "reader": "reading tars: GB per core-second, requests per GB, local and S3",
    "scheduler": "the driver's code against a thousand simulated GPUs, in virtual time",
    "worker": "a whole worker without Ray: tars, decoders, encoder, parts",
}
"""Name -> what it measures; the module has the same name."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmark that is named first; everything behind the name is its own."""
    width = max((len(name) for name in BENCHMARKS), default=0)
    parser = CommandLine(
        prog="python -m jobs.benchmark",
        description="Measure one part of the project; NAME --help tells its options.",
        epilog="\n".join(f"  {name:{width}}  {text}" for name, text in BENCHMARKS.items()),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("name", metavar="NAME", choices=sorted(BENCHMARKS), help="see below")
    parser.add_argument(
        "arguments", nargs=argparse.REMAINDER, help=argparse.SUPPRESS
    ).required = False
    options = parser.parse_args(arguments)
    benchmark = import_module(f"jobs.benchmark.{options.name}")
    try:
        code: int = benchmark.main(options.arguments)
    except (PipelineError, TokenizerError) as error:
        print(f"error: {error}", file=sys.stderr)
        return MISTAKE
    return code


if __name__ == "__main__":
    carry_out(main)
