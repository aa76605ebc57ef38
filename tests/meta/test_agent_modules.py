"""What the agent's process does not load: it runs beside a PBX, in 45 MiB (docs/adr/0012-a-small-agent.md)."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

HEAVY = (
    "ssl",
    "_ssl",
    "_hashlib",
    "sqlite_utils",
    "cryptography",
    "pyroute2",
    "apscheduler",
    "apsw",
    "dateutil",
    "decimal",
    "multiprocessing",
    "prometheus_client",
    "unittest",
    "smtplib",
    "http.client",
    "email.message",
    "ha_agent.alarms.mail",
    "ha_agent.alarms.webhook",
    "ha_sync",
)
LIST_WHAT_IS_LOADED = """
import json, sys
from ha_agent.cli.main import main
try:
    main(["run", "--help"])
except SystemExit:
    pass
loaded = [name for name, module in sys.modules.items() if module is not None]
print("\\n" + json.dumps(loaded))
"""


@pytest.fixture(scope="module")
def loaded() -> frozenset[str]:
    done = subprocess.run(
        [sys.executable, "-c", LIST_WHAT_IS_LOADED], capture_output=True, text=True, check=True, timeout=120
    )
    return frozenset(json.loads(done.stdout.splitlines()[-1]))


def test_all_that_the_agent_needs_is_loaded_before_it_runs(loaded: frozenset[str]) -> None:
    assert loaded >= {"ha_agent.agent.driver", "ha_agent.service.process", "ha_agent.logs", "grpc.aio", "asyncio"}


@pytest.mark.parametrize("module", HEAVY)
def test_the_agent_starts_without(module: str, loaded: frozenset[str]) -> None:
    assert module not in loaded
