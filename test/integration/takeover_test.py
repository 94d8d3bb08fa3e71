#!/usr/bin/env python3
"""A mount outlives its daemon: whatever ends it, readers wait a moment and see no error.

What holds under load, again and again at random moments, is chaos_test's.
"""

import contextlib
import os
import pathlib
import shlex
import shutil
import signal
import subprocess
import threading

import support
from kill_test import wait_for_journal
from support import MIB, PROGRAMS, errno_of

CRASHES_MAX = 5  # Within a minute, then the keeper gives up.


class TakeOverTestCase(support.MountTestCase):
    def setUp(self):
        super().setUp()
        self.make_source({**{f"small/{i}": 30_000 + i for i in range(40)},
                          **{f"large/{i}": 3 * MIB + i for i in range(4)}})

    def takeovers(self, mounted):
        return mounted.status()["keeper"]["takeovers"]

    def assert_reads_right(self, mounted):
        for path, expected in self.tree.items():
            self.assertEqual(support.read_all(mounted / path), expected, path)

    @contextlib.contextmanager
    def readers(self, mounted, count=4):
        """Threads that read everything again and again while the block runs; it fails if one of
        them saw an error or a wrong byte, or did not end."""
        done = threading.Event()
        first_round = threading.Barrier(count + 1)

        def read():
            started = False
            while not done.is_set():
                for path, expected in self.tree.items():
                    if support.read_all(mounted / path) != expected:
                        raise AssertionError(f"wrong bytes: {path}")
                    support.drop_page_cache(mounted / path)
                if not started:
                    first_round.wait(support.DEADLINE_S)
                    started = True

        def body():
            first_round.wait(support.DEADLINE_S)

        failure = []
        threads = threading.Thread(target=lambda: self._collect(failure, [read] * count + [body]),
                                   daemon=True)
        threads.start()
        try:
            yield
        finally:
            done.set()
            threads.join(support.DEADLINE_S)
        self.assertFalse(threads.is_alive(), "a reader hangs")
        if failure:
            raise failure[0]

    def _collect(self, failure, jobs):
        try:
            support.run_in_threads(jobs)
        except BaseException as error:  # Shown by the test's own thread.
            failure.append(error)


class KilledDaemonTest(TakeOverTestCase):
    def test_readers_do_not_notice(self):
        for profile in ("small-files", "large-files"):
            with self.subTest(profile):
                mounted = self.mount(self.source, f"--profile={profile}", "--crash-limit=0",
                                     mountpoint=profile)
                with self.readers(mounted):
                    for _ in range(6):
                        mounted.kill_daemon()
                        os.listdir(mounted / "small")
                self.assertEqual(self.takeovers(mounted)["signal"], 6)
                self.assertEqual(mounted.status()["sessions_survived"], 6)
                self.umount(mounted)

    def test_open_files_mappings_and_directories_go_on(self):
        mounted = self.mount(self.source, "--profile=large-files")
        mounted.warm("large/0")
        with contextlib.ExitStack() as stack:
            warm = stack.enter_context(support.open_fd(mounted / "large/0"))
            cold = stack.enter_context(support.open_fd(mounted / "large/1"))
            listing = stack.enter_context(os.scandir(mounted / "small"))
            names = [next(listing).name]
            inode = os.fstat(cold).st_ino
            mounted.kill_daemon()
            self.assertEqual(os.pread(warm, 4 * MIB, 0), self.tree["large/0"])
            self.assertEqual(os.pread(cold, 4 * MIB, 0), self.tree["large/1"])
            self.assertEqual(os.fstat(cold).st_ino, inode)
            names += [entry.name for entry in listing]
            self.assertEqual(sorted(names), sorted(os.listdir(self.source / "small")))
        self.umount(mounted)

    def test_the_store_may_be_away(self):
        """A successor asks the store nothing before it serves: what is cached is read on."""
        mounted = self.mount(self.source)
        self.assert_reads_right(mounted)
        wait_for_journal(self.directory / "cache" / "journal")
        os.rename(self.source, f"{self.source}.away")
        mounted.kill_daemon()
        for path in self.tree:
            support.drop_page_cache(mounted / path)
        self.assert_reads_right(mounted)
        os.rename(f"{self.source}.away", self.source)

    def test_the_configuration_file_is_not_needed_again(self):
        config = self.directory / "runtime.json"
        config.write_text('{"client": {"options": {"profile": "large-files"}}}')
        mounted = self.mount(self.source, f"--config={config}", self.tier())
        config.unlink()
        mounted.kill_daemon()
        self.assertEqual(mounted.status()["profile"], "large-files")

    @support.needs_root
    def test_a_daemon_that_does_not_answer_is_replaced(self):
        mounted = self.mount(self.source)
        mounted.replaced(lambda pid: os.kill(pid, signal.SIGSTOP))
        self.assert_reads_right(mounted)
        self.assertEqual(self.takeovers(mounted)["hang"], 1)


class DeletedCacheTest(TakeOverTestCase):
    def test_a_successor_makes_the_cache_anew(self):
        """With its parents, which the daemon of root's mount has no right to."""
        mounted = self.mount(self.source, self.tier("above/cache"), "--profile=large-files")
        mounted.warm()
        shutil.rmtree(self.directory / "above")
        self.assert_reads_right(mounted)
        mounted.kill_daemon()
        self.assert_reads_right(mounted)
        mounted.warm()  # Fails where it is not kept.
        self.assertEqual(mounted.status()["keeper"]["takeovers"]["signal"], 1)

    def test_an_upgrade_makes_the_cache_anew(self):
        mounted = self.mount(self.source, self.tier("above/cache"))
        mounted.warm()
        shutil.rmtree(self.directory / "above")
        self.assertEqual(support.millrace("upgrade", mounted.path).code, 0)
        self.assert_reads_right(mounted)
        mounted.warm()


class CrashLoopTest(TakeOverTestCase):
    def setUp(self):
        super().setUp()
        self.mounted = self.mount(self.source)
        for _ in range(CRASHES_MAX - 1):
            self.mounted.kill_daemon()
        os.kill(self.mounted.pid, signal.SIGKILL)
        support.wait_until(lambda: errno_of(os.listdir, self.mounted / "small") == "EIO",
                           "requests that fail")

    def test_requests_fail_and_everybody_says_why(self):
        self.assertEqual(errno_of(os.stat, self.mounted / "large/0"), "EIO")
        status = self.mounted.status()
        self.assertEqual(status["state"], "crash loop")
        self.assertIn("signal 9", status["keeper"]["crash_loop"])
        text = support.millrace("status", self.mounted.path).out
        self.assertIn("crash loop", text)
        self.assertIn(f"millrace upgrade {self.mounted.path}", text)
        self.assertIn("crash loop", support.millrace("status").out)
        result = support.millrace("warm", self.mounted.path)
        self.assertEqual(result.code, 1)
        self.assert_one_line(result.err, "signal 9", f"millrace upgrade {self.mounted.path}")
        self.assertTrue(self.mounted.log_lines("giving up", "signal 9"))

    def test_upgrade_starts_it_again(self):
        result = support.millrace("upgrade", self.mounted.path)
        self.assertEqual(result.code, 0, result.err)
        self.assert_reads_right(self.mounted)
        self.mounted.kill_daemon()  # It is kept as before.
        self.assert_reads_right(self.mounted)

    def test_mount_starts_it_again(self):
        words = self.mount_command(self.source)
        result = support.millrace("mount", *words)
        self.assertEqual(result.code, 0, result.err)
        self.assert_reads_right(self.mounted)

    def test_mount_of_something_else_is_refused(self):
        other = self.make_directory("other")
        result = support.millrace("mount", self.tier(), f"file://{other}", self.mounted.path)
        self.assertEqual(result.code, 1)
        self.assert_one_line(result.err, "something else", f"millrace umount {self.mounted.path}")

    def test_umount(self):
        self.umount(self.mounted)
        self.assert_nothing_left()

    def test_unmounted_by_other_means(self):
        command = ["umount"] if os.geteuid() == 0 else ["fusermount3", "-u"]
        subprocess.run([*command, self.mounted.path], check=True)
        support.wait_until(lambda: not self.mounted.serving(), "end of the keeper")


class KilledKeeperTest(TakeOverTestCase):
    def setUp(self):
        super().setUp()
        self.mounted = self.mount(self.source, "--profile=large-files")
        self.mounted.warm("large/0")

    def test_the_daemon_serves_on_and_is_adopted(self):
        daemon = self.mounted.pid
        with self.readers(self.mounted):
            for _ in range(3):
                self.mounted.kill_keeper()
                support.wait_until(lambda: not self.mounted.status()["keeper"]["alive"],
                                   "the daemon to notice")
                text = support.millrace("status", self.mounted.path).out
                self.assertIn(f"gone: adopt with millrace upgrade {self.mounted.path}", text)
                result = support.millrace("mount", *self.mount_command(self.source))
                self.assertEqual(result.code, 0, result.err)
                self.assertEqual(self.mounted.pid, daemon)
                self.assertTrue(self.mounted.status()["keeper"]["alive"])
                daemon = self.mounted.kill_daemon()
        self.assertEqual(self.takeovers(self.mounted)["signal"], 3)
        self.umount(self.mounted)

    def test_upgrade_adopts(self):
        self.mounted.kill_keeper()
        result = support.millrace("upgrade", self.mounted.path)
        self.assertEqual(result.code, 0, result.err)
        self.assertIn("has a keeper again", result.out)
        self.assert_reads_right(self.mounted)

    def test_open_files_pass_through_under_the_next_keeper(self):
        with support.open_fd(self.mounted / "large/0") as fd:
            self.mounted.kill_keeper()
            self.assertEqual(os.pread(fd, MIB, 0), self.tree["large/0"][:MIB])
            self.assert_reads_right(self.mounted)  # New opens: without passthrough.
            support.millrace("upgrade", self.mounted.path)
            self.assertEqual(os.pread(fd, MIB, MIB), self.tree["large/0"][MIB:2 * MIB])
        self.assert_reads_right(self.mounted)

    def test_a_daemon_that_has_a_keeper_takes_no_other(self):
        result = subprocess.run(
            [PROGRAMS / "millrace-keeper", f"--adopt={self.mounted.path}"],
            capture_output=True, text=True, timeout=support.DEADLINE_S, check=False)
        self.assertEqual(result.returncode, 1)
        self.assertIn("wants no other keeper", result.stderr)
        self.mounted.kill_daemon()

    def test_a_daemon_without_a_keeper_that_is_told_to_end(self):
        """It cannot unmount; whoever finds the dead mount can."""
        self.mounted.kill_keeper()
        self.mounted.signal(signal.SIGTERM)
        support.wait_until(lambda: not self.mounted.serving(), "the end of the daemon")
        self.assertEqual(errno_of(os.listdir, self.mounted.path), "ENOTCONN")
        self.assertTrue(self.mounted.log_lines("ending without a keeper", "millrace umount"))
        result = support.millrace("mount", *self.mount_command(self.source))
        self.assertEqual(result.code, 0, result.err)
        self.assert_reads_right(self.mounted)
        self.mounts.append(support.Mount(self.mounted.path, result.out))
        self.assertEqual(self.mounts[-1].status()["keeper"]["sessions_lost"], 1)

    def test_unmount_without_a_keeper(self):
        self.mounted.kill_keeper()
        self.umount(self.mounted)
        self.assertFalse((self.mounted.run_directory / "mount.json").exists())


class UpgradeTest(TakeOverTestCase):
    def programs_with(self, daemon, name="programs"):
        """A directory of the programs, in which millrace-fuse is another file."""
        directory = self.make_directory(name)
        for name in ("millrace", "millrace-keeper"):
            shutil.copy(PROGRAMS / name, directory)
        shutil.copy(daemon, directory / "millrace-fuse")
        return directory

    def upgrade(self, programs, mounted):
        return subprocess.run([programs / "millrace", "upgrade", mounted.path], text=True,
                              capture_output=True, timeout=support.DEADLINE_S, check=False)

    def test_readers_do_not_notice(self):
        mounted = self.mount(self.source, "--profile=large-files")
        with self.readers(mounted):
            for _ in range(5):
                old = mounted.pid
                result = self.upgrade(PROGRAMS, mounted)
                self.assertEqual(result.returncode, 0, result.stderr)
                self.assert_one_line(result.stdout, "0.1.0 -> 0.1.0", "ms without a daemon")
                self.assertNotEqual(mounted.pid, old)
        self.assertEqual(self.takeovers(mounted)["upgrade"], 5)
        self.umount(mounted)

    @support.needs_root
    def test_all_mounts_without_an_argument(self):
        """In a mount namespace with run directories of its own: not those of other tests."""
        script = "set -e; mkdir -p /run/millrace; mount -t tmpfs -o mode=0700 tmpfs /run/millrace\n"
        for name in ("first", "second"):
            words = self.mount_command(self.source, self.tier(name), mountpoint=f"mnt-{name}")
            script += f"{support.MILLRACE} mount {shlex.join(words)} >/dev/null\n"
        script += f"{support.MILLRACE} upgrade\n"
        for name in ("first", "second"):
            script += f"{support.MILLRACE} umount {self.directory}/mnt-{name}\n"
        result = subprocess.run(["unshare", "-m", "sh", "-c", script], capture_output=True,
                                text=True, timeout=support.DEADLINE_S, check=False)
        self.assertEqual(result.returncode, 0, result.stderr)
        first, second = result.stdout.splitlines()
        self.assertIn(f"{self.directory}/mnt-first  millrace 0.1.0 -> 0.1.0", first)
        self.assertIn(f"{self.directory}/mnt-second  millrace 0.1.0 -> 0.1.0", second)
        self.assert_nothing_left()

    def test_a_program_that_does_not_become_ready_changes_nothing(self):
        mounted = self.mount(self.source)
        old = mounted.pid
        result = self.upgrade(self.programs_with(shutil.which("false")), mounted)
        self.assertEqual(result.returncode, 1)
        self.assert_one_line(result.stderr, "did not become ready", "the old one serves on")
        self.assertEqual(mounted.pid, old)
        self.assert_reads_right(mounted)
        self.assertEqual(mounted.status()["sessions_survived"], 0)
        # Nor does it change what a crash starts.
        mounted.kill_daemon()
        self.assert_reads_right(mounted)

    def test_a_program_that_refuses_says_why(self):
        mounted = self.mount(self.source)
        old = mounted.pid
        result = self.upgrade(
            self.programs_with(PROGRAMS / "test_failing_daemon", "refuses"), mounted)
        self.assertEqual(result.returncode, 1)
        self.assert_one_line(result.stderr, "the saved state has layout 9")
        self.assertEqual(mounted.pid, old)

    def test_a_program_that_does_not_go_on_is_rolled_back(self):
        mounted = self.mount(self.source, "--profile=large-files")
        programs = self.programs_with(PROGRAMS / "test_failing_daemon")
        with self.readers(mounted):
            for _ in range(2):
                old = mounted.pid
                result = self.upgrade(programs, mounted)
                self.assertEqual(result.returncode, 1)
                self.assert_one_line(result.stderr, "rolled back", "exited with status 3")
                support.wait_until(lambda: mounted.pid != old, "the old program")
        self.assertEqual(mounted.status()["version"], mounted.record["version"])
        mounted.kill_daemon()
        self.assert_reads_right(mounted)
        self.umount(mounted)

    def test_a_crash_starts_the_program_that_was_running(self):
        """Whatever is installed by then."""
        programs = self.programs_with(PROGRAMS / "millrace-fuse")
        command = [programs / "millrace", "mount", *self.mount_command(self.source)]
        subprocess.run(command, check=True, capture_output=True, timeout=support.DEADLINE_S)
        mounted = support.Mount(command[-1], "")
        self.mounts.append(mounted)
        pathlib.Path(programs / "millrace-fuse").unlink()
        shutil.copy(shutil.which("false"), programs / "millrace-fuse")
        mounted.kill_daemon()
        self.assert_reads_right(mounted)


if __name__ == "__main__":
    support.main()
