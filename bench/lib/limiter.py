"""The proxy that makes the store slow, and counts."""

import json
import os
import pathlib
import signal
import subprocess
import time

from lib.programs import LIMITER

ANSWER_TIMEOUT_S = 10
POLL_INTERVAL_S = 0.01
QUIET_S = 0.5
QUIET_TIMEOUT_S = 60


class Limiter:
    """Runs bench-limiter before `endpoint` for the length of a `with`, on `host` at its address
    where one is given. Without `rate` and `delay` it only counts."""

    def __init__(self, directory, endpoint, rate=None, delay=None, host=None):
        self._target = endpoint.removeprefix("http://")
        self._stats_file = pathlib.Path(directory) / f"limiter-{os.getpid()}-{id(self)}.json"
        self._options = (["--rate", rate] if rate else []) + (["--delay", delay] if delay else [])
        self._host = host
        self._process = None
        self.endpoint = None

    def __enter__(self):
        address = self._host.address if self._host else "127.0.0.1"
        words = [LIMITER, "--listen", f"{address}:0", "--target", self._target,
                 "--stats", self._stats_file, *self._options]
        start = self._host.popen if self._host else subprocess.Popen
        self._process = start(words, stdout=subprocess.PIPE, text=True)
        line = self._process.stdout.readline()
        if not line:
            self._process.wait()
            raise RuntimeError("bench-limiter did not start")
        self.endpoint = "http://" + json.loads(line)["listen"]
        return self

    def __exit__(self, *_):
        self._process.terminate()
        self._process.wait()
        self._process.stdout.close()
        self._stats_file.unlink(missing_ok=True)

    def counters(self):
        """The counters of this moment."""
        before = self._sequence()
        self._process.send_signal(signal.SIGUSR1)
        deadline = time.monotonic() + ANSWER_TIMEOUT_S
        while self._sequence() == before:
            if time.monotonic() > deadline:
                raise RuntimeError("bench-limiter wrote no counters")
            time.sleep(POLL_INTERVAL_S)
        return json.loads(self._stats_file.read_text())

    def counters_when_quiet(self):
        """The counters once no byte has come for a while: read-ahead still under way is paid."""
        deadline = time.monotonic() + QUIET_TIMEOUT_S
        last = self.counters()
        while time.monotonic() < deadline:
            time.sleep(QUIET_S)
            now = self.counters()
            if now["bytes_to_client"] == last["bytes_to_client"]:
                return now
            last = now
        return last

    def _sequence(self):
        try:
            return json.loads(self._stats_file.read_text())["sequence"]
        except FileNotFoundError:
            return 0
