"""``ha-sync alarms``: what stands, whom it was told, what waits; and a test message."""

from __future__ import annotations

import click

from ha_proto.agent.v1 import agent_pb2 as pb
from ha_sync.cli.client import LONG_S, QUICK_S, agent
from ha_sync.cli.options import agent_option, agent_socket_path, json_option
from ha_sync.cli.output import duration, message_to_dict, plain, print_json, table
from ha_sync.cli.times import moment

EXIT_FAILED = 1
NOTHING = "-"
_ALARMS = ("SEVERITY", "ALARM", "STATE", "SINCE", "COUNT", "TOLD")
_TARGETS = ("TARGET", "KIND", "WAITS", "SENT", "DROPPED", "GIVEN UP", "LAST SENT")


@click.group()
def alarms() -> None:
    """What stands and whom it was told; a test message."""


@alarms.command("list")
@agent_option
@json_option
def list_(*, config: str, socket: str | None, agent_socket: str | None, as_json: bool) -> None:
    """Show the alarms that stand or have just ended, and how it goes with each target."""
    with agent(agent_socket_path(config, socket, agent_socket)) as stub:
        found: pb.ListAlarmsResponse = stub.ListAlarms(pb.ListAlarmsRequest(), timeout=QUICK_S)
    if as_json:
        print_json(message_to_dict(found))
    else:
        click.echo("\n".join([*_alarm_lines(found), "", *_target_lines(found)]))


@alarms.command()
@click.option("--target", default="", metavar="NAME", help="Only this one. [default: all]")
@agent_option
@json_option
def test(*, target: str, config: str, socket: str | None, agent_socket: str | None, as_json: bool) -> None:
    """Send a test message, at once and beside what waits; ends with 1 where one did not arrive."""
    with agent(agent_socket_path(config, socket, agent_socket)) as stub:
        found: pb.TestAlarmResponse = stub.TestAlarm(pb.TestAlarmRequest(target=target), timeout=LONG_S)
    if as_json:
        print_json(message_to_dict(found))
    else:
        for result in found.results:
            said = f": {plain(result.reason)}" if result.reason else ""
            click.echo(f"{result.target}: {'sent' if result.sent else 'not sent'}, {result.took_s:.1f} s{said}")
    if not all(result.sent for result in found.results):
        raise SystemExit(EXIT_FAILED)


def unsent(target: pb.AlarmTarget) -> str:
    """What a person must know of a target that does not get its messages; empty where it does."""
    if not target.waiting or not target.reason:
        return ""
    again = f", next try in {duration(target.next_try_s)}" if target.HasField("next_try_s") else ""
    waits = "message waits" if target.waiting == 1 else "messages wait"
    return f"{target.name}: {target.waiting} {waits}: {plain(target.reason)}{again}"


def _alarm_lines(found: pb.ListAlarmsResponse) -> list[str]:
    lines = table(_ALARMS, [_alarm(one) for one in found.alarms], right=frozenset({4})) if found.alarms else []
    lines = lines or ["no alarms"]
    return [*lines, f"and {found.left_out} more: `ha-sync logs events`"] if found.left_out else lines


def _alarm(one: pb.AlarmRecord) -> tuple[str, ...]:
    about = f": {one.subject}" if one.subject else ""
    told = moment(one.told_unix_s) if one.HasField("told_unix_s") else NOTHING
    return (one.severity, plain(one.what + about), one.state, moment(one.since_unix_s), str(one.count), told)


def _target_lines(found: pb.ListAlarmsResponse) -> list[str]:
    if not found.targets:
        return ["nobody is told: add [[alarm]] to ha.toml"]
    lines = table(_TARGETS, [_target(one) for one in found.targets], right=frozenset({2, 3, 4, 5}))
    return [*lines, *(click.style(line, fg="red") for one in found.targets if (line := unsent(one)))]


def _target(one: pb.AlarmTarget) -> tuple[str, ...]:
    last = moment(one.sent_unix_s) if one.HasField("sent_unix_s") else NOTHING
    return (one.name, one.kind, str(one.waiting), str(one.sent), str(one.dropped), str(one.given_up), last)
