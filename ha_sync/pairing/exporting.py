"""What a joiner would lose, and its copy: ``<state_dir>/before-join-<UTC>.tar.zst``.

Every dataset is a folder of the archive. A database must not be open in any program, whose pid is named otherwise; it
is copied with its journals, and SQLite takes those into the copy, so that nothing here changes the original. A file
that calls itself a database and is none goes in as it is, with its journals. The archive is read back and compared by
hash, member by member, before it gets its name. Blocking.
"""

from __future__ import annotations

import contextlib
import datetime as dt
import hashlib
import os
import shutil
import stat
import tarfile
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import IO, cast
from urllib.parse import quote

import apsw
import zstandard

from ha_sync.config import DatasetSettings, SqliteSettings, TreeSettings
from ha_sync.errors import OperatorNeeded, Refused, Retryable
from ha_sync.pairing import durable
from ha_sync.pairing.clock import read_clock

PIECE_BYTES = 1 << 20
JOURNALS = ("-wal", "-journal")
COMPANIONS = (*JOURNALS, "-shm")
OWN_PREFIX = ".ha-sync"  # markers and temporary names of this program are no business data


def holding(datasets: tuple[DatasetSettings, ...]) -> tuple[str, ...]:
    """The names of the datasets that hold something on this node."""
    return tuple(str(dataset.name) for dataset in datasets if _holds(dataset))


def export(datasets: tuple[DatasetSettings, ...], state_dir: str, *, stamp: str = "") -> str:
    """Writes the archive and returns its path.

    Raises ``Refused`` (a program has a database open), ``Retryable`` (a file changed meanwhile), ``OperatorNeeded``
    (no room, no permission); nothing is left behind then.
    """
    for dataset in datasets:
        if isinstance(dataset, SqliteSettings):
            refuse_open(dataset.path)
    durable.make_private_directory(os.path.abspath(state_dir))
    path = _free_path(state_dir, stamp or _stamp())
    unfinished = path + ".part"
    try:
        _write_checked(datasets, unfinished)
        os.rename(unfinished, path)
        durable.sync_directory(os.path.dirname(path))
    except OSError as failed:
        hint = "make room or give permission, then join again"
        raise OperatorNeeded("cannot export to", subject=path, reason=str(failed), hint=hint) from failed
    finally:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(unfinished)
    return path


def refuse_open(path: str) -> None:
    """Raises ``Refused`` when a process has the database or one of its companions open."""
    for pid in _processes_with(path):
        raise Refused(
            "cannot export",
            subject=path,
            reason=f"process {pid} ({_name_of(pid)}) has it open",
            hint="stop that program first: on a Standby it does not run anyway",
        )


def _holds(dataset: DatasetSettings) -> bool:
    if isinstance(dataset, TreeSettings):
        return next(_tree_files(dataset.path), None) is not None
    try:
        if os.path.getsize(dataset.path) == 0:
            return False
    except FileNotFoundError:
        return False
    except OSError:
        return True  # what cannot be looked at counts as data
    return _has_rows(dataset.path)


def _has_rows(path: str) -> bool:
    if any(_size(path + companion) for companion in JOURNALS):
        return True  # what stands in a journal is not looked for: something does
    uri = f"file:{quote(os.path.abspath(path))}?immutable=1"  # takes no lock, rolls nothing back, writes nothing
    try:
        with contextlib.closing(
            apsw.Connection(uri, flags=apsw.SQLITE_OPEN_READONLY | apsw.SQLITE_OPEN_URI)
        ) as connection:
            names = connection.execute(
                "SELECT name FROM sqlite_schema WHERE type = 'table' AND name NOT LIKE 'sqlite\\_%' ESCAPE '\\' "
                "AND name NOT LIKE '\\_ha\\_%' ESCAPE '\\'"
            ).fetchall()
            return any(
                connection.execute(f"SELECT 1 FROM {_quoted(str(name))} LIMIT 1").fetchall() for (name,) in names
            )
    except apsw.Error:
        return True  # encrypted, damaged, of a virtual table that is not known here: data, as far as we can tell


def _size(path: str) -> int:
    try:
        return os.path.getsize(path)
    except FileNotFoundError:
        return 0


@dataclass(slots=True, kw_only=True)
class _Archive:
    """The tar being written, and what must be found in it again."""

    tar: tarfile.TarFile
    hashes: list[tuple[str, bytes]] = field(default_factory=list)  # member and SHA-256 of its content

    def add(self, path: str, name: str) -> None:
        """One object below a dataset; sockets and devices are left out."""
        info = self.tar.gettarinfo(path, arcname=name)
        if info is None or not (info.isreg() or info.isdir() or info.issym() or info.islnk()):
            return
        if info.islnk():  # a copy instead: each member then stands for itself
            info.type, info.size = tarfile.REGTYPE, os.lstat(path).st_size
        if not info.isreg():
            self.tar.addfile(info)
            self.hashes.append((info.name, b""))
            return
        with open(path, "rb") as file:
            hashing = _HashingReader(file)
            try:
                self.tar.addfile(info, cast("IO[bytes]", hashing))
            except OSError as failed:
                if failed.errno is None:  # tarfile's own: the file got shorter
                    raise Retryable("cannot export", subject=path, reason="it changed meanwhile") from failed
                raise
        self.hashes.append((info.name, hashing.digest()))


class _HashingReader:
    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self._hash = hashlib.sha256()

    def read(self, size: int = -1) -> bytes:
        piece = self._file.read(size)
        self._hash.update(piece)
        return piece

    def digest(self) -> bytes:
        return self._hash.digest()


def _write_checked(datasets: tuple[DatasetSettings, ...], path: str) -> None:
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, durable.PRIVATE_FILE)
    with os.fdopen(descriptor, "r+b") as file:
        written = _write(datasets, file, os.path.dirname(path))
        file.flush()
        os.fsync(file.fileno())
        file.seek(0)
        if list(_read_back(file)) != written:
            raise OperatorNeeded(
                "cannot trust the export", subject=path, reason="read back, it is not what was written"
            )


def _write(datasets: tuple[DatasetSettings, ...], file: IO[bytes], scratch: str) -> list[tuple[str, bytes]]:
    with (
        zstandard.ZstdCompressor(level=3).stream_writer(file, closefd=False) as packed,
        tarfile.open(
            fileobj=cast("IO[bytes]", packed),
            mode="w|",
            format=tarfile.PAX_FORMAT,
            encoding="utf-8",
            errors="surrogateescape",
        ) as tar,
    ):
        archive = _Archive(tar=tar)
        for dataset in datasets:
            if isinstance(dataset, TreeSettings):
                _add_tree(archive, dataset)
            elif os.path.lexists(dataset.path):
                _add_database(archive, dataset, scratch)
    return archive.hashes


def _read_back(file: IO[bytes]) -> Iterator[tuple[str, bytes]]:
    with (
        zstandard.ZstdDecompressor().stream_reader(file, closefd=False) as packed,
        tarfile.open(fileobj=cast("IO[bytes]", packed), mode="r|", encoding="utf-8", errors="surrogateescape") as tar,
    ):
        for info in tar:
            yield info.name, _digest(tar.extractfile(info)) if info.isreg() else b""


def _digest(content: IO[bytes] | None) -> bytes:
    assert content is not None, "a regular member has content"
    found = hashlib.sha256()
    while piece := content.read(PIECE_BYTES):
        found.update(piece)
    return found.digest()


def _add_tree(archive: _Archive, dataset: TreeSettings) -> None:
    for path in _tree_objects(dataset.path):
        archive.add(path, os.path.join(dataset.name, os.path.relpath(path, dataset.path)))


def _add_database(archive: _Archive, dataset: SqliteSettings, scratch: str) -> None:
    base = os.path.basename(dataset.path)
    with tempfile.TemporaryDirectory(dir=scratch, prefix=".exporting-") as room:
        copy = os.path.join(room, base)
        shutil.copy2(dataset.path, copy)
        for journal in JOURNALS:
            with contextlib.suppress(FileNotFoundError):
                shutil.copy2(dataset.path + journal, copy + journal)
        source = copy if _recovered(copy) else dataset.path
        for ending in ("", *JOURNALS):
            if os.path.lexists(source + ending):
                archive.add(source + ending, os.path.join(dataset.name, base) + ending)


def _recovered(copy: str) -> bool:
    """Lets SQLite take the journals of a copy into the file. False: it is no database that SQLite can read."""
    try:
        with contextlib.closing(apsw.Connection(copy, flags=apsw.SQLITE_OPEN_READWRITE)) as connection:
            connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
            connection.execute("SELECT count(*) FROM sqlite_schema").fetchall()
    except apsw.Error:
        return False
    return True


def _tree_objects(root: str) -> Iterator[str]:
    """Everything below ``root`` in a fixed order; links are not followed."""

    def refuse(failed: OSError) -> None:
        raise failed  # a folder that cannot be read would be missing in the archive without a word

    for directory, directories, files in os.walk(root, onerror=None if not os.path.isdir(root) else refuse):
        directories.sort()
        for name in sorted([*directories, *files]):
            if not name.startswith(OWN_PREFIX):
                yield os.path.join(directory, name)
        directories[:] = [name for name in directories if not name.startswith(OWN_PREFIX)]


def _tree_files(root: str) -> Iterator[str]:
    try:
        for path in _tree_objects(root):
            if not stat.S_ISDIR(os.lstat(path).st_mode):
                yield path
    except OSError:
        yield root  # what cannot be looked at counts as data


def _processes_with(path: str) -> Iterator[int]:
    """Pids of other processes that have the database or a companion open. As root: of all."""
    wanted = {identity for identity in map(_file_identity, _names(path)) if identity}
    if not wanted:
        return
    for entry in os.listdir("/proc"):
        if entry.isdigit() and int(entry) != os.getpid() and _has_open(entry, wanted):
            yield int(entry)


def _names(path: str) -> tuple[str, ...]:
    return (path, *(path + companion for companion in COMPANIONS))


def _file_identity(path: str) -> tuple[int, int] | None:
    try:
        found = os.stat(path)
    except OSError:
        return None
    return found.st_dev, found.st_ino


def _has_open(pid: str, wanted: set[tuple[int, int]]) -> bool:
    try:
        descriptors = os.listdir(f"/proc/{pid}/fd")
    except OSError:
        return False  # gone, or another user's
    return any(_file_identity(f"/proc/{pid}/fd/{number}") in wanted for number in descriptors)


def _name_of(pid: int) -> str:
    try:
        with open(f"/proc/{pid}/comm", encoding="utf-8", errors="replace") as file:
            return file.read().strip()
    except OSError:
        return "gone meanwhile"


def _free_path(state_dir: str, stamp: str) -> str:
    base = os.path.join(os.path.abspath(state_dir), f"before-join-{stamp}")
    number = 1
    path = base + ".tar.zst"
    while os.path.lexists(path):
        number += 1
        path = f"{base}-{number}.tar.zst"
    return path


def _stamp() -> str:
    return dt.datetime.fromtimestamp(read_clock().unix_s, dt.UTC).strftime("%Y%m%dT%H%M%SZ")


def _quoted(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'
