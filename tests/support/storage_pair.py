"""A pair of real engines with storages that are real filesystems, made and mounted by the tests (root only)."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

from ha_sync.sample.pair import LocalNode, LocalPair, Place

TOML = """
[node]
name = "{name}"
state_dir = "{state_dir}"
run_dir = "{run_dir}"
listen = "{listen}"
peer = "{peer}"
active_at = "192.0.2.53"

[backup]
full = false

[[dataset]]
name = "files"
kind = "tree"
path = "{root}/files"
"""

STORAGE = """
[[storage]]
name = "usb0"
medium = "usb"
path = "{root}/usb0"
reconcile_s = 2
"""


def toml_with(storage: str = STORAGE) -> Callable[[Place], str]:
    def toml(place: Place) -> str:
        facts = {
            "name": place.name,
            "state_dir": place.state_dir,
            "run_dir": place.run_dir,
            "listen": place.listen,
            "peer": place.peer,
            "root": place.root,
        }
        return (TOML + storage).format(**facts)

    return toml


def cannot_mount() -> str:
    """Why nothing can be mounted here; empty where it can."""
    if os.geteuid() != 0:
        return "only root mounts filesystems"
    return "" if shutil.which("losetup") and os.path.exists("/dev/loop-control") else "there are no loop devices"


def lacks(kind: str) -> str:
    """Why no filesystem of this kind can be had; empty where it can."""
    if reason := cannot_mount():
        return reason
    if not shutil.which(f"mkfs.{kind}"):
        return f"there is no mkfs.{kind}"
    if kind not in Path("/proc/filesystems").read_text().split() and shutil.which("modprobe"):
        subprocess.run(["modprobe", kind], check=False, capture_output=True)
    return "" if kind in Path("/proc/filesystems").read_text().split() else f"the kernel has no {kind}"


class Disk:
    """A filesystem in a file."""

    def __init__(self, image: Path, kind: str = "ext4", *, size_mib: int = 64) -> None:
        self.image = image
        self.kind = kind
        self.mounted: list[Path] = []
        least = {"xfs": 320, "btrfs": 128}.get(kind, 0)  # what mkfs takes
        with image.open("wb") as file:
            file.truncate(max(size_mib, least) * 1024 * 1024)
        quiet = {"ext4": ["-q", "-F", "-m", "0"], "xfs": ["-q", "-f"], "btrfs": ["-q", "-f"], "vfat": ["-F", "32"]}
        subprocess.run([f"mkfs.{kind}", *quiet.get(kind, []), str(image)], check=True, capture_output=True)

    def mount(self, place: Path, *options: str) -> None:
        place.mkdir(parents=True, exist_ok=True)
        wanted = ",".join(("loop", *options))
        subprocess.run(["mount", "-t", self.kind, "-o", wanted, str(self.image), str(place)], check=True)
        self.mounted.append(place)

    def unmount(self, place: Path) -> None:
        """As when it is pulled out: whoever has it open keeps what he has."""
        subprocess.run(["umount", "-l", str(place)], check=True)
        self.mounted.remove(place)

    def close(self) -> None:
        for place in reversed(self.mounted):
            subprocess.run(["umount", "-l", str(place)], check=False)
        self.mounted.clear()


class StoragePair(LocalPair):
    """Two nodes, each with a storage ``usb0``."""

    def __init__(
        self, directory: Path, *, kinds: tuple[str, str] = ("ext4", "ext4"), storage: str = STORAGE, size_mib: int = 64
    ) -> None:
        super().__init__(str(directory), toml_with(storage))
        self.disks = [
            Disk(directory / f"disk-{name}", kind, size_mib=size_mib) for name, kind in zip("ab", kinds, strict=True)
        ]
        for node in (self.a, self.b):
            Path(node.place.root, "files").mkdir()

    @property
    def places(self) -> tuple[Path, Path]:
        """Where the storages are mounted."""
        return Path(self.a.place.root, "usb0"), Path(self.b.place.root, "usb0")

    def mount(self) -> None:
        for disk, place in zip(self.disks, self.places, strict=True):
            disk.mount(place)

    def begin(self) -> None:
        self.pair_up()
        self.b.serve("standby", 1)

    def close(self) -> None:
        super().close()
        for disk in self.disks:
            disk.close()


def sync(node: LocalNode, *arguments: str, names: tuple[str, ...] = ("usb0",)) -> tuple[int, dict[str, object]]:
    """The exit code and what it came to."""
    done = node.command("storage", "sync", *names, *arguments, "--json", check=False, timeout_s=180)
    return done.returncode, json.loads(done.stdout)


def ended(node: LocalNode, *arguments: str) -> dict[str, object]:
    """One sync to its end, which must be good."""
    code, told = sync(node, "--wait", *arguments)
    assert code == 0, told
    (one,) = told["syncs"]  # type: ignore[misc]
    return one["progress"]  # type: ignore[no-any-return, index]


def tree_of(root: Path) -> dict[str, object]:
    """Every object that is not our own, as far as content and kind go."""
    found: dict[str, object] = {}
    for directory, names, files in os.walk(root):
        names[:] = [name for name in names if not name.startswith(".ha-") and name != "lost+found"]
        for name in (*names, *files):
            path = Path(directory, name)
            if name.startswith(".ha-"):
                continue
            key = str(path.relative_to(root))
            if path.is_symlink():
                found[key] = ("link", os.readlink(path))
            else:
                found[key] = path.read_bytes() if path.is_file() else "directory"
    return found


def until(condition: Callable[[], bool], what: str, *, timeout_s: float = 60.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, f"never came: {what}"
        time.sleep(0.05)
