"""The agent's book: durable in order, whole whatever happens, numbers of boots that grow."""

from __future__ import annotations

import errno
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ha_agent.arbiter.state import Book
from ha_agent.arbiter.values import Epoch
from ha_agent.errors import OperatorNeeded
from ha_agent.memory import BookStore
from ha_agent.memory.book import kernel_boot_id
from tests.support.agent_process import ROOT, environment

ROUNDS = int(os.environ.get("HA_SYNC_ROUNDS", "5"))
BOOK = Book(promised=Epoch(6), served=Epoch(4), data=Epoch(6), sound=True, active=True)

epochs = st.integers(0, 1 << 42)
books = st.builds(
    lambda promised, served, data, flags: Book(
        promised=Epoch(max(promised, served)),
        served=Epoch(served),
        data=Epoch(data),
        sound=flags[0],
        active=flags[1],
        single=flags[2],
        clean=flags[3],
    ),
    epochs,
    epochs,
    epochs,
    st.tuples(*[st.booleans()] * 4),
)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "state" / "agent.json"


def started(path: Path, kernel_boot: str = "k1") -> BookStore:
    store = BookStore(str(path))
    store.start(kernel_boot)
    return store


@pytest.mark.req("R12")
def test_a_node_that_never_ran_begins_with_an_empty_book(path: Path) -> None:
    memory, boot = BookStore(str(path)).start("k1")
    assert (memory.book, memory.boot, boot) == (Book(), 0, 1)


@pytest.mark.req("R12")
def test_the_boot_number_grows_with_each_start_and_the_kernels_boot_is_known_again(path: Path) -> None:
    started(path, "k1").store(BOOK)
    memory, boot = BookStore(str(path)).start("k2")
    assert (memory.book, memory.kernel_boot, boot) == (BOOK, "k1", 2)
    again, boot = BookStore(str(path)).start("k2")
    assert (again.book, again.kernel_boot, boot) == (BOOK, "k2", 3)


@given(book=books)
def test_what_was_stored_is_read_again(tmp_path_factory: pytest.TempPathFactory, book: Book) -> None:
    path = tmp_path_factory.mktemp("book") / "agent.json"
    started(path).store(book)
    assert BookStore(str(path)).start("k")[0].book == book


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[]",
        "null",
        '{"format": 2, "boot": 1, "kernel_boot": "", "book": {}}',
        '{"format": 1, "boot": -1, "kernel_boot": "", "book": {}}',
        '{"format": 1, "boot": 1, "kernel_boot": "", "book": []}',
        "[" * 60000,
        "\xff",
    ],
)
def test_a_damaged_book_is_never_guessed(path: Path, text: str) -> None:
    path.parent.mkdir()
    path.write_text(text, encoding="latin-1")
    with pytest.raises(OperatorNeeded, match="cannot read the epochs") as caught:
        BookStore(str(path)).start("k")
    assert "new Standby" in caught.value.hint
    assert path.read_text(encoding="latin-1") == text, "evidence is left alone"


@given(fact=st.sampled_from(["promised", "served", "data", "sound", "active"]), value=st.none() | st.text(max_size=3))
def test_a_fact_of_another_kind_is_a_damage(
    tmp_path_factory: pytest.TempPathFactory, fact: str, value: str | None
) -> None:
    path = tmp_path_factory.mktemp("book") / "agent.json"
    started(path).store(BOOK)
    facts = json.loads(path.read_text())
    facts["book"][fact] = value
    path.write_text(json.dumps(facts))
    with pytest.raises(OperatorNeeded):
        BookStore(str(path)).start("k")


def test_an_epoch_served_above_all_that_was_promised_is_a_damage(path: Path) -> None:
    started(path).store(BOOK)
    path.write_text(path.read_text().replace('"served": 4', '"served": 9'))
    with pytest.raises(OperatorNeeded):
        BookStore(str(path)).start("k")


@pytest.mark.req("R12")
def test_the_file_is_synced_before_its_name_and_the_name_before_the_answer(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = started(path)
    done: list[str] = []
    fsync, rename = os.fsync, os.rename

    def synced(descriptor: int) -> None:
        done.append("sync " + os.path.basename(os.readlink(f"/proc/self/fd/{descriptor}")))
        fsync(descriptor)

    def renamed(old: str, new: str) -> None:
        done.append(f"rename {os.path.basename(new)}")
        rename(old, new)

    monkeypatch.setattr(os, "fsync", synced)
    monkeypatch.setattr(os, "rename", renamed)
    store.store(BOOK)
    assert done == ["sync agent.json.new", "rename agent.json", "sync state"]


def test_a_disk_that_takes_only_a_part_at_a_time_gets_the_whole(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = started(path)
    write = os.write
    monkeypatch.setattr(os, "write", lambda descriptor, content: write(descriptor, content[:7]))
    store.store(BOOK)
    monkeypatch.undo()
    assert BookStore(str(path)).start("k")[0].book == BOOK


def test_a_full_disk_is_said_and_the_old_book_stands(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = started(path)
    store.store(BOOK)
    write = os.write

    def full(descriptor: int, content: bytes) -> int:
        if len(content) < 100:
            raise OSError(errno.ENOSPC, "No space left on device")
        return write(descriptor, content[:100])

    monkeypatch.setattr(os, "write", full)
    with pytest.raises(OSError, match="No space"):
        store.store(Book())
    with pytest.raises(OperatorNeeded, match="boot number"):
        BookStore(str(path)).start("k")
    monkeypatch.undo()
    assert BookStore(str(path)).start("k")[0].book == BOOK


WRITER = """
import sys
from ha_agent.arbiter.state import Book
from ha_agent.memory import BookStore
store = BookStore(sys.argv[1])
store.start("k")
for epoch in range(1, 1_000_000):
    store.store(Book(promised=epoch, served=epoch))
    print(epoch, flush=True)
"""


@pytest.mark.req("R12")
def test_a_killed_process_leaves_the_book_before_or_after_and_never_less_than_it_was_told(path: Path) -> None:
    for _ in range(ROUNDS):
        with subprocess.Popen(
            [sys.executable, "-c", WRITER, str(path)], stdout=subprocess.PIPE, text=True, cwd=ROOT, env=environment()
        ) as writer:
            assert writer.stdout is not None
            writer.stdout.readline()
            # A random moment within the work; whichever it is, the claim is the same.
            time.sleep(random.uniform(0, 0.03))
            writer.send_signal(signal.SIGKILL)
            told = 1
            for line in writer.stdout:
                told = int(line) if line.endswith("\n") else told
        book = BookStore(str(path)).start("k")[0].book
        assert told <= book.promised <= told + 1
        path.unlink()


def test_the_kernels_boot_is_nothing_where_it_cannot_be_read(tmp_path: Path) -> None:
    assert kernel_boot_id(str(tmp_path)) == ""
    assert len(kernel_boot_id("/proc")) == 36
