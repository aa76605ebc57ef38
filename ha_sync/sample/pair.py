"""A pair of real engines on this machine: processes on 127.0.0.1, driven as an administrator would, for demo and tests.

Everything lives below one directory: for each node ``<name>/data`` (replicated), ``<name>/state``, ``<name>/run``,
``<name>/sync.toml`` and ``<name>/engine.log``. Nothing here knows the engine's inside: it runs ``ha-sync`` commands and
speaks to the control socket. Ends only what it started, by pid. Blocking; seconds are monotonic.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

import grpc

from ha_proto.sync.v1 import control_pb2 as pb
from ha_proto.sync.v1 import control_pb2_grpc
from ha_sync.sample.child import Child, PairFailure

__all__ = ["Host", "LocalNode", "LocalPair", "PairFailure", "Place"]

START_S = 30.0
LISTEN = "127.0.0.1"


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """Where a node lives; given to whoever writes its ``sync.toml``."""

    name: str
    root: str  # replicated data
    state_dir: str
    run_dir: str
    listen: str  # host:port
    peer: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Host:
    """Where a node's processes run."""

    address: str = LISTEN
    port: int | None = None  # of the engine for its peer; None: a free one of this machine
    enter: tuple[str, ...] = ()  # put before each command, e.g. what enters a network namespace


class LocalNode(Child):
    """One engine."""

    def __init__(self, place: Place, *, config: str, directory: str, enter: tuple[str, ...] = ()) -> None:
        super().__init__(place.name, log_path=os.path.join(directory, "engine.log"))
        self.place = place
        self.config = config
        self.enter = enter
        self._channel: grpc.Channel | None = None

    @property
    def socket_path(self) -> str:
        """Of the control API."""
        return os.path.join(self.place.run_dir, "sync.sock")

    def command(self, *arguments: str, check: bool = True, timeout_s: float = 60.0) -> subprocess.CompletedProcess[str]:
        """Runs ``ha-sync`` with this node's configuration and returns what it printed."""
        line = self._line(*arguments)
        done = subprocess.run(line, capture_output=True, text=True, check=False, timeout=timeout_s)
        if check and done.returncode != 0:
            raise PairFailure(
                f"{' '.join(arguments)} on {self.place.name}: exit {done.returncode}: {done.stderr.strip()}"
            )
        return done

    def serve(self, role: str, epoch: int) -> None:
        """Starts the engine in a role given by hand and waits until it has it."""
        self.start(self._line("serve", "--role", role, "--epoch", str(epoch)))
        self.until(lambda: self.status().role == role, f"role {role}", timeout_s=START_S)

    def follow(self) -> None:
        """Starts the engine without a role, so that its agent decides, and waits until its control socket answers."""
        self.start(self._line("serve"))
        self.until(lambda: bool(self.status().version), "the control socket", timeout_s=START_S)

    def _line(self, *arguments: str) -> list[str]:
        return [*self.enter, sys.executable, "-m", "ha_sync.cli", *arguments, "--config", self.config]

    def control(self) -> Any:
        """The stub of the control API."""
        if self._channel is None:
            options = (("grpc.initial_reconnect_backoff_ms", 50), ("grpc.max_reconnect_backoff_ms", 200))
            self._channel = grpc.insecure_channel(f"unix:{self.socket_path}", options=options)
        return control_pb2_grpc.ControlServiceStub(self._channel)  # type: ignore[no-untyped-call]

    def status(self) -> pb.Status:
        """As the engine says it; raises PairFailure when it does not answer."""
        try:
            answer: pb.Status = self.control().GetStatus(pb.GetStatusRequest(), timeout=5)
        except grpc.RpcError as error:
            raise PairFailure(f"{self.place.name} does not answer: {error.details()}") from error
        return answer

    def dataset(self, name: str) -> pb.Dataset:
        """One dataset's part of the status."""
        return next(item for item in self.status().datasets if item.name == name)

    def set_role(self, role: str, epoch: int) -> pb.SetRoleResponse:
        """Promotion or demotion."""
        answer: pb.SetRoleResponse = self.control().SetRole(pb.SetRoleRequest(role=role, epoch=epoch), timeout=120)
        return answer

    def wait_replicated(self, *, timeout_s: float = 60.0) -> tuple[str, ...]:
        """The barrier; returns what is missing."""
        request = pb.WaitReplicatedRequest(timeout_s=timeout_s)
        answer: pb.WaitReplicatedResponse = self.control().WaitReplicated(request, timeout=timeout_s + 10)
        return tuple(answer.waiting_for)

    def close(self) -> None:
        """Ends everything, whatever state it is in."""
        super().close()
        if self._channel is not None:
            self._channel.close()
            self._channel = None


class LocalPair:
    """Two nodes, ``a`` and ``b``, which share the datasets that ``toml_for`` writes."""

    def __init__(
        self, directory: str, toml_for: Callable[[Place], str], *, hosts: tuple[Host, Host] = (Host(), Host())
    ) -> None:
        free = _free_ports(len(hosts))
        places = [f"{host.address}:{host.port or port}" for host, port in zip(hosts, free, strict=True)]
        self.a = _make_node(directory, "a", (places[0], places[1]), toml_for, hosts[0].enter)
        self.b = _make_node(directory, "b", (places[1], places[0]), toml_for, hosts[1].enter)

    def pair_up(self) -> None:
        """Runs init on a, starts it as Active of epoch 1, joins b with a token. b does not run yet."""
        self.a.command("pair", "init", "--name", "a", "--address", self.a.place.listen)
        self.a.serve("active", 1)
        token = json.loads(self.a.command("pair", "token", "--json").stdout)["token"]
        self.b.command("pair", "join", token, "--name", "b", "--address", self.b.place.listen, "--discard-local-data")

    def start(self) -> None:
        """Pairs, starts both, and waits until every dataset streams."""
        self.pair_up()
        self.b.serve("standby", 1)
        self.until_streaming()

    def until_streaming(self, *, active: LocalNode | None = None, timeout_s: float = 60.0) -> None:
        """Waits until no dataset of the Active is starting, syncing or waiting."""
        node = active or self.a
        ready = {"streaming", "degraded"}
        node.until(
            lambda: all(item.state in ready for item in node.status().datasets),
            "streaming of all datasets",
            timeout_s=timeout_s,
        )

    def close(self) -> None:
        """Ends both engines."""
        self.a.close()
        self.b.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _make_node(
    directory: str, name: str, addresses: tuple[str, str], toml_for: Callable[[Place], str], enter: tuple[str, ...]
) -> LocalNode:
    home = os.path.join(directory, name)
    place = Place(
        name=name,
        root=os.path.join(home, "data"),
        state_dir=os.path.join(home, "state"),
        run_dir=os.path.join(home, "run"),
        listen=addresses[0],
        peer=addresses[1],
    )
    for path in (place.root, place.state_dir, place.run_dir):
        os.makedirs(path, exist_ok=True)
    config = os.path.join(home, "sync.toml")
    with open(config, "w", encoding="utf-8") as file:
        file.write(toml_for(place))
    return LocalNode(place, config=config, directory=home, enter=enter)


def _free_ports(count: int) -> list[int]:
    """Ports that were free a moment ago; all are held until the last is known, so they differ."""
    sockets = [socket.socket() for _ in range(count)]
    try:
        for each in sockets:
            each.bind((LISTEN, 0))
        return [each.getsockname()[1] for each in sockets]
    finally:
        for each in sockets:
            each.close()
