"""From settings to probes. The agent's own two are always there: ``engine`` and ``fxo`` (where DAHDI has ports).

The link of the cluster IP is not among them: the arbiter is told of it directly (``read_link`` and netlink), whatever
the switches say. A service's ``probe`` command is watched too, under ``service:<name>``.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from ha_agent.commands import Commands
from ha_agent.health.ami import AmiProbe
from ha_agent.health.command import CommandProbe
from ha_agent.health.engine import EngineProbe
from ha_agent.health.fxo import FxoProbe
from ha_agent.health.link import LinkProbe
from ha_agent.health.look import FaultClass
from ha_agent.health.monitor import Watch
from ha_agent.health.probe import Probe
from ha_agent.health.process import ProcessProbe
from ha_agent.health.sip import SipProbe
from ha_agent.health.storage import StorageProbe
from ha_agent.health.verdict import Rule
from ha_agent.settings import (
    FaultSwitches,
    NodeSettings,
    OnStandby,
    ProbeKind,
    ProbeSettings,
    ServiceSettings,
    Settings,
    When,
)

ENGINE_RULE = Rule(fall=2, rise=1)  # a call that is dialled again at once is no fault
ENGINE_INTERVAL_S = 1.0
FXO_RULE = Rule(fall=3, rise=2)
FXO_INTERVAL_S = 1.0
SERVICE_RULE = Rule(fall=3, rise=2)
SERVICE_INTERVAL_S = 2.0
LOOK_DEADLINE_S = 5.0
MARGIN_S = 0.5  # for probes that hold their own deadline: theirs ends first and says more

HARDWARE = frozenset({ProbeKind.LINK, ProbeKind.STORAGE})


@dataclass(frozen=True, slots=True, kw_only=True)
class Tools:
    """What probes share. ``executor``: looks that may hang; four threads or more."""

    commands: Commands
    executor: ThreadPoolExecutor
    engine: EngineProbe


def watches_of(settings: Settings, tools: Tools) -> tuple[Watch, ...]:
    """Every probe of a node whose HA is on."""
    assert settings.pair is not None, "HA is off"
    switches = settings.pair.switches
    services = tuple(_service(service, tools, switches) for service in settings.services if service.probe)
    configured = tuple(_configured(probe, settings.node, tools, switches) for probe in settings.probes)
    return (_engine(tools, switches), _fxo(settings.node, tools, switches), *services, *configured)


def _engine(tools: Tools, switches: FaultSwitches) -> Watch:
    return Watch(
        name="engine",
        probe=tools.engine,
        rule=ENGINE_RULE,
        interval_s=ENGINE_INTERVAL_S,
        deadline_s=LOOK_DEADLINE_S,
        when=When.ALWAYS,
        fault_class=FaultClass.SOFTWARE,
        may_switch=_always(switches.software),
    )


def _fxo(node: NodeSettings, tools: Tools, switches: FaultSwitches) -> Watch:
    def chosen(subject: str) -> bool:
        return switches.hardware and subject.isdigit() and int(subject) in switches.fxo_ports

    return Watch(
        name="fxo",
        probe=FxoProbe(tools.executor, dahdi_dir=node.dahdi_dir, selected=switches.fxo_ports),
        rule=FXO_RULE,
        interval_s=FXO_INTERVAL_S,
        deadline_s=LOOK_DEADLINE_S,
        when=When.ALWAYS,
        fault_class=FaultClass.HARDWARE,
        may_switch=chosen,
    )


def _service(service: ServiceSettings, tools: Tools, switches: FaultSwitches) -> Watch:
    return Watch(
        name=f"service:{service.name}",
        probe=CommandProbe(tools.commands, service.probe, deadline_s=service.probe_deadline_s),
        rule=SERVICE_RULE,
        interval_s=SERVICE_INTERVAL_S,
        deadline_s=service.probe_deadline_s + 2 * MARGIN_S + 1,
        when=When.ACTIVE if service.standby is OnStandby.STOPPED else When.ALWAYS,
        fault_class=FaultClass.SOFTWARE,
        may_switch=_always(switches.software),
    )


def _configured(probe: ProbeSettings, node: NodeSettings, tools: Tools, switches: FaultSwitches) -> Watch:
    hardware = probe.kind in HARDWARE
    own_deadline = probe.kind in {ProbeKind.COMMAND, ProbeKind.STORAGE}
    return Watch(
        name=f"{probe.kind.value}:{probe.name}",
        probe=_probe(probe, node, tools),
        rule=Rule(fall=probe.fall, rise=probe.rise),
        interval_s=probe.interval_s,
        deadline_s=probe.deadline_s + (2 * MARGIN_S + 1 if own_deadline else 0),
        when=probe.when,
        fault_class=FaultClass.HARDWARE if hardware else FaultClass.SOFTWARE,
        may_switch=_always(probe.switch and (switches.hardware if hardware else switches.software)),
    )


def _probe(probe: ProbeSettings, node: NodeSettings, tools: Tools) -> Probe:
    match probe.kind:
        case ProbeKind.PROCESS:
            return ProcessProbe(pid_file=probe.pid_file, process=probe.process, proc_dir=node.proc_dir)
        case ProbeKind.AMI:
            return AmiProbe(probe.address, username=probe.username, secret_file=probe.secret_file)
        case ProbeKind.SIP:
            return SipProbe(probe.address)
        case ProbeKind.COMMAND:
            return CommandProbe(tools.commands, probe.command, deadline_s=probe.deadline_s)
        case ProbeKind.LINK:
            return LinkProbe(probe.interface, sys_net_dir=node.sys_net_dir)
        case ProbeKind.STORAGE:
            return StorageProbe(
                tools.executor,
                probe.paths,
                deadline_s=probe.deadline_s,
                min_free_mib=probe.min_free_mib,
                mounted=probe.mounted,
            )


def _always(answer: bool) -> Callable[[str], bool]:
    return lambda _subject: answer
