"""``ha-sync upgrade begin | end`` and ``ha-sync upgrade-plan``: the firmware of both nodes, one after the other (R7).

Where the pair stands follows from what both agents say now; nothing is remembered but the window. Steps: window open,
the Standby upgraded, ready again, switch, the other one upgraded, ready again, window closed.
"""

from __future__ import annotations

from dataclasses import dataclass

import click

from ha_proto.agent.v1 import agent_pb2 as pb
from ha_proto.agent.v1 import life_pb2, life_pb2_grpc
from ha_sync.cli.client import AGENT, QUICK_S, Daemon, agent, talk
from ha_sync.cli.options import agent_option, agent_socket_path, json_option
from ha_sync.cli.output import plain, print_json
from ha_sync.cli.reasons import list_of
from ha_sync.errors import WrongState

TOLD_MAX = 20  # of a firmware, in a beat
LIFE = Daemon(name=AGENT.name, command=AGENT.command, stub=life_pb2_grpc.LifeServiceStub)


@dataclass(frozen=True, slots=True, kw_only=True)
class Scene:
    """What both nodes are, as this one's agent knows it. A firmware is empty where it is not known."""

    role: str
    firmware: str
    peer_role: str  # empty: it is not heard
    peer_firmware: str
    ready: bool  # the Standby of the two
    reasons: str = ""
    began_from: str | None = None  # the firmware when the window was opened here; None: it is not open here
    open_there: bool = False

    @property
    def upgrading(self) -> bool:
        """Whether a window is open on either node."""
        return self.began_from is not None or self.open_there

    @property
    def differ(self) -> bool:
        """Whether only one of the two was upgraded."""
        return bool(self.firmware and self.peer_firmware) and not same(self.firmware, self.peer_firmware)


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """Where the pair stands, and the next step."""

    step: int  # 1-7; 0: no upgrade goes on; -1: it cannot be told now
    state: str
    todo: str


@click.group()
def upgrade() -> None:
    """Open and close the time in which the firmware of the two nodes may differ."""


@upgrade.command()
@agent_option
@json_option
def begin(*, as_json: bool, **where: str | None) -> None:
    """Open the window: on the Active, with a ready Standby of the same firmware."""
    scene = look(where)
    if scene.role != "active":
        raise WrongState("cannot begin an upgrade", reason="this node is not the Active", hint="begin it there")
    if scene.upgrading:
        raise WrongState("an upgrade was begun already", hint="`ha-sync upgrade-plan` says what is next")
    if not scene.firmware or not scene.peer_firmware:
        raise WrongState("cannot begin an upgrade", reason=plan_of(scene).state, hint=plan_of(scene).todo)
    if not scene.ready and not scene.differ:
        raise WrongState("cannot begin an upgrade", reason="the Standby is not ready", hint=scene.reasons)
    _set(where, open_now=True, firmware=scene.firmware)
    _tell(plan_of(look(where)), as_json=as_json)


@upgrade.command()
@agent_option
@json_option
def end(*, as_json: bool, **where: str | None) -> None:
    """Close the window, on the node where it was opened: both nodes have the same firmware again."""
    scene = look(where)
    if scene.began_from is None:
        there = "it was opened on the other node" if scene.open_there else "none is open"
        raise WrongState("cannot end the upgrade", reason=there, hint="`ha-sync upgrade end` there")
    if scene.differ:
        raise WrongState(
            "cannot end the upgrade",
            reason=f"this node has {scene.firmware}, the other {scene.peer_firmware}",
            hint="`ha-sync upgrade-plan` says what is next",
        )
    if not scene.peer_role:
        raise WrongState("cannot end the upgrade", reason="the other node is not heard: is it of the same firmware?")
    _set(where, open_now=False)
    _tell(plan_of(look(where)), as_json=as_json)


@click.command("upgrade-plan")
@click.option(
    "--before", type=click.Choice(["upgrade", "switch"]), help="Refuse (3) where this step is out of order here."
)
@agent_option
@json_option
def upgrade_plan(*, before: str | None, as_json: bool, **where: str | None) -> None:
    """Say where the pair stands in an upgrade of its firmware and what is next.

    `--before upgrade` on a node about to be upgraded, `--before switch` before a switch: refused in the wrong order.
    """
    scene = look(where)
    if before is not None and (why := refusal_of(scene, before)):
        raise WrongState(f"not yet: {before}", reason=why, hint=plan_of(scene).todo)
    _tell(plan_of(scene), as_json=as_json)


def plan_of(scene: Scene) -> Plan:
    """Pure."""
    if scene.role not in {"active", "standby"} or not scene.peer_role:
        todo = "wait until it is heard, or mend it" + ("; the window stays open" if scene.upgrading else "")
        return Plan(step=-1, state=f"this node is {scene.role}, the other one is not heard", todo=todo)
    if not (scene.firmware and scene.peer_firmware):
        todo = "state `firmware` in [node], or let the command of [vendor] say it"
        return Plan(step=-1, state="the firmware is not known", todo=todo)
    if not scene.upgrading:
        if scene.differ:
            return Plan(step=1, state="the firmware differs and no window is open", todo="ha-sync upgrade begin")
        return Plan(step=0, state="both nodes have the same firmware", todo="to begin: ha-sync upgrade begin")
    if scene.began_from is None:
        return Plan(step=-1, state="the window was opened on the other node", todo="ha-sync upgrade-plan there")
    return _in_window(scene, scene.began_from)


def _in_window(scene: Scene, old: str) -> Plan:
    mine = not same(scene.firmware, old)
    theirs = not same(scene.peer_firmware, old)
    active, standby = (mine, theirs) if scene.role == "active" else (theirs, mine)
    wait = "wait for its full sync; then ha-sync upgrade-plan"
    match active, standby:
        case False, False:
            return Plan(step=2, state="both nodes have the old firmware", todo="upgrade the Standby and restart it")
        case False, True if not scene.ready:
            return Plan(step=3, state=f"the Standby is upgraded and not ready: {scene.reasons}", todo=wait)
        case False, True:
            return Plan(step=4, state="the Standby is upgraded and ready", todo="on the Active: ha-sync switch")
        case True, False:
            return Plan(step=5, state="the Active is upgraded", todo="upgrade the Standby and restart it")
        case _ if not scene.ready:
            return Plan(step=6, state=f"both are upgraded, the Standby is not ready: {scene.reasons}", todo=wait)
        case _:
            return Plan(step=7, state="both nodes are upgraded", todo="ha-sync upgrade end")


def refusal_of(scene: Scene, before: str) -> str:
    """Why a step is out of order on this node, or an empty string. Pure."""
    if not scene.upgrading:
        return "no upgrade window is open"
    if before == "upgrade" and scene.role == "active":
        return "this node is the Active: the Standby is upgraded, then the roles change"
    if before == "switch" and scene.role != "active":
        return "this node is not the Active"
    if before == "switch" and not scene.ready:
        return f"the Standby is not ready: {scene.reasons}"
    return ""


def look(where: dict[str, str | None]) -> Scene:
    """Both nodes, now."""
    with agent(_path(where)) as stub:
        status = stub.GetStatus(pb.GetStatusRequest(), timeout=QUICK_S)
    with talk(LIFE, _path(where)) as stub:
        facts = stub.GetFacts(life_pb2.GetFactsRequest(), timeout=QUICK_S)
    standby_here = status.role == "standby"
    reasons = list(status.reasons if standby_here else status.peer_reasons)
    heard = facts.peer_heard and bool(status.peer_role)
    return Scene(
        role=status.role,
        firmware=facts.firmware,
        peer_role=status.peer_role if heard else "",
        peer_firmware=facts.peer_firmware if heard else "",
        began_from=facts.upgrading_from if facts.upgrading else None,
        open_there=facts.peer_upgrading,
        ready=facts.ready if standby_here else facts.peer_ready,
        reasons=list_of(reasons) or "it is not heard",
    )


def same(one: str, other: str) -> bool:
    """The beats carry the beginning only."""
    length = min(len(one), len(other))
    return one[:length] == other[:length] and (len(one) == len(other) or length >= TOLD_MAX)


def _set(where: dict[str, str | None], *, open_now: bool, firmware: str = "") -> None:
    with talk(LIFE, _path(where)) as stub:
        stub.SetUpgrade(life_pb2.SetUpgradeRequest(open=open_now, from_firmware=firmware), timeout=QUICK_S)


def _path(where: dict[str, str | None]) -> str:
    config = where["config"]
    assert config is not None, "it has a default"
    return agent_socket_path(config, where["socket"], where["agent_socket"])


def _tell(plan: Plan, *, as_json: bool) -> None:
    if as_json:
        print_json({"step": plan.step, "state": plan.state, "todo": plan.todo})
        return
    click.echo(f"now   {plain(plan.state)}")
    click.echo(f"next  {plain(plan.todo)}")
