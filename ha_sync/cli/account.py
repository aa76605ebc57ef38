"""``ha-sync account set | list | remove``: who may administer the pair.

A password is asked for, or read from standard input; it is never an argument, and only its scrypt hash leaves this
process. The accounts of the Active are those of both nodes.
"""

from __future__ import annotations

import datetime as dt
import sys

import click

from ha_proto.sync.v1 import life_pb2 as pb
from ha_sync.cli.client import QUICK_S, talk
from ha_sync.cli.options import json_option, socket_option, socket_path
from ha_sync.cli.output import message_to_dict, print_json, table
from ha_sync.cli.preflight import LIFE


@click.group()
def account() -> None:
    """Administrators: made and changed on the Active, the same on both nodes."""


@account.command("set")
@click.argument("name")
@socket_option
@json_option
def set_(*, name: str, config: str, socket: str | None, as_json: bool) -> None:
    """Make an account, or give it a new password (asked for; without a terminal the first line of standard input)."""
    from ha_sync.accounts import make_secret

    try:
        secret = make_secret(_password())
    except ValueError as wrong:
        raise click.UsageError(str(wrong)) from wrong
    with talk(LIFE, socket_path(config, socket)) as stub:
        answer = stub.SetAccount(pb.SetAccountRequest(name=name, secret=secret), timeout=QUICK_S)
    if as_json:
        print_json(message_to_dict(answer))
    else:
        click.echo("made" if answer.made else "changed")


@account.command("list")
@socket_option
@json_option
def list_(*, config: str, socket: str | None, as_json: bool) -> None:
    """The names, and when each password was set."""
    with talk(LIFE, socket_path(config, socket)) as stub:
        answer = stub.ListAccounts(pb.ListAccountsRequest(), timeout=QUICK_S)
    if as_json:
        print_json(message_to_dict(answer))
        return
    rows = [(one.name, f"{dt.datetime.fromtimestamp(one.changed_unix_s):%Y-%m-%d %H:%M}") for one in answer.accounts]  # noqa: DTZ006 - for a person, in local time
    for line in table(("NAME", "CHANGED"), rows):
        click.echo(line)


@account.command()
@click.argument("name")
@socket_option
@json_option
def remove(*, name: str, config: str, socket: str | None, as_json: bool) -> None:
    """Remove an account."""
    with talk(LIFE, socket_path(config, socket)) as stub:
        answer = stub.RemoveAccount(pb.RemoveAccountRequest(name=name), timeout=QUICK_S)
    if as_json:
        print_json(message_to_dict(answer))
    else:
        click.echo("removed")


def _password() -> str:
    if sys.stdin.isatty():
        return str(click.prompt("password", hide_input=True, confirmation_prompt=True, err=True))
    return sys.stdin.readline(4096).rstrip("\r\n")
