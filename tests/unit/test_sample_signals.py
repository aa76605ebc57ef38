"""The sample PBX is told to stop at whatever moment, and stops."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

CHILD = """
import os, signal, sys, threading
from ha_sync.sample import __main__ as sample

class Program:
    def __init__(self, settings, ledger):
        self.lock, self.told = threading.Lock(), threading.Event()

    def run(self, ready):
        with self.lock:  # as in the middle of Event.wait
            os.kill(os.getpid(), signal.SIGTERM)
        assert self.told.wait(30)

    def stop(self):
        with self.lock:
            self.told.set()

sample.Program = Program
sys.exit(sample.main(["--root", sys.argv[1], "--ledger", sys.argv[1] + "/ledger"]))
"""


@pytest.mark.req("R22")
def test_a_signal_in_the_middle_of_its_wait_stops_it(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", CHILD, str(tmp_path)], check=False, timeout=60, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
