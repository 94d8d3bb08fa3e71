"""Epochs over 10,000 small files that are in the cache, beside the same files on disk."""

import statistics

from lib import machine
from lib.bench import MANY
from lib.programs import CommandFailed, generate
from lib.results import Row, ratio

HOT_AT_LEAST = 0.90
DROPPED_AT_LEAST = 0.20
STAT_AT_LEAST = 0.90
EPOCHS = 3
# Of one call of the generator; the first finds what the pass before it left and is not counted.
STAT_PASSES = 9
STAT_PAIRS_PER_RUN = 3
DROPPED_PAIRS_PER_RUN = 2
DROPPED_THREADS = 8


def epochs(directory, threads, count=EPOCHS):
    """files/s of each epoch; a file that could not be read is an error, not a slow file."""
    report = generate("epoch", directory, "--threads", threads, "--epochs", count)
    return [epoch["files_per_second"] for epoch in report["epochs"]]


def hot(bench):
    """As a user sees later epochs: nothing is dropped, both sides have been read twice."""
    native = bench.native(MANY)
    checks = []
    with bench.mount_native(MANY) as mount:
        mount.warm()
        for directory in (native, mount.path):
            epochs(directory, 2, 2)
        for threads in (2, 8):
            of_mount, of_native = bench.by_turns(
                mount.path, native, lambda directory: epochs(directory, threads))
            checks.append(ratio(f"{threads} threads", "files/s", of_mount, of_native,
                                HOT_AT_LEAST))
    return checks


def drop_pages_of_mount(mount):
    """The mount's own pages go; the cache files beneath it are in page cache, or are read into it."""
    dropped = generate("drop", mount.path)
    if dropped["counted"] and dropped["cached_pages_after"] > 0:
        raise CommandFailed(f"{dropped['cached_pages_after']} pages of the mount stayed in page "
                            f"cache: this epoch would measure nothing")
    for tier in mount.tier_paths:
        machine.warm(tier)


def mount_dropped(bench):
    native = bench.native(MANY)
    with bench.mount_native(MANY) as mount:
        mount.warm()
        epochs(native, DROPPED_THREADS, 1)

        def measure(directory):
            if directory == mount.path:
                drop_pages_of_mount(mount)
            return epochs(directory, DROPPED_THREADS, 1)

        of_mount, of_native = bench.by_turns(mount.path, native, measure, DROPPED_PAIRS_PER_RUN)
    return [ratio(f"{DROPPED_THREADS} threads", "files/s", of_mount, of_native, DROPPED_AT_LEAST)]


def later_passes(directory):
    """stat/s of the passes after the first: their median, as one takes a few milliseconds."""
    passes = generate("stat", directory, "--passes", STAT_PASSES)["passes"]
    return statistics.median(one["stats_per_second"] for one in passes[1:])


def stat(bench):
    native = bench.native(MANY)
    checks = []
    with bench.mount_native(MANY) as mount:
        for label, before in (("second pass", lambda _: None),
                              ("second pass after an epoch", lambda path: epochs(path, 2, 1))):

            def measure(directory):
                before(directory)
                return [later_passes(directory)]

            of_mount, of_native = bench.by_turns(mount.path, native, measure, STAT_PAIRS_PER_RUN)
            checks.append(ratio(label, "stat/s", of_mount, of_native, STAT_AT_LEAST))
    return checks


ROWS = [
    Row("10,000 small files, later epochs", hot),
    Row("10,000 small files, mount's page cache dropped", mount_dropped),
    Row("stat of 10,000 files", stat),
]
