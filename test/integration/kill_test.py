#!/usr/bin/env python3
"""Killing anything at any moment never yields a wrong byte; damaged caches are seen and dropped.

A failure prints the seed; MILLRACE_KILL_SEED repeats it.
"""

import os
import random
import shutil
import signal
import struct
import subprocess
import threading
import time

import support
from support import BLOCK, MIB, errno_of

ROUNDS = 50
KILL_AFTER_S_MAX = 0.5  # A round: start, recovery, a moment of filling.
READERS = 3


class KillDuringFillTest(support.MountTestCase):
    def setUp(self):
        super().setUp()
        self.seed = int(os.environ.get("MILLRACE_KILL_SEED", time.time_ns() % 1_000_000))
        self.dice = random.Random(self.seed)
        sizes = {f"small/{i:03}": self.dice.randrange(1, 160_000) for i in range(150)}
        sizes.update({f"large/{i}": 5 * MIB + i * 12_345 for i in range(8)})
        self.make_source(sizes)
        self.paths = list(self.tree)
        self.compared = 0

    def test_sigkill_and_remount_again_and_again(self):
        """The cache holds half of the data: files are filled, dropped and filled anew each time."""
        options = [self.tier(quota="28Mi"), "--eviction=sieve", "--refresh=1s"]
        for turn in range(ROUNDS):
            with self.subTest(turn=turn, seed=self.seed):
                profile = self.dice.choice(("small-files", "large-files"))
                self.round(*options, f"--profile={profile}")
        self.assertGreater(self.compared, 50 * MIB)
        mounted = self.mount(self.source, *options)
        expected = support.tree_digests(self.source)
        self.assertEqual(support.tree_digests(mounted.path), expected, self.seed)
        self.umount(mounted)
        self.assert_complete_files_are_whole(set(expected.values()))

    def round(self, *options):
        mountpoint = self.directory / "mnt"
        words = self.mount_command(self.source, "--foreground", *options)
        # What it logs is of interest only when it does not die by our hand.
        keeper = subprocess.Popen([support.MILLRACE, "mount", *words], stdin=subprocess.DEVNULL,
                                  stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
        killed = threading.Event()
        seeds = [self.dice.random() for _ in range(READERS)]
        after = self.dice.random() * KILL_AFTER_S_MAX

        def kill():
            time.sleep(after)  # tidy: allow-sleep The random moment that the test is about.
            killed.set()
            keeper.kill()
            support.kill_all(self.directory)

        readers = [lambda seed=seed: self.read_until(killed, mountpoint, seed) for seed in seeds]
        try:
            support.run_in_threads([kill, *readers])
        finally:
            keeper.kill()
            keeper.wait()
            support.kill_all(self.directory)
            log = keeper.stderr.read().decode(errors="replace")
            keeper.stderr.close()
            result = support.millrace("umount", mountpoint)
        self.assertEqual(keeper.returncode, -signal.SIGKILL, log)
        # Killed before it mounted: nothing to unmount.
        if result.code != 0:
            self.assert_one_line(result.err, "is not a mount")
        self.assertIsNone(support.mount_entry(mountpoint))

    def read_until(self, killed, mountpoint, seed):
        """Reads at random and compares, until the daemon is gone; before, every read must work."""
        dice = random.Random(seed)
        while support.mount_entry(mountpoint) is None:
            if killed.is_set():
                return
        while not killed.is_set():
            path = dice.choice(self.paths)
            expected = self.tree[path]
            offset = dice.randrange(len(expected)) if dice.random() < 0.5 else 0
            size = dice.choice((4096, BLOCK, MIB, len(expected)))
            try:
                data = support.read_at(mountpoint / path, offset, size)
            except OSError as error:
                # The kill may come between the read and this look.
                if not killed.wait(1):
                    raise AssertionError(f"{path} at {offset}: {error}") from error
                return
            if data != expected[offset:offset + len(data)] or not data:
                raise AssertionError(f"wrong bytes: {path} at {offset}, seed {self.seed}")
            self.compared += len(data)

    def assert_complete_files_are_whole(self, digests):
        found = 0
        for directory in (self.directory / "cache" / "sources").glob("*/complete"):
            for path, digest in support.tree_digests(directory).items():
                self.assertIn(digest, digests, path)
                found += 1
        self.assertGreater(found, 0)


def wait_for_journal(journal):
    """What is cached is recorded some milliseconds later; a kill before that loses the knowledge."""
    quiet_s = 0.3
    support.wait_until(lambda: time.time() - os.stat(journal).st_mtime > quiet_s,
                       "the journal to be written")


class StaleMountTest(support.MountTestCase):
    """After SIGKILL of both processes the mountpoint answers ENOTCONN: `mount` mounts again, every
    other command says what it is and the remedy."""

    def setUp(self):
        super().setUp()
        self.make_source({"file": 9 * MIB})
        self.mounted = self.mount(self.source)
        self.assertEqual(support.read_at(self.mounted / "file", 0, 4096),
                         self.tree["file"][:4096])
        self.mounted.warm()
        wait_for_journal(self.directory / "cache" / "journal")
        self.mounted.kill()
        support.wait_until(
            lambda: errno_of(os.statvfs, self.mounted.path) in ("ENOTCONN", "ECONNABORTED"),
            "the kernel to see that nobody answers")

    def test_status_says_dead_and_how_to_clean_up(self):
        result = support.millrace("status", self.mounted.path)
        self.assertEqual(result.code, 1)
        self.assert_one_line(result.err, str(self.mounted.path), "gone",
                             f"millrace umount {self.mounted.path}")
        listed = support.millrace("status")
        self.assertIn("dead", listed.out)
        self.assertIn(f"millrace umount {self.mounted.path}", listed.out)

    def test_mount_takes_its_place_with_the_cache_intact(self):
        again = self.mount(self.source)
        self.assertEqual(support.read_all(again / "file"), self.tree["file"])
        status = again.status()
        self.assertEqual(status["store"]["bytes"], 0)
        self.assertEqual(status["keeper"]["sessions_lost"], 1)
        self.assertTrue(again.log_lines("had lost both its processes", str(again.path)))
        self.mounts.remove(self.mounted)

    def test_umount_cleans_up_and_the_cache_is_found_again(self):
        result = self.mounted.umount()
        self.assertEqual(result.code, 0, result.err)
        self.assertIsNone(support.mount_entry(self.mounted.path))
        self.assertFalse(self.mounted.run_directory.exists())
        again = self.mount(self.source)
        self.assertEqual(support.read_all(again / "file"), self.tree["file"])
        self.assertEqual(again.store_bytes(), 0)

    def test_warm_and_evict_say_so_too(self):
        for command in ("warm", "evict"):
            result = support.millrace(command, self.mounted.path)
            self.assertEqual(result.code, 1)
            self.assert_one_line(result.err, str(self.mounted.path), "gone")


class KilledCommandTest(support.MountTestCase):
    def test_killed_warm_leaves_the_mount_serving(self):
        self.make_source({f"{i}": 2 * MIB for i in range(20)})
        mounted = self.mount(self.source)
        command = subprocess.Popen([support.MILLRACE, "warm", mounted.path],
                                   stdout=subprocess.DEVNULL)
        support.wait_until(lambda: mounted.store_bytes() > 0, "the first bytes")
        command.kill()
        command.wait()
        self.assertEqual(support.tree_digests(mounted.path), support.tree_digests(self.source))

    def test_killed_mount_command_leaves_nothing_or_a_mount(self):
        """SIGKILL of `millrace mount` itself: its daemon goes on without an audience."""
        self.make_source({"file": 10})
        words = self.mount_command(self.source)
        command = subprocess.Popen([support.MILLRACE, "mount", *words])
        support.wait_until(lambda: support.left_running(self.directory), "the daemon")
        command.kill()
        command.wait()

        def settled():
            if support.run_directory(words[-1]) is not None:
                return True
            return not support.left_running(self.directory)

        support.wait_until(settled, "a mount, or nothing")
        support.millrace("umount", words[-1])
        support.wait_until(lambda: not support.left_running(self.directory), "the end")


# --- Damage between two runs ----------------------------------------------------------------------

RECORD = struct.Struct("<IBBHII")  # Magic, type, flags, reserved, length, CRC32C; then the payload.
RECORD_MAGIC = 0x314a524d
JOURNAL_HEADER_BYTES = 16


def _crc32c_table():
    table = []
    for value in range(256):
        for _ in range(8):
            value = value >> 1 ^ (0x82f63b78 if value & 1 else 0)
        table.append(value)
    return table


CRC32C = _crc32c_table()


def crc32c(data):
    crc = 0xffffffff
    for byte in data:
        crc = crc >> 8 ^ CRC32C[(crc ^ byte) & 0xff]
    return crc ^ 0xffffffff


def pretend_other_boot(journal):
    """Rewrites the boot id of every session, as if the machine had lost power since."""
    with open("/proc/sys/kernel/random/boot_id", "rb") as file:
        boot_id = file.read().strip()
    data = bytearray(journal.read_bytes())
    at, rewritten = JOURNAL_HEADER_BYTES, 0
    while at + RECORD.size <= len(data):
        magic, kind, flags, reserved, length, _ = RECORD.unpack_from(data, at)
        if magic != RECORD_MAGIC:
            raise AssertionError(f"no record at {at} of {journal}: has its format changed?")
        body = slice(at + RECORD.size, at + RECORD.size + length)
        if boot_id in data[body]:
            data[body] = data[body].replace(boot_id, b"0" * len(boot_id))
            crc = crc32c(bytes(data[at + 4:at + 12]) + bytes(data[body]))
            RECORD.pack_into(data, at, magic, kind, flags, reserved, length, crc)
            rewritten += 1
        at = (body.stop + 7) // 8 * 8
    if rewritten == 0:
        raise AssertionError(f"no session with the boot id in {journal}")
    journal.write_bytes(data)


class DamageTest(support.MountTestCase):
    """A cache that was killed, and then damaged while nobody ran. Reads are right, always."""

    def setUp(self):
        super().setUp()
        self.make_source({**{f"small/{i}": 100_000 + i for i in range(10)},
                          "large": 6 * MIB + 77, "partial": 12 * MIB})
        mounted = self.mount(self.source, "--profile=large-files", "--look-ahead=off")
        mounted.warm("small", "large")
        support.read_direct(mounted / "partial", 5 * MIB, MIB)
        support.wait_until(lambda: os.getxattr(mounted / "partial", "user.millrace.cached") not in
                           (b"none", b"complete"), "a part of the file")
        self.cache = self.directory / "cache"
        self.journal = self.cache / "journal"
        wait_for_journal(self.journal)
        mounted.kill()
        self.assertEqual(mounted.umount().code, 0)

    def data_files(self):
        return sorted(path for path in (self.cache / "sources").glob("*/*/*") if path.is_file())

    def assert_reads_right(self):
        """Everything, twice, with the page cache dropped; returns the mount."""
        mounted = self.mount(self.source, "--profile=large-files", "--look-ahead=off")
        for _ in range(2):
            for path, expected in self.tree.items():
                self.assertEqual(support.read_all(mounted / path), expected, path)
                support.drop_page_cache(mounted / path)
        return mounted

    def faults(self, mounted):
        tier, = mounted.status()["tiers"]
        return tier["faults"]["damaged"]

    def flip(self, path, offset, count=1):
        data = bytearray(path.read_bytes())
        for i in range(offset, min(offset + count, len(data))):
            data[i] ^= 0x5a
        path.write_bytes(data)

    def test_undamaged_cache_is_found_again_after_a_kill(self):
        mounted = self.assert_reads_right()
        self.assertEqual(self.faults(mounted), 0)
        # Only what was not there before is fetched now.
        self.assertLessEqual(mounted.store_bytes(), 12 * MIB)
        self.assertGreater(mounted.store_bytes(), 0)

    def test_undamaged_cache_is_verified_and_kept_after_a_power_cut(self):
        pretend_other_boot(self.journal)
        mounted = self.assert_reads_right()
        self.assertEqual(self.faults(mounted), 0)
        self.assertLessEqual(mounted.store_bytes(), 12 * MIB)

    def test_flipped_bytes_after_a_power_cut_are_detected(self):
        pretend_other_boot(self.journal)
        files = self.data_files()
        self.assertGreaterEqual(len(files), 12)
        for path in files:
            self.flip(path, os.path.getsize(path) // 2)
        mounted = self.assert_reads_right()
        self.assertGreaterEqual(self.faults(mounted), 10)

    def test_flipped_bytes_are_detected_by_mapped_and_direct_readers(self):
        pretend_other_boot(self.journal)
        for path in self.data_files():
            self.flip(path, os.path.getsize(path) // 2)
        mounted = self.mount(self.source, "--profile=large-files")
        self.assertEqual(support.read_mapped(mounted / "large", 0, 6 * MIB + 77),
                         self.tree["large"])
        self.assertEqual(support.read_direct(mounted / "small/3", 0, MIB), self.tree["small/3"])

    def test_zeroed_blocks_after_a_power_cut_are_detected(self):
        """What a file system does to data that had not reached the disk."""
        pretend_other_boot(self.journal)
        for path in self.data_files():
            size = os.path.getsize(path)
            os.truncate(path, 0)
            os.truncate(path, size)
        mounted = self.assert_reads_right()
        self.assertGreater(self.faults(mounted), 0)

    def test_truncated_data_files_are_detected(self):
        for path in self.data_files():
            os.truncate(path, os.path.getsize(path) // 2)
        mounted = self.assert_reads_right()
        self.assertGreater(self.faults(mounted), 0)

    def test_removed_data_files_are_detected(self):
        for path in self.data_files()[::2]:
            path.unlink()
        self.assert_reads_right()

    def test_data_files_of_other_types_are_detected(self):
        for number, path in enumerate(self.data_files()):
            path.unlink()
            if number % 3 == 0:
                path.mkdir()
            elif number % 3 == 1:
                path.symlink_to("/etc/passwd")
            else:
                os.mkfifo(path)
        self.assert_reads_right()

    def test_exchanged_data_files_are_detected_after_a_power_cut(self):
        pretend_other_boot(self.journal)
        files = [path for path in self.data_files() if path.parent.name == "complete"]
        for one, other in zip(files[::2], files[1::2]):
            one.rename(self.directory / "aside")
            other.rename(one)
            (self.directory / "aside").rename(other)
        self.assert_reads_right()

    def test_foreign_files_are_dropped_or_left_alone(self):
        source, = (self.cache / "sources").iterdir()
        (self.cache / "foreign").write_bytes(b"x")
        (source / "foreign").write_bytes(b"x")
        (source / "complete" / "foreign").write_bytes(b"x")
        (source / "complete" / ("0" * 32)).write_bytes(b"x" * 100)
        (source / "partial" / ("f" * 32)).mkdir()
        (self.cache / "sources" / ("a" * 16)).mkdir()
        (self.cache / "sources" / "not-hex").write_bytes(b"")
        mounted = self.assert_reads_right()
        self.assertLessEqual(mounted.store_bytes(), 12 * MIB)

    def test_damaged_journals(self):
        """Flips, cuts, zeros and rubbish at many places: never wrong bytes, never no mount."""
        intact = self.directory / "intact"
        shutil.copytree(self.cache, intact, symlinks=True)
        size = os.path.getsize(self.journal)

        def rubbish(length):
            return random.Random(length).randbytes(length)

        damages = {
            "empty": lambda: os.truncate(self.journal, 0),
            "cut in the header": lambda: os.truncate(self.journal, 9),
            "cut in a record": lambda: os.truncate(self.journal, size // 2 + 3),
            "cut one byte": lambda: os.truncate(self.journal, size - 1),
            "removed": self.journal.unlink,
            "rubbish": lambda: self.journal.write_bytes(rubbish(size)),
            "rubbish behind": lambda: self.journal.write_bytes(
                self.journal.read_bytes() + rubbish(5000)),
            "zeros behind": lambda: os.truncate(self.journal, size + 5000),
            "twice": lambda: self.journal.write_bytes(self.journal.read_bytes() * 2),
            "header": lambda: self.flip(self.journal, 3),
            "version": lambda: self.flip(self.journal, 8),
            **{f"flip at {at}": (lambda at=at: self.flip(self.journal, at))
               for at in range(20, size, max(1, size // 8))},
        }
        for name, damage in damages.items():
            with self.subTest(name):
                damage()
                self.umount(self.assert_reads_right())
                shutil.rmtree(self.cache)
                shutil.copytree(intact, self.cache, symlinks=True)

    def test_a_lock_or_url_file_that_is_damaged(self):
        source, = (self.cache / "sources").iterdir()
        (source / "url").write_bytes(b"file:///somewhere/else")
        self.assert_reads_right()


if __name__ == "__main__":
    support.main()
