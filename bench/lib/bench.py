"""What a row gets: data on disk and in an S3 server, mounts, limiters, and how often to repeat.

Everything is made when a row first asks for it. Native data is kept below build/bench/data from run
to run; the rest is gone when the benchmark ends. The S3 server keeps its objects on tmpfs, so that
no disk is shared with the caches and drop_caches does not touch them.
"""

import contextlib
import json
import os
import pathlib
import shutil

from lib import machine
from lib.cluster import Cluster
from lib.limiter import Limiter
from lib.mount import Mount, detach
from lib.programs import BUILD, STORE_LIMIT, generate, run  # Puts test/support on the path.

import s3_server

WORK = BUILD / "bench"
SHARED_MEMORY = pathlib.Path("/dev/shm")
GIB = machine.GIB

# Data sets by name: the arguments of `millrace bench make`, and their size.
MANY = "many"  # 10,000 small files below small/
LARGE = "large"  # big.bin
SHARED = "shared"  # big.bin, half as large
DATA_SETS = {
    MANY: (["--files", "10000", "--big", "0"], 1.2 * GIB),
    LARGE: (["--files", "0", "--big", "2Gi"], 2.0 * GIB),
    SHARED: (["--files", "0", "--big", "1Gi"], 1.0 * GIB),
    "objects": (["--files", "64", "--size-min", "32Mi", "--size-max", "32Mi", "--directories", "1",
                 "--big", "0"], 2.0 * GIB),
    "mixed": (["--files", "2000", "--size-min", "4Ki", "--size-max", "200Ki", "--directories", "20",
               "--big", "256Mi"], 0.5 * GIB),
    "wide": (["--files", "200000", "--size-min", "1", "--size-max", "1", "--directories", "1",
              "--big", "0"], 1.0 * GIB),
}
BIG_BYTES = 2 * GIB
SMALL_FILES = 10_000
TIER_TMPFS = "6g"
LIMITED = {"rate": "200Mi", "delay": "10ms"}


class Bench:
    """A context manager: one per run of the benchmark."""

    def __init__(self, runs, seconds, takeovers, say):
        self.runs = runs
        self.seconds = seconds  # Of one timed measurement.
        self.takeovers = takeovers  # In the search for leaks.
        self.say = say
        self._stack = contextlib.ExitStack()
        self._scratch = WORK / f"run-{os.getpid()}"
        self._memory = SHARED_MEMORY / f"millrace-bench-{os.getpid()}"
        self._s3 = None

    def __enter__(self):
        WORK.mkdir(parents=True, exist_ok=True)
        remove_leftovers()
        self._scratch.mkdir()
        self._stack.callback(shutil.rmtree, self._scratch, ignore_errors=True)
        self._stack.callback(shutil.rmtree, self._memory, ignore_errors=True)
        return self

    def __exit__(self, *_):
        self._stack.close()

    def by_turns(self, first, second, measure, rounds_per_run=1):
        """The lists of values of the two sides, a pair beside the other in time. `measure(side)`
        returns a list. The order of each pair is the other way round than the one before: who comes
        first pays for what the machine did before."""
        values = {first: [], second: []}
        for turn in range(self.runs * rounds_per_run):
            for side in (first, second) if turn % 2 == 0 else (second, first):
                values[side] += measure(side)
        return values[first], values[second]

    # --- Data -------------------------------------------------------------------------------------

    def native(self, name):
        """The directory of a data set on the disk of the build."""
        arguments, size = DATA_SETS[name]
        directory = WORK / "data" / name
        complete = WORK / "data" / f"{name}.json"
        if not complete.exists() or json.loads(complete.read_text()) != arguments:
            machine.require_space(WORK, size + GIB)
            self.say(f"making data set {name} ({size / GIB:.1f} GiB) below {directory}")
            shutil.rmtree(directory, ignore_errors=True)
            directory.mkdir(parents=True)
            generate("make", directory, *arguments)
            complete.write_text(json.dumps(arguments))
        return directory

    def bucket(self, name):
        """The directory behind a bucket that holds a data set."""
        arguments, size = DATA_SETS[name]
        server = self.s3()
        directory = server.directory / name
        if not directory.exists():
            machine.require_space(SHARED_MEMORY, size + GIB)
            self.say(f"making bucket {name} ({size / GIB:.1f} GiB) on tmpfs")
            directory.mkdir()
            generate("make", directory, *arguments)
            for path in sorted(directory.rglob("*.bin")):
                s3_server.set_etag(path)
        return directory

    def drop_bucket(self, name):
        """Makes room on tmpfs when a bucket will not be needed again."""
        shutil.rmtree(self.s3().directory / name, ignore_errors=True)

    def s3(self):
        if self._s3 is None:
            machine.require_space(SHARED_MEMORY, 6 * GIB)
            self._memory.mkdir(exist_ok=True)
            self._s3 = self._stack.enter_context(s3_server.S3Server(self._memory / "s3"))
        return self._s3

    # --- Tools ------------------------------------------------------------------------------------

    def cluster(self, rate=None):
        """Hosts around a store with the buckets made so far; where hosts.missing() is None."""
        return Cluster(self._scratch, self.s3().directory, rate)

    def limiter(self, rate=None, delay=None):
        return Limiter(self._scratch, self.s3().endpoint, rate, delay)

    def mount_native(self, name, **options):
        """A mount of a data set on disk, cached on the same disk."""
        source = f"file://{self.native(name)}"
        machine.require_space(WORK, DATA_SETS[name][1] + GIB)
        return Mount(self._scratch, source, **options)

    def mount_bucket(self, name, endpoint=None, **options):
        """A mount of a bucket, by way of `endpoint` (a limiter's) or directly."""
        self.bucket(name)
        source = (f"s3://{name}?endpoint={endpoint or self.s3().endpoint}"
                  f"&region={self.s3().region}&path-style=true")
        return Mount(self._scratch, source, environment=self.s3().environment(), **options)

    def memory_directory(self):
        """A tmpfs with huge pages where we may mount it, else the machine's."""
        directory = self._scratch / "memory"
        if not directory.exists():
            directory.mkdir()
            if machine.mount_tmpfs(directory, TIER_TMPFS):
                self._stack.callback(detach, directory)
            else:
                self.say("no tmpfs with huge pages (needs root): memory is that of /dev/shm")
        if directory.is_mount():
            return directory
        self._memory.mkdir(exist_ok=True)
        return self._memory

    def memory_tier(self, quota):
        """A tier on tmpfs; Mount removes it."""
        return f"mem:{self.memory_directory() / 'tier'}:{quota}"

    def store_limit(self, name, *arguments, endpoint=None):
        """The fastest parallel GET of the same objects, by the same way."""
        self.bucket(name)
        return json.loads(run(
            [STORE_LIMIT, "--endpoint", endpoint or self.s3().endpoint, "--bucket", name,
             "--region", self.s3().region, *arguments, "--json"], self.s3().environment()))

    def limit_of_large(self, endpoint=None):
        return self.store_limit(LARGE, "--key", "big.bin", "--size", BIG_BYTES, endpoint=endpoint)

    def limit_of_many(self, endpoint=None):
        return self.store_limit(MANY, "--walk", self.bucket(MANY), endpoint=endpoint)


def remove_leftovers():
    """What a run that was killed left behind: its mounts, then its directories."""
    for pattern, parent in (("run-*", WORK), ("millrace-bench-*", SHARED_MEMORY)):
        for directory in parent.glob(pattern):
            pid = directory.name.rsplit("-", 1)[1]
            if not pid.isdigit() or pathlib.Path(f"/proc/{pid}").exists():
                continue
            for mountpoint in directory.glob("mnt-*"):
                detach(mountpoint)
            detach(directory / "memory")
            shutil.rmtree(directory, ignore_errors=True)
