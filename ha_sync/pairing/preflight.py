"""Whether two nodes fit: one row for each check, with what was found on both and the remedy (R2, R19). Pure.

``fail`` forbids to form the pair; ``warn`` is what is odd, not known, or for a person to confirm. What neither node can
see by itself is as the settings or the vendor's command say: not known is a warning, never a pass.
"""

from __future__ import annotations

import ipaddress
from collections import Counter
from collections.abc import Callable, Iterable, Iterator

from ha_proto.agent.v1 import life_pb2 as agent_pb
from ha_proto.sync.v1 import life_pb2 as pb

PASS, WARN, FAIL = "pass", "warn", "fail"
ORDER = (PASS, WARN, FAIL)
CLOCK_WARN_S, CLOCK_FAIL_S = 2.0, 60.0
ROOM_FREE_BYTES = 64 << 20
NOT_KNOWN = "not known"
BY_HAND = "by hand"

Facts = pb.NodeFacts
Agent = agent_pb.AgentFacts


def judge(mine: Facts, theirs: Facts, *, offset_s: float, joining: bool) -> tuple[pb.Check, ...]:
    """``offset_s``: their clock minus mine. ``joining``: this node is about to join the other one."""
    found = [
        *_clocks(offset_s),
        *_datasets(mine, theirs),
        *_storages(mine, theirs),
        *_room(mine, theirs, joining=joining),
        *_ports(mine, theirs),
        *_rights(mine, theirs),
    ]
    if mine.HasField("agent") and theirs.HasField("agent"):
        found = [*_agents(mine.agent, theirs.agent, joiner_is_me=_joiner_is_me(mine, theirs, joining=joining)), *found]
    else:
        told = [
            one.agent_fault or "its agent was asked" if not one.HasField("agent") else "known" for one in (mine, theirs)
        ]
        found.insert(0, _row("agent", WARN, told, "start the agents of both nodes, and look again"))
    return tuple(found)


def worst(checks: tuple[pb.Check, ...]) -> str:
    """The verdict of all together."""
    return max((check.verdict for check in checks), key=ORDER.index, default=PASS)


def _row(name: str, verdict: str, told: Iterable[object], remedy: str) -> pb.Check:
    """``told``: what was found here and there."""
    mine, theirs = map(str, told)
    return pb.Check(name=name, verdict=verdict, mine=mine, theirs=theirs, remedy="" if verdict == PASS else remedy)


def _joiner_is_me(mine: Facts, theirs: Facts, *, joining: bool) -> bool:
    return joining or (theirs.role == "active" and mine.role != "active")


# -- what the agents know --------------------------------------------------------------------------------------------


def _agents(mine: Agent, theirs: Agent, *, joiner_is_me: bool) -> Iterator[pb.Check]:
    yield from _settings_whole(mine, theirs)
    yield _equal("model", (mine.model, theirs.model), "two models do not make a pair: take a node of the same model")
    yield _firmware(mine, theirs)
    yield _schema(mine, theirs)
    yield _stations(mine, theirs)
    yield _same("mode", mine, theirs, lambda one: one.mode, "mode in [ha] must be equal on both nodes")
    yield _same("network mode", mine, theirs, lambda one: one.network_mode, "network_mode in [ha] must be equal")
    yield _static(mine, theirs)
    yield from _peers(mine, theirs)
    yield from _cluster_ip(mine, theirs)
    if "route" in {mine.network_mode, theirs.network_mode}:
        yield from _route(mine, theirs)
    yield _beats(mine, theirs)
    yield from _vendor(mine, theirs, joiner_is_me=joiner_is_me)
    yield _splitters(mine, theirs)
    yield _none_missing("rights", mine.missing_rights, theirs.missing_rights, "run the agent as root")
    yield _none_missing("named files", mine.missing_files, theirs.missing_files, "put the file there", verdict=WARN)
    same = mine.shared_digest == theirs.shared_digest
    text = "the Standby takes the Active's by itself when it has joined"
    yield _row("shared settings", PASS if same else WARN, (mine.shared_digest, theirs.shared_digest), text)


def _settings_whole(mine: Agent, theirs: Agent) -> Iterator[pb.Check]:
    faults = [list(one.faults) for one in (mine, theirs)]
    told = ["; ".join(one) or "no faults" for one in faults]
    yield _row("settings", FAIL if any(faults) else PASS, told, "`ha-agent check-config` lists all; mend ha.toml")


def _equal(name: str, told: Iterable[str], remedy: str, *, verdict: str = FAIL) -> pb.Check:
    told = tuple(told)
    mine, theirs = told
    if not mine or not theirs:
        hint = "state it in ha.toml, or let the command of [vendor] say it"
        return _row(name, WARN, _known(told), hint)
    return _row(name, PASS if mine == theirs else verdict, told, remedy)


def _known(told: Iterable[str]) -> list[str]:
    return [one or NOT_KNOWN for one in told]


def _same(name: str, mine: Agent, theirs: Agent, of: Callable[[Agent], str], remedy: str) -> pb.Check:
    return _equal(name, (of(mine), of(theirs)), remedy)


def _firmware(mine: Agent, theirs: Agent) -> pb.Check:
    upgrading = mine.upgrading or theirs.upgrading
    remedy = "an upgrade goes on: end it soon" if upgrading else "upgrade the older node (`ha-sync upgrade-plan`)"
    return _equal("firmware", (mine.firmware, theirs.firmware), remedy, verdict=WARN if upgrading else FAIL)


def _schema(mine: Agent, theirs: Agent) -> pb.Check:
    told = [f"{one.schema_lowest}-{one.schema_highest}" for one in (mine, theirs)]
    apart = mine.schema_highest < theirs.schema_lowest or theirs.schema_highest < mine.schema_lowest
    return _row("data layout", FAIL if apart else PASS, told, "upgrade the older node: they share no data layout")


def _stations(mine: Agent, theirs: Agent) -> pb.Check:
    if not mine.station_type or not theirs.station_type:
        return _equal("station types", (mine.station_type, theirs.station_type), "")
    verdict = FAIL if mine.station_type == theirs.station_type else PASS
    return _row("station types", verdict, (mine.station_type, theirs.station_type), "one primary, one secondary")


def _static_of(one: Agent) -> list[str]:
    """Addresses without a lifetime on the interface of the cluster IP."""
    return [
        entry.address
        for entry in one.addresses
        if entry.interface == one.interface and entry.is_static and not _ip(entry.address).is_link_local
    ]


def _static(mine: Agent, theirs: Agent) -> pb.Check:
    told = [_static_of(mine), _static_of(theirs)]
    verdict = PASS if all(told) else FAIL
    shown = [", ".join(one) or "none" for one in told]
    return _row("static address", verdict, shown, "give the interface of the cluster IP an address by hand, no DHCP")


def _peers(mine: Agent, theirs: Agent) -> Iterator[pb.Check]:
    port = "that of the LAN port (route mode with two ports: LAN 2)"
    for name, one, other in (("peer IP", mine, theirs), ("peer IP there", theirs, mine)):
        own = [str(_ip(entry.address)) for entry in other.addresses]
        verdict = PASS if one.peer_ip in own else FAIL
        yield _row(name, verdict, (one.peer_ip or NOT_KNOWN, ", ".join(_static_of(other)) or "none"), "set peer_ip")
    for name, one, other in (("peer MAC", mine, theirs), ("peer MAC there", theirs, mine)):
        if not other.own_mac:  # the stand-in on loopback has none
            continue
        verdict = PASS if one.peer_mac == other.own_mac else FAIL
        yield _row(name, verdict, (one.peer_mac or NOT_KNOWN, other.own_mac), f"set peer_mac: {port}")


def _cluster_ip(mine: Agent, theirs: Agent) -> Iterator[pb.Check]:
    told = [", ".join(one.cluster_ips) or "none" for one in (mine, theirs)]
    remedy = "cluster_ip in [ha] must be equal: it comes from the Active when the node has joined"
    yield _row("cluster IP", PASS if told[0] == told[1] else WARN, told, remedy)
    shared = {_ip(one) for node in (mine, theirs) for one in node.cluster_ips}
    taken = [
        [entry.address for entry in node.addresses if entry.is_static and _ip(entry.address) in shared]
        for node in (mine, theirs)
    ]
    shown = [", ".join(one) or "not its own" for one in taken]
    yield _row(
        "cluster IP is nobody's own", FAIL if any(taken) else PASS, shown, "take an address that neither node has"
    )


def _route(mine: Agent, theirs: Agent) -> Iterator[pb.Check]:
    """R19: the cluster IP in the LAN segment, the peer on its LAN address, DHCP alike, each node its own NAT."""
    inside = [all(_in_lan(one, _ip(ip)) for ip in one.cluster_ips) for one in (mine, theirs)]
    told = [", ".join(_static_of(one)) or "none" for one in (mine, theirs)]
    yield _row(
        "route: cluster IP in the LAN", PASS if all(inside) else FAIL, told, "take an address of the LAN segment"
    )
    near = [bool(one.peer_ip) and _in_lan(one, _ip(one.peer_ip)) for one in (mine, theirs)]
    yield _row(
        "route: peer IP in the LAN", PASS if all(near) else FAIL, (mine.peer_ip, theirs.peer_ip), "use LAN addresses"
    )
    dhcp = [one.vendor.get("dhcp", "") for one in (mine, theirs)]
    yield _equal("route: DHCP", dhcp, "set the DHCP server alike on both nodes, or off on both")
    if "off" not in dhcp:
        handed = [one.vendor.get("dhcp_gateway", "") for one in (mine, theirs)]
        wanted = {str(_ip(ip)) for ip in (*mine.cluster_ips, *theirs.cluster_ips)}
        fits = all(one in wanted for one in handed if one)
        verdict = WARN if not all(handed) else PASS if fits else FAIL
        remedy = "where the node is the gateway, DHCP hands out the cluster IP as default gateway"
        yield _row("route: DHCP gateway", verdict, _known(handed), remedy)
    hosts = [one.vendor.get("nat_host", "") for one in (mine, theirs)]
    verdict = WARN if not all(hosts) else FAIL if hosts[0] == hosts[1] else PASS
    yield _row(
        "route: NAT host",
        verdict,
        _known(hosts),
        "each node has its own WAN address as NAT host",
    )
    networks = [one.vendor.get("nat_networks", "") for one in (mine, theirs)]
    yield _row(
        "route: NAT networks",
        PASS if all(networks) else WARN,
        _known(networks),
        "each node states its own local networks",
    )


def _in_lan(one: Agent, address: ipaddress.IPv4Address | ipaddress.IPv6Address) -> bool:
    return any(address in ipaddress.ip_interface(own).network for own in _static_of(one))


def _beats(mine: Agent, theirs: Agent) -> pb.Check:
    told = [", ".join(f"{path.name} {path.state or 'no agent'}" for path in one.paths) for one in (mine, theirs)]
    states = {path.state for one in (mine, theirs) for path in one.paths}
    port = mine.heartbeat_port or 9527
    remedy = f"let UDP {port} through on every path, in both directions; see `ha-sync status`"
    return _row("heartbeats on each path", PASS if states == {"both"} else WARN, told, remedy)


def _vendor(mine: Agent, theirs: Agent, *, joiner_is_me: bool) -> Iterator[pb.Check]:
    for fault in filter(None, (mine.vendor_fault, theirs.vendor_fault)):
        yield _row("vendor's command", WARN, (mine.vendor_fault or "works", theirs.vendor_fault or "works"), fault)
        break
    storage = [one.vendor.get("cloud_storage", "") for one in (mine, theirs)]
    one_sided = all(storage) and (storage[0] == "none") != (storage[1] == "none")
    verdict = WARN if not all(storage) else FAIL if one_sided else PASS
    yield _row("cloud storage", verdict, _known(storage), "on both nodes or on neither")
    kinds = [one.vendor.get("entitlements", "") for one in (mine, theirs)]
    alike = [",".join(sorted(part.strip() for part in one.split(","))) for one in kinds]
    yield _equal("entitlements", alike, "the same kinds on both nodes: ask the vendor")
    im = [one.vendor.get("cloud_im", "") for one in (mine, theirs)]
    joiner = im[0] if joiner_is_me else im[1]
    verdict = WARN if not joiner else FAIL if joiner == "on" else PASS
    yield _row(
        "Cloud IM off on the joiner",
        verdict,
        _known(im),
        "switch Cloud IM off on the joining node",
    )


def _splitters(mine: Agent, theirs: Agent) -> pb.Check:
    told = [
        f"{one.fxo_ports} ports" + (", confirmed" if one.vendor.get("fxo_splitters") == "on" else "")
        for one in (mine, theirs)
    ]
    ports = [one.fxo_ports for one in (mine, theirs)]
    confirmed = all(one.vendor.get("fxo_splitters") == "on" for one in (mine, theirs))
    verdict = PASS if not any(ports) or (confirmed and ports[0] == ports[1]) else WARN
    remedy = (
        'FXO ports of the same number go to one line by a splitter: look, then set fxo_splitters = "on" in [vendor]'
    )
    return _row(f"FXO ports on splitters ({BY_HAND})", verdict, told, remedy)


# -- what the engines know -------------------------------------------------------------------------------------------


def _clocks(offset_s: float) -> Iterator[pb.Check]:
    off = abs(offset_s)
    verdict = PASS if off <= CLOCK_WARN_S else WARN if off <= CLOCK_FAIL_S else FAIL
    yield _row("clocks", verdict, ("this one", f"{offset_s:+.1f} s"), "let both nodes follow the same time server")


def _datasets(mine: Facts, theirs: Facts) -> Iterator[pb.Check]:
    told = [", ".join(sorted(f"{one.name} {one.kind}" for one in facts.datasets)) for facts in (mine, theirs)]
    same = told[0] == told[1]
    yield _row("datasets", PASS if same else WARN, told, "[[dataset]] in sync.toml: the same names and kinds on both")


def _storages(mine: Facts, theirs: Facts) -> Iterator[pb.Check]:
    kinds = [Counter(one.medium for one in facts.storages) for facts in (mine, theirs)]
    if not any(kinds):
        return
    told = [", ".join(f"{count} {medium}" for medium, count in sorted(kind.items())) or "none" for kind in kinds]
    same = kinds[0] == kinds[1]
    yield _row("storages", PASS if same else FAIL, told, "the same kinds and number of storages on both nodes")
    unmounted = [[one.name for one in facts.storages if not one.mounted] for facts in (mine, theirs)]
    shown = [", ".join(one) + " absent" if one else "all mounted" for one in unmounted]
    yield _row("storages mounted", FAIL if any(unmounted) else PASS, shown, "put the medium in, or mount it")
    there = {one.name: one for one in theirs.storages}
    for one in mine.storages:
        other = there.get(one.name)
        if other is None or not (one.mounted and other.mounted):
            continue
        fits = one.used_bytes <= other.total_bytes and other.used_bytes <= one.total_bytes
        verdict = FAIL if not fits else WARN if one.total_bytes != other.total_bytes else PASS
        told = [f"{_mib(side.used_bytes)} of {_mib(side.total_bytes)}" for side in (one, other)]
        remedy = "what is stored must fit both ways" if not fits else "the sizes differ: the smaller one is the limit"
        yield _row(f"storage {one.name}", verdict, told, remedy)


def _room(mine: Facts, theirs: Facts, *, joining: bool) -> Iterator[pb.Check]:
    free = [facts.state_free_bytes for facts in (mine, theirs)]
    verdict = PASS if min(free) >= ROOM_FREE_BYTES else FAIL
    yield _row("room in state_dir", verdict, map(_mib, free), f"at least {_mib(ROOM_FREE_BYTES)} free on each")
    i_join = _joiner_is_me(mine, theirs, joining=joining)
    joiner, source = (mine, theirs) if i_join else (theirs, mine)
    held = {one.name: one for one in joiner.datasets}
    for one in source.datasets:
        here = held.get(one.name)
        if here is None:
            continue
        fits = one.used_bytes <= here.free_bytes + here.used_bytes
        if fits and one.counted:
            continue
        told = f"{'' if one.counted else 'at least '}{_mib(one.used_bytes)}"
        room = f"room for {_mib(here.free_bytes + here.used_bytes)}"
        sides = (room, told) if i_join else (told, room)
        yield _row(f"room for {one.name}", WARN if fits else FAIL, sides, "make room on the joining node")


def _ports(mine: Facts, theirs: Facts) -> Iterator[pb.Check]:
    for name, facts in (("port open", mine), ("port open, from there", theirs)):
        for one in facts.ports:
            told = "open" if one.open else one.reason or "closed"
            sides = (told, one.address) if facts is mine else (one.address, told)
            remedy = (
                "let TCP to this port through; is `ha-sync serve` running there, and does `listen` name the address?"
            )
            yield _row(f"{name}: {one.address}", PASS if one.open else WARN, sides, remedy)


def _rights(mine: Facts, theirs: Facts) -> Iterator[pb.Check]:
    yield _none_missing(
        "rights to the data", mine.missing_rights, theirs.missing_rights, "run the engine as root, or give it the right"
    )


def _none_missing(name: str, mine: object, theirs: object, remedy: str, *, verdict: str = FAIL) -> pb.Check:
    told = [", ".join(str(item) for item in side) for side in (mine, theirs)]  # type: ignore[attr-defined]
    return _row(name, verdict if any(told) else PASS, [one or "none missing" for one in told], remedy)


def _ip(text: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address:
    return ipaddress.ip_interface(text).ip


def _mib(size: int) -> str:
    return f"{size >> 20} MiB"
