"""The memory of the daemon when many read at once, and when a directory is huge."""

from lib import processes
from lib.programs import generate
from lib.results import Row, at_most
from rows.cold import drop_caches

MIB = 2**20
READERS_RSS_MIB_AT_MOST = 320
WIDE_RSS_MIB_AT_MOST = 200
WIDE_FIRST_ENTRY_SECONDS_AT_MOST = 2
OBJECTS = 64


def many_readers(bench):
    """64 threads that read 64 cold objects at random."""
    values = []
    for _ in range(bench.runs):
        drop_caches()
        with bench.mount_bucket("objects", options=["--memory-limit", "256Mi"]) as mount:
            processes.reset_peak_rss(mount.pids)
            generate("read", mount.path, "--pattern", "random", "--block", "128Ki", "--jobs",
                     OBJECTS, "--seconds", max(5, bench.seconds))
            values.append(processes.peak_rss_bytes(mount.pids) / MIB)
    bench.drop_bucket("objects")
    return [at_most("peak RSS, --memory-limit 256Mi", "MiB", values, READERS_RSS_MIB_AT_MOST)]


def wide_directory(bench):
    """200,000 objects in one directory, listed for the first time."""
    first, rss = [], []
    for _ in range(bench.runs):
        with bench.mount_bucket("wide") as mount:
            listed = generate("list", mount.path / "small" / "d000")
            first.append(listed["first_entry_seconds"])
            rss.append(processes.peak_rss_bytes(mount.pids) / MIB)
    bench.drop_bucket("wide")
    return [
        at_most("first entry of ls -f", "s", first, WIDE_FIRST_ENTRY_SECONDS_AT_MOST),
        at_most("peak RSS", "MiB", rss, WIDE_RSS_MIB_AT_MOST),
    ]


ROWS = [
    Row("64 threads, 64 cold objects at random", many_readers),
    Row("200,000 objects in one directory", wide_directory),
]
