"""What a node tells of itself for the preflight: its data, room, clock, and which ports of the other node it reaches.

Blocking. Counting what a folder holds ends after ``COUNT_S``: then it is at least so much. What the agent knows is
asked at its socket, or by ``ha-agent facts`` where it does not run.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import closing
from importlib.metadata import version

import grpc
from google.protobuf import json_format

from ha_proto.agent.v1 import life_pb2 as agent_pb
from ha_proto.agent.v1 import life_pb2_grpc as agent_grpc
from ha_proto.sync.v1 import life_pb2 as pb
from ha_sync.config import Settings
from ha_sync.config.settings import DatasetSettings, Kind
from ha_sync.files.mounts import not_mounted
from ha_sync.pairing.clock import read_clock
from ha_sync.pairing.diagnosis import split_address

COUNT_S = 3.0
DIAL_S = 2.0
AGENT_S = 15.0
DIAL_MAX = 16


def own_facts(settings: Settings, *, agent: agent_pb.AgentFacts | None, agent_fault: str) -> pb.NodeFacts:
    """All but what only a running engine knows."""
    deadline = time.monotonic() + COUNT_S
    facts = pb.NodeFacts(
        node_name=settings.node.name,
        version=version("ha-sync"),
        unix_s=read_clock().unix_s,
        agent_fault=agent_fault,
        datasets=[_dataset(one, deadline) for one in settings.datasets],
        storages=list(_storages(settings)),
        state_free_bytes=_free(settings.node.state_dir),
        missing_rights=list(_missing_rights(settings)),
    )
    if agent is not None:
        facts.agent.CopyFrom(agent)
    return facts


def ask_agent(socket_path: str) -> tuple[agent_pb.AgentFacts | None, str]:
    """Facts of the running agent, or why there are none."""
    if not os.path.exists(socket_path):
        return None, "the agent does not run"
    with closing(grpc.insecure_channel(f"unix:{socket_path}")) as channel:
        stub = agent_grpc.LifeServiceStub(channel)  # type: ignore[no-untyped-call]
        try:
            return stub.GetFacts(agent_pb.GetFactsRequest(), timeout=AGENT_S), ""
        except grpc.RpcError as failed:
            return None, f"the agent does not answer: {failed.details() or failed.code().name}"


def run_agent_facts(config: str) -> tuple[agent_pb.AgentFacts | None, str]:
    """The same of the file ``config``, by ``ha-agent facts``."""
    if not os.path.exists(config):
        return None, f"there is no {config}"
    try:
        done = subprocess.run(
            [sys.executable, "-m", "ha_agent.cli", "facts", "--config", config],
            capture_output=True,
            text=True,
            check=False,
            timeout=AGENT_S,
        )
        if done.returncode != 0:
            return None, done.stderr.strip() or f"ha-agent facts ended with {done.returncode}"
        return json_format.ParseDict(json.loads(done.stdout), agent_pb.AgentFacts(), ignore_unknown_fields=True), ""
    except (OSError, subprocess.SubprocessError, ValueError, json_format.ParseError) as failed:
        return None, str(failed)


def dial(addresses: Iterable[str]) -> list[pb.PortFact]:
    """Whether a TCP connection to each comes about."""
    return [_dialled(address) for address in list(dict.fromkeys(addresses))[:DIAL_MAX]]


def _dialled(address: str) -> pb.PortFact:
    try:
        host, port = split_address(address)
        with socket.create_connection((host, port), timeout=DIAL_S):
            return pb.PortFact(address=address, open=True)
    except (OSError, ValueError) as failed:
        return pb.PortFact(address=address, reason=getattr(failed, "strerror", None) or str(failed))


def _dataset(one: DatasetSettings, deadline: float) -> pb.DatasetFacts:
    used, counted = _used(one.path, deadline) if one.kind is Kind.TREE else (_file_size(one.path), True)
    return pb.DatasetFacts(
        name=one.name, kind=one.kind.value, used_bytes=used, counted=counted, free_bytes=_free(one.path)
    )


def _storages(settings: Settings) -> Iterator[pb.StorageFacts]:
    for one in settings.datasets:
        storage = getattr(one, "storage", None)
        if storage is None:
            continue
        mounted = not not_mounted(one.path)
        room = os.statvfs(one.path) if mounted else None
        yield pb.StorageFacts(
            name=one.name,
            medium=storage.medium.value,
            mounted=mounted,
            total_bytes=room.f_blocks * room.f_frsize if room else 0,
            used_bytes=(room.f_blocks - room.f_bfree) * room.f_frsize if room else 0,
            free_bytes=room.f_bavail * room.f_frsize if room else 0,
        )


def _used(path: str, deadline: float) -> tuple[int, bool]:
    total = 0
    waiting = [path]
    while waiting:
        try:
            with os.scandir(waiting.pop()) as entries:
                for entry in entries:
                    if entry.is_dir(follow_symlinks=False):
                        waiting.append(entry.path)
                    else:
                        total += entry.stat(follow_symlinks=False).st_size
        except OSError:
            continue  # gone meanwhile, or not there yet
        if time.monotonic() > deadline:
            return total, not waiting
    return total, True


def _file_size(path: str) -> int:
    return sum(os.path.getsize(name) for name in (path, f"{path}-wal") if os.path.isfile(name))


def _free(path: str) -> int:
    """Of the file system that ``path`` is, or would be, on."""
    while not os.path.exists(path):
        path = os.path.dirname(path)
    found = os.statvfs(path)
    return found.f_bavail * found.f_frsize


def _missing_rights(settings: Settings) -> Iterator[str]:
    for one in settings.datasets:
        folder = one.path if os.path.isdir(one.path) else os.path.dirname(one.path)
        if os.path.isdir(folder) and not os.access(folder, os.R_OK | os.W_OK | os.X_OK):
            yield f"{one.name}: {folder} cannot be written"
        elif os.path.isfile(one.path) and not os.access(one.path, os.R_OK | os.W_OK):
            yield f"{one.name}: {one.path} cannot be written"
