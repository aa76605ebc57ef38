"""What two filesystems both can hold of an object: comparing never flaps, and what is equal stays equal."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ha_sync.core.compare import Seen
from ha_sync.core.representation import (
    EVERYTHING,
    FAT_SIZE_MAX,
    SECOND_NS,
    Names,
    common,
    holding_of,
    refusal,
    time_in,
    told,
)

pytestmark = pytest.mark.req("R9")

KINDS = ["ext4", "xfs", "btrfs", "vfat", "msdos", "exfat", "ntfs3", "fuseblk", "cifs", "smb3", "nfs4", "f2fs", ""]
kinds = st.sampled_from(KINDS).map(holding_of)
times = st.integers(min_value=-(2**62), max_value=2**62)
names = st.binary(min_size=1, max_size=12).filter(lambda name: not {0, 47} & set(name) and name not in {b".", b".."})
seen = st.builds(
    Seen,
    names,
    st.sampled_from([1, 2, 3]),
    st.integers(0, 0o7777),
    st.integers(0, 70_000),
    st.integers(0, 70_000),
    times,
    st.integers(0, 2**40),
    st.just(b"h" * 16),
    st.just(b""),
    st.binary(max_size=8),
)


@given(seen, kinds, kinds)
def test_an_object_that_was_copied_is_told_the_same_on_both_sides(one: Seen, ours: object, theirs: object) -> None:
    # What lies there is what that filesystem keeps of what was sent.
    arrived = told(one, theirs)  # type: ignore[arg-type]
    both = common(ours, theirs)  # type: ignore[arg-type]
    assert told(arrived, both) == told(told(one, ours), both)  # type: ignore[arg-type]


@given(seen, kinds)
def test_what_is_kept_is_kept_as_it_is(one: Seen, holding: object) -> None:
    once = told(one, holding)  # type: ignore[arg-type]
    assert told(once, holding) == once  # type: ignore[arg-type]


@given(kinds, kinds)
def test_what_both_hold_does_not_depend_on_who_is_asked_first(one: object, other: object) -> None:
    first, second = common(one, other), common(other, one)  # type: ignore[arg-type]
    assert {name: getattr(first, name) for name in first.__slots__ if name != "kind"} == {
        name: getattr(second, name) for name in second.__slots__ if name != "kind"
    }


@given(seen)
def test_equal_filesystems_that_hold_everything_tell_everything(one: Seen) -> None:
    assert told(one, common(holding_of("ext4"), holding_of("xfs"))) == one
    assert told(one, EVERYTHING) == one


@given(times)
def test_fat_keeps_even_seconds_from_1980_on(mtime_ns: int) -> None:
    kept = time_in(mtime_ns, holding_of("vfat"))
    assert kept % (2 * SECOND_NS) == 0
    assert 315_532_800 * SECOND_NS <= kept < 4_354_819_200 * SECOND_NS


@pytest.mark.parametrize(
    ("path", "kind", "size", "words"),
    [
        (b"a/link", 3, 0, "symbolic links"),
        (b"a/large.tar", 1, FAT_SIZE_MAX + 1, "4 GiB"),
        (b"call:1.wav", 1, 0, "':'"),
        (b"what?/x", 1, 0, "'?'"),
        (b"ends.", 1, 0, "ends with"),
        (b"\xff.wav", 1, 0, "UTF-8"),
        (b"n" * 256, 1, 0, "so long"),
    ],
)
def test_fat_refuses_what_it_cannot_hold_and_says_why(path: bytes, kind: int, size: int, words: str) -> None:
    assert words in refusal(path, kind, size, holding_of("vfat"))
    assert not refusal(path, kind, size, EVERYTHING)


def test_fat_takes_the_largest_file_that_it_can_and_exfat_a_larger_one() -> None:
    assert not refusal(b"a", 1, FAT_SIZE_MAX, holding_of("vfat"))
    assert not refusal(b"a", 1, FAT_SIZE_MAX + 1, holding_of("exfat"))


@given(st.lists(st.lists(st.sampled_from([b"a", b"A", b"b", b"B"]), min_size=1, max_size=3), max_size=20))
def test_of_names_that_are_one_where_case_is_folded_the_first_stands(parts: list[list[bytes]]) -> None:
    paths = sorted({b"/".join(each) for each in parts}, key=lambda path: path.replace(b"/", b"\0"))
    clashing = Names()
    kept = [path for path in paths if not clashing.clash(path)]
    in_one_directory: set[tuple[bytes, bytes]] = set()
    for path in kept:
        directory, _, name = path.rpartition(b"/")
        place = (directory, name.lower())
        assert place not in in_one_directory
        in_one_directory.add(place)
    for path in set(paths) - set(kept):
        directory, _, name = path.rpartition(b"/")
        assert (directory, name.lower()) in in_one_directory
