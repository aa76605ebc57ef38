"""What the two daemons say of themselves, as metrics for Prometheus (R30). No I/O: ``metrics_port`` asks and serves.

Names begin with ``ha_sync_`` and end with their unit: seconds, bytes, ratio. A choice of words, such as the role, is
one series for each word, 1 for the one that is so. What a daemon that is silent would say is absent, never 0: an alert
on absence is right then. Labels are names that the settings, the protocol or the alarms have; none is a secret.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Final

from prometheus_client.metrics_core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    InfoMetricFamily,
    Metric,
)

from ha_proto.agent.v1 import agent_pb2
from ha_proto.sync.v1 import control_pb2 as pb
from ha_sync.core.dataset import DatasetState
from ha_sync.logs.runs import Result

ROLES: Final = ("active", "standby", "starting", "resigning", "disabled")
PAIRS: Final = ("off", "single", "pair")
STATES: Final = tuple(state.value for state in DatasetState)
RESULTS: Final = tuple(result.value for result in Result if result is not Result.RUNNING)
PREFIX: Final = "ha_sync_"


@dataclass(frozen=True, slots=True, kw_only=True)
class Look:
    """What was answered; None and empty where nobody did."""

    now_unix_s: float
    engine: pb.Status | None = None
    agent: agent_pb2.AgentStatus | None = None
    alarms: tuple[agent_pb2.AlarmRecord, ...] = ()
    divergences: tuple[pb.DivergenceArchive, ...] = ()
    backup: pb.RunRecord | None = None  # the last full backup that has ended
    storages: tuple[pb.StoragePair, ...] = ()
    syncs: tuple[pb.RunRecord, ...] = ()  # the last synchronisation of each storage that has ended


def measures(look: Look) -> Iterator[Metric]:
    """All that is known."""
    yield _gauge("engine_up", "Whether the engine answers.", float(look.engine is not None))
    yield _gauge("agent_up", "Whether the agent answers.", float(look.agent is not None))
    if look.agent is not None:
        yield from _of_agent(look.agent)
        yield from _of_alarms(look)
    if look.engine is not None:
        yield from _of_engine(look.engine)
        yield from _of_datasets(look.engine.datasets)
        yield from _of_backup(look.engine.full_backup, look)
        yield from _of_storages(look)
        yield from _of_divergences(look.divergences)


# ---- the agent


def _of_agent(agent: agent_pb2.AgentStatus) -> Iterator[Metric]:
    yield _choice("role", "Role of this node, by its agent.", "role", ROLES, agent.role)
    yield _choice("peer_role", "Role of the other node, as far as it is heard.", "role", ROLES, agent.peer_role)
    yield _gauge("epoch", "Epoch that is served or followed.", agent.epoch)
    yield _gauge("cluster_ip_held", "Whether this node holds the cluster IP.", float(agent.holds))
    yield _gauge("lease_left_seconds", "What is left of the lease of the cluster IP.", agent.lease_left_s)
    yield _gauge("ready", "Whether this node could take over.", float(agent.ready))
    yield _gauge("single", "Whether the Active knows that it is alone.", float(agent.single))
    yield _gauge("switching_held", "Whether automatic switches are held back.", float(agent.held))
    yield _gauge("maintenance_left_seconds", "What is left of a maintenance.", agent.maintenance_left_s)
    yield _gauge("engine_attached", "Whether the engine is attached to the agent.", float(agent.engine_attached))
    beats = CounterMetricFamily(PREFIX + "beats_received", "Heartbeats of the peer that were life.", labels=["path"])
    age = _gauges("beat_age_seconds", "Since the last heartbeat that was life.", "path")
    there = _gauges("peer_beat_age_seconds", "Since the newest of our heartbeats that the peer heard.", "path")
    for path in agent.paths:
        beats.add_metric([path.name], path.beats)
        if path.HasField("heard_age_s"):
            age.add_metric([path.name], path.heard_age_s)
        if path.HasField("peer_heard_age_s"):
            there.add_metric([path.name], path.peer_heard_age_s)
    yield from (beats, age, there)
    refused = CounterMetricFamily(PREFIX + "beats_refused", "Datagrams that were no heartbeats.", labels=["kind"])
    for kind, count in sorted(agent.beats_refused.items()):
        refused.add_metric([kind], count)
    yield refused
    probes = _gauges("probe_bad", "Whether a health probe finds a fault.", "probe")
    for probe in agent.probes:
        probes.add_metric([probe.name], float(probe.state == "bad"))
    yield probes


def _of_alarms(look: Look) -> Iterator[Metric]:
    assert look.agent is not None
    standing = _gauges("alarm_standing", "An alarm that stands.", "severity", "what", "subject")
    for alarm in look.alarms:
        if alarm.state == "stands":
            standing.add_metric([alarm.severity, alarm.what, alarm.subject], 1)
    yield standing
    waiting = _gauges("alarm_messages_waiting", "Messages of alarms that could not be sent yet.", "target")
    for target in look.agent.alarm_targets:
        waiting.add_metric([target.name], target.waiting)
    yield waiting


# ---- the engine


def _of_engine(engine: pb.Status) -> Iterator[Metric]:
    yield InfoMetricFamily(PREFIX + "build", "What runs.", value={"version": engine.version})
    yield _gauge("uptime_seconds", "Since the engine began.", engine.uptime_s)
    yield _gauge("engine_epoch", "Epoch of the engine's role.", engine.epoch)
    yield _choice("pair", "Whether this node belongs to a pair.", "state", PAIRS, engine.pair)
    yield _gauge("peer_connected", "Whether the other node's engine is connected.", float(engine.peer.connected))


def _of_datasets(datasets: Iterable[pb.Dataset]) -> Iterator[Metric]:
    state = _gauges("dataset_state", "State of a dataset.", "dataset", "state")
    consistent = _gauges("dataset_consistent", "Whether it is a state that the Active had.", "dataset")
    backlog = _gauges("backlog", "Rows and files that are not durable on the Standby.", "dataset", "priority")
    pending = _gauges("oldest_pending_seconds", "Age of the oldest change that is not durable there.", "dataset")
    lag = HistogramMetricFamily(
        PREFIX + "lag_seconds", "From durable on the Active to durable on the Standby.", labels=["dataset"]
    )
    for one in datasets:
        for word in STATES:
            state.add_metric([one.name, word], float(one.state == word))
        consistent.add_metric([one.name], float(one.consistent))
        backlog.add_metric([one.name, one.priority], one.backlog)
        if not one.HasField("lag"):
            continue
        if one.lag.HasField("oldest_pending_ms"):
            pending.add_metric([one.name], one.lag.oldest_pending_ms / 1000)
        bounds = [(f"{bucket.at_most_ms / 1000:g}", float(bucket.count)) for bucket in one.lag.buckets]
        lag.add_metric([one.name], [*bounds, ("+Inf", one.lag.measured)], sum_value=one.lag.sum_ms / 1000)
    yield from (state, consistent, backlog, pending, lag)


def _of_backup(now: pb.FullBackupProgress, look: Look) -> Iterator[Metric]:
    running = now.state == "backing up"
    yield _gauge("full_backup_running", "Whether a full backup runs.", float(running))
    if running:
        yield _gauge("full_backup_progress_ratio", "How much of it is done, 0 to 1.", now.percent / 100)
    last = look.backup
    if last is not None:
        yield _gauge("full_backup_age_seconds", "Since the last one ended.", _age(last, look.now_unix_s))
        yield _choice("full_backup_result", "What came of the last one.", "result", RESULTS, last.result)
        yield _gauge("full_backup_differing", "Objects that differed in the last one.", last.differing)
        yield _gauge("full_backup_unverified", "Objects that it could not verify.", last.unverified)


def _of_storages(look: Look) -> Iterator[Metric]:
    mounted = _gauges("storage_mounted", "Whether it is mounted on this node.", "storage")
    free = _gauges("storage_free_bytes", "What is free on it.", "storage")
    synced = _gauges("storage_synced", "Whether it was asked for: new files follow by themselves.", "storage")
    running = _gauges("storage_sync_running", "Whether a synchronisation runs.", "storage")
    ratio = _gauges("storage_sync_progress_ratio", "How much of it is done, 0 to 1.", "storage")
    for pair in look.storages:
        now = pair.sync.progress
        runs = now.state not in {"", "idle"}
        synced.add_metric([pair.name], float(pair.synced))
        running.add_metric([pair.name], float(runs))
        if runs:
            ratio.add_metric([pair.name], now.percent / 100)
        if pair.HasField("here"):
            mounted.add_metric([pair.name], float(pair.here.mounted))
        if pair.here.mounted:
            free.add_metric([pair.name], pair.here.free_bytes)
    age = _gauges("storage_sync_age_seconds", "Since the last one ended.", "storage")
    result = _gauges("storage_sync_result", "What came of the last one.", "storage", "result")
    sent = _gauges("storage_sync_sent_bytes", "What the last one has sent.", "storage")
    for run in look.syncs:
        name = run.facts["storage"]
        age.add_metric([name], _age(run, look.now_unix_s))
        sent.add_metric([name], run.bytes_sent)
        for word in RESULTS:
            result.add_metric([name, word], float(run.result == word))
    yield from (mounted, free, synced, running, ratio, age, result, sent)


def _of_divergences(archives: Iterable[pb.DivergenceArchive]) -> Iterator[Metric]:
    counts = dict.fromkeys(("kept", "partial", "merged"), 0)
    for archive in archives:
        counts[archive.state] = counts.get(archive.state, 0) + 1
    found = _gauges("divergences", "Archives of what this node had as Active alone.", "state")
    for state, count in counts.items():
        found.add_metric([state], count)
    yield found


# ---- forms


def _gauge(name: str, about: str, value: float) -> Metric:
    return GaugeMetricFamily(PREFIX + name, about, value=value)


def _gauges(name: str, about: str, *labels: str) -> GaugeMetricFamily:
    return GaugeMetricFamily(PREFIX + name, about, labels=labels)


def _choice(name: str, about: str, label: str, words: Iterable[str], which: str) -> Metric:
    found = _gauges(name, about, label)
    for word in words:
        found.add_metric([word], float(word == which))
    return found


def _age(run: pb.RunRecord, now_unix_s: float) -> float:
    return max(0.0, now_unix_s - run.end_unix_s)
