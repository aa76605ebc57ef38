"""Reads ``sync.toml``. Blocking (a small file, a few ``stat``); call before the event loop runs.

Sections of parts that this version does not run (``[console]``) are checked for their shape and told about in
``Settings.notices``, so that one file serves from release to release and nothing in it is ignored silently.
"""

from __future__ import annotations

import os
import re
import socket
import tomllib
from dataclasses import replace

from ha_sync.config import place, shared
from ha_sync.config.dataset import parse_dataset
from ha_sync.config.overlap import check_overlaps
from ha_sync.config.ports import parse_api, parse_metrics
from ha_sync.config.reading import Faults, Table
from ha_sync.config.settings import (
    SOCKET_NAME,
    BackupSettings,
    Compression,
    DatasetSettings,
    DivergenceSettings,
    Merge,
    NodeSettings,
    Settings,
    StreamSettings,
)
from ha_sync.config.storage import parse_storage
from ha_sync.errors import ConfigFault

FILE_BYTES_MAX = 1024 * 1024
DATASETS_MAX = 64
STORAGES_MAX = 64
ADDRESSES_MAX = 16


def load(path: str) -> Settings:
    """Everything in the file; raises ``ConfigFault`` with all faults."""
    values = _read(path)
    return replace(settings_of(values, source=path), file=os.path.abspath(path), shared=shared.text_of(values))


def settings_of(values: dict[str, object], *, source: str) -> Settings:
    """The same of what TOML gave; ``source`` names it in the fault."""
    faults = Faults()
    top = Table("sync.toml", values, faults)
    node = _node(top, faults)
    stream = _stream(top, faults)
    divergence = _divergence(top, faults)
    datasets = (*_datasets(top, faults), *_storages(top, faults))
    backup = _backup(top, faults)
    metrics, api = parse_metrics(top, faults), parse_api(top, faults)
    notices = _console(top, faults)
    top.finish()
    check_overlaps(node, datasets, faults)
    if faults:
        raise ConfigFault(source, faults.lines())
    if not datasets:
        notices = (*notices, "no [[dataset]] is defined: nothing is replicated")
    return Settings(
        node=node,
        stream=stream,
        backup=backup,
        divergence=divergence,
        metrics=metrics,
        api=api,
        datasets=datasets,
        notices=notices,
    )


def load_node(path: str) -> NodeSettings:
    """Only ``[node]``: enough to find the running engine, whatever else is wrong in the file just now."""
    faults = Faults()
    node = _node(Table("sync.toml", _read(path), faults), faults)
    if faults:
        raise ConfigFault(path, faults.lines())
    return node


def shared_text(path: str) -> str:
    """The pair's part of the file (``config.shared``), whatever else is wrong in it; raises ``ConfigFault``."""
    return shared.text_of(_read(path))


def read_text(path: str) -> str:
    """The file as it stands; raises ``ConfigFault`` where it cannot be read."""
    try:
        with open(path, "rb") as file:
            data = file.read(FILE_BYTES_MAX + 1)
    except FileNotFoundError as error:
        raise ConfigFault(path, ("there is no such file: write it, or name another with --config",)) from error
    except OSError as error:
        raise ConfigFault(path, (f"cannot be read: {error.strerror}",)) from error
    if len(data) > FILE_BYTES_MAX:
        raise ConfigFault(path, (f"is larger than {FILE_BYTES_MAX} bytes: this is no settings file",))
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise ConfigFault(path, (f"line {line} is not UTF-8: save the file as UTF-8",)) from error


def _read(path: str) -> dict[str, object]:
    try:
        return tomllib.loads(read_text(path))
    except (ValueError, RecursionError) as error:  # a number of 5000 digits is no TOMLDecodeError
        raise ConfigFault(path, (f"is not TOML: {_toml_reason(error)}",)) from error


def _toml_reason(error: Exception) -> str:
    reason = str(error) or type(error).__name__
    return re.sub(r"Cannot overwrite a value", "a key stands there twice", reason)


def _section(top: Table, key: str, faults: Faults) -> Table:
    return Table(key, top.table(key, f"[{key}]") or {}, faults)


def _node(top: Table, faults: Faults) -> NodeSettings:
    plain = NodeSettings()
    table = _section(top, "node", faults)
    node = NodeSettings(
        name=table.text("name", "", place.node_name) or socket.gethostname(),
        state_dir=_folder(table, "state_dir", plain.state_dir),
        run_dir=_folder(table, "run_dir", plain.run_dir),
        listen=table.one_or_more("listen", plain.listen, place.listen_address, most=ADDRESSES_MAX),
        peer=table.one_or_more("peer", plain.peer, place.peer_address, most=ADDRESSES_MAX),
        active_at=table.text("active_at", plain.active_at, place.active_at),
    )
    if set(node.peer) & set(node.listen):
        table.fault("peer", "is this node's own listen address: name the other node")
    ports = {address.rpartition(":")[2] for address in node.listen}
    if len(ports) > 1 or (len(node.listen) > 1 and "0" in ports):
        table.fault("listen", "must have one port, not 0, at all its addresses")
    if len(os.fsencode(node.socket_path)) > place.SOCKET_PATH_BYTES_MAX:
        most = place.SOCKET_PATH_BYTES_MAX - len(f"/{SOCKET_NAME}")
        table.fault("run_dir", f"must be at most {most} bytes long: a socket lies in it")
    table.finish()
    return node


def _folder(table: Table, key: str, default: str) -> str:
    return os.path.normpath(table.text(key, default, place.tree_root))


def _stream(top: Table, faults: Faults) -> StreamSettings:
    plain = StreamSettings()
    table = _section(top, "stream", faults)
    stream = StreamSettings(
        compression=table.choice("compression", plain.compression, Compression),
        window_mib=table.integer("window_mib", plain.window_mib, low=1, high=256, unit="MiB"),
        bulk_mib_per_s=table.integer(
            "bulk_mib_per_s", plain.bulk_mib_per_s, low=0, high=100_000, unit="MiB a second; 0: no bound"
        ),
    )
    table.finish()
    return stream


def _divergence(top: Table, faults: Faults) -> DivergenceSettings:
    plain = DivergenceSettings()
    table = _section(top, "divergence", faults)
    divergence = DivergenceSettings(
        merge=table.choice("merge", plain.merge, Merge),
        max_mib=table.integer("max_mib", plain.max_mib, low=1, high=16 * 1024 * 1024, unit="MiB"),
    )
    table.finish()
    return divergence


def _datasets(top: Table, faults: Faults) -> tuple[DatasetSettings, ...]:
    entries = top.tables("dataset", "[[dataset]], with two brackets, once for each", most=DATASETS_MAX)
    parsed = (parse_dataset(number, dict(values), faults) for number, values in enumerate(entries, start=1))
    return tuple(dataset for dataset in parsed if dataset is not None)


def _backup(top: Table, faults: Faults) -> BackupSettings:
    plain = BackupSettings()
    table = _section(top, "backup", faults)
    # Switched off by `false` too: a word in quotes is easily taken for a fault of the file.
    given = table.raw("full")
    full = "" if given is False or given == "off" else table.text("full", plain.full, place.schedule)
    backup = BackupSettings(
        full=full,
        rate_mib_per_s=table.integer(
            "rate_mib_per_s", plain.rate_mib_per_s, low=0, high=100_000, unit="MiB a second; 0: no bound"
        ),
    )
    table.finish()
    return backup


def _console(top: Table, faults: Faults) -> tuple[str, ...]:
    values = top.table("console", "[console]")
    if values is None:
        return ()
    table = Table("console", values, faults)
    table.flag("enabled", default=False)
    table.text("listen", "", place.listen_address)
    table.finish()
    return ("console: this version has no web page; the section is kept for the release that has it",)


def _storages(top: Table, faults: Faults) -> tuple[DatasetSettings, ...]:
    entries = top.tables("storage", "[[storage]], with two brackets, once for each", most=STORAGES_MAX)
    parsed = (parse_storage(number, dict(values), faults) for number, values in enumerate(entries, start=1))
    return tuple(storage for storage in parsed if storage is not None)
