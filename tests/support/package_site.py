"""A node's data without a node: two trees and two databases, to be packed, changed and restored below the command."""

from __future__ import annotations

import os
import random
import sqlite3
import stat
from dataclasses import dataclass, replace
from pathlib import Path

from ha_sync.backup.package.exporting import Exporter, Packed
from ha_sync.backup.package.format import Head
from ha_sync.backup.package.plan import DatasetPlan
from ha_sync.backup.package.reader import Package, Verified
from ha_sync.backup.package.staging import Staged, Stager, require_room
from ha_sync.backup.package.swap import Swap, sweep

T0 = 1_700_000_000_000_000_000
NAMES = ("a", "b", "a.b", "über", "x y", "new\nline", "-", "deep", "\udcff")
OWN = "own-*"
HEAD = Head(
    made_by="1", cluster_id="c1", node_id="n1", node="a", role="active", epoch=4, model="m", firmware="f1",
    created="2026-01-01T00:00:00Z", datasets=(),
)  # fmt: skip

Looks = dict[str, tuple[object, ...]]


def nothing(_count: int) -> None:
    """Progress that nobody watches."""


@dataclass
class Site:
    """Below ``base``."""

    base: str

    def __post_init__(self) -> None:
        os.makedirs(self.path("state"), exist_ok=True)

    def path(self, name: str) -> str:
        return os.path.join(self.base, name)

    @property
    def plans(self) -> tuple[DatasetPlan, ...]:
        return (
            DatasetPlan(
                name="config", kind="sqlite", path=self.path("config.db"), local_tables=("network",),
                local_rows=(("settings", "name = 'externhost'"),),
            ),
            DatasetPlan(name="astdb", kind="sqlite", path=self.path("astdb.sqlite3")),
            DatasetPlan(name="files", kind="tree", path=self.path("files"), left_out=(OWN, f"*/{OWN}")),
            DatasetPlan(name="recordings", kind="tree", path=self.path("recordings")),
        )  # fmt: skip

    @property
    def state(self) -> str:
        return self.path("state")

    @property
    def package(self) -> str:
        return self.path("package")

    # ---- what a program does

    def furnish(self, seed: int) -> None:
        rng = random.Random(seed)
        for name in ("files", "recordings"):
            os.makedirs(self.path(name), exist_ok=True)
            grow(rng, self.path(name), rng.randrange(12))
        database(self.path("config.db"), rng, wal=rng.random() < 0.5)
        database(self.path("astdb.sqlite3"), rng, wal=False)

    def change(self, seed: int) -> None:
        """Everything that is not the node's own may change."""
        rng = random.Random(seed)
        for name in ("files", "recordings"):
            shake(rng, self.path(name))
            grow(rng, self.path(name), rng.randrange(8))
        for name in ("config.db", "astdb.sqlite3"):
            if rng.random() < 0.8:
                database(self.path(name), rng, wal=name == "config.db" and rng.random() < 0.5)

    # ---- packages

    def export(self, out: str = "", plans: tuple[DatasetPlan, ...] = ()) -> Packed:
        with open(out or self.package, "wb") as file:
            return Exporter(plans or self.plans, HEAD, spool_dir=self.state, spend=nothing).pack(file)

    def verify(self, path: str = "") -> Verified:
        with Package(path or self.package) as package:
            return package.verify(nothing)

    def stage(self, path: str = "", plans: tuple[DatasetPlan, ...] = ()) -> tuple[Swap, Staged]:
        swap = Swap(self.state, plans or self.plans)
        swap.begin()
        chosen = {plan.name: plan for plan in plans or self.plans}
        with Package(path or self.package) as package:
            package.verify(nothing)
            require_room(package, chosen)
            return swap, Stager(chosen, spend=nothing).stage(package)

    def restore(self, path: str = "") -> Staged:
        swap, staged = self.stage(path)
        swap.exchange(forget=())
        swap.commit()
        swap.forget()
        sweep(self.state)
        return staged

    # ---- looking

    def looks(self, *, own: bool = True) -> Looks:
        """Everything that a program could notice, by dataset and path. ``own``: also what is the node's own."""
        found: Looks = {}
        for name in ("files", "recordings"):
            found |= {f"{name}/{path}": facts for path, facts in tree_looks(self.path(name), own=own).items()}
        for name in ("config.db", "astdb.sqlite3"):
            found |= {f"{name}/{table}": rows for table, rows in database_looks(self.path(name), own=own).items()}
        return found

    def looks_of_files(self) -> dict[str, bytes]:
        """The bytes of the databases, where they cannot be read."""
        return {name: Path(self.path(name)).read_bytes() for name in ("config.db", "astdb.sqlite3")}

    def leftovers(self) -> list[str]:
        """Hidden names of ours that should be gone."""
        found = [
            os.path.join(folder, name)
            for folder, folders, files in os.walk(self.base)
            for name in (*folders, *files)
            if name.startswith((".ha-", "package-", "restore"))
        ]
        return [path for path in found if path != self.package]


def grow(rng: random.Random, root: str, count: int) -> None:
    """New objects at random places; times and modes that nothing would make by itself."""
    for _ in range(count):
        folders = [folder for folder, _, _ in os.walk(root) if "/.ha-" not in folder and "own-" not in folder]
        path = os.path.join(rng.choice(folders), rng.choice(NAMES))
        if os.path.lexists(path):
            continue
        kind = rng.random()
        if kind < 0.3:
            os.mkdir(path)
        elif kind < 0.4:
            os.symlink(rng.choice(["/etc/passwd", "a", "../../nowhere"]), path)
        else:
            size = rng.choice([0, 1, 511, 512, 513, 4096, rng.randrange(200_000)])
            Path(path).write_bytes(rng.randbytes(size) if rng.random() < 0.5 else bytes(size))
            os.chmod(path, rng.choice([0o644, 0o600, 0o640, 0o755]))
    for folder, folders, files in os.walk(root, topdown=False):
        for name in files + folders:
            os.utime(os.path.join(folder, name), ns=(T0, T0 + rng.randrange(10**12)), follow_symlinks=False)
    os.utime(root, ns=(T0, T0 + rng.randrange(10**12)))


def shake(rng: random.Random, root: str) -> None:
    """Removes, changes and puts other kinds of objects in the place of what is there."""
    for folder, folders, files in os.walk(root, topdown=False):
        for name in sorted(files + folders):
            path = os.path.join(folder, name)
            if "own-" in path or "/.ha-" in path or rng.random() < 0.5:
                continue
            if os.path.isdir(path) and not os.path.islink(path):
                if not os.listdir(path):
                    os.rmdir(path)
                    if rng.random() < 0.3:
                        os.symlink("/etc", path)
            elif rng.random() < 0.5:
                os.unlink(path)
            elif not os.path.islink(path):
                Path(path).write_bytes(rng.randbytes(100))


def database(path: str, rng: random.Random, *, wal: bool) -> None:
    """A new database with rows of all types; the node's own rows of an old one are kept, as a program would."""
    own = own_rows(path)
    for end in ("", "-wal", "-shm"):
        if os.path.exists(path + end):
            os.unlink(path + end)
    connection = sqlite3.connect(path)
    connection.execute(f"PRAGMA journal_mode={'WAL' if wal else 'DELETE'}")
    connection.execute(f"PRAGMA user_version={rng.randrange(5)}")
    connection.execute("CREATE TABLE settings (name TEXT PRIMARY KEY, value)")
    connection.execute("CREATE TABLE network (device TEXT, address)")
    connection.execute("CREATE TABLE rows (id INTEGER PRIMARY KEY AUTOINCREMENT, value, other UNIQUE)")
    connection.execute("CREATE TABLE plain (value)")
    values = [None, 1, -(2**63), 1.5, float("inf"), "text", "", b"\x00\xff", "ünï"]
    for number in range(rng.randrange(40)):
        connection.execute("INSERT INTO rows(value, other) VALUES (?, ?)", (rng.choice(values), number))
        connection.execute("INSERT INTO plain VALUES (?)", (rng.choice(values),))
        if rng.random() < 0.3:
            connection.execute("DELETE FROM rows WHERE id = ?", (rng.randrange(number + 1),))
    connection.execute("INSERT INTO settings VALUES ('name', ?)", (rng.random(),))
    settings, network = own if own is not None else ([("externhost", f"secret-{rng.random()}")], [("eth0", "::1")])
    connection.executemany("INSERT INTO settings VALUES (?, ?)", settings)
    connection.executemany("INSERT INTO network VALUES (?, ?)", network)
    connection.commit()
    connection.close()


def own_rows(path: str) -> tuple[list[tuple[object, ...]], list[tuple[object, ...]]] | None:
    if not os.path.exists(path):
        return None
    connection = sqlite3.connect(path)
    settings = connection.execute("SELECT * FROM settings WHERE name = 'externhost'").fetchall()
    network = connection.execute("SELECT * FROM network").fetchall()
    connection.close()
    return settings, network


def database_looks(path: str, *, own: bool) -> Looks:
    if not os.path.exists(path):
        return {}
    connection = sqlite3.connect(path)
    try:
        schema = connection.execute("SELECT type, name, sql FROM sqlite_schema ORDER BY rowid").fetchall()
        version = connection.execute("PRAGMA user_version").fetchone()
        found: Looks = {"": (schema, version, stat.S_IMODE(os.stat(path).st_mode))}
        for kind, name, _ in schema:
            everything = own or not path.endswith("config.db")
            if kind == "table" and not name.startswith("_ha_") and (everything or name != "network"):
                where = "" if everything or name != "settings" else " WHERE name <> 'externhost'"
                found[name] = tuple(connection.execute(f"SELECT rowid, * FROM {name}{where} ORDER BY rowid").fetchall())
        return found
    finally:
        connection.close()


def tree_looks(root: str, *, own: bool) -> Looks:
    found: Looks = {}
    for folder, folders, files in os.walk(root):
        folders[:] = [name for name in folders if not name.startswith(".ha-")]
        for full in (folder, *(os.path.join(folder, name) for name in (*folders, *files))):
            path = os.path.relpath(full, root)
            if path.startswith(".ha-") or (not own and "own-" in path):
                continue
            status = os.lstat(full)
            content: object = None
            if stat.S_ISLNK(status.st_mode):
                content = os.readlink(full)
            elif stat.S_ISREG(status.st_mode):
                content = Path(full).read_bytes()
            xattrs = {name: os.getxattr(full, name, follow_symlinks=False) for name in _xattrs(full)}
            facts = (status.st_mode, status.st_uid, status.st_gid, status.st_mtime_ns, content, tuple(xattrs.items()))
            found[path] = facts
    return found


def _xattrs(path: str) -> list[str]:
    try:
        return [name for name in os.listxattr(path, follow_symlinks=False) if name.startswith("user.")]
    except OSError:
        return []


def moved(site: Site, **changes: object) -> tuple[DatasetPlan, ...]:
    """The same plans with other settings."""
    return tuple(replace(plan, **changes) for plan in site.plans)  # type: ignore[arg-type]
