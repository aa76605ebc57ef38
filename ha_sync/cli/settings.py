"""``ha-sync settings show | get | set``: the HA settings of this node, as its agent reads and writes them.

The agent validates and writes; here is only asked and shown. A change is first tried, so that every fault, what
would change and how many calls are in progress is known before anybody is asked.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any, Final

import click

from ha_proto.agent.v1 import settings_pb2 as pb
from ha_proto.agent.v1 import settings_pb2_grpc
from ha_proto.sync.v1 import life_pb2_grpc
from ha_sync.cli.client import AGENT, ENGINE, QUICK_S, Daemon, talk
from ha_sync.cli.options import agent_option, agent_socket_path, json_option, socket_path
from ha_sync.cli.output import message_to_dict, plain, print_json, table
from ha_sync.errors import ConfigFault, HaSyncError, OperatorNeeded

SETTINGS: Final = Daemon(name=AGENT.name, command=AGENT.command, stub=settings_pb2_grpc.SettingsServiceStub)
ENGINES: Final = Daemon(name=ENGINE.name, command=ENGINE.command, stub=life_pb2_grpc.LifeServiceStub)
ENGINES_SECTION: Final = "backup"
RESTART: Final = "a restart of the agent, and with it of the services, is needed: systemctl restart ha-agent"
RESTART_ENGINE: Final = "a restart of the engine is needed, the PBX goes on: systemctl restart ha-sync"
ENGINES_ON_BOTH: Final = "the Standby's sync.toml follows by itself; restart ha-sync there too"
ON_BOTH: Final = (
    "shared settings hold for the pair: the Standby gets them by itself; restart its agent first, then this one "
    "(`ha-sync maintenance --for 10m` keeps the roles where they are)"
)


class NotAsked(HaSyncError):
    """Nobody is there to be asked."""

    exit_code = ConfigFault.exit_code


@click.group()
def settings() -> None:
    """Show and change the HA settings of this node (ha.toml), and when the full backup runs (sync.toml)."""


@settings.command()
@click.argument("section", required=False)
@click.option("--help-texts", is_flag=True, help="With range, default and what each key is for.")
@agent_option
@json_option
def show(*, section: str | None, help_texts: bool, as_json: bool, **where: str | None) -> None:
    """Every setting, what is stated and what holds by default; of one SECTION only, e.g. ha or alarm."""
    answer = pb.GetSettingsResponse() if section == ENGINES_SECTION else _read(where)
    if section in {None, ENGINES_SECTION}:
        try:
            answer.settings.extend(_read(where, engines=True).settings)
        except OperatorNeeded:
            if section is not None:
                raise
            click.echo(f"[{ENGINES_SECTION}] is not shown: the engine does not answer", err=True)
    if section is not None:
        kept = [one for one in answer.settings if one.path.partition(".")[0].partition("[")[0] == section]
        del answer.settings[:]
        answer.settings.extend(kept)
    if as_json:
        print_json(message_to_dict(answer))
        return
    for line in _page(answer, help_texts=help_texts):
        click.echo(line)


@settings.command()
@click.argument("path")
@agent_option
@json_option
def get(*, path: str, as_json: bool, **where: str | None) -> None:
    """The value of one setting, e.g. ha.peer_ip; nothing where it is not stated."""
    wanted = path if "." in path else f"ha.{path}"
    known = _read(where, engines=_is_engines(wanted)).settings
    found = next((one for one in known if one.path == wanted), None)
    if found is None:
        raise ConfigFault("the call", (f"{path}: there is no such setting: `ha-sync settings show` lists them",))
    if as_json:
        print_json(message_to_dict(found))
    elif found.stated:
        click.echo(plain(found.value))


@settings.command("set")
@click.argument("assignments", nargs=-1, metavar="[KEY=VALUE]...")
@click.option("--unset", multiple=True, metavar="KEY", help="Out of the file: the default holds. May be repeated.")
@click.option("--dry-run", is_flag=True, help="Say what would change and what is wrong; write nothing.")
@click.option("--yes", is_flag=True, help="Do not ask.")
@agent_option
@json_option
def set_(
    *,
    assignments: tuple[str, ...],
    unset: tuple[str, ...],
    dry_run: bool,
    yes: bool,
    as_json: bool,
    **where: str | None,
) -> None:
    """Change settings: all of them or none.

    KEY is as `ha-sync settings show` names it (without a section it is of [ha]); `alarm[noc].url` makes the entry where
    there is none. A text is written as it is, everything else as in the file: 7, true, '["/bin/true"]'. They hold after
    a restart of the agent. On a Standby only what belongs to this node can be changed.
    """
    changes = [*_assigned(assignments), *(pb.SettingChange(path=path, unset=True) for path in unset)]
    if not changes:
        raise click.UsageError("nothing to change: KEY=VALUE or --unset KEY")
    engines = _is_engines(changes[0].path)
    if any(_is_engines(change.path) is not engines for change in changes):
        raise click.UsageError(f"[{ENGINES_SECTION}] stands in another file: all or none is possible for one file only")
    with _asked(where, engines=engines) as stub:
        tried = stub.SetSettings(pb.SetSettingsRequest(changes=changes, dry_run=True), timeout=QUICK_S)
        if tried.faults:
            raise ConfigFault("the new settings", tuple(tried.faults))
        if dry_run or not tried.differences:
            _tell(tried, as_json=as_json)
            return
        if not yes:
            _ask(tried, as_json=as_json)
        saved = stub.SetSettings(pb.SetSettingsRequest(changes=changes, file_digest=tried.file_digest), timeout=QUICK_S)
        if saved.faults:
            raise ConfigFault("the new settings", tuple(saved.faults))
    _tell(saved, as_json=as_json)


def _assigned(assignments: Iterable[str]) -> Iterator[pb.SettingChange]:
    for assignment in assignments:
        path, equals, value = assignment.partition("=")
        if not equals:
            raise click.UsageError(f"{assignment}: write KEY=VALUE")
        yield pb.SettingChange(path=path.strip(), value=value)


def _ask(tried: pb.SetSettingsResponse, *, as_json: bool) -> None:
    if as_json or not sys.stdin.isatty():
        raise NotAsked("cannot ask before saving", reason="there is no terminal", hint="--yes, or --dry-run to look")
    for line in _lines(tried):
        click.echo(line)
    click.confirm("save?", abort=True)


def _tell(answer: pb.SetSettingsResponse, *, as_json: bool) -> None:
    if as_json:
        print_json(message_to_dict(answer))
        return
    for line in _lines(answer):
        click.echo(line)
    if answer.saved and answer.differences:
        click.echo(f"saved; the old file is {answer.previous}" if answer.previous else "saved")


def _lines(answer: pb.SetSettingsResponse) -> Iterator[str]:
    if not answer.differences:
        yield "nothing changes"
        return
    for one in answer.differences:
        before = plain(one.before) if one.HasField("before") else "(default)"
        after = plain(one.after) if one.HasField("after") else "(default)"
        yield f"{one.path}: {before} -> {after}" + (" (shared)" if one.shared else "")
    yield from (f"warning: {warning}" for warning in answer.warnings)
    engines = _is_engines(answer.differences[0].path)
    if answer.restart_needed:
        yield RESTART_ENGINE if engines else RESTART
    if any(one.shared for one in answer.differences):
        yield ENGINES_ON_BOTH if engines else ON_BOTH
    if answer.HasField("calls"):
        yield f"calls in progress: {answer.calls}"
    elif answer.calls_fault:
        yield f"calls in progress: not known ({plain(answer.calls_fault)})"


def _page(answer: pb.GetSettingsResponse, *, help_texts: bool) -> Iterator[str]:
    rows = [_row(one) for one in answer.settings]
    yield from table(("SETTING", "VALUE", "WHOSE"), rows)
    if help_texts:
        yield ""
        for one in answer.settings:
            here = f" (on this machine: {', '.join(one.options) or 'none'})" if one.kind == "integers" else ""
            yield f"{one.path}: {one.range}{here}; default {one.default}; {one.what}"
    yield from (click.style(f"fault: {fault}", fg="red") for fault in answer.faults)
    if answer.read_only_shared:
        yield "this node is the Standby: what is shared is changed on the Active"
    if answer.restart_needed and not answer.faults:
        yield "the agent runs with other settings than these: " + RESTART


def _row(one: pb.Setting) -> tuple[str, str, str]:
    value = plain(one.value) if one.stated else f"({one.default.replace('`', '')})"
    return one.path, value, "shared" if one.shared else "this node's"


def _is_engines(path: str) -> bool:
    return path.partition(".")[0] == ENGINES_SECTION


def _read(where: dict[str, str | None], *, engines: bool = False) -> pb.GetSettingsResponse:
    with _asked(where, engines=engines) as stub:
        answer: pb.GetSettingsResponse = stub.GetSettings(pb.GetSettingsRequest(), timeout=QUICK_S)
        return answer


@contextmanager
def _asked(where: dict[str, str | None], *, engines: bool = False) -> Iterator[Any]:
    config = where["config"]
    assert config is not None, "it has a default"
    if engines:
        with talk(ENGINES, socket_path(config, where["socket"])) as stub:
            yield stub
        return
    with talk(SETTINGS, agent_socket_path(config, where["socket"], where["agent_socket"])) as stub:
        yield stub
