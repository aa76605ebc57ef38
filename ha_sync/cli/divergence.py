"""``ha-sync divergence``: what this node wrote as Active and the other never got."""

from __future__ import annotations

import datetime as dt
import sys
from collections.abc import Iterable

import click

from ha_proto.sync.v1 import control_pb2 as pb
from ha_sync.cli.client import LONG_S, QUICK_S, control
from ha_sync.cli.options import json_option, socket_option, socket_path
from ha_sync.cli.output import message_to_dict, plain, print_json, table

EXIT_PARTIAL = 4
SHOWN_MAX = 60
"""Characters of a value in the table; --json has all that the engine tells."""

dataset_option = click.option(
    "--dataset", default="", metavar="NAME", help="Only this one. [default: all of the archive]"
)


@click.group()
def divergence() -> None:
    """What this node wrote as Active and the other node never got.

    After a fail-over it is saved before the new Active's data replaces it. Call records, voicemail and recordings are
    merged into the new Active by themselves, by what they are; configuration is left to you. Each node lists its own.
    """


@divergence.command("list")
@socket_option
@json_option
def list_(*, config: str, socket: str | None, as_json: bool) -> None:
    """List the archives of this node, oldest first."""
    with control(socket_path(config, socket)) as engine:
        answer: pb.ListDivergencesResponse = engine.ListDivergences(pb.ListDivergencesRequest(), timeout=QUICK_S)
    if as_json:
        print_json(message_to_dict(answer))
        return
    if not answer.archives:
        click.echo("nothing: the other node has everything that was written here")
        return
    for line in _listed(answer.archives):
        click.echo(line)


@divergence.command()
@click.argument("id", metavar="ID")
@dataset_option
@click.option("--limit", type=click.IntRange(1, 100_000), default=1000, show_default=True, help="Lines a dataset.")
@socket_option
@json_option
def show(*, id: str, dataset: str, limit: int, config: str, socket: str | None, as_json: bool) -> None:  # noqa: A002 - the command's word
    """Show what of archive ID differs from what stands on this node now.

    On a Standby that is what the Active has. OLD stands there now, NEW is what this node had written as Active.
    """
    with control(socket_path(config, socket)) as engine:
        request = pb.ShowDivergenceRequest(id=id, dataset=dataset, limit=limit)
        answer: pb.ShowDivergenceResponse = engine.ShowDivergence(request, timeout=LONG_S)
    if as_json:
        print_json(message_to_dict(answer))
        return
    for archive in answer.archives:
        click.echo(plain(_headline(archive)))
        for name in archive.left_out_names:
            click.echo(plain(f"  not kept: {name}"))
        for reason in archive.reasons:
            click.echo(plain(f"  left to you: {reason}"))
    for note in answer.notes:
        click.echo(plain(f"note: {note}"))
    if not answer.differences:
        click.echo("no difference")
        return
    rows = (
        (line.dataset, line.what, line.table, line.key, line.column, line.old, line.new, line.kept_at)
        for line in answer.differences
    )
    headings = ("dataset", "what", "table", "key", "column", "old", "new", "kept at")
    for row in table(headings, (tuple(_cut(value) for value in row) for row in rows)):
        click.echo(row)
    if answer.cut:
        click.echo("there are more: raise --limit")


@divergence.command()
@click.argument("id", metavar="ID")
@dataset_option
@click.option("--force", is_flag=True, help="Although a program that may be harmed has the database open.")
@socket_option
@json_option
def merge(*, id: str, dataset: str, force: bool, config: str, socket: str | None, as_json: bool) -> None:  # noqa: A002 - the command's word
    """Merge the call records, voicemail and recordings of archive ID into the Active now.

    Only what is missing there is added; repeating is harmless. Exit codes: 0 merged; 3 not possible now; 4 merged but
    for what is left to you; 5 the Active does not answer; 6 refused, as for configuration.
    """
    with control(socket_path(config, socket)) as engine:
        request = pb.MergeDivergenceRequest(id=id, dataset=dataset, force=force)
        answer: pb.MergeDivergenceResponse = engine.MergeDivergence(request, timeout=LONG_S)
    if as_json:
        print_json(message_to_dict(answer))
    else:
        for archive in answer.archives:
            click.echo(plain(_headline(archive)))
            for reason in archive.reasons:
                click.echo(plain(f"  left to you: {reason}"))
    if any(archive.state != "merged" for archive in answer.archives):
        sys.exit(EXIT_PARTIAL)


@divergence.command()
@click.argument("id", metavar="ID")
@dataset_option
@click.option("--yes", is_flag=True, help="Do not ask.")
@socket_option
@json_option
def discard(*, id: str, dataset: str, yes: bool, config: str, socket: str | None, as_json: bool) -> None:  # noqa: A002 - the command's word
    """Remove archive ID for good, merged or not."""
    if not yes:
        if as_json or not sys.stdin.isatty():
            raise click.UsageError("--yes is missing: what is discarded cannot be had back")
        click.confirm(f"Remove archive {id}{f' of {dataset}' if dataset else ''} for good?", abort=True)
    with control(socket_path(config, socket)) as engine:
        request = pb.DiscardDivergenceRequest(id=id, dataset=dataset)
        answer: pb.DiscardDivergenceResponse = engine.DiscardDivergence(request, timeout=LONG_S)
    if as_json:
        print_json(message_to_dict(answer))
        return
    for archive in answer.archives:
        click.echo(f"discarded {archive.id} of {archive.dataset} ({archive.state})")


def _listed(archives: Iterable[pb.DivergenceArchive]) -> list[str]:
    rows = (
        (
            archive.id,
            archive.dataset,
            dt.datetime.fromtimestamp(archive.saved_unix_s, tz=dt.UTC).astimezone().isoformat(timespec="seconds"),
            _counts(archive),
            archive.state,
            plain(_what_next(archive)),
        )
        for archive in archives
    )
    return table(("id", "dataset", "saved", "holds", "state", "what next"), rows)


def _headline(archive: pb.DivergenceArchive) -> str:
    text = f"{archive.id} of {archive.dataset}: {_counts(archive)}; {archive.state}"
    if archive.state != "kept":
        text += f" ({archive.added} added, {archive.present} were there, {archive.left} left to you)"
    return f"{text}; {archive.folder}"


def _counts(archive: pb.DivergenceArchive) -> str:
    counts = [f"{archive.counts[name]} {name}" for name in sorted(archive.counts) if archive.counts[name]]
    if archive.left_out:
        counts.append(f"{archive.left_out} not kept")
    return ", ".join(counts) or "nothing"


def _what_next(archive: pb.DivergenceArchive) -> str:
    if archive.trouble:
        return archive.trouble
    if archive.state == "merged":
        return f"nothing; {archive.added} added"
    return archive.waiting or f"yours: ha-sync divergence show {archive.id} --dataset {archive.dataset}"


def _cut(value: str) -> str:
    shown = plain(value)
    return shown if len(shown) <= SHOWN_MAX or "/" in shown else f"{shown[: SHOWN_MAX - 3]}..."
