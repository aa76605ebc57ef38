"""Seals beats and lets in only what the peer sent to us now. Pure; times are monotonic seconds.

A datagram is ``HB``, the version, 16 bytes of keyed BLAKE2b over the payload, the payload; always below 512 bytes.
``Gate.admit`` answers any bytes with ``Heard`` or ``Rejected`` and raises nothing. What it lets in is authentic, of the
peer, and newer than all before on its path. Whether it also counts as life (echoes my present boot) is the detector's.

Replay: on each path (boot, sequence) must grow. A peer that lost its stored boot number comes back with a lower one;
it is let in if it echoes a beat of my present boot that is newer than any echoed before: no old beat can do that.
"""

from __future__ import annotations

import enum
import hashlib
import hmac
import uuid
from collections import Counter
from dataclasses import dataclass, field
from typing import NewType

from ha_agent.arbiter.values import Beat, Mac
from ha_agent.heartbeat.beat import (
    NO_BOOT,
    Boot,
    Echo,
    Envelope,
    Message,
    NotUnderstood,
    PathId,
    Reader,
    Sequence,
    Told,
    Writer,
)

HeartbeatKey = NewType("HeartbeatKey", bytes)

KEY_BYTES = 32
DATAGRAM_MAX = 511
QUIET_S = 60.0
"""A kind of rejection is new again when none of it came for so long."""

_MAGIC = b"HB\x01"
_TAG_BYTES = 16
_HEADER = len(_MAGIC) + _TAG_BYTES
_PERSON = b"ha-sync beat v1"


class Rejection(enum.Enum):
    """Why a datagram is dropped. The first three say nothing about the peer, only about the network."""

    TOO_LONG = "too_long"
    MALFORMED = "malformed"  # no beat at all, or of a version unknown
    STRANGER = "stranger"  # sealed with another key
    OTHER_CLUSTER = "other_cluster"
    OWN = "own"  # my own beat came back
    WRONG_MAC = "wrong_mac"  # not the peer that was configured
    NOT_UNDERSTOOD = "not_understood"  # authentic, but a field is out of bounds: another firmware?
    WRONG_PATH = "wrong_path"  # cables or addresses are crossed
    OLD_BOOT = "old_boot"
    OLD_SEQUENCE = "old_sequence"  # a replay, a duplicate, or overtaken on its way


@dataclass(frozen=True, slots=True, kw_only=True)
class Heard:
    """A beat of the peer, let in."""

    at: float
    envelope: Envelope
    beat: Beat
    told: Told


@dataclass(frozen=True, slots=True, kw_only=True)
class Rejected:
    """A datagram that was dropped. ``first``: none of this kind came within ``QUIET_S``, so it is worth an alarm."""

    at: float
    kind: Rejection
    source: str  # the sender's address; not proven
    first: bool
    mac: Mac | None = None  # of an authentic beat that is not the peer's


@dataclass(frozen=True, slots=True, kw_only=True)
class Pair:
    """Who seals, and whom it expects."""

    key: HeartbeatKey = field(repr=False)
    cluster_id: uuid.UUID
    own_mac: Mac
    peer_mac: Mac

    def __post_init__(self) -> None:
        assert len(self.key) == KEY_BYTES, len(self.key)
        assert self.own_mac != self.peer_mac, self.own_mac


def mac_of(text: str) -> Mac:
    """A MAC as it is compared everywhere: six pairs of lower case, colons between. Raises ValueError."""
    raw = bytes.fromhex(text.replace(":", "").replace("-", ""))
    if len(raw) != 6:
        raise ValueError(f"not a MAC address: {text}")
    return Mac(raw.hex(":"))


def key_of(content: bytes) -> HeartbeatKey:
    """The content of ``identity/heartbeat.key``. Raises ValueError if it is none."""
    if len(content) != KEY_BYTES:
        raise ValueError(f"a heartbeat key has {KEY_BYTES} bytes, not {len(content)}")
    return HeartbeatKey(content)


class Sealer:
    """Makes the datagrams of one node."""

    def __init__(self, pair: Pair) -> None:
        self._key = pair.key
        self._writer = Writer(pair.cluster_id.bytes, pair.own_mac)

    def seal(self, envelope: Envelope, beat: Beat, told: Told, paths: tuple[PathId, ...]) -> tuple[bytes, ...]:
        """One beat for these paths, in their order. The path in the envelope is not looked at."""
        payloads = self._writer.write(envelope, beat, told, paths)
        datagrams = tuple(_MAGIC + _tag(self._key, payload) + payload for payload in payloads)
        assert all(len(datagram) <= DATAGRAM_MAX for datagram in datagrams), [len(one) for one in datagrams]
        return datagrams


def seal(pair: Pair, envelope: Envelope, beat: Beat, told: Told) -> bytes:
    """One datagram, for the path of its envelope."""
    return Sealer(pair).seal(envelope, beat, told, (envelope.path,))[0]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Newest:
    sequence: Sequence
    at: float


class Gate:
    """Lets in the peer's beats, counts the rest. One for all paths of a node and one boot of its agent."""

    def __init__(self, pair: Pair, *, own_boot: Boot, quiet_s: float = QUIET_S) -> None:
        assert own_boot != NO_BOOT
        self._pair = pair
        self._own_boot = own_boot
        self._quiet_s = quiet_s
        self._reader = Reader()
        self._boot = NO_BOOT
        self._newest: dict[PathId, _Newest] = {}  # of self._boot; at most PATHS_MAX
        self._echoed = 0  # the newest of my sequences that the peer proved to have heard
        self._rejected_at: dict[Rejection, float] = {}
        self.admitted = 0
        self.rejected: Counter[Rejection] = Counter()

    @property
    def peer_boot(self) -> Boot:
        """The peer's boot that is being heard; 0: none yet."""
        return self._boot

    def admit(self, datagram: bytes, *, path: PathId, source: str, now: float) -> Heard | Rejected:
        """Judges a datagram that came in on ``path``."""
        message = self._open(datagram)
        if isinstance(message, Message):
            fault = self._doubt(message, path)
            if fault is None:
                self._remember(message.envelope, now)
                self.admitted += 1
                return Heard(at=now, envelope=message.envelope, beat=message.beat, told=message.told)
            return self._reject(fault, source=source, now=now, mac=message.mac)
        return self._reject(message, source=source, now=now, mac=None)

    def echoes(self, now: float) -> tuple[Echo, ...]:
        """What my next beat says of the peer's boot ``peer_boot``.

        Made of all that was admitted, not only of what was life: two nodes that start together have nothing to
        echo yet, and each waits for the other's echo.
        """
        return tuple(
            Echo(path=path, sequence=newest.sequence, age_s=max(0.0, now - newest.at))
            for path, newest in sorted(self._newest.items())
        )

    def standing(self, now: float) -> frozenset[Rejection]:
        """The kinds that came within ``QUIET_S``: their alarms stand, the others may be cleared."""
        return frozenset(kind for kind, at in self._rejected_at.items() if now - at < self._quiet_s)

    def _open(self, datagram: bytes) -> Message | Rejection:
        if len(datagram) > DATAGRAM_MAX:
            return Rejection.TOO_LONG
        if len(datagram) <= _HEADER or not datagram.startswith(_MAGIC):
            return Rejection.MALFORMED
        payload = datagram[_HEADER:]
        # Nothing of the payload is looked at before the seal is right.
        if not hmac.compare_digest(_tag(self._pair.key, payload), datagram[len(_MAGIC) : _HEADER]):
            return Rejection.STRANGER
        try:
            return self._reader.read(payload)
        except NotUnderstood:
            return Rejection.NOT_UNDERSTOOD

    def _doubt(self, message: Message, path: PathId) -> Rejection | None:
        if message.cluster_id != self._pair.cluster_id.bytes:
            return Rejection.OTHER_CLUSTER
        if message.mac == self._pair.own_mac:
            return Rejection.OWN
        if message.mac != self._pair.peer_mac:
            return Rejection.WRONG_MAC
        if message.envelope.path != path:
            return Rejection.WRONG_PATH
        return self._age(message.envelope)

    def _age(self, envelope: Envelope) -> Rejection | None:
        if envelope.boot > self._boot:
            return None
        if envelope.boot < self._boot:
            return None if self._echo_of(envelope) > self._echoed else Rejection.OLD_BOOT
        newest = self._newest.get(envelope.path)
        return Rejection.OLD_SEQUENCE if newest is not None and envelope.sequence <= newest.sequence else None

    def _remember(self, envelope: Envelope, now: float) -> None:
        if envelope.boot != self._boot:
            self._boot = envelope.boot
            self._newest.clear()
        self._newest[envelope.path] = _Newest(sequence=envelope.sequence, at=now)
        self._echoed = max(self._echoed, self._echo_of(envelope))

    def _echo_of(self, envelope: Envelope) -> int:
        if envelope.echo_boot != self._own_boot:
            return 0
        return max((echo.sequence for echo in envelope.echoes), default=0)

    def _reject(self, kind: Rejection, *, source: str, now: float, mac: Mac | None) -> Rejected:
        self.rejected[kind] += 1
        before = self._rejected_at.get(kind)
        self._rejected_at[kind] = now
        first = before is None or now - before >= self._quiet_s
        return Rejected(at=now, kind=kind, source=source, first=first, mac=mac)


def _tag(key: HeartbeatKey, payload: bytes) -> bytes:
    return hashlib.blake2b(_MAGIC + payload, digest_size=_TAG_BYTES, key=key, person=_PERSON).digest()
