#!/usr/bin/env python3
"""The page for Prometheus: well-formed for promtool, and its figures move as documented."""

import re
import shutil
import subprocess
import unittest
import urllib.request

import support
from support import MIB, errno_of

SAMPLE = re.compile(r"^(\w+)(?:\{(.*)\})? (\S+)$")


def promtool():
    built = support.REPOSITORY / "build" / "deps" / "bin" / "promtool"
    return str(built) if built.exists() else shutil.which("promtool")


class MetricsTest(support.S3TestCase):
    def setUp(self):
        super().setUp()
        self.make_bucket({"a": 100_000, "large": 3 * MIB})
        self.address = f"127.0.0.1:{support.s3_server.free_port()}"
        self.mounted = self.mount_bucket(f"--metrics={self.address}", "--profile=large-files",
                                         "--store-deadline=1s")

    def page(self):
        with urllib.request.urlopen(f"http://{self.address}/metrics", timeout=20) as answer:
            self.assertIn("text/plain", answer.headers["Content-Type"])
            return answer.read().decode()

    def samples(self):
        """{(name, labels as text): value}"""
        return {(match[1], match[2] or ""): float(match[3])
                for line in self.page().splitlines()
                if not line.startswith("#") and (match := SAMPLE.match(line))}

    def total(self, name, *labels):
        return sum(value for (metric, text), value in self.samples().items()
                   if metric == name and all(label in text for label in labels))

    @unittest.skipUnless(promtool(), "promtool is not installed: run ./dev deps")
    def test_promtool_finds_nothing(self):
        for path in self.tree:
            support.read_all(self.mounted / path)
        done = subprocess.run([promtool(), "check", "metrics"], input=self.page(), text=True,
                              capture_output=True, check=False)
        self.assertEqual((done.returncode, done.stdout + done.stderr), (0, ""))

    def test_reads_and_store_bytes_are_counted(self):
        sizes = sum(map(len, self.tree.values()))
        for path in self.tree:
            support.read_all(self.mounted / path)
        self.assert_fetched(self.mounted, sizes)
        self.assertEqual(self.total("millrace_read_bytes_total"), sizes)
        self.assertEqual(self.total("millrace_read_bytes_total", 'tier="store"'), sizes)
        self.assertEqual(self.total("millrace_store_bytes_total", 'direction="read"'), sizes)
        self.assertGreater(self.total("millrace_store_requests_total", 'op="get"', 'code="ok"'), 0)
        self.assertGreater(self.total("millrace_store_requests_total", 'op="list"'), 0)
        self.assertGreater(self.total("millrace_read_requests_total"), 0)
        self.assertEqual(self.total("millrace_read_seconds_count"),
                         self.total("millrace_read_requests_total"))
        self.assertGreater(self.total("millrace_fuse_requests_total", 'op="read"'), 0)
        self.assertEqual(self.total("millrace_cache_hit_ratio"), 0)
        self.assertEqual(self.total("millrace_errors_total"), 0)

    def test_hits_passthrough_and_cache_use_are_counted(self):
        self.mounted.warm()
        self.assertEqual(self.total("millrace_cache_used_bytes"), sum(map(len, self.tree.values())))
        self.assertEqual(self.total("millrace_cache_capacity_bytes"), 1 << 30)
        support.read_all(self.mounted / "large")
        if self.mounted.status()["features"]["passthrough"]:
            self.assertEqual(self.total("millrace_passthrough_opens_total"), 1)
            self.assertEqual(self.total("millrace_passthrough_opened_bytes_total"), 3 * MIB)
        else:
            self.assertEqual(self.total("millrace_read_bytes_total", 'tier="local"'), 3 * MIB)
            self.assertEqual(self.total("millrace_cache_hit_ratio"), 1)
        self.mounted.evict("a")
        self.assertEqual(self.total("millrace_cache_evictions_total", 'reason="user"'), 1)

    def test_errors_are_counted(self):
        support.read_all(self.mounted / "a")
        self.s3.stop()
        self.assertEqual(errno_of(support.read_at, self.mounted / "large", MIB, 10), "EIO")
        self.assertGreater(self.total("millrace_errors_total", 'component="fetch"',
                                      'kind="store"'), 0)

    def test_names_memory_and_process_are_shown(self):
        support.tree_digests(self.mounted.path)
        self.assertEqual(self.total("millrace_names_known", 'kind="file"'), 2)
        self.assertEqual(self.total("millrace_names_hidden_total"), 0)
        self.assertEqual(self.total("millrace_memory_limit_bytes"), 512 * MIB)
        self.assertEqual(self.total("millrace_build_info"), 1)
        self.assertGreater(self.total("process_resident_memory_bytes"), MIB)
        self.assertGreater(self.total("process_start_time_seconds"), 1e9)
        self.assertEqual(self.total("millrace_session_takeovers_total"), 0)

    def test_status_and_metrics_agree(self):
        for path in self.tree:
            support.read_all(self.mounted / path)
        self.assert_fetched(self.mounted, sum(map(len, self.tree.values())))
        status = self.mounted.status()
        self.assertEqual(self.total("millrace_store_bytes_total"), status["store"]["bytes"])
        self.assertEqual(self.total("millrace_read_bytes_total"),
                         sum(read["bytes"] for read in status["reads"]))
        self.assertEqual(self.total("millrace_cache_used_bytes"), status["tiers"][0]["used_bytes"])


if __name__ == "__main__":
    support.main()
