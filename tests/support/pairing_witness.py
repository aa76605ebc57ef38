"""A process with one peer port and the witness over its standard error. Arguments: state directory.

Prints the port's number, then each event as a line of JSON, until its standard input ends.
"""

from __future__ import annotations

import asyncio
import json
import os
import socket
import sys

import grpc

from ha_sync.pairing.gate import Gate, Refusals
from ha_sync.pairing.identity import Identity
from ha_sync.pairing.keyring import Keyring
from ha_sync.pairing.witness import HandshakeWitness


def _report(severity: str, what: str, fields: dict[str, object]) -> None:
    print(json.dumps([severity, what, fields]), flush=True)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        number: int = probe.getsockname()[1]
        return number


async def _serve(state_dir: str) -> None:
    keyring = Keyring(Identity.load(state_dir))
    refusals = Refusals(_report)
    number = _free_port()
    witness = HandshakeWitness(refusals, port=number)
    witness.install()
    witness.watch(keyring, Gate(keyring, refusals))
    server = grpc.aio.server()
    server.add_secure_port(f"127.0.0.1:{number}", keyring.server_credentials())
    await server.start()
    os.write(2, b"a line of another part\n")
    print(number, flush=True)
    await asyncio.to_thread(sys.stdin.read)
    await server.stop(0)
    witness.remove()
    os.write(2, b"after the witness\n")


if __name__ == "__main__":
    asyncio.run(_serve(sys.argv[1]))
