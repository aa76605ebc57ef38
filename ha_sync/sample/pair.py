"""A pair of real engines on this machine: processes on 127.0.0.1, driven as an administrator would, for demo and tests.

Everything lives below one directory: for each node ``<name>/data`` (replicated), ``<name>/state``, ``<name>/run``,
``<name>/sync.toml`` and ``<name>/engine.log``. Nothing here knows the engine's inside: it runs ``ha-sync`` commands and
speaks to the control socket. Ends only what it started, by pid. Blocking; seconds are monotonic.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

import grpc

from ha_proto.sync.v1 import control_pb2 as pb
from ha_proto.sync.v1 import control_pb2_grpc

START_S = 30.0
STOP_S = 20.0
LOOK_EVERY_S = 0.02
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


class PairFailure(Exception):
    """A command failed or a state did not come; the text says what was printed."""


class LocalNode:
    """One engine."""

    def __init__(self, place: Place, *, config: str, directory: str) -> None:
        self.place = place
        self.config = config
        self.log_path = os.path.join(directory, "engine.log")
        self.process: subprocess.Popen[bytes] | None = None
        self._channel: grpc.Channel | None = None

    @property
    def socket_path(self) -> str:
        """Of the control API."""
        return os.path.join(self.place.run_dir, "sync.sock")

    def command(self, *arguments: str, check: bool = True, timeout_s: float = 60.0) -> subprocess.CompletedProcess[str]:
        """Runs ``ha-sync`` with this node's configuration and returns what it printed."""
        line = [sys.executable, "-m", "ha_sync.cli", *arguments, "--config", self.config]
        done = subprocess.run(line, capture_output=True, text=True, check=False, timeout=timeout_s)
        if check and done.returncode != 0:
            raise PairFailure(
                f"{' '.join(arguments)} on {self.place.name}: exit {done.returncode}: {done.stderr.strip()}"
            )
        return done

    def serve(self, role: str, epoch: int) -> None:
        """Starts the engine and waits until its control socket answers."""
        assert self.process is None, "it runs already"
        line = [sys.executable, "-m", "ha_sync.cli", "serve", "--role", role, "--epoch", str(epoch)]
        with open(self.log_path, "ab") as log:
            self.process = subprocess.Popen(
                [*line, "--config", self.config], stdin=subprocess.DEVNULL, stdout=log, stderr=log
            )
        self.until(lambda: self.status().role == role, f"role {role}", timeout_s=START_S)

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

    def until(self, condition: Callable[[], bool], what: str, *, timeout_s: float = 30.0) -> None:
        """Looks until ``condition`` holds; raises PairFailure with the tail of the log when the process ended."""
        deadline = time.monotonic() + timeout_s
        reason = ""
        while time.monotonic() < deadline:
            if self.process is not None and self.process.poll() is not None:
                raise PairFailure(f"{self.place.name} ended with {self.process.returncode}: {self.log_tail()}")
            try:
                if condition():
                    return
            except PairFailure as failure:
                reason = str(failure)
            time.sleep(LOOK_EVERY_S)
        raise PairFailure(f"{self.place.name}: {what} did not come in {timeout_s:g} s. {reason}\n{self.log_tail()}")

    def kill(self, number: int = signal.SIGKILL) -> None:
        """SIGKILL (a crash), SIGSTOP (frozen), SIGCONT ... to the engine."""
        assert self.process is not None, "it does not run"
        self.process.send_signal(number)
        if number == signal.SIGKILL:
            self.process.wait()
            self.process = None

    def stop(self) -> None:
        """A clean stop."""
        if self.process is None:
            return
        self.process.send_signal(signal.SIGCONT)
        self.process.terminate()
        try:
            self.process.wait(STOP_S)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
            raise PairFailure(f"{self.place.name} did not stop in {STOP_S:g} s: {self.log_tail()}") from None
        finally:
            self.process = None

    def close(self) -> None:
        """Ends everything, whatever state it is in."""
        if self.process is not None:
            self.process.kill()
            self.process.wait()
            self.process = None
        if self._channel is not None:
            self._channel.close()
            self._channel = None

    def log_tail(self, *, size: int = 4000) -> str:
        """The end of the engine's log."""
        try:
            with open(self.log_path, "rb") as log:
                log.seek(max(0, os.path.getsize(self.log_path) - size))
                return log.read().decode(errors="replace")
        except FileNotFoundError:
            return ""


class LocalPair:
    """Two nodes, ``a`` and ``b``, which share the datasets that ``toml_for`` writes."""

    def __init__(self, directory: str, toml_for: Callable[[Place], str]) -> None:
        ports = _free_ports(2)
        addresses = [f"{LISTEN}:{port}" for port in ports]
        self.a = _make_node(directory, "a", addresses[0], addresses[1], toml_for)
        self.b = _make_node(directory, "b", addresses[1], addresses[0], toml_for)

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


def _make_node(directory: str, name: str, listen: str, peer: str, toml_for: Callable[[Place], str]) -> LocalNode:
    home = os.path.join(directory, name)
    place = Place(
        name=name,
        root=os.path.join(home, "data"),
        state_dir=os.path.join(home, "state"),
        run_dir=os.path.join(home, "run"),
        listen=listen,
        peer=peer,
    )
    for path in (place.root, place.state_dir, place.run_dir):
        os.makedirs(path, exist_ok=True)
    config = os.path.join(home, "sync.toml")
    with open(config, "w", encoding="utf-8") as file:
        file.write(toml_for(place))
    return LocalNode(place, config=config, directory=home)


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
