"""Cache workers on the hosts of a test, of a row of the benchmark, or of the demo.

    with Network() as network:
        hosts = [network.host(f"w{i}") for i in range(3)]
        workers = [Worker(PROGRAMS, host, directory / host.name, [url], hosts) for host in hosts]
        for worker in workers:
            worker.start()
        client.run([MILLRACE, "mount", *client_options(workers), url, mountpoint])

What `Worker` starts is the real millrace-worker; it ends with the process that started it, at the
latest. All waiting is for a condition: a worker serves when its data port answers HELLO.
"""

import contextlib
import json
import os
import pathlib
import re
import signal
import socket
import subprocess
import time

import data_protocol

CONTROL_PORT = 7450
DATA_PORT = 7451
METRICS_PORT = 7452
CLUSTER = "millrace"
START_TIMEOUT_S = 60
STOP_TIMEOUT_S = 20
POLL_INTERVAL_S = 0.02
SAMPLE = re.compile(r"^(\w+)(?:\{(.*)\})? (\S+)$")


def addresses(hosts):
    """The members as --workers takes them, of hosts or workers."""
    return ",".join(f"{getattr(host, 'host', host).address}:{DATA_PORT}" for host in hosts)


def client_options(hosts):
    """Of a mount that asks these workers, and keeps nothing itself."""
    return ["--workers", addresses(hosts)]


def wait_for(condition, what, timeout=START_TIMEOUT_S):
    """The first true value of `condition()`."""
    deadline = time.monotonic() + timeout
    while not (value := condition()):
        if time.monotonic() > deadline:
            raise AssertionError(f"not within {timeout} s: {what}")
        time.sleep(POLL_INTERVAL_S)  # tidy: allow-sleep This is how everybody else polls.
    return value


class Worker:
    """One millrace-worker. `programs` is the directory of the build's programs, `directory` its
    own, `members` the hosts of the whole pool, itself included or not. `tiers` are
    "MEDIUM:QUOTA" below the directory, or "MEDIUM:PATH:QUOTA"."""

    def __init__(self, programs, host, directory, sources, members, tiers=("ssd:4Gi",),
                 replicas=1, extent_size=None, options=(), environment=None):
        self.host = host
        self.name = host.name
        self.directory = pathlib.Path(directory)
        self.socket = self.directory / "worker.sock"
        self.log_path = self.directory / "worker.log"
        self.process = None
        self._programs = pathlib.Path(programs)
        self._environment = environment
        self.tier_paths = []
        words = []
        for index, tier in enumerate(tiers):
            medium, *path, quota = tier.split(":")
            self.tier_paths.append(pathlib.Path(path[0]) if path else
                                   self.directory / f"tier-{index}")
            words += ["--tier", f"{medium}:{self.tier_paths[-1]}:{quota}"]
        words += ["--id", self.name, "--cluster", CLUSTER, "--replicas", str(replicas)]
        words += ["--listen", host.address, "--dir", str(self.directory)]
        if extent_size:
            words += ["--extent-size", extent_size]
        if len(members) > 0:
            words += ["--members", addresses(members)]
        self._words = [*words, *map(str, options), *sources]

    def start(self):
        """Returns when it serves. RuntimeError with its log if it ends instead."""
        self.spawn()
        self.wait_until_ready()
        return self

    def spawn(self):
        """Starts it and does not wait."""
        for path in (self.directory, *self.tier_paths):
            path.mkdir(parents=True, exist_ok=True)
        with open(self.log_path, "ab") as log:
            self.process = self.host.popen(
                [self._programs / "millrace-worker", *self._words],
                stdout=log, stderr=log, env={**os.environ, **(self._environment or {})})

    def wait_until_ready(self):
        def ready():
            if self.process.poll() is not None:
                raise RuntimeError(f"{self.name} ended with {self.process.returncode}:\n"
                                   f"{self.log()}")
            with contextlib.suppress(OSError, data_protocol.ProtocolError), self.connect():
                return True

        wait_for(ready, f"an answer of {self.name}:\n{self.log()}")

    def connect(self, timeout=5):
        """A connection to its data port, from its own host."""
        where = (self.host.address, DATA_PORT)
        return data_protocol.Connection(
            self.host.inside(lambda: socket.create_connection(where, timeout)), CLUSTER)

    @property
    def pid(self):
        return self.process.pid

    @property
    def address(self):
        return f"{self.host.address}:{CONTROL_PORT}"

    def signal(self, number):
        self.process.send_signal(number)

    def kill(self):
        """SIGKILL; returns when it is gone."""
        self.process.kill()
        self.process.wait()

    def tell_to_stop(self):
        """Does not wait for the end."""
        if self.process is not None:
            # Also one that a test has frozen must hear of it.
            self.signal(signal.SIGCONT)
            self.signal(signal.SIGTERM)

    def stop(self):
        """Politely, then by force; does nothing when it has ended. False when force was needed."""
        if self.process is None:
            return True
        self.tell_to_stop()
        try:
            self.process.wait(STOP_TIMEOUT_S)
            return True
        except subprocess.TimeoutExpired:
            self.kill()
            return False

    def log(self):
        return self.log_path.read_text(errors="replace")

    def command(self, verb, *options, timeout=120):
        """`millrace worker VERB` of this worker, from its own host."""
        done = self.host.run([self._programs / "millrace", "worker", verb, *options, self.address],
                             timeout=timeout)
        if done.returncode != 0:
            raise RuntimeError(f"worker {verb} of {self.name}: {done.stderr.strip()}")
        return done.stdout

    def report(self):
        """What `millrace worker status --json` says."""
        return json.loads(self.command("status", "--json"))["workers"][0]

    def hits(self):
        """Bytes it gave, by where it had them: {"local": …, "remote": …, "store": …}."""
        return {kind: hits["bytes"] for kind, hits in self.report()["hits"].items()}

    def drain(self, **options):
        """Hands everything over; returns when that is done."""
        return self.command("drain", **options)

    def metrics(self):
        """{(name, labels as they are printed): value}."""
        page = self.host.get(f"http://{self.host.address}:{METRICS_PORT}/metrics")
        found = {}
        for line in page.splitlines():
            if match := SAMPLE.match(line):
                found[match[1], match[2] or ""] = float(match[3])
        return found

    def metric(self, name, *labels):
        """The sum of a metric over the label sets that contain all of `labels`."""
        return sum(value for (given, text), value in self.metrics().items()
                   if given == name and all(label in text for label in labels))

    def data_files(self):
        """The data files of complete objects, by size."""
        return {path.stat().st_size: path for tier in self.tier_paths
                for path in tier.rglob("complete/*")}
