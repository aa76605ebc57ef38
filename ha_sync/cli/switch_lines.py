"""Entries of the switch log for a person."""

from __future__ import annotations

from typing import Final

from ha_proto.agent.v1 import agent_pb2 as pb
from ha_sync.cli.output import GAP, plain
from ha_sync.cli.reasons import words
from ha_sync.cli.times import moment

RESULTS: Final = ("open", "done", "failed", "aborted", "refused", "observed", "interrupted")
PHASES: Final = ("detect", "decide", "address", "services")
NOTHING: Final = "-"

_HEADINGS: Final = ("BEGIN", "TRIGGER", "FROM -> TO", "EPOCH", "RESULT", "SECONDS", "PHASES, SECONDS")
# Fixed widths: with --follow nobody knows what is to come.
_WIDTHS: Final = (29, 9, 20, 6, 11, 7, 0)
_NUMBERS: Final = frozenset({3, 5})


def heading() -> str:
    """Above the entries."""
    return _row(_HEADINGS)


def lines_of(record: pb.SwitchRecord) -> list[str]:
    """The entry, and below it its reason and its error where there are any."""
    row = (
        moment(record.begin_unix_s),
        record.trigger,
        roles(record),
        str(record.epoch),
        record.result,
        _took(record),
        _phases(record),
    )
    finished = ", ".join(f"{plain(what)} ({record.finished[what]})" for what in sorted(record.finished))
    below = [*_why(record), *([("finished for the dead node", finished)] if finished else [])]
    return [_row(row), *(f"    {name}: {text}" for name, text in below)]


def summary(record: pb.SwitchRecord) -> str:
    """The entry in one line."""
    took = f" in {record.took_s:.1f} s" if record.HasField("took_s") else ""
    why = "".join(f"; {text}" for _, text in _why(record))
    what = f"{record.trigger}, {roles(record)}, epoch {record.epoch}: {record.result}"
    return f"{moment(record.begin_unix_s)} {what}{took}{why}"


def roles(record: pb.SwitchRecord) -> str:
    """From which role to which."""
    return f"{record.from_role or NOTHING} -> {record.to_role or NOTHING}"


def _why(record: pb.SwitchRecord) -> list[tuple[str, str]]:
    return [(name, words(text)) for name, text in (("reason", record.reason), ("error", record.error)) if text]


def _took(record: pb.SwitchRecord) -> str:
    return f"{record.took_s:.2f}" if record.HasField("took_s") else NOTHING


def _phases(record: pb.SwitchRecord) -> str:
    known = [name for name in PHASES if name in record.phases_s]
    others = sorted(set(record.phases_s) - set(known))
    return " ".join(f"{name} {record.phases_s[name]:.2f}" for name in (*known, *others)) or NOTHING


def _row(cells: tuple[str, ...]) -> str:
    return GAP.join(
        cell.rjust(width) if column in _NUMBERS else cell.ljust(width)
        for column, (cell, width) in enumerate(zip(cells, _WIDTHS, strict=True))
    ).rstrip()
