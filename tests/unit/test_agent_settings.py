"""``ha.toml``: ranges and defaults of R1, all faults together, relations."""

from __future__ import annotations

import ipaddress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ha_agent.arbiter.values import Policy, Station
from ha_agent.errors import AgentError, ConfigFault
from ha_agent.settings import (
    AfterSwitch,
    FaultSwitches,
    Mode,
    NetworkMode,
    OnStandby,
    OwnAddress,
    PairSettings,
    ProbeKind,
    Settings,
    When,
    against_interface,
    differences,
    load,
    load_node,
    settings_of,
    shared_digest,
    shared_facts,
)

HA: dict[str, Any] = {
    "enabled": True,
    "station_type": "primary",
    "cluster_ip": "192.168.129.53/24",
    "peer_ip": "192.168.129.52",
    "peer_mac": "00:0B:82:AA:BB:02",
    "interface": "eth0",
}
CABLE = {"name": "cable", "local": "169.254.9.1", "peer": "169.254.9.2"}
ASTERISK = {
    "name": "asterisk",
    "start": ["/usr/bin/systemctl", "start", "asterisk"],
    "stop": ["/usr/bin/systemctl", "stop", "asterisk"],
}


def parsed(changes: dict[str, Any] | None = None, **sections: Any) -> Settings:
    return settings_of({"ha": HA | (changes or {}), **sections}, source="ha.toml")


def pair_of(changes: dict[str, Any] | None = None, **sections: Any) -> PairSettings:
    pair = parsed(changes, **sections).pair
    assert pair is not None
    return pair


def faults_of(changes: dict[str, Any] | None = None, *, without: str = "", **sections: Any) -> str:
    ha = {key: value for key, value in (HA | (changes or {})).items() if key != without}
    with pytest.raises(ConfigFault) as caught:
        settings_of({"ha": ha, **sections}, source="ha.toml")
    return "\n".join(caught.value.faults)


def own(text: str, *, interface: str = "eth0", permanent: bool = True) -> OwnAddress:
    return OwnAddress(address=ipaddress.ip_interface(text), interface=interface, permanent=permanent)


@pytest.mark.req("R1.2", "R1.7", "R1.8", "R1.9", "R1.10", "R1.11", "R1.15", "R1.16")
def test_what_is_not_stated_has_the_default_of_the_requirements() -> None:
    pair = pair_of()
    assert (pair.mode, pair.heartbeat_port, pair.heartbeat_timeout_s) == (Mode.LOCAL, 9527, 7.0)
    assert pair.switches == FaultSwitches(software=False, hardware=False, fxo_ports=frozenset())
    assert (pair.ipv6, pair.network_mode, pair.gateway) == (False, NetworkMode.SWITCH, None)
    assert (pair.policy, pair.after_switch) == (Policy.AVAILABILITY, AfterSwitch.SERVICES)
    assert not pair.observe_only


@pytest.mark.req("R1.1")
@pytest.mark.parametrize("ha", [{}, {"enabled": False}, {**HA, "enabled": False}])
def test_switched_off_is_the_default_and_needs_nothing(ha: dict[str, Any]) -> None:
    assert settings_of({"ha": ha} if ha else {}, source="ha.toml").pair is None


@pytest.mark.req("R1.1")
def test_switched_off_what_is_there_is_checked_all_the_same() -> None:
    faults = faults_of({"enabled": False, "heartbeat_timeout_s": 11})
    assert "ha.heartbeat_timeout_s = 11: must be a number from 3 to 10" in faults


@pytest.mark.req("R1.3", "R1.4", "R1.5", "R1.6", "R1.16")
def test_everything_that_is_missing_is_said_at_once() -> None:
    with pytest.raises(ConfigFault) as caught:
        settings_of({"ha": {"enabled": True}}, source="ha.toml")
    named = [fault.partition(" is missing")[0].partition(":")[0] for fault in caught.value.faults]
    assert named == ["ha.station_type", "ha.cluster_ip", "ha.peer_ip", "ha.peer_mac", "ha.interface"]
    assert caught.value.exit_code == 2
    assert isinstance(caught.value, AgentError)


@pytest.mark.req("R1.6")
@pytest.mark.parametrize("text", ["00:0b:82:aa:bb:02", "00-0B-82-AA-BB-02"])
def test_a_hardware_address_is_one_address_however_it_is_written(text: str) -> None:
    assert pair_of({"peer_mac": text}).peer_mac == "00:0b:82:aa:bb:02"


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        pytest.param("heartbeat_timeout_s", 2.9, "from 3 to 10", marks=pytest.mark.req("R1.8")),
        pytest.param("heartbeat_timeout_s", 10.1, "from 3 to 10", marks=pytest.mark.req("R1.8")),
        pytest.param("heartbeat_timeout_s", float("nan"), "from 3 to 10", marks=pytest.mark.req("R1.8")),
        pytest.param("heartbeat_port", -1, "from 0 to 65535", marks=pytest.mark.req("R1.7")),
        pytest.param("heartbeat_port", 65536, "from 0 to 65535", marks=pytest.mark.req("R1.7")),
        pytest.param("heartbeat_port", True, "from 0 to 65535", marks=pytest.mark.req("R1.7")),
        pytest.param("station_type", "third", '"primary", "secondary"', marks=pytest.mark.req("R1.3")),
        pytest.param("station_type", "primry", 'did you mean "primary"', marks=pytest.mark.req("R1.3")),
        pytest.param("mode", "far", '"local", "remote"', marks=pytest.mark.req("R1.2")),
        pytest.param("network_mode", "dual", '"switch", "route"', marks=pytest.mark.req("R1.15")),
        pytest.param("peer_mac", "01:00:5e:00:00:01", "not of a group", marks=pytest.mark.req("R1.6")),
        pytest.param("peer_mac", "00:00:00:00:00:00", "not zero", marks=pytest.mark.req("R1.6")),
        pytest.param("peer_mac", "00:0b:82:aa:bb", "six pairs", marks=pytest.mark.req("R1.6")),
        pytest.param("peer_ip", "pbx-b", "must be an address", marks=pytest.mark.req("R1.5")),
        pytest.param("peer_ip", "224.0.0.1", "not of a group", marks=pytest.mark.req("R1.5")),
        pytest.param("peer_ip", "fd00::2", "set ipv6 = true", marks=pytest.mark.req("R1.11")),
        pytest.param("cluster_ip", "192.168.129.255/24", "broadcast", marks=pytest.mark.req("R1.4")),
        pytest.param("cluster_ip", "192.168.129.0/24", "network itself", marks=pytest.mark.req("R1.4")),
        pytest.param("cluster_ip", "fd00::53/64", "IPv4 address", marks=pytest.mark.req("R1.4")),
        pytest.param("cluster_ip", "192.168.129.52/24", "the peer's own", marks=pytest.mark.req("R1.4")),
        pytest.param("cluster_ip6", "fd00::53/64", "set ipv6 = true", marks=pytest.mark.req("R1.11")),
        pytest.param("gateway", "nobody", 'or "none"', marks=pytest.mark.req("R1.16")),
        pytest.param("interface", "a-name-that-is-too-long", "1 to 15", marks=pytest.mark.req("R1.16")),
        pytest.param("interface", "..", "1 to 15", marks=pytest.mark.req("R1.16")),
        pytest.param("fxo_ports", [1, 1], "twice", marks=pytest.mark.req("R1.10")),
        pytest.param("fxo_ports", [0], "from 1 to 1024", marks=pytest.mark.req("R1.10")),
        pytest.param("fxo_ports", 1, "from 1 to 1024", marks=pytest.mark.req("R1.10")),
        pytest.param("software_fault_switch", "yes", "true or false", marks=pytest.mark.req("R1.9")),
        pytest.param("observe_only", 1, "true or false"),
        pytest.param("policy", "speed", '"availability", "consistency"'),
        pytest.param("after_switch", "sleep", '"services", "reboot"', marks=pytest.mark.req("R16")),
        pytest.param("drain_deadline_s", 0, "from 1 to 600"),
        pytest.param("maintenance_max_s", 86401, "from 60 to 86400"),
        pytest.param("hartbeat_port", 9527, 'unknown key; did you mean "heartbeat_port"?'),
        pytest.param("peer_ip", "192.168.129.52\n", "control characters"),
    ],
)
def test_a_wrong_value_is_refused_with_field_and_range(key: str, value: object, words: str) -> None:
    faults = faults_of({key: value})
    assert f"ha.{key}" in faults
    assert words in faults


@pytest.mark.req("R1.2", "R1.8", "R1.4")
def test_a_remote_site_may_wait_longer_and_needs_no_cluster_ip() -> None:
    ha = {key: value for key, value in HA.items() if key != "cluster_ip"}
    settings = settings_of({"ha": ha | {"mode": "remote", "heartbeat_timeout_s": 60}}, source="ha.toml")
    assert settings.pair is not None
    assert (settings.pair.heartbeat_timeout_s, settings.pair.cluster_addresses) == (60.0, ())
    assert "from 3 to 60" in faults_of({"mode": "remote", "heartbeat_timeout_s": 61})


@pytest.mark.req("R1.8")
@given(st.floats(3, 60))
def test_the_lease_ends_a_second_before_the_timeout_and_lasts_one_at_least(timeout_s: float) -> None:
    pair = pair_of({"mode": "remote", "heartbeat_timeout_s": timeout_s})
    assert pair.lease_s >= 1
    assert pair.lease_s + 1 <= timeout_s


@pytest.mark.req("R1.11")
def test_ipv6_works_beside_ipv4() -> None:
    six = {"name": "cable6", "local": "fe80::1%eth1", "peer": "fe80::2%eth1"}
    pair = pair_of({"ipv6": True, "cluster_ip6": "fd00::53/64"}, path=[CABLE, six])
    assert [str(address) for address in pair.cluster_addresses] == ["192.168.129.53", "fd00::53"]
    assert str(pair.paths[-1].peer) == "fe80::2%eth1"
    assert "needs its interface" in faults_of({"ipv6": True}, path=[six | {"peer": "fe80::2"}])
    assert "link-local" in faults_of({"ipv6": True, "cluster_ip6": "fe80::53/64"})


def test_the_lan_is_a_path_without_being_written() -> None:
    (lan, cable) = pair_of(path=[CABLE]).paths
    assert (lan.name, lan.local, str(lan.peer)) == ("lan", None, "192.168.129.52")
    assert (cable.name, str(cable.local), str(cable.peer)) == ("cable", "169.254.9.1", "169.254.9.2")


def test_a_lan_that_is_written_is_not_added_again() -> None:
    lan = {"name": "lan", "local": "192.168.129.51", "peer": "192.168.129.52"}
    assert [path.name for path in pair_of(path=[lan, CABLE]).paths] == ["lan", "cable"]


@pytest.mark.parametrize(
    ("path", "words"),
    [
        ({"peer": "169.254.9.1"}, "own address on the path"),
        ({"peer": "fd00::2"}, "set ipv6 = true"),
        ({"local": "192.168.129.53"}, "take one that neither node has"),
        ({"peer": "192.168.129.53"}, "take one that neither node has"),
        ({"local": "192.168.129.52"}, "name the other node"),
        ({"name": "The Cable"}, "1 to 64 characters"),
        ({"mtu": 1500}, "unknown key"),
    ],
)
def test_a_path_that_cannot_be_is_refused(path: dict[str, Any], words: str) -> None:
    assert words in faults_of(path=[CABLE | path])


def test_two_paths_of_one_name_or_of_the_same_addresses_are_refused() -> None:
    assert "stands there twice" in faults_of(path=[CABLE, CABLE | {"peer": "169.254.9.3"}])
    assert "is a path already" in faults_of(path=[CABLE, CABLE | {"name": "other"}])


@pytest.mark.req("R1.4")
def test_the_cluster_ip_must_not_be_an_address_of_this_node() -> None:
    pair = pair_of()
    judged = against_interface(pair, [own("192.168.129.51/24"), own("192.168.129.53/32")])
    assert ["is this node's own address" in fault for fault in judged.faults] == [True]


@pytest.mark.req("R1.4")
def test_a_lease_of_the_cluster_ip_is_not_taken_for_an_own_address() -> None:
    judged = against_interface(pair_of(), [own("192.168.129.51/24"), own("192.168.129.53/32", permanent=False)])
    assert (judged.faults, judged.warnings) == ((), ())


@pytest.mark.req("R1.4")
def test_a_cluster_ip_outside_of_the_subnet_is_a_warning() -> None:
    judged = against_interface(pair_of({"cluster_ip": "10.1.1.53/24"}), [own("192.168.129.51/24")])
    assert judged.faults == ()
    assert "outside of the networks of eth0 (192.168.129.0/24)" in judged.warnings[0]


@pytest.mark.req("R1.2")
@pytest.mark.parametrize("mode", ["local", "remote"])
def test_an_address_from_dhcp_is_refused(mode: str) -> None:
    judged = against_interface(pair_of({"mode": mode}), [own("192.168.129.51/24", permanent=False)])
    assert "has no static address of its own" in judged.faults[0]


@pytest.mark.req("R1.5")
def test_the_peer_is_another_node() -> None:
    judged = against_interface(pair_of(), [own("192.168.129.51/24"), own("192.168.129.52/24", interface="eth1")])
    assert "is this node's own address" in judged.faults[0]


@pytest.mark.req("R1.16", "R11")
def test_a_gateway_that_is_the_cluster_ip_is_a_warning() -> None:
    settings = parsed({"gateway": "192.168.129.53"})
    assert "proves nothing" in settings.warnings[0]
    assert parsed({"gateway": "192.168.129.1"}).warnings == ()
    assert pair_of({"gateway": "none"}).gateway is None


def test_nodes_that_differ_in_a_shared_setting_have_different_digests_and_the_setting_is_named() -> None:
    mine, theirs = pair_of(), pair_of({"heartbeat_timeout_s": 8, "station_type": "secondary", "peer_ip": "10.0.0.1"})
    assert shared_digest(mine) != shared_digest(theirs)
    assert differences(mine, shared_facts(theirs)) == ("heartbeat_timeout_s",)


def test_what_belongs_to_a_node_is_not_in_the_digest() -> None:
    mine = pair_of()
    theirs = replace(mine, station=Station.SECONDARY, interface="lan0", gateway=None, observe_only=True)
    assert shared_digest(mine) == shared_digest(theirs)


def test_services_start_in_their_order() -> None:
    late = ASTERISK | {"name": "late", "order": 20}
    early = ASTERISK | {"name": "early", "order": 10, "standby": "running", "probe": ["/bin/true"]}
    first, second = parsed(service=[late, early]).services
    assert (first.name, first.standby, first.probe) == ("early", OnStandby.RUNNING, ("/bin/true",))
    assert (second.name, second.start_deadline_s, second.stop_deadline_s) == ("late", 30.0, 15.0)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"start": "systemctl start asterisk"}, "must be a list of 1 to 64 strings"),
        ({"start": []}, "must be a list of 1 to 64 strings"),
        ({"start": ["systemctl", "start"]}, "the program must be an absolute path"),
        ({"stop_deadline_s": 0}, "from 0.1 to 600"),
        ({"standby": "warm"}, '"stopped", "running"'),
        ({"restart": True}, "unknown key"),
        ({"name": ""}, "1 to 64 characters"),
    ],
)
def test_a_wrong_service_is_refused(change: dict[str, Any], words: str) -> None:
    assert words in faults_of(service=[ASTERISK | change])


def test_a_service_without_hooks_is_refused() -> None:
    faults = faults_of(service=[{"name": "asterisk"}])
    assert "service[asterisk].start: is missing" in faults
    assert "service[asterisk].stop: is missing" in faults


def test_services_that_stop_slower_than_a_switch_may_take_are_a_warning() -> None:
    settings = parsed({"drain_deadline_s": 10}, service=[ASTERISK])
    assert "15 seconds to stop" in settings.warnings[0]


@pytest.mark.req("R12")
def test_each_kind_of_probe_is_read() -> None:
    probes = parsed(
        probe=[
            {"name": "pbx", "kind": "process", "process": "asterisk", "pid_file": "/run/asterisk/asterisk.pid"},
            {"name": "ami", "kind": "ami", "address": "127.0.0.1:5038", "username": "ha", "secret_file": "/etc/s"},
            {"name": "sip", "kind": "sip", "address": "[::1]:5060", "fall": 5, "rise": 1, "interval_s": 0.5},
            {"name": "cli", "kind": "command", "command": ["/bin/true"], "deadline_s": 1, "switch": False},
            {"name": "cable", "kind": "link", "interface": "eth1", "when": "active"},
            {"name": "disk", "kind": "storage", "paths": ["/var/spool/"], "min_free_mib": 64, "mounted": True},
        ]
    ).probes
    assert [probe.kind for probe in probes] == list(ProbeKind)
    process, ami, sip, command, link, storage = probes
    assert (process.fall, process.process, process.when) == (1, "asterisk", When.ACTIVE)
    assert (ami.address, ami.username, ami.secret_file) == (("127.0.0.1", 5038), "ha", "/etc/s")
    assert (sip.address, sip.fall, sip.rise, sip.interval_s) == (("::1", 5060), 5, 1, 0.5)
    assert (command.command, command.deadline_s, command.switch) == (("/bin/true",), 1.0, False)
    assert (link.interface, link.when) == ("eth1", When.ACTIVE)
    assert (storage.paths, storage.min_free_mib, storage.mounted, storage.when) == (
        ("/var/spool",),
        64,
        True,
        When.ALWAYS,
    )


@pytest.mark.parametrize(
    ("probe", "words"),
    [
        ({}, "probe[1].name: is missing"),
        ({"name": "x", "kind": "snmp"}, "must be one of"),
        ({"name": "x"}, "probe[x].kind: is missing"),
        ({"name": "x", "kind": "process"}, "a pid_file, or both"),
        ({"name": "x", "kind": "process", "process": "a-name-of-sixteen"}, "1 to 15 bytes"),
        ({"name": "x", "kind": "ami", "address": "pbx:5038"}, "must be an address, not a name"),
        ({"name": "x", "kind": "ami", "address": "127.0.0.1:0"}, "from 1 to 65535"),
        ({"name": "x", "kind": "ami", "address": "127.0.0.1:5038", "username": "ha"}, "belong together"),
        ({"name": "x", "kind": "sip", "address": "127.0.0.1:5060", "command": ["/x"]}, 'does not fit kind = "sip"'),
        ({"name": "x", "kind": "command"}, "probe[x].command: is missing"),
        ({"name": "x", "kind": "link", "interface": "e/th"}, "1 to 15"),
        ({"name": "x", "kind": "storage"}, "probe[x].paths: is missing"),
        ({"name": "x", "kind": "storage", "paths": ["spool"]}, "must be an absolute path"),
        ({"name": "x", "kind": "link", "interface": "eth1", "fall": 0}, "from 1 to 100"),
    ],
)
def test_a_wrong_probe_is_refused(probe: dict[str, Any], words: str) -> None:
    assert words in faults_of(probe=[probe])


def test_a_command_probe_does_not_take_the_name_of_a_service_that_is_probed() -> None:
    probe = {"name": "asterisk", "kind": "command", "command": ["/bin/true"]}
    assert "take another name" in faults_of(service=[ASTERISK | {"probe": ["/bin/true"]}], probe=[probe])


def test_a_look_that_may_outlast_the_fall_is_a_warning() -> None:
    probe = {"name": "sip", "kind": "sip", "address": "127.0.0.1:5060", "deadline_s": 9}
    assert "fault shows late" in parsed(probe=[probe]).warnings[0]


def test_the_machine_is_known_where_ha_is_off() -> None:
    node = settings_of({"node": {"name": "a", "model": "m", "run_dir": "/tmp/x/"}}, source="ha.toml").node
    assert (node.name, node.model, node.socket_path, node.condition_file) == (
        "a",
        "m",
        "/tmp/x/agent.sock",
        "/tmp/x/active",
    )


def test_the_socket_must_fit_into_its_name() -> None:
    with pytest.raises(ConfigFault, match=r"at most 96 bytes"):
        settings_of({"node": {"run_dir": "/" + "x" * 97}}, source="ha.toml")


def test_the_agent_is_found_whatever_else_is_wrong(tmp_path: Path) -> None:
    file = tmp_path / "ha.toml"
    file.write_text('[node]\nrun_dir = "/tmp/x"\n[ha]\nnonsense = 1\n')
    assert load_node(str(file)).run_dir == "/tmp/x"
    with pytest.raises(ConfigFault, match="nonsense"):
        load(str(file))


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"[ha\n", "is not TOML"),
        (b"\xff", "line 1 is not UTF-8"),
        (b"#" * (1024 * 1024 + 1), "no settings file"),
        (b"ha = 1\n", r"must be written as \[ha\]"),
        (b"service = 1\n", "with two brackets"),
        (b"[he]\n", "unknown key"),
    ],
)
def test_a_file_that_is_none_is_refused(content: bytes, words: str, tmp_path: Path) -> None:
    file = tmp_path / "ha.toml"
    file.write_bytes(content)
    with pytest.raises(ConfigFault, match=words):
        load(str(file))


def test_a_file_that_is_not_there_is_said_to_be(tmp_path: Path) -> None:
    with pytest.raises(ConfigFault, match="there is no such file"):
        load(str(tmp_path / "ha.toml"))


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)
KEYS = st.sampled_from([*HA, "gateway", "mode", "ipv6", "fxo_ports", "cluster_ip6", "heartbeat_timeout_s", "zzz"])
ENTRIES = st.lists(
    st.dictionaries(
        st.sampled_from(["name", "kind", "local", "peer", "start", "stop", "address", "paths", "process", "fall"]),
        st.sampled_from(["process", "ami", "storage", "::1", "127.0.0.1:1", "/x"]) | VALUES,
    ),
    max_size=3,
)


@given(st.dictionaries(KEYS, VALUES), VALUES, ENTRIES, ENTRIES, ENTRIES)
def test_any_input_is_settings_or_a_list_of_faults(
    ha: dict[str, Any], node: object, paths: object, services: object, probes: object
) -> None:
    values = {"ha": HA | ha, "node": node, "path": paths, "service": services, "probe": probes}
    faults, settings = outcome(values)
    assert all(": " in fault for fault in faults)
    assert bool(faults) == (settings is None)


def outcome(values: dict[str, Any]) -> tuple[tuple[str, ...], Settings | None]:
    try:
        return (), settings_of(values, source="ha.toml")
    except ConfigFault as refused:
        return refused.faults, None


@pytest.mark.req("R1.2")
def test_the_facts_of_an_empty_file_are_the_defaults_of_the_schema() -> None:
    assert settings_of({}, source="ha.toml") == Settings()


@pytest.mark.req("R1.2")
def test_a_remote_pair_without_a_cluster_ip_is_taken_over_by_hand_unless_told_otherwise() -> None:
    remote = {key: value for key, value in HA.items() if key != "cluster_ip"} | {"mode": "remote"}
    by_hand = settings_of({"ha": remote}, source="ha.toml")
    told = settings_of({"ha": remote | {"remote_take_over": "automatic"}}, source="ha.toml")
    assert by_hand.pair is not None
    assert told.pair is not None
    assert (by_hand.pair.by_hand, told.pair.by_hand, pair_of().by_hand) == (True, False, False)
    assert any("vendor's own" in warning for warning in by_hand.warnings)
    assert differences(by_hand.pair, shared_facts(told.pair)) == ("remote_take_over",)


def test_the_stand_in_on_loopback_needs_a_cluster_ip() -> None:
    assert 'ha.interface = "lo"' in faults_of({"mode": "remote", "interface": "lo"}, without="cluster_ip")
