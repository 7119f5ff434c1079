"""What the reader makes of well-formed shards, and of samples that are not."""

from __future__ import annotations

import json
import re
import tarfile
from dataclasses import replace
from pathlib import Path

import pytest
import webdataset

from pipeline.errors import StorageError
from pipeline.reader import Sample, ShardEnd, key_digest, read_shard, source_of
from pipeline.shards import Shard, ShardKind, folder_shards
from tests.pipeline.tars import (
    RULES,
    Member,
    read,
    reason,
    special,
    tar_bytes,
    tar_shard,
    three_samples,
)

FORMATS = [tarfile.PAX_FORMAT, tarfile.GNU_FORMAT, tarfile.USTAR_FORMAT]
LONG = "folder/" * 30 + "clip.mp4"


def reasons(tmp_path: Path, members: list[Member], **rules: int) -> dict[str, str | None]:
    samples, end = read(
        tar_shard(tmp_path / "a.tar", tar_bytes(members)), rules=replace(RULES, **rules)
    )
    assert end.cut is None
    return {sample.key: reason(sample) for sample in samples}


@pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning")  # webdataset leaves it open
@pytest.mark.parametrize("format", FORMATS)
def test_samples_are_those_of_webdataset(tmp_path: Path, format: int) -> None:
    members: list[Member] = [
        special("sub", tarfile.DIRTYPE),
        *three_samples(),
        ("sub/a.b/x.mp4", b"dots in a folder"),
        ("sub/a.b/x.JSON", b'{"caption": "upper case"}'),
        ("sub/y.v2.mp4", b"dots in the extension"),
        ("README", b"no extension"),
        ("z.webm", b""),
        ("z.txt", b" a caption \n"),
        ("z.cls", b"7"),
    ]
    shard = tar_shard(tmp_path / "a.tar", tar_bytes(members, format=format))
    theirs = list(webdataset.WebDataset([shard.url], shardshuffle=False))
    ours, end = read(shard)
    assert end.cut is None
    assert [sample.key for sample in ours] == [sample["__key__"] for sample in theirs]
    for mine, other in zip(ours, theirs, strict=True):
        videos = [value for name, value in other.items() if name.endswith(("mp4", "webm"))]
        assert [mine.video] == videos
        metadata = other.get("json")
        assert mine.metadata == (None if metadata is None else metadata.decode())


def test_samples_follow_each_other_without_a_gap(tmp_path: Path) -> None:
    content = tar_bytes(three_samples())
    samples, end = read(tar_shard(tmp_path / "a.tar", content))
    assert samples[0].start_offset == 0
    assert [s.end_offset for s in samples[:-1]] == [s.start_offset for s in samples[1:]]
    assert samples[-1].end_offset == end.offset <= len(content)


@pytest.mark.parametrize("format", FORMATS)
def test_reading_goes_on_at_every_sample(tmp_path: Path, format: int) -> None:
    members: list[Member] = [*three_samples(), ("clip_1.mp4", b"again"), ("t.txt", b"no video")]
    shard = tar_shard(tmp_path / "a.tar", tar_bytes(members, format=format))
    straight, end = read(shard)
    assert [reason(sample) for sample in straight] == [None] * 3 + ["duplicate_key", "no_video"]
    for number, sample in enumerate(straight):
        seen = {key_digest(before.key) for before in straight[: number + 1]}
        rest, same_end = read(shard, start_offset=sample.end_offset, seen=seen)
        assert [repr(s) for s in rest] == [repr(s) for s in straight[number + 1 :]]
        assert same_end == end


def test_a_caption_is_the_txt_before_the_json(tmp_path: Path) -> None:
    record = b'{"caption": "json", "other": 1}'
    members: list[Member] = [
        ("a.mp4", b"1"),
        ("a.txt", b" text\n"),
        ("a.json", record),
        ("b.json", record),
        ("b.mp4", b"1"),
        ("c.mp4", b"1"),
        ("d.json", b'{"caption": 7}'),
        ("d.mp4", b"1"),
        ("e.json", b"[1, 2]"),
        ("e.mp4", b"1"),
        ("f.txt", b"\xff\xfe"),
        ("f.mp4", b"1"),
    ]
    samples, _ = read(tar_shard(tmp_path / "a.tar", tar_bytes(members)))
    captions = {sample.key: sample.caption for sample in samples}
    assert captions == {
        "a": "text", "b": "json", "c": None, "d": "7", "e": None, "f": "\ufffd\ufffd",
    }  # fmt: skip
    assert samples[0].metadata == samples[1].metadata == record.decode()
    assert samples[2].metadata is None


def test_the_caption_key_is_configurable(tmp_path: Path) -> None:
    shard = tar_shard(
        tmp_path / "a.tar", tar_bytes([("a.mp4", b"1"), ("a.json", b'{"text": "here"}')])
    )
    samples, _ = read(shard, rules=replace(RULES, caption_key="text"))
    assert samples[0].caption == "here"


def test_a_caption_that_is_not_unicode_text_can_be_stored(tmp_path: Path) -> None:
    members: list[Member] = [("a.mp4", b"1"), ("a.json", b'{"caption": "half \\ud83d"}')]
    samples, _ = read(tar_shard(tmp_path / "a.tar", tar_bytes(members)))
    assert samples[0].caption == "half ?"
    assert samples[0].metadata == '{"caption": "half \\ud83d"}'


@pytest.mark.parametrize(
    "record",
    [
        b"{",
        b"",
        b"\xff",
        b"[" * 100_000,
        b"1" * 5000,
        b"\xef\xbb\xbf{}",
    ],
    ids=["cut", "empty", "not utf-8", "deep", "long number", "byte order mark"],
)
def test_json_that_cannot_be_read_is_bad_metadata(tmp_path: Path, record: bytes) -> None:
    members: list[Member] = [("a.mp4", b"1"), ("a.json", record), ("b.mp4", b"1")]
    assert reasons(tmp_path, members, sidecar_bytes=1 << 20) == {"a": "bad_metadata", "b": None}


def test_a_sample_without_a_video_is_named(tmp_path: Path) -> None:
    members: list[Member] = [("a.txt", b"1"), ("b.mp4", b"1"), ("c.png", b"1")]
    assert reasons(tmp_path, members) == {"a": "no_video", "b": None, "c": "no_video"}


def test_a_sample_with_two_videos_is_named(tmp_path: Path) -> None:
    members: list[Member] = [("a.mp4", b"1"), ("a.webm", b"1"), ("b.mp4", b"1")]
    assert reasons(tmp_path, members) == {"a": "several_videos", "b": None}


def test_a_video_that_is_too_large_is_named_and_not_read(tmp_path: Path) -> None:
    members: list[Member] = [("a.mp4", bytes(5001)), ("b.mp4", bytes(5000))]
    assert reasons(tmp_path, members, video_bytes=5000) == {"a": "too_large", "b": None}
    samples, _ = read(
        tar_shard(tmp_path / "a.tar", tar_bytes(members)), rules=replace(RULES, video_bytes=5000)
    )
    assert samples[0].video == b""


def test_a_sidecar_that_is_too_large_is_named(tmp_path: Path) -> None:
    members: list[Member] = [("a.mp4", b"1"), ("a.txt", bytes(101)), ("b.mp4", b"1")]
    assert reasons(tmp_path, members, sidecar_bytes=100) == {"a": "too_large", "b": None}


def keys_and_reasons(tmp_path: Path, *names: str) -> list[tuple[str, str | None]]:
    content = tar_bytes([(name, b"1") for name in names])
    samples, _ = read(tar_shard(tmp_path / "a.tar", content))
    return [(sample.key, reason(sample)) for sample in samples]


@pytest.mark.parametrize(
    "names",
    [("a.mp4", "a.mp4"), ("a.mp4", "a.txt", "a.mp4"), ("a.mp4", "a.txt", "a.txt")],
)
def test_a_repeated_member_begins_a_duplicate(tmp_path: Path, names: tuple[str, ...]) -> None:
    assert keys_and_reasons(tmp_path, *names) == [("a", None), ("a", "duplicate_key")]


def test_a_key_that_comes_back_later_is_a_duplicate(tmp_path: Path) -> None:
    found = keys_and_reasons(tmp_path, "a.mp4", "b.mp4", "a.txt")
    assert found == [("a", None), ("b", None), ("a", "duplicate_key")]


def test_keys_are_full_paths(tmp_path: Path) -> None:
    found = keys_and_reasons(tmp_path, "x/a.mp4", "y/a.mp4", "./a.mp4")
    assert found == [("x/a", None), ("y/a", None), ("./a", None)]


def test_names_that_are_not_utf8_are_shown_with_backslashes(tmp_path: Path) -> None:
    shard = tar_shard(
        tmp_path / "a.tar",
        tar_bytes([("b\udcff.mp4", b"1"), ("c.mp4", b"2")], format=tarfile.GNU_FORMAT),
    )
    (first, second), _ = read(shard)
    assert first.key == "b\\udcff"
    (again, _), _ = read(shard, seen={key_digest(first.key)})
    assert reason(again) == "duplicate_key", "as after a resume from a receipt"
    assert second.video == b"2"


@pytest.mark.parametrize("format", [tarfile.PAX_FORMAT, tarfile.GNU_FORMAT])
def test_long_names_are_read(tmp_path: Path, format: int) -> None:
    content = tar_bytes([("a.mp4", b"0"), (LONG, b"1"), ("b.mp4", b"2")], format=format)
    samples, end = read(tar_shard(tmp_path / "a.tar", content))
    assert [sample.key for sample in samples] == ["a", LONG.removesuffix(".mp4"), "b"]
    assert end.cut is None


@pytest.mark.parametrize(
    "odd",
    [
        special("a.mp4", tarfile.SYMTYPE, "/etc/passwd"),
        special("a.mp4", tarfile.LNKTYPE, "v.mp4"),
        special("folder.mp4", tarfile.DIRTYPE),
        special("pipe.mp4", tarfile.FIFOTYPE),
        special("device.mp4", tarfile.CHRTYPE),
        special("sparse.mp4", tarfile.GNUTYPE_SPARSE),
    ],
    ids=["symlink", "hard link", "folder", "fifo", "device", "sparse"],
)
def test_what_is_no_plain_file_is_passed_over(tmp_path: Path, odd: tarfile.TarInfo) -> None:
    assert reasons(tmp_path, [("v.mp4", b"1"), odd, ("w.mp4", b"1")]) == {"v": None, "w": None}


def test_a_name_that_climbs_out_of_the_folder_is_only_a_key(tmp_path: Path) -> None:
    members: list[Member] = [("../../x.mp4", b"1"), ("/etc/x.mp4", b"2")]
    assert reasons(tmp_path, members) == {"../../x": None, "/etc/x": None}
    assert {path.name for path in tmp_path.iterdir()} == {"a.tar"}


def folder(path: Path) -> Shard:
    """A bucket of three videos, one in a sub-folder."""
    (path / "sub").mkdir(parents=True)
    (path / "a.mp4").write_bytes(b"1")
    (path / "a.txt").write_bytes(b"of a")
    (path / "sub/b.MP4").write_bytes(b"2")
    (path / "sub/b.json").write_bytes(json.dumps({"caption": "of b"}).encode())
    (path / "c.webm").write_bytes(bytes(1001))
    return folder_shards(str(path), ["a.mp4", "c.webm", "sub/b.MP4"], num_buckets=1)[0]


def test_a_folder_gives_its_videos_with_sidecars(tmp_path: Path) -> None:
    samples, end = read(folder(tmp_path / "d"), rules=replace(RULES, video_bytes=1000))
    assert [s.key for s in samples] == ["a.mp4", "c.webm", "sub/b.MP4"]
    assert [s.caption for s in samples] == ["of a", None, "of b"]
    assert [reason(s) for s in samples] == [None, "too_large", None]
    assert [s.extension for s in samples if not s.defect] == ["mp4", "mp4"]
    assert [(s.start_offset, s.end_offset) for s in samples] == [(0, 1), (1, 2), (2, 3)]
    assert end == ShardEnd(offset=3)


def test_a_folder_goes_on_at_every_video(tmp_path: Path) -> None:
    shard = folder(tmp_path / "d")
    assert [s.key for s in read(shard, start_offset=2)[0]] == ["sub/b.MP4"]
    assert read(shard, start_offset=3)[0] == []


def test_a_video_that_went_away_ends_the_attempt_and_no_sample_is_made_of_it(
    tmp_path: Path,
) -> None:
    shard = folder(tmp_path / "d")
    gone = tmp_path / "d" / shard.members[1]
    gone.unlink()
    items = read_shard(shard, rules=RULES, options={})
    assert isinstance(next(items), Sample)
    with pytest.raises(StorageError, match=re.escape(f"{gone} is not there any more")):
        next(items)


def test_a_sidecar_that_went_away_is_none(tmp_path: Path) -> None:
    shard = folder(tmp_path / "d")
    before = read(shard)[0]
    assert any(sample.caption or sample.metadata for sample in before)
    for path in (tmp_path / "d").rglob("*"):
        if path.suffix in (".txt", ".json"):
            path.unlink()
    after = read(shard)[0]
    assert [(s.key, s.video, s.caption, s.metadata, reason(s)) for s in after] == [
        (s.key, s.video, None, None, None) for s in before
    ]


def test_a_source_changes_with_its_content(tmp_path: Path) -> None:
    shard = tar_shard(tmp_path / "a.tar", tar_bytes(three_samples()))
    before = source_of(shard, {})
    assert before == source_of(shard, {})
    tar_shard(tmp_path / "a.tar", tar_bytes(three_samples()[:2]))
    assert source_of(shard, {}) != before


def test_the_source_of_a_folder_changes_with_its_members_and_their_sizes(tmp_path: Path) -> None:
    shard = folder(tmp_path / "d")
    before = source_of(shard, {})
    assert before.size_bytes == 1 + 1001 + 1
    assert source_of(replace(shard, members=shard.members[:2]), {}) != before
    (tmp_path / "d/a.mp4").write_bytes(b"longer")
    assert source_of(shard, {}) != before


def test_a_shard_that_is_not_there_is_a_storage_error(tmp_path: Path) -> None:
    shard = Shard(name="gone", url=str(tmp_path / "gone.tar"), kind=ShardKind.tar)
    with pytest.raises(StorageError, match="is not there"):
        source_of(shard, {})
    with pytest.raises(StorageError, match="is not there"):
        next(read_shard(shard, rules=RULES, options={}))
