"""Changes of ``ha.toml``: whole or not at all, comments kept, the old file beside it; the shared part."""

from __future__ import annotations

import json
import os
import stat
import tomllib
import uuid
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ha_agent.errors import ConfigFault, Refused
from ha_agent.memory.shared import Known, SharedStore, Version, digest_of, text_of
from ha_agent.service.settings import take_shared
from ha_agent.settings import document, saving
from ha_agent.settings.document import Change, place_of
from ha_agent.settings.parse import settings_of
from ha_proto.agent.v1 import settings_pb2 as pb
from tests.support.agent_settings import pair_up

FILE = """# of the site in Hall 3
[ha]
enabled = true                  # since May
station_type = "primary"
cluster_ip = "192.168.129.53/24"
peer_ip = "192.168.129.52"      # its LAN port
peer_mac = "00:0b:82:aa:bb:02"
interface = "eth0"

[[alarm]]
name = "noc"
kind = "webhook"
url = "https://noc.example.org/pbx"  # theirs
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "ha.toml"
    path.write_text(FILE)
    return path


def changes(*pairs: tuple[str, str | None]) -> tuple[Change, ...]:
    return tuple(Change(place=place_of(path), value=value) for path, value in pairs)


@pytest.mark.req("R1.1")
def test_a_change_keeps_comments_order_and_mode_and_the_old_file_beside_it(file: Path) -> None:
    file.chmod(0o640)
    made = saving.draft(str(file), changes(("peer_ip", "192.168.129.54"), ("alarm[noc].severity", "error")))
    previous = saving.save(str(file), made)
    text = file.read_text()
    assert text == FILE.replace('.52"      #', '.54"      #') + 'severity = "error"\n'
    assert (previous, Path(previous).read_text()) == (f"{file}.previous", FILE)
    assert stat.S_IMODE(file.stat().st_mode) == 0o640
    assert not list(file.parent.glob("*.new"))


@pytest.mark.req("R1.1")
def test_all_faults_come_together_and_nothing_is_written(file: Path) -> None:
    made = saving.draft(
        str(file), changes(("heartbeat_timeout_s", "99"), ("mode", "both"), ("alarm[noc].url", None), ("ipv6", "maybe"))
    )
    assert [fault.partition(":")[0] for fault in made.faults] == [
        "alarm[noc].url",
        'ha.mode = "both"',
        'ha.ipv6 = "maybe"',
        "ha.heartbeat_timeout_s = 99",
    ]
    assert "from 3 to 10" in made.faults[3]
    with pytest.raises(AssertionError):
        saving.save(str(file), made)
    assert file.read_text() == FILE


@pytest.mark.req("R1.1")
def test_a_file_that_changed_meanwhile_is_not_overwritten(file: Path) -> None:
    made = saving.draft(str(file), changes(("gateway", "none")))
    file.write_text(FILE + "# somebody was here\n")
    with pytest.raises(Refused, match="changed meanwhile"):
        saving.save(str(file), made)
    assert file.read_text().endswith("somebody was here\n")


@pytest.mark.req("R1.1")
def test_a_disk_that_takes_nothing_leaves_the_old_file(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(_descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    made = saving.draft(str(file), changes(("gateway", "none")))
    monkeypatch.setattr(os, "fsync", fails)
    with pytest.raises(Exception, match="No space left"):
        saving.save(str(file), made)
    assert file.read_text() == FILE


def test_entries_come_and_go(file: Path) -> None:
    made = saving.draft(
        str(file),
        changes(
            ("alarm[mail].kind", "mail"),
            ("alarm[mail].server", "mail.example.org"),
            ("alarm[mail].from", "a@example.org"),
            ("alarm[mail].to", '["b@example.org"]'),
            ("alarm[noc]", None),
        ),
    )
    assert made.faults == ()
    assert made.settings is not None
    assert [(one.name, one.recipients) for one in made.settings.alarms.targets] == [("mail", ("b@example.org",))]


@pytest.mark.parametrize("path", ["ha.nothing", "nothing.key", "alarm.url", "ha[x].mode", "node", "ha.mode.x", ""])
def test_a_path_that_is_none_is_refused_by_name(path: str) -> None:
    with pytest.raises(ConfigFault, match="there is no such setting"):
        place_of(path)


VALUES = st.fixed_dictionaries(
    {},
    optional={
        "heartbeat_timeout_s": st.integers(3, 10) | st.floats(3, 10, width=16),
        "heartbeat_port": st.integers(0, 65535),
        "software_fault_switch": st.booleans(),
        "fxo_ports": st.lists(st.integers(1, 1024), unique=True, max_size=5),
        "policy": st.sampled_from(["availability", "consistency"]),
        "gateway": st.sampled_from(["none", "192.168.129.1"]),
        "cluster_ip": st.sampled_from(["192.168.129.53/24", "10.0.0.9/8"]),
    },
)


@pytest.mark.req("R1.1", "R33")
@given(VALUES)
def test_what_is_shown_sets_the_same_again(values: dict[str, object]) -> None:
    """File to shown values, shown values into a file without them: the same settings."""
    base = tomllib.loads(FILE)["ha"] | {"cluster_ip": "192.168.129.53/24"}
    wanted = {"ha": base | values}
    shown = [
        (place, document.text_of(place.field, value))
        for place, value in document.places_of(wanted)
        if place.field and value is not None
    ]
    text = document.changed_text("", tuple(Change(place=place, value=text) for place, text in shown))
    assert tomllib.loads(text) == wanted
    assert settings_of(tomllib.loads(text), source="a") == settings_of(wanted, source="a")


# ---- shared


def shared(version: str, text: str) -> pb.SharedSettings:
    return pb.SharedSettings(version=version, text=text)


def shared_text(file_text: str) -> str:
    return text_of(document.shared_of(tomllib.loads(file_text)))


ACTIVES = (
    FILE.replace("192.168.129.53/24", "192.168.129.60/24").replace('"primary"', '"secondary"') + 'severity = "error"\n'
)


@pytest.mark.req("R1.2", "R5")
def test_the_actives_shared_settings_replace_ones_own_and_nothing_node_local(file: Path, tmp_path: Path) -> None:
    store = SharedStore(str(tmp_path))
    changed = take_shared(str(file), store, shared("4.1", shared_text(ACTIVES)))
    assert set(changed) == {"ha.cluster_ip", "alarm[noc].severity"}
    assert 'station_type = "primary"' in file.read_text()
    assert "# its LAN port" in file.read_text()
    assert store.read() == Known(version=Version(epoch=4, serial=1), digest=digest_of(shared_text(file.read_text())))
    assert shared_text(file.read_text()) == shared_text(ACTIVES)


@pytest.mark.req("R5")
def test_older_shared_settings_are_refused_and_the_same_ones_change_nothing(file: Path, tmp_path: Path) -> None:
    store = SharedStore(str(tmp_path))
    take_shared(str(file), store, shared("4.2", shared_text(ACTIVES)))
    before = file.read_text()
    with pytest.raises(Refused):
        take_shared(str(file), store, shared("4.1", shared_text(FILE)))
    with pytest.raises(Refused):
        take_shared(str(file), store, shared("2.9", shared_text(FILE)))
    assert take_shared(str(file), store, shared("4.2", shared_text(FILE))) == ()
    assert file.read_text() == before


@pytest.mark.req("R5")
def test_a_shared_value_that_was_changed_by_hand_is_put_back(file: Path, tmp_path: Path) -> None:
    store = SharedStore(str(tmp_path))
    take_shared(str(file), store, shared("4.2", shared_text(ACTIVES)))
    file.write_text(file.read_text().replace("192.168.129.60/24", "192.168.129.61/24"))
    assert take_shared(str(file), store, shared("4.2", shared_text(ACTIVES))) == ("ha.cluster_ip",)


@pytest.mark.req("R5", "R8.1")
def test_what_was_known_of_another_pair_is_forgotten(file: Path, tmp_path: Path) -> None:
    state = tmp_path / "primary" / "state"
    pair_up(tmp_path, "primary")
    store = SharedStore(str(state))
    take_shared(str(file), store, shared("9.9", shared_text(ACTIVES)))
    facts = state / "identity" / "identity.json"
    facts.write_text(json.dumps(json.loads(facts.read_text()) | {"cluster_id": str(uuid.UUID(int=5))}))
    assert store.read() == Known()
    take_shared(str(file), store, shared("2.1", shared_text(FILE)))
    assert store.read().version == Version(epoch=2, serial=1)


def test_shared_settings_that_do_not_fit_this_node_are_refused_whole(file: Path, tmp_path: Path) -> None:
    theirs = shared_text(FILE.replace("192.168.129.53/24", "192.168.129.52/24"))  # this node's peer_ip
    with pytest.raises(ConfigFault, match="cluster_ip"):
        take_shared(str(file), SharedStore(str(tmp_path)), shared("4.1", theirs))
    assert file.read_text() == FILE
    assert SharedStore(str(tmp_path)).read() == Known()
