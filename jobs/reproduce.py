"""Whether a published checkpoint does here what its authors state.

    python -m jobs.reproduce ~/mcl-jcv --tokenizer fsq_4x8x8 --checkpoint auto

Evaluates it on the clips that the published figures are of, 30 videos of MCL-JCV, by the published
protocol, and compares. Status 0: PSNR is within 0.05 dB; 1: it is not, or the clips are not those;
2: it could not be tried. An evaluation that was stopped goes on with the same command.
"""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING

from jobs.evaluation.compose import composed
from pipeline.command_line import CommandLine, carry_out, count
from pipeline.errors import ConfigError, PipelineError
from tokenizer import PublishedMetrics, TokenizerError, get_config, list_tokenizers

if TYPE_CHECKING:
    from jobs.evaluation.config import EvaluationConfig

NUM_VIDEOS = 30
"""Of MCL-JCV; the published figures are means over all of them."""
TOLERANCE_DB = 0.05
"""Of PSNR, between what is measured and what is stated."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Status, as above."""
    options = _parser().parse_args(arguments)
    logging.getLogger("tokenizer.checkpoint").setLevel(logging.ERROR)
    try:
        published = published_row(options.tokenizer)
        return _compare(configuration(options), published)
    except (PipelineError, TokenizerError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


def published_row(name: str) -> PublishedMetrics:
    """What its authors state of a tokenizer.

    Raises:
        UnknownName: no such tokenizer.
        ConfigError: nothing is stated.
    """
    published = get_config(name).published
    if published is None:
        stated = ", ".join(one for one in list_tokenizers() if get_config(one).published)
        raise ConfigError(f"--tokenizer {name}: no published figures; there are for: {stated}")
    return published


def configuration(options: argparse.Namespace) -> EvaluationConfig:
    """The evaluation of the published protocol on these clips.

    Raises:
        ConfigError: options that cannot work.
    """
    if options.checkpoint == "random":
        raise ConfigError("--checkpoint random: only trained weights can reproduce anything")
    is_tar = options.clips.endswith(".tar") or options.clips.startswith("@")
    chosen = {
        "+dataset": "tars" if is_tar else "folder",
        "+tokenizer": options.tokenizer,
        "cluster": options.cluster,
        "dataset.shards" if is_tar else "dataset.path": options.clips,
        "dataset.name": "mcl-jcv",
        "tokenizer.checkpoint": options.checkpoint,
        "tokenizer.precision": options.precision,
        "evaluate.sample": "true",
        "evaluate.resolution": "256",
        "evaluate.device": options.device,
        "evaluate.threads": str(options.threads),
        "evaluate.lpips": "vgg" if options.lpips_vgg else "alex",
        "evaluate.lpips_weights": options.lpips_vgg,
        "evaluate.i3d": options.i3d,
        "output.root": options.out,
    }
    return composed([f"{key}={value}" for key, value in chosen.items() if value is not None])


def _compare(config: EvaluationConfig, published: PublishedMetrics) -> int:
    # torch with these: --help does without
    from jobs.evaluate_tokenizer import evaluate
    from jobs.evaluation.report import measured

    evaluation = evaluate(config)
    found = measured(evaluation)
    print(table_row(config.tokenizer.name, found, published))
    psnr, num_videos = found["psnr"], len(evaluation.judged)
    assert psnr is not None
    failures = objections(psnr - published.psnr, num_videos, len(evaluation.videos) - num_videos)
    failures += [f"shard {name} is cut: {reason}" for name, reason in evaluation.cut.items()]
    for failure in failures:
        print(f"not reproduced: {failure}")
    if not failures:
        print(f"reproduced: PSNR within {TOLERANCE_DB} dB of {published.psnr:.2f}")
    return 1 if failures else 0


def objections(difference_db: float, num_videos: int, num_unjudged: int) -> list[str]:
    """Why figures do not count as reproduced; none: they do.

    Args:
        difference_db: measured less published PSNR.
        num_videos: that were judged.
        num_unjudged: that were bad or too short.

    >>> objections(0.05, 30, 0)
    []
    """
    failures = []
    if num_unjudged:
        failures.append(f"{num_unjudged} videos could not be judged")
    if num_videos != NUM_VIDEOS:
        failures.append(f"{num_videos} videos, the published figures are of {NUM_VIDEOS}")
    # A hundredth is how figures are published: 1e-9 lets a difference of just the tolerance pass.
    if not abs(difference_db) <= TOLERANCE_DB + 1e-9:
        failures.append(f"PSNR differs by {difference_db:+.3f} dB, more than {TOLERANCE_DB}")
    return failures


def table_row(name: str, found: dict[str, float | None], published: PublishedMetrics) -> str:
    """A line of the table of results in the README, measured / published."""
    digits = {"psnr": 2, "ssim": 3, "lpips": 3, "fvd": 1}
    stated = asdict(published)
    cells = [
        f"{'-' if found[key] is None else format(found[key], f'.{n}f')} / {stated[key]:.{n}f}"
        for key, n in digits.items()
    ]
    return f"| `{name}` | {' | '.join(cells)} |"


def _parser() -> argparse.ArgumentParser:
    parser = CommandLine(
        prog="python -m jobs.reproduce",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("clips", metavar="CLIPS", help="folder with the videos, or a pattern of .tar files")
    add("--tokenizer", required=True, metavar="NAME", help="see python -m tokenizer.list")
    add("--checkpoint", default="auto", metavar="C", help="path, URL or auto (default)")
    add("--precision", default="fp32", choices=["fp32", "tf32", "bf16"])
    add("--device", default="auto", choices=["auto", "cuda", "cpu"])
    add("--cluster", default="inline", choices=["inline", "local", "ray"])
    add("--threads", type=count, default=2, help="CPU threads of a worker (default: %(default)s)")
    add("--lpips-vgg", metavar="PATH", help="weights of the published LPIPS; without: AlexNet's")
    add("--i3d", metavar="PATH", help="I3D as TorchScript, for FVD; without: no FVD")
    add("--out", metavar="OUT", help="default: evaluations/mcl-jcv/NAME")
    return parser


if __name__ == "__main__":
    carry_out(main, interrupted="interrupted; the same command continues")
