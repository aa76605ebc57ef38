"""A systemd of its own for one node of ``netns_pair``: process 1 of a namespace, with the units of deploy/systemd.

It runs in the node's network namespace and sees its own processes, control groups and boot number; /run, /var/lib and
/usr/local/bin are its own too, the rest of the file system is this machine's. Units come from ``install-units --root``
and from here: nothing of this machine's own units is loaded. ``kill`` is a loss of power. Blocking.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

from tests.support.netns_pair import NetNode, until

ROOT = Path(__file__).resolve().parent.parent.parent
SYSTEMD = "/lib/systemd/systemd"
TARGETS = ("sysinit", "basic", "shutdown", "network-online", "multi-user", "umount", "final")
DAEMONS = {
    "ha-agent": ("ha_agent.cli", "HA_AGENT_CONFIG", "ha.toml"),
    "ha-sync": ("ha_sync.cli", "HA_SYNC_CONFIG", "sync.toml"),
}
UNITS = ("ha-agent.service", "ha-sync.service")
PBX = "asterisk.service"
PBX_UNIT = "[Unit]\nDescription=Stands for the PBX\n[Service]\nExecStart=/bin/sleep infinity\n"
BOOT = """
set -e
mount --make-rprivate /
mount -t proc proc /proc
for own in /run /var/lib /usr/local/bin; do mount -t tmpfs tmpfs "$own"; done
mkdir -p /run/ha-sync
mount --bind "$RUN_DIR" /run/ha-sync
cp "$PROGRAMS"/* /usr/local/bin/
mount -t tmpfs tmpfs /sys/fs/cgroup
mkdir /sys/fs/cgroup/unified /sys/fs/cgroup/systemd
mount -t cgroup2 cgroup2 /sys/fs/cgroup/unified
mount -t cgroup -o none,name=systemd cgroup /sys/fs/cgroup/systemd
mount --bind "$BOOT_ID" /proc/sys/kernel/random/boot_id
exec env -i container=test PATH=/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin SYSTEMD_UNIT_PATH="$UNIT_PATH" \\
    "$SYSTEMD" --system --unit=multi-user.target --log-target=console --show-status=0
"""

LOOK = """
set -e
mount --make-rprivate /
mount -t tmpfs tmpfs /sys/fs/cgroup
mkdir /sys/fs/cgroup/unified
mount -t cgroup2 cgroup2 /sys/fs/cgroup/unified
"""


class LiveSystemd:
    """One node's. ``start`` boots it; the units are enabled as an administrator enables them."""

    def __init__(self, node: NetNode) -> None:
        self.node = node
        self._units = os.path.join(node.home, "installed")
        self._base = os.path.join(node.home, "base")
        self._programs = os.path.join(node.home, "programs")
        self._process: subprocess.Popen[bytes] | None = None
        self._pid = 0
        self._furnish()

    def _furnish(self) -> None:
        install = [str(ROOT / "scripts/install-units"), "--root", self._units, "--pbx", PBX]
        subprocess.run(install, check=True, capture_output=True, timeout=120)
        wanted = Path(self._base, "multi-user.target.wants")
        wanted.mkdir(parents=True)
        for target in TARGETS:
            Path(self._base, f"{target}.target").write_text(f"[Unit]\nDescription={target}\nDefaultDependencies=no\n")
        Path(self._base, PBX).write_text(PBX_UNIT)
        for unit in (*UNITS, PBX):  # the PBX too, as a distribution enables it
            (wanted / unit).symlink_to(f"/nowhere/{unit}")
        os.mkdir(self._programs)
        for name, (module, variable, config) in DAEMONS.items():
            program = Path(self._programs, name)
            program.write_text(
                f"#!/bin/sh\nexport {variable}={self.node.file(config)} PYTHONPATH={ROOT}\n"
                f'exec {sys.executable} -m {module} "$@"\n'
            )
            program.chmod(0o755)

    def start(self) -> None:
        """Power on; returns when the manager answers."""
        own = {
            "RUN_DIR": self.node.run_dir,
            "BOOT_ID": self.node.file("boot_id"),
            "PROGRAMS": self._programs,
            "SYSTEMD": SYSTEMD,
            "UNIT_PATH": f"{self._units}/etc/systemd/system:{self._base}",
        }
        apart = ["unshare", "--pid", "--fork", "--mount", "--uts", "--ipc", "--cgroup", "--kill-child=SIGKILL"]
        with open(self.node.file("systemd.log"), "ab") as log:
            self._process = subprocess.Popen(
                self.node.net.command(self.node.name, *apart, "bash", "-c", BOOT),
                stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=os.environ | own, start_new_session=True,
            )  # fmt: skip
        until(self._answers, "a manager that answers", lambda: self.node.log_tail("systemd"))

    def _answers(self) -> bool:
        assert self._process is not None
        assert self._process.poll() is None, self.node.log_tail("systemd")
        children = Path(f"/proc/{self._process.pid}/task/{self._process.pid}/children")
        self._pid = int((children.read_text().split() or ["0"])[0])
        return self._pid > 0 and self.systemctl("is-active", "multi-user.target", check=False).strip() == "active"

    def within(self, *command: str) -> subprocess.CompletedProcess[str]:
        """Runs it to its end beside the manager."""
        line = ["nsenter", "-t", str(self._pid), "-p", "-m", "-n", "--", *command]
        return subprocess.run(line, capture_output=True, text=True, check=False, timeout=120)

    def systemctl(self, *words: str, check: bool = True) -> str:
        """What it printed."""
        done = self.within("systemctl", *words)
        assert not check or done.returncode == 0, f"systemctl {' '.join(words)}: {done.stderr}"
        return done.stdout

    def state(self, unit: str) -> str:
        """``active``, ``inactive``, ``activating``, ..."""
        return self.systemctl("is-active", unit, check=False).strip()

    def shown(self, unit: str, key: str) -> str:
        """One property."""
        return self.systemctl("show", "--value", "-p", key, unit).strip()

    def kill(self) -> None:
        """Every process of the machine at once."""
        if self._process is not None:
            if self._pid:
                os.kill(self._pid, signal.SIGKILL)
            self._process.kill()
            self._process.wait()
            self._process = None


def unavailable() -> str | None:
    """Why it cannot run here."""
    if not os.path.exists(SYSTEMD) or shutil.which("nsenter") is None:
        return "needs systemd and nsenter (Debian: packages systemd, util-linux)"
    line = ["unshare", "--pid", "--fork", "--mount", "--cgroup", "bash", "-c", LOOK]
    done = subprocess.run(line, capture_output=True, text=True, check=False)
    return f"a systemd cannot run in namespaces here: {done.stderr.strip()}" if done.returncode else None
