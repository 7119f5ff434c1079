"""A training that reads the demo clips and keeps its state, and what it saw, in one file.

``python -m tests.pipeline.training.consumer STATE NUM_BATCHES PATTERN...``
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from pipeline.inputs import list_tars
from pipeline.reader import ReadRules
from pipeline.training.clips import TrainingClips
from pipeline.training.recipe import ClipRecipe
from tests.pipeline.training.feeds import digests

RECIPE = ClipRecipe(
    clip_frames=5,
    resolution=32,
    fps=(3.0, 8.0, 25.0),
    seed=3,
    random_crop=True,
    mirror=True,
    window_bytes=400_000,
)
RULES = ReadRules(
    video_extensions=frozenset({"mp4", "webm", "mkv", "3gp"}),
    caption_key="caption",
    video_bytes=1 << 30,
    sidecar_bytes=1 << 20,
)


def main() -> None:
    state_path, number, *patterns = sys.argv[1:]
    state = Path(state_path)
    feed = TrainingClips(list_tars(patterns, {}), RECIPE, batch_clips=2, rules=RULES)
    met: list[str] = []
    if state.exists():
        saved = json.loads(state.read_text())
        feed.load_state_dict(saved["feed"])
        met = saved["met"]
    for _, batch in zip(range(int(number)), feed, strict=False):
        met += digests([batch])
        unfinished = state.with_suffix(".new")
        unfinished.write_text(json.dumps({"feed": feed.state_dict(), "met": met}))
        unfinished.replace(state)
        print(len(met), flush=True)


if __name__ == "__main__":
    main()
