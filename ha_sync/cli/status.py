"""``ha-sync status``: how the node, its peer and every dataset are doing, by the agent and by the engine.

Either of the two may be missing: the other is shown, and it is said why there is nothing of the first.
"""

from __future__ import annotations

import os
import select
import signal
import sys
from dataclasses import dataclass
from datetime import datetime
from types import FrameType

import click

from ha_proto.agent.v1 import agent_pb2
from ha_proto.sync.v1 import control_pb2 as pb
from ha_sync.cli import agent_page, full_backup
from ha_sync.cli.client import LOOK_S, QUICK_S, agent, control
from ha_sync.cli.failures import say
from ha_sync.cli.options import agent_option, agent_socket_path, json_option, socket_path
from ha_sync.cli.output import duration, message_to_dict, print_json, table
from ha_sync.errors import HaSyncError

CLEAR_SCREEN = "\x1b[H\x1b[2J"
NOTHING = "-"
_COLOURS = {"streaming": "green", "degraded": "yellow", "waiting": "yellow", "halted": "red", "failed": "red"}
_HEADINGS = (
    "DATASET",
    "KIND",
    "STATE",
    "POSITION",
    "ACKED",
    "BACKLOG",
    "P50 MS",
    "P99 MS",
    "OLDEST MS",
    "PATH",
    "METHOD",
)
_NUMBERS = frozenset({3, 4, 5, 6, 7, 8})


@dataclass(frozen=True, slots=True, kw_only=True)
class Look:
    """What the two daemons say of themselves, or why they say nothing; at least one has answered."""

    engine: pb.Status | HaSyncError
    agent: agent_pb2.AgentStatus | HaSyncError

    @property
    def missing(self) -> HaSyncError | None:
        """Why one of the two says nothing."""
        return next((said for said in (self.engine, self.agent) if isinstance(said, HaSyncError)), None)


@click.command()
@agent_option
@json_option
@click.option("--watch", is_flag=True, help="Go on until interrupted; redraws on a terminal, prints lines in a pipe.")
@click.option("--interval", type=click.FloatRange(0.1, 60), default=1.0, show_default=True, help="Of --watch, seconds.")
def status(
    *, config: str, socket: str | None, agent_socket: str | None, as_json: bool, watch: bool, interval: float
) -> None:
    """Show role, cluster IP and readiness, peer, paths and faults; positions, backlog and lag."""
    paths = (socket_path(config, socket), agent_socket_path(config, socket, agent_socket))
    if not watch:
        _show(look_at(*paths, engine_s=QUICK_S), as_json=as_json)
        return
    try:
        _watch(*paths, interval=interval, as_json=as_json)
    except KeyboardInterrupt:
        return


def look_at(engine_path: str, agent_path: str, *, engine_s: float = LOOK_S) -> Look:
    """Asks both. Raises the engine's failure where neither answers, and says the agent's."""
    engine = _engine(engine_path, engine_s)
    node = _agent(agent_path)
    if isinstance(engine, HaSyncError) and isinstance(node, HaSyncError):
        say(node)
        raise engine
    return Look(engine=engine, agent=node)


def _engine(path: str, timeout: float) -> pb.Status | HaSyncError:
    try:
        with control(path) as engine:
            found: pb.Status = engine.GetStatus(pb.GetStatusRequest(), timeout=timeout)
    except HaSyncError as error:
        return error
    return found


def _agent(path: str) -> agent_pb2.AgentStatus | HaSyncError:
    try:
        with agent(path) as node:
            found: agent_pb2.AgentStatus = node.GetStatus(agent_pb2.GetStatusRequest(), timeout=LOOK_S)
    except HaSyncError as error:
        return error
    return found


def _watch(engine_path: str, agent_path: str, *, interval: float, as_json: bool) -> None:
    # Remembered too: an interrupt that strikes within a finalizer is printed by Python and forgotten. In a pipe, for
    # the handler may strike within any wait of ours, and an Event that is set within its own wait blocks for ever.
    over, strike = os.pipe()

    def interrupted(_number: int, _frame: FrameType | None) -> None:
        os.write(strike, b"!")
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGINT, interrupted)
    told = ""
    waited_s = 0.0
    try:
        while not select.select([over], [], [], waited_s)[0]:
            look = look_at(engine_path, agent_path)
            on_terminal = sys.stdout.isatty() and not as_json
            missing = look.missing.sentence() if look.missing else ""
            if look.missing and missing != told and not on_terminal:
                say(look.missing)  # once an edge, so that a pipe of lines stays readable
            told = missing
            _show_update(look, as_json=as_json, on_terminal=on_terminal)
            waited_s = interval
    finally:
        signal.signal(signal.SIGINT, before)
        os.close(over)
        os.close(strike)


def _show(look: Look, *, as_json: bool) -> None:
    if as_json:
        print_json(document(look))
    else:
        click.echo("\n".join(page_of(look)))


def _show_update(look: Look, *, as_json: bool, on_terminal: bool) -> None:
    if as_json:
        print_json(document(look))
    elif on_terminal:
        click.echo(CLEAR_SCREEN + "\n".join(page_of(look)))
    else:
        # Wall clock: only for the person who reads the lines later.
        now = datetime.now().astimezone().isoformat(timespec="milliseconds")
        for line in lines_of(look):
            click.echo(f"{now} {line}")


def document(look: Look) -> dict[str, object]:
    """The stable contract: the engine's fields, null without an engine, and ``agent``, null without an agent."""
    if isinstance(look.engine, HaSyncError):
        facts: dict[str, object] = dict.fromkeys(field.name for field in pb.Status.DESCRIPTOR.fields)
    else:
        facts = message_to_dict(look.engine)
    return facts | {"agent": None if isinstance(look.agent, HaSyncError) else message_to_dict(look.agent)}


def page_of(look: Look) -> list[str]:
    """Everything for a person: the agent first, for it decides; what is missing last."""
    shown = [] if isinstance(look.agent, HaSyncError) else [agent_page.page(look.agent)]
    shown += [] if isinstance(look.engine, HaSyncError) else [page(look.engine)]
    shown += [[f"missing  {look.missing.sentence()}"]] if look.missing else []
    return [line for part in shown for line in ("", *part)][1:]


def lines_of(look: Look) -> list[str]:
    """The same for a pipe: one line for the agent, one a dataset (for the node where it has none)."""
    lines = [] if isinstance(look.agent, HaSyncError) else [agent_page.line_of(look.agent)]
    return lines if isinstance(look.engine, HaSyncError) else [*lines, *_engine_lines(look.engine)]


def page(current: pb.Status) -> list[str]:
    """The engine's part for a person."""
    about = (
        f"{current.role}, epoch {current.epoch}, pair {current.pair or NOTHING}, "
        f"up {duration(current.uptime_s)}, version {current.version}"
    )
    node = [f"node     {current.node_id or NOTHING}: {about}", f"peer     {_peer(current.peer)}"]
    node += [f"stream   {_path(path)}" for path in current.peer.paths]
    if current.certificate_expires:
        node.append(f"expires  {current.certificate_expires} (certificate, renewed by itself)")
    node.extend(f"backup   {line}" for line in full_backup.shown(current.full_backup))
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


def _engine_lines(current: pb.Status) -> list[str]:
    node = f"{current.role} epoch={current.epoch} connected={str(current.peer.connected).lower()}"
    return [f"{node} {_line(dataset)}" for dataset in current.datasets] or [node]


def _line(dataset: pb.Dataset) -> str:
    return (
        f"dataset={dataset.name} state={dataset.state} consistent={str(dataset.consistent).lower()} "
        f"position={dataset.position.sequence} acknowledged={_acked(dataset)} backlog={dataset.backlog} "
        f"p50_ms={_ms(dataset.lag, 'p50_ms')} p99_ms={_ms(dataset.lag, 'p99_ms')} "
        f"path={dataset.stream_path or dataset.stream_address or NOTHING}"
    )


def _peer(peer: pb.Peer) -> str:
    name = " ".join(part for part in (peer.node_id, f"at {peer.address}" if peer.address else "") if part)
    state = "connected" if peer.connected else "not connected"
    return f"{name or 'none known'}: {state}" + (f" ({peer.reason})" if peer.reason else "")


def _path(path: pb.PeerPath) -> str:
    """One way to the peer: what the heartbeats say of it, and whether streams go there."""
    name = f"{path.name} at {path.address}" if path.name else f"at {path.address}"
    return f"{name}: {path.state}" + (", in use" if path.used else "")


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
        dataset.stream_path or dataset.stream_address or NOTHING,
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
