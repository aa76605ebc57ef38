"""What `ha-sync doctor` looks at, each look apart: one that fails or hangs takes nothing from the others.

Nothing is changed and nothing of the PBX is opened but to read a database's first 100 bytes, which takes no lock. Of
keys, tokens and password files only names, sizes and modes are told. Every look is bounded in bytes; how long it may
take is the caller's matter.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import platform
import sqlite3
import stat
import struct
import subprocess
import tomllib
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Final

from ha_proto.agent.v1 import agent_pb2
from ha_proto.sync.v1 import control_pb2 as pb
from ha_sync.cli.client import LOOK_S, agent, control
from ha_sync.cli.output import message_to_dict
from ha_sync.cli.redaction import Redactor
from ha_sync.cli.version import versions
from ha_sync.config import DatasetSettings, NodeSettings, Settings, SqliteSettings, load, load_node
from ha_sync.errors import ConfigFault, HaSyncError
from ha_sync.files import mounts
from ha_sync.pairing.identity import identity_directory

ROWS_MAX: Final = 2000  # of each table of a log, the newest
BYTES_MAX: Final = 4 * 1024 * 1024  # of what one look says
NAMES_MAX: Final = 5000
COMMAND_S: Final = 10.0
SECRET_BYTES_MAX: Final = 64 * 1024
LOGS: Final = ("agent-logs.db", "events.db", "backup.db", "storage.db")
DAEMONS: Final = ("ha-agent", "ha-sync")
SECRET_KEYS: Final = ("password", "secret", "token", "key", "passphrase")
KERNEL: Final = (
    "/proc/version", "/proc/uptime", "/proc/loadavg", "/proc/meminfo", "/proc/pressure/io", "/proc/pressure/cpu",
    "/proc/pressure/memory", "/proc/sys/fs/file-nr", "/proc/sys/fs/inotify/max_user_watches",
    "/proc/sys/fs/inotify/max_user_instances", "/proc/sys/fs/inotify/max_queued_events",
    "/proc/sys/kernel/random/boot_id", "/etc/os-release",
)  # fmt: skip
COMMANDS: Final = {
    "network/addresses": ("ip", "-details", "address"),
    "network/links": ("ip", "-statistics", "link"),
    "network/routes": ("ip", "route", "show", "table", "all"),
    "network/neighbours": ("ip", "neighbour"),
    "network/sockets": ("ss", "-antu"),
    "system/time": ("timedatectl", "show"),
    "system/chrony": ("chronyc", "-n", "tracking"),
    "system/units": ("systemctl", "status", "--no-pager", "--lines=0", *DAEMONS),
    "system/journal": (
        "journalctl", "--no-pager", "--output=short-iso", "--lines=5000", "--unit=ha-agent", "--unit=ha-sync",
    ),
}  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Scene:
    """Where everything of this node is, as far as its settings can be read."""

    config: str
    agent_config: str
    values: Mapping[str, Any]  # of sync.toml, as TOML gives it
    agent_values: Mapping[str, Any]  # of ha.toml
    node: NodeSettings
    datasets: tuple[DatasetSettings, ...]
    state_dirs: tuple[str, ...]  # of the engine, of the agent; most often one
    engine_socket: str
    agent_socket: str
    troubles: tuple[str, ...] = field(default=())  # of the settings


Look = Callable[[], str]


def scene_of(config: str, agent_config: str, engine_socket: str | None, agent_socket: str | None) -> Scene:
    """Never fails: what cannot be read has its default."""
    troubles: list[str] = []
    values, agent_values = (_toml(path, troubles) for path in (config, agent_config))
    settings, node = _settings(config, troubles)
    own = agent_values.get("node")
    own = own if isinstance(own, dict) else {}
    state_dirs = (node.state_dir, str(own.get("state_dir") or node.state_dir))
    run_dir = str(own.get("run_dir") or node.run_dir)
    return Scene(
        config=config,
        agent_config=agent_config,
        values=values,
        agent_values=agent_values,
        node=node,
        datasets=settings.datasets if settings else (),
        state_dirs=tuple(dict.fromkeys(state_dirs)),
        engine_socket=engine_socket or node.socket_path,
        agent_socket=agent_socket or os.path.join(run_dir, "agent.sock"),
        troubles=tuple(troubles),
    )


def secrets_of(scene: Scene) -> Iterator[bytes]:
    """What must not be told, in whatever form: keys of the pair, content of password files, passwords in settings."""
    for state_dir in scene.state_dirs:
        directory = identity_directory(state_dir)
        for name in ("heartbeat.key", "ca.key", "node.key"):
            yield from _secret_file(os.path.join(directory, name))
    for values in (scene.values, scene.agent_values):
        for key, value in _entries(values):
            if not isinstance(value, str) or not any(word in key for word in SECRET_KEYS):
                continue
            if value.startswith("/"):
                yield from _secret_file(value)
            elif not key.endswith("_file"):
                yield value.encode()


def looks(scene: Scene, redactor: Redactor) -> dict[str, Look]:
    """Each by the name of its file. ``redactor`` takes out what only the form of the settings tells to be secret."""
    found: dict[str, Look] = {
        "versions.json": lambda: _json(versions() | {"platform": platform.platform(), "packages": _packages()}),
        "settings/sync.toml.json": lambda: _json(redactor.value(scene.values)),
        "settings/ha.toml.json": lambda: _json(redactor.value(scene.agent_values)),
        "settings/faults.txt": lambda: "\n".join(scene.troubles) or "none",
        "status/engine.json": lambda: _engine(scene.engine_socket),
        "status/agent.json": lambda: _agent(scene.agent_socket),
        "status/alarms.json": lambda: _alarms(scene.agent_socket),
        "system/kernel.txt": _kernel,
        "system/mounts.txt": lambda: _head(mounts.TABLE),
        "system/processes.json": lambda: _json(redactor.value(_processes())),
        "data/space.json": lambda: _json([_space(path) for path in _places(scene)]),
        "data/datasets.json": lambda: _json([_dataset(one) for one in scene.datasets]),
        "data/open_files.json": lambda: _json(_open_files([one.path for one in scene.datasets])),
        "data/state.json": lambda: _json([entry for path in scene.state_dirs for entry in _listing(path)]),
    }
    for state_dir in scene.state_dirs:
        for name in LOGS:
            path = os.path.join(state_dir, "logs", name)
            if os.path.exists(path):
                found[f"logs/{name.removesuffix('.db')}.jsonl"] = lambda path=path: _log(path)  # type: ignore[misc]
    for name, command in COMMANDS.items():
        found[f"{name}.txt"] = lambda command=command: _said(command)  # type: ignore[misc]
    return found


# ---- settings


def _toml(path: str, troubles: list[str]) -> dict[str, Any]:
    try:
        with open(path, "rb") as file:
            return tomllib.loads(file.read(BYTES_MAX).decode())
    except (OSError, ValueError, RecursionError) as wrong:
        # Not what is wrong in the text: the message may quote it.
        troubles.append(f"{path}: {wrong.strerror if isinstance(wrong, OSError) else 'is not TOML'}")
        return {}


def _settings(config: str, troubles: list[str]) -> tuple[Settings | None, NodeSettings]:
    try:
        settings = load(config)
    except ConfigFault as faulty:
        troubles += faulty.faults
    else:
        return settings, settings.node
    try:
        return None, load_node(config)
    except ConfigFault:
        return None, NodeSettings()


def _entries(value: object, key: str = "") -> Iterator[tuple[str, object]]:
    if isinstance(value, Mapping):
        for name, item in value.items():
            yield from _entries(item, str(name))
    elif isinstance(value, list):
        for item in value:
            yield from _entries(item, key)
    else:
        yield key, value


def _secret_file(path: str) -> Iterator[bytes]:
    with contextlib.suppress(OSError), open(path, "rb") as file:
        if stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            content = file.read(SECRET_BYTES_MAX)
            yield content.rstrip(b"\r\n")
            yield from (line for line in content.splitlines() if b"-----" not in line)


# ---- the daemons


def _engine(path: str) -> str:
    with control(path) as engine:
        return _json(message_to_dict(engine.GetStatus(pb.GetStatusRequest(), timeout=LOOK_S)))


def _agent(path: str) -> str:
    with agent(path) as node:
        return _json(message_to_dict(node.GetStatus(agent_pb2.GetStatusRequest(), timeout=LOOK_S)))


def _alarms(path: str) -> str:
    with agent(path) as node:
        return _json(message_to_dict(node.ListAlarms(agent_pb2.ListAlarmsRequest(), timeout=LOOK_S)))


def _log(path: str) -> str:
    """The newest rows of each table, oldest first, a line each. The files are ours: reading disturbs nobody."""
    lines: list[str] = []
    with contextlib.closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True, timeout=LOOK_S)) as database:
        tables = database.execute("SELECT name FROM sqlite_schema WHERE type = 'table' AND name NOT LIKE 'sqlite_%'")
        for (table,) in tables.fetchall():
            rows = database.execute(f'SELECT * FROM "{table}" ORDER BY rowid DESC LIMIT ?', [ROWS_MAX])
            names = [column[0] for column in rows.description]
            found = [{"table": table, **dict(zip(names, row, strict=True))} for row in rows]
            lines += [json.dumps(row, default=_shown, ensure_ascii=False) for row in reversed(found)]
    return "\n".join(lines)


# ---- the machine


def _kernel() -> str:
    return "\n".join(f"{path}:\n{_head(path)}" for path in KERNEL)


def _head(path: str) -> str:
    try:
        with open(path, encoding="utf-8", errors="backslashreplace") as file:
            return file.read(BYTES_MAX)
    except OSError as failed:
        return f"cannot be read: {failed.strerror}"


def _said(command: tuple[str, ...]) -> str:
    try:
        done = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            timeout=COMMAND_S,
            check=False,
            env={**os.environ, "LC_ALL": "C"},
        )
    except FileNotFoundError:
        return f"{command[0]} is not installed"
    return f"$ {' '.join(command)}\n{done.stdout.decode(errors='backslashreplace')}\nends with {done.returncode}"


def _packages() -> dict[str, str]:
    from importlib import metadata

    return {one.metadata["Name"]: one.version for one in metadata.distributions() if one.metadata["Name"]}


def _pids() -> Iterator[int]:
    yield from sorted(int(name) for name in os.listdir("/proc") if name.isdigit())


def _processes() -> list[dict[str, object]]:
    """Of our own daemons only: what others were started with is not ours to tell."""
    found: list[dict[str, object]] = []
    for pid in _pids():
        with contextlib.suppress(OSError):
            words = _head(f"/proc/{pid}/cmdline").split("\0")
            if any(os.path.basename(word) in DAEMONS or word in {"ha_agent.cli", "ha_sync.cli"} for word in words[:3]):
                kept = ("status", "limits", "stat", "cgroup")
                facts: dict[str, object] = {name: _head(f"/proc/{pid}/{name}") for name in kept}
                files = len(os.listdir(f"/proc/{pid}/fd"))
                found.append({"pid": pid, "command": [word for word in words if word], "open_files": files, **facts})
    return found


def _open_files(paths: list[str]) -> list[dict[str, object]]:
    """Which process has what of the datasets open: its name, not its arguments."""
    roots = [os.path.realpath(path) for path in paths]
    found: list[dict[str, object]] = []
    for pid in _pids():
        with contextlib.suppress(OSError):
            for number in os.listdir(f"/proc/{pid}/fd"):
                with contextlib.suppress(OSError):
                    target = os.readlink(f"/proc/{pid}/fd/{number}")
                    if any(target == root or target.startswith((f"{root}/", f"{root}-")) for root in roots):
                        name = _head(f"/proc/{pid}/comm").strip()
                        found.append({"pid": pid, "name": name, "path": target})
        if len(found) >= NAMES_MAX:
            break
    return found


# ---- the data


def _places(scene: Scene) -> list[str]:
    return list(dict.fromkeys((*scene.state_dirs, scene.node.run_dir, *(one.path for one in scene.datasets))))


def _space(path: str) -> dict[str, object]:
    try:
        seen = os.statvfs(path)
    except OSError as failed:
        return {"path": path, "error": failed.strerror}
    return {
        "path": path,
        "bytes": seen.f_blocks * seen.f_frsize,
        "bytes_free": seen.f_bavail * seen.f_frsize,
        "files": seen.f_files,
        "files_free": seen.f_favail,
        "read_only": bool(seen.f_flag & os.ST_RDONLY),
    }


def _dataset(settings: DatasetSettings) -> dict[str, object]:
    path = settings.path
    facts: dict[str, object] = {"name": settings.name, "kind": settings.kind.value, **_facts(path)}
    if isinstance(settings, SqliteSettings):
        facts["header"] = _header(path)
        facts["beside"] = [
            _facts(path + suffix) for suffix in ("-journal", "-wal", "-shm") if os.path.lexists(path + suffix)
        ]
    return facts


def _header(path: str) -> dict[str, object]:
    """The first 100 bytes of a database, by sqlite.org/fileformat2.html."""
    try:
        with open(path, "rb") as file:
            header = file.read(100)
    except OSError as failed:
        return {"error": failed.strerror}
    if len(header) < 100 or not header.startswith(b"SQLite format 3\0"):
        return {"error": "no database"}
    page_size, write, read = struct.unpack_from(">HBB", header, 16)
    (changes, pages) = struct.unpack_from(">II", header, 24)
    return {
        "page_size": 65536 if page_size == 1 else page_size,
        "journal_mode": {1: "rollback", 2: "wal"}.get(write, f"unknown ({write}, {read})"),
        "change_counter": changes,
        "pages": pages,
        "schema_cookie": struct.unpack_from(">I", header, 40)[0],
        "user_version": struct.unpack_from(">i", header, 60)[0],
        "sqlite": struct.unpack_from(">I", header, 96)[0],
    }


def _facts(path: str) -> dict[str, object]:
    try:
        seen = os.stat(path, follow_symlinks=False)
    except OSError as failed:
        return {"path": path, "error": errno.errorcode.get(failed.errno or 0, "")}
    modified = datetime.fromtimestamp(seen.st_mtime, tz=UTC).isoformat(timespec="milliseconds")
    return {
        "path": path,
        "mode": stat.filemode(seen.st_mode),
        "owner": f"{seen.st_uid}:{seen.st_gid}",
        "bytes": seen.st_size,
        "modified": modified,
        "device": f"{os.major(seen.st_dev)}:{os.minor(seen.st_dev)}",
    }


def _listing(path: str) -> Iterator[dict[str, object]]:
    """Names, sizes and modes below a state directory; no content."""
    left = NAMES_MAX
    yield _facts(path)
    for folder, folders, files in os.walk(path):
        folders.sort()
        for name in sorted((*folders, *files)):
            left -= 1
            if left < 0:
                yield {"path": folder, "error": "there is more"}
                return
            yield _facts(os.path.join(folder, name))


# ---- forms


def _json(value: object) -> str:
    return json.dumps(value, indent=1, default=_shown, ensure_ascii=False)


def _shown(value: object) -> str:
    return value.hex() if isinstance(value, bytes) else str(value)


def reason_of(failed: BaseException) -> str:
    """Why a look gave nothing."""
    return failed.sentence() if isinstance(failed, HaSyncError) else f"{type(failed).__name__}: {failed}"


def bounded(lines: Iterable[str]) -> str:
    """The newest of what there is, where it is too much."""
    text = "\n".join(lines)
    cut = text[-BYTES_MAX:]
    return text if len(cut) == len(text) else f"(the first {len(text) - len(cut)} characters are left out)\n{cut}"
