"""Names and lists of shards."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from pipeline import shards
from pipeline.errors import ConfigError
from pipeline.shards import (
    Shard,
    ShardKind,
    expand_patterns,
    folder_shards,
    normalise_url,
    shard_name,
    tar_shards,
)


def expand(*patterns: str, globs: dict[str, list[str]] | None = None, **lists: str) -> list[str]:
    """Expansion with globs and ``@/name`` files given as tables."""
    return expand_patterns(
        patterns,
        list_glob=lambda url: (globs or {}).get(url, []),
        read_lines=lambda url: lists[url.strip("/")].splitlines(),
    )


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("/d/a.tar", ["/d/a.tar"]),
        ("s3://b/x-{08..10}.tar", ["s3://b/x-08.tar", "s3://b/x-09.tar", "s3://b/x-10.tar"]),
        ("s3://b/x-{0..4..2}.tar", ["s3://b/x-0.tar", "s3://b/x-2.tar", "s3://b/x-4.tar"]),
        ("s3://b/{a,b}{0..1}.tar", [f"s3://b/{n}.tar" for n in ("a0", "a1", "b0", "b1")]),
        ("file:///d/a.tar", ["/d/a.tar"]),
        ("/d/../e/./a.tar", ["/e/a.tar"]),
        ("gs://b/a.tar", ["gs://b/a.tar"]),
    ],
)
def test_a_pattern_gives_these_urls(pattern: str, expected: list[str]) -> None:
    assert expand(pattern) == expected


def test_a_relative_path_becomes_absolute(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    assert expand("data/a.tar") == [f"{tmp_path}/data/a.tar"]
    assert normalise_url("file://data/a.tar") == f"{tmp_path}/data/a.tar"


def test_a_tilde_is_the_home_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/elsewhere")
    assert normalise_url("~/a.tar") == "/elsewhere/a.tar"


def test_links_are_not_followed(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to("/elsewhere")
    assert normalise_url(f"{tmp_path}/link/a.tar") == f"{tmp_path}/link/a.tar"


def test_matches_of_a_glob_are_sorted() -> None:
    globs = {"/d/*.tar": ["/d/b.tar", "/d/a.tar"]}
    assert expand("/d/*.tar", globs=globs) == ["/d/a.tar", "/d/b.tar"]


def test_braces_are_expanded_before_globs() -> None:
    globs = {"/a/*.tar": ["/a/1.tar"], "/b/*.tar": ["/b/1.tar"]}
    assert expand("/{a,b}/*.tar", globs=globs) == ["/a/1.tar", "/b/1.tar"]


def test_patterns_keep_their_order_and_repeated_shards_count_once() -> None:
    assert expand("/b.tar", "/a.tar", "/b.tar", "file:///a.tar") == ["/b.tar", "/a.tar"]


def test_a_list_file_holds_patterns_comments_and_blank_lines() -> None:
    text = "# header\n/a-{0..1}.tar  # two\n\n   \n/b.tar\r\n"
    assert expand("@/list", "/c.tar", list=text) == ["/a-0.tar", "/a-1.tar", "/b.tar", "/c.tar"]


def test_a_hash_inside_a_name_in_a_list_file_is_no_comment() -> None:
    assert expand("@/list", list="/take#1.tar") == ["/take#1.tar"]


@pytest.mark.parametrize(
    ("pattern", "message"),
    [
        ("@/list", "one level only"),
        ("pipe:cat a.tar", "pipe: commands are not run"),
        ("/d/*.tar", "nothing matches"),
        ("/d/{0..3.tar", "cannot expand"),
    ],
)
def test_a_pattern_that_cannot_be_meant_is_refused(pattern: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        expand(pattern, list="@/other")


def test_a_pipe_inside_a_list_file_is_refused() -> None:
    with pytest.raises(ConfigError, match="pipe:"):
        expand("@/list", list="pipe:rm -rf x")


def test_a_range_beyond_the_limit_is_refused_without_expanding_it() -> None:
    with pytest.raises(ConfigError, match="more than 10,000,000 shards"):
        expand("s3://b/{0..99999999999}.tar")


def test_a_product_beyond_the_limit_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shards, "MAX_SHARDS", 50)
    assert len(expand("/{0..4}{0..9}.tar")) == 50
    with pytest.raises(ConfigError, match="more than 50 shards"):
        expand("/{0..5}{0..9}.tar")


WEIRD = [
    "s3://b/a b/ü ñ.tar",
    "s3://b/..tar",
    "s3://b/.tar",
    "s3://b/x/",
    "/d/" + "x" * 300 + ".tar",
    "/d/new\nline.tar",
    "/d/quo'te\".tar",
    "/d/a%2Fb:c|d.tar",
    "/d/日本.tar",
    "/d/bad\udcff.tar",
]


@pytest.mark.parametrize("url", WEIRD)
def test_a_name_is_safe_and_short_whatever_the_url(url: str) -> None:
    assert re.fullmatch(r"[A-Za-z0-9_-]{1,60}-[0-9a-f]{12}", shard_name(url))


def test_names_of_different_urls_differ() -> None:
    urls = [*WEIRD, "s3://a/1.tar", "s3://b/1.tar", "/a/1.tar", "/a/1.tar.gz", "/A/1.tar"]
    assert len({shard_name(url) for url in urls}) == len(urls)


def test_a_name_is_readable_and_stable() -> None:
    assert shard_name("s3://bucket/webvid/00017.tar") == "00017-a89927196642"


def test_a_name_does_not_depend_on_the_rest_of_the_list() -> None:
    alone = tar_shards(["/d/b.tar"])
    assert tar_shards(["/d/a.tar", "/d/b.tar"])[1:] == alone
    assert alone == [Shard(name=shard_name("/d/b.tar"), url="/d/b.tar", kind=ShardKind.tar)]


def test_two_urls_with_one_name_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shards, "shard_name", lambda url: "same")
    with pytest.raises(ConfigError, match=r"/b\.tar and /a\.tar share the name same"):
        tar_shards(["/a.tar", "/b.tar"])


FILES = [f"sub/{number}.mp4" for number in range(100)]


def buckets_of(files: list[str]) -> dict[str, str]:
    return {m: s.name for s in folder_shards("/d", files, num_buckets=8) for m in s.members}


def test_every_file_of_a_folder_is_in_one_bucket_and_buckets_are_sorted() -> None:
    found = folder_shards("/d", reversed(FILES), num_buckets=8)
    assert sorted(m for s in found for m in s.members) == sorted(FILES)
    assert all(list(s.members) == sorted(s.members) for s in found)
    assert [s.name for s in found] == sorted(s.name for s in found)


def test_a_file_stays_in_its_bucket_when_others_are_added() -> None:
    more = [f"more/{number}.mp4" for number in range(1000)]
    after = buckets_of(FILES + more)
    assert buckets_of(FILES).items() <= after.items()


def test_empty_buckets_are_left_out() -> None:
    assert len(folder_shards("/d", ["a.mp4"], num_buckets=1000)) == 1


def test_another_number_of_buckets_gives_other_names() -> None:
    assert not {s.name for s in folder_shards("/d", FILES, num_buckets=8)} & {
        s.name for s in folder_shards("/d", FILES, num_buckets=16)
    }


def test_file_names_that_are_not_utf8_have_a_bucket() -> None:
    assert folder_shards("/d", ["bad\udcff.mp4"], num_buckets=4)[0].members == ("bad\udcff.mp4",)
