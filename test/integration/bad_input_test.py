#!/usr/bin/env python3
"""Every wrong input gets one line (what, why, remedy) and exit 1 or 2; nothing stays behind."""

import os
import pathlib
import signal
import socket
import subprocess

import support

USAGE = 2
FAILED = 1


class BadInputTestCase(support.MountTestCase):
    def setUp(self):
        super().setUp()
        self.make_source({"file": 10})
        self.url = f"file://{self.source}"
        self.mountpoint = self.make_directory("mnt")
        self.before = set(self.run_directories())

    def run_directories(self):
        return pathlib.Path("/run/millrace").glob("*/mount.json")

    def refused(self, *words, code, says=(), env=None):
        """`millrace mount` with these words fails as it should; returns what it said."""
        result = support.millrace("mount", *words, env=env)
        self.assertEqual(result.code, code, result.err)
        self.assertEqual(result.out, "")
        self.assert_one_line(result.err, "millrace: ", *says)
        self.assert_nothing_left()
        self.assertFalse(any(str(self.directory) in record.read_text()
                             for record in set(self.run_directories()) - self.before))
        return result.err


class OptionsTest(BadInputTestCase):
    def test_options(self):
        """Each with the words that the message must have."""
        cases = {
            ("--unknown",): ("--unknown",),
            ("--refresh-intervall=3s",): ("--refresh-intervall",),
            ("--refresh=soon",): ("--refresh", "soon"),
            ("--refresh=0s",): ("--refresh", "1s"),
            ("--refresh=-5s",): ("--refresh",),
            ("--memory-limit=1Mi",): ("--memory-limit", "64"),
            ("--memory-limit=lots",): ("--memory-limit", "lots"),
            ("--memory-limit=99999999Ti",): ("--memory-limit",),
            ("--connections=0",): ("--connections", "0"),
            ("--connections=many",): ("--connections", "many"),
            ("--profile=medium",): ("--profile", "medium", "auto"),
            ("--eviction=random",): ("--eviction", "random", "sieve"),
            ("--io=aio",): ("--io", "aio", "posix"),
            ("--file-mode=rw",): ("--file-mode", "rw"),
            ("--dir-mode=9999",): ("--dir-mode", "9999"),
            ("--uid=root",): ("--uid", "root"),
            ("--gid=-1",): ("--gid", "-1"),
            ("--store-deadline=0s",): ("--store-deadline",),
            ("--log-level=loud",): ("--log-level", "loud"),
            ("--look-ahead=maybe",): ("--look-ahead", "maybe"),
            ("--read-write",): ("read-only",),
            ("--workers=host",): ("--workers", "HOST:PORT"),
            ("--workers=host:0",): ("--workers",),
            ("--worker-key=/no/such/file",): ("--worker-certificate",),
            ("--tier",): (),
            ("--tier=ssd",): ("ssd", "MEDIUM:PATH:QUOTA"),
            ("--tier=tape:/tmp/x:1Gi",): ("tape", "mem, ssd, hdd"),
            ("--tier=ssd:relative:1Gi",): ("relative", "absolute"),
            ("--tier=ssd:/tmp/x:none",): ("none",),
            ("--tier=ssd:/tmp/x:0",): ("0",),
            ("--tier=ssd:/tmp/x:1Gi,high=2",): ("2",),
            ("--tier=ssd:/tmp/x:1Gi,colour=red",): ("colour",),
            ("--config=/no/such/file",): ("/no/such/file",),
        }
        for words, says in cases.items():
            with self.subTest(words):
                self.refused(*words, self.url, self.mountpoint, code=USAGE, says=says)

    def test_positionals(self):
        self.refused(code=USAGE, says=("SOURCE",))
        self.refused(self.url, code=USAGE, says=("MOUNTPOINT",))
        self.refused(self.mountpoint, code=USAGE, says=("source",))
        self.refused(self.url, self.url, self.mountpoint, code=USAGE, says=("NAME=URL",))
        self.refused(f"a={self.url}", f"a={self.url}", self.mountpoint, code=USAGE, says=("\"a\"",))
        self.refused(f"a/b={self.url}", self.mountpoint, code=USAGE, says=("a/b",))
        self.refused(f"..={self.url}", self.mountpoint, code=USAGE, says=("..",))

    def test_other_commands(self):
        cases = [
            (["fly"], USAGE), (["mount", "--foreground", "--unknown"], USAGE),
            (["status", "--unknown"], USAGE), (["status", "a", "b"], USAGE),
            (["status", "--interval=1ns", "a"], USAGE), (["status", self.mountpoint], FAILED),
            (["umount"], USAGE), (["umount", self.mountpoint], FAILED),
            (["umount", "/proc"], FAILED), (["umount", "/no/such/place"], FAILED),
            (["warm"], USAGE), (["warm", self.mountpoint], FAILED),
            (["evict"], USAGE), (["evict", self.mountpoint], FAILED),
            (["evict", "--all", self.mountpoint], USAGE), (["help", "fly"], USAGE),
            (["bench", "fly"], USAGE),
        ]
        for words, code in cases:
            with self.subTest(words):
                result = support.millrace(*words)
                self.assertEqual((result.code, result.out), (code, ""))
                self.assert_one_line(result.err, "millrace")

    def test_configuration_files(self):
        cases = {
            "not json": ("{", ()),
            "an array": ("[]", ()),
            "wrong type": ('{"mounts": 7}', ("mounts",)),
            "wrong option": ('{"mounts": [], "client": {"options": {"refresh": "x"}}}',
                             ("refresh",)),
            "wrong quota": ('{"client": {"tieredStoreLevels": [{"mountPaths": ["/a"], '
                            '"mediumType": "SSD", "quotas": ["x"]}]}}', ("quotas[0]",)),
        }
        for name, (text, says) in cases.items():
            with self.subTest(name):
                config = self.directory / "config.json"
                config.write_text(text)
                self.refused("--config", config, self.url, self.mountpoint, code=USAGE,
                             says=(str(config), *says))


class UrlTest(BadInputTestCase):
    def test_urls(self):
        cases = {
            "": (),
            "/just/a/path": ("/just/a/path", "file:///"),
            "bucket/dir": ("bucket/dir",),
            "gopher://host/x": ("gopher", "s3://"),
            "://x": (),
            "s3://": (),
            "s3:///key": (),
            "s3://UPPER_case!/x": ("UPPER_case!",),
            "file://host/dir": ("file:///host/dir",),
            "http://": (),
            "s3://bucket?endpoint=ftp://host": ("endpoint",),
            f"{self.url}?colour=blue": ("colour",),
            "s3://bucket?endpoint=": ("endpoint", "no value"),
            "s3://bucket?region": ("region", "no value"),
            "s3://user:password@bucket/x": (),
        }
        environment = support.environment(AWS_ACCESS_KEY_ID="a", AWS_SECRET_ACCESS_KEY="b")
        for url, says in cases.items():
            with self.subTest(url):
                error = self.refused(url, self.mountpoint, code=USAGE, says=says, env=environment)
                self.assertNotIn("password", error)

    def test_directories_that_cannot_be_read(self):
        self.refused("file:///no/such/directory", self.mountpoint, code=FAILED,
                     says=("/no/such/directory", "existing directory"))
        self.refused(f"{self.url}/file", self.mountpoint, code=FAILED, says=("file",))

    def test_http_server_that_is_not_there(self):
        port = support.s3_server.free_port()
        self.refused(f"http://127.0.0.1:{port}/x/", self.mountpoint, code=FAILED,
                     says=(str(port), "refused"))


class TierTest(BadInputTestCase):
    def test_quota_larger_than_the_disk(self):
        self.refused(self.tier(quota="900Ti"), self.url, self.mountpoint, code=USAGE,
                     says=("900", "quota", "smaller"))
        self.assertFalse((self.directory / "cache").exists())

    def test_path_is_a_file(self):
        (self.directory / "cache").write_bytes(b"mine")
        self.refused(self.tier(), self.url, self.mountpoint, code=USAGE,
                     says=("cache", "not a directory"))
        self.assertEqual((self.directory / "cache").read_bytes(), b"mine")

    def test_path_below_a_file(self):
        (self.directory / "blocker").write_bytes(b"")
        self.refused(self.tier("blocker/cache"), self.url, self.mountpoint, code=USAGE,
                     says=("blocker",))

    def test_path_on_a_read_only_file_system(self):
        self.refused("--tier=ssd:/proc/millrace:1Gi", self.url, self.mountpoint, code=USAGE,
                     says=("/proc/millrace",))
        self.refused("--tier=ssd:/sys/millrace:1Mi", self.url, self.mountpoint, code=USAGE,
                     says=("/sys/millrace",))

    def test_path_given_twice_or_nested(self):
        self.refused(self.tier("a"), self.tier("a"), self.url, self.mountpoint, code=USAGE,
                     says=("twice",))
        self.refused(self.tier("a"), self.tier("a/b"), self.url, self.mountpoint, code=USAGE,
                     says=("inside",))

    def test_path_inside_the_mountpoint(self):
        self.refused(self.tier("mnt/cache"), self.url, self.mountpoint, code=USAGE,
                     says=("mountpoint",))

    def test_directory_with_somebodys_files_is_refused_and_left_alone(self):
        (self.make_directory("cache") / "thesis.txt").write_bytes(b"years of work")
        self.refused(self.tier(), self.url, self.mountpoint, code=FAILED,
                     says=(str(self.directory / "cache"),))
        self.assertEqual((self.directory / "cache/thesis.txt").read_bytes(), b"years of work")
        self.assertEqual(os.listdir(self.directory / "cache"), ["thesis.txt"])

    def test_tier_in_use_by_another_mount(self):
        mounted = self.mount(self.source, mountpoint="first")
        result = support.millrace("mount", self.tier(), self.url, self.mountpoint)
        self.assertEqual(result.code, FAILED)
        self.assert_one_line(result.err, str(self.directory / "cache"), "in use")
        self.assertIsNone(support.mount_entry(self.mountpoint))
        self.assertEqual(support.read_all(mounted / "file"), self.tree["file"])


class MountpointTest(BadInputTestCase):
    def refused_at(self, mountpoint, *says, code=FAILED):
        return self.refused(self.tier(), self.url, mountpoint, code=code,
                            says=(str(mountpoint), *says))

    def test_not_empty(self):
        (self.mountpoint / "mine").write_bytes(b"mine")
        self.refused_at(self.mountpoint, "not empty")
        self.assertEqual((self.mountpoint / "mine").read_bytes(), b"mine")

    def test_missing(self):
        self.refused_at(self.directory / "missing", "mkdir -p")
        self.assertFalse((self.directory / "missing").exists())

    def test_a_file(self):
        (self.directory / "regular").write_bytes(b"")
        self.refused_at(self.directory / "regular", "not a directory")

    def test_inside_the_source(self):
        inside = self.source / "inside"
        inside.mkdir()
        self.refused_at(inside, str(self.source), code=USAGE)

    def test_already_a_millrace_mount(self):
        mounted = self.mount(self.source, self.tier("other"))
        result = support.millrace("mount", self.tier(), self.url, self.mountpoint)
        self.assertEqual(result.code, FAILED)
        self.assert_one_line(result.err, str(self.mountpoint), "already",
                             f"millrace umount {self.mountpoint}")
        self.assertEqual(support.read_all(mounted / "file"), self.tree["file"])

    def test_reached_by_another_path(self):
        """A symbolic link to a mounted directory is that directory."""
        self.mount(self.source, self.tier("other"))
        (self.directory / "link").symlink_to(self.mountpoint)
        result = support.millrace("mount", self.tier(), self.url, self.directory / "link")
        self.assertEqual(result.code, FAILED)
        self.assert_one_line(result.err, "already")

    @support.needs_root
    def test_already_a_mount_of_something_else(self):
        subprocess.run(["mount", "-t", "tmpfs", "tmpfs", self.mountpoint], check=True)
        self.addCleanup(subprocess.run, ["umount", self.mountpoint], check=True)
        result = support.millrace("mount", self.tier(), self.url, self.mountpoint)
        self.assertEqual(result.code, FAILED)
        self.assert_one_line(result.err, str(self.mountpoint), "tmpfs", "umount")
        result = support.millrace("umount", self.mountpoint)
        self.assertEqual(result.code, FAILED)
        self.assert_one_line(result.err, "tmpfs")


class ResourcesTest(BadInputTestCase):
    def test_metrics_port_taken(self):
        with socket.create_server(("127.0.0.1", 0)) as taken:
            address = f"127.0.0.1:{taken.getsockname()[1]}"
            self.refused(f"--metrics={address}", self.tier(), self.url, self.mountpoint,
                         code=FAILED, says=(address,))

    def test_metrics_address_that_is_none(self):
        self.refused("--metrics=nonsense", self.tier(), self.url, self.mountpoint,
                     code=USAGE, says=("nonsense", "HOST:PORT"))

    def test_interrupted_while_the_store_says_nothing(self):
        """Ctrl-C gives up: exit 1, one line, nothing left."""
        with socket.create_server(("127.0.0.1", 0)) as silent:
            url = f"http://127.0.0.1:{silent.getsockname()[1]}/x/"
            command = subprocess.Popen(
                [support.MILLRACE, "mount", self.tier(), url, str(self.mountpoint)],
                stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
            self.addCleanup(command.kill)
            connection, _ = silent.accept()
            with connection:
                command.send_signal(signal.SIGINT)
                out, err = command.communicate(timeout=support.DEADLINE_S)
        self.assertEqual((command.returncode, out), (FAILED, ""))
        self.assert_one_line(err, "interrupted", "nothing is mounted")
        self.assert_nothing_left()

    def test_a_store_that_says_nothing_is_given_up(self):
        """The first question to a store has a deadline of its own."""
        with socket.create_server(("127.0.0.1", 0)) as silent:
            port = silent.getsockname()[1]
            self.refused(f"http://127.0.0.1:{port}/x/", self.mountpoint, code=FAILED,
                         says=(str(port),))


if __name__ == "__main__":
    support.main()
