"""The identity on disk, the life of certificates, and clocks that are wrong."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ha_sync.errors import OperatorNeeded, Refused, WrongState
from ha_sync.pairing import certificates
from ha_sync.pairing.certificates import NotOurs
from ha_sync.pairing.clock import CLOCK_SLACK_S, WRITTEN_UNIX_S, is_plausible
from ha_sync.pairing.gate import REPORT_EVERY_S, Refusals
from ha_sync.pairing.identity import Identity, init_cluster
from ha_sync.pairing.invitations import TOKENS_MAX, Invitations
from ha_sync.pairing.keyring import Keyring
from ha_sync.pairing.onetime import bootstrap_key, decode
from ha_sync.pairing.renewal import Renewer, Step, decide
from tests.support.pairing_nodes import SetClock

pytestmark = pytest.mark.req("R3")

DAY = 86400.0
NOW = 1_790_000_000.0
STEPS_MAX = 200


def test_an_identity_comes_back_as_it_was_made(tmp_path: Path) -> None:
    made = init_cluster(str(tmp_path), node_name="first", address="10.0.0.1:9527", station_type="primary")
    read = Identity.load(str(tmp_path))
    assert (read.member, read.node_name, read.address, read.station_type) == (
        made.member,
        "first",
        "10.0.0.1:9527",
        "primary",
    )
    assert read.certificate == made.certificate
    assert read.heartbeat_key == made.heartbeat_key
    assert len(read.heartbeat_key) == 32


def test_a_second_init_is_refused_and_changes_nothing(tmp_path: Path) -> None:
    made = init_cluster(str(tmp_path))
    with pytest.raises(WrongState, match="belongs to a pair already") as refused:
        init_cluster(str(tmp_path))
    assert refused.value.exit_code == 3
    assert Identity.load(str(tmp_path)).cluster_id == made.cluster_id


def test_a_node_without_identity_says_how_to_get_one(tmp_path: Path) -> None:
    with pytest.raises(WrongState, match="pair init"):
        Identity.load(str(tmp_path))


@pytest.mark.parametrize("name", ["ca.pem", "ca.key", "node.pem", "node.key", "heartbeat.key", "identity.json"])
def test_a_damaged_identity_is_named_and_never_used(tmp_path: Path, name: str) -> None:
    init_cluster(str(tmp_path))
    (tmp_path / "identity" / name).write_bytes(b"damaged")
    with pytest.raises(OperatorNeeded, match="cannot use the identity"):
        Identity.load(str(tmp_path))


@pytest.mark.parametrize("name", ["ca.pem", "ca.key", "node.pem", "node.key"])
def test_files_of_two_identities_are_never_mixed(tmp_path: Path, name: str) -> None:
    init_cluster(str(tmp_path / "one"))
    init_cluster(str(tmp_path / "two"))
    (tmp_path / "one" / "identity" / name).write_bytes((tmp_path / "two" / "identity" / name).read_bytes())
    with pytest.raises(OperatorNeeded):
        Identity.load(str(tmp_path / "one"))


def test_keys_and_secrets_are_not_shown_by_accident(tmp_path: Path) -> None:
    identity = init_cluster(str(tmp_path))
    assert repr(identity.heartbeat_key) not in repr(identity)


@pytest.mark.skipif(shutil.which("openssl") is None, reason="needs the openssl command")
def test_a_certificate_is_valid_from_1970_for_both_ends_under_one_name(tmp_path: Path) -> None:
    certificate = init_cluster(str(tmp_path)).certificate
    assert certificate.not_valid_before_utc.timestamp() == 0
    text = certificates.certificate_pem(certificate)
    shown = subprocess.run(
        ["openssl", "x509", "-noout", "-text"], input=text, capture_output=True, check=True
    ).stdout.decode()
    assert "DNS:ha-sync-peer" in shown
    assert "TLS Web Server Authentication" in shown
    assert "TLS Web Client Authentication" in shown


@pytest.mark.skipif(shutil.which("openssl") is None, reason="needs the openssl command")
@pytest.mark.parametrize(
    ("unix_s", "good"), [(1, True), (946684800, True), (int(NOW), True), (int(NOW + 398 * DAY), False)]
)
def test_a_certificate_is_good_at_every_clock_up_to_its_end(tmp_path: Path, unix_s: int, good: bool) -> None:
    init_cluster(str(tmp_path), now_unix_s=NOW)
    for purpose in ("sslclient", "sslserver"):
        words = ["openssl", "verify", "-x509_strict", "-attime", str(unix_s), "-purpose", purpose]
        judged = subprocess.run(
            [*words, "-CAfile", "ca.pem", "node.pem"], cwd=tmp_path / "identity", capture_output=True, check=False
        )
        assert (judged.returncode == 0) == good, judged.stderr


def test_a_node_that_is_initialized_in_1970_has_a_certificate_that_is_good_today(tmp_path: Path) -> None:
    identity = init_cluster(str(tmp_path), now_unix_s=0.0)
    assert identity.ends_unix_s >= WRITTEN_UNIX_S + 396 * DAY


def test_a_certificate_ends_after_397_days(tmp_path: Path) -> None:
    assert init_cluster(str(tmp_path), now_unix_s=NOW).ends_unix_s == NOW + 397 * DAY


@given(st.binary(max_size=200))
def test_noise_is_no_certificate_no_key_and_no_request(noise: bytes) -> None:
    for read in (certificates.load_certificate, certificates.load_key, certificates.requested_key):
        with pytest.raises(NotOurs):
            read(noise)


# ---- a crash at any step


KILLED_AT = """
import os, signal, sys
step, what, directory = int(sys.argv[1]), sys.argv[2], sys.argv[3]
import dataclasses
from ha_sync.pairing import identity as identities
from ha_sync.pairing.keyring import Keyring
prepared = identities.Identity.load(directory) if what != "init" else None
done = 0
def dying(name):
    real = getattr(os, name)
    def call(*args, **kwargs):
        global done
        done += 1
        if done == step:
            os.kill(os.getpid(), signal.SIGKILL)
        return real(*args, **kwargs)
    setattr(os, name, call)
for name in ("open", "rename", "fsync", "mkdir", "unlink", "chmod", "fchmod", "close"):
    dying(name)
if what == "init":
    identities.init_cluster(directory, node_name="new")
elif what == "facts":
    Keyring(prepared).change_facts(lambda known: dataclasses.replace(known, node_name="new"))
else:
    from ha_sync.pairing.invitations import Invitations
    Invitations(prepared.directory).create(prepared, address="127.0.0.1:1")
print("done")
"""


def _killed_at(step: int, what: str, directory: Path) -> bool:
    """Whether the process was killed; False: it was done before that step."""
    ended = subprocess.run(
        [sys.executable, "-c", KILLED_AT, str(step), what, str(directory)],
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
        check=False,
    )
    assert ended.returncode == -9 or ended.stdout == "done\n", ended.stderr
    return ended.returncode == -9


def test_an_init_that_was_killed_anywhere_leaves_nothing_or_all(tmp_path: Path) -> None:
    outcomes = set()
    for step in range(1, STEPS_MAX, 3):
        directory = tmp_path / str(step)
        killed = _killed_at(step, "init", directory)
        try:
            outcomes.add(Identity.load(str(directory)).node_name)
        except WrongState:
            assert killed
            outcomes.add("none")
            assert init_cluster(str(directory), node_name="again").node_name == "again"
        assert not list(directory.glob(".new-*"))
        if not killed:
            break
    assert outcomes == {"none", "new"}


@pytest.mark.parametrize("what", ["facts", "token"])
def test_a_change_that_was_killed_anywhere_leaves_the_old_or_the_new(tmp_path: Path, what: str) -> None:
    init_cluster(str(tmp_path), node_name="old", address="127.0.0.1:1")
    outcomes = set()
    for step in range(1, STEPS_MAX):
        killed = _killed_at(step, what, tmp_path)
        identity = Identity.load(str(tmp_path))
        invitations = Invitations(identity.directory).remembered()
        outcomes.add((identity.node_name, len(invitations)))
        if not killed:
            break
    assert outcomes >= ({("old", 0), ("new", 0)} if what == "facts" else {("old", 0), ("old", 1)})
    Keyring(Identity.load(str(tmp_path))).change_facts(lambda known: known)
    assert json.loads((tmp_path / "identity" / "identity.json").read_bytes())["format"] == 1


# ---- tokens on disk


def test_the_secret_of_a_token_is_not_stored(tmp_path: Path) -> None:
    identity = init_cluster(str(tmp_path), address="127.0.0.1:1")
    token = decode(Invitations(identity.directory).create(identity).text)
    stored = (tmp_path / "identity" / "tokens.json").read_text()
    assert token.token_id in stored
    assert token.secret.hex() not in stored
    assert certificates.public_bytes(bootstrap_key(token).public_key()).hex() in stored


def test_only_so_many_tokens_are_alive_and_dead_ones_make_room(tmp_path: Path) -> None:
    clock = SetClock()
    identity = init_cluster(str(tmp_path), address="127.0.0.1:1")
    invitations = Invitations(identity.directory, clock=clock)
    for _ in range(TOKENS_MAX - 1):
        invitations.create(identity)
    with pytest.raises(Refused, match="are alive"):
        invitations.create(identity)
    clock.pass_s(601)
    for _ in range(TOKENS_MAX - 1):
        invitations.create(identity)
    assert len(invitations.remembered()) == TOKENS_MAX


@pytest.mark.parametrize("lifetime_s", [-1.0, 86401.0, float("nan"), float("inf")])
def test_a_token_s_life_has_limits(tmp_path: Path, lifetime_s: float) -> None:
    identity = init_cluster(str(tmp_path), address="127.0.0.1:1")
    with pytest.raises(Refused, match="a life of"):
        Invitations(identity.directory).create(identity, lifetime_s=lifetime_s)


def test_a_token_needs_an_address(tmp_path: Path) -> None:
    identity = init_cluster(str(tmp_path))
    with pytest.raises(Refused, match="--address"):
        Invitations(identity.directory).create(identity)


# ---- renewal and clocks


def test_a_certificate_is_renewed_at_two_thirds_of_its_life() -> None:
    life = {"issued_unix_s": NOW, "ends_unix_s": NOW + 300, "newest_unix_s": NOW}
    assert decide(**life, now_unix_s=NOW + 199).step is Step.WAIT
    assert decide(**life, now_unix_s=NOW + 199).wait_s == pytest.approx(1)
    assert decide(**life, now_unix_s=NOW + 200).step is Step.RENEW
    assert decide(**life, now_unix_s=NOW + 301).step is Step.RENEW


@given(now=st.floats(0, NOW - CLOCK_SLACK_S - 1))
def test_a_clock_that_cannot_be_right_renews_nothing(now: float) -> None:
    decision = decide(issued_unix_s=NOW, ends_unix_s=NOW + DAY, newest_unix_s=NOW, now_unix_s=now)
    assert decision.step is Step.DISTRUST_CLOCK
    assert decision.wait_s > 0


@given(st.floats(0, 4e9), st.floats(1, 4e7), st.floats(0, 4e9), st.floats(0, 4e9))
def test_a_look_always_says_when_to_look_again(issued: float, life: float, newest: float, now: float) -> None:
    decision = decide(issued_unix_s=issued, ends_unix_s=issued + life, newest_unix_s=newest, now_unix_s=now)
    assert (decision.step is Step.RENEW) == (decision.wait_s == 0)
    assert 0 <= decision.wait_s <= 60


def test_a_clock_before_this_program_was_written_is_wrong() -> None:
    assert not is_plausible(unix_s=946684800.0, newest_unix_s=0.0)
    assert is_plausible(unix_s=NOW, newest_unix_s=NOW + 60)


async def test_a_renewal_keeps_the_key_and_warns_once_of_a_wrong_clock(tmp_path: Path) -> None:
    clock = SetClock()
    identity = init_cluster(str(tmp_path), lifetime_s=10 * DAY)
    events: list[tuple[str, str]] = []
    keyring = Keyring(identity, clock=clock)
    renewer = Renewer(keyring, lambda severity, what, _fields: events.append((severity, what)))
    wall = clock().unix_s
    clock.set_wall(0.0)
    await renewer.look()
    await renewer.look()
    assert events == [("warning", "clock cannot be right, certificates are left alone")]
    assert keyring.identity.certificate == identity.certificate
    clock.set_wall(wall + 7 * DAY)
    await renewer.look()
    assert events[1:] == [("info", "certificate renewed")]
    stored = Identity.load(str(tmp_path))
    assert stored.ends_unix_s == pytest.approx(wall + 17 * DAY, abs=2)
    assert certificates.same_key(stored.certificate.public_key(), identity.certificate.public_key())
    assert stored.newest_unix_s == pytest.approx(wall + 7 * DAY)
    assert 0 < await renewer.look() <= 60


async def test_the_newest_time_seen_is_stored_at_most_once_an_hour(tmp_path: Path) -> None:
    clock = SetClock()
    keyring = Keyring(init_cluster(str(tmp_path)), clock=clock)
    renewer = Renewer(keyring, lambda *_event: None)
    path = tmp_path / "identity" / "identity.json"
    await renewer.look()
    before = path.stat().st_ino, path.read_bytes()
    clock.pass_s(1800)
    await renewer.look()
    assert (path.stat().st_ino, path.read_bytes()) == before
    clock.pass_s(1801)
    await renewer.look()
    assert Identity.load(str(tmp_path)).newest_unix_s == pytest.approx(clock().unix_s)


# ---- refusals


def test_repeated_refusals_are_told_once_a_minute_with_their_number() -> None:
    told: list[dict[str, object]] = []
    now = 100.0
    refusals = Refusals(lambda _severity, _what, fields: told.append(fields), monotonic=lambda: now)
    for port in range(5):
        refusals.tell(peer=f"10.0.0.9:{port}", reason="stranger", attempted="call")
    refusals.tell(peer="10.0.0.8:1", reason="stranger", attempted="call")
    refusals.tell(peer="10.0.0.9:1", reason="expired", attempted="call")
    now += REPORT_EVERY_S
    refusals.tell(peer="10.0.0.9:77", reason="stranger", attempted="call")
    assert [(fields["peer"], fields["reason"], fields.get("repeated")) for fields in told] == [
        ("10.0.0.9:0", "stranger", None),
        ("10.0.0.8:1", "stranger", None),
        ("10.0.0.9:1", "expired", None),
        ("10.0.0.9:77", "stranger", 4),
    ]
