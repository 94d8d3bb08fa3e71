"""Daemons that are killed, upgraded, stopped and replaced while 8 processes read."""

import contextlib
import mmap
import os
import random
import signal
import statistics
import time

import takeover
from lib import machine
from lib.programs import MILLRACE, CommandFailed, run
from lib.results import Row, at_most, ratio

MIB = 2**20
DATA = "mixed"
PROFILES = ("small-files", "large-files")
# Less than the data: some files are always cold. In memory, or the disk's own pauses (a second and
# more on a shared machine) would hide those that are measured.
CACHE_QUOTA = "256Mi"
# Between two operations of a reader. Eight that never pause need four times the processors there
# are here, and wait for each other.
THINK = "1ms"
KILLS = 200
UPGRADES = 50
ADOPTIONS = 20
STOPS = 3
# After an answer. A keeper takes its time with a daemon that serves for less than half a second.
NEXT_AFTER_S = (0.55, 0.9)
PAUSE_P50_MS_AT_MOST = 60
PAUSE_P99_MS_AT_MOST = 150
UPGRADE_P99_MS_AT_MOST = 50
HANG_SECONDS_AT_MOST = 6  # The deadline of 5 s, and the take-over.
NATIVE_AT_LEAST = 0.9
LEAK_BYTES_AT_MOST = MIB
BLOCK = MIB


def count(bench, full, quick):
    """How often; a quick run shows that it works."""
    return full if bench.seconds > 1 else quick


@contextlib.contextmanager
def under_load(bench, profile):
    """Yields (mount, a function that ends the load and returns the report)."""
    machine.warm(bench.native(DATA))
    with bench.mount_native(DATA, tiers=[bench.memory_tier(CACHE_QUOTA)],
                            options=["--profile", profile, "--eviction=sieve",
                                     "--crash-limit=0"]) as mount, \
            takeover.Soak(MILLRACE, mount.path, bench.native(DATA), think=THINK) as soak:
        yield mount, soak.stop


def faults(reports):
    """Errors, wrong bytes, changed descriptors and hung readers: must be none."""
    for report in reports:
        if report.faults():
            raise CommandFailed(f"readers saw faults: {report.faults()}")
    return at_most("errors, wrong bytes, changed descriptors", "", [0], 0)


def pause_between(dice):
    time.sleep(dice.uniform(*NEXT_AFTER_S))


def kills(bench):
    dice = random.Random(1)
    reports, pauses = [], []
    for profile in PROFILES:
        with under_load(bench, profile) as (mount, stop):
            quiet, moments = [], []
            for _ in range(10):
                quiet.append(time.monotonic_ns())
                pause_between(dice)
            for _ in range(count(bench, KILLS, 20) // len(PROFILES)):
                moments.append(takeover.replace_daemon(mount.path))
                pause_between(dice)
            report = stop()
        reports.append(report)
        pauses += report.pauses_ms(moments)
        bench.say(f"{profile}: longest operation after a kill {describe(report.pauses_ms(moments))}"
                  f"; without a kill {describe(report.pauses_ms(quiet))}")
    return [faults(reports),
            at_most("longest pause of a kill, p50", "ms", [takeover.quantile(pauses, 0.5)],
                    PAUSE_P50_MS_AT_MOST),
            at_most("longest pause of a kill, p99", "ms", [takeover.quantile(pauses, 0.99)],
                    PAUSE_P99_MS_AT_MOST)]


def describe(pauses):
    return (f"p50 {takeover.quantile(pauses, 0.5):.0f} ms, p99 "
            f"{takeover.quantile(pauses, 0.99):.0f} ms, max {max(pauses):.0f} ms")


def upgrades(bench):
    dice = random.Random(2)
    reports, pauses = [], []
    for profile in PROFILES:
        with under_load(bench, profile) as (mount, stop):
            moments = []
            for _ in range(count(bench, UPGRADES, 6) // len(PROFILES)):
                moments.append(time.monotonic_ns())
                run([MILLRACE, "upgrade", mount.path])
                pause_between(dice)
            report = stop()
        reports.append(report)
        pauses += report.pauses_ms(moments)
        bench.say(f"{profile}: {describe(report.pauses_ms(moments))}")
    return [faults(reports),
            at_most("longest pause of an upgrade, p99", "ms", [takeover.quantile(pauses, 0.99)],
                    UPGRADE_P99_MS_AT_MOST)]


def throughput(fd, size, direct):
    """MiB/s of one sequential pass."""
    with mmap.mmap(-1, BLOCK) as buffer:
        start = time.monotonic()
        for offset in range(0, size - size % BLOCK, BLOCK):
            if os.preadv(fd, [buffer], offset) != BLOCK:
                raise CommandFailed(f"a short read at {offset}")
        return size / MIB / (time.monotonic() - start)


def while_dead(bench):
    """Descriptors that were opened while the daemon lived, read while it is dead and stays so."""
    native = bench.native(DATA) / "big.bin"
    checks = []
    with bench.mount_native(DATA, options=["--profile", "large-files"]) as mount, \
            contextlib.ExitStack() as stack:
        mount.warm()
        size = native.stat().st_size
        opened = {}
        for direct in (False, True):
            for path in (native, mount.path / "big.bin"):
                fd = os.open(path, os.O_RDONLY | (os.O_DIRECT if direct else 0))
                stack.callback(os.close, fd)
                opened[direct, path] = fd
        keeper = takeover.keeper_pid(mount.path)
        daemon = takeover.daemon_pid(mount.path)
        os.kill(keeper, signal.SIGSTOP)  # It starts no other one.
        stack.callback(os.kill, keeper, signal.SIGCONT)
        takeover.kill_daemon(mount.path)
        takeover.wait_for(lambda: takeover.gone(daemon), "the end of the daemon")
        for direct, label in ((False, "in page cache"), (True, "direct")):
            values = {native: [], mount.path / "big.bin": []}
            for _ in range(bench.runs + 1):
                for path, found in values.items():
                    found.append(throughput(opened[direct, path], size, direct))
            reference, measured = (found[1:] for found in values.values())  # The first one fills.
            checks.append(ratio(f"sequential 1 MiB, {label}", "MiB/s", measured, reference,
                                NATIVE_AT_LEAST))
    return checks


def adoptions(bench):
    """The keeper is killed, a new one adopts the daemon, and then that is killed."""
    dice = random.Random(3)
    with under_load(bench, "large-files") as (mount, stop):
        for _ in range(count(bench, ADOPTIONS, 3)):
            keeper = takeover.keeper_pid(mount.path)
            takeover.send(signal.SIGKILL, keeper)
            takeover.wait_for(lambda: takeover.gone(keeper), "the end of the keeper")
            run([MILLRACE, "upgrade", mount.path])
            takeover.replace_daemon(mount.path)
            pause_between(dice)
        report = stop()
    return [faults([report])]


def stops(bench):
    seconds = []
    with under_load(bench, "large-files") as (mount, stop):
        for _ in range(count(bench, STOPS, 1)):
            old = takeover.daemon_pid(mount.path)
            start = time.monotonic()
            os.kill(old, signal.SIGSTOP)
            takeover.wait_for_successor(mount.path, old)
            seconds.append(time.monotonic() - start)
        report = stop()
    return [faults([report]),
            at_most("from SIGSTOP to the next answer", "s", [max(seconds)], HANG_SECONDS_AT_MOST)]


def leak(bench):
    """Take-overs one after the other; what keeper and daemon hold at the beginning and the end."""
    rounds = count(bench, bench.takeovers, 20)
    seen = {"keeper": [], "daemon": []}
    with bench.mount_native(DATA, options=["--profile", "large-files", "--crash-limit=0"]) as mount:
        mount.warm()
        with open(mount.path / "big.bin", "rb"):
            for _ in range(rounds):
                takeover.replace_daemon(mount.path)
                os.listdir(mount.path)
                time.sleep(NEXT_AFTER_S[0])
                for who, pid in (("keeper", takeover.keeper_pid(mount.path)),
                                 ("daemon", takeover.daemon_pid(mount.path))):
                    seen[who].append((takeover.resident_bytes(pid), takeover.descriptors(pid)))
    checks = []
    for who, values in seen.items():
        part = max(1, rounds // 10)
        # The first take-overs warm things up that are then kept.
        first, last = values[part:2 * part], values[-part:]
        grown = [statistics.median(value[i] for value in last) -
                 statistics.median(value[i] for value in first) for i in (0, 1)]
        bench.say(f"{who}: {values[-1][0] / MIB:.1f} MiB, {values[-1][1]} descriptors")
        checks.append(at_most(f"{who}: RSS grown in {rounds} take-overs", "bytes", [grown[0]],
                              LEAK_BYTES_AT_MOST))
        checks.append(at_most(f"{who}: descriptors grown", "", [grown[1]], 0))
    return checks


ROWS = [
    Row("kills of the daemon while 8 processes read", kills),
    Row("upgrades while 8 processes read", upgrades),
    Row("open passthrough file while the daemon is dead", while_dead),
    Row("keeper killed, adopted, daemon killed", adoptions),
    Row("daemon stopped (SIGSTOP)", stops),
    Row("leak", leak),
]
