"""``python -m jobs.evaluate_tokenizer +dataset=folder dataset.path=DIR +tokenizer=fsq_4x8x8``.

Judges a tokenizer on videos by the published protocol: a table, a record, and pictures of the best
and the worst clips. Tells the story; what it is made of is in ``jobs/evaluation/``.
"""

from __future__ import annotations

import logging
import re
import sys
import time
from typing import TYPE_CHECKING

import hydra
from omegaconf import DictConfig

from jobs.evaluation import compose
from jobs.evaluation.config import EvaluationConfig
from pipeline.command_line import carry_out
from pipeline.compose import jobs_of, run_each
from pipeline.errors import ConfigError, PipelineError
from tokenizer import TokenizerError

if TYPE_CHECKING:
    from jobs.evaluation.records import JudgeSpec, ShardJudged, VideoJudged
    from jobs.evaluation.report import Evaluation
    from jobs.evaluation.results import Results
    from pipeline.shards import Shard

PROGRESS_SECONDS = 5.0


def main() -> None:
    """Check the command line, then let Hydra run it, or each job of a ``--multirun``."""
    compose.register_schema()
    try:
        jobs = jobs_of(compose.arguments(), "evaluate", "output.root")
        for job in jobs:
            compose.check_command(job)
    except PipelineError as error:
        sys.exit(f"error: {error}")
    run_each(jobs, run_composed)


@hydra.main(version_base="1.3", config_path="pkg://conf", config_name="evaluate")
def run_composed(config: DictConfig) -> None:
    """Judge; the exit code says whether every shard and every named video could be read."""
    logging.getLogger("botocore").setLevel(logging.WARNING)
    logging.getLogger("tokenizer.checkpoint").setLevel(logging.ERROR)  # the title says it
    try:
        code = execute(compose.to_evaluation(config))
    except KeyboardInterrupt:
        sys.exit("interrupted; the same command continues behind the last finished shard")
    except (PipelineError, TokenizerError) as error:
        sys.exit(f"error: {error}")
    if code:
        sys.exit(code)


def execute(config: EvaluationConfig) -> int:
    """Carry out an evaluation, or its rest.

    Returns:
        0, or 1 when a shard is cut or a named video is nowhere.

    Raises:
        RunError: it cannot begin or go on, or no video could be judged.
        TokenizerError: weights or networks that cannot be had.
    """
    evaluation = evaluate(config)
    missing = missing_videos(config, evaluation)
    if missing:
        print(f"not found: {', '.join(missing)} (evaluate.videos)", file=sys.stderr)
    return 1 if evaluation.cut or missing else 0


def evaluate(config: EvaluationConfig) -> Evaluation:
    """Judge, print the table, write the record and the pictures.

    Raises:
        RunError, TokenizerError: as ``execute``.
    """
    # torch with these: --help does without
    from jobs.evaluation import report
    from jobs.evaluation.resolve import judge_spec, settings_of
    from jobs.evaluation.results import Results
    from pipeline.run import list_shards
    from pipeline.storage import Storage
    from tokenizer import checkpoint_digest

    spec = judge_spec(config)
    shards = list_shards(compose.as_run(config))
    weights = checkpoint_digest(spec.tokenizer, spec.checkpoint, spec.seed)
    results = Results(Storage(config.output.root, config.output.storage_options))
    settings = settings_of(spec, weights)
    results.begin(settings)
    judged = judge_shards(config, spec, shards, results)
    evaluation = report.evaluation_of(
        judged.values(), spec.tokenizer.codebook_size, spec.num_pictures
    )
    if evaluation.quality is None:
        raise ConfigError(nothing_judged(config, evaluation))
    title = (
        f"{spec.tokenizer.name}{' with RANDOM weights' if weights.is_random else ''} on "
        f"{config.dataset.name}, {spec.size}x{spec.size}, {spec.fps:g} fps, mode {spec.mode.name}"
    )
    has_i3d = spec.i3d is not None
    print(report.table(evaluation, spec.tokenizer, title, spec.lpips, has_i3d=has_i3d))
    record = report.record(evaluation, spec.tokenizer, spec.lpips, has_i3d=has_i3d)
    results.write_record({"settings": settings, "dataset": config.dataset.name, **record})
    results.write_pictures(pictures(evaluation))
    print(f"-> {results.storage}/evaluation.json, pictures/")
    return evaluation


def judge_shards(
    config: EvaluationConfig, spec: JudgeSpec, shards: list[Shard], results: Results
) -> dict[str, ShardJudged]:
    """Results of all shards by name; each is kept as soon as it is there."""
    from jobs.evaluation.workers import judged_shards

    judged = results.finished(shards, spec.storage_options)
    to_do = [shard for shard in shards if shard.name not in judged]
    print(
        f"{config.dataset.name}: {len(shards)} shards, {len(judged)} finished before "
        f"-> {results.storage}",
        file=sys.stderr,
    )
    progress = Progress(len(to_do))
    if to_do:
        workers = judged_shards(spec, to_do, config.cluster, config.evaluate.device, progress.video)
        for result in workers:
            results.add(result)
            judged[result.name] = result
            progress.shard(result)
    return judged


def nothing_judged(config: EvaluationConfig, evaluation: Evaluation) -> str:
    """Why there is no table."""
    if not evaluation.videos:
        asked = config.evaluate.videos
        return "no video found" + (f" of evaluate.videos={asked}" if asked is not None else "")
    bad = [f"{key}: {problem}" for key, problem in evaluation.bad.items()]
    short = [f"{key}: too short" for key in evaluation.too_short]
    reasons = [*bad, *short]
    more = f"; and {len(reasons) - 5} more" if len(reasons) > 5 else ""
    return f"no video could be judged: {'; '.join(reasons[:5])}{more}"


def missing_videos(config: EvaluationConfig, evaluation: Evaluation) -> list[str]:
    """Names of ``evaluate.videos`` that no shard has."""
    from jobs.evaluation.resolve import video_names
    from jobs.evaluation.shard import names_of

    there = {name for video in evaluation.videos for name in names_of(video.key)}
    return [name for name in video_names(config.evaluate.videos) or () if name not in there]


def pictures(evaluation: Evaluation) -> dict[str, bytes]:
    """File names, from the best clip to the worst, and PNGs."""
    best_first = list(reversed(evaluation.strips))
    return {
        f"{place:02d}-{strip.psnr:.2f}dB-{_safe(strip.key)}-{strip.clip}.png": strip.png
        for place, strip in enumerate(best_first, 1)
    }


def _safe(key: str) -> str:
    return re.sub(r"[^A-Za-z0-9._-]+", "_", key)[-60:]


class Progress:
    """A line on standard error now and then."""

    def __init__(self, num_shards: int) -> None:
        """Begin to count the time."""
        self._num_shards, self._done = num_shards, 0
        self._videos = self._frames = 0
        self._psnr = 0.0
        self._current = (0, 0, 0.0)
        self._began = self._shown = time.monotonic()

    def video(self, video: VideoJudged) -> None:
        """One more of a shard that is not finished."""
        videos, frames, psnr = self._current
        self._current = (
            videos + 1,
            frames + sum(clip.num_frames for clip in video.clips),
            psnr + sum(clip.psnr * clip.num_frames for clip in video.clips),
        )
        self._show()

    def shard(self, result: ShardJudged) -> None:
        """A shard is finished; its videos may have been told of before."""
        self._done += 1
        self._current = (0, 0, 0.0)
        self._videos += len(result.videos)
        for video in result.videos:
            self._frames += sum(clip.num_frames for clip in video.clips)
            self._psnr += sum(clip.psnr * clip.num_frames for clip in video.clips)
        self._show()

    def _show(self) -> None:
        now = time.monotonic()
        if now - self._shown < PROGRESS_SECONDS:
            return
        self._shown = now
        videos, frames = self._videos + self._current[0], self._frames + self._current[1]
        psnr = (self._psnr + self._current[2]) / max(1, frames)
        print(
            f"{self._done} of {self._num_shards} shards, {videos} videos, {frames} frames, "
            f"{frames / (now - self._began):.1f} frames/s, PSNR so far {psnr:.2f} dB",
            file=sys.stderr,
        )


if __name__ == "__main__":
    carry_out(main)
