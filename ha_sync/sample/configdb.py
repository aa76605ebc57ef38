"""``config.db``: the administrator's edits, each one transaction of several rows under one revision number.

Invariants: ``schema.broken_rules`` is empty after every commit; every row that an edit touches, by cascade or trigger
too, is in the ledger with that edit, since the difference of all tables is taken just before the commit. One object
belongs to one thread.
"""

from __future__ import annotations

import os
import random
import sqlite3
from collections.abc import Callable
from typing import Final

from ha_sync.sample import schema
from ha_sync.sample.ledger import Ledger
from ha_sync.sample.settings import CONFIG_DB
from ha_sync.sample.tables import decode, plain_tables, quoted, row_digests

BUSY_TIMEOUT_S: Final = 5.0
EXTENSIONS: Final = 60
EXTENSIONS_MIN: Final = 40
EXTENSIONS_MAX: Final = 90
GROUPS: Final = 8
TRUNKS: Final = 5
LINES_MAX: Final = 40  # of dialplan_extra
AUDITS_MAX: Final = 400
LOCAL_TABLES: Final = ("network",)
LOCAL_SETTINGS: Final = ("externhost", "localnet")

Digests = dict[tuple[str, str], str]


def is_local(table: str, key: str) -> bool:
    """Whether a row belongs to the node and is never replicated. ``key`` is a key text."""
    return table in LOCAL_TABLES or (table == "sip_settings" and key in {f'["{name}"]' for name in LOCAL_SETTINGS})


class ConfigDb:
    """The configuration database, kept open."""

    def __init__(self, root: str, ledger: Ledger, *, wal: bool) -> None:
        self._ledger = ledger
        self._connection = sqlite3.connect(
            os.path.join(root, CONFIG_DB), timeout=BUSY_TIMEOUT_S, isolation_level=None, check_same_thread=False
        )
        self._connection.text_factory = decode
        self._run(f"PRAGMA journal_mode = {'wal' if wal else 'delete'}")
        self._run("PRAGMA synchronous = FULL")
        self._run("PRAGMA foreign_keys = ON")
        if self._value("PRAGMA user_version") == 0:
            self._run("BEGIN IMMEDIATE")
            schema.create(self._connection)
            _furnish(self._connection)
            self._run("COMMIT")
        self._tables = plain_tables(self._connection)
        self._known = self._digests()
        rows = [[table, key, row] for (table, key), row in self._known.items() if not is_local(table, key)]
        mark = ledger.announce("tx", db=CONFIG_DB, rows=rows, snapshot=True)
        ledger.write("done", id=mark)

    def edit(self, dice: random.Random) -> None:
        """One edit: committed when this returns, or rolled back with a line in the ledger."""
        name = dice.choice(tuple(EDITS))
        mark = None
        try:
            self._run("BEGIN IMMEDIATE")
            EDITS[name](self._connection, dice, _raise_revision(self._connection, name))
            now = self._digests()
            mark = self._ledger.announce("tx", db=CONFIG_DB, rows=self._difference(now))
            self._run("COMMIT")
        except sqlite3.DatabaseError as error:
            if self._connection.in_transaction:
                self._run("ROLLBACK")
            if mark is not None:
                self._ledger.write("undone", id=mark, why=str(error))
            self._ledger.write("lost", what=f"{CONFIG_DB} {name}", why=str(error))
            return
        self._known = now
        self._ledger.write("done", id=mark)

    def close(self) -> None:
        """At a clean stop."""
        self._connection.close()

    def _difference(self, now: Digests) -> list[list[object]]:
        changed = [
            (place, now.get(place)) for place in {*now, *self._known} if now.get(place) != self._known.get(place)
        ]
        return [[table, key, row] for (table, key), row in sorted(changed) if not is_local(table, key)]

    def _digests(self) -> Digests:
        return {
            (table, key): row for table in self._tables for key, row in row_digests(self._connection, table).items()
        }

    def _run(self, sql: str) -> None:
        self._connection.execute(sql).fetchall()

    def _value(self, sql: str) -> object:
        return self._connection.execute(sql).fetchone()[0]


def _furnish(connection: sqlite3.Connection) -> None:
    """The rows that a fresh PBX has, under revision 1."""
    dice = random.Random("furnish")
    run = connection.execute
    run("INSERT INTO revision VALUES (1, 1, 0)")
    run("INSERT INTO audit (revision, what) VALUES (1, 'installed')")
    for login in ("admin", "boss", "reception"):
        run("INSERT INTO users (login, hash, note) VALUES (?, ?, NULL)", (login, dice.randbytes(32)))
    run("INSERT INTO user_roles SELECT id, 'operator' FROM users")
    for number in range(EXTENSIONS):
        _new_extension(connection, dice, str(1001 + number), 1)
    for number in range(TRUNKS):
        run(
            "INSERT INTO trunks (name, host, rank, changed) VALUES (?, ?, ?, 1)",
            (f"trunk{number}", "sip.test", number + 1),
        )
    run("INSERT INTO trunk_options SELECT id, 'qualify', 'yes' FROM trunks")
    run("INSERT INTO outbound_routes (name, changed) VALUES ('national', 1), ('mobile', 1)")
    run("INSERT INTO outbound_trunks SELECT r.id, t.rank, t.id, 1 FROM outbound_routes r, trunks t")
    run("INSERT INTO outbound_patterns (route_id, pattern) SELECT id, '0[1-9].' FROM outbound_routes")
    run("INSERT INTO inbound_routes SELECT '030' || id, id, 'ivr', 1 FROM trunks")
    for number in range(1, GROUPS + 1):
        run("INSERT INTO ring_groups VALUES (?, ?, 0, 1)", (number, f"group {number}"))
        _fill_group(connection, dice, number, 1)
    for number in range(4):
        run("INSERT INTO queues VALUES (?, 'ringall', 15.5, 1)", (f"queue{number}",))
        run(
            "INSERT INTO queue_members SELECT ?, dial, 0, 1 FROM extensions WHERE id % 7 = ?",
            (f"queue{number}", number),
        )
    for name, value in (("externhost", "pbx-a.example"), ("localnet", "192.0.2.0/24"), ("bindport", "5060")):
        run("INSERT INTO sip_settings VALUES (?, ?)", (name, value))
    run("INSERT INTO network VALUES ('eth0', '192.0.2.1', '192.0.2.254')")
    for number in range(20):
        run("INSERT INTO feature_codes VALUES (?, ?, ?, 1)", (number, f"*{number + 50}", f"feature {number}"))
    for number in range(6):
        run("INSERT INTO moh_files VALUES (?, ?, ?)", (number, f"tune {number}", dice.randbytes(2000)))
    for table in schema.STANDALONE:
        for number, thing in enumerate((1, 2.5, None, b"\x00\xff", "text")):
            run(f"INSERT INTO {table} VALUES (?, ?, 1)", (f"{table}-{number}", thing))


def _new_extension(connection: sqlite3.Connection, dice: random.Random, number: str, revision: int) -> int:
    port = connection.execute("SELECT coalesce(max(abs(port)), 10000) + 1 FROM extensions").fetchone()[0]
    name = f"{dice.choice(('Anna', 'Bao', 'Chidi', 'Zoë', 'Łukasz'))} {number} {revision}"
    cursor = connection.execute(
        "INSERT INTO extensions (number, name, secret, port, changed) VALUES (?, ?, ?, ?, ?)",
        (number, name, dice.randbytes(12), port, revision),
    )
    identity = cursor.lastrowid
    assert identity is not None
    for table in schema.OF_EXTENSION:
        connection.execute(
            f"INSERT INTO {table} (extension_id, label, setting, changed) VALUES (?, 'default', ?, ?)",
            (identity, f"{dice.getrandbits(40):x}", revision),
        )
    connection.execute(
        "INSERT INTO phonebook (extension_id, display, number) VALUES (?, ?, ?)", (identity, name, number)
    )
    return identity


def _raise_revision(connection: sqlite3.Connection, what: str) -> int:
    connection.execute("UPDATE revision SET number = number + 1")
    revision: int = connection.execute("SELECT number FROM revision").fetchone()[0]
    connection.execute("INSERT INTO audit (revision, what) VALUES (?, ?)", (revision, what))
    oldest = connection.execute("SELECT max(id) - ? FROM audit", (AUDITS_MAX,)).fetchone()[0]
    gone = connection.execute("DELETE FROM audit WHERE id <= ?", (oldest,)).rowcount
    connection.execute("UPDATE revision SET audits = audits - ?", (gone,))
    return revision


def _pick(connection: sqlite3.Connection, dice: random.Random, column: str, table: str, count: int) -> list[object]:
    rows = [row[0] for row in connection.execute(f"SELECT {quoted(column)} FROM {table} ORDER BY 1")]
    return dice.sample(rows, min(count, len(rows)))


def _fill_group(connection: sqlite3.Connection, dice: random.Random, group: object, revision: int) -> None:
    count = dice.randint(2, 8)
    cuts = sorted(dice.sample(range(1, 100), count - 1))
    weights = [high - low for low, high in zip([0, *cuts], [*cuts, 100], strict=True)]
    connection.execute("DELETE FROM ring_group_members WHERE group_id = ?", (group,))
    for place, extension in enumerate(_pick(connection, dice, "id", "extensions", count), 1):
        connection.execute(
            "INSERT INTO ring_group_members VALUES (?, ?, ?, ?, ?)",
            (group, place, extension, weights[place - 1], revision),
        )
    connection.execute("UPDATE ring_groups SET members = ?, changed = ? WHERE id = ?", (count, revision, group))


def _add_extension(connection: sqlite3.Connection, dice: random.Random, revision: int) -> None:
    if connection.execute("SELECT count(*) FROM extensions").fetchone()[0] >= EXTENSIONS_MAX:
        _drop_extension(connection, dice, revision)
    free = connection.execute("SELECT max(CAST(number AS INTEGER)) + 1 FROM extensions").fetchone()[0]
    _new_extension(connection, dice, str(free), revision)


def _drop_extension(connection: sqlite3.Connection, dice: random.Random, revision: int) -> None:
    if connection.execute("SELECT count(*) FROM extensions").fetchone()[0] <= EXTENSIONS_MIN:
        _add_extension(connection, dice, revision)
        return
    [victim] = _pick(connection, dice, "id", "extensions", 1)
    groups = connection.execute(
        "SELECT DISTINCT group_id FROM ring_group_members WHERE extension_id = ?", (victim,)
    ).fetchall()
    for (group,) in groups:
        connection.execute("DELETE FROM ring_group_members WHERE group_id = ?", (group,))
    connection.execute("DELETE FROM extensions WHERE id = ?", (victim,))  # takes its details with it
    for (group,) in groups:
        _fill_group(connection, dice, group, revision)


def _rename_extension(connection: sqlite3.Connection, dice: random.Random, revision: int) -> None:
    for extension in _pick(connection, dice, "id", "extensions", 3):
        connection.execute(
            "UPDATE extensions SET name = ?, secret = ?, changed = ? WHERE id = ?",
            (f"Name {revision} of {extension}", dice.randbytes(12), revision, extension),
        )


def _balance_groups(connection: sqlite3.Connection, dice: random.Random, revision: int) -> None:
    for group in _pick(connection, dice, "id", "ring_groups", 2):
        _fill_group(connection, dice, group, revision)


def _swap_ranks(connection: sqlite3.Connection, dice: random.Random, revision: int) -> None:
    one, two = (row for row in _pick(connection, dice, "id", "trunks", 2))
    ranks = dict(connection.execute("SELECT id, rank FROM trunks WHERE id IN (?, ?)", (one, two)).fetchall())
    connection.execute("UPDATE trunks SET rank = -rank WHERE id = ?", (one,))
    connection.execute("UPDATE trunks SET rank = ?, changed = ? WHERE id = ?", (ranks[one], revision, two))
    connection.execute("UPDATE trunks SET rank = ?, changed = ? WHERE id = ?", (ranks[two], revision, one))


def _rename_queue(connection: sqlite3.Connection, dice: random.Random, revision: int) -> None:
    [name] = _pick(connection, dice, "name", "queues", 1)
    connection.execute(
        "UPDATE queues SET name = ?, timeout = ?, changed = ? WHERE name = ?",
        (f"queue r{revision}", dice.random() * 30, revision, name),
    )
    connection.execute("UPDATE queue_members SET changed = ? WHERE queue = ?", (revision, f"queue r{revision}"))


def _settings(connection: sqlite3.Connection, dice: random.Random, revision: int) -> None:
    for name in (dice.choice(LOCAL_SETTINGS), "bindport", f"codec{dice.randrange(6)}"):
        connection.execute(
            "INSERT INTO sip_settings VALUES (?, ?) ON CONFLICT (name) DO UPDATE SET value = excluded.value",
            (name, f"value {revision}"),
        )
    connection.execute("UPDATE network SET address = ?", (f"192.0.2.{revision % 250}",))


def _feature_codes(connection: sqlite3.Connection, dice: random.Random, revision: int) -> None:
    one, two = dice.sample(range(20), 2)
    code = connection.execute("SELECT code FROM feature_codes ORDER BY id LIMIT 1 OFFSET ?", (one % 10,)).fetchone()[0]
    # REPLACE over a UNIQUE column kills another row without naming it.
    connection.execute("REPLACE INTO feature_codes VALUES (?, ?, ?, ?)", (two, code, f"feature r{revision}", revision))
    connection.execute(
        "INSERT INTO feature_codes VALUES ((SELECT max(id) + 1 FROM feature_codes), ?, ?, ?)",
        (f"*{1000 + revision}", f"feature s{revision}", revision),
    )
    connection.execute(
        "DELETE FROM feature_codes WHERE id IN "
        "(SELECT id FROM feature_codes ORDER BY changed DESC, id LIMIT -1 OFFSET 30)"
    )


def _dialplan(connection: sqlite3.Connection, dice: random.Random, revision: int) -> None:
    for line in range(3):
        connection.execute("INSERT INTO dialplan_extra VALUES ('custom', ?)", (f"exten => {revision},{line},NoOp()",))
    connection.execute(
        "DELETE FROM dialplan_extra WHERE rowid IN (SELECT rowid FROM dialplan_extra ORDER BY rowid DESC "
        "LIMIT -1 OFFSET ?)",
        (dice.randint(LINES_MAX // 2, LINES_MAX),),
    )


def _details(connection: sqlite3.Connection, dice: random.Random, revision: int) -> None:
    table = dice.choice([name for name in schema.OF_EXTENSION if name != "voicemail_boxes"])
    for extension in _pick(connection, dice, "id", "extensions", 10):
        connection.execute(
            f"INSERT INTO {table} (extension_id, label, setting, changed) VALUES (?, 'default', ?, ?) "
            "ON CONFLICT (extension_id, label) DO UPDATE SET setting = excluded.setting, changed = excluded.changed",
            (extension, f"{dice.getrandbits(40):x}", revision),
        )


def _values(connection: sqlite3.Connection, dice: random.Random, revision: int) -> None:
    for table in dice.sample(schema.STANDALONE, 4):
        value = dice.choice((revision, revision / 7, None, dice.randbytes(40), f"value {revision}", float("inf")))
        connection.execute(f"UPDATE {table} SET value = ?, changed = ?", (value, revision))


EDITS: Final[dict[str, Callable[[sqlite3.Connection, random.Random, int], None]]] = {
    "add an extension": _add_extension,
    "drop an extension": _drop_extension,
    "rename extensions": _rename_extension,
    "balance ring groups": _balance_groups,
    "swap trunk ranks": _swap_ranks,
    "rename a queue": _rename_queue,
    "change settings": _settings,
    "change feature codes": _feature_codes,
    "change the dial plan": _dialplan,
    "change details": _details,
    "change values": _values,
}
