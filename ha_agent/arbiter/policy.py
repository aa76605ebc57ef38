"""Who is better, who is ready, what does not fit: judgements over facts that both nodes see alike.

``wins`` is antisymmetric over any two beats of nodes with different stations, so that both nodes name the same winner
as soon as each has heard the other's newest beat.
"""

from __future__ import annotations

from ha_agent.arbiter.state import (
    CURRENT_GRACE_S,
    GATEWAY_WAIT_S,
    HOLD_AFTER,
    HOLD_WINDOW_S,
    LAN_FRESH_S,
    LINK_SETTLE_S,
    NEIGHBOUR_FRESH_S,
    NEIGHBOUR_KNOWN_S,
    NEVER,
    State,
)
from ha_agent.arbiter.values import Beat, Identity, Phase, Reason, Station


def contradictions(mine: Identity, theirs: Identity) -> tuple[Reason, ...]:
    """What forbids these two nodes to change roles by themselves."""
    found = []
    if mine.station is theirs.station:
        found.append(Reason.SAME_STATION)
    if mine.model != theirs.model:
        found.append(Reason.MODEL_DIFFERS)
    known = mine.firmware and theirs.firmware
    if known and mine.firmware != theirs.firmware and not (mine.upgrading or theirs.upgrading):
        found.append(Reason.FIRMWARE_DIFFERS)
    if mine.schema[1] < theirs.schema[0] or theirs.schema[1] < mine.schema[0]:
        found.append(Reason.SCHEMA_APART)
    if mine.settings_digest != theirs.settings_digest:
        found.append(Reason.SETTINGS_DIFFER)
    if mine.observing != theirs.observing:
        found.append(Reason.OBSERVING)
    return tuple(found)


NEVER_FORCED = frozenset({Reason.SAME_STATION, Reason.MODEL_DIFFERS, Reason.OBSERVING})
"""Contradictions that not even an administrator's force passes."""


def wins(mine: Beat, theirs: Beat) -> bool:
    """Whether the first of two nodes that do not serve should."""
    if mine.candidate_forced != theirs.candidate_forced:
        return mine.candidate_forced
    if mine.able != theirs.able:
        return mine.able
    if mine.data == theirs.data and (_takes_from_restarted(mine, theirs) or _takes_from_restarted(theirs, mine)):
        return mine.eager
    return _rank(mine) > _rank(theirs)


def _takes_from_restarted(one: Beat, other: Beat) -> bool:
    return one.eager and other.phase is Phase.STARTING


def _rank(beat: Beat) -> tuple[int, ...]:
    return (
        beat.lan_seen,
        beat.data,
        beat.sound,
        beat.progress,
        -beat.health,
        beat.identity.station is Station.PRIMARY,
    )


def gateway_usable(s: State) -> bool:
    """Whether there is a gateway whose answer, or silence, says anything."""
    return s.settings.gateway and s.gateway_at != NEVER


def lan_seen(s: State) -> bool:
    """Whether the LAN is there beyond my own cable."""
    if not s.link_up:
        return False
    if gateway_usable(s):
        return s.now - s.gateway_at <= LAN_FRESH_S
    # No gateway: a neighbour that fell silent only now speaks against me; one long gone says nothing.
    quiet_s = s.now - s.neighbour_at
    return not NEIGHBOUR_FRESH_S < quiet_s <= NEIGHBOUR_KNOWN_S


def sound(s: State) -> bool:
    """Whether my data may serve: durable knowledge, and the engine does not deny it."""
    return s.stored.sound and (s.engine is None or s.engine.sound)


def blocked(s: State) -> bool:
    """Whether somebody was just seen to answer for the cluster IP, or the kernel refused it."""
    return s.now < s.blocked_until


def able(s: State) -> bool:
    """Whether I could serve if I were chosen."""
    return s.link_up and sound(s) and not s.contradictions and not s.store_failed and not blocked(s)


def informed(s: State) -> bool:
    """Whether what I say about myself is worth a comparison, or was waited for long enough."""
    if s.engine is None and s.now - s.boot_at < s.settings.boot_wait_s:
        return False
    if not s.link_up:
        return s.now - s.boot_at >= LINK_SETTLE_S
    up_s = s.now - s.link_since
    return up_s >= LINK_SETTLE_S and (lan_seen(s) or up_s >= GATEWAY_WAIT_S)


def in_step(s: State) -> bool:
    """Whether my data was up to date when an Active was last heard: a dead one has no stream to be connected to."""
    return s.current_at != NEVER and s.served_at - s.current_at <= CURRENT_GRACE_S


def reasons(s: State) -> tuple[Reason, ...]:
    """Why this node is not ready to take the role over."""
    found = list(s.contradictions)
    engine = s.engine
    if engine is None:
        found.append(Reason.ENGINE_GONE)
    elif not in_step(s) or engine.data != s.followed:
        found.append(Reason.BEHIND)
    if not sound(s):
        found.append(Reason.UNSOUND)
    if not s.link_up:
        found.append(Reason.LINK_DOWN)
    elif not lan_seen(s):
        found.append(Reason.GATEWAY_UNSEEN)
    if any(fault.switches for fault in s.faults):
        found.append(Reason.FAULTY)
    if s.store_failed:
        found.append(Reason.STORE_FAILED)
    if blocked(s):
        found.append(Reason.FOREIGN_HOLDER if s.foreign else Reason.ADDRESS_FAILED)
    return tuple(found)


def maintained(s: State) -> bool:
    """Whether an administrator asked for quiet."""
    return s.now < s.maintenance_until


def held(s: State) -> bool:
    """Whether the pair switched so often that only a proven death may switch it again."""
    count = 0
    for switched in s.switches:
        if switched.epoch > s.released and s.now - switched.at <= HOLD_WINDOW_S:
            count += 1
    return count >= HOLD_AFTER


def eager(s: State, *, ready: bool) -> bool:
    """Whether I followed an Active in this boot, and take over as soon as it comes back from a restart."""
    return ready and s.phase is not Phase.STARTING and s.phase is not Phase.FENCED and not maintained(s)
