"""The documents say what is so: examples are loaded, keys and verbs are named, links lead somewhere."""

from __future__ import annotations

import re
from dataclasses import fields
from pathlib import Path

import pytest

from ha_agent import settings as ha_settings
from ha_agent.arbiter.actions import Subject
from ha_agent.health import Reason
from ha_agent.heartbeat.seal import Rejection
from ha_agent.settings.fields import SECTIONS
from ha_agent.settings.schema import Section
from ha_sync.cli.main import VERBS
from ha_sync.config import (
    ApiSettings,
    DivergenceSettings,
    MetricsSettings,
    NodeSettings,
    SqliteSettings,
    StorageSettings,
    StreamSettings,
    TreeSettings,
    load,
)
from ha_sync.errors import HaSyncError

ROOT = Path(__file__).resolve().parent.parent.parent
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])
EXAMPLES = [
    (page.name, text) for page in PAGES for text in re.findall(r"^```toml\n(.*?)^```", page.read_text(), re.M | re.S)
]


def is_ha(text: str) -> bool:
    """Whether an example is of ha.toml; the others are of sync.toml."""
    return "[ha]" in text


def errors(kind: type[HaSyncError] = HaSyncError) -> set[type[HaSyncError]]:
    return {kind}.union(*(errors(below) for below in kind.__subclasses__()))


@pytest.mark.parametrize(("page", "text"), EXAMPLES, ids=[f"{page}-{n}" for n, (page, _) in enumerate(EXAMPLES)])
def test_an_example_of_the_settings_has_no_fault(page: str, text: str, tmp_path: Path) -> None:
    file = tmp_path / "example.toml"
    file.write_text(text)
    if is_ha(text):
        found = ha_settings.load(str(file))
        assert found.pair is not None
        assert not found.warnings
    else:
        assert load(str(file)).datasets


def test_there_are_examples() -> None:
    assert {page for page, _ in EXAMPLES} >= {"README.md", "sync-toml.md", "ha-toml.md"}
    assert {page for page, text in EXAMPLES if is_ha(text)} >= {"README.md", "ha-toml.md"}


@pytest.mark.parametrize(
    "facts",
    [
        ApiSettings,
        DivergenceSettings,
        MetricsSettings,
        NodeSettings,
        SqliteSettings,
        StorageSettings,
        StreamSettings,
        TreeSettings,
    ],
)
def test_every_key_of_the_settings_is_documented(facts: type) -> None:
    reference = (ROOT / "docs/sync-toml.md").read_text()
    keys = {fact.name for fact in fields(facts)} - {"storage"}  # that one is a section of its own
    assert not [key for key in keys if f"\n| `{key}` |" not in reference]


@pytest.mark.parametrize(
    ("facts", "key"),
    [
        (NodeSettings, "state_dir"),
        (NodeSettings, "run_dir"),
        (NodeSettings, "listen"),
        (StreamSettings, "window_mib"),
        (SqliteSettings, "pages_max_mib"),
        (SqliteSettings, "log_entries_max"),
        (TreeSettings, "mass_delete_percent"),
        (TreeSettings, "trash_mib"),
        (TreeSettings, "reconcile_s"),
    ],
)
def test_a_documented_default_is_the_default(facts: type, key: str) -> None:
    (default,) = [fact.default for fact in fields(facts) if fact.name == key]
    if isinstance(default, tuple):
        (default,) = default
    text = f"{default:g}" if isinstance(default, float) else str(default)
    row, *_ = re.findall(rf"^\| `{key}` \|.*$", (ROOT / "docs/sync-toml.md").read_text(), re.M)
    assert row.split(" | ")[2].strip("`") == text


def section_of(page: str, title: str) -> str:
    text = (ROOT / "docs" / page).read_text()
    return text.partition(f"\n## {title}\n")[2].partition("\n## ")[0]


@pytest.mark.parametrize("section", SECTIONS.values(), ids=SECTIONS)
def test_the_reference_of_the_ha_settings_says_what_the_schema_says(section: Section) -> None:
    page = section_of("ha-toml.md", f"`[[{section.name}]]`" if section.most else f"`[{section.name}]`")
    rows = [f"| `{one.key}` | {one.range} | {one.default_shown} | {one.what} |" for one in section.fields]
    assert not [row for row in rows if row not in page.splitlines()]
    assert not section.most or f"at most {section.most}" in page


def test_the_reference_names_what_is_shared() -> None:
    page = section_of("ha-toml.md", "Shared and node-local").partition("Shared are ")[2].partition("All else")[0]
    whole = {f"[[{one.name}]]" if one.most else f"[{one.name}]" for one in SECTIONS.values() if one.shared}
    keys = {one.key for one in SECTIONS["ha"].fields if one.shared}
    assert set(re.findall(r"`([^`]+)`", page)) == whole | keys | {"[ha]"}
    assert all(
        one.shared or one is SECTIONS["ha"] or not any(f.shared for f in one.fields) for one in SECTIONS.values()
    )


def test_every_kind_of_probe_is_in_an_example() -> None:
    examples = [text for page, text in EXAMPLES if page == "ha-toml.md"]
    kinds = {kind.value for kind in ha_settings.ProbeKind}
    assert not [kind for kind in kinds if not any(f'kind = "{kind}"' in text for text in examples)]


def test_settings_that_must_be_equal_are_listed_as_such(tmp_path: Path) -> None:
    reference = (ROOT / "docs/ha-toml.md").read_text()
    section = reference.partition("A digest of what decides")[2].partition("\n## ")[0]
    file = tmp_path / "ha.toml"
    file.write_text(next(text for page, text in EXAMPLES if page == "ha-toml.md"))
    pair = ha_settings.load(str(file)).pair
    assert pair is not None
    assert not [name for name, _ in ha_settings.shared_facts(pair) if f"`{name}`" not in section]


@pytest.mark.parametrize("words", [Subject, Rejection, Reason], ids=["alarms", "refused beats", "faults"])
def test_what_an_agent_may_raise_stands_in_the_operations_page(words: type[Subject | Rejection | Reason]) -> None:
    page = (ROOT / "docs/operations.md").read_text()
    missing = [word.value for word in words if word.value != "none" and f"`{word.value}`" not in page]
    assert not missing


def test_every_metric_is_in_the_operations_page() -> None:
    from ha_sync.service import measures
    from tests.integration.test_metrics import LOOK

    page = section_of("operations.md", "Metrics")
    names = {one.name.removeprefix(measures.PREFIX) for one in measures.measures(LOOK)} - {"engine_up", "agent_up"}
    assert not [name for name in names if f"`{name}" not in page]


def test_every_verb_is_in_the_readme() -> None:
    readme = (ROOT / "README.md").read_text()
    assert not [verb for verb in VERBS if f"`ha-sync {verb}" not in readme]


def test_every_exit_code_is_documented() -> None:
    protocol = (ROOT / "docs/protocol.md").read_text()
    codes = {0} | {kind.exit_code for kind in errors()}
    assert not [code for code in codes if f"\n| {code} |" not in protocol]


def test_the_picture_of_the_layers_names_every_room() -> None:
    page = (ROOT / "docs/architecture.md").read_text()
    packages = (ROOT / "ha_sync", ROOT / "ha_agent")
    rooms = {path.stem for package in packages for path in package.iterdir() if path.name[0] not in "._"}
    assert not [room for room in rooms if f"`{room}`" not in page]


@pytest.mark.parametrize("page", PAGES, ids=[page.name for page in PAGES])
def test_a_link_leads_somewhere(page: Path) -> None:
    targets = re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", page.read_text())
    assert not [target for target in targets if not (page.parent / target).exists()]
