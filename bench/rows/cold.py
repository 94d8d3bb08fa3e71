"""First reads of what is in an S3 server, beside the fastest parallel GET of the same objects."""

import contextlib

from lib import machine, processes
from lib.bench import BIG_BYTES, GIB, LARGE, LIMITED, MANY, SHARED_MEMORY, SMALL_FILES
from lib.programs import CommandFailed, generate
from lib.results import Row, at_most, ratio

LIMITED_LARGE_AT_LEAST = 0.97
LIMITED_MANY_AT_LEAST = 0.95
UNLIMITED_LARGE_AT_LEAST = 0.50
UNLIMITED_MANY_AT_LEAST = 0.60
CPU_SECONDS_PER_GIB_AT_MOST = 1.3
CPU_SECONDS_PER_1000_FILES_AT_MOST = 0.7
THREADS = 8


# Memory that a cold read fills: the cache and what the kernel keeps of the mount.
FRESH_BYTES = 3 * GIB


def drop_caches():
    if machine.can_drop_caches():
        machine.drop_caches()


def read_large(mount):
    """MiB/s of one sequential pass over the large object, and the client's CPU seconds."""
    before = processes.cpu_seconds(mount.pids)
    report = generate("read", mount.path / "big.bin")
    if report["bytes"] != BIG_BYTES:
        raise CommandFailed(f"read {report['bytes']} bytes of {BIG_BYTES}")
    return report["mib_per_second"], processes.cpu_seconds(mount.pids) - before


def read_many(mount):
    """files/s of one epoch, and the client's CPU seconds."""
    before = processes.cpu_seconds(mount.pids)
    epoch = generate("epoch", mount.path, "--threads", THREADS)["epochs"][0]
    if epoch["files"] != SMALL_FILES:
        raise CommandFailed(f"the mount shows {epoch['files']} files of {SMALL_FILES}")
    return epoch["files_per_second"], processes.cpu_seconds(mount.pids) - before


def cold_runs(bench, name, read, limit, limited, tier):
    """Speeds and CPU seconds of cold reads, and the limits, by turns. Every run has a fresh mount
    with an empty cache."""
    speeds, cpu, limits = [], [], []
    bench.bucket(name)
    with contextlib.ExitStack() as stack:
        endpoint = None
        if limited:
            endpoint = stack.enter_context(bench.limiter(**LIMITED)).endpoint
        for _ in range(bench.runs):
            limits.append(limit(endpoint=endpoint))
            drop_caches()
            # Pages of the size that the run will use.
            in_memory = tier.startswith("mem:")
            machine.back_memory(bench.memory_directory() if in_memory else SHARED_MEMORY,
                                FRESH_BYTES)
            with bench.mount_bucket(name, endpoint, tiers=[tier]) as mount:
                speed, seconds = read(mount)
            speeds.append(speed)
            cpu.append(seconds)
            bench.say(f"{name}: {speed:.0f} per second")
    return speeds, cpu, limits


def limited_large(bench):
    speeds, _, limits = cold_runs(bench, LARGE, read_large, bench.limit_of_large, True, "ssd:8Gi")
    return [ratio("sequential, of 8 connections", "MiB/s", speeds,
                  [limit["mib_per_second"] for limit in limits], LIMITED_LARGE_AT_LEAST)]


def limited_many(bench):
    speeds, _, limits = cold_runs(bench, MANY, read_many, bench.limit_of_many, True, "ssd:8Gi")
    return [ratio("epoch, 8 threads, of 8 connections", "files/s", speeds,
                  [limit["requests_per_second"] for limit in limits], LIMITED_MANY_AT_LEAST)]


def unlimited_large(bench):
    speeds, cpu, limits = cold_runs(bench, LARGE, read_large, bench.limit_of_large, False,
                                    bench.memory_tier("4Gi"))
    return [
        ratio("sequential, of 8 connections", "MiB/s", speeds,
              [limit["mib_per_second"] for limit in limits], UNLIMITED_LARGE_AT_LEAST),
        at_most("client CPU per GiB", "s", [seconds / (BIG_BYTES / GIB) for seconds in cpu],
                CPU_SECONDS_PER_GIB_AT_MOST),
    ]


def unlimited_many(bench):
    speeds, cpu, limits = cold_runs(bench, MANY, read_many, bench.limit_of_many, False, "ssd:8Gi")
    return [
        ratio("epoch, 8 threads, of 8 connections", "files/s", speeds,
              [limit["requests_per_second"] for limit in limits], UNLIMITED_MANY_AT_LEAST),
        at_most("client CPU per 1,000 files", "s",
                [seconds / (SMALL_FILES / 1000) for seconds in cpu],
                CPU_SECONDS_PER_1000_FILES_AT_MOST),
    ]


def second_pass(bench):
    """What the store is asked again after one cold pass, all page caches dropped in between."""
    checks = []
    with bench.limiter() as counter:
        for name, read in ((LARGE, read_large), (MANY, read_many)):
            values = []
            for _ in range(bench.runs):
                with bench.mount_bucket(name, counter.endpoint) as mount:
                    read(mount)
                    before = counter.counters_when_quiet()
                    generate("drop", mount.path)
                    drop_caches()
                    read(mount)
                    after = counter.counters_when_quiet()
                values.append(after["bytes_to_client"] - before["bytes_to_client"])
            checks.append(at_most(f"{name}: fetched again", "bytes", values, 0))
    return checks


ROWS = [
    Row("cold 2 GiB object, store held to 200 MiB/s and 10 ms", limited_large),
    Row("cold small-file epoch, store held to 200 MiB/s and 10 ms", limited_many),
    Row("cold 2 GiB object, unlimited, MEM tier", unlimited_large),
    Row("cold small-file epoch, unlimited", unlimited_many),
    Row("second pass after a cold one", second_pass),
]
