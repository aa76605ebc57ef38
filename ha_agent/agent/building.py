"""Composes the agent of one node from its settings; refuses settings that this machine cannot carry out.

Order: logs, the boot number (durable before the first beat), what the kernel has of the address, the parts, the first
state. The parts live in one event loop.
"""

from __future__ import annotations

import asyncio
import hashlib
import ipaddress
import os
import socket
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from ha_agent.agent.chronicle import Chronicle
from ha_agent.agent.driver import Agent
from ha_agent.agent.duty import Duty
from ha_agent.agent.parts import Parts
from ha_agent.agent.peer_paths import preferred
from ha_agent.alarms.desk import Desk
from ha_agent.alarms.reports import PairFacts
from ha_agent.alarms.reports import Station as ReportedStation
from ha_agent.arbiter import state as arbiter
from ha_agent.arbiter.step import begin
from ha_agent.arbiter.values import Identity, Mac, Station
from ha_agent.cluster_ip.holder import Holder, KernelHolder
from ha_agent.cluster_ip.lan import Lan
from ha_agent.cluster_ip.links import Links
from ha_agent.cluster_ip.netlink import FOREVER, Address, AddressFacts, Kernel
from ha_agent.cluster_ip.stand_in import StandIn
from ha_agent.commands import Commands
from ha_agent.engine_link import EngineLink
from ha_agent.errors import ConfigFault, OperatorNeeded
from ha_agent.health import EngineProbe, Monitor, Tools, watches_of
from ha_agent.heartbeat.beat import FIRMWARE_MAX, NAME_MAX, PathId
from ha_agent.heartbeat.channel import Channel
from ha_agent.heartbeat.datagram import PathSpec
from ha_agent.heartbeat.seal import Pair
from ha_agent.logs import AgentLogs
from ha_agent.memory import BookStore, Membership, window
from ha_agent.memory.book import kernel_boot_id
from ha_agent.services import Services
from ha_agent.settings import OwnAddress, PairSettings, PathSettings, Settings, against_interface, shared_digest

LOOPBACK = "lo"
LOOK_THREADS = 6
SCHEMA = (1, 1)
"""The data layouts that this firmware reads; grows when the stream or the catalogue changes."""

CAP_NET_ADMIN, CAP_NET_RAW = 12, 13


async def build(
    settings: Settings,
    membership: Membership,
    logs: AgentLogs,
    *,
    desk: Desk | None = None,
    on_tick: Callable[[], None] = lambda: None,
    clock: Callable[[], float] = time.monotonic,
) -> Agent:
    """An agent that is ready to ``run``; ``desk`` is told what it must tell on. ``on_tick``: see ``Agent``.

    Raises ConfigFault, OperatorNeeded.
    """
    pair = settings.pair
    assert pair is not None, "HA is off"
    stands_in = pair.interface == LOOPBACK
    machine = (
        Machine(mac=_stand_in_mac(pair), warnings=(STAND_IN,))
        if stands_in
        else check_machine(pair, proc_dir=settings.node.proc_dir)
    )
    own_mac = machine.mac
    if own_mac == pair.peer_mac:
        raise ConfigFault("ha.toml", (f"ha.peer_mac = {pair.peer_mac}: is this node's own: name the other node's",))
    for warning in (*settings.warnings, *machine.warnings):
        logs.events.append("warning", "settings accepted with a warning", {"warning": warning})

    store = BookStore(os.path.join(settings.node.state_dir, "agent.json"))
    kernel_boot = kernel_boot_id(settings.node.proc_dir)
    memory, boot = await asyncio.to_thread(store.start, kernel_boot)

    executor = ThreadPoolExecutor(LOOK_THREADS, thread_name_prefix="look")
    commands = Commands()
    engine_probe = EngineProbe()
    agent = Agent(settings, on_tick=on_tick, clock=clock)
    holder, lan = _holder(pair, agent, stands_in=stands_in, clock=clock)
    engine = EngineLink(
        on_report=agent.engine_reported,
        on_lost=agent.engine_lost,
        model=settings.node.model,
        firmware=settings.node.firmware,
    )
    monitor = Monitor(
        watches_of(settings, Tools(commands=commands, executor=executor, engine=engine_probe)),
        agent.health_changed,
        aligned=agent.aligned,
    )
    if desk is not None:
        desk.know(_facts(settings, pair, membership, own_mac))
    services = Services(
        settings.services,
        commands,
        executor,
        logs.events.append,
        condition_file=settings.node.condition_file,
        proc_dir=settings.node.proc_dir,
    )
    parts = Parts(
        store=store,
        holder=holder,
        lan=lan,
        links=Links(agent.links_changed),
        channel=Channel(
            Pair(key=membership.key, cluster_id=membership.cluster_id, own_mac=own_mac, peer_mac=pair.peer_mac),
            _path_specs(pair),
            boot=boot,
            timeout_s=pair.heartbeat_timeout_s,
            on_heard=agent.heard,
            on_rejected=agent.rejected,
            clock=clock,
        ),
        peer_paths=preferred(
            pair.paths,
            peer_ip=pair.peer_ip,
            on_interface=frozenset() if stands_in else _addresses_on(pair.interface),
        ),
        engine=engine,
        engine_probe=engine_probe,
        monitor=monitor,
        duty=Duty(services, engine, logs.events.append, expect=lambda running: monitor.expect(running=running)),
        chronicle=Chronicle(
            logs.switches,
            logs.events,
            scene=agent.scene,
            node=settings.node.name or socket.gethostname(),
            observing=pair.observe_only,
            on_active=desk.serving if desk is not None else None,
            on_notice=desk.noticed if desk is not None else None,
        ),
        commands=commands,
        events=logs.events,
    )
    found = await holder.find()
    link = parts.links.look(pair.interface)
    state, actions = begin(
        arbiter_settings(settings, pair, upgrading=window.opened_from(settings.node.state_dir) is not None),
        memory.book,
        now=clock(),
        boot=boot,
        link_up=link is not None and link.usable,
        address_present=found.present,
        address_left_s=found.left_s,
        same_kernel_boot=bool(kernel_boot) and memory.kernel_boot == kernel_boot,
    )
    agent.begin(parts, state, actions)
    return agent


def arbiter_settings(settings: Settings, pair: PairSettings, *, upgrading: bool = False) -> arbiter.Settings:
    """What the arbiter is told of the settings."""
    model, firmware = settings.node.model, settings.node.firmware
    fits = len(model) <= NAME_MAX and model.isascii() and model.isprintable()
    told = model if fits else hashlib.blake2b(model.encode(), digest_size=NAME_MAX // 2).hexdigest()
    return arbiter.Settings(
        identity=Identity(
            station=pair.station,
            settings_digest=shared_digest(pair),
            model=told,
            schema=SCHEMA,
            observing=pair.observe_only,
            firmware=hashlib.blake2b(firmware.encode(), digest_size=FIRMWARE_MAX // 2).hexdigest() if firmware else "",
            upgrading=upgrading,
        ),
        timeout_s=pair.heartbeat_timeout_s,
        gateway=pair.gateway is not None and pair.gateway not in pair.cluster_addresses,
        peer_mac=pair.peer_mac,
        policy=pair.policy,
        observe=pair.observe_only,
        by_hand=pair.by_hand,
        drain_s=pair.drain_deadline_s,
    )


def _facts(settings: Settings, pair: PairSettings, membership: Membership, own_mac: Mac) -> PairFacts:
    other = Station.SECONDARY if pair.station is Station.PRIMARY else Station.PRIMARY
    lan = next((path for path in pair.paths if path.peer == pair.peer_ip), None)
    own_address = str(_local(pair, lan)) if lan is not None else ""
    return PairFacts(
        cluster_id=str(membership.cluster_id),
        node=settings.node.name,
        cluster_addresses=tuple(str(shared) for shared in pair.cluster_addresses),
        own=ReportedStation(station_type=pair.station.value, mac=own_mac, address=own_address),
        peer=ReportedStation(station_type=other.value, mac=pair.peer_mac, address=str(pair.peer_ip)),
    )


STAND_IN = "ha.interface = lo: a stand-in for the cluster IP answers UDP on the loopback address; no network sees it"


@dataclass(frozen=True, slots=True, kw_only=True)
class Machine:
    """What the settings are carried out on."""

    mac: Mac  # this node's own
    warnings: tuple[str, ...]


def check_machine(pair: PairSettings, *, proc_dir: str) -> Machine:
    """Raises ConfigFault or OperatorNeeded for what this machine cannot carry out."""
    kernel = Kernel()
    try:
        link = kernel.link(pair.interface)
        addresses = kernel.addresses()
    finally:
        kernel.close()
    if link is None:
        raise ConfigFault(
            "ha.toml", (f"ha.interface = {pair.interface}: there is no such interface: name one of this machine's",)
        )
    judged = against_interface(pair, own_addresses(addresses))
    if judged.faults:
        raise ConfigFault("ha.toml", judged.faults)
    if pair.cluster_addresses:
        _check_capabilities(proc_dir)
    return Machine(mac=Mac(link.mac), warnings=judged.warnings)


def missing_rights(proc_dir: str) -> list[str]:
    """Of those that the cluster IP needs, what this process lacks."""
    with open(os.path.join(proc_dir, "self/status"), encoding="utf-8", errors="replace") as file:
        effective = next((int(line.split()[1], 16) for line in file if line.startswith("CapEff:")), 0)
    wanted = (("CAP_NET_ADMIN", CAP_NET_ADMIN), ("CAP_NET_RAW", CAP_NET_RAW))
    return [name for name, bit in wanted if not effective >> bit & 1]


def _check_capabilities(proc_dir: str) -> None:
    missing = missing_rights(proc_dir)
    if missing:
        raise OperatorNeeded(
            "cannot hold the cluster IP",
            reason=f"this process lacks {' and '.join(missing)}",
            hint="run the agent as root, or give its unit AmbientCapabilities=CAP_NET_ADMIN CAP_NET_RAW",
        )


def own_addresses(addresses: tuple[AddressFacts, ...]) -> list[OwnAddress]:
    """What this machine has now, with the names of its interfaces."""
    found = []
    for one in addresses:
        try:
            name = socket.if_indextoname(one.index)
        except OSError:  # gone since it was listed
            continue
        address = ipaddress.ip_interface(f"{one.address}/{one.prefix}")
        found.append(OwnAddress(address=address, interface=name, permanent=one.valid_s == FOREVER))
    return found


def _stand_in_mac(pair: PairSettings) -> Mac:
    """A locally administered address made of the loopback address, which tells the two nodes apart."""
    local = next((path.local for path in pair.paths if path.local is not None and path.local.version == 4), None)
    if local is None:
        raise ConfigFault(
            "ha.toml", ('ha.interface = lo: needs a [[path]] with local = "127.0.0.x", which tells the nodes apart',)
        )
    return Mac((b"\x02\x00" + local.packed).hex(":"))


def _holder(
    pair: PairSettings, agent: Agent, *, stands_in: bool, clock: Callable[[], float]
) -> tuple[Holder, Lan | None]:
    addresses = pair.cluster_addresses
    if stands_in:
        return StandIn(addresses[0], pair.heartbeat_port, peer_mac=pair.peer_mac, clock=clock), None
    holder = KernelHolder(pair.interface, addresses, peer_mac=pair.peer_mac, ipv6=pair.ipv6, clock=clock)
    lan = Lan(
        holder,
        gateway=pair.gateway if pair.gateway not in addresses else None,
        apart=frozenset({*addresses, pair.peer_ip}),
        peer_mac=pair.peer_mac,
        on_answer=agent.lan_answered,
        aligned=agent.aligned,
    )
    return holder, lan


def _path_specs(pair: PairSettings) -> tuple[PathSpec, ...]:
    """Numbered by the order of the names, which are the same on both nodes."""
    ordered = sorted(pair.paths, key=lambda path: path.name)
    return tuple(
        PathSpec(
            path=PathId(number),
            name=path.name,
            local=str(_local(pair, path)),
            peer=str(path.peer),
            port=pair.heartbeat_port,
        )
        for number, path in enumerate(ordered)
    )


def _addresses_on(interface: str) -> frozenset[Address]:
    kernel = Kernel()
    try:
        link = kernel.link(interface)
        return frozenset(one.address for one in kernel.addresses() if link is not None and one.index == link.index)
    finally:
        kernel.close()


def _local(pair: PairSettings, path: PathSettings) -> Address:
    """The local end where the settings leave it to us: this node's own address on the interface of the cluster IP."""
    if path.local is not None:
        return path.local
    kernel = Kernel()
    try:
        link = kernel.link(pair.interface)
        own = [
            one
            for one in kernel.addresses()
            if link is not None
            and one.index == link.index
            and one.valid_s == FOREVER
            and one.address.version == path.peer.version
            and one.address not in pair.cluster_addresses
        ]
    finally:
        kernel.close()
    near = [one for one in own if path.peer in ipaddress.ip_interface(f"{one.address}/{one.prefix}").network]
    if not own:
        raise OperatorNeeded(
            "cannot find this node's own address for path",
            subject=path.name,
            reason=f"{pair.interface} has no static IPv{path.peer.version} address",
            hint=f'add [[path]] name = "{path.name}" with local and peer, or give {pair.interface} an address',
        )
    return (near or own)[0].address
