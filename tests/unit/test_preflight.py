"""The judgement of the preflight: each row passes, warns or fails, names both values, and has a remedy."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from ha_proto.agent.v1 import life_pb2 as agent_pb
from ha_proto.sync.v1 import life_pb2 as pb
from ha_sync.pairing.preflight import judge, worst


def agent(number: int, **changes: object) -> agent_pb.AgentFacts:
    """A node that is fine: the first is the Primary."""
    other = 3 - number
    facts: dict[str, object] = {
        "enabled": True,
        "model": "UCM6304",
        "firmware": "1.0.29",
        "schema_lowest": 1,
        "schema_highest": 1,
        "station_type": ("primary", "secondary")[number - 1],
        "mode": "local",
        "network_mode": "switch",
        "interface": "eth0",
        "own_mac": f"00:0b:82:00:00:0{number}",
        "addresses": [agent_pb.AddressFact(address=f"192.168.1.{number}/24", interface="eth0", is_static=True)],
        "peer_ip": f"192.168.1.{other}",
        "peer_mac": f"00:0b:82:00:00:0{other}",
        "cluster_ips": ["192.168.1.9/24"],
        "paths": [agent_pb.PathFact(name="lan", state="both")],
        "vendor": {
            "cloud_im": "off", "cloud_storage": "none", "entitlements": "pro", "dhcp": "on .100-.200",
            "dhcp_gateway": "192.168.1.9", "nat_host": f"203.0.113.{number}", "nat_networks": "192.168.1.0/24",
        },
    }  # fmt: skip
    return agent_pb.AgentFacts(**(facts | changes))  # type: ignore[arg-type]


def node(number: int, found: agent_pb.AgentFacts | None = None, **changes: object) -> pb.NodeFacts:
    facts: dict[str, object] = {
        "agent": found or agent(number),
        "role": ("active", "standby")[number - 1],
        "state_free_bytes": 1 << 30,
        "datasets": [pb.DatasetFacts(name="cdr", kind="sqlite", used_bytes=1 << 20, counted=True, free_bytes=1 << 30)],
        "storages": [pb.StorageFacts(name="usb0", medium="usb", mounted=True, total_bytes=1 << 30, used_bytes=1 << 20)],
        "ports": [pb.PortFact(address=f"192.168.1.{3 - number}:9527", open=True)],
    }
    return pb.NodeFacts(**(facts | changes))  # type: ignore[arg-type]


def judged(
    mine: pb.NodeFacts, theirs: pb.NodeFacts, *, offset_s: float = 0.0, joining: bool = False
) -> dict[str, pb.Check]:
    found = judge(mine, theirs, offset_s=offset_s, joining=joining)
    assert len({one.name for one in found}) == len(found)
    assert all(bool(one.remedy) == (one.verdict != "pass") for one in found), found
    return {one.name: one for one in found}


@pytest.mark.req("R2")
def test_two_nodes_that_fit_pass_every_check() -> None:
    found = judge(node(1), node(2), offset_s=0.5, joining=False)
    assert [one for one in found if one.verdict != "pass"] == []
    assert worst(found) == "pass"


def vendor(number: int, **changes: str) -> agent_pb.AgentFacts:
    facts = agent(number)
    for key, value in changes.items():
        facts.vendor[key] = value
    return facts


ROUTE = {"network_mode": "route"}
DIFFERENT = [
    ("model", "fail", lambda: node(2, agent(2, model="UCM6308"))),
    ("model", "warn", lambda: node(2, agent(2, model=""))),
    ("firmware", "fail", lambda: node(2, agent(2, firmware="1.0.30"))),
    ("firmware", "warn", lambda: node(2, agent(2, firmware="1.0.30", upgrading=True))),
    ("data layout", "fail", lambda: node(2, agent(2, schema_lowest=2, schema_highest=3))),
    ("station types", "fail", lambda: node(2, agent(2, station_type="primary"))),
    ("mode", "fail", lambda: node(2, agent(2, mode="remote"))),
    ("network mode", "fail", lambda: node(2, agent(2, **ROUTE))),
    (
        "static address",
        "fail",
        lambda: node(2, agent(2, addresses=[agent_pb.AddressFact(address="192.168.1.2/24", interface="eth0")])),
    ),
    ("peer IP there", "fail", lambda: node(2, agent(2, peer_ip="192.168.1.77"))),
    ("peer MAC there", "fail", lambda: node(2, agent(2, peer_mac="00:0b:82:00:00:07"))),
    ("peer MAC", "fail", lambda: node(2, agent(2, own_mac="00:0b:82:00:00:07"))),
    ("cluster IP", "warn", lambda: node(2, agent(2, cluster_ips=["192.168.1.8/24"]))),
    (
        "cluster IP is nobody's own",
        "fail",
        lambda: node(
            2,
            agent(
                2,
                addresses=[
                    agent_pb.AddressFact(address=one, interface="eth0", is_static=True)
                    for one in ("192.168.1.2/24", "192.168.1.9/24")
                ],
            ),
        ),
    ),
    ("heartbeats on each path", "warn", lambda: node(2, agent(2, paths=[agent_pb.PathFact(name="lan", state="half")]))),
    ("cloud storage", "fail", lambda: node(2, vendor(2, cloud_storage="s3"))),
    ("entitlements", "fail", lambda: node(2, vendor(2, entitlements="basic"))),
    ("Cloud IM off on the joiner", "fail", lambda: node(2, vendor(2, cloud_im="on"))),
    ("Cloud IM off on the joiner", "warn", lambda: node(2, vendor(2, cloud_im=""))),
    ("FXO ports on splitters (by hand)", "warn", lambda: node(2, agent(2, fxo_ports=2))),
    ("rights", "fail", lambda: node(2, agent(2, missing_rights=["CAP_NET_RAW"]))),
    ("named files", "warn", lambda: node(2, agent(2, missing_files=["/etc/secret"]))),
    ("settings", "fail", lambda: node(2, agent(2, faults=["ha.mode"]))),
    ("datasets", "warn", lambda: node(2, datasets=[])),
    ("storages", "fail", lambda: node(2, storages=[])),
    ("storages mounted", "fail", lambda: node(2, storages=[pb.StorageFacts(name="usb0", medium="usb")])),
    (
        "storage usb0",
        "warn",
        lambda: node(2, storages=[pb.StorageFacts(name="usb0", medium="usb", mounted=True, total_bytes=1 << 31)]),
    ),
    (
        "storage usb0",
        "fail",
        lambda: node(2, storages=[pb.StorageFacts(name="usb0", medium="usb", mounted=True, total_bytes=1 << 10)]),
    ),
    ("room in state_dir", "fail", lambda: node(2, state_free_bytes=1)),
    (
        "room for cdr",
        "fail",
        lambda: node(2, datasets=[pb.DatasetFacts(name="cdr", kind="sqlite", free_bytes=10, counted=True)]),
    ),
    (
        "port open, from there: 192.168.1.1:9527",
        "warn",
        lambda: node(2, ports=[pb.PortFact(address="192.168.1.1:9527", reason="refused")]),
    ),
    ("rights to the data", "fail", lambda: node(2, missing_rights=["cdr: /x cannot be written"])),
]


@pytest.mark.req("R2")
@pytest.mark.parametrize(("name", "verdict", "theirs"), DIFFERENT, ids=[f"{one[0]}-{one[1]}" for one in DIFFERENT])
def test_what_does_not_fit_is_told_by_its_own_check(
    name: str, verdict: str, theirs: Callable[[], pb.NodeFacts]
) -> None:
    assert judged(node(1), theirs())[name].verdict == verdict


@pytest.mark.req("R2")
@pytest.mark.parametrize(("offset_s", "verdict"), [(1.9, "pass"), (-2.1, "warn"), (61.0, "fail")])
def test_clocks_within_tolerance(offset_s: float, verdict: str) -> None:
    assert judged(node(1), node(2), offset_s=offset_s)["clocks"].verdict == verdict


@pytest.mark.req("R2")
def test_cloud_im_may_be_on_where_the_other_node_joins() -> None:
    assert judged(node(1, vendor(1, cloud_im="on")), node(2))["Cloud IM off on the joiner"].verdict == "pass"
    mine, theirs = node(2, role=""), node(1, vendor(1, cloud_im="on"))
    assert judged(mine, theirs, joining=True)["Cloud IM off on the joiner"].verdict == "pass"


@pytest.mark.req("R2")
def test_confirmed_splitters_of_as_many_ports_pass() -> None:
    facts = [vendor(number, fxo_splitters="on") for number in (1, 2)]
    for one in facts:
        one.fxo_ports = 2
    assert judged(node(1, facts[0]), node(2, facts[1]))["FXO ports on splitters (by hand)"].verdict == "pass"


@pytest.mark.req("R2")
def test_a_node_whose_agent_is_not_there_is_a_warning() -> None:
    bare = node(2)
    bare.ClearField("agent")
    bare.agent_fault = "the agent does not run"
    found = judged(node(1), bare)["agent"]
    assert (found.verdict, found.theirs) == ("warn", "the agent does not run")


@pytest.mark.req("R19")
@pytest.mark.parametrize(
    ("name", "verdict", "changes"),
    [
        ("route: DHCP", "fail", {"dhcp": "on .50-.60"}),
        ("route: DHCP", "warn", {"dhcp": ""}),
        ("route: DHCP gateway", "fail", {"dhcp_gateway": "192.168.1.2"}),
        ("route: NAT host", "fail", {"nat_host": "203.0.113.1"}),
        ("route: NAT host", "warn", {"nat_host": ""}),
        ("route: NAT networks", "warn", {"nat_networks": ""}),
    ],
)
def test_route_mode_looks_at_dhcp_and_nat(name: str, verdict: str, changes: dict[str, str]) -> None:
    mine, theirs = agent(1, **ROUTE), agent(2, **ROUTE)
    assert all(one.verdict == "pass" for key, one in judged(node(1, mine), node(2, theirs)).items() if "route" in key)
    for key, value in changes.items():
        theirs.vendor[key] = value
    assert judged(node(1, mine), node(2, theirs))[name].verdict == verdict


@pytest.mark.req("R19")
@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("route: cluster IP in the LAN", {"cluster_ips": ["203.0.113.9/24"]}),
        ("route: peer IP in the LAN", {"peer_ip": "203.0.113.1"}),
    ],
)
def test_in_route_mode_the_cluster_ip_and_the_peer_are_in_the_lan(name: str, changes: dict[str, object]) -> None:
    found = judged(node(1, agent(1, **ROUTE)), node(2, agent(2, **ROUTE, **changes)))  # type: ignore[arg-type]
    assert found[name].verdict == "fail"
