"""Two nodes, a gateway and a client as network namespaces of this machine. Needs root and iproute2.

            a ---- eth0 ---- br-lan ---- eth0 ---- b            10.77.0.1, 10.77.0.2
            |                /    \\                |
            |   gw  10.77.0.254    10.77.0.9 client |
            +---- cable0 --- br-cable --- cable0 ---+            169.254.9.1, 169.254.9.2

The wires run through a namespace of their own. Nothing of it is visible outside: the addresses may be in use by the
machine itself. Names are unique for each network; ``close`` removes all, also after a failure half way.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import shutil
import signal
import subprocess
import threading
import uuid
from collections.abc import Iterator
from types import TracebackType
from typing import Final, Self

NODES: Final = ("a", "b")
LAN: Final = {"a": "10.77.0.1", "b": "10.77.0.2", "gw": "10.77.0.254", "client": "10.77.0.9"}
CABLE: Final = {"a": "169.254.9.1", "b": "169.254.9.2"}
CLUSTER_IP: Final = "10.77.0.53"
PREFIX: Final = 24
WIRES: Final = "wires"
CLONE_NEWNET: Final = 0x40000000


class NetworkFailure(Exception):
    """``ip`` failed; the text says what it printed."""


def hindrance() -> tuple[str, str] | None:
    """Why this process cannot make namespaces, and what to do about it. None: it can."""
    if os.geteuid() != 0:
        return "it needs root", "run it as root, or without --netns"
    if shutil.which("ip") is None:
        return "the command `ip` is not installed", "install the package iproute2, or run it without --netns"
    name = f"ha-{uuid.uuid4().hex[:6]}-try"
    try:
        ip("netns", "add", name)
        ip("-n", name, "link", "add", "v0", "type", "veth", "peer", "name", "v1")
    except NetworkFailure as failure:
        return str(failure), "run it on a host whose kernel allows namespaces and veth, or without --netns"
    finally:
        with contextlib.suppress(NetworkFailure):
            ip("netns", "del", name)
    return None


class Network:
    """The namespaces. ``Network()`` builds them. Raises NetworkFailure."""

    def __init__(self) -> None:
        self._stem = f"ha-demo-{os.getpid()}-{uuid.uuid4().hex[:6]}-"  # who made them can be told
        try:
            self._build()
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Removes all namespaces, whatever of them there is, and ends what still runs in them."""
        for host in (WIRES, *LAN):
            with contextlib.suppress(NetworkFailure):
                for pid in ip("netns", "pids", self.name(host)).split():
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(int(pid), signal.SIGKILL)
                ip("netns", "del", self.name(host))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def name(self, host: str) -> str:
        """The namespace of a, b, gw, client or wires."""
        return self._stem + host

    def enter(self, host: str) -> tuple[str, ...]:
        """Put before a command: it runs in the namespace, under the pid of whoever was started."""
        return ("ip", "netns", "exec", self.name(host))

    @contextlib.contextmanager
    def inside(self, host: str) -> Iterator[None]:
        """This thread is in the namespace: sockets made here stay there."""
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

    def mac(self, host: str) -> str:
        """Of its LAN port."""
        command = [*self.enter(host), "cat", "/sys/class/net/eth0/address"]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

    def _build(self) -> None:
        for host in (WIRES, *LAN):
            ip("netns", "add", self.name(host))
            self.batch(host, "link set lo up")
        for bridge in ("br-lan", "br-cable"):
            self.batch(
                WIRES, f"link add {bridge} type bridge forward_delay 0 mcast_snooping 0", f"link set {bridge} up"
            )
        for device, bridge, hosts in (("eth0", "br-lan", LAN), ("cable0", "br-cable", CABLE)):
            for host in hosts:
                self._plug(host, device, bridge)

    def addresses(self, host: str, device: str) -> tuple[str, ...]:
        """What the host has on this port, each with its prefix length."""
        return (f"{(LAN if device == 'eth0' else CABLE)[host]}/{PREFIX}",)

    def _plug(self, host: str, device: str, bridge: str) -> None:
        port = f"{host}-{device}"
        self.batch(
            WIRES,
            f"link add {port} type veth peer name {device} netns {self.name(host)}",
            f"link set {port} master {bridge}",
            f"link set {port} up",
        )
        nodad = {address: " nodad" if ":" in address else "" for address in self.addresses(host, device)}
        self.batch(
            host,
            f"link set {device} addrgenmode none",  # no duplicate detection of link-local addresses to wait for
            f"link set {device} up",
            *(f"addr add {address} dev {device}{mark}" for address, mark in nodad.items()),
        )

    def batch(self, host: str, *lines: str) -> None:
        """Lines for ``ip -batch`` in the namespace. Raises NetworkFailure."""
        ip("-n", self.name(host), "-batch", "-", text="\n".join(lines))


def _set_namespace(libc: ctypes.CDLL, descriptor: int) -> None:
    if libc.setns(descriptor, CLONE_NEWNET) != 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))


def ip(*arguments: str, text: str | None = None) -> str:
    """What ``ip`` prints. Raises NetworkFailure."""
    done = subprocess.run(["ip", *arguments], input=text, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise NetworkFailure(f"ip {' '.join(arguments)}: {done.stderr.strip()}")
    return done.stdout
