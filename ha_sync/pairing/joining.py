"""The second node joins: the whole of `ha-sync pair join`, but for words and options.

What the joiner will be (node id, key, request) is stored before it asks, so that a repetition after a lost answer or a
crash is the same joiner with the same request; the inviter then gives the same answer. The identity appears whole. Data
that this node holds is exported, and the export read back, before anything is asked of the other node. Nothing is
deleted here: the first full sync replaces it. Blocking.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import grpc
from cryptography import x509

from ha_proto.sync.v1 import life_pb2, pairing_pb2, pairing_pb2_grpc
from ha_sync.errors import HaSyncError, OperatorNeeded, PeerUnreachable, ProtocolFault, Refused, WrongState
from ha_sync.pairing import certificates, diagnosis, durable
from ha_sync.pairing import identity as identities
from ha_sync.pairing.certificates import Key, Member, NotOurs
from ha_sync.pairing.clock import read_clock
from ha_sync.pairing.diagnosis import Found
from ha_sync.pairing.identity import HEARTBEAT_KEY_BYTES, Identity, Peer
from ha_sync.pairing.keyring import CHANNEL_OPTIONS
from ha_sync.pairing.onetime import Token, bootstrap_certificate, decode, prove
from ha_sync.pairing.requests import PROTOCOL, signed_parts

JOIN_TIMEOUT_S = 20.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Joined:
    """What `pair join` did."""

    identity: Identity
    exported_to: str  # empty: there was nothing
    shared: tuple[life_pb2.Document, ...] = ()  # settings and accounts of the pair


@dataclass(frozen=True, slots=True, kw_only=True)
class Applicant:
    """What this node asks as; kept in ``<state_dir>/joining/<token id>`` until it has joined."""

    directory: str
    node_id: str
    key: Key
    request: bytes


def join(
    token: str,
    state_dir: str,
    *,
    address: str,
    node_name: str = "",
    station_type: str = "",
    mac: str = "",
    has_business_data: Callable[[], tuple[str, ...]],
    discard_local_data: bool = False,
    exporter: Callable[[], str],
    timeout_s: float = JOIN_TIMEOUT_S,
) -> Joined:
    """Joins the pair that ``token`` invites to.

    ``has_business_data`` names the datasets that hold something; ``exporter`` saves them and returns the file's path.
    Raises ``WrongState`` (paired already), ``Refused`` (token, data, the other node), ``PeerUnreachable``.
    """
    if identities.exists(state_dir):
        durable.remove_directory(_pending(state_dir))  # left by a join that was killed at its very end
    identities.refuse_existing(state_dir)
    identities.check_station_type(station_type)
    invited = decode(token)
    exported_to = _save_data(has_business_data(), discard_local_data, exporter)
    applicant = _applicant(state_dir, invited.token_id)
    request = pairing_pb2.JoinRequest(
        protocol=PROTOCOL,
        token_id=invited.token_id,
        certificate_request=applicant.request,
        node_id=applicant.node_id,
        node_name=node_name or socket.gethostname(),
        address=address,
        mac=mac,
        station_type=station_type,
    )
    request.token_proof = prove(invited, signed_parts(request))
    response = _ask(invited, applicant, request, timeout_s)
    identity = _identity(state_dir, applicant, request, response, invited)
    identities.create(identity)
    durable.remove_directory(_pending(state_dir))
    return Joined(identity=identity, exported_to=exported_to, shared=tuple(response.shared))


def examine(token: str, state_dir: str, *, timeout_s: float = JOIN_TIMEOUT_S) -> tuple[life_pb2.NodeFacts, float]:
    """What the inviter's machine is like, and its clock minus this one's in seconds. Uses up nothing.

    Raises as ``join`` does.
    """
    identities.refuse_existing(state_dir)
    invited = decode(token)
    applicant = _applicant(state_dir, invited.token_id)
    begun = read_clock().unix_s
    facts = _call(
        invited,
        applicant,
        lambda stub: stub.Examine(pairing_pb2.ExamineRequest(token_id=invited.token_id), timeout=timeout_s),
    )
    assert isinstance(facts, life_pb2.NodeFacts)
    return facts, facts.unix_s - (begun + read_clock().unix_s) / 2


def _save_data(holding: tuple[str, ...], discard: bool, exporter: Callable[[], str]) -> str:
    if not holding:
        return ""
    if not discard:
        raise Refused(
            "cannot join",
            reason=f"this node holds data of its own in {', '.join(holding)}, which the pair's would replace",
            hint="--discard-local-data exports it to the state directory first, then joins",
        )
    return exporter()


def _applicant(state_dir: str, token_id: str) -> Applicant:
    """The same for every attempt with one token."""
    pending = _pending(state_dir)
    directory = os.path.join(pending, token_id)
    if not os.path.isdir(directory):
        durable.make_private_directory(pending)
        key = certificates.new_key()
        files = {
            "node.key": certificates.key_pem(key),
            "node.id": identities.new_node_id().encode(),
            "request.der": certificates.make_request(key),
        }
        durable.write_directory(directory, files)
    return Applicant(
        directory=directory,
        node_id=_content(directory, "node.id").decode(),
        key=certificates.load_key(_content(directory, "node.key")),
        request=_content(directory, "request.der"),
    )


def _ask(
    token: Token, applicant: Applicant, request: pairing_pb2.JoinRequest, timeout_s: float
) -> pairing_pb2.JoinResponse:
    response = _call(token, applicant, lambda stub: stub.Join(request, timeout=timeout_s))
    assert isinstance(response, pairing_pb2.JoinResponse)
    return response


def _call(token: Token, applicant: Applicant, call: Callable[[Any], object]) -> object:
    certificate = bootstrap_certificate(token, applicant.key.public_key(), applicant.node_id)
    anchor = certificates.anchor_of(token.authority_key, token.cluster_id)
    credentials = grpc.ssl_channel_credentials(
        certificates.certificate_pem(anchor),
        certificates.key_pem(applicant.key),
        certificates.certificate_pem(certificate),
    )
    with grpc.secure_channel(token.address, credentials, options=CHANNEL_OPTIONS) as channel:
        try:
            return call(pairing_pb2_grpc.PairingServiceStub(channel))  # type: ignore[no-untyped-call]
        except grpc.RpcError as failed:
            raise _failure(failed, token, applicant, anchor, certificate) from failed


def _failure(
    failed: grpc.RpcError,
    token: Token,
    applicant: Applicant,
    anchor: x509.Certificate,
    certificate: x509.Certificate,
) -> HaSyncError:
    code, details = failed.code(), failed.details() or ""
    attempted = "cannot join the pair of"
    if code is grpc.StatusCode.PERMISSION_DENIED:
        return Refused(attempted, subject=token.address, reason=details)
    if code is grpc.StatusCode.FAILED_PRECONDITION:
        return WrongState(attempted, subject=token.address, reason=details)
    if code is grpc.StatusCode.UNIMPLEMENTED:
        return Refused(attempted, subject=token.address, reason="the engine there does not offer pairing")
    found = _second_look(token, applicant, anchor, certificate)
    if found.found is Found.MINE_REFUSED:
        reason = "the other node does not know this token: it was used or expired long ago, or the node was set up anew"
        return Refused(
            attempted, subject=token.address, reason=reason, hint="make another there with `ha-sync pair token`"
        )
    if found.found in {Found.THEIRS_UNKNOWN, Found.OTHER_CLUSTER, Found.MYSELF}:
        return Refused(attempted, subject=token.address, reason=found.text)
    reason = found.text if found.found is not Found.NOTHING_WRONG else f"the call failed: {code.name}: {details}"
    return PeerUnreachable(attempted, subject=token.address, reason=reason, hint="then run the same command again")


def _second_look(
    token: Token, applicant: Applicant, anchor: x509.Certificate, certificate: x509.Certificate
) -> diagnosis.Diagnosis:
    path = os.path.join(applicant.directory, "bootstrap.pem")
    durable.write_file(path, certificates.certificate_pem(certificate))
    mine = diagnosis.Credentials(
        anchor=anchor,
        cluster_id=token.cluster_id,
        node_id=applicant.node_id,
        peer_node_id="",
        certificate_path=path,
        key_path=os.path.join(applicant.directory, "node.key"),
        ends_unix_s=certificates.ends_unix_s(certificate),
        newest_unix_s=0.0,
    )
    return diagnosis.examine(token.address, mine)


def _identity(
    state_dir: str,
    applicant: Applicant,
    request: pairing_pb2.JoinRequest,
    response: pairing_pb2.JoinResponse,
    token: Token,
) -> Identity:
    """Believes nothing that does not fit the token. Raises ``ProtocolFault``."""
    now = read_clock().unix_s
    try:
        authority = certificates.load_certificate(response.ca_certificate)
        certificate = certificates.load_certificate(response.certificate)
        authority_key = certificates.load_key(response.ca_key)
        _check(authority, authority_key, certificate, applicant, token)
    except NotOurs as wrong:
        raise ProtocolFault("cannot use the answer of", subject=token.address, reason=str(wrong)) from wrong
    if response.cluster_id != token.cluster_id or len(response.heartbeat_key) != HEARTBEAT_KEY_BYTES:
        raise ProtocolFault("cannot use the answer of", subject=token.address, reason="it does not fit the token")
    return Identity(
        directory=identities.identity_directory(state_dir),
        cluster_id=response.cluster_id,
        node_id=applicant.node_id,
        node_name=request.node_name,
        address=request.address,
        station_type=request.station_type,
        peer=Peer(node_id=response.inviter_node_id, address=response.inviter_address or token.address),
        promised_epoch=response.epoch,
        issued_unix_s=now,
        newest_unix_s=now,
        authority=authority,
        authority_key=authority_key,
        certificate=certificate,
        key=applicant.key,
        heartbeat_key=response.heartbeat_key,
    )


def _check(
    authority: x509.Certificate, authority_key: Key, certificate: x509.Certificate, applicant: Applicant, token: Token
) -> None:
    if not certificates.same_key(authority.public_key(), token.authority_key):
        raise NotOurs("its authority is not the one that the token names")
    if not certificates.same_key(authority_key.public_key(), token.authority_key):
        raise NotOurs("the authority's key does not belong to the authority")
    if not certificates.is_issued_by(certificate, authority):
        raise NotOurs("the certificate is not signed by the authority")
    if not certificates.same_key(certificate.public_key(), applicant.key.public_key()):
        raise NotOurs("the certificate is for another key")
    wanted = Member(cluster_id=token.cluster_id, node_id=applicant.node_id)
    if certificates.member_of(certificate) != wanted:
        raise NotOurs("the certificate is for another node")


def _pending(state_dir: str) -> str:
    return os.path.join(os.path.abspath(state_dir), "joining")


def _content(directory: str, name: str) -> bytes:
    try:
        with open(os.path.join(directory, name), "rb") as file:
            return file.read()
    except OSError as failed:
        hint = "remove that directory and try again"
        raise OperatorNeeded("cannot read", subject=directory, reason=str(failed), hint=hint) from failed
