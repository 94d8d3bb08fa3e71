"""A complete large file in the cache, beside the same file on the cache's own disk."""

from lib import machine, processes
from lib.bench import BIG_BYTES, GIB, LARGE
from lib.programs import fio, generate
from lib.results import Row, at_most, ratio, skip

PAGE_CACHE_WARM_AT_LEAST = 0.95
PAGE_CACHE_DROPPED_AT_LEAST = 0.90
DAEMON_CPU_SECONDS_PER_GIB_AT_MOST = 0.01
SEQUENTIAL = "sequential-1m"
JOBS = [(SEQUENTIAL, "mib_per_second", "MiB/s"), ("random-4k", "iops", "IOPS"),
        ("random-128k", "iops", "IOPS")]


def combinations():
    for job, figure, unit in JOBS:
        for direct in (False, True):
            for threads in (1, 2):
                kind = "direct" if direct else "buffered"
                yield f"{job} {kind} {threads} job{'s' * (threads > 1)}", job, figure, unit, \
                    direct, threads


def compare(bench, prepare, timed, at_least):
    """All combinations of fio's jobs, native and mounted by turns after `prepare(path)`."""
    native = bench.native(LARGE) / "big.bin"
    checks = []
    with bench.mount_native(LARGE) as mount:
        mount.warm()
        mounted = mount.path / "big.bin"
        for label, job, figure, unit, direct, threads in combinations():
            values = {native: [], mounted: []}
            for _ in range(bench.runs):
                for path in (native, mounted):
                    prepare(path)
                    # Sequentially, a dropped file is read once: a second pass would find it cached.
                    once = job == SEQUENTIAL and not timed
                    result = fio(job, path, direct, threads, 60 if once else bench.seconds,
                                 timed=not once)
                    values[path].append(result[figure])
            checks.append(ratio(label, unit, values[mounted], values[native], at_least))
            bench.say(f"{label}: {checks[-1].ratio:.2f}")
    return checks


def page_cache_warm(bench):
    return compare(bench, machine.warm, True, PAGE_CACHE_WARM_AT_LEAST)


def page_cache_dropped(bench):
    if not machine.can_drop_caches():
        return [skip("all", "dropping the page cache needs root")]
    return compare(bench, lambda path: machine.drop_caches(), False, PAGE_CACHE_DROPPED_AT_LEAST)


def daemon_cpu(bench):
    """Two passes per run, so that one tick of the CPU clock stays below the limit."""
    values = []
    with bench.mount_native(LARGE) as mount:
        mount.warm()
        for _ in range(bench.runs):
            if machine.can_drop_caches():
                machine.drop_caches()
            before = processes.cpu_seconds(mount.pids)
            for _ in range(2):
                generate("read", mount.path / "big.bin")
            used = processes.cpu_seconds(mount.pids) - before
            values.append(used / (2 * BIG_BYTES / GIB))
    return [at_most("daemon CPU per GiB", "s", values, DAEMON_CPU_SECONDS_PER_GIB_AT_MOST)]


ROWS = [
    Row("warm 2 GiB file, page cache warm", page_cache_warm),
    Row("warm 2 GiB file, page cache dropped", page_cache_dropped),
    Row("warm 2 GiB file, daemon CPU", daemon_cpu),
]
