"""A client of the cluster IP: asks every few milliseconds, notes when it was answered, and tells how long it was not.

Two kinds of question: a UDP datagram that is echoed, and ARP. A thread of its own; times are monotonic seconds. Nothing
of the program that is measured is imported.
"""

from __future__ import annotations

import itertools
import socket
import struct
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Final, Protocol

ASK_EVERY_S: Final = 0.01
ANSWERS_MAX: Final = 100_000  # of one question; more are not kept
ETH_P_ARP: Final = 0x0806
BROADCAST: Final = b"\xff" * 6
ARP_HEAD: Final = struct.pack("!HHBBH", 1, 0x0800, 6, 4, 1)
ARP_REPLY: Final = 2


class Question(Protocol):
    """One way of asking."""

    name: str

    def ask(self) -> None:
        """Sends the question; whether it arrives is the matter."""

    def answers(self) -> int:
        """How many answers have come since the last look."""

    def close(self) -> None:
        """Lets go of the socket."""


class UdpEcho:
    """A datagram that whoever holds the address sends back."""

    name = "udp"

    def __init__(self, address: str, port: int) -> None:
        self._socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK)
        self._place = (address, port)

    def ask(self) -> None:
        """See ``Question``."""
        with suppress(OSError):  # refused or unreachable: nobody is there
            self._socket.sendto(b"are you there?", self._place)

    def answers(self) -> int:
        """See ``Question``."""
        return _count(self._socket, lambda _data: True)

    def close(self) -> None:
        """See ``Question``."""
        self._socket.close()


class Arp:
    """Who has the address? Needs CAP_NET_RAW."""

    name = "arp"

    def __init__(self, interface: str, own: str, address: str) -> None:
        self._socket = socket.socket(socket.AF_PACKET, socket.SOCK_RAW | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK)
        self._socket.bind((interface, ETH_P_ARP))
        mac = self._socket.getsockname()[4]
        self._wanted = socket.inet_aton(address)
        head = BROADCAST + mac + struct.pack("!H", ETH_P_ARP)
        self._frame = head + ARP_HEAD + mac + socket.inet_aton(own) + bytes(6) + self._wanted

    def ask(self) -> None:
        """See ``Question``."""
        with suppress(OSError):
            self._socket.send(self._frame)

    def answers(self) -> int:
        """See ``Question``."""
        return _count(self._socket, self._is_answer)

    def close(self) -> None:
        """See ``Question``."""
        self._socket.close()

    def _is_answer(self, frame: bytes) -> bool:
        return len(frame) >= 42 and frame[20:22] == struct.pack("!H", ARP_REPLY) and frame[28:32] == self._wanted


@dataclass(frozen=True, slots=True, kw_only=True)
class Outage:
    """The longest silence after a moment."""

    last_answer: float
    first_answer: float
    answers: int  # all that came while the client ran

    @property
    def seconds(self) -> float:
        """Between the two answers."""
        return self.first_answer - self.last_answer


class Client:
    """Asks from ``start`` until ``close``."""

    def __init__(self, questions: Sequence[Question]) -> None:
        self._questions = questions
        self._answered: dict[str, list[float]] = {question.name: [] for question in questions}
        self._over = threading.Event()
        # A daemon: an interrupt within ``start`` must not leave a thread that the process waits for.
        self._thread = threading.Thread(target=self._ask_on, name="client", daemon=True)

    def start(self) -> None:
        """Begins to ask."""
        self._thread.start()

    def answered_since(self, name: str, moment: float) -> bool:
        """Whether this kind of question was answered after ``moment``."""
        return any(at > moment for at in self._answered[name][-1:])

    def outages(self, moment: float) -> dict[str, Outage]:
        """The longest silence that ended after ``moment``, of each kind of question that was answered again."""
        found = {}
        for name, answered in self._answered.items():
            pairs = [(late - early, early, late) for early, late in itertools.pairwise(answered)]
            after = [pair for pair in pairs if pair[2] > moment]
            if after:
                _, early, late = max(after)
                found[name] = Outage(last_answer=early, first_answer=late, answers=len(answered))
        return found

    def close(self) -> None:
        """Stops asking."""
        self._over.set()
        if self._thread.is_alive():
            self._thread.join()
        for question in self._questions:
            question.close()

    def _ask_on(self) -> None:
        while not self._over.wait(ASK_EVERY_S):
            for question in self._questions:
                answered = self._answered[question.name]
                if question.answers() and len(answered) < ANSWERS_MAX:
                    answered.append(time.monotonic())
                question.ask()


def _count(waiting: socket.socket, fits: _Fits) -> int:
    count = 0
    for _ in range(64):  # what comes faster than it is asked for is left for the next look
        try:
            count += fits(waiting.recv(2048))
        except BlockingIOError:
            return count
        except OSError:  # the refusal of an earlier question
            continue
    return count


class _Fits(Protocol):
    def __call__(self, data: bytes, /) -> bool: ...
