"""Alarms and their targets as messages of the API."""

from __future__ import annotations

from ha_agent.alarms.delivery import Outcome
from ha_agent.alarms.desk import Desk, Tested
from ha_agent.alarms.values import Alarm
from ha_agent.settings import REPORT
from ha_proto.agent.v1 import agent_pb2 as pb


def alarms_of(desk: Desk) -> pb.ListAlarmsResponse:
    """Everything."""
    return pb.ListAlarmsResponse(
        alarms=[_alarm(alarm, stands=desk.stands(alarm)) for alarm in desk.alarms],
        targets=targets_of(desk),
        left_out=desk.left_out,
    )


def targets_of(desk: Desk) -> list[pb.AlarmTarget]:
    """How it goes with each."""
    return [
        pb.AlarmTarget(
            name=look.target.name,
            kind=look.target.kind.value,
            severity=look.target.severity.value if look.target.name != REPORT else "",
            waiting=look.waiting,
            sent=look.tally.sent,
            dropped=look.tally.dropped,
            given_up=look.tally.given_up,
            reason=look.reason,
            next_try_s=look.next_try_s,
            oldest_unix_s=look.oldest_unix_s,
            sent_unix_s=look.tally.sent_unix_s,
        )
        for look in desk.targets()
    ]


def tested_of(tested: Tested) -> pb.TestResult:
    """What came of a test message."""
    delivered = tested.delivered
    return pb.TestResult(
        target=tested.target,
        sent=delivered.outcome is Outcome.SENT,
        reason=delivered.reason,
        took_s=tested.took_s,
    )


def _alarm(alarm: Alarm, *, stands: bool) -> pb.AlarmRecord:
    state = "stands" if stands else "happened" if alarm.once else "gone"
    return pb.AlarmRecord(
        severity=alarm.severity.value,
        what=alarm.key.what,
        subject=alarm.key.subject,
        since_unix_s=alarm.since_unix_s,
        count=alarm.count,
        state=state,
        told_unix_s=alarm.told_unix_s,
        fields=dict(alarm.fields),
    )
