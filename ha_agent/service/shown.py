"""The agent's state and its logs as messages of the API."""

from __future__ import annotations

from ha_agent.agent import Agent
from ha_agent.agent.chronicle import ROLE_OF
from ha_agent.alarms.desk import Desk
from ha_agent.arbiter import policy
from ha_agent.arbiter.state import State
from ha_agent.arbiter.values import SERVING
from ha_agent.heartbeat.channel import PathLook
from ha_agent.logs.events import Event
from ha_agent.logs.switches import Switch
from ha_agent.service.alarms_shown import targets_of
from ha_agent.settings import Settings
from ha_proto.agent.v1 import agent_pb2 as pb


def status_of(agent: Agent, desk: Desk, last: Switch | None) -> pb.AgentStatus:
    """Everything at a glance."""
    state, pair, parts = agent.state, agent.pair, agent.parts
    peer = state.peer if _fresh(state) else None
    return pb.AgentStatus(
        node=agent.settings.node.name,
        station_type=pair.station.value,
        role=ROLE_OF[state.phase],
        phase=state.phase.value,
        epoch=state.epoch if state.phase in SERVING else state.followed,
        cluster_ip=", ".join(str(shared) for shared in (pair.cluster_ip, pair.cluster_ip6) if shared is not None),
        holder=_holder(state),
        holds=state.holds,
        lease_left_s=max(0.0, state.lease_until - state.now) if state.holds else 0.0,
        single=state.book.single,
        ready=not policy.reasons(state),
        reasons=[reason.value for reason in policy.reasons(state)] if state.phase not in SERVING else [],
        peer_reasons=[reason.value for reason in peer.reasons] if peer is not None and not peer.serves else [],
        paths=[_path(path) for path in parts.channel.paths()],
        probes=[
            pb.ProbeStatus(
                name=finding.cause,
                state=finding.condition.value,
                detail=f"{finding.reason.value} {finding.detail}".strip() if finding.reason.value != "none" else "",
                switches=finding.switches,
            )
            for finding in parts.monitor.vector.findings
        ],
        maintenance_left_s=max(0.0, state.maintenance_until - state.now),
        held=policy.held(state),
        observe_only=pair.observe_only,
        alarms=[f"{what}: {subject}" for what, subject in parts.events.standing],
        last_switch=None if last is None else switch_of(last),
        peer_role=ROLE_OF[peer.phase] if peer is not None else "",
        peer_epoch=(peer.epoch or peer.data) if peer is not None else 0,
        engine_attached=parts.engine_probe.is_attached,
        beats_refused={kind.value: count for kind, count in parts.channel.rejected.items()},
        alarm_targets=targets_of(desk),
    )


def idle_status(settings: Settings, desk: Desk, *, phase: str) -> pb.AgentStatus:
    """Of a node whose HA is off, or which is not paired yet."""
    pair = settings.pair
    return pb.AgentStatus(
        node=settings.node.name,
        station_type=pair.station.value if pair is not None else "",
        role="disabled" if pair is None else "starting",
        phase=phase,
        cluster_ip=str(pair.cluster_ip or "") if pair is not None else "",
        holder="nobody known",
        alarm_targets=targets_of(desk),
    )


def switch_of(switch: Switch) -> pb.SwitchRecord:
    """An entry of the switch log."""
    return pb.SwitchRecord(
        id=switch.id,
        begin_unix_s=switch.begun_unix_s,
        end_unix_s=switch.ended_unix_s,
        took_s=switch.took_s,
        trigger=switch.trigger,
        reason=switch.reason,
        result=switch.result.value,
        epoch=switch.epoch,
        from_role=switch.role_before,
        to_role=switch.role_after,
        phases_s=switch.phases_s,
        health=switch.own_health,
        peer_health=switch.peer_health,
        positions=switch.positions,
        finished={what: int(count) for what, count in switch.finished.items()},
        error=switch.error,
    )


def event_of(event: Event) -> pb.EventRecord:
    """A row of the event log."""
    return pb.EventRecord(
        id=event.id,
        unix_s=event.unix_s,
        severity=event.severity,
        what=event.what,
        fields=event.fields,
        subject=event.subject,
        edge=event.edge.value,
    )


def _fresh(state: State) -> bool:
    return state.now - state.heard_at <= state.settings.timeout_s


def _holder(state: State) -> str:
    if state.holds:
        return "this node"
    if state.peer is not None and _fresh(state) and state.peer.holds:
        return "the peer"
    return f"somebody else ({state.foreign})" if state.foreign is not None else "nobody known"


def _path(path: PathLook) -> pb.PathStatus:
    return pb.PathStatus(
        name=path.name,
        heard_age_s=path.heard_age_s,
        peer_heard_age_s=path.heard_there_age_s,
        beats=path.beats,
        state=path.way.value if path.state.usable else f"{path.way.value} ({path.state.error or 'not open'})",
    )
