"""One run of the demo: form the pair, watch it work, kill the Active, see the Standby take over, count.

Nothing here decides who serves: the agents do. Everything happens below one directory, and every process that was
started has ended when ``Demo.run`` returns, whatever happens. Blocking; seconds are monotonic.
"""

from __future__ import annotations

import os
import subprocess
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Final

import grpc

from ha_proto.agent.v1 import agent_pb2
from ha_proto.sync.v1 import control_pb2 as pb
from ha_sync.sample import SampleSettings, Verdict, check, start_command
from ha_sync.sample.agents import HaNode, HaPair
from ha_sync.sample.child import LOOK_EVERY_S
from ha_sync.sample.client import Client
from ha_sync.sample.pair import LocalNode, PairFailure
from ha_sync.sample.stage import Stage

WARM_UP_S: Final = 2.0
PBX_STOP_S: Final = 15.0
BARRIER_S: Final = 5.0
TAKE_OVER_S: Final = 40.0
GROWTH_BYTES: Final = 20_000
"""How much the new Active's PBX must have written into its ledger before it counts as at work."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Lag:
    """Of one dataset, commit to durable on the Standby."""

    dataset: str
    p50_ms: float
    p99_ms: float
    samples: int


@dataclass(frozen=True, slots=True, kw_only=True)
class TakeOver:
    """What the Standby did by itself. Seconds."""

    epoch: int
    phases_s: dict[str, float]  # detect, decide, address, services, of the agent's switch log
    address_s: float  # from the kill until the agent held the address
    promotion_s: float  # from then until its engine had the role
    working_s: float  # from the kill until its PBX was at work
    finished: int  # what the promotion finished for the dead node
    outages_s: dict[str, float]  # of a client of the cluster IP, for each way of asking


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What the demo found."""

    verdict: Verdict
    lag: list[Lag]
    take_over: TakeOver
    cluster_ip: str
    stand_in: bool


@dataclass(slots=True)
class _Seen:
    """Moments of a take-over, as this process saw them; 0: not yet."""

    address: float = 0.0
    engine: float = 0.0
    record: agent_pb2.SwitchRecord = field(default_factory=agent_pb2.SwitchRecord)


class Demo:
    """One run below a directory of its own."""

    def __init__(
        self, directory: str, stage: Stage, *, seconds: float, calls: int, seed: int, say: Callable[[str], object]
    ) -> None:
        self._directory = directory
        self._stage = stage
        self._seconds = seconds
        self._calls = calls
        self._seed = seed
        self._say = say

    def run(self) -> Outcome:
        """Ends every process it started, whatever happens. Raises PairFailure."""
        with HaPair(self._directory, self._stage.scenes, seed=self._seed, calls=self._calls) as pair:
            self._form(pair)
            with ExitStack() as watching:
                client = Client(self._stage.questions())
                watching.callback(client.close)
                client.start()
                barriers = _Barriers(pair.a.engine)
                watching.callback(barriers.stop)
                barriers.start()
                self._watch(pair.a.engine)
                lag = _lag(pair.a.engine)
                before = frozenset(record.id for record in pair.b.agent.switches())
                killed = self._kill(pair)
                acknowledged_until = barriers.stop()
                take_over = self._take_over(pair.b, client, killed, before)
            self._say("counting from the PBX's ledger what had arrived on b ...")
            verdict = check(pair.a.pbx.ledger, pair.b.pbx.copy_to, acknowledged_until)
        return Outcome(
            verdict=verdict,
            lag=lag,
            take_over=take_over,
            cluster_ip=self._stage.cluster_ip,
            stand_in=self._stage.stand_in,
        )

    def _form(self, pair: HaPair) -> None:
        self._say(f"two nodes, a and b: engine, agent and sample PBX each (seed {self._seed}, {self._calls} calls)")
        self._warm_up(pair.a)
        pair.form()
        kind = "a stand-in on the loopback interface: it answers UDP" if self._stage.stand_in else "a real address"
        self._say(f"cluster IP {self._stage.cluster_ip}: {kind}")
        status = pair.a.agent.status()
        self._say(f"the agents chose a: Active of epoch {status.epoch}; b is a ready Standby, every dataset streams")

    def _warm_up(self, node: HaNode) -> None:
        """The PBX makes its databases before the engine runs, so that triggers go in while nobody has them open."""
        settings = SampleSettings(
            root=node.pbx.root, ledger=node.pbx.ledger, seed=self._seed, run=0, calls=self._calls, seconds=WARM_UP_S
        )
        with open(node.pbx.log, "ab") as log:
            done = subprocess.run(
                start_command(settings),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                timeout=WARM_UP_S + PBX_STOP_S,
                check=False,
            )
        if done.returncode != 0:
            raise PairFailure(f"the sample PBX ended with {done.returncode}: see {node.pbx.log}")

    def _watch(self, node: LocalNode) -> None:
        end = time.monotonic() + self._seconds
        while (left := end - time.monotonic()) > 0:
            time.sleep(min(1.0, left))
            items = node.status().datasets
            worst = max((item.lag.p99_ms for item in items if item.lag.HasField("p99_ms")), default=0.0)
            parts = " ".join(f"{item.name} {item.lag.p50_ms:.1f}" for item in items if item.lag.HasField("p50_ms"))
            backlog = sum(item.backlog for item in items)
            self._say(f"{left:4.0f} s  lag p50 ms: {parts}  (worst p99 {worst:.0f} ms, {backlog} changes under way)")

    def _kill(self, pair: HaPair) -> float:
        if not pair.a.serves:
            raise PairFailure(f"a lost its role before it was killed: {pair.a.agent.log_tail()}")
        killed = pair.a.kill()
        self._say("killed: all of a, its engine, its agent and its PBX, with SIGKILL in mid-work")
        return killed

    def _take_over(self, node: HaNode, client: Client, killed: float, before: frozenset[str]) -> TakeOver:
        seen = _Seen()
        node.agent.until(lambda: self._served(node, seen, before), "the take-over", timeout_s=TAKE_OVER_S)
        working_s = _at_work(node) - killed
        self._say(f"b is Active of epoch {seen.record.epoch} and its PBX at work {working_s:.2f} s after the kill")
        node.agent.until(lambda: client.answered_since("udp", seen.address), "an answer to the client")
        finished = _finished(node.engine, seen.record.epoch)
        return TakeOver(
            epoch=seen.record.epoch,
            phases_s=dict(seen.record.phases_s),
            address_s=seen.address - killed,
            promotion_s=seen.engine - seen.address,
            working_s=working_s,
            finished=finished,
            outages_s={name: outage.seconds for name, outage in client.outages(killed).items()},
        )

    def _served(self, node: HaNode, seen: _Seen, before: frozenset[str]) -> bool:
        if not seen.address and node.agent.status().holds:
            seen.address = time.monotonic()
            self._say("b holds the cluster IP")
        if seen.address and not seen.engine and node.engine.status().role == "active":
            seen.engine = time.monotonic()
        records = [one for one in node.agent.switches() if one.id not in before and one.to_role == "active"]
        if not seen.engine or not records or records[-1].result == "open":
            return False
        seen.record = records[-1]
        if seen.record.result != "done":
            raise PairFailure(f"the take-over ended as {seen.record.result}: {seen.record.error}")
        return True


class _Barriers:
    """Asks for the barrier again and again; what was committed before the last answered call was acknowledged."""

    def __init__(self, node: LocalNode) -> None:
        self._node = node
        self._acknowledged_until = 0.0
        self._over = threading.Event()
        # A daemon: an interrupt within ``start`` must not leave a thread that the process waits for.
        self._thread = threading.Thread(target=self._ask, name="barriers", daemon=True)

    def start(self) -> None:
        """Begins to ask."""
        self._thread.start()

    def stop(self) -> float:
        """Monotonic seconds: everything durable on the Active before is durable on the Standby."""
        self._over.set()
        if self._thread.is_alive():
            self._thread.join()
        return self._acknowledged_until

    def _ask(self) -> None:
        while not self._over.is_set():
            called = time.monotonic()
            try:
                missing = self._node.wait_replicated(timeout_s=BARRIER_S)
            except grpc.RpcError:
                return  # killed: the last answer stands
            if not missing:
                self._acknowledged_until = called
            self._over.wait(0.05)


def _at_work(node: HaNode) -> float:
    """The moment when its PBX had written a good deal; it was started by the agent."""
    deadline = time.monotonic() + TAKE_OVER_S
    while time.monotonic() < deadline:
        if node.pbx.pid is not None and os.path.getsize(node.pbx.ledger) >= GROWTH_BYTES:
            return time.monotonic()
        time.sleep(LOOK_EVERY_S)
    raise PairFailure(f"the PBX of {node.name} does not work after the take-over: see {node.pbx.log}")


def _finished(node: LocalNode, epoch: int) -> int:
    """How many things the promotion finished for the dead node, as the engine's event log has it."""
    for event in node.control().ListEvents(pb.ListEventsRequest(), timeout=10):
        if event.what == "role taken" and event.fields.get("epoch") == str(epoch):
            return int(event.fields["finished"])
    return 0


def _lag(node: LocalNode) -> list[Lag]:
    return [
        Lag(dataset=item.name, p50_ms=item.lag.p50_ms, p99_ms=item.lag.p99_ms, samples=item.lag.samples)
        for item in node.status().datasets
        if item.lag.HasField("p50_ms")
    ]
