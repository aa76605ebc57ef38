"""Certificates renew themselves, long before they end.

At two thirds of its life a node signs its next certificate itself: both nodes hold the authority's key, so asking the
peer would add a way to fail (the peer is dead for a month) and no safety. Only a node whose ca.key was taken away asks
its peer. The key stays, so a renewal is one file replaced. A clock that cannot be right decides nothing: neither a
renewal nor, in ``gate``, an expiry; TLS itself still refuses what has ended by its own clock.
"""

from __future__ import annotations

import asyncio
import dataclasses
import enum
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

import grpc
from cryptography import x509

from ha_proto.sync.v1 import pairing_pb2, pairing_pb2_grpc
from ha_sync.core.dataset import Report
from ha_sync.errors import HaSyncError, PeerUnreachable, ProtocolFault
from ha_sync.pairing import certificates
from ha_sync.pairing.certificates import NotOurs
from ha_sync.pairing.clock import is_plausible, iso_utc
from ha_sync.pairing.identity import Identity
from ha_sync.pairing.keyring import Keyring
from ha_sync.pairing.servicer import issue

LOOK_EVERY_S = 60.0  # the clock may be set at any time, and nothing tells
STORE_EVERY_S = 3600.0
RETRY_S = 60.0
RENEW_TIMEOUT_S = 20.0

AskPeer = Callable[[bytes], Awaitable[bytes]]
"""Sends a certificate request (DER) to the peer and returns the certificate (DER)."""


class Step(enum.Enum):
    """What to do now."""

    WAIT = "wait"
    RENEW = "renew"
    DISTRUST_CLOCK = "distrust clock"


@dataclass(frozen=True, slots=True, kw_only=True)
class Decision:
    """And when to look again."""

    step: Step
    wait_s: float


def decide(*, issued_unix_s: float, ends_unix_s: float, newest_unix_s: float, now_unix_s: float) -> Decision:
    """Whether a certificate is to be renewed. Pure."""
    if not is_plausible(unix_s=now_unix_s, newest_unix_s=max(newest_unix_s, min(issued_unix_s, ends_unix_s))):
        return Decision(step=Step.DISTRUST_CLOCK, wait_s=RETRY_S)
    due = issued_unix_s + (ends_unix_s - issued_unix_s) * 2 / 3
    if now_unix_s >= due:
        return Decision(step=Step.RENEW, wait_s=0.0)
    return Decision(step=Step.WAIT, wait_s=min(LOOK_EVERY_S, due - now_unix_s))


class Renewer:
    """One task of the engine: ``await renewer.run()`` until cancelled."""

    def __init__(
        self,
        keyring: Keyring,
        report: Report,
        *,
        ask_peer: AskPeer | None = None,
        on_renewed: Callable[[Identity], None] | None = None,
    ) -> None:
        self._keyring = keyring
        self._report = report
        self._ask_peer = ask_peer
        self._on_renewed = on_renewed
        self._trouble = ""

    async def run(self) -> None:
        """Looks every minute, and when something is due."""
        while True:
            await asyncio.sleep(await self.look())

    async def look(self) -> float:
        """Does what is due; returns the seconds until the next look. Raises nothing that a retry may mend."""
        identity = self._keyring.identity
        now = self._keyring.clock().unix_s
        decision = decide(
            issued_unix_s=identity.issued_unix_s,
            ends_unix_s=identity.ends_unix_s,
            newest_unix_s=identity.newest_unix_s,
            now_unix_s=now,
        )
        try:
            return await self._do(decision, now)
        except (HaSyncError, NotOurs, OSError) as failed:
            self._complain("certificate could not be renewed", {"reason": str(failed)})
            return RETRY_S

    async def _do(self, decision: Decision, now: float) -> float:
        if decision.step is Step.DISTRUST_CLOCK:
            newest = self._keyring.identity.newest_unix_s
            fields: dict[str, object] = {"clock": iso_utc(now), "newest_seen": iso_utc(newest)}
            self._complain("clock cannot be right, certificates are left alone", fields)
            return decision.wait_s
        if decision.step is Step.RENEW:
            await self._renew(now)
            decision = Decision(step=Step.WAIT, wait_s=0.1)  # a life of seconds (tests) must not spin
        else:
            await asyncio.to_thread(self._keyring.change_facts, lambda held: _seen_at(held, now))
        self._trouble = ""
        return decision.wait_s

    async def _renew(self, now: float) -> None:
        identity = self._keyring.identity
        if identity.authority_key is not None:
            certificate = issue(identity, identity.key.public_key(), identity.member, now)
        else:
            certificate = await self._from_peer(identity)
        changed = await asyncio.to_thread(self._keyring.change_certificate, _renewed(certificate, now))
        self._report("info", "certificate renewed", {"expires": iso_utc(changed.ends_unix_s)})
        if self._on_renewed is not None:
            self._on_renewed(changed)

    async def _from_peer(self, identity: Identity) -> x509.Certificate:
        if self._ask_peer is None:
            raise PeerUnreachable("cannot renew the certificate", reason="no ca.key here, and no peer to ask")
        answer = await self._ask_peer(certificates.make_request(identity.key))
        certificate = certificates.load_certificate(answer)
        fits = certificates.same_key(certificate.public_key(), identity.key.public_key())
        if not (fits and certificates.is_issued_by(certificate, identity.authority)):
            raise ProtocolFault("cannot use the certificate from the peer", reason="it is not mine")
        if certificates.member_of(certificate) != identity.member:
            raise ProtocolFault("cannot use the certificate from the peer", reason="it names another node")
        return certificate

    def _complain(self, what: str, fields: dict[str, object]) -> None:
        """Once per edge."""
        if self._trouble != what:
            self._report("warning", what, fields)
            self._trouble = what


async def ask_over(channel: grpc.aio.Channel, request: bytes) -> bytes:
    """Asks the peer for a certificate over a channel that has the old one. Raises ``PeerUnreachable``."""
    try:
        stub = pairing_pb2_grpc.PairingServiceStub(channel)  # type: ignore[no-untyped-call]
        message = pairing_pb2.RenewRequest(certificate_request=request)
        response = await stub.Renew(message, timeout=RENEW_TIMEOUT_S)
    except grpc.aio.AioRpcError as failed:
        reason = f"{failed.code().name}: {failed.details()}"
        raise PeerUnreachable("cannot renew the certificate", reason=reason) from failed
    certificate: bytes = response.certificate
    return certificate


def _seen_at(identity: Identity, now: float) -> Identity:
    if now < identity.newest_unix_s + STORE_EVERY_S:
        return identity  # nothing to store: at most one write an hour
    return dataclasses.replace(identity, newest_unix_s=now)


def _renewed(certificate: x509.Certificate, now: float) -> Callable[[Identity], Identity]:
    def change(identity: Identity) -> Identity:
        newest = max(identity.newest_unix_s, now)
        return dataclasses.replace(identity, certificate=certificate, issued_unix_s=now, newest_unix_s=newest)

    return change
