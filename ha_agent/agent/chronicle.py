"""What the arbiter does, as entries of the switch log and as events: this node's view of each switch.

An entry begins with the first row that leads to a switch and ends with the one that completes it or gives it up:

    take-over    take-over, force-*, elect, accept ... add ... serve ... services started
    hand-over    switch, switch-fault, switch-link ... granted ... go
    loss         lease-lapsed, address-absent, outranked, stop: at once
    refusal      switch-refused: at once, beside an entry that is open

Times per phase, seconds: *detect* from the last sign of the peer's life to the decision (silence only), *decide* from
there to the order for the address (hand-over: stop, drain and offer), *address* until it is there (hand-over: gone),
*services* until they were started. Deciding nothing, it may be wrong without harm. Monotonic seconds.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from ha_agent.arbiter.actions import Alarm, Moved, Refused, RenewAddress, Subject, WouldDo
from ha_agent.arbiter.values import SERVING, TAKING, Cause, Phase
from ha_agent.health import Condition, HealthVector
from ha_agent.heartbeat.detector import Way
from ha_agent.heartbeat.seal import Rejected, Rejection
from ha_agent.logs.events import SEVERITIES, EventLog
from ha_agent.logs.switches import Phase as Part
from ha_agent.logs.switches import Result, SwitchId, SwitchLog
from ha_agent.services import Outcome
from ha_proto.agent.v1 import agent_pb2 as pb

ROLE_OF = {
    **dict.fromkeys(SERVING, "active"),
    Phase.STARTING: "starting",
    Phase.STANDBY: "standby",
    Phase.FENCED: "standby",
    Phase.CANDIDATE: "standby",
    Phase.CLAIMING: "standby",
    Phase.ADDING: "standby",
    Phase.RELEASING: "resigning",
    Phase.LEFT: "disabled",
}
"""The role that an administrator sees, of each phase."""

HANDING = frozenset({Phase.QUIESCING, Phase.OFFERING, Phase.RELEASING})
LOST = frozenset({"lease-lapsed", "address-absent", "outranked", "stop"})
REFUSED = "switch-refused"
ERRORS = frozenset({Subject.FOREIGN_HOLDER, Subject.DUAL_ACTIVE, Subject.STORE, Subject.NOBODY_ELIGIBLE})
TROUBLES_MAX = NOTICES_MAX = 64  # more of the engine are not looked at
STRANGERS = frozenset({Rejection.STRANGER, Rejection.OTHER_CLUSTER, Rejection.WRONG_MAC})


@dataclass(frozen=True, slots=True, kw_only=True)
class Scene:
    """What both nodes looked like when a switch began."""

    own_health: Mapping[str, str] = field(default_factory=dict)
    peer_health: Mapping[str, str] = field(default_factory=dict)
    positions: Mapping[str, str] = field(default_factory=dict)
    silent_s: float | None = None  # since the peer's last sign of life


@dataclass(slots=True)
class _Open:
    """A switch that is going on."""

    id: SwitchId
    since: float  # when its present part began
    serving: bool = False  # the address is here, the services are being started


class Chronicle:
    """One per agent."""

    def __init__(
        self,
        switches: SwitchLog,
        events: EventLog,
        *,
        scene: Callable[[], Scene],
        node: str,
        observing: bool,
        on_active: Callable[[int, str], None] | None = None,
        on_notice: Callable[[str, pb.Notice], None] | None = None,
    ) -> None:
        """``on_active(epoch, cause)``: this node has become Active, or goes on being it after a restart.

        ``on_notice(run, notice)``: something happened to the engine; its own log has it.
        """
        self._switches = switches
        self._events = events
        self._scene = scene
        self._node = node
        self._observing = observing
        self._done = Result.OBSERVED if observing else Result.DONE
        self._open: _Open | None = None
        self._on_active = on_active
        self._on_notice = on_notice
        self._bad: dict[str, str] = {}
        self._troubles: dict[tuple[str, str], pb.Trouble] = {}
        self._asked: Moved | None = None  # the request whose refusal comes next

    # ---- the arbiter

    def moved(self, move: Moved, *, now: float) -> None:
        """A row of the table was taken."""
        self._events.append(
            "info" if move.before is move.after else "warning",
            "the arbiter moved",
            {
                "row": move.row,
                "before": move.before.value,
                "after": move.after.value,
                "cause": move.cause.value,
                "epoch": move.epoch,
                "why": move.why,
            },
        )
        self._asked = move if move.row == REFUSED else None
        becomes_active = move.after is Phase.ACTIVE and move.before not in SERVING and not self._observing
        if becomes_active and self._on_active is not None:
            self._on_active(move.epoch, move.cause.value)
        if self._open is not None and self._open.serving and move.after is not Phase.ACTIVE:
            self._end(Result.FAILED, now, error=f"the services were not all started: {move.why}")
        if move.row == REFUSED:
            return
        if move.row in LOST and move.before in SERVING:
            self._lost(move, now)
        elif move.after in TAKING:
            self._taking(move, now)
        elif move.after in HANDING:
            self._handing(move, now)
        elif move.row == "serve":
            self._served(now)
        elif move.row == "go":
            self._end_part(Part.ADDRESS, now)
            self._end(self._done, now)
        elif self._open is not None and not self._open.serving:
            self._end(Result.ABORTED, now, error=move.why)

    def started(self, outcome: Outcome, *, now: float, finished: Mapping[str, int] | None = None) -> None:
        """The services were started after a take-over; ``finished``: what the promotion had done before, counted."""
        if self._open is not None and finished:
            self._switches.add(self._open.id, finished={what: str(count) for what, count in finished.items()})
        self._end_part(Part.SERVICES, now)
        failed = ", ".join(f"{step.service}: {step.verb.value} {step.reason}" for step in outcome.failures)
        self._end(Result.FAILED if failed else self._done, now, error=failed)

    def refused(self, refused: Refused, *, now: float) -> None:
        """An administrator's request cannot be done."""
        reasons = ", ".join(reason.value for reason in refused.peer_reasons)
        self._events.append("warning", "a request was refused", {"reason": refused.reason.value, "peer": reasons})
        if self._asked is not None:
            role = ROLE_OF[self._asked.before]
            entry = self._entry(self._asked, now, role_before=role, role_after=role, trigger="request")
            self._switches.end(entry, Result.REFUSED, now=now, error=refused.reason.value)
            self._asked = None

    def alarm(self, alarm: Alarm) -> None:
        """An alarm of the arbiter."""
        fields = {"reasons": ", ".join(reason.value for reason in alarm.reasons), "mac": alarm.mac or ""}
        what, subject = f"arbiter: {alarm.subject.value}", self._node
        if alarm.raised:
            self._events.raise_alarm("error" if alarm.subject in ERRORS else "warning", what, subject, fields)
        else:
            self._events.clear_alarm(what, subject, fields)
        # Nothing of the arbiter's says that these two have ended; each is news when it comes again.
        if alarm.raised and alarm.subject in {Subject.ADDRESS_CALL, Subject.NOT_READY}:
            self._events.clear_alarm(what, subject, {})

    def would(self, action: WouldDo) -> None:
        """Observe-only: what would have been done, but for what is done twice a second."""
        if not isinstance(action.deed, RenewAddress):
            self._events.append("info", "would have been done (observe only)", {"deed": str(action.deed)})

    # ---- the node's surroundings

    def health(self, vector: HealthVector) -> None:
        """Faults that came and went."""
        now_bad = {finding.cause: finding for finding in vector.bad}
        for cause, finding in now_bad.items():
            fields = {"reason": finding.reason.value, "detail": finding.detail, "switches": finding.switches}
            self._events.raise_alarm("error" if finding.switches else "warning", "fault", cause, fields)
        for cause in self._bad.keys() - now_bad.keys():
            good = {finding.cause: finding.condition for finding in vector.findings}
            known = "good again" if good.get(cause) is Condition.GOOD else "not looked at any more"
            self._events.clear_alarm("fault", cause, {"reason": known})
        self._bad = {cause: finding.reason.value for cause, finding in now_bad.items()}

    def path(self, name: str, way: Way) -> None:
        """A heartbeat path that is lost, heard one way only, or whole again."""
        for bad_way, what in ((Way.LOST, "heartbeat path lost"), (Way.HALF, "heartbeat path is one-way")):
            if way is bad_way:
                self._events.raise_alarm("warning", what, name, {})
            else:
                self._events.clear_alarm(what, name, {})

    def rejected(self, rejected: Rejected) -> None:
        """A datagram that was dropped; of each kind once, until it has been quiet."""
        if rejected.first:
            severity = "error" if rejected.kind in STRANGERS else "info"
            fields = {"source": rejected.source, "mac": rejected.mac or ""}
            self._events.raise_alarm(severity, "beats refused", rejected.kind.value, fields)

    def quiet(self, standing: frozenset[Rejection]) -> None:
        """Which rejections have come lately; the alarms of the others end."""
        for kind in Rejection:
            if kind not in standing:
                self._events.clear_alarm("beats refused", kind.value, {})

    def attached(self, *, attached: bool) -> None:
        """The engine came or went."""
        self._events.append("info" if attached else "error", "engine attached" if attached else "engine lost", {})

    def reported(self, report: pb.EngineReport) -> None:
        """What stands on the engine's side, once an edge, and what happened there."""
        for notice in report.notices[:NOTICES_MAX]:
            if self._on_notice is not None:
                self._on_notice(report.run, notice)
        standing = {(one.what, one.subject): one for one in report.troubles[:TROUBLES_MAX]}
        if standing.keys() == self._troubles.keys():
            return
        for one in standing.values():
            severity = one.severity if one.severity in SEVERITIES else "error"
            self._events.raise_alarm(severity, one.what, one.subject, dict(one.fields))
        for what, subject in self._troubles.keys() - standing.keys():
            self._events.clear_alarm(what, subject, {})
        self._troubles = standing

    # ---- entries of the switch log

    def _taking(self, move: Moved, now: float) -> None:
        if self._open is None:
            self._begin(move, now, role_before=ROLE_OF[move.before], role_after="active")
        if self._open is not None:
            self._switches.add(self._open.id, epoch=move.epoch)
        if move.after is Phase.ADDING:
            self._end_part(Part.DECIDE, now)

    def _handing(self, move: Moved, now: float) -> None:
        if self._open is None:
            self._begin(move, now, role_before="active", role_after="standby")
        if move.after is Phase.RELEASING:
            self._end_part(Part.DECIDE, now)

    def _served(self, now: float) -> None:
        self._end_part(Part.ADDRESS, now)
        if self._open is not None:
            self._open.serving = True

    def _lost(self, move: Moved, now: float) -> None:
        if self._open is not None:
            self._end(Result.FAILED, now, error=move.why)
        self._begin(move, now, role_before=ROLE_OF[move.before], role_after=ROLE_OF[move.after], trigger=move.row)
        self._end(self._done, now)

    def _begin(self, move: Moved, now: float, *, role_before: str, role_after: str, trigger: str = "") -> None:
        entry = self._entry(move, now, role_before=role_before, role_after=role_after, trigger=trigger)
        self._open = _Open(id=entry, since=now)

    def _entry(self, move: Moved, now: float, *, role_before: str, role_after: str, trigger: str) -> SwitchId:
        scene = self._scene()
        entry = self._switches.begin(
            now=now,
            trigger=trigger or move.cause.value,
            reason=move.why,
            epoch=move.epoch,
            role_before=role_before,
            role_after=role_after,
            own_health=scene.own_health,
            peer_health=scene.peer_health,
            positions=scene.positions,
        )
        if move.cause is Cause.SILENCE and move.after in TAKING and scene.silent_s is not None:
            self._switches.phase(entry, Part.DETECT, scene.silent_s)
        return entry

    def _end_part(self, part: Part, now: float) -> None:
        if self._open is not None:
            self._switches.phase(self._open.id, part, now - self._open.since)
            self._open.since = now

    def _end(self, result: Result, now: float, *, error: str = "") -> None:
        if self._open is not None:
            self._switches.end(self._open.id, result, now=now, error=error)
            self._open = None
