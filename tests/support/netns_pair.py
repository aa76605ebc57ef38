"""A real pair in the namespaces of ``netns``: on each node an agent, an engine and a server that answers a client.

Everything of a node lies below one directory, outside of the namespaces, so that its sockets can be reached from here.
It is paired as an administrator does it, and each node has a boot number of its kernel of its own: ``power_on`` after
``power_off`` is another boot. What is started here is ended here, by pid. Blocking; seconds are monotonic.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Self

import grpc

from ha_agent.cluster_ip.netlink import FOREVER, Kernel
from ha_proto.agent.v1 import agent_pb2 as pb
from ha_proto.agent.v1 import agent_pb2_grpc
from ha_proto.sync.v1 import control_pb2, control_pb2_grpc
from ha_sync.sample.pair import Place
from tests.support import small_pair
from tests.support.netns import NODES, Net, cable_ipv4, lan_ipv4, lan_ipv6

CLUSTER_IP = "10.77.0.53"
CLUSTER_IP6 = "fd77::53"
ENGINE, AGENT, ECHO = "engine", "agent", "echo"
DAEMONS = (ENGINE, AGENT)
PORT = 9527
COME_S = 60.0
LOOK_EVERY_S = 0.02
CALL_S = 5.0
CHANNEL_OPTIONS = (("grpc.initial_reconnect_backoff_ms", 50), ("grpc.max_reconnect_backoff_ms", 200))
OTHER = {"a": "b", "b": "a"}
STATIONS = {"a": "primary", "b": "secondary"}
IN_ITS_OWN_BOOT = 'mount --bind "$1" /proc/sys/kernel/random/boot_id && shift && exec "$@"'
"""In the mount namespace that ``ip netns exec`` makes for each process."""

Sections = Callable[["NetNode"], str]


class Silent(Exception):
    """A daemon does not answer."""


class NetNode:
    """One node: its files, its processes, its two sockets."""

    def __init__(self, net: Net, name: str, directory: str) -> None:
        self.net = net
        self.name = name
        self.home = os.path.join(directory, name)
        self.data, self.state_dir, self.run_dir = (os.path.join(self.home, part) for part in ("data", "state", "run"))
        for path in (self.data, self.state_dir, self.run_dir):
            os.makedirs(path)
        self.processes: dict[str, subprocess.Popen[bytes]] = {}
        self.powered = True
        self._channels: dict[str, grpc.Channel] = {}
        self._boot = os.path.join(self.home, "boot_id")
        self._new_boot()

    # ---- files

    @property
    def place(self) -> Place:
        """As the sample's writers of ``sync.toml`` want it."""
        return Place(
            name=self.name,
            root=self.data,
            state_dir=self.state_dir,
            run_dir=self.run_dir,
            listen=f"0.0.0.0:{PORT}",
            peer=f"{lan_ipv4(OTHER[self.name])}:{PORT}",
        )

    def file(self, name: str) -> str:
        return os.path.join(self.home, name)

    def write(self, name: str, text: str) -> None:
        with open(self.file(name), "w", encoding="utf-8") as file:
            file.write(text)

    def _new_boot(self) -> None:
        self.write("boot_id", f"{uuid.uuid4()}\n")

    # ---- processes

    def tool(self, *arguments: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        """``ha-sync`` on this node."""
        config = "ha.toml" if arguments[0] in {"switch", "maintenance", "release", "single"} else "sync.toml"
        line = self.net.command(self.name, sys.executable, "-m", "ha_sync.cli", *arguments)
        done = subprocess.run(
            [*line, "--config", self.file(config)], capture_output=True, text=True, check=False, timeout=120
        )
        assert not check or done.returncode == 0, f"{arguments} on {self.name}: {done.returncode} {done.stderr}"
        return done

    def start(self, *parts: str) -> None:
        """Starts what does not run of these (none named: all of a node)."""
        for part in parts or (ECHO, *DAEMONS):
            if not self.runs(part):
                self.processes[part] = self.spawn(self._line(part), part)

    def spawn(self, line: Iterable[str], log: str) -> subprocess.Popen[bytes]:
        """A process of this node."""
        whole = self.net.command(self.name, "sh", "-c", IN_ITS_OWN_BOOT, "sh", self._boot, *line)
        with open(self.file(f"{log}.log"), "ab") as output:
            return subprocess.Popen(
                whole, stdin=subprocess.DEVNULL, stdout=output, stderr=output, start_new_session=True
            )

    def _line(self, part: str) -> list[str]:
        match part:
            case "engine":
                return [sys.executable, "-m", "ha_sync.cli", "serve", "--config", self.file("sync.toml")]
            case "agent":
                return [sys.executable, "-m", "ha_agent.cli", "run", "--config", self.file("ha.toml")]
            case "echo":
                return [sys.executable, "-m", "tests.support.netns_echo", self.name]
        raise AssertionError(part)

    def runs(self, part: str) -> bool:
        return part in self.processes and self.processes[part].poll() is None

    def pid(self, part: str) -> int:
        assert self.runs(part), f"{part} of {self.name} does not run: {self.log_tail(part)}"
        return self.processes[part].pid

    def signal(self, number: int, *parts: str) -> None:
        """To these, in this order; what was killed has ended when this returns."""
        for part in parts:
            os.kill(self.pid(part), number)
        if number == signal.SIGKILL:
            for part in parts:
                self.processes.pop(part).wait()

    def stop(self, *parts: str) -> None:
        """As systemd stops a unit."""
        for part in parts:
            self.signal(signal.SIGTERM, part)
            self.processes.pop(part).wait(60)

    def kill_all(self) -> None:
        """Every process of the node, whoever started it."""
        _signal_all(self.net.pids(self.name), signal.SIGKILL)
        for process in self.processes.values():
            process.wait()
        self.processes.clear()

    def freeze(self, *, network: bool) -> None:
        """The machine is paused; with its wires, or only all its processes."""
        pids = self.net.pids(self.name)
        if network:
            self.net.cut_off(self.name)
        _signal_all(pids, signal.SIGSTOP)

    def thaw(self, *, network: bool) -> float:
        """It goes on, as if nothing had been; when."""
        pids = self.net.pids(self.name)
        if network:
            self.net.plug_in(self.name)
        at = time.monotonic()
        _signal_all(pids, signal.SIGCONT)
        return at

    def power_off(self) -> float:
        """The wires are dead, then everything else: the address of a kernel that is gone is nowhere. When it began."""
        pids = self.net.pids(self.name)
        at = time.monotonic()
        self.net.cut_off(self.name)
        _signal_all(pids, signal.SIGKILL)
        self.drop_leases()
        self.kill_all()
        self.powered = False
        return at

    def power_on(self) -> None:
        """A new boot."""
        self._new_boot()
        self.net.plug_in(self.name)
        self.powered = True
        self.start()

    def drop_leases(self) -> None:
        """The addresses that have a lifetime, deleted."""
        with self.net.inside(self.name), contextlib.closing(Kernel()) as kernel:
            for one in kernel.addresses():
                if one.valid_s != FOREVER:
                    kernel.delete(one.index, one.address)

    def holds(self, address: str = CLUSTER_IP) -> bool:
        """Whether this node's kernel has the address now."""
        with self.net.inside(self.name), contextlib.closing(Kernel()) as kernel:
            return any(str(one.address) == address for one in kernel.addresses())

    # ---- what it says

    def agent(self) -> Any:
        """The stub of the agent's API."""
        return agent_pb2_grpc.AgentServiceStub(self._channel("agent.sock"))  # type: ignore[no-untyped-call]

    def engine(self) -> Any:
        """The stub of the engine's API."""
        return control_pb2_grpc.ControlServiceStub(self._channel("sync.sock"))  # type: ignore[no-untyped-call]

    def status(self) -> pb.AgentStatus:
        """Raises Silent."""
        return self._asked(lambda: self.agent().GetStatus(pb.GetStatusRequest(), timeout=CALL_S))

    def engine_status(self) -> control_pb2.Status:
        """Raises Silent."""
        return self._asked(lambda: self.engine().GetStatus(control_pb2.GetStatusRequest(), timeout=CALL_S))

    def switches(self) -> list[pb.SwitchRecord]:
        """The switch log, oldest first."""
        return self._asked(lambda: list(self.agent().ListSwitches(pb.ListSwitchesRequest(), timeout=CALL_S)))

    def events(self, what: str = "", *, since_unix_s: float = 0.0) -> list[pb.EventRecord]:
        """Those of this kind, oldest first."""
        request = pb.ListEventsRequest(limit=100_000, since_unix_s=since_unix_s)
        found = self._asked(lambda: list(self.agent().ListEvents(request, timeout=CALL_S)))
        return [one for one in found if what in one.what]

    def rows_taken(self) -> list[str]:
        """The rows of the arbiter's table that this node took, oldest first, over all its boots."""
        return [one.fields["row"] for one in self.events("the arbiter moved")]

    def switch(self, **wishes: Any) -> pb.SwitchResponse:
        """An administrator's wish; see ``SwitchRequest``."""
        answer: pb.SwitchResponse = self.agent().Switch(pb.SwitchRequest(**wishes), timeout=COME_S)
        return answer

    def log_tail(self, part: str, size: int = 3000) -> str:
        try:
            with open(self.file(f"{part}.log"), "rb") as log:
                log.seek(max(0, os.path.getsize(log.name) - size))
                return log.read().decode(errors="replace")
        except FileNotFoundError:
            return ""

    def close(self) -> None:
        self.kill_all()
        for channel in self._channels.values():
            channel.close()

    def _channel(self, socket_name: str) -> grpc.Channel:
        if socket_name not in self._channels:
            path = os.path.join(self.run_dir, socket_name)
            self._channels[socket_name] = grpc.insecure_channel(f"unix:{path}", options=CHANNEL_OPTIONS)
        return self._channels[socket_name]

    def _asked(self, call: Callable[[], Any]) -> Any:
        try:
            return call()
        except grpc.RpcError as error:
            raise Silent(f"{self.name}: {error.code()} {error.details()}") from error


class NetPair:
    """Both nodes. ``NetPair(directory)`` builds and pairs them; ``start`` runs them until one is ready."""

    def __init__(
        self,
        directory: str,
        *,
        timeout_s: float = 3,
        ipv6: bool = False,
        ha: Mapping[str, object] | None = None,
        sections: Sections = lambda _node: "",
        sync_toml: Callable[[Place], str] = small_pair.small_toml,
        furnish: Callable[[str], None] = small_pair.furnish,
    ) -> None:
        """``ha``: more keys of [ha] for both nodes, None: none of it; ``sections``: more of each node's ha.toml."""
        self.timeout_s = timeout_s
        self.addresses = (CLUSTER_IP, CLUSTER_IP6) if ipv6 else (CLUSTER_IP,)
        self._shared = {"ipv6": ipv6, **(ha or {})}
        self._sections = sections
        self.net = Net()
        self.nodes: dict[str, NetNode] = {}
        try:
            self.nodes = {name: NetNode(self.net, name, directory) for name in NODES}
            for node in self.nodes.values():
                node.write("sync.toml", sync_toml(node.place))
                self.configure(node)
            furnish(self.a.data)
            self._pair_up()
        except BaseException:
            self.close()
            raise

    @property
    def a(self) -> NetNode:
        return self.nodes["a"]

    @property
    def b(self) -> NetNode:
        return self.nodes["b"]

    def other(self, node: NetNode) -> NetNode:
        return self.nodes[OTHER[node.name]]

    def configure(self, node: NetNode, **more: object) -> None:
        """Writes a node's ha.toml; ``more`` keys of [ha] for it alone. Read when its agent starts."""
        peer = OTHER[node.name]
        ha: dict[str, object] = {
            "enabled": True,
            "station_type": STATIONS[node.name],
            "cluster_ip": f"{CLUSTER_IP}/24",
            "peer_ip": lan_ipv4(peer),
            "peer_mac": self.net.mac(peer),
            "interface": "eth0",
            "gateway": lan_ipv4("gw"),
            "heartbeat_port": PORT,
            "heartbeat_timeout_s": self.timeout_s,
        }
        if CLUSTER_IP6 in self.addresses:
            ha["cluster_ip6"] = f"{CLUSTER_IP6}/64"
        ha |= {**self._shared, **more}
        ha = {key: value for key, value in ha.items() if value is not None}
        paths = [("lan", lan_ipv4), ("cable", cable_ipv4)]
        if CLUSTER_IP6 in self.addresses:
            paths.append(("lan6", lan_ipv6))
        lines = ["[node]", *_keys({"name": node.name, "state_dir": node.state_dir, "run_dir": node.run_dir})]
        lines += ["[ha]", *_keys(ha)]
        for name, address in paths:
            lines += ["[[path]]", *_keys({"name": name, "local": address(node.name), "peer": address(peer)})]
        node.write("ha.toml", "\n".join([*lines, self._sections(node), ""]))

    # ---- life

    def start(self) -> None:
        """Both nodes boot; returns when one serves and the other is ready."""
        for node in self.nodes.values():
            node.start()
        self.until_ready()

    def settle(self) -> None:
        """Whatever was done to it: wires, daemons and settings as at first, one serves, the other is ready, no hold."""
        for node in self.nodes.values():
            for device in ("eth0", "cable0"):
                self.net.lose_incoming(node.name, 0, device)
                self.net.lose_outgoing(node.name, 0, device)
            self.net.plug_in(node.name)
            _signal_all(self.net.pids(node.name), signal.SIGCONT)
        for host in ("gw", "client"):
            self.net.restore(host)
        for node in self.nodes.values():
            if not node.powered:
                node.power_on()
            node.start()
        self.until_ready()
        self.active.agent().ReleaseHold(pb.ReleaseHoldRequest(), timeout=CALL_S)
        self.active.agent().SetMaintenance(pb.SetMaintenanceRequest(seconds=0), timeout=CALL_S)
        until(lambda: not any(self.said(lambda s: s.held or s.maintenance_left_s)), "quiet", self.told)

    def until_ready(self, *, timeout_s: float = COME_S) -> None:
        """Until one serves, the other is a Standby that has all and can take over, and each knows it of the other."""
        until(lambda: self.ready() and self._in_sync(), "a ready pair", self.told, timeout_s=timeout_s)

    def ready(self) -> bool:
        """Now."""
        found = {status.role: status for status in self.said(lambda s: s)}
        active, standby = found.get("active"), found.get("standby")
        return (
            active is not None
            and standby is not None
            and standby.ready
            and (active.holds, standby.holds) == (True, False)
            and (active.peer_role, standby.peer_role) == ("standby", "active")
            and active.epoch == standby.epoch
            and not active.peer_reasons
            and not active.single
            and all(path.state == "both" for status in found.values() for path in status.paths)
        )

    def _in_sync(self) -> bool:
        """Every dataset streams and the Standby has all: what it says may be a moment older."""
        active = self.active
        if any(one.state not in {"streaming", "degraded"} for one in active.engine_status().datasets):
            return False
        request = control_pb2.WaitReplicatedRequest(timeout_s=CALL_S)
        try:
            waiting = active.engine().WaitReplicated(request, timeout=2 * CALL_S).waiting_for
        except grpc.RpcError:
            return False
        return not waiting and self.ready()

    @property
    def active(self) -> NetNode:
        """The one node that says that it serves."""
        (found,) = (node for node in self.nodes.values() if _role(node) == "active")
        return found

    @property
    def standby(self) -> NetNode:
        return self.other(self.active)

    @property
    def roles(self) -> tuple[NetNode, NetNode]:
        """Active, Standby."""
        active = self.active
        return active, self.other(active)

    @property
    def holders(self) -> set[str]:
        """Whose kernel has the cluster IP, or one of its families, now."""
        return {name for name, node in self.nodes.items() if any(node.holds(one) for one in self.addresses)}

    def said(self, what: Callable[[pb.AgentStatus], Any]) -> list[Any]:
        """Of both agents, as far as they answer."""
        found = []
        for node in self.nodes.values():
            with contextlib.suppress(Silent):
                found.append(what(node.status()))
        return found

    def told(self) -> str:
        """All that both say, for the text of a failure."""
        lines = [f"holders: {self.holders}"]
        for node in self.nodes.values():
            try:
                lines += [f"{node.name}: {node.status()}", f"rows {node.rows_taken()[-12:]}"]
                datasets = node.engine_status().datasets
                states = [f"{one.name} {one.state} {one.reason} {one.position}" for one in datasets]
                lines.append(f"datasets {states}")
            except Silent as silent:
                lines.append(str(silent))
            lines += [f"{part} of {node.name}: {node.log_tail(part, 800)}" for part in DAEMONS]
        return "\n".join(lines)

    def close(self) -> None:
        """Ends all processes of the namespaces, then the namespaces."""
        for node in self.nodes.values():
            node.close()
        self.net.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _pair_up(self) -> None:
        """init on a, which is in service; a token; join on b."""
        address = f"{lan_ipv4('a')}:{PORT}"
        self.a.tool("pair", "init", "--name", "a", "--address", address)
        line = [sys.executable, "-m", "ha_sync.cli", "serve", "--role", "active", "--epoch", "2"]
        serving = self.a.spawn([*line, "--config", self.a.file("sync.toml")], "pairing")
        try:
            until(
                lambda: self.a.engine_status().role == "active",
                "an engine to pair with",
                lambda: self.a.log_tail("pairing"),
            )
            token = json.loads(self.a.tool("pair", "token", "--json").stdout)["token"]
            self.b.tool(
                "pair", "join", token, "--name", "b", "--address", f"{lan_ipv4('b')}:{PORT}", "--discard-local-data"
            )
        finally:
            serving.terminate()
            serving.wait(60)


def until(
    condition: Callable[[], bool], what: str, told: Callable[[], str] = str, *, timeout_s: float = COME_S
) -> None:
    """Looks until it holds; a daemon that does not answer yet is no failure."""
    deadline = time.monotonic() + timeout_s
    while True:
        with contextlib.suppress(Silent):
            if condition():
                return
        assert time.monotonic() < deadline, f"{what} did not come in {timeout_s:g} s\n{told()}"
        time.sleep(LOOK_EVERY_S)


def _role(node: NetNode) -> str:
    try:
        return str(node.status().role)
    except Silent:
        return ""


def _keys(values: Mapping[str, object]) -> list[str]:
    return [f"{key} = {json.dumps(value)}" for key, value in values.items()]


def _signal_all(pids: Iterable[int], number: int) -> None:
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)
