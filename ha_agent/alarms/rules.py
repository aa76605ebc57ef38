"""When the targets are told of what: grouping, hysteresis, repetition, and a bound on all of it. Pure; time is given.

1. What comes within ``group_s`` goes into one message. Who raises what stands already, or was gone for less than
   ``clear_after_s``, is counted: a fault that flaps is told once when it comes, and once when it has stayed away.
2. What was raised and was gone again before a message went out is told as one thing. What has no end ("happened") is
   over when it has not happened again for ``clear_after_s``; how often it happened meanwhile is then told.
3. What stands is told again every ``repeat_s``, all of it in one message.
4. At most ``messages_per_hour_max`` messages in any hour (``bucket``); what waits for the next is summed up in it.
5. At most ``ALARMS_MAX`` alarms are known. Overflow: one that came and went gives way, the longest over first; where
   there is none the new one is only counted, and the next message says how many. At most ``ENTRIES_MAX`` entries a
   message, errors first; of the rest it says how many.

No "cleared" without a "raised" before. Whoever drives this calls ``advance`` at ``due`` and after each ``observe``.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from ha_agent.alarms.bucket import Bucket
from ha_agent.alarms.values import RANK, Alarm, Bulletin, Change, Edge, Entry, Key, Seen, Told
from ha_agent.settings.values import Rates, Severity

ALARMS_MAX = 256
ENTRIES_MAX = 40
RESTART_S = 60.0  # who raised an alarm needs a while after a restart to see again whether it stands


class Rules:
    """One per agent."""

    def __init__(self, rates: Rates, *, least: Severity | None, now: float, tokens: float | None = None) -> None:
        """``least``: the least severity that any target wants to be told; None: there is no target."""
        self._rates = rates
        self._least = least
        self._bucket = Bucket(rates.messages_per_hour_max, now=now, tokens=tokens)
        self._alarms: dict[Key, Alarm] = {}
        self._flush_at: float | None = None
        self._dirty: set[Key] = set()
        self.left_out = 0

    @property
    def alarms(self) -> tuple[Alarm, ...]:
        """All that are known, the oldest first."""
        return tuple(sorted(self._alarms.values(), key=lambda alarm: (alarm.since_unix_s, alarm.key)))

    def tokens(self, now: float) -> float:
        """What a later run is to begin with."""
        return self._bucket.tokens(now)

    def restore(self, alarms: Iterable[Alarm], *, now: float) -> None:
        """What an earlier run knew: it must be raised anew within ``RESTART_S``, what was not told yet still is."""
        for alarm in list(alarms)[:ALARMS_MAX]:
            gone_at = now + RESTART_S if alarm.gone_at is None else now
            self._put(replace(alarm, gone_at=gone_at, at=now, told_at=now))
            if alarm.pending:
                self._await_flush(now)

    def changes(self) -> dict[Key, Alarm | None]:
        """What has changed since the last call; None: it is known no more."""
        dirty, self._dirty = self._dirty, set()
        return {key: self._alarms.get(key) for key in dirty}

    def observe(self, seen: Seen, *, now: float, unix_s: float) -> None:
        """Takes in what was seen."""
        known = self._alarms.get(seen.key)
        if seen.edge is Edge.CLEARED:
            if known is not None and known.stands(now):
                self._put(replace(known, gone_at=now, at=now))
            return
        gone_at = now if seen.edge is Edge.HAPPENED else None
        if known is not None:
            self._again(known, seen, gone_at=gone_at, now=now)
        elif self._make_room():
            alarm = Alarm(
                key=seen.key,
                severity=seen.severity,
                since_unix_s=unix_s,
                once=seen.edge is Edge.HAPPENED,
                fields=seen.fields,
                gone_at=gone_at,
                at=now,
            )
            self._put(self._told_soon(alarm, now))
        else:
            self.left_out += 1
            self._await_flush(now)

    def due(self, now: float) -> float | None:
        """When ``advance`` has something to do; None: not before something is observed."""
        moments = [
            alarm.gone_at + self._rates.clear_after_s
            for alarm in self._alarms.values()
            if alarm.gone_at is not None and not alarm.pending
        ]
        message_at = [self._flush_at] if self._flush_at is not None else []
        message_at += [at for at in (self._repeat_at(),) if at is not None]
        if message_at:
            moments.append(max(min(message_at), self._bucket.next_at(now)))
        return min(moments) if moments else None

    def advance(self, *, now: float, unix_s: float) -> Bulletin | None:
        """What is to be told now."""
        self._expire(now)
        repeat_at = self._repeat_at()
        repeats = repeat_at is not None and repeat_at <= now
        flushes = self._flush_at is not None and self._flush_at <= now
        if not (repeats or flushes):
            return None
        # One that has nothing to say costs no message.
        says = self.left_out or any(self._change(alarm, now, repeats=repeats) for alarm in self._alarms.values())
        if says and not self._bucket.take(now):
            return None
        entries = [entry for alarm in self.alarms if (entry := self._entry(alarm, now, unix_s, repeats=repeats))]
        left_out, self.left_out, self._flush_at = self.left_out, 0, None
        if not says:
            return None
        # The sort is stable: of equals the oldest first.
        entries.sort(key=lambda entry: -RANK[entry.severity])
        return Bulletin(
            unix_s=unix_s,
            entries=tuple(entries[:ENTRIES_MAX]),
            more=max(0, len(entries) - ENTRIES_MAX),
            left_out=left_out,
            standing=sum(alarm.stands(now) for alarm in self._alarms.values()),
        )

    # ---- one alarm

    def _again(self, known: Alarm, seen: Seen, *, gone_at: float | None, now: float) -> None:
        stands = known.stands(now) and seen.edge is Edge.RAISED
        worse = RANK[seen.severity] > RANK[known.severity]
        alarm = replace(
            known,
            severity=seen.severity if worse else known.severity,
            fields=seen.fields,
            gone_at=gone_at,
            count=known.count + (not stands),
            once=known.once and seen.edge is Edge.HAPPENED,
            at=now,
        )
        comes_back = seen.edge is Edge.RAISED and known.told is not Told.STANDS
        self._put(self._told_soon(alarm, now) if worse or comes_back else alarm)

    def _told_soon(self, alarm: Alarm, now: float) -> Alarm:
        if self._least is None or RANK[alarm.severity] < RANK[self._least]:
            return alarm
        self._await_flush(now)
        return replace(alarm, pending=True)

    def _await_flush(self, now: float) -> None:
        if self._flush_at is None:
            self._flush_at = now + self._rates.group_s

    def _expire(self, now: float) -> None:
        """What has stayed away for long enough is over: told where it was told that it came, and forgotten."""
        for alarm in self.alarms:
            if alarm.pending or alarm.gone_at is None or alarm.gone_at + self._rates.clear_after_s > now:
                continue
            if alarm.told is Told.STANDS or (alarm.told is Told.OVER and alarm.count > alarm.told_count):
                # No waiting for others: whoever comes within its ``clear_after_s`` is not over.
                self._flush_at = now if self._flush_at is None else min(self._flush_at, now)
                self._put(replace(alarm, pending=True))
            else:
                self._forget(alarm.key)

    def _entry(self, alarm: Alarm, now: float, unix_s: float, *, repeats: bool) -> Entry | None:
        change = self._change(alarm, now, repeats=repeats)
        if change is None:
            if alarm.pending:
                self._put(replace(alarm, pending=False))
            return None
        over = alarm.gone_at is not None and alarm.gone_at + self._rates.clear_after_s <= now
        if alarm.pending and over and alarm.told is not Told.NOTHING:
            self._forget(alarm.key)
        else:
            told = Told.STANDS if change in {Change.RAISED, Change.STANDS} else Told.OVER
            self._put(
                replace(
                    alarm, pending=False, told=told, told_count=alarm.count, told_at=now, told_unix_s=unix_s
                )
            )  # fmt: skip
        return Entry(
            change=change, key=alarm.key, severity=alarm.severity, since_unix_s=alarm.since_unix_s, count=alarm.count,
            fields=alarm.fields,
        )  # fmt: skip

    def _change(self, alarm: Alarm, now: float, *, repeats: bool) -> Change | None:
        if not alarm.pending:
            if not repeats or not self._repeated(alarm):
                return None
            return Change.STANDS if alarm.gone_at is None else Change.HAPPENED if alarm.once else Change.OVER
        if alarm.gone_at is None or alarm.stands(now):
            return Change.RAISED
        if alarm.told is Told.STANDS:
            over = alarm.gone_at + self._rates.clear_after_s <= now
            return Change.CLEARED if over else Change.RAISED  # the latter: it has become worse meanwhile
        if alarm.told is Told.NOTHING or alarm.gone_at + self._rates.clear_after_s <= now:
            return Change.HAPPENED if alarm.once else Change.OVER
        return None  # it flaps: told that it came and went, and how often when that ends

    def _repeat_at(self) -> float | None:
        if not self._rates.repeat_s:
            return None
        told = [alarm.told_at for alarm in self._alarms.values() if self._repeated(alarm)]
        return min(told) + self._rates.repeat_s if told else None

    @staticmethod
    def _repeated(alarm: Alarm) -> bool:
        """It stands, or goes on happening."""
        if alarm.gone_at is None:
            return alarm.told is Told.STANDS
        return alarm.told is Told.OVER and alarm.count > alarm.told_count

    # ---- room

    def _put(self, alarm: Alarm) -> None:
        self._alarms[alarm.key] = alarm
        self._dirty.add(alarm.key)

    def _forget(self, key: Key) -> None:
        del self._alarms[key]
        self._dirty.add(key)

    def _make_room(self) -> bool:
        if len(self._alarms) < ALARMS_MAX:
            return True
        over = [
            alarm
            for alarm in self._alarms.values()
            if alarm.gone_at is not None and not alarm.pending and alarm.told is not Told.STANDS
        ]
        if not over:
            return False
        self._forget(min(over, key=lambda alarm: alarm.at).key)
        return True
