#!/usr/bin/env python3
"""What changes in a store appears in a mount within --refresh; open files keep what they had."""

import os
import shutil

import support
from support import BLOCK, MIB, errno_of

SECOND = "--refresh=1s"


class ChangeCases:
    """Once for each profile: the kernel keeps different things in each."""

    profile = None

    def setUp(self):
        super().setUp()
        self.make_source({"changed": 100_000, "removed": 5_000, "kept": 300_000,
                          "dir/inner": 10, "gone/file": 10})
        self.mounted = self.mount(self.source, SECOND, f"--profile={self.profile}")
        support.tree_digests(self.mounted.path)

    def replace(self, path, data):
        """Writes a new version as careful writers do: under another name, then renamed."""
        temporary = self.sources / "temporary"
        temporary.write_bytes(data)
        os.replace(temporary, self.source / path)

    def becomes(self, path, data):
        def read():
            try:
                return support.read_all(self.mounted / path) == data
            except OSError as error:
                self.assertIn(error.strerror, ("No such file or directory", "Stale file handle",
                                               "Is a directory", "Not a directory"))
                return False

        support.wait_until(read, f"the new {path}")

    def test_changed_objects(self):
        for size in (100_000, 99_999, 3 * MIB, 0, 17):
            data = support.content(size, size)
            self.replace("changed", data)
            self.becomes("changed", data)
            self.assertEqual(os.stat(self.mounted / "changed").st_size, size)
        self.assertEqual(support.read_all(self.mounted / "kept"), self.tree["kept"])

    def test_new_objects_and_directories(self):
        self.assertEqual(errno_of(os.stat, self.mounted / "new"), "ENOENT")
        self.assertEqual(errno_of(os.stat, self.mounted / "new-dir/x"), "ENOENT")
        self.replace("new", b"new")
        (self.source / "new-dir").mkdir()
        (self.source / "new-dir/x").write_bytes(b"x")
        self.becomes("new", b"new")
        self.becomes("new-dir/x", b"x")
        self.assertIn("new", os.listdir(self.mounted.path))
        (self.source / "dir" / "second").write_bytes(b"2")
        self.becomes("dir/second", b"2")

    def test_removed_objects_and_directories(self):
        (self.source / "removed").unlink()
        shutil.rmtree(self.source / "gone")
        for path in ("removed", "gone", "gone/file"):
            support.wait_until(lambda: errno_of(os.stat, self.mounted / path) == "ENOENT",
                               f"{path} to vanish")
        support.wait_until(
            lambda: sorted(os.listdir(self.mounted.path)) == ["changed", "dir", "kept"],
            "the listing without them")

    def test_a_file_becomes_a_directory_and_back(self):
        (self.source / "changed").unlink()
        (self.source / "changed").mkdir()
        (self.source / "changed" / "x").write_bytes(b"x")
        self.becomes("changed/x", b"x")
        shutil.rmtree(self.source / "changed")
        self.replace("changed", b"file again")
        self.becomes("changed", b"file again")

    def test_open_files_keep_their_bytes(self):
        old = self.tree["changed"]
        with support.open_fd(self.mounted / "changed") as fd:
            self.assertEqual(os.pread(fd, 100_000, 0), old)
            before = os.fstat(fd)
            self.replace("changed", b"new version")
            self.becomes("changed", b"new version")
            os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
            self.assertEqual(os.pread(fd, 100_000, 0), old)
            after = os.fstat(fd)
            self.assertEqual((before.st_size, before.st_ino), (after.st_size, after.st_ino))
            self.assertNotEqual(os.stat(self.mounted / "changed").st_ino, before.st_ino)

    def test_open_files_of_removed_objects_keep_their_bytes(self):
        with support.open_fd(self.mounted / "removed") as fd:
            (self.source / "removed").unlink()
            support.wait_until(lambda: errno_of(os.stat, self.mounted / "removed") == "ENOENT",
                               "the name to vanish")
            self.assertEqual(os.pread(fd, 5_000, 0), self.tree["removed"])

    def test_an_open_directory_stream_is_not_disturbed(self):
        with os.scandir(self.mounted.path) as listing:
            first = next(listing).name
            self.replace("new", b"new")
            self.becomes("new", b"new")
            rest = [entry.name for entry in listing]
        self.assertEqual(len({first, *rest}), len(rest) + 1)
        self.assertLessEqual({"changed", "dir", "gone", "kept", "removed"}, {first, *rest})

    def test_the_old_version_leaves_the_cache(self):
        for turn in range(3):
            data = support.content(turn, 100_000)
            self.replace("changed", data)
            self.becomes("changed", data)
        support.wait_until(lambda: self.mounted.status()["tiers"][0]["files"] <= 6,
                           "old versions to go")

    def test_changes_are_counted(self):
        before = self.mounted.status()["names"]["changed"]
        self.replace("changed", b"x")
        self.becomes("changed", b"x")
        self.assertGreater(self.mounted.status()["names"]["changed"], before)


class LargeFilesChangeTest(ChangeCases, support.MountTestCase):
    profile = "large-files"


class SmallFilesChangeTest(ChangeCases, support.MountTestCase):
    profile = "small-files"


class S3ChangeTest(support.S3TestCase):
    def test_new_changed_and_removed_objects(self):
        self.make_bucket({"changed": 1000, "removed": 10})
        mounted = self.mount_bucket(SECOND)
        support.tree_digests(mounted.path)
        self.s3.put("bucket", "changed", b"new version")
        self.s3.put("bucket", "new/object", b"new")
        os.unlink(self.buckets / "bucket" / "removed")
        support.wait_until(
            lambda: errno_of(os.stat, mounted / "removed") == "ENOENT" and
            errno_of(os.stat, mounted / "new/object") is None and
            os.stat(mounted / "changed").st_size == 11, "the changes")
        self.assertEqual(support.read_all(mounted / "changed"), b"new version")
        self.assertEqual(support.read_all(mounted / "new/object"), b"new")


class NeverTest(support.MountTestCase):
    def test_refresh_inf_never_looks_again(self):
        self.make_source({"x": 10})
        mounted = self.mount(self.source, "--refresh=inf")
        other = self.mount(self.source, SECOND, self.tier("other"), mountpoint="other-mnt")
        os.listdir(mounted.path)
        os.listdir(other.path)
        (self.source / "y").write_bytes(b"1")
        # When the mount that looks sees it, the other one had its chance too.
        support.wait_until(lambda: "y" in os.listdir(other.path), "the new name")
        self.assertEqual(os.listdir(mounted.path), ["x"])


class NodeIdTest(support.MountTestCase):
    def ids(self, mounted):
        found = {}
        for parent, directories, names in os.walk(mounted.path):
            for name in (*directories, *names):
                path = os.path.join(parent, name)
                found[os.path.relpath(path, mounted.path)] = os.stat(path).st_ino
        return found

    def test_ids_are_stable_over_remount_and_kill(self):
        self.make_source({"a": 1, "dir/b": BLOCK, "dir/deep/c": 0,
                          **{f"many/{i}": 1 for i in range(500)}})
        mounted = self.mount(self.source)
        before = self.ids(mounted)
        self.umount(mounted)
        again = self.mount(self.source)
        self.assertEqual(self.ids(again), before)
        again.kill()
        self.assertEqual(support.millrace("umount", again.path).code, 0)
        self.assertEqual(self.ids(self.mount(self.source)), before)
        self.assertEqual(len(set(before.values())), len(before))


if __name__ == "__main__":
    support.main()
