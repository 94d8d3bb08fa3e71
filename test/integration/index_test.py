#!/usr/bin/env python3
"""A worker's index of a bucket: a mount with --workers takes its names from there, and shows what
the store has."""

import os
import re
import subprocess
import unittest
import urllib.request

import support
from support import wait_until

OBJECTS = 20_000
DIRECTORIES = 20
WORKER = support.PROGRAMS / "millrace-worker"
SAMPLE = re.compile(r"^(\w+)(?:\{(.*)\})? (\S+)$")


def names_below(directory):
    """Relative paths of all files, with their sizes."""
    found = {}
    for parent, _, names in os.walk(directory):
        for name in names:
            path = os.path.join(parent, name)
            found[os.path.relpath(path, directory)] = os.stat(path).st_size
    return found


@unittest.skipUnless(WORKER.exists(), f"{WORKER} is not built")
class IndexTest(support.S3TestCase):

    def setUp(self):
        super().setUp()
        self.make_bucket({f"d{i % DIRECTORIES:02d}/object-{i:05d}": i % 7
                          for i in range(OBJECTS)} | {"top": 3})
        self.ports = [support.s3_server.free_port() for _ in range(4)]
        self.start_worker()

    def start_worker(self):
        data, control, metrics, _ = self.ports
        self.log = self.directory / "worker.log"
        with open(self.log, "ab") as log:
            self.worker = subprocess.Popen(
                [WORKER, self.s3.url("bucket"), f"--tier=ssd:{self.directory}/worker-tier:1Gi",
                 "--id=w1", "--listen=127.0.0.1", f"--data-port={data}",
                 f"--control-port={control}", f"--metrics-port={metrics}",
                 f"--dir={self.directory}/worker"],
                stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=self.env,
                preexec_fn=support.s3_server.die_with_parent)
        self.addCleanup(self.stop_worker)
        wait_until(lambda: support.s3_server.answers(data), f"the worker:\n{self.log.read_text()}")

    def stop_worker(self):
        self.worker.terminate()
        self.worker.wait(support.DEADLINE_S)

    def mount_with_workers(self, *options, **arguments):
        return self.mount_bucket(f"--workers=127.0.0.1:{self.ports[0]}", *options, **arguments)

    def total(self, name, *labels):
        """Of the mount with --metrics."""
        address = f"http://127.0.0.1:{self.ports[3]}/metrics"
        with urllib.request.urlopen(address, timeout=20) as answer:
            page = answer.read().decode()
        return sum(float(match[3]) for line in page.splitlines()
                   if (match := SAMPLE.match(line)) and match[1] == name and
                   all(label in (match[2] or "") for label in labels))

    def await_index(self):
        """Somebody has to ask first; the mount that does lists the store itself."""
        def listings():
            return self.log.read_text().count("was listed for its index")

        # A worker that was started again does not know how old the index is that it found.
        before = listings()
        mounted = self.mount_with_workers(mountpoint="first")
        os.listdir(mounted.path)
        wait_until(lambda: listings() > before, "the index")
        self.umount(mounted)

    def test_names_come_from_the_index_and_not_from_the_store(self):
        self.await_index()
        mounted = self.mount_with_workers(f"--metrics=127.0.0.1:{self.ports[3]}")
        seen = names_below(mounted.path)
        self.assertEqual(seen, {path: len(data) for path, data in self.tree.items()})
        self.assertGreater(self.total("millrace_pool_names_total", 'from="index"'), DIRECTORIES)
        self.assertEqual(self.total("millrace_pool_names_total", 'from="store"'), 0)
        self.assertEqual(self.total("millrace_store_requests_total", 'op="list"'), 0)
        # The version that the index has is the one that the store gives.
        for path in ("top", "d00/object-00020", "d19/object-19999"):
            self.assertEqual(support.read_all(mounted / path), self.tree[path])

    def test_changes_are_seen(self):
        """How soon is tree_test's to say: here a listing that takes long is due later."""
        self.await_index()
        mounted = self.mount_with_workers("--refresh=15s")
        names_below(mounted.path)
        for number in range(2):
            name = f"new-{number}"
            self.s3.put("bucket", f"d00/{name}", b"new")
            wait_until(lambda name=name: name in os.listdir(mounted / "d00"), name,
                       timeout=2 * support.DEADLINE_S)
            self.assertEqual(support.read_all(mounted / "d00" / name), b"new")
        self.assertEqual(len(names_below(mounted.path)), len(self.tree) + 2)

    def test_the_store_is_listed_when_the_worker_dies(self):
        self.await_index()
        self.worker.kill()
        self.worker.wait()
        mounted = self.mount_with_workers()
        self.assertEqual(names_below(mounted.path),
                         {path: len(data) for path, data in self.tree.items()})

    def test_a_restarted_worker_has_its_index_again(self):
        self.await_index()
        self.stop_worker()
        self.start_worker()
        self.await_index()
        self.assertIn("index", os.listdir(self.directory / "worker"))
        mounted = self.mount_with_workers(f"--metrics=127.0.0.1:{self.ports[3]}")
        self.assertEqual(len(names_below(mounted.path)), len(self.tree))
        self.assertGreater(self.total("millrace_pool_names_total", 'from="index"'), DIRECTORIES)


if __name__ == "__main__":
    support.main()
