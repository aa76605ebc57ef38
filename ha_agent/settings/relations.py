"""What must fit together: settings among themselves, with the machine's addresses, and with the other node. Pure.

Faults refuse the settings; warnings are said and lived with.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass

from ha_agent.settings.reading import Faults, Table
from ha_agent.settings.values import (
    Address,
    Interface,
    Mode,
    OnStandby,
    PairSettings,
    ProbeSettings,
    ServiceSettings,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class OwnAddress:
    """An address that this machine has just now."""

    address: Interface
    interface: str
    permanent: bool  # set by hand; an address from DHCP or of a lease has a lifetime


@dataclass(frozen=True, slots=True, kw_only=True)
class Judgement:
    """What is wrong (``faults``: HA does not start) and what is odd (``warnings``)."""

    faults: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()


def check_pair(pair: PairSettings, ha: Table, services: Iterable[ServiceSettings]) -> list[str]:
    """Faults go into ``ha``; returns the warnings."""
    assert pair.lease_s + 1 <= pair.heartbeat_timeout_s, (pair.lease_s, pair.heartbeat_timeout_s)
    shared = {"cluster_ip": pair.cluster_ip, "cluster_ip6": pair.cluster_ip6}
    for key, cluster in shared.items():
        if cluster is not None:
            _check_cluster_address(key, cluster.ip, pair, ha)
    if pair.interface == "lo" and not pair.cluster_addresses:
        ha.fault("interface", "is a stand-in for a cluster IP: state cluster_ip, or name the interface of the LAN")
    for path in pair.paths:
        if path.local == pair.peer_ip:
            ha.fault("peer_ip", f'is this node\'s own address on path "{path.name}": name the other node')
    return [*_remote_warnings(pair), *_gateway_warnings(pair), *_drain_warnings(pair, services)]


def _remote_warnings(pair: PairSettings) -> list[str]:
    if pair.mode is not Mode.REMOTE:
        return []
    found = (
        'ha.mode = "remote": only terminals that take a second server (the vendor\'s own) find the other site; '
        "after a take-over all others must be pointed at it by hand, by DNS, or by a custom domain"
    )
    return [found]


def _check_cluster_address(key: str, cluster: Address, pair: PairSettings, ha: Table) -> None:
    if cluster == pair.peer_ip:
        ha.fault(key, "is the peer's own address: it must be an address that neither node has by itself")
    for path in pair.paths:
        if cluster == path.local:
            ha.fault(key, f'is this node\'s own address on path "{path.name}": take one that neither node has')
        if cluster == path.peer and path.peer != pair.peer_ip:
            ha.fault(key, f'is the peer\'s address on path "{path.name}": take one that neither node has')


def _gateway_warnings(pair: PairSettings) -> list[str]:
    if pair.gateway is not None and pair.gateway in pair.cluster_addresses:
        return [
            f"ha.gateway = {pair.gateway}: is the cluster IP itself, which proves nothing; the carrier counts instead"
        ]
    subnet = pair.cluster_ip.network if pair.cluster_ip is not None else None
    if pair.gateway is not None and subnet is not None and pair.gateway.version == 4 and pair.gateway not in subnet:
        return [f"ha.gateway = {pair.gateway}: is outside of the cluster IP's network {subnet}"]
    return []


def _drain_warnings(pair: PairSettings, services: Iterable[ServiceSettings]) -> list[str]:
    total = sum(service.stop_deadline_s for service in services if service.standby is OnStandby.STOPPED)
    if total <= pair.drain_deadline_s:
        return []
    late = f"the services may take {total:g} seconds to stop, so that a planned switch may be given up while they do"
    return [f"ha.drain_deadline_s = {pair.drain_deadline_s:g}: {late}"]


def check_probes(
    probes: Iterable[ProbeSettings], services: Iterable[ServiceSettings], faults: Faults
) -> tuple[str, ...]:
    """Names of probes and of services stand in one list of causes, so they differ; returns the warnings."""
    named = {service.name for service in services if service.probe}
    warnings = []
    for probe in probes:
        if probe.kind.value == "command" and probe.name in named:
            faults.add(f"probe[{probe.name}].name: a service of this name has a probe already: take another name")
        if probe.deadline_s > probe.interval_s * probe.fall:
            warnings.append(
                f"probe[{probe.name}].deadline_s = {probe.deadline_s:g}: one silent look lasts longer than "
                f"{probe.fall} intervals, so that a fault shows late"
            )
    return tuple(warnings)


def against_interface(pair: PairSettings, own: Iterable[OwnAddress]) -> Judgement:
    """Judges beside what the machine has. An address with a lifetime that is the cluster IP is our own lease."""
    own = tuple(own)
    faults, warnings = [], []
    for seen in own:
        if seen.address.ip in pair.cluster_addresses and seen.permanent:
            faults.append(
                f"ha.cluster_ip = {seen.address.ip}: is this node's own address on {seen.interface}: remove it there "
                "or take another"
            )
        if seen.address.ip == pair.peer_ip:
            faults.append(f"ha.peer_ip = {pair.peer_ip}: is this node's own address: name the other node")
    base = [one for one in own if one.interface == pair.interface and one.address.ip not in pair.cluster_addresses]
    faults += _static_faults(pair, base)
    warnings += _subnet_warnings(pair, base)
    return Judgement(faults=tuple(faults), warnings=tuple(warnings))


def _static_faults(pair: PairSettings, base: list[OwnAddress]) -> list[str]:
    fixed = [one for one in base if one.permanent and not one.address.ip.is_link_local]
    if fixed:
        return []
    found = ", ".join(str(one.address) for one in base if not one.address.ip.is_link_local) or "none"
    return [f"ha.interface = {pair.interface}: has no static address of its own (found: {found}): set one"]


def _subnet_warnings(pair: PairSettings, base: list[OwnAddress]) -> list[str]:
    warnings = []
    for key, shared in (("cluster_ip", pair.cluster_ip), ("cluster_ip6", pair.cluster_ip6)):
        if shared is None:
            continue
        networks = [one.address.network for one in base if one.address.version == shared.version]
        if not any(shared.ip in network for network in networks):
            listed = ", ".join(str(network) for network in networks) or "none"
            warnings.append(f"ha.{key} = {shared}: is outside of the networks of {pair.interface} ({listed})")
    return warnings


def shared_facts(pair: PairSettings) -> tuple[tuple[str, str], ...]:
    """Settings that must be equal on both nodes: two that differ here would not make one pair."""
    switches = pair.switches
    remote = (("remote_take_over", pair.remote_take_over.value),) if pair.mode is Mode.REMOTE else ()
    return (
        ("mode", pair.mode.value),
        ("cluster_ip", str(pair.cluster_ip or "")),
        ("cluster_ip6", str(pair.cluster_ip6 or "")),
        ("heartbeat_port", str(pair.heartbeat_port)),
        ("heartbeat_timeout_s", f"{pair.heartbeat_timeout_s:g}"),
        ("network_mode", pair.network_mode.value),
        ("ipv6", str(pair.ipv6)),
        ("policy", pair.policy.value),
        ("software_fault_switch", str(switches.software)),
        ("hardware_fault_switch", str(switches.hardware)),
        *remote,
    )


def shared_digest(pair: PairSettings) -> str:
    """Sixteen hex digits over ``shared_facts``; travels in every beat."""
    text = "\n".join(f"{name}={value}" for name, value in shared_facts(pair))
    return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()


def differences(mine: PairSettings, theirs: Iterable[tuple[str, str]]) -> tuple[str, ...]:
    """Names of the settings in which the other node differs."""
    told = dict(theirs)
    return tuple(name for name, value in shared_facts(mine) if told.get(name) != value)
