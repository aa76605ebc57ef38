"""Engines that are killed while a divergence is saved and merged: afterwards it is as if they had not been."""

from __future__ import annotations

import os
import random
import sqlite3
import time
from pathlib import Path

import pytest

from ha_sync.sample.pair import LocalNode
from tests.support.divergence_pair import INBOX, DivergedPair, divergences, message, messages, record, records
from tests.support.small_pair import in_another_process, until

ROUNDS = int(os.environ.get("HA_SYNC_ROUNDS", "2"))
KILLS = 4
RECORDS = 400
MESSAGES = 12
FILES = 25

WRITE_RECORDS = (
    "import sqlite3, sys\n"
    "connection = sqlite3.connect(sys.argv[1], timeout=10)\n"
    "rows = [(f'a-{n // 2}', '200', n // 2) for n in range(int(sys.argv[2]))]\n"
    "connection.executemany('INSERT INTO cdr (uniqueid, src, billsec) VALUES (?, ?, ?)', rows)\n"
    "connection.commit()\n"
)


def write_much(root: str) -> None:
    in_another_process(WRITE_RECORDS, f"{root}/cdr.db", str(RECORDS))
    for number in range(1, MESSAGES + 1):
        message(root, number, f"caller{number}", os.urandom(20_000))
    for number in range(FILES):
        Path(root, "recordings", f"call{number}.wav").write_bytes(f"a {number}".encode() * 5000)


def merged(node: LocalNode) -> bool:
    found = divergences(node)
    return {"cdr", "voicemail", "recordings"} <= {
        name for name, item in found.items() if item["mergeable"] and item["state"] == "merged"
    }


@pytest.mark.req("R13", "R25", "R16")
@pytest.mark.parametrize("seed", range(ROUNDS))
def test_whoever_is_killed_nothing_is_lost_and_nothing_comes_twice(tmp_path, seed):
    dice = random.Random(seed)
    print(f"seed {seed}")
    with DivergedPair(str(tmp_path)) as pair:
        for number in range(3 * FILES):  # what is new is not most of it: that would be a mass delete
            Path(pair.a.place.root, "recordings", f"old{number}.wav").write_bytes(b"old")
            message(pair.a.place.root, number, f"old{number}", b"old", folder="voicemail/default/300/Old")
        pair.start()
        assert pair.a.wait_replicated() == ()
        pair.b.kill()
        write_much(pair.a.place.root)
        before = messages(pair.a)
        pair.a.kill()
        pair.b.serve("active", 2)
        record(pair.b.place.root, "b-1", "300", 6)
        message(pair.b.place.root, 1, "here", b"sound on b")
        for turn in range(KILLS):
            pair.a.start(pair.a._line("serve", "--role", "standby", "--epoch", "2"))
            # From the start of Python to the end of the merge, wherever that is on this machine.
            time.sleep(dice.uniform(0.3, 3.0))
            pair.a.kill()
            if turn % 2:
                pair.a.serve("standby", 2)
                time.sleep(dice.uniform(0.0, 1.5))
                pair.b.kill()
                pair.b.serve("active", 2)
                pair.a.kill()
        pair.a.serve("standby", 2)
        until(lambda: merged(pair.a), "merging", timeout_s=90)
        wanted = sorted([("old", 1), ("b-1", 6), *((f"a-{n // 2}", n // 2) for n in range(RECORDS))])
        assert sorted((uniqueid, billsec) for uniqueid, _, billsec, _ in records(pair.b)) == wanted
        found = messages(pair.b)
        assert list(found) == [f"msg{number:04d}" for number in range(MESSAGES + 2)]
        assert sorted(found.values()) == sorted([*before.values(), (b"sound on b", "here")])
        old = {f"old{number}.wav" for number in range(3 * FILES)}
        recordings = {path.name for path in Path(pair.b.place.root, "recordings").glob("*.wav")}
        assert recordings == {"old.wav", *old, *(f"call{number}.wav" for number in range(FILES))}
        inbox = Path(pair.b.place.root, INBOX)
        assert not [name for name in os.listdir(inbox) if name.startswith(".")]
        assert len(list(inbox.iterdir())) == 2 * (MESSAGES + 2)
        with sqlite3.connect(f"{pair.b.place.root}/cdr.db") as connection:
            assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        connection.close()
        assert pair.b.wait_replicated() == ()
        assert records(pair.a) == records(pair.b)
        assert messages(pair.a) == messages(pair.b)
