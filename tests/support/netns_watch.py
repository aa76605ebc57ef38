"""What the world sees of the cluster IP: a client that asks it all the time, and what both kernels tell of holding it.

``Client`` sends from one socket in its namespace every few milliseconds and never touches its neighbour cache: a
gratuitous ARP has to. ``Holders`` hears each change of the address from both kernels at the moment it happens. Times
are seconds of CLOCK_MONOTONIC, which all processes of the machine share. Both are threads of the caller.
"""

from __future__ import annotations

import contextlib
import ipaddress
import itertools
import selectors
import socket
import threading
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Self

from ha_agent.cluster_ip.netlink import GROUP_IPV4_ADDRESS, GROUP_IPV6_ADDRESS, AddressFacts, Kernel, notices
from tests.support.netns import Net
from tests.support.netns_echo import PORT

ASK_EVERY_S = 0.005
NOTICES_BYTES = 1 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """One question that was answered."""

    asked_at: float
    at: float
    node: str


class Client:
    """Asks ``address`` from the client's namespace until closed."""

    def __init__(self, net: Net, address: str, *, every_s: float = ASK_EVERY_S) -> None:
        self._every_s = every_s
        self._target = (address, PORT)
        self.answers: list[Answer] = []
        self._asked: dict[int, float] = {}
        self._came = threading.Condition()
        self._over = threading.Event()
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        with net.inside("client"):
            self._socket = socket.socket(family, socket.SOCK_DGRAM)
        self._socket.settimeout(every_s)
        self._thread = threading.Thread(target=self._ask_for_ever, name="client")
        self._thread.start()

    def close(self) -> None:
        """Asks no more."""
        self._over.set()
        self._thread.join()
        self._socket.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def last(self, *, node: str = "", before: float = float("inf")) -> Answer | None:
        """The last answer (of that node) that came before a moment."""
        with self._came:
            return next((one for one in reversed(self.answers) if _fits(one, node) and one.at < before), None)

    def first(self, node: str, *, since: float, timeout_s: float = 30.0) -> Answer:
        """Waits for the first answer of that node after a moment."""
        deadline = time.monotonic() + timeout_s
        with self._came:
            while True:
                found = next((one for one in self.answers if _fits(one, node) and one.at > since), None)
                if found is not None:
                    return found
                left_s = deadline - time.monotonic()
                assert left_s > 0, f"{node or 'nobody'} did not answer for the address in {timeout_s:g} s"
                self._came.wait(left_s)

    def outage_s(self, to: str, *, since: float, timeout_s: float = 30.0) -> float:
        """From the last answer of anybody else to the first of ``to`` after ``since``."""
        found = self.first(to, since=since, timeout_s=timeout_s)
        with self._came:
            before = [one.at for one in self.answers if one.node != to and one.at < found.at]
        return found.at - max(before)

    def longest_gap_s(self, since: float, until: float) -> float:
        """The longest time without any answer between two moments."""
        with self._came:
            inside = [one.at for one in self.answers if since <= one.at <= until]
        edges = [since, *inside, until]
        return max(later - earlier for earlier, later in itertools.pairwise(edges))

    def _ask_for_ever(self) -> None:
        number, due = 0, time.monotonic()
        while not self._over.is_set():
            now = time.monotonic()
            if now >= due:
                number += 1
                self._asked[number] = now
                with contextlib.suppress(OSError):  # nobody answers the ARP: the kernel says so at last
                    self._socket.sendto(b"%d" % number, self._target)
                due = max(due + self._every_s, now)
            self._take(max(0.0005, due - time.monotonic()))

    def _take(self, wait_s: float) -> None:
        self._socket.settimeout(wait_s)
        try:
            data = self._socket.recv(512)
        except OSError:
            return
        now = time.monotonic()
        number, _, node = data.decode().partition(" ")
        with self._came:
            self.answers.append(Answer(asked_at=self._asked[int(number)], at=now, node=node))
            self._came.notify_all()


def _fits(answer: Answer, node: str) -> bool:
    return not node or answer.node == node


class Holders:
    """Which nodes' kernels have the address, and since when; from their own notices."""

    def __init__(self, net: Net, addresses: Iterable[str], *, nodes: tuple[str, ...] = ("a", "b")) -> None:
        self._addresses = frozenset(ipaddress.ip_address(one) for one in addresses)
        self._selector = selectors.DefaultSelector()
        self._kernels: dict[str, Kernel] = {}
        self._dead: set[str] = set()
        self._now: dict[str, frozenset[object]] = {}
        self.history: list[tuple[float, frozenset[str]]] = []
        self._changed = threading.Condition()
        self._over = threading.Event()
        for node in nodes:
            with net.inside(node):
                heard = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, socket.NETLINK_ROUTE)
                self._kernels[node] = Kernel()
            heard.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, NOTICES_BYTES)
            heard.bind((0, GROUP_IPV4_ADDRESS | GROUP_IPV6_ADDRESS))
            self._selector.register(heard, selectors.EVENT_READ, node)
            self._now[node] = self._look(node)
        self._note(time.monotonic())
        self._thread = threading.Thread(target=self._hear_for_ever, name="holders")
        self._thread.start()

    def close(self) -> None:
        """Hears no more."""
        self._over.set()
        self._thread.join()
        for key in list(self._selector.get_map().values()):
            assert isinstance(key.fileobj, socket.socket)
            key.fileobj.close()
        self._selector.close()
        for kernel in self._kernels.values():
            kernel.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def now(self) -> frozenset[str]:
        """Who holds it now."""
        with self._changed:
            return self.history[-1][1]

    def until(self, holders: set[str], *, timeout_s: float = 30.0) -> float:
        """Waits until exactly these nodes hold it; since when they do."""
        deadline = time.monotonic() + timeout_s
        with self._changed:
            while self.history[-1][1] != holders:
                left_s = deadline - time.monotonic()
                assert left_s > 0, f"held by {set(self.history[-1][1])} and not by {holders} after {timeout_s:g} s"
                self._changed.wait(left_s)
            return self.history[-1][0]

    def seconds(self, count: int, *, since: float = 0.0) -> float:
        """For how long since a moment exactly so many nodes held it."""
        return sum(end - begin for begin, end, holders in self.spans(since) if len(holders) == count)

    def spans(self, since: float) -> Iterator[tuple[float, float, frozenset[str]]]:
        """From, until and who, of each stretch since a moment."""
        with self._changed:
            history = list(self.history)
        ends = [at for at, _ in history[1:]] + [time.monotonic()]
        for (begin, holders), end in zip(history, ends, strict=True):
            if end > since:
                yield max(begin, since), end, holders

    def _hear_for_ever(self) -> None:
        while not self._over.is_set():
            for key, _ in self._selector.select(0.1):
                assert isinstance(key.fileobj, socket.socket)
                self._hear(key.fileobj, key.data)

    def _hear(self, one: socket.socket, node: str) -> None:
        try:
            datagram = one.recv(1 << 16)
        except OSError:  # overflow: the truth is looked up
            self._now[node] = self._look(node)
        else:
            for notice in notices(datagram):
                if isinstance(notice.what, AddressFacts) and notice.what.address in self._addresses:
                    address = notice.what.address
                    self._now[node] = self._now[node] - {address} if notice.gone else self._now[node] | {address}
        self._note(time.monotonic())

    def _look(self, node: str) -> frozenset[object]:
        return frozenset(one.address for one in self._kernels[node].addresses()) & self._addresses

    def _note(self, now: float) -> None:
        holders = frozenset(node for node, found in self._now.items() if found)
        with self._changed:
            if not self.history or self.history[-1][1] != holders:
                self.history.append((now, holders))
                self._changed.notify_all()
