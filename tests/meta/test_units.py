"""The systemd units: systemd itself finds no fault, they say what the defaults say, and the documents show them."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from ha_agent.settings import NodeSettings
from ha_agent.settings.fields import SECTIONS
from ha_agent.settings.values import LEASE_MARGIN_S
from ha_sync.config import NodeSettings as EngineNode

ROOT = Path(__file__).resolve().parent.parent.parent
UNITS = ROOT / "deploy/systemd"
NAMES = ("ha-agent.service", "ha-sync.service")
EXPOSURE_MAX = 55  # of 100; a looser sandbox is a decision
ANALYZE = shutil.which("systemd-analyze")

needs_systemd = pytest.mark.skipif(ANALYZE is None, reason="needs systemd-analyze (Debian: package systemd)")


def install(root: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = (str(ROOT / "scripts/install-units"), "--root", str(root), *arguments)
    return subprocess.run(command, capture_output=True, text=True, check=False)


def analyze(*arguments: str) -> subprocess.CompletedProcess[str]:
    assert ANALYZE is not None
    return subprocess.run([ANALYZE, *arguments, "--no-pager"], capture_output=True, text=True, check=False, timeout=60)


def stated(unit: str, key: str) -> list[str]:
    return re.findall(rf"^{key}=(.*)$", (UNITS / unit).read_text(), re.M)


@needs_systemd
def test_systemd_finds_no_fault_in_the_units(tmp_path: Path) -> None:
    installed = install(tmp_path, "--bin", str(Path(sys.executable).parent), "--pbx", "asterisk.service")
    assert installed.returncode == 0, installed.stderr
    folder = tmp_path / "etc/systemd/system"
    (folder / "asterisk.service").write_text("[Service]\nExecStart=/bin/true\n")
    units = [str(folder / name) for name in (*NAMES, "asterisk.service")]
    verified = analyze("verify", "--man=no", *units)
    ours = [line for line in verified.stderr.splitlines() if "ha-" in line or "asterisk" in line]
    assert not ours
    assert verified.returncode == 0, verified.stderr


@needs_systemd
@pytest.mark.parametrize("name", NAMES)
def test_the_sandbox_is_as_tight_as_it_was_decided(name: str) -> None:
    looked = analyze("security", "--offline=yes", f"--threshold={EXPOSURE_MAX}", str(UNITS / name))
    print(looked.stdout)
    assert looked.returncode == 0, looked.stdout


@pytest.mark.parametrize("name", NAMES)
def test_a_unit_keeps_to_the_places_of_the_defaults(name: str) -> None:
    assert stated(name, "RuntimeDirectory") == [Path(NodeSettings().run_dir).name] == [Path(EngineNode().run_dir).name]
    assert stated(name, "StateDirectory") == [Path(NodeSettings().state_dir).name]
    assert stated(name, "Type") == ["notify"]
    assert stated(name, "Restart") == ["always"]


@pytest.mark.req("R13")
def test_a_frozen_agent_is_killed_when_its_address_has_lapsed() -> None:
    timeout = SECTIONS["ha"].field("heartbeat_timeout_s")
    assert timeout is not None
    assert isinstance(timeout.default, int | float)
    assert stated("ha-agent.service", "WatchdogSec") == [f"{timeout.default - LEASE_MARGIN_S:g}"]


@pytest.mark.req("R13")
def test_what_a_killed_agent_left_is_taken_away() -> None:
    assert stated("ha-agent.service", "ExecStopPost") == [
        f"-/bin/rm -f {NodeSettings().condition_file}",
        "-/usr/local/bin/ha-agent release --force",
    ]


def test_the_agent_may_do_what_it_must() -> None:
    capabilities = " ".join(stated("ha-agent.service", "CapabilityBoundingSet")).split()
    assert {"CAP_NET_ADMIN", "CAP_NET_RAW", "CAP_SYS_PTRACE"} <= set(capabilities)
    (families,) = stated("ha-agent.service", "RestrictAddressFamilies")
    assert {"AF_NETLINK", "AF_PACKET", "AF_UNIX", "AF_INET", "AF_INET6"} <= set(families.split())


def test_the_documents_show_the_condition_of_the_pbx_as_it_is_installed() -> None:
    drop_in = (UNITS / "asterisk.service.d/ha-sync.conf").read_text()
    assert f"ConditionPathExists={NodeSettings().condition_file}" in drop_in
    page = (ROOT / "docs/operations.md").read_text()
    assert f"```ini\n# /etc/systemd/system/asterisk.service.d/ha-sync.conf\n{drop_in}```" in page


def test_the_units_are_installed_where_they_are_told_to_and_again(tmp_path: Path) -> None:
    for _ in range(2):
        done = install(tmp_path, "--bin", "/opt/x/bin", "--pbx", "pbx@1.service")
        assert done.returncode == 0, done.stderr
    folder = tmp_path / "etc/systemd/system"
    assert "ExecStart=/opt/x/bin/ha-agent run\n" in (folder / "ha-agent.service").read_text()
    assert "ExecStopPost=-/opt/x/bin/ha-agent release --force\n" in (folder / "ha-agent.service").read_text()
    assert {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()} == {
        *NAMES,
        "pbx@1.service.d/ha-sync.conf",
    }


@pytest.mark.parametrize("arguments", [("--pbx", "../x.service"), ("--pbx", "asterisk"), ("--frob",)])
def test_a_wrong_word_installs_nothing(tmp_path: Path, arguments: tuple[str, ...]) -> None:
    assert install(tmp_path, *arguments).returncode == 2
    assert not list(tmp_path.iterdir())
