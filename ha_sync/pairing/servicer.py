"""Join and Renew on the peer port (``proto/ha_proto/sync/v1/pairing.proto``).

Order of a join, each step durable before the next: the token is burnt with the joiner's request and certificate; the
joiner is recorded as the peer (an earlier one is revoked); the answer leaves. A crash in between is mended by the
joiner's repetition, which gets the same answer while the token lives. A join replaces the earlier peer: that is the
administrator's decision, made when the token was printed on the node in service.
"""

from __future__ import annotations

import asyncio
import dataclasses
import hashlib
from collections.abc import Awaitable, Callable
from typing import Any

import grpc
from cryptography import x509

from ha_proto.sync.v1 import life_pb2, pairing_pb2, pairing_pb2_grpc
from ha_sync.core.dataset import Report, Role
from ha_sync.core.position import Epoch
from ha_sync.errors import HaSyncError, Refused
from ha_sync.pairing import certificates
from ha_sync.pairing.certificates import Member, NotOurs
from ha_sync.pairing.clock import believable
from ha_sync.pairing.gate import Gate, peer_address, presented
from ha_sync.pairing.identity import STATION_TYPES, Identity, Peer, with_revoked
from ha_sync.pairing.invitations import Invitation, Use
from ha_sync.pairing.keyring import Keyring
from ha_sync.pairing.onetime import bootstrap_authority, is_proof
from ha_sync.pairing.requests import PROTOCOL, is_node_id, signed_parts

# ruff: noqa: N802 - methods are named as in the protocol

TEXT_MAX = 255
REQUEST_MAX = 4096


class PairingServicer(pairing_pb2_grpc.PairingServiceServicer):
    """Serves the peer port. ``epoch``, ``role`` and ``decided`` are asked at each join.

    ``decided``: whether somebody decides this node's role now; an Active without its agent takes no new peer.
    """

    def __init__(
        self,
        keyring: Keyring,
        gate: Gate,
        report: Report,
        *,
        epoch: Callable[[], Epoch],
        role: Callable[[], Role],
        decided: Callable[[], bool] = lambda: True,
        facts: Callable[[], Awaitable[life_pb2.NodeFacts]],
        shared: Callable[[], Awaitable[list[life_pb2.Document]]],
        on_peer: Callable[[Peer], None] | None = None,
    ) -> None:
        self._keyring = keyring
        self._gate = gate
        self._report = report
        self._epoch = epoch
        self._role = role
        self._decided = decided
        self._facts = facts
        self._shared = shared
        self._on_peer = on_peer
        self._one_at_a_time = asyncio.Lock()

    async def Join(self, request: pairing_pb2.JoinRequest, context: Any) -> pairing_pb2.JoinResponse:
        """The second node joins with a token."""
        try:
            async with self._one_at_a_time:
                return await self._join(request, context)
        except HaSyncError as refused:
            await _abort(context, refused)
            raise
        except OSError as failed:  # no room to store it: nothing was given away
            self._report("error", "join could not be stored", {"reason": str(failed)})
            await context.abort(grpc.StatusCode.UNAVAILABLE, f"the join could not be stored there: {failed}")
            raise

    async def Renew(self, request: pairing_pb2.RenewRequest, context: Any) -> pairing_pb2.RenewResponse:
        """The peer, which has no ca.key, asks for a certificate."""
        try:
            caller = self._gate.authorize(context)
            key = certificates.requested_key(request.certificate_request)
            certificate = issue(self._keyring.identity, key, caller.member, self._keyring.clock().unix_s)
        except NotOurs as wrong:
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, str(wrong))
            raise
        except HaSyncError as refused:
            await _abort(context, refused)
            raise
        self._report("info", "certificate renewed for the peer", {"node_id": caller.member.node_id})
        return pairing_pb2.RenewResponse(certificate=certificates.certificate_der(certificate))

    async def Examine(self, request: pairing_pb2.ExamineRequest, context: Any) -> life_pb2.NodeFacts:
        """For the joiner's preflight. Whoever holds a token that may still be used; it is not used up."""
        try:
            invitation = await asyncio.to_thread(self._keyring.invitations.find, request.token_id)
            self._demand_token(context, invitation)
            return await self._facts()
        except NotOurs as wrong:
            try:
                self._gate.refuse(context, str(wrong), attempted="preflight")
            except Refused as refused:
                await _abort(context, refused)
                raise

    def _demand_token(self, context: Any, invitation: Invitation | None) -> None:
        if invitation is None:
            raise NotOurs("the token is not known here")
        bootstrap = bootstrap_authority(invitation.key(), invitation.token_id)
        if not certificates.is_issued_by(presented(context), bootstrap):
            raise NotOurs("the connection was not made with this token")
        if not invitation.is_alive(self._keyring.clock()):
            raise NotOurs("the token has expired")

    async def _join(self, request: pairing_pb2.JoinRequest, context: Any) -> pairing_pb2.JoinResponse:
        invitation = await asyncio.to_thread(self._keyring.invitations.find, request.token_id)
        try:
            use = self._judge(request, context, invitation)
            standing = await asyncio.to_thread(self._keyring.invitations.burn, request.token_id, use)
        except NotOurs as wrong:
            self._gate.refuse(context, str(wrong), attempted="join")
        except Refused as refused:
            self._gate.refuse(context, refused.reason, attempted="join", hint=refused.hint)
        certificate = certificates.load_certificate(bytes.fromhex(standing.certificate))
        identity = await asyncio.to_thread(self._keyring.change_facts, _recorder(request, certificate))
        self._gate.let_in(context)
        self._tell(identity, repeated=standing is not use, context=context)
        return self._answer(identity, certificate, await self._shared())

    def _judge(self, request: pairing_pb2.JoinRequest, context: Any, invitation: Invitation | None) -> Use:
        """Everything that can be wrong with a join, before anything is changed. Raises ``NotOurs``, ``Refused``."""
        if invitation is None:
            raise NotOurs("the token is not known here")
        bootstrap = bootstrap_authority(invitation.key(), invitation.token_id)
        if not certificates.is_issued_by(presented(context), bootstrap):
            raise NotOurs("the connection was not made with this token")
        if not is_proof(invitation.key(), request.token_proof, signed_parts(request)):
            raise NotOurs("the request was not signed with this token")
        _check_request(request)
        self._check_state(request)
        identity = self._keyring.identity
        key = certificates.requested_key(request.certificate_request)
        member = Member(cluster_id=identity.cluster_id, node_id=request.node_id)
        certificate = issue(identity, key, member, self._keyring.clock().unix_s)
        return Use(
            node_id=request.node_id,
            request_hash=hashlib.sha256(request.certificate_request).hexdigest(),
            certificate=certificates.certificate_der(certificate).hex(),
        )

    def _check_state(self, request: pairing_pb2.JoinRequest) -> None:
        """What depends on this node."""
        identity = self._keyring.identity
        if self._role() is not Role.ACTIVE:
            raise NotOurs("this node is not the Active: join the one in service")
        if not self._decided():
            raise NotOurs("the agent of this node does not run: start it there, then join again")
        if request.node_id == identity.node_id:
            raise NotOurs("the joiner has my own node id")
        if request.node_id in identity.revoked_nodes:
            raise NotOurs(f"node {request.node_id} was revoked")
        if request.station_type and request.station_type == identity.station_type:
            raise NotOurs(
                f"both nodes say they are the {request.station_type} station: one must be primary, one secondary"
            )

    def _tell(self, identity: Identity, *, repeated: bool, context: Any) -> None:
        peer = identity.peer
        assert peer is not None, "recorded just now"
        what = "node joined again after a lost answer" if repeated else "node joined the pair"
        fields: dict[str, object] = {"node_id": peer.node_id, "name": peer.node_name, "address": peer.address}
        self._report("info", what, fields | {"peer": peer_address(context)})
        if self._on_peer is not None:
            self._on_peer(peer)

    def _answer(
        self, identity: Identity, certificate: x509.Certificate, shared: list[life_pb2.Document]
    ) -> pairing_pb2.JoinResponse:
        assert identity.authority_key is not None, "a node without ca.key makes no tokens"
        return pairing_pb2.JoinResponse(
            cluster_id=identity.cluster_id,
            certificate=certificates.certificate_der(certificate),
            ca_certificate=certificates.certificate_der(identity.authority),
            ca_key=certificates.key_der(identity.authority_key),
            heartbeat_key=identity.heartbeat_key,
            inviter_node_id=identity.node_id,
            inviter_address=identity.address,
            epoch=self._epoch(),
            shared=shared,
        )


def issue(identity: Identity, key: certificates.PublicKey, member: Member, now_unix_s: float) -> x509.Certificate:
    """Signs a certificate of the usual life. Raises ``Refused`` where this node has no authority key."""
    if identity.authority_key is None:
        raise Refused("cannot sign a certificate", reason="this node has no ca.key", hint="the other node has it")
    begins = believable(unix_s=now_unix_s, newest_unix_s=identity.newest_unix_s)
    return certificates.make_certificate(
        authority_key=identity.authority_key,
        authority_name=identity.authority.subject,
        public_key=key,
        member=member,
        ends_unix_s=begins + identity.lifetime_s,
    )


def _recorder(request: pairing_pb2.JoinRequest, certificate: x509.Certificate) -> Callable[[Identity], Identity]:
    peer = Peer(
        node_id=request.node_id,
        address=request.address,
        node_name=request.node_name,
        mac=request.mac,
        station_type=request.station_type,
        certificate_fingerprint=certificates.fingerprint(certificate),
    )

    def record(identity: Identity) -> Identity:
        earlier = identity.peer
        if earlier is not None and earlier.node_id != peer.node_id:
            identity = with_revoked(identity, earlier.node_id)
        return dataclasses.replace(identity, peer=peer)

    return record


def _check_request(request: pairing_pb2.JoinRequest) -> None:
    """What no correct joiner sends. Raises ``NotOurs``."""
    if request.protocol != PROTOCOL:
        raise NotOurs(f"the joiner speaks version {request.protocol} of the pairing, this node version {PROTOCOL}")
    texts = (request.node_name, request.address, request.mac)
    if any(len(text) > TEXT_MAX or not text.isprintable() for text in texts):
        raise NotOurs("a name or address in the request is too long or not printable")
    if not is_node_id(request.node_id) or request.station_type not in STATION_TYPES:
        raise NotOurs("the node id or station type in the request makes no sense")
    if len(request.certificate_request) > REQUEST_MAX:
        raise NotOurs("the certificate request is too long")


async def _abort(context: Any, error: HaSyncError) -> None:
    """Ends the call with the reason; the joiner shows it."""
    is_refusal = isinstance(error, Refused)
    code = grpc.StatusCode.PERMISSION_DENIED if is_refusal else grpc.StatusCode.FAILED_PRECONDITION
    text = f"{error.reason} ({error.hint})" if error.hint else error.reason
    await context.abort(code, text or error.sentence())
