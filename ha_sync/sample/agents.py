"""A pair of whole nodes on this machine: engine, agent and sample PBX each, whose agents decide who serves.

The agent is another program: it is started as a process and asked through its socket. What a node does is written to
``<directory>/<name>/``. ``HaPair.close`` ends every process whose command line names the directory, so also what an
agent has started and left behind. Blocking; seconds are monotonic.
"""

from __future__ import annotations

import os
import select
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Final, Self

import grpc

from ha_proto.agent.v1 import agent_pb2 as pb
from ha_proto.agent.v1 import agent_pb2_grpc
from ha_sync.sample.child import Child, PairFailure
from ha_sync.sample.hatoml import HaPlace, Service, ha_toml
from ha_sync.sample.pair import Host, LocalNode, LocalPair, Place
from ha_sync.sample.service import PbxPlace, service_command
from ha_sync.sample.synctoml import sync_toml

ELECTION_S: Final = 30.0
READY_S: Final = 60.0
SWEEP_S: Final = 10.0
SWEEP_EVERY_S: Final = 0.05
SWEEP_LOOKS: Final = 2  # a process that was just forked does not bear its command line yet


class LocalAgent(Child):
    """The agent of one node."""

    def __init__(self, name: str, *, config: str, run_dir: str, log_path: str, enter: tuple[str, ...]) -> None:
        super().__init__(f"agent of {name}", log_path=log_path)
        self._line = [*enter, sys.executable, "-m", "ha_agent.cli", "run", "--config", config]
        self._socket_path = os.path.join(run_dir, "agent.sock")
        self._channel: grpc.Channel | None = None

    def run(self) -> None:
        """Starts it and waits until its socket answers."""
        self.start(self._line)
        self.until(lambda: bool(self.status().role), "its socket", timeout_s=ELECTION_S)

    def status(self) -> pb.AgentStatus:
        """As the agent says it; raises PairFailure when it does not answer."""
        return self._ask(lambda stub: stub.GetStatus(pb.GetStatusRequest(), timeout=5))  # type: ignore[no-any-return]

    def switches(self) -> list[pb.SwitchRecord]:
        """The switch log; raises PairFailure when it does not answer."""
        return self._ask(lambda stub: list(stub.ListSwitches(pb.ListSwitchesRequest(), timeout=5)))  # type: ignore[no-any-return]

    def close(self) -> None:
        """Ends it, whatever state it is in."""
        super().close()
        if self._channel is not None:
            self._channel.close()
            self._channel = None

    def _ask(self, question: Callable[[Any], Any]) -> Any:
        if self._channel is None:
            options = (("grpc.initial_reconnect_backoff_ms", 50), ("grpc.max_reconnect_backoff_ms", 200))
            self._channel = grpc.insecure_channel(f"unix:{self._socket_path}", options=options)
        try:
            return question(agent_pb2_grpc.AgentServiceStub(self._channel))  # type: ignore[no-untyped-call]
        except grpc.RpcError as error:
            raise PairFailure(f"{self.name} does not answer: {error.details()}") from error


@dataclass(frozen=True, slots=True, kw_only=True)
class HaNode:
    """One whole node."""

    name: str
    engine: LocalNode
    agent: LocalAgent
    pbx: PbxPlace
    beside: tuple[Child, tuple[str, ...]] | None  # what else runs on it, with its command line

    def run(self) -> None:
        """Starts the engine and the agent; the agent starts the PBX if this node is to serve."""
        if self.beside is not None:
            child, line = self.beside
            child.start(line)
        self.engine.follow()
        self.agent.run()

    def kill(self) -> float:
        """SIGKILL to PBX, engine and agent as fast as they can be named; returns when it was done."""
        pbx = self.pbx.pid
        children = [child for child in self._children if child.process is not None]
        if pbx is None or self.engine not in children or self.agent not in children:
            raise PairFailure(f"node {self.name} does not run as a whole: {self.agent.log_tail(size=1000)}")
        for pid in (pbx, *(child.process.pid for child in children if child.process is not None)):
            os.kill(pid, signal.SIGKILL)
        killed = time.monotonic()
        for child in children:
            child.kill()
        return killed

    def close(self) -> None:
        """Ends engine, agent and what runs beside them; the agent first, so that nothing is started any more."""
        for child in self._children:
            child.close()

    @property
    def _children(self) -> tuple[Child, ...]:
        return (self.agent, self.engine, *((self.beside[0],) if self.beside is not None else ()))

    @property
    def serves(self) -> bool:
        """Whether this node is Active as a whole: address, engine and PBX."""
        status = self.agent.status()
        active = status.role == "active" and status.holds and self.engine.status().role == "active"
        return active and self.pbx.pid is not None


@dataclass(frozen=True, slots=True, kw_only=True)
class Scene:
    """On what a pair is built: the machine's loopback interface, or namespaces."""

    host: Host
    ha: HaPlace
    beside: tuple[str, ...] = ()  # command line of one more process of the node


class HaPair:
    """Two whole nodes, ``a`` and ``b``, below one directory."""

    def __init__(self, directory: str, scenes: tuple[Scene, Scene], *, seed: int, calls: int) -> None:
        self._directory = directory
        paths = dict(zip("ab", (scene.ha.paths for scene in scenes), strict=True))
        self.engines = LocalPair(
            directory, lambda place: _sync_toml(place, paths[place.name]), hosts=(scenes[0].host, scenes[1].host)
        )
        nodes = [
            _make_node(directory, engine, scene, seed=seed, calls=calls)
            for engine, scene in zip((self.engines.a, self.engines.b), scenes, strict=True)
        ]
        self.a, self.b = nodes

    def form(self) -> None:
        """Pairs the nodes and starts both; returns when ``a`` serves and ``b`` could take over.

        They are paired with the role given by hand, so that both agents start together and elect at once: a founder
        that is alone waits for its peer first.
        """
        self.engines.pair_up()
        self.a.engine.stop()
        for node in (self.a, self.b):
            node.run()
        self.a.agent.until(lambda: self.a.serves, "the role of Active", timeout_s=ELECTION_S)
        self.engines.until_streaming(timeout_s=READY_S)
        self.b.agent.until(lambda: self.b.agent.status().ready, "readiness as Standby", timeout_s=READY_S)

    def close(self) -> None:
        """Ends everything that belongs to the two nodes."""
        self.a.close()
        self.b.close()
        sweep(self._directory)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def sweep(directory: str) -> None:
    """Kills every process whose command line names ``directory``, which nobody else may use; waits for their end."""
    deadline = time.monotonic() + SWEEP_S
    empty = 0
    while empty < SWEEP_LOOKS and time.monotonic() < deadline:
        found = list(processes_of(directory))
        empty = 0 if found else empty + 1
        for pid in found:
            with suppress(ProcessLookupError):
                _end(pid, directory)
        time.sleep(SWEEP_EVERY_S)


def processes_of(directory: str) -> Iterator[int]:
    """Processes whose command line names ``directory``, but for this one."""
    for name in os.listdir("/proc"):
        if name.isdigit() and int(name) != os.getpid() and _names(int(name), directory):
            yield int(name)


def _end(pid: int, directory: str) -> None:
    process = os.pidfd_open(pid)
    try:
        if _names(pid, directory):  # it had not ended before it was opened, so the number is still its own
            signal.pidfd_send_signal(process, signal.SIGKILL)
            select.select([process], [], [], 1.0)
    finally:
        os.close(process)


def _names(pid: int, directory: str) -> bool:
    with suppress(FileNotFoundError, ProcessLookupError, PermissionError), open(f"/proc/{pid}/cmdline", "rb") as file:
        return os.fsencode(directory) in file.read()
    return False


def _make_node(directory: str, engine: LocalNode, scene: Scene, *, seed: int, calls: int) -> HaNode:
    place, home = engine.place, os.path.join(directory, engine.place.name)
    pbx = PbxPlace(
        root=place.root,
        ledger=os.path.join(home, "ledger"),
        log=os.path.join(home, "pbx.log"),
        pid_file=os.path.join(home, "pbx.pid"),
        # What arrived on the Secondary is counted in a copy: its own PBX goes on with the original.
        copy_to="" if scene.ha.primary else os.path.join(home, "arrived"),
    )
    first_run = 0 if scene.ha.primary else 1000
    start, stop = (
        service_command(verb, pbx, seed=seed, calls=calls, first_run=first_run) for verb in ("start", "stop")
    )
    config = os.path.join(home, "ha.toml")
    with open(config, "w", encoding="utf-8") as file:
        file.write(
            ha_toml(
                name=place.name,
                state_dir=place.state_dir,
                run_dir=place.run_dir,
                place=scene.ha,
                services=(Service(name="pbx", start=start, stop=stop),),
            )
        )
    agent = LocalAgent(
        place.name,
        config=config,
        run_dir=place.run_dir,
        log_path=os.path.join(home, "agent.log"),
        enter=engine.enter,
    )
    beside = Child(f"beside {place.name}", log_path=os.path.join(home, "beside.log"))
    return HaNode(
        name=place.name,
        engine=engine,
        agent=agent,
        pbx=pbx,
        beside=(beside, (*engine.enter, *scene.beside)) if scene.beside else None,
    )


def _sync_toml(place: Place, paths: tuple[tuple[str, str, str], ...]) -> str:
    """The engine listens at its end of each path: the stream goes by any of them."""
    port = place.listen.rpartition(":")[2]
    return sync_toml(
        root=place.root,
        state_dir=place.state_dir,
        run_dir=place.run_dir,
        listen=[f"{own}:{port}" for _, own, _ in paths],
        peer=place.peer,
        name=place.name,
    )
