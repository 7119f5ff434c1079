"""Shows what a tokenizer keeps of a video: encodes, decodes, writes both side by side.

    python -m jobs.reconstruct IN.mp4 OUT.mp4 --tokenizer kl_4x8x8_16chn --checkpoint auto
    python -m jobs.reconstruct OUT.mp4 --from outputs/demo/demo --clip-id ID

The first form takes videos of any length, keeps times and audio, and prints PSNR and SSIM as the
published figures were computed. The second decodes a clip that a run has tokenised.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections import deque
from collections.abc import Iterator, Sequence
from pathlib import Path

import av
import numpy as np
import torch
from torch import Tensor

from jobs.tokenised_clips import TokenisedClip, find_clip, model_of, plugin_frames
from jobs.video_files import Picture, VideoReader, VideoWriter
from pipeline.command_line import CommandLine, carry_out, count, size
from pipeline.errors import PipelineError
from tokenizer import TokenizerError, VideoTokenizer, load_tokenizer
from tokenizer.config import Version
from tokenizer.metrics.distortion import frames, psnr, ssim
from tokenizer.streaming import rechunk

MODES = ("auto", "exact", "overlap", "clips")
PROGRESS_SECONDS = 5.0
BLOCK_FRAMES = 8


def main(arguments: Sequence[str] | None = None) -> int:
    """Status 0, or 2 after one line about what is wrong."""
    parser = _parser()
    options = parser.parse_args(arguments)
    if (options.output is None) != (options.source is not None):
        parser.error("give IN and OUT, or OUT with --from and --clip-id")
    if (options.source is None) != (options.clip_id is None):
        parser.error("--from and --clip-id go together")
    if options.source is None and options.tokenizer is None:
        parser.error("--tokenizer NAME is needed; python -m tokenizer.list shows them")
    if options.source is None and not options.input.is_file():
        parser.error(f"IN {options.input}: no such file")
    if options.threads:
        torch.set_num_threads(options.threads)
    try:
        with torch.inference_mode():
            if options.source is not None:
                return _decode_clip(options)
            return _reconstruct(options)
    except (TokenizerError, PipelineError, av.FFmpegError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


def reconstructed(
    model: VideoTokenizer, blocks: Iterator[Tensor], *, chunk: int, mode: str
) -> Iterator[Tensor]:
    """Frames there and back, in memory that does not grow with the length.

    Args:
        model: with its decoder.
        blocks: uint8 ``[1, T, H, W, 3]``, any T.
        chunk: frames per step; modes exact and overlap.
        mode: exact, overlap: one stream, see ``VideoTokenizer.stream_decode``. clips: clips of
            ``config.clip_frames`` frames, each for itself, as v1.0 models are evaluated.

    Yields:
        float32 ``[1, 3, T, H, W]``. All together as many frames as came, then perhaps some that
        stand for copies of the last one.
    """
    config = model.config
    if mode == "clips":
        for part, _ in rechunk(blocks, dim=1, first=config.clip_frames, chunk=config.clip_frames):
            whole = torch.cat(list(_filled(iter((part,)), model)), dim=1)
            x_hat = model.decode(model.encode_uint8(whole).latents)
            yield x_hat[:, :, -whole.shape[1] :][:, :, : part.shape[1]]
        return
    # Frames that stand for the front padding of the first one, beyond those that decode drops.
    surplus = config.time_downsample_factor - 1 - config.dropped_frames
    latents = (part.latents for part in model.stream_encode(_filled(blocks, model), chunk))
    num_latents = max(1, chunk // config.time_downsample_factor)
    for x_hat in model.stream_decode(latents, num_latents, mode):
        yield x_hat[:, :, surplus:]
        surplus = max(0, surplus - x_hat.shape[2])


def _filled(blocks: Iterator[Tensor], model: VideoTokenizer) -> Iterator[Tensor]:
    """The same frames, the last one repeated until their number suits the model."""
    factor, num_frames, block = model.config.time_downsample_factor, 0, None
    for block in blocks:
        num_frames += block.shape[1]
        yield block
    missing = -(num_frames - model.config.is_causal) % factor
    if block is not None and missing:
        yield block[:, -1:].expand(-1, missing, -1, -1, -1)


def _reconstruct(options: argparse.Namespace) -> int:
    model = load_tokenizer(options.tokenizer, options.checkpoint, options.device, options.precision)
    height, width = options.size or (model.config.resolution,) * 2
    model.config.check_clip(model.config.clip_frames, height, width)
    mode = options.mode
    if mode == "auto":
        is_long = model.config.is_causal and model.config.version is Version.v1_1
        mode = "exact" if is_long else "clips"
    unfinished = options.output.with_name(f"unfinished-{options.output.name}")
    with VideoReader(options.input, height=height, width=width) as reader:
        writer = VideoWriter(
            unfinished,
            height=height,
            width=2 * width,
            rate=reader.rate,
            time_base=reader.time_base,
            audio=reader.audio,
        )
        waiting: deque[tuple[int, Picture]] = deque()
        quality: list[tuple[float, float]] = []
        progress = _Progress(reader.num_frames)
        blocks = _blocks(reader, writer, waiting)
        for x_hat in reconstructed(model, blocks, chunk=options.chunk, mode=mode):
            for index in range(min(x_hat.shape[2], len(waiting))):
                time_, picture = waiting.popleft()
                quality.append(_compare(writer, picture, x_hat[:, :, index : index + 1], time_))
            progress.show(len(quality), quality)
        writer.close()
    if not quality:
        unfinished.unlink()
        print(f"error: {options.input} has no frames", file=sys.stderr)
        return 2
    unfinished.replace(options.output)
    mean_psnr, mean_ssim = np.mean(quality, axis=0)
    assert model.checkpoint is not None
    remark = " (RANDOM weights: these figures mean nothing)" if model.checkpoint.is_random else ""
    print(
        f"{options.output}: {len(quality)} frames of {width}x{height}, mode {mode}, "
        f"PSNR {mean_psnr:.2f} dB, SSIM {mean_ssim:.4f}{remark}"
    )
    return 0


def _blocks(
    reader: VideoReader, writer: VideoWriter, waiting: deque[tuple[int, Picture]]
) -> Iterator[Tensor]:
    """Frames for the model; the same pictures wait for what it makes of them."""
    pictures: list[Picture] = []
    for time_, picture in reader.frames(writer.write_audio):
        waiting.append((time_, picture))
        pictures.append(picture)
        if len(pictures) == BLOCK_FRAMES:
            yield torch.from_numpy(np.stack(pictures))[None]
            pictures.clear()
    if pictures:
        yield torch.from_numpy(np.stack(pictures))[None]


def _compare(
    writer: VideoWriter, picture: Picture, x_hat: Tensor, time_: int
) -> tuple[float, float]:
    """Write one frame side by side; its PSNR and SSIM."""
    x = torch.from_numpy(picture).to(x_hat.device).permute(2, 0, 1)[None, :, None]
    x = (x.float() / 255 - 0.5) / 0.5
    writer.write(np.concatenate([picture, _pictures(x_hat)[0]], axis=1), time_)
    a, b = frames(x_hat), frames(x)
    return float(psnr(a, b)), float(ssim(a, b))


def _pictures(x_hat: Tensor) -> Picture:
    """uint8 ``[T, H, W, 3]`` of the first video, cut off as the published code does."""
    frames = (x_hat[0].clamp(-1, 1) + 1).movedim(0, 1) / 2 * 255
    return np.ascontiguousarray(frames.to(torch.uint8).permute(0, 2, 3, 1).cpu().numpy())


def _decode_clip(options: argparse.Namespace) -> int:
    clip = find_clip(options.source, options.clip_id)
    if clip.plugin is not None:
        return _write_plugin_clip(clip, options)
    model = model_of(clip, options.checkpoint, options.device, options.precision)
    factor, tokens = model.config.time_downsample_factor, clip.tokens[None]
    num_latents = tokens.shape[-3]
    if model.config.is_causal:
        mode = "exact" if options.mode in ("auto", "clips") else options.mode
        parts = model.stream_decode(tokens, max(1, options.chunk // factor), mode)
    else:
        decode = model.decode if tokens.is_floating_point() else model.decode_indices
        parts = iter((decode(tokens),))
    # What was added at the front of the first frames; more was added behind the last ones.
    added = min(num_latents * factor - clip.num_frames, factor - 1)
    surplus, num_written = max(0, added - model.config.dropped_frames), 0
    height, width = (size * stride for size, stride in zip(
        tokens.shape[-2:], model.config.stride[1:], strict=True))  # fmt: skip
    unfinished = options.input.with_name(f"unfinished-{options.input.name}")
    writer = VideoWriter(unfinished, height=height, width=width, rate=clip.shown_rate)
    progress = _Progress(clip.num_frames)
    for x_hat in parts:
        pictures, surplus = _pictures(x_hat[:, :, surplus:]), max(0, surplus - x_hat.shape[2])
        for picture in pictures[: clip.num_frames - num_written]:
            writer.write(picture, num_written)
            num_written += 1
        progress.show(num_written, [])
    writer.close()
    unfinished.replace(options.input)
    print(f"{options.input}: {num_written} frames of {width}x{height}, {clip.tokenizer}")
    return 0


def _write_plugin_clip(clip: TokenisedClip, options: argparse.Namespace) -> int:
    pictures = plugin_frames(clip, options.checkpoint, options.device, options.precision).numpy()
    _, height, width, _ = pictures.shape
    unfinished = options.input.with_name(f"unfinished-{options.input.name}")
    writer = VideoWriter(unfinished, height=height, width=width, rate=clip.shown_rate)
    for number, picture in enumerate(pictures):
        writer.write(picture, number)
    writer.close()
    unfinished.replace(options.input)
    print(f"{options.input}: {len(pictures)} frames of {width}x{height}, {clip.tokenizer}")
    return 0


class _Progress:
    """A line on stderr now and then."""

    def __init__(self, total: int) -> None:
        self._total = total
        self._start = self._last = time.monotonic()

    def show(self, done: int, quality: Sequence[tuple[float, float]]) -> None:
        now = time.monotonic()
        if now - self._last < PROGRESS_SECONDS:
            return
        self._last = now
        total = f" of about {self._total}" if self._total else ""
        so_far = f", PSNR so far {np.mean(quality, axis=0)[0]:.2f} dB" if quality else ""
        rate = done / (now - self._start)
        print(f"{done}{total} frames, {rate:.2f} frames/s{so_far}", file=sys.stderr)


def _parser() -> argparse.ArgumentParser:
    parser = CommandLine(
        prog="python -m jobs.reconstruct",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("input", type=Path, metavar="IN", help="video file; with --from: the video to write")
    add("output", type=Path, nargs="?", metavar="OUT", help="video file to write")
    add("--tokenizer", metavar="NAME", help="see python -m tokenizer.list")
    add("--checkpoint", metavar="C", help="path, URL, auto or random; default: the tokenizer's own")
    add("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    add("--precision", default="fp32", choices=["fp32", "tf32", "bf16"])
    add("--size", type=size, metavar="HxW", help="default: that of the tokenizer, square")
    add("--mode", default="auto", choices=MODES, help="default: exact for v1.1, clips for others")
    add(
        "--chunk", type=count, default=16, help="frames per step of a stream (default: %(default)s)"
    )
    add("--threads", type=count, help="CPU threads of torch")
    add("--from", dest="source", metavar="OUT", help="place with the tokens of a run")
    add("--clip-id", metavar="ID", help="which clip of it")
    return parser


if __name__ == "__main__":
    carry_out(main)
