"""``sync.toml``: what is accepted becomes settings, what is not is told completely."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest

from ha_sync.config import (
    CaptureMode,
    Compression,
    Hold,
    Medium,
    Mode,
    NodeLocalRows,
    Settings,
    SqliteSettings,
    StorageSettings,
    TreeSettings,
    load,
    load_node,
)
from ha_sync.core.dataset import Priority
from ha_sync.errors import ConfigFault


def read(tmp_path: Path, text: str) -> Settings:
    file = tmp_path / "sync.toml"
    file.write_text(text)
    return load(str(file))


def faults(tmp_path: Path, text: str) -> tuple[str, ...]:
    with pytest.raises(ConfigFault) as caught:
        read(tmp_path, text)
    return caught.value.faults


def dataset(kind: str, extra: str = "", name: str = "one", path: str = "/srv/pbx/one") -> str:
    return f'[[dataset]]\nname = "{name}"\nkind = "{kind}"\npath = "{path}"\n{extra}\n'


def test_an_empty_file_is_the_defaults_and_says_that_nothing_is_replicated(tmp_path: Path) -> None:
    settings = read(tmp_path, "")
    assert settings.node.state_dir == "/var/lib/ha-sync"
    assert settings.node.name == socket.gethostname()
    assert settings.node.socket_path == "/run/ha-sync/sync.sock"
    assert settings.stream.window_mib == 16
    assert settings.datasets == ()
    assert "nothing is replicated" in settings.notices[0]


@pytest.mark.req("R5", "R20")
def test_every_key_arrives(tmp_path: Path) -> None:
    settings = read(
        tmp_path,
        """
        [node]
        name = "a"
        state_dir = "/srv/a/state"
        run_dir = "/srv/a/run"
        listen = "127.0.0.2:0"
        peer = "[fd00::2]:9527"
        active_at = "192.168.129.53"
        [stream]
        compression = "never"
        window_mib = 4
        bulk_mib_per_s = 50
        [[dataset]]
        name = "astdb"
        kind = "sqlite"
        path = "/srv/pbx/astdb.sqlite3"
        priority = "cdr"
        capture = "auto"
        pages_max_mib = 64
        writer_busy_timeout_ms = 1000
        live_triggers = true
        log_entries_max = 2000000
        node_local_tables = ["network"]
        node_local_rows = [{ table = "astdb", where = "key = '/pbx/UUID'" }]
        [[dataset]]
        name = "etc"
        kind = "tree"
        path = "/srv/pbx/etc/"
        priority = "config"
        quiet_ms = 300
        mailboxes = false
        exclude = ["*.tmp"]
        node_local = ["ssl/*"]
        hold = ["outgoing/*"]
        hold_at_promotion = "release"
        mass_delete_percent = 80
        trash_mib = 5
        poll_s = 2
        reconcile_s = 60.5
        """,
    )
    assert (settings.node.listen, settings.node.peer) == (("127.0.0.2:0",), ("[fd00::2]:9527",))
    assert (settings.stream.compression, settings.stream.bulk_mib_per_s) == (Compression.NEVER, 50)
    assert settings.datasets[0] == SqliteSettings(
        name="astdb",
        path="/srv/pbx/astdb.sqlite3",
        priority=Priority.CDR,
        capture=CaptureMode.AUTO,
        pages_max_mib=64,
        writer_busy_timeout_ms=1000,
        live_triggers=True,
        log_entries_max=2_000_000,
        node_local_tables=("network",),
        node_local_rows=(NodeLocalRows(table="astdb", where="key = '/pbx/UUID'"),),
    )
    assert settings.datasets[1] == TreeSettings(
        name="etc",
        path="/srv/pbx/etc",
        priority=Priority.CONFIG,
        quiet_ms=300,
        exclude=("*.tmp",),
        node_local=("ssl/*",),
        hold=("outgoing/*",),
        hold_at_promotion=Hold.RELEASE,
        mass_delete_percent=80,
        trash_mib=5,
        poll_s=2.0,
        reconcile_s=60.5,
    )
    assert settings.notices == ()


@pytest.mark.req("R20")
@pytest.mark.parametrize(
    ("name", "kind", "priority"),
    [
        ("config", "sqlite", Priority.CONFIG),
        ("config-files", "tree", Priority.CONFIG),
        ("cdr", "tree", Priority.CDR),
        ("voicemail", "tree", Priority.VOICEMAIL),
        ("recordings", "tree", Priority.RECORDINGS),
        ("anything", "sqlite", Priority.CONFIG),
        ("anything", "tree", Priority.RECORDINGS),
    ],
)
def test_the_priority_follows_from_the_name_then_from_the_kind(
    tmp_path: Path, name: str, kind: str, priority: Priority
) -> None:
    assert read(tmp_path, dataset(kind, name=name)).datasets[0].priority is priority


@pytest.mark.parametrize(
    ("extra", "quiet_ms", "mailboxes"),
    [
        ('priority = "config"', 200, False),
        ('priority = "config"\nquiet_ms = 0', 0, False),
        ('priority = "config"\ngrowing = true', 0, False),
        ('priority = "voicemail"', 0, True),
        ('priority = "voicemail"\nmailboxes = false', 0, False),
        ('priority = "recordings"', 0, False),
    ],
)
def test_defaults_that_follow_from_the_priority(tmp_path: Path, extra: str, quiet_ms: int, mailboxes: bool) -> None:
    tree = read(tmp_path, dataset("tree", extra)).datasets[0]
    assert isinstance(tree, TreeSettings)
    assert (tree.quiet_ms, tree.mailboxes) == (quiet_ms, mailboxes)


def test_all_faults_are_told_together_in_the_order_of_the_file(tmp_path: Path) -> None:
    found = faults(
        tmp_path,
        '[node]\nlisten = "here"\nrun_dri = "/x"\n[stream]\nwindow_mib = 0\n'
        + dataset("tree", "quiet_ms = -5\nhold = [1]", path="relative")
        + '[[dataset]]\nknd = "tree"\n',
    )
    assert [line.split(":")[0].split(" =")[0] for line in found] == [
        "node.listen",
        "node.run_dri",
        "stream.window_mib",
        "dataset[one].path",
        "dataset[one].quiet_ms",
        "dataset[one].hold",
        "dataset[2].name",
        "dataset[2].kind",
        "dataset[2].path",
        "dataset[2].knd",
    ]


@pytest.mark.parametrize(
    ("text", "field", "says"),
    [
        ("[nod]\n", "sync.toml.nod", 'did you mean "node"?'),
        ("[dataset]\nname = 'x'\n", "sync.toml.dataset", "[[dataset]]"),
        ("node = 3\n", "sync.toml.node", "[node]"),
        ('[node]\nlisten = "1.2.3.4:70000"\n', "node.listen", "from 0 to 65535"),
        ('[node]\nlisten = "1.2.3.400:1"\n', "node.listen", "address or a host name"),
        ('[node]\nlisten = "fd00::1:1"\n', "node.listen", "around IPv6"),
        ('[node]\nlisten = "a:1"\npeer = "a:1"\n', "node.peer", "other node"),
        ('[node]\nlisten = ["a:1", "b:1"]\npeer = ["c:1", "b:1"]\n', "node.peer", "other node"),
        ('[node]\nlisten = ["a:1", "b:2"]\n', "node.listen", "one port"),
        ('[node]\nlisten = ["a:0", "b:0"]\n', "node.listen", "one port"),
        ('[node]\nlisten = ["a:1", "a:1"]\n', "node.listen", "twice"),
        ('[node]\npeer = ["a:1", 2]\n', "node.peer", "list of strings"),
        ('[node]\npeer = "b:0"\n', "node.peer", "from 1 to 65535"),
        ('[node]\nactive_at = "x\'y"\n', "node.active_at", "192.168.129.53"),
        ('[node]\nstate_dir = "var"\n', "node.state_dir", "absolute path"),
        ('[node]\nstate_dir = "/var/../etc"\n', "node.state_dir", '".."'),
        (f'[node]\nrun_dir = "/{"r" * 100}"\n', "node.run_dir", "at most 97 bytes"),
        ('[node]\nname = "a\\u001bb"\n', "node.name", "control characters"),
        ('[stream]\ncompression = "alway"\n', "stream.compression", 'did you mean "always"?'),
        ("[stream]\nwindow_mib = true\n", "stream.window_mib", "whole number from 1 to 256 (MiB)"),
        ("[stream]\nwindow_mib = 1.5\n", "stream.window_mib", "whole number"),
        ('[backup]\nfull = "0 3 * *"\n', "backup.full", "five fields"),
        ('[backup]\nfull = "61 3 * * *"\n', "backup.full", "from 0 to 59"),
        ('[backup]\nfull = "*/0 3 * * *"\n', "backup.full", "at least 1"),
        ('[[storage]]\nname = "u"\npath = "/m"\nmedium = "tape"\n', "storage[u].medium", '"sd", "usb", "nas"'),
    ],
)
def test_a_wrong_section_is_named_with_its_value_and_the_remedy(
    tmp_path: Path, text: str, field: str, says: str
) -> None:
    (found,) = faults(tmp_path, text)
    assert found.startswith(field)
    assert says in found


@pytest.mark.parametrize(
    ("kind", "extra", "field", "says"),
    [
        ("sqlite", "growing = true", "growing", 'kind = "tree" only'),
        ("tree", 'capture = "rows"', "capture", 'kind = "sqlite" only'),
        ("tree", "node_local_rows = []", "node_local_rows", 'kind = "sqlite" only'),
        ("sqlite", 'capture = "pages"\nlive_triggers = true', "live_triggers", "contradicts"),
        ("sqlite", 'capture = "pages"\nlog_entries_max = 1000000', "log_entries_max", "contradicts"),
        ("sqlite", 'capture = "rows"\npages_max_mib = 5', "pages_max_mib", "contradicts"),
        ("sqlite", "log_entries_max = 10", "log_entries_max", "from 1000000"),
        ("sqlite", "writer_busy_timeout_ms = -1", "writer_busy_timeout_ms", "milliseconds"),
        ("sqlite", 'priority = "urgent"', "priority", '"config", "cdr", "voicemail", "recordings"'),
        ("sqlite", 'node_local_tables = ["sqlite_sequence"]', "node_local_tables", "SQLite"),
        ("sqlite", 'node_local_tables = ["a", "a"]', "node_local_tables", "twice"),
        ("sqlite", 'node_local_rows = ["a"]', "node_local_rows", "where ="),
        (
            "sqlite",
            'node_local_tables = ["T"]\nnode_local_rows = [{ table = "t", where = "a = 1" }]',
            "node_local_rows[1].table",
            "twice",
        ),
        ("tree", "growing = true\nmailboxes = true", "growing", "contradicts mailboxes"),
        ("tree", "growing = true\nquiet_ms = 5", "quiet_ms", "contradicts growing"),
        ("tree", 'hold_at_promotion = "keep"', "hold_at_promotion", "hold = "),
        ("tree", 'exclude = ["a"]\nnode_local = ["a"]', "node_local", "two lists"),
        ("tree", 'exclude = ["/a"]', "exclude", "relative"),
        ("tree", 'exclude = ["a/../b"]', "exclude", '".."'),
        ("tree", "mass_delete_percent = 0", "mass_delete_percent", "from 1 to 100"),
        ("tree", "poll_s = nan", "poll_s", "from 0.1 to 3600"),
        ("tree", "poll_s = 1" + "0" * 400, "poll_s", "from 0.1 to 3600"),
        ("tree", "poll_s = 0", "poll_s", "from 0.1 to 3600"),
    ],
)
def test_a_wrong_or_contradictory_key_of_a_dataset_is_a_fault(
    tmp_path: Path, kind: str, extra: str, field: str, says: str
) -> None:
    (found,) = faults(tmp_path, dataset(kind, extra))
    assert found.startswith(f"dataset[one].{field}")
    assert says in found


@pytest.mark.parametrize("name", ["", "Cdr", "a_b", "x" * 65, "a b", "../x"])
def test_a_datasets_name_is_lower_case_digits_and_dashes(tmp_path: Path, name: str) -> None:
    found = faults(tmp_path, dataset("tree", name=name))
    assert found[0].startswith("dataset[1].name")


def test_a_root_cannot_be_the_whole_file_system(tmp_path: Path) -> None:
    assert "name a folder" in faults(tmp_path, dataset("tree", path="/"))[0]


def test_a_path_that_linux_would_refuse_is_refused_first(tmp_path: Path) -> None:
    assert "255 bytes" in faults(tmp_path, dataset("tree", path="/" + "n" * 256))[0]
    assert "Linux takes 4095" in faults(tmp_path, dataset("tree", path="/" + "n/" * 2100))[0]


def test_sections_of_parts_that_do_not_run_yet_are_told_about(tmp_path: Path) -> None:
    settings = read(
        tmp_path,
        '[console]\nlisten = "127.0.0.1:8080"\n' + dataset("tree"),
    )
    assert [notice.split(":")[0] for notice in settings.notices] == ["console"]


def storage(**keys: object) -> str:
    lines = {"name": '"usb0"', "medium": '"usb"', "path": '"/media/usb0"'} | {k: str(v) for k, v in keys.items()}
    return "[[storage]]\n" + "".join(f"{key} = {value}\n" for key, value in lines.items())


@pytest.mark.req("R9")
def test_a_storage_is_a_tree_of_its_own_priority_that_keeps_what_was_deleted(tmp_path: Path) -> None:
    (usb0,) = read(tmp_path, storage()).datasets
    assert isinstance(usb0, TreeSettings)
    assert usb0.storage == StorageSettings(medium=Medium.USB)
    assert (usb0.name, usb0.path, usb0.priority) == ("usb0", "/media/usb0", Priority.STORAGE)
    assert usb0.keeps_deleted
    assert not usb0.essential


@pytest.mark.req("R9")
def test_a_mirror_follows_deletions_and_takes_the_keys_of_a_tree(tmp_path: Path) -> None:
    text = storage(
        medium='"nas"', mode='"mirror"', poll_s=7, rate_mib_per_s=20, exclude='["lost+found"]', mass_delete_percent=30
    )
    (nas,) = read(tmp_path, text).datasets
    assert isinstance(nas, TreeSettings)
    assert nas.storage == StorageSettings(medium=Medium.NAS, mode=Mode.MIRROR, rate_mib_per_s=20)
    assert (nas.poll_s, nas.exclude, nas.mass_delete_percent, nas.keeps_deleted) == (7.0, ("lost+found",), 30, False)


@pytest.mark.req("R9")
def test_all_faults_of_a_storage_are_told_together(tmp_path: Path) -> None:
    text = storage(medium='"tape"', path='"media"', mode='"both"', rate_mib_per_s=-1, poll_s=0, colour='"red"')
    told = "\n".join(faults(tmp_path, text))
    for key in ("medium", "path", "mode", "rate_mib_per_s", "poll_s", "colour"):
        assert f"storage[usb0].{key}" in told, told


@pytest.mark.req("R9")
def test_a_storage_and_a_dataset_of_one_name_are_a_fault(tmp_path: Path) -> None:
    assert "stands there twice" in faults(tmp_path, storage() + storage(path='"/media/usb1"'))[0]


@pytest.mark.req("R9")
def test_a_guard_against_deletions_contradicts_a_storage_in_which_nothing_is_deleted(tmp_path: Path) -> None:
    assert "contradicts" in faults(tmp_path, storage(mass_delete_percent=10))[0]


@pytest.mark.req("R23")
@pytest.mark.parametrize(
    ("written", "schedule"),
    [
        ("", "0 3 * * *"),
        ('full = "30 1 * * 6"', "30 1 * * 6"),
        ("full = false", ""),
        ('full = "off"', ""),
        ('full = ""', ""),
    ],
)
def test_the_schedule_of_the_full_backup_has_a_default_and_can_be_off(
    tmp_path: Path, written: str, schedule: str
) -> None:
    settings = read(tmp_path, f"[backup]\n{written}\nrate_mib_per_s = 20\n" + dataset("tree"))
    assert (settings.backup.full, settings.backup.rate_mib_per_s, settings.notices) == (schedule, 20, ())


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"a = \xff", "UTF-8"),
        (b"[node", "not TOML"),
        (b"a = 1\na = 2\n", "not TOML"),
        (b"#" * (1024 * 1024 + 1), "larger than"),
        (b"a = " + b"[" * 100_000, "not TOML"),
        (b"a = " + b"9" * 5000, "not TOML"),
    ],
)
def test_a_file_that_is_no_settings_file_is_refused(tmp_path: Path, content: bytes, says: str) -> None:
    file = tmp_path / "sync.toml"
    file.write_bytes(content)
    with pytest.raises(ConfigFault, match=says):
        load(str(file))


def test_a_file_that_is_not_there_is_a_fault_with_a_remedy(tmp_path: Path) -> None:
    with pytest.raises(ConfigFault, match="--config"):
        load(str(tmp_path / "none.toml"))
    with pytest.raises(ConfigFault, match="directory"):
        load(str(tmp_path))


@pytest.mark.req("R10")
def test_listen_and_peer_may_be_several_addresses_in_order(tmp_path: Path) -> None:
    text = '[node]\nlisten = ["10.77.0.1:9527", "[fd77::1]:9527"]\npeer = ["169.254.9.2:9527", "10.77.0.2:9527"]\n'
    (tmp_path / "sync.toml").write_text(text)
    node = load(str(tmp_path / "sync.toml")).node
    assert node.listen == ("10.77.0.1:9527", "[fd77::1]:9527")
    assert node.peer == ("169.254.9.2:9527", "10.77.0.2:9527")


def test_the_node_is_found_in_a_file_whose_datasets_are_wrong(tmp_path: Path) -> None:
    file = tmp_path / "sync.toml"
    file.write_text('[node]\nrun_dir = "/srv/run"\n' + dataset("tree", "quiet_ms = -1"))
    assert load_node(str(file)).socket_path == "/srv/run/sync.sock"


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads everything")
def test_a_file_without_permission_is_a_fault(tmp_path: Path) -> None:
    file = tmp_path / "sync.toml"
    file.write_text("")
    file.chmod(0)
    with pytest.raises(ConfigFault, match="Permission"):
        load(str(file))
