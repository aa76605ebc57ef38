"""Two agents on the loopback interface: their addresses, their ``ha.toml``, the identity that pairing would make."""

from __future__ import annotations

import json
import random
import socket
import uuid
from dataclasses import dataclass
from pathlib import Path

from ha_agent.settings import Settings, load

CLUSTER_ID = str(uuid.UUID(int=77))
KEY = bytes(range(32))


@dataclass(frozen=True, slots=True, kw_only=True)
class Site:
    """Addresses of 127.0.0.0/8 and a port that nobody else uses."""

    net: str
    port: int

    @property
    def shared(self) -> str:
        """The cluster IP's stand-in."""
        return f"{self.net}.53"

    def local(self, station: str) -> str:
        """A node's own."""
        return f"{self.net}.{1 if station == 'primary' else 2}"

    def peer(self, station: str) -> str:
        return self.local("secondary" if station == "primary" else "primary")


def new_site() -> Site:
    net = f"127.{random.randint(1, 254)}.{random.randint(1, 254)}"
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as free:
        free.bind((f"{net}.53", 0))
        return Site(net=net, port=free.getsockname()[1])


def mac_of(address: str) -> str:
    """What the stand-in makes of a loopback address."""
    return (b"\x02\x00" + socket.inet_aton(address)).hex(":")


def toml(site: Site, station: str, root: Path, *, ha: str = "", rest: str = "") -> str:
    return f"""
[node]
name = "{station}"
state_dir = "{root}/{station}/state"
run_dir = "{root}/{station}/run"

[ha]
enabled = true
station_type = "{station}"
cluster_ip = "{site.shared}/8"
peer_ip = "{site.peer(station)}"
peer_mac = "{mac_of(site.peer(station))}"
interface = "lo"
heartbeat_port = {site.port}
heartbeat_timeout_s = 3
{ha}

[[path]]
name = "loop"
local = "{site.local(station)}"
peer = "{site.peer(station)}"
{rest}
"""


def write_toml(site: Site, station: str, root: Path, *, ha: str = "", rest: str = "") -> Path:
    """Writes the file; its path."""
    folder = root / station
    folder.mkdir(exist_ok=True)
    path = folder / "ha.toml"
    path.write_text(toml(site, station, root, ha=ha, rest=rest))
    return path


def pair_up(root: Path, station: str) -> None:
    """What the engine's pairing leaves of interest to the agent."""
    directory = root / station / "state" / "identity"
    directory.mkdir(parents=True)
    (directory / "identity.json").write_text(json.dumps({"cluster_id": CLUSTER_ID, "node_id": station}))
    (directory / "heartbeat.key").write_bytes(KEY)


def lone_settings(
    root: Path, *, station: str = "primary", paired: bool = True, ha: str = "", rest: str = ""
) -> Settings:
    """Of one agent whose peer does not exist."""
    path = write_toml(new_site(), station, root, ha=ha, rest=rest)
    if paired:
        pair_up(root, station)
    return load(str(path))
