"""A pair of nodes in network namespaces: LAN, cable, gateway, client. Needs root and iproute2.

            a ---- eth0 ---- br-lan ---- eth0 ---- b            10.77.0.1, 10.77.0.2; fd77::1, fd77::2
            |                /    \\                |
            |   gw  10.77.0.254    10.77.0.9 client |
            +---- cable0 --- br-cable --- cable0 ---+            169.254.9.1, 169.254.9.2

The wires run through a namespace of their own, so that pulling a plug takes the carrier from a node and leaves its
settings alone. Names are unique for each pair; ``close`` removes all, also after a failure half way.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import shutil
import subprocess
import threading
import uuid
from collections.abc import Iterator

from tests.support.netns_loss import lose

NODES = ("a", "b")
LAN_HOSTS = {"a": 1, "b": 2, "gw": 254, "client": 9}
CABLE_HOSTS = {"a": 1, "b": 2}
WIRES = "wires"
CLONE_NEWNET = 0x40000000


def lan_ipv4(host: str) -> str:
    return f"10.77.0.{LAN_HOSTS[host]}"


def lan_ipv6(host: str) -> str:
    return f"fd77::{LAN_HOSTS[host]:x}"


def cable_ipv4(host: str) -> str:
    return f"169.254.9.{CABLE_HOSTS[host]}"


def unavailable() -> str | None:
    """Why namespaces cannot be used here; None: they can."""
    if os.geteuid() != 0:
        return "needs root"
    if shutil.which("ip") is None:
        return "needs iproute2"
    name = f"ha-{uuid.uuid4().hex[:6]}-try"
    if _ip("netns", "add", name, check=False).returncode != 0:
        return "ip netns add fails here"
    try:
        tried = _ip("netns", "exec", name, "ip", "link", "add", "v0", "type", "veth", "peer", "name", "v1", check=False)
        return None if tried.returncode == 0 else "no veth here"
    finally:
        _ip("netns", "del", name, check=False)


class Net:
    """The namespaces of one pair. ``Net()`` builds them."""

    def __init__(self) -> None:
        self._stem = f"ha-{uuid.uuid4().hex[:6]}-"
        try:
            self._build()
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Removes all namespaces, whatever of them there is. Processes in them are ended by who started them."""
        for host in (WIRES, *LAN_HOSTS):
            _ip("netns", "del", self.name(host), check=False)

    def name(self, host: str) -> str:
        """The namespace of a, b, gw, client or wires."""
        return self._stem + host

    def command(self, host: str, *command: str) -> list[str]:
        """The command line that runs ``command`` in the namespace."""
        return ["ip", "netns", "exec", self.name(host), *command]

    def run(self, host: str, *command: str) -> str:
        """Runs to the end; what it printed. Raises CalledProcessError."""
        return _checked(self.command(host, *command))

    @contextlib.contextmanager
    def inside(self, host: str) -> Iterator[None]:
        """This thread is in the namespace: sockets made here stay there. Never await in it."""
        libc = ctypes.CDLL(None, use_errno=True)
        before = os.open(f"/proc/self/task/{threading.get_native_id()}/ns/net", os.O_RDONLY | os.O_CLOEXEC)
        try:
            target = os.open(f"/run/netns/{self.name(host)}", os.O_RDONLY | os.O_CLOEXEC)
            try:
                _set_namespace(libc, target)
            finally:
                os.close(target)
            try:
                yield
            finally:
                _set_namespace(libc, before)
        finally:
            os.close(before)

    def mac(self, host: str, device: str = "eth0") -> str:
        return self.run(host, "cat", f"/sys/class/net/{device}/address").strip()

    def cut(self, host: str, device: str = "eth0") -> None:
        """Pulls the plug: the host loses its carrier."""
        self.run(WIRES, "ip", "link", "set", f"{host}-{device}", "down")

    def restore(self, host: str, device: str = "eth0") -> None:
        """Plugs it in again."""
        self.run(WIRES, "ip", "link", "set", f"{host}-{device}", "up")

    def cut_off(self, host: str) -> None:
        """Pulls both plugs of a node, the one right after the other."""
        self._batch(WIRES, *(f"link set {host}-{device} down" for device in ("eth0", "cable0")))

    def plug_in(self, host: str) -> None:
        """Both again."""
        self._batch(WIRES, *(f"link set {host}-{device} up" for device in ("eth0", "cable0")))

    def switch_off(self, bridge: str = "br-lan") -> None:
        """The switch itself loses power: everybody on it loses the carrier."""
        hosts, device = (LAN_HOSTS, "eth0") if bridge == "br-lan" else (CABLE_HOSTS, "cable0")
        self._batch(WIRES, *(f"link set {host}-{device} down" for host in hosts))

    def switch_on(self, bridge: str = "br-lan") -> None:
        """It has booted: everybody has carrier at one moment."""
        hosts, device = (LAN_HOSTS, "eth0") if bridge == "br-lan" else (CABLE_HOSTS, "cable0")
        self._batch(WIRES, *(f"link set {host}-{device} up" for host in hosts))

    def pids(self, host: str) -> list[int]:
        """All processes that run in the namespace now."""
        return [int(word) for word in _ip("netns", "pids", self.name(host)).stdout.split()]

    def cut_cable(self) -> None:
        """Both nodes lose the carrier of the heartbeat cable."""
        for host in CABLE_HOSTS:
            self.cut(host, "cable0")

    def restore_cable(self) -> None:
        for host in CABLE_HOSTS:
            self.restore(host, "cable0")

    def lose_incoming(self, host: str, percent: int, device: str = "eth0") -> None:
        """What is sent to the host is lost, at random or (100) all: one way. 0 heals. Carrier stays."""
        with self.inside(host):
            lose(device, percent)

    def lose_outgoing(self, host: str, percent: int, device: str = "eth0") -> None:
        """What the host sends is lost on the wire."""
        with self.inside(WIRES):
            lose(f"{host}-{device}", percent)

    def _build(self) -> None:
        for host in (WIRES, *LAN_HOSTS):
            _ip("netns", "add", self.name(host))
            self._batch(host, "link set lo up")
        for bridge in ("br-lan", "br-cable"):
            self._batch(
                WIRES, f"link add {bridge} type bridge forward_delay 0 mcast_snooping 0", f"link set {bridge} up"
            )
        for host in LAN_HOSTS:
            self._plug(host, "eth0", "br-lan", f"{lan_ipv4(host)}/24", f"{lan_ipv6(host)}/64")
        for host in CABLE_HOSTS:
            self._plug(host, "cable0", "br-cable", f"{cable_ipv4(host)}/24")

    def _plug(self, host: str, device: str, bridge: str, *addresses: str) -> None:
        port = f"{host}-{device}"
        self._batch(
            WIRES,
            f"link add {port} type veth peer name {device} netns {self.name(host)}",
            f"link set {port} master {bridge}",
            f"link set {port} up",
        )
        nodad = {address: " nodad" if ":" in address else "" for address in addresses}
        self._batch(
            host,
            f"link set {device} addrgenmode none",  # no duplicate detection of link-local addresses to wait for
            f"link set {device} up",
            *(f"addr add {address} dev {device}{nodad[address]}" for address in addresses),
        )

    def _batch(self, host: str, *lines: str) -> None:
        _checked(["ip", "-n", self.name(host), "-batch", "-"], "\n".join(lines))


def _set_namespace(libc: ctypes.CDLL, descriptor: int) -> None:
    if libc.setns(descriptor, CLONE_NEWNET) != 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))


def _checked(command: list[str], text: str | None = None) -> str:
    done = subprocess.run(command, input=text, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise RuntimeError(f"{' '.join(command)}: {done.stderr.strip()} {text or ''}")
    return done.stdout


def _ip(*arguments: str, check: bool = True) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(["ip", *arguments], capture_output=True, text=True, check=False)
    if check and done.returncode != 0:
        raise RuntimeError(f"ip {' '.join(arguments)}: {done.stderr.strip()}")
    return done
