"""Epochs over 10,000 small files that are in the cache, beside the same files on disk."""

from lib import machine
from lib.bench import MANY
from lib.programs import CommandFailed, generate
from lib.results import Row, ratio

HOT_AT_LEAST = 0.90
DROPPED_AT_LEAST = 0.20
STAT_AT_LEAST = 0.90
EPOCHS = 3
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
            values = {native: [], mount.path: []}
            for _ in range(bench.runs):
                for directory, found in values.items():
                    found += epochs(directory, threads)
            checks.append(ratio(f"{threads} threads", "files/s", values[mount.path],
                                values[native], HOT_AT_LEAST))
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
    values, reference = [], []
    with bench.mount_native(MANY) as mount:
        mount.warm()
        epochs(native, DROPPED_THREADS, 1)
        for _ in range(bench.runs):
            reference += epochs(native, DROPPED_THREADS, 1)
            drop_pages_of_mount(mount)
            values += epochs(mount.path, DROPPED_THREADS, 1)
    return [ratio(f"{DROPPED_THREADS} threads", "files/s", values, reference, DROPPED_AT_LEAST)]


def second_pass(directory):
    """The second pass of stat, 10,000 of them: a few milliseconds, so the best of three."""
    return max(generate("stat", directory, "--passes", 2)["passes"][1]["stats_per_second"]
               for _ in range(3))


def stat(bench):
    native = bench.native(MANY)
    checks = []
    with bench.mount_native(MANY) as mount:
        for label, before in (("second pass", lambda _: None),
                              ("second pass after an epoch", lambda path: epochs(path, 2, 1))):
            values = {native: [], mount.path: []}
            for _ in range(bench.runs):
                for directory, found in values.items():
                    before(directory)
                    found.append(second_pass(directory))
            checks.append(ratio(label, "stat/s", values[mount.path], values[native],
                                STAT_AT_LEAST))
    return checks


ROWS = [
    Row("10,000 small files, later epochs", hot),
    Row("10,000 small files, mount's page cache dropped", mount_dropped),
    Row("stat of 10,000 files", stat),
]
