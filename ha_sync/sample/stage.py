"""On what a demonstration plays: the loopback interface of this machine, without root, or namespaces with a real LAN.

On loopback every address is always there, so the agents run a stand-in for the cluster IP, which answers UDP only. In
namespaces it is a real address, and a process on each node sends datagrams back.
"""

from __future__ import annotations

import socket
import sys
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Final

from ha_sync.sample import netns
from ha_sync.sample.agents import Scene
from ha_sync.sample.client import Arp, Question, UdpEcho
from ha_sync.sample.hatoml import HaPlace
from ha_sync.sample.pair import Host

LOOPBACK: Final = {"a": "127.0.0.1", "b": "127.0.0.2"}
STAND_IN_IP: Final = "127.0.0.53"
PEER_PORT: Final = 9527
ECHO_PORT: Final = 9528


@dataclass(frozen=True, slots=True, kw_only=True)
class Stage:
    """What both nodes stand on, and how a client asks there."""

    scenes: tuple[Scene, Scene]
    cluster_ip: str
    stand_in: bool
    questions: Callable[[], Sequence[Question]]


def loopback(timeout_s: float) -> Stage:
    """No root, nothing to remove. ``timeout_s``: of the heartbeat."""
    port = _free_heartbeat_port()

    def scene(node: str, peer: str) -> Scene:
        return Scene(
            host=Host(address=LOOPBACK[node]),
            ha=HaPlace(
                primary=node == "a",
                cluster_ip=f"{STAND_IN_IP}/8",
                interface="lo",
                gateway="none",
                heartbeat_port=port,
                timeout_s=timeout_s,
                peer_mac="02:00:" + socket.inet_aton(LOOPBACK[peer]).hex(":"),
                paths=(("lan", LOOPBACK[node], LOOPBACK[peer]),),
            ),
        )

    return Stage(
        scenes=(scene("a", "b"), scene("b", "a")),
        cluster_ip=STAND_IN_IP,
        stand_in=True,
        questions=lambda: [UdpEcho(STAND_IN_IP, port)],
    )


def namespaces(cleanup: ExitStack, timeout_s: float) -> Stage:
    """Root; ``cleanup`` removes what is made. Raises NetworkFailure."""
    net = cleanup.enter_context(netns.Network())
    address = netns.CLUSTER_IP

    def scene(node: str, peer: str) -> Scene:
        return Scene(
            host=Host(address=netns.LAN[node], port=PEER_PORT, enter=net.enter(node)),
            ha=HaPlace(
                primary=node == "a",
                cluster_ip=f"{address}/{netns.PREFIX}",
                interface="eth0",
                gateway=netns.LAN["gw"],
                heartbeat_port=PEER_PORT,
                timeout_s=timeout_s,
                peer_mac=net.mac(peer),
                paths=(("lan", netns.LAN[node], netns.LAN[peer]), ("cable", netns.CABLE[node], netns.CABLE[peer])),
            ),
            beside=(sys.executable, "-m", "ha_sync.sample.echo", address, str(ECHO_PORT)),
        )

    def questions() -> Sequence[Question]:
        with net.inside("client"):
            return [UdpEcho(address, ECHO_PORT), Arp("eth0", netns.LAN["client"], address)]

    return Stage(scenes=(scene("a", "b"), scene("b", "a")), cluster_ip=address, stand_in=False, questions=questions)


def _free_heartbeat_port() -> int:
    """A UDP port that is free at both nodes and at the cluster IP."""
    for _ in range(100):
        sockets = [socket.socket(socket.AF_INET, socket.SOCK_DGRAM) for _ in range(3)]
        try:
            sockets[0].bind((STAND_IN_IP, 0))
            port: int = sockets[0].getsockname()[1]
            for each, address in zip(sockets[1:], LOOPBACK.values(), strict=True):
                each.bind((address, port))
        except OSError:  # taken at one of the others
            continue
        else:
            return port
        finally:
            for each in sockets:
                each.close()
    raise OSError("no UDP port is free on the loopback interface")
