"""Who may call what on the peer port, and what is said of the others.

TLS has let through whoever holds a certificate of the pair or of a token. Every method but Join then asks
``Gate.authorize``: the certificate must be signed by the pair's own authority (a holder of a token can write any name
into the certificates it makes itself), not expired, of this cluster, of the paired node, and not revoked. Refusals go
to the event log with the caller's address and the reason, each pair of them at most once a minute, with a count.
"""

from __future__ import annotations

import math
import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NoReturn
from urllib.parse import unquote

from cryptography import x509

from ha_sync.core.dataset import Report
from ha_sync.errors import Refused
from ha_sync.pairing import certificates
from ha_sync.pairing.certificates import Member, NotOurs
from ha_sync.pairing.clock import is_plausible
from ha_sync.pairing.identity import Identity
from ha_sync.pairing.keyring import Keyring

REPORT_EVERY_S = 60.0
REASONS_MAX = 1024  # overflow: the one reported longest ago is forgotten, and so would be told again early
CHECKED_MAX = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class PeerIdentity:
    """An authorized caller."""

    member: Member
    address: str  # e.g. 192.168.1.2:40312
    certificate: x509.Certificate


class Refusals:
    """Tells the event log of refusals, bounded. Any thread."""

    def __init__(self, report: Report, *, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._report = report
        self._monotonic = monotonic
        self._told: OrderedDict[tuple[str, str], tuple[float, int]] = OrderedDict()
        self._lock = threading.Lock()

    def tell(self, *, peer: str, reason: str, attempted: str) -> None:
        """One refusal; repetitions within a minute are only counted."""
        repeated = self._count((host_of(peer), reason))
        if repeated is None:
            return
        fields: dict[str, object] = {"peer": peer, "reason": reason, "attempted": attempted}
        if repeated:
            fields["repeated"] = repeated
        self._report("warning", "connection refused", fields)

    def _count(self, key: tuple[str, str]) -> int | None:
        """How often it happened since it was last told; None: not to be told now."""
        now = self._monotonic()
        with self._lock:
            told_s, repeated = self._told.pop(key, (-math.inf, 0))
            if now - told_s < REPORT_EVERY_S:
                self._told[key] = (told_s, repeated + 1)
                return None
            self._told[key] = (now, 0)
            if len(self._told) > REASONS_MAX:
                self._told.popitem(last=False)
            return repeated


class Gate:
    """Decides for each call on the peer port."""

    def __init__(self, keyring: Keyring, refusals: Refusals) -> None:
        self._keyring = keyring
        self._refusals = refusals
        self._on_let_in: Callable[[str], None] | None = None
        self._checked: OrderedDict[bytes, bool] = OrderedDict()

    def authorize(self, context: Any) -> PeerIdentity:
        """The caller of any method but Join. Raises ``Refused``, after the event log was told."""
        address = peer_address(context)
        try:
            certificate = presented(context)
            member = self._judge(certificate)
        except (Refused, NotOurs) as refused:
            self.refuse(context, refused.reason if isinstance(refused, Refused) else str(refused))
        self.let_in(context)
        return PeerIdentity(member=member, address=address, certificate=certificate)

    def refuse(self, context: Any, reason: str, *, attempted: str = "call", hint: str = "") -> NoReturn:
        """Tells the event log and raises ``Refused``."""
        self.let_in(context)  # TLS let it in: what is told of it is told here
        self._refusals.tell(peer=peer_address(context), reason=reason, attempted=attempted)
        raise Refused("the other node refused the", subject=attempted, reason=reason, hint=hint)

    def let_in(self, context: Any) -> None:
        """TLS is behind this caller."""
        if self._on_let_in is not None:
            self._on_let_in(peer_address(context))

    def on_let_in(self, callback: Callable[[str], None]) -> None:
        """``callback(address)`` is called for each caller whom TLS let in, whatever is said to it then."""
        self._on_let_in = callback

    def _judge(self, certificate: x509.Certificate) -> Member:
        identity = self._keyring.identity
        if not self._is_of_pair(certificate, identity):
            raise NotOurs("the certificate was not given by this pair: a pairing token allows to join, nothing else")
        member = certificates.member_of(certificate)
        refuse_stranger(member, certificate, identity)
        unix_s = self._keyring.clock().unix_s
        if is_plausible(unix_s=unix_s, newest_unix_s=identity.newest_unix_s):
            refuse_expired(certificate, unix_s)
        return member

    def _is_of_pair(self, certificate: x509.Certificate, identity: Identity) -> bool:
        """The signature's check takes a tenth of a millisecond: remembered for the few certificates that occur."""
        key = certificates.certificate_der(certificate) + certificates.certificate_der(identity.authority)
        known = self._checked.get(key)
        if known is None:
            known = self._checked[key] = certificates.is_issued_by(certificate, identity.authority)
            if len(self._checked) > CHECKED_MAX:
                self._checked.popitem(last=False)
        return known


def refuse_stranger(member: Member, certificate: x509.Certificate, identity: Identity) -> None:
    """Raises ``NotOurs`` unless the member is the paired peer."""
    if member.cluster_id != identity.cluster_id:
        raise NotOurs(f"another cluster: {member.cluster_id}, here it is {identity.cluster_id}")
    if member.node_id in identity.revoked_nodes or certificate.serial_number in identity.revoked_serials:
        raise NotOurs(f"node {member.node_id} was revoked: it is no longer part of this pair")
    if member.node_id == identity.node_id:
        raise NotOurs("this is my own certificate: I am talking to myself, or two nodes share one identity")
    if identity.peer is None or member.node_id != identity.peer.node_id:
        raise NotOurs(f"node {member.node_id} is not the paired node")


def refuse_expired(certificate: x509.Certificate, unix_s: float) -> None:
    """Raises ``NotOurs`` when the certificate has ended."""
    if unix_s > certificates.ends_unix_s(certificate):
        raise NotOurs(f"the certificate expired at {certificate.not_valid_after_utc:%Y-%m-%dT%H:%M:%SZ}")


def presented(context: Any) -> x509.Certificate:
    """The certificate that TLS verified for this call. Raises ``NotOurs`` where there is none."""
    found = context.auth_context().get("x509_pem_cert") or ()
    if not found:
        raise NotOurs("the connection has no certificate")
    return certificates.load_certificate(bytes(found[0]))


def peer_address(context: Any) -> str:
    """The caller's address, e.g. ``127.0.0.1:40312`` or ``[::1]:40312``."""
    text = unquote(str(context.peer()))
    return text.partition(":")[2] if text.startswith(("ipv4:", "ipv6:")) else text


def host_of(address: str) -> str:
    """The address without its port, which differs at every connection."""
    return address.rpartition(":")[0] or address
