"""The agent's part of ``ha-sync status``: who serves, who could, and what stands in the way."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import Final

import click

from ha_proto.agent.v1 import agent_pb2 as pb
from ha_sync.cli.alarms import unsent
from ha_sync.cli.output import duration, plain
from ha_sync.cli.reasons import list_of
from ha_sync.cli.switch_lines import summary

NOTHING: Final = "-"


def page(current: pb.AgentStatus) -> list[str]:
    """For a person: one fact a line, what is wrong in red."""
    return [
        f"role     {_role(current)}",
        f"address  {_address(current)}",
        *([f"ready    {_ready(current)}"] if current.role != "active" or current.reasons else []),
        f"pair     {_peer(current)}",
        *(f"path     {_path(path)}" for path in current.paths),
        *([f"probes   {_probes(current)}"] if current.probes else []),
        *_red(f"fault    {_fault(probe)}" for probe in current.probes if probe.state == "bad"),
        *_red(f"alarm    {plain(alarm)}" for alarm in current.alarms),
        *_red(f"unsent   {line}" for target in current.alarm_targets if (line := unsent(target))),
        *_modes(current),
        *([] if current.engine_attached else _red(["engine   is not attached to the agent"])),
        *_beats(current),
        *([f"switch   {summary(current.last_switch)}"] if current.HasField("last_switch") else []),
    ]


def line_of(current: pb.AgentStatus) -> str:
    """The same for a pipe, on one line."""
    paths = ",".join(f"{path.name}:{path.state}" for path in current.paths)
    faults = ",".join(probe.name for probe in current.probes if probe.state == "bad")
    return (
        f"agent role={current.role} phase={current.phase} epoch={current.epoch} holds={_flag(current.holds)} "
        f"ready={_flag(current.ready)} reasons={','.join(current.reasons) or NOTHING} "
        f"peer_role={current.peer_role or NOTHING} single={_flag(current.single)} paths={paths or NOTHING} "
        f"faults={faults or NOTHING} alarms={len(current.alarms)} "
        f"unsent={sum(target.waiting for target in current.alarm_targets)} "
        f"maintenance_left_s={current.maintenance_left_s:.0f} held={_flag(current.held)}"
    )


def _role(current: pb.AgentStatus) -> str:
    phase = "" if current.phase in {"", current.role} else f" ({current.phase})"
    who = ", ".join(part for part in (current.node, current.station_type) if part)
    return f"{current.role}{phase}, epoch {current.epoch}" + (f": {who}" if who else "")


def _address(current: pb.AgentStatus) -> str:
    lease = f", lease {current.lease_left_s:.1f} s" if current.holds else ""
    return f"{current.cluster_ip or NOTHING}: {current.holder or 'nobody known'}{lease}"


def _ready(current: pb.AgentStatus) -> str:
    if current.ready:
        return "yes"
    return f"no: {list_of(current.reasons) or 'no reason given'}"


def _peer(current: pb.AgentStatus) -> str:
    single = "single: " if current.single else ""
    if not current.peer_role:
        return f"{single}the peer is not heard"
    why = list_of(current.peer_reasons)
    judged = f": could not take over: {why}" if why else "" if current.peer_role == "active" else ": ready"
    return f"{single}the peer is {current.peer_role}, epoch {current.peer_epoch}{judged}"


def _path(path: pb.PathStatus) -> str:
    heard = f"heard {path.heard_age_s:.1f} s ago" if path.HasField("heard_age_s") else "never heard"
    there = f"there {path.peer_heard_age_s:.1f} s ago" if path.HasField("peer_heard_age_s") else "there never"
    return f"{path.name}: {path.state}, {heard}, {there}"


def _probes(current: pb.AgentStatus) -> str:
    counted = Counter(probe.state for probe in current.probes)
    return ", ".join(f"{count} {state}" for state, count in sorted(counted.items()))


def _fault(probe: pb.ProbeStatus) -> str:
    detail = f": {plain(probe.detail)}" if probe.detail else ""
    return f"{probe.name}{detail}" + (" (switches)" if probe.switches else "")


def _modes(current: pb.AgentStatus) -> list[str]:
    modes = []
    if current.maintenance_left_s > 0:
        modes.append(f"mode     maintenance for {duration(current.maintenance_left_s)} more: no automatic switch")
    if current.held:
        modes.append("mode     held after repeated automatic switches; `ha-sync release` ends it")
    if current.observe_only:
        modes.append("mode     observe-only: what would be done is logged and not done")
    return modes


def _beats(current: pb.AgentStatus) -> list[str]:
    refused = ", ".join(f"{why} {count}" for why, count in sorted(current.beats_refused.items()) if count)
    return [f"beats    refused: {refused}"] if refused else []


def _red(lines: Iterable[str]) -> list[str]:
    # click strips the colour again wherever the output is no terminal.
    return [click.style(line, fg="red") for line in lines]


def _flag(value: bool) -> str:
    return str(value).lower()
