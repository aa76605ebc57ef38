"""What the pair replicates is said on the Active: the Standby's ``sync.toml`` follows and keeps what is its own."""

from __future__ import annotations

import json
import os
import sqlite3
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from ha_sync.config import load
from ha_sync.sample.pair import LocalNode, LocalPair
from tests.support.small_pair import furnish, read_rows, small_toml, until

CAME = "definitions came from the Active: they hold after a restart of ha-sync"
REFUSED = "what the nodes share could not be taken from the Active"
SCHEDULE = '\n[backup]\nfull = "30 4 * * *"\n'
NEW = '\n[[dataset]]\nname = "{name}"\nkind = "tree"\npath = "{path}"\n'


@pytest.fixture
def pair(tmp_path: Path) -> Iterator[LocalPair]:
    with LocalPair(str(tmp_path), small_toml) as made:
        furnish(made.a.place.root)
        made.start()
        assert made.a.wait_replicated() == ()
        yield made


def events(node: LocalNode, what: str) -> list[dict[str, str]]:
    lines = node.command("logs", "events", "--json").stdout.splitlines()
    return [event["fields"] for event in map(json.loads, lines) if event["what"] == what]


def change(node: LocalNode, text: str, role: str) -> None:
    """By an editor, and then the engine is restarted as the documentation says."""
    Path(node.config).write_text(text)
    node.kill()
    node.serve(role, 1)


@pytest.mark.req("R1.14", "R5")
def test_what_is_changed_on_the_active_is_in_the_standbys_file_and_holds_after_its_restart(pair: LocalPair) -> None:
    mine = Path(pair.b.config)
    before = "# the second node\n" + mine.read_text().replace("[node]", "[node] # its own")
    mine.write_text(before)
    mine.chmod(0o640)
    text = Path(pair.a.config).read_text()
    change(pair.a, text.replace('priority = "cdr"\n', 'priority = "cdr"\nexclude = ["*.tmp"]\n') + SCHEDULE, "active")
    until(lambda: bool(events(pair.b, CAME)), "the definitions")
    assert events(pair.b, CAME)[0]["changed"] == "backup.full, dataset[files].exclude"
    after = mine.read_text()
    assert after.startswith("# the second node\n")
    assert "[node] # its own" in after
    assert stat.S_IMODE(mine.stat().st_mode) == 0o640
    assert Path(f"{pair.b.config}.previous").read_text() == before
    settings = load(pair.b.config)
    assert settings.backup.full == "30 4 * * *"
    assert {one.path for one in settings.datasets} == {
        f"{pair.b.place.root}/{name}" for name in ("config.db", "astdb.sqlite3", "files", "recordings")
    }
    assert "holds after a restart" in pair.b.command("status").stdout
    pair.b.kill()
    pair.b.serve("standby", 1)
    pair.until_streaming()
    assert "holds after a restart" not in pair.b.command("status").stdout
    Path(pair.a.place.root, "files", "left.tmp").write_text("x")
    Path(pair.a.place.root, "files", "taken").write_text("x")
    assert pair.a.wait_replicated() == ()
    assert [name for name in os.listdir(f"{pair.b.place.root}/files") if not name.startswith(".ha-")] == ["taken"]


@pytest.mark.req("R15", "R5")
def test_what_an_editor_changes_on_the_standby_is_put_back(pair: LocalPair) -> None:
    mine = Path(pair.b.config)
    text = mine.read_text()
    mine.write_text(text.replace("growing = true", "growing = false"))
    until(lambda: bool(events(pair.b, CAME)), "the definitions")
    assert events(pair.b, CAME)[0]["changed"] == "dataset[recordings].growing"
    assert mine.read_text() == text


@pytest.mark.req("R15")
def test_a_dataset_that_the_pair_gives_up_leaves_no_guard_in_the_standbys_database(pair: LocalPair) -> None:
    database = f"{pair.b.place.root}/config.db"
    with sqlite3.connect(database) as connection, pytest.raises(sqlite3.IntegrityError, match="standby"):
        connection.execute("INSERT INTO extension (number, name) VALUES ('1', 'x')")
    connection.close()
    pair.a.command("detach", "config")
    text = Path(pair.a.config).read_text()
    begin, end = text.index('[[dataset]]\nname = "config"'), text.index('[[dataset]]\nname = "astdb"')
    change(pair.a, text[:begin] + text[end:], "active")
    until(lambda: bool(events(pair.b, CAME)), "the definitions")
    assert "config: " in events(pair.b, CAME)[0]["removed"]
    assert "config" not in [one.name for one in load(pair.b.config).datasets]
    assert read_rows(database, "SELECT name FROM sqlite_master WHERE name LIKE '%ha%'") == []
    with sqlite3.connect(database) as connection:
        connection.execute("INSERT INTO extension (number, name) VALUES ('1', 'x')")
    connection.close()
    pair.b.kill()
    pair.b.serve("standby", 1)
    pair.until_streaming()


@pytest.mark.req("R3", "R5")
def test_a_new_dataset_is_taken_only_where_the_standby_holds_nothing_of_its_own(
    pair: LocalPair, tmp_path: Path
) -> None:
    held = tmp_path / "held"
    held.mkdir()
    (held / "mine").write_text("of the second node")
    before = Path(pair.b.config).read_text()
    text = Path(pair.a.config).read_text()
    change(pair.a, text + NEW.format(name="more", path=held), "active")
    until(lambda: bool(events(pair.b, REFUSED)), "the refusal")
    reason = events(pair.b, REFUSED)[0]["reason"]
    assert str(held) in reason
    assert "move it away" in reason
    assert Path(pair.b.config).read_text() == before
    assert (held / "mine").read_text() == "of the second node"
    change(pair.a, text + NEW.format(name="more", path=tmp_path / "nothing-yet"), "active")
    until(lambda: bool(events(pair.b, CAME)), "the definitions")
    assert events(pair.b, CAME)[0]["changed"] == "dataset[more]"
    assert load(pair.b.config).datasets[-1].path == str(tmp_path / "nothing-yet")


@pytest.mark.req("R1.14", "R5", "R33")
def test_the_schedule_is_a_setting_that_is_shown_checked_and_changed_on_the_active(pair: LocalPair) -> None:
    before = Path(pair.a.config).read_text()
    shown = pair.a.command("settings", "show", "backup", "--help-texts").stdout
    assert "backup.full" in shown
    assert "(0 3 * * *)" in shown
    for wrong in ("backup.full=every night", "backup.rate_mib_per_s=much", "backup.rate_mib_per_s=-1"):
        refused = pair.a.command("settings", "set", wrong, "--yes", check=False)
        assert refused.returncode == 2
        assert wrong.partition("=")[0] in refused.stderr
    assert pair.a.command("settings", "set", "backup.hour=3", "--yes", check=False).returncode == 2
    mixed = pair.a.command("settings", "set", "backup.full=off", "ha.policy=consistency", "--yes", check=False)
    assert mixed.returncode == 2
    on_standby = pair.b.command("settings", "set", "backup.full=off", "--yes", check=False)
    assert (on_standby.returncode, Path(pair.a.config).read_text()) == (3, before)
    tried = pair.a.command("settings", "set", "backup.full=30 4 * * *", "--dry-run").stdout
    assert "backup.full: (default) -> 30 4 * * * (shared)" in tried
    assert Path(pair.a.config).read_text() == before
    done = pair.a.command("settings", "set", "backup.full=30 4 * * *", "--yes").stdout
    assert "systemctl restart ha-sync" in done
    assert pair.a.command("settings", "get", "backup.full").stdout == "30 4 * * *\n"
    assert Path(f"{pair.a.config}.previous").read_text() == before
    assert load(pair.b.config).backup.full == "0 3 * * *", "what does not run yet travels nowhere"
    pair.a.kill()
    pair.a.serve("active", 1)
    until(lambda: load(pair.b.config).backup.full == "30 4 * * *", "the schedule on the Standby")
    pair.a.command("settings", "set", "--unset", "backup.full", "--yes")
    assert load(pair.a.config).backup.full == "0 3 * * *"


@pytest.mark.req("R33")
def test_a_file_with_a_fault_is_left_alone_and_named(pair: LocalPair) -> None:
    faulty = Path(pair.b.config).read_text().replace("growing = true", "growing = false") + "\n[nonsense]\n"
    Path(pair.b.config).write_text(faulty)
    until(lambda: bool(events(pair.b, REFUSED)), "the refusal")
    assert "nonsense" in events(pair.b, REFUSED)[0]["reason"]
    assert Path(pair.b.config).read_text() == faulty
    Path(pair.b.config).write_text(faulty.replace("[nonsense]", ""))
    until(lambda: bool(events(pair.b, CAME)), "the definitions")
