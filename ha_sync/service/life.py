"""The life of the pair beside its data: preflight, what both nodes share (settings, accounts, definitions), dissolving.

The Standby asks: each look at the Active (``PeerWatch``) tells the versions of what is shared, and what differs is
fetched over the peer port. Settings belong to the agent, which judges them once more; accounts and definitions to the
engine.

A dissolving is durable in the identity before anything is removed, and whoever finds its peer in one joins in: a node
that was off meanwhile finishes when it comes back. The identity goes last, when the other node has finished too.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import replace
from typing import Any, TypeVar

import grpc

from ha_proto.agent.v1 import life_pb2 as agent_life
from ha_proto.agent.v1 import life_pb2_grpc as agent_life_grpc
from ha_proto.agent.v1 import settings_pb2 as agent_settings
from ha_proto.agent.v1 import settings_pb2_grpc as agent_settings_grpc
from ha_proto.sync.v1 import life_pb2 as pb
from ha_proto.sync.v1 import life_pb2_grpc, replication_pb2
from ha_sync.accounts import Account, AccountStore
from ha_sync.core.dataset import Report, Role
from ha_sync.core.paths import at_port
from ha_sync.errors import HaSyncError, PeerUnreachable, ProtocolFault, WrongState
from ha_sync.node import Node
from ha_sync.pairing import durable, facts, preflight
from ha_sync.pairing.clock import read_clock
from ha_sync.pairing.gate import Gate
from ha_sync.pairing.identity import Identity
from ha_sync.pairing.keyring import Keyring
from ha_sync.service import backup_settings
from ha_sync.service.attach import AgentLink
from ha_sync.service.definitions import Definitions
from ha_sync.service.peer import PeerLink
from ha_sync.service.status_map import Context, error_from, unary

# ruff: noqa: N802 - methods are named as in the protocol

SETTINGS, ACCOUNTS, DEFINITIONS = "settings", "accounts", "definitions"
CALL_S = 30.0
DISSOLVE_S = 300.0  # the services stop and start within it
FINISH_EVERY_S = 1.0
LINGER_S = 3.0
"""So long a node that is done still answers a peer that did not hear so."""

SERVICE = "ha_proto.sync.v1.PairService"

_Answer = TypeVar("_Answer")


class Life(life_pb2_grpc.LifeServiceServicer):
    """One for each engine. ``ended`` is set when this node has left the pair and nothing of it is to be done."""

    def __init__(
        self,
        node: Node,
        *,
        keyring: Callable[[], Keyring | None],
        link: PeerLink,
        agent: AgentLink,
        report: Report,
        by_hand: Callable[[], bool],
    ) -> None:
        """``by_hand``: no agent decides the role, so none is asked."""
        self._by_hand = by_hand
        self._node = node
        self._keyring = keyring
        self._link = link
        self._agent = agent
        self._report = report
        state_dir = node.settings.node.state_dir
        self._accounts = AccountStore(state_dir)
        self.definitions = Definitions(node.settings, detach=node.detach, report=report)
        self._told = ""
        self._one_at_a_time = asyncio.Lock()
        self._done_here = False
        self._removed: tuple[str, ...] = ()
        self._peer_done = asyncio.Event()
        self.dissolving = asyncio.Event()

    # ---- preflight

    @unary
    async def Preflight(self, _request: pb.PreflightRequest, _context: Context) -> pb.PreflightResponse:
        """Both nodes, as they are now."""
        mine = await self.facts(self._peer_addresses())
        begun = read_clock().unix_s
        theirs = await self._ask("GetFacts", pb.GetNodeFactsRequest(dial=self._own_addresses(mine)), pb.NodeFacts)
        offset_s = theirs.unix_s - (begun + read_clock().unix_s) / 2
        checks = preflight.judge(mine, theirs, offset_s=offset_s, joining=False)
        return pb.PreflightResponse(checks=checks, verdict=preflight.worst(checks))

    async def facts(self, dial: Iterable[str]) -> pb.NodeFacts:
        """Of this node; ``dial``: what it tries to reach."""
        return await asyncio.to_thread(self._facts, tuple(dial))

    def _facts(self, dial: tuple[str, ...]) -> pb.NodeFacts:
        agent, fault = facts.ask_agent(self._agent.socket_path)
        found = facts.own_facts(self._node.settings, agent=agent, agent_fault=fault)
        keyring = self._keyring()
        found.node_id = keyring.identity.node_id if keyring else ""
        found.role = self._node.role.value if self._node.role else ""
        found.ports.extend(facts.dial(dial))
        found.definitions = self.definitions.text if self._node.role is Role.ACTIVE else ""
        found.unix_s = read_clock().unix_s  # gathering took a while
        return found

    def _peer_addresses(self) -> list[str]:
        return [path.address for path, _ in self._link.shown()]

    def _own_addresses(self, mine: pb.NodeFacts) -> list[str]:
        """Where the other node should reach this one: its end of each path, at its peer port."""
        keyring = self._keyring()
        told = keyring.identity.address if keyring else ""
        port = (told or self._node.settings.node.listen[0]).rpartition(":")[2]
        return [at_port(path.local, port) for path in mine.agent.paths if path.local] or ([told] if told else [])

    # ---- shared

    async def versions(self) -> dict[str, str]:
        """What the Active tells in each answer to Describe."""
        if self._node.role is not Role.ACTIVE:
            return {}
        found = {ACCOUNTS: (await asyncio.to_thread(self._accounts.read)).version}
        others = {SETTINGS: self._agent.shared_version, DEFINITIONS: self.definitions.told}
        return found | {name: version for name, version in others.items() if version}

    async def described(self, theirs: replication_pb2.DescribeResponse) -> None:
        """The other node said what it is: as its Standby this one takes what it lacks; never raises."""
        try:
            if theirs.dissolved:
                await self._begin_dissolving("the other node has ended the pair")
            elif self._node.role is Role.STANDBY and theirs.role == Role.ACTIVE.value:
                await self._take(theirs)
            self._told = ""
        except (HaSyncError, grpc.aio.AioRpcError) as failed:
            sentence = failed.sentence() if isinstance(failed, HaSyncError) else failed.details() or str(failed.code())
            if sentence != self._told:
                self._told = sentence
                self._report("warning", "what the nodes share could not be taken from the Active", {"reason": sentence})

    async def _take(self, theirs: replication_pb2.DescribeResponse) -> None:
        if theirs.epoch < self._node.promised:
            return  # an Active that was replaced
        wanted = theirs.shared.get(SETTINGS, "")
        if self._agent.attached and wanted and wanted != self._agent.shared_version:
            document = await self._document(SETTINGS, theirs.epoch)
            shared = agent_settings.SharedSettings(version=document.version, text=document.content.decode())
            await self._tell_agent(
                lambda channel: agent_settings_grpc.SettingsServiceStub(channel).TakeShared(  # type: ignore[no-untyped-call]
                    agent_settings.TakeSharedRequest(shared=shared), timeout=CALL_S
                )
            )
        wanted = theirs.shared.get(ACCOUNTS, "")
        if wanted and wanted != (await self._known_accounts()):
            document = await self._document(ACCOUNTS, theirs.epoch)
            taken = await asyncio.to_thread(self._accounts.replace, document.content)
            fields: dict[str, object] = {"version": taken.version, "accounts": len(taken.accounts)}
            self._report("info", "the Active's accounts are those of this node now", fields)

        wanted = theirs.shared.get(DEFINITIONS, "")
        if wanted and self.definitions.told and wanted != await self.definitions.here():
            document = await self._document(DEFINITIONS, theirs.epoch)
            await self.definitions.take(document.content.decode(errors="replace"))

    async def _known_accounts(self) -> str:
        try:
            return (await asyncio.to_thread(self._accounts.read)).version
        except HaSyncError:
            return ""  # damaged: the Active's replaces it

    async def _document(self, name: str, epoch: int) -> pb.Document:
        document = await self._ask("GetShared", pb.GetDocumentRequest(name=name), pb.Document)
        if document.name != name or document.epoch < epoch:
            raise ProtocolFault("cannot use", subject=name, reason=f"it is {document.name!r} of epoch {document.epoch}")
        return document

    async def document(self, name: str) -> pb.Document:
        """Of this node as the Active. Raises WrongState."""
        if self._node.role is not Role.ACTIVE:
            raise WrongState("cannot give what is shared", reason="this node is not the Active")
        epoch = self._node.epoch
        match name:
            case "accounts":
                known = await asyncio.to_thread(self._accounts.read)
                return pb.Document(name=name, version=known.version, content=known.content(), epoch=epoch)
            case "settings":
                shared = await self._tell_agent(
                    lambda channel: agent_settings_grpc.SettingsServiceStub(channel).GetShared(  # type: ignore[no-untyped-call]
                        agent_settings.GetSharedRequest(), timeout=CALL_S
                    )
                )
                return pb.Document(name=name, version=shared.version, content=shared.text.encode(), epoch=epoch)
            case "definitions":
                told = self.definitions
                return pb.Document(name=name, version=told.told, content=told.text.encode(), epoch=epoch)
            case _:
                raise ProtocolFault("cannot give", subject=name, reason="nothing of that name is shared")

    async def documents(self) -> list[pb.Document]:
        """For a node that joins; what cannot be had now comes later."""
        found = []
        for name in (SETTINGS, ACCOUNTS):
            with contextlib.suppress(HaSyncError):
                found.append(await self.document(name))
        return found

    # ---- accounts

    @unary
    async def ListAccounts(self, _request: pb.ListAccountsRequest, _context: Context) -> pb.ListAccountsResponse:
        """Names, no secrets."""
        known = await asyncio.to_thread(self._accounts.read)
        shown = [pb.Account(name=one.name, changed_unix_s=one.changed_unix_s) for one in known.accounts]
        return pb.ListAccountsResponse(accounts=shown, version=known.version)

    @unary
    async def SetAccount(self, request: pb.SetAccountRequest, _context: Context) -> pb.SetAccountResponse:
        """Made or changed, on the Active."""
        self._demand_not_standby()
        account = Account(name=request.name, secret=request.secret, changed_unix_s=read_clock().unix_s)
        async with self._one_at_a_time:
            made = await asyncio.to_thread(self._accounts.put, account, epoch=self._node.epoch)
        self._report("warning", "an account was made" if made else "an account was changed", {"name": request.name})
        return pb.SetAccountResponse(made=made)

    @unary
    async def RemoveAccount(self, request: pb.RemoveAccountRequest, _context: Context) -> pb.RemoveAccountResponse:
        """On the Active."""
        self._demand_not_standby()
        async with self._one_at_a_time:
            await asyncio.to_thread(self._accounts.remove, request.name, epoch=self._node.epoch)
        self._report("warning", "an account was removed", {"name": request.name})
        return pb.RemoveAccountResponse()

    # ---- settings

    @unary
    async def GetSettings(
        self, _request: agent_settings.GetSettingsRequest, _context: Context
    ) -> agent_settings.GetSettingsResponse:
        """Of [backup]."""
        fixed = self._node.role is Role.STANDBY
        return await asyncio.to_thread(lambda: backup_settings.shown(self._node.settings, fixed=fixed))

    @unary
    async def SetSettings(
        self, request: agent_settings.SetSettingsRequest, _context: Context
    ) -> agent_settings.SetSettingsResponse:
        """On the Active: they are the pair's."""
        if self._node.role is Role.STANDBY:
            paths = ", ".join(one.path for one in request.changes)
            raise WrongState("cannot change", subject=paths, reason="is shared: change it on the Active")
        async with self._one_at_a_time:
            answer = await asyncio.to_thread(backup_settings.change, self._node.settings, request)
        if answer.saved and answer.differences:
            fields: dict[str, object] = {"changed": ", ".join(one.path for one in answer.differences)}
            self._report("warning", "settings saved: they hold after a restart of ha-sync", fields)
        return answer

    def _demand_not_standby(self) -> None:
        if self._node.role is Role.STANDBY:
            raise WrongState(
                "cannot change accounts", reason="this node is the Standby: its accounts are the Active's", hint="there"
            )

    # ---- dissolving

    @unary
    async def Dissolve(self, request: pb.DissolvePairRequest, _context: Context) -> pb.DissolvePairResponse:
        """For the administrator; said again it goes on where it stopped."""
        keyring = self._paired()
        peer = keyring.identity.peer
        if peer is not None and not request.without_peer and not keyring.identity.dissolved:
            if self._node.role is Role.STANDBY:
                raise WrongState(
                    "cannot dissolve the pair",
                    reason="this node is the Standby",
                    hint="on the Active; where that is gone for good, here with --without-peer",
                )
            await self._link.describe()  # raises PeerUnreachable: then nothing was begun
        await self._mark("an administrator dissolves the pair")
        if peer is None or request.without_peer:
            await self._peer_has_ended()
        else:
            await self._peer_first()
        await self._begin_dissolving("an administrator dissolves the pair")
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(DISSOLVE_S):
                await self._peer_done.wait()
        return pb.DissolvePairResponse(removed=self._removed, peer_done=self._peer_done.is_set())

    async def _begin_dissolving(self, why: str) -> None:
        """All that is to be done on this node. Durable first; again after a crash."""
        async with self._one_at_a_time:
            if self._done_here:
                return
            await self._mark(why)
            removed = list(await self._agent_off())
            removed += await self._node.leave()
            self._removed = tuple(removed)
            self._done_here = True
            self.dissolving.set()

    async def _mark(self, why: str) -> None:
        """Durable before anything else: from here on there is no way back."""
        keyring = self._paired()
        if not keyring.identity.dissolved:
            self._report("warning", "the pair is dissolved", {"reason": why})
            await asyncio.to_thread(keyring.change_facts, _dissolved)

    async def _peer_first(self) -> None:
        """A Standby that only saw its Active leave would take over; one that is not reached is told later."""
        with contextlib.suppress(HaSyncError):
            answer = await self._ask("Dissolve", pb.DissolvePairRequest(), pb.DissolvePairResponse, DISSOLVE_S)
            if answer.peer_done:
                await self._peer_has_ended()

    async def _peer_has_ended(self) -> None:
        """Durable before it is used: a node that forgot it would ask one that is not there any more."""
        await asyncio.to_thread(self._paired().change_facts, _peer_dissolved)
        self._peer_done.set()

    async def _agent_off(self) -> list[str]:
        """First of all: the address goes. An agent that does not run is waited for: it would take the role again."""
        if self._by_hand():
            return []
        answer = await self._tell_agent(
            lambda channel: agent_life_grpc.LifeServiceStub(channel).Dissolve(  # type: ignore[no-untyped-call]
                agent_life.DissolveRequest(), timeout=DISSOLVE_S
            )
        )
        return list(answer.removed)

    async def run(self) -> None:
        """Ends a pair that is dissolved: until the other node is done, it is told again and again."""
        keyring = self._keyring()
        while keyring is None or not keyring.identity.dissolved:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(FINISH_EVERY_S):
                    await self.dissolving.wait()
            keyring = self._keyring()
        told = ""
        if not self._done_here and keyring.identity.peer is not None and not keyring.identity.peer_dissolved:
            await self._peer_first()
        while not (self._done_here and self._peer_done.is_set()):
            try:
                await self._begin_dissolving("it was begun before this engine started")
                if keyring.identity.peer is None or keyring.identity.peer_dissolved:
                    self._peer_done.set()
                if not self._peer_done.is_set():
                    answer = await self._ask("Dissolve", pb.DissolvePairRequest(), pb.DissolvePairResponse, DISSOLVE_S)
                    if answer.peer_done:
                        await self._peer_has_ended()
            except HaSyncError as failed:
                if failed.sentence() != told:
                    told = failed.sentence()
                    self._report("warning", "the pair is not wholly dissolved yet", {"reason": told})
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(FINISH_EVERY_S):
                        await self._peer_done.wait()
        await asyncio.sleep(LINGER_S)
        await asyncio.to_thread(durable.remove_directory, keyring.identity.directory)
        self._report("warning", "the pair is dissolved on both nodes", {"removed": ", ".join(self._removed)})

    # ---- the peer port

    def handler(self, gate: Gate) -> grpc.GenericRpcHandler[Any, Any]:
        """``PairService``, to be added to the peer port."""
        answering = _Answering(self, gate)
        kinds: dict[str, tuple[Any, Any, Any]] = {
            "GetFacts": (answering.GetFacts, pb.GetNodeFactsRequest, pb.NodeFacts),
            "GetShared": (answering.GetShared, pb.GetDocumentRequest, pb.Document),
            "Dissolve": (answering.Dissolve, pb.DissolvePairRequest, pb.DissolvePairResponse),
        }
        methods = {
            name: grpc.unary_unary_rpc_method_handler(
                method, request_deserializer=asked.FromString, response_serializer=answered.SerializeToString
            )
            for name, (method, asked, answered) in kinds.items()
        }
        return grpc.method_handlers_generic_handler(SERVICE, methods)

    async def peer_dissolves(self) -> tuple[str, ...]:
        """The other node has ended the pair, durably, and asks this one to."""
        await self._begin_dissolving("the other node has ended the pair")
        await self._peer_has_ended()
        return self._removed

    @property
    def dissolved(self) -> bool:
        """Whether this node has ended the pair."""
        keyring = self._keyring()
        return keyring is not None and keyring.identity.dissolved

    # ---- calls

    def _paired(self) -> Keyring:
        keyring = self._keyring()
        if keyring is None:
            raise WrongState("this node is not paired", hint="`ha-sync pair init` or `ha-sync pair join TOKEN`")
        return keyring

    async def _ask(self, method: str, request: Any, answer: type[_Answer], timeout_s: float = CALL_S) -> _Answer:
        self._paired()
        async with self._link.connection() as channel:
            call = channel.unary_unary(
                f"/{SERVICE}/{method}",
                request_serializer=type(request).SerializeToString,
                response_deserializer=answer.FromString,  # type: ignore[attr-defined]
            )
            found: _Answer = await call(request, timeout=timeout_s)
            return found

    async def _tell_agent(self, call: Callable[[grpc.aio.Channel], Awaitable[Any]]) -> Any:
        path = self._agent.socket_path
        if not await asyncio.to_thread(os.path.exists, path):
            raise PeerUnreachable("cannot reach the agent of this node", reason="it does not run")
        async with grpc.aio.insecure_channel(f"unix:{path}") as channel:
            try:
                return await call(channel)
            except grpc.aio.AioRpcError as failed:
                raise error_from(failed) from failed


class _Answering:
    """What the paired node may ask."""

    def __init__(self, life: Life, gate: Gate) -> None:
        self._life = life
        self._gate = gate

    @unary
    async def GetFacts(self, request: pb.GetNodeFactsRequest, context: Context) -> pb.NodeFacts:
        """For its preflight."""
        self._gate.authorize(context)
        return await self._life.facts(request.dial)

    @unary
    async def GetShared(self, request: pb.GetDocumentRequest, context: Context) -> pb.Document:
        """Of the Active."""
        self._gate.authorize(context)
        return await self._life.document(request.name)

    @unary
    async def Dissolve(self, _request: pb.DissolvePairRequest, context: Context) -> pb.DissolvePairResponse:
        """The pair ends on this node too."""
        self._gate.authorize(context)
        return pb.DissolvePairResponse(removed=await self._life.peer_dissolves(), peer_done=True)


def _dissolved(identity: Identity) -> Identity:
    return replace(identity, dissolved=True)


def _peer_dissolved(identity: Identity) -> Identity:
    return replace(identity, peer_dissolved=True)
