"""The schedule of the full backup: each wall time once, in whatever night; what was missed once."""

from __future__ import annotations

import datetime as dt
import zoneinfo

import pytest

from ha_sync.backup.full.schedule import Schedule, local_zone

pytestmark = pytest.mark.req("R23")

BERLIN = zoneinfo.ZoneInfo("Europe/Berlin")
NEW_YORK = zoneinfo.ZoneInfo("America/New_York")
NIGHTLY = "0 3 * * *"
SUMMER = dt.datetime(2026, 7, 1)  # noqa: DTZ001 - what a zone is asked about


def at(zone: dt.tzinfo, *moment: int, fold: int = 0) -> dt.datetime:
    return dt.datetime(*moment, tzinfo=zone, fold=fold)  # type: ignore[misc, arg-type]


def runs(cron: str, zone: dt.tzinfo, start: dt.datetime, *, hours: int) -> list[str]:
    """An engine that looks every ten seconds of a fake clock, and runs when it is due."""
    schedule = Schedule(cron)
    last, begun = start, []
    for step in range(hours * 360):
        now = (start.astimezone(dt.UTC) + dt.timedelta(seconds=10 * step)).astimezone(zone)
        if schedule.due(last, now, zone):
            last = now
            begun.append(now.isoformat(timespec="minutes"))
    return begun


@pytest.mark.parametrize(
    ("zone", "day", "cron", "begun"),
    [
        (BERLIN, (2026, 3, 28, 12), NIGHTLY, ["2026-03-29T03:00+02:00", "2026-03-30T03:00+02:00"]),
        (BERLIN, (2026, 3, 28, 12), "30 2 * * *", ["2026-03-29T03:30+02:00", "2026-03-30T02:30+02:00"]),
        (BERLIN, (2026, 10, 24, 12), NIGHTLY, ["2026-10-25T03:00+01:00", "2026-10-26T03:00+01:00"]),
        (BERLIN, (2026, 10, 24, 12), "30 2 * * *", ["2026-10-25T02:30+02:00", "2026-10-26T02:30+01:00"]),
        (NEW_YORK, (2026, 3, 7, 12), "30 2 * * *", ["2026-03-08T03:30-04:00", "2026-03-09T02:30-04:00"]),
        (NEW_YORK, (2026, 3, 7, 12), NIGHTLY, ["2026-03-08T03:00-04:00", "2026-03-09T03:00-04:00"]),
        (NEW_YORK, (2026, 10, 31, 12), "30 1 * * *", ["2026-11-01T01:30-04:00", "2026-11-02T01:30-05:00"]),
    ],
)
def test_the_nights_in_which_the_clock_changes_have_one_run_each(zone, day, cron, begun):
    assert runs(cron, zone, at(zone, *day), hours=48) == begun


def test_a_run_that_was_missed_is_made_up_once_however_many_were():
    schedule = Schedule(NIGHTLY)
    last, now = at(BERLIN, 2026, 5, 1, 3), at(BERLIN, 2026, 5, 9, 14, 20)
    assert schedule.due(last, now, BERLIN)
    assert not schedule.due(now, now + dt.timedelta(hours=12), BERLIN)
    assert schedule.due(now, now + dt.timedelta(hours=13), BERLIN)


def test_nothing_is_due_before_its_time():
    assert not Schedule(NIGHTLY).due(at(BERLIN, 2026, 5, 1, 3), at(BERLIN, 2026, 5, 2, 2, 59, 59), BERLIN)
    assert Schedule(NIGHTLY).due(at(BERLIN, 2026, 5, 1, 3), at(BERLIN, 2026, 5, 2, 3), BERLIN)


def test_a_clock_that_was_set_back_starts_no_second_run_and_one_set_forward_starts_one():
    schedule = Schedule(NIGHTLY)
    last = at(BERLIN, 2026, 5, 2, 3, 0, 5)
    assert not schedule.due(last, at(BERLIN, 2026, 5, 2, 2, 30), BERLIN)
    assert not schedule.due(last, at(BERLIN, 2026, 5, 2, 3, 0, 1), BERLIN)
    # Set back by a year: the next night counts, not the one of the year after.
    assert schedule.next_after(min(last, at(BERLIN, 2025, 5, 2, 12)), BERLIN) == at(BERLIN, 2025, 5, 3, 3)
    assert schedule.due(last, at(BERLIN, 2027, 1, 1), BERLIN)


@pytest.mark.parametrize(
    ("days", "begun"),
    [("0", "2026-03-08"), ("7", "2026-03-08"), ("1", "2026-03-09"), ("5-7", "2026-03-06"), ("sat", "2026-03-07")],
)
def test_days_of_the_week_are_counted_as_cron_does(days, begun):
    found = Schedule(f"0 3 * * {days}").next_after(at(BERLIN, 2026, 3, 4), BERLIN)
    assert found is not None
    assert found.date().isoformat() == begun


def test_the_zone_of_the_node_is_read_anew_each_time(monkeypatch):
    monkeypatch.setenv("TZ", "America/New_York")
    assert local_zone().utcoffset(SUMMER) == dt.timedelta(hours=-4)
    monkeypatch.setenv("TZ", ":Europe/Berlin")
    assert local_zone().utcoffset(SUMMER) == dt.timedelta(hours=2)
    monkeypatch.setenv("TZ", "Nowhere/AtAll")
    assert local_zone() is dt.UTC
    monkeypatch.delenv("TZ")
    assert local_zone().utcoffset(SUMMER) is not None
