"""Which pair a node is of: absent, there, or a matter for a person."""

from __future__ import annotations

from pathlib import Path

import pytest

from ha_agent.errors import OperatorNeeded
from ha_agent.memory import membership
from tests.support.agent_settings import CLUSTER_ID, KEY, pair_up


@pytest.fixture
def state(tmp_path: Path) -> Path:
    pair_up(tmp_path, "primary")
    return tmp_path / "primary" / "state"


@pytest.mark.req("R2")
def test_the_identity_of_the_pairing_is_read(state: Path) -> None:
    found = membership(str(state))
    assert found is not None
    assert (str(found.cluster_id), found.node_id, bytes(found.key)) == (CLUSTER_ID, "primary", KEY)
    assert str(KEY) not in repr(found), "a key is no matter for a log"


@pytest.mark.req("R2")
def test_a_node_without_an_identity_is_not_paired(tmp_path: Path) -> None:
    assert membership(str(tmp_path)) is None


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("identity.json", b""),
        ("identity.json", b"[1]"),
        ("identity.json", b'"text"'),
        ("identity.json", b'{"node_id": "a"}'),
        ("identity.json", b'{"cluster_id": "no uuid", "node_id": "a"}'),
        ("identity.json", b'{"cluster_id": 7, "node_id": "a"}'),
        ("identity.json", b"[" * 60000),
        ("heartbeat.key", b""),
        ("heartbeat.key", bytes(31)),
        ("heartbeat.key", bytes(33)),
    ],
)
def test_a_damaged_identity_needs_a_person(state: Path, name: str, content: bytes) -> None:
    (state / "identity" / name).write_bytes(content)
    with pytest.raises(OperatorNeeded, match="cannot use the identity"):
        membership(str(state))


@pytest.mark.parametrize("name", ["identity.json", "heartbeat.key"])
def test_a_missing_half_of_an_identity_needs_a_person(state: Path, name: str) -> None:
    (state / "identity" / name).unlink()
    with pytest.raises(OperatorNeeded, match="cannot use the identity"):
        membership(str(state))
