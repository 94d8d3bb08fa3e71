"""The demo of cache workers: every byte leaves the store once, and nobody notices who dies.

A store that is held to 1 Gbit/s, workers, and two clients, each a host of its own on this machine
(network namespaces on one switch). One client is alone on its host, the other shares a worker's.
What is counted is counted at the store.
"""

import dataclasses
import threading
import time

from lib.cluster import Cluster, added, read_by
from lib.programs import CommandFailed, generate

import hosts

BUCKET = "models"
MODEL = "model.bin"
MODEL_BYTES = 512 * 2**20
STORE_RATE = "119.2Mi"  # 1 Gbit/s.
STORE_BYTES_PER_SECOND = 119.2 * 2**20
MIB = 2**20
# Enough for the model and its copies on each.
WORKER_TIER = "ssd:2Gi"
EXTENT = "16Mi"
WORKERS_MIN, WORKERS_MAX = 3, 16
KINDS = ("short_circuit", "remote", "store")


@dataclasses.dataclass
class Round:
    """Both clients read the whole model, beginning together."""

    what: str
    seconds: float
    store_bytes: int
    hits: dict  # Bytes by where the clients had them.
    errors: int = 0


class Demo:
    """The cluster of the demo, and the rounds so far."""

    def __init__(self, cluster, clients):
        self.cluster = cluster
        self.clients = clients
        self.rounds = []

    def hits(self):
        """Of both clients. What the kernel reads through a descriptor that a worker handed over
        reaches no daemon: it counts by the size of the file, at each open."""
        counts = [read_by(client) for client in self.clients]
        opened = sum(client.status()["passthrough"]["bytes_opened"] for client in self.clients)
        return added([*counts, {"short_circuit": opened}])

    def read(self, what, meanwhile=None):
        """One round; `meanwhile()` is done in its middle."""
        for client in self.clients:
            generate("drop", client.path)
        hits, sent = self.hits(), self.cluster.store_bytes()
        reports = []

        def read(client):
            reports.append(generate("read", client.path / MODEL))

        threads = [threading.Thread(target=read, args=(client,)) for client in self.clients]
        start = time.monotonic()
        for thread in threads:
            thread.start()
        if meanwhile:
            meanwhile()
        for thread in threads:
            thread.join()
        seconds = time.monotonic() - start
        after = self.hits()
        self.rounds.append(Round(
            what, seconds, self.cluster.store_bytes() - sent,
            {kind: after.get(kind, 0) - hits.get(kind, 0) for kind in KINDS},
            sum(report.get("bytes", 0) != MODEL_BYTES for report in reports) +
            len(self.clients) - len(reports)))


# --- Showing --------------------------------------------------------------------------------------


def mib(size):
    return f"{size / MIB:,.0f}" if size >= MIB / 2 else "-"


def print_table(rounds, count):
    model = MODEL_BYTES / MIB
    print(f"\n  {'two clients read ' + f'{model:.0f} MiB each':<36}{'MiB/s':>7}{'the store':>12}   "
          f"where the clients had it, MiB")
    print(f"  {'by way of ' + str(count) + ' workers':<36}{'each':>7}{'sent, MiB':>12}   "
          f"{'next door':>9} {'remote':>7} {'store':>7}   errors")
    print("  " + "─" * 92)
    for one in rounds:
        hits = one.hits
        print(f"  {one.what:<36}{model / one.seconds:>7,.0f}{mib(one.store_bytes):>12}   "
              f"{mib(hits['short_circuit']):>9} {mib(hits['remote']):>7} {mib(hits['store']):>7}"
              f"   {one.errors:>6}")
    sent = sum(one.store_bytes for one in rounds)
    print(f"\n  Next door: from the worker of the client's own host, whose file the kernel reads by "
          f"itself.\n  Without workers the store sends {2 * model:,.0f} MiB each time, "
          f"{2 * MODEL_BYTES / STORE_BYTES_PER_SECOND:.0f} s on its 1 Gbit/s. With them it sent "
          f"{sent / MIB:,.0f} MiB, once.")


def print_next():
    print("\nNext:")
    print("  build/bin/millrace-worker --help                        a worker on each of your nodes")
    print("  build/bin/millrace mount --workers HOST:7451,… SOURCE /mnt/data")
    print("  build/bin/millrace worker status HOST:7450              what a worker holds and does")
    print("  ./dev bench --row worker                                all that is measured")


# --- The demo -------------------------------------------------------------------------------------


def check(count):
    """Why the demo cannot be given here, or None."""
    if not WORKERS_MIN <= count <= WORKERS_MAX:
        return f"--workers must be from {WORKERS_MIN} to {WORKERS_MAX}: one is killed, one leaves"
    return hosts.missing()


def run(directory, count, step):
    """The rounds, in `directory`. `step(text)` is a context that says what goes on."""
    import s3_server
    buckets = directory / "buckets"
    with step(f"making a model of {MODEL_BYTES // MIB} MiB"):
        generate("make", buckets / BUCKET, "--files", 0, "--big", MODEL_BYTES)
        (buckets / BUCKET / "big.bin").rename(buckets / BUCKET / MODEL)
        s3_server.set_etag(buckets / BUCKET / MODEL)
    with Cluster(directory, buckets, STORE_RATE) as cluster:
        with step(f"a store with 1 Gbit/s and {count} workers, each on a host of its own"):
            cluster.start_workers(count, BUCKET, tiers=(WORKER_TIER,), replicas=2,
                                  extent_size=EXTENT)
        first, second, third = cluster.workers[:3]
        alone = cluster.client(BUCKET, cluster.host("client"))
        # The worker is root's, and so is its socket.
        beside = cluster.client(BUCKET, first.host,
                                ["--workers", f"unix:{first.socket}", "--user", "root"])
        with alone, beside:
            demo = Demo(cluster, [alone, beside])
            with step("cold: both clients read it at once"):
                demo.read("cold, both at once")
            with step("warm: both read it again"):
                demo.read("warm")
            with step("again, and kill -9 of a worker in the middle"):
                demo.read("a worker killed", second.kill)
            with step("a worker hands over what it has, and leaves"):
                third.drain()
                third.stop()
            with step("again, without both"):
                demo.read("after the drain")
            with step("comparing the bytes with the store's"):
                for client in demo.clients:
                    generate("read", client.path / MODEL, "--verify-against",
                             buckets / BUCKET / MODEL)
            with step("unmounting, and ending workers and store"):
                for client in demo.clients:
                    client.unmount()
                for worker in cluster.workers:
                    worker.stop()
    print_table(demo.rounds, count)
    if any(one.errors for one in demo.rounds):
        raise CommandFailed("a client could not read all of it")
    print("  Every byte is right; nobody saw an error.")
