"""When a message that could not be sent is tried again. Pure. Seconds."""

from __future__ import annotations

BASE_S = 2.0
MOST_S = 900.0
DOUBLINGS_MAX = 16


def delay_s(tries: int, chance: float, *, asked_s: float = 0.0) -> float:
    """After ``tries`` failures in a row: doubles up to ``MOST_S``, of which ``chance`` (0 to 1) takes up to a half off.

    So that many nodes do not come at one time. ``asked_s``: what the other end asked for (Retry-After), kept up to the
    longest.
    """
    assert tries > 0, tries
    assert 0 <= chance <= 1, chance
    whole = min(MOST_S, BASE_S * 2.0 ** min(tries - 1, DOUBLINGS_MAX))
    return max(whole * (1.0 - chance / 2.0), min(asked_s, MOST_S))
