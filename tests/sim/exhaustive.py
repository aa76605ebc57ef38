"""Breadth-first exploration of two arbiters and a small network: every order of faults and mends, up to a depth.

The same ``begin`` and ``step`` as everywhere. A *round* is a quantum of time, in which each node that runs is told
what its kernel and its network know, ticks, and says its beats. What the rounds differ in is the adversary's move:
nothing, a fault while there are faults left, or a mend (those cost nothing). Faults: the beats of one direction or of
both lost or held back for a round, the cable cut, a LAN link down, the gateway gone, a firewall that drops one or
both directions, an agent killed, a machine without power, an agent frozen, or frozen between a decision and the call
that performs it, a fault that a node sees in itself, a switch by the administrator.

Places that differ only in how long ago something happened that does not matter any more are one (``key``). Asserted at
every step: S1 (two kernels never have the address), S2 (epochs are stored before use, used once, never shrink), S4
(unsound data never serves). Not explored: a firewall together with a broken LAN link; counted and not followed: two
behind a firewall whose separate waits end at one instant. The design covers neither (holders.py).
Clocks do not drift, and the kernel is as late as it can be. Seconds.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields, replace
from operator import attrgetter
from typing import Any

from ha_agent.arbiter.state import NEVER, Book, Settings, State
from ha_agent.arbiter.values import NO_EPOCH, Beat, Epoch, Identity
from tests.sim.node import STATIONS, mac_of
from tests.sim.rounds import FAULTS, QUANTUM_S, Coincidence, Found, Machine, Place, Round, Said
from tests.sim.world import FORMED

FORGOTTEN_S = 9.0
"""Longer ago than anything that the table compares."""


# -- which places are one ---------------------------------------------

BEAT_PARTS = attrgetter(*(one.name for one in fields(Beat) if one.name not in {"switches", "maintenance_left_s"}))
TIMES = tuple(one.name for one in fields(State) if one.type == "float" and not one.name.endswith("_s"))
LEFT_OUT = {*TIMES, "settings", "switches", "peer", "maintenance_serial", "boot_wait_s", "raised"}
REST = attrgetter(*(one.name for one in fields(State) if one.name not in LEFT_OUT))
PAST = attrgetter(*TIMES)


def _age(now: float, at: float) -> float:
    return NEVER if at < now - FORGOTTEN_S else at - now


def _state_key(s: State | None, now: float) -> tuple[Any, ...] | None:
    if s is None:
        return None
    peer = BEAT_PARTS(s.peer) if s.peer is not None else None
    return (*REST(s), *(_age(now, at) for at in PAST(s)), peer)


def _said_key(said: Said, now: float) -> tuple[Any, ...]:
    return (BEAT_PARTS(said.beat), said.boot, said.echo_boot, _age(now, said.echoed_at))


def key(place: Place) -> int:
    """Equal for places from which the same can follow."""
    now = place.now
    machines = tuple(
        (
            _state_key(machine.agent, now),
            machine.disk,
            machine.boot,
            machine.kernel_fresh,
            machine.lease_end and machine.lease_end - now,
            machine.frozen,
            machine.frozen_next,
            tuple(map(repr, machine.undone)),
            tuple(map(repr, machine.waiting)),
            machine.heard_boot,
            _age(now, machine.heard_sent_at),
            machine.data,
            machine.sound,
        )
        for machine in place.machines
    )
    held = tuple(tuple(_said_key(said, now) for said in one) for one in place.held)
    return hash(
        (
            machines, held, place.links, place.cable, place.gateway, place.filtered, place.ever_filtered,
            place.ever_cut, place.sick, place.faults, place.used,
        )
    )  # fmt: skip


# -- exploration ---------------------------------------------


def moves(place: Place) -> Iterator[str]:
    """What the adversary may do."""
    yield ""
    if not place.cable:
        yield "mend cable"
    if not place.gateway:
        yield "mend gateway"
    for number in (0, 1):
        machine = place.machines[number]
        if not place.links[number]:
            yield f"mend link {number}"
        if place.filtered[number]:
            yield f"mend filter {number}"
        if place.sick[number]:
            yield f"mend sick {number}"
        if machine.frozen:
            yield f"thaw {number}"
        if machine.agent is None:
            yield f"start {number}"
    if place.faults:
        yield from (fault for fault in FAULTS if _possible(place, fault))


def _possible(place: Place, fault: str) -> bool:
    word, _, number = fault.rpartition(" ")
    if word == "lose":
        return True
    if word == "filter":
        return not place.ever_filtered and not place.ever_cut
    if not word:
        return {"cable": place.cable, "gateway": place.gateway, "switch": True}[fault]
    machine = place.machines[int(number)]
    runs = machine.agent is not None and not machine.frozen and not machine.frozen_next
    if word == "link":
        return place.links[int(number)] and not place.ever_filtered
    if word == "sick":
        return not place.sick[int(number)]
    if word in {"kill", "power"}:
        return machine.agent is not None
    return runs


@dataclass(frozen=True, slots=True, kw_only=True)
class Explored:
    """How far it went."""

    depth: int
    places: int
    rounds: int
    instants: int  # rounds that ended in a coincidence and led no further

    def __str__(self) -> str:
        reach = f"depth {self.depth} ({self.depth * QUANTUM_S:g} s)"
        return f"{reach}, {self.places} places, {self.rounds} rounds, {self.instants} instants"


def explore(start: Place, settings: tuple[Settings, Settings], *, depth: int, faults: int) -> Explored:
    """All that can follow within so many rounds with so many faults; raises ``Found``."""
    start = replace(start, faults=faults)
    seen = {key(start)}
    frontier = deque([start])
    rounds = instants = 0
    for _ in range(depth):
        following: deque[Place] = deque()
        while frontier:
            place = frontier.popleft()
            for move in moves(place):
                rounds += 1
                try:
                    after = Round(place, move, settings).play()
                except Coincidence:
                    instants += 1
                    continue
                except AssertionError as error:
                    path = ", ".join(one or "-" for one in (*place.moves, move))
                    raise Found(f"{error}; moves: {path}") from error
                mark = key(after)
                if mark not in seen:
                    seen.add(mark)
                    following.append(after)
        frontier = following
    return Explored(depth=depth, places=len(seen), rounds=rounds, instants=instants)


# -- where it begins ---------------------------------------------


def settings_of(*, timeout_s: float = 3.0) -> tuple[Settings, Settings]:
    """Two nodes that fit together."""
    first, second = (
        Settings(
            identity=Identity(station=STATIONS[number]),
            timeout_s=timeout_s,
            beat_s=QUANTUM_S,
            peer_mac=mac_of(1 - number),
            boot_wait_s=2.0,
            boot_wait_unsure_s=3.0,
        )
        for number in (0, 1)
    )
    return first, second


def booting(settings: tuple[Settings, Settings], **second: Any) -> Place:
    """Both machines are switched on at one moment."""
    place = Place(now=100.0, faults=0, machines=(Machine(number=0), replace(Machine(number=1), **second)))
    for number in (0, 1):
        place = Round(place, f"start {number}", settings).play()
    return replace(place, moves=())


def standing(settings: tuple[Settings, Settings], active: int = 0) -> Place:
    """One is Active, the other its ready Standby."""
    place = booting(
        settings, **({"data": Epoch(3), "disk": replace(FORMED, data=Epoch(3), promised=Epoch(3))} if active else {})
    )
    for _ in range(20):
        place = Round(place, "", settings).play()
    assert [machine.lease_end is not None for machine in place.machines] == [active == 0, active == 1]
    return replace(place, moves=())


def unsound(settings: tuple[Settings, Settings]) -> Place:
    """Both boot, and the second was never synced."""
    return booting(settings, sound=False, data=NO_EPOCH, disk=Book(promised=Epoch(2)))


STARTS: dict[str, Callable[[tuple[Settings, Settings]], Place]] = {
    "the Primary serves": standing,
    "the Secondary serves": lambda settings: standing(settings, active=1),
    "both boot": booting,
    "both boot, one was never synced": unsound,
}


def report(depth: int, faults: int) -> int:
    """Explore from everywhere and print how far it went; 1 if an invariant breaks."""
    found = 0
    for name, start in STARTS.items():
        settings = settings_of()
        try:
            explored = explore(start(settings), settings, depth=depth, faults=faults)
        except Found as broken:
            found = 1
            print(f"FOUND {name}: {broken}", flush=True)
        else:
            print(f"{name}: {faults} faults, {explored}", flush=True)
    return found
