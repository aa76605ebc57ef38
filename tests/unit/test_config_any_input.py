"""Whatever stands in the file: settings, or all faults. Nothing else ever comes out."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from ha_sync.config import NodeSettings, SqliteSettings, StreamSettings, TreeSettings
from ha_sync.config.parse import settings_of
from ha_sync.errors import ConfigFault

KEYS = sorted(
    {fact.name for facts in (NodeSettings, StreamSettings, SqliteSettings, TreeSettings) for fact in fields(facts)}
    | {"kind", "table", "where", "full", "medium", "enabled"}
)
LIKELY = [
    "sqlite",
    "tree",
    "cdr",
    "config",
    "/srv/x",
    "/srv/x/y",
    "pages",
    "rows",
    "keep",
    "*",
    "a = 1",
    "a:1",
    "0 3 * * *",
]

scalars = st.one_of(
    st.sampled_from(LIKELY),
    st.text(max_size=12),
    st.integers(),
    st.sampled_from([10**400, -1, 0, 1, 50, 1_000_000]),
    st.floats(),
    st.booleans(),
    st.datetimes(),
)
values = st.recursive(
    scalars,
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.dictionaries(st.one_of(st.sampled_from(KEYS), st.text(max_size=5)), inner, max_size=3),
    ),
    max_leaves=6,
)
tables = st.dictionaries(st.one_of(st.sampled_from(KEYS), st.text(max_size=6)), values, max_size=8)
files = st.fixed_dictionaries(
    {},
    optional={
        "node": st.one_of(tables, values),
        "stream": st.one_of(tables, values),
        "dataset": st.one_of(st.lists(tables, max_size=4), values),
        "storage": st.one_of(st.lists(tables, max_size=2), values),
        "backup": st.one_of(tables, values),
        "console": st.one_of(tables, values),
        "unknown": values,
    },
)


def faults_of(file: dict[str, Any]) -> tuple[str, ...]:
    try:
        settings_of(file, source="sync.toml")
    except ConfigFault as fault:
        return fault.faults
    return ()


def is_told_in_lines(faults: tuple[str, ...]) -> bool:
    return all(isinstance(line, str) and line and "\n" not in line for line in faults)


@given(files)
def test_any_file_becomes_settings_or_faults(file: dict[str, Any]) -> None:
    faults = faults_of(file)
    assert is_told_in_lines(faults)
    assert ("unknown" in file) <= any(line.startswith("sync.toml.unknown") for line in faults)


@given(st.sampled_from(["sqlite", "tree"]), st.sampled_from(KEYS), values)
def test_one_odd_key_in_a_good_dataset_becomes_settings_or_faults(kind: str, key: str, value: Any) -> None:
    assert is_told_in_lines(faults_of({"dataset": [{"name": "one", "kind": kind, "path": "/srv/one", key: value}]}))
