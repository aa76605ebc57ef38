"""Reads ``ha.toml``. Blocking (one small file); nothing but the file is looked at.

All faults come together in one ``ConfigFault``. With ``enabled = false`` the agent idles: ``Settings.pair`` is None,
what is missing is no fault, and what is there is checked all the same. What can only be judged beside the addresses
of the machine is in ``relations.against_interface``.
"""

from __future__ import annotations

import os
import re
import tomllib
from typing import Any

from ha_agent.arbiter.values import Mac, Policy, Station
from ha_agent.errors import ConfigFault
from ha_agent.settings import form
from ha_agent.settings.entries import parse_command, parse_paths, parse_probes, parse_services
from ha_agent.settings.fields import TIMEOUT_MAX_S
from ha_agent.settings.reading import Faults, Table
from ha_agent.settings.relations import check_pair, check_probes
from ha_agent.settings.telling import parse_alarms, target_warnings
from ha_agent.settings.values import (
    LAN_PATH,
    SOCKET_NAME,
    Address,
    AfterSwitch,
    FaultSwitches,
    Mode,
    NetworkMode,
    NodeSettings,
    OnOff,
    PairSettings,
    PathSettings,
    RemoteTakeOver,
    Settings,
    VendorSettings,
)

FILE_BYTES_MAX = 1024 * 1024


def load(path: str) -> Settings:
    """Everything in the file; raises ``ConfigFault`` with all faults."""
    return settings_of(_read(path), source=path)


def settings_of(values: dict[str, object], *, source: str) -> Settings:
    """The same of what TOML gave; ``source`` names it in the fault."""
    faults = Faults()
    top = Table("ha.toml", values, faults)
    node = _node(top)
    vendor = _vendor(top)
    services = parse_services(top, faults)
    probes = parse_probes(top, faults)
    warnings: list[str] = list(check_probes(probes, services, faults))
    alarms = parse_alarms(top, faults)
    warnings += target_warnings(alarms)
    ha = top.table("ha")
    enabled = ha.flag("enabled")
    ha.demanding = enabled
    pair = _pair(ha, top, faults)
    ha.finish()
    top.finish()
    if pair is not None:
        warnings += check_pair(pair, ha, services)
    if faults:
        raise ConfigFault(source, faults.lines())
    return Settings(
        node=node,
        vendor=vendor,
        pair=pair if enabled else None,
        services=services,
        probes=probes,
        alarms=alarms,
        warnings=tuple(warnings),
    )


def load_node(path: str) -> NodeSettings:
    """Only ``[node]``: enough to find the running agent, whatever else is wrong in the file just now."""
    faults = Faults()
    node = _node(Table("ha.toml", _read(path), faults))
    if faults:
        raise ConfigFault(path, faults.lines())
    return node


def _read(path: str) -> dict[str, object]:
    try:
        with open(path, "rb") as file:
            data = file.read(FILE_BYTES_MAX + 1)
    except FileNotFoundError as error:
        raise ConfigFault(path, ("there is no such file: write it, or name another with --config",)) from error
    except OSError as error:
        raise ConfigFault(path, (f"cannot be read: {error.strerror}",)) from error
    if len(data) > FILE_BYTES_MAX:
        raise ConfigFault(path, (f"is larger than {FILE_BYTES_MAX} bytes: this is no settings file",))
    try:
        return tomllib.loads(data.decode())
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise ConfigFault(path, (f"line {line} is not UTF-8: save the file as UTF-8",)) from error
    except (ValueError, RecursionError) as error:  # a number of 5000 digits is no TOMLDecodeError
        reason = re.sub(r"Cannot overwrite a value", "a key stands there twice", str(error) or type(error).__name__)
        raise ConfigFault(path, (f"is not TOML: {reason}",)) from error


def _node(top: Table) -> NodeSettings:
    table = top.table("node")
    node = NodeSettings(
        name=table.text("name", form.free_text),
        model=table.text("model", form.free_text),
        firmware=table.text("firmware", form.free_text),
        state_dir=_folder(table, "state_dir"),
        run_dir=_folder(table, "run_dir"),
        proc_dir=_folder(table, "proc_dir"),
        sys_net_dir=_folder(table, "sys_net_dir"),
        dahdi_dir=_folder(table, "dahdi_dir"),
        reboot_command=parse_command(table, "reboot_command"),
        calls_command=parse_command(table, "calls_command"),
    )
    if len(os.fsencode(node.socket_path)) > form.SOCKET_PATH_BYTES_MAX:
        most = form.SOCKET_PATH_BYTES_MAX - len(f"/{SOCKET_NAME}")
        table.fault("run_dir", f"must be at most {most} bytes long: a socket lies in it")
    table.finish()
    return node


def _folder(table: Table, key: str) -> str:
    return os.path.normpath(table.text(key, form.absolute_path))


def _vendor(top: Table) -> VendorSettings:
    table = top.table("vendor")
    texts = ("cloud_storage", "entitlements", "dhcp", "dhcp_gateway", "nat_host", "nat_networks")
    switches = {key: table.choice(key, OnOff) for key in ("cloud_im", "fxo_splitters")}
    vendor = VendorSettings(
        command=parse_command(table, "command"),
        **{key: table.text(key, form.free_text) for key in texts},
        **{key: found.value if found is not None else "" for key, found in switches.items()},
    )
    table.finish()
    return vendor


def _pair(ha: Table, top: Table, faults: Faults) -> PairSettings | None:
    """None where something that cannot have a default is missing or wrong."""
    mode = ha.choice("mode", Mode) or Mode.LOCAL
    ipv6 = ha.flag("ipv6")
    station = ha.choice("station_type", Station)
    ha.need("station_type")
    cluster_ip = ha.parsed("cluster_ip", form.cluster_ip_of)
    if mode is Mode.LOCAL:
        ha.need("cluster_ip")
    cluster_ip6 = ha.parsed("cluster_ip6", form.cluster_ip6_of)
    peer_ip = ha.parsed("peer_ip", form.address_of)
    ha.need("peer_ip")
    peer_mac = ha.parsed("peer_mac", form.mac_of)
    ha.need("peer_mac")
    interface = ha.text("interface", form.interface)
    ha.need("interface")
    gateway = ha.parsed("gateway", form.gateway_of)
    rest = _figures(ha, mode)
    paths = parse_paths(top, faults, ipv6=ipv6)
    for key, found in (("cluster_ip6", cluster_ip6), ("peer_ip", peer_ip), ("gateway", gateway)):
        if not ipv6 and found is not None and found.version == 6:
            ha.fault(key, "is IPv6: set ipv6 = true")
    if station is None or peer_ip is None or peer_mac is None or not interface:
        return None
    return PairSettings(
        mode=mode,
        station=station,
        cluster_ip=cluster_ip,
        cluster_ip6=cluster_ip6,
        peer_ip=peer_ip,
        peer_mac=Mac(peer_mac),
        interface=interface,
        gateway=gateway,
        ipv6=ipv6,
        paths=_with_lan(paths, peer_ip),
        **rest,
    )


def _figures(ha: Table, mode: Mode) -> dict[str, Any]:
    """What has a default."""
    hint = f'; {TIMEOUT_MAX_S[Mode.REMOTE]} with mode = "remote"' if mode is Mode.LOCAL else ""
    return {
        "heartbeat_port": ha.integer("heartbeat_port"),
        "heartbeat_timeout_s": ha.number("heartbeat_timeout_s", high=TIMEOUT_MAX_S[mode], hint=hint),
        "network_mode": ha.choice("network_mode", NetworkMode) or NetworkMode.SWITCH,
        "remote_take_over": ha.choice("remote_take_over", RemoteTakeOver) or RemoteTakeOver.BY_HAND,
        "switches": FaultSwitches(
            software=ha.flag("software_fault_switch"),
            hardware=ha.flag("hardware_fault_switch"),
            fxo_ports=ha.integers("fxo_ports"),
        ),
        "policy": ha.choice("policy", Policy) or Policy.AVAILABILITY,
        "after_switch": ha.choice("after_switch", AfterSwitch) or AfterSwitch.SERVICES,
        "drain_deadline_s": ha.number("drain_deadline_s"),
        "maintenance_max_s": ha.number("maintenance_max_s"),
        "observe_only": ha.flag("observe_only"),
    }


def _with_lan(paths: tuple[PathSettings, ...], peer_ip: Address) -> tuple[PathSettings, ...]:
    """Beats always go to the peer's own address too: no cable is the only path."""
    if any(path.peer == peer_ip for path in paths):
        return paths
    return (PathSettings(name=LAN_PATH, local=None, peer=peer_ip), *paths)
