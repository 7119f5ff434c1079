"""Laws of the training feed: what comes, in which order, and that a state continues with it."""

from __future__ import annotations

import json
import tarfile
import tracemalloc
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from pipeline.errors import RunError, TooManyBadVideos
from pipeline.shards import Shard
from pipeline.training.draws import draws
from tests.pipeline.media import SIZE, encode, read_number
from tests.pipeline.tars import RULES, tar_bytes, tar_shard
from tests.pipeline.training.feeds import (
    RECIPE,
    colour,
    digests,
    feed_of,
    take,
    write_shards,
)

NUM_VIDEOS = 11


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> list[Shard]:
    folder = tmp_path_factory.mktemp("shards")
    return write_shards(folder, [colour(number) for number in range(NUM_VIDEOS)], 3)


def shown(batches: Sequence[np.ndarray]) -> list[int]:
    """The video of each clip."""
    return [read_number(clip[0]) for batch in batches for clip in batch]


def test_every_video_of_every_epoch_gives_its_clips(shards: list[Shard]) -> None:
    recipe = replace(RECIPE, clips_per_video=2)
    order = shown(take(feed_of(shards, recipe, batch_clips=2), 2 * NUM_VIDEOS))
    epochs = [order[at : at + 2 * NUM_VIDEOS] for at in (0, 2 * NUM_VIDEOS)]
    for epoch in epochs:
        assert Counter(epoch) == dict.fromkeys(range(NUM_VIDEOS), 2)
    assert epochs[0] != epochs[1]
    assert epochs[0] != sorted(epochs[0])


def test_the_order_does_not_depend_on_children_or_bounds_but_on_the_seed(
    shards: list[Shard],
) -> None:
    usual = digests(take(feed_of(shards), 6))
    hurried = feed_of(shards, num_children=3, prefetch_bytes=1, ring_bytes=1)
    assert digests(take(hurried, 6)) == usual
    assert digests(take(feed_of(shards, replace(RECIPE, seed=1)), 6)) != usual


@pytest.mark.parametrize("clips_per_video", [1, 2])
def test_a_state_after_any_batch_continues_with_exactly_the_next_one(
    shards: list[Shard], clips_per_video: int
) -> None:
    recipe = replace(RECIPE, clips_per_video=clips_per_video, random_crop=True, mirror=True,
                     window_bytes=9_000)  # fmt: skip
    straight = feed_of(shards, recipe)
    batches, states = [], []
    for batch in iter(straight):
        batches.append(batch)
        states.append(json.loads(json.dumps(straight.state_dict())))
        if len(batches) == 7:
            break
    assert len({(s["place"]["epoch"], s["place"]["window"]) for s in states}) > 2
    assert max(len(json.dumps(state)) for state in states) < 600
    expected = digests(batches)
    for number, state in enumerate(states[:-1], 1):
        resumed = feed_of(shards, recipe)
        resumed.load_state_dict(state)
        assert digests(take(resumed, 1)) == expected[number : number + 1]
        assert resumed.state_dict() == states[number]


@pytest.mark.parametrize("world_size", [2, 5])
def test_ranks_share_an_epoch_without_gap_or_overlap(shards: list[Shard], world_size: int) -> None:
    met: list[int] = []
    for rank in range(world_size):
        feed = feed_of(shards, batch_clips=1, rank=rank, world_size=world_size)
        for batch in iter(feed):
            if feed.tally.num_clips > feed.tally.epoch_clips:
                break  # of the next epoch
            met += shown([batch])
    assert sorted(met) == list(range(NUM_VIDEOS))


def test_rates_starts_crops_and_mirrors_occur_evenly_and_not_together() -> None:
    drawn = [
        draws(0, epoch, f"s/{video}", 2, fps=(3.0, 8.0), random_crop=True, mirror=True)[index]
        for epoch in range(20)
        for video in range(20)
        for index in range(2)
    ]
    table = np.array([(d.fps, d.start, d.across, d.down, d.mirrored) for d in drawn], float)
    assert 340 < (table[:, 0] == 3.0).sum() < 460
    assert 340 < table[:, 4].sum() < 460
    for column in (1, 2, 3):
        assert np.histogram(table[:, column], 4, (0, 1))[0].min() > 150
    assert np.abs(np.corrcoef(table.T) - np.eye(5)).max() < 0.12


def test_a_clip_has_the_drawn_start_and_rate(tmp_path: Path) -> None:
    video = encode(range(90), options={"crf": "10"})
    shards = [tar_shard(tmp_path / "one.tar", tar_bytes([("a.mp4", video)]))]
    recipe = replace(RECIPE, resolution=SIZE)
    starts, steps = set(), Counter[int]()
    for batch in take(feed_of(shards, recipe, batch_clips=1), 40):
        numbers = [read_number(picture) for picture in batch[0]]
        assert numbers[1] - numbers[0] == numbers[2] - numbers[1] or numbers[-1] == 89
        starts.add(numbers[0])
        steps[numbers[1] - numbers[0]] += 1
    assert len(starts) > 20
    assert set(steps) == {1, 3}  # 30 and 10 of 30 frames per second
    assert min(steps.values()) > 8


def test_short_videos_and_single_pictures_repeat_their_last_frame(tmp_path: Path) -> None:
    members = [("a.mp4", encode(range(3))), ("b.mp4", encode(range(1)))]
    shards = [tar_shard(tmp_path / "short.tar", tar_bytes(members))]
    recipe = replace(RECIPE, resolution=SIZE, fps=(30.0,))
    [batch] = take(feed_of(shards, recipe, batch_clips=2), 1)
    numbers = sorted([read_number(picture) for picture in clip] for clip in batch)
    assert numbers == [[0, 0, 0, 0], [0, 1, 2, 2]]


def test_a_source_slower_than_the_rate_gives_every_frame_once(tmp_path: Path) -> None:
    video = encode([3 * number for number in range(9)])  # 10 frames per second
    shards = [tar_shard(tmp_path / "slow.tar", tar_bytes([("a.mp4", video)]))]
    recipe = replace(RECIPE, resolution=SIZE, fps=(30.0,))
    [batch] = take(feed_of(shards, recipe, batch_clips=1), 1)
    first, *rest = [read_number(picture) for picture in batch[0]]
    assert rest == [first + 1, first + 2, first + 4]  # the last one is published one further


def test_crops_and_mirrors_are_parts_of_the_picture(tmp_path: Path) -> None:
    across = np.broadcast_to(np.arange(128, dtype=np.uint8)[None, :, None], (64, 128, 3))
    video = encode(range(3), draw=lambda k: across, options={"crf": "1"}, pix_fmt="yuv444p")
    shards = [tar_shard(tmp_path / "one.tar", tar_bytes([("a.mp4", video)]))]
    recipe = replace(RECIPE, resolution=64, random_crop=True, mirror=True)
    clips = [batch[0, 0, 32, :, 1].astype(int) for batch in
             take(feed_of(shards, recipe, batch_clips=1), 24)]  # fmt: skip
    lefts = {min(row[0], row[-1]) for row in clips}
    assert len(lefts) > 12
    assert {bool(row[0] < row[-1]) for row in clips} == {True, False}
    assert all(abs(abs(row[-1] - row[0]) - 63) <= 4 for row in clips)
    centred = take(feed_of(shards, replace(recipe, random_crop=False), batch_clips=1), 1)[0]
    assert abs(min(centred[0, 0, 32, [0, -1], 1].astype(int)) - 32) <= 3


def test_zooms_are_even_in_octaves_and_leave_the_other_draws_alone() -> None:
    rules = {"fps": (3.0, 8.0), "random_crop": True, "mirror": True}
    plain, zoomed = (
        [draws(0, 0, f"s/{video}", 1, **rules, max_zoom=most)[0] for video in range(800)]
        for most in (1.0, 4.0)
    )
    assert {one.zoom for one in plain} == {1.0}
    assert [replace(one, zoom=1.0) for one in zoomed] == plain
    octaves = np.log2([one.zoom for one in zoomed])
    assert np.histogram(octaves, 4, (0, 2))[0].sum() == 800
    assert np.histogram(octaves, 4, (0, 2))[0].min() > 150
    across = [one.across for one in zoomed]
    assert abs(np.corrcoef(octaves, across)[0, 1]) < 0.12


def test_a_zoomed_clip_is_a_part_of_the_picture_made_larger(tmp_path: Path) -> None:
    across = np.broadcast_to(np.arange(0, 256, 2, dtype=np.uint8)[None, :, None], (128, 128, 3))
    video = encode(range(3), draw=lambda k: across, options={"crf": "1"}, pix_fmt="yuv444p")
    shards = [tar_shard(tmp_path / "one.tar", tar_bytes([("a.mp4", video)]))]
    recipe = replace(RECIPE, resolution=64, random_crop=True, max_zoom=2.0)
    rows = [batch[0, 0, 32, :, 1].astype(int) for batch in
            take(feed_of(shards, recipe, batch_clips=1), 24)]  # fmt: skip
    ranges = [row[-1] - row[0] for row in rows]  # 252 of the whole width, half of it at zoom 2
    assert 120 <= min(ranges) < 150
    assert 200 < max(ranges) <= 254
    assert len({row[0] for row in rows}) > 12


@pytest.mark.parametrize("zoom", [0.5, 17.0, float("nan")])
def test_a_zoom_that_makes_no_clips_is_refused(zoom: float) -> None:
    with pytest.raises(RunError, match="max_zoom of training clips must be in 1 to 16, got"):
        replace(RECIPE, max_zoom=zoom)


def test_bad_videos_are_skipped_counted_and_leave_the_order_as_it_is(tmp_path: Path) -> None:
    videos = [b"no video" if number in (2, 5) else colour(number) for number in range(8)]
    videos[6] = b""
    shards = write_shards(tmp_path, videos, 2)
    feed = feed_of(shards, batch_clips=5)
    assert set(shown(take(feed, 1))) == {0, 1, 3, 4, 7}
    assert set(feed.tally.bad) <= {"not_a_video", "empty"}
    again = feed_of(shards, batch_clips=5, num_children=3)
    again.load_state_dict(feed.state_dict())
    assert digests(take(again, 2)) == digests(take(feed, 2))
    assert again.tally == feed.tally


def test_the_feed_stops_where_too_many_videos_are_bad(tmp_path: Path) -> None:
    shards = write_shards(tmp_path, [colour(0), b"x", b"y", b"z"], 1)
    feed = feed_of(shards, batch_clips=1, min_videos=4, max_bad_fraction=0.5)
    with pytest.raises(TooManyBadVideos, match=r"3 of 4 videos .* reasons: not_a_video 3"):
        take(feed, 2)


def test_an_epoch_without_a_clip_ends_the_feed(tmp_path: Path) -> None:
    shards = write_shards(tmp_path, [b"x", b"y"], 1)
    with pytest.raises(TooManyBadVideos, match="epoch 0 gave rank 0 of 1 no clip: 2 videos seen"):
        take(feed_of(shards, max_bad_fraction=1.0), 1)
    empty = [tar_shard(tmp_path / "empty.tar", tar_bytes([]))]
    with pytest.raises(TooManyBadVideos, match="0 videos seen"):
        take(feed_of(empty), 1)


def test_the_rest_of_a_cut_shard_is_one_bad_video(tmp_path: Path) -> None:
    [shard] = write_shards(tmp_path, [colour(number) for number in range(4)], 1)
    with tarfile.open(shard.url) as archive:
        last = archive.getmembers()[-1].offset_data
    with Path(shard.url).open("r+b") as file:
        file.truncate(last + 100)
    feed = feed_of([shard], batch_clips=1)
    assert set(shown(take(feed, 6))) == {0, 1}  # the sample before the cut may lack files, too
    assert set(feed.tally.bad) == {"cut_shard"}
    assert feed.tally.num_videos == 6 + feed.tally.num_bad


def test_a_state_of_other_clips_or_ranks_is_refused_with_the_way_out(shards: list[Shard]) -> None:
    feed = feed_of(shards)
    take(feed, 1)
    state = feed.state_dict()
    with pytest.raises(RunError, match="belongs to other clips"):
        feed_of(shards, replace(RECIPE, seed=7)).load_state_dict(state)
    with pytest.raises(RunError, match="belongs to other clips"):
        feed_of(shards[:2]).load_state_dict(state)
    other = feed_of(shards, rank=1, world_size=2)
    with pytest.raises(RunError, match=r"rank 0 of 1, this is rank 1 of 2: .*next_epoch=True"):
        other.load_state_dict(state)
    with pytest.raises(RunError, match="no state of training clips"):
        feed.load_state_dict({"version": 99})
    other.load_state_dict(state, next_epoch=True)
    assert other.epoch == 1
    take(other, 1)


def test_a_shard_that_changed_since_the_state_is_refused(tmp_path: Path) -> None:
    shards = write_shards(tmp_path, [colour(number) for number in range(6)], 1)
    recipe = replace(RECIPE, window_bytes=1)
    feed = feed_of(shards, recipe, batch_clips=2)
    take(feed, 1)
    write_shards(tmp_path, [colour(number) for number in range(20)], 1)
    with pytest.raises(RunError, match=r"shard-0.tar has .* bytes, it had"):
        take(feed, 1)


def test_memory_is_bounded_by_windows_and_prefetch(tmp_path: Path) -> None:
    video = colour(1) + bytes(1_000_000)  # what follows the last box is passed over
    shards = write_shards(tmp_path, [video] * 24, 2)
    recipe = replace(RECIPE, window_bytes=2_000_000)
    rules = replace(RULES, video_bytes=len(video))
    feed = feed_of(shards, recipe, rules=rules, prefetch_bytes=2_000_000)
    take(feed, 1)  # imports
    tracemalloc.start()
    try:
        take(feed, 8)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    windows, in_flight, being_read = 2 * 3_000_000, 3_000_000, 2_000_000
    assert peak < windows + in_flight + being_read + 1_000_000
