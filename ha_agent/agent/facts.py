"""What the preflight asks of a node's agent: settings, addresses, rights, FXO ports, what the vendor's command says.

What this system cannot see by itself (model, firmware, Cloud IM, entitlements, the DHCP server) comes from [node] and
[vendor] of ha.toml, or from the command named there; what neither says is not known. Works without a running agent.
"""

from __future__ import annotations

import asyncio
import dataclasses
import os
import re
from dataclasses import dataclass

from ha_agent.agent.building import LOOPBACK, SCHEMA, missing_rights, own_addresses
from ha_agent.cluster_ip.netlink import Kernel
from ha_agent.commands import Commands
from ha_agent.errors import ConfigFault
from ha_agent.health.fxo import read_ports
from ha_agent.memory import shared, window
from ha_agent.settings import PairSettings, Settings, document, saving
from ha_agent.settings.parse import settings_of
from ha_proto.agent.v1 import life_pb2 as pb

VENDOR_DEADLINE_S = 10.0
LINES_MAX = 100
ON_OFF = frozenset({"cloud_im", "fxo_splitters"})

_LINE = re.compile(r"(?P<key>[a-z_]{1,32})\s*=\s*(?P<value>[^\x00-\x1f]{0,64})\Z")


@dataclass(frozen=True, slots=True, kw_only=True)
class VendorFacts:
    """What is known; ``fault``: why the command told nothing."""

    known: dict[str, str]
    fault: str = ""


async def vendor_facts(settings: Settings) -> VendorFacts:
    """Of the settings, and of the vendor's command, whose word goes before theirs."""
    stated = {field.name: getattr(settings.vendor, field.name) for field in dataclasses.fields(settings.vendor)}
    del stated["command"]
    stated |= {"model": settings.node.model, "firmware": settings.node.firmware}
    told: dict[str, str] = {}
    fault = ""
    if settings.vendor.command:
        commands = Commands()
        try:
            done = await commands.run(settings.vendor.command, deadline_s=VENDOR_DEADLINE_S)
        finally:
            commands.close()
        told = _told(done.output, known=frozenset(stated)) if done.ok else {}
        fault = "" if done.ok else f"{' '.join(settings.vendor.command)}: {done.reason}"
    return VendorFacts(known={key: value for key, value in (stated | told).items() if value}, fault=fault)


def _told(output: str, *, known: frozenset[str]) -> dict[str, str]:
    """Lines that are none of ours say nothing."""
    found = {}
    for line in output.splitlines()[:LINES_MAX]:
        match = _LINE.match(line.strip())
        if match and match["key"] in known and (match["key"] not in ON_OFF or match["value"] in {"on", "off"}):
            found[match["key"]] = match["value"]
    return found


async def with_vendor(settings: Settings) -> Settings:
    """Model and firmware as the vendor's command says them, where there is one."""
    if not settings.vendor.command:
        return settings
    known = (await vendor_facts(settings)).known
    node = dataclasses.replace(settings.node, model=known.get("model", ""), firmware=known.get("firmware", ""))
    return dataclasses.replace(settings, node=node)


async def facts_of(path: str) -> pb.AgentFacts:
    """Of the file as it stands and of this machine, without what only a running agent knows."""
    content = await asyncio.to_thread(saving.read, path)
    try:
        settings, faults = settings_of(content.values, source=path), ()
    except ConfigFault as wrong:
        return pb.AgentFacts(faults=wrong.faults, schema_lowest=SCHEMA[0], schema_highest=SCHEMA[1])
    vendor = await vendor_facts(settings)
    facts = pb.AgentFacts(
        node=settings.node.name,
        enabled=settings.pair is not None,
        model=vendor.known.pop("model", ""),
        firmware=vendor.known.pop("firmware", ""),
        schema_lowest=SCHEMA[0],
        schema_highest=SCHEMA[1],
        vendor=vendor.known,
        vendor_fault=vendor.fault,
        missing_files=[name for name in _named_files(settings) if not os.access(name, os.R_OK)],
        fxo_ports=len(await asyncio.to_thread(read_ports, settings.node.dahdi_dir)),
        faults=faults,
        upgrading=(began := window.opened_from(settings.node.state_dir)) is not None,
        upgrading_from=began or "",
        shared_digest=shared.digest_of(shared.text_of(document.shared_of(content.values))),
    )
    if settings.pair is not None:
        await asyncio.to_thread(_pair_facts, facts, settings, settings.pair)
    return facts


def _pair_facts(facts: pb.AgentFacts, settings: Settings, pair: PairSettings) -> None:
    facts.station_type, facts.mode, facts.network_mode = pair.station.value, pair.mode.value, pair.network_mode.value
    facts.interface, facts.peer_ip, facts.peer_mac = pair.interface, str(pair.peer_ip), pair.peer_mac
    facts.cluster_ips.extend(str(one) for one in (pair.cluster_ip, pair.cluster_ip6) if one is not None)
    facts.heartbeat_port = pair.heartbeat_port
    facts.gateway = str(pair.gateway or "none")
    facts.paths.extend(
        pb.PathFact(name=path.name, local=str(path.local or ""), peer=str(path.peer)) for path in pair.paths
    )
    kernel = Kernel()
    try:
        link = kernel.link(pair.interface)
        addresses = kernel.addresses()
    finally:
        kernel.close()
    facts.own_mac = link.mac if link is not None and pair.interface != LOOPBACK else ""
    facts.addresses.extend(
        pb.AddressFact(address=str(one.address), interface=one.interface, is_static=one.permanent)
        for one in own_addresses(addresses)
    )
    if pair.cluster_addresses and pair.interface != LOOPBACK:
        facts.missing_rights.extend(missing_rights(settings.node.proc_dir))


def _named_files(settings: Settings) -> list[str]:
    probes = [probe.secret_file for probe in settings.probes]
    targets = [name for one in settings.alarms.everyone for name in (one.secret_file, one.ca_file)]
    return sorted({name for name in (*probes, *targets) if name})
