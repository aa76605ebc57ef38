"""``SettingsService``: see ``proto/ha_proto/agent/v1/settings.proto``; why it is so: docs/adr/0024-settings.md.

Invariants: one change at a time; a Standby changes nothing that is shared but by ``TakeShared``, which takes only what
is newer than what this node knows, or the same where its own file was changed by hand. The running agent goes on with
what it was started with.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from typing import Any

from ha_agent.agent import Agent
from ha_agent.agent.chronicle import ROLE_OF
from ha_agent.arbiter.values import SERVING
from ha_agent.commands import Commands
from ha_agent.errors import AgentError, ConfigFault, ProtocolFault, Refused, WrongState
from ha_agent.health.fxo import read_ports
from ha_agent.memory.shared import NO_VERSION, Known, SharedStore, Version, digest_of, text_of, version_of
from ha_agent.service.status_map import Context, unary
from ha_agent.settings import Settings, document, saving
from ha_agent.settings.document import Change, Place
from ha_agent.settings.parse import settings_of
from ha_agent.settings.saving import Content, Draft
from ha_proto.agent.v1 import settings_pb2 as pb
from ha_proto.agent.v1 import settings_pb2_grpc

# ruff: noqa: N802 - methods are named as in the protocol

FXO_PORTS = "ha.fxo_ports"
CALLS_DEADLINE_S = 5.0
SHARED_BYTES_MAX = 1 << 20
READ_ONLY = (
    "is shared: change it on the Active; on a Standby only the peer's address and MAC and this node's own values"
)

OFF = (
    "ha.enabled = false: HA rests on this node; triggers, guards and certificates of the pair stay. "
    "`ha-sync pair dissolve` ends the pair on both nodes"
)

Report = Callable[[str, str, dict[str, Any]], Any]


class SettingsServicer(settings_pb2_grpc.SettingsServiceServicer):
    """``settings``: what the agent runs with; ``path``: the file that they came from."""

    def __init__(self, settings: Settings, path: str, report: Report) -> None:
        self._running = settings
        self._path = path
        self._report = report
        self._store = SharedStore(settings.node.state_dir)
        self._one_at_a_time = asyncio.Lock()
        self._agent: Agent | None = None

    # ---- looking

    @unary
    async def GetSettings(self, _request: pb.GetSettingsRequest, _context: Context) -> pb.GetSettingsResponse:
        """Every key, with what the file says of it."""
        content = await asyncio.to_thread(saving.read, self._path)
        fixed = self._is_standby
        faults, pending = _judged(content, self._running)
        settings = [_setting(place, value, fixed=fixed) for place, value in document.places_of(content.values)]
        found = await asyncio.to_thread(read_ports, self._running.node.dahdi_dir)
        next(one for one in settings if one.path == FXO_PORTS).options.extend(str(port) for port in sorted(found))
        return pb.GetSettingsResponse(
            settings=settings,
            file=self._path,
            file_digest=content.digest,
            restart_needed=pending,
            read_only_shared=fixed,
            shared_version=await self._version_told(),
            faults=faults,
        )

    # ---- changing

    @unary
    async def SetSettings(self, request: pb.SetSettingsRequest, _context: Context) -> pb.SetSettingsResponse:
        """All or nothing."""
        changes = tuple(_change(one) for one in request.changes)
        async with self._one_at_a_time:
            made = await asyncio.to_thread(saving.draft, self._path, changes)
            self._refuse(changes, made, request.file_digest)
            answer = _answer(made)
            if self._running.pair is not None and made.settings is not None and made.settings.pair is None:
                answer.warnings.append(OFF)
            answer.restart_needed = made.settings != self._running
            await self._count_calls(answer)
            if made.faults or request.dry_run:
                answer.file_digest = made.before.digest
                return answer
            if made.differences:
                answer.previous = await asyncio.to_thread(saving.save, self._path, made)
                paths = ", ".join(one.place.path for one in made.differences)
                self._report("warning", "settings saved: they hold after a restart of the agent", {"changed": paths})
                await self.publish()
            answer.saved = True
            answer.file_digest = made.after.digest
            return answer

    def _refuse(self, changes: tuple[Change, ...], made: Draft, file_digest: str) -> None:
        if file_digest and file_digest != made.before.digest:
            raise Refused(
                "cannot save", subject=self._path, reason="the file was changed meanwhile", hint="look, and try again"
            )
        fixed = [change.place for change in changes if change.place.shared] if self._is_standby else []
        if fixed:
            raise WrongState(
                "cannot change",
                subject=", ".join(place.path for place in fixed),
                reason=READ_ONLY,
            )

    async def _count_calls(self, answer: pb.SetSettingsResponse) -> None:
        command = self._running.node.calls_command
        if not command:
            return
        commands = Commands()
        try:
            done = await commands.run(command, deadline_s=CALLS_DEADLINE_S)
        finally:
            commands.close()
        number = done.output.strip()
        if done.ok and number.isascii() and number.isdigit() and len(number) < 8:
            answer.calls = int(number)
        else:
            answer.calls_fault = f"calls_command: {done.reason}: {number[:80]!r} is no number of calls"

    async def switch_off(self) -> list[str]:
        """``enabled = false``, whatever the role; what was done. The rest of the file stays for the next pair."""
        async with self._one_at_a_time:
            change = Change(place=document.place_of("ha.enabled"), value="false")
            made = await asyncio.to_thread(saving.draft, self._path, (change,))
            if not made.differences:
                return []
            if made.faults:
                raise ConfigFault(self._path, made.faults)
            await asyncio.to_thread(saving.save, self._path, made)
            return [f"ha.enabled in {self._path}"]

    # ---- shared

    @unary
    async def GetShared(self, _request: pb.GetSharedRequest, _context: Context) -> pb.SharedSettings:
        """For the other node."""
        if not self._serves:
            raise WrongState("cannot give the shared settings", reason="this node is not the Active")
        version = await self.publish()
        content = await asyncio.to_thread(saving.read, self._path)
        return pb.SharedSettings(version=str(version), text=text_of(document.shared_of(content.values)))

    @unary
    async def TakeShared(self, request: pb.TakeSharedRequest, _context: Context) -> pb.TakeSharedResponse:
        """From the Active."""
        if self._serves:
            raise WrongState("cannot take shared settings", reason="this node is the Active itself")
        async with self._one_at_a_time:
            changed = await asyncio.to_thread(take_shared, self._path, self._store, request.shared)
        if changed:
            self._report(
                "warning",
                "shared settings came from the Active: they hold after a restart of the agent",
                {"version": request.shared.version, "changed": ", ".join(changed)},
            )
        await self._tell_engine()
        return pb.TakeSharedResponse(changed=bool(changed))

    async def publish(self) -> Version:
        """What this node's shared settings are called now; as Active it gives what is new a name of its epoch."""
        version = await asyncio.to_thread(self._published)
        await self._tell_engine()
        return version

    def _published(self) -> Version:
        known, digest = self._store.read(), self._digest()
        if not self._serves:
            return known.version if digest == known.digest else NO_VERSION
        assert self._agent is not None
        epoch = int(self._agent.state.epoch)
        if digest != known.digest or known.version.epoch < epoch:
            serial = known.version.serial if known.version.epoch == epoch else 0
            known = Known(version=Version(epoch=max(epoch, known.version.epoch), serial=serial + 1), digest=digest)
            self._store.store(known)
        return known.version

    def _digest(self) -> str:
        return digest_of(text_of(document.shared_of(saving.read(self._path).values)))

    async def _version_told(self) -> str:
        try:
            version = await asyncio.to_thread(self._published)
        except AgentError as failed:  # a file that cannot be used has no version; who asks for more is told why
            self._report("warning", "the shared settings cannot be told", {"reason": failed.sentence()})
            return ""
        return "" if version == NO_VERSION else str(version)

    async def _tell_engine(self) -> None:
        if self._agent is not None:
            self._agent.parts.engine.tell_shared(await self._version_told())

    # ---- life

    async def follow(self, agent: Agent) -> None:
        """Keeps the engine told which shared settings this node has, whatever its role becomes; until cancelled."""
        self._agent = agent
        told: tuple[bool, int] | None = None
        while True:
            changed, now = agent.changed, (self._serves, int(agent.state.epoch))
            if now != told:
                await self._tell_engine()
                told = now
            await changed.wait()

    @property
    def _serves(self) -> bool:
        return self._agent is not None and self._agent.state.phase in SERVING

    @property
    def _is_standby(self) -> bool:
        return self._agent is not None and ROLE_OF[self._agent.state.phase] == "standby"


def take_shared(path: str, store: SharedStore, shared: pb.SharedSettings) -> tuple[str, ...]:
    """Puts the pair's settings into the file; the paths that changed. Raises ConfigFault, ProtocolFault, Refused."""
    version = version_of(shared.version)
    if version is None or len(shared.text) > SHARED_BYTES_MAX:
        raise ProtocolFault("cannot take shared settings", reason=f"version {shared.version!r} or their length")
    before = saving.read(path)
    known = store.read()
    drifted = digest_of(text_of(document.shared_of(before.values))) != known.digest
    if version < known.version or (version == known.version and not drifted):
        if version == known.version:
            return ()
        raise Refused("cannot take shared settings", subject=str(version), reason=f"this node has {known.version}")
    try:
        told = json.loads(shared.text)
    except ValueError as wrong:
        raise ProtocolFault("cannot take shared settings", reason=str(wrong)) from wrong
    if not isinstance(told, dict):
        raise ProtocolFault("cannot take shared settings", reason="they are no object")
    made = saving.draft_of(path, before, document.with_shared(before.text, told))
    if made.faults:
        raise ConfigFault(f"{path}, with the shared settings of the Active", made.faults)
    if made.differences:
        saving.save(path, made)
    digest = digest_of(text_of(document.shared_of(made.after.values)))
    store.store(Known(version=version, digest=digest))
    return tuple(one.place.path for one in made.differences)


def _judged(content: Content, running: Settings) -> tuple[tuple[str, ...], bool]:
    try:
        return (), settings_of(content.values, source="") != running
    except ConfigFault as wrong:
        return wrong.faults, True


def _setting(place: Place, value: object, *, fixed: bool) -> pb.Setting:
    field = place.field
    assert field is not None, place.path
    return pb.Setting(
        path=place.path,
        value="" if value is None else document.text_of(field, value),
        stated=value is not None,
        kind=field.kind.value,
        range=field.range,
        default=field.default_shown,
        unit=field.unit,
        what=field.what,
        options=field.options,
        shared=field.shared,
        writable=not (fixed and field.shared),
    )


def _change(change: pb.SettingChange) -> Change:
    return Change(place=document.place_of(change.path), value=None if change.unset else change.value)


def _answer(made: Draft) -> pb.SetSettingsResponse:
    return pb.SetSettingsResponse(
        differences=[
            pb.SettingDifference(path=one.place.path, before=one.before, after=one.after, shared=one.place.shared)
            for one in made.differences
        ],
        faults=made.faults,
        warnings=made.settings.warnings if made.settings is not None else (),
    )
