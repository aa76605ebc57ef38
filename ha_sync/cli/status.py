"""``ha-sync status``: how the node, its peer and every dataset are doing."""

from __future__ import annotations

import sys
from datetime import datetime

import click

from ha_proto.sync.v1 import control_pb2 as pb
from ha_sync.cli.client import QUICK_S, control
from ha_sync.cli.options import json_option, socket_option, socket_path
from ha_sync.cli.output import duration, message_to_dict, print_json, table

CLEAR_SCREEN = "\x1b[H\x1b[2J"
NOTHING = "-"
_COLOURS = {"streaming": "green", "degraded": "yellow", "waiting": "yellow", "halted": "red", "failed": "red"}
_HEADINGS = ("DATASET", "KIND", "STATE", "POSITION", "ACKED", "BACKLOG", "P50 MS", "P99 MS", "OLDEST MS", "METHOD")
_NUMBERS = frozenset({3, 4, 5, 6, 7, 8})


@click.command()
@socket_option
@json_option
@click.option("--watch", is_flag=True, help="Go on until interrupted; redraws on a terminal, prints lines in a pipe.")
@click.option("--interval", type=click.FloatRange(0.1, 60), default=1.0, show_default=True, help="Of --watch, seconds.")
def status(*, config: str, socket: str | None, as_json: bool, watch: bool, interval: float) -> None:
    """Show role, peer, positions, backlog and lag."""
    with control(socket_path(config, socket)) as engine:
        if not watch:
            _show(engine.GetStatus(pb.GetStatusRequest(), timeout=QUICK_S), as_json=as_json)
            return
        updates = engine.WatchStatus(pb.WatchStatusRequest(interval_s=interval))
        try:
            for update in updates:
                _show_update(update, as_json=as_json)
        except KeyboardInterrupt:
            updates.cancel()


def _show(current: pb.Status, *, as_json: bool) -> None:
    if as_json:
        print_json(message_to_dict(current))
    else:
        click.echo("\n".join(page(current)))


def _show_update(current: pb.Status, *, as_json: bool) -> None:
    if as_json:
        print_json(message_to_dict(current))
    elif sys.stdout.isatty():
        click.echo(CLEAR_SCREEN + "\n".join(page(current)))
    else:
        # Wall clock: only for the person who reads the lines later.
        now = datetime.now().astimezone().isoformat(timespec="milliseconds")
        for line in lines_of(current):
            click.echo(f"{now} {line}")


def page(current: pb.Status) -> list[str]:
    """The whole status for a person."""
    about = (
        f"{current.role}, epoch {current.epoch}, pair {current.pair or NOTHING}, "
        f"up {duration(current.uptime_s)}, version {current.version}"
    )
    node = [f"node     {current.node_id or NOTHING}: {about}", f"peer     {_peer(current.peer)}"]
    if current.certificate_expires:
        node.append(f"expires  {current.certificate_expires} (certificate, renewed by itself)")
    node.extend(f"notice   {notice}" for notice in current.notices)
    if not current.datasets:
        return [*node, "", "no datasets"]
    head, *rows = table(_HEADINGS, [_row(dataset) for dataset in current.datasets], right=_NUMBERS)
    return [
        *node,
        "",
        head,
        *(_coloured(row, d.state) for row, d in zip(rows, current.datasets, strict=True)),
        *_reasons(current),
    ]


def lines_of(current: pb.Status) -> list[str]:
    """The same for a pipe: one line for the node where it has no datasets, else one a dataset."""
    node = f"{current.role} epoch={current.epoch} connected={str(current.peer.connected).lower()}"
    return [f"{node} {_line(dataset)}" for dataset in current.datasets] or [node]


def _line(dataset: pb.Dataset) -> str:
    return (
        f"dataset={dataset.name} state={dataset.state} consistent={str(dataset.consistent).lower()} "
        f"position={dataset.position.sequence} acknowledged={_acked(dataset)} backlog={dataset.backlog} "
        f"p50_ms={_ms(dataset.lag, 'p50_ms')} p99_ms={_ms(dataset.lag, 'p99_ms')}"
    )


def _peer(peer: pb.Peer) -> str:
    name = " ".join(part for part in (peer.node_id, f"at {peer.address}" if peer.address else "") if part)
    state = "connected" if peer.connected else "not connected"
    return f"{name or 'none known'}: {state}" + (f" ({peer.reason})" if peer.reason else "")


def _row(dataset: pb.Dataset) -> tuple[str, ...]:
    return (
        dataset.name,
        dataset.kind,
        dataset.state,
        str(dataset.position.sequence),
        _acked(dataset),
        str(dataset.backlog),
        _ms(dataset.lag, "p50_ms"),
        _ms(dataset.lag, "p99_ms"),
        _ms(dataset.lag, "oldest_pending_ms"),
        dataset.method or NOTHING,
    )


def _reasons(current: pb.Status) -> list[str]:
    lines = []
    for dataset in current.datasets:
        if dataset.reason:
            lines.append(f"{dataset.name}: {dataset.reason}")
        if not dataset.consistent:
            lines.append(f"{dataset.name}: the copy is not a state that the Active had; a full sync is under way")
        if counts := ", ".join(
            f"{name} {dataset.counts[name]}" for name in sorted(dataset.counts) if dataset.counts[name]
        ):
            lines.append(f"{dataset.name}: {counts}")
    return ["", *lines] if lines else []


def _acked(dataset: pb.Dataset) -> str:
    return str(dataset.acknowledged.sequence) if dataset.HasField("acknowledged") else NOTHING


def _ms(lag: pb.Lag, field: str) -> str:
    return f"{getattr(lag, field):.1f}" if lag.HasField(field) else NOTHING  # type: ignore[arg-type]


def _coloured(row: str, state: str) -> str:
    colour = _COLOURS.get(state)
    # click strips the colour again wherever the output is no terminal.
    return row.replace(state, click.style(state, fg=colour), 1) if colour else row
