"""``ha-sync pair init | token | join | dissolve``: from two single nodes to a pair, and back (``leave``: the same).

``token`` asks the running engine, so that only the node in service invites; with no engine running it writes the
token itself, and the engine finds it when it starts.
"""

from __future__ import annotations

import dataclasses
import os
import sys
from typing import TYPE_CHECKING

import click

from ha_sync.cli.options import config_option, json_option, socket_option, socket_path
from ha_sync.cli.output import message_to_dict, print_json
from ha_sync.config import NodeSettings, Settings, load, load_node
from ha_sync.errors import Refused

if TYPE_CHECKING:
    from ha_proto.sync.v1.life_pb2 import NodeFacts
    from ha_sync.pairing.joining import Joined

HA_TOML = "ha.toml"
STDIN = "-"
TOKEN_MAX = 4096  # characters: three times what a token may have
NEVER_ACCEPTED = ("model", "firmware", "data layout", "station types")
SHARED_S = 30.0
JOIN_HINT = "on the other node, within {minutes:g} minutes:\n  ha-sync pair join {token}"

station_option = click.option(
    "--station-type",
    type=click.Choice(["primary", "secondary"]),
    default=None,
    help="What this node is in the pair, for people. [default: not said]",
)


@click.group()
def pair() -> None:
    """Make a pair of two nodes: init on the node in service, token there, join on the other; dissolve ends it."""


@pair.command()
@config_option
@json_option
@click.option("--name", default="", help="This node's name, for people. [default: the settings', else the host name]")
@click.option("--address", default="", metavar="HOST:PORT", help="Where the other node reaches this one.")
@station_option
def init(*, config: str, as_json: bool, name: str, address: str, station_type: str | None) -> None:
    """Begin a new pair with this node, which is in service."""
    from ha_sync.pairing.identity import init_cluster

    node = load_node(config)
    identity = init_cluster(
        node.state_dir,
        node_name=name or node.name,
        address=_own_address(node, address),
        station_type=station_type or "",
    )
    if as_json:
        print_json(
            {
                "cluster_id": identity.cluster_id,
                "node_id": identity.node_id,
                "node_name": identity.node_name,
                "address": identity.address,
                "state_dir": node.state_dir,
            }
        )
        return
    click.echo(f"this is node {identity.node_name} ({identity.node_id}) of the new pair {identity.cluster_id}")
    click.echo(f"the other node will reach it at {identity.address}")
    click.echo("invite the other node with: ha-sync pair token")


@pair.command()
@config_option
@json_option
@click.option(
    "--lifetime",
    default=600.0,
    show_default=True,
    metavar="SECONDS",
    type=click.FloatRange(1, 86400),
    help="So long it can be used.",
)
@click.option(
    "--address", default="", metavar="HOST:PORT", help="Where the other node shall call. Without an engine only."
)
def token(*, config: str, as_json: bool, lifetime: float, address: str) -> None:
    """Print a one-time token with which the other node joins."""
    text, expires = _create(load_node(config), lifetime, address)
    if as_json:
        print_json({"token": text, "expires": expires, "lifetime_s": lifetime})
        return
    click.echo(JOIN_HINT.format(minutes=lifetime / 60, token=text))


@pair.command()
@config_option
@json_option
@click.argument("token")
@click.option("--name", default="", help="This node's name, for people. [default: the settings', else the host name]")
@click.option("--address", default="", metavar="HOST:PORT", help="Where the other node reaches this one.")
@station_option
@click.option(
    "--discard-local-data", is_flag=True, help="This node's own data is exported, then replaced by the pair's."
)
@click.option(
    "--agent-config", default=None, envvar="HA_AGENT_CONFIG", metavar="FILE", help="[default: ha.toml beside --config]"
)
@click.option("--accept", multiple=True, metavar="CHECK", help="Join although this check fails. May be repeated.")
def join(
    *,
    config: str,
    as_json: bool,
    token: str,
    name: str,
    address: str,
    station_type: str | None,
    discard_local_data: bool,
    agent_config: str | None,
    accept: tuple[str, ...],
) -> None:
    """Join the pair that TOKEN invites to, as its Standby; - reads it from standard input, where `ps` does not show it.

    First both nodes are compared, as `ha-sync preflight` does; what fails forbids to join. Model, firmware, data layout
    and station types are not to be accepted.
    """
    from ha_sync.config import saving
    from ha_sync.pairing import exporting, joining
    from ha_sync.pairing.diagnosis import split_address
    from ha_sync.pairing.onetime import decode
    from ha_sync.pairing.route import mac_of

    token = sys.stdin.read(TOKEN_MAX).strip() if token == STDIN else token
    settings: Settings = load(config)
    node = settings.node
    mine = _own_address(node, address, towards=decode(token).address)
    ha_toml = agent_config or os.path.join(os.path.dirname(os.path.abspath(config)), HA_TOML)
    theirs, offset_s = joining.examine(token, node.state_dir)
    definitions = saving.draft(config, theirs.definitions) if theirs.definitions else None
    if definitions is not None:
        settings = (
            definitions.settings
        )  # what the pair replicates is what is compared, and what of this node is at stake
    checks = _preflight(settings, theirs, offset_s, ha_toml, accept)
    joined = joining.join(
        token,
        node.state_dir,
        address=mine,
        node_name=name or node.name,
        station_type=station_type or "",
        mac=mac_of(split_address(mine)[0]),
        has_business_data=lambda: exporting.holding(settings.datasets),
        discard_local_data=discard_local_data,
        exporter=lambda: _export(settings),
    )
    taken, trouble = _take_shared(joined, settings, ha_toml)
    if definitions is not None and definitions.changed:
        saving.save(config, definitions)
        taken.append("definitions: " + ", ".join(definitions.changed))
    if trouble:
        click.echo(f"the pair's settings were not taken: {trouble}", err=True)
    _tell_joined(joined, taken, checks, as_json=as_json)


@pair.command()
@socket_option
@json_option
@click.option("--without-peer", is_flag=True, help="The other node is gone for good, or is dissolved by itself.")
@click.option("--yes", is_flag=True, help="Do not ask.")
def dissolve(*, config: str, socket: str | None, as_json: bool, without_peer: bool, yes: bool) -> None:
    """End the pair on both nodes, from the Active: each keeps its data and goes on alone.

    HA goes off, the cluster IP goes, triggers, guards and marks leave the data, the services stop and start, the
    certificates are worth nothing any more. A node that is off meanwhile is finished when it comes back.
    """
    from ha_proto.sync.v1 import life_pb2
    from ha_sync.cli.client import LONG_S, talk
    from ha_sync.cli.preflight import LIFE

    if not yes:
        if as_json or not sys.stdin.isatty():
            raise click.UsageError("there is no terminal to ask at: --yes")
        click.confirm("the pair ends, and calls in progress with it. Go on?", abort=True)
    with talk(LIFE, socket_path(config, socket)) as stub:
        answer = stub.Dissolve(life_pb2.DissolvePairRequest(without_peer=without_peer), timeout=LONG_S)
    if as_json:
        print_json(message_to_dict(answer))
        return
    for trace in answer.removed:
        click.echo(f"removed  {trace}")
    click.echo(
        "the pair is dissolved" if answer.peer_done else "dissolved here; the other node follows when it is back"
    )


pair.add_command(dissolve, "leave")
"""One thing under two names: a pair of two that one of them leaves is none any more."""


def _preflight(
    settings: Settings, theirs: NodeFacts, offset_s: float, ha_toml: str, accept: tuple[str, ...]
) -> list[str]:
    """Raises ``Refused`` where the nodes do not fit; returns the lines of what is odd."""
    from ha_sync.cli.preflight import lines_of
    from ha_sync.pairing import facts, preflight

    agent, fault = facts.run_agent_facts(ha_toml)
    mine = facts.own_facts(settings, agent=agent, agent_fault=fault)
    checks = preflight.judge(mine, theirs, offset_s=offset_s, joining=True)
    odd = [check for check in checks if check.verdict != preflight.PASS]
    for line in lines_of(odd) if odd else ():
        click.echo(line, err=True)
    forbidding = [
        check.name
        for check in odd
        if check.verdict == preflight.FAIL and (check.name in NEVER_ACCEPTED or check.name not in accept)
    ]
    if forbidding:
        raise Refused(
            "cannot join",
            reason="the nodes do not fit: " + ", ".join(forbidding),
            hint="mend it; or --accept CHECK for each" + f" (never {', '.join(NEVER_ACCEPTED)})",
        )
    return [f"{check.verdict} {check.name}" for check in odd]


def _take_shared(joined: Joined, settings: Settings, ha_toml: str) -> tuple[list[str], str]:
    """The pair's settings and accounts in the place of this node's; what came, and why something did not."""
    import subprocess

    from ha_sync.accounts import AccountStore

    taken, trouble = [], ""
    for document in joined.shared:
        if document.name == "accounts":
            AccountStore(settings.node.state_dir).replace(document.content)
            taken.append(f"accounts {document.version}")
        elif document.name == "settings":
            line = [sys.executable, "-m", "ha_agent.cli", "take-shared", document.version, "--config", ha_toml]
            done = subprocess.run(line, input=document.content, capture_output=True, check=False, timeout=SHARED_S)
            if done.returncode == 0:
                taken.append(f"settings {document.version}")
            else:
                trouble = done.stderr.decode(errors="replace").strip()
    return taken, trouble


def _export(settings: Settings) -> str:
    """Said at once and on standard error: the join may still fail."""
    from ha_sync.pairing.exporting import export

    path = export(settings.datasets, settings.node.state_dir)
    click.echo(f"this node's own data was saved to {path}", err=True)
    return path


def _tell_joined(joined: Joined, taken: list[str], odd: list[str], *, as_json: bool) -> None:
    identity = joined.identity
    assert identity.peer is not None, "a joiner knows who invited it"
    if as_json:
        print_json(
            {
                "cluster_id": identity.cluster_id,
                "node_id": identity.node_id,
                "node_name": identity.node_name,
                "peer": dataclasses.asdict(identity.peer),
                "epoch": identity.promised_epoch,
                "exported_to": joined.exported_to or None,
                "taken": taken,
                "odd": odd,
            }
        )
        return
    click.echo(f"this is now node {identity.node_name} ({identity.node_id}) of the pair {identity.cluster_id}")
    click.echo(f"its peer is {identity.peer.node_id} at {identity.peer.address}")


def _create(node: NodeSettings, lifetime_s: float, address: str) -> tuple[str, str]:
    """The token's text and its end."""
    from ha_sync.pairing.identity import Identity
    from ha_sync.pairing.invitations import Invitations

    identity = Identity.load(node.state_dir)
    if _engine_answers(node.socket_path):
        if address:
            raise Refused(
                "cannot choose the token's address", reason="the engine is running", hint="leave --address out"
            )
        return _ask_engine(node.socket_path, lifetime_s)
    made = Invitations(identity.directory).create(identity, lifetime_s=lifetime_s, address=address)
    return made.text, made.expires


def _ask_engine(path: str, lifetime_s: float) -> tuple[str, str]:
    from ha_proto.sync.v1 import control_pb2
    from ha_sync.cli.client import QUICK_S, control

    with control(path) as stub:
        answer = stub.CreateToken(control_pb2.CreateTokenRequest(lifetime_s=lifetime_s), timeout=QUICK_S)
    return answer.token, answer.expires


def _engine_answers(path: str) -> bool:
    """Whether somebody listens at the control socket. A stale socket of a killed engine does not count."""
    import socket

    with socket.socket(socket.AF_UNIX) as probe:
        try:
            probe.connect(path)
        except (FileNotFoundError, ConnectionRefusedError):
            return False
        except OSError:
            return True  # no permission: the engine's own error says it better
        return True


def _own_address(node: NodeSettings, given: str, *, towards: str = "") -> str:
    """What was given, else the listening address; for the wildcard the one that faces the other node.

    Raises ``Refused`` where none can be found.
    """
    from ha_sync.pairing.diagnosis import split_address
    from ha_sync.pairing.route import ANYWHERE, address_towards

    own = given or node.listen[0]
    try:
        host, port = split_address(own)
        if given or host not in {"0.0.0.0", "::"}:  # noqa: S104 - compared, not bound
            return own
        facing = address_towards(split_address(towards)[0] if towards else ANYWHERE)
    except ValueError as wrong:
        raise Refused("cannot use the address", subject=own, reason=str(wrong)) from wrong
    if not facing:
        raise Refused(
            "cannot tell under which address the other node reaches this one",
            reason=f"it listens on all of them ({own}) and there is no route",
            hint="say it: --address HOST:PORT",
        )
    return f"[{facing}]:{port}" if ":" in facing else f"{facing}:{port}"
