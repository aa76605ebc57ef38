"""What the driver drives, composed by ``building``."""

from __future__ import annotations

from dataclasses import dataclass

from ha_agent.agent.chronicle import Chronicle
from ha_agent.agent.duty import Duty
from ha_agent.agent.peer_paths import PeerPaths
from ha_agent.cluster_ip.holder import Holder
from ha_agent.cluster_ip.lan import Lan
from ha_agent.cluster_ip.links import Links
from ha_agent.commands import Commands
from ha_agent.engine_link import EngineLink
from ha_agent.health import EngineProbe, Monitor
from ha_agent.heartbeat.channel import Channel
from ha_agent.logs import EventLog
from ha_agent.memory import BookStore


@dataclass(frozen=True, slots=True, kw_only=True)
class Parts:
    """One of each."""

    store: BookStore
    holder: Holder
    lan: Lan | None  # None: the interface is the loopback, there is no LAN
    links: Links
    channel: Channel
    peer_paths: PeerPaths
    engine: EngineLink
    engine_probe: EngineProbe
    monitor: Monitor
    duty: Duty
    chronicle: Chronicle
    commands: Commands
    events: EventLog
