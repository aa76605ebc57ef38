"""`ha-sync pair join` looks before it leaps: what does not fit forbids it, and what the pair shares comes with it."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from ha_agent.settings import load
from ha_proto.agent.v1 import life_pb2 as agent_pb
from ha_proto.sync.v1 import life_pb2
from ha_sync.accounts import Account, AccountStore, make_secret
from ha_sync.config import load as load_sync
from ha_sync.pairing.identity import Identity, init_cluster
from tests.support.pairing_nodes import SetClock, serving

SYNC = '[node]\nname = "b"\nstate_dir = "{root}/state"\nrun_dir = "{root}/run"\nlisten = "127.0.0.1:9528"\n'
HA = """# of this node
[node]
model = "{model}"
state_dir = "{root}/state"
run_dir = "{root}/run"

[ha]
enabled = true
station_type = "secondary"
cluster_ip = "192.168.129.53/24"  # not right yet
peer_ip = "192.168.129.51"
peer_mac = "00:0b:82:aa:bb:01"
interface = "lo"
"""
ACTIVES = {"ha": {"enabled": True, "cluster_ip": "192.168.129.60/24", "heartbeat_timeout_s": 5}}


def joiner(root: Path, *, model: str = "UCM6304") -> Path:
    root.mkdir()
    (root / "sync.toml").write_text(SYNC.format(root=root))
    (root / "ha.toml").write_text(HA.format(root=root, model=model))
    return root


async def join(root: Path, *words: str) -> subprocess.CompletedProcess[str]:
    line = [sys.executable, "-c", "from ha_sync.cli.main import main; main()", "pair", "join", *words]
    environment = {key: value for key, value in os.environ.items() if key != "HA_AGENT_CONFIG"}
    return await asyncio.to_thread(
        lambda: subprocess.run(
            [*line, "--config", str(root / "sync.toml"), "--json"],
            capture_output=True,
            text=True,
            env=environment | {"PYTHONPATH": os.pathsep.join(sys.path)},
            check=False,
        )
    )


def inviter(**facts: object) -> life_pb2.NodeFacts:
    plain: dict[str, object] = {
        "model": "UCM6304", "station_type": "primary", "mode": "local", "network_mode": "switch",
        "schema_lowest": 1, "schema_highest": 1, "cluster_ips": ["192.168.129.60/24"],
    }  # fmt: skip
    return life_pb2.NodeFacts(role="active", agent=agent_pb.AgentFacts(**(plain | facts)))  # type: ignore[arg-type]


@pytest.mark.req("R2", "R3")
async def test_another_model_is_refused_whatever_is_accepted_and_the_token_is_not_used_up(tmp_path: Path) -> None:
    identity = init_cluster(str(tmp_path / "first"), address="127.0.0.1:1")
    async with serving(identity) as port:
        port.facts = inviter(model="UCM6308")
        token = port.token()
        root = joiner(tmp_path / "b")
        accepted = [
            word
            for name in ("model", "peer IP", "peer IP there", "peer MAC", "static address")
            for word in ("--accept", name)
        ]
        refused = await join(root, token, *accepted)
        assert refused.returncode == 6
        assert "UCM6308" in refused.stderr
        assert "model" in json.loads(refused.stdout)["error"]["reason"]
        assert not (root / "state" / "identity").exists()
        assert port.keyring.identity.peer is None
        port.facts = inviter()
        unheard = await join(root, token)
        assert unheard.returncode == 6
        assert "peer IP" in json.loads(unheard.stdout)["error"]["reason"]
        joined = await join(root, token, *accepted)
        assert joined.returncode == 0, joined.stderr
        assert "fail peer IP" in json.loads(joined.stdout)["odd"]


@pytest.mark.req("R1.2", "R4", "R5")
async def test_the_joiner_takes_the_pairs_settings_and_accounts(tmp_path: Path) -> None:
    identity = init_cluster(str(tmp_path / "first"), address="127.0.0.1:1")
    accounts = AccountStore(str(tmp_path / "first"))
    accounts.put(Account(name="admin", secret=make_secret("correct horse"), changed_unix_s=1.0), epoch=4)
    async with serving(identity) as port:
        port.shared = [
            life_pb2.Document(name="settings", version="4.2", content=json.dumps(ACTIVES).encode(), epoch=4),
            life_pb2.Document(name="accounts", version="4.1", content=accounts.read().content(), epoch=4),
        ]
        root = joiner(tmp_path / "b")
        joined = await join(root, port.token())
        assert joined.returncode == 0, joined.stderr
        assert json.loads(joined.stdout)["taken"] == ["settings 4.2", "accounts 4.1"]
    assert Identity.load(str(root / "state")).peer is not None
    assert AccountStore(str(root / "state")).read() == accounts.read()
    text = (root / "ha.toml").read_text()
    assert text.startswith("# of this node")
    pair = load(str(root / "ha.toml")).pair
    assert pair is not None
    assert (str(pair.cluster_ip), pair.heartbeat_timeout_s) == ("192.168.129.60/24", 5)
    assert pair.station.value == "secondary"


@pytest.mark.req("R3", "R5")
async def test_the_joiner_takes_what_the_pair_replicates_and_its_own_data_is_at_stake(tmp_path: Path) -> None:
    identity = init_cluster(str(tmp_path / "first"), address="127.0.0.1:1")
    held = tmp_path / "held"
    held.mkdir()
    (held / "mine").write_text("of the joiner")
    definitions = json.dumps({"dataset": [{"name": "files", "kind": "tree", "path": str(held)}]})
    async with serving(identity) as port:
        port.facts = inviter()
        port.facts.definitions = definitions
        root = joiner(tmp_path / "b")
        before = (root / "sync.toml").read_text()
        accepted = [word for check in ("static address", "peer IP", "peer IP there") for word in ("--accept", check)]
        refused = await join(root, port.token(), *accepted)
        assert refused.returncode == 6
        assert "holds data of its own in files" in refused.stdout
        assert (root / "sync.toml").read_text() == before
        joined = await join(root, port.token(), *accepted, "--discard-local-data")
        assert joined.returncode == 0, joined.stderr
        answer = json.loads(joined.stdout)
        assert answer["taken"] == ["definitions: dataset[files]"]
        assert answer["exported_to"]
    assert (root / "sync.toml").read_text().startswith(before.rstrip("\n"))
    assert [one.path for one in load_sync(str(root / "sync.toml")).datasets] == [str(held)]


@pytest.mark.req("R2", "R3")
async def test_who_holds_a_token_that_ran_out_is_told_nothing_of_the_node(tmp_path: Path) -> None:
    identity = init_cluster(str(tmp_path / "first"), address="127.0.0.1:1")
    clock = SetClock()
    async with serving(identity, clock) as port:
        port.facts = inviter(model="of nobody's business")
        token = port.token(lifetime_s=30)
        clock.pass_s(31)
        refused = await join(joiner(tmp_path / "b"), token)
        assert refused.returncode == 6
        assert "the token has expired" in json.loads(refused.stdout)["error"]["reason"]
        assert "nobody's business" not in refused.stdout + refused.stderr
        assert port.refusals() == ["the token has expired"]
