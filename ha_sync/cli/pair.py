"""``ha-sync pair init | token | join``: from two single nodes to a pair.

``token`` asks the running engine, so that only the node in service invites; with no engine running it writes the
token itself, and the engine finds it when it starts.
"""

from __future__ import annotations

import dataclasses

import click

from ha_sync.cli.options import config_option, json_option
from ha_sync.cli.output import print_json
from ha_sync.config import NodeSettings, Settings, load, load_node
from ha_sync.errors import Refused

JOIN_HINT = "on the other node, within {minutes:g} minutes:\n  ha-sync pair join {token}"


@click.group()
def pair() -> None:
    """Make a pair of two nodes: init on the node in service, token there, join on the other."""


@pair.command()
@config_option
@json_option
@click.option("--name", default="", help="This node's name, for people. [default: the settings', else the host name]")
@click.option("--address", default="", metavar="HOST:PORT", help="Where the other node reaches this one.")
@click.option("--station-type", type=click.Choice(["primary", "secondary"]), default=None)
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
@click.option("--lifetime", default=600.0, show_default=True, metavar="SECONDS", type=click.FloatRange(1, 86400))
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
@click.option("--station-type", type=click.Choice(["primary", "secondary"]), default=None)
@click.option(
    "--discard-local-data", is_flag=True, help="This node's own data is exported, then replaced by the pair's."
)
def join(
    *,
    config: str,
    as_json: bool,
    token: str,
    name: str,
    address: str,
    station_type: str | None,
    discard_local_data: bool,
) -> None:
    """Join the pair that TOKEN invites to, as its Standby."""
    from ha_sync.pairing import exporting, joining
    from ha_sync.pairing.diagnosis import split_address
    from ha_sync.pairing.onetime import decode
    from ha_sync.pairing.route import mac_of

    settings: Settings = load(config)
    node = settings.node
    mine = _own_address(node, address, towards=decode(token).address)
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
    _tell_joined(joined, as_json=as_json)


def _export(settings: Settings) -> str:
    """Said at once and on standard error: the join may still fail."""
    from ha_sync.pairing.exporting import export

    path = export(settings.datasets, settings.node.state_dir)
    click.echo(f"this node's own data was saved to {path}", err=True)
    return path


def _tell_joined(joined: object, *, as_json: bool) -> None:
    from ha_sync.pairing.joining import Joined

    assert isinstance(joined, Joined)
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
