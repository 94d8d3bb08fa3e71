#!/usr/bin/env python3
"""The daemon dies, hangs and is replaced under load, and no reader notices more than a pause.

The load is `millrace bench soak`: 8 processes that read buffered, with O_DIRECT, mapped, through
one descriptor held all the time, and walk and stat; they compare every byte, name, size and inode
number with the source. Short by default; MILLRACE_CHAOS=full takes the numbers of the benchmark.

A failure prints the seed; MILLRACE_CHAOS_SEED repeats it, and a seed that failed joins SEEDS.
"""

import mmap
import os
import random
import signal
import statistics
import subprocess
import time
import unittest

import support
import takeover
from support import MIB, errno_of

FULL = os.environ.get("MILLRACE_CHAOS") == "full"
SEEDS = [1, 2, 3]
KILLS = 50 if FULL else 5  # For each seed.
UPGRADES = 50 if FULL else 4
ADOPTIONS = 20 if FULL else 2
TAKEOVERS_OF_LEAK = 1000 if FULL else 50
KILL_AFTER_S_MAX = 0.6  # After the first answer of a daemon.
WITHOUT_WALK = ("buffered", "direct", "mapped", "held", "fresh")
# Kills as fast as a test can are no crash loop, unless the test is about that.
NO_CRASH_LOOP = "--crash-limit=0"


def seeds():
    """The fixed ones and one nobody has tried, or the one asked for."""
    given = os.environ.get("MILLRACE_CHAOS_SEED")
    return [int(given)] if given else [*SEEDS, time.time_ns() % 1_000_000]


def pause(seconds):
    time.sleep(seconds)  # tidy: allow-sleep The random moment that the test is about.


def sizes(dice):
    """A tree with what matters: small files, empty ones, large ones, a directory of many names."""
    found = {f"small/{i % 6}/{i:03}": dice.randrange(160_000) for i in range(150)}
    found.update({f"wide/{i:04}": dice.randrange(200) for i in range(1500)})
    found.update({f"large/{i}": 3 * MIB + dice.randrange(4 * MIB) for i in range(5)})
    return found


def pread_direct(fd, offset, size):
    """One pread of a descriptor that was opened with O_DIRECT."""
    with mmap.mmap(-1, size) as buffer:
        return buffer[:os.preadv(fd, [buffer], offset)]


def causes(mounted):
    """The take-overs so far, {cause: number}."""
    found = mounted.status()["keeper"]["takeovers"]
    return {cause: number for cause, number in found.items() if number > 0}


class Load:
    """Readers of a mount, and what is done to its processes meanwhile; for a `with`."""

    def __init__(self, test, mounted, reference, what="", **options):
        self.path = mounted.path
        self._test = test
        self._what = what
        self._soak = takeover.Soak(support.MILLRACE, mounted.path, reference, **options)

    def __enter__(self):
        self._soak.__enter__()
        return self

    def __exit__(self, kind, *_):
        """The readers must have seen nothing but right bytes."""
        try:
            if kind is None:
                self.report = self._soak.stop()
                self._test.assertEqual(self.report.faults(), "", self._what)
                self._test.assertGreater(self.report["bytes"], 0)
        finally:
            self._soak.__exit__()

    def go_on(self):
        """Lets the readers read for a moment with whoever serves now."""
        takeover.answers(self.path)
        pause(0.3)


class LoadTest(support.MountTestCase):
    """The load finds what it is there to find, also on a mount."""

    def test_one_wrong_byte_is_found(self):
        """Within one boot a cache file is trusted, so who changes it is believed."""
        self.make_source(sizes(random.Random(9)))
        mounted = self.mount(self.source, "--profile=large-files")
        mounted.warm()
        complete, = (self.directory / "cache/sources").glob("*/complete")
        for path in complete.iterdir():
            if path.stat().st_size > 3 * MIB:
                with open(path, "r+b") as file:
                    file.seek(MIB)
                    byte = file.read(1)[0]
                    file.seek(MIB)
                    file.write(bytes([byte ^ 1]))
        with takeover.Soak(support.MILLRACE, mounted.path, self.source) as soak:
            pause(0.5)
            report = soak.stop()
        self.assertGreater(report["wrong_bytes"], 0)
        self.assertEqual(report["errors"], 0)
        self.assertIn("wrong bytes", report.faults())

    def test_an_error_is_found(self):
        """Nobody serves any more, and nobody will: the kernel says so to every kind of reader."""
        self.make_source(sizes(random.Random(10)))
        mounted = self.mount(self.source)
        with takeover.Soak(support.MILLRACE, mounted.path, self.source, readers=6) as soak:
            takeover.kill_everything(mounted.path)
            support.wait_until(lambda: errno_of(os.statvfs, mounted.path) == "ENOTCONN", "the end")
            pause(0.3)
            report = soak.stop()
        self.assertGreater(report["errors"], 0)
        self.assertEqual(report["wrong_bytes"], 0)
        self.assertEqual(mounted.umount().code, 0)


class Kills:
    """What the tests with a directory and with a bucket as their source share."""

    def kill_again_and_again(self, mounted, reference, dice, what):
        with Load(self, mounted, reference, what, seed=dice.randrange(2**32)) as load:
            for _ in range(KILLS):
                takeover.kill_daemon(mounted.path)
                # Now and then the successor dies while it takes over.
                if dice.random() < 0.2:
                    pause(dice.random() * 0.05)
                    takeover.kill_daemon(mounted.path)
                takeover.answers(mounted.path)
                pause(dice.random() * KILL_AFTER_S_MAX)
            load.go_on()

    def options(self, dice):
        """Of a mount: what the kernel does by itself, and whether the cache holds all of it."""
        profile = dice.choice(("small-files", "large-files", "auto"))
        quota = dice.choice(("24Mi", "1Gi"))
        return [NO_CRASH_LOOP, f"--profile={profile}", self.tier(quota=quota), "--eviction=sieve"]


class KillTest(Kills, support.MountTestCase):
    """SIGKILL of the daemon."""

    def test_kills_at_random_moments(self):
        for seed in seeds():
            with self.subTest(seed=seed):
                dice = random.Random(seed)
                self.make_source(sizes(dice), name=f"source-{seed}")
                mounted = self.mount(self.source, *self.options(dice))
                self.kill_again_and_again(mounted, self.source, dice, f"seed {seed}")
                self.umount(mounted)

    def test_killed_before_it_has_taken_over(self):
        """The next one dies too, and the one after: at once, a moment later, …"""
        dice = random.Random(5)
        self.make_source(sizes(dice))
        mounted = self.mount(self.source, NO_CRASH_LOOP, "--profile=large-files")
        with Load(self, mounted, self.source) as load:
            for delay_ms in (0, 2, 10, 20, 40):
                takeover.kill_daemon(mounted.path)
                pause(delay_ms / 1000)
            load.go_on()

    def test_descriptors_and_numbers_stay(self):
        """Open files of every kind, looked at by hand."""
        self.make_source({"large": 8 * MIB, "small/file": 100_000})
        mounted = self.mount(self.source, NO_CRASH_LOOP, "--profile=large-files")
        mounted.warm()
        large, small = mounted / "large", mounted / "small/file"
        with support.open_fd(large) as passthrough, \
                support.open_fd(large, os.O_RDONLY | os.O_DIRECT) as direct, \
                support.open_fd(mounted / "small", os.O_RDONLY | os.O_DIRECTORY) as directory:
            os.lseek(passthrough, MIB + 1, os.SEEK_SET)
            before = [os.fstat(fd) for fd in (passthrough, direct, directory)]
            for _ in range(3):
                takeover.replace_daemon(mounted.path)
                self.assertEqual([os.fstat(fd) for fd in (passthrough, direct, directory)], before)
                self.assertEqual(os.lseek(passthrough, 0, os.SEEK_CUR), MIB + 1)
                os.posix_fadvise(passthrough, 0, 0, os.POSIX_FADV_DONTNEED)
                self.assertEqual(os.pread(passthrough, 8 * MIB, 0), self.tree["large"])
                self.assertEqual(pread_direct(direct, 4096, 4096), self.tree["large"][4096:8192])
                self.assertEqual(os.listdir(directory), ["file"])
                self.assertEqual(os.stat("file", dir_fd=directory).st_ino, os.stat(small).st_ino)
                self.assertEqual(support.read_all(small), self.tree["small/file"])

    def test_a_file_removed_from_the_source_reads_on(self):
        """What is in the cache of a file that is gone from the listing stays with its reader."""
        self.make_source({"a": 2 * MIB, "b": 10})
        mounted = self.mount(self.source, NO_CRASH_LOOP, "--refresh=1s")
        mounted.warm()
        with support.open_fd(mounted / "a") as fd:
            os.unlink(self.source / "a")
            support.wait_until(lambda: os.listdir(mounted.path) == ["b"], "the refresh")
            takeover.replace_daemon(mounted.path)
            os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
            self.assertEqual(os.pread(fd, 2 * MIB, 0), self.tree["a"])
        self.assertEqual(os.listdir(mounted.path), ["b"])

    def test_changes_of_the_source_are_seen_by_the_successor(self):
        """Names and versions that changed while nobody served."""
        self.make_source({"d/stays": 10, "d/goes": 10, "d/changes": 10})
        mounted = self.mount(self.source, NO_CRASH_LOOP, "--refresh=1s")
        for path in self.tree:
            support.read_all(mounted / path)
        keeper = takeover.keeper_pid(mounted.path)
        os.kill(keeper, signal.SIGSTOP)
        self.addCleanup(takeover.send, signal.SIGCONT, keeper)
        old = takeover.daemon_pid(mounted.path)
        takeover.kill_daemon(mounted.path)
        os.unlink(self.source / "d/goes")
        (self.source / "d/new").write_bytes(b"new")
        (self.source / "d/changes").write_bytes(b"another content")
        os.kill(keeper, signal.SIGCONT)
        takeover.wait_for_successor(mounted.path, old)
        support.wait_until(
            lambda: sorted(os.listdir(mounted / "d")) == ["changes", "new", "stays"] and
            errno_of(os.stat, mounted / "d/goes") == "ENOENT" and
            errno_of(support.read_all, mounted / "d/changes") is None and
            support.read_all(mounted / "d/changes") == b"another content",
            "the listing of the successor")
        self.assertEqual(support.read_all(mounted / "d/new"), b"new")
        self.assertEqual(support.read_all(mounted / "d/stays"), self.tree["d/stays"])

    def test_umount_while_the_daemon_is_dead_or_coming(self):
        self.make_source({"file": 10})
        for delay_ms in (0, 5, 20, 50):
            mounted = self.mount(self.source, NO_CRASH_LOOP)
            takeover.kill_daemon(mounted.path)
            pause(delay_ms / 1000)
            self.assertEqual(mounted.umount().code, 0)
            self.assertIsNone(support.mount_entry(mounted.path))
            support.wait_until(lambda: not support.left_running(self.directory), "the end of all")


@support.needs_s3
class S3Test(Kills, support.S3TestCase):
    """The same from a real S3 server, and with a store that is away."""

    def test_kills_at_random_moments(self):
        for seed in seeds()[-2:]:
            with self.subTest(seed=seed):
                dice = random.Random(seed)
                bucket = self.make_bucket(sizes(dice), name=f"bucket-{seed}")
                mounted = self.mount_bucket(*self.options(dice), bucket=f"bucket-{seed}")
                self.kill_again_and_again(mounted, bucket, dice, f"seed {seed}")
                self.umount(mounted)

    def test_cached_files_read_on_without_a_store(self):
        """Also after a take-over, for a successor that never saw the store."""
        bucket = self.make_bucket(sizes(random.Random(6)))
        for profile in ("small-files", "large-files"):
            with self.subTest(profile):
                mounted = self.mount_bucket(NO_CRASH_LOOP, f"--profile={profile}",
                                            "--store-deadline=2s")
                mounted.warm()
                # Each directory is listed now; nothing but the cache is needed from here on.
                self.assertEqual(support.tree_digests(mounted.path), support.tree_digests(bucket))
                self.s3.stop()
                # That a name does not exist, only the store can tell.
                with Load(self, mounted, bucket, kinds=WITHOUT_WALK) as load:
                    for _ in range(2):
                        takeover.replace_daemon(mounted.path)
                        load.go_on()
                self.s3.start()
                self.umount(mounted)

    def test_readers_that_wait_for_the_store_are_no_hang(self):
        """More of them than the daemon has threads, for longer than the deadline."""
        self.make_bucket({f"{i}": 300_000 for i in range(40)})
        proxy = support.FaultProxy(self.s3.port)
        self.addCleanup(proxy.close)
        mounted = self.mount_bucket("--hang-deadline=2s", "--look-ahead=off", port=proxy.port)
        os.listdir(mounted.path)
        proxy.add("kind=stall,path=/bucket/,method=GET,after=1000,times=0")
        readers = [subprocess.Popen(["cat", mounted / f"{i}"], stdout=subprocess.DEVNULL)
                   for i in range(40)]
        for reader in readers:
            self.addCleanup(reader.wait)
            self.addCleanup(reader.kill)
        support.wait_until(proxy.done, "a request that stalls")
        pause(4)
        self.assertEqual(causes(mounted), {})
        self.assertTrue(all(reader.poll() is None for reader in readers))


class UpgradeTest(support.MountTestCase):
    def test_upgrades_under_load(self):
        self.make_source(sizes(random.Random(7)))
        for profile in ("small-files", "large-files"):
            mounted = self.mount(self.source, f"--profile={profile}")
            with Load(self, mounted, self.source, profile) as load:
                for _ in range(UPGRADES):
                    old = takeover.daemon_pid(mounted.path)
                    result = support.millrace("upgrade", mounted.path)
                    self.assertEqual(result.code, 0, result.err)
                    self.assertNotEqual(takeover.daemon_pid(mounted.path), old)
                    pause(0.1)
                load.go_on()
            self.umount(mounted)


class KeeperTest(support.MountTestCase):
    """The other half of the custody."""

    def adopt(self, mounted):
        """A new keeper for a mount whose keeper is dead."""
        result = support.millrace("upgrade", mounted.path)
        self.assertEqual(result.code, 0, result.err)

    def test_keeper_killed_adopted_then_daemon_killed(self):
        self.make_source(sizes(random.Random(8)))
        mounted = self.mount(self.source, NO_CRASH_LOOP, "--profile=large-files")
        with Load(self, mounted, self.source) as load:
            for _ in range(ADOPTIONS):
                keeper = takeover.keeper_pid(mounted.path)
                os.kill(keeper, signal.SIGKILL)
                takeover.wait_for(lambda: takeover.gone(keeper), "the end of the keeper")
                load.go_on()
                self.adopt(mounted)
                takeover.replace_daemon(mounted.path)
                load.go_on()

    def test_both_killed_is_cleaned_and_mounted_again(self):
        self.make_source({"file": 3 * MIB})
        mounted = self.mount(self.source)
        mounted.warm()
        support.wait_until(lambda: mounted.status()["tiers"][0]["files_complete"] == 1, "the cache")
        pause(0.5)  # The journal's last lines.
        takeover.kill_everything(mounted.path)
        support.wait_until(lambda: errno_of(os.statvfs, mounted.path) == "ENOTCONN", "the end")
        result = support.millrace("mount", self.tier(), f"file://{self.source}", mounted.path)
        self.assertEqual(result.code, 0, result.err)
        self.mounts.append(support.Mount(mounted.path, result.out))
        self.assertEqual(support.read_all(mounted / "file"), self.tree["file"])
        self.assertEqual(mounted.store_bytes(), 0)
        self.assertEqual(mounted.status()["keeper"]["sessions_lost"], 1)


class HangTest(support.MountTestCase):
    def test_a_stopped_daemon_is_replaced_within_the_deadline(self):
        self.make_source(sizes(random.Random(11)))
        mounted = self.mount(self.source, "--hang-deadline=2s")
        with Load(self, mounted, self.source) as load:
            old = takeover.daemon_pid(mounted.path)
            began = time.monotonic()
            os.kill(old, signal.SIGSTOP)
            takeover.wait_for_successor(mounted.path, old)
            elapsed = time.monotonic() - began
            load.go_on()
        self.assertGreater(elapsed, 1)
        self.assertLess(elapsed, 4)
        self.assertEqual(causes(mounted), {"hang": 1})

class MemoryLimitTest(support.MountTestCase):
    @unittest.skipIf(takeover.MemoryCgroup.missing(), takeover.MemoryCgroup.missing())
    def test_a_daemon_that_hits_its_memory_limit_is_replaced_and_the_cause_named(self):
        self.make_source(sizes(random.Random(12)))
        mounted = self.mount(self.source, self.tier(quota="24Mi"), "--eviction=sieve")
        # Only the daemon of now; its successor is started where the keeper is.
        with takeover.MemoryCgroup(limit_bytes=4 * MIB) as cgroup:
            old = takeover.daemon_pid(mounted.path)
            cgroup.add(old)
            with Load(self, mounted, self.source) as load:
                takeover.wait_for_successor(mounted.path, old)
                load.go_on()
        self.assertEqual(causes(mounted), {"oom": 1})


class CrashLoopTest(support.MountTestCase):
    """Five deaths in a minute: an error is better than to wait for ever."""

    def test_requests_fail_and_upgrade_recovers(self):
        self.make_source({"file": 3 * MIB})
        mounted = self.mount(self.source, "--profile=large-files")
        mounted.warm()
        with support.open_fd(mounted / "file") as fd:
            for _ in range(5):
                takeover.kill_daemon(mounted.path)
            support.wait_until(lambda: self.given_up(mounted), "EIO")
            self.assertEqual(errno_of(support.read_all, mounted / "file"), "EIO")
            self.assertEqual(errno_of(os.stat, mounted / "no such name"), "EIO")
            # The kernel needs nobody for this one.
            os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
            self.assertEqual(os.pread(fd, 3 * MIB, 0), self.tree["file"])
            self.assertIn("killed by signal 9", mounted.status()["keeper"]["crash_loop"])
            result = support.millrace("upgrade", mounted.path)
            self.assertEqual(result.code, 0, result.err)
            takeover.answers(mounted.path)
            self.assertEqual(mounted.status()["keeper"].get("crash_loop", ""), "")
            os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
            self.assertEqual(os.pread(fd, 3 * MIB, 0), self.tree["file"])
            self.assertEqual(support.read_all(mounted / "file"), self.tree["file"])

    @staticmethod
    def given_up(mounted):
        # Asked only when nobody serves: the question must not wait.
        return errno_of(os.statvfs, mounted.path) == "EIO"


class LeakTest(support.MountTestCase):
    def test_take_overs_leave_nothing_in_keeper_and_daemon(self):
        self.make_source({"large": 4 * MIB, **{f"{i}": 100 for i in range(100)}})
        mounted = self.mount(self.source, NO_CRASH_LOOP, "--profile=large-files")
        mounted.warm()
        seen = {"keeper": [], "daemon": []}
        with support.open_fd(mounted / "large"):
            for _ in range(TAKEOVERS_OF_LEAK):
                takeover.replace_daemon(mounted.path)
                for name in os.listdir(mounted.path):
                    support.read_at(mounted / name, 0, 100)
                pause(0.5)  # Who dies sooner is given ever more time.
                for who, pid in (("keeper", takeover.keeper_pid(mounted.path)),
                                 ("daemon", takeover.daemon_pid(mounted.path))):
                    seen[who].append((takeover.resident_bytes(pid), takeover.descriptors(pid)))
        part = TAKEOVERS_OF_LEAK // 5
        for who, values in seen.items():
            first, last = values[part:2 * part], values[-part:]
            for i, most in ((0, MIB), (1, 0)):
                grown = (statistics.median(value[i] for value in last) -
                         statistics.median(value[i] for value in first))
                self.assertLessEqual(grown, most, f"{who}: {values}")


class PassthroughTest(support.MountTestCase):
    def test_open_passthrough_files_are_read_while_nobody_serves(self):
        """The keeper is stopped, so that it starts no other daemon; then the daemon is killed."""
        self.make_source({"file": 32 * MIB})
        mounted = self.mount(self.source, NO_CRASH_LOOP, "--profile=large-files")
        mounted.warm()
        with support.open_fd(mounted / "file") as fd, \
                support.open_fd(mounted / "file", os.O_RDONLY | os.O_DIRECT) as direct:
            keeper = takeover.keeper_pid(mounted.path)
            os.kill(keeper, signal.SIGSTOP)
            self.addCleanup(takeover.send, signal.SIGCONT, keeper)
            old = takeover.daemon_pid(mounted.path)
            takeover.kill_daemon(mounted.path)
            takeover.wait_for(lambda: takeover.gone(old), "the end of the daemon")
            os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
            self.assertEqual(os.pread(fd, 32 * MIB, 0), self.tree["file"])
            self.assertEqual(pread_direct(direct, 16 * MIB, MIB), self.tree["file"][16 * MIB:][:MIB])
            os.kill(keeper, signal.SIGCONT)
            takeover.wait_for_successor(mounted.path, old)
            self.assertEqual(os.pread(fd, 32 * MIB, 0), self.tree["file"])
            self.assertEqual(support.read_all(mounted / "file"), self.tree["file"])


if __name__ == "__main__":
    support.main()
