"""Two nodes become a pair over real TLS; everybody else is refused, told why, and logged."""

from __future__ import annotations

import asyncio
import dataclasses
import errno
import os
import stat
import sys
from pathlib import Path

import grpc
import pytest

from ha_proto.sync.v1 import pairing_pb2, pairing_pb2_grpc
from ha_sync.core.dataset import Role
from ha_sync.errors import OperatorNeeded, PeerUnreachable, Refused, WrongState
from ha_sync.pairing import certificates, durable, joining
from ha_sync.pairing.certificates import Member
from ha_sync.pairing.diagnosis import diagnose
from ha_sync.pairing.identity import Identity, init_cluster, store_certificate, with_revoked
from ha_sync.pairing.joining import Joined
from ha_sync.pairing.keyring import CHANNEL_OPTIONS, channel_credentials
from ha_sync.pairing.onetime import bootstrap_certificate, decode, encode, new_token
from ha_sync.pairing.renewal import Renewer, ask_over
from tests.support.pairing_nodes import SetClock, call, join_as, serving

pytestmark = pytest.mark.req("R3")

GOOD_UNTIL_UNIX_S = certificates.NEVER.timestamp()


class KilledError(Exception):
    """The process ends here."""


@pytest.fixture
def first(tmp_path: Path) -> Identity:
    return init_cluster(str(tmp_path / "first"), node_name="first", address="127.0.0.1:7")


async def test_a_joiner_becomes_the_peer_and_both_are_let_in(first: Identity, tmp_path: Path) -> None:
    async with serving(first) as port:
        joined = await asyncio.to_thread(
            join_as, port.token(), str(tmp_path / "second"), mac="02:00:00:00:00:02", station_type="secondary"
        )
        second = Identity.load(str(tmp_path / "second"))
        assert await call(port.address, channel_credentials(second)) == b"welcome"
    assert joined.identity.cluster_id == first.cluster_id
    assert second.promised_epoch == 42
    assert second.heartbeat_key == first.heartbeat_key
    assert second.peer is not None
    assert second.peer.node_id == first.node_id
    assert second.peer.address == first.address
    stored = Identity.load(str(tmp_path / "first")).peer
    assert stored is not None
    assert (stored.node_id, stored.node_name, stored.address) == (second.node_id, "second", "127.0.0.1:9")
    assert (stored.mac, stored.station_type) == ("02:00:00:00:00:02", "secondary")
    assert stored.certificate_fingerprint == certificates.fingerprint(second.certificate)
    async with serving(second) as other:
        assert await call(other.address, channel_credentials(first)) == b"welcome"


async def test_every_file_of_an_identity_is_private(first: Identity, tmp_path: Path) -> None:
    old = os.umask(0)
    try:
        async with serving(first) as port:
            await asyncio.to_thread(join_as, port.token(), str(tmp_path / "second"))
    finally:
        os.umask(old)
    for directory in (tmp_path / "first" / "identity", tmp_path / "second" / "identity"):
        assert stat.S_IMODE(directory.stat().st_mode) == 0o700
        names = {path.name for path in directory.iterdir()}
        assert {"ca.pem", "ca.key", "node.pem", "node.key", "heartbeat.key", "identity.json"} <= names
        assert {stat.S_IMODE(path.stat().st_mode) for path in directory.iterdir()} == {0o600}
    assert not (tmp_path / "second" / "joining").exists()


async def test_a_used_token_is_refused_with_a_clear_message_and_logged(first: Identity, tmp_path: Path) -> None:
    async with serving(first) as port:
        token = port.token()
        await asyncio.to_thread(join_as, token, str(tmp_path / "second"))
        with pytest.raises(Refused, match="used already"):
            await asyncio.to_thread(join_as, token, str(tmp_path / "third"))
        assert port.refusals() == ["the token was used already"]
    assert not (tmp_path / "third" / "identity").exists()


async def test_joining_twice_is_refused_before_anything_is_asked(first: Identity, tmp_path: Path) -> None:
    async with serving(first) as port:
        await asyncio.to_thread(join_as, port.token(), str(tmp_path / "second"))
        with pytest.raises(WrongState, match="belongs to a pair already"):
            await asyncio.to_thread(join_as, port.token(), str(tmp_path / "second"))


async def test_a_lost_answer_is_given_again_to_the_same_joiner(
    first: Identity, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with serving(first) as port:
        token = port.token()

        def crash(_identity: Identity) -> None:
            raise KilledError

        with monkeypatch.context() as patch:
            patch.setattr(joining.identities, "create", crash)
            with pytest.raises(KilledError):
                await asyncio.to_thread(join_as, token, str(tmp_path / "second"))
        recorded = port.keyring.identity.peer
        joined = await asyncio.to_thread(join_as, token, str(tmp_path / "second"))
        assert recorded == port.keyring.identity.peer
        assert recorded is not None
        assert recorded.node_id == joined.identity.node_id
        assert await call(port.address, channel_credentials(joined.identity)) == b"welcome"
        assert port.refusals() == []


async def test_an_expired_token_is_refused_with_a_clear_message_and_logged(first: Identity, tmp_path: Path) -> None:
    clock = SetClock()
    async with serving(first, clock) as port:
        token = port.token(lifetime_s=30)
        clock.pass_s(31)
        with pytest.raises(Refused, match="the token has expired"):
            await asyncio.to_thread(join_as, token, str(tmp_path / "second"))
        assert port.refusals() == ["the token has expired"]
        clock.pass_s(86400)  # long dead: not even TLS lets it in, and the joiner is told by its second look
        with pytest.raises(Refused, match="does not know this token"):
            await asyncio.to_thread(join_as, token, str(tmp_path / "second"))


async def test_a_wall_clock_set_back_does_not_stretch_a_token(first: Identity, tmp_path: Path) -> None:
    clock = SetClock()
    async with serving(first, clock) as port:
        token = port.token(lifetime_s=30)
        clock.pass_s(31)
        clock.set_wall(0.0)
        with pytest.raises(Refused, match="the token has expired"):
            await asyncio.to_thread(join_as, token, str(tmp_path / "second"))


async def test_a_reboot_ends_a_token(first: Identity, tmp_path: Path) -> None:
    clock = SetClock()
    async with serving(first, clock) as port:
        token = port.token(lifetime_s=30)
        clock.reboot()
        with pytest.raises(Refused, match="the token has expired"):
            await asyncio.to_thread(join_as, token, str(tmp_path / "second"))


async def test_a_token_survives_a_restart_of_the_engine(first: Identity, tmp_path: Path) -> None:
    async with serving(first) as port:
        token = decode(port.token())
    async with serving(Identity.load(str(tmp_path / "first"))) as port:
        moved = dataclasses.replace(token, address=port.address)
        await asyncio.to_thread(join_as, encode(moved), str(tmp_path / "second"))


async def test_a_wrong_token_is_refused(first: Identity, tmp_path: Path) -> None:
    async with serving(first) as port:
        port.token()  # one is outstanding, but not this one
        wrong = new_token(
            cluster_id=first.cluster_id,
            authority_key=certificates.load_public(certificates.public_bytes(first.authority.public_key())),
            address=port.address,
        )
        with pytest.raises(Refused, match="does not know this token"):
            await asyncio.to_thread(join_as, encode(wrong), str(tmp_path / "second"))
    assert not (tmp_path / "second" / "identity").exists()


async def test_a_token_does_not_open_another_token_s_door(first: Identity, tmp_path: Path) -> None:
    async with serving(first) as port:
        mine, other = decode(port.token()), decode(port.token())
        stolen = dataclasses.replace(mine, token_id=other.token_id)
        with pytest.raises(Refused, match="does not know this token"):
            await asyncio.to_thread(join_as, encode(stolen), str(tmp_path / "second"))


async def test_the_joiner_refuses_an_inviter_with_another_authority(first: Identity, tmp_path: Path) -> None:
    impostor = init_cluster(str(tmp_path / "impostor"), address="127.0.0.1:7")
    async with serving(impostor) as port:
        theirs = decode(port.token())
        token = dataclasses.replace(
            theirs,
            cluster_id=first.cluster_id,
            authority_key=certificates.load_public(certificates.public_bytes(first.authority.public_key())),
        )
        with pytest.raises(Refused, match="another cluster"):
            await asyncio.to_thread(join_as, encode(token), str(tmp_path / "second"))
        assert port.keyring.identity.peer is None


async def test_a_bootstrap_client_may_call_nothing_but_join(first: Identity, tmp_path: Path) -> None:
    async with serving(first) as port:
        joined = await asyncio.to_thread(join_as, port.token(), str(tmp_path / "second"))
        token = decode(port.token())
        key = certificates.new_key()
        # It gives itself the name of the paired node: only the signature gives it away.
        certificate = bootstrap_certificate(token, key.public_key(), joined.identity.node_id)
        credentials = channel_credentials(dataclasses.replace(joined.identity, key=key, certificate=certificate))
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await call(port.address, credentials)
        assert refused.value.code() is grpc.StatusCode.PERMISSION_DENIED
        assert "not given by this pair" in str(refused.value.details())
        with pytest.raises(PeerUnreachable, match="not given by this pair"):
            async with grpc.aio.secure_channel(port.address, credentials, options=CHANNEL_OPTIONS) as channel:
                await ask_over(channel, certificates.make_request(key))
        assert port.callers == []
        assert any("not given by this pair" in reason for reason in port.refusals())


async def test_a_request_changed_on_the_way_is_refused(first: Identity, tmp_path: Path) -> None:
    async with serving(first) as port:
        token = decode(port.token())
        key = certificates.new_key()
        node_id = "11111111-2222-4333-8444-555555555555"
        credentials = grpc.ssl_channel_credentials(
            certificates.certificate_pem(first.authority),
            certificates.key_pem(key),
            certificates.certificate_pem(bootstrap_certificate(token, key.public_key(), node_id)),
        )
        request = pairing_pb2.JoinRequest(
            protocol=1, token_id=token.token_id, certificate_request=certificates.make_request(key), node_id=node_id
        )
        async with grpc.aio.secure_channel(port.address, credentials, options=CHANNEL_OPTIONS) as channel:
            with pytest.raises(grpc.aio.AioRpcError) as refused:
                await pairing_pb2_grpc.PairingServiceStub(channel).Join(request)
        assert "not signed with this token" in str(refused.value.details())
        invitation = port.keyring.invitations.find(token.token_id)
        assert invitation is not None
        assert invitation.use is None  # a refused request burns nothing


async def test_a_stranger_is_refused_and_told_why(first: Identity, tmp_path: Path) -> None:
    stranger = init_cluster(str(tmp_path / "stranger"))
    async with serving(first) as port:
        with pytest.raises(grpc.aio.AioRpcError):
            await call(port.address, channel_credentials(dataclasses.replace(stranger, authority=first.authority)))
        said = await diagnose(port.address, stranger)
        assert f"belongs to another cluster, {first.cluster_id}" in said
        assert port.callers == []


async def test_another_cluster_id_under_the_same_authority_is_refused(first: Identity, tmp_path: Path) -> None:
    async with serving(first) as port:
        joined = await asyncio.to_thread(join_as, port.token(), str(tmp_path / "second"))
        other = _signed(first, joined.identity, Member(cluster_id=first.node_id, node_id=joined.identity.node_id))
        await _is_refused(port.address, other, "another cluster")
        assert any("another cluster" in reason for reason in port.refusals())


async def test_a_node_that_never_joined_is_refused_even_with_a_certificate(first: Identity, tmp_path: Path) -> None:
    async with serving(first) as port:
        joined = await asyncio.to_thread(join_as, port.token(), str(tmp_path / "second"))
        third = _signed(first, joined.identity, Member(cluster_id=first.cluster_id, node_id="third"))
        await _is_refused(port.address, third, "not the paired node")
        await _is_refused(port.address, first, "talking to myself")


async def test_a_revoked_node_is_refused_also_after_a_restart(first: Identity, tmp_path: Path) -> None:
    async with serving(first) as port:
        second = (await asyncio.to_thread(join_as, port.token(), str(tmp_path / "second"))).identity
        port.keyring.change_facts(
            lambda known: with_revoked(known, second.node_id, (second.certificate.serial_number,))
        )
        await _is_refused(port.address, second, "was revoked")
    async with serving(Identity.load(str(tmp_path / "first"))) as port:
        await _is_refused(port.address, second, "was revoked")
        assert len(port.refusals()) == 1


async def test_a_new_joiner_replaces_the_peer_and_revokes_it(first: Identity, tmp_path: Path) -> None:
    async with serving(first) as port:
        second = (await asyncio.to_thread(join_as, port.token(), str(tmp_path / "second"))).identity
        third = (await asyncio.to_thread(join_as, port.token(), str(tmp_path / "third"))).identity
        assert await call(port.address, channel_credentials(third)) == b"welcome"
        await _is_refused(port.address, second, "was revoked")


async def test_an_expired_certificate_is_refused_by_tls_and_explained(tmp_path: Path) -> None:
    first = init_cluster(str(tmp_path / "first"), address="127.0.0.1:7")
    async with serving(first) as port:
        second = (await asyncio.to_thread(join_as, port.token(), str(tmp_path / "second"))).identity
        assert second.authority_key is not None
        ended = certificates.make_certificate(
            authority_key=second.authority_key,
            authority_name=second.authority.subject,
            public_key=second.key.public_key(),
            member=second.member,
            ends_unix_s=1_700_000_000.0,
        )
        second = dataclasses.replace(second, certificate=ended)
        store_certificate(second)
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await call(port.address, channel_credentials(second))
        assert refused.value.code() is grpc.StatusCode.UNAVAILABLE
        assert "this node's certificate expired at 2023-11-14" in await diagnose(port.address, second)
    async with serving(second) as port:
        said = await diagnose(port.address, first)
        assert f"the certificate of {port.address} has expired by this node's clock" in said


async def test_a_certificate_that_ends_during_a_connection_is_refused_at_the_next_call(
    first: Identity, tmp_path: Path
) -> None:
    clock = SetClock()
    async with serving(first, clock) as port:
        second = (await asyncio.to_thread(join_as, port.token(), str(tmp_path / "second"))).identity
        clock.set_wall(second.ends_unix_s + 1)
        await _is_refused(port.address, second, "the certificate expired at")
        clock.set_wall(0.0)  # booted in 1970: no decision about expiry
        assert await call(port.address, channel_credentials(second)) == b"welcome"


async def test_two_primaries_are_refused_loudly(tmp_path: Path) -> None:
    first = init_cluster(str(tmp_path / "first"), address="127.0.0.1:7", station_type="primary")
    async with serving(first) as port:
        token = port.token()
        with pytest.raises(Refused, match="both nodes say they are the primary station"):
            await asyncio.to_thread(join_as, token, str(tmp_path / "second"), station_type="primary")
        assert len(port.refusals()) == 1
        await asyncio.to_thread(join_as, token, str(tmp_path / "second"), station_type="secondary")


async def test_a_standby_invites_nobody(first: Identity, tmp_path: Path) -> None:
    async with serving(first) as port:
        port.role = Role.STANDBY
        with pytest.raises(Refused, match="not the Active"):
            await asyncio.to_thread(join_as, port.token(), str(tmp_path / "second"))


async def test_an_active_without_its_agent_takes_no_new_peer(first: Identity, tmp_path: Path) -> None:
    async with serving(first) as port:
        port.decided = False
        token = port.token()
        with pytest.raises(Refused, match="the agent of this node does not run"):
            await asyncio.to_thread(join_as, token, str(tmp_path / "second"))
        port.decided = True
        await asyncio.to_thread(join_as, token, str(tmp_path / "second"))


async def test_a_certificate_renews_while_the_server_runs(first: Identity, tmp_path: Path) -> None:
    async with serving(first) as port:
        second = (await asyncio.to_thread(join_as, port.token(), str(tmp_path / "second"))).identity
        ended = _signed(first, first, first.member, ends_unix_s=1_700_000_000.0).certificate
        port.keyring.change_certificate(
            lambda known: dataclasses.replace(known, certificate=ended, issued_unix_s=1_690_000_000.0)
        )
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await call(port.address, channel_credentials(second))
        assert "certificate has expired" in str(refused.value.details())
        renewed: list[Identity] = []
        await Renewer(port.keyring, port.report, on_renewed=renewed.append).look()
        assert await call(port.address, channel_credentials(second)) == b"welcome"
    assert len(renewed) == 1
    assert Identity.load(str(tmp_path / "first")).certificate == renewed[0].certificate


async def test_a_node_without_the_authority_s_key_renews_from_its_peer(first: Identity, tmp_path: Path) -> None:
    async with serving(first) as port:
        await asyncio.to_thread(join_as, port.token(), str(tmp_path / "second"))
        os.unlink(tmp_path / "second" / "identity" / "ca.key")
        second = Identity.load(str(tmp_path / "second"))
        clock = SetClock()
        clock.set_wall(second.issued_unix_s + (second.ends_unix_s - second.issued_unix_s) * 0.7)
        async with (
            serving(second, clock) as other,
            grpc.aio.secure_channel(port.address, channel_credentials(second), options=CHANNEL_OPTIONS) as channel,
        ):
            renewer = Renewer(other.keyring, other.report, ask_peer=lambda request: ask_over(channel, request))
            await renewer.look()
            changed = other.keyring.identity
        assert changed.certificate.serial_number != second.certificate.serial_number
        assert await call(port.address, channel_credentials(changed)) == b"welcome"


async def test_diagnosis_names_each_thing_that_can_be_wrong(first: Identity, tmp_path: Path) -> None:
    assert "is no address" in await diagnose("nonsense", first)
    assert "cannot be resolved" in await diagnose("no-such-host.invalid:9527", first)
    assert "nothing listens at 127.0.0.1:1:" in await diagnose("127.0.0.1:1", first)
    plain = await asyncio.start_server(_plain, "127.0.0.1", 0)
    async with plain:
        number = plain.sockets[0].getsockname()[1]
        assert "does not speak TLS" in await diagnose(f"127.0.0.1:{number}", first)
    async with serving(first) as port:
        assert "is this node itself" in await diagnose(port.address, first)
        second = (await asyncio.to_thread(join_as, port.token(), str(tmp_path / "second"))).identity
        assert "both certificates are accepted" in await diagnose(port.address, second)
        assert second.peer is not None
        elsewhere = dataclasses.replace(second, peer=dataclasses.replace(second.peer, node_id="third"))
        assert "is paired with third" in await diagnose(port.address, elsewhere)


async def test_a_joiner_that_reaches_nobody_is_told_so(first: Identity, tmp_path: Path) -> None:
    async with serving(first) as port:
        token = port.token()
    with pytest.raises(PeerUnreachable, match="nothing listens at"):
        await asyncio.to_thread(join_as, token, str(tmp_path / "second"))


async def _plain(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await reader.read(100)
    writer.write(b"SSH-2.0-nothing\r\n")
    writer.close()


def _signed(authority: Identity, node: Identity, member: Member, *, ends_unix_s: float = GOOD_UNTIL_UNIX_S) -> Identity:
    """``node`` with a certificate that ``authority`` signs for ``member``."""
    assert authority.authority_key is not None
    certificate = certificates.make_certificate(
        authority_key=authority.authority_key,
        authority_name=authority.authority.subject,
        public_key=node.key.public_key(),
        member=member,
        ends_unix_s=ends_unix_s,
    )
    return dataclasses.replace(node, certificate=certificate)


async def _is_refused(address: str, caller: Identity, why: str) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await call(address, channel_credentials(caller))
    assert refused.value.code() is grpc.StatusCode.PERMISSION_DENIED
    assert why in str(refused.value.details())


async def test_of_two_joiners_with_one_token_exactly_one_gets_in(first: Identity, tmp_path: Path) -> None:
    async with serving(first) as port:
        token = port.token()
        outcomes = await asyncio.gather(
            *(asyncio.to_thread(join_as, token, str(tmp_path / name)) for name in ("second", "third", "fourth")),
            return_exceptions=True,
        )
        joined = [outcome for outcome in outcomes if isinstance(outcome, Joined)]
        assert len(joined) == 1
        assert all("used already" in str(outcome) for outcome in outcomes if not isinstance(outcome, Joined))
        assert await call(port.address, channel_credentials(joined[0].identity)) == b"welcome"


async def test_an_inviter_killed_after_burning_the_token_gives_the_answer_later(
    first: Identity, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with serving(first) as port:
        token = port.token()

        def crash(_change: object) -> Identity:
            raise KilledError

        monkeypatch.setattr(port.keyring, "change_facts", crash)
        with pytest.raises(PeerUnreachable):
            await asyncio.to_thread(join_as, token, str(tmp_path / "second"))
        assert Identity.load(str(tmp_path / "first")).peer is None
    async with serving(Identity.load(str(tmp_path / "first"))) as port:
        again = encode(dataclasses.replace(decode(token), address=port.address))
        with pytest.raises(Refused, match="used already"):
            await asyncio.to_thread(join_as, again, str(tmp_path / "third"))
        joined = await asyncio.to_thread(join_as, again, str(tmp_path / "second"))
        assert await call(port.address, channel_credentials(joined.identity)) == b"welcome"


KILLED_JOINER = """
import os, signal, sys
from tests.support.pairing_nodes import join_as
step, token, directory = int(sys.argv[1]), sys.argv[2], sys.argv[3]
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
for name in ("rename", "fsync", "mkdir"):
    dying(name)
join_as(token, directory)
print("joined")
"""


async def test_a_joiner_killed_anywhere_joins_with_the_same_command(first: Identity, tmp_path: Path) -> None:
    rounds = int(os.environ.get("HA_SYNC_ROUNDS", "6"))
    async with serving(first) as port:
        for step in range(1, 1000, max(1, 24 // rounds)):
            token, directory = port.token(), str(tmp_path / str(step))
            ended = await asyncio.create_subprocess_exec(
                sys.executable,
                "-c",
                KILLED_JOINER,
                str(step),
                token,
                directory,
                env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
                stdout=asyncio.subprocess.DEVNULL,
            )
            killed = await ended.wait() != 0
            try:
                identity = await asyncio.to_thread(Identity.load, directory)
            except WrongState:
                assert killed
                identity = (await asyncio.to_thread(join_as, token, directory)).identity
            assert await call(port.address, channel_credentials(identity)) == b"welcome"
            with pytest.raises(WrongState):
                await asyncio.to_thread(join_as, token, directory)
            assert sorted(os.listdir(directory)) == ["identity"]
            if not killed:
                break
    assert step > 1
    assert port.refusals() == []


async def test_a_caller_without_any_certificate_reaches_nothing(first: Identity) -> None:
    async with serving(first) as port:
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await call(port.address, grpc.ssl_channel_credentials(certificates.certificate_pem(first.authority)))
        assert refused.value.code() is grpc.StatusCode.UNAVAILABLE
        async with grpc.aio.insecure_channel(port.address) as channel:
            with pytest.raises(grpc.aio.AioRpcError):
                await channel.unary_unary("/ha_proto.sync.v1.PairingService/Join")(b"", timeout=10)
        assert port.callers == []


async def test_a_member_cannot_use_join_to_take_a_place(first: Identity, tmp_path: Path) -> None:
    async with serving(first) as port:
        second = (await asyncio.to_thread(join_as, port.token(), str(tmp_path / "second"))).identity
        token = decode(port.token())
        request = pairing_pb2.JoinRequest(protocol=1, token_id=token.token_id, node_id=second.node_id)
        async with grpc.aio.secure_channel(
            port.address, channel_credentials(second), options=CHANNEL_OPTIONS
        ) as channel:
            with pytest.raises(grpc.aio.AioRpcError) as refused:
                await pairing_pb2_grpc.PairingServiceStub(channel).Join(request)
        assert "not made with this token" in str(refused.value.details())


async def test_a_damaged_token_file_costs_the_tokens_but_not_the_pair(first: Identity, tmp_path: Path) -> None:
    async with serving(first) as port:
        second = (await asyncio.to_thread(join_as, port.token(), str(tmp_path / "second"))).identity
        durable.write_file(f"{first.directory}/tokens.json", b"{damaged")
        assert await call(port.address, channel_credentials(second)) == b"welcome"
        with pytest.raises(OperatorNeeded, match=r"tokens\.json"):
            port.token()
    async with serving(Identity.load(str(tmp_path / "first"))) as port:
        assert await call(port.address, channel_credentials(second)) == b"welcome"


async def test_a_join_that_cannot_be_stored_gives_nothing_away(
    first: Identity, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with serving(first) as port:
        token = port.token()

        def full(_token_id: str, _use: object) -> None:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        with monkeypatch.context() as patch:
            patch.setattr(port.keyring.invitations, "burn", full)
            with pytest.raises(PeerUnreachable, match="No space left"):
                await asyncio.to_thread(join_as, token, str(tmp_path / "second"))
        assert port.keyring.identity.peer is None
        assert [what for _, what, _ in port.events] == ["join could not be stored"]
        await asyncio.to_thread(join_as, token, str(tmp_path / "second"))
