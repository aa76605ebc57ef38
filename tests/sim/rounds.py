"""One round of the exhaustive exploration: two machines with real arbiters, a small network, and the adversary's move.

Immutable from outside: a round makes a new ``Place`` of an old one, or raises ``Found``. Which moves there are, and
where they lead, is exhaustive.py's. Seconds.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, fields
from typing import Any

from ha_agent.arbiter import actions as act
from ha_agent.arbiter import events as ev
from ha_agent.arbiter.beat import beat_of
from ha_agent.arbiter.state import Book, Engine, Fault, Settings, State
from ha_agent.arbiter.step import begin, step
from ha_agent.arbiter.values import SERVING, Beat, Digest, Epoch
from ha_agent.cluster_ip import plan
from tests.sim.holders import INSTANT_S
from tests.sim.node import mac_of
from tests.sim.world import FORMED, World

QUANTUM_S = 0.5
KERNEL_SLOW_S = 0.9
ECHOES_MAX = 6  # how often the nodes answer each other within a round
UNHEALTHY = frozenset({Fault(cause="process:asterisk", switches=True)})
UNSENT = -1.0
LOST = {"lose 0": (True, False), "lose 1": (False, True), "lose both": (True, True)}  # by sender


class Found(AssertionError):
    """An invariant does not hold; the text tells the moves that lead there."""


class Coincidence(Exception):
    """Two that were kept from hearing each other by a firewall claim at one instant: not covered (holders.py)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Said:
    """A beat under way, with what its envelope proves."""

    beat: Beat
    boot: int
    echo_boot: int
    echoed_at: float  # when the receiver sent the newest beat that the sender had heard


@dataclass(frozen=True, slots=True, kw_only=True)
class Machine:
    """One node: disk, kernel, and an agent that may be dead or frozen."""

    number: int
    agent: State | None = None
    disk: Book = FORMED
    boot: int = 1
    kernel_fresh: bool = True  # the agent has not run since the kernel booted
    lease_end: float | None = None
    frozen: bool = False
    frozen_next: bool = False  # before the next deed that touches the address
    undone: tuple[act.Action, ...] = ()
    waiting: tuple[tuple[type, tuple[tuple[str, Any], ...]], ...] = ()
    heard_boot: int = 0  # of the peer
    heard_sent_at: float = UNSENT  # when the peer sent the newest beat that came
    data: Epoch = FORMED.data
    sound: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """Everything there is, at one moment."""

    now: float
    machines: tuple[Machine, Machine]
    faults: int  # that may still come
    links: tuple[bool, bool] = (True, True)
    cable: bool = True
    gateway: bool = True
    filtered: tuple[bool, bool] = (False, False)  # by sender
    ever_filtered: bool = False
    ever_cut: bool = False  # a LAN link was down
    held: tuple[tuple[Said, ...], tuple[Said, ...]] = ((), ())  # by sender
    sick: tuple[bool, bool] = (False, False)
    used: frozenset[int] = frozenset()  # epochs
    moves: tuple[str, ...] = field(default=(), compare=False)


FAULTS = (
    "lose 0", "lose 1", "lose both", "cable", "link 0", "link 1", "gateway", "filter 0", "filter 1", "filter both",
    "hold 0", "hold 1", "kill 0", "kill 1", "power 0", "power 1", "freeze 0", "freeze 1", "freeze between 0",
    "freeze between 1", "sick 0", "switch",
)  # fmt: skip


class Round:
    """One round from one place: mutable while it is played."""

    def __init__(self, place: Place, move: str, settings: tuple[Settings, Settings]) -> None:
        self.place = place
        self.settings = settings
        self.now = place.now + QUANTUM_S
        self.machines = [dict(_parts(machine)) for machine in place.machines]
        self.links = list(place.links)
        self.cable = place.cable
        self.gateway = place.gateway
        self.filtered = list(place.filtered)
        self.held: list[tuple[Said, ...]] = list(place.held)
        self.holding_back = [False, False]
        self.sick = list(place.sick)
        self.lost = LOST.get(move, (False, False))
        self.used = place.used
        self.out: list[list[Said]] = [[], []]
        self.move = move
        self.requested: list[tuple[int, type]] = []

    def play(self) -> Place:
        """What comes of it."""
        self._break_or_mend()
        for number in (0, 1):
            self._kernel(number)
        for number in (0, 1):
            self._turn(number)
        for number, kind in self.requested:
            self.tell(number, kind)
        self._exchange()
        place = self.place
        return Place(
            now=self.now,
            machines=(Machine(**self.machines[0]), Machine(**self.machines[1])),
            links=(self.links[0], self.links[1]),
            cable=self.cable,
            gateway=self.gateway,
            filtered=(self.filtered[0], self.filtered[1]),
            ever_filtered=place.ever_filtered or any(self.filtered),
            ever_cut=place.ever_cut or not all(self.links),
            held=(self.held[0], self.held[1]),
            sick=(self.sick[0], self.sick[1]),
            faults=place.faults - (self.move in FAULTS),
            used=self.used,
            moves=(*place.moves, self.move),
        )

    # -- the adversary ---------------------------------------------

    def _break_or_mend(self) -> None:
        word, _, number = self.move.rpartition(" ")
        if self.move in {"cable", "mend cable"}:
            self.cable = self.move != "cable"
        elif self.move in {"gateway", "mend gateway"}:
            self.gateway = self.move != "gateway"
        elif self.move == "filter both":
            self.filtered = [True, True]
        elif self.move == "switch":
            self.requested += [(number, ev.SwitchRequested) for number in (0, 1)]
        elif word in HANDS:
            HANDS[word](self, int(number))

    def _link(self, number: int) -> None:
        self.links[number] = not self.links[number]
        self.tell(number, ev.LinkChanged, up=self.links[number])

    def _filter(self, number: int) -> None:
        self.filtered[number] = not self.filtered[number]

    def _hold(self, number: int) -> None:
        self.holding_back[number] = True

    def _sick(self, number: int) -> None:
        self.sick[number] = not self.sick[number]
        self.tell(number, ev.HealthReported, faults=UNHEALTHY if self.sick[number] else frozenset())

    def _kill(self, number: int) -> None:
        self.machines[number].update(
            agent=None, frozen=False, frozen_next=False, undone=(), waiting=(), heard_boot=0, heard_sent_at=UNSENT
        )

    def _power(self, number: int) -> None:
        self._kill(number)
        self.machines[number].update(lease_end=None, kernel_fresh=True)

    def _freeze(self, number: int) -> None:
        self.machines[number]["frozen"] = True

    def _freeze_between(self, number: int) -> None:
        self.machines[number]["frozen_next"] = True

    def _thaw(self, number: int) -> None:
        machine = self.machines[number]
        undone, waiting = machine["undone"], machine["waiting"]
        machine.update(frozen=False, undone=(), waiting=())
        self._perform(number, undone)
        for kind, facts in waiting:
            self.tell(number, kind, **dict(facts))

    def _start(self, number: int) -> None:
        machine = self.machines[number]
        lease_end = machine["lease_end"]
        machine["boot"] += 1
        machine["agent"], actions = begin(
            self.settings[number],
            machine["disk"],
            now=self.now,
            boot=machine["boot"],
            link_up=self.links[number],
            address_present=lease_end is not None,
            address_left_s=max(0.0, lease_end - self.now) if lease_end is not None else 0.0,
            same_kernel_boot=not machine["kernel_fresh"],
        )
        machine["kernel_fresh"] = False
        self._perform(number, actions)
        if self.sick[number]:
            self.tell(number, ev.HealthReported, faults=UNHEALTHY)

    # -- the node ---------------------------------------------

    def tell(self, number: int, kind: type, **facts: Any) -> None:
        """One event; a frozen agent reads it later, a dead one never."""
        machine = self.machines[number]
        agent = machine["agent"]
        if agent is None:
            return
        if machine["frozen"]:
            machine["waiting"] = (*machine["waiting"], (kind, tuple(facts.items())))
            return
        machine["agent"], actions = step(agent, kind(now=self.now, **facts), World.table)
        self._perform(number, actions)

    def _kernel(self, number: int) -> None:
        lease_end = self.machines[number]["lease_end"]
        if lease_end is not None and self.now >= lease_end:
            self.machines[number]["lease_end"] = None
            self.tell(number, ev.AddressGone)

    def _turn(self, number: int) -> None:
        machine = self.machines[number]
        if machine["agent"] is None or machine["frozen"]:
            return
        if self.gateway and self.links[number]:
            self.tell(number, ev.LanAnswered, asked_at=self.now, gateway=True)
        self._engine(number)
        self.tell(number, ev.Tick)
        self.say(number)

    def _engine(self, number: int) -> None:
        machine, peer = self.machines[number], self.machines[1 - number]
        agent, other = machine["agent"], peer["agent"]
        if agent.phase in SERVING:
            machine["data"] = agent.epoch
        elif other is not None and other.phase in SERVING and self._carries(number) and self._carries(1 - number):
            machine.update(data=peer["data"], sound=peer["sound"])
        data = machine["data"]
        report = Engine(data=data, sound=machine["sound"], current=True, progress=0, digest=Digest(str(data)))
        if report != agent.engine:
            self.tell(number, ev.EngineReported, engine=report)

    def _perform(self, number: int, actions: tuple[act.Action, ...]) -> None:
        machine = self.machines[number]
        answers: list[tuple[type, dict[str, Any]]] = []
        for at, action in enumerate(actions):
            kind = type(action)
            if machine["frozen_next"] and kind in {act.AddAddress, act.RenewAddress, act.RemoveAddress}:
                machine.update(frozen=True, frozen_next=False, undone=actions[at:])
                break
            if kind in DEEDS:
                answer = DEEDS[kind](self, number, action)
                if answer is not None:
                    answers.append(answer)
        for kind, facts in answers:
            self.tell(number, kind, **facts)

    def _store(self, number: int, action: act.StoreBook) -> tuple[type, dict[str, Any]]:
        disk = self.machines[number]["disk"]
        if action.book.promised < disk.promised or action.book.served < disk.served:
            raise Found(f"S2: an epoch shrinks: {disk} -> {action.book}")
        self.machines[number]["disk"] = action.book
        return ev.BookStored, {"book": action.book}

    def _probe(self, number: int, action: act.Probe) -> tuple[type, dict[str, Any]]:
        held = self.machines[1 - number]["lease_end"] is not None and all(self.links)
        by = mac_of(1 - number) if held else None
        return ev.ProbeDone, {"asked_at": action.asked_at, "answered_by": by, "sent": self.links[number]}

    def _add(self, number: int, action: act.AddAddress) -> tuple[type, dict[str, Any]]:
        machine = self.machines[number]
        if not plan.may_call(now=self.now, not_after=action.not_after):
            return ev.AddressFailed, {}
        if min(machine["disk"].served, machine["disk"].promised) < action.epoch:
            raise Found(f"S2: epoch {action.epoch} is used and not stored")
        if action.epoch in self.used:
            raise Found(f"S2: epoch {action.epoch} is used twice")
        if not machine["sound"]:
            raise Found(f"S4: node {number} serves with unsound data")
        self.used |= {action.epoch}
        self._lease(number, action.valid_until)
        return ev.AddressAdded, {}

    def _renew(self, number: int, action: act.RenewAddress) -> tuple[type, dict[str, Any]] | None:
        machine = self.machines[number]
        if machine["lease_end"] is None or not plan.may_call(now=self.now, not_after=action.valid_until):
            machine["lease_end"] = None
            return ev.AddressGone, {}
        self._lease(number, action.valid_until)
        return None

    def _remove(self, number: int, action: act.RemoveAddress) -> tuple[type, dict[str, Any]]:
        self.machines[number]["lease_end"] = None
        return ev.AddressGone, {}

    def _lease(self, number: int, valid_until: float) -> None:
        self.machines[number]["lease_end"] = self.now + plan.valid_s(valid_until - self.now) + KERNEL_SLOW_S
        other = self.machines[1 - number]
        if other["lease_end"] is None:
            return
        if self.place.ever_filtered and other["agent"] is not None and self.now - other["agent"].since <= INSTANT_S:
            raise Coincidence
        raise Found("S1: two kernels have the address")

    def _quiesce(self, number: int, action: act.Quiesce) -> tuple[type, dict[str, Any]]:
        return ev.Quiesced, {"digest": Digest(str(self.machines[number]["data"]))}

    def say(self, number: int, action: act.SendBeat | None = None) -> None:
        """A beat leaves."""
        machine = self.machines[number]
        agent = machine["agent"]
        if agent is None or len(self.out[number]) >= ECHOES_MAX:
            return
        beat = beat_of(agent, self.now)
        if max(beat.promised, beat.candidate, beat.consent, beat.epoch) > machine["disk"].promised:
            raise Found(f"S2: node {number} says what is not stored")
        self.out[number].append(
            Said(beat=beat, boot=machine["boot"], echo_boot=machine["heard_boot"], echoed_at=machine["heard_sent_at"])
        )

    # -- the network ---------------------------------------------

    def _carries(self, sender: int) -> bool:
        return not self.filtered[sender] and (self.cable or all(self.links))

    def _exchange(self) -> None:
        """What was held back comes first, then what is said now and what is answered to it."""
        for sender in (0, 1):
            for said in self.held[sender]:
                self._arrives(1 - sender, said, sent_at=self.now - QUANTUM_S)
            self.held[sender] = ()
        done = [0, 0]
        while any(done[sender] < len(self.out[sender]) for sender in (0, 1)):
            for sender in (0, 1):
                if done[sender] < len(self.out[sender]):
                    said = self.out[sender][done[sender]]
                    done[sender] += 1
                    if self.lost[sender] or not self._carries(sender):
                        continue
                    if self.holding_back[sender]:
                        self.held[sender] = (*self.held[sender], said)
                    else:
                        self._arrives(1 - sender, said, sent_at=self.now)

    def _arrives(self, number: int, said: Said, *, sent_at: float) -> None:
        """What the detector of the heartbeat does: life only if my present boot is echoed."""
        machine = self.machines[number]
        if machine["agent"] is None:
            return
        if not machine["frozen"] and said.boot >= machine["heard_boot"]:
            machine.update(heard_boot=said.boot, heard_sent_at=sent_at)
        if said.echo_boot == machine["boot"] and said.boot >= machine["heard_boot"]:
            self.tell(number, ev.BeatHeard, beat=said.beat, echoed_at=said.echoed_at)


HANDS = {
    "link": Round._link,
    "mend link": Round._link,
    "filter": Round._filter,
    "mend filter": Round._filter,
    "hold": Round._hold,
    "sick": Round._sick,
    "mend sick": Round._sick,
    "kill": Round._kill,
    "power": Round._power,
    "freeze": Round._freeze,
    "freeze between": Round._freeze_between,
    "thaw": Round._thaw,
    "start": Round._start,
}

DEEDS: dict[type, Any] = {
    act.StoreBook: Round._store,
    act.Probe: Round._probe,
    act.AddAddress: Round._add,
    act.RenewAddress: Round._renew,
    act.RemoveAddress: Round._remove,
    act.SendBeat: Round.say,
    act.Quiesce: Round._quiesce,
}


def _parts(machine: Machine) -> Iterator[tuple[str, Any]]:
    return ((name, getattr(machine, name)) for name in MACHINE_PARTS)


MACHINE_PARTS = tuple(one.name for one in fields(Machine))
