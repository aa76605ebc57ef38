"""`ha-sync pair init | token | join` as an administrator types them."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import grpc
import pytest

from ha_proto.sync.v1 import control_pb2, control_pb2_grpc
from ha_sync.pairing.identity import Identity
from ha_sync.pairing.onetime import decode, encode
from ha_sync.pairing.route import address_towards, mac_of
from tests.support.pairing_nodes import PeerPort, serving

# ruff: noqa: N802 - methods are named as in the protocol

pytestmark = pytest.mark.req("R3")


def _settings(directory: Path, *, listen: str = "127.0.0.1:9527", tree: Path | None = None) -> str:
    text = f'[node]\nname = "{directory.name}"\nstate_dir = "{directory}/state"\n'
    text += f'run_dir = "{directory}/run"\nlisten = "{listen}"\n'
    if tree is not None:
        text += f'[[dataset]]\nname = "voicemail"\nkind = "tree"\npath = "{tree}"\npriority = "voicemail"\n'
    directory.mkdir()
    (directory / "sync.toml").write_text(text)
    return str(directory / "sync.toml")


def _pair(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", "from ha_sync.cli.main import main; main()", "pair", *words],
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
        check=False,
    )


def test_init_shows_the_pair_and_refuses_a_second_time(tmp_path: Path) -> None:
    config = _settings(tmp_path / "first")
    done = _pair("init", "--config", config, "--json")
    assert done.returncode == 0, done.stderr
    shown = json.loads(done.stdout)
    identity = Identity.load(str(tmp_path / "first" / "state"))
    assert (shown["cluster_id"], shown["node_id"]) == (identity.cluster_id, identity.node_id)
    assert (shown["node_name"], shown["address"]) == ("first", "127.0.0.1:9527")
    again = _pair("init", "--config", config)
    assert again.returncode == 3
    assert "belongs to a pair already" in again.stderr


def test_init_on_all_addresses_takes_the_one_that_faces_the_network_or_asks_for_it(tmp_path: Path) -> None:
    config = _settings(tmp_path / "first", listen="0.0.0.0:9527")
    done = _pair("init", "--config", config, "--json")
    facing = address_towards()
    if facing:
        assert json.loads(done.stdout)["address"] == f"{facing}:9527"
    else:
        assert done.returncode == 6
        assert "--address" in done.stderr


def test_a_token_without_a_pair_is_refused(tmp_path: Path) -> None:
    done = _pair("token", "--config", _settings(tmp_path / "first"))
    assert done.returncode == 3
    assert "not paired" in done.stderr


def test_a_mistyped_token_is_named_as_such(tmp_path: Path) -> None:
    first, second = _settings(tmp_path / "first"), _settings(tmp_path / "second")
    assert _pair("init", "--config", first).returncode == 0
    text = json.loads(_pair("token", "--config", first, "--json").stdout)["token"]
    wrong = text[:40] + ("A" if text[40] != "A" else "B") + text[41:]
    done = _pair("join", wrong, "--config", second)
    assert done.returncode == 6
    assert "mistyped" in done.stderr
    assert _pair("join", "nonsense", "--config", second).returncode == 6


def test_a_join_that_reaches_nobody_ends_with_five(tmp_path: Path) -> None:
    first, second = _settings(tmp_path / "first", listen="127.0.0.1:1"), _settings(tmp_path / "second")
    assert _pair("init", "--config", first).returncode == 0
    text = json.loads(_pair("token", "--config", first, "--json").stdout)["token"]
    done = _pair("join", text, "--config", second, "--json")
    assert done.returncode == 5
    assert "nothing listens at 127.0.0.1:1" in json.loads(done.stdout)["error"]["reason"]


async def test_a_token_made_without_an_engine_is_good_when_it_runs(tmp_path: Path) -> None:
    data = tmp_path / "data"
    data.mkdir()
    (data / "msg0000.txt").write_text("mine")
    first = _settings(tmp_path / "first")
    second = _settings(tmp_path / "second", listen="127.0.0.1:9528", tree=data)
    assert (await asyncio.to_thread(_pair, "init", "--config", first)).returncode == 0
    done = await asyncio.to_thread(_pair, "token", "--config", first, "--lifetime", "60")
    assert "within 1 minutes" in done.stdout
    text = done.stdout.split()[-1]
    async with serving(Identity.load(str(tmp_path / "first" / "state"))) as port:
        told = encode(dataclasses.replace(decode(text), address=port.address))
        refused = await asyncio.to_thread(_pair, "join", told, "--config", second)
        assert refused.returncode == 6
        assert "voicemail" in refused.stderr
        joined = await asyncio.to_thread(_pair, "join", told, "--config", second, "--discard-local-data", "--json")
        assert joined.returncode == 0, joined.stderr
        shown = json.loads(joined.stdout)
        assert f"saved to {shown['exported_to']}" in joined.stderr
        assert shown["epoch"] == 42
        assert os.path.basename(shown["exported_to"]) in os.listdir(tmp_path / "second" / "state")
        assert (shown["node_name"], shown["peer"]["node_id"]) == ("second", port.keyring.identity.node_id)
        assert port.keyring.identity.peer is not None
        assert port.keyring.identity.peer.address == "127.0.0.1:9528"
        again = await asyncio.to_thread(_pair, "join", told, "--config", second)
        assert again.returncode == 3


def test_loopback_has_no_hardware_address() -> None:
    assert mac_of("127.0.0.1") == ""
    assert address_towards("127.0.0.1") == "127.0.0.1"
    assert address_towards("no-such-host.invalid") == ""


class _Engine(control_pb2_grpc.ControlServiceServicer):
    """The one answer of a running engine that matters here."""

    def __init__(self, port: PeerPort) -> None:
        self._port = port
        self.asked: list[float] = []

    async def CreateToken(self, request: control_pb2.CreateTokenRequest, _context: object) -> object:
        self.asked.append(request.lifetime_s)
        made = self._port.keyring.invitations.create(self._port.keyring.identity, lifetime_s=request.lifetime_s)
        return control_pb2.CreateTokenResponse(token=made.text, expires=made.expires)


async def test_a_running_engine_is_asked_for_the_token(tmp_path: Path) -> None:
    config = _settings(tmp_path / "first")
    assert (await asyncio.to_thread(_pair, "init", "--config", config)).returncode == 0
    async with serving(Identity.load(str(tmp_path / "first" / "state"))) as port:
        engine = _Engine(port)
        server = grpc.aio.server()
        control_pb2_grpc.add_ControlServiceServicer_to_server(engine, server)
        os.makedirs(tmp_path / "first" / "run")
        server.add_insecure_port(f"unix:{tmp_path}/first/run/sync.sock")
        await server.start()
        done = await asyncio.to_thread(_pair, "token", "--config", config, "--lifetime", "30", "--json")
        await server.stop(0)
        assert done.returncode == 0, done.stderr
        assert engine.asked == [30.0]
        assert port.keyring.invitations.find(decode(json.loads(done.stdout)["token"]).token_id) is not None
    # The engine is gone, its socket perhaps not.
    with contextlib.closing(socket.socket(socket.AF_UNIX)) as stale, contextlib.suppress(OSError):
        stale.bind(f"{tmp_path}/first/run/sync.sock")
    done = await asyncio.to_thread(_pair, "token", "--config", config, "--json")
    assert done.returncode == 0, done.stderr
