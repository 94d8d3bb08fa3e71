#!/usr/bin/env python3
"""Hostile names: what a store may call its objects, and what a mount makes of it.

The rules are those of fuse/SEMANTICS.md, section Names. Keys that no real server accepts come from
fake_s3.py.
"""

import os
import socket
import subprocess

import support
from fake_s3 import FakeObject, FakeS3
from support import BLOCK, errno_of

LONGEST = b"n" * 255


def walk(mounted):
    """{path below the mount: bytes} of all files, and the set of directories; all as bytes."""
    root = os.fsencode(mounted.path)
    files, directories = {}, set()
    for parent, below, names in os.walk(root, onerror=support._raise):
        directories |= {os.path.relpath(os.path.join(parent, name), root) for name in below}
        for name in names:
            path = os.path.join(parent, name)
            files[os.path.relpath(path, root)] = support.read_all(path)
    return files, directories


class KeysTest(support.MountTestCase):
    def mount_keys(self, objects, *options):
        self.store = FakeS3({key: value if isinstance(value, FakeObject) else FakeObject(value)
                             for key, value in objects.items()})
        self.addCleanup(self.store.stop)
        return self.mount(self.store.url, *options)

    def assert_shows(self, objects, files, directories=frozenset(), hidden=0):
        mounted = self.mount_keys(objects)
        self.assertEqual(walk(mounted), (files, set(directories)))
        self.assertEqual(mounted.status()["names"]["hidden"], hidden)
        if hidden:
            self.assertTrue(mounted.log_lines("names"), mounted.log())
        # The same once more, by warm and from the cache.
        mounted.warm()
        self.assertEqual(walk(mounted)[0], files)
        return mounted

    def test_dots_never_lead_out(self):
        mounted = self.assert_shows(
            {b"plain": b"1", b"../escape": b"2", b"dir/../up": b"3", b"dir/../../up": b"4",
             b"./here": b"5", b"dir/.": b"6", b"dir/..": b"7", b"..": b"8", b"dir/x": b"9"},
            files={b"plain": b"1", b"dir/x": b"9"}, directories={b"dir"},
            # Of the root: "..", "../", "./"; of dir: "../", ".", "..".
            hidden=6)
        self.assertEqual(os.listdir(mounted / "dir" / ".."), os.listdir(mounted.path))

    def test_empty_components(self):
        self.assert_shows(
            {b"/absolute": b"1", b"x//y": b"2", b"x/z": b"3", b"//": b"4", b"x///": b"5"},
            files={b"x/z": b"3"}, directories={b"x"}, hidden=2)

    def test_names_of_any_bytes_are_shown_as_they_are(self):
        names = [b"ctl\x01\x1f\x7f", b"new\nline", b"tab\t", b"quote\"'&<>", b"percent%41%",
                 b"plus+ space ", b"bad\xff\xfeutf8", b"\xc3", "é".encode(), b"e\xcc\x81", b"UPPER",
                 b"upper", b"question?", b"hash#", b"back\\slash", b"semi;colon", b"*", b"~", b"-",
                 b" ", b"...", LONGEST]
        objects = {name: name + b"!" for name in names}
        self.assert_shows({**objects, **{b"dir/" + name + b"/x": name for name in names}},
                          files={**objects, **{b"dir/" + name + b"/x": name for name in names}},
                          directories={b"dir", *(b"dir/" + name for name in names)})

    def test_names_that_are_too_long(self):
        mounted = self.assert_shows(
            {LONGEST: b"1", LONGEST + b"n": b"2", b"d/" + b"n" * 1000: b"3",
             b"n" * 300 + b"/below": b"4", b"d/x": b"5"},
            files={LONGEST: b"1", b"d/x": b"5"}, directories={b"d"}, hidden=3)
        path = os.path.join(os.fsencode(mounted.path), LONGEST + b"n")
        self.assertIn(errno_of(os.stat, path), ("ENOENT", "ENAMETOOLONG"))

    def test_nul_in_names(self):
        self.assert_shows({b"a\x00b": b"1", b"d/\x00": b"2", b"d/x": b"3"},
                          files={b"d/x": b"3"}, directories={b"d"}, hidden=2)

    def test_a_key_that_is_file_and_directory_is_the_directory(self):
        mounted = self.assert_shows({b"both": b"file", b"both/child": b"1", b"both-": b"2"},
                                    files={b"both/child": b"1", b"both-": b"2"},
                                    directories={b"both"}, hidden=1)
        self.assertTrue(os.path.isdir(mounted / "both"))
        self.assertEqual(errno_of(os.open, mounted / "both", os.O_RDONLY | os.O_WRONLY), "EISDIR")

    def test_zero_byte_directory_markers(self):
        self.assert_shows({b"empty/": b"", b"full/": b"", b"full/x": b"1", b"deep/er/": b""},
                          files={b"full/x": b"1"},
                          directories={b"empty", b"full", b"deep", b"deep/er"})

    def test_a_marker_with_bytes_is_hidden(self):
        self.assert_shows({b"dir/": b"bytes", b"dir/x": b"1"},
                          files={b"dir/x": b"1"}, directories={b"dir"}, hidden=1)

    def test_sizes_up_to_the_largest(self):
        largest = FakeObject(size=2**63 - 1)
        mounted = self.mount_keys({b"largest": largest, b"too-large": FakeObject(size=2**63),
                                   b"x": b"1"}, "--profile=large-files")
        self.assertEqual(sorted(os.listdir(mounted.path)), ["largest", "x"])
        self.assertEqual(os.stat(mounted / "largest").st_size, 2**63 - 1)
        self.assertEqual(mounted.status()["names"]["hidden"], 1)
        for offset in (0, 2**40 + 5, 2**62, 2**63 - 10):
            expected = largest.read(offset, 4096)
            self.assertEqual(support.read_at(mounted / "largest", offset, len(expected)), expected)
        self.assertEqual(support.read_all(mounted / "x"), b"1")

    def test_deep_directories(self):
        key = b"/".join([b"d"] * 200) + b"/x"
        mounted = self.mount_keys({key: b"deep"})
        os.chdir(mounted.path)
        try:
            for _ in range(200):
                os.chdir("d")
            self.assertEqual(support.read_all("x"), b"deep")
        finally:
            os.chdir("/")
        mounted.warm()

    def test_paths_of_the_command_do_not_lead_out(self):
        mounted = self.mount_keys({b"../escape": b"1", b"x": b"2"})
        for path in ("..", "../escape", "a/../../escape"):
            result = support.millrace("warm", mounted.path, path)
            self.assertEqual(result.code, 2, path)

    def test_more_than_a_page_of_hidden_names(self):
        """Pages with nothing to show are passed over, not taken for the end."""
        objects = {b"d/" + b"n" * 256 + b"%04d" % i: b"" for i in range(2_500)}
        mounted = self.mount_keys({**objects, b"d/zz": b"last"})
        self.assertEqual(os.listdir(mounted / "d"), ["zz"])
        self.assertEqual(mounted.status()["names"]["hidden"], 2_500)

    def test_versions_of_any_bytes(self):
        """An ETag is the store's business: it goes into cache and xattr as it is."""
        etags = ['"quoted"', 'bare', '"' + "e" * 1000 + '"', '"a b&amp;/../"']
        mounted = self.mount_keys({f"f{i}".encode(): FakeObject(b"%d" % i, etag=etag)
                                   for i, etag in enumerate(etags)})
        for i in range(len(etags)):
            self.assertEqual(support.read_all(mounted / f"f{i}"), b"%d" % i)
            self.assertTrue(os.getxattr(mounted / f"f{i}", "user.millrace.version"))
        self.umount(mounted)
        again = self.mount(self.store.url)
        self.assertEqual(walk(again)[0], {b"f%d" % i: b"%d" % i for i in range(len(etags))})
        self.assertEqual(again.store_bytes(), 0)


class DirectoriesTest(support.MountTestCase):
    """The same for file://, where symbolic links and special files come in."""

    def test_names_of_any_bytes(self):
        self.make_source({"x": 1})
        root = os.fsencode(self.source)
        names = [b"ctl\x01\x1f\x7f", b"new\nline", b"bad\xff\xfe", b" ", b"...", LONGEST]
        for name in names:
            with open(os.path.join(root, name), "wb") as file:
                file.write(name)
        files, _ = walk(self.mount(self.source))
        self.assertEqual(files, {b"x": self.tree["x"], **{name: name for name in names}})

    def test_symbolic_links_that_lead_out_do_not_exist(self):
        secret = self.sources / "secret"
        secret.write_bytes(b"not of this source")
        self.make_source({"inside/file": BLOCK + 1})
        links = {"absolute": secret, "relative": "../secret", "twice": "inside/../../secret",
                 "out-directory": "..", "root": "/", "proc": "/proc/self/environ",
                 "absolute-inside": self.source / "inside/file", "dangling": "nothing",
                 "loop": "loop", "chain": "relative"}
        for name, target in links.items():
            (self.source / name).symlink_to(target)
        mounted = self.mount(self.source)
        self.assertEqual(os.listdir(mounted.path), ["inside"])
        for name in links:
            self.assertEqual(errno_of(os.stat, mounted / name), "ENOENT", name)
        self.assertEqual(errno_of(os.stat, mounted / "out-directory/secret"), "ENOENT")

    def test_symbolic_links_that_stay_inside_are_followed(self):
        self.make_source({"inside/file": BLOCK + 1})
        (self.source / "link").symlink_to("inside/file")
        (self.source / "inside/up").symlink_to("../inside/file")
        (self.source / "directory").symlink_to("inside")
        mounted = self.mount(self.source)
        for path in ("link", "inside/up", "directory/file", "directory/up"):
            self.assertEqual(support.read_all(mounted / path), self.tree["inside/file"], path)

    def test_a_link_that_turns_outwards_while_mounted_gives_nothing_away(self):
        secret = self.sources / "secret"
        secret.write_bytes(b"s" * 100)
        self.make_source({"file": 100})
        mounted = self.mount(self.source, "--refresh=inf")
        self.assertEqual(os.listdir(mounted.path), ["file"])
        (self.source / "file").unlink()
        (self.source / "file").symlink_to("../secret")
        self.assertEqual(errno_of(support.read_all, mounted / "file"), "ESTALE")

    def test_a_directory_that_contains_itself_by_a_link_ends(self):
        self.make_source({"a/file": 1})
        (self.source / "a" / "again").symlink_to("../a")
        mounted = self.mount(self.source)
        self.assertEqual(support.read_all(mounted / "a/again/again/again/file"),
                         self.tree["a/file"])
        result = support.millrace("warm", mounted.path)
        self.assertIn(result.code, (0, 1))
        if result.code == 1:
            self.assert_one_line(result.err, "loop")

    def test_special_files_do_not_exist(self):
        self.make_source({"file": 1})
        os.mkfifo(self.source / "fifo")
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(str(self.source / "socket"))
        if os.geteuid() == 0:
            subprocess.run(["mknod", self.source / "device", "c", "1", "5"], check=True)
        mounted = self.mount(self.source)
        self.assertEqual(os.listdir(mounted.path), ["file"])
        self.assertEqual(errno_of(os.stat, mounted / "fifo"), "ENOENT")


if __name__ == "__main__":
    support.main()
