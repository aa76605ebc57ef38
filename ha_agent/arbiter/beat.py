"""What the state says to the peer. Pure; ages instead of times, because the peer's clock is another one."""

from __future__ import annotations

from ha_agent.arbiter import policy
from ha_agent.arbiter.state import State
from ha_agent.arbiter.values import NO_EPOCH, SERVING, Beat, Phase, Switched


def beat_of(s: State, now: float) -> Beat:
    """The beat to send at ``now``; the state is the newest one."""
    if now != s.now:
        s = s.copy()
        s.now = now
    serving = s.phase in SERVING
    candidate = s.phase is Phase.CANDIDATE and s.stored.promised >= s.epoch
    why = policy.reasons(s)
    return Beat(
        identity=s.settings.identity,
        phase=s.phase,
        holds=s.holds,
        promised=s.stored.promised,
        epoch=s.epoch if serving else NO_EPOCH,
        data=s.engine.data if s.engine is not None else s.stored.data,
        sound=policy.sound(s),
        progress=s.engine.progress if s.engine is not None else 0,
        informed=policy.informed(s),
        able=policy.able(s),
        lan_seen=policy.lan_seen(s),
        ready=not why,
        reasons=why,
        eager=policy.eager(s, ready=not why),
        health=len(s.faults),
        link_up=s.link_up,
        candidate=s.epoch if candidate else NO_EPOCH,
        candidate_forced=candidate and s.forced,
        # Never before it is durable: a node that restarts must not serve below what it consented to.
        consent=s.consent if s.stored.promised >= s.consent and not s.holds else NO_EPOCH,
        token=s.token,
        offer=s.offer if s.phase is Phase.OFFERING else None,
        accepts=s.accepts if candidate else 0,
        refuses=s.refuses,
        switches=tuple(Switched(epoch=one.epoch, at=now - one.at) for one in s.switches),
        released=s.released,
        maintenance_left_s=max(0.0, s.maintenance_until - now),
        maintenance_serial=s.maintenance_serial,
    )
