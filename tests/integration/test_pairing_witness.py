"""Whom TLS itself refuses stands in the event log, with address and reason; standard error stays usable."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest

from ha_sync.pairing import certificates
from ha_sync.pairing.identity import Identity, init_cluster
from ha_sync.pairing.keyring import CHANNEL_OPTIONS, channel_credentials
from ha_sync.pairing.witness import connections

pytestmark = pytest.mark.req("R3")


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Watched:
    process: subprocess.Popen[bytes]
    port: int

    def event(self) -> tuple[str, str, dict[str, str]]:
        assert self.process.stdout is not None
        severity, what, fields = json.loads(self.process.stdout.readline())
        return severity, what, fields

    def end(self) -> str:
        """What went to standard error."""
        return self.process.communicate(timeout=30)[1].decode()


@contextlib.contextmanager
def _watched(state_dir: Path) -> Iterator[Watched]:
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.support.pairing_witness", str(state_dir)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
    )
    with process:
        try:
            assert process.stdout is not None
            yield Watched(process=process, port=int(process.stdout.readline()))
        finally:
            process.kill()


def _dial(port: int, identity: Identity) -> int:
    """Tries to call; returns nothing of use: the server says nothing to a client that it refuses."""
    with grpc.secure_channel(f"127.0.0.1:{port}", channel_credentials(identity), options=CHANNEL_OPTIONS) as channel:
        with pytest.raises(grpc.RpcError) as refused:
            channel.unary_unary("/none/None")(b"", timeout=10)
        code: int = refused.value.code().value[0]
        return code


def test_a_stranger_an_expired_certificate_and_no_tls_are_logged_with_address_and_reason(tmp_path: Path) -> None:
    ours = init_cluster(str(tmp_path / "ours"))
    stranger = dataclasses.replace(init_cluster(str(tmp_path / "stranger")), authority=ours.authority)
    with _watched(tmp_path / "ours") as watched:
        _dial(watched.port, stranger)
        severity, what, fields = watched.event()
        assert (severity, what) == ("warning", "connection refused")
        assert "a stranger" in fields["reason"]
        assert fields["peer"].startswith("127.0.0.1:")
        assert fields["attempted"] == "TLS handshake"
        _dial(watched.port, _ended(ours))
        fields = watched.event()[2]
        assert "expired" in fields["reason"]
        assert fields["peer"].startswith("127.0.0.1:")
        with socket.create_connection(("127.0.0.1", watched.port)) as plain:
            plain.sendall(b"GET / HTTP/1.1\r\n\r\n" * 10)
            mine = f"127.0.0.1:{plain.getsockname()[1]}"
            fields = watched.event()[2]
        assert "does not speak TLS" in fields["reason"]
        assert fields["peer"] == mine
        said = watched.end()
    assert said.splitlines() == ["a line of another part", "after the witness"]


async def test_the_kernel_s_table_names_who_is_connected(tmp_path: Path) -> None:
    async def hold(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()
        writer.close()

    for host, shown in (("127.0.0.1", "127.0.0.1:{}"), ("::1", "[::1]:{}")):
        try:
            server = await asyncio.start_server(hold, host, 0)
        except OSError as failed:
            pytest.skip(f"no {host} here: {failed}")
        async with server:
            port = server.sockets[0].getsockname()[1]
            assert list(connections(port)) == []
            _, writer = await asyncio.open_connection(host, port)
            mine = writer.get_extra_info("sockname")[1]
            assert list(connections(port)) == [shown.format(mine)]
            writer.close()
            await writer.wait_closed()


def _ended(identity: Identity) -> Identity:
    assert identity.authority_key is not None
    certificate = certificates.make_certificate(
        authority_key=identity.authority_key,
        authority_name=identity.authority.subject,
        public_key=identity.key.public_key(),
        member=identity.member,
        ends_unix_s=1_700_000_000.0,
    )
    return dataclasses.replace(identity, certificate=certificate)
