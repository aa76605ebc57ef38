"""The commands as processes: check-config, version, help, serve without an engine to run."""

from __future__ import annotations

import logging
import os
import signal
import socket as sockets
import subprocess
import sys
from pathlib import Path

import click
import pytest

from ha_sync.cli.log_lines import FieldsFormatter
from ha_sync.cli.main import VERBS, cli
from tests.support.client import ROOT, ha_sync

GOOD = """
[node]
state_dir = "{0}/state"
run_dir = "{0}/run"
[[dataset]]
name = "cdr"
kind = "sqlite"
path = "/srv/cdr.db"
[console]
"""


def test_check_config_lists_the_datasets_and_the_notices(tmp_path: Path) -> None:
    file = tmp_path / "sync.toml"
    file.write_text(GOOD.format(tmp_path))
    said = ha_sync("check-config", "--config", file)
    assert said.code == 0
    assert said.out.splitlines()[:3] == [
        f"{file}: no faults",
        "DATASET  KIND    PRIORITY  PATH",
        "cdr      sqlite  cdr       /srv/cdr.db",
    ]
    assert said.out.splitlines()[3].startswith("notice: console:")
    facts = ha_sync("check-config", "--json", HA_SYNC_CONFIG=str(file)).json
    assert facts["datasets"] == [{"name": "cdr", "kind": "sqlite", "priority": "cdr", "path": "/srv/cdr.db"}]


def test_check_config_prints_every_fault_and_ends_with_2(tmp_path: Path) -> None:
    file = tmp_path / "sync.toml"
    file.write_text("[node]\nlisten = 1\n[stream]\nwindow_mib = 0\n[nod]\n")
    said = ha_sync("check-config", "--config", file)
    assert (said.code, said.out) == (2, "")
    assert said.err.splitlines() == [
        f"ha-sync: cannot use the settings of {file}:",
        "  node.listen = 1: must be a string in quotes",
        "  stream.window_mib = 0: must be a whole number from 1 to 256 (MiB)",
        '  sync.toml.nod = {}: unknown key; did you mean "node"?',
    ]
    assert len(ha_sync("check-config", "--json", "--config", file).json["error"]["faults"]) == 3


def test_serve_refuses_wrong_settings_with_2(tmp_path: Path) -> None:
    said = ha_sync("serve", "--role", "active", "--config", tmp_path / "none.toml")
    assert said.code == 2
    assert "there is no such file" in said.err


def test_version_tells_what_it_stands_on() -> None:
    assert set(ha_sync("version", "--json").json) == {"ha_sync", "python", "sqlite", "grpc"}


def test_help_names_every_verb() -> None:
    said = ha_sync("--help")
    assert said.code == 0
    assert all(f"  {verb} " in said.out for verb in VERBS)


def lines() -> list[tuple[str, ...]]:
    """Every command; a group's are those below it."""
    found: list[tuple[str, ...]] = []
    for verb in VERBS:
        assert isinstance(cli, click.Group)
        command = cli.get_command(click.Context(cli), verb)
        below = sorted(command.commands) if isinstance(command, click.Group) else [""]
        found += [tuple(filter(None, (verb, each))) for each in below]
    return found


@pytest.mark.parametrize("line", [line for line in lines() if line[0] not in {"demo", "pair"}], ids=" ".join)
def test_every_verb_has_json_or_runs_until_it_is_stopped(line: tuple[str, ...]) -> None:
    said = ha_sync(*line, "--help")
    assert said.code == 0
    assert ("--json" in said.out) == (line != ("serve",))


def test_a_reader_that_goes_away_is_no_error() -> None:
    command = f"{sys.executable} -c 'from ha_sync.cli.main import main; main()' --help | true"
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT / 'proto'}"}
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=False, env=environment)
    assert "Traceback" not in done.stderr


def test_a_log_line_has_its_fields_and_cannot_be_forged() -> None:
    record = logging.makeLogRecord(
        {"name": "ha_sync.x", "levelname": "INFO", "msg": "refused", "dataset": "cdr", "path": "a\nERROR forged"}
    )
    line = FieldsFormatter().format(record)
    assert "\n" not in line
    assert line.endswith(r"refused dataset=cdr path='a\nERROR forged'")


SERVE = """
import asyncio, sys, types
from ha_sync.errors import OperatorNeeded
node = types.ModuleType("ha_sync.service.engine")

async def run(settings, *, role, epoch):
    if epoch == 13:
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(fail())
    server = await asyncio.start_unix_server(lambda reader, writer: writer.close(), settings.node.socket_path)
    try:
        await asyncio.Event().wait()
    finally:
        server.close()
        print("closed", role.value, epoch, flush=True)

async def fail():
    raise OperatorNeeded("cannot listen at", subject="127.0.0.1:1", reason="port in use")

node.run = run
sys.modules["ha_sync.service.engine"] = node
from ha_sync.cli.main import main
main()
"""
"""``serve`` around an engine that only listens: the verb's own duties are looked at here."""


def serve(tmp_path: Path, run_dir: Path, *arguments: str, **environment: str) -> subprocess.Popen[str]:
    file = tmp_path / "sync.toml"
    file.write_text(GOOD.format(run_dir))
    (run_dir / "run").mkdir()
    return subprocess.Popen(
        [sys.executable, "-c", SERVE, "serve", "--config", str(file), *arguments],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT / 'proto'}", **environment},
    )


@pytest.mark.parametrize("stop", [signal.SIGTERM, signal.SIGINT])
def test_serve_tells_the_service_manager_and_stops_in_order(
    tmp_path: Path, run_dir: Path, stop: signal.Signals
) -> None:
    with sockets.socket(sockets.AF_UNIX, sockets.SOCK_DGRAM) as manager:
        manager.bind(str(run_dir / "notify"))
        manager.settimeout(30)
        process = serve(tmp_path, run_dir, "--role", "standby", "--epoch", "7", NOTIFY_SOCKET=str(run_dir / "notify"))
        with process:
            try:
                assert manager.recv(100) == b"READY=1"
                process.send_signal(stop)
                assert manager.recv(100) == b"STOPPING=1"
                out, err = process.communicate(timeout=30)
            finally:
                process.kill()
    assert (process.returncode, out) == (0, "closed standby 7\n")
    assert err.rstrip().endswith("ha_sync.cli.serve: stopping")


def test_serve_tells_the_service_manager_that_its_loop_turns(tmp_path: Path, run_dir: Path) -> None:
    with sockets.socket(sockets.AF_UNIX, sockets.SOCK_DGRAM) as manager:
        manager.bind(str(run_dir / "notify"))
        manager.settimeout(30)
        told = {"NOTIFY_SOCKET": str(run_dir / "notify"), "WATCHDOG_USEC": "400000"}
        with serve(tmp_path, run_dir, "--role", "standby", "--epoch", "7", **told) as process:
            try:
                seen: list[bytes] = []
                while seen.count(b"WATCHDOG=1") < 3:  # again and again
                    seen.append(manager.recv(100))
            finally:
                process.kill()


def test_serve_ends_with_the_engines_own_error_not_with_a_group(tmp_path: Path, run_dir: Path) -> None:
    with serve(tmp_path, run_dir, "--role", "active", "--epoch", "13") as process:
        _, err = process.communicate(timeout=30)
    assert process.returncode == 1
    assert err.splitlines()[-1] == "ha-sync: cannot listen at 127.0.0.1:1: port in use"
    assert "Traceback" not in err
