"""A store, workers and clients, each on a host of its own: what rows about workers get."""

import contextlib
import pathlib

from lib.limiter import Limiter
from lib.mount import Mount
from lib.programs import BUILD

import hosts
import s3_server
import workers

WORKER_TIER = "ssd:6Gi"


class Cluster:
    """For a `with`. The store is an S3 server over `buckets` (a directory of directories), behind a
    limiter that counts what leaves it and holds it to `rate`, if one is given.

    `directory` is where workers and mounts have theirs; it stays for its owner to remove."""

    _count = 0

    def __init__(self, directory, buckets, rate=None):
        Cluster._count += 1
        self.directory = pathlib.Path(directory) / f"cluster-{Cluster._count}"
        self._mounts = pathlib.Path(directory)  # Where leftovers are looked for.
        self._buckets = buckets
        self._rate = rate
        self._stack = contextlib.ExitStack()
        self.pool = []  # The hosts that the members' list names, whether a worker runs there or not.
        self.workers = []

    def __enter__(self):
        with contextlib.ExitStack() as stack:
            self._network = stack.enter_context(hosts.Network())
            host = self.host("store")
            self._server = s3_server.S3Server(self._buckets)
            host.inside(self._server.start)
            stack.callback(self._server.stop)
            self.directory.mkdir()
            self.store = stack.enter_context(
                Limiter(self.directory, self._server.endpoint, self._rate, host=host))
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *_):
        self._stack.close()

    def host(self, name):
        return self._network.host(name)

    def source(self, bucket):
        """The URL of a bucket, by way of what counts and limits."""
        return (f"s3://{bucket}?endpoint={self.store.endpoint}&region={self._server.region}"
                "&path-style=true")

    def environment(self):
        return self._server.environment()

    def plan(self, count):
        """Makes the hosts of that many workers: the list that everybody knows."""
        self.pool = [self.host(f"worker{i + 1}") for i in range(count)]

    def start_worker(self, bucket, tiers=(WORKER_TIER,), **options):
        """The next worker of the plan, serving. It ends with the cluster."""
        host = self.pool[len(self.workers)]
        worker = workers.Worker(BUILD / "bin", host, self.directory / host.name,
                                [self.source(bucket)], self.pool, tiers,
                                environment=self.environment(), **options)
        self._stack.callback(worker.stop)
        self.workers.append(worker)
        return worker.start()

    def start_workers(self, count, bucket, **options):
        """A pool of that many."""
        self.plan(count)
        return [self.start_worker(bucket, **options) for _ in range(count)]

    def client(self, bucket, host, options=(), tiers=()):
        """A mount on a host, by way of the pool where there is one. Without `tiers` it keeps nothing
        itself."""
        pool = workers.client_options(self.pool) if self.pool else []
        return Mount(self._mounts, self.source(bucket), tiers=tiers, options=[*pool, *options],
                     environment=self.environment(), host=host)

    def hits(self):
        """Bytes that the living workers gave, by where they had them."""
        return added(worker.hits() for worker in self.workers if worker.process.poll() is None)

    def used_bytes(self):
        """What the living workers hold."""
        return sum(used_bytes(worker) for worker in self.workers if worker.process.poll() is None)

    def store_bytes(self):
        """Bytes that left the store, once nothing moves any more."""
        return self.store.counters_when_quiet()["bytes_to_client"]


def used_bytes(worker):
    """What a worker holds in its tiers."""
    return sum(tier["used_bytes"] for tier in worker.report()["tiers"])


def read_by(mount):
    """Bytes that the readers of a mount got, by where they came from."""
    return added({read["tier"]: read["bytes"]} for read in mount.status()["reads"])


def added(counts):
    """The sum of dictionaries of numbers."""
    total = {}
    for count in counts:
        for name, value in count.items():
            total[name] = total.get(name, 0) + value
    return total
