"""The memory of a worker is bounded by its configuration, whatever the shards hold."""

import json

import numpy as np
import pytest

from tests.pipeline import media, runs

WIDTH, HEIGHT, NUM_FRAMES, NUM_VIDEOS = 1920, 1080, 330, 12
ALLOWED_BYTES = 1 << 30
"""For the worker's process, torch and the model with it, and its two children together."""


def still_video() -> bytes:
    """Eleven seconds of full HD in some kilobytes: a picture that stands still."""
    picture = np.kron(media.numbered(77), np.ones((20, 30, 1), np.uint8))[:HEIGHT, :WIDTH]
    frame = media.av.VideoFrame.from_ndarray(picture).reformat(format="yuv420p")
    options = {"preset": "ultrafast", "g": "1000", "sc_threshold": "0"}
    return media.encode(range(NUM_FRAMES), frame_of=lambda _: frame, options=options)


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["clips", "whole"])
def test_shards_of_twenty_times_the_memory_allowed(tmp_path, mode):
    video = still_video()
    decoded_bytes = WIDTH * HEIGHT * 3 * NUM_FRAMES * NUM_VIDEOS
    assert decoded_bytes > 20 * ALLOWED_BYTES
    samples = [(f"v{number:02d}.mp4", video) for number in range(NUM_VIDEOS)]
    (tmp_path / "s.tar").write_bytes(runs.tar_bytes(samples))
    arguments = [
        "+dataset=tars",
        f"dataset.shards={tmp_path / 's.tar'}",
        f"output.root={tmp_path / 'out'}",
        *runs.TINY,
        "encoder.decoders=2",
        "limits.child_memory_bytes=250000000",
        f"sampling.mode={mode}",
        "cluster=inline",
    ]
    done = runs.run(*arguments, cwd=tmp_path, timeout_seconds=600)
    assert done.returncode == 0, done.stderr
    rows = len(runs.rows(tmp_path / "out"))
    assert rows == NUM_VIDEOS * (1 if mode == "whole" else NUM_FRAMES * 8 // 30 // 17)
    (heartbeat,) = (tmp_path / "out" / "progress").iterdir()
    counters = json.loads(heartbeat.read_text())["counters"]
    children = 2 * counters["peak_decoder_rss_bytes"]
    used = counters["peak_worker_rss_bytes"] + children
    print(f"worker {counters['peak_worker_rss_bytes'] >> 20} MiB, children {children >> 20} MiB")
    assert 0 < counters["ring_bytes"] <= 2 * ((32 << 20) + 4096)
    assert 100 << 20 < used < ALLOWED_BYTES
    assert (tmp_path / "s.tar").stat().st_size < ALLOWED_BYTES / 100
