"""Copies a SQLite database that another program writes, without taking any lock on it.

An attempt reads the file and is *accepted* only if what was read is one committed state. Before and after the read:

- nobody may hold SQLite's PENDING byte or a write lock on its SHARED range: asked with F_OFD_GETLK, which is a
  question and takes nothing. A program writes to the file only under EXCLUSIVE, which holds one of these from before
  its first write until after its last, also when it spilled its cache and whatever its journal mode. RESERVED alone
  means a program that has an open transaction and has not touched the file: a patient caller still waits for it, since
  it will soon, but a program that keeps a transaction open most of the time (astdb) must not shut us out;
- the ``-journal`` must be absent, empty or without its magic: else a dead program left a half-written file. Then file
  and journal are copied together, under the same rule, and rolled back in our own place;
- size, inode, mtime and the change counter must be the same, and nobody may have written meanwhile: heard from the
  kernel, event by event, by a ``WriteWitness``. Without one (no inotify left) the mtime must have been seen unchanged
  for MTIME_GRAIN_S before the read began, since two writes within one tick of the kernel's clock bear the same mtime.

A write-ahead log that a program has open is read beside it, by its index (live_log.py); when no program has it open,
the file and its log are copied together and joined in our own place, because the first connection to a log recovers it
under a lock.

Danger: closing any descriptor of a file drops every POSIX lock that this process holds on it. A process that reads a
database here must have no SQLite connection to it at that time. Sizes in bytes, times monotonic seconds. Blocking and
not thread-safe: one reader, one thread.
"""

from __future__ import annotations

import enum
import errno
import fcntl
import os
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field

import apsw
import xxhash

from ha_sync.database.header import HEADER_BYTES, Header, block_size_fits, database_block_size, parse_header
from ha_sync.database.live_log import LiveLog, LogBusy, LogIndex, LogMoved, log_is_in_use
from ha_sync.database.locks import PENDING, RESERVED, SHARED_BYTES, SHARED_FIRST, lock_in_the_way
from ha_sync.database.notice import WriteWitness

HASH_BYTES = 16
MTIME_GRAIN_S = 0.02
READ_BYTES = 4 * 1024 * 1024
"""At once: long enough that the interpreter's lock is seldom taken in a gap of the writer, short enough that a
filesystem that shuts writers out while it reads (XFS) does so for a millisecond only."""

_JOURNAL_MAGIC_BYTES = 8
_FICLONE = 0x40049409


class Refusal(enum.Enum):
    """Why there is no copy."""

    MISSING = "there is no such file"
    UNREADABLE = "the file cannot be read"
    EMPTY = "the file is empty"
    NOT_A_DATABASE = "not a SQLite database, or an encrypted one"
    TOO_LARGE = "the file is larger than pages_max_mib"
    WRITING = "a program is writing"
    TRANSACTION = "a program has a transaction open"
    UNSETTLED = "the last write is too recent"
    CHANGED = "the file changed while it was read"
    LOG_BUSY = "the write-ahead log cannot be read now"


@dataclass(frozen=True, slots=True, kw_only=True)
class Rejected:
    """No copy this time."""

    why: Refusal
    detail: str = ""
    read_in_vain: bool = False  # content was read and thrown away
    seconds: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Unchanged:
    """Nobody wrote since the last accepted copy; nothing was read."""

    look_again: bool = False  # as in Copy


@dataclass(frozen=True, slots=True, kw_only=True)
class Copy:
    """An accepted copy: one committed state."""

    size: int
    block_size: int
    hashes: bytes  # 16 bytes a block
    changed: dict[int, bytes]  # blocks whose hash differs from the given ones
    image: memoryview | None  # the whole, where asked for; until the next attempt
    mode: int
    uid: int
    gid: int
    mtime_ns: int
    header: Header
    seconds: float  # what the attempt took
    look_again: bool = False  # a program writes to the log: its commit will be seen by a look, but not heard


@dataclass(frozen=True, slots=True)
class _Signature:
    device: int
    inode: int
    size: int
    mtime_ns: int
    counter: bytes
    mode: int
    uid: int
    gid: int


class _Refused(Exception):
    def __init__(self, why: Refusal, detail: str = "", *, read: bool = False) -> None:
        super().__init__(why.value)
        self.why = why
        self.detail = detail
        self.read = read

    def rejected(self, seconds: float) -> Rejected:
        return Rejected(why=self.why, detail=self.detail, read_in_vain=self.read, seconds=seconds)


@dataclass(slots=True)
class _Wanted:
    """What an attempt shall bring, and where it goes."""

    block_size: int | None
    known: bytes
    whole: bool
    target_fd: int | None = None
    hashes: list[bytes] = field(default_factory=list)
    changed: dict[int, bytes] = field(default_factory=dict)
    image: memoryview | None = None
    step: int = 0
    size: int = 0  # of what is read: with a log in use the image's, not the file's

    def take(self, view: memoryview) -> None:
        """Hashes the blocks of ``view``, the whole content."""
        if self.whole:
            self.image = view
        known = self.known
        for number, start in enumerate(range(0, len(view), self.step)):
            block = view[start : start + self.step]
            digest = xxhash.xxh3_128_digest(block)
            self.hashes.append(digest)
            if known[number * HASH_BYTES : (number + 1) * HASH_BYTES] != digest:
                self.changed[number] = bytes(block)


class LockFreeReader:
    """Keeps the file open between attempts, and remembers what it last accepted."""

    def __init__(self, path: str, *, bytes_max: int | None = None, with_witness: bool = True) -> None:
        # SQLite keeps the journal beside the file itself, not beside a link to it.
        self._path = os.path.realpath(path)
        self._bytes_max = bytes_max
        self._with_witness = with_witness
        self._fd = -1
        self._witness: WriteWitness | None = None
        self._touched = True
        self._seen: tuple[int, int, int, float] | None = None  # inode, size, mtime and since when they are so
        self._accepted: _Signature | None = None
        self._accepted_index = b""  # of the log; empty: there was none
        self._buffer = bytearray()  # as large as the file; used again and again

    def attempt(
        self,
        *,
        block_size: int | None = None,
        known: bytes = b"",
        whole: bool = False,
        patient: bool = True,
        skip_unchanged: bool = False,
    ) -> Copy | Rejected | Unchanged:
        """One try. ``known`` are the hashes of what the other side has, cut by ``block_size``."""
        began = time.monotonic()
        wanted = _Wanted(block_size=block_size, known=known, whole=whole)
        try:
            return self._attempt(wanted, began, patient=patient, skip_unchanged=skip_unchanged)
        except _Refused as refused:
            return refused.rejected(time.monotonic() - began)
        except OSError as error:
            detail = error.strerror or str(error)
            return Rejected(why=Refusal.UNREADABLE, detail=detail, seconds=time.monotonic() - began)

    def snapshot_to(self, target: str, *, within_s: float, pause_s: float = 0.002) -> Copy | Rejected:
        """Writes an accepted copy to the new file ``target``; tries until ``within_s`` have passed.

        The file is complete in itself: no journal and no log belong to it.
        """
        deadline = time.monotonic() + within_s
        fd = os.open(target, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        accepted = False
        try:
            while True:
                late = time.monotonic() >= deadline
                patient = time.monotonic() < deadline - within_s / 2
                result = self._snapshot(fd, patient=patient)
                if not isinstance(result, Rejected) or late:
                    accepted = not isinstance(result, Rejected)
                    return result
                time.sleep(pause_s)
        finally:
            os.close(fd)
            if not accepted:
                os.unlink(target)

    @property
    def accepted(self) -> object:
        """What the file looked like when a copy was accepted last; None: none was, or a log was in use."""
        return self._accepted

    def forget(self) -> None:
        """The last accepted copy was of no use: nothing counts as unchanged."""
        self._accepted = None

    def close(self) -> None:
        """Lets go of the file."""
        if self._witness is not None:
            self._witness.close()
            self._witness = None
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1
        self._accepted = None
        self._seen = None

    # ---- one attempt ----------------------------------------------------------------------------------------------

    def _snapshot(self, fd: int, *, patient: bool) -> Copy | Rejected:
        began = time.monotonic()
        wanted = _Wanted(block_size=None, known=b"", whole=False, target_fd=fd)
        try:
            os.ftruncate(fd, 0)
            result = self._attempt(wanted, began, patient=patient, skip_unchanged=False)
        except _Refused as refused:
            return refused.rejected(time.monotonic() - began)
        assert isinstance(result, Copy)
        return result

    def _attempt(self, wanted: _Wanted, began: float, *, patient: bool, skip_unchanged: bool) -> Copy | Unchanged:
        before, header = self._before(patient=patient)
        logged = header.write_ahead_log and _size_of(f"{self._path}-wal") > 0
        hot = self._journal_is_hot()
        if logged and log_is_in_use(self._path):
            return self._beside_a_log(wanted, before, began, skip_unchanged=skip_unchanged)
        same = not self._touched and before == self._accepted and not self._accepted_index
        if skip_unchanged and not logged and not hot and same:
            return Unchanged()
        self._touched = False
        self._accepted = None
        if logged or hot:
            self._take_image(wanted, self._joined_image("-wal" if logged else "-journal", before), header)
        else:
            self._cut(wanted, before.size, header)
            self._read_plain(wanted, before, header)
            self._accepted, self._accepted_index = before, b""
        return self._copied(wanted, header, began)

    def _copied(self, wanted: _Wanted, header: Header, began: float, *, look_again: bool = False) -> Copy:
        status = os.fstat(self._fd)
        return Copy(
            size=wanted.size,
            block_size=wanted.step,
            hashes=b"".join(wanted.hashes),
            changed=wanted.changed,
            image=wanted.image,
            mode=status.st_mode & 0o7777,
            uid=status.st_uid,
            gid=status.st_gid,
            mtime_ns=status.st_mtime_ns,
            header=header,
            seconds=time.monotonic() - began,
            look_again=look_again,
        )

    def _cut(self, wanted: _Wanted, size: int, header: Header) -> None:
        fits = wanted.block_size is not None and block_size_fits(
            wanted.block_size, size=size, page_size=header.page_size
        )
        if fits and wanted.block_size is not None:
            wanted.step = wanted.block_size
        else:
            wanted.step, wanted.known = database_block_size(size, header.page_size), b""
        wanted.size = size

    def _before(self, *, patient: bool) -> tuple[_Signature, Header]:
        self._reopen_if_replaced()
        self._listen()
        first = self._signature()
        # Order matters: a program that starts after the locks were asked leaves a trace in `first` or at the end.
        self._require_no_writer(patient=patient, read=False)
        header = parse_header(os.pread(self._fd, HEADER_BYTES, 0))
        if first.size == 0:
            raise _Refused(Refusal.EMPTY)
        if header is None:
            raise _Refused(Refusal.NOT_A_DATABASE)
        self._require_bounded(first.size)
        return first, header

    def _after(self, before: _Signature) -> None:
        self._require_no_writer(patient=False, read=True)
        if self._journal_is_hot():
            raise _Refused(Refusal.CHANGED, "a journal appeared", read=True)
        self._listen()
        if self._touched or self._signature() != before or self._replaced():
            raise _Refused(Refusal.CHANGED, read=True)

    def _read_plain(self, wanted: _Wanted, before: _Signature, header: Header) -> None:
        self._require_settled(before)
        content = memoryview(b"")
        if wanted.target_fd is not None:
            self._pour(wanted.target_fd, before.size, at_rest=True)
        else:
            content = self._read_whole(before.size, at_rest=True)
        if header.write_ahead_log and _size_of(f"{self._path}-wal") > 0:
            raise _Refused(Refusal.CHANGED, "a write-ahead log appeared", read=True)
        self._after(before)
        # Hashed only now: the gap between two commits is short, and what is rejected need not be hashed.
        wanted.take(content)

    def _read_whole(self, size: int, *, at_rest: bool) -> memoryview:
        if len(self._buffer) < size:
            self._buffer = bytearray(size)
        content = memoryview(self._buffer)[:size]
        for offset in range(0, size, READ_BYTES):
            _read_exactly(self._fd, content[offset : offset + READ_BYTES], offset)
            self._require_rest(at_rest)
        return content

    def _pour(self, target: int, size: int, *, at_rest: bool) -> None:
        if _cloned(self._fd, target):
            return
        offset = 0
        while offset < size:
            done = os.copy_file_range(self._fd, target, min(4 * 1024 * 1024, size - offset), offset, offset)
            if done == 0:
                raise _Refused(Refusal.CHANGED, read=True)
            offset += done
            self._require_rest(at_rest)

    def _require_rest(self, at_rest: bool) -> None:
        """Asked between the pieces too: what is lost already need not be read to its end."""
        if not at_rest:
            return
        self._listen()
        if self._touched:
            raise _Refused(Refusal.CHANGED, read=True)

    # ---- write-ahead log ------------------------------------------------------------------------------------------

    def _beside_a_log(
        self, wanted: _Wanted, before: _Signature, began: float, *, skip_unchanged: bool
    ) -> Copy | Unchanged:
        try:
            with LiveLog(self._path) as log:
                log.require_in_use()
                # Asked in this order: a transaction that has ended by then is in the index that is read next.
                look_again = log.transaction_is_open()
                first = log.index()
                known = not self._touched and before == self._accepted and first.raw == self._accepted_index
                if skip_unchanged and known:
                    return Unchanged(look_again=look_again)
                self._touched = False
                self._accepted = None
                look_again, last, header = self._read_beside(wanted, log, first)
        except LogBusy as error:
            raise _Refused(Refusal.LOG_BUSY, str(error)) from error
        except LogMoved as error:
            raise _Refused(Refusal.CHANGED, f"write-ahead log: {error}", read=True) from error
        except FileNotFoundError as error:
            raise _Refused(Refusal.CHANGED, "the write-ahead log went away") from error
        self._accepted, self._accepted_index = before, last.raw
        return self._copied(wanted, header, began, look_again=look_again)

    def _read_beside(self, wanted: _Wanted, log: LiveLog, first: LogIndex) -> tuple[bool, LogIndex, Header]:
        """The five steps of live_log.py."""
        content = memoryview(b"")
        # Asked only now: what an earlier life of the log had put into the file is nowhere else.
        file_size = os.fstat(self._fd).st_size
        if wanted.target_fd is not None:
            self._pour(wanted.target_fd, file_size, at_rest=False)
        else:
            content = self._read_whole(file_size, at_rest=False)
        look_again = log.transaction_is_open()
        last = log.index(first)
        size = last.pages * last.page_size or file_size
        self._require_bounded(size)
        if wanted.target_fd is not None:
            os.ftruncate(wanted.target_fd, size)
        else:
            content = self._sized(content, size)
        put = _writer_to(wanted.target_fd) if wanted.target_fd is not None else _writer_into(content)
        log.lay_over(last, put)
        log.index(last)
        log.require_same_files()
        if self._replaced():
            raise _Refused(Refusal.CHANGED, read=True)
        head = os.pread(wanted.target_fd, HEADER_BYTES, 0) if wanted.target_fd is not None else content[:HEADER_BYTES]
        header = parse_header(head)
        if header is None:
            raise _Refused(Refusal.NOT_A_DATABASE, read=True)
        self._cut(wanted, size, header)
        wanted.take(content)
        return look_again, last, header

    def _sized(self, content: memoryview, size: int) -> memoryview:
        """The buffer's content, cut or made longer by zeros."""
        if size <= len(content):
            return content[:size]
        longer = bytearray(size)
        longer[: len(content)] = content
        self._buffer = longer
        return memoryview(longer)

    def _require_bounded(self, size: int) -> None:
        if self._bytes_max is not None and size > self._bytes_max:
            raise _Refused(Refusal.TOO_LARGE, f"{size / 2**20:.1f} MiB")

    def _take_image(self, wanted: _Wanted, image: bytes, header: Header) -> None:
        self._require_bounded(len(image))
        self._cut(wanted, len(image), header)
        if wanted.target_fd is not None:
            with open(wanted.target_fd, "wb", closefd=False) as file:
                file.write(image)
            return
        wanted.take(memoryview(image))

    def _joined_image(self, end: str, before: _Signature) -> bytes:
        """What SQLite makes of the file and the journal or log that a dead program left: done on copies of ours."""
        companion = f"{self._path}{end}"
        with tempfile.TemporaryDirectory(prefix="ha-sync-join-") as place:
            own = os.path.join(place, "database")
            mark = _mark_of(companion)
            for source, target in ((self._path, own), (companion, f"{own}{end}")):
                _copy_file(source, target)
            self._require_no_writer(patient=True, read=True)
            self._listen()
            in_use = end == "-wal" and log_is_in_use(self._path)
            if in_use or mark != _mark_of(companion) or self._touched or self._signature() != before:
                raise _Refused(Refusal.CHANGED, read=True)
            try:
                connection = apsw.Connection(own)
                try:
                    return _serialized(connection)
                finally:
                    connection.close()
            except apsw.Error as error:
                raise _Refused(Refusal.NOT_A_DATABASE, str(error)) from error

    # ---- what is asked --------------------------------------------------------------------------------------------

    def _require_no_writer(self, *, patient: bool, read: bool) -> None:
        for start, length in ((PENDING, 1), (SHARED_FIRST, SHARED_BYTES)):
            lock = lock_in_the_way(self._fd, start, length)
            if lock is not None:
                raise _Refused(Refusal.WRITING, f"process {lock.process}", read=read)
        if patient:
            lock = lock_in_the_way(self._fd, RESERVED)
            if lock is not None:
                raise _Refused(Refusal.TRANSACTION, f"process {lock.process}", read=read)

    def _journal_is_hot(self) -> bool:
        """Whether the journal would be rolled back; the lock of a living program was asked for before."""
        try:
            fd = os.open(f"{self._path}-journal", os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
        except FileNotFoundError:
            return False
        except OSError as error:
            raise _Refused(Refusal.UNREADABLE, f"journal: {error.strerror}") from error
        try:
            return bool(os.pread(fd, _JOURNAL_MAGIC_BYTES, 0).strip(b"\x00"))
        finally:
            os.close(fd)

    def _require_settled(self, before: _Signature) -> None:
        if self._witness is not None:
            return
        now = time.monotonic()
        look = (before.inode, before.size, before.mtime_ns)
        if self._seen is None or self._seen[:3] != look:
            self._seen = (*look, now)
        if now - self._seen[3] < MTIME_GRAIN_S:
            raise _Refused(Refusal.UNSETTLED)

    def _listen(self) -> None:
        if self._witness is not None and self._witness.heard():
            self._touched = True

    def _signature(self) -> _Signature:
        status = os.fstat(self._fd)
        counter = os.pread(self._fd, 4, 24)
        place = (status.st_dev, status.st_ino)
        owner = (status.st_mode, status.st_uid, status.st_gid)
        return _Signature(*place, status.st_size, status.st_mtime_ns, counter, *owner)

    def _replaced(self) -> bool:
        named = _stat_or_none(self._path)
        mine = os.fstat(self._fd)
        return named is None or (named.st_dev, named.st_ino) != (mine.st_dev, mine.st_ino)

    def _reopen_if_replaced(self) -> None:
        if self._fd >= 0 and not self._replaced():
            return
        self.close()
        try:
            # Non-blocking: a named pipe in its place would hold the thread for ever.
            self._fd = os.open(self._path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        except FileNotFoundError as error:
            raise _Refused(Refusal.MISSING) from error
        except OSError as error:
            raise _Refused(Refusal.UNREADABLE, error.strerror or str(error)) from error
        if not os.path.isfile(self._path):
            self.close()
            raise _Refused(Refusal.NOT_A_DATABASE, "not a regular file")
        self._touched = True
        if self._with_witness:
            try:
                self._witness = WriteWitness(self._fd)
            except OSError:
                self._witness = None  # the mtime rule protects instead


def _serialized(connection: apsw.Connection) -> bytes:
    connection.execute("BEGIN")
    try:
        connection.execute("SELECT count(*) FROM sqlite_schema").fetchall()
        return connection.serialize("main")
    finally:
        connection.execute("COMMIT")


def _writer_to(fd: int) -> Callable[[int, memoryview], object]:
    return lambda offset, page: os.pwrite(fd, page, offset)


def _writer_into(content: memoryview) -> Callable[[int, memoryview], object]:
    def put(offset: int, page: memoryview) -> None:
        content[offset : offset + len(page)] = page

    return put


def _read_exactly(fd: int, view: memoryview, offset: int) -> None:
    filled = 0
    while filled < len(view):
        got = os.preadv(fd, [view[filled:]], offset + filled)
        if got == 0:
            raise _Refused(Refusal.CHANGED, read=True)
        filled += got


def _size_of(path: str) -> int:
    status = _stat_or_none(path)
    return 0 if status is None else status.st_size


def _stat_or_none(path: str) -> os.stat_result | None:
    try:
        return os.stat(path)
    except OSError:
        return None


def _mark_of(path: str) -> tuple[int, int, int] | None:
    status = _stat_or_none(path)
    return None if status is None else (status.st_ino, status.st_size, status.st_mtime_ns)


def _cloned(source: int, target: int) -> bool:
    try:
        fcntl.ioctl(target, _FICLONE, source)
    except OSError:
        return False
    return True


def _copy_file(source: str, target: str) -> None:
    try:
        with open(source, "rb") as original, open(target, "wb") as own:
            while piece := original.read(READ_BYTES):
                own.write(piece)
    except OSError as error:
        if error.errno in {errno.ENOENT, errno.EACCES, errno.EPERM}:
            raise _Refused(Refusal.CHANGED, error.strerror or "") from error
        raise
