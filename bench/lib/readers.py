"""Readers of mounted files over some time, and how much they got when."""

import json
import math
import subprocess
import sys

from lib.programs import CommandFailed
from lib.reader import SLOT_S, __file__ as READER

MIB = 2**20
PATIENCE_S = 90  # A read that takes longer hangs: the store's own deadline is 60 s.


class Readers:
    """A process of reader.py for each of `paths`, for a `with`; all compare with `reference`."""

    def __init__(self, paths, reference):
        self._paths = paths
        self._reference = reference
        self._processes = []
        self._slots = {}
        self.errors = []
        self.wrong = 0

    def __enter__(self):
        """Returns when all read."""
        for seed, path in enumerate(self._paths):
            self._processes.append(subprocess.Popen(
                [sys.executable, READER, path, self._reference, str(seed)],
                stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True))
        for process in self._processes:
            if "ready" not in process.stdout.readline():
                raise CommandFailed("a reader did not start")
        return self

    def __exit__(self, *_):
        for process in self._processes:
            process.kill()
            process.wait()
            process.stdout.close()

    def stop(self):
        """Ends them and adds up what they saw."""
        for process in self._processes:
            process.terminate()
        for process in self._processes:
            try:
                report = json.loads(process.communicate(timeout=PATIENCE_S)[0])
            except (subprocess.TimeoutExpired, ValueError):
                report = {"slots": {}, "errors": ["a reader hangs"], "wrong": 0}
            self.errors += report["errors"]
            self.wrong += report["wrong"]
            for slot, size in report["slots"].items():
                self._slots[int(slot)] = self._slots.get(int(slot), 0) + size

    def faults(self):
        """Reads that failed or gave wrong bytes. After stop()."""
        return len(self.errors) + self.wrong

    def rate(self, start, end):
        """MiB/s between two moments of time.monotonic(). After stop()."""
        first, last = math.ceil(start / SLOT_S), math.floor(end / SLOT_S)
        total = sum(self._slots.get(slot, 0) for slot in range(first, last))
        return total / MIB / ((last - first) * SLOT_S)

    def seconds_until(self, moment, rate, sustained=2.0, limit=30):
        """How long after `moment` a stretch of `sustained` seconds begins in which they read at
        that rate on the whole. After stop()."""
        for step in range(int(limit / SLOT_S)):
            start = moment + step * SLOT_S
            if self.rate(start, start + sustained) >= rate:
                return step * SLOT_S
        return float(limit)
