"""The documents say what is so: examples are loaded, keys and verbs are named, links lead somewhere."""

from __future__ import annotations

import re
from dataclasses import fields
from pathlib import Path

import pytest

from ha_sync.cli.main import VERBS
from ha_sync.config import NodeSettings, SqliteSettings, StreamSettings, TreeSettings, load
from ha_sync.errors import HaSyncError

ROOT = Path(__file__).resolve().parent.parent.parent
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])
EXAMPLES = [
    (page.name, text) for page in PAGES for text in re.findall(r"^```toml\n(.*?)^```", page.read_text(), re.M | re.S)
]


def errors(kind: type[HaSyncError] = HaSyncError) -> set[type[HaSyncError]]:
    return {kind}.union(*(errors(below) for below in kind.__subclasses__()))


@pytest.mark.parametrize(("page", "text"), EXAMPLES, ids=[f"{page}-{n}" for n, (page, _) in enumerate(EXAMPLES)])
def test_an_example_of_the_settings_has_no_fault(page: str, text: str, tmp_path: Path) -> None:
    file = tmp_path / "sync.toml"
    file.write_text(text)
    assert load(str(file)).datasets


def test_there_are_examples() -> None:
    assert {page for page, _ in EXAMPLES} >= {"README.md", "sync-toml.md"}


@pytest.mark.parametrize("facts", [NodeSettings, StreamSettings, SqliteSettings, TreeSettings])
def test_every_key_of_the_settings_is_documented(facts: type) -> None:
    reference = (ROOT / "docs/sync-toml.md").read_text()
    assert not [fact.name for fact in fields(facts) if f"\n| `{fact.name}` |" not in reference]


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
    text = f"{default:g}" if isinstance(default, float) else str(default)
    (row,) = re.findall(rf"^\| `{key}` \|.*$", (ROOT / "docs/sync-toml.md").read_text(), re.M)
    assert row.split(" | ")[2].strip("`") == text


def test_every_verb_is_in_the_readme() -> None:
    readme = (ROOT / "README.md").read_text()
    assert not [verb for verb in VERBS if f"`ha-sync {verb}" not in readme]


def test_every_exit_code_is_documented() -> None:
    protocol = (ROOT / "docs/protocol.md").read_text()
    codes = {0} | {kind.exit_code for kind in errors()}
    assert not [code for code in codes if f"\n| {code} |" not in protocol]


def test_the_picture_of_the_layers_names_every_room() -> None:
    page = (ROOT / "docs/architecture.md").read_text()
    rooms = {path.stem for path in (ROOT / "ha_sync").iterdir() if path.name[0] not in "._"}
    assert not [room for room in rooms if f"`{room}`" not in page]


@pytest.mark.parametrize("page", PAGES, ids=[page.name for page in PAGES])
def test_a_link_leads_somewhere(page: Path) -> None:
    targets = re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", page.read_text())
    assert not [target for target in targets if not (page.parent / target).exists()]
