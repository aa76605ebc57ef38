"""``ha-agent release``: takes the cluster IP and the condition file away, whatever became of the agent.

systemd runs it when the agent has ended (``ExecStopPost``), however it ended; the lease would go by itself, later. Only
leases are deleted, never an address that somebody configured. What is not there is no fault: saying it twice is fine.
"""

from __future__ import annotations

import contextlib
import fcntl
import os

import click

from ha_agent.cli.options import config_option
from ha_agent.cluster_ip.lease import LABEL_SUFFIX
from ha_agent.cluster_ip.netlink import FOREVER, Address, AddressFacts, Kernel
from ha_agent.errors import ConfigFault, OperatorNeeded, WrongState
from ha_agent.service.process import LOCK_NAME
from ha_agent.settings import NodeSettings, load, load_node


@click.command()
@config_option
@click.option(
    "--force", is_flag=True, help="Also while the agent of these settings runs: it lets go of its role when it notices."
)
def release(*, config: str, force: bool) -> None:
    """Let go of the cluster IP and of the condition file.

    For the service manager, after the agent has ended for whatever reason. Settings that cannot be read any more are no
    obstacle: then the leases are known by their label, which IPv6 has none of.
    """
    node, addresses = _asked(config)
    if not force and _runs(node.state_dir):
        raise WrongState(
            "cannot release the cluster IP",
            reason="the agent of this node runs",
            hint="stop it: `systemctl stop ha-agent`; to keep it and change the roles: `ha-sync switch`",
        )
    with contextlib.suppress(FileNotFoundError):
        os.unlink(node.condition_file)
        click.echo(f"removed {node.condition_file}")
    for one in release_leases(addresses):
        click.echo(f"removed {one.address}/{one.prefix}")


def release_leases(addresses: frozenset[Address] | None) -> tuple[AddressFacts, ...]:
    """Deletes the leases of these addresses on any interface; None: of all that an agent labelled.

    Raises OperatorNeeded where the kernel refuses.
    """
    try:
        with contextlib.closing(Kernel()) as kernel:
            ours = [one for one in kernel.addresses() if _is_lease(one) and _is_asked(one, addresses)]
            return tuple(one for one in ours if kernel.delete(one.index, one.address))
    except OSError as error:
        raise OperatorNeeded(
            "cannot release the cluster IP", reason=error.strerror or str(error), hint="it needs CAP_NET_ADMIN"
        ) from error


def _asked(config: str) -> tuple[NodeSettings, frozenset[Address] | None]:
    try:
        settings = load(config)
    except ConfigFault as fault:
        click.echo(f"ha-agent: {fault.sentence()}: what bears the label {LABEL_SUFFIX} goes", err=True)
        return _places(config), None
    return settings.node, frozenset(settings.pair.cluster_addresses if settings.pair is not None else ())


def _places(config: str) -> NodeSettings:
    try:
        return load_node(config)
    except ConfigFault:
        return NodeSettings()


def _runs(state_dir: str) -> bool:
    with contextlib.suppress(FileNotFoundError), open(os.path.join(state_dir, LOCK_NAME), "rb") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False


def _is_asked(one: AddressFacts, addresses: frozenset[Address] | None) -> bool:
    return one.label.endswith(LABEL_SUFFIX) if addresses is None else one.address in addresses


def _is_lease(one: AddressFacts) -> bool:
    return one.prefix == one.address.max_prefixlen and one.valid_s != FOREVER
