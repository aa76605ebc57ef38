"""The ``ha.toml`` of a node that lives on this machine for a while. Keys are those of the agent's settings. Pure."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Final

SERVICE_DEADLINE_S: Final = 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Service:
    """One ``[[service]]``."""

    name: str
    start: tuple[str, ...]
    stop: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class HaPlace:
    """What the two files of a pair have in common, and this node's side of it."""

    primary: bool
    cluster_ip: str  # with its prefix length
    interface: str
    gateway: str  # an address, or none
    heartbeat_port: int
    timeout_s: float  # of the heartbeat
    peer_mac: str
    paths: tuple[tuple[str, str, str], ...]  # name, own address, the peer's; the first one is the LAN


def ha_toml(*, name: str, state_dir: str, run_dir: str, place: HaPlace, services: tuple[Service, ...]) -> str:
    """The text of the file."""
    ha: dict[str, object] = {
        "enabled": True,
        "station_type": "primary" if place.primary else "secondary",
        "cluster_ip": place.cluster_ip,
        "peer_ip": place.paths[0][2],
        "peer_mac": place.peer_mac,
        "interface": place.interface,
        "gateway": place.gateway,
        "heartbeat_port": place.heartbeat_port,
        "heartbeat_timeout_s": place.timeout_s,
    }
    sections = [
        _section("[node]", {"name": name, "state_dir": state_dir, "run_dir": run_dir}),
        _section("[ha]", ha),
        *(_section("[[path]]", {"name": path, "local": own, "peer": peer}) for path, own, peer in place.paths),
        *(_section("[[service]]", _service(service)) for service in services),
    ]
    return "\n".join(sections)


def _service(service: Service) -> dict[str, object]:
    return {
        "name": service.name,
        "start": list(service.start),
        "stop": list(service.stop),
        "start_deadline_s": SERVICE_DEADLINE_S,
    }


def _section(heading: str, values: dict[str, object]) -> str:
    return "\n".join([heading, *(f"{key} = {json.dumps(value)}" for key, value in values.items()), ""])
