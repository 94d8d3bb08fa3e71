#!/usr/bin/env python3
"""A store that fails in every way it can, a full cache disk, and readers that give up."""

import errno
import os
import re
import shutil
import signal
import subprocess
import time
import unittest

import support
from support import BLOCK, MIB, errno_of

SIZES = {"small": 100_000, "large": 9 * MIB + 333, "other": 3 * MIB}


class FaultTestCase(support.S3TestCase):
    """A bucket behind the fault proxy."""

    def setUp(self):
        super().setUp()
        self.make_bucket(SIZES)
        self.proxy = support.FaultProxy(self.s3.port)
        self.addCleanup(self.proxy.close)

    def mount_behind_proxy(self, *options):
        return self.mount_bucket(*options, port=self.proxy.port)


class RetriedTest(FaultTestCase):
    """What passes is tried again, and no reader sees it."""

    def assert_reads_right(self, *faults):
        mounted = self.mount_behind_proxy()
        for fault in faults:
            self.proxy.add(fault)
        for path, expected in self.tree.items():
            self.assertEqual(support.read_all(mounted / path), expected)
        self.assertGreater(self.proxy.done(), 0)
        self.assertEqual(set(mounted.status()["errors"].values()), {0})
        # What was kept is as right as what was given.
        for path, expected in self.tree.items():
            support.drop_page_cache(mounted / path)
            self.assertEqual(support.read_all(mounted / path), expected)

    def test_503(self):
        self.assert_reads_right("kind=status,status=503,path=/bucket/,method=GET,times=6")

    def test_500_and_429_and_504(self):
        self.assert_reads_right("kind=status,status=500,path=/bucket/large,times=2",
                                "kind=status,status=429,path=/bucket/small,times=1",
                                "kind=status,status=504,path=/bucket/other,times=2")

    def test_retry_after_is_honoured(self):
        mounted = self.mount_behind_proxy("--look-ahead=off")
        self.proxy.add("kind=status,status=503,retry-after=2,path=/bucket/small,times=1")
        began = time.monotonic()
        self.assertEqual(support.read_all(mounted / "small"), self.tree["small"])
        self.assertGreaterEqual(time.monotonic() - began, 2)

    def test_resets_in_the_middle_of_bodies(self):
        self.assert_reads_right("kind=reset,path=/bucket/large,method=GET,after=100001,times=4",
                                "kind=reset,path=/bucket/small,method=GET,after=1,times=2",
                                "kind=reset,path=/bucket/other,method=GET,after=0,times=2")

    def test_truncated_bodies(self):
        self.assert_reads_right("kind=truncate,path=/bucket/large,method=GET,after=300000,times=4",
                                "kind=truncate,path=/bucket/small,method=GET,after=99999,times=2")

    def test_content_length_of_more_than_the_body(self):
        self.assert_reads_right("kind=wrong-length,path=/bucket/small,method=GET,after=1000,times=2",
                                "kind=wrong-length,path=/bucket/large,method=GET,after=7,times=2")

    def test_faults_of_listings(self):
        self.proxy.add("kind=status,status=503,path=list-type=2,times=3")
        mounted = self.mount_after_refused_access()
        self.proxy.add("kind=status,status=503,path=list-type=2,times=2")
        self.proxy.add("kind=truncate,path=list-type=2,after=50,times=2")
        self.assertEqual(sorted(os.listdir(mounted.path)), sorted(SIZES))

    def mount_after_refused_access(self):
        """The first word with a store is not repeated: a mount is refused at once."""
        words = self.mount_command(
            self.s3.url("bucket").replace(str(self.s3.port), str(self.proxy.port)))
        result = support.millrace("mount", *words, env=self.env)
        self.assertEqual(result.code, 1)
        self.assert_one_line(result.err, "503", "s3://bucket")
        self.proxy.clear()
        return self.mount_behind_proxy()

    def test_random_reads_while_everything_fails_sometimes(self):
        mounted = self.mount_behind_proxy()
        for fault in ("status,status=503", "reset,after=70000", "truncate,after=12345",
                      "wrong-length,after=9"):
            self.proxy.add(f"kind={fault},path=/bucket/large,method=GET,times=2")
        for offset in range(0, SIZES["large"], 777_777):
            self.assertEqual(support.read_at(mounted / "large", offset, 5000),
                             self.tree["large"][offset:offset + 5000])
        self.assertEqual(self.proxy.done(), 8)


class RefusedTest(FaultTestCase):
    """What does not pass is an error at once, with one line in the log."""

    def test_403_is_eacces(self):
        mounted = self.mount_behind_proxy("--look-ahead=off")
        os.listdir(mounted.path)
        self.proxy.add("kind=status,status=403,path=/bucket/small,method=GET,times=0")
        self.assertEqual(errno_of(support.read_all, mounted / "small"), "EACCES")
        self.assertEqual(len(mounted.log_lines("fetch failed", "small", "403")), 1, mounted.log())
        self.proxy.clear()
        support.wait_until(lambda: errno_of(support.read_all, mounted / "small") is None,
                           "the next try, a second after the one that failed")
        self.assertEqual(support.read_all(mounted / "small"), self.tree["small"])

    def test_an_object_that_went_away_is_estale(self):
        mounted = self.mount_behind_proxy("--look-ahead=off")
        os.listdir(mounted.path)
        os.unlink(self.buckets / "bucket" / "small")
        self.assertEqual(errno_of(support.read_all, mounted / "small"), "ESTALE")
        self.assertEqual(len(mounted.log_lines("changed under an open file", "small")), 1)


class ChangedObjectTest(FaultTestCase):
    """Bytes of two versions are never mixed in one open file."""

    def test_object_changed_under_an_open_file_is_estale(self):
        mounted = self.mount_behind_proxy()
        old = self.tree["large"]
        new = support.content("new", len(old))
        with support.open_fd(mounted / "large", os.O_RDONLY | os.O_DIRECT):
            pass
        with support.open_fd(mounted / "large") as fd:
            self.assertEqual(os.pread(fd, BLOCK, 5 * MIB), old[5 * MIB:][:BLOCK])
            self.s3.put("bucket", "large", new)
            with self.assertRaises(OSError) as failure:
                for offset in range(0, len(old), BLOCK):
                    # What was fetched before the change is old; the rest fails. Nothing is new.
                    self.assertEqual(os.pread(fd, BLOCK, offset), old[offset:offset + BLOCK])
            self.assertEqual(failure.exception.errno, errno.ESTALE)
            self.assertEqual(os.pread(fd, BLOCK, 5 * MIB), old[5 * MIB:][:BLOCK])
            self.assertEqual(len(mounted.log_lines("changed under an open file", "large")), 1)
        self.assertEqual(mounted.status()["errors"]["fetch/stale"], 1)

    def test_another_etag_in_the_answer_is_estale(self):
        """A proxy or a store that ignores If-Match must not get through."""
        mounted = self.mount_behind_proxy()
        os.listdir(mounted.path)
        self.proxy.add("kind=changed-etag,path=/bucket/large,method=GET,times=1")
        self.assertEqual(errno_of(support.read_at, mounted / "large", 5 * MIB, 4096), "ESTALE")
        self.assertEqual(len(mounted.log_lines("changed under an open file", "large")), 1)

    def test_a_stale_file_heals_with_the_next_refresh(self):
        mounted = self.mount_behind_proxy("--refresh=1s")
        self.assertEqual(os.stat(mounted / "small").st_size, SIZES["small"])
        new = support.content("new", 50_000)
        self.s3.put("bucket", "small", new)

        def read():
            try:
                return support.read_all(mounted / "small")
            except OSError as error:
                self.assertEqual(error.errno, errno.ESTALE)
                return None

        support.wait_until(lambda: read() == new, "the new version")

    def test_an_object_replaced_again_and_again_is_never_mixed(self):
        versions = [support.content(f"v{i}", 2 * MIB + i) for i in range(8)]
        self.s3.put("bucket", "changing", versions[0])
        mounted = self.mount_behind_proxy("--refresh=1s")
        stop = time.monotonic() + 4
        whole = 0

        def replace():
            turn = 0
            while time.monotonic() < stop:
                turn += 1
                self.s3.put("bucket", "changing", versions[turn % len(versions)])
                support.s3_server.time.sleep(0.03)  # tidy: allow-sleep The pace of the changes.

        def read():
            nonlocal whole
            while time.monotonic() < stop:
                try:
                    data = support.read_all(mounted / "changing")
                except OSError as error:
                    self.assertEqual(error.errno, errno.ESTALE)
                    continue
                self.assertIn(data, versions)
                whole += 1

        support.run_in_threads([replace, read, read, read])
        self.s3.put("bucket", "changing", versions[3])

        def settled():
            try:
                return support.read_all(mounted / "changing") == versions[3]
            except OSError:
                return False

        support.wait_until(settled, "the last version")


class StoreGoneTest(FaultTestCase):
    """No store: what is cached is served, what is not fails after the deadline, then all heals."""

    def mount_then_lose_the_store(self):
        mounted = self.mount_behind_proxy("--store-deadline=2s", "--look-ahead=off")
        self.assertEqual(support.read_all(mounted / "small"), self.tree["small"])
        os.listdir(mounted.path)
        self.s3.stop()
        return mounted

    def test_cached_files_read_on(self):
        mounted = self.mount_then_lose_the_store()
        for _ in range(2):
            support.drop_page_cache(mounted / "small")
            self.assertEqual(support.read_all(mounted / "small"), self.tree["small"])
        self.assertEqual(os.stat(mounted / "large").st_size, SIZES["large"])

    def test_a_miss_is_eio_after_the_deadline_with_one_line(self):
        mounted = self.mount_then_lose_the_store()
        began = time.monotonic()
        self.assertEqual(errno_of(support.read_at, mounted / "other", MIB, 4096), "EIO")
        elapsed = time.monotonic() - began
        self.assertGreater(elapsed, 0.5)
        self.assertLess(elapsed, 20)
        line, = mounted.log_lines("fetch failed")
        self.assertIn('path="other"', line)
        self.assertIn("s3://bucket", line)
        self.assertRegex(line, r"after \d+ tries in ")
        self.assertGreaterEqual(mounted.status()["errors"]["fetch/store"], 1)

    def test_many_readers_of_a_missing_store_wait_for_one_deadline(self):
        """Single flight holds for failures too: not a deadline for each reader in turn."""
        mounted = self.mount_then_lose_the_store()
        began = time.monotonic()

        def read():
            self.assertEqual(errno_of(support.read_at, mounted / "other", MIB, 4096), "EIO")

        support.run_in_threads([read] * 16)
        self.assertLess(time.monotonic() - began, 20)

    def test_the_store_comes_back_and_nothing_has_to_be_done(self):
        mounted = self.mount_then_lose_the_store()
        self.assertEqual(errno_of(support.read_at, mounted / "other", MIB, 4096), "EIO")
        self.s3.start()
        support.wait_until(lambda: errno_of(support.read_all, mounted / "other") is None,
                           "the next try, a second after the one that failed")
        for path, expected in self.tree.items():
            self.assertEqual(support.read_all(mounted / path), expected)

    def test_a_read_that_began_while_the_store_was_gone_succeeds(self):
        mounted = self.mount_behind_proxy("--store-deadline=30s")
        os.listdir(mounted.path)
        self.s3.stop()
        reader = subprocess.Popen(["cat", mounted / "other"], stdout=subprocess.PIPE)
        self.addCleanup(reader.kill)
        requests = mounted.status()["store"]["requests"]
        support.wait_until(lambda: mounted.status()["store"]["requests"] > requests, "a try")
        self.s3.start()
        self.assertEqual(reader.communicate(timeout=support.DEADLINE_S)[0], self.tree["other"])

    def test_unlisted_directories_are_eio_and_heal(self):
        self.s3.put("bucket", "deep/file", b"bytes")
        mounted = self.mount_behind_proxy("--store-deadline=1s")
        os.listdir(mounted.path)
        self.s3.stop()
        self.assertEqual(errno_of(os.listdir, mounted / "deep"), "EIO")
        self.s3.start()
        support.wait_until(lambda: errno_of(os.listdir, mounted / "deep") is None,
                           "the next try, a second after the one that failed")
        self.assertEqual(os.listdir(mounted / "deep"), ["file"])

    def test_warm_without_a_store_fails_with_the_cause(self):
        mounted = self.mount_then_lose_the_store()
        result = support.millrace("warm", mounted.path, "other")
        self.assertEqual(result.code, 1)
        self.assert_one_line(result.err, "1 of 1 files could not be loaded", "other")

    def test_umount_does_not_wait_for_the_store(self):
        mounted = self.mount_behind_proxy("--store-deadline=60s")
        os.listdir(mounted.path)
        self.s3.stop()
        reader = subprocess.Popen(["cat", mounted / "other"], stdout=subprocess.DEVNULL,
                                  stderr=subprocess.DEVNULL)
        self.addCleanup(reader.wait)
        requests = mounted.status()["store"]["requests"]
        support.wait_until(lambda: mounted.status()["store"]["requests"] > requests, "a try")
        reader.kill()
        began = time.monotonic()
        support.wait_until(lambda: mounted.umount().code == 0, "umount")
        support.wait_until(lambda: not mounted.serving(), "end of the daemon")
        self.assertLess(time.monotonic() - began, 20)


class StalledStoreTest(FaultTestCase):
    """A store that accepts and says nothing more."""

    def stalled_reader(self, mounted, path):
        """A `cat` that waits for bytes which do not come."""
        os.listdir(mounted.path)
        self.proxy.add(f"kind=stall,path=/bucket/{path},method=GET,after=1000,times=0")
        reader = subprocess.Popen(["cat", mounted / path], stdout=subprocess.PIPE,
                                  stderr=subprocess.PIPE)
        self.addCleanup(reader.communicate)
        self.addCleanup(reader.kill)
        support.wait_until(self.proxy.done, "the request that stalls")
        return reader

    def test_interrupted_readers_go_away_at_once(self):
        mounted = self.mount_behind_proxy("--look-ahead=off")
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGKILL):
            with self.subTest(number):
                reader = self.stalled_reader(mounted, "other")
                began = time.monotonic()
                reader.send_signal(number)
                self.assertEqual(reader.wait(support.DEADLINE_S), -number)
                self.assertLess(time.monotonic() - began, 5)

    def test_a_stalled_try_is_given_up_and_the_next_one_is_right(self):
        """After 20 s without a byte, however long the deadline is."""
        mounted = self.mount_behind_proxy("--look-ahead=off")
        reader = self.stalled_reader(mounted, "other")
        reader.kill()
        reader.wait()
        self.proxy.clear()
        self.assertEqual(support.read_all(mounted / "other"), self.tree["other"])

    def test_a_stalled_body_ends_with_the_deadline(self):
        mounted = self.mount_behind_proxy("--store-deadline=2s", "--look-ahead=off")
        reader = self.stalled_reader(mounted, "small")
        began = time.monotonic()
        _, error = reader.communicate(timeout=support.DEADLINE_S)
        self.assertIn(b"Input/output error", error)
        self.assertLess(time.monotonic() - began, 20)
        self.assertEqual(len(mounted.log_lines("fetch failed", "small")), 1, mounted.log())

    def test_other_objects_are_read_meanwhile(self):
        mounted = self.mount_behind_proxy("--look-ahead=off")
        self.stalled_reader(mounted, "other")
        for path in ("small", "large"):
            self.assertEqual(support.read_all(mounted / path), self.tree[path])

    def test_a_daemon_with_a_stalled_read_ends_on_sigterm(self):
        mounted = self.mount_behind_proxy("--look-ahead=off")
        self.stalled_reader(mounted, "other")
        began = time.monotonic()
        mounted.signal(signal.SIGTERM)
        support.wait_until(lambda: not mounted.serving(), "end of the daemon")
        self.assertLess(time.monotonic() - began, 20)
        self.assertIsNone(support.mount_entry(mounted.path))


@support.needs_root
class CacheDiskTest(support.MountTestCase):
    """Faults of the cache's disk cost time, never a byte."""

    def make_disk(self, size):
        """A small file system of the test's own."""
        disk = self.make_directory("disk")
        subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", disk], check=True)
        self.addCleanup(subprocess.run, ["umount", "-l", disk], check=False)
        return disk

    def test_a_full_disk_is_by_passed_and_counted(self):
        self.make_source({f"{i}": 2 * MIB for i in range(12)})
        disk = self.make_disk("24m")
        mounted = self.mount(self.source, f"--tier=ssd:{disk}/cache:20Mi")
        (disk / "ballast").write_bytes(bytes(16 * MIB))
        for _ in range(2):
            for path, expected in self.tree.items():
                self.assertEqual(support.read_all(mounted / path), expected)
                support.drop_page_cache(mounted / path)
        tier, = mounted.status()["tiers"]
        self.assertGreater(tier["faults"]["disk"] + tier["refused"], 0)
        self.assertTrue(mounted.log_lines("cache"), mounted.log())
        self.umount(mounted)

    def test_cache_files_removed_under_the_mount_are_no_error(self):
        """Somebody cleans up below /var/cache while the mount lives."""
        self.make_source({f"{i}": 2 * MIB for i in range(6)})
        mounted = self.mount(self.source)
        mounted.warm("0")
        support.read_all(mounted / "1")
        shutil.rmtree(self.directory / "cache")
        for _ in range(2):
            for path, expected in self.tree.items():
                support.drop_page_cache(mounted / path)
                self.assertEqual(support.read_all(mounted / path), expected)

    def test_cache_files_truncated_under_the_mount_are_no_error(self):
        """What is in page cache goes to the kernel unread; what is no longer there must not."""
        self.make_source({f"{i}": 100_000 + i for i in range(20)})
        mounted = self.mount(self.source, "--profile=small-files")
        mounted.warm()
        for path, expected in self.tree.items():
            self.assertEqual(support.read_all(mounted / path), expected)
        files = [path for path in (self.directory / "cache").rglob("*")
                 if path.parent.name == "complete"]
        self.assertEqual(len(files), len(self.tree))
        for number, path in enumerate(files):
            os.truncate(path, number * 5_000)
        for path, expected in self.tree.items():
            support.drop_page_cache(mounted / path)
            self.assertEqual(support.read_all(mounted / path), expected)
        self.assertGreater(mounted.status()["tiers"][0]["faults"]["damaged"], 0)


if __name__ == "__main__":
    support.main()
