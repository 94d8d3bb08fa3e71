#!/usr/bin/env python3
"""A mount of a directory, used by all the calls that programs read files with.

The store is file:// : quick, and it changes nothing about the kernel's side.
"""

import contextlib
import ctypes
import json
import mmap
import os
import pathlib
import random
import shutil
import signal
import stat
import subprocess
import time
import unittest

import support
from support import BLOCK, MIB, errno_of

# Around every size at which something changes: page, block, one-GET object, FUSE request, flight.
SIZES = {
    "empty": 0,
    "one": 1,
    "page-1": 4095,
    "page": 4096,
    "page+1": 4097,
    "deep/er/block-1": BLOCK - 1,
    "deep/er/block": BLOCK,
    "deep/er/block+1": BLOCK + 1,
    "deep/whole": MIB,
    "deep/whole+17": MIB + 17,
    "flight": 4 * MIB,
    "large": 9 * MIB + 333,
}


class ReadCases:
    """Every way of reading gives the source's bytes; once for each profile."""

    profile = None
    medium = "ssd"

    def setUp(self):
        super().setUp()
        self.make_source(SIZES)
        self.mounted = self.mount(self.source, f"--profile={self.profile}",
                                  self.tier(medium=self.medium))

    def for_each_file(self):
        for path, expected in self.tree.items():
            with self.subTest(path):
                yield self.mounted / path, expected

    def test_tree_equals_source_cold_and_warm_and_after_page_cache(self):
        expected = support.tree_digests(self.source)
        for state in ("cold", "warm", "page cache dropped"):
            with self.subTest(state):
                self.assertEqual(support.tree_digests(self.mounted.path), expected)
            for path in self.tree:
                support.drop_page_cache(self.mounted / path)

    def test_second_pass_fetches_nothing(self):
        support.tree_digests(self.mounted.path)
        self.assert_fetched(self.mounted, sum(SIZES.values()))
        for path in self.tree:
            support.drop_page_cache(self.mounted / path)
        support.tree_digests(self.mounted.path)
        self.assert_fetched(self.mounted, sum(SIZES.values()))

    def test_stat_is_that_of_the_source(self):
        for path in self.tree:
            ours, theirs = os.stat(self.mounted / path), os.stat(self.source / path)
            self.assertEqual((ours.st_size, ours.st_mtime_ns), (theirs.st_size, theirs.st_mtime_ns))
            self.assertEqual(stat.filemode(ours.st_mode), "-r--r--r--")
            self.assertEqual((ours.st_uid, ours.st_gid), (os.geteuid(), os.getegid()))
        directory = os.stat(self.mounted / "deep")
        self.assertEqual(stat.filemode(directory.st_mode), "dr-xr-xr-x")

    def test_pread_at_odd_offsets_of_cold_files(self):
        dice = random.Random(7)
        for path, expected in self.for_each_file():
            for _ in range(20):
                offset = dice.randrange(len(expected) + 2)
                size = dice.choice((1, 3, 511, 4097, BLOCK, BLOCK + 1, 300_001))
                self.assertEqual(support.read_at(path, offset, size),
                                 expected[offset:offset + size], (offset, size))

    def test_reads_at_and_behind_the_end_are_short(self):
        for path, expected in self.for_each_file():
            size = len(expected)
            self.assertEqual(support.read_at(path, size, 100), b"")
            self.assertEqual(support.read_at(path, size + 12_345, 100), b"")
            self.assertEqual(support.read_at(path, max(0, size - 5), 100), expected[-5:])

    def test_mmap_of_cold_files(self):
        for path, expected in self.for_each_file():
            if expected:
                self.assertEqual(support.read_mapped(path, 0, len(expected)), expected)

    def test_direct_reads_of_cold_files(self):
        for path, expected in self.for_each_file():
            for offset in range(0, len(expected) + 1, MIB):
                self.assertEqual(support.read_direct(path, offset, 2 * MIB),
                                 expected[offset:offset + 2 * MIB])

    def test_direct_and_mapped_reads_of_warm_files(self):
        self.mounted.warm()
        for path, expected in self.for_each_file():
            self.assertEqual(support.read_direct(path, 0, 16 * MIB), expected)
            if expected:
                self.assertEqual(support.read_mapped(path, 0, len(expected)), expected)

    def test_sendfile_copies(self):
        for path, expected in self.for_each_file():
            copy = self.directory / "copy"
            with open(path, "rb") as source, open(copy, "wb") as target:
                sent = 0
                while count := os.sendfile(target.fileno(), source.fileno(), sent, 1 << 30):
                    sent += count
            self.assertEqual(copy.read_bytes(), expected)

    def test_backwards_and_strided_reads(self):
        path, expected = self.mounted / "large", self.tree["large"]
        with support.open_fd(path) as fd:
            for offset in range(len(expected) - 1, 0, -777_777):
                self.assertEqual(os.pread(fd, 4096, offset), expected[offset:offset + 4096])
            for offset in range(0, len(expected), 2 * BLOCK + 5):
                self.assertEqual(os.pread(fd, 99, offset), expected[offset:offset + 99])

    def test_sixteen_readers_of_one_cold_file(self):
        path, expected = self.mounted / "large", self.tree["large"]

        def read():
            self.assertEqual(support.read_all(path), expected)

        support.run_in_threads([read] * 16)
        self.assert_fetched(self.mounted, len(expected))

    def test_reads_go_on_in_a_cached_file_that_is_evicted(self):
        self.mounted.warm("large")
        with support.open_fd(self.mounted / "large") as fd:
            self.assertEqual(os.pread(fd, 1000, 5 * MIB), self.tree["large"][5 * MIB:][:1000])
            self.mounted.evict()
            os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
            self.assertEqual(os.pread(fd, 16 * MIB, 0)[:MIB], self.tree["large"][:MIB])
        self.assertEqual(support.read_all(self.mounted / "large"), self.tree["large"])


class MemoryTierReadTest(ReadCases, support.MountTestCase):
    """A file that fills in memory by-passes the page cache, and is mapped all the same."""

    profile = "large-files"
    medium = "mem"

    def test_the_page_cache_keeps_nothing_while_the_file_fills(self):
        with support.open_fd(self.mounted / "large") as fd:
            self.assertEqual(os.pread(fd, BLOCK, 0), self.tree["large"][:BLOCK])
            # What is in the page cache is given without waiting.
            self.assertIn(errno_of(os.preadv, fd, [bytearray(BLOCK)], 0, os.RWF_NOWAIT),
                          ("EAGAIN", "ENOTSUP"))

    def test_a_reader_may_map_what_it_reads(self):
        with support.open_fd(self.mounted / "large") as fd:
            self.assertEqual(os.pread(fd, MIB, 0), self.tree["large"][:MIB])
            size = len(self.tree["large"])
            for flags in (mmap.MAP_SHARED, mmap.MAP_PRIVATE):
                with mmap.mmap(fd, size, flags=flags, prot=mmap.PROT_READ) as mapped:
                    self.assertEqual(mapped[:], self.tree["large"])
            self.assertEqual(os.pread(fd, MIB, 3 * MIB), self.tree["large"][3 * MIB:4 * MIB])
        self.assertEqual(support.read_all(self.mounted / "large"), self.tree["large"])


class LargeFilesReadTest(ReadCases, support.MountTestCase):
    profile = "large-files"


class SmallFilesReadTest(ReadCases, support.MountTestCase):
    profile = "small-files"


class PosixReadTest(support.MountTestCase):
    """The other way of reading cache files, which kernels without io_uring take."""

    def test_tree_equals_source_without_io_uring(self):
        self.make_source(SIZES)
        mounted = self.mount(self.source, "--io=posix", "--no-passthrough")
        self.assertEqual(mounted.status()["io"], "posix")
        for _ in range(2):
            self.assertEqual(support.tree_digests(mounted.path), support.tree_digests(self.source))
            for path in self.tree:
                support.drop_page_cache(mounted / path)


class ListingTest(support.MountTestCase):
    NAMES = 5_000

    def setUp(self):
        super().setUp()
        self.make_source({f"many/{i:05}.jpg": i % 100 for i in range(self.NAMES)})
        (self.source / "many" / "zz-directory").mkdir()
        self.names = sorted(os.listdir(self.source / "many"))
        self.mounted = self.mount(self.source)

    def test_five_thousand_names(self):
        self.assertEqual(sorted(os.listdir(self.mounted / "many")), self.names)
        # Again, from what the kernel and the daemon have kept.
        self.assertEqual(sorted(os.listdir(self.mounted / "many")), self.names)

    def test_entries_agree_with_stat(self):
        entries = 0
        with os.scandir(self.mounted / "many") as listing:
            for entry in listing:
                found = os.stat(entry.path)
                self.assertEqual(entry.inode(), found.st_ino)
                self.assertEqual(entry.is_dir(), stat.S_ISDIR(found.st_mode))
                if not entry.is_dir():
                    self.assertEqual(found.st_size, int(entry.name[:5]) % 100)
                entries += 1
        self.assertEqual(entries, self.NAMES + 1)

    def test_names_have_distinct_node_ids(self):
        with os.scandir(self.mounted / "many") as listing:
            self.assertEqual(len({entry.inode() for entry in listing}), self.NAMES + 1)

    def test_listing_with_attributes_asks_for_few(self):
        """READDIRPLUS brings the attributes: `ls -l` must not cost a LOOKUP for each name."""
        before = self.operations()
        listed = subprocess.run(["ls", "-l", self.mounted / "many"], capture_output=True,
                                check=True).stdout
        self.assertEqual(len(listed.splitlines()), self.NAMES + 2)  # And "total".
        asked = self.operations() - before
        self.assertLess(asked, self.NAMES / 4)

    def operations(self):
        """Lookups and stats that reached the store's side so far: each may cost a round trip."""
        return self.mounted.status()["store"]["requests"]

    def test_telldir_and_seekdir(self):
        libc = ctypes.CDLL(None, use_errno=True)
        libc.opendir.restype = ctypes.c_void_p
        libc.readdir.restype = ctypes.c_void_p
        libc.telldir.restype = ctypes.c_long
        for function in (libc.readdir, libc.telldir, libc.rewinddir, libc.closedir):
            function.argtypes = [ctypes.c_void_p]
        libc.seekdir.argtypes = [ctypes.c_void_p, ctypes.c_long]

        def next_name(directory):
            entry = libc.readdir(directory)
            return ctypes.string_at(entry + 19) if entry else None  # struct dirent: d_name.

        directory = libc.opendir(os.fsencode(self.mounted / "many"))
        self.addCleanup(libc.closedir, directory)
        first = next_name(directory)
        for _ in range(3_000):
            next_name(directory)
        position = libc.telldir(directory)
        rest = next_name(directory)
        while next_name(directory):
            pass
        libc.seekdir(directory, position)
        self.assertEqual(next_name(directory), rest)
        libc.rewinddir(directory)
        self.assertEqual(next_name(directory), first)

    def test_find_walks_everything(self):
        found = subprocess.run(["find", self.mounted.path, "-type", "f"], capture_output=True,
                               text=True, check=True).stdout
        self.assertEqual(len(found.splitlines()), self.NAMES)

    def test_what_is_not_there(self):
        self.assertEqual(errno_of(os.stat, self.mounted / "nothing"), "ENOENT")
        self.assertEqual(errno_of(os.stat, self.mounted / "nothing" / "below"), "ENOENT")
        self.assertEqual(errno_of(os.stat, self.mounted / "many" / "00001.jpg" / "x"), "ENOTDIR")
        self.assertEqual(errno_of(os.listdir, self.mounted / "many" / "00001.jpg"), "ENOTDIR")
        self.assertEqual(errno_of(os.open, self.mounted / "many", os.O_WRONLY), "EISDIR")
        self.assertEqual(errno_of(os.stat, self.mounted / ("n" * 256)), "ENOENT")


class ReadOnlyTest(support.MountTestCase):
    """Nothing can be changed, and everybody is told so with the same word."""

    def setUp(self):
        super().setUp()
        self.make_source({"file": 100, "directory/file": 100})
        self.mounted = self.mount(self.source)

    def test_every_write_gives_erofs(self):
        file, directory, new = (self.mounted / name for name in ("file", "directory", "new"))
        outside = self.directory / "outside"
        outside.write_bytes(b"")
        writes = {
            "open for writing": (os.open, file, os.O_WRONLY),
            "open for both": (os.open, file, os.O_RDWR),
            "open for appending": (os.open, file, os.O_WRONLY | os.O_APPEND),
            "open and truncate": (os.open, file, os.O_WRONLY | os.O_TRUNC),
            "create": (os.open, new, os.O_CREAT | os.O_WRONLY),
            "create in a directory": (os.open, directory / "new", os.O_CREAT | os.O_WRONLY),
            "temporary file": (os.open, directory, os.O_TMPFILE | os.O_RDWR),
            "mkdir": (os.mkdir, new),
            "rmdir": (os.rmdir, directory),
            "unlink": (os.unlink, file),
            "rename": (os.rename, file, new),
            "rename of a directory": (os.rename, directory, new),
            "chmod": (os.chmod, file, 0o777),
            "chown": (os.chown, file, 1, 1),
            "truncate": (os.truncate, file, 0),
            "setxattr": (os.setxattr, file, "user.x", b"1"),
            "setxattr of our own": (os.setxattr, file, "user.millrace.version", b"1"),
            "removexattr": (os.removexattr, file, "user.millrace.version"),
            "symlink": (os.symlink, "file", new),
            "link": (os.link, file, new),
            "mkfifo": (os.mkfifo, new),
            "utimes": (os.utime, file, (1, 1)),
            "utimes of a directory": (os.utime, directory, (1, 1)),
        }
        for name, (call, *arguments) in writes.items():
            with self.subTest(name):
                self.assertEqual(errno_of(call, *arguments), "EROFS")
        self.assertEqual(errno_of(os.rename, outside, new), "EXDEV")
        self.assertEqual(support.tree_digests(self.mounted.path),
                         support.tree_digests(self.source))

    def test_a_shared_mapping_cannot_be_made_writable(self):
        with support.open_fd(self.mounted / "file") as fd:
            self.assertEqual(errno_of(mmap.mmap, fd, 0, prot=mmap.PROT_READ | mmap.PROT_WRITE),
                             "EACCES")

    def test_the_mount_says_that_it_is_read_only(self):
        source, kind, options = support.mount_entry(self.mounted.path)
        self.assertEqual(kind, "fuse.millrace")
        self.assertEqual(source, f"file://{self.source}")
        self.assertLessEqual({"ro", "nosuid", "nodev"}, set(options))
        self.assertTrue(os.statvfs(self.mounted.path).f_flag & os.ST_RDONLY)

    def test_atime_stays(self):
        before = os.stat(self.mounted / "file").st_atime_ns
        support.read_all(self.mounted / "file")
        self.assertEqual(os.stat(self.mounted / "file").st_atime_ns, before)


class AttributesTest(support.MountTestCase):
    def test_xattrs_tell_version_source_and_cache_state(self):
        self.make_source({"file": 20 * MIB, "empty": 0})
        mounted = self.mount(self.source)
        path = mounted / "file"
        self.assertEqual(sorted(os.listxattr(path)),
                         ["user.millrace.cached", "user.millrace.source", "user.millrace.version"])
        self.assertEqual(os.getxattr(path, "user.millrace.source").decode(),
                         f"file://{self.source}")
        theirs = os.stat(self.source / "file")
        self.assertEqual(os.getxattr(path, "user.millrace.version").decode(),
                         f"{theirs.st_mtime_ns}-{theirs.st_size}")
        self.assertEqual(os.getxattr(path, "user.millrace.cached"), b"none")
        support.read_direct(path, 8 * MIB, 4096)
        support.wait_until(
            lambda: os.getxattr(path, "user.millrace.cached").startswith(b"partial "),
            "the block that was read")
        mounted.warm()
        self.assertEqual(os.getxattr(path, "user.millrace.cached"), b"complete")
        self.assertEqual(os.getxattr(mounted / "empty", "user.millrace.cached"), b"complete")
        mounted.evict("file")
        self.assertEqual(os.getxattr(path, "user.millrace.cached"), b"none")

    def test_other_xattrs_do_not_exist(self):
        self.make_source({"file": 1})
        mounted = self.mount(self.source)
        self.assertEqual(errno_of(os.getxattr, mounted / "file", "user.other"), "ENODATA")
        self.assertEqual(errno_of(os.getxattr, mounted / "file", "security.capability"), "ENODATA")
        self.assertEqual(os.listxattr(mounted.path), [])

    def test_statfs_shows_the_cache(self):
        self.make_source({"file": 40 * MIB})
        mounted = self.mount(self.source, self.tier(quota="1Gi"))
        before = os.statvfs(mounted.path)
        self.assertEqual(before.f_blocks * before.f_frsize, 1 << 30)
        self.assertEqual(before.f_namemax, 255)
        mounted.warm()
        after = os.statvfs(mounted.path)
        self.assertEqual((before.f_bfree - after.f_bfree) * after.f_frsize, 40 * MIB)

    def test_owner_and_modes_are_those_asked_for(self):
        self.make_source({"directory/file": 1})
        mounted = self.mount(self.source, "--uid=1234", "--gid=2345", "--file-mode=0640",
                             "--dir-mode=0750")
        file, directory = os.stat(mounted / "directory/file"), os.stat(mounted / "directory")
        self.assertEqual((file.st_uid, file.st_gid, stat.S_IMODE(file.st_mode)),
                         (1234, 2345, 0o640))
        self.assertEqual((directory.st_uid, directory.st_gid, stat.S_IMODE(directory.st_mode)),
                         (1234, 2345, 0o750))

    @support.needs_root
    def test_other_users_need_allow_other_and_the_mode(self):
        """`cat` as nobody: refused by default, by mode, and allowed."""
        self.make_source({"file": 5})
        for parent in (self.directory, support.temporary_root()):
            os.chmod(parent, 0o755)
        cases = {(): False, ("--allow-other",): True,
                 ("--allow-other", "--file-mode=0400"): False}
        for number, (options, allowed) in enumerate(cases.items()):
            with self.subTest(options):
                mounted = self.mount(self.source, *options, self.tier(f"cache{number}"),
                                     mountpoint=f"mnt{number}")
                done = subprocess.run(["cat", mounted / "file"], user="nobody",
                                      capture_output=True, check=False)
                self.assertEqual(done.returncode == 0, allowed, done.stderr)
                self.assertEqual(done.stdout, self.tree["file"] if allowed else b"")

    @support.needs_root
    def test_access_says_what_the_modes_say(self):
        """The same answers from the kernel (modes that tell users apart) and from the daemon."""
        self.make_source({"directory/file": 5})
        cases = {(): False, ("--file-mode=0555",): True, ("--file-mode=0544", "--uid=0"): True,
                 ("--file-mode=0440", "--gid=0"): False}
        for number, (options, executable) in enumerate(cases.items()):
            with self.subTest(options):
                mounted = self.mount(self.source, *options, self.tier(f"cache{number}"),
                                     mountpoint=f"mnt{number}")
                self.assertTrue(os.access(mounted / "directory/file", os.R_OK))
                self.assertFalse(os.access(mounted / "directory/file", os.W_OK))
                self.assertEqual(os.access(mounted / "directory/file", os.X_OK), executable)
                self.assertTrue(os.access(mounted / "directory", os.R_OK | os.X_OK))
                self.assertFalse(os.access(mounted / "missing", os.F_OK))
                with contextlib.chdir(mounted / "directory"):
                    self.assertEqual(os.listdir("."), ["file"])


class SourcesTest(support.MountTestCase):
    def test_named_sources_join_in_one_tree(self):
        train = support.make_tree(self.make_directory("t"), {"a/1": 10, "2": BLOCK + 1})
        val = support.make_tree(self.make_directory("v"), {"a/1": 20})
        mounted = self.mount([f"train=file://{self.directory}/t", f"val=file://{self.directory}/v"])
        self.assertEqual(sorted(os.listdir(mounted.path)), ["train", "val"])
        for name, tree in (("train", train), ("val", val)):
            for path, expected in tree.items():
                self.assertEqual(support.read_all(mounted / name / path), expected)
        self.assertEqual(errno_of(os.stat, mounted / "test"), "ENOENT")
        self.assertEqual({source["name"] for source in mounted.status()["sources"]},
                         {"train", "val"})

    def test_one_named_source_is_a_directory(self):
        self.make_source({"a": 10})
        mounted = self.mount(f"train=file://{self.source}")
        self.assertEqual(os.listdir(mounted.path), ["train"])
        self.assertEqual(support.read_all(mounted / "train/a"), self.tree["a"])
        mounted.warm("train")
        self.assertEqual(os.getxattr(mounted / "train/a", "user.millrace.cached"), b"complete")

    def test_configuration_file_as_a_cluster_writes_it(self):
        self.make_source({"a": 10})
        config = self.directory / "runtime.json"
        config.write_text(json.dumps({
            "mounts": [{"mountPoint": f"file://{self.source}", "name": "train", "path": "/train"}],
            "targetPath": str(self.make_directory("mnt")),
            "accessModes": ["ReadOnlyMany"],
            "client": {
                "options": {"memory-limit": "128Mi"},
                "tieredStoreLevels": [{"mountPaths": [str(self.directory / "cache")],
                                       "mediumType": "SSD", "quotas": ["1Gi"],
                                       "high": "0.95", "low": "0.7"}],
            },
        }))
        result = support.millrace("mount", "--config", config)
        self.assertEqual(result.code, 0, result.err)
        mounted = support.Mount(self.directory / "mnt", result.out)
        self.mounts.append(mounted)
        self.assertEqual(support.read_all(mounted / "train/a"), self.tree["a"])
        status = mounted.status()
        self.assertEqual(status["memory"]["limit_bytes"], 128 * MIB)
        self.assertEqual(status["tiers"][0]["path"], str(self.directory / "cache"))


class ProfileTest(support.MountTestCase):
    """`--profile auto` decides as ARCHITECTURE.md says, before the first open."""

    def profile_of(self, sizes):
        mounted = self.mount(self.make_source(sizes))
        # Opens wait for the choice.
        support.read_all(mounted / next(iter(sizes)))
        profile = mounted.status()["profile"]
        for path, expected in self.tree.items():
            self.assertEqual(support.read_all(mounted / path), expected)
        return profile

    def test_small_files(self):
        self.assertEqual(self.profile_of({f"{i}": 100_000 for i in range(50)}), "small-files")

    def test_large_files(self):
        self.assertEqual(self.profile_of({f"{i}": MIB + 1 for i in range(8)}), "large-files")

    def test_one_large_file_in_ten_is_still_small_files(self):
        sizes = {f"{i}": 900_000 for i in range(9)}
        self.assertEqual(self.profile_of({**sizes, "large": 2 * MIB}), "small-files")

    def test_two_large_files_in_ten_are_large_files(self):
        sizes = {f"{i}": 900_000 for i in range(8)}
        self.assertEqual(self.profile_of({**sizes, "a": MIB, "b": MIB}), "large-files")

    def test_small_files_that_hold_few_bytes_are_large_files(self):
        sizes = {f"{i}": 1000 for i in range(30)}
        self.assertEqual(self.profile_of({**sizes, "large": 3 * MIB}), "large-files")

    def test_small_files_answer_no_open(self):
        """The kernel opens by itself after the first: no OPEN, no RELEASE, for thousands."""
        mounted = self.mount(self.make_source({f"{i}": 100 for i in range(200)}),
                             "--profile=small-files", f"--metrics=127.0.0.1:{free_port()}")
        for path in self.tree:
            support.read_all(mounted / path)
        self.assertTrue(mounted.status()["features"]["open_less"])
        self.assertEqual(mounted.status()["passthrough"]["opens"], 0)


def free_port():
    return support.s3_server.free_port()


@support.needs_root
class PassthroughTest(support.MountTestCase):
    """Complete files are read by the kernel alone."""

    SIZE = 24 * MIB

    def setUp(self):
        super().setUp()
        self.make_source({"large": self.SIZE})
        self.mounted = self.mount(self.source, "--profile=large-files")
        if not self.mounted.status()["features"]["passthrough"]:
            self.skipTest("this kernel has no FUSE passthrough")

    def test_reads_go_on_while_the_daemon_is_stopped(self):
        self.mounted.warm()
        passthrough = self.mounted.status()["passthrough"]
        with support.open_fd(self.mounted / "large") as fd:
            after = self.mounted.status()["passthrough"]
            self.assertEqual(after["opens"], passthrough["opens"] + 1)
            self.assertEqual(after["bytes_opened"], passthrough["bytes_opened"] + self.SIZE)
            self.mounted.signal(signal.SIGSTOP)
            try:
                os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
                self.assertEqual(read_with_deadline(fd, self.SIZE), self.tree["large"])
            finally:
                self.mounted.signal(signal.SIGCONT)

    def test_reads_that_pass_through_are_not_counted_as_reads(self):
        self.mounted.warm()
        before = self.mounted.status()["reads"]
        self.assertEqual(support.read_all(self.mounted / "large"), self.tree["large"])
        self.assertEqual(self.mounted.status()["reads"], before)

    def test_incomplete_files_do_not_pass_through(self):
        support.read_direct(self.mounted / "large", 8 * MIB, 4096)
        support.read_direct(self.mounted / "large", 8 * MIB, 4096)
        self.assertEqual(self.mounted.status()["passthrough"]["opens"], 0)

    def test_mixed_opens_of_one_file_see_the_same_bytes(self):
        """Opened while it fills, and again when complete: both ways at once."""
        with support.open_fd(self.mounted / "large") as early:
            self.assertEqual(os.pread(early, 100, 0), self.tree["large"][:100])
            self.mounted.warm()
            with support.open_fd(self.mounted / "large") as late:
                for offset in range(0, self.SIZE, 3 * MIB + 11):
                    expected = self.tree["large"][offset:offset + 70_000]
                    self.assertEqual(os.pread(late, 70_000, offset), expected)
                    self.assertEqual(os.pread(early, 70_000, offset), expected)

    def test_mmap_passes_through(self):
        self.mounted.warm()
        with support.open_fd(self.mounted / "large") as fd:
            with mmap.mmap(fd, 0, prot=mmap.PROT_READ) as mapped:
                self.mounted.signal(signal.SIGSTOP)
                try:
                    os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
                    self.assertEqual(mapped[:], self.tree["large"])
                finally:
                    self.mounted.signal(signal.SIGCONT)

    def test_no_passthrough_is_obeyed(self):
        mounted = self.mount(self.source, "--profile=large-files", "--no-passthrough",
                             self.tier("other"), mountpoint="other-mnt")
        mounted.warm()
        self.assertEqual(support.read_all(mounted / "large"), self.tree["large"])
        self.assertEqual(mounted.status()["passthrough"]["opens"], 0)


def read_with_deadline(fd, size):
    """pread in a child that can be killed: the daemon that would answer is stopped."""
    reader = subprocess.Popen(["dd", "bs=1M", "status=none"], stdin=fd, stdout=subprocess.PIPE)
    try:
        return reader.communicate(timeout=support.DEADLINE_S)[0]
    finally:
        reader.kill()
        reader.wait()


class CommandTest(support.MountTestCase):
    """warm, evict and status against a living mount."""

    def setUp(self):
        super().setUp()
        self.make_source({"train/a": MIB, "train/b": 300_000, "val/c": 200_000, "d": 5})
        self.mounted = self.mount(self.source)

    def cached(self, path):
        return os.getxattr(self.mounted / path, "user.millrace.cached").decode()

    def test_warm_loads_everything(self):
        result = support.millrace("warm", self.mounted.path)
        self.assertEqual(result.code, 0, result.err)
        self.assertIn("4 files", result.out)
        self.assert_fetched(self.mounted, sum(map(len, self.tree.values())))
        self.assertEqual({self.cached(path) for path in self.tree}, {"complete"})
        self.mounted.warm()
        self.assert_fetched(self.mounted, sum(map(len, self.tree.values())))

    def test_warm_of_some_paths(self):
        self.mounted.warm("train/a", self.mounted / "val")
        self.assertEqual({path: self.cached(path) for path in self.tree},
                         {"train/a": "complete", "train/b": "none", "val/c": "complete",
                          "d": "none"})

    def test_warm_json_ends_with_the_whole(self):
        result = support.millrace("warm", "--json", self.mounted.path)
        last = json.loads(result.out.splitlines()[-1])
        self.assertTrue(last["done"])
        self.assertEqual((last["files_done"], last["files_total"], last["files_failed"]), (4, 4, 0))
        self.assertEqual(last["bytes_done"], sum(map(len, self.tree.values())))

    def test_warm_of_what_is_not_there_fails(self):
        result = support.millrace("warm", self.mounted.path, "nothing")
        self.assertEqual(result.code, 1)
        self.assert_one_line(result.err, "nothing")

    def test_paths_outside_the_mount_are_refused(self):
        for command in ("warm", "evict"):
            result = support.millrace(command, self.mounted.path, "../elsewhere")
            self.assertEqual(result.code, 2)
            self.assert_one_line(result.err, "../elsewhere", "not inside")

    def test_evict_frees_and_is_not_noticed(self):
        self.mounted.warm()
        result = support.millrace("evict", "--json", self.mounted.path, "train")
        self.assertEqual(json.loads(result.out)["bytes_freed"], MIB + 300_000)
        self.assertEqual({path: self.cached(path) for path in self.tree},
                         {"train/a": "none", "train/b": "none", "val/c": "complete",
                          "d": "complete"})
        self.assertEqual(support.tree_digests(self.mounted.path),
                         support.tree_digests(self.source))
        tier, = self.mounted.status()["tiers"]
        self.assertEqual(tier["evictions"]["user"], 2)

    def test_evict_gives_the_disk_back(self):
        self.mounted.warm()

        def on_disk():
            return sum(os.stat(os.path.join(parent, name)).st_blocks * 512
                       for parent, _, names in os.walk(self.directory / "cache")
                       for name in names if len(name) == 32)

        self.assertGreaterEqual(on_disk(), sum(map(len, self.tree.values())))
        self.mounted.evict()
        support.wait_until(lambda: on_disk() == 0, "data files to go")

    def test_status_names_what_a_person_looks_for(self):
        self.mounted.warm()
        result = support.millrace("status", self.mounted.path)
        self.assertEqual(result.code, 0, result.err)
        for word in (str(self.mounted.path), f"file://{self.source}", "hit ratio", "ssd",
                     str(self.directory / "cache"), "profile"):
            self.assertIn(word, result.out)

    def test_status_of_all_mounts_lists_this_one(self):
        result = support.millrace("status")
        self.assertIn(str(self.mounted.path), result.out)
        mounts = json.loads(support.millrace("status", "--json").out)["mounts"]
        mine, = (one for one in mounts if one["mountpoint"] == str(self.mounted.path))
        self.assertEqual((mine["state"], mine["pid"]), ("serving", self.mounted.pid))

    def test_status_json_counts_reads(self):
        for path in self.tree:
            support.read_all(self.mounted / path)
        self.assert_fetched(self.mounted, sum(map(len, self.tree.values())))
        status = self.mounted.status()
        self.assertEqual(status["pid"], self.mounted.pid)
        self.assertEqual(status["store"]["bytes"], sum(map(len, self.tree.values())))
        self.assertEqual(sum(read["bytes"] for read in status["reads"]),
                         sum(map(len, self.tree.values())))
        self.assertGreaterEqual(status["names"]["files"], 4)
        self.assertEqual(set(status["errors"].values()), {0})

    def test_watch_shows_again_until_interrupted(self):
        watch = subprocess.Popen(
            [support.MILLRACE, "status", "--json", "--watch", "--interval=100ms",
             self.mounted.path], stdout=subprocess.PIPE, text=True)
        try:
            for _ in range(3):
                self.assertEqual(json.loads(watch.stdout.readline())["state"], "serving")
            watch.send_signal(signal.SIGINT)
            watch.communicate(timeout=support.DEADLINE_S)
            self.assertEqual(watch.returncode, 0)
        finally:
            watch.kill()
            watch.wait()

    def test_mount_says_what_it_detected(self):
        for word in (f"Mounted {self.mounted.path}", f"file://{self.source}", "passthrough",
                     str(self.directory / "cache"), "profile"):
            self.assertIn(word, self.mounted.output)

    def test_interrupted_warm_keeps_what_it_loaded(self):
        """SIGINT to `warm` ends it with one line; the mount serves on."""
        process = subprocess.Popen([support.MILLRACE, "warm", self.mounted.path],
                                   stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=support.DEADLINE_S)
        # It may have been quicker than the signal, or not yet have had its handler.
        self.assertIn(process.returncode, (0, 1, -signal.SIGINT), err)
        self.assertEqual(support.tree_digests(self.mounted.path),
                         support.tree_digests(self.source))


class LifeTest(support.MountTestCase):
    """How mounts begin and end."""

    def test_cache_survives_umount_and_mount(self):
        self.make_source(SIZES)
        mounted = self.mount(self.source)
        mounted.warm()
        self.umount(mounted)
        again = self.mount(self.source)
        self.assertEqual(support.tree_digests(again.path), support.tree_digests(self.source))
        self.assertEqual(again.store_bytes(), 0)

    def test_partial_files_survive_umount_and_mount(self):
        self.make_source({"large": 9 * MIB})
        mounted = self.mount(self.source)
        support.read_direct(mounted / "large", 4 * MIB, MIB)
        support.wait_until(
            lambda: os.getxattr(mounted / "large", "user.millrace.cached") == b"partial %d/%d" %
            (mounted.store_bytes(), 9 * MIB), "the fetches to end")
        before = os.getxattr(mounted / "large", "user.millrace.cached")
        fetched = mounted.store_bytes()
        self.umount(mounted)
        again = self.mount(self.source)
        self.assertEqual(os.getxattr(again / "large", "user.millrace.cached"), before)
        self.assertEqual(support.read_all(again / "large"), self.tree["large"])
        self.assert_fetched(again, 9 * MIB - fetched)

    def test_umount_leaves_nothing_but_the_cache(self):
        self.make_source({"a": 1})
        mounted = self.mount(self.source)
        support.read_all(mounted / "a")
        self.umount(mounted)
        self.assertFalse(mounted.run_directory.exists())
        self.assertEqual(os.listdir(mounted.path), [])
        self.assert_nothing_left()

    def test_umount_of_a_busy_mount_says_who(self):
        self.make_source({"a": 1})
        mounted = self.mount(self.source)
        with support.open_fd(mounted / "a"):
            result = mounted.umount()
            self.assertEqual(result.code, 1)
            self.assert_one_line(result.err, str(mounted.path), "in use", str(os.getpid()),
                                 "--lazy")
            self.assertEqual(support.read_all(mounted / "a"), self.tree["a"])
        self.umount(mounted)

    def test_lazy_umount_lets_open_files_finish(self):
        self.make_source({"large": 9 * MIB})
        mounted = self.mount(self.source)
        with support.open_fd(mounted / "large") as fd:
            self.assertEqual(mounted.umount("--lazy").code, 0)
            self.assertIsNone(support.mount_entry(mounted.path))
            self.assertEqual(os.pread(fd, 1000, 5 * MIB), self.tree["large"][5 * MIB:][:1000])
        support.wait_until(lambda: not mounted.serving(), "end of the daemon")

    def test_two_mounts_at_once(self):
        a = support.make_tree(self.make_directory("a"), {"x": 100_000, "large": 5 * MIB})
        b = support.make_tree(self.make_directory("b"), {"x": 100_001, "large": 5 * MIB}, seed="b")
        one = self.mount(self.directory / "a", self.tier("c1"), mountpoint="m1")
        two = self.mount(self.directory / "b", self.tier("c2"), mountpoint="m2")
        support.run_in_threads([
            lambda mounted=mounted, path=path, expected=expected:
                self.assertEqual(support.read_all(mounted / path), expected)
            for mounted, tree in ((one, a), (two, b)) for path, expected in tree.items()])
        self.umount(one)
        self.assertEqual(support.read_all(two / "x"), b["x"])

    def test_umount_of_two_mounts_in_one_command(self):
        self.make_source({"x": 1})
        one = self.mount(self.source, self.tier("c1"), mountpoint="m1")
        two = self.mount(self.source, self.tier("c2"), mountpoint="m2")
        result = support.millrace("umount", one.path, two.path)
        self.assertEqual(result.code, 0, result.err)
        self.assert_nothing_left()

    def test_unmounted_by_other_means(self):
        """umount(8) and fusermount3 end the daemon as well."""
        self.make_source({"x": 1})
        mounted = self.mount(self.source)
        command = ["umount"] if os.geteuid() == 0 else ["fusermount3", "-u"]
        subprocess.run([*command, mounted.path], check=True)
        support.wait_until(lambda: not mounted.serving(), "end of the daemon")
        self.assertFalse((mounted.run_directory / "mount.json").exists())

    def test_sigterm_of_the_daemon_unmounts(self):
        self.make_source({"x": 1})
        mounted = self.mount(self.source)
        mounted.warm()
        mounted.signal(signal.SIGTERM)
        support.wait_until(lambda: not mounted.serving(), "end of the daemon")
        self.assertIsNone(support.mount_entry(mounted.path))
        again = self.mount(self.source)
        self.assertEqual(support.read_all(again / "x"), self.tree["x"])
        self.assertEqual(again.store_bytes(), 0)

    def test_foreground_ends_with_sigterm_and_sigint(self):
        self.make_source({"x": 1})
        for number in (signal.SIGTERM, signal.SIGINT):
            with self.subTest(number):
                process = self.run_foreground(self.source)
                mountpoint = self.directory / "mnt"
                self.assertEqual(support.read_all(mountpoint / "x"), self.tree["x"])
                process.send_signal(number)
                _, log = process.communicate(timeout=support.DEADLINE_S)
                self.assertEqual(process.returncode, 0, log)
                self.assertIn("unmount", log)
                self.assertIsNone(support.mount_entry(mountpoint))
                self.assert_nothing_left()

    def test_signal_ends_a_mount_in_use(self):
        """A file is open: the mount goes away all the same, and its daemon."""
        self.make_source({"x": 9 * MIB})
        process = self.run_foreground(self.source)
        with support.open_fd(self.directory / "mnt" / "x"):
            process.send_signal(signal.SIGTERM)
            process.communicate(timeout=support.DEADLINE_S)
        self.assertIsNone(support.mount_entry(self.directory / "mnt"))
        self.assert_nothing_left()

    def test_default_cache_is_made_and_reused(self):
        self.make_source({"x": 100_000})
        home = self.make_directory("home")
        words = [f"file://{self.source}", str(self.make_directory("mnt"))]
        caches = []
        for expected in (100_000, 0):
            result = support.millrace(
                "mount", *words, env=support.environment(HOME=str(home), XDG_CACHE_HOME=str(home)))
            self.assertEqual(result.code, 0, result.err)
            mounted = support.Mount(words[-1], result.out)
            self.mounts.append(mounted)
            tier, = mounted.status()["tiers"]
            caches.append(tier["path"])
            self.assertEqual(support.read_all(mounted / "x"), self.tree["x"])
            self.assert_fetched(mounted, expected)
            self.umount(mounted)
        self.assertEqual(caches[0], caches[1])
        shutil.rmtree(caches[0])

    def test_mount_is_ready_when_the_command_returns(self):
        """And within a second: 300 ms on an idle machine is the benchmark's business."""
        self.make_source({"x": 1})
        began = time.monotonic()
        mounted = self.mount(self.source)
        self.assertLess(time.monotonic() - began, 10)
        self.assertEqual(os.listdir(mounted.path), ["x"])


class TierTest(support.MountTestCase):
    def test_more_data_than_cache_reads_right_and_keeps_what_it_has(self):
        self.make_source({f"{i}": 5 * MIB for i in range(16)})
        mounted = self.mount(self.source, self.tier(quota="32Mi"), "--profile=large-files")
        for _ in range(2):
            for path, expected in self.tree.items():
                self.assertEqual(support.read_all(mounted / path), expected)
                support.drop_page_cache(mounted / path)
        tier, = mounted.status()["tiers"]
        self.assertLessEqual(tier["used_bytes"], 32 * MIB)
        self.assertGreaterEqual(tier["files_complete"], 5)
        self.assertEqual(tier["evictions"]["quota"], 0)
        self.assertGreater(tier["refused"], 0)

    def test_sieve_lets_new_files_push_out_old_ones(self):
        self.make_source({f"{i}": 5 * MIB for i in range(16)})
        mounted = self.mount(self.source, self.tier(quota="32Mi"), "--eviction=sieve")
        for path, expected in self.tree.items():
            self.assertEqual(support.read_all(mounted / path), expected)
        tier, = mounted.status()["tiers"]
        self.assertLessEqual(tier["used_bytes"], 32 * MIB)
        self.assertGreater(tier["evictions"]["quota"], 0)

    def test_warm_of_more_than_the_cache_says_so(self):
        self.make_source({f"{i}": 5 * MIB for i in range(8)})
        mounted = self.mount(self.source, self.tier(quota="16Mi"))
        result = support.millrace("warm", mounted.path)
        self.assertEqual(result.code, 1)
        self.assert_one_line(result.err, "cache is full", "quota")

    def test_two_tiers(self):
        self.make_source({f"{i}": 5 * MIB for i in range(12)})
        mounted = self.mount(self.source, f"--tier=mem:/dev/shm/{self.id()}-{os.getpid()}:16Mi",
                             self.tier("slow", "1Gi", "hdd"))
        self.addCleanup(shutil.rmtree, f"/dev/shm/{self.id()}-{os.getpid()}", ignore_errors=True)
        mounted.warm()
        for path, expected in self.tree.items():
            self.assertEqual(support.read_all(mounted / path), expected)
        self.assert_fetched(mounted, 60 * MIB)
        tiers = mounted.status()["tiers"]
        self.assertEqual([tier["medium"] for tier in tiers], ["mem", "hdd"])
        self.assertEqual(sum(tier["files_complete"] for tier in tiers), 12)
        self.assertLessEqual(tiers[0]["used_bytes"], 16 * MIB)


if __name__ == "__main__":
    support.main()
