"""What `ha-sync storage` shows: both nodes side by side, a plan, an outcome; and its exit codes."""

from __future__ import annotations

import pytest
from click.testing import CliRunner

from ha_proto.sync.v1 import control_pb2 as pb
from ha_proto.sync.v1 import storage_pb2
from ha_sync.cli import storage
from ha_sync.errors import ConfigFault

pytestmark = pytest.mark.req("R9")

GIB = 1024**3


def found(**fields: object) -> storage_pb2.FoundStorage:
    plain: dict[str, object] = {
        "name": "usb0", "medium": "usb", "mounted": True, "filesystem": "ext4", "source": "/dev/sdb1",
        "size_bytes": 2 * GIB, "free_bytes": GIB, "uuid": "12ab",
    }  # fmt: skip
    return storage_pb2.FoundStorage(**{**plain, **fields})  # type: ignore[arg-type]


def test_both_nodes_stand_side_by_side_with_what_does_not_match() -> None:
    answer = pb.ListStoragesResponse(
        storages=[pb.StoragePair(name="usb0", here=found(), there=found(filesystem="vfat", read_only=True))],
        mismatches=["1 sd mounted here, 0 on the other node"],
        peer_age_s=1.0,
    )
    lines = storage.listed(answer)
    assert lines[0].split() == ["STORAGE", "NODE", "MEDIUM", "FILESYSTEM", "SOURCE", "SIZE", "FREE", "UUID", "STATE"]
    assert "not synchronised yet" in lines[1]
    assert "2.0 GiB" in lines[1]
    assert "vfat (read-only)" in lines[2]
    assert lines[3] == "mismatch: 1 sd mounted here, 0 on the other node"


def test_what_the_other_node_has_is_not_guessed() -> None:
    answer = pb.ListStoragesResponse(storages=[pb.StoragePair(name="usb0", here=found())])
    lines = storage.listed(answer)
    assert "?" in lines[2]
    assert lines[-1] == "the other node did not tell what it has"


@pytest.mark.parametrize(
    ("pair", "words"),
    [
        (pb.StoragePair(shared=True), "shared"),
        (pb.StoragePair(synced=True, state="waiting", reason="nothing is mounted"), "waiting: nothing is mounted"),
        (pb.StoragePair(sync={"progress": {"state": "backing up", "phase": "sending"}}), "sending"),
        (pb.StoragePair(here=found(trouble="no answer within 2 s")), "no answer within 2 s"),
    ],
)
def test_its_state_is_said_in_words(pair: pb.StoragePair, words: str) -> None:
    assert words in "\n".join(storage.listed(pb.ListStoragesResponse(storages=[pair], peer_age_s=1.0)))


def test_names_of_the_other_node_cannot_forge_a_line() -> None:
    answer = pb.ListStoragesResponse(
        storages=[pb.StoragePair(name="usb0", there=found(source="x\nusb9 here"))], peer_age_s=1.0
    )
    assert not [line for line in storage.listed(answer) if line.startswith("usb9")]


def test_a_plan_names_what_would_be_done_and_how_much_more() -> None:
    plan = pb.StoragePlan(
        name="usb0", complete=True, looked_at=9, send_objects=3, send_bytes=3 * 1024**2, delete_objects=1, left_out=1,
        room_bytes=GIB, refusal="no room",
        lines=[
            pb.StoragePlanLine(what="send", path="a.wav", bytes=1024**2),
            pb.StoragePlanLine(what="left out", path="a:b", detail="vfat takes no ':'"),
        ],
    )  # fmt: skip
    lines = storage.plan_lines(plan)
    assert lines[0].split() == ["send", "a.wav", "1", "MiB"]
    assert "vfat takes no" in lines[1]
    assert lines[2] == "... and 3 more"
    assert "3 to send (3 MiB), 0 to change, 1 to delete, 1 left out; 1.0 GiB free there" in lines[3]
    assert lines[4] == "usb0: would be refused: no room"


def test_an_outcome_says_where_the_rest_stands() -> None:
    last = pb.StorageProgress(
        name="usb0", progress=pb.FullBackupProgress(run="r1", result="partial", unverified=2, reason="2 not verified")
    )
    lines = storage.outcome(last)
    assert lines[0].startswith("usb0: partial in 0s")
    assert lines[-1] == "  see: ha-sync logs storage --run r1"


@pytest.mark.parametrize("arguments", [["sync"], ["sync", "--all", "usb0"]])
def test_storages_are_named_or_all_not_both(arguments: list[str]) -> None:
    result = CliRunner().invoke(storage.storage, arguments)
    assert isinstance(result.exception, ConfigFault)


def test_every_verb_has_a_help() -> None:
    for verb in ("list", "sync", "pause", "resume", "cancel"):
        result = CliRunner().invoke(storage.storage, [verb, "--help"])
        assert result.exit_code == 0
        assert len(result.output.splitlines()) > 4
