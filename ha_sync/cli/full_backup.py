"""``ha-sync full-backup``: starts one, or joins the one that goes on; watches, pauses, resumes, cancels it."""

from __future__ import annotations

import sys
from typing import Any

import click

from ha_proto.sync.v1 import control_pb2 as pb
from ha_sync.cli.client import QUICK_S, control
from ha_sync.cli.options import json_option, socket_option, socket_path
from ha_sync.cli.output import duration, message_to_dict, print_json
from ha_sync.errors import WrongState

MIB = 1024 * 1024
BAR = 30
LINE_EVERY_PERCENT = 10
ACTIONS = ("pause", "resume", "cancel")


@click.command("full-backup")
@socket_option
@json_option
@click.option(
    "--verify",
    type=click.Choice(["content", "metadata"]),
    default="content",
    show_default=True,
    help="Every byte on both disks, or sizes, times and modes (content where these differ).",
)
@click.option("--if-active", is_flag=True, help="On a node that is not the Active: nothing is done, exit code 0.")
@click.option("--wait", is_flag=True, help="Return when it is over, with its result as the exit code.")
@click.argument("action", required=False, type=click.Choice(ACTIONS), metavar="[pause|resume|cancel]")
@click.pass_context
def full_backup(
    ctx: click.Context,
    *,
    config: str,
    socket: str | None,
    as_json: bool,
    verify: str,
    if_active: bool,
    wait: bool,
    action: str | None,
) -> None:
    """Compare both nodes, repair what differs on the Standby, verify the repair.

    Without an action: starts a full backup on the Active; one that goes on is joined. Exit codes: 0 started, or with
    --wait equal or repaired; 3 not the Active; 4 something differs still or was not verified; 5 the Standby does not
    answer; 1 failed or cancelled.
    """
    with control(socket_path(config, socket)) as engine:
        if action is not None:
            _control(engine, action, as_json=as_json)
            return
        try:
            answer: pb.StartFullBackupResponse = engine.StartFullBackup(
                pb.StartFullBackupRequest(verify=verify), timeout=QUICK_S
            )
        except Exception as error:
            if not if_active or not _is_standby(engine):
                raise
            _idle(error, as_json=as_json)
            return
        if not wait:
            _began(answer, as_json=as_json)
            return
        last = _watched(engine, answer, as_json=as_json)
    if as_json:
        print_json(message_to_dict(last))
    else:
        for line in outcome(last):
            click.echo(line)
    ctx.exit(last.exit_code)


def _is_standby(engine: Any) -> bool:
    status: pb.Status = engine.GetStatus(pb.GetStatusRequest(), timeout=QUICK_S)
    return status.role != "active"


def _idle(error: Exception, *, as_json: bool) -> None:
    if as_json:
        print_json({"started": False, "reason": "this node is not the Active"})
    else:
        click.echo("nothing to do: this node is not the Active")
    del error


def _began(answer: pb.StartFullBackupResponse, *, as_json: bool) -> None:
    if as_json:
        print_json(message_to_dict(answer))
    else:
        click.echo(f"full backup {answer.progress.run} {'goes on already' if answer.joined else 'begins'}")


def _control(engine: Any, action: str, *, as_json: bool) -> None:
    request = pb.ControlFullBackupRequest(action=action)
    answer: pb.ControlFullBackupResponse = engine.ControlFullBackup(request, timeout=QUICK_S)
    if as_json:
        print_json(message_to_dict(answer.progress))
    else:
        click.echo("\n".join(shown(answer.progress)))


def _watched(engine: Any, answer: pb.StartFullBackupResponse, *, as_json: bool) -> pb.FullBackupProgress:
    """Shows progress until the run is over: a bar on a terminal, lines in a pipe, nothing with JSON."""
    on_terminal = sys.stderr.isatty() and not as_json
    last, told = answer.progress, (-1, "")
    for last in engine.WatchFullBackup(pb.WatchFullBackupRequest(run=answer.progress.run)):
        if on_terminal:
            click.echo(f"\r\x1b[K{bar(last)}", err=True, nl=False)
        elif not as_json and last.state != "idle":
            now = (int(last.percent) // LINE_EVERY_PERCENT, last.phase + last.dataset)
            if now != told:
                told = now
                click.echo(line_of(last), err=True)
    if on_terminal:
        click.echo("\r\x1b[K", err=True, nl=False)
    if last.run != answer.progress.run:
        raise WrongState("lost sight of the full backup", subject=answer.progress.run, reason="another one goes on")
    return last


def bar(now: pb.FullBackupProgress) -> str:
    """One line for a terminal."""
    full = round(BAR * now.percent / 100)
    return f"[{'#' * full}{' ' * (BAR - full)}] {line_of(now)}"


def line_of(now: pb.FullBackupProgress) -> str:
    """One line for a pipe."""
    parts = [f"{now.percent:5.1f} %", now.phase or now.state, now.dataset, f"{now.objects} objects"]
    if now.bytes_per_s:
        parts.append(f"{now.bytes_per_s / MIB:.1f} MiB/s")
    if now.HasField("left_s"):
        parts.append(f"{duration(now.left_s)} left")
    if now.differing:
        parts.append(f"{now.differing} differing, {now.repaired} repaired")
    return "  ".join(part for part in parts if part)


def outcome(last: pb.FullBackupProgress) -> list[str]:
    """What it came to."""
    head = (
        f"full backup {last.run}: {last.result} in {duration(last.elapsed_s)}; {last.objects} objects, "
        f"{last.bytes / MIB:.0f} MiB compared, {last.differing} differed, {last.repaired} repaired, "
        f"{last.unverified} not verified"
    )
    more = f", {last.in_motion} in motion" if last.in_motion else ""
    lines = [head + more]
    if last.reason:
        lines.append(f"  {last.reason}")
    if last.differing or last.unverified:
        lines.append(f"  see: ha-sync logs backup --run {last.run}")
    return lines


def shown(now: pb.FullBackupProgress) -> list[str]:
    """For `status`: idle, or how far."""
    if not now.state:
        return []  # an engine that does not know it
    if now.state != "idle":
        # The Standby knows only what it is asked about.
        return [f"backing up: {line_of(now) if now.run else f'{now.phase}: {now.dataset}'}"]
    if not now.result:
        return ["idle"]
    reason = f": {now.reason}" if now.reason else ""
    return [f"idle; the last one: {now.result}{reason}"]
