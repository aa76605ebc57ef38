"""Asks the LAN who holds an address (ARP, neighbour discovery), and hears those who claim one. No policy.

One ``Neighbours`` for one interface and one family. Questions run side by side; every claim that is heard, asked for
or not, goes to ``on_claim`` too, own ones excepted. Times are monotonic: ``asked_at`` is when the first question of a
call left, so that an answer that was read late is dated early. An answer's MAC proves nothing; it is for people.

Both kinds of question are sent for IPv4: a probe (sender 0.0.0.0, RFC 5227), which everybody must answer who holds the
address, and, where this node's own address is known, an ordinary request: Linux answers a probe for what it holds
itself, but by proxy it answers only requests.
"""

from __future__ import annotations

import asyncio
import ipaddress
import time
from collections.abc import Callable
from dataclasses import dataclass

from ha_agent.cluster_ip import frames
from ha_agent.cluster_ip.frames import Claim
from ha_agent.cluster_ip.netlink import Address, Kernel, LinkFacts, NeighbourFacts
from ha_agent.cluster_ip.wire import Wire

QUESTIONS = 3
WAIT_S = 0.1
ANSWERS_MAX = 8
"""Different holders of one address that are remembered in one call; more are as bad as eight."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """What came of a question. ``sent`` False: it could not be asked, which proves nothing."""

    address: Address
    asked_at: float
    sent: bool
    answered_at: float | None  # when the first answer was read
    macs: tuple[str, ...]  # in the order in which they answered; none: nobody did

    @property
    def silent(self) -> bool:
        """Asked, and answered by nobody."""
        return self.sent and not self.macs

    @property
    def reply_s(self) -> float | None:
        """From the first question to the first answer."""
        return None if self.answered_at is None else self.answered_at - self.asked_at


class _Question:
    """Collects the answers to one call."""

    def __init__(self) -> None:
        self.answered = asyncio.Event()
        self.answered_at: float | None = None
        self.macs: list[str] = []

    def heard(self, claim: Claim, now: float) -> None:
        if claim.mac not in self.macs and len(self.macs) < ANSWERS_MAX:
            self.macs.append(claim.mac)
        if self.answered_at is None:
            self.answered_at = now
        self.answered.set()


class Neighbours:
    """Who is there on one interface. IPv4 or IPv6, as ``own`` or ``ipv6`` says."""

    def __init__(
        self,
        interface: str,
        *,
        ipv6: bool = False,
        on_claim: Callable[[Claim, float], None] | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.interface = interface
        self._ipv6 = ipv6
        self._on_claim = on_claim
        self._clock = clock
        self._kernel = Kernel()
        self._wire = Wire(interface, ipv6=ipv6, on_frames=self._on_frames)
        self._questions: dict[Address, list[_Question]] = {}
        self._mac = ""

    def open(self) -> bool:
        """Hears claims from now on. False: no such interface yet (``ask`` tries again). Raises OperatorNeeded."""
        self._link()
        return self._wire.open()

    def close(self) -> None:
        """Hears nothing more."""
        self._wire.close()
        self._kernel.close()

    async def probe(self, address: Address, *, own: Address | None = None, count: int = QUESTIONS) -> Asked:
        """Is anybody there? So many questions, 100 ms apart; ends early, after the wait in which somebody answered."""
        return await self.ask(address, own=own, count=count, probe=True)

    async def ask(
        self, address: Address, *, own: Address | None, count: int = 1, wait_s: float = WAIT_S, probe: bool = False
    ) -> Asked:
        """Asks for ``address``. ``probe``: also with no address of our own. ``own`` None: only so."""
        question = _Question()
        self._questions.setdefault(address, []).append(question)
        asked_at = self._clock()
        sent = False
        try:
            for _ in range(count):
                sent = self._send(address, own, probe=probe) or sent
                await self._wait(question, wait_s, linger=probe)
                if question.macs:
                    break
        finally:
            self._forget(address, question)
        return Asked(
            address=address,
            asked_at=asked_at,
            sent=sent,
            answered_at=question.answered_at,
            macs=tuple(question.macs),
        )

    def known(self) -> tuple[NeighbourFacts, ...]:
        """Whom the kernel reached on this interface lately: worth asking when there is no gateway."""
        link = self._link()
        if link is None:
            return ()
        family = 10 if self._ipv6 else 2
        return self._kernel.neighbours(link.index, family)

    async def _wait(self, question: _Question, wait_s: float, *, linger: bool) -> None:
        # A probe waits to the end although somebody answered: a second holder is worth knowing by name.
        if linger:
            await asyncio.sleep(wait_s)
        else:
            try:
                async with asyncio.timeout(wait_s):
                    await question.answered.wait()
            except TimeoutError:
                pass
        self._on_frames(self._wire.drain())  # this process may have been late, the answer may lie here unread

    def _send(self, address: Address, own: Address | None, *, probe: bool) -> bool:
        link = self._link()
        if link is None or not link.usable:
            return False
        sources: list[Address | None] = [own] if own is not None else []
        if probe or own is None:
            sources.append(None)
        sent = [self._wire.send(_question(address, own=source, mac=link.mac)) for source in sources]
        return all(sent)

    def _link(self) -> LinkFacts | None:
        link = self._kernel.link(self.interface)
        if link is not None and len(link.mac) == 17:
            self._mac = link.mac
            return link
        return None

    def _on_frames(self, received: list[bytes]) -> None:
        now = self._clock()
        for frame in received:
            claim = frames.claim(frame)
            if claim is None or self._mac in {claim.mac, claim.sender}:
                continue
            for question in self._questions.get(claim.address, ()):
                question.heard(claim, now)
            if self._on_claim is not None:
                self._on_claim(claim, now)

    def _forget(self, address: Address, question: _Question) -> None:
        left = self._questions[address]
        left.remove(question)
        if not left:
            del self._questions[address]


def _question(address: Address, *, own: Address | None, mac: str) -> bytes:
    if isinstance(address, ipaddress.IPv4Address):
        assert own is None or isinstance(own, ipaddress.IPv4Address), own
        return frames.ask_ipv4(address, mac=mac, own=own)
    assert own is None or isinstance(own, ipaddress.IPv6Address), own
    return frames.ask_ipv6(address, mac=mac, own=own)
