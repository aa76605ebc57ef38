"""What the engine tells its agent of itself: what stands, what happened, bounded."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from ha_sync.core.dataset import DatasetReport, DatasetState
from ha_sync.core.position import NOWHERE
from ha_sync.service.tidings import (
    FIELD_MAX,
    LOOK_EVERY_S,
    NOTICES_MAX,
    PATIENCE_S,
    TROUBLES_MAX,
    Tidings,
    Trouble,
    troubles_of,
)

pytestmark = pytest.mark.req("R32")


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


def dataset(name: str, state: DatasetState, reason: str = "") -> Any:
    report = DatasetReport(state=state, reason=reason, position=NOWHERE)
    return SimpleNamespace(settings=SimpleNamespace(name=name), report=report, connected=True)


def found(**facts: Any) -> list[tuple[str, str, str]]:
    plain: dict[str, Any] = {"datasets": (), "unreached": "", "backup": ("", ""), "divergences": ()}
    given = plain | facts
    datasets = given.pop("datasets")
    return [(severity, what, subject) for severity, what, subject, _ in troubles_of(datasets, **given)]


def test_what_is_not_as_it_should_be_is_a_trouble() -> None:
    datasets = [
        dataset("config", DatasetState.HALTED, "too many deletes"),
        dataset("cdr", DatasetState.FAILED),
        dataset("voicemail", DatasetState.DEGRADED),
        dataset("recordings", DatasetState.STREAMING),
    ]
    assert found(datasets=datasets) == [
        ("error", "dataset halted", "config"),
        ("error", "dataset failed", "cdr"),
        ("warning", "dataset degraded", "voicemail"),
    ]
    assert found(unreached="refused") == [("warning", "the other node's engine is not reached", "")]
    assert found(backup=("failed", "no standby")) == [("error", "the last full backup failed", "")]
    assert found(backup=("partial", "")) == [("error", "the last full backup failed", "")]
    assert found(backup=("done", "")) == found(backup=("cancelled", "")) == []
    assert found(divergences=("divergence 6 of cdr: ...",)) == [("warning", "a divergence waits", "")]


def test_what_mends_itself_in_moments_is_not_told_and_an_error_is_told_at_once() -> None:
    clock = Clock()
    stands: list[Trouble] = [("warning", "w", "", {}), ("error", "e", "", {})]
    tidings = Tidings(lambda: stands, clock=clock)
    assert [one.what for one in tidings.troubles()] == ["e"]
    clock.now += PATIENCE_S
    assert [one.what for one in tidings.troubles()] == ["w", "e"]
    stands.pop(0)
    clock.now += LOOK_EVERY_S
    assert [one.what for one in tidings.troubles()] == ["e"]
    stands.insert(0, ("warning", "w", "", {}))
    clock.now += LOOK_EVERY_S
    assert [one.what for one in tidings.troubles()] == ["e"], "it began anew"


def test_troubles_are_looked_for_now_and_then_only() -> None:
    looks: list[int] = []
    clock = Clock()

    def look() -> list[Trouble]:
        looks.append(1)
        return [("error", str(number), "", {}) for number in range(3 * TROUBLES_MAX)]

    tidings = Tidings(look, clock=clock)
    for _ in range(50):
        assert len(tidings.troubles()) == TROUBLES_MAX
    assert len(looks) == 1


def test_the_newest_warnings_and_errors_are_kept_and_asked_for_by_serial() -> None:
    tidings = Tidings()
    tidings.note("info", "role taken", {})
    for number in range(3 * NOTICES_MAX):
        tidings.note("warning", "something", {"number": number, "name": b"\xff" + b"x" * 1000, "s": "\udcff"})
    kept = tidings.after(0)
    assert [notice.fields["number"] for notice in kept] == [str(n) for n in range(2 * NOTICES_MAX, 3 * NOTICES_MAX)]
    assert all(len(notice.fields["name"]) <= FIELD_MAX for notice in kept)
    assert tidings.after(kept[-2].serial) == kept[-1:]
    assert tidings.after(kept[-1].serial) == []
