"""Hostile files, each through a real decoder child: condemned by name, before it costs memory."""

from pathlib import Path

import pytest

from pipeline.decode_events import ClipDecoded, VideoDecoded, VideoFailed, VideoRetried
from pipeline.decode_pool import DecodePool
from pipeline.limits import cpu_allowance
from pipeline.records import VideoLimits
from tests.pipeline import poison
from tests.pipeline.media import encode, plan_of
from tests.pipeline.poison import GIANT

PLAN = plan_of(25)
LIMITS = VideoLimits(frames=20_000, no_progress_seconds=60.0, child_memory_bytes=400 << 20)
HEALTHY = encode(range(30), container="matroska")
MUCH_BYTES = 160 << 20
"""More than a child needs to refuse a file, its start included; a giant picture takes 2.7 GB."""

GIANTS = {
    "png": lambda: poison.png(GIANT, GIANT),
    "jpeg": lambda: poison.jpeg(GIANT, GIANT),
    "h264": lambda: poison.h264(GIANT, GIANT),
}
CODECS = {
    "png": {"codec": "png", "pix_fmt": "rgb24"},
    "jpeg": {"codec": "mjpeg", "pix_fmt": "yuvj420p"},
    "h264": {"codec": "libx264", "pix_fmt": "yuv420p"},
}
SMALL_JPEG = poison.jpeg(64, 64)


@pytest.fixture(scope="module")
def pool():
    with DecodePool(num_children=1, plans=(PLAN,), limits=LIMITS) as pool:
        yield pool


def outcome(pool, data, *, is_image=False):
    """What becomes of a video, and of a healthy one after it; clips are released."""
    events = []
    for ticket, video in enumerate((data, HEALTHY)):
        pool.submit(ticket, video, is_image=is_image and ticket == 0)
    while sum(isinstance(event, VideoDecoded | VideoFailed) for event in events) < 2:
        event = pool.next_event(60.0)
        assert event is not None, events
        if isinstance(event, ClipDecoded):
            event.release()
        events.append(event)
    last = {event.ticket: event for event in events}
    assert last[1].summary.num_clips == {25: 6}
    return last[0], sum(isinstance(event, VideoRetried) for event in events)


@pytest.mark.parametrize(
    ("picture", "container"),
    [
        (picture, container)
        for picture in GIANTS
        for container in ("bare", "mp4", "matroska", "avi")
        if (picture, container) != ("png", "matroska")  # which takes no PNG
    ],
)
def test_giant_pictures_take_no_memory(pool, picture, container):
    data = GIANTS[picture]()
    if container != "bare":
        data = poison.muxed([data] * 3, container=container, **CODECS[picture])
    event, num_retries = outcome(pool, data)
    # where FFmpeg's own check refuses the header, the size never reaches us
    assert event.reason in {"too_many_pixels", "decode_error"}
    assert num_retries == 0
    assert pool.use().peak_rss_bytes < MUCH_BYTES


@pytest.mark.parametrize("picture", GIANTS)
def test_giant_images_take_no_memory(pool, picture):
    event, num_retries = outcome(pool, GIANTS[picture](), is_image=True)
    assert event.reason in {"too_many_pixels", "decode_error", "not_an_image"}
    assert num_retries == 0
    assert pool.use().peak_rss_bytes < MUCH_BYTES


@pytest.mark.parametrize(
    "make",
    [
        lambda: poison.gif(19_000),  # frames: the first one counts, the rest is not decoded
        lambda: (
            SMALL_JPEG[:2]
            + (b"\xff\xe1\xff\xffExif\0\0MM\0*" + bytes(65_523)) * 500
            + SMALL_JPEG[2:]
        ),  # half a million entries of EXIF
        lambda: SMALL_JPEG[:2] + b"\xff\xe2\0\2" * 1_000_000 + SMALL_JPEG[2:],
    ],
    ids=["gif", "exif", "segments"],
)
def test_what_an_image_holds_beside_its_first_picture_costs_little(pool, make):
    event, num_retries = outcome(pool, make(), is_image=True)
    assert isinstance(event, VideoDecoded)
    assert event.summary.num_clips == {0.0: 1}
    assert event.summary.decode_seconds < 3
    assert num_retries == 0


def test_pictures_not_even_twice_the_limit_take_no_memory_either(pool):
    event, _ = outcome(pool, poison.h264(11_008, 11_008))
    assert event.reason in {"too_many_pixels", "decode_error"}
    assert pool.use().peak_rss_bytes < MUCH_BYTES


@pytest.mark.parametrize("container", ["mp4", "matroska", "avi"])
def test_container_that_claims_giant_pictures_and_holds_small_ones_takes_no_memory(pool, container):
    event, _ = outcome(pool, poison.header_claims(container, GIANT, GIANT))
    assert isinstance(event, VideoDecoded)
    assert event.summary.source.width == 64
    assert pool.use().peak_rss_bytes < MUCH_BYTES


@pytest.mark.parametrize("container", ["mp4", "matroska", "avi"])
def test_pictures_that_become_giant_in_mid_stream(pool, container):
    packets = [SMALL_JPEG] * 5 + [poison.jpeg(GIANT, GIANT)]
    event, _ = outcome(pool, poison.muxed(packets, container=container, codec="mjpeg"))
    assert event.reason == "decode_error"
    assert "after 5 frames" in event.message
    assert pool.use().peak_rss_bytes < MUCH_BYTES


@pytest.mark.parametrize(
    ("make", "reason", "words"),
    [
        (lambda: poison.matroska_of_hours(100), "too_long", "360000.0 s"),
        (
            lambda: poison.muxed(
                [SMALL_JPEG] * 3, container="mp4", codec="mjpeg", step=25 * 3600 * 34
            ),
            "too_long",
            "at most 21600 s",
        ),
        (lambda: poison.many_streams(65), "too_many_streams", "more than 64"),
        (lambda: poison.many_streams(900, "mp4"), "too_many_streams", "more than 64"),
        (lambda: poison.many_streams(900, "mpegts"), "too_many_streams", "more than 64"),
        (lambda: poison.gif(20_001), "too_many_frames", "more than 20000"),
        (lambda: poison.y4m(20_001), "too_many_frames", "more than 20000"),
        (poison.mp4_of_many_samples, "no_frames", "no packets"),
    ],
    ids="100h_header 100h_timestamps streams streams_mp4 streams_ts gif y4m 1e9_frames".split(),
)
def test_what_is_claimed_is_bounded(pool, make, reason, words):
    event, num_retries = outcome(pool, make())
    assert event.reason == reason
    assert words in event.message
    assert num_retries == 0
    assert pool.use().peak_rss_bytes < MUCH_BYTES


def test_gif_that_is_to_be_repeated_for_ever_is_shown_once(pool):
    event, _ = outcome(pool, poison.gif(100))
    assert event.summary.source.num_frames == 100


def test_decoder_configuration_that_claims_two_gigabytes(pool):
    event, _ = outcome(pool, poison.extradata_claims(2**31 - 1))
    assert isinstance(event, VideoDecoded)
    assert pool.use().peak_rss_bytes < MUCH_BYTES


def test_index_of_millions_of_frames_takes_no_more_than_a_child_may():
    limits = VideoLimits(child_memory_bytes=40 << 20)
    with DecodePool(num_children=1, plans=(PLAN,), limits=limits) as pool:
        event, _ = outcome(pool, poison.mp4_of_many_samples(5 * 10**6))
        assert event.reason in {"memory", "no_frames"}  # FFmpeg goes on without what it lacks
        assert pool.use().peak_rss_bytes < (2 * 40 << 20) + MUCH_BYTES


def test_what_needs_more_memory_than_a_child_may_take_is_condemned_after_a_second_try():
    limits = VideoLimits(child_memory_bytes=20 << 20)
    with DecodePool(num_children=1, plans=(PLAN,), limits=limits) as pool:
        event, num_retries = outcome(pool, poison.attachment_of(45 << 20))
        assert event.reason == "memory"
        assert num_retries == 1
        assert pool.num_restarts == 2
        assert pool.use().peak_rss_bytes < (2 * 20 << 20) + MUCH_BYTES


def test_more_clips_than_allowed_are_refused_before_the_first():
    limits = VideoLimits(clips=6)
    with DecodePool(num_children=1, plans=(plan_of(25, stride_frames=1),), limits=limits) as pool:
        pool.submit(0, HEALTHY)
        event = pool.next_event(60.0)
    assert isinstance(event, VideoFailed)
    assert (event.reason, event.message) == ("too_many_clips", "gives 22, at most 6 allowed")


def test_more_clips_than_allowed_at_all_rates_together():
    limits = VideoLimits(clips=7)
    with DecodePool(num_children=1, plans=(plan_of(25, 10),), limits=limits) as pool:
        pool.submit(0, HEALTHY)
        assert pool.next_event(60.0).reason == "too_many_clips"


def test_cpu_time_is_bounded_by_what_a_video_shows_and_by_the_limit():
    limits = VideoLimits(no_progress_seconds=30.0, cpu_seconds=600.0)
    assert cpu_allowance(0, 0, limits) == 30.0
    assert cpu_allowance(100, 1920 * 1080, limits) == pytest.approx(138.7, abs=0.1)
    assert cpu_allowance(10**6, 8192 * 8192, limits) == 600.0


def test_video_that_takes_more_cpu_time_than_allowed():
    # every packet and every frame is progress: only the sum of them is too much
    limits = VideoLimits(cpu_seconds=0.05)
    with DecodePool(num_children=1, plans=(PLAN,), limits=limits) as pool:
        pool.submit(0, poison.y4m(3_000, 16, 16))
        event = pool.next_event(60.0)
        while isinstance(event, ClipDecoded):
            event.release()
            event = pool.next_event(60.0)
        assert event.reason == "too_much_work"


def test_child_inherits_no_credentials(monkeypatch):
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "a-secret-of-the-test")
    with DecodePool(num_children=1, plans=(PLAN,), limits=LIMITS) as pool:
        outcome(pool, HEALTHY)
        (child,) = pool._children
        environment = Path(f"/proc/{child.process.pid}/environ").read_bytes()
    assert b"PYTHONPATH" in environment
    assert b"secret" not in environment


def test_child_writes_no_file_and_is_the_first_to_go_when_memory_is_out(pool):
    outcome(pool, HEALTHY)
    (child,) = pool._children
    process = Path(f"/proc/{child.process.pid}")
    limits = (process / "limits").read_text()
    assert "Max file size             0                    0" in limits
    assert "Max core file size        0                    0" in limits
    assert (process / "oom_score_adj").read_text().strip() == "1000"
