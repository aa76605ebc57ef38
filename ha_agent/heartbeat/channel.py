"""Beats out and in on all paths: seals, sends, admits, and says what each proves. No policy.

One for one boot of the agent, used from one event loop. ``on_heard`` gets each beat that was let in with what it is
worth, ``on_rejected`` each that was dropped; both are called in the order in which datagrams were read and must not
block. Times are monotonic.
"""

from __future__ import annotations

import select
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

from ha_agent.arbiter.values import Beat
from ha_agent.heartbeat.beat import Boot, Envelope, PathId, Sequence, Told
from ha_agent.heartbeat.datagram import PathSocket, PathSpec, PathState, Received
from ha_agent.heartbeat.detector import Detector, Verdict, Way, WayChanged
from ha_agent.heartbeat.seal import Gate, Heard, Pair, Rejected, Rejection, Sealer


@dataclass(frozen=True, slots=True, kw_only=True)
class PathLook:
    """How one path is doing."""

    name: str
    way: Way
    heard_age_s: float | None  # since a beat that is life; None: never
    heard_there_age_s: float | None  # since I sent the newest beat that the peer heard on it; None: never
    state: PathState
    beats: int  # that were life, since the start


class Channel:
    """See the module."""

    def __init__(
        self,
        pair: Pair,
        specs: tuple[PathSpec, ...],
        *,
        boot: Boot,
        timeout_s: float,
        on_heard: Callable[[Heard, Verdict], None],
        on_rejected: Callable[[Rejected], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._sealer = Sealer(pair)
        self._boot = boot
        self._clock = clock
        self._on_heard = on_heard
        self._on_rejected = on_rejected
        self._gate = Gate(pair, own_boot=boot)
        self._sockets = tuple(PathSocket(spec, self._received, clock=clock) for spec in specs)
        self._paths = tuple(spec.path for spec in specs)
        self._sequence = Sequence(0)
        self._detector = Detector(boot=boot, paths=self._paths, timeout_s=timeout_s, started_at=clock())

    def open(self) -> None:
        """Opens every path's socket in the running loop. Raises OperatorNeeded."""
        for socket in self._sockets:
            socket.open()

    def close(self) -> None:
        """Closes them."""
        for socket in self._sockets:
            socket.close()

    def send(self, beat: Beat, told: Told) -> None:
        """The same beat on every path, each with its own number in the envelope."""
        now = self._clock()
        self._sequence = Sequence(self._sequence + 1)
        # Before it leaves: evidence may be dated too early, never too late.
        self._detector.sending(self._sequence, now=now)
        envelope = Envelope(
            boot=self._boot,
            sequence=self._sequence,
            path=self._paths[0],
            echo_boot=self._gate.peer_boot,
            echoes=self._gate.echoes(now),
        )
        for socket, datagram in zip(self._sockets, self._sealer.seal(envelope, beat, told, self._paths), strict=True):
            socket.send(datagram)

    def drain(self) -> None:
        """Takes in all that lies in the sockets now: for who may have stalled."""
        asked = select.poll()
        for socket in self._sockets:
            if socket.descriptor is not None:
                asked.register(socket.descriptor, select.POLLIN)
        waiting = {descriptor for descriptor, _ in asked.poll(0)}
        for socket in self._sockets:
            if socket.descriptor in waiting:
                self._received(socket.drain())

    def look(self) -> tuple[WayChanged, ...]:
        """The paths whose state has changed since the last look."""
        return self._detector.look(now=self._clock())

    def paths(self) -> tuple[PathLook, ...]:
        """Every path as it is now."""
        now = self._clock()
        return tuple(self._look_at(socket, now) for socket in self._sockets)

    def name(self, path: PathId) -> str:
        """What the settings call it."""
        return next(socket.spec.name for socket in self._sockets if socket.spec.path == path)

    @property
    def rejected(self) -> Counter[Rejection]:
        """How many datagrams were dropped, by reason, since the start."""
        return self._gate.rejected

    def standing(self) -> frozenset[Rejection]:
        """The kinds of rejection that came lately."""
        return self._gate.standing(self._clock())

    def _look_at(self, socket: PathSocket, now: float) -> PathLook:
        known = self._detector.known[socket.spec.path]
        return PathLook(
            name=socket.spec.name,
            way=known.way,
            heard_age_s=_age(now, known.heard_at),
            heard_there_age_s=_age(now, known.heard_there_at),
            state=socket.state,
            beats=known.beats,
        )

    def _received(self, received: list[Received]) -> None:
        for one in received:
            found = self._gate.admit(one.data, path=one.path, source=one.source, now=one.at)
            if isinstance(found, Rejected):
                self._on_rejected(found)
            else:
                self._on_heard(found, self._detector.heard(found.envelope, now=one.at))


def _age(now: float, at: float) -> float | None:
    return None if at == float("-inf") else now - at
