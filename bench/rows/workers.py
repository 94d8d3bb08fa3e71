"""Cache workers: as near as the disk next door, over the network, for many at once, and leaving.

Each worker, client and the store are hosts of their own (network namespaces on one switch), on the
one machine: its processors are shared by all of them, and there are few. Store bytes are counted at
the store.
"""

import contextlib
import json
import os
import sys
import threading
import time

import hosts
from lib import machine, processes
from lib.bench import BIG_BYTES, GIB, LARGE, SHARED
from lib.cluster import used_bytes
from lib.load import __file__ as LOAD
from lib.programs import LINK_LIMIT, STORE_LIMIT, CommandFailed, generate, run
from lib.readers import Readers
from lib.results import Row, at_most, note, ratio, skip
from rows.cold import drop_caches
from rows.warm import SEQUENTIAL, combinations, compare_files

MIB = 2**20
SHARED_BYTES = GIB
NATIVE_AT_LEAST = 0.95
LINK_AT_LEAST = 0.80
LATENCY_AT_MOST = 2.0
RANDOM_READS = 2000
# The herd.
CLIENTS = 16
HERD_WORKERS = 3
STORE_RATE = "119.2Mi"  # 1 Gbit/s.
STORE_PER_BYTE_AT_MOST = 1.02
LAST_PER_GET_AT_MOST = 1.3
# Members that die, come and go.
READERS = 8
EXTENT = "16Mi"  # More extents than one GiB has by default: shares are then near their ideal.
BACK_AT_LEAST = 0.8
BACK_WITHIN_S = 2
MOVED_AT_MOST = 1.1
BASELINE_S = 3
AFTER_S = 6
SETTLED_S = 3  # Nothing moved for so long: it is over.
SETTLED_WITHIN_S = 60
# Listings and heads, not data.
STORE_BYTES_OF_NAMES = MIB
WORKER_RSS_MIB_AT_MOST = 576
CONNECTIONS = 256


def needs_hosts(measure):
    """A row that is skipped with its reason where there can be no hosts."""

    def guarded(bench):
        reason = hosts.missing()
        return [skip("all", reason)] if reason else measure(bench)

    return guarded


# --- One worker -----------------------------------------------------------------------------------


@needs_hosts
def same_node(bench):
    """The kernel reads the worker's own data file: the client was given its descriptor."""
    bench.bucket(LARGE)
    with bench.cluster() as cluster:
        worker, = cluster.start_workers(1, LARGE)
        with cluster.client(LARGE, worker.host,
                            ["--workers", f"unix:{worker.socket}", "--user", "root"]) as mount:
            mount.warm()
            mounted, native = mount.path / "big.bin", worker.data_files()[BIG_BYTES]
            chosen = list(combinations([(SEQUENTIAL, "mib_per_second", "MiB/s"),
                                        ("random-4k", "iops", "IOPS")], (1,)))
            return compare_files(bench, mounted, native, lambda: None, True, NATIVE_AT_LEAST,
                                 chosen)


def warm_worker(cluster, bucket, **options):
    """A worker that has everything, and a host for its clients."""
    worker, = cluster.start_workers(1, bucket, **options)
    client = cluster.host("client")
    with cluster.client(bucket, client) as mount:
        mount.warm()
    return worker, client


@needs_hosts
def remote_sequential(bench):
    """A client without a cache. The limit has the same bytes, hot in the same page cache."""
    bench.bucket(LARGE)
    with bench.cluster() as cluster:
        worker, client = warm_worker(cluster, LARGE)
        native = worker.data_files()[BIG_BYTES]
        machine.warm(native)

        def measure(side):
            if side == "limit":
                return [json.loads(run([LINK_LIMIT, native, "--json"]))["mib_per_second"]]
            with cluster.client(LARGE, client) as mount:
                os.stat(mount.path / "big.bin")  # The listing is not what is measured.
                before = [processes.cpu_seconds(pids) for pids in (mount.pids, [worker.pid])]
                report = generate("read", mount.path / "big.bin")
                after = [processes.cpu_seconds(pids) for pids in (mount.pids, [worker.pid])]
            spent = [(end - start) / (BIG_BYTES / GIB) for start, end in zip(before, after)]
            bench.say(f"CPU per GiB: client {spent[0]:.2f} s, worker {spent[1]:.2f} s")
            return [report["mib_per_second"]]

        mounted, limit = bench.by_turns("mount", "limit", measure)
    return [ratio("sequential 1 MiB", "MiB/s", mounted, limit, LINK_AT_LEAST)]


@needs_hosts
def remote_random(bench):
    """Both sides read from the disk: the worker's page cache is dropped before each."""
    bench.bucket(LARGE)
    with bench.cluster() as cluster:
        worker, client = warm_worker(cluster, LARGE)
        native = worker.data_files()[BIG_BYTES]
        with cluster.client(LARGE, client) as mount:
            os.stat(mount.path / "big.bin")
            seeds = iter(range(1, 1000))

            def measure(side):
                drop_caches()
                options = ["--count", RANDOM_READS, "--seed", next(seeds)]
                if side == "limit":
                    command = [LINK_LIMIT, native, "--random", "4Ki", *options, "--json"]
                    return [json.loads(run(command))["p50_us"]]
                return [generate("read", mount.path / "big.bin", "--pattern", "random", "--block",
                                 "4Ki", "--direct", "on", *options)["p50_us"]]

            mounted, limit = bench.by_turns("mount", "limit", measure)
    return [ratio("4 KiB, p50", "us", mounted, limit, LATENCY_AT_MOST, at_least=False)]


@needs_hosts
def connections(bench):
    """The memory of a worker that is asked for random pieces of what it does not have yet."""
    bench.bucket(LARGE)
    values = []
    for _ in range(bench.runs):
        with bench.cluster() as cluster:
            worker, = cluster.start_workers(1, LARGE, options=["--memory-limit", "512Mi"])
            client = cluster.host("client")
            path = bench.bucket(LARGE) / "big.bin"
            file = {"source": worker.report()["sources"][0]["identity"], "path": "big.bin",
                    "version": os.getxattr(path, "user.etag").decode().strip('"'),
                    "size": BIG_BYTES}
            load = client.run([sys.executable, LOAD, f"{worker.host.address}:7451", CONNECTIONS,
                               max(10, bench.seconds), json.dumps(file)], timeout=120)
            report = json.loads(load.stdout)
            if report["errors"]:
                raise CommandFailed(f"{len(report['errors'])} connections failed: "
                                    f"{report['errors'][0]}")
            bench.say(f"{report['bytes'] / GIB:.1f} GiB")
            values.append(processes.peak_rss_bytes([worker.pid]) / MIB)
    return [at_most("peak RSS, --memory-limit 512Mi", "MiB", values, WORKER_RSS_MIB_AT_MOST)]


# --- The herd -------------------------------------------------------------------------------------


def one_get(cluster, client):
    """Seconds of one GET of the whole object."""
    return json.loads(client.run(
        [STORE_LIMIT, "--endpoint", cluster.store.endpoint, "--bucket", SHARED, "--key", "big.bin",
         "--size", str(SHARED_BYTES), "--range", str(SHARED_BYTES), "--connections", "1",
         "--json"], env={**os.environ, **cluster.environment()}, timeout=300).stdout)["seconds"]


def read_at_once(mounts):
    """Seconds until the last of the clients has read the whole object. All begin together."""
    failures = []

    def read(mount):
        try:
            report = generate("read", mount.path / "big.bin")
            if report["bytes"] != SHARED_BYTES:
                failures.append(f"read {report['bytes']} bytes")
        except CommandFailed as error:
            failures.append(str(error))

    for mount in mounts:
        os.stat(mount.path / "big.bin")  # The listing is not what is measured.
    threads = [threading.Thread(target=read, args=(mount,)) for mount in mounts]
    start = time.monotonic()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if failures:
        raise CommandFailed(failures[0])
    return time.monotonic() - start


def herd_of(cluster, tiers=()):
    """(seconds, store bytes) of all clients, each on a host of its own."""
    with contextlib.ExitStack() as stack:
        mounts = [stack.enter_context(cluster.client(
            SHARED, cluster.host(f"client{i + 1}"), ["--memory-limit", "64Mi"], tiers))
            for i in range(CLIENTS)]
        before = cluster.store_bytes()
        seconds = read_at_once(mounts)
        return seconds, cluster.store_bytes() - before


@needs_hosts
def herd(bench):
    bench.bucket(SHARED)
    per_byte, last, get = [], [], []
    for _ in range(bench.runs):
        drop_caches()
        with bench.cluster(STORE_RATE) as cluster:
            get.append(one_get(cluster, cluster.host("alone")))
            cluster.start_workers(HERD_WORKERS, SHARED)
            seconds, sent = herd_of(cluster)
        per_byte.append(sent / SHARED_BYTES)
        last.append(seconds)
        bench.say(f"one GET {get[-1]:.1f} s, the last of {CLIENTS} clients {seconds:.1f} s")
    with bench.cluster(STORE_RATE) as cluster:
        seconds, sent = herd_of(cluster, ["ssd:64Mi"])
    return [
        at_most("store bytes per byte of the object", "", per_byte, STORE_PER_BYTE_AT_MOST),
        ratio("last client, to one GET", "s", last, get, LAST_PER_GET_AT_MOST, at_least=False),
        note("without workers: store bytes per byte", "", sent / SHARED_BYTES),
        note("without workers: last client", "s", seconds),
    ]


# --- Members that die, come and go ----------------------------------------------------------------


def replicated(cluster, copies):
    """Waits until the workers hold that many copies of the object."""
    workers_wait("the copies", lambda: cluster.used_bytes() >= copies * SHARED_BYTES)


def workers_wait(what, condition):
    deadline = time.monotonic() + SETTLED_WITHIN_S
    while not condition():
        if time.monotonic() > deadline:
            raise CommandFailed(f"not within {SETTLED_WITHIN_S} s: {what}")
        time.sleep(0.2)


def settled(value):
    """`value()` once it has not changed for a while."""
    last, since = value(), time.monotonic()
    deadline = since + SETTLED_WITHIN_S
    while time.monotonic() < min(deadline, since + SETTLED_S):
        time.sleep(0.2)
        now = value()
        if now != last:
            last, since = now, time.monotonic()
    return last


def under_readers(bench, count, planned, replicas, act):
    """Starts `count` workers of `planned`, loads the object, and lets 8 readers read while
    `act(cluster)` goes on. Returns (readers, what it returned, store bytes meanwhile)."""
    bench.bucket(SHARED)
    with bench.cluster() as cluster:
        cluster.plan(planned)
        for _ in range(count):
            cluster.start_worker(SHARED, replicas=replicas, extent_size=EXTENT)
        with cluster.client(SHARED, cluster.host("client1")) as one, \
                cluster.client(SHARED, cluster.host("client2")) as two:
            one.warm()
            replicated(cluster, replicas)
            before = cluster.store_bytes()
            paths = [mount.path / "big.bin" for mount in (one, two)] * (READERS // 2)
            with Readers(paths, bench.bucket(SHARED) / "big.bin") as readers:
                result = act(cluster)
                readers.stop()
            if readers.errors:
                bench.say(readers.errors[0])
            return readers, result, cluster.store_bytes() - before


def kill_one(bench, replicas):
    def act(cluster):
        time.sleep(BASELINE_S)
        killed = time.monotonic()
        cluster.workers[0].kill()
        time.sleep(AFTER_S)
        return killed

    readers, killed, sent = under_readers(bench, 3, 3, replicas, act)
    before = readers.rate(killed - BASELINE_S, killed)
    back = readers.seconds_until(killed, before * BACK_AT_LEAST)
    bench.say(f"R={replicas}: {before:.0f} MiB/s before, "
              f"{readers.rate(killed + back, killed + AFTER_S):.0f} MiB/s after")
    return readers, back, sent


@needs_hosts
def worker_killed(bench):
    checks = []
    for replicas in (1, 2):
        faults, seconds, fetched = [], [], []
        for _ in range(bench.runs):
            readers, back, sent = kill_one(bench, replicas)
            faults.append(readers.faults())
            seconds.append(back)
            fetched.append(sent)
        checks += [at_most(f"R={replicas}: errors, wrong bytes", "", [max(faults)], 0),
                   at_most(f"R={replicas}: until {BACK_AT_LEAST} of the throughput", "s", seconds,
                           BACK_WITHIN_S)]
        if replicas > 1:
            checks.append(at_most(f"R={replicas}: fetched from the store", "bytes", fetched,
                                  STORE_BYTES_OF_NAMES))
        else:
            bench.say(f"fetched from the store again: {fetched[-1] / MIB:.0f} MiB")
    return checks


@needs_hosts
def out_and_in(bench):
    """The fourth pulls its share from the others while all of it is read; then it leaves."""

    def act(cluster):
        time.sleep(BASELINE_S)
        fourth = cluster.start_worker(SHARED, extent_size=EXTENT)
        moved = settled(lambda: used_bytes(fourth))
        held = cluster.used_bytes() - moved
        fourth.drain()
        handed = cluster.used_bytes() - used_bytes(fourth) - held
        fourth.stop()
        time.sleep(BASELINE_S)
        return moved, handed

    faults, shares, returned, fetched = [], [], [], []
    for _ in range(bench.runs):
        readers, (moved, handed), sent = under_readers(bench, 3, 4, 1, act)
        faults.append(readers.faults())
        shares.append(moved / (SHARED_BYTES / 4))
        returned.append(handed / (SHARED_BYTES / 4))
        fetched.append(sent)
    return [at_most("errors, wrong bytes", "", [max(faults)], 0),
            at_most("3 -> 4: moved, to the ideal share", "", shares, MOVED_AT_MOST),
            at_most("4 -> 3: moved, to the ideal share", "", returned, MOVED_AT_MOST),
            at_most("fetched from the store", "bytes", fetched, STORE_BYTES_OF_NAMES)]


ROWS = [
    Row("warm 2 GiB file on the node of its worker", same_node),
    Row("remote sequential read, worker warm, client cold", remote_sequential),
    Row("remote random read, one thread", remote_random),
    Row("herd: 16 clients read the same cold 1 GiB, store held to 1 Gbit/s", herd),
    Row("kill -9 of one of three workers under 8 readers", worker_killed),
    Row("3 -> 4 -> 3 workers under 8 readers", out_and_in),
    Row("worker's memory under 256 connections of random reads", connections),
]
