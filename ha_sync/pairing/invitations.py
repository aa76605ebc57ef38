"""The one-time tokens that this node gave out: ``identity/tokens.json``.

Of a token only its id, the public half of the key derived from its secret, and its life are stored. A token lives for
a time in the kernel's boot time, so no clock setting stretches it; a reboot ends it, a restart of the engine does not.
It is burnt, durably, before the answer to its user leaves this node. The record keeps whom it went to, so that the
same joiner with the same request, whose answer was lost, gets the same answer again while the token lives.
A dead token is remembered for a day, so that its late user is told so; nothing else can be had with it.

Changes hold the directory's lock and read the file anew, since `ha-sync pair token` may write it too. Blocking.
"""

from __future__ import annotations

import dataclasses
import json
import logging
import math
import os
from dataclasses import dataclass

from ha_sync.errors import OperatorNeeded, Refused
from ha_sync.pairing import certificates, durable
from ha_sync.pairing.certificates import PublicKey
from ha_sync.pairing.clock import Clock, Moment, iso_utc, read_clock
from ha_sync.pairing.identity import Identity
from ha_sync.pairing.onetime import Token, bootstrap_key, encode, new_token

logger = logging.getLogger(__name__)

TOKEN_LIFETIME_S = 600.0
TOKEN_LIFETIME_MAX_S = 86400.0
REMEMBERED_S = 86400.0  # how long a dead token is still named to its user
TOKENS_MAX = 16  # overflow: dead ones are forgotten first; with as many alive, a new one is refused
FILE_MAX = 1 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Use:
    """Who used a token, and what it was given."""

    node_id: str
    request_hash: str  # SHA-256 over the joiner's request, hexadecimal
    certificate: str  # DER, hexadecimal


@dataclass(frozen=True, slots=True, kw_only=True)
class Invitation:
    """One token as its giver knows it."""

    token_id: str
    public_key: str  # of the bootstrap authority, hexadecimal
    boot_id: str
    created_boot_s: float
    lifetime_s: float
    expires_unix_s: float  # for people
    use: Use | None = None

    def age_s(self, now: Moment) -> float:
        """How long ago it was given out; endless after a reboot."""
        return now.boot_s - self.created_boot_s if now.boot_id == self.boot_id else math.inf

    def is_alive(self, now: Moment) -> bool:
        """Whether it has not run out (it may be used)."""
        return 0 <= self.age_s(now) < self.lifetime_s

    def is_remembered(self, now: Moment) -> bool:
        """Whether its holder is still told what is wrong. After a reboot the wall clock must do."""
        if now.boot_id == self.boot_id:
            return self.age_s(now) < self.lifetime_s + REMEMBERED_S
        return abs(now.unix_s - self.expires_unix_s) < REMEMBERED_S

    def key(self) -> PublicKey:
        """The bootstrap authority's public key."""
        return certificates.load_public(bytes.fromhex(self.public_key))


@dataclass(frozen=True, slots=True, kw_only=True)
class NewToken:
    """What `pair token` shows, once."""

    text: str
    token_id: str
    expires: str  # ISO 8601, UTC, by this node's clock
    address: str


class Invitations:
    """The tokens of one identity. Thread-safe."""

    def __init__(self, directory: str, *, clock: Clock = read_clock) -> None:
        self._directory = directory
        self._path = os.path.join(directory, "tokens.json")
        self._clock = clock
        self._seen: tuple[int, int, int] | None = None
        self._known: tuple[Invitation, ...] = ()

    def create(self, identity: Identity, *, lifetime_s: float = 0.0, address: str = "") -> NewToken:
        """Makes a token. ``lifetime_s`` 0: ten minutes; ``address`` overrides where the joiner will call."""
        address = address or identity.address
        _check_wish(identity, lifetime_s, address)
        token = new_token(cluster_id=identity.cluster_id, authority_key=_public(identity), address=address)
        invitation = self._invitation(token, lifetime_s or TOKEN_LIFETIME_S)
        with durable.exclusive(self._directory):
            self._store((*self._room(), invitation))
        return NewToken(
            text=encode(token),
            token_id=token.token_id,
            expires=iso_utc(invitation.expires_unix_s),
            address=address,
        )

    def remembered(self) -> tuple[Invitation, ...]:
        """All whose holders may still speak to Join. Cheap while the file does not change; called in any thread."""
        now = self._clock()
        return tuple(known for known in self._current() if known.is_remembered(now))

    def find(self, token_id: str) -> Invitation | None:
        """The invitation of this id."""
        return next((known for known in self.remembered() if known.token_id == token_id), None)

    def burn(self, token_id: str, use: Use) -> Use:
        """Binds a token to its first user, durably, and returns the use that stands.

        Raises ``Refused`` when it is unknown, has run out, or was used by somebody else.
        """
        with durable.exclusive(self._directory):
            known = self._read()
            invitation = next((one for one in known if one.token_id == token_id), None)
            standing = self._use_of(invitation, use)
            if standing is not None:
                return standing
            burnt = [dataclasses.replace(one, use=use) if one.token_id == token_id else one for one in known]
            self._store(tuple(burnt))
            return use

    def _use_of(self, invitation: Invitation | None, use: Use) -> Use | None:
        if invitation is None:
            raise Refused("cannot join", reason="the token is not known here", hint=_ANOTHER)
        if not invitation.is_alive(self._clock()):
            raise Refused("cannot join", reason="the token has expired", hint=_ANOTHER)
        standing = invitation.use
        if standing is None:
            return None
        if (standing.node_id, standing.request_hash) != (use.node_id, use.request_hash):
            raise Refused("cannot join", reason="the token was used already", hint=_ANOTHER)
        return standing

    def _invitation(self, token: Token, lifetime_s: float) -> Invitation:
        now = self._clock()
        return Invitation(
            token_id=token.token_id,
            public_key=certificates.public_bytes(bootstrap_key(token).public_key()).hex(),
            boot_id=now.boot_id,
            created_boot_s=now.boot_s,
            lifetime_s=lifetime_s,
            expires_unix_s=now.unix_s + lifetime_s,
        )

    def _room(self) -> tuple[Invitation, ...]:
        """What stays beside a new one."""
        now = self._clock()
        known = self._read()
        alive = tuple(one for one in known if one.is_alive(now) and one.use is None)
        dead = tuple(one for one in known if one not in alive and one.is_remembered(now))
        room = TOKENS_MAX - 1 - len(alive)
        if room < 1:
            raise Refused("cannot make a token", reason=f"{len(alive)} unused ones are alive", hint="use one of them")
        return (*dead[-room:], *alive)

    def _current(self) -> tuple[Invitation, ...]:
        try:
            status = os.stat(self._path)
        except FileNotFoundError:
            return ()
        seen = (status.st_ino, status.st_mtime_ns, status.st_size)
        if seen != self._seen:
            self._known = self._readable()
            self._seen = seen
        return self._known

    def _readable(self) -> tuple[Invitation, ...]:
        """A damaged file costs its tokens, never the pair: the peer port must open without it."""
        try:
            return self._read()
        except OperatorNeeded as damaged:
            logger.warning("pairing tokens cannot be read", extra={"reason": damaged.sentence()})
            return ()

    def _read(self) -> tuple[Invitation, ...]:
        try:
            with open(self._path, "rb") as file:
                entries = json.loads(file.read(FILE_MAX))["tokens"]
            return tuple(
                Invitation(**(entry | {"use": Use(**entry["use"]) if entry["use"] else None})) for entry in entries
            )
        except FileNotFoundError:
            return ()
        except (OSError, ValueError, KeyError, TypeError) as broken:
            hint = "remove it; unused tokens are lost with it"
            raise OperatorNeeded("cannot read", subject=self._path, reason=str(broken), hint=hint) from broken

    def _store(self, invitations: tuple[Invitation, ...]) -> None:
        entries = [dataclasses.asdict(one) for one in invitations]
        durable.write_file(self._path, json.dumps({"tokens": entries}, indent=1).encode())


_ANOTHER = "make another with `ha-sync pair token` on the node in service"


def _public(identity: Identity) -> PublicKey:
    return certificates.load_public(certificates.public_bytes(identity.authority.public_key()))


def _check_wish(identity: Identity, lifetime_s: float, address: str) -> None:
    if identity.authority_key is None:
        raise Refused("cannot make a token", reason="this node has no ca.key", hint="make it on the other node")
    if not 0 <= lifetime_s <= TOKEN_LIFETIME_MAX_S:
        raise Refused("cannot make a token", reason=f"a life of {lifetime_s:g} s", hint="between 1 second and 24 hours")
    if not address:
        raise Refused(
            "cannot make a token",
            reason="it is not known under which address the other node reaches this one",
            hint="say it: --address HOST:PORT",
        )
