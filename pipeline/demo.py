"""The demo: the clips shipped here as shards, and the whole way from them to training batches.

``demo_shards`` is what ``dataset=demo`` reads. ``python -m pipeline.demo`` runs the commands that a
user would type, one after the other, and reads the tokens back. It knows their command lines and
the public names of ``pipeline.dataset``, nothing of what lies behind them.
"""

from __future__ import annotations

import io
import os
import shlex
import subprocess
import sys
from pathlib import Path

from pipeline.command_line import CommandLine, carry_out

CLIPS = Path(__file__).parent / "demo_clips"
"""Videos, captions and licences; its README lists them."""
SHARDS = Path("outputs/demo/shards")
"""Where a run writes the shards of the demo."""
OUTPUT = Path("outputs/demo/demo")
"""Where a run of the demo keeps its tokens unless told otherwise."""
NUM_SHARDS = 4

_VIDEO_SUFFIXES = {".3gp", ".mkv", ".mp4", ".webm"}
_SIDECAR_SUFFIXES = (".txt", ".json")


def demo_videos() -> list[Path]:
    """The videos shipped with the package, sorted; each has a .txt and a .json beside it."""
    return sorted(path for path in CLIPS.iterdir() if path.suffix in _VIDEO_SUFFIXES)


def demo_shards(directory: Path) -> list[Path]:
    """Tar shards of the demo clips in ``directory``, written where they are missing or differ.

    The bytes are the same every time, and a shard that is right is not touched, so that a run that
    continues finds its inputs unchanged.
    """
    videos = demo_videos()
    directory.mkdir(parents=True, exist_ok=True)
    paths = []
    for index in range(NUM_SHARDS):
        first, last = (len(videos) * bound // NUM_SHARDS for bound in (index, index + 1))
        path = directory / f"demo-{index:05d}.tar"
        content = _tar(videos[first:last])
        if not path.is_file() or path.read_bytes() != content:
            unfinished = path.with_name(f".{path.name}.{os.getpid()}")
            unfinished.write_bytes(content)
            unfinished.replace(path)
        paths.append(path)
    return paths


def _tar(videos: list[Path]) -> bytes:
    from webdataset import TarWriter  # here, because it imports torch and --help need not wait

    stream = io.BytesIO()
    with TarWriter(stream, encoder=False, user="demo", group="demo", mtime=0) as tar:
        for video in videos:
            members = {
                suffix.removeprefix("."): video.with_suffix(suffix).read_bytes()
                for suffix in (video.suffix, *_SIDECAR_SUFFIXES)
            }
            tar.write({"__key__": video.stem, **members})
    return stream.getvalue()


def read_back(output: Path) -> None:
    """Print what a training loop gets to see of the tokens in ``output``."""
    from pipeline.dataset import TokenDataset

    num_clips = 0
    codes: set[int] = set()
    shapes: dict[str, None] = {}
    for batch in TokenDataset(str(output), batch_size=4, drop_last=False):
        tokens = batch["tokens"]
        if not num_clips:
            print("captions of the first batch:")
            print(*(f"  {caption}" for caption in batch["caption"]), sep="\n")
        num_clips += int((~batch["is_padding"]).sum())
        codes.update(tokens.unique().tolist())
        shapes[f"tokens {list(tokens.shape)} {tokens.dtype}"] = None
    print(*shapes, sep="\n")
    print(f"{num_clips} clips, {len(codes):,} distinct codes")


def main() -> None:
    """``python -m pipeline.demo``: run, verify, read back; ends with the status of what failed."""
    parser = CommandLine(
        prog="python -m pipeline.demo",
        description="Turn the clips shipped with the project into tokens, verify and read them.",
    )
    parser.add_argument(
        "--output",
        type=Path,
        default=OUTPUT,
        metavar="DIR",
        help="where the tokens go (default: %(default)s); a second run continues there",
    )
    output: Path = parser.parse_args().output

    run = ["pipeline.run", "+dataset=demo", "+tokenizer=demo"]
    if output != OUTPUT:
        run.append(f"output.root={_hydra_quoted(str(output))}")
    for command in (run, ["pipeline.verify", str(output)]):
        status = _python_m(command)
        if status:
            sys.exit(status)

    print(f'reading back with TokenDataset("{output}", batch_size=4, drop_last=False)')
    read_back(output)
    print(f"tokens: {output}    shards: {SHARDS}    one video is damaged on purpose: quarantined")
    print(f"look at the pictures: {output}/report/index.html (source above, tokens decoded below)")


def _python_m(arguments: list[str]) -> int:
    """Exit status of ``python -m ...``, its output passed through."""
    print(f"$ python -m {shlex.join(arguments)}", flush=True)
    with subprocess.Popen([sys.executable, "-m", *arguments]) as process:
        while True:
            try:
                status = process.wait()
            except KeyboardInterrupt:  # the command got it too and ends in order
                continue
            return status if status >= 0 else 128 - status


def _hydra_quoted(text: str) -> str:
    return "'" + text.replace("'", "\\'") + "'"


if __name__ == "__main__":
    carry_out(main, interrupted="interrupted; the same command continues")
