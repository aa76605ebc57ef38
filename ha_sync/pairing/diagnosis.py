"""Why can I not connect? A second look at the peer's port with Python's own TLS, for a sentence to a person.

gRPC's server closes the connection of a refused client without a word, and its client says "Socket closed". This makes
the same connection by hand and names the step that fails: name, route, port, TLS, their certificate, mine. It is asked
only after a failure, decides nothing, and sends nothing. Blocking, at most ``TIMEOUT_S`` for each of two connections.
"""

from __future__ import annotations

import asyncio
import enum
import os
import socket
import ssl
from dataclasses import dataclass

from cryptography import x509

from ha_sync.pairing import certificates
from ha_sync.pairing.certificates import NotOurs
from ha_sync.pairing.clock import Clock, is_plausible, iso_utc, read_clock
from ha_sync.pairing.identity import Identity

TIMEOUT_S = 5.0
# OpenSSL's x509_vfy.h
_SIGNATURE_FAILURE, _NOT_YET_VALID, _EXPIRED = 7, 9, 10
_UNKNOWN_ISSUER = (18, 19, 20, 21)


class Found(enum.Enum):
    """The step that fails."""

    NOTHING_WRONG = "nothing wrong"  # TLS is well on both sides: what refuses is said by the call's own status
    BAD_ADDRESS = "bad address"
    NAME = "name"
    NOBODY_LISTENS = "nobody listens"
    NO_ROUTE = "no route"
    TIMEOUT = "timeout"
    NOT_TLS = "not TLS"
    THEIRS_EXPIRED = "their certificate expired"
    THEIRS_UNKNOWN = "their certificate is a stranger's"
    OTHER_CLUSTER = "another cluster"
    OTHER_NODE = "another node"
    MYSELF = "myself"
    MINE_EXPIRED = "my certificate expired"
    MINE_REFUSED = "my certificate is refused"


@dataclass(frozen=True, slots=True, kw_only=True)
class Diagnosis:
    """What was found, and the sentence for a person."""

    found: Found
    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Credentials:
    """What the probe shows and trusts. Python's TLS reads keys from files only."""

    anchor: x509.Certificate
    cluster_id: str
    node_id: str
    peer_node_id: str  # empty: any of the cluster
    certificate_path: str
    key_path: str
    ends_unix_s: float
    newest_unix_s: float


async def diagnose(address: str, identity: Identity, *, clock: Clock = read_clock) -> str:
    """A sentence that says why ``address`` cannot be reached as the peer."""
    return (await asyncio.to_thread(examine, address, credentials_of(identity), clock=clock)).text


def credentials_of(identity: Identity) -> Credentials:
    """A member's."""
    return Credentials(
        anchor=identity.authority,
        cluster_id=identity.cluster_id,
        node_id=identity.node_id,
        peer_node_id=identity.peer.node_id if identity.peer else "",
        certificate_path=os.path.join(identity.directory, "node.pem"),
        key_path=os.path.join(identity.directory, "node.key"),
        ends_unix_s=identity.ends_unix_s,
        newest_unix_s=identity.newest_unix_s,
    )


def examine(address: str, mine: Credentials, *, clock: Clock = read_clock) -> Diagnosis:
    """Walks the steps of a connection and names the first that fails."""
    try:
        host, port = split_address(address)
    except ValueError as wrong:
        return Diagnosis(found=Found.BAD_ADDRESS, text=str(wrong))
    try:
        with socket.create_connection((host, port), timeout=TIMEOUT_S) as plain:
            return _handshake(plain, address, mine, clock)
    except OSError as failed:
        return _unreachable(address, host, failed)


def split_address(address: str) -> tuple[str, int]:
    """``host:port`` or ``[v6]:port``. Raises ``ValueError`` with a sentence."""
    host, colon, port = address.rpartition(":")
    host = host.removeprefix("[").removesuffix("]")
    if not colon or not host or not port.isdigit() or not 0 < int(port) < 65536:
        raise ValueError(f"{address!r} is no address: HOST:PORT is wanted")
    return host, int(port)


def _unreachable(address: str, host: str, failed: OSError) -> Diagnosis:
    if isinstance(failed, socket.gaierror):
        return Diagnosis(found=Found.NAME, text=f"the name {host} cannot be resolved: {failed.strerror}")
    if isinstance(failed, ConnectionRefusedError):
        text = f"nothing listens at {address}: the engine there is not running, or uses another port"
        return Diagnosis(found=Found.NOBODY_LISTENS, text=text)
    if isinstance(failed, TimeoutError):
        text = f"{address} does not answer within {TIMEOUT_S:g} s: the machine is off, or a firewall drops it"
        return Diagnosis(found=Found.TIMEOUT, text=text)
    return Diagnosis(found=Found.NO_ROUTE, text=f"{address} cannot be reached: {failed.strerror or failed}")


def _handshake(plain: socket.socket, address: str, mine: Credentials, clock: Clock) -> Diagnosis:
    try:
        with _context(mine).wrap_socket(plain, server_hostname=certificates.PEER_NAME) as secure:
            theirs = certificates.load_certificate(secure.getpeercert(binary_form=True) or b"")
            return _whose(theirs, address, mine) or _answer(secure, address, mine, clock)
    except ssl.SSLCertVerificationError as refused:
        return _their_certificate(refused, address, mine, clock)
    except TimeoutError:
        text = f"{address} accepts the connection and then says nothing: it is no ha-sync engine, or it hangs"
        return Diagnosis(found=Found.TIMEOUT, text=text)
    except (ssl.SSLError, ConnectionError, NotOurs) as failed:
        text = f"what listens at {address} does not speak TLS: another program? ({failed})"
        return Diagnosis(found=Found.NOT_TLS, text=text)


def _context(mine: Credentials) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.load_verify_locations(cadata=certificates.certificate_pem(mine.anchor).decode())
    context.load_cert_chain(mine.certificate_path, mine.key_path)
    context.set_alpn_protocols(["h2"])
    return context


def _whose(theirs: x509.Certificate, address: str, mine: Credentials) -> Diagnosis | None:
    """A certificate of this pair: of the right node?"""
    node_id = certificates.member_of(theirs).node_id
    if node_id == mine.node_id:
        text = f"{address} is this node itself: the peer's address is wrong"
        return Diagnosis(found=Found.MYSELF, text=text)
    if mine.peer_node_id and node_id != mine.peer_node_id:
        text = f"{address} is node {node_id}, but this node is paired with {mine.peer_node_id}"
        return Diagnosis(found=Found.OTHER_NODE, text=text)
    return None


def _answer(secure: ssl.SSLSocket, address: str, mine: Credentials, clock: Clock) -> Diagnosis:
    """In TLS 1.3 the client is done before the server has judged it: only its first bytes say that it agrees."""
    try:
        first = secure.recv(64)
    except (ssl.SSLError, ConnectionError):
        first = b""
    if first:
        text = f"{address} is reachable and both certificates are accepted"
        return Diagnosis(found=Found.NOTHING_WRONG, text=text)
    if clock().unix_s > mine.ends_unix_s:
        text = f"this node's certificate expired at {iso_utc(mine.ends_unix_s)} and {address} refuses it"
        return Diagnosis(found=Found.MINE_EXPIRED, text=text)
    text = (
        f"{address} refuses this node's certificate: it was given by another pair, "
        "or the clock there says that it has expired (the event log there tells)"
    )
    return Diagnosis(found=Found.MINE_REFUSED, text=text)


def _their_certificate(
    refused: ssl.SSLCertVerificationError, address: str, mine: Credentials, clock: Clock
) -> Diagnosis:
    code = refused.verify_code
    if code in {_EXPIRED, _NOT_YET_VALID}:
        text = f"the certificate of {address} has expired by this node's clock ({iso_utc(clock().unix_s)})"
        if not is_plausible(unix_s=clock().unix_s, newest_unix_s=mine.newest_unix_s):
            text += ", which cannot be right"
        return Diagnosis(found=Found.THEIRS_EXPIRED, text=text)
    theirs = _shown(address)
    if theirs is None or code not in {_SIGNATURE_FAILURE, *_UNKNOWN_ISSUER}:
        text = f"{address} shows a certificate that this pair has not given: {refused.verify_message}"
        return Diagnosis(found=Found.THEIRS_UNKNOWN, text=text)
    if theirs.cluster_id != mine.cluster_id:
        text = f"{address} belongs to another cluster, {theirs.cluster_id}; this node to {mine.cluster_id}"
        return Diagnosis(found=Found.OTHER_CLUSTER, text=text)
    text = f"{address} calls itself part of this pair, but its certificate has a stranger's signature"
    return Diagnosis(found=Found.THEIRS_UNKNOWN, text=text)


def _shown(address: str) -> certificates.Member | None:
    """What the stranger says of itself; believed by nobody, shown to a person."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    context.set_alpn_protocols(["h2"])
    try:
        with (
            socket.create_connection(split_address(address), timeout=TIMEOUT_S) as plain,
            context.wrap_socket(plain) as secure,
        ):
            return certificates.member_of(certificates.load_certificate(secure.getpeercert(binary_form=True) or b""))
    except (OSError, NotOurs):
        return None
