"""The configuration database of the sample PBX: some fifty related tables, as SQL, and the rules that span rows.

Foreign keys with cascades on delete and update, unique indexes, AUTOINCREMENT, composite keys, WITHOUT ROWID, a table
without any key, a generated column, BLOBs, application triggers, a phone book with an FTS5 index. ``broken_rules`` is
what a split transaction would break.
"""

from __future__ import annotations

import sqlite3
from typing import Final

_MAIN: Final = """
CREATE TABLE revision (id INTEGER PRIMARY KEY CHECK (id = 1), number INTEGER NOT NULL, audits INTEGER NOT NULL);
CREATE TABLE audit (id INTEGER PRIMARY KEY AUTOINCREMENT, revision INTEGER NOT NULL, what TEXT NOT NULL);
CREATE TABLE users (id INTEGER PRIMARY KEY AUTOINCREMENT, login TEXT NOT NULL UNIQUE, hash BLOB, note TEXT);
CREATE TABLE user_roles (user_id INTEGER NOT NULL REFERENCES users ON DELETE CASCADE, role TEXT NOT NULL,
    PRIMARY KEY (user_id, role)) WITHOUT ROWID;
CREATE TABLE extensions (id INTEGER PRIMARY KEY AUTOINCREMENT, number TEXT NOT NULL UNIQUE, name TEXT NOT NULL,
    secret BLOB, port INTEGER UNIQUE, changed INTEGER NOT NULL,
    dial TEXT GENERATED ALWAYS AS ('PJSIP/' || number) VIRTUAL);
CREATE TABLE trunks (id INTEGER PRIMARY KEY AUTOINCREMENT, name TEXT NOT NULL UNIQUE, host TEXT, rank INTEGER UNIQUE,
    changed INTEGER NOT NULL);
CREATE TABLE trunk_options (trunk_id INTEGER NOT NULL REFERENCES trunks ON DELETE CASCADE, name TEXT NOT NULL,
    value TEXT, PRIMARY KEY (trunk_id, name)) WITHOUT ROWID;
CREATE TABLE outbound_routes (id INTEGER PRIMARY KEY AUTOINCREMENT, name TEXT NOT NULL UNIQUE, changed INTEGER);
CREATE TABLE outbound_trunks (route_id INTEGER NOT NULL REFERENCES outbound_routes ON DELETE CASCADE,
    place INTEGER NOT NULL, trunk_id INTEGER NOT NULL REFERENCES trunks ON DELETE CASCADE, changed INTEGER,
    PRIMARY KEY (route_id, place)) WITHOUT ROWID;
CREATE TABLE outbound_patterns (id INTEGER PRIMARY KEY, route_id INTEGER NOT NULL REFERENCES outbound_routes
    ON DELETE CASCADE, pattern TEXT NOT NULL, UNIQUE (route_id, pattern));
CREATE TABLE inbound_routes (did TEXT PRIMARY KEY, trunk_id INTEGER REFERENCES trunks ON DELETE SET NULL,
    target TEXT, changed INTEGER) WITHOUT ROWID;
CREATE TABLE ring_groups (id INTEGER PRIMARY KEY, name TEXT NOT NULL UNIQUE, members INTEGER NOT NULL,
    changed INTEGER NOT NULL);
CREATE TABLE ring_group_members (group_id INTEGER NOT NULL REFERENCES ring_groups ON DELETE CASCADE,
    place INTEGER NOT NULL, extension_id INTEGER NOT NULL REFERENCES extensions, weight INTEGER NOT NULL,
    changed INTEGER NOT NULL, PRIMARY KEY (group_id, place));
CREATE TABLE queues (name TEXT PRIMARY KEY, strategy TEXT, timeout REAL, changed INTEGER NOT NULL);
CREATE TABLE queue_members (queue TEXT NOT NULL REFERENCES queues ON DELETE CASCADE ON UPDATE CASCADE,
    interface TEXT NOT NULL, penalty INTEGER, changed INTEGER, PRIMARY KEY (queue, interface)) WITHOUT ROWID;
CREATE TABLE sip_settings (name TEXT PRIMARY KEY, value TEXT);
CREATE TABLE network (interface TEXT PRIMARY KEY, address TEXT, gateway TEXT);
CREATE TABLE feature_codes (id INTEGER PRIMARY KEY, code TEXT NOT NULL UNIQUE, feature TEXT NOT NULL UNIQUE,
    changed INTEGER);
CREATE TABLE dialplan_extra (context TEXT, line TEXT);
CREATE TABLE moh_files (id INTEGER PRIMARY KEY, name TEXT UNIQUE, sample BLOB);
CREATE TABLE phonebook (id INTEGER PRIMARY KEY, extension_id INTEGER REFERENCES extensions ON DELETE CASCADE,
    display TEXT NOT NULL, number TEXT NOT NULL);
CREATE VIRTUAL TABLE phonebook_fts USING fts5(display, number, content='phonebook', content_rowid='id');
CREATE TRIGGER phonebook_ai AFTER INSERT ON phonebook BEGIN
    INSERT INTO phonebook_fts(rowid, display, number) VALUES (new.id, new.display, new.number); END;
CREATE TRIGGER phonebook_ad AFTER DELETE ON phonebook BEGIN
    INSERT INTO phonebook_fts(phonebook_fts, rowid, display, number)
        VALUES ('delete', old.id, old.display, old.number); END;
CREATE TRIGGER phonebook_au AFTER UPDATE ON phonebook BEGIN
    INSERT INTO phonebook_fts(phonebook_fts, rowid, display, number)
        VALUES ('delete', old.id, old.display, old.number);
    INSERT INTO phonebook_fts(rowid, display, number) VALUES (new.id, new.display, new.number); END;
CREATE TRIGGER extension_renamed AFTER UPDATE OF name ON extensions BEGIN
    UPDATE phonebook SET display = new.name WHERE extension_id = new.id; END;
CREATE TRIGGER audit_counted AFTER INSERT ON audit BEGIN
    UPDATE revision SET audits = audits + 1 WHERE id = 1; END;
CREATE INDEX extensions_by_name ON extensions (name COLLATE NOCASE);
CREATE INDEX audit_by_revision ON audit (revision);
"""

OF_EXTENSION: Final = (
    "voicemail_boxes",
    "followme",
    "call_forward",
    "speed_dials",
    "phones",
    "phone_keys",
    "features",
    "permissions",
    "fax_users",
    "pickup_members",
    "paging_members",
    "monitor_rules",
    "presence",
)
"""Tables of details of an extension: they go with it."""

STANDALONE: Final = (
    "ivr",
    "ivr_options",
    "time_conditions",
    "time_groups",
    "holidays",
    "conferences",
    "parking_lots",
    "moh_classes",
    "announcements",
    "blacklist",
    "codecs",
    "provisioning",
    "languages",
    "emergency_numbers",
    "mail_settings",
    "ldap_settings",
    "callback",
    "disa",
)
"""Tables of named values."""

VERSION: Final = 7


def create(connection: sqlite3.Connection) -> None:
    """The schema in an empty database, inside the caller's transaction."""
    for statement in _statements(_MAIN):
        connection.execute(statement)
    for name in OF_EXTENSION:
        connection.execute(
            f"CREATE TABLE {name} (id INTEGER PRIMARY KEY AUTOINCREMENT, extension_id INTEGER NOT NULL "
            "REFERENCES extensions ON DELETE CASCADE, label TEXT NOT NULL, setting TEXT, changed INTEGER NOT NULL, "
            "UNIQUE (extension_id, label))"
        )
    for name in STANDALONE:
        connection.execute(f"CREATE TABLE {name} (name TEXT PRIMARY KEY, value, changed INTEGER NOT NULL)")
    connection.execute(f"PRAGMA user_version = {VERSION}")


def _statements(script: str) -> list[str]:
    found, text = [], ""
    for line in script.splitlines(keepends=True):
        text += line
        if sqlite3.complete_statement(text):
            found.append(text)
            text = ""
    return found


def broken_rules(connection: sqlite3.Connection) -> list[str]:
    """Which rules that span rows do not hold. A committed state of the PBX breaks none."""
    questions = {
        "weights of a ring group are 100 in sum": "SELECT group_id FROM ring_group_members GROUP BY group_id "
        "HAVING sum(weight) <> 100",
        "a ring group counts its members": "SELECT id FROM ring_groups g WHERE members <> "
        "(SELECT count(*) FROM ring_group_members WHERE group_id = g.id)",
        "places in a ring group are dense": "SELECT group_id FROM ring_group_members GROUP BY group_id "
        "HAVING max(place) <> count(*) OR min(place) <> 1",
        "the revision is the last audit's": "SELECT number FROM revision WHERE number <> "
        "(SELECT max(revision) FROM audit)",
        "the revision counts the audits": "SELECT audits FROM revision WHERE audits <> (SELECT count(*) FROM audit)",
        "every extension has its voicemail box and phone book entry": "SELECT id FROM extensions e WHERE "
        "(SELECT count(*) FROM voicemail_boxes WHERE extension_id = e.id) <> 1 OR "
        "(SELECT count(*) FROM phonebook WHERE extension_id = e.id AND display = e.name) <> 1",
        "trunk ranks are dense": "SELECT * FROM (SELECT max(rank) AS high, min(rank) AS low, "
        "count(*) AS total FROM trunks) WHERE high <> total OR low <> 1",
    }
    found = []
    for rule, question in questions.items():
        bad = connection.execute(question).fetchall()
        if bad:
            found.append(f"{rule}: broken for {[row[0] for row in bad[:5]]}")
    orphans = connection.execute("PRAGMA foreign_key_check").fetchall()
    if orphans:
        found.append(f"foreign keys: {orphans[:5]}")
    return found
