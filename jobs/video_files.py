"""Whole video files in and out: frames as the pipeline scales them, audio passed along.

Other than `pipeline.decode`, this reads files that the user trusts, from a path, at their own rate.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from fractions import Fraction
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import av
import numpy as np
import numpy.typing as npt

from pipeline.records import ClipPlan, TailPolicy, VideoLimits
from pipeline.scaling import RgbScaler
from pipeline.scan import video_stream

Picture = npt.NDArray[np.uint8]
"""uint8 ``[H, W, 3]``, RGB."""

_COPIED_AUDIO = {"aac", "ac3", "eac3", "mp3", "alac", "flac", "opus"}
"""Codecs that mp4 and mkv hold both; others become AAC."""
_AUDIO_RATE = 48000


class VideoReader:
    """The frames of one file, in the order in which they are shown."""

    def __init__(self, path: Path, *, height: int, width: int) -> None:
        """Open the file; frames are scaled to cover ``height`` x ``width`` and cut to it.

        Raises:
            VideoError: it has no video.
            av.FFmpegError: it is missing, or no media file.
        """
        self.container = av.open(str(path), "r")
        self.video = video_stream(self.container)
        self.video.thread_type = "AUTO"
        self.audio = self.container.streams.audio[0] if self.container.streams.audio else None
        self.time_base = self.video.time_base or Fraction(1, 1000)
        self.rate = self.video.average_rate or Fraction(25)
        plan = ClipPlan(
            fps=(float(self.rate),),
            clip_frames=1,
            stride_frames=1,
            max_clips_per_video=None,
            tail=TailPolicy.drop,
            buckets=((height, width),),
        )
        self._scaler = RgbScaler(plan, self.video.sample_aspect_ratio, VideoLimits())

    @property
    def num_frames(self) -> int:
        """As the container announces, or an estimate; 0 if it says nothing."""
        if self.video.frames:
            return self.video.frames
        return round((self.container.duration or 0) / 1e6 * float(self.rate))

    def frames(self, on_audio: Callable[[av.Packet[Any]], None]) -> Iterator[tuple[int, Picture]]:
        """Time in units of ``time_base``, ever growing, and the picture.

        Audio packets go to ``on_audio`` where they stand in the file.
        """
        step = max(1, round(1 / (self.rate * self.time_base)))
        last = -step
        for packet in self.container.demux([s for s in (self.video, self.audio) if s is not None]):
            if packet.stream is self.audio:
                on_audio(packet)
                continue
            for frame in packet.decode():
                assert isinstance(frame, av.VideoFrame)
                time_ = last + step if frame.pts is None else max(frame.pts, last + 1)
                last = time_
                yield time_, self._scaler.rgb(frame)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.container.close()


class VideoWriter:
    """H.264 with the audio of another file, if there is any."""

    def __init__(
        self,
        path: Path,
        *,
        height: int,
        width: int,
        rate: Fraction,
        time_base: Fraction | None = None,
        audio: av.AudioStream | None = None,
    ) -> None:
        """Open the file; ``time_base`` is the unit of the times given later."""
        self.container = av.open(str(path), "w")
        self._stream = self.container.add_stream("libx264", rate=rate, options={"crf": "17"})
        self._stream.width, self._stream.height = width, height
        self._stream.pix_fmt = "yuv420p"
        self._time_base = time_base or 1 / rate
        self._stream.codec_context.time_base = self._time_base
        self._audio: Any = None
        self._is_copied = audio is not None and audio.codec_context.name in _COPIED_AUDIO
        if audio is not None and self._is_copied:
            self._audio = self.container.add_stream_from_template(audio)
        elif audio is not None:
            self._audio = self.container.add_stream("aac", rate=_AUDIO_RATE)

    def write(self, picture: Picture, time_: int) -> None:
        """One picture at a time in units of ``time_base``."""
        frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
        frame.pts, frame.time_base = time_, self._time_base
        self.container.mux(self._stream.encode(frame))

    def write_audio(self, packet: av.Packet[Any]) -> None:
        """One packet of the audio stream that this was opened with."""
        if self._is_copied:
            if packet.dts is not None:  # the last one is empty
                packet.stream = self._audio
                self.container.mux(packet)
            return
        for frame in packet.decode():
            self.container.mux(self._audio.encode(frame))

    def close(self) -> None:
        """Write what is left; without this the file is not complete."""
        self.container.mux(self._stream.encode(None))
        if self._audio is not None and not self._is_copied:
            self.container.mux(self._audio.encode(None))
        self.container.close()
