"""The identity in use by a running engine, and the TLS credentials made of it.

The server's credentials are asked for anew at every connection, so that a renewed certificate, a new token and a dead
one take effect without a restart. A client's are read when the channel is made: make a new channel to use a renewed
certificate. Both ends demand a certificate of the pair; the only other clients let through TLS are holders of a token,
who reach nothing but Join (``gate``). Thread-safe; changes to the files hold the directory's lock.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from typing import cast

import grpc

from ha_sync.errors import HaSyncError
from ha_sync.pairing import certificates, durable
from ha_sync.pairing import identity as identities
from ha_sync.pairing.clock import Clock, read_clock
from ha_sync.pairing.identity import Identity
from ha_sync.pairing.invitations import Invitations
from ha_sync.pairing.onetime import bootstrap_authority

logger = logging.getLogger(__name__)

Change = Callable[[Identity], Identity]


class Keyring:
    """The current identity of this node and its outstanding tokens."""

    def __init__(self, identity: Identity, *, clock: Clock = read_clock) -> None:
        self._identity = identity
        self._lock = threading.Lock()
        self._anchors: dict[str, bytes] = {}
        self._offered: object = None
        self._on_connection: Callable[[], None] | None = None
        self.clock = clock
        self.invitations = Invitations(identity.directory, clock=clock)

    @property
    def identity(self) -> Identity:
        """As it is now; a frozen value, safe to keep for the length of one decision."""
        return self._identity

    def change_facts(self, change: Change) -> Identity:
        """Changes and stores what stands in ``identity.json``. Blocking."""
        return self._change(change, identities.store_facts)

    def change_certificate(self, change: Change) -> Identity:
        """Changes and stores certificate and facts. Blocking."""

        def store(identity: Identity) -> None:
            # The certificate first: facts older than the certificate do no harm.
            identities.store_certificate(identity)
            identities.store_facts(identity)

        return self._change(change, store)

    def server_credentials(self) -> grpc.ServerCredentials:
        """For the peer port: every connection needs a certificate of the pair, or of a remembered token."""
        return grpc.dynamic_ssl_server_credentials(
            self._offer()[1],
            cast("Callable[[], grpc.ServerCertificateConfiguration]", self._fetch),  # None: no change
            require_client_authentication=True,
        )

    def channel_credentials(self) -> grpc.ChannelCredentials:
        """For a channel to the peer, with the certificate as it is now."""
        return channel_credentials(self._identity)

    def on_connection(self, callback: Callable[[], None]) -> None:
        """``callback`` is called in a foreign thread before each handshake at the peer port; it must be quick."""
        self._on_connection = callback

    def _change(self, change: Change, store: Callable[[Identity], None]) -> Identity:
        with self._lock, durable.exclusive(self._identity.directory):
            changed = change(self._identity)
            if changed is not self._identity:
                store(changed)
                self._identity = changed
            return changed

    def _fetch(self) -> grpc.ServerCertificateConfiguration | None:
        # In a thread of gRPC's, where an exception would refuse the connection with nobody told.
        try:
            if self._on_connection is not None:
                self._on_connection()
            state, configuration = self._offer()
        except (HaSyncError, OSError, ValueError):
            logger.exception("the peer port keeps its earlier certificates")
            return None
        if state == self._offered:
            return None
        self._offered = state
        return configuration

    def _offer(self) -> tuple[object, grpc.ServerCertificateConfiguration]:
        identity = self._identity
        anchors = self._bootstrap_anchors()
        certificate = certificates.certificate_pem(identity.certificate)
        roots = certificates.certificate_pem(identity.authority) + b"".join(anchors)
        pair = (certificates.key_pem(identity.key), certificate)
        return (certificate, anchors), grpc.ssl_server_certificate_configuration([pair], roots)

    def _bootstrap_anchors(self) -> tuple[bytes, ...]:
        """The anchors of the tokens; made once each, so that an unchanged set compares equal."""
        remembered = self.invitations.remembered()
        anchors = {
            one.token_id: self._anchors.get(one.token_id)
            or certificates.certificate_pem(bootstrap_authority(one.key(), one.token_id))
            for one in remembered
        }
        self._anchors = anchors
        return tuple(anchors.values())


def channel_credentials(identity: Identity) -> grpc.ChannelCredentials:
    """For a channel to the peer."""
    return grpc.ssl_channel_credentials(
        certificates.certificate_pem(identity.authority),
        certificates.key_pem(identity.key),
        certificates.certificate_pem(identity.certificate),
    )


CHANNEL_OPTIONS: tuple[tuple[str, str | int], ...] = (
    ("grpc.ssl_target_name_override", certificates.PEER_NAME),
    ("grpc.use_local_subchannel_pool", 1),  # a new channel makes a new connection, with the certificate of now
    ("grpc.enable_http_proxy", 0),  # an environment's proxy is not for the peer
)
"""What every channel to the peer needs, beside the stream's own options."""
