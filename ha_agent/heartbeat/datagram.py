"""Datagrams in and out, one UDP socket for each path. IPv4 and IPv6; no policy, no content.

A socket is bound to the path's own local address, so that a beat says by which way it came. Nothing that the network
does is an exception: what cannot be sent or opened is the path's ``state``, and the next beat tries again. Only what a
person must mend raises (``OperatorNeeded``): the port is taken, permission is lacking.

Times are monotonic, taken when the datagram is read. The kernel's own stamps (``SO_TIMESTAMPNS``) are wall-clock times
and prove nothing: how fresh a beat is, its echo says. A node that stalled finds its *oldest* datagrams queued, the
newest were dropped when the queue was full; so it reads all, sends, and waits for fresh ones before it judges.
"""

from __future__ import annotations

import asyncio
import errno
import ipaddress
import os
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass

from ha_agent.errors import OperatorNeeded
from ha_agent.heartbeat.beat import PathId

DRAIN_MAX = 512
"""Datagrams read in one go. A stranger who floods us is read on later: own timers come first."""

READ_BYTES = 1024  # a longer datagram is cut, and refused by the gate as too long
REOPEN_EVERY_S = 1.0
_IP_FREEBIND = 15
_IPV6_FREEBIND = 78


@dataclass(frozen=True, slots=True, kw_only=True)
class PathSpec:
    """One way to the peer. Addresses as text, IPv6 link-local ones with ``%interface``."""

    path: PathId
    name: str
    local: str
    peer: str
    port: int  # local; 0 lets the system choose (tests)
    peer_port: int = 0  # 0: the same as ``port``
    device: str = ""  # bound to this interface when named; needs a privilege


@dataclass(frozen=True, slots=True, kw_only=True)
class Received:
    """A datagram and when it was read."""

    path: PathId
    data: bytes
    source: str
    at: float


@dataclass(frozen=True, slots=True, kw_only=True)
class PathState:
    """Whether a path can be used from here. ``sent`` and ``failed`` count datagrams since the start."""

    usable: bool
    error: str = ""  # ENETUNREACH, EADDRNOTAVAIL, EPERM..., of the last try; empty when it worked
    sent: int = 0
    failed: int = 0


class PathSocket:
    """One path's socket. Used from one event loop; ``on_received`` gets what was read, oldest first.

    The loop reads one datagram in a turn and comes back for more: mostly there is one, and to ask for a second costs as
    much as to read it.
    """

    def __init__(
        self,
        spec: PathSpec,
        on_received: Callable[[list[Received]], None],
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.spec = spec
        self._on_received = on_received
        self._clock = clock
        self._socket: socket.socket | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._error = ""
        self._tried_at = float("-inf")
        self._sent = 0
        self._failed = 0
        self._peer: tuple[object, ...] | None = None

    @property
    def state(self) -> PathState:
        """As the last send or open left it."""
        usable = self._socket is not None and not self._error
        return PathState(usable=usable, error=self._error, sent=self._sent, failed=self._failed)

    @property
    def descriptor(self) -> int | None:
        """Of the open socket."""
        return self._socket.fileno() if self._socket is not None else None

    @property
    def port(self) -> int:
        """The local port; 0 while the socket is not open."""
        return int(self._socket.getsockname()[1]) if self._socket is not None else 0

    def open(self) -> None:
        """Opens the socket in the running loop. What is not there yet (address, interface) is tried again by ``send``.

        Raises OperatorNeeded.
        """
        self._loop = asyncio.get_running_loop()
        try:
            self._open(self._clock())
        except OSError as error:
            _refuse_what_a_person_must_mend(error, self.spec)
            self._error = _name(error)

    def send(self, datagram: bytes) -> bool:
        """Sends without waiting. False: not sent, ``state`` says why."""
        try:
            if self._socket is None:
                self._reopen()
            if self._socket is None:
                self._failed += 1
                return False
            self._socket.sendto(datagram, self._peer_address())
        except OSError as error:
            # A full buffer is the network's loss, like any other; the next beat is 100 ms away.
            self._failed += 1
            self._error = _name(error)
            if error.errno in {errno.ENODEV, errno.ENXIO, errno.EBADF}:
                self._drop_socket()
            return False
        self._sent += 1
        self._error = ""
        return True

    def drain(self) -> list[Received]:
        """Everything that lies in the socket now, oldest first; at most ``DRAIN_MAX``. Also for who stalled."""
        received: list[Received] = []
        while len(received) < DRAIN_MAX and (one := self._read()) is not None:
            received.append(one)
        return received

    def close(self) -> None:
        """Closes the socket; what still lies in it is lost."""
        self._drop_socket()
        self._loop = None

    def aim(self, peer_port: int) -> None:
        """Sets the peer's port. For pairs whose ports the system chose."""
        self._peer = _resolve(self.spec.peer, peer_port)

    def _open(self, now: float) -> None:
        self._tried_at = now
        local = _resolve(self.spec.local, self.spec.port)
        family = socket.AF_INET6 if len(local) == 4 else socket.AF_INET
        opened = socket.socket(family, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK)
        try:
            _prepare(opened, self.spec)
            opened.bind(local)
        except OSError:
            opened.close()
            raise
        self._socket = opened
        self._error = ""
        assert self._loop is not None, "opened outside of a loop"
        self._loop.add_reader(opened.fileno(), self._readable)

    def _reopen(self) -> None:
        now = self._clock()
        if self._loop is not None and now - self._tried_at >= REOPEN_EVERY_S:
            self._open(now)

    def _readable(self) -> None:
        received = self._read()
        if received is not None:
            self._on_received([received])

    def _read(self) -> Received | None:
        """The oldest; None: nothing more, or the report of an earlier send, after which the loop comes back here."""
        if self._socket is None:
            return None
        try:
            data, source = self._socket.recvfrom(READ_BYTES)
        except OSError:
            return None
        return Received(path=self.spec.path, data=data, source=str(source[0]), at=self._clock())

    def _peer_address(self) -> tuple[object, ...]:
        if self._peer is None:
            self._peer = _resolve(self.spec.peer, self.spec.peer_port or self.spec.port)
        return self._peer

    def _drop_socket(self) -> None:
        if self._socket is None:
            return
        if self._loop is not None and not self._loop.is_closed():
            self._loop.remove_reader(self._socket.fileno())
        self._socket.close()
        self._socket = None
        self._peer = None


def _prepare(opened: socket.socket, spec: PathSpec) -> None:
    # The local address may come later (interface still down, IPv6 address tentative): the socket waits for it.
    if opened.family == socket.AF_INET6:
        opened.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        opened.setsockopt(socket.IPPROTO_IPV6, _IPV6_FREEBIND, 1)
    else:
        opened.setsockopt(socket.IPPROTO_IP, _IP_FREEBIND, 1)
    if spec.device:
        opened.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, spec.device.encode() + b"\0")


def _resolve(address: str, port: int) -> tuple[object, ...]:
    """A socket address of a literal; the scope's interface must exist. Raises OSError."""
    family = socket.AF_INET6 if ipaddress.ip_address(address).version == 6 else socket.AF_INET
    try:
        found = socket.getaddrinfo(address, port, family, socket.SOCK_DGRAM, 0, socket.AI_NUMERICHOST)
    except socket.gaierror as error:
        raise OSError(errno.ENODEV, os.strerror(errno.ENODEV)) from error
    return found[0][4]


def _refuse_what_a_person_must_mend(error: OSError, spec: PathSpec) -> None:
    subject = f"{spec.name} ({spec.local} port {spec.port})"
    if error.errno == errno.EADDRINUSE:
        hint = "another agent runs here, or heartbeat_port is taken"
    elif error.errno in {errno.EPERM, errno.EACCES}:
        hint = "needs CAP_NET_RAW for a path bound to an interface, CAP_NET_BIND_SERVICE below port 1024"
    else:
        return
    raise OperatorNeeded("cannot open heartbeat path", subject=subject, reason=error.strerror or "", hint=hint)


def _name(error: OSError) -> str:
    return errno.errorcode.get(error.errno or 0, str(error))
