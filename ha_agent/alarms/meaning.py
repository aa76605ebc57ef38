"""Which event is which alarm. Pure; the one place that says so, for events of the agent and of the engine.

Every warning and every error becomes an alarm, but for those that ``SILENT`` names with the reason. One that was logged
with an edge stands until it is cleared; of the others ``ENDED_BY`` knows the event that ends them, the rest happened.
"""

from __future__ import annotations

from collections.abc import Mapping

from ha_agent.alarms.values import Edge, Key, Seen, bounded
from ha_agent.settings.values import Severity

SWITCH_ENDED = "a switch ended"
ENGINE_LOST = "engine lost"
LINK = "link of the cluster IP"
REFUSED = "connection refused"
BACKUP_ENDED = "full backup ended"

SILENT = {
    "the arbiter moved": "a switch is told when it has ended",
    "a request was refused": "who asked was told",
    "maintenance": "somebody asked for it",
    "the hold was released": "somebody asked for it",
    "the services are stopped for a restore": "somebody asked for it",
    "settings saved: they hold after a restart of the agent": "somebody asked for it",
    "shared settings came from the Active: they hold after a restart of the agent": "somebody asked for it",
    "settings accepted with a warning": "said at each start",
    "settings accepted with a notice": "said at each start of the engine, and by its status",
    "agent lost: the engine keeps its role": "the agent tells of itself when it is back",
    "dataset failed": "stands among the troubles of the engine",
    "rows capture changed state": "stands among the troubles of the engine",
    "capture is still starting": "it goes on by itself; what does not stands among the troubles of the engine",
    "would have been done (observe only)": "nothing was done",
}

ENDED_BY = {"engine attached": Key(ENGINE_LOST), LINK: Key(LINK)}
"""What ends an alarm that was raised by an event without an edge. The same event may do both: its severity tells."""

STANDING = {ENGINE_LOST, LINK}

SUBJECT_OF = {
    SWITCH_ENDED: "epoch",
    REFUSED: "peer",
    "a path to the other node does not work": "path",
    "a storage cannot be used": "storage",
    "divergence saved: the other node never got this": "id",
    "divergence does not fit: part of it is not kept": "id",
}
"""The field that tells one from another; otherwise the dataset, where there is one."""


def seen_of(
    severity: str, what: str, fields: Mapping[str, object], *, subject: str = "", edge: str = "none"
) -> Seen | None:
    """None: no alarm."""
    if edge != "none":
        key = Key(what, subject)
        return Seen(key=key, edge=Edge(edge), severity=Severity(severity), fields=bounded(fields))
    if severity == "info":
        ended = ENDED_BY.get(what)
        return None if ended is None else Seen(key=ended, edge=Edge.CLEARED, fields=bounded(fields))
    # A backup that failed stands among the troubles of the engine; one that found and repaired something happened.
    if what in SILENT or (what == BACKUP_ENDED and fields.get("result") != "done"):
        return None
    return Seen(
        key=Key(what, _subject(what, fields)),
        edge=Edge.RAISED if what in STANDING else Edge.HAPPENED,
        severity=Severity(severity),
        fields=bounded(fields),
    )


def _subject(what: str, fields: Mapping[str, object]) -> str:
    found = str(fields.get(SUBJECT_OF.get(what, "dataset"), ""))
    # A stranger that comes from another port each time is one stranger.
    return found.rpartition(":")[0] or found if what == REFUSED else found
