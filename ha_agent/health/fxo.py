"""FXO ports through DAHDI: which hardware still answers. Reads ``/proc/dahdi/<span>`` (the root is a setting).

Facts, from the driver's source (dahdi-linux, github.com/asterisk/dahdi-linux):
- drivers/dahdi/dahdi-base.c, ``dahdi_seq_show``: one file a span; its first line is ``Span N: NAME "DESCRIPTION"`` with
  the span's alarms at the end, then counters ("\\tIRQ misses: N"), an empty line, and one line a channel:
  ``\\t%4d NAME SIGNALLING (In use) ALARMS (EC: ...)``. A channel without any signalling it could take (an empty slot,
  or a module that did not come up when the driver started it) is *Reserved*.
- ``fill_alarm_string`` writes BLUE, YELLOW, RED, LOOP, RECOVERING, NOTOPEN. ``sigstr``: a port that is signalled FXS
  (FXSKS, FXSLS, FXSGS) is an FXO port, and the other way round. Names: XPP_FXO/..., WCFXO/..., .../FXO/....
- wctdm.c, wctdm24xxp/base.c, wcaxx-base.c, xpp/card_fxo.c: an analog channel gets RED when it sees no battery, that is
  when no line is plugged in or the office has switched it off, and loses it when the battery is back. wcfxo.c sets RED
  on the span for the same. So RED is an unplugged line and no fault of ours (R1.10).
- BLUE, YELLOW, LOOP, RECOVERING and NOTOPEN belong to digital spans (loss of signal at the far end, tests, a span that
  nobody opened); no analog driver sets the first four.

A fault of the hardware is therefore: a port that was there and is not listed any more (driver unloaded, card or USB
unit gone, span removed), a port that has become *Reserved*, or one with BLUE or NOTOPEN, which xpp gives to a unit that
it has lost. Never: RED, RECOVERING, YELLOW, LOOP. Ports are known by their channel number; selected ones that were
never there are bad from the start, and by the never-good rule cause no switch.
"""

from __future__ import annotations

import asyncio
import os
import re
from collections.abc import Collection, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from ha_agent.health.look import Look, Reason, bad
from ha_agent.health.probe import Plain

DAHDI = "/proc/dahdi"
SPAN_BYTES_MAX = 256 * 1024  # a span of 31 channels takes about 3 KiB
SPANS_MAX = 128  # DAHDI_MAX_SPANS
ALARMS = frozenset({"BLUE", "YELLOW", "RED", "LOOP", "RECOVERING", "NOTOPEN"})
BROKEN = frozenset({"BLUE", "NOTOPEN"})

_CHANNEL = re.compile(r"\s+(\d{1,4}) (\S+) ?(.*)\Z")
_REMARK = re.compile(r"\([^)]*\)")
_FXO_NAME = re.compile(r"(XPP_FXO|WCFXO|FXO)/")


@dataclass(frozen=True, slots=True, kw_only=True)
class Port:
    """One FXO port as the driver shows it."""

    channel: int
    name: str
    alarms: frozenset[str]
    reserved: bool

    @property
    def broken(self) -> bool:
        """Whether the hardware, not the line, is at fault."""
        return self.reserved or bool(self.alarms & BROKEN)

    @property
    def plugged(self) -> bool:
        """Whether a line with battery is there."""
        return "RED" not in self.alarms


def read_ports(dahdi_dir: str = DAHDI, known: Collection[int] = ()) -> dict[int, Port]:
    """Every FXO port by channel number; of ``known`` channels also those that do not look like one any more.

    No DAHDI: none. Blocking; raises ``OSError`` where a span is there and cannot be read.
    """
    try:
        spans = sorted((name for name in os.listdir(dahdi_dir) if name.isdigit()), key=int)[:SPANS_MAX]
    except (FileNotFoundError, NotADirectoryError):
        return {}
    found: dict[int, Port] = {}
    for span in spans:
        try:
            with open(f"{dahdi_dir}/{span}", "rb") as file:
                text = file.read(SPAN_BYTES_MAX).decode(errors="replace")
        except FileNotFoundError:  # removed since it was listed
            continue
        found.update(parse_span(text, known))
    return found


def has_dahdi(dahdi_dir: str = DAHDI) -> bool:
    """Whether there may be ports. Most machines have none. Asks no driver, so it needs no thread that may hang."""
    return os.path.isdir(dahdi_dir)


def parse_span(text: str, known: Collection[int] = ()) -> dict[int, Port]:
    """The FXO ports of one span."""
    head, *lines = text.split("\n")
    found: dict[int, Port] = {}
    of_span = frozenset(_words(head.rpartition('"')[2])) & BROKEN
    for line in lines:
        shape = _CHANNEL.match(line)
        if shape is None:
            continue
        channel, name, words = int(shape[1]), shape[2], _words(shape[3])
        if channel in known or _FXO_NAME.search(name) or any(word.startswith("FXS") for word in words):
            found[channel] = Port(
                channel=channel,
                name=name,
                alarms=(frozenset(words) & ALARMS) | of_span,
                reserved="Reserved" in words,
            )
    return found


class FxoProbe(Plain):
    """Looks at all ports together; one subject for each, its channel number."""

    def __init__(self, executor: ThreadPoolExecutor, *, dahdi_dir: str = DAHDI, selected: Collection[int] = ()) -> None:
        self._executor = executor
        self._dahdi_dir = dahdi_dir
        self._names: dict[int, str] = dict.fromkeys(selected, "")

    async def look(self) -> tuple[Look, ...]:
        """One look at every port that was selected or has ever been there."""
        loop = asyncio.get_running_loop()
        try:
            ports: Mapping[int, Port] = {}
            if has_dahdi(self._dahdi_dir):
                ports = await loop.run_in_executor(self._executor, read_ports, self._dahdi_dir, tuple(self._names))
        except OSError as failed:
            return tuple(bad(Reason.UNREADABLE, str(failed), subject=str(channel)) for channel in sorted(self._names))
        self._names |= {channel: port.name for channel, port in ports.items()}
        return tuple(_look(channel, name, ports) for channel, name in sorted(self._names.items()))


def _look(channel: int, name: str, ports: Mapping[int, Port]) -> Look:
    port = ports.get(channel)
    if port is None:
        return bad(Reason.GONE, name, subject=str(channel))
    if port.broken:
        shown = "no module" if port.reserved else " ".join(sorted(port.alarms))
        return bad(Reason.ALARM, f"{port.name}: {shown}", subject=str(channel))
    return Look(good=True, subject=str(channel))


def _words(text: str) -> list[str]:
    return _REMARK.sub(" ", text).split()
