"""A daemon that this program starts, watches and ends: one process with a log file. Ends only what it started, by pid.

Blocking; seconds are monotonic. A child survives its starter only if ``close`` was not called.
"""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Callable, Sequence

STOP_S = 20.0
LOOK_EVERY_S = 0.02


class PairFailure(Exception):
    """A command failed or a state did not come; the text says what was printed."""


class Child:
    """One daemon, which may be started again after its end."""

    def __init__(self, name: str, *, log_path: str) -> None:
        self.name = name
        self.log_path = log_path
        self.process: subprocess.Popen[bytes] | None = None

    def start(self, line: Sequence[str]) -> None:
        """Starts it; does not wait for anything."""
        assert self.process is None, "it runs already"
        with open(self.log_path, "ab") as log:
            self.process = subprocess.Popen(line, stdin=subprocess.DEVNULL, stdout=log, stderr=log)

    def until(self, condition: Callable[[], bool], what: str, *, timeout_s: float = 30.0) -> None:
        """Looks until ``condition`` holds; raises PairFailure with the tail of the log when the process ended."""
        deadline = time.monotonic() + timeout_s
        reason = ""
        while time.monotonic() < deadline:
            if self.process is not None and self.process.poll() is not None:
                raise PairFailure(f"{self.name} ended with {self.process.returncode}: {self.log_tail()}")
            try:
                if condition():
                    return
            except PairFailure as failure:
                reason = str(failure)
            time.sleep(LOOK_EVERY_S)
        raise PairFailure(f"{self.name}: {what} did not come in {timeout_s:g} s. {reason}\n{self.log_tail()}")

    def kill(self, number: int = signal.SIGKILL) -> None:
        """SIGKILL (a crash), SIGSTOP (frozen), SIGCONT ... to the process."""
        assert self.process is not None, "it does not run"
        self.process.send_signal(number)
        if number == signal.SIGKILL:
            self.process.wait()
            self.process = None

    def stop(self) -> None:
        """A clean stop."""
        if self.process is None:
            return
        self.process.send_signal(signal.SIGCONT)
        self.process.terminate()
        try:
            self.process.wait(STOP_S)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
            raise PairFailure(f"{self.name} did not stop in {STOP_S:g} s: {self.log_tail()}") from None
        finally:
            self.process = None

    def close(self) -> None:
        """Ends it, whatever state it is in."""
        if self.process is not None:
            self.process.kill()
            self.process.wait()
            self.process = None

    def log_tail(self, *, size: int = 4000) -> str:
        """The end of its log."""
        try:
            with open(self.log_path, "rb") as log:
                log.seek(max(0, os.path.getsize(self.log_path) - size))
                return log.read().decode(errors="replace")
        except FileNotFoundError:
            return ""
