"""A beat between its values and the protobuf of ``agent/v1/beat.proto``. Pure.

Promise: what is written is never longer than ``PAYLOAD_MAX`` bytes, whatever the values; what is read has every field
bounded before anyone sees it; any bytes are answered with a ``Message`` or with ``NotUnderstood``. Numbers stay below
2^42. Ages are seconds here and milliseconds on the wire; longer ones than ``AGE_MAX_S`` are said to be that long.
"""

from __future__ import annotations

import enum
import string
from dataclasses import dataclass
from typing import NewType, TypeVar

from google.protobuf.message import DecodeError

from ha_agent.arbiter.values import (
    Beat,
    Cause,
    Digest,
    Epoch,
    Identity,
    Mac,
    Offer,
    Phase,
    Reason,
    Refusal,
    Station,
    Switched,
)
from ha_proto.agent.v1 import beat_pb2 as pb

PathId = NewType("PathId", int)
"""Number of a way between the nodes, the same on both: its place in the sorted list of the paths' names."""

Boot = NewType("Boot", int)
"""Grows with each start of a node's agent; stored. 0: none."""

Sequence = NewType("Sequence", int)
"""Grows with each beat of a boot, begins at 1."""

NO_BOOT = Boot(0)
NO_DIGEST = Digest("")

PAYLOAD_MAX = 492
PATHS_MAX = 4
REASONS_MAX = 8
SWITCHES_MAX = 4
NUMBER_BITS = 42
DIGEST_MAX = 32
NAME_MAX = 24
FIRMWARE_MAX = 8  # of its digest
TOLD_FIRMWARE_MAX = 20  # for people
TOLD_DIGEST_MAX = 8  # for people: enough to see a difference
SCHEMA_BITS = 20
AGE_MAX_S = 99_999.0
FAULTS_BITS = 32
HEALTH_MAX = 1000

_PLAIN = frozenset(string.ascii_letters + string.digits + string.punctuation + " ")


class NotUnderstood(Exception):
    """These bytes are no beat that this version can read; nothing of them was used."""


class FullSync(enum.Enum):
    """How far the first copy of all data is."""

    NEVER = "never"
    RUNNING = "running"
    DONE = "done"


@dataclass(frozen=True, slots=True, kw_only=True)
class Echo:
    """The newest beat that the sender heard on a path, and how long ago."""

    path: PathId
    sequence: Sequence
    age_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Told:
    """For people to read on the other node; nothing is decided by it."""

    firmware: str = ""
    lease_left_s: float = 0.0
    faults: int = 0  # one bit for each probe that says fault
    gateway_seen: bool = False
    full_sync: FullSync = FullSync.NEVER
    digest: Digest = NO_DIGEST  # of the positions captured or applied


@dataclass(frozen=True, slots=True, kw_only=True)
class Envelope:
    """Which beat this is, and what its sender heard of the receiver."""

    boot: Boot
    sequence: Sequence
    path: PathId
    echo_boot: Boot = NO_BOOT  # boot of the receiver that the echoes mean
    echoes: tuple[Echo, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Message:
    """All of one datagram."""

    cluster_id: bytes
    mac: Mac
    envelope: Envelope
    beat: Beat
    told: Told


class Writer:
    """Writes what one node says. Of too many paths or reasons the first go, of switches the newest. What is compared
    between the nodes (digests, the model) is never cut: a longer one is our own mistake, found at the first beat.

    A protobuf may be written in parts, in any order: a part that says what it said in the last beat is not made anew.
    """

    def __init__(self, cluster_id: bytes, mac: Mac) -> None:
        self._sender = pb.Beat(cluster_id=cluster_id, mac=bytes.fromhex(mac.replace(":", ""))).SerializeToString()
        self._beat: Beat | None = None
        self._role = b""
        self._told: Told | None = None
        self._told_part = b""

    def write(self, envelope: Envelope, beat: Beat, told: Told, paths: tuple[PathId, ...]) -> tuple[bytes, ...]:
        """The payloads of one beat for these paths, in their order. The path in the envelope is not looked at."""
        if beat != self._beat:
            self._role = pb.Beat(role=_write_role(beat)).SerializeToString()
            self._beat = beat
        if told != self._told:
            self._told_part = pb.Beat(told=_write_told(told)).SerializeToString()
            self._told = told
        common = self._sender + _write_envelope(envelope) + self._role + self._told_part
        payloads = tuple(common + _PATH_PARTS[path] for path in paths)
        assert all(len(payload) <= PAYLOAD_MAX for payload in payloads), len(common)
        return payloads


class Reader:
    """Reads what one node says. What it says again, as on the next path, is not made anew."""

    def __init__(self) -> None:
        self._role: tuple[pb.Role, Beat] | None = None
        self._told: tuple[pb.Told, Told] | None = None

    def read(self, payload: bytes) -> Message:
        """What a ``Writer`` wrote. Raises NotUnderstood, and nothing else."""
        if len(payload) > PAYLOAD_MAX:
            raise NotUnderstood("too long")
        try:
            wire = pb.Beat.FromString(payload)
        except DecodeError as error:
            raise NotUnderstood("not a protobuf") from error
        _demand(len(wire.cluster_id) == 16, "cluster_id")
        _demand(len(wire.mac) == 6, "mac")
        _demand(len(wire.echoes) <= PATHS_MAX, "echoes")
        return Message(
            cluster_id=wire.cluster_id,
            mac=Mac(wire.mac.hex(":")),
            envelope=Envelope(
                boot=Boot(_positive(wire.boot)),
                sequence=Sequence(_positive(wire.sequence)),
                path=_path(wire.path),
                echo_boot=Boot(_bounded(wire.echo_boot)),
                echoes=tuple(
                    Echo(path=_path(one.path), sequence=Sequence(_positive(one.sequence)), age_s=_seconds(one.age_ms))
                    for one in wire.echoes
                ),
            ),
            beat=self._beat(wire.role),
            told=self._what_is_told(wire.told),
        )

    def _beat(self, role: pb.Role) -> Beat:
        if self._role is None or self._role[0] != role:
            self._role = role, _read_role(role)
        return self._role[1]

    def _what_is_told(self, told: pb.Told) -> Told:
        if self._told is None or self._told[0] != told:
            self._told = told, _read_told(told)
        return self._told[1]


def write(message: Message) -> bytes:
    """The payload of one datagram."""
    envelope = message.envelope
    writer = Writer(message.cluster_id, message.mac)
    return writer.write(envelope, message.beat, message.told, (envelope.path,))[0]


def read(payload: bytes) -> Message:
    """One message. Raises NotUnderstood, and nothing else."""
    return Reader().read(payload)


def plain(text: str, limit: int) -> str:
    """The text as it will stand in a beat: printable ASCII, cut."""
    return "".join(letter if letter in _PLAIN else "?" for letter in text[:limit])


def _write_envelope(envelope: Envelope) -> bytes:
    """All but the path."""
    echoes = [
        pb.Echo(path=echo.path, sequence=_number(echo.sequence), age_ms=_milliseconds(echo.age_s))
        for echo in envelope.echoes[:PATHS_MAX]
    ]
    return pb.Beat(
        boot=_number(envelope.boot),
        sequence=_number(envelope.sequence),
        echo_boot=_number(envelope.echo_boot),
        echoes=echoes,
    ).SerializeToString()


def _write_role(beat: Beat) -> pb.Role:
    role = pb.Role(
        identity=_write_identity(beat.identity),
        phase=_PHASES[beat.phase],
        holds=beat.holds,
        promised=_number(beat.promised),
        epoch=_number(beat.epoch),
        data=_number(beat.data),
        sound=beat.sound,
        progress=_number(beat.progress),
        informed=beat.informed,
        able=beat.able,
        lan_seen=beat.lan_seen,
        ready=beat.ready,
        reasons=[_REASONS[reason] for reason in beat.reasons[:REASONS_MAX]],
        eager=beat.eager,
        health=min(beat.health, HEALTH_MAX),
        link_up=beat.link_up,
        candidate=_number(beat.candidate),
        candidate_forced=beat.candidate_forced,
        consent=_number(beat.consent),
        token=_number(beat.token),
        accepts=_number(beat.accepts),
        # The newest stand last: the older ones are of no use any more.
        switches=[
            pb.Switched(epoch=_number(one.epoch), age_ms=_milliseconds(one.at)) for one in beat.switches[-SWITCHES_MAX:]
        ],
        released=_number(beat.released),
        maintenance_left_ms=_milliseconds(beat.maintenance_left_s),
        maintenance_serial=_number(beat.maintenance_serial),
    )
    if beat.offer is not None:
        role.offer.CopyFrom(_write_offer(beat.offer))
    if beat.refuses is not None:
        refused = pb.Refusal(serial=_number(beat.refuses.serial), reason=_REASONS[beat.refuses.reason])
        role.refuses.CopyFrom(refused)
    return role


def _read_role(role: pb.Role) -> Beat:
    _demand(len(role.reasons) <= REASONS_MAX, "reasons")
    _demand(len(role.switches) <= SWITCHES_MAX, "switches")
    return Beat(
        identity=_read_identity(role.identity),
        phase=_known(_PHASES_BACK, role.phase, "phase"),
        holds=role.holds,
        promised=_epoch(role.promised),
        epoch=_epoch(role.epoch),
        data=_epoch(role.data),
        sound=role.sound,
        progress=_bounded(role.progress),
        informed=role.informed,
        able=role.able,
        lan_seen=role.lan_seen,
        ready=role.ready,
        # For people: a reason that a newer firmware invented must not make its beats unheard.
        reasons=tuple(_REASONS_BACK[one] for one in role.reasons if one in _REASONS_BACK),
        eager=role.eager,
        health=min(role.health, HEALTH_MAX),
        link_up=role.link_up,
        candidate=_epoch(role.candidate),
        candidate_forced=role.candidate_forced,
        consent=_epoch(role.consent),
        token=_bounded(role.token),
        offer=_read_offer(role.offer) if role.HasField("offer") else None,
        accepts=_bounded(role.accepts),
        refuses=_read_refusal(role.refuses) if role.HasField("refuses") else None,
        switches=tuple(Switched(epoch=_epoch(one.epoch), at=_seconds(one.age_ms)) for one in role.switches),
        released=_epoch(role.released),
        maintenance_left_s=_seconds(role.maintenance_left_ms),
        maintenance_serial=_bounded(role.maintenance_serial),
    )


def _write_identity(identity: Identity) -> pb.Identity:
    return pb.Identity(
        station=_STATIONS[identity.station],
        settings_digest=_exact(identity.settings_digest, DIGEST_MAX),
        model=_exact(identity.model, NAME_MAX),
        schema_lowest=_number(identity.schema[0], SCHEMA_BITS),
        schema_highest=_number(identity.schema[1], SCHEMA_BITS),
        observing=identity.observing,
        firmware=_exact(identity.firmware, FIRMWARE_MAX),
        upgrading=identity.upgrading,
    )


def _read_identity(identity: pb.Identity) -> Identity:
    return Identity(
        station=_known(_STATIONS_BACK, identity.station, "station"),
        settings_digest=_text(identity.settings_digest, DIGEST_MAX),
        model=_text(identity.model, NAME_MAX),
        schema=(_bounded(identity.schema_lowest, SCHEMA_BITS), _bounded(identity.schema_highest, SCHEMA_BITS)),
        observing=identity.observing,
        firmware=_text(identity.firmware, FIRMWARE_MAX),
        upgrading=identity.upgrading,
    )


def _write_offer(offer: Offer) -> pb.Offer:
    return pb.Offer(
        serial=_number(offer.serial),
        digest=_exact(offer.digest, DIGEST_MAX),
        lossy=offer.lossy,
        forced=offer.forced,
        cause=_CAUSES[offer.cause],
    )


def _read_offer(offer: pb.Offer) -> Offer:
    return Offer(
        serial=_bounded(offer.serial),
        digest=Digest(_text(offer.digest, DIGEST_MAX)),
        lossy=offer.lossy,
        forced=offer.forced,
        cause=_known(_CAUSES_BACK, offer.cause, "cause"),
    )


def _read_refusal(refusal: pb.Refusal) -> Refusal:
    reason = _REASONS_BACK.get(refusal.reason, Reason.PEER_REFUSED)
    return Refusal(serial=_bounded(refusal.serial), reason=reason)


def _write_told(told: Told) -> pb.Told:
    return pb.Told(
        firmware=plain(told.firmware, TOLD_FIRMWARE_MAX),
        lease_left_ms=_milliseconds(told.lease_left_s),
        faults=told.faults & ((1 << FAULTS_BITS) - 1),
        gateway_seen=told.gateway_seen,
        full_sync=_SYNCS[told.full_sync],
        digest=plain(told.digest, TOLD_DIGEST_MAX),
    )


def _read_told(told: pb.Told) -> Told:
    return Told(
        firmware=_text(told.firmware, TOLD_FIRMWARE_MAX),
        lease_left_s=_seconds(told.lease_left_ms),
        faults=told.faults & ((1 << FAULTS_BITS) - 1),
        gateway_seen=told.gateway_seen,
        full_sync=_SYNCS_BACK.get(told.full_sync, FullSync.NEVER),
        digest=Digest(_text(told.digest, TOLD_DIGEST_MAX)),
    )


def _demand(condition: bool, field: str) -> None:
    if not condition:
        raise NotUnderstood(field)


def _exact(value: str, limit: int) -> str:
    assert len(value) <= limit, value
    assert _PLAIN.issuperset(value), value
    return value


def _number(value: int, bits: int = NUMBER_BITS) -> int:
    assert 0 <= value < 1 << bits, value
    return value


def _bounded(value: int, bits: int = NUMBER_BITS) -> int:
    _demand(value < 1 << bits, "number")
    return value


def _positive(value: int) -> int:
    _demand(value > 0, "number")
    return _bounded(value)


def _epoch(value: int) -> Epoch:
    return Epoch(_bounded(value))


def _path(value: int) -> PathId:
    _demand(value < PATHS_MAX, "path")
    return PathId(value)


def _text(value: str, limit: int) -> str:
    _demand(len(value) <= limit and _PLAIN.issuperset(value), "text")
    return value


def _milliseconds(seconds: float) -> int:
    return round(min(max(seconds, 0.0), AGE_MAX_S) * 1000)


def _seconds(milliseconds: int) -> float:
    return min(milliseconds / 1000, AGE_MAX_S)


_Value = TypeVar("_Value", bound=enum.Enum)


def _known(values: dict[int, _Value], number: int, field: str) -> _Value:
    value = values.get(number)
    if value is None:
        raise NotUnderstood(field)
    return value


# Looked up by name when the module is imported: a word that the arbiter has and the wire has not stops the start.
_PHASES = {phase: pb.Phase.Value(f"PHASE_{phase.name}") for phase in Phase}
_PHASES_BACK: dict[int, Phase] = {number: phase for phase, number in _PHASES.items()}
_REASONS = {reason: pb.Reason.Value(f"REASON_{reason.name}") for reason in Reason}
_REASONS_BACK: dict[int, Reason] = {number: reason for reason, number in _REASONS.items()}
_STATIONS = {station: pb.Station.Value(f"STATION_{station.name}") for station in Station}
_STATIONS_BACK: dict[int, Station] = {number: station for station, number in _STATIONS.items()}
_CAUSES = {cause: pb.Cause.Value(f"CAUSE_{cause.name}") for cause in Cause}
_CAUSES_BACK: dict[int, Cause] = {number: cause for cause, number in _CAUSES.items()}
_SYNCS = {state: pb.FullSync.Value(f"FULL_SYNC_{state.name}") for state in FullSync}
_SYNCS_BACK: dict[int, FullSync] = {number: state for state, number in _SYNCS.items()}
_PATH_PARTS = {PathId(number): pb.Beat(path=number).SerializeToString() for number in range(PATHS_MAX)}
