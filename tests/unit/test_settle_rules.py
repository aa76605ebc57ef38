"""When a file may be read: time is an argument, so nothing here waits."""

from __future__ import annotations

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ha_sync.capture import settle as module
from ha_sync.capture.settle import Settle, SettleRules


def made(**rules: object) -> Settle:
    return Settle(SettleRules(**rules))  # type: ignore[arg-type]


def test_a_closed_file_is_due_at_once_and_once():
    settle = made()
    settle.closed(b"a", 1.0)
    assert settle.next_at() <= 1.0
    assert settle.due(1.0).ready == {b"a": 1.0}
    assert settle.due(1.0).ready == {}
    assert settle.next_at() == math.inf


def test_a_set_written_together_is_due_together_when_it_is_quiet():
    settle = made(quiet_s=0.2)
    for step in range(10):
        settle.modified(b"a", 1.0 + step / 100)
        settle.closed(b"a", 1.0 + step / 100)
        settle.closed(b"b", 1.0 + step / 100)
        assert settle.due(1.0 + step / 100).ready == {}
    assert settle.due(1.28).ready == {}
    assert settle.due(1.3).ready == {b"a": 1.0, b"b": 1.0}


def test_a_set_that_never_gets_quiet_is_read_all_the_same():
    settle = made(quiet_s=0.2)
    now = 0.0
    while not settle.due(now).ready:
        settle.closed(b"a", now)
        now += 0.1
        assert now < 3
    assert now >= module.QUIET_MAX_S


def test_deletions_that_follow_one_another_are_due_as_one():
    settle = made()
    for number in range(5):
        settle.gone(b"%d" % number, 1 + number * 0.05)
        assert settle.due(1 + number * 0.05).ready == {}
    assert len(settle.due(1.31).ready) == 5


def test_a_file_that_was_made_again_is_not_deleted_first():
    settle = made()
    settle.gone(b"a", 1.0)
    settle.closed(b"a", 1.01)
    assert settle.due(1.01).ready == {b"a": 1.01}
    assert settle.due(9.0).ready == {}


def test_a_file_held_open_is_due_when_quiet_or_after_five_seconds():
    settle = made()
    settle.modified(b"quiet", 0.0)
    assert settle.due(0.9).ready == {}
    assert b"quiet" in settle.due(1.0).ready
    now = 0.0
    while not settle.due(now).ready:
        settle.modified(b"busy", now)
        now += 0.25
    assert module.OPEN_MAX_S <= now <= module.OPEN_MAX_S + 0.5


@pytest.mark.req("R21")
def test_a_growing_file_is_due_every_fifth_of_a_second_and_whole_at_its_close():
    settle = made(growing=True)
    grown = []
    for step in range(100):
        now = step * 0.05
        settle.modified(b"call", now)
        due = settle.due(now)
        assert due.ready == {}
        grown += [now] * len(due.grow)
    assert len(grown) in range(20, 27)
    settle.closed(b"call", 5.0)
    assert settle.due(5.0).ready == {b"call": 5.0}
    assert settle.due(99.0).grow == ()


def test_a_barrier_asks_once_who_has_a_growing_file_open():
    settle = made(growing=True)
    settle.modified(b"call.wav", 0.0)
    assert settle.flush().left == (b"call.wav",)
    assert settle.flush().left == ()
    settle.closed(b"call.wav", 1.0)
    settle.modified(b"call.wav", 2.0)
    assert settle.flush().left == (b"call.wav",)


def test_an_idle_growing_file_is_published_at_last():
    settle = made(growing=True)
    settle.modified(b"call", 0.0)
    assert settle.due(29.0).ready == {}
    assert b"call" in settle.due(30.0).ready


def test_what_was_created_and_not_closed_is_looked_at_soon():
    settle = made()
    settle.opened(b"link", 1.0)
    assert settle.due(1.0).look == ()
    assert settle.due(1.03).look == (b"link",)
    assert settle.due(1.04).look == ()


@pytest.mark.req("R25")
def test_a_mailbox_waits_for_its_lock_and_not_for_ever():
    settle = made()
    settle.locked(b"box", b"box/INBOX", 1.0)
    settle.unit_changed(b"box", b"box/INBOX/msg0000.txt", 1.1)
    assert settle.due(5.9).units == ()
    settle.unlocked(b"box", b"box/INBOX", 5.95)
    (unit,) = settle.due(5.95).units
    assert (unit.mailbox, unit.overdue, list(unit.paths)) == (b"box", False, [b"box/INBOX/msg0000.txt"])
    settle.locked(b"box", b"box/INBOX", 10.0)
    settle.unit_changed(b"box", b"box/INBOX/msg0000.txt", 10.0)
    (late,) = settle.due(15.0).units
    assert late.overdue


def test_both_folders_of_a_mailbox_must_be_unlocked():
    settle = made()
    settle.locked(b"box", b"box/INBOX", 1.0)
    settle.locked(b"box", b"box/Old", 1.0)
    settle.unit_changed(b"box", b"box/Old/msg0000.txt", 1.1)
    settle.unlocked(b"box", b"box/Old", 1.2)
    assert settle.due(1.2).units == ()
    settle.unlocked(b"box", b"box/INBOX", 1.3)
    assert len(settle.due(1.3).units) == 1


def test_a_costly_file_is_read_no_more_than_its_share_of_the_time():
    settle = made()
    reads, now = 0, 0.0
    while now < 10:
        settle.closed(b"Master.csv", now)
        if settle.due(now).ready:
            reads += 1
            settle.spent(b"Master.csv", 0.006, now)
        now += 0.01
    assert reads * 0.006 <= 10 * module.COST_SHARE * 1.1
    assert reads >= 40
    settle.due(now + 1)
    assert settle.next_at() == math.inf


PATHS = st.sampled_from([b"a", b"b", b"c"])
EVENTS = st.sampled_from(["closed", "changed", "opened", "modified", "gone", "retry"])


@settings(max_examples=200, deadline=None)
@given(
    happened=st.lists(st.tuples(EVENTS, PATHS, st.floats(0, 0.5)), max_size=40),
    quiet_s=st.sampled_from([0.0, 0.2]),
    growing=st.booleans(),
)
def test_whatever_happened_is_due_in_the_end_and_the_timer_says_when(happened, quiet_s, growing):
    settle = made(quiet_s=quiet_s, growing=growing)
    now = 0.0
    for event, path, wait in happened:
        now += wait
        getattr(settle, event)(path, now)
    expected = {path for event, path, _ in happened if event != "changed"} | {
        path for event, path, _ in happened if event == "changed"
    }
    seen: set[bytes] = set()
    for _ in range(500):
        at = settle.next_at()
        if at == math.inf:
            break
        now = max(now, at)
        seen |= set(settle.due(now).ready)
    assert settle.next_at() == math.inf
    assert seen == expected


@pytest.mark.parametrize("path", [b"d", b""])
def test_what_was_open_below_a_directory_that_is_another_one_now_is_open_no_more(path):
    settle = made(growing=True)
    settle.opened(b"d/a", 1.0)
    settle.modified(b"d/a", 1.0)
    settle.opened(b"de/b", 1.0)
    settle.doubt(path)
    assert not settle.is_open(b"d/a")
    assert settle.is_open(b"de/b") is (path == b"d")
    due = settle.due(1.5)
    assert b"d/a" not in {*due.ready, *due.look, *due.grow}
