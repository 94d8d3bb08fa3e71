#!/usr/bin/env python3
"""The daemon of root's mount is not root: what it may, what it may not, and whose the cache is."""

import os
import pathlib
import pwd
import signal

import support
from support import MIB

SIZES = {"small": 1000, "large": 5 * MIB + 1}
NO_CAPABILITY = 0
READ_SEARCH = 1 << 2  # CAP_DAC_READ_SEARCH
CAPABILITY_SETS = ("CapInh", "CapPrm", "CapEff", "CapAmb")


def default_user():
    try:
        return pwd.getpwnam("millrace").pw_uid
    except KeyError:
        return 65534


def process(pid):
    """{key: value} of /proc/PID/status."""
    lines = pathlib.Path(f"/proc/{pid}/status").read_text().splitlines()
    return dict(line.split(":\t", 1) for line in lines if ":\t" in line)


class UserTestCase:
    """Checks of a mount's daemon."""

    def assert_runs_as(self, mounted, uid, capabilities):
        daemon = process(mounted.pid)
        self.assertEqual(daemon["Uid"].split(), [str(uid)] * 4)
        self.assertEqual(daemon["Groups"].split(), [])
        for name in CAPABILITY_SETS:
            self.assertEqual(int(daemon[name], 16), capabilities, name)
        self.assertEqual(int(daemon["CapBnd"], 16), 0)
        self.assertEqual(daemon["NoNewPrivs"], "1")
        self.assertEqual(daemon["Seccomp"], "2")
        self.assertEqual(daemon["Name"], "millrace-fuse")
        if uid != 0:
            self.assertEqual(os.stat(f"/proc/{mounted.pid}/mem").st_uid, 0,
                             "others of the user can read its memory")

    def assert_owned_by(self, directory, uid):
        for parent, _, names in os.walk(directory):
            for path in [parent, *(os.path.join(parent, name) for name in names)]:
                self.assertEqual(os.lstat(path).st_uid, uid, path)

    def assert_reads_right(self, mounted):
        for path, expected in self.tree.items():
            self.assertEqual(support.read_all(mounted / path), expected, path)
            support.drop_page_cache(mounted / path)
            self.assertEqual(support.read_all(mounted / path), expected, path)


@support.needs_root
class FileSourceTest(UserTestCase, support.MountTestCase):
    def setUp(self):
        super().setUp()
        self.make_source(SIZES)

    def test_what_root_can_read_is_read_and_no_more(self):
        (self.source / "large").chmod(0o600)
        self.source.chmod(0o700)
        mounted = self.mount(self.source, "--profile=large-files")
        self.assert_runs_as(mounted, default_user(), READ_SEARCH)
        self.assert_reads_right(mounted)
        status = mounted.status()
        self.assertTrue(status["features"]["sandbox"])
        self.assertTrue(status["features"]["read_ahead_raised"])
        self.assertIn("may read all files because of the source", status["runs_as"])
        self.assertIn(status["runs_as"], mounted.output)
        self.assert_owned_by(self.directory / "cache", default_user())

    def test_passthrough_without_privilege(self):
        mounted = self.mount(self.source, "--profile=large-files")
        if not mounted.status()["features"]["passthrough"]:
            self.skipTest("this kernel has no FUSE passthrough")
        mounted.warm()
        self.assert_reads_right(mounted)
        self.assertEqual(mounted.status()["passthrough"]["opens"], 3 * len(SIZES))

    def test_a_successor_is_the_same_user(self):
        mounted = self.mount(self.source)
        self.assert_reads_right(mounted)
        mounted.kill_daemon()
        self.assert_runs_as(mounted, default_user(), READ_SEARCH)
        self.assert_reads_right(mounted)
        # The keeper that adopts it takes over who it is, too.
        mounted.kill_keeper()
        result = support.millrace("upgrade", mounted.path)
        self.assertEqual(result.code, 0, result.err)
        mounted.kill_daemon()
        self.assert_runs_as(mounted, default_user(), READ_SEARCH)
        self.assert_reads_right(mounted)

    def test_a_chosen_user(self):
        for name, uid in (("daemon", 1), ("4242", 4242), ("root", 0)):
            with self.subTest(name):
                mounted = self.mount(self.source, "--user", name, mountpoint=name)
                self.assert_runs_as(mounted, uid, READ_SEARCH)
                self.assert_reads_right(mounted)
                self.assert_owned_by(self.directory / "cache", uid)
                self.assertEqual(mounted.store_bytes(), 0 if uid != 1 else sum(SIZES.values()))
                self.umount(mounted)

    def test_a_user_that_does_not_exist(self):
        result = support.millrace("mount", *self.mount_command(self.source, "--user=no-such-user"))
        self.assertEqual(result.code, 2)
        self.assert_one_line(result.err, "--user no-such-user", "/etc/passwd")
        self.assert_nothing_left()

    def test_files_of_the_mount_stay_the_callers(self):
        mounted = self.mount(self.source)
        self.assertEqual((mounted / "small").stat().st_uid, os.geteuid())

    def test_another_users_directory_is_no_cache(self):
        tier = self.make_directory("precious")
        (tier / "data").write_text("precious")
        result = support.millrace(
            "mount", *self.mount_command(self.source, f"--tier=ssd:{tier}:1Gi"))
        self.assertEqual(result.code, 1)
        self.assert_one_line(result.err, "precious", "is no millrace cache")
        self.assert_owned_by(tier, os.geteuid())
        self.assert_nothing_left()

    def test_a_cache_in_use_stays_with_its_user(self):
        first = self.mount(self.source)
        result = support.millrace(
            "mount", *self.mount_command(self.source, "--user=daemon", mountpoint="other"))
        self.assertEqual(result.code, 1)
        self.assert_one_line(result.err, f"is in use by process {first.pid}")
        self.assert_owned_by(self.directory / "cache", default_user())
        self.assert_reads_right(first)

    def test_a_low_port_for_metrics_is_refused_with_its_reason(self):
        low = int(pathlib.Path("/proc/sys/net/ipv4/ip_unprivileged_port_start").read_text()) - 1
        if low < 1:
            self.skipTest("every port is free to everybody here")
        result = support.millrace(
            "mount", *self.mount_command(self.source, f"--metrics=127.0.0.1:{low}"))
        self.assertEqual(result.code, 1)
        self.assert_one_line(result.err, f"127.0.0.1:{low}", "takes a privilege")
        self.assert_nothing_left()

    def test_it_ends_politely_when_asked_by_a_signal(self):
        mounted = self.mount(self.source)
        self.assert_reads_right(mounted)
        mounted.signal(signal.SIGTERM)
        support.wait_until(lambda: not mounted.serving(), "end of the mount")
        self.assertIsNone(support.mount_entry(mounted.path))
        again = self.mount(self.source)
        self.assert_reads_right(again)
        self.assertEqual(again.store_bytes(), 0)


@support.needs_root
class S3Test(UserTestCase, support.S3TestCase):
    def setUp(self):
        super().setUp()
        self.make_bucket(SIZES)
        # What a cache has above it is usually open to all to pass through.
        support.temporary_root().chmod(0o755)
        self.addCleanup(support.temporary_root().chmod, 0o700)

    def test_no_privilege_at_all(self):
        mounted = self.mount_bucket("--profile=large-files")
        self.assert_runs_as(mounted, default_user(), NO_CAPABILITY)
        self.assertIn("without privileges", mounted.status()["runs_as"])
        mounted.warm()
        self.assert_reads_right(mounted)
        if mounted.status()["features"]["passthrough"]:
            self.assertEqual(mounted.status()["passthrough"]["opens"], 3 * len(SIZES))

    def test_a_closed_key_file_is_read(self):
        keys = self.s3.environment()
        secret = self.directory / "secret"
        secret.write_text(f"{keys['AWS_ACCESS_KEY_ID']}:{keys['AWS_SECRET_ACCESS_KEY']}\n")
        secret.chmod(0o600)
        mounted = self.mount(f"{self.s3.url('bucket')}&access-key-file={secret}",
                             env=support.environment())
        self.assert_runs_as(mounted, default_user(), READ_SEARCH)
        self.assertIn(f"because of the file {secret}", mounted.status()["runs_as"])
        self.assert_reads_right(mounted)

    def test_a_closed_way_to_the_cache_is_open(self):
        closed = self.make_directory("closed")
        closed.chmod(0o700)
        mounted = self.mount_bucket(f"--tier=ssd:{closed}/cache:1Gi")
        self.assert_runs_as(mounted, default_user(), READ_SEARCH)
        self.assert_reads_right(mounted)

    def test_the_cache_of_root_is_handed_over(self):
        first = self.mount_bucket("--user=root")
        self.assert_runs_as(first, 0, NO_CAPABILITY)
        first.warm()
        self.umount(first)
        self.assert_owned_by(self.directory / "cache", 0)
        second = self.mount_bucket()
        self.assert_runs_as(second, default_user(), NO_CAPABILITY)
        self.assert_reads_right(second)
        self.assertEqual(second.store_bytes(), 0)
        self.assert_owned_by(self.directory / "cache", default_user())


if __name__ == "__main__":
    support.main()
