#!/usr/bin/env python3
"""A mount of a real S3 server: listings, keys, credentials, and where secrets must not show."""

import os
import pathlib
import random
import subprocess
import unittest

import support
from support import BLOCK, MIB

SIZES = {
    "empty": 0,
    "one": 1,
    "with space & co=+%.txt": 1000,
    "umläut/日本語": 2000,
    "a/b/c/d/e/deep": BLOCK + 1,
    "a/b/sibling": MIB,
    "large": 9 * MIB + 333,
}


class TreeTest(support.S3TestCase):
    def test_tree_equals_source_cold_and_warm(self):
        self.make_bucket(SIZES)
        mounted = self.mount_bucket()
        expected = {path: support.sha256(data) for path, data in self.tree.items()}
        for _ in range(2):
            self.assertEqual(support.tree_digests(mounted.path), expected)
            for path in self.tree:
                support.drop_page_cache(mounted / path)
        self.assert_fetched(mounted, sum(SIZES.values()))

    def test_warm_then_remount_fetches_nothing(self):
        self.make_bucket(SIZES)
        mounted = self.mount_bucket()
        mounted.warm()
        self.umount(mounted)
        again = self.mount_bucket()
        expected = {path: support.sha256(data) for path, data in self.tree.items()}
        self.assertEqual(support.tree_digests(again.path), expected)
        self.assertEqual(again.store_bytes(), 0)

    def test_random_reads_of_a_cold_object(self):
        self.make_bucket({"large": 16 * MIB + 1})
        mounted = self.mount_bucket()
        dice = random.Random(3)
        for _ in range(50):
            offset = dice.randrange(16 * MIB)
            self.assertEqual(support.read_at(mounted / "large", offset, 4096),
                             self.tree["large"][offset:offset + 4096])

    def test_listing_of_more_keys_than_a_page(self):
        """A page of S3 has a thousand keys."""
        self.make_bucket({**{f"many/{i:05}": i % 7 for i in range(2_345)}, "many/dir/x": 1})
        mounted = self.mount_bucket()
        self.assertEqual(sorted(os.listdir(mounted / "many")),
                         sorted(os.listdir(self.buckets / "bucket" / "many")))
        # The last name alone, in a mount that has not listed yet.
        other = self.mount_bucket(self.tier("other"), mountpoint="other-mnt")
        self.assertEqual(os.stat(other / "many/02344").st_size, 2344 % 7)

    def test_prefix_is_the_root(self):
        self.make_bucket({"sets/a/x": 10, "sets/ab/y": 20, "z": 30})
        mounted = self.mount(self.s3.url("bucket", "sets/a"), env=self.env)
        self.assertEqual(support.tree_digests(mounted.path),
                         {"x": support.sha256(self.tree["sets/a/x"])})

    def test_two_buckets_in_one_tree(self):
        self.make_bucket({"x": 10}, "train")
        train = self.tree
        self.make_bucket({"x": 20}, "val")
        mounted = self.mount([f"train={self.s3.url('train')}", f"val={self.s3.url('val')}"],
                             env=self.env)
        self.assertEqual(support.read_all(mounted / "train/x"), train["x"])
        self.assertEqual(support.read_all(mounted / "val/x"), self.tree["x"])

    def test_version_is_the_etag(self):
        self.make_bucket({"x": 10})
        mounted = self.mount_bucket()
        etag = os.getxattr(self.buckets / "bucket" / "x", "user.etag").decode()
        self.assertIn(os.getxattr(mounted / "x", "user.millrace.version").decode(),
                      (etag, etag.strip('"')))

    def test_an_object_that_appears_under_a_known_missing_name_without_refresh_is_unseen(self):
        """The negative entry holds until the refresh: what --refresh=inf promises."""
        self.make_bucket({"x": 10})
        mounted = self.mount_bucket("--refresh=inf")
        self.assertEqual(os.listdir(mounted.path), ["x"])
        self.s3.put("bucket", "y", b"new")
        self.assertEqual(support.errno_of(os.stat, mounted / "y"), "ENOENT")


class RefusedTest(support.S3TestCase):
    """Each refusal: exit 1 or 2, one line with cause and remedy, nothing mounted or running."""

    def refused(self, url, env=None, code=1):
        words = self.mount_command(url)
        result = support.millrace("mount", *words, env=env or self.env)
        self.assertEqual(result.code, code, result.err)
        self.assertEqual(result.out, "")
        self.assertIsNone(support.mount_entry(words[-1]))
        self.assert_nothing_left()
        self.assert_one_line(result.err)
        return result.err

    def setUp(self):
        super().setUp()
        self.make_bucket({"x": 10})
        self.url = self.s3.url("bucket")

    def test_wrong_secret(self):
        env = {**self.env, "AWS_SECRET_ACCESS_KEY": "not-the-secret-of-this-server"}
        error = self.refused(self.url, env)
        self.assert_one_line(error, "s3://bucket", "403", "AWS_SECRET_ACCESS_KEY")
        self.assertNotIn("not-the-secret", error)

    def test_wrong_key(self):
        error = self.refused(self.url, {**self.env, "AWS_ACCESS_KEY_ID": "nobody"})
        self.assert_one_line(error, "s3://bucket", "check AWS_ACCESS_KEY_ID")

    def test_missing_credentials(self):
        error = self.refused(self.url, support.environment(), code=2)
        self.assert_one_line(error, "credentials", "AWS_ACCESS_KEY_ID", "anonymous=true")

    def test_anonymous_access_refused(self):
        error = self.refused(self.url + "&anonymous=true", support.environment())
        self.assert_one_line(error, "403", "anonymous")

    def test_missing_bucket(self):
        error = self.refused(self.s3.url("no-such-bucket"))
        self.assert_one_line(error, "no-such-bucket", "404", "check")

    def test_wrong_endpoint(self):
        closed = support.s3_server.free_port()
        error = self.refused(self.url.replace(str(self.s3.port), str(closed)))
        self.assert_one_line(error, str(closed), "refused")

    def test_endpoint_that_does_not_resolve(self):
        error = self.refused(self.url.replace("127.0.0.1", "no-such-host.invalid"))
        self.assert_one_line(error, "no-such-host.invalid")

    def test_plain_http_endpoint_without_scheme(self):
        error = self.refused(f"s3://bucket?endpoint=127.0.0.1:{self.s3.port}")
        self.assert_one_line(error, f"127.0.0.1:{self.s3.port}", "http://")

    def test_unknown_option_of_the_store(self):
        error = self.refused(self.url + "&colour=blue", code=2)
        self.assert_one_line(error, "colour")

    def test_wrong_value_of_an_option(self):
        error = self.refused(self.url.replace("path-style=true", "path-style=maybe"), code=2)
        self.assert_one_line(error, "path-style", "true or false")

    def test_secret_in_the_url_is_refused_and_not_repeated(self):
        error = self.refused(self.url + "&secret-access-key=abcdefgh12345678", code=2)
        self.assertNotIn("abcdefgh12345678", error)

    def test_unreadable_key_file(self):
        error = self.refused(self.url + "&access-key-file=/no/such/file", support.environment(),
                             code=2)
        self.assert_one_line(error, "/no/such/file")

    def test_one_bad_source_of_two_mounts_nothing(self):
        error = self.refused([f"a={self.url}", f"b={self.s3.url('no-such-bucket')}"])
        self.assert_one_line(error, "no-such-bucket")


class CredentialsTest(support.S3TestCase):
    """Where credentials may come from, and where they never go."""

    def setUp(self):
        super().setUp()
        self.make_bucket({"x": 10_000})

    def assert_mounts(self, url, env):
        mounted = self.mount(url, env=env)
        self.assertEqual(support.read_all(mounted / "x"), self.tree["x"])
        return mounted

    def test_profile_file(self):
        home = self.make_directory("home/.aws")
        (home / "credentials").write_text(
            "[default]\naws_access_key_id = nobody\naws_secret_access_key = nothing\n"
            f"[training]\naws_access_key_id = {self.s3.access_key}\n"
            f"aws_secret_access_key = {self.s3.secret_key}\n")
        self.assert_mounts(self.s3.url("bucket") + "&profile=training",
                           support.environment(HOME=str(home.parent)))

    def test_key_file(self):
        key = self.directory / "key"
        key.write_text(f"{self.s3.access_key}:{self.s3.secret_key}\n")
        self.assert_mounts(self.s3.url("bucket") + f"&access-key-file={key}",
                           support.environment())

    def test_secrets_show_nowhere(self):
        mounted = self.mount(self.s3.url("bucket"), "--log-level=debug", "--store-deadline=1s",
                             f"--metrics=127.0.0.1:{support.s3_server.free_port()}", env=self.env)
        support.read_all(mounted / "x")
        # Errors of the store may repeat what was sent.
        self.s3.stop()
        support.errno_of(os.listdir, mounted / "y")
        places = {
            "output": mounted.output,
            "log": mounted.log(),
            "record": (mounted.run_directory / "mount.json").read_text(),
            "status": support.millrace("status", mounted.path).out,
            "status json": support.millrace("status", "--json", mounted.path).out,
            "command line": pathlib.Path(f"/proc/{mounted.pid}/cmdline").read_text(),
            "mount table": str(support.mount_entry(mounted.path)),
        }
        for parent, _, names in os.walk(self.directory / "cache"):
            for name in names:
                data = pathlib.Path(parent, name).read_bytes()
                places[f"cache file {name}"] = data.decode("latin-1")
        for place, text in places.items():
            self.assertNotIn(self.s3.secret_key, text, place)
        self.assertNotIn(self.s3.access_key + "&", str(places))


class PathStyleTest(support.S3TestCase):
    def test_virtual_host_style(self):
        """BUCKET.localhost is this machine for every resolver; the server knows its domain."""
        self.s3.stop()
        self.s3 = support.s3_server.S3Server(
            self.buckets, options=["--virtual-domain", "localhost"])
        self.s3.start()
        self.addCleanup(self.s3.stop)
        self.make_bucket({"a/x": 10_000})
        url = (f"s3://bucket?endpoint=http://localhost:{self.s3.port}"
               f"&region={self.s3.region}&path-style=false")
        mounted = self.mount(url, env=support.environment(**self.s3.environment()))
        self.assertEqual(support.read_all(mounted / "a/x"), self.tree["a/x"])


class TlsTest(support.S3TestCase):
    """A server whose certificate only the right `ca-file` vouches for."""

    def setUp(self):
        super().setUp()
        self.s3.stop()
        self.ca = self.certificate("server")
        self.s3 = support.s3_server.S3Server(
            self.buckets, options=["--cert", str(self.ca), "--key", str(self.key_of(self.ca))])
        self.s3.start()
        self.addCleanup(self.s3.stop)
        self.env = support.environment(**self.s3.environment())
        self.make_bucket({"a/x": 3 * MIB + 1, "a/y": 10})

    def key_of(self, certificate):
        return certificate.with_suffix(".key")

    def certificate(self, name):
        """Signed by itself, for 127.0.0.1."""
        certificate = self.directory / f"{name}.pem"
        subprocess.run(
            ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1",
             "-nodes", "-days", "2", "-subj", f"/CN={name}",
             "-addext", "subjectAltName=IP:127.0.0.1",
             "-keyout", str(self.key_of(certificate)), "-out", str(certificate)],
            check=True, capture_output=True)
        return certificate

    def refused(self, url):
        words = self.mount_command(url)
        result = support.millrace("mount", *words, env=self.env)
        self.assertEqual(result.code, 2, result.err)
        self.assertIsNone(support.mount_entry(words[-1]))
        self.assert_nothing_left()
        self.assert_one_line(result.err, "certificate")

    def test_bytes_come_over_tls(self):
        mounted = self.mount(self.s3.url("bucket") + f"&ca-file={self.ca}", env=self.env)
        self.assertTrue(self.s3.endpoint.startswith("https://"))
        self.assertEqual(support.tree_digests(mounted.path),
                         {path: support.sha256(data) for path, data in self.tree.items()})

    def test_an_unknown_certificate_is_refused(self):
        self.refused(self.s3.url("bucket"))

    def test_anothers_certificate_is_refused(self):
        self.refused(self.s3.url("bucket") + f"&ca-file={self.certificate('another')}")


if __name__ == "__main__":
    support.main()
