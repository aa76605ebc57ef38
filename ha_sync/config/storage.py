"""``[[storage]]``: one entry into the tree that is streamed under its name, with what a storage is besides.

A storage is a dataset of the live stream with a policy: it must be a mount point, nothing goes before an operator asked
for the first sync, and where it is add-only deletions stay behind.
"""

from __future__ import annotations

import os

from ha_sync.config import place
from ha_sync.config.dataset import LIST_MAX, pattern_problem
from ha_sync.config.reading import Faults, Table
from ha_sync.config.settings import Medium, Mode, StorageSettings, TreeSettings
from ha_sync.core.dataset import DatasetName, Priority


def parse_storage(number: int, values: dict[str, object], faults: Faults) -> TreeSettings | None:
    """The ``number``-th entry, counted from 1; None where it cannot even be said what it is."""
    given = values.get("name")
    label = given if isinstance(given, str) and not place.dataset_name(given) else str(number)
    table = Table(f"storage[{label}]", values, faults)
    name = table.required_text("name", 'e.g. name = "usb0"', place.dataset_name)
    path = table.required_text("path", "where it is mounted", place.tree_root)
    if not table.has("medium"):
        table.fault("medium", 'is missing: "sd", "usb" or "nas"')
    medium = table.choice("medium", Medium.USB, Medium)
    plain = StorageSettings(medium=medium)
    storage = StorageSettings(
        medium=medium,
        mode=table.choice("mode", plain.mode, Mode),
        rate_mib_per_s=table.integer(
            "rate_mib_per_s", plain.rate_mib_per_s, low=0, high=100_000, unit="MiB a second; 0: no bound"
        ),
    )
    tree = TreeSettings(name=DatasetName(name), path=os.path.normpath(path), priority=Priority.STORAGE, storage=storage)
    settings = TreeSettings(
        name=tree.name,
        path=tree.path,
        priority=tree.priority,
        storage=storage,
        exclude=table.texts("exclude", pattern_problem, most=LIST_MAX),
        mass_delete_percent=table.integer(
            "mass_delete_percent", tree.mass_delete_percent, low=1, high=100, unit="percent; 100: never halt"
        ),
        trash_mib=table.integer("trash_mib", tree.trash_mib, low=0, high=16 * 1024 * 1024, unit="MiB; 0: no trash"),
        poll_s=table.number("poll_s", 0.0, low=0.1, high=3600, unit="seconds") or None,
        reconcile_s=table.number("reconcile_s", tree.reconcile_s, low=1, high=86_400, unit="seconds"),
    )
    if storage.mode is Mode.ADD_ONLY and table.has("mass_delete_percent"):
        table.fault("mass_delete_percent", 'contradicts mode = "add-only", in which nothing is deleted: drop one')
    table.finish()
    return settings if name and path else None
