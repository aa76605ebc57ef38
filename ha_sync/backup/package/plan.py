"""What a process of its own is told to do with each dataset: the settings that matter to a package, as JSON. Pure."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, replace
from typing import Any

from ha_sync.config import DatasetSettings, NodeLocalRows, SqliteSettings, TreeSettings
from ha_sync.core.dataset import DatasetName, Priority
from ha_sync.database.locality import Locality
from ha_sync.files.rules import Rules


@dataclass(frozen=True, slots=True, kw_only=True)
class DatasetPlan:
    """One dataset of this node."""

    name: str
    kind: str  # sqlite | tree
    path: str
    position: str = ""  # where its stream stands, for people
    left_out: tuple[str, ...] = ()  # patterns of what is the node's own or never looked at
    mailboxes: bool = False
    local_tables: tuple[str, ...] = ()
    local_rows: tuple[tuple[str, str], ...] = ()  # table and WHERE clause
    mode: int | None = None  # of a database whose file bears another one, as a guard

    @property
    def locality(self) -> Locality:
        """What is node-local in a database."""
        return Locality.of(
            SqliteSettings(
                name=DatasetName(self.name),
                path=self.path,
                priority=Priority.CONFIG,
                node_local_tables=self.local_tables,
                node_local_rows=tuple(NodeLocalRows(table=table, where=where) for table, where in self.local_rows),
            )
        )

    @property
    def rules(self) -> Rules:
        """What of a tree goes into a package."""
        return Rules(self.left_out, mailboxes=self.mailboxes)


def plan_of(settings: DatasetSettings, *, position: str = "", mode: int | None = None) -> DatasetPlan:
    """From ``sync.toml``."""
    plan = DatasetPlan(name=settings.name, kind=settings.kind.value, path=settings.path, position=position, mode=mode)
    if isinstance(settings, TreeSettings):
        # Not what is held either: a call file that was packed would be dialled at the restore.
        left_out = settings.exclude + settings.node_local + settings.hold
        return replace(plan, left_out=left_out, mailboxes=settings.mailboxes)
    rows = tuple((rule.table, rule.where) for rule in settings.node_local_rows)
    return replace(plan, local_tables=settings.node_local_tables, local_rows=rows)


def plans_out(plans: tuple[DatasetPlan, ...]) -> str:
    """JSON."""
    return json.dumps([asdict(plan) for plan in plans])


def plans_in(text: str) -> tuple[DatasetPlan, ...]:
    """The same again."""
    return tuple(_plan(values) for values in json.loads(text))


def _plan(values: dict[str, Any]) -> DatasetPlan:
    return DatasetPlan(
        name=values["name"],
        kind=values["kind"],
        path=values["path"],
        position=values["position"],
        left_out=tuple(values["left_out"]),
        mailboxes=values["mailboxes"],
        local_tables=tuple(values["local_tables"]),
        local_rows=tuple((str(table), str(where)) for table, where in values["local_rows"]),
        mode=values["mode"],
    )
