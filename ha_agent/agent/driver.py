"""The agent of one node: hands events to the arbiter and performs what it says.

1. Events go in one at a time, in the order in which they were learned; the actions of one are begun, in order, before
   the next goes in (``deeds``). What takes time (kernel, disk, LAN, services) answers with an event of its own.
2. Every beat interval: what lies in the sockets is taken in first, then ``Tick``, then a beat. A process that stood
   still therefore hears before it judges.
3. Whatever fails in performing is an event or an alarm; nothing of it ends the agent.

One event loop; seconds are monotonic. The composition is ``building.build``.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable
from typing import Any

from ha_agent.agent.chronicle import Scene
from ha_agent.agent.deeds import Deeds
from ha_agent.agent.parts import Parts
from ha_agent.agent.requests import Answered, Requests
from ha_agent.arbiter import events as ev
from ha_agent.arbiter.actions import Action
from ha_agent.arbiter.beat import beat_of
from ha_agent.arbiter.state import Engine, State
from ha_agent.arbiter.step import step
from ha_agent.arbiter.values import SERVING, Digest, Epoch, Mac, Phase, Reason, Station
from ha_agent.cluster_ip.links import Change, Overflow
from ha_agent.cluster_ip.netlink import AddressFacts, LinkFacts
from ha_agent.health import HealthVector
from ha_agent.heartbeat.beat import TOLD_FIRMWARE_MAX, FullSync, Told
from ha_agent.heartbeat.cadence import Cadence
from ha_agent.heartbeat.detector import Verdict
from ha_agent.heartbeat.seal import Heard, Rejected
from ha_agent.settings import Settings
from ha_proto.agent.v1 import agent_pb2 as pb

LOOK_EVERY_S = 1.0
"""The truth behind the kernel's notices, and the states of paths and refusals."""

LEAVE_S = 3.0
WRITERS_S = 10.0
"""After the stop hooks of a restore: so long whoever still writes is waited for."""
LEAVING_BEATS = 3
DIGEST_TOLD = 8
GATEWAY_FRESH_S = 1.0


class Agent:
    """See the module. Made first, because its parts call it; ``begin`` gives it the parts and the first state."""

    def __init__(
        self, settings: Settings, *, on_tick: Callable[[], None], clock: Callable[[], float] = time.monotonic
    ) -> None:
        """``on_tick`` is called after each tick: a watchdog that hears nothing kills a process that stands still."""
        assert settings.pair is not None, "HA is off"
        self._on_tick = on_tick
        self.settings = settings
        self.pair = settings.pair
        self._clock = clock
        self._state: State | None = None
        self._first: tuple[Action, ...] = ()
        self._requests = Requests()
        self._stepping = False
        self._restore = 0  # the serial of the engine's that was answered last
        self._looked = float("-inf")
        self._stop_asked = asyncio.Event()
        self._stopped = asyncio.Event()
        self.changed = asyncio.Event()  # set and replaced whenever the state may look different
        self.peer_told = Told()
        self.parts: Parts
        self._deeds: Deeds
        self._cadence: Cadence

    def begin(self, parts: Parts, state: State, actions: tuple[Action, ...]) -> None:
        """The first state and what it asks for, as ``arbiter.begin`` made them; performed when ``run`` begins."""
        self.parts, self._state, self._first = parts, state, actions
        self._cadence = Cadence(interval_s=state.settings.beat_s, follows=state.settings.station is Station.SECONDARY)
        self._deeds = Deeds(
            self.settings,
            parts,
            tell=self.tell,
            state=lambda: self.state,
            send_beat=self._send_beat,
            requests=self._requests,
            clock=self._clock,
        )

    @property
    def state(self) -> State:
        """The arbiter's newest state."""
        assert self._state is not None, "the agent has not begun"
        return self._state

    async def run(self) -> None:
        """Until ``stop`` was asked and the address is gone, or until cancelled. Raises OperatorNeeded."""
        parts = self.parts
        try:
            parts.holder.open(self._foreign)
            parts.channel.open()
            parts.links.open()
            async with asyncio.TaskGroup() as tasks:
                self._deeds.perform(self._first)
                works = [self._deeds.run(), parts.monitor.run(), parts.engine.watch(), self._tick_for_ever()]
                works += [parts.lan.run()] if parts.lan is not None else []
                works += [self._leave()]
                works += [] if self.pair.observe_only else [parts.duty.warm()]
                running = [tasks.create_task(work) for work in works]
                await self._stopped.wait()
                for task in running:
                    task.cancel()
        finally:
            await parts.duty.close()
            parts.links.close()
            parts.channel.close()
            await parts.holder.close()
            parts.commands.close()

    def tell(self, kind: type[Any], **facts: Any) -> None:
        """Hands one event to the arbiter and begins what it says. In the loop, and from no action."""
        assert not self._stepping, "an action answered within its own step"
        self._stepping = True
        try:
            before = self.state
            self._state, actions = step(before, kind(now=max(self._clock(), before.now), **facts))
            self._deeds.perform(actions)
        finally:
            self._stepping = False
        if actions:
            changed, self.changed = self.changed, asyncio.Event()
            changed.set()

    # ---- what an administrator asks

    async def switch(self, *, force: bool, accept_data_loss: bool, accept_dual: bool, timeout_s: float) -> Answered:
        """A planned switch on the Active, a forced take-over on a Standby. Returns when it is done or refused."""
        return await self._requests.ask(
            lambda: self.tell(
                ev.SwitchRequested, force=force, accept_data_loss=accept_data_loss, accept_dual=accept_dual
            ),
            timeout_s=timeout_s or self.switch_longest_s,
        )

    @property
    def switch_longest_s(self) -> float:
        """How long a planned switch may take before nobody waits for it any more."""
        starts_s = sum(service.start_deadline_s for service in self.settings.services)
        return self.pair.drain_deadline_s + 2 * self.pair.heartbeat_timeout_s + starts_s

    async def declare_single(self) -> Answered:
        """The peer is gone for good."""
        return await self._requests.ask(lambda: self.tell(ev.SingleDeclared), timeout_s=0)

    def stop(self) -> None:
        """Leaves cleanly: the address goes, the peer is told, the services stop. ``run`` ends then."""
        self._stop_asked.set()

    async def _leave(self) -> None:
        await self._stop_asked.wait()
        loop = asyncio.get_running_loop()
        limit = loop.time() + LEAVE_S
        beats = 0
        self.tell(ev.StopRequested)
        # The peer must hear that nothing is held any more, and the book must say that the end was clean.
        while loop.time() < limit and (beats < LEAVING_BEATS or self.state.stored != self.state.book):
            await asyncio.sleep(self.state.settings.beat_s)
            beats += not self.state.holds
        stops_s = sum(service.stop_deadline_s for service in self.settings.services)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(LEAVE_S + stops_s):
                await self.parts.duty.close()
        self._stopped.set()

    # ---- time

    async def _tick_for_ever(self) -> None:
        """By the loop's timer: a task that sleeps would turn the loop twice for each tick."""
        loop = asyncio.get_running_loop()
        failed: asyncio.Future[None] = loop.create_future()
        timer: asyncio.TimerHandle

        def tick() -> None:
            nonlocal timer
            try:
                self._tick(loop.time())
            except Exception as error:  # noqa: BLE001 - raised again by who awaits it
                failed.set_exception(error)
            else:
                timer = loop.call_at(self._cadence.advance(loop.time()), tick)

        timer = loop.call_at(self._cadence.begin(loop.time()), tick)
        try:
            await failed
        finally:
            timer.cancel()

    def _tick(self, now: float) -> None:
        self.parts.channel.drain()
        self.links_changed(self.parts.links.drain())
        self.tell(ev.Tick)
        self._send_beat()
        self._on_tick()
        if now - self._looked >= LOOK_EVERY_S:
            self._looked = now
            self._look()

    def aligned(self, at: float) -> float:
        """See ``Cadence.nearest``; seconds of the loop's clock."""
        return self._cadence.nearest(at)

    def _look(self) -> None:
        """What notices may have missed."""
        parts = self.parts
        self._see_link()
        for change in parts.channel.look():
            parts.chronicle.path(parts.channel.name(change.path), change.after)
        parts.engine.tell_paths(parts.peer_paths.as_directed((one.name, one.way) for one in parts.channel.paths()))
        apart = Reason.SCHEMA_APART in self.state.contradictions
        parts.engine.tell_hold(Reason.SCHEMA_APART.value if apart else "")
        parts.chronicle.quiet(parts.channel.standing())
        self._deeds.look_whether_held(unless_seen_since=self.state.now - LOOK_EVERY_S)

    # ---- facts from outside

    def heard(self, heard: Heard, verdict: Verdict) -> None:
        """A beat that was let in."""
        if verdict.life and verdict.newest:
            self.peer_told = heard.told
            self._cadence.heard(asyncio.get_running_loop().time())
            self.tell(ev.BeatHeard, beat=heard.beat, echoed_at=verdict.echoed_at)
            if heard.beat.serves:
                self._requests.peer_serves(heard.beat.epoch)

    def rejected(self, rejected: Rejected) -> None:
        """A datagram that was dropped."""
        self.parts.chronicle.rejected(rejected)

    def lan_answered(self, asked_at: float, gateway: bool) -> None:
        """The gateway or a neighbour is there."""
        self.tell(ev.LanAnswered, asked_at=asked_at, gateway=gateway)

    def links_changed(self, changes: list[Change]) -> None:
        """The kernel told of changes; the truth is looked up."""
        if not changes:
            return
        if any(isinstance(one, Overflow) or isinstance(one.what, LinkFacts) for one in changes):
            self._see_link()
        if any(isinstance(one, Overflow) or (one.gone and isinstance(one.what, AddressFacts)) for one in changes):
            self._deeds.look_whether_held()
        elif any(isinstance(one.what, AddressFacts) for one in changes if not isinstance(one, Overflow)):
            # Each of our renewals is told to be an address that comes; one that somebody else adds must be seen.
            self._deeds.look_whether_held(unless_seen_since=self._clock() - LOOK_EVERY_S)

    def engine_reported(self, report: pb.EngineReport) -> None:
        """The engine says how its data is."""
        if not self.parts.engine_probe.is_attached:
            self.parts.engine_probe.attached()
            self.parts.chronicle.attached(attached=True)
        self.parts.chronicle.reported(report)
        self._requests.backup_left_s = report.backup_left_s if report.HasField("backup_left_s") else None
        self.tell(
            ev.EngineReported,
            engine=Engine(
                data=Epoch(report.data),
                sound=report.sound,
                current=report.current,
                progress=report.progress,
                digest=Digest(report.digest),
                backup=report.backup,
                promised=Epoch(report.promised),
            ),
        )
        self._restore_wanted(report.restore)

    def _restore_wanted(self, serial: int) -> None:
        """Once for each restore. The epoch is raised by the table: the engine promises a higher one."""
        if serial in {0, self._restore}:
            return
        self._restore = serial
        if self.state.phase is Phase.ACTIVE and not self.pair.observe_only:
            stops_s = sum(service.stop_deadline_s for service in self.settings.services)
            self.parts.duty.restore(serial, within_s=stops_s + WRITERS_S)
        else:
            reason = "the agent only observes" if self.pair.observe_only else f"this node is {self.state.phase.value}"
            self.parts.engine.answer_restore(serial, stopped=False, reason=reason)

    def engine_lost(self) -> None:
        """Its call ended, or it fell silent."""
        self.parts.engine_probe.detached()
        self.parts.chronicle.attached(attached=False)
        if self.parts.engine.restoring:
            hint = "the services stay stopped until an engine says that the data is whole"
            self.parts.events.append("error", "the engine is gone within a restore", {"hint": hint})
        self.tell(ev.EngineLost)

    def health_changed(self, vector: HealthVector) -> None:
        """The probes judge. Told later: a deed may be what changed it."""
        self.parts.chronicle.health(vector)
        asyncio.get_running_loop().call_soon(lambda: self.tell(ev.HealthReported, faults=vector.faults()))

    def _foreign(self, mac: Mac) -> None:
        if self.state.holds and self.state.phase in SERVING:
            self.tell(ev.ForeignSeen, mac=mac)

    def _see_link(self) -> None:
        try:
            link = self.parts.links.look(self.pair.interface)
        except OSError as failed:  # the kernel is busy: what was known stands until the next look
            self.parts.events.append("warning", "the interface could not be looked at", {"reason": str(failed)})
            return
        up = link is not None and link.usable
        if up != self.state.link_up:
            self.parts.events.append("info" if up else "error", "link of the cluster IP", {"up": up})
            self.tell(ev.LinkChanged, up=up)

    # ---- telling

    def _send_beat(self) -> None:
        state = self.state
        told = Told(
            firmware=self.settings.node.firmware[:TOLD_FIRMWARE_MAX],
            lease_left_s=max(0.0, state.lease_until - state.now) if state.holds else 0.0,
            faults=self.parts.monitor.vector.bits,
            gateway_seen=state.now - state.gateway_at <= GATEWAY_FRESH_S,
            full_sync=_full_sync(state),
            digest=Digest(state.engine.digest[:DIGEST_TOLD]) if state.engine else Digest(""),
        )
        self.parts.channel.send(beat_of(state, max(self._clock(), state.now)), told)

    def scene(self) -> Scene:
        """What both nodes look like now, for the switch log."""
        state = self.state
        peer, engine = state.peer, state.engine
        positions = {"own": _position(engine.data, engine.progress, engine.digest)} if engine else {}
        peer_health = {}
        if peer is not None:
            positions["peer"] = _position(peer.data, peer.progress, self.peer_told.digest)
            peer_health = {
                "phase": peer.phase.value,
                "ready": ", ".join(reason.value for reason in peer.reasons) or "ready",
                "faults": str(peer.health),
                "link": "up" if peer.link_up else "down",
                "heard": f"{state.now - state.heard_at:.3f} s ago",
            }
        return Scene(
            own_health=self.parts.monitor.vector.as_fields() | {"link": "up" if state.link_up else "down"},
            peer_health=peer_health,
            positions=positions,
            silent_s=state.now - state.heard_at if peer is not None else None,
        )


def _position(data: int, progress: int, digest: str) -> str:
    return f"epoch {data}, {progress} changes, digest {digest[:DIGEST_TOLD]}"


def _full_sync(state: State) -> FullSync:
    if state.engine is None or not state.engine.sound:
        return FullSync.NEVER
    return FullSync.DONE if state.engine.current or state.phase in SERVING else FullSync.RUNNING
