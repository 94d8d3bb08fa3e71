"""A complete large file in the cache, beside an ordinary file on the cache's own disk.

The native side reads the cache's data file itself. Two copies of a file are not equally fast,
whoever reads them: they lie in different places of a disk, and in page cache in pieces of different
size (a quarter of the speed of random 4 KiB reads). Dropped and read in again, one of two copies
still had two thirds of the other's speed for a whole run: on a virtual machine probably because of
the memory that the host gave for it.

Only one thing about the data file is not ordinary: it has no access times (cache/tier). Natively it
is read with them.
"""

from lib import machine, processes
from lib.bench import BIG_BYTES, GIB, LARGE
from lib.programs import fio, generate
from lib.results import Row, at_most, ratio, skip

PAGE_CACHE_WARM_AT_LEAST = 0.95
PAGE_CACHE_DROPPED_AT_LEAST = 0.90
DAEMON_CPU_SECONDS_PER_GIB_AT_MOST = 0.01
SEQUENTIAL = "sequential-1m"
# Several short pairs instead of one long one: the speed of a shared machine changes from second to
# second, and a pair is only worth what both its halves have in common. A disk changes more.
PAIRS_PER_RUN = 2
DISK_PAIRS_PER_RUN = 4
PAIRS_PER_SECOND = 4
JOBS = [(SEQUENTIAL, "mib_per_second", "MiB/s"), ("random-4k", "iops", "IOPS"),
        ("random-128k", "iops", "IOPS")]


def combinations(jobs=None, thread_counts=(1, 2)):
    for job, figure, unit in jobs or JOBS:
        for direct in (False, True):
            for threads in thread_counts:
                kind = "direct" if direct else "buffered"
                yield f"{job} {kind} {threads} job{'s' * (threads > 1)}", job, figure, unit, \
                    direct, threads


def compare(bench, prepare, timed, at_least):
    """All combinations of fio's jobs, native and mounted by turns, each after `prepare()`."""
    with bench.mount_native(LARGE) as mount:
        mount.warm()
        return compare_files(bench, mount.path / "big.bin", mount.data_file(BIG_BYTES), prepare,
                             timed, at_least)


def compare_files(bench, mounted, native, prepare, timed, at_least, chosen=None):
    """The same for two files with the same bytes, of which `native` is the cache's own."""
    checks = []
    machine.warm(native)
    for label, job, figure, unit, direct, threads in chosen or combinations():
        # Sequentially, a dropped file is read once: a second pass would find it cached.
        once = job == SEQUENTIAL and not timed
        seconds = 60 if once else bench.seconds / PAIRS_PER_SECOND

        def measure(path):
            machine.set_access_times(native, path == native)
            prepare()
            return [fio(job, path, direct, threads, seconds, timed=not once)[figure]]

        pairs = DISK_PAIRS_PER_RUN if direct and not once else PAIRS_PER_RUN
        of_mount, of_native = bench.by_turns(mounted, native, measure, pairs)
        checks.append(ratio(label, unit, of_mount, of_native, at_least))
        bench.say(f"{label}: {checks[-1].ratio:.2f}")
    return checks


def page_cache_warm(bench):
    return compare(bench, lambda: None, True, PAGE_CACHE_WARM_AT_LEAST)


def page_cache_dropped(bench):
    if not machine.can_drop_caches():
        return [skip("all", "dropping the page cache needs root")]
    return compare(bench, machine.drop_caches, False, PAGE_CACHE_DROPPED_AT_LEAST)


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
