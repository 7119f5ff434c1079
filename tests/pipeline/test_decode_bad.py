"""Every way in which a video is condemned, by the name of its reason."""

import io
import re

import av
import numpy as np
import pytest

from pipeline import decode
from pipeline.errors import VideoError
from pipeline.records import VideoLimits
from pipeline.scan import READABLE_FORMATS, TRUNCATED_SECONDS
from tests.pipeline.media import decoded, encode, numbered, plan_of, read_numbers

PLAN = plan_of(30)


def noisy(number):
    """Does not compress, so that every frame has bytes to damage."""
    noise = np.random.default_rng(number).integers(0, 255, (64, 64, 3), np.uint8)
    return noise // 4 + numbered(number) // 4 * 3


def reason_of(data, plan=PLAN, **limits):
    with pytest.raises(VideoError) as caught:
        decoded(data, plan, VideoLimits(**limits))
    assert caught.value.reason in decode.REASONS
    return caught.value.reason, caught.value.message


def test_empty_file():
    assert reason_of(b"")[0] == "empty"


@pytest.mark.parametrize(
    "data", [b"just text, no video\n" * 50, b"\0" * 5000, encode(range(9))[300:], b"\xff"]
)
def test_garbage_is_not_a_video(data):
    assert reason_of(data)[0] == "not_a_video"


def test_mp4_without_its_index_is_not_a_video():
    data = encode(range(90), draw=noisy)
    assert reason_of(data[: len(data) // 2])[0] == "not_a_video"


@pytest.mark.parametrize(
    "playlist",
    [
        "ffconcat version 1.0\nfile {path}\n",
        "#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\nfile://{path}\n#EXT-X-ENDLIST\n",
        "v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nc=IN IP4 127.0.0.1\nt=0 0\nm=video 5004 RTP/AVP 96\n",
    ],
)
def test_files_that_point_elsewhere_are_not_opened(playlist, tmp_path):
    target = tmp_path / "other.ts"
    target.write_bytes(encode(range(40), container="mpegts"))
    assert reason_of(playlist.format(path=target).encode())[0] == "not_a_video"


def test_no_readable_format_opens_other_files():
    known = {name for formats in av.formats_available for name in formats.split(",")}
    names = set(READABLE_FORMATS.split(","))
    assert not names & {"concat", "hls", "dash", "sdp", "rtsp", "image2", "lavfi", "tee", "rtp"}
    assert names <= known


def test_audio_alone_has_no_video_stream():
    file = io.BytesIO()
    with av.open(file, "w", format="matroska") as output:
        stream = output.add_stream("pcm_s16le", rate=8000)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 8000), np.int16), layout="mono")
        frame.sample_rate = 8000
        output.mux(stream.encode(frame))
    reason, message = reason_of(file.getvalue())
    assert reason == "no_video_stream"
    assert "audio" in message


def with_disposition(disposition):
    def set_up(stream):
        stream.disposition = disposition

    return encode([0], container="mp4", codec="png", pix_fmt="rgb24", set_up=set_up)


def test_cover_art_is_no_video_stream():
    data = with_disposition(av.stream.Disposition.attached_pic)
    assert reason_of(data)[0] == "no_video_stream"


def test_video_stream_without_packets_has_no_frames():
    data = encode(range(30), container="matroska", change=lambda packets: [], with_audio_seconds=1)
    assert reason_of(data)[0] == "no_frames"


@pytest.mark.parametrize("with_audio_seconds", [0, 2])
def test_cut_matroska_ends_without_an_error_and_is_truncated(with_audio_seconds):
    data = encode(
        range(90), container="matroska", draw=noisy, with_audio_seconds=with_audio_seconds
    )
    reason, message = reason_of(data[: len(data) // 2])
    assert reason == "truncated"
    assert re.search(r"ends at 1\.\d+ s, its header promises 3\.0\d s", message)


def test_cut_is_noticed_even_when_the_pass_would_end_before_it():
    data = encode(range(90), container="matroska", draw=noisy)
    plan = plan_of(30, max_clips_per_video=1)
    assert reason_of(data[: len(data) // 2], plan)[0] == "truncated"


def test_cut_mp4_with_its_index_in_front_is_condemned(tmp_path):
    path = tmp_path / "front.mp4"  # moving the index needs a file
    with (
        av.open(io.BytesIO(encode(range(90), draw=noisy))) as source,
        av.open(path, "w", options={"movflags": "faststart"}) as output,
    ):
        stream = output.add_stream_from_template(source.streams.video[0])
        for packet in source.demux(video=0):
            if packet.dts is not None:
                packet.stream = stream
                output.mux(packet)
    data = path.read_bytes()
    assert len(decoded(data, PLAN)[0]) == 22
    assert reason_of(data[: len(data) // 2])[0] in {"truncated", "decode_error"}


@pytest.mark.parametrize("container", ["matroska", "mov"])
def test_audio_longer_than_the_video_is_no_truncation(container):
    data = encode(range(30), container=container, with_audio_seconds=5)
    assert decoded(data, PLAN)[1].num_clips == {30: 7}


def test_long_last_pause_is_no_truncation():
    data = encode([0, 40, 80, 120, 121], container="matroska")
    assert decoded(data, plan_of(1))[1].filtered == {}
    assert TRUNCATED_SECONDS < 1


def test_unknown_codec_is_a_decode_error():
    reason, message = reason_of(encode(range(9)).replace(b"avc1", b"zzzz"))
    assert reason == "decode_error"
    assert "no decoder" in message


def test_damaged_packets_are_a_decode_error():
    data = bytearray(encode(range(60), draw=noisy, options={"g": "10"}))
    start = len(data) // 2
    data[start : start + 4000] = bytes(4000)
    assert reason_of(bytes(data))[0] == "decode_error"


def test_stream_that_begins_between_key_frames_loses_only_those():
    data = encode(
        range(60),
        container="mpegts",
        options={"g": "20", "bf": "0", "sc_threshold": "0"},
        change=lambda packets: packets[7:],
    )
    clips, _ = decoded(data, PLAN)
    assert read_numbers(clips[0]) == [20, 21, 22, 23]


def test_file_larger_than_allowed():
    assert reason_of(encode(range(9)), video_bytes=100)[0] == "too_large"


def test_pictures_larger_than_allowed_are_refused_before_decoding():
    reason, message = reason_of(encode(range(9)), pixels=64 * 63)
    assert reason == "too_many_pixels"
    assert "64x64" in message


def test_picture_so_narrow_that_its_scaled_size_explodes():
    data = encode(
        [0],
        container="image2pipe",
        codec="png",
        pix_fmt="rgb24",
        draw=lambda _: np.zeros((4000, 1, 3), np.uint8),
    )
    reason, message = reason_of(data, pixels=10**6)
    assert reason == "too_many_pixels"
    assert "64x256000" in message


def jpeg(size):
    return encode(
        [0],
        container="mjpeg",
        codec="mjpeg",
        pix_fmt="yuvj420p",
        draw=lambda _: numbered(1, *size),
    )


@pytest.mark.parametrize(
    ("size", "reason"),
    [((72, 72), "too_many_pixels"), ((1200, 1200), "decode_error")],  # the latter by FFmpeg
)
def test_pictures_that_grow_in_mid_stream(size, reason):
    data = jpeg((64, 64)) + jpeg(size)
    assert reason_of(data, plan_of(25), pixels=64 * 65)[0] == reason


def test_more_frames_than_allowed():
    data = encode(range(30))
    assert decoded(data, PLAN, VideoLimits(frames=30))[1].source.num_frames == 30
    assert reason_of(data, frames=29)[0] == "too_many_frames"


def test_longer_than_allowed():
    data = encode(range(60))
    assert decoded(data, PLAN, VideoLimits(duration_seconds=2.0))[1].source.num_frames == 60
    reason, message = reason_of(data, duration_seconds=1.9)
    assert reason == "too_long"
    assert "2.0 s" in message


def test_length_is_bounded_where_the_header_states_none():
    assert reason_of(encode(range(60), container="h264"), duration_seconds=1.0)[0] == "too_long"
