"""``ha-sync storage``: external storage of both nodes, its first sync, and what goes on."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from typing import Any

import click

from ha_proto.sync.v1 import control_pb2 as pb
from ha_proto.sync.v1 import storage_pb2
from ha_sync.cli.client import QUICK_S, control
from ha_sync.cli.full_backup import LINE_EVERY_PERCENT, bar, line_of
from ha_sync.cli.options import json_option, socket_option, socket_path
from ha_sync.cli.output import duration, message_to_dict, plain, print_json, table
from ha_sync.errors import ConfigFault, WrongState

MIB = 1024 * 1024
GIB = 1024 * MIB
START_S = 60.0
"""The other node's word is waited for."""

WORST_FIRST = (1, 6, 5, 4)
"""Of the exit codes of several syncs."""


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
def storage() -> None:
    """External storage: SD, USB and NAS of both nodes.

    Nothing of a storage goes to the other node before its first sync; from then on new files follow by themselves.
    """


@storage.command("list")
@socket_option
@json_option
def list_(*, config: str, socket: str | None, as_json: bool) -> None:
    """Show the storages of both nodes side by side, and what does not match."""
    with control(socket_path(config, socket)) as engine:
        answer: pb.ListStoragesResponse = engine.ListStorages(pb.ListStoragesRequest(), timeout=QUICK_S)
    if as_json:
        print_json(message_to_dict(answer))
    else:
        click.echo("\n".join(listed(answer)))


def listed(answer: pb.ListStoragesResponse) -> list[str]:
    """The table, then what does not match."""
    if not answer.storages:
        return ["no [[storage]] is configured"]
    known = answer.HasField("peer_age_s")
    rows = []
    for pair in answer.storages:
        rows.append((pair.name, "here", *_found(pair.here if pair.HasField("here") else None), _doing(pair)))
        there = _found(pair.there if pair.HasField("there") else None) if known else ("?",) * 6
        rows.append(("", "there", *there, ""))
    lines = table(("STORAGE", "NODE", "MEDIUM", "FILESYSTEM", "SOURCE", "SIZE", "FREE", "UUID", "STATE"), rows)
    if not known:
        return [*lines, "the other node did not tell what it has"]
    lines += [f"mismatch: {plain(text)}" for text in answer.mismatches]
    if answer.peer_age_s > 30:
        lines.append(f"what the other node has is as of {duration(answer.peer_age_s)} ago")
    return lines


def _found(found: storage_pb2.FoundStorage | None) -> tuple[str, ...]:
    if found is None:
        return ("-", "not configured", "-", "-", "-", "-")
    if found.trouble:
        return (found.medium, plain(found.trouble), "-", "-", "-", "-")
    kind = found.filesystem + (" (read-only)" if found.read_only else "")
    return (
        found.medium,
        kind,
        plain(found.source),
        _size(found.size_bytes),
        _size(found.free_bytes),
        found.uuid or "-",
    )


def _size(size: int) -> str:
    return f"{size / GIB:.1f} GiB" if size >= GIB else f"{size / MIB:.0f} MiB"


def _doing(pair: pb.StoragePair) -> str:
    if pair.shared:
        return "shared: nothing is copied"
    if pair.sync.progress.state not in {"", "idle"}:
        return line_of(pair.sync.progress)
    if not pair.synced:
        return "not synchronised yet"
    return pair.state + (f": {plain(pair.reason)}" if pair.reason else "")


@storage.command("sync")
@socket_option
@json_option
@click.option("--all", "every", is_flag=True, help="Every storage of sync.toml.")
@click.option("--verify", is_flag=True, help="Read every byte on both nodes, not only sizes and times.")
@click.option("--dry-run", is_flag=True, help="Say what would be done, and do nothing.")
@click.option("--allow-mismatch", is_flag=True, help="Kinds or numbers differ: leave out, and name, what does not fit.")
@click.option("--wait", is_flag=True, help="Return when it is over, with its result as the exit code.")
@click.argument("names", nargs=-1, metavar="[NAME]...")
@click.pass_context
def sync(
    ctx: click.Context,
    *,
    config: str,
    socket: str | None,
    as_json: bool,
    every: bool,
    verify: bool,
    dry_run: bool,
    allow_mismatch: bool,
    wait: bool,
    names: tuple[str, ...],
) -> None:
    """Bring what lies on a storage of the Active to the other node's.

    On the Active. One that goes on is joined. Calls go on meanwhile; a quiet hour is better all the same. Exit codes: 0
    begun, or with --wait equal; 3 not the Active; 4 something differs still or cannot lie there; 5 the Standby does not
    answer; 6 refused: not mounted, no room, shared, kinds or numbers differ; 1 failed or cancelled.
    """
    if every == bool(names):
        raise ConfigFault("the command line", ("NAME: name storages, or say --all, not both",))
    with control(socket_path(config, socket)) as engine:
        if dry_run:
            code = _planned(engine, _chosen(engine, names), as_json=as_json)
        else:
            request = pb.SyncStorageRequest(
                names=names, verify="content" if verify else "metadata", allow_mismatch=allow_mismatch
            )
            answer: pb.SyncStorageResponse = engine.SyncStorage(request, timeout=START_S)
            code = _begun(engine, answer, wait=wait, as_json=as_json)
    ctx.exit(code)


def _chosen(engine: Any, names: tuple[str, ...]) -> tuple[str, ...]:
    if names:
        return names
    answer: pb.ListStoragesResponse = engine.ListStorages(pb.ListStoragesRequest(), timeout=QUICK_S)
    return tuple(pair.name for pair in answer.storages if pair.HasField("here"))


def _planned(engine: Any, names: Iterable[str], *, as_json: bool) -> int:
    plans = []
    for name in names:
        last = pb.StoragePlan(name=name)
        for last in engine.PlanStorage(pb.PlanStorageRequest(name=name)):
            if sys.stderr.isatty() and not as_json and not last.complete:
                click.echo(f"\r\x1b[K{name}: {last.looked_at} objects looked at", err=True, nl=False)
        if sys.stderr.isatty() and not as_json:
            click.echo("\r\x1b[K", err=True, nl=False)
        plans.append(last)
    if as_json:
        print_json({"plans": [message_to_dict(plan) for plan in plans]})
    else:
        for plan in plans:
            click.echo("\n".join(plan_lines(plan)))
    return 6 if any(plan.refusal for plan in plans) else 0


def plan_lines(plan: pb.StoragePlan) -> list[str]:
    """What would be done."""
    lines = [
        f"{line.what:9} {plain(line.path)}"
        + (f"  {_size(line.bytes)}" if line.what == "send" else "")
        + (f"  ({plain(line.detail)})" if line.detail else "")
        for line in plan.lines
    ]
    told = plan.send_objects + plan.change_objects + plan.delete_objects + plan.left_out
    if told > len(plan.lines):
        lines.append(f"... and {told - len(plan.lines)} more")
    if plan.refusal and not plan.room_bytes:
        return [f"{plan.name}: would be refused: {plain(plan.refusal)}"]
    lines.append(
        f"{plan.name}: {plan.looked_at} objects looked at; {plan.send_objects} to send ({_size(plan.send_bytes)}), "
        f"{plan.change_objects} to change, {plan.delete_objects} to delete, {plan.left_out} left out; "
        f"{_size(plan.room_bytes)} free there"
    )
    if plan.refusal:
        lines.append(f"{plan.name}: would be refused: {plain(plan.refusal)}")
    return lines


def _begun(engine: Any, answer: pb.SyncStorageResponse, *, wait: bool, as_json: bool) -> int:
    if not as_json:
        for text in answer.left_out:
            click.echo(f"left out: {plain(text)}", err=True)
    if not wait:
        if as_json:
            print_json(message_to_dict(answer))
        else:
            for begun in answer.syncs:
                click.echo(f"{begun.name}: sync {begun.progress.run} {'goes on already' if begun.joined else 'begins'}")
        return 0
    ended = [_watched(engine, begun, as_json=as_json) for begun in answer.syncs]
    if as_json:
        print_json({"syncs": [message_to_dict(one) for one in ended], "left_out": list(answer.left_out)})
    else:
        for one in ended:
            click.echo("\n".join(outcome(one)))
    codes = {one.progress.exit_code for one in ended}
    return next((code for code in WORST_FIRST if code in codes), 0)


def _watched(engine: Any, begun: pb.StorageProgress, *, as_json: bool) -> pb.StorageProgress:
    on_terminal = sys.stderr.isatty() and not as_json
    last, told = begun, (-1, "")
    for last in engine.WatchStorage(pb.WatchStorageRequest(name=begun.name, run=begun.progress.run)):
        now = last.progress
        if on_terminal:
            click.echo(f"\r\x1b[K{begun.name}: {bar(now)}", err=True, nl=False)
        elif not as_json and now.state != "idle":
            step = (int(now.percent) // LINE_EVERY_PERCENT, now.phase)
            if step != told:
                told = step
                click.echo(f"{begun.name}: {line_of(now)}", err=True)
    if on_terminal:
        click.echo("\r\x1b[K", err=True, nl=False)
    if last.progress.run != begun.progress.run:
        raise WrongState("lost sight of the sync", subject=begun.name, reason="another one goes on")
    return last


def outcome(last: pb.StorageProgress) -> list[str]:
    """What it came to."""
    now = last.progress
    head = (
        f"{last.name}: {now.result} in {duration(now.elapsed_s)}; {now.objects} objects, "
        f"{now.wire_bytes / MIB:.1f} MiB sent, {now.differing} differed afterwards, {now.repaired} repaired, "
        f"{now.unverified} left out or not verified"
    )
    lines = [head]
    if now.reason:
        lines.append(f"  {plain(now.reason)}")
    if now.differing or now.unverified:
        lines.append(f"  see: ha-sync logs storage --run {now.run}")
    return lines


def _action(name: str, words: str) -> click.Command:
    @storage.command(name, help=words)
    @socket_option
    @json_option
    @click.argument("storage_name", metavar="NAME")
    def command(*, config: str, socket: str | None, as_json: bool, storage_name: str) -> None:
        with control(socket_path(config, socket)) as engine:
            request = pb.ControlStorageRequest(name=storage_name, action=name)
            answer: pb.StorageProgress = engine.ControlStorage(request, timeout=QUICK_S)
        if as_json:
            print_json(message_to_dict(answer))
        else:
            now = answer.progress
            click.echo(f"{answer.name}: {line_of(now)}" if now.state != "idle" else outcome(answer)[0])

    return command


_action("pause", "Hold the sync that goes on; what is under way arrives.")
_action("resume", "Let it go on.")
_action("cancel", "End it. What was copied stays; in the first sync nothing more follows.")
