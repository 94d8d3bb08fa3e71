#!/usr/bin/env python3
"""Mounts whose requests come through io_uring: what is right as ever, and what a death costs.

Needs a kernel with FUSE over io_uring, and root, which switches it on for the time of the test.
"""

import contextlib
import mmap
import os
import pathlib
import random
import shlex
import signal
import subprocess
import time
import unittest

import support
import takeover
from chaos_test import sizes
from mount_test import ReadCases
from support import MIB, errno_of

URING = "--fuse-transport=uring"
NO_CRASH_LOOP = "--crash-limit=0"
SWITCH = pathlib.Path("/sys/module/fuse/parameters/enable_uring")
DISABLED = pathlib.Path("/proc/sys/kernel/io_uring_disabled")
# Of a mount whose connection ended: the first for what was under way.
DEAD = ("ECONNABORTED", "ENOTCONN")
UPGRADES = 4
KILLS = 4
# From a kill to the next mount; most of it is the machine's.
RECOVERY_S_MAX = 2


def missing():
    """Why FUSE over io_uring cannot be tried here, or None."""
    if support.missing_for_mounts():
        return support.missing_for_mounts()
    if not SWITCH.exists():
        return "this kernel has no FUSE over io_uring"
    if DISABLED.exists() and DISABLED.read_text().strip() != "0":
        return "io_uring is switched off"
    if SWITCH.read_text().strip() != "Y" and not os.access(SWITCH, os.W_OK):
        return "FUSE over io_uring is switched off, and needs root"
    return None


def setUpModule():
    """Of this whole file: other programs do not use it unless they are told to."""
    if missing():
        raise unittest.SkipTest(missing())
    before = SWITCH.read_text()
    if before.strip() != "Y":
        SWITCH.write_text("Y")
        unittest.addModuleCleanup(SWITCH.write_text, before)


class Uring:
    """A mix-in for test cases whose mounts have the transport."""

    def mount(self, source, *options, **arguments):
        mounted = super().mount(source, URING, *options, **arguments)
        self.assertTrue(mounted.status()["features"]["uring"])
        return mounted

    def assert_reads_right(self, mounted):
        self.assertEqual(support.tree_digests(mounted.path),
                         {path: support.sha256(data) for path, data in self.tree.items()})

    def wait_for_mount(self, mounted):
        """Returns how long that took."""
        began = time.monotonic()
        support.wait_until(lambda: errno_of(os.listdir, mounted.path) is None, "the next mount")
        return time.monotonic() - began

    def memory_tier(self, quota):
        """For evictions under load: a busy disk takes seconds for some of them, and as many rings as
        there are processors wait for it."""
        return f"--tier=mem:{self.sources / 'cache'}:{quota}"

    def daemons(self, mounted):
        return takeover.pids(takeover.DAEMON, mounted.path)


class UringTestCase(Uring, support.MountTestCase):
    pass


class LargeFilesReadTest(ReadCases, UringTestCase):
    profile = "large-files"


class SmallFilesReadTest(ReadCases, UringTestCase):
    profile = "small-files"


class RefusalTest(support.MountTestCase):
    def refused(self, switch):
        """Mounts where the switch has another text, or none, in a mount namespace of its own."""
        hidden = self.make_directory("parameters")
        if switch is not None:
            (hidden / SWITCH.name).write_text(switch)
        words = self.mount_command(self.make_source({"file": 10}), URING)
        script = (f"mount --bind {shlex.quote(str(hidden))} {SWITCH.parent} && "
                  f"{support.MILLRACE} mount {shlex.join(words)}")
        result = subprocess.run(["unshare", "-m", "sh", "-c", script], capture_output=True,
                                text=True, timeout=support.DEADLINE_S, check=False)
        self.assertEqual(result.returncode, 1)
        return result.stderr

    @support.needs_root
    def test_where_it_is_switched_off(self):
        self.assert_one_line(self.refused("N\n"), "is switched off on this machine",
                             "leave the option out")

    @support.needs_root
    def test_where_the_kernel_has_none(self):
        self.assert_one_line(self.refused(None), "this kernel has no FUSE over io_uring")


class UpgradeTest(UringTestCase):
    def test_readers_do_not_notice(self):
        """What they have open stays with the old daemon, which ends with the last of it."""
        self.make_source(sizes(random.Random(21)))
        for profile in ("small-files", "large-files"):
            mounted = self.mount(self.source, f"--profile={profile}", "--eviction=sieve",
                                 self.memory_tier("24Mi"), mountpoint=profile)
            with takeover.Soak(support.MILLRACE, mounted.path, self.source) as soak:
                for _ in range(UPGRADES):
                    old = mounted.pid
                    result = support.millrace("upgrade", mounted.path)
                    self.assertEqual(result.code, 0, result.err)
                    self.assertNotEqual(mounted.pid, old)
                    takeover.answers(mounted.path)
                report = soak.stop()
            # The next mount is another device to stat, and all else is as it was.
            seen = [report[name] for name in ("errors", "wrong_bytes", "hung")]
            self.assertEqual(seen, [0, 0, 0], report.faults())
            support.wait_until(lambda: self.daemons(mounted) == [mounted.pid],
                               "the end of the old daemons")
            self.assert_reads_right(mounted)
            self.umount(mounted)

    def test_open_files_stay_with_the_old_daemon(self):
        """Also those that are neither in its cache nor may be by then: they come from the store."""
        self.make_source({"warm": 4 * MIB, "cold": 6 * MIB, "evicted": 3 * MIB})
        mounted = self.mount(self.source, "--profile=large-files", "--no-passthrough")
        mounted.warm("warm", "evicted")
        old = mounted.pid
        with contextlib.ExitStack() as stack:
            fds = {path: stack.enter_context(support.open_fd(mounted / path)) for path in self.tree}
            mapping = stack.enter_context(mmap.mmap(fds["cold"], 0, prot=mmap.PROT_READ))
            directory = stack.enter_context(
                support.open_fd(mounted.path, os.O_RDONLY | os.O_DIRECTORY))
            self.assertEqual(os.pread(fds["cold"], MIB, 0), self.tree["cold"][:MIB])
            self.assertEqual(support.millrace("upgrade", mounted.path).code, 0)
            mounted.evict("evicted")
            for path, fd in fds.items():
                os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
                self.assertEqual(os.pread(fd, 8 * MIB, 0), self.tree[path], path)
            self.assertEqual(mapping[-MIB:], self.tree["cold"][-MIB:])
            self.assertEqual(sorted(os.listdir(directory)), sorted(self.tree))
            self.assertEqual(os.stat("warm", dir_fd=directory).st_ino,
                             os.stat(mounted / "warm").st_ino)
            self.assertCountEqual(self.daemons(mounted), [old, mounted.pid])
            self.assert_reads_right(mounted)
        support.wait_until(lambda: self.daemons(mounted) == [mounted.pid],
                           "the end of the old daemon")

    def test_umount_ends_old_daemons_too(self):
        self.make_source({"file": 4 * MIB})
        mounted = self.mount(self.source, "--no-passthrough")
        with support.open_fd(mounted / "file") as fd:
            self.assertEqual(support.millrace("upgrade", mounted.path).code, 0)
            self.assertEqual(len(self.daemons(mounted)), 2)
            self.umount(mounted)
            support.wait_until(lambda: not self.daemons(mounted), "the end of all daemons")
            self.assertIn(errno_of(os.pread, fd, MIB, 0), DEAD)
        self.assert_nothing_left()

    def test_an_old_daemon_takes_no_keeper(self):
        self.make_source({"file": 4 * MIB})
        mounted = self.mount(self.source, "--no-passthrough")
        with support.open_fd(mounted / "file") as fd:
            self.assertEqual(support.millrace("upgrade", mounted.path).code, 0)
            daemon = mounted.pid
            mounted.kill_keeper()
            words = self.mount_command(self.source, URING, "--no-passthrough")
            result = support.millrace("mount", *words)
            self.assertEqual(result.code, 0, result.err)
            self.assertEqual(mounted.pid, daemon)
            self.assertTrue(mounted.status()["keeper"]["alive"])
            self.assertEqual(os.pread(fd, 8 * MIB, 0), self.tree["file"])
        support.wait_until(lambda: self.daemons(mounted) == [daemon], "the end of the old daemon")
        self.assert_reads_right(mounted)


class DeathTest(UringTestCase):
    def test_readers_get_errors_and_do_not_hang(self):
        self.make_source(sizes(random.Random(22)))
        mounted = self.mount(self.source, NO_CRASH_LOOP, "--profile=small-files",
                             self.memory_tier("24Mi"), "--eviction=sieve")
        for _ in range(KILLS):
            with takeover.Soak(support.MILLRACE, mounted.path, self.source) as soak:
                takeover.kill_daemon(mounted.path)
                self.assertLess(self.wait_for_mount(mounted), RECOVERY_S_MAX)
                self.assert_reads_right(mounted)
                report = soak.stop()
            self.assertEqual([report["wrong_bytes"], report["hung"]], [0, 0], report.faults())
            self.assertGreater(report["errors"], 0)
        status = mounted.status()["keeper"]
        self.assertEqual(status["takeovers"]["signal"], KILLS)
        self.assertEqual(status["sessions_lost"], KILLS)
        self.umount(mounted)

    def test_what_is_open_is_lost_unless_the_kernel_reads_it_alone(self):
        self.make_source({"passthrough": 4 * MIB, "cached": 4 * MIB})
        mounted = self.mount(self.source, "--profile=large-files")
        mounted.warm("passthrough")
        with support.open_fd(mounted / "passthrough") as alone, \
                support.open_fd(mounted / "cached") as lost:
            takeover.kill_daemon(mounted.path)
            self.wait_for_mount(mounted)
            os.posix_fadvise(alone, 0, 0, os.POSIX_FADV_DONTNEED)
            if mounted.status()["features"]["passthrough"]:
                self.assertEqual(os.pread(alone, 8 * MIB, 0), self.tree["passthrough"])
            self.assertIn(errno_of(os.pread, lost, MIB, 0), DEAD)
            self.assert_reads_right(mounted)

    def test_a_daemon_that_does_not_answer_is_replaced(self):
        self.make_source(sizes(random.Random(23)))
        mounted = self.mount(self.source, "--hang-deadline=2s")
        with takeover.Soak(support.MILLRACE, mounted.path, self.source) as soak:
            old = mounted.pid
            os.kill(old, signal.SIGSTOP)
            support.wait_until(lambda: takeover.gone(old), "the end of the stopped daemon")
            self.assertLess(self.wait_for_mount(mounted), RECOVERY_S_MAX)
            report = soak.stop()
        self.assertEqual([report["wrong_bytes"], report["hung"]], [0, 0], report.faults())
        self.assertEqual(mounted.status()["keeper"]["takeovers"]["hang"], 1)
        self.assert_reads_right(mounted)

    def test_an_adopted_daemon(self):
        self.make_source({"file": 4 * MIB})
        mounted = self.mount(self.source, NO_CRASH_LOOP)
        mounted.kill_keeper()
        self.assert_reads_right(mounted)
        self.assertEqual(support.millrace("upgrade", mounted.path).code, 0)
        takeover.kill_daemon(mounted.path)
        self.wait_for_mount(mounted)
        self.assert_reads_right(mounted)

    def test_a_crash_loop_ends_and_upgrade_recovers(self):
        self.make_source({"file": 4 * MIB})
        mounted = self.mount(self.source)
        for _ in range(5):
            takeover.kill_daemon(mounted.path)
        support.wait_until(lambda: mounted.status()["state"] == "crash loop", "the keeper's word")
        self.assertIn(errno_of(os.listdir, mounted.path), DEAD)
        self.assertEqual(support.millrace("upgrade", mounted.path).code, 0)
        self.assert_reads_right(mounted)

    def test_unmounted_in_a_crash_loop(self):
        self.make_source({"file": 10})
        mounted = self.mount(self.source, "--crash-limit=1")
        takeover.kill_daemon(mounted.path)
        support.wait_until(lambda: mounted.status()["state"] == "crash loop", "the keeper's word")
        subprocess.run(["umount", mounted.path] if os.geteuid() == 0 else
                       ["fusermount3", "-u", mounted.path], check=True)
        support.wait_until(lambda: not mounted.serving(), "the end of the keeper")
        self.assert_nothing_left()


@support.needs_s3
class StoreTest(Uring, support.S3TestCase):
    def test_a_reader_that_waits_for_the_store_gets_an_error(self):
        """Its request is in the dead process, where no successor can learn of it."""
        self.make_bucket({"file": 4 * MIB})
        proxy = support.FaultProxy(self.s3.port)
        self.addCleanup(proxy.close)
        mounted = self.mount_bucket(NO_CRASH_LOOP, port=proxy.port)
        os.stat(mounted / "file")
        proxy.add("kind=stall,path=/bucket/file,method=GET,after=1000,times=0")
        reader = subprocess.Popen(["cat", mounted / "file"], stdout=subprocess.DEVNULL,
                                  stderr=subprocess.DEVNULL)
        self.addCleanup(reader.wait)
        self.addCleanup(reader.kill)
        support.wait_until(proxy.done, "a request that stalls")
        self.assertIsNone(reader.poll())
        takeover.kill_daemon(mounted.path)
        self.assertEqual(reader.wait(support.DEADLINE_S), 1)
        proxy.clear()
        self.wait_for_mount(mounted)
        self.assert_reads_right(mounted)


if __name__ == "__main__":
    support.main()
