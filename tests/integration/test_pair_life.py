"""The life of a real pair: what is shared follows, preflight, upgrade, and at the end nothing of ours remains."""

from __future__ import annotations

import json
import os
import shutil
import sqlite3
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support import netns
from tests.support.client import Outcome
from tests.support.netns import lan_ipv4
from tests.support.netns_pair import AGENT, CLUSTER_IP, ENGINE, PORT, NetNode, NetPair, until
from tests.support.small_pair import read_rows, write_rows

REASON = netns.unavailable()
pytestmark = [pytest.mark.root, pytest.mark.skipif(REASON is not None, reason=REASON or "")]

PASSWORD = "correct horse battery"


def tool(node: NetNode, *arguments: str, given: str = "") -> Outcome:
    """``ha-sync`` on this node, whatever its end."""
    line = node.net.command(node.name, sys.executable, "-m", "ha_sync.cli", *arguments)
    done = subprocess.run(
        [*line, "--config", node.file("sync.toml")],
        input=given,
        capture_output=True,
        text=True,
        check=False,
        timeout=180,
    )
    return Outcome(code=done.returncode, out=done.stdout, err=done.stderr)


def setting(node: NetNode, path: str) -> str:
    done = tool(node, "settings", "get", path)
    return done.out.strip()


def checks(node: NetNode) -> dict[str, dict[str, Any]]:
    done = tool(node, "preflight", "--json")
    assert done.out, done.err
    return {one["name"]: one for one in json.loads(done.out)["checks"]}


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Iterator[NetPair]:
    with NetPair(str(tmp_path_factory.mktemp("life"))) as pair:
        pair.start()
        yield pair


@pytest.fixture
def pair(built: NetPair) -> NetPair:
    built.settle()
    return built


@pytest.mark.req("R1.1", "R1.2", "R5")
def test_a_shared_setting_is_changed_on_the_active_and_follows_to_the_standby(pair: NetPair) -> None:
    active, standby = pair.roles
    refused = tool(standby, "settings", "set", "drain_deadline_s=44", "--yes")
    assert refused.code == 3
    assert "ha.drain_deadline_s" in refused.err
    assert tool(standby, "settings", "set", "peer_ip=" + setting(standby, "peer_ip"), "node.name=b2", "--yes").code == 0
    saved = tool(active, "settings", "set", "drain_deadline_s=44", "--yes")
    assert saved.code == 0, saved.err
    until(lambda: setting(standby, "drain_deadline_s") == "44", "the shared setting", pair.told)
    assert setting(standby, "node.name") == "b2"
    assert setting(standby, "station_type") != setting(active, "station_type")
    for node in (standby, active):
        node.stop(AGENT)
        node.start(AGENT)
    pair.until_ready()


@pytest.mark.req("R4")
def test_the_accounts_of_the_active_are_those_of_the_standby(pair: NetPair) -> None:
    active, standby = pair.roles
    assert tool(active, "account", "set", "admin", given=PASSWORD + "\n").out == "made\n"
    until(lambda: "admin" in tool(standby, "account", "list").out, "the account", pair.told)
    assert tool(standby, "account", "set", "other", given=PASSWORD + "\n").code == 3
    files = [Path(node.state_dir, "accounts.json") for node in (active, standby)]
    assert files[0].read_bytes() == files[1].read_bytes()
    assert all(stat.S_IMODE(file.stat().st_mode) == 0o600 for file in files)
    assert PASSWORD not in files[0].read_text()
    assert tool(active, "account", "remove", "admin").code == 0
    until(lambda: "admin" not in tool(standby, "account", "list").out, "the removal", pair.told)


@pytest.mark.req("R2")
def test_the_preflight_tells_what_both_nodes_are_and_what_is_wrong(pair: NetPair) -> None:
    active, standby = pair.roles
    for node in (active, standby):
        found = checks(node)
        for name in ("station types", "static address", "peer IP", "peer MAC", "peer MAC there", "clocks", "rights"):
            assert found[name]["verdict"] == "pass", found[name]
        assert found["heartbeats on each path"]["verdict"] == "pass", found
        assert [one["verdict"] for name, one in found.items() if name.startswith("port open")] == ["pass"] * 4
        assert found["model"]["verdict"] == "warn"  # not known, and never a pass
    text = Path(standby.file("ha.toml")).read_text()
    wrong = text.replace("[node]", '[node]\nmodel = "UCM6308"').replace(pair.net.mac(active.name), "00:0b:82:00:00:01")
    Path(standby.file("ha.toml")).write_text(wrong)
    Path(active.file("ha.toml")).write_text(
        Path(active.file("ha.toml")).read_text().replace("[node]", '[node]\nmodel = "UCM6302"', 1)
    )
    failed = tool(active, "preflight")
    assert failed.code == 6
    assert "UCM6302" in failed.out
    assert "UCM6308" in failed.out
    assert checks(active)["peer MAC there"]["verdict"] == "fail"
    Path(standby.file("ha.toml")).write_text(text)
    Path(active.file("ha.toml")).write_text(
        Path(active.file("ha.toml")).read_text().replace('model = "UCM6302"\n', "", 1)
    )


def with_firmware(firmware: str, *nodes: NetNode) -> None:
    """As after an upgrade: the agents are started again and say another version."""
    for node in nodes:
        text = Path(node.file("ha.toml")).read_text()
        lines = [line for line in text.splitlines() if not line.startswith("firmware")]
        at = lines.index("[node]") + 1
        Path(node.file("ha.toml")).write_text("\n".join([*lines[:at], f'firmware = "{firmware}"', *lines[at:]]))
        node.stop(AGENT)
    for node in nodes:
        node.start(AGENT)


def step(node: NetNode) -> int:
    done = tool(node, "upgrade-plan", "--json")
    return int(json.loads(done.out)["step"])


@pytest.mark.req("R7")
def test_an_upgrade_goes_step_by_step_and_no_other_way(pair: NetPair) -> None:
    first, second = pair.roles
    with_firmware("1.0", second, first)
    pair.until_ready()
    first, second = pair.roles
    until(lambda: step(first) == 0, "no upgrade", pair.told)
    assert tool(second, "upgrade", "begin").code == 3
    assert tool(first, "upgrade-plan", "--before", "switch").code == 3
    assert tool(first, "upgrade", "begin").code == 0
    assert tool(first, "upgrade-plan", "--before", "upgrade").code == 3
    until(lambda: tool(second, "upgrade-plan", "--before", "upgrade").code == 0, "the window there", pair.told)
    assert step(first) == 2
    with_firmware("2.0", second)
    pair.until_ready()
    until(lambda: step(first) == 4, "the Standby is upgraded", pair.told)
    assert tool(first, "upgrade", "end").code == 3
    assert tool(first, "switch").code == 0
    pair.until_ready()
    assert pair.active is second
    assert step(first) == 5
    # The new version's PBX migrates its database; the node that is upgraded next has it before its own does.
    write_rows(f"{second.data}/config.db", "ALTER TABLE extension ADD COLUMN mobile")
    write_rows(f"{second.data}/config.db", "INSERT INTO extension(number, name, mobile) VALUES('70', 'x', '0170')")
    pair.until_ready()
    assert read_rows(f"{first.data}/config.db", "SELECT mobile FROM extension WHERE number = '70'") == [("0170",)]
    with_firmware("2.0", first)
    pair.until_ready()
    until(lambda: step(first) == 7, "both are upgraded", pair.told)
    assert tool(first, "upgrade", "end").code == 0
    assert step(first) == 0


@pytest.mark.req("R7")
def test_without_a_window_a_node_of_another_firmware_takes_nothing_over_by_itself(pair: NetPair) -> None:
    with_firmware("1.0", *pair.roles)
    pair.until_ready()
    active, standby = pair.roles
    with_firmware("9.9", standby)
    until(lambda: "firmware_differs" in standby.status().reasons, "the contradiction", pair.told)
    refused = tool(active, "switch")
    assert refused.code != 0
    assert "firmwares differ" in refused.err
    assert tool(active, "upgrade", "begin").code == 0
    pair.until_ready()
    with_firmware("1.0", standby)
    pair.until_ready()
    assert tool(active, "upgrade", "end").code == 0


# ---- two sites


@pytest.mark.req("R1.2", "R11")
def test_at_a_remote_site_a_silent_active_is_replaced_by_hand(tmp_path: Path) -> None:
    with NetPair(str(tmp_path), ha={"mode": "remote", "cluster_ip": None}) as pair:
        for node in pair.nodes.values():
            node.start()
        until(
            lambda: (
                {node.status().role for node in pair.nodes.values()} == {"active", "standby"}
                and all(node.status().ready or node.status().role == "active" for node in pair.nodes.values())
            ),
            "a pair of two sites",
            pair.told,
        )
        active = next(node for node in pair.nodes.values() if node.status().role == "active")
        standby = pair.other(active)
        warnings = [one.fields["warning"] for one in standby.events("settings accepted with a warning")]
        assert any("vendor's own" in warning for warning in warnings)
        active.power_off()

        def long_silent() -> bool:
            ages = [path.heard_age_s for path in standby.status().paths]
            return bool(ages) and min(ages) > 3 * pair.timeout_s

        until(long_silent, "silence", pair.told)
        assert standby.status().role == "standby"
        assert "take-over" not in standby.rows_taken()
        assert tool(standby, "switch", "--force").code == 0
        assert standby.status().role == "active"
        active.power_on()
        until(lambda: active.status().role == "standby", "the old one follows", pair.told, timeout_s=90)


# ---- another machine


def becomes_another_machine(node: NetNode, mac: str) -> None:
    """The old one is dead and away; in its place stands one with its network settings, and nothing else of it."""
    for folder in (node.state_dir, node.data, node.run_dir):
        shutil.rmtree(folder)
        os.mkdir(folder)
    node.net.run(node.name, "ip", "link", "set", "eth0", "address", mac)
    node.net.plug_in(node.name)
    node.powered = True


def replace(pair: NetPair, survivor: NetNode, broken: NetNode, mac: str) -> None:
    """As docs/operations.md says."""
    broken.power_off()
    until(lambda: survivor.status().single, "alone", pair.told)
    assert tool(survivor, "settings", "set", f"peer_mac={mac}", "--yes").code == 0
    survivor.stop(AGENT)
    survivor.start(AGENT)
    until(lambda: tool(survivor, "switch", "--force").code == 0, "served again", pair.told)
    becomes_another_machine(broken, mac)
    token = json.loads(tool(survivor, "pair", "token", "--json").out)["token"]
    joined = tool(broken, "pair", "join", token, "--name", "c", "--address", f"{lan_ipv4(broken.name)}:{PORT}")
    assert joined.code == 0, joined.err
    broken.start()
    pair.until_ready()


@pytest.mark.req("R3", "R8")
@pytest.mark.timeout(400)
def test_a_broken_node_is_replaced_by_another_machine_whichever_station_it_was(tmp_path: Path) -> None:
    with NetPair(str(tmp_path)) as pair:
        pair.start()
        for number in (1, 2):
            survivor, broken = pair.roles
            write_rows(f"{survivor.data}/config.db", f"INSERT INTO extension(number, name) VALUES('8{number}', 'x')")
            pair.until_ready()
            old_id = json.loads(Path(broken.state_dir, "identity", "identity.json").read_text())["node_id"]
            replace(pair, survivor, broken, f"02:00:00:00:0c:0{number}")
            rows = read_rows(f"{broken.data}/config.db", f"SELECT name FROM extension WHERE number = '8{number}'")
            assert rows == [("x",)]
            identity = json.loads(Path(survivor.state_dir, "identity", "identity.json").read_text())
            assert identity["revoked_nodes"][-1] == old_id
            assert identity["peer"]["node_id"] != old_id
            assert all(one["verdict"] != "fail" for one in checks(survivor).values())
            if number == 1:
                assert tool(survivor, "switch").code == 0
                pair.until_ready()


# ---- the end


def traces(node: NetNode) -> list[str]:
    """Whatever is of ours in the data of a node, in its kernel or before its services."""
    found = []
    with sqlite3.connect(f"{node.data}/config.db") as connection:
        found += [name for (name,) in connection.execute("SELECT name FROM sqlite_schema") if "_ha" in name]
    found += [
        entry for _, folders, files in os.walk(node.data) for entry in (*folders, *files) if entry.startswith(".ha")
    ]
    found += [] if os.access(f"{node.data}/astdb.sqlite3", os.W_OK) else ["read-only astdb"]
    mode = stat.S_IMODE(Path(node.data, "astdb.sqlite3").stat().st_mode)
    found += [] if mode & stat.S_IWUSR else [f"mode {mode:o}"]
    found += ["the address"] if node.holds(CLUSTER_IP) else []
    found += ["active"] if Path(node.run_dir, "active").exists() else []
    found += ["identity"] if Path(node.state_dir, "identity").exists() else []
    return found


def is_left(node: NetNode) -> bool:
    """Nothing of ours, and its engine has ended: the next one belongs to no pair."""
    return not node.runs(ENGINE) and not traces(node) and node.status().role == "disabled"


def until_left(pair: NetPair, node: NetNode) -> None:
    until(lambda: is_left(node), f"{node.name} on its own", lambda: f"{traces(node)} {pair.told()}")


def with_service(node: NetNode) -> str:
    """One whose hooks say that they ran."""
    log = node.file("hooks")
    lines = [f"{verb} = {json.dumps(['/bin/sh', '-c', f'echo {verb} >>{log}'])}" for verb in ("start", "stop")]
    return "\n".join(["[[service]]", 'name = "pbx"', *lines])


def hooks(node: NetNode) -> list[str]:
    return Path(node.file("hooks")).read_text().split()


@pytest.mark.req("R8.1")
def test_a_dissolved_pair_leaves_two_nodes_with_their_data_and_nothing_of_ours(tmp_path: Path) -> None:
    with NetPair(str(tmp_path), sections=with_service) as pair:
        pair.start()
        active, standby = pair.roles
        assert (hooks(active)[-1], hooks(standby)[-1]) == ("start", "stop")
        write_rows(f"{active.data}/config.db", "INSERT INTO extension(number, name) VALUES('77', 'x')")
        pair.until_ready()
        assert tool(standby, "pair", "leave", "--yes").code == 3
        assert traces(active)
        assert traces(standby)
        done = tool(active, "pair", "dissolve", "--yes")
        assert (done.code, done.out.splitlines()[-1]) == (0, "the pair is dissolved"), done.err
        assert "take-over" not in standby.rows_taken(), "it is told before its Active leaves"
        for node in pair.nodes.values():
            until_left(pair, node)
            assert hooks(node)[-2:] == ["stop", "start"]
            assert read_rows(f"{node.data}/config.db", "SELECT name FROM extension WHERE number = '77'") == [("x",)]
            write_rows(f"{node.data}/config.db", "INSERT INTO extension(number, name) VALUES('78', 'y')")
            assert "enabled = false" in Path(node.file("ha.toml")).read_text()
            node.stop(AGENT)
            node.start(AGENT, ENGINE)
            until(lambda node=node: node.status().role == "disabled", "HA off after a restart", pair.told)
            until(lambda node=node: node.engine_status().pair == "off", "no pair", pair.told)
            assert traces(node) == []


@pytest.mark.req("R8.1")
def test_a_node_that_was_off_while_the_pair_was_dissolved_is_finished_when_it_comes_back(tmp_path: Path) -> None:
    with NetPair(str(tmp_path)) as pair:
        pair.start()
        active, standby = pair.roles
        standby.power_off()
        until(lambda: active.status().peer_role == "", "the Standby is gone", pair.told)
        refused = tool(active, "pair", "dissolve", "--yes")
        assert refused.code == 5
        assert active.status().role == "active"
        standby.power_on()
        pair.until_ready()
        # The Standby's engine is away at the moment in which the Active has begun.
        standby.signal(9, ENGINE)
        active.signal(9, ENGINE)
        facts = Path(active.state_dir, "identity", "identity.json")
        facts.write_text(json.dumps(json.loads(facts.read_text()) | {"dissolved": True}))
        active.start(ENGINE)
        until(lambda: active.status().role == "disabled", "the Active is off", pair.told)
        assert traces(standby)
        standby.power_off()
        standby.power_on()
        for node in pair.nodes.values():
            until_left(pair, node)


@pytest.mark.req("R8.1")
def test_a_dissolving_that_is_cut_off_goes_on_when_the_engines_are_back(tmp_path: Path) -> None:
    with NetPair(str(tmp_path)) as pair:
        pair.start()
        active, _ = pair.roles
        line = [sys.executable, "-m", "ha_sync.cli", "pair", "dissolve", "--yes", "--config", active.file("sync.toml")]
        asking = active.spawn(line, "dissolve")
        until(lambda: active.status().role == "disabled", "the agent is off", pair.told)
        for node in pair.nodes.values():
            if node.runs(ENGINE):
                node.signal(9, ENGINE)
        asking.wait(60)
        for node in pair.nodes.values():
            node.start(ENGINE)
        # Where both had heard of it, nothing is left to do; the one that had not learns it from the other.
        for node in pair.nodes.values():
            until(lambda node=node: not traces(node) and node.status().role == "disabled", "on its own", pair.told)  # type: ignore[misc]
