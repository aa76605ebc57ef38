"""What the arbiter does, as entries of the switch log and as events."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from ha_agent.agent.chronicle import Chronicle, Scene
from ha_agent.arbiter.actions import AddAddress, Alarm, Moved, Refused, RenewAddress, Subject, WouldDo
from ha_agent.arbiter.values import Cause, Epoch, Mac, Phase, Reason
from ha_agent.health import HealthVector
from ha_agent.health.look import FaultClass
from ha_agent.health.look import Reason as Why
from ha_agent.health.vector import Finding
from ha_agent.health.verdict import Condition
from ha_agent.heartbeat.detector import Way
from ha_agent.heartbeat.seal import Rejected, Rejection
from ha_agent.logs import AgentLogs, Result, Switch, open_logs
from ha_agent.logs.events import Edge, Event
from ha_agent.logs.switches import ENDED
from ha_agent.services import Outcome
from ha_agent.services.services import Step, Verb

STARTED = Outcome(steps=(), took_s=0.5)
BROKEN = Outcome(
    steps=(Step(service="pbx", verb=Verb.START, ok=False, reason="exit status 1", took_s=0.1),), took_s=0.5
)
SCENE = Scene(own_health={"fxo:1": "good"}, peer_health={"phase": "active"}, positions={"own": "7"}, silent_s=3.1)


class Told:
    """A chronicle and what it wrote."""

    def __init__(self, logs: AgentLogs, *, observing: bool = False) -> None:
        self.logs = logs
        self.chronicle = Chronicle(logs.switches, logs.events, scene=lambda: SCENE, node="a", observing=observing)
        self.phase = Phase.STANDBY

    def moved(self, now: float, row: str, after: Phase, cause: Cause = Cause.SILENCE, epoch: int = 6) -> None:
        """A row from wherever the last one led to."""
        before, self.phase = self.phase, after
        why = f"because of {row}"
        move = Moved(row=row, why=why, before=before, after=after, cause=cause, epoch=Epoch(epoch))
        self.chronicle.moved(move, now=now)

    @property
    def switches(self) -> list[Switch]:
        return self.logs.switches.query()

    @property
    def events(self) -> list[Event]:
        spoken = {"the arbiter moved", ENDED}
        return [event for event in self.logs.events.query() if event.what not in spoken]

    def takes_over(self, now: float = 10.0) -> None:
        self.moved(now, "take-over", Phase.CLAIMING)
        self.moved(now + 0.1, "add", Phase.ADDING)
        self.moved(now + 0.3, "serve", Phase.ACTIVE)


@pytest.fixture
def logs(tmp_path: Path) -> Iterator[AgentLogs]:
    opened = open_logs(str(tmp_path / "log.db"))
    yield opened
    opened.close()


@pytest.fixture
def told(logs: AgentLogs) -> Told:
    return Told(logs)


@pytest.mark.req("R31")
def test_a_take_over_has_its_phases_epoch_positions_and_both_health_vectors(told: Told) -> None:
    told.takes_over()
    (open_one,) = told.switches
    assert open_one.result is Result.OPEN, "a switch is seen while it goes on"
    told.chronicle.started(STARTED, now=11.3)
    (switch,) = told.switches
    assert (switch.result, switch.trigger, switch.epoch) == (Result.DONE, "silence", 6)
    assert (switch.role_before, switch.role_after, switch.reason) == ("standby", "active", "because of take-over")
    assert switch.phases_s == pytest.approx({"detect": 3.1, "decide": 0.1, "address": 0.2, "services": 1.0})
    assert switch.took_s == pytest.approx(1.3)
    assert (switch.own_health, switch.peer_health) == (SCENE.own_health, SCENE.peer_health)
    assert switch.positions == SCENE.positions


@pytest.mark.req("R26", "R31")
def test_what_the_promotion_finished_for_the_dead_node_stands_in_its_entry(told: Told) -> None:
    told.takes_over()
    told.chronicle.started(STARTED, now=11.3, finished={"recordings: header repaired": 12, "spool: call file kept": 1})
    assert told.switches[0].finished == {"recordings: header repaired": "12", "spool: call file kept": "1"}


@pytest.mark.req("R31")
def test_a_take_over_whose_services_fail_is_a_failure_that_names_them(told: Told) -> None:
    told.takes_over()
    told.chronicle.started(BROKEN, now=12.0)
    assert (told.switches[0].result, told.switches[0].error) == (Result.FAILED, "pbx: start exit status 1")


@pytest.mark.req("R31")
def test_a_hand_over_ends_when_the_go_is_out(told: Told) -> None:
    told.phase = Phase.ACTIVE
    told.moved(1.0, "switch", Phase.QUIESCING, Cause.PLANNED)
    told.moved(3.0, "drained", Phase.OFFERING, Cause.PLANNED)
    told.moved(3.5, "granted", Phase.RELEASING, Cause.PLANNED)
    told.moved(3.6, "go", Phase.STANDBY, Cause.PLANNED)
    (switch,) = told.switches
    assert (switch.result, switch.trigger, switch.role_before, switch.role_after) == (
        Result.DONE, "planned", "active", "standby",
    )  # fmt: skip
    assert switch.phases_s == pytest.approx({"decide": 2.5, "address": 0.1})


@pytest.mark.req("R31")
def test_a_hand_over_that_is_given_up_is_aborted_with_the_reason(told: Told) -> None:
    told.phase = Phase.ACTIVE
    told.moved(1.0, "switch", Phase.QUIESCING, Cause.PLANNED)
    told.moved(3.0, "drain-failed", Phase.ACTIVE, Cause.PLANNED)
    told.chronicle.refused(Refused(reason=Reason.QUIESCE_FAILED), now=3.0)
    assert [(one.result, one.error) for one in told.switches] == [(Result.ABORTED, "because of drain-failed")]


@pytest.mark.req("R31")
def test_a_request_that_is_refused_has_an_entry_of_its_own(told: Told) -> None:
    told.moved(1.0, "switch-refused", Phase.STANDBY, Cause.NONE)
    told.chronicle.refused(Refused(reason=Reason.NOT_ACTIVE), now=1.0)
    assert [(one.result, one.error, one.took_s) for one in told.switches] == [(Result.REFUSED, "not_active", 0.0)]


@pytest.mark.req("R31")
def test_a_refused_request_does_not_end_the_switch_that_goes_on(told: Told) -> None:
    told.takes_over()
    told.moved(10.5, "switch-refused", Phase.ACTIVE, Cause.SILENCE)
    told.chronicle.refused(Refused(reason=Reason.PEER_SILENT), now=10.5)
    told.chronicle.started(STARTED, now=11.3)
    by_result = {one.result: one for one in told.switches}
    assert by_result.keys() == {Result.DONE, Result.REFUSED}
    assert by_result[Result.DONE].phases_s["services"] == pytest.approx(1.0)


@pytest.mark.req("R31")
def test_a_refused_single_is_an_event_and_no_switch(told: Told) -> None:
    told.moved(1.0, "single-refused", Phase.STANDBY, Cause.NONE)
    told.chronicle.refused(Refused(reason=Reason.NOT_ACTIVE), now=1.0)
    assert told.switches == []
    assert [event.what for event in told.events] == ["a request was refused"]


@pytest.mark.req("R31")
@pytest.mark.parametrize("row", ["lease-lapsed", "address-absent", "outranked"])
def test_a_lost_role_is_an_entry_at_once(told: Told, row: str) -> None:
    told.phase = Phase.ACTIVE
    told.moved(5.0, row, Phase.FENCED, Cause.NONE)
    (switch,) = told.switches
    assert (switch.result, switch.trigger, switch.role_before, switch.role_after) == (
        Result.DONE, row, "active", "standby",
    )  # fmt: skip


@pytest.mark.req("R31")
def test_an_active_that_is_stopped_has_an_entry_and_a_standby_has_none(logs: AgentLogs) -> None:
    standby, active = Told(logs), Told(logs)
    standby.moved(1.0, "stop", Phase.LEFT, Cause.NONE)
    active.phase = Phase.ACTIVE
    active.moved(1.0, "stop", Phase.LEFT, Cause.NONE)
    assert [(one.trigger, one.role_before, one.role_after) for one in active.switches] == [
        ("stop", "active", "disabled")
    ]


@pytest.mark.req("R31")
def test_a_claim_that_comes_to_nothing_is_aborted(told: Told) -> None:
    told.moved(1.0, "take-over", Phase.CLAIMING)
    told.moved(1.5, "claim-answered", Phase.STANDBY)
    assert [(one.result, one.error) for one in told.switches] == [(Result.ABORTED, "because of claim-answered")]


@pytest.mark.req("R31")
def test_a_lease_that_lapses_before_the_address_was_there_is_a_failed_claim_and_no_loss(told: Told) -> None:
    told.moved(1.0, "take-over", Phase.CLAIMING)
    told.moved(1.1, "add", Phase.ADDING)
    told.moved(3.0, "lease-lapsed", Phase.FENCED)
    assert [one.result for one in told.switches] == [Result.ABORTED]


@pytest.mark.req("R31")
@pytest.mark.parametrize(
    ("row", "after"), [("lease-lapsed", Phase.FENCED), ("switch", Phase.QUIESCING), ("stop", Phase.LEFT)]
)
def test_what_comes_before_all_services_were_started_ends_the_take_over_and_begins_its_own_entry(
    told: Told, row: str, after: Phase
) -> None:
    told.takes_over()
    told.moved(10.9, row, after, Cause.PLANNED)
    take_over, next_one = told.switches
    assert take_over.result is Result.FAILED
    assert take_over.error == f"the services were not all started: because of {row}"
    assert next_one.role_before == "active"
    assert next_one.result is (Result.OPEN if row == "switch" else Result.DONE)


@pytest.mark.req("R31")
def test_raising_the_epoch_while_services_start_does_not_end_the_entry(told: Told) -> None:
    told.takes_over()
    told.moved(10.5, "raised", Phase.ACTIVE, epoch=8)
    told.chronicle.started(STARTED, now=11.3)
    assert [one.result for one in told.switches] == [Result.DONE]


@pytest.mark.req("R31")
def test_who_observes_writes_what_would_have_been(logs: AgentLogs) -> None:
    told = Told(logs, observing=True)
    told.takes_over()
    told.chronicle.started(STARTED, now=11.3)
    add = AddAddress(epoch=Epoch(6), valid_until=9.0, not_after=9.0)
    told.chronicle.would(WouldDo(deed=add))
    told.chronicle.would(WouldDo(deed=RenewAddress(valid_until=9.0)))
    assert [one.result for one in told.switches] == [Result.OBSERVED]
    assert [event.fields["deed"] for event in told.events] == [str(add)]


def edges(told: Told) -> list[tuple[str, str, Edge]]:
    return [(event.what, event.subject, event.edge) for event in told.events]


@pytest.mark.req("R32")
def test_an_alarm_of_the_arbiter_is_written_once_for_each_edge(told: Told) -> None:
    raised = Alarm(subject=Subject.FOREIGN_HOLDER, raised=True, mac=Mac("02:00:00:00:00:09"))
    cleared = Alarm(subject=Subject.FOREIGN_HOLDER, raised=False)
    for alarm in (raised, raised, cleared, cleared, raised):
        told.chronicle.alarm(alarm)
    what = "arbiter: foreign_holder"
    assert edges(told) == [(what, "a", Edge.RAISED), (what, "a", Edge.CLEARED), (what, "a", Edge.RAISED)]
    assert told.events[0].fields["mac"] == "02:00:00:00:00:09"
    assert told.events[0].severity == "error"


@pytest.mark.req("R32")
def test_an_alarm_that_nothing_ends_is_news_each_time(told: Told) -> None:
    for _ in range(2):
        told.chronicle.alarm(Alarm(subject=Subject.ADDRESS_CALL, raised=True))
    assert [edge for _, _, edge in edges(told)] == [Edge.RAISED, Edge.CLEARED] * 2


def finding(condition: Condition, why: Why) -> Finding:
    return Finding(
        cause="process:pbx",
        fault_class=FaultClass.SOFTWARE,
        condition=condition,
        reason=why,
        detail="pid 7",
        switches=condition is Condition.BAD,
    )


@pytest.mark.req("R14", "R32")
def test_a_fault_is_raised_once_and_cleared_when_it_is_good_again(told: Told) -> None:
    bad = HealthVector(findings=(finding(Condition.BAD, Why.GONE),))
    good = HealthVector(findings=(finding(Condition.GOOD, Why.NONE),))
    for vector in (bad, bad, good, good):
        told.chronicle.health(vector)
    assert edges(told) == [("fault", "process:pbx", Edge.RAISED), ("fault", "process:pbx", Edge.CLEARED)]
    assert told.events[0].fields["reason"] == "gone"
    assert told.events[1].fields["reason"] == "good again"


@pytest.mark.req("R32")
def test_a_path_is_lost_then_half_then_whole(told: Told) -> None:
    for way in (Way.LOST, Way.LOST, Way.HALF, Way.BOTH):
        told.chronicle.path("cable", way)
    assert edges(told) == [
        ("heartbeat path lost", "cable", Edge.RAISED),
        ("heartbeat path lost", "cable", Edge.CLEARED),
        ("heartbeat path is one-way", "cable", Edge.RAISED),
        ("heartbeat path is one-way", "cable", Edge.CLEARED),
    ]


@pytest.mark.req("R3", "R32")
def test_a_stranger_is_an_alarm_once_until_it_has_been_quiet(told: Told) -> None:
    def reject(*, first: bool) -> None:
        told.chronicle.rejected(Rejected(kind=Rejection.STRANGER, source="10.0.0.9", mac=None, at=1.0, first=first))

    reject(first=True)
    reject(first=False)
    told.chronicle.quiet(frozenset({Rejection.STRANGER}))
    assert [edge for _, _, edge in edges(told)] == [Edge.RAISED]
    told.chronicle.quiet(frozenset())
    assert [edge for _, _, edge in edges(told)] == [Edge.RAISED, Edge.CLEARED]
    assert told.events[0].severity == "error"


def test_every_alarm_of_the_arbiter_can_be_told(told: Told) -> None:
    for subject in Subject:
        told.chronicle.alarm(Alarm(subject=subject, raised=True, reasons=(Reason.FAULTY,)))
    assert len({event.what for event in told.events}) == len(Subject)
