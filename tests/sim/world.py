"""The simulated world: two nodes, a network, one queue of what will happen, and the invariants watched at every step.

One seed makes one run. ``Violation`` is raised at the moment an invariant breaks and carries the seed.
"""

from __future__ import annotations

import heapq
import random
from collections.abc import Callable

from ha_agent.arbiter import actions as act
from ha_agent.arbiter import policy
from ha_agent.arbiter.events import HealthReported, HoldReleased, LinkChanged
from ha_agent.arbiter.state import Book, Settings
from ha_agent.arbiter.step import INDEX, Index
from ha_agent.arbiter.values import Beat, Cause, Epoch, Identity, Phase, Policy
from ha_agent.heartbeat.beat import Envelope, PathId
from tests.sim.engine import EngineModel
from tests.sim.holders import Holders
from tests.sim.network import Network
from tests.sim.node import STATIONS, Node, mac_of

RECENT = 64
"""Datagrams kept for replays."""


class Violation(AssertionError):
    """An invariant does not hold."""


class World:
    """Everything there is."""

    table: Index = INDEX  # replaced by the mutation test

    def __init__(
        self,
        seed: int,
        *,
        timeout_s: float = 3.0,
        beat_s: float = 0.2,
        gateway: bool = True,
        preference: Policy = Policy.AVAILABILITY,
        identities: tuple[Identity, Identity] | None = None,
        books: tuple[Book, Book] | None = None,
        observe: bool = False,
        boot_waits: tuple[float, float] = (10.0, 60.0),
    ) -> None:
        self.seed = seed
        self.rng = random.Random(seed)
        self.now = 0.0
        self.queue: list[tuple[float, int, Callable[[], None]]] = []
        self.count = 0
        self.rows = self.table
        self.network = Network(rng=self.rng, has_gateway=gateway)
        self.quiesce_fails = 0.0
        self.recent: list[tuple[int, Envelope, Beat]] = []
        self.served: dict[int, int] = {}  # epoch -> node
        self.switches: list[tuple[float, int, Cause]] = []
        self.last_holder: int | None = None
        self.holders = Holders(self)
        self.lost_state = False
        self.restarts = 0
        self.log: list[tuple[float, int, str]] = []
        identities = identities or (
            Identity(station=STATIONS[0], observing=observe),
            Identity(station=STATIONS[1], observing=observe),
        )
        books = books or (FORMED, FORMED)
        self.nodes = [
            Node(
                self,
                number,
                Settings(
                    identity=identities[number],
                    timeout_s=timeout_s,
                    beat_s=beat_s,
                    gateway=gateway,
                    peer_mac=mac_of(1 - number),
                    policy=preference,
                    observe=observe,
                    drain_s=4.0,
                    boot_wait_s=boot_waits[0],
                    boot_wait_unsure_s=boot_waits[1],
                ),
                books[number],
                EngineModel(rng=self.rng, data=books[number].data, sound=books[number].sound),
            )
            for number in (0, 1)
        ]

    # -- time ---------------------------------------------

    def at(self, seconds: float, what: Callable[[], None]) -> None:
        """Let something happen so many seconds from now."""
        self.count += 1
        heapq.heappush(self.queue, (self.now + max(0.0, seconds), self.count, what))

    def run(self, seconds: float) -> None:
        """Let time pass."""
        end = self.now + seconds
        queue = self.queue
        while queue and queue[0][0] <= end:
            self.now, _, what = heapq.heappop(queue)
            what()
            if self.holders.since is not None:
                self.holders.look()
        self.now = end

    def run_until(self, done: Callable[[], bool], *, limit_s: float) -> float:
        """Let time pass until something is true; how long that took. A limit that is reached is a violation.

        Looks after every single happening, so that the shortest phase is caught.
        """
        start = self.now
        queue = self.queue
        while not done():
            if not queue or queue[0][0] - start > limit_s:
                self.fail(f"not within {limit_s} s: {self.picture()}")
            self.now, _, what = heapq.heappop(queue)
            what()
            if self.holders.since is not None:
                self.holders.look()
        return self.now - start

    def release_hold(self, number: int) -> None:
        """An administrator lets the pair switch by itself again."""
        self.switches.clear()
        self.nodes[number].tell(HoldReleased)

    def boot(self, *numbers: int) -> None:
        """Switch machines on."""
        for number in numbers or (0, 1):
            self.nodes[number].power_on()

    def settle(self) -> None:
        """Both machines are on and one pair stands: Active and Standby, in step."""
        self.boot()
        self.run_until(self.paired, limit_s=30.0)

    def paired(self) -> bool:
        """One Active that holds the address, and a ready Standby that knows it."""
        active = self.active()
        if active is None:
            return False
        other = active.peer
        peer = active.agent.peer if active.agent is not None else None
        return (
            other.phase is Phase.STANDBY
            and not other.holding
            and peer is not None
            and peer.ready
            and other.agent is not None
            and other.agent.followed == active.disk.served
            and not policy.reasons(other.agent)
        )

    def paired_but_unready(self) -> bool:
        """One Active, and a Standby that has its data, whatever its health."""
        active = self.active()
        return (
            active is not None
            and active.peer.phase is Phase.STANDBY
            and active.peer.engine.data == active.engine.data
            and active.peer.engine.sound
        )

    def active(self) -> Node | None:
        """The one node that serves and holds the address."""
        found = [node for node in self.nodes if node.phase is Phase.ACTIVE and node.holding]
        return found[0] if len(found) == 1 else None

    def fail(self, what: str) -> None:
        """An invariant is broken."""
        raise Violation(f"seed {self.seed}, {self.now:.3f} s: {what}")

    def picture(self) -> str:
        """The nodes in a line."""
        return ", ".join(
            f"{node.number}: {node.phase and node.phase.value} holds={node.holding} disk={node.disk}"
            for node in self.nodes
        )

    # -- network ---------------------------------------------

    def send(self, sender: int, path: PathId, envelope: Envelope, beat: Beat) -> None:
        """A datagram leaves; what becomes of it is the network's."""
        network = self.network
        if network.replays and self.rng.random() < network.replays and self.recent:
            old = self.rng.choice(self.recent)
            self.at(self.rng.random(), lambda: self.nodes[old[0]].arrives(old[1], old[2]))
        if network.carries(path, sender) and not network.lost():
            self._carry(sender, envelope, beat)
            if network.duplicates and self.rng.random() < network.duplicates:
                self._carry(sender, envelope, beat)
        if self.count % 16 == 0:
            self.recent.append((1 - sender, envelope, beat))
            if len(self.recent) > RECENT:
                self.recent.pop(self.rng.randrange(RECENT))

    def _carry(self, sender: int, envelope: Envelope, beat: Beat) -> None:
        node = self.nodes[1 - sender]
        self.at(self.rng.random() * self.network.delay_max_s, lambda: node.arrives(envelope, beat))

    def links_changed(self) -> None:
        """The kernels notice carriers."""
        for node in self.nodes:
            if node.machine_up and node.agent is not None:
                up = self.network.lan_up(node.number)
                node._later(0.01, lambda node=node, up=up: node.tell(LinkChanged, up=up))  # type: ignore[misc]

    def announced(self, node: Node) -> None:
        """Others on the LAN hear an announcement; nothing depends on it here."""

    # -- invariants ---------------------------------------------

    def seen(self, node: Node, actions: tuple[act.Action, ...]) -> None:
        """Every step's actions pass here."""
        for action in actions:
            if type(action) is act.Moved:
                self.log.append((self.now, node.number, action.row))
                if action.row in {"serve", "resume"}:
                    self._serves(node, action)

    def adding(self, node: Node, action: act.AddAddress) -> None:
        """S2, S4, S7 at the moment at which the kernel is called."""
        agent = node.agent
        assert agent is not None
        if node.disk.served < action.epoch or node.disk.promised < action.epoch:
            self.fail(f"S2: epoch {action.epoch} is used and not stored: {node.disk}")
        if action.epoch in self.served and not self.lost_state:
            self.fail(f"S2: epoch {action.epoch} is used twice")
        self.served[action.epoch] = node.number
        if not node.engine.sound and agent.cause is not Cause.FORCED:
            self.fail(f"S4: node {node.number} takes over with unsound data, cause {agent.cause}")
        network = self.network
        answers = network.loss == 0 and network.foreign_answers(node.number) and network.gateway_there(node.number)
        if (
            answers
            and self.now - max(network.foreign_since, network.mended_at) > 1.0
            and agent.cause is not Cause.FORCED
            and not node.paused_since(agent.probe_clear)
        ):
            self.fail("S7: somebody else answers for the cluster IP")

    def _serves(self, node: Node, moved: act.Moved) -> None:
        """S5, S6 at a take-over."""
        if moved.row == "resume":
            return
        peer = node.peer
        if (
            moved.cause is Cause.PLANNED
            and not (self.lost_state or peer.holding)
            and ((node.engine.data, node.engine.progress) != (peer.engine.data, peer.engine.progress))
        ):
            mine, theirs = node.engine.digest(), peer.engine.digest()
            self.fail(f"S5: a planned switch ended with unequal positions: {mine} {theirs}")
        if self.last_holder == peer.number and moved.cause.automatic:
            recent = [at for at, _, _ in self.switches if self.now - at <= 895.0]
            if moved.cause in {Cause.FAULT, Cause.LINK} and len(recent) >= 2 and self.restarts == 0:
                self.fail("S6: a third automatic switch in 15 minutes without a death")
            self.switches.append((self.now, node.number, moved.cause))
        self.last_holder = node.number

    def book_stored(self, node: Node, book: Book) -> None:
        """S2: stored epochs only grow."""
        if book.promised < node.disk.promised or book.served < node.disk.served:
            self.fail(f"S2: an epoch shrinks: {node.disk} -> {book}")

    def beat_leaves(self, node: Node, beat: Beat) -> None:
        """S2: nothing is said that is not durable."""
        if max(beat.promised, beat.candidate, beat.consent, beat.epoch) > node.disk.promised:
            self.fail(f"S2: node {node.number} says what is not stored: {beat}")
        if beat.epoch > node.disk.served:
            self.fail(f"S2: node {node.number} serves {beat.epoch} and stored {node.disk.served}")
        if beat.consent and node.holding and not node.settings.observe:
            self.fail(f"node {node.number} consents and holds the address")

    def directed(self, node: Node, action: act.DirectEngine) -> None:
        """S3: an engine that serves is never told a lower epoch than it has promised to follow."""
        if action.role is act.EngineRole.ACTIVE and action.epoch < node.engine.epoch and not self.lost_state:
            self.fail(f"S3: node {node.number} would send in epoch {action.epoch} below {node.engine.epoch}")

    # -- healing ---------------------------------------------

    def heal(self) -> None:
        """All faults end; whoever is off is switched on, whoever was stopped is started."""
        self.network.heal()
        self.quiesce_fails = 0.0
        for node in self.nodes:
            node.store_fails = node.calls_fail = False
            node.store_s = 0.004
            node.engine.slow = False
            node.faults = frozenset()
            if node.paused:
                node.resume()
            if node.frozen:
                node.thaw()
            node.freeze_between = 0.0
            if not node.machine_up:
                node.power_on()
            if node.phase is Phase.LEFT:
                node.kill_agent()
            if node.agent is None:
                node.start_agent()
            if not node.engine.up:
                node.engine.up = True
            if node.agent is not None:
                node.tell(HealthReported, faults=frozenset())
        self.links_changed()


FORMED = Book(promised=Epoch(2), served=Epoch(2), data=Epoch(2), sound=True, clean=True)
"""A pair that was formed before and stopped cleanly."""
