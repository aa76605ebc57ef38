"""What the targets read: the document of a message, for programs, and its subject and text, for people. Pure.

The document is JSON with stable keys (docs/ha-toml.md lists them); a mail is made of the same document. Text of other
machines cannot forge a line: what is not printable is shown as an escape.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Mapping, Sequence
from typing import Any

from ha_agent.alarms.values import RANK, Bulletin, Change, Entry
from ha_agent.settings.values import Severity

VERSION = 1
SUBJECT_MAX = 150

_ORDER = {
    Change.RAISED: "raised",
    Change.HAPPENED: "happened",
    Change.OVER: "came and went",
    Change.STANDS: "still stands",
    Change.CLEARED: "cleared",
}


def document_of(bulletin: Bulletin, *, node: str, station: str, least: Severity) -> dict[str, Any] | None:
    """What one target is told of a bulletin; None: nothing of it is as bad as it wants."""
    entries = [entry for entry in bulletin.entries if RANK[entry.severity] >= RANK[least]]
    if not entries and not bulletin.left_out:
        return None
    return {
        "version": VERSION,
        "kind": "alarms",
        "node": node,
        "station_type": station,
        "at": _iso(bulletin.unix_s),
        "entries": [_entry(entry) for entry in entries],
        "more": bulletin.more,
        "left_out": bulletin.left_out,
        "standing": bulletin.standing,
    }


def trial_document(*, node: str, station: str, unix_s: float) -> dict[str, Any]:
    """A message that says nothing but that it came."""
    return {"version": VERSION, "kind": "test", "node": node, "station_type": station, "at": _iso(unix_s)}


def subject_of(document: Mapping[str, Any]) -> str:
    """One line."""
    who = f"[ha-sync {plain(str(document['node']))}]"
    if document["kind"] == "test":
        return f"{who} test message"
    entries: Sequence[Mapping[str, Any]] = document["entries"]
    if len(entries) == 1 and not document["more"]:
        (only,) = entries
        return f"{who} {only['severity']}: {_named(only)} {_ORDER[Change(only['change'])]}"[:SUBJECT_MAX]
    counted = [
        f"{count} {words}"
        for change, words in _ORDER.items()
        if (count := sum(entry["change"] == change.value for entry in entries))
    ]
    worst = max((Severity(entry["severity"]) for entry in entries), key=RANK.__getitem__, default=Severity.WARNING)
    return f"{who} {worst.value}: alarms: {', '.join(counted) or 'too many to name'}"[:SUBJECT_MAX]


def text_of(document: Mapping[str, Any]) -> str:
    """The whole, for a person."""
    lines = [f"Node: {plain(str(document['node'])) or '-'} ({document['station_type'] or 'no station type'})"]
    lines.append(f"Time: {document['at']}")
    if document["kind"] == "test":
        return "\n".join([*lines, "", "This is a test. Alarms of this node arrive here.", ""])
    for entry in document["entries"]:
        lines += ["", *_told(entry)]
    if document["more"]:
        lines += ["", f"{document['more']} more changes: `ha-sync alarms list`, `ha-sync logs events`"]
    if document["left_out"]:
        lines += ["", f"{document['left_out']} more alarms, of which none could be kept: `ha-sync logs events`"]
    return "\n".join([*lines, "", f"Standing now: {document['standing']}. `ha-sync alarms list`", ""])


def plain(text: str) -> str:
    """Without line breaks and control characters."""
    return text if text.isprintable() else ascii(text)


def _told(entry: Mapping[str, Any]) -> list[str]:
    times = f", {entry['count']} times" if entry["count"] > 1 else ""
    head = f"{_ORDER[Change(entry['change'])]}: {_named(entry)} ({entry['severity']}), since {entry['since']}{times}"
    return [head, *(f"  {plain(name)}: {plain(value)}" for name, value in entry["fields"].items() if value)]


def _named(entry: Mapping[str, Any]) -> str:
    return plain(entry["what"] + (f": {entry['subject']}" if entry["subject"] else ""))


def _entry(entry: Entry) -> dict[str, Any]:
    return {
        "change": entry.change.value,
        "severity": entry.severity.value,
        "what": entry.key.what,
        "subject": entry.key.subject,
        "since": _iso(entry.since_unix_s),
        "count": entry.count,
        "fields": dict(entry.fields),
    }


def _iso(unix_s: float) -> str:
    return dt.datetime.fromtimestamp(unix_s, tz=dt.UTC).isoformat(timespec="seconds")
