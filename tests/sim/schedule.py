"""Random schedules: what goes wrong, when, and for how long; all of it from one seed.

Three classes are told apart. ``single``: one fault, of a process, cable, port or power, on a pair that stands.
``double``: two faults, overlapping. ``storm``: many. Safety is asserted in all of them, liveness after all was healed.
S1 knows no excuse for a single fault but a paused machine, and none for a double one but that and the pairs that the
design does not cover: both paths broken, and no gateway or a firewall (``excusable``). Storms may have each excuse.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, replace

from ha_agent.arbiter import events as ev
from ha_agent.arbiter.state import Book, Fault
from ha_agent.arbiter.values import NO_EPOCH, Epoch, Phase, Policy
from tests.sim.holders import EXCUSES
from tests.sim.network import CABLE, LAN
from tests.sim.world import FORMED, World

FAULTS_FROM_S = 4.0
HEALED_EXTRA_S = 5.0
BOTH_NEVER_SYNCED = "nobody has sound data"


@dataclass(frozen=True, slots=True)
class Injected:
    """One fault."""

    at: float
    name: str
    node: int
    seconds: float


KINDS = ("single", "double", "storm")


def kind_of(seed: int) -> str:
    """Which class a seed belongs to."""
    return KINDS[seed % 3]


def play(seed: int) -> World:
    """Run the schedule of a seed; raises Violation."""
    rng = random.Random(seed * 7919 + 1)
    world = make(seed, rng)
    faults = draw(rng, kind_of(seed))
    names = {fault.name for fault in faults}
    world.holders.allowed = excusable(kind_of(seed), names, gateway=world.network.has_gateway)
    world.boot()
    world.run(FAULTS_FROM_S)
    start = world.now
    for fault in faults:
        world.at(fault.at, lambda fault=fault: INJECT[fault.name](world, fault))  # type: ignore[misc]
    length = max(fault.at + fault.seconds for fault in faults)
    world.run(min(length, 24.0) + rng.uniform(0.0, 4.0))
    assert world.now >= start
    check_liveness(world)
    return world


def make(seed: int, rng: random.Random) -> World:
    """A pair: mostly one that was formed before, with a gateway, and sound data on both."""
    books = (FORMED, FORMED)
    if rng.random() < 0.15:
        books = (replace(FORMED, data=NO_EPOCH), Book())  # just formed: the joiner has nothing
    elif rng.random() < 0.2:
        books = (FORMED, replace(FORMED, promised=Epoch(5), served=Epoch(5), data=Epoch(5)))
    return World(
        seed,
        timeout_s=rng.choice((3.0, 3.0, 4.0)),
        gateway=rng.random() < 0.8,
        preference=Policy.CONSISTENCY if rng.random() < 0.2 else Policy.AVAILABILITY,
        books=books,
        boot_waits=(4.0, 8.0),
    )


def draw(rng: random.Random, kind: str) -> list[Injected]:
    """The faults of a schedule."""
    count = {"single": 1, "double": 2}.get(kind) or rng.randrange(3, 9)
    names = sorted(INJECT)
    span = 6.0 if kind == "double" else 14.0
    return [
        Injected(
            at=rng.uniform(0.0, span) if count > 1 else 0.0,
            name=rng.choice(names),
            node=rng.randrange(2),
            seconds=rng.choice((rng.uniform(0.05, 1.5), rng.uniform(1.0, 6.0), rng.uniform(4.0, 14.0))),
        )
        for _ in range(count)
    ]


LAN_BREAKS = frozenset({"carrier", "port_sends", "port_receives", "switch_reboots", "loss"})
CABLE_BREAKS = frozenset({"cable", "cable_one_way", "filtered"})


def excusable(kind: str, names: set[str], *, gateway: bool) -> frozenset[str]:
    """The excuses for two holders that a schedule of these faults may have."""
    if kind == "storm":
        return EXCUSES
    parted = bool(names & CABLE_BREAKS and names & LAN_BREAKS)
    may = {
        "paused": "pause" in names,
        "filtered": parted and "filtered" in names,
        "parted": parted and not gateway,  # nobody who could be asked
    }
    return frozenset(excuse for excuse, so in may.items() if so)


def check_liveness(world: World) -> None:
    """L1: everything healed, one Active and one Standby within the timeout + 5 s."""
    world.heal()
    timeout_s = world.nodes[0].settings.timeout_s
    world.run(0.5)
    if not any(node.engine.sound for node in world.nodes):
        administrator(world, "force", 0, force=True, accept_data_loss=True)
    if any(node.agent is not None and node.now_maintained for node in world.nodes):
        world.nodes[0].tell(ev.MaintenanceSet, seconds=0.0)
        world.nodes[1].tell(ev.MaintenanceSet, seconds=0.0)
    deadline = world.now + timeout_s + HEALED_EXTRA_S
    while not one_and_one(world):
        if world.now >= deadline:
            world.fail(f"L1: no Active and Standby after healing: {world.picture()} {world.log[-12:]}")
        world.run(0.25)


def one_and_one(world: World) -> bool:
    """One Active that holds the address and whose services run, one Standby that holds nothing."""
    active = world.active()
    return (
        active is not None
        and active.services
        and active.peer.phase is Phase.STANDBY
        and not active.peer.holding
        and not active.peer.services
    )


# -- faults ------------------------------------------------------------------------------------------------------------


def administrator(world: World, name: str, node: int, **options: bool) -> None:
    """Somebody asks for a switch."""
    world.nodes[node].tell(ev.SwitchRequested, **options)


def _agent_crash(world: World, fault: Injected) -> None:
    node = world.nodes[fault.node]
    node.kill_agent()
    world.restarts += 1
    world.at(min(fault.seconds, 8.0), node.start_agent)


def _power(world: World, fault: Injected) -> None:
    node = world.nodes[fault.node]
    node.power_off()
    world.restarts += 1
    world.at(max(1.0, fault.seconds), node.power_on)


def _disk_lost(world: World, fault: Injected) -> None:
    node = world.nodes[fault.node]
    node.power_off()
    world.restarts += 1
    world.lost_state = True
    node.disk = Book()
    node.engine.data = node.engine.progress = node.engine.epoch = 0
    node.engine.sound = False
    world.at(max(1.0, fault.seconds), node.power_on)


def _freeze(world: World, fault: Injected) -> None:
    world.nodes[fault.node].freeze(between=False, seconds=fault.seconds)


def _freeze_between(world: World, fault: Injected) -> None:
    world.nodes[fault.node].freeze(between=True, seconds=fault.seconds)


def _pause(world: World, fault: Injected) -> None:
    world.nodes[fault.node].pause(fault.seconds)


def _cable(world: World, fault: Injected) -> None:
    world.network.cable = [False, False]
    world.at(fault.seconds, lambda: _restore_cable(world))


def _cable_one_way(world: World, fault: Injected) -> None:
    world.network.cable[fault.node] = False
    world.at(fault.seconds, lambda: _restore_cable(world))


def _restore_cable(world: World) -> None:
    world.network.cable = [True, True]


def _filtered(world: World, fault: Injected) -> None:
    """A firewall rule drops one node's beats on both paths."""
    for path in (CABLE, LAN):
        world.network.udp[path][fault.node] = False

    def restore() -> None:
        for path in (CABLE, LAN):
            world.network.udp[path][fault.node] = True

    world.at(fault.seconds, restore)


def _port(field: str) -> Callable[[World, Injected], None]:
    def inject(world: World, fault: Injected) -> None:
        port = world.network.ports[fault.node]
        setattr(port, field, False)
        world.links_changed()

        def restore() -> None:
            setattr(port, field, True)
            world.network.mended_at = world.now
            world.links_changed()

        world.at(fault.seconds, restore)

    return inject


def _switch_reboots(world: World, fault: Injected) -> None:
    world.network.switch_up = False
    world.links_changed()

    def restore() -> None:
        world.network.switch_up = True
        world.network.mended_at = world.now
        world.links_changed()

    world.at(fault.seconds, restore)


def _gateway(world: World, fault: Injected) -> None:
    world.network.gateway_up = False

    def restore() -> None:
        world.network.gateway_up = True

    world.at(fault.seconds, restore)


def _loss(world: World, fault: Injected) -> None:
    world.network.loss = world.rng.choice((0.1, 0.3))
    world.network.delay_max_s = world.rng.choice((0.003, 0.2, 0.8))
    world.network.duplicates = 0.2
    world.network.replays = 0.2

    def restore() -> None:
        world.network.loss = world.network.duplicates = world.network.replays = 0.0
        world.network.mended_at = world.now
        world.network.delay_max_s = 0.003

    world.at(fault.seconds, restore)


def _foreign(world: World, fault: Injected) -> None:
    world.network.foreign = True
    world.network.foreign_since = world.now

    def restore() -> None:
        world.network.foreign = False

    world.at(fault.seconds, restore)


def _store(world: World, fault: Injected) -> None:
    node = world.nodes[fault.node]
    node.store_fails = True

    def restore() -> None:
        node.store_fails = False

    world.at(fault.seconds, restore)


def _slow_store(world: World, fault: Injected) -> None:
    node = world.nodes[fault.node]
    node.store_s = world.rng.uniform(0.05, 1.2)

    def restore() -> None:
        node.store_s = 0.004

    world.at(fault.seconds, restore)


def _calls(world: World, fault: Injected) -> None:
    node = world.nodes[fault.node]
    node.calls_fail = True

    def restore() -> None:
        node.calls_fail = False

    world.at(fault.seconds, restore)


def _engine_gone(world: World, fault: Injected) -> None:
    engine = world.nodes[fault.node].engine
    engine.up = False

    def restore() -> None:
        engine.up = world.nodes[fault.node].machine_up

    world.at(fault.seconds, restore)


def _engine_slow(world: World, fault: Injected) -> None:
    engine = world.nodes[fault.node].engine
    engine.slow = True

    def restore() -> None:
        engine.slow = False

    world.at(fault.seconds, restore)


def _unhealthy(world: World, fault: Injected) -> None:
    node = world.nodes[fault.node]
    node.faults = frozenset({Fault(cause="process:asterisk", switches=world.rng.random() < 0.8)})
    node.tell(ev.HealthReported, faults=node.faults)

    def restore() -> None:
        node.faults = frozenset()
        node.tell(ev.HealthReported, faults=node.faults)

    world.at(fault.seconds, restore)


def _switch(world: World, fault: Injected) -> None:
    if world.rng.random() < 0.2:
        world.quiesce_fails = 0.5
    administrator(world, "switch", fault.node)
    administrator(world, "switch", 1 - fault.node)
    if world.rng.random() < 0.2:
        world.at(0.3, lambda: world.nodes[fault.node].tell(ev.SwitchCancelled))


def _force(world: World, fault: Injected) -> None:
    administrator(world, "force", fault.node, force=True, accept_data_loss=world.rng.random() < 0.5)


def _stop(world: World, fault: Injected) -> None:
    node = world.nodes[fault.node]
    node.tell(ev.StopRequested)
    world.restarts += 1

    def gone() -> None:
        node.kill_agent()
        world.at(min(fault.seconds, 6.0), node.start_agent)

    world.at(1.0, gone)


def _maintenance(world: World, fault: Injected) -> None:
    world.nodes[fault.node].tell(ev.MaintenanceSet, seconds=fault.seconds)


INJECT: dict[str, Callable[[World, Injected], None]] = {
    "agent_crash": _agent_crash,
    "power": _power,
    "power_again": _power,
    "disk_lost": _disk_lost,
    "freeze": _freeze,
    "freeze_again": _freeze,
    "freeze_between": _freeze_between,
    "pause": _pause,
    "cable": _cable,
    "cable_one_way": _cable_one_way,
    "filtered": _filtered,
    "carrier": _port("carrier"),
    "port_sends": _port("sends"),
    "port_receives": _port("receives"),
    "switch_reboots": _switch_reboots,
    "gateway": _gateway,
    "loss": _loss,
    "foreign": _foreign,
    "store": _store,
    "slow_store": _slow_store,
    "calls": _calls,
    "engine_gone": _engine_gone,
    "engine_slow": _engine_slow,
    "unhealthy": _unhealthy,
    "switch": _switch,
    "force": _force,
    "stop": _stop,
    "maintenance": _maintenance,
}
