"""How long nobody answers for the cluster IP when a node dies or hands over, and that never two hold it.

A pair in network namespaces, as `tests/support/netns_pair.py` builds it: real agents and engines, veth cables, a bridge
as the switch, a gateway, and a client that asks the cluster IP by UDP every 5 ms from one socket and learns of its move
by gratuitous ARP alone. Both kernels tell when the address comes and goes. The timeout T is 3 s, the lease 1 s.

`crash_outage_over_timeout_s`: power off (links down, then every process killed), the client's last answer before to its
first answer after, less T. `dual_holder_s`: the agent of the Active is stopped (SIGSTOP) for longer than T and the
lease. `dual_holder_resume_s`: a paused machine. Links down and SIGSTOP to all, until the peer serves; then, at one
instant, the address is put back with the lifetime that it had (a kernel that is paused with its machine still has it),
the links come up and SIGCONT goes to all. The monotonic clock does not stop here as it would in a paused machine, so
the agent learns at its first tick that its lease has lapsed, where a paused one learns it from the peer's first beat,
at most 0.1 s later. `self_fault_s`: the PBX process is killed, a process probe sees it and its switch is on.
`planned_*`: switches under load of the sample PBX, whose ledger is then compared with the new Active.
`single_keeps`: the Standby loses its power, then the gateway its link, then both come back. `cable_switches`,
`loss_switches`: role changes while the cable is pulled, or three of ten frames are lost, in real and in simulated time.
The peer of the crash is keepalived (VRRP, an advertisement a second) on the same two nodes with an address of its own:
its outage in the same power-offs, whole, since it has no timeout to take off.
"""

from __future__ import annotations

import contextlib
import ipaddress
import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time

from benchmarks.harness.processes import CpuMeter
from benchmarks.harness.result import median, single
from benchmarks.harness.run import BenchFailure, Run, main
from ha_agent.cluster_ip.netlink import Kernel
from ha_proto.agent.v1 import agent_pb2 as pb
from ha_sync.sample.check import check
from ha_sync.sample.ledger import read_ledger
from ha_sync.sample.pair import Place
from ha_sync.sample.synctoml import sync_toml
from tests.sim.long import moves_under_loss, moves_without_cable
from tests.support import netns
from tests.support.netns_pair import AGENT, CLUSTER_IP, NetNode, NetPair, until
from tests.support.netns_watch import Client, Holders

TIMEOUT_S = 3
VRRP = "keepalived"
VRRP_IP = "10.77.0.54"
VRRP_CONF = """global_defs {{
  vrrp_garp_master_repeat 1
}}
vrrp_instance pair {{
  state BACKUP
  nopreempt
  interface eth0
  virtual_router_id 53
  priority {priority}
  advert_int 1
  virtual_ipaddress {{
    {address}/32 dev eth0
  }}
}}
"""
LOAD_CALLS = 40


def measure(run: Run) -> None:
    """See the module."""
    reason = netns.unavailable()
    if reason is not None:
        raise BenchFailure(f"network namespaces cannot be used here: {reason}")
    _simulated(run)
    rounds = 2 if run.quick else 20
    with NetPair(run.place("crash"), ha={"software_fault_switch": True}, sections=_plain_pbx) as pair:
        pair.start()
        with Client(pair.net, CLUSTER_IP) as client, Holders(pair.net, pair.addresses) as holders:
            _idle(run, pair)
            _crashes(run, pair, client, holders, rounds)
            _steady(run, pair, holders)
            _keeps(run, pair, holders)
    with NetPair(
        run.place("planned"), sections=lambda node: _sample_pbx(run, node), sync_toml=_sample_toml, furnish=_furnish
    ) as pair:
        pair.start()
        with Client(pair.net, CLUSTER_IP) as client:
            _planned(run, pair, client, 1 if run.quick else rounds)


# ---- power, freezes, faults: in turn, so that a busy moment of the machine meets all of them


def _crashes(run: Run, pair: NetPair, client: Client, holders: Holders, rounds: int) -> None:
    crashes, frozen, resumed, faults = [], [], [], []
    vrrp: list[float] = []
    if _has_keepalived(run):
        for node in pair.nodes.values():
            _start_keepalived(node)
    for number in range(rounds):
        run.say(f"crash, freeze, pause, fault: {number + 1} of {rounds}")
        crashes.append(_power_off(pair, client, vrrp) - TIMEOUT_S)
        if not run.quick or number == 0:
            frozen.append(_freeze_agent(pair, holders))
            resumed.append(_pause(pair, holders))
        faults.append(_kill_pbx(pair, client))
    run.figures["crash_outage_over_timeout_s"] = median(crashes, "s")
    if vrrp:
        run.figures["crash_outage_s"] = median([one + TIMEOUT_S for one in crashes], "s", peer=vrrp)
    run.figures["crash_outage_over_timeout_max_s"] = single(max(crashes), "s", samples=rounds)
    run.figures["dual_holder_s"] = single(max(frozen), "s", samples=len(frozen))
    run.figures["dual_holder_resume_s"] = single(max(resumed), "s", samples=len(resumed))
    run.figures["self_fault_s"] = median(faults, "s")
    run.figures["self_fault_max_s"] = single(max(faults), "s", samples=rounds)


def _power_off(pair: NetPair, client: Client, vrrp: list[float]) -> float:
    """Seconds for which the client heard nobody; those of the other program's address go to ``vrrp``."""
    active, standby = pair.roles
    client.first(active.name, since=time.monotonic())
    with contextlib.ExitStack() as stack:
        peer = stack.enter_context(Client(pair.net, VRRP_IP)) if _keepalived_runs(active) else None
        if peer is not None:
            vrrp_at = _bring_to(peer, active, standby)
        at = active.power_off()
        outage_s = client.outage_s(standby.name, since=at)
        if peer is not None:
            vrrp.append(peer.outage_s(standby.name, since=max(at, vrrp_at)))
    pair.settle()
    if peer is not None:
        _start_keepalived(active)
    return outage_s


def _bring_to(peer: Client, active: NetNode, standby: NetNode) -> float:
    """Its address is on the node that will lose its power, as ours is. Since when."""
    if peer.first("", since=0).node != active.name:
        standby.signal(signal.SIGTERM, VRRP)  # it leaves, the other takes the address over
        standby.processes.pop(VRRP).wait(60)
        at = peer.first(active.name, since=0).at
        _start_keepalived(standby)
        return at
    return 0.0


def _freeze_agent(pair: NetPair, holders: Holders) -> float:
    """Seconds with two holders."""
    active, standby = pair.roles
    since = time.monotonic()
    active.signal(signal.SIGSTOP, AGENT)
    holders.until({standby.name})
    time.sleep(1.0)  # frozen for longer than T and the lease; what it does when it wakes counts too
    active.signal(signal.SIGCONT, AGENT)
    pair.settle()
    return holders.seconds(2, since=since)


def _pause(pair: NetPair, holders: Holders) -> float:
    """Seconds with two holders after a machine that was paused with its clock goes on."""
    active, standby = pair.roles
    active.freeze(network=True)
    holders.until({standby.name})
    with pair.net.inside(active.name), contextlib.closing(Kernel()) as kernel:
        link = kernel.link("eth0")
        assert link is not None
        kernel.replace(link.index, ipaddress.ip_address(CLUSTER_IP), label="eth0:ha", valid_s=1)
    at = active.thaw(network=True)
    holders.until({standby.name})
    pair.settle()
    return holders.seconds(2, since=at)


def _kill_pbx(pair: NetPair, client: Client) -> float:
    """Seconds from the end of the PBX process to the first answer of the peer."""
    active, standby = pair.roles
    until(
        lambda: any(one.name == "process:pbx" and one.state == "good" for one in active.status().probes), "a good PBX"
    )
    pid = _pbx_pid(active)
    at = time.monotonic()
    os.kill(pid, signal.SIGKILL)
    answered = client.first(standby.name, since=at)
    pair.settle()
    return answered.at - at


# ---- the other program


def _has_keepalived(run: Run) -> bool:
    if shutil.which(VRRP) is None:
        run.say("keepalived is not installed: no peer")
        return False
    version = subprocess.run([VRRP, "--version"], capture_output=True, text=True, check=True)
    run.commands.append((version.stderr or version.stdout).splitlines()[0] + ", advert_int 1, nopreempt")
    return True


def _start_keepalived(node: NetNode) -> None:
    node.write("keepalived.conf", VRRP_CONF.format(priority=100 + (node.name == "a"), address=VRRP_IP))
    pids = [f"--{kind}={node.file(kind)}" for kind in ("pid", "vrrp_pid")]
    line = [VRRP, "--dont-fork", "--vrrp", "--log-console", f"--use-file={node.file('keepalived.conf')}", *pids]
    node.processes[VRRP] = node.spawn(line, VRRP)


def _keepalived_runs(node: NetNode) -> bool:
    return node.runs(VRRP)


# ---- what must not switch


def _steady(run: Run, pair: NetPair, holders: Holders) -> None:
    seconds = 2 if run.quick else 60
    run.say(f"cable pulled for {seconds} s")
    pair.net.cut_cable()
    moved = _moves(holders, seconds)
    pair.settle()
    simulated = moves_without_cable(0.1 if run.quick else 1.0)
    run.figures["cable_switches"] = single(moved + simulated, "", samples=2)
    run.say(f"loss of 30 % for {seconds} s")
    for name in pair.nodes:
        for device in ("eth0", "cable0"):
            pair.net.lose_incoming(name, 30, device)
    moved = _moves(holders, seconds)
    pair.settle()
    run.figures["loss_switches"] = single(moved + run.figures.pop("loss_simulated").value, "", samples=2)


def _simulated(run: Run) -> None:
    hours = 0.25 if run.quick else 24.0
    run.say(f"loss of 30 % for {hours:g} simulated hours")
    run.figures["loss_simulated"] = single(moves_under_loss(hours, beat_s=0.5), "")


def _moves(holders: Holders, seconds: float) -> int:
    """Changes of what both kernels hold."""
    before = len(holders.history)
    time.sleep(seconds)
    return len(holders.history) - before


def _keeps(run: Run, pair: NetPair, holders: Holders) -> None:
    run.say("the Standby lost, then the gateway, then both back")
    active, standby = pair.roles
    since = time.monotonic()
    standby.power_off()
    until(lambda: active.status().single, "a single Active", pair.told)
    pair.net.cut("gw")
    time.sleep(TIMEOUT_S)  # three leases
    pair.net.restore("gw")
    standby.power_on()
    pair.settle()
    run.figures["single_keeps"] = single(holders.seconds(0, since=since), "s")


def _idle(run: Run, pair: NetPair) -> None:
    """Of the Active's agent, which does more than the other."""
    pid = pair.active.pid(AGENT)
    meter = CpuMeter(pid)
    time.sleep(3 if run.quick else 30)
    run.figures["agent_cpu_percent"] = single(meter.percent(), "%")
    with open(f"/proc/{pid}/status", encoding="ascii", errors="replace") as file:
        kib = next(int(line.split()[1]) for line in file if line.startswith("VmRSS:"))
    run.figures["agent_rss_mib"] = single(kib / 1024, "MiB")


# ---- planned switches


def _planned(run: Run, pair: NetPair, client: Client, rounds: int) -> None:
    outages, services, lost = [], [], []
    parts: dict[str, list[float]] = {"stop": [], "drain": [], "move": [], "start": []}
    for number in range(rounds):
        run.say(f"planned switch under load: {number + 1} of {rounds}")
        active, standby = pair.roles
        time.sleep(2.0)  # of load
        pair.until_ready()
        at = time.monotonic()
        answer = active.switch()
        if not answer.switched:
            raise BenchFailure(f"the planned switch was refused: {answer}\n{pair.told()}")
        outages.append(client.outage_s(standby.name, since=at))
        until(lambda node=standby: bool(_served(node)), "the end of the switch", pair.told)
        services.append(_first_write(run, since=at) - _last_stop(run, since=at))
        _split(parts, active, standby)
        parts["move"].append(outages[-1])
        lost.append(_lost(run, standby))
        pair.settle()
        _pbx(standby, "start")
    run.figures["planned_address_outage_s"] = median(outages, "s")
    run.figures["planned_lost"] = single(sum(lost), "", samples=rounds)
    run.figures["planned_service_outage_s"] = median(services, "s")
    for part, samples in parts.items():
        run.figures[f"planned_{part}_s"] = median(samples, "s")


def _served(node: NetNode) -> list[pb.SwitchRecord]:
    last = node.status().last_switch
    return [last] if last.to_role == "active" and last.result == "done" else []


def _split(parts: dict[str, list[float]], active: NetNode, standby: NetNode) -> None:
    quiet = active.events("the services are quiet")[-1].fields
    parts["stop"].append(float(quiet["stop_s"]))
    parts["drain"].append(float(quiet["drain_s"]))
    parts["start"].append(standby.status().last_switch.phases_s["services"])


def _last_stop(run: Run, *, since: float) -> float:
    """When the sample PBX took its last write."""
    lines = [line for line in read_ledger(_ledger(run)) if line["t"] >= since]
    return float(next(line["t"] for line in lines if line["k"] == "stop"))


def _first_write(run: Run, *, since: float) -> float:
    """When it took the first again, on the other node."""
    found: list[float] = []

    def written() -> bool:
        lines = [line for line in read_ledger(_ledger(run)) if line["t"] >= since]
        starts = [line["t"] for line in lines if line["k"] == "start"]
        found[:] = [float(line["t"]) for line in lines if starts and line["t"] > starts[-1] and line["k"] != "start"]
        return bool(found)

    until(written, "a write of the sample PBX on the new Active")
    return found[0]


def _lost(run: Run, node: NetNode) -> int:
    """What the ledger knows and the new Active does not have. Its PBX is stopped for it."""
    _pbx(node, "stop")
    verdict = check(_ledger(run), node.data, time.monotonic())
    for fault in (*verdict.acknowledged_missing, *verdict.faults):
        run.say(f"LOST {fault}")
    return len(verdict.acknowledged_missing) + len(verdict.faults)


# ---- the PBX as a service


def _plain_pbx(node: NetNode) -> str:
    """One process that does nothing, and a probe of it."""
    _write_script(node, "sleep infinity")
    return _service(node) + _probe(node)


def _sample_pbx(run: Run, node: NetNode) -> str:
    command = [sys.executable, "-m", "ha_sync.sample", "--root", node.data, "--ledger", _ledger(run)]
    runs = shlex.quote(os.path.join(run.directory, "runs"))
    count = f"n=$(($(cat {runs} 2>/dev/null || echo 0) + 1)); echo $n >{runs}\n    "
    _write_script(node, f'{shlex.join(command)} --calls {LOAD_CALLS} --run "$n"', before=count)
    return _service(node)


def _write_script(node: NetNode, command: str, *, before: str = "") -> None:
    pid, log = shlex.quote(node.file("pbx.pid")), shlex.quote(node.file("pbx.log"))
    node.write(
        "pbx",
        f"""cd {shlex.quote(os.getcwd())}
case $1 in
  start)
    {before}setsid {command} >>{log} 2>&1 </dev/null &
    echo $! >{pid} ;;
  stop)
    p=$(cat {pid} 2>/dev/null) || exit 0
    kill "$p" 2>/dev/null
    while kill -0 "$p" 2>/dev/null; do sleep 0.01; done ;;
esac
""",
    )


def _service(node: NetNode) -> str:
    start, stop = (json.dumps(["/bin/sh", node.file("pbx"), verb]) for verb in ("start", "stop"))
    return f'[[service]]\nname = "sample"\nstart = {start}\nstop = {stop}\n'


def _probe(node: NetNode) -> str:
    return f'[[probe]]\nname = "pbx"\nkind = "process"\npid_file = "{node.file("pbx.pid")}"\ninterval_s = 0.5\n'


def _pbx(node: NetNode, verb: str) -> None:
    subprocess.run(node.net.command(node.name, "/bin/sh", node.file("pbx"), verb), check=True, timeout=60)


def _pbx_pid(node: NetNode) -> int:
    with open(node.file("pbx.pid"), encoding="ascii") as file:
        return int(file.read())


def _ledger(run: Run) -> str:
    return os.path.join(run.directory, "ledger")


def _sample_toml(place: Place) -> str:
    return sync_toml(
        root=place.root,
        state_dir=place.state_dir,
        run_dir=place.run_dir,
        listen=place.listen,
        peer=place.peer,
        name=place.name,
    )


def _furnish(_root: str) -> None:
    """The sample makes its own files when it starts."""


if __name__ == "__main__":
    sys.exit(main("failover", measure))
