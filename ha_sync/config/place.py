"""What a path, an address, a name and a schedule must look like. Each check returns the fault's words, or nothing.

Limits in bytes are those of Linux: ``PATH_MAX`` 4096 with its NUL, ``NAME_MAX`` 255, ``sun_path`` 108 with its NUL.
"""

from __future__ import annotations

import ipaddress
import os
import re

PATH_BYTES_MAX = 4095
NAME_BYTES_MAX = 255
SOCKET_PATH_BYTES_MAX = 107

_DATASET_NAME = re.compile(r"[a-z0-9-]{1,64}\Z")
_HOST_LABEL = re.compile(r"(?!-)[A-Za-z0-9_-]{1,63}(?<!-)\Z")
_ACTIVE_AT = re.compile(r"[A-Za-z0-9._:/\[\]-]{1,253}\Z")
_CRON_FIELD = re.compile(r"(\*|\d+(-\d+)?)(/\d+)?(,(\*|\d+(-\d+)?)(/\d+)?)*\Z")
_CRON_RANGES = ((0, 59), (0, 23), (1, 31), (1, 12), (0, 7))


def absolute_path(path: str) -> str:
    """An absolute path without ``..`` that the kernel accepts."""
    encoded = os.fsencode(path)
    if not path.startswith("/"):
        return "must be an absolute path: begin it with /"
    if len(encoded) > PATH_BYTES_MAX:
        return f"is {len(encoded)} bytes long, Linux takes {PATH_BYTES_MAX}"
    if any(len(part) > NAME_BYTES_MAX for part in encoded.split(b"/")):
        return f"has a component of more than {NAME_BYTES_MAX} bytes"
    if ".." in path.split("/"):
        return 'must not contain "..": write the real path'
    return ""


def tree_root(path: str) -> str:
    """A path that may be replicated as a tree."""
    if problem := absolute_path(path):
        return problem
    return "the whole file system cannot be a dataset: name a folder" if os.path.normpath(path) in {"/", "//"} else ""


def dataset_name(name: str) -> str:
    """Lower case, digits, dashes."""
    if _DATASET_NAME.match(name):
        return ""
    return "must be 1 to 64 characters of a-z, 0-9 and -"


def node_name(name: str) -> str:
    """For people; short enough for a table."""
    return "" if len(name) <= 64 else "must be at most 64 characters"


def active_at(text: str) -> str:
    """An address that may be named in the message of a trigger."""
    if not text or _ACTIVE_AT.match(text):
        return ""
    return "must be an address or a host name, e.g. 192.168.129.53"


def listen_address(text: str) -> str:
    """``host:port`` to listen at; port 0 asks the system for a free one."""
    return _host_port(text, lowest_port=0)


def peer_address(text: str) -> str:
    """``host:port`` to dial, or nothing."""
    return _host_port(text, lowest_port=1) if text else ""


def schedule(text: str) -> str:
    """A cron expression of five fields, or nothing."""
    if not text:
        return ""
    fields = text.split()
    if len(fields) != len(_CRON_RANGES):
        return 'must be a cron expression of five fields, e.g. "0 3 * * *" (minute hour day month weekday)'
    for field, (low, high) in zip(fields, _CRON_RANGES, strict=True):
        numbers = [int(number) for number in re.findall(r"(?<!/)\b\d+", field)]
        if not _CRON_FIELD.match(field) or any(not low <= number <= high for number in numbers):
            return f'"{field}" must be *, numbers from {low} to {high}, ranges, lists or steps'
        if any(int(step) < 1 for step in re.findall(r"/(\d+)", field)):
            return f'"{field}": a step must be at least 1'
    return ""


def _host_port(text: str, *, lowest_port: int) -> str:
    host, colon, port = text.rpartition(":")
    if not colon or not port.isascii() or not port.isdigit() or len(port) > 5:
        return "must be host:port, e.g. 192.168.129.52:9527 or [fd00::2]:9527"
    if not lowest_port <= int(port) <= 65535:
        return f"the port must be from {lowest_port} to 65535"
    return "" if _is_host(host) else "the host must be an address or a host name ([...] around IPv6)"


def _is_host(host: str) -> bool:
    if host.startswith("[") and host.endswith("]"):
        return _is_address(host[1:-1], version=6)
    if re.fullmatch(r"[0-9.]+", host):
        return _is_address(host, version=4)
    return 0 < len(host) <= 253 and all(_HOST_LABEL.match(label) for label in host.split("."))


def _is_address(text: str, *, version: int) -> bool:
    try:
        return ipaddress.ip_address(text).version == version
    except ValueError:
        return False
