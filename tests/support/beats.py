"""Beats for tests: one that is easy to read, and strategies for all that there may be."""

from __future__ import annotations

import string
import uuid
from dataclasses import replace

from hypothesis import strategies as st

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
from ha_agent.heartbeat.beat import (
    AGE_MAX_S,
    DIGEST_MAX,
    FIRMWARE_MAX,
    NAME_MAX,
    NUMBER_BITS,
    PATHS_MAX,
    REASONS_MAX,
    SCHEMA_BITS,
    SWITCHES_MAX,
    TOLD_DIGEST_MAX,
    TOLD_FIRMWARE_MAX,
    Boot,
    Echo,
    Envelope,
    FullSync,
    PathId,
    Sequence,
    Told,
)
from ha_agent.heartbeat.seal import HeartbeatKey, Pair

KEY = HeartbeatKey(bytes(range(32)))
CLUSTER = uuid.UUID("6f2c1d3e-0000-4000-8000-000000000001")
MAC_A = Mac("00:0b:82:aa:bb:01")
MAC_B = Mac("00:0b:82:aa:bb:02")
PAIR_A = Pair(key=KEY, cluster_id=CLUSTER, own_mac=MAC_A, peer_mac=MAC_B)
PAIR_B = Pair(key=KEY, cluster_id=CLUSTER, own_mac=MAC_B, peer_mac=MAC_A)
LAN = PathId(0)
CABLE = PathId(1)

BEAT = Beat(
    identity=Identity(station=Station.SECONDARY),
    phase=Phase.STANDBY,
    holds=False,
    promised=Epoch(4),
    epoch=Epoch(0),
    data=Epoch(4),
    sound=True,
    progress=77,
    informed=True,
    able=True,
    lan_seen=True,
    ready=True,
    reasons=(),
    eager=False,
    health=0,
    link_up=True,
)


def envelope(sequence: int, *, boot: int = 9, path: PathId = LAN, echo_boot: int = 0, echoed: int = 0) -> Envelope:
    """A small envelope; ``echoed``: the sequence that it echoes on its own path."""
    echoes = (Echo(path=path, sequence=Sequence(echoed), age_s=0.05),) if echoed else ()
    return Envelope(boot=Boot(boot), sequence=Sequence(sequence), path=path, echo_boot=Boot(echo_boot), echoes=echoes)


numbers = st.one_of(st.integers(0, (1 << NUMBER_BITS) - 1), st.just((1 << NUMBER_BITS) - 1))
positive = st.one_of(st.integers(1, (1 << NUMBER_BITS) - 1), st.just((1 << NUMBER_BITS) - 1))
ages = st.integers(0, round(AGE_MAX_S * 1000)).map(lambda ms: ms / 1000)
paths = st.integers(0, PATHS_MAX - 1).map(PathId)


def texts(limit: int) -> st.SearchStrategy[str]:
    return st.text(string.ascii_letters + string.digits + "-._: ", max_size=limit)


digests = texts(DIGEST_MAX).map(Digest)
epochs = numbers.map(Epoch)
echoes = st.builds(Echo, path=paths, sequence=positive.map(Sequence), age_s=ages)
envelopes = st.builds(
    Envelope,
    boot=positive.map(Boot),
    sequence=positive.map(Sequence),
    path=paths,
    echo_boot=numbers.map(Boot),
    echoes=st.lists(echoes, max_size=PATHS_MAX).map(tuple),
)
schemas = st.integers(0, (1 << SCHEMA_BITS) - 1)
identities = st.builds(
    Identity,
    station=st.sampled_from(Station),
    settings_digest=texts(DIGEST_MAX),
    model=texts(NAME_MAX),
    schema=st.tuples(schemas, schemas),
)
beats = st.builds(
    Beat,
    identity=identities,
    promised=epochs,
    epoch=epochs,
    data=epochs,
    progress=numbers,
    reasons=st.lists(st.sampled_from(Reason), max_size=REASONS_MAX).map(tuple),
    health=st.integers(0, 1000),
    candidate=epochs,
    consent=epochs,
    token=numbers,
    offer=st.none() | st.builds(Offer, serial=numbers, digest=digests, cause=st.sampled_from(Cause)),
    accepts=numbers,
    refuses=st.none() | st.builds(Refusal, serial=numbers, reason=st.sampled_from(Reason)),
    switches=st.lists(st.builds(Switched, epoch=epochs, at=ages), max_size=SWITCHES_MAX).map(tuple),
    released=epochs,
    maintenance_left_s=ages,
    maintenance_serial=numbers,
)
tolds = st.builds(
    Told,
    firmware=texts(TOLD_FIRMWARE_MAX),
    lease_left_s=ages,
    faults=st.integers(0, (1 << 32) - 1),
    digest=texts(TOLD_DIGEST_MAX),
)


def largest() -> tuple[Envelope, Beat, Told]:
    """Every field as long as it may be."""
    top = (1 << NUMBER_BITS) - 1
    reason = max(Reason, key=lambda one: len(one.value))
    digest = Digest("f" * DIGEST_MAX)
    echo = Echo(path=PathId(PATHS_MAX - 1), sequence=Sequence(top), age_s=1e9)
    beat = Beat(
        identity=Identity(
            station=Station.SECONDARY,
            settings_digest=digest,
            model="m" * NAME_MAX,
            schema=((1 << SCHEMA_BITS) - 1, (1 << SCHEMA_BITS) - 1),
            observing=True,
            firmware="f" * FIRMWARE_MAX,
            upgrading=True,
        ),
        phase=Phase.LEFT,
        holds=True,
        promised=Epoch(top),
        epoch=Epoch(top),
        data=Epoch(top),
        sound=True,
        progress=top,
        informed=True,
        able=True,
        lan_seen=True,
        ready=True,
        reasons=(reason,) * 100,
        eager=True,
        health=10**9,
        link_up=True,
        candidate=Epoch(top),
        candidate_forced=True,
        consent=Epoch(top),
        token=top,
        offer=Offer(serial=top, digest=digest, lossy=True, forced=True, cause=Cause.RESUMED),
        accepts=top,
        refuses=Refusal(serial=top, reason=reason),
        switches=(Switched(epoch=Epoch(top), at=1e9),) * 100,
        released=Epoch(top),
        maintenance_left_s=1e9,
        maintenance_serial=top,
    )
    told = Told(
        firmware="v" * 1000,
        lease_left_s=1e9,
        faults=(1 << 80) - 1,
        gateway_seen=True,
        full_sync=FullSync.DONE,
        digest=digest,
    )
    whole = envelope(top, boot=top, path=PathId(PATHS_MAX - 1), echo_boot=top)
    return replace(whole, echoes=(echo,) * 100), beat, told
