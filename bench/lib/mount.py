"""A mount of the project for the length of a `with`."""

import json
import os
import pathlib
import shutil
import signal
import subprocess
import time

from lib import processes
from lib.programs import MILLRACE, CommandFailed, run

MOUNT_TIMEOUT_S = 60
END_TIMEOUT_S = 15
POLL_INTERVAL_S = 0.02


class Mount:
    """Mounts `source` at a new directory in `directory`, which is this process's own, with a cache of
    its own. The mountpoint is not deeper than need be: every step of a path costs a look-up, and
    native files are asked by a path of the same length (Bench.native). Its processes are `host`'s
    where one is given (test/support/hosts.py); its files are everybody's.

    `tiers` are "MEDIUM:QUOTA" or "MEDIUM:PATH:QUOTA"; without a path the cache goes below
    `directory` too. Mount and process are gone at the end, whatever happened, and so are tiers with
    a path of their own. What lies below `directory` stays for its owner to remove: ext4 searches
    long for an inode that was not freed in the last seconds, so a cache removed just before a run
    made its cold epoch three times slower.
    """

    _count = 0

    def __init__(self, directory, source, tiers=("ssd:8Gi",), options=(), environment=None,
                 host=None):
        Mount._count += 1
        self.root = pathlib.Path(directory) / f"cache-{Mount._count}"
        self.path = pathlib.Path(directory) / f"mnt-{Mount._count}"
        self.source = source
        self.seconds_until_ready = None
        self.tier_paths = []
        self._tiers = [self._placed(index, tier) for index, tier in enumerate(tiers)]
        self._options = list(options)
        self._environment = environment
        self._host = host
        self._pids = []

    def _placed(self, index, tier):
        medium, *path, quota = tier.split(":")
        place = pathlib.Path(path[0]) if path else self.root / f"tier-{index}"
        self.tier_paths.append(place)
        return f"{medium}:{place}:{quota}"

    def __enter__(self):
        for path in [self.path, self.root, *self.tier_paths]:
            path.mkdir(parents=True)
        tiers = [word for tier in self._tiers for word in ("--tier", tier)]
        start = time.monotonic()
        try:
            run([MILLRACE, "mount", *tiers, *self._options, self.source, self.path],
                self._environment, MOUNT_TIMEOUT_S, self._host)
        except BaseException:
            self._clean()
            raise
        self.seconds_until_ready = time.monotonic() - start
        self._pids = processes.serving(self.path)
        return self

    def __exit__(self, *_):
        self.unmount()

    @property
    def pids(self):
        if not self._pids:
            raise CommandFailed(f"no process of the mount at {self.path} was found")
        return self._pids

    def status(self):
        """What `millrace status --json` says of this mount."""
        report = json.loads(run([MILLRACE, "status", self.path, "--json"]))
        if isinstance(report, dict) and "mounts" in report:
            report = report["mounts"]
        return report[0] if isinstance(report, list) else report

    def data_file(self, size):
        """The cache's own file of an object that has `size` bytes."""
        for tier in self.tier_paths:
            for path in tier.rglob("complete/*"):
                if path.stat().st_size == size:
                    return path
        raise CommandFailed(f"the cache has no complete file of {size} bytes")

    def warm(self):
        """Loads everything into the cache."""
        run([MILLRACE, "warm", self.path])

    def unmount(self):
        """Idempotent. CommandFailed when the mount cannot be removed, by whatever means."""
        if not self.root.exists():
            return
        try:
            if is_mounted(self.path):
                run([MILLRACE, "umount", self.path], timeout=MOUNT_TIMEOUT_S)
        except CommandFailed:
            pass  # The hard way below.
        finally:
            self._clean()

    def _clean(self):
        """Leaves no mount, process or file, also when the daemon is dead or hangs."""
        detach(self.path)
        deadline = time.monotonic() + END_TIMEOUT_S
        pids = set(self._pids) | set(processes.serving(self.path))
        while any(processes.alive(pid) for pid in pids) and time.monotonic() < deadline:
            time.sleep(POLL_INTERVAL_S)
        for pid in filter(processes.alive, pids):
            os.kill(pid, signal.SIGKILL)
        for path in self.tier_paths:
            if self.root not in path.parents:
                shutil.rmtree(path, ignore_errors=True)


def is_mounted(path):
    """Whether something is mounted exactly there. From the kernel's list: a mount whose daemon died
    answers no stat."""
    wanted = os.path.realpath(os.path.dirname(path)) + "/" + os.path.basename(path)
    for line in pathlib.Path("/proc/self/mountinfo").read_text().splitlines():
        # Blanks and the like are written as octal escapes.
        mounted = line.split(" ")[4].encode().decode("unicode_escape")
        if mounted.encode("latin-1").decode(errors="surrogateescape") == wanted:
            return True
    return False


def detach(path):
    """Removes whatever is mounted at `path`, even if it is in use. CommandFailed if it stays: what
    lies beneath must then not be removed."""
    if not is_mounted(path):
        return
    for command in (["fusermount3", "-u", "-z", path], ["umount", "-l", path]):
        subprocess.run(command, capture_output=True)
        if not is_mounted(path):
            return
    raise CommandFailed(f"{path} cannot be unmounted")
