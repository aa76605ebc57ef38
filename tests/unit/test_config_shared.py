"""The pair's part of ``sync.toml``: told by one node, put into the file of the other, which keeps what is its own."""

from __future__ import annotations

import json
import tomllib
from typing import Any

import pytest
import tomlkit
from hypothesis import given
from hypothesis import strategies as st

from ha_sync.config import shared
from ha_sync.errors import ProtocolFault

ACTIVES = """
[node]
name = "a"

[[dataset]]
name = "cdr"
kind = "sqlite"
path = "/a/cdr.db"
capture = "rows"

[[dataset]]
name = "new"
kind = "tree"
path = "/a/new"
exclude = ["*.tmp"]

[backup]
full = "0 4 * * *"
"""

STANDBYS = """# of this node
[node]
name = "b"   # the second one

[[dataset]]
name = "gone"
kind = "tree"
path = "/b/gone"

[backup]      # at night
full = "0 3 * * *"
rate_mib_per_s = 10

[[dataset]]   # calls
name = "cdr"
kind = "sqlite"
path = "/b/cdr.db"  # on the other disk
pages_max_mib = 64

[metrics]
listen = "127.0.0.1:9528"
"""


def told(text: str) -> str:
    return shared.text_of(tomllib.loads(text))


@pytest.mark.req("R1.14", "R5")
def test_the_standbys_file_says_what_the_actives_does_and_keeps_its_own() -> None:
    after = shared.merged(STANDBYS, told(ACTIVES))
    values = tomllib.loads(after)
    assert values["dataset"] == [
        {"name": "cdr", "kind": "sqlite", "path": "/b/cdr.db", "capture": "rows"},
        {"name": "new", "kind": "tree", "path": "/a/new", "exclude": ["*.tmp"]},
    ]
    assert values["backup"] == {"full": "0 4 * * *"}
    assert values["node"] == {"name": "b"}
    assert values["metrics"] == {"listen": "127.0.0.1:9528"}
    assert shared.digest_of(told(after)) == shared.digest_of(told(ACTIVES)) != shared.digest_of(told(STANDBYS))
    for comment in ("# of this node", "# the second one", "# calls", "# on the other disk", "# at night"):
        assert comment in after
    assert shared.merged(after, told(ACTIVES)) == after
    assert shared.differences(tomllib.loads(STANDBYS), values) == (
        "backup.full", "backup.rate_mib_per_s", "dataset[gone]", "dataset[cdr].pages_max_mib", "dataset[cdr].capture",
        "dataset[new]",
    )  # fmt: skip


def test_a_dataset_of_another_kind_is_another_thing_at_another_place() -> None:
    after = tomllib.loads(shared.merged(STANDBYS, told(ACTIVES.replace('kind = "sqlite"', 'kind = "tree"'))))
    assert after["dataset"][0]["path"] == "/a/cdr.db"


def test_entries_in_one_line_are_entries_too() -> None:
    one_line = 'dataset = [{ name = "cdr", kind = "sqlite", path = "/b/cdr.db" }]\nbackup = { rate_mib_per_s = 1 }\n'
    text = f'{one_line}[node]\nname = "b"\n'
    after = shared.merged(text, told(ACTIVES))
    assert shared.digest_of(told(after)) == shared.digest_of(told(ACTIVES))
    assert tomllib.loads(after)["dataset"][0]["path"] == "/b/cdr.db"


@pytest.mark.parametrize(
    "text",
    [
        "", "[]", "null", "{", '{"node": {}}', '{"backup": []}', '{"dataset": {}}', '{"dataset": [{}]}',
        '{"dataset": [{"name": 1}]}', '{"storage": [{"name": "a"}, {"name": "a"}]}', "[" * 100_000,
    ],
)  # fmt: skip
def test_what_is_no_definition_is_refused_and_never_half_used(text: str) -> None:
    with pytest.raises(ProtocolFault):
        shared.merged(STANDBYS, text)
    with pytest.raises(ProtocolFault):
        shared.digest_of(text)


VALUES = st.one_of(
    st.booleans(), st.integers(-5, 5), st.sampled_from([0.5, 60.0]), st.text(max_size=8), st.lists(st.text(max_size=4))
)
KEYS = st.sampled_from(["kind", "exclude", "quiet_ms", "poll_s", "growing"])
TABLES = st.dictionaries(KEYS, VALUES, max_size=4)
ENTRIES = st.dictionaries(
    st.sampled_from(["a", "b", "c", "d"]), st.tuples(st.sampled_from(["/p", "/q", "/r"]), TABLES), max_size=4
).map(lambda named: [{"name": name, "path": path, **rest} for name, (path, rest) in named.items()])
FILES = st.fixed_dictionaries(
    {},
    optional={
        "node": TABLES, "dataset": ENTRIES, "backup": TABLES, "storage": ENTRIES, "stream": TABLES, "metrics": TABLES,
    },
)  # fmt: skip


@pytest.mark.req("R1.14", "R5")
@given(FILES, FILES)
def test_any_file_takes_any_definitions(mine: dict[str, Any], theirs: dict[str, Any]) -> None:
    text = tomlkit.dumps(mine)
    after = shared.merged(text, shared.text_of(theirs))
    values = tomllib.loads(after)
    assert shared.digest_of(shared.text_of(values)) == shared.digest_of(shared.text_of(theirs))
    for own in ("node", "metrics"):
        assert values.get(own) == mine.get(own)
    for name in shared.ENTRIES:
        before = {one["name"]: one for one in mine.get(name, [])}
        for entry in values.get(name, []):
            here, there = before.get(entry["name"]), next(x for x in theirs[name] if x["name"] == entry["name"])
            keeps = here is not None and json.dumps(here.get("kind")) == json.dumps(there.get("kind"))
            assert entry["path"] == (here if keeps and here else there)["path"]
