"""What the commands say of themselves suffices: every verb, every option; and the manual pages say the same."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

from ha_agent.cli.verbs import cli as ha_agent
from ha_sync.cli.main import cli as ha_sync

ROOT = Path(__file__).resolve().parent.parent.parent
UNITS = ("second", "minute", "mib", "percent")


def commands(path: str, command: click.Command) -> Iterator[tuple[str, click.Command]]:
    yield path, command
    if isinstance(command, click.Group):
        context = click.Context(command, info_name=path)
        for name in command.list_commands(context):
            found = command.get_command(context, name)
            assert found is not None
            yield from commands(f"{path} {name}", found)


ALL = dict([*commands("ha-agent", ha_agent), *commands("ha-sync", ha_sync)])
OPTIONS = {
    f"{path} {option.opts[0]}": option
    for path, command in ALL.items()
    for option in command.params
    if isinstance(option, click.Option)
}


def told(option: click.Option) -> str:
    return f"{option.help or ''} {option.metavar or ''}".lower()


@pytest.mark.parametrize("path", ALL)
def test_a_command_says_what_it_does(path: str) -> None:
    sentence = (ALL[path].help or "").strip().split("\n\n")[0].strip()
    assert sentence.endswith((".", ":"))
    assert len(sentence.split()) >= 3


@pytest.mark.parametrize("path", OPTIONS)
def test_an_option_says_what_it_is_for(path: str) -> None:
    assert (OPTIONS[path].help or "").strip().endswith((".", "]"))


@pytest.mark.parametrize(
    "path", [path for path, option in OPTIONS.items() if isinstance(option.type, click.types.FloatParamType)]
)
def test_an_option_with_a_measure_names_its_unit(path: str) -> None:
    assert any(unit in told(OPTIONS[path]) for unit in UNITS), told(OPTIONS[path])


@pytest.mark.parametrize(
    "path",
    [
        path
        for path, option in OPTIONS.items()
        if isinstance(option.type, click.Choice | click.types.FloatParamType | click.types.IntParamType)
        and not option.required
        and isinstance(option.default, str | int | float)
    ],
)
def test_an_option_shows_its_default(path: str) -> None:
    assert OPTIONS[path].show_default or "[default" in told(OPTIONS[path])


def test_the_manual_has_every_command_and_every_option(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, str(ROOT / "scripts/man"), str(tmp_path)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    pages = "".join((tmp_path / f"{name}.1").read_text() for name in ("ha-agent", "ha-sync")).replace("\\-", "-")
    leaves = [path for path, command in ALL.items() if not isinstance(command, click.Group) and not command.hidden]
    assert not [path for path in leaves if f".SS {path} [OPTIONS]" not in pages]
    assert not [path for path, option in OPTIONS.items() if not option.hidden and option.opts[-1] not in pages]
    if shutil.which("groff") is None:
        return
    for name in ("ha-agent", "ha-sync"):
        shown = subprocess.run(
            ["groff", "-man", "-Tascii", "-P-cbou", "-ww", str(tmp_path / f"{name}.1")],
            capture_output=True, text=True, check=False, env={**os.environ, "LC_ALL": "C.UTF-8"},
        )  # fmt: skip
        assert (shown.returncode, shown.stderr) == (0, "")
        assert f"{name} - " in " ".join(shown.stdout.split())
