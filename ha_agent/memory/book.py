"""The arbiter's book and the boot numbers, in one small JSON file that is replaced whole.

Invariants: what ``store`` was given is durable when it returns (file synced, renamed, directory synced), so a power cut
leaves the old content or the new; the boot number of a start is stored before its first beat. Blocking.
"""

from __future__ import annotations

import dataclasses
import json
import os
from dataclasses import dataclass, field

from ha_agent.arbiter.state import Book
from ha_agent.arbiter.values import Epoch
from ha_agent.errors import OperatorNeeded
from ha_agent.heartbeat.beat import NO_BOOT, Boot

FORMAT = 1
KERNEL_BOOT_ID = "sys/kernel/random/boot_id"
BYTES_MAX = 65536


@dataclass(frozen=True, slots=True, kw_only=True)
class Memory:
    """Everything in the file."""

    boot: Boot = NO_BOOT  # of the agent; grows with each start
    kernel_boot: str = ""  # the kernel's boot id in which the agent ran last
    book: Book = field(default_factory=Book)


class BookStore:
    """One file, one writer at a time."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._memory = Memory()

    def start(self, kernel_boot: str) -> tuple[Memory, Boot]:
        """What was stored, and the boot number of this start, durable. Raises OperatorNeeded."""
        before = self._read()
        boot = Boot(before.boot + 1)
        try:
            self._write(dataclasses.replace(before, boot=boot, kernel_boot=kernel_boot))
        except OSError as failed:
            raise OperatorNeeded(
                "cannot store the boot number of this node in",
                subject=self._path,
                reason=failed.strerror or str(failed),
                hint="a beat with a number that was used before would be refused: make room, or mend the folder",
            ) from failed
        return before, boot

    def store(self, book: Book) -> None:
        """Makes a book durable. Raises OSError; then the old one stands."""
        self._write(dataclasses.replace(self._memory, book=book))

    def _read(self) -> Memory:
        try:
            with open(self._path, "rb") as file:
                content = json.loads(file.read(BYTES_MAX))
            return _memory_of(content)
        except FileNotFoundError:
            return Memory()
        except (OSError, ValueError, KeyError, TypeError, AssertionError, RecursionError) as broken:
            raise OperatorNeeded(
                "cannot read the epochs of this node from",
                subject=self._path,
                reason=f"{type(broken).__name__}: {broken}",
                hint="move the file away only if the other node is Active: this node then begins as a new Standby",
            ) from broken

    def _write(self, memory: Memory) -> None:
        write_whole(self._path, _text_of(memory))
        self._memory = memory


def kernel_boot_id(proc_dir: str) -> str:
    """Another one after each boot of this machine; empty where it cannot be read: then nothing is the same boot."""
    try:
        with open(os.path.join(proc_dir, KERNEL_BOOT_ID), encoding="ascii") as file:
            return file.read(64).strip()
    except OSError:
        return ""


def write_whole(path: str, content: bytes) -> None:
    """Replaces a file that only this user may read; durable when it returns. OSError: the old one stands."""
    directory = os.path.dirname(path)
    os.makedirs(directory, mode=0o700, exist_ok=True)
    draft = f"{path}.new"
    descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    try:
        _write_all(descriptor, content)
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
    os.rename(draft, path)
    folder = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def _write_all(descriptor: int, content: bytes) -> None:
    # A disk that is nearly full takes a part and calls it a success: renamed, that would be a damaged book.
    while content:
        content = content[os.write(descriptor, content) :]


def _text_of(memory: Memory) -> bytes:
    book = dataclasses.asdict(memory.book)
    facts = {"format": FORMAT, "boot": memory.boot, "kernel_boot": memory.kernel_boot, "book": book}
    return json.dumps(facts, indent=1).encode() + b"\n"


def _memory_of(facts: dict[str, object]) -> Memory:
    if facts["format"] != FORMAT:
        raise ValueError(f"format {facts['format']}, this program knows {FORMAT}")
    book = facts["book"]
    if not isinstance(book, dict):
        raise TypeError("book is no object")
    return Memory(
        boot=Boot(_number(facts["boot"])),
        kernel_boot=str(facts["kernel_boot"]),
        book=Book(
            promised=Epoch(_number(book["promised"])),
            served=Epoch(_number(book["served"])),
            data=Epoch(_number(book["data"])),
            sound=_flag(book["sound"]),
            active=_flag(book["active"]),
            single=_flag(book["single"]),
            clean=_flag(book["clean"]),
        ),
    )


def _number(value: object) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        raise ValueError(f"{value!r} is no count")
    return value


def _flag(value: object) -> bool:
    if not isinstance(value, bool):
        raise TypeError(f"{value!r} is neither true nor false")
    return value
