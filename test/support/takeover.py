"""Ends the daemons and keepers of a mount under load, and tells what its readers noticed.

What the chaos test, the benchmark and the demo share. The load is `millrace bench soak`: processes
that read in every way a program can and compare every byte with a reference tree.

    with Soak(MILLRACE, mountpoint, reference) as soak:
        killed = [kill_daemon(mountpoint) for _ in range(3)]
        report = soak.stop()
    print(report.faults(), report.pauses_ms(killed))
"""

import json
import math
import os
import pathlib
import signal
import subprocess
import time

DAEMON = "millrace-fuse"
KEEPER = "millrace-keeper"
PATIENCE_S = 60  # A reader, a take-over, or an end that takes longer hangs.
POLL_INTERVAL_S = 0.005
# What happens later than this after a kill is not the kill's.
WINDOW_NS = 1_000_000_000
CGROUPS = pathlib.Path("/sys/fs/cgroup")


# --- The load -------------------------------------------------------------------------------------


class Report:
    """What the readers of one soak saw."""

    def __init__(self, text):
        lines = text.splitlines()
        self.json = json.loads(lines[-1]) if lines else {}
        self._slow = sorted(self.json.get("slow", ()), key=lambda slow: slow[0])

    def __getitem__(self, name):
        return self.json[name]

    def faults(self):
        """Everything that must not be, for people; empty when all was well."""
        if not self.json:
            return "the readers ended without a report"
        counts = {name: self.json[name] for name in ("errors", "wrong_bytes", "changed", "hung")}
        if not any(counts.values()):
            return ""
        return "\n".join([str(counts), *map(str, self.json["problems"][:20])])

    def pauses_ms(self, moments):
        """For each moment (time.monotonic_ns) the longest operation of any reader that was under
        way between it and the next, a second later at most. Operations too short for the report's
        list count as nothing."""
        moments = sorted(moments)
        pauses = []
        for moment, following in zip(moments, moments[1:] + [moments[-1] + WINDOW_NS]):
            end = min(following, moment + WINDOW_NS)
            longest = max((ended - began for began, ended, *_ in self._slow
                           if began < end and ended > moment), default=0)
            pauses.append(longest / 1e6)
        return pauses

    def slowest(self, moment):
        """The operations under way after a moment, the longest first: (ms, reader, call)."""
        return sorted(((ended - began) / 1e6, *what) for began, ended, *what in self._slow
                      if began < moment + WINDOW_NS and ended > moment)[::-1]


class Soak:
    """Readers of `directory` that compare with `reference`, for the length of a `with`."""

    def __init__(self, millrace, directory, reference, readers=8, kinds=None, seed=1, think=None):
        words = [millrace, "bench", "soak", "--json", "--against", reference, "--readers", readers,
                 "--seed", seed, "--for", "1h", "--patience", f"{PATIENCE_S}s", directory]
        if kinds:
            words += ["--kinds", ",".join(kinds)]
        if think:
            words += ["--think", think]
        self._words = [str(word) for word in words]
        self._process = None

    def __enter__(self):
        """Returns when every reader reads."""
        self._process = subprocess.Popen(self._words, stdin=subprocess.DEVNULL,
                                         stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
                                         text=True, errors="replace")
        if "ready" not in self._process.stdout.readline():
            self._process.wait()
            raise RuntimeError(f"the readers did not start: {' '.join(self._words)}")
        return self

    def __exit__(self, *_):
        self._process.kill()  # The readers die with it.
        self._process.wait()
        self._process.stdout.close()

    def stop(self):
        """Ends the readers; those that hang are reported as such."""
        self._process.send_signal(signal.SIGTERM)
        return Report(self._process.stdout.read())


def quantile(values, part):
    """The smallest of the values that at least `part` of them do not exceed."""
    return sorted(values)[max(0, math.ceil(part * len(values)) - 1)]


# --- Processes of a mount -------------------------------------------------------------------------


def pids(program, mountpoint):
    """The processes of that program that serve the mountpoint."""
    found = []
    for entry in pathlib.Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            words = (entry / "cmdline").read_bytes().split(b"\0")
        except OSError:
            continue  # It ended meanwhile.
        name = os.fsencode(str(mountpoint))
        if (os.path.basename(words[0]) == program.encode()
                and any(word == name or word.endswith(b"=" + name) for word in words)):
            found.append(int(entry.name))
    return found


def wait_for(condition, what, timeout=PATIENCE_S, interval=POLL_INTERVAL_S):
    """The first true value of `condition()`."""
    deadline = time.monotonic() + timeout
    while not (value := condition()):
        if time.monotonic() > deadline:
            raise AssertionError(f"not within {timeout} s: {what}")
        time.sleep(interval)  # tidy: allow-sleep This is how everybody else polls.
    return value


def start_time(pid):
    """In ticks since boot; 0 for a process that is gone."""
    try:
        return int(pathlib.Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19])
    except OSError:
        return 0


def daemon_pid(mountpoint):
    """The newest one: after an upgrade the old one may still be about to end."""
    found = wait_for(lambda: pids(DAEMON, mountpoint), f"a daemon of {mountpoint}")
    return max(found, key=start_time)


def keeper_pid(mountpoint):
    return wait_for(lambda: pids(KEEPER, mountpoint), f"a keeper of {mountpoint}")[0]


def send(number, pid):
    """Sends a signal and returns the moment before it; None when nobody is there any more."""
    moment = time.monotonic_ns()
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        return None
    return moment


def kill_daemon(mountpoint):
    """SIGKILL to the daemon of this moment; returns when that was, once the process is gone."""
    while True:
        pid = daemon_pid(mountpoint)
        moment = send(signal.SIGKILL, pid)
        if moment is not None:
            # Or a second kill would meet the same one.
            wait_for(lambda: gone(pid), f"the end of daemon {pid}")
            return moment


def kill_everything(mountpoint):
    """SIGKILL to the keeper, so that nobody starts another daemon, and then to the daemon."""
    for program in (KEEPER, DAEMON):
        for pid in pids(program, mountpoint):
            send(signal.SIGKILL, pid)


def answers(mountpoint):
    """Asks the daemon something that the kernel never knows by itself, and waits for the answer."""
    os.statvfs(mountpoint)


def gone(pid):
    """Whether the process has ended; a zombie has."""
    try:
        state = pathlib.Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return True
    return state in "ZX"


def wait_for_successor(mountpoint, old):
    """Waits until another daemon than `old` answers; returns its pid."""
    # Only looks at one process: a search among all of them would be a load of its own.
    wait_for(lambda: gone(old), f"the end of daemon {old}")
    answers(mountpoint)
    return daemon_pid(mountpoint)


def replace_daemon(mountpoint):
    """SIGKILL, and waits until the next one answers; returns when the signal was sent."""
    moment = kill_daemon(mountpoint)
    answers(mountpoint)
    return moment


def resident_bytes(pid):
    """Anonymous and shared memory in use, without pages of files."""
    for line in pathlib.Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) * 1024
    raise ProcessLookupError(f"process {pid} has no memory: a zombie")


def descriptors(pid):
    """How many descriptors a process has open."""
    return len(os.listdir(f"/proc/{pid}/fd"))


# --- Memory limits --------------------------------------------------------------------------------


def own_memory_cgroup():
    """(directory, version) of this process's memory cgroup; (None, why) where there is none."""
    for line in pathlib.Path("/proc/self/cgroup").read_text().splitlines():
        _, controllers, path = line.split(":", 2)
        if "memory" in controllers.split(","):
            directory = CGROUPS / "memory" / path.lstrip("/")
            # In a container the path may be the host's, and the mount what we see of it.
            return (directory if directory.is_dir() else CGROUPS / "memory"), 1
    if "memory" in _read(CGROUPS / "cgroup.subtree_control").split():
        return CGROUPS, 2
    return None, "no memory controller is delegated to this process"


def _read(path):
    try:
        return path.read_text()
    except OSError:
        return ""


class MemoryCgroup:
    """A cgroup of a limited size for the length of a `with`; `missing` says why there can be none.

    Its directory goes when the processes in it have ended."""

    LIMIT = {1: "memory.limit_in_bytes", 2: "memory.max"}

    def __init__(self, limit_bytes):
        self._limit = limit_bytes
        self._parent, self._version = own_memory_cgroup()
        self.directory = None

    @staticmethod
    def missing():
        parent, version = own_memory_cgroup()
        if parent is None:
            return version
        probe = parent / f"millrace-probe-{os.getpid()}"
        try:
            probe.mkdir()
        except OSError as error:
            return f"no cgroup can be made below {parent}: {error.strerror}"
        limit = probe / MemoryCgroup.LIMIT[version]
        why = None if limit.exists() else f"{limit} does not exist"
        probe.rmdir()
        return why

    def __enter__(self):
        self.directory = self._parent / f"millrace-test-{os.getpid()}"
        self.directory.mkdir()
        (self.directory / self.LIMIT[self._version]).write_text(str(self._limit))
        return self

    def add(self, pid):
        (self.directory / "cgroup.procs").write_text(str(pid))

    def __exit__(self, *_):
        def removed():
            try:
                self.directory.rmdir()
            except OSError:
                return False
            return True

        wait_for(removed, f"the end of what runs in {self.directory}")
