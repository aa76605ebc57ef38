"""One simulated machine: clock, kernel, disk, engine, and an agent that drives the real arbiter and detector.

The kernel keeps the lease whether the agent lives or not. The agent can be frozen anywhere, also between a decision
and its performance; what it is told meanwhile waits in its socket. Times of the world and of the node are kept apart.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from ha_agent.arbiter import actions as act
from ha_agent.arbiter import events as ev
from ha_agent.arbiter.beat import beat_of
from ha_agent.arbiter.state import Book, Fault, Settings, State
from ha_agent.arbiter.step import begin, step
from ha_agent.arbiter.values import Beat, Mac, Phase, Station
from ha_agent.cluster_ip import plan
from ha_agent.heartbeat.beat import Boot, Echo, Envelope, PathId, Sequence
from ha_agent.heartbeat.detector import Detector
from tests.sim.engine import EngineModel
from tests.sim.network import CABLE, FOREIGN, LAN

if TYPE_CHECKING:
    from tests.sim.world import World

SOCKET_MAX = 200
"""Datagrams that wait in the socket of a frozen agent."""

ASK_EVERY_S = 0.4
REPORT_EVERY_S = 1.0
PATHS = (PathId(CABLE), PathId(LAN))


class Node:
    """A machine of the pair."""

    def __init__(self, world: World, number: int, settings: Settings, book: Book, engine: EngineModel) -> None:
        self.world = world
        self.number = number
        self.settings = settings
        self.rng = world.rng
        self.disk = book  # durable
        self.boot = 1  # durable
        self.engine = engine
        self.services = False
        self.rate = 1.0 + self.rng.uniform(-2e-4, 2e-4)
        self.offset = self.rng.uniform(0, 1e6)
        self.read_at = 0.0
        self.machine_up = False
        self.paused = False
        self.paused_at = 0.0
        self.kernel_boot = 0
        self.agent_kernel_boot = -1  # the kernel boot in which the agent ran last
        self.holding = False  # the kernel has the address
        self.lease_end = 0.0  # world time
        self.lease_marks = 0  # tells one lease from a renewed one
        self.agent: State | None = None
        self.life = 0  # grows with each start and death of the agent
        self.frozen = False
        self.freeze_between = 0.0  # > 0: freeze for so long before the next deeds are done
        self.waiting: deque[Callable[[], None]] = deque()
        self.undone: list[act.Action] = []
        self.store_fails = False
        self.calls_fail = False
        self.store_s = 0.004
        self.written_at = 0.0
        self.faults: frozenset[Fault] = frozenset()
        self.resumed_at = -1e9
        self.asked_at = 0.0
        self.sequence = 0
        self.detector: Detector
        self.refused: list[act.Refused] = []
        self.alarms: list[act.Alarm] = []
        self.moves: list[act.Moved] = []
        self.would: list[act.WouldDo] = []

    # -- clock ---------------------------------------------

    def clock(self) -> float:
        """This node's monotonic clock."""
        at = self.paused_at if self.paused else self.world.now
        self.read_at = max(self.read_at, self.offset + at * self.rate)  # never back, not by a rounding error either
        return self.read_at

    def world_time(self, clock_s: float) -> float:
        """When this node's clock showed that, had the machine not been paused since."""
        return self.world.now - (self.clock() - clock_s)

    def paused_since(self, clock_s: float) -> bool:
        """Whether the whole machine stood still since its clock showed that."""
        return self.resumed_at >= self.world_time(clock_s)

    @property
    def peer(self) -> Node:
        """The other machine."""
        return self.world.nodes[1 - self.number]

    @property
    def phase(self) -> Phase | None:
        """Of the agent, if it runs."""
        return self.agent.phase if self.agent is not None else None

    @property
    def now_maintained(self) -> bool:
        """Whether the agent believes that somebody works on the pair."""
        return self.agent is not None and self.agent.maintenance_until > self.clock()

    @property
    def runs(self) -> bool:
        """Whether the agent can do anything now."""
        return self.agent is not None and not self.frozen and not self.paused

    # -- power, processes ---------------------------------------------

    def power_on(self) -> None:
        """The machine boots: a new kernel without the address."""
        if self.machine_up:
            return
        self.machine_up = True
        self.kernel_boot += 1
        self.engine.up = True
        self.engine.role = act.EngineRole.STANDBY
        self.engine.quiesced = False
        self.engine.reported = None
        self.services = False
        self.start_agent()

    def power_off(self) -> None:
        """Everything volatile is gone at once."""
        self.machine_up = False
        self.paused = False
        self.kill_agent()
        self._address(present=False)
        self.services = False
        self.engine.up = False

    def start_agent(self) -> None:
        """The agent starts: a new boot number, stored first."""
        if self.agent is not None or not self.machine_up:
            return
        self.life += 1
        self.boot += 1
        self.frozen = False
        self.detector = Detector(
            boot=Boot(self.boot), paths=PATHS, timeout_s=self.settings.timeout_s, started_at=self.clock()
        )
        self.sequence = 0
        self.engine.reported = None
        self.engine.attached_at = self.world.now + self.rng.uniform(0.05, 0.8)
        self.agent, actions = begin(
            self.settings,
            self.disk,
            now=self.clock(),
            boot=self.boot,
            link_up=self.world.network.lan_up(self.number),
            address_present=self.holding,
            address_left_s=max(0.0, self.lease_end - self.world.now),
            same_kernel_boot=self.agent_kernel_boot == self.kernel_boot,
        )
        self.agent_kernel_boot = self.kernel_boot
        self.world.seen(self, actions)
        self.perform(actions)
        if self.faults:
            self.tell(ev.HealthReported, faults=self.faults)
        self._later(self.rng.uniform(0, self.settings.beat_s), self._tick)

    def kill_agent(self) -> None:
        """The agent dies; the kernel keeps the lease until it lapses."""
        self.life += 1
        self.agent = None
        self.frozen = False
        self.freeze_between = 0.0
        self.waiting.clear()
        self.undone.clear()

    def freeze(self, *, between: bool, seconds: float) -> None:
        """Stop the agent's process, now or before it performs its next decision that touches the address."""
        if between:
            self.freeze_between = seconds
            return
        if self.agent is not None and not self.frozen:
            self.frozen = True
            life = self.life
            self.world.at(seconds, lambda: self.thaw() if life == self.life else None)

    def thaw(self) -> None:
        """The agent goes on where it was: undone deeds first, then what waits for it, in either order with a tick."""
        if not self.frozen:
            return
        if self.paused:
            self.world.at(0.05, self.thaw)
            return
        self.frozen = False
        undone, self.undone = self.undone, []
        self.perform(undone)
        if self.agent is not None and self.rng.random() < 0.5:
            self.tell(ev.Tick)
        while self.waiting and not self.frozen and self.agent is not None:
            self.waiting.popleft()()

    def pause(self, seconds: float) -> None:
        """The whole machine stands still, its clocks too (a paused virtual machine)."""
        if not self.machine_up or self.paused:
            return
        self.paused_at = self.world.now
        self.paused = True
        self.world.holders.changed(self)
        self.world.at(seconds, self.resume)

    def resume(self) -> None:
        """The machine goes on and does not know that time has passed."""
        if not self.paused:
            return
        gap = self.world.now - self.paused_at
        self.paused = False
        self.offset -= gap * self.rate
        self.resumed_at = self.world.now
        if self.holding:
            self.lease_end += gap
            self._watch_lease()
            self.world.holders.changed(self)

    # -- the agent's loop ---------------------------------------------

    def _later(self, seconds: float, what: Callable[[], None]) -> None:
        """Something of this life of the agent; waits while the agent is frozen."""
        life = self.life

        def come() -> None:
            if life != self.life:
                return
            if self.paused:
                self.world.at(0.05, come)
            elif self.frozen:
                self.waiting.append(what)
            else:
                what()

        self.world.at(seconds, come)

    def tell(self, kind: type[Any], **facts: Any) -> None:
        """Hand one event to the arbiter and perform what it says."""
        if self.agent is None:
            return
        if self.frozen:
            self.waiting.append(lambda: self.tell(kind, **facts))
            return
        self.agent, actions = step(self.agent, kind(now=self.clock(), **facts), self.world.rows)
        if actions:
            self.world.seen(self, actions)
            self.perform(actions)

    def _tick(self) -> None:
        self._later(self.settings.beat_s, self._tick)
        now = self.clock()
        if now - self.asked_at >= ASK_EVERY_S:
            self.asked_at = now
            self._look_around(now)
        if self.agent is not None and not self.frozen:
            self.tell(ev.Tick)
        if self.agent is not None and not self.frozen:
            self.send_beat()

    def _look_around(self, now: float) -> None:
        self.world.holders.look()
        if self.world.network.gateway_answers(self.number):
            self.tell(ev.LanAnswered, asked_at=now, gateway=True)
        engine = self.engine
        peer = self.peer
        network = self.world.network
        reachable = peer.machine_up and network.connected(0) and network.connected(1) and not peer.paused
        if not engine.up:
            if engine.reported is not None:
                engine.reported = None
                self.tell(ev.EngineLost)
            return
        # Whom to follow is told at the attach; before it no full sync begins, and its beginning is reported at once.
        if self.world.now < engine.attached_at:
            return
        engine.run(self.world.now, self.services, peer.engine if reachable else None)
        report = engine.report()
        if report != engine.reported or self.world.now - engine.reported_at >= REPORT_EVERY_S:
            engine.reported = report
            engine.reported_at = self.world.now
            self.tell(ev.EngineReported, engine=report)

    def send_beat(self) -> None:
        """One beat on every path."""
        assert self.agent is not None
        now = self.clock()
        beat = beat_of(self.agent, now)
        self.world.beat_leaves(self, beat)
        self.sequence += 1
        self.detector.sending(Sequence(self.sequence), now=now)
        echoes = tuple(
            Echo(path=path, sequence=known.sequence, age_s=0.0)
            for path, known in self.detector.known.items()
            if known.sequence
        )
        for path in PATHS:
            self.world.send(self.number, path, self._envelope(path, echoes), beat)

    def _envelope(self, path: PathId, echoes: tuple[Echo, ...]) -> Envelope:
        return Envelope(
            boot=Boot(self.boot),
            sequence=Sequence(self.sequence),
            path=path,
            echo_boot=self.detector.peer_boot,
            echoes=echoes,
        )

    def arrives(self, envelope: Envelope, beat: Beat) -> None:
        """A datagram comes to this machine."""
        if self.agent is None or self.paused:
            return
        if self.frozen:
            if len(self.waiting) < SOCKET_MAX:
                self.waiting.append(lambda: self.arrives(envelope, beat))
            return
        verdict = self.detector.heard(envelope, now=self.clock())
        if verdict.life and verdict.newest:
            self.tell(ev.BeatHeard, beat=beat, echoed_at=verdict.echoed_at)

    # -- performing ---------------------------------------------

    def perform(self, actions: Any) -> None:
        """Do what the arbiter said, in order."""
        for at, action in enumerate(actions):
            if self.freeze_between and isinstance(action, act.AddAddress | act.RenewAddress | act.RemoveAddress):
                seconds, self.freeze_between = self.freeze_between, 0.0
                self.undone = list(actions[at:])
                self.freeze(between=False, seconds=seconds)
                return
            DEEDS[type(action)](self, action)
            if self.agent is None:
                return

    def _store(self, action: act.StoreBook) -> None:
        if self.store_fails:
            self._later(0.01, lambda: self.tell(ev.BookFailed))
            return
        life = self.life
        book = action.book

        def stored() -> None:
            # The disk finishes what it was given even if the process is frozen; a killed one never gave it.
            if life == self.life:
                self.world.book_stored(self, book)
                self.disk = book

        # One write at a time: a later one is never durable before an earlier one.
        self.written_at = max(self.written_at, self.world.now + self.store_s)
        wait_s = self.written_at - self.world.now
        self.world.at(wait_s, stored)
        self._later(wait_s + 0.001, lambda: self.tell(ev.BookStored, book=book))

    def _probe(self, action: act.Probe) -> None:
        network = self.world.network
        answers: list[str] = []

        def ask() -> None:
            if self.peer.holding and not self.peer.paused and network.peer_answers(self.number):
                answers.insert(0, mac_of(self.peer.number))
            if network.foreign_answers(self.number):
                answers.append(FOREIGN)

        for question in range(action.count):
            self._later(question * 0.1, ask)  # who stands still asks nothing
        sent = network.lan_up(self.number)
        end = (action.count - 1) * 0.1 + action.wait_s
        self._later(
            end,
            lambda: self.tell(
                ev.ProbeDone, asked_at=action.asked_at, answered_by=answers[0] if answers else None, sent=sent
            ),
        )

    def _add(self, action: act.AddAddress) -> None:
        now = self.clock()
        if self.calls_fail or not plan.may_call(now=now, not_after=action.not_after):
            self._later(0.002, lambda: self.tell(ev.AddressFailed))
            return
        self.world.adding(self, action)
        self._lease(action.valid_until - now)
        self._later(0.002, lambda: self.tell(ev.AddressAdded))

    def _renew(self, action: act.RenewAddress) -> None:
        now = self.clock()
        if not self.holding or not plan.may_call(now=now, not_after=action.valid_until):
            self._address(present=False)
            self._later(0.002, lambda: self.tell(ev.AddressGone))
        elif self.calls_fail:
            self._later(0.002, lambda: self.tell(ev.AddressFailed))
        else:
            self._lease(action.valid_until - now)

    def _remove(self, action: act.RemoveAddress) -> None:
        if self.calls_fail and self.holding:
            return
        self._address(present=False)
        self._later(0.002, lambda: self.tell(ev.AddressGone))

    def _lease(self, left_s: float) -> None:
        self.lease_end = self.world.now + plan.valid_s(left_s) + self.rng.uniform(-0.1, 0.9)
        self._watch_lease()
        self._address(present=True)

    def _watch_lease(self) -> None:
        self.lease_marks += 1
        mark = self.lease_marks

        def lapse() -> None:
            if mark == self.lease_marks and self.holding and not self.paused:
                self._address(present=False)
                self._later(0.001, lambda: self.tell(ev.AddressGone))

        self.world.at(max(0.0, self.lease_end - self.world.now), lapse)

    def _address(self, *, present: bool) -> None:
        if not present:
            self.lease_marks += 1
        if present != self.holding:
            self.holding = present
            self.world.holders.changed(self)

    def _announce(self, action: act.Announce) -> None:
        self.world.announced(self)

    def _beat_now(self, action: act.SendBeat) -> None:
        self._later(0.0005, self.send_beat)

    def _direct(self, action: act.DirectEngine) -> None:
        self.world.directed(self, action)
        self.engine.role = action.role
        self.engine.epoch = max(self.engine.epoch, action.epoch)
        if action.role is act.EngineRole.ACTIVE:
            self.engine.quiesced = False
            self.engine.data = max(self.engine.data, action.epoch)  # at once: what is drained next is of this epoch

    def _start_services(self, action: act.StartServices) -> None:
        self.services = True

    def _stop_services(self, action: act.StopServices) -> None:
        self.services = False

    def _quiesce(self, action: act.Quiesce) -> None:
        if action.end_backup:
            self.engine.backup = False
        self.services = False
        if self.rng.random() < self.world.quiesce_fails:
            self._later(0.3, lambda: self.tell(ev.QuiesceFailed))
            return

        def done() -> None:
            self.engine.quiesced = True
            self.tell(ev.Quiesced, digest=self.engine.digest())

        self._later(self.rng.uniform(0.05, 0.4), done)

    def _resume_services(self, action: act.ResumeServices) -> None:
        self.engine.quiesced = False
        self.services = True

    def _would(self, action: act.WouldDo) -> None:
        self.would.append(action)
        answer = {act.AddAddress: ev.AddressAdded, act.RemoveAddress: ev.AddressGone}.get(type(action.deed))
        if answer is not None:
            self._later(0.001, lambda: self.tell(answer))

    def _note(self, action: Any) -> None:
        {act.Refused: self.refused, act.Alarm: self.alarms, act.Moved: self.moves}[type(action)].append(action)


DEEDS: dict[type, Any] = {
    act.StoreBook: Node._store,
    act.Probe: Node._probe,
    act.AddAddress: Node._add,
    act.RenewAddress: Node._renew,
    act.RemoveAddress: Node._remove,
    act.Announce: Node._announce,
    act.SendBeat: Node._beat_now,
    act.DirectEngine: Node._direct,
    act.StartServices: Node._start_services,
    act.StopServices: Node._stop_services,
    act.Quiesce: Node._quiesce,
    act.ResumeServices: Node._resume_services,
    act.WouldDo: Node._would,
    act.Refused: Node._note,
    act.Alarm: Node._note,
    act.Moved: Node._note,
}


def mac_of(number: int) -> Mac:
    """Of a node's interface of the cluster IP."""
    return Mac(f"02:00:00:00:00:0{number}")


STATIONS = (Station.PRIMARY, Station.SECONDARY)
