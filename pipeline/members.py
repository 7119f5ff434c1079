"""What the members of one key are: its video or image, its caption, its metadata. Pure."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any

from pipeline.errors import VideoError


def media_of(
    group: Iterable[str], video_extensions: frozenset[str], image_extensions: frozenset[str]
) -> tuple[list[str], bool]:
    """The members that are the sample, and whether they are images.

    A key that has a video is that video: an image beside it is its thumbnail.

    >>> media_of(["mp4", "jpg", "txt"], frozenset({"mp4"}), frozenset({"jpg"}))
    (['mp4'], False)
    >>> media_of(["thumb.jpg", "txt"], frozenset({"mp4"}), frozenset({"jpg"}))
    (['thumb.jpg'], True)
    """

    def ending_in(extensions: frozenset[str]) -> list[str]:
        return [name for name in group if name.rsplit(".", 1)[-1] in extensions]

    videos, images = ending_in(video_extensions), ending_in(image_extensions)
    return (images, True) if images and not videos else (videos, False)


def text_of(content: bytes | VideoError | None) -> str | None:
    """A member that is text, if it is there."""
    return content.decode() if isinstance(content, bytes) else None


def sidecars(text: Any, record: Any, caption_key: str) -> tuple[str | None, str | None]:
    """Caption and metadata, from the content of the .txt and the .json.

    Raises:
        VideoError: ``bad_metadata``, the .json is none.
    """
    caption = None if text is None else text.decode("utf-8", "replace").strip()
    if record is None:
        return caption, None
    try:
        decoded = record.decode("utf-8")
        fields = json.loads(decoded)
        if caption is None and isinstance(fields, dict) and fields.get(caption_key) is not None:
            # JSON can spell lone surrogates, which no UTF-8 column holds
            caption = str(fields[caption_key]).encode("utf-8", "replace").decode()
    except (ValueError, RecursionError) as error:  # not JSON, not UTF-8, numbers without end
        raise VideoError("bad_metadata", f"the .json cannot be read: {error}") from error
    return caption, decoded
