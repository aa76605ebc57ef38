"""Whether two nodes' storages fit, and whether one may be synchronised: every reason is said."""

from __future__ import annotations

from dataclasses import replace

import pytest

from ha_sync.external.fitting import ROOM_KEPT, Both, lacks_room, mismatches, refusal, side_by_side
from ha_sync.external.inventory import Found

pytestmark = pytest.mark.req("R9", "R2")

USB = Found(
    name="usb0", medium="usb", mode="add-only", path="/media/usb0", mounted=True, filesystem="ext4", identity="here",
    size_bytes=10**9, free_bytes=10**8, free_files=1000,
)  # fmt: skip
THEIRS = replace(USB, identity="there")


def both(here: Found | None = USB, there: Found | None = THEIRS) -> Both:
    return Both(name="usb0", here=here, there=there)


def test_equal_storages_fit() -> None:
    assert mismatches([both()]) == ()
    assert refusal(both()) == ""
    assert both().kinds == ("ext4", "ext4")


@pytest.mark.parametrize(
    ("here", "there", "words"),
    [
        (None, THEIRS, "not configured on this node"),
        (USB, None, "not configured on the other node"),
        (replace(USB, mounted=False, trouble="nothing is mounted there"), THEIRS, "on this node: nothing is mounted"),
        (USB, replace(THEIRS, trouble="no answer within 2 s"), "on the other node: no answer"),
        (USB, replace(THEIRS, identity="here"), "shared"),
        (USB, replace(THEIRS, medium="sd"), "usb here, sd on the other node"),
        (USB, replace(THEIRS, mode="mirror"), "add-only here, mirror on the other node"),
        (USB, replace(THEIRS, read_only=True), "read-only"),
    ],
)
def test_what_must_not_be_synchronised_is_refused_with_the_reason(
    here: Found | None, there: Found | None, words: str
) -> None:
    assert words in refusal(both(here, there))


def test_a_storage_of_the_active_may_be_read_only() -> None:
    assert refusal(both(replace(USB, read_only=True))) == ""


def test_a_storage_without_a_marker_yet_is_not_shared() -> None:
    assert not both(replace(USB, identity=""), replace(THEIRS, identity="")).shared


def test_numbers_are_compared_by_what_is_mounted() -> None:
    sd = replace(USB, name="sd0", medium="sd")
    pairs = side_by_side([USB, sd], [THEIRS, replace(sd, identity="x", mounted=False, trouble="nothing")])
    assert [pair.name for pair in pairs] == ["usb0", "sd0"]
    assert mismatches(pairs) == ("1 sd mounted here, 0 on the other node", "sd0: not mounted on the other node")
    only_there = side_by_side([USB], [THEIRS, sd])
    assert "sd0: only on the other node" in mismatches(only_there)


def test_room_counts_content_entries_and_what_is_kept_free() -> None:
    there = replace(THEIRS, free_bytes=ROOM_KEPT + 4096 * 10 + 1000)
    assert not lacks_room(send_bytes=1000, send_objects=10, there=there)
    assert "lacks room" in lacks_room(send_bytes=1001, send_objects=10, there=there)
    assert "1001 files" in lacks_room(send_bytes=0, send_objects=1001, there=replace(THEIRS, free_bytes=10**12))
    # A filesystem that does not count its files (btrfs) says 0.
    assert not lacks_room(send_bytes=0, send_objects=1001, there=replace(THEIRS, free_bytes=10**12, free_files=0))
