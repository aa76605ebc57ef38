"""One engine process: the node, its two gRPC servers, its event log and its lock, composed and taken down in order.

The unix socket answers as soon as the process runs, the peer port once this node belongs to a pair (which may happen
later: `ha-sync pair init` needs no restart). Only one engine may use a state directory.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import logging
import os
import socket
import time
from collections.abc import AsyncIterator, Iterable, Iterator

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_health.v1._async import HealthServicer
from grpc_reflection.v1alpha import reflection

from ha_proto.sync.v1 import control_pb2, control_pb2_grpc, life_pb2, life_pb2_grpc, pairing_pb2_grpc
from ha_sync.catalogue.engine import EngineState
from ha_sync.config import Settings
from ha_sync.core.dataset import Role
from ha_sync.core.position import Epoch
from ha_sync.errors import OperatorNeeded
from ha_sync.logs.events import EventLog
from ha_sync.node import DatasetStatus, Membership, Node
from ha_sync.pairing.gate import Gate, Refusals
from ha_sync.pairing.identity import Identity
from ha_sync.pairing.identity import exists as identity_exists
from ha_sync.pairing.keyring import Keyring
from ha_sync.pairing.renewal import Renewer
from ha_sync.pairing.servicer import PairingServicer
from ha_sync.pairing.witness import HandshakeWitness
from ha_sync.service.attach import SOCKET_NAME, AgentLink
from ha_sync.service.control import ControlServicer, Parts
from ha_sync.service.divergence import Divergences
from ha_sync.service.full_backup import FullBackups
from ha_sync.service.full_syncs import FullSyncs
from ha_sync.service.life import Life
from ha_sync.service.logbook import open_logbook
from ha_sync.service.packages import PackageParts, Packages
from ha_sync.service.peer import STREAM_OPTIONS, PeerLink, PeerWatch
from ha_sync.service.ports import open_ports
from ha_sync.service.replication import ReplicationServicer
from ha_sync.service.storages import Storages
from ha_sync.service.tidings import Tidings, Trouble, troubles_of

log = logging.getLogger(__name__)

SOCKET_MODE = 0o660
STOP_GRACE_S = 1.0
PAIR_LOOK_S = 1.0
"""How often an unpaired node looks whether it was paired meanwhile."""


class Dissolved(Exception):
    """This node belongs to no pair any more."""


async def run(settings: Settings, *, role: Role | None, epoch: Epoch) -> None:
    """Runs the engine until cancelled; with no role it follows the agent of this node.

    Raises OperatorNeeded, Fenced or ConfigFault where it cannot start.
    """
    with _only_one(settings.node.state_dir):
        engine = _Engine(settings)
        # Before anything of gRPC is made: its core reads its log level once.
        engine.witness.install()
        try:
            await engine.run(role, epoch)
        finally:
            await asyncio.to_thread(engine.witness.remove)


class _Engine:
    def __init__(self, settings: Settings) -> None:
        node_settings = settings.node
        self._settings = settings
        self._began = time.monotonic()
        self._keyring: Keyring | None = None
        self._by_hand = False  # the role is given by hand, not by an agent
        self._tidings = Tidings(self._troubles)
        self._backup = ("", "")  # what came of the last full backup that has ended
        self._events = EventLog(os.path.join(node_settings.state_dir, "logs", "events.db"))
        self._logbook = open_logbook(node_settings.state_dir, self._report)
        self._full_syncs = FullSyncs(self._logbook.backup)
        self._state = EngineState(os.path.join(node_settings.state_dir, "engine.db"))
        self._link = PeerLink(lambda: self._keyring, configured=node_settings.peer, report=self._report)
        self._node = Node(
            settings,
            state=self._state,
            membership=self._membership,
            dial=self._link.dial,
            report=self._report,
            full_syncs=self._full_syncs,
        )
        self._full_backups = FullBackups(
            self._node,
            link=self._link,
            runs=self._logbook.backup,
            report=self._report,
            membership=self._membership,
        )
        self._storages = Storages(
            self._node,
            link=self._link,
            desk=self._full_backups.desk,
            runs=self._logbook.storage,
            report=self._report,
            membership=self._membership,
        )
        self._divergences = Divergences(
            self._node,
            link=self._link,
            membership=self._membership,
            runs=self._logbook.backup,
            report=self._report,
        )
        self._agent = AgentLink(
            self._node,
            socket_path=os.path.join(node_settings.run_dir, SOCKET_NAME),
            membership=self._membership,
            report=self._report,
            link=self._link,
            full_backups=self._full_backups,
            tidings=self._tidings,
        )
        self._packages = Packages(
            PackageParts(
                node=self._node,
                agent=self._agent,
                log=self._logbook.backup,
                report=self._report,
                membership=self._membership,
                by_hand=lambda: self._by_hand,
                restored=self._full_syncs.restored,
            )
        )
        self._life = Life(
            self._node,
            keyring=lambda: self._keyring,
            link=self._link,
            agent=self._agent,
            report=self._report,
            by_hand=lambda: self._by_hand,
        )
        self._watch = PeerWatch(self._node, self._link, self._report, on_described=self._life.described)
        self._refusals = Refusals(self._report)
        self.witness = HandshakeWitness(self._refusals, port=int(node_settings.listen[0].rpartition(":")[2]))

    def _report(self, severity: str, what: str, fields: dict[str, object]) -> None:
        self._events.append(severity, what, fields)
        self._tidings.note(severity, what, fields)

    def _troubles(self) -> Iterable[Trouble]:
        datasets = self._node.datasets()
        last = self._full_backups.runner.standing()
        if not last.running:
            self._backup = (last.result, last.reason)
        troubles = troubles_of(
            datasets,
            unreached=self._unreached(datasets),
            backup=self._backup,
            divergences=self._divergences.merger.notices,
        )
        return (*troubles, *self._storages.troubles())

    def _unreached(self, datasets: list[DatasetStatus]) -> str:
        """Why the other node's engine, which there is, is not reached."""
        membership = self._membership()
        if membership is None or not membership.peer_id:
            return ""
        if self._node.role is Role.ACTIVE and datasets and not any(item.connected for item in datasets):
            return "no standby is connected"
        return self._watch.reason if self._node.role is Role.STANDBY and not self._watch.connected else ""

    def _membership(self) -> Membership | None:
        if self._keyring is None:
            return None
        identity = self._keyring.identity
        return Membership(
            cluster_id=identity.cluster_id,
            node_id=identity.node_id,
            peer_id=identity.peer.node_id if identity.peer else "",
            founder=identity.promised_epoch == 0,
        )

    async def run(self, role: Role | None, epoch: Epoch) -> None:
        self._by_hand = role is not None
        for notice in self._settings.notices:
            self._report("warning", "settings accepted with a notice", {"notice": notice})
        try:
            await self._packages.recover()
            await self._divergences.recover()
            ports = open_ports(self._settings, self._refusals)
            async with self._control_server(), ports, asyncio.TaskGroup() as tasks:
                if identity_exists(self._settings.node.state_dir):
                    await self._join_pair(tasks)
                else:
                    tasks.create_task(self._await_pairing(tasks))
                tasks.create_task(self._until_dissolved())
                tasks.create_task(self._watch.run())
                if self._life.dissolved:
                    return
                if role is not None:
                    await self._node.set_role(role, epoch)
                else:
                    await self._follow_agent(tasks)
                tasks.create_task(self._full_backups.run())
                tasks.create_task(self._divergences.run())
                tasks.create_task(self._storages.run())
        except* Dissolved:
            log.info("the pair is dissolved: this engine ends, the next one belongs to none")
        finally:
            await self._packages.close()
            await self._node.close()
            self._state.close()
            self._full_syncs.close()
            await asyncio.to_thread(self._logbook.close)
            await asyncio.to_thread(self._events.close)

    async def _until_dissolved(self) -> None:
        await self._life.run()
        raise Dissolved

    async def _follow_agent(self, tasks: asyncio.TaskGroup) -> None:
        """A Standby goes on as such at once; only the agent says that this node is Active."""
        if self._state.stored.role is Role.STANDBY:
            await self._node.set_role(Role.STANDBY, self._state.stored.promised)
        tasks.create_task(self._agent.run())

    async def _await_pairing(self, tasks: asyncio.TaskGroup) -> None:
        while not identity_exists(self._settings.node.state_dir):
            await asyncio.sleep(PAIR_LOOK_S)
        await self._join_pair(tasks)

    async def _join_pair(self, tasks: asyncio.TaskGroup) -> None:
        identity = await asyncio.to_thread(Identity.load, self._settings.node.state_dir)
        keyring = Keyring(identity)
        await asyncio.to_thread(self._state.promise, Epoch(identity.promised_epoch))
        self._keyring = keyring
        server = await self._peer_server(keyring)
        tasks.create_task(_serve_until_cancelled(server))
        tasks.create_task(Renewer(keyring, self._report).run())

    async def _peer_server(self, keyring: Keyring) -> grpc.aio.Server:
        gate = Gate(keyring, self._refusals)
        self.witness.watch(keyring, gate)
        server = grpc.aio.server(options=(*STREAM_OPTIONS, ("grpc.so_reuseport", 0)))
        replication = ReplicationServicer(
            self._node,
            gate,
            node_id=keyring.identity.node_id,
            shared=self._life.versions,
            dissolved=lambda: self._life.dissolved,
        )
        merges = self._divergences.handler(gate, membership=self._membership)
        bulk = (self._full_backups.handler(gate), self._storages.handler(gate))
        server.add_generic_rpc_handlers((replication.handler(), *bulk, merges, self._life.handler(gate)))
        pairing_pb2_grpc.add_PairingServiceServicer_to_server(  # type: ignore[no-untyped-call]
            PairingServicer(
                keyring,
                gate,
                self._report,
                epoch=lambda: self._node.epoch,
                role=lambda: self._node.role or Role.STANDBY,
                decided=lambda: self._by_hand or self._agent.attached,
                facts=lambda: self._life.facts(()),
                shared=self._life.documents,
            ),
            server,
        )
        for listen in self._settings.node.listen:
            try:
                port = server.add_secure_port(listen, keyring.server_credentials())
            except RuntimeError as error:
                raise OperatorNeeded(
                    "cannot listen on the peer port",
                    subject=listen,
                    reason="the address is not this node's, or the port is in use",
                    hint="see `ss -ltnp`, or set `listen` in [node]",
                ) from error
            log.info("peer port open", extra={"address": listen, "port": port})
        await server.start()
        return server

    @contextlib.asynccontextmanager
    async def _control_server(self) -> AsyncIterator[None]:
        path = self._settings.node.socket_path
        _clear_stale_socket(path)
        server = grpc.aio.server()
        servicer = ControlServicer(
            Parts(
                node=self._node,
                keyring=lambda: self._keyring,
                link=self._link,
                watch=self._watch,
                events=self._events,
                logbook=self._logbook,
                full_backups=self._full_backups,
                divergences=self._divergences,
                began=self._began,
                packages=self._packages,
                storages=self._storages,
                definitions=self._life.definitions,
                by_hand=self._by_hand,
            )
        )
        control_pb2_grpc.add_ControlServiceServicer_to_server(servicer, server)  # type: ignore[no-untyped-call]
        life_pb2_grpc.add_LifeServiceServicer_to_server(self._life, server)  # type: ignore[no-untyped-call]
        names = [
            control_pb2.DESCRIPTOR.services_by_name["ControlService"].full_name,
            life_pb2.DESCRIPTOR.services_by_name["LifeService"].full_name,
        ]
        await _describe_itself(server, names)
        try:
            server.add_insecure_port(f"unix:{path}")
        except RuntimeError as error:
            raise OperatorNeeded("cannot open the control socket", subject=path, reason=str(error)) from error
        await server.start()
        os.chmod(path, SOCKET_MODE)
        try:
            yield
        finally:
            await server.stop(STOP_GRACE_S)


async def _serve_until_cancelled(server: grpc.aio.Server) -> None:
    try:
        await server.wait_for_termination()
    finally:
        await server.stop(STOP_GRACE_S)


async def _describe_itself(server: grpc.aio.Server, names: list[str]) -> None:
    """Health and reflection. Not on the peer port: a holder of a token may reach nothing there but Join."""
    health = HealthServicer()
    health_pb2_grpc.add_HealthServicer_to_server(health, server)
    for name in ("", *names):
        await health.set(name, health_pb2.HealthCheckResponse.SERVING)
    known = (*names, health_pb2.DESCRIPTOR.services_by_name["Health"].full_name, reflection.SERVICE_NAME)
    reflection.enable_server_reflection(known, server)


def _clear_stale_socket(path: str) -> None:
    """Removes what a killed engine left; the lock on the state directory proves that it is gone."""
    os.makedirs(os.path.dirname(path), mode=0o755, exist_ok=True)
    with contextlib.suppress(FileNotFoundError), socket.socket(socket.AF_UNIX) as probe:
        try:
            probe.connect(path)
        except ConnectionRefusedError:
            os.unlink(path)
        else:
            raise OperatorNeeded("cannot open the control socket", subject=path, reason="another engine answers there")


@contextlib.contextmanager
def _only_one(state_dir: str) -> Iterator[None]:
    os.makedirs(state_dir, mode=0o700, exist_ok=True)
    path = os.path.join(state_dir, "lock")
    with open(path, "w", encoding="ascii") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise OperatorNeeded(
                "cannot start: another engine uses", subject=state_dir, hint="one engine for each state_dir"
            ) from error
        yield
