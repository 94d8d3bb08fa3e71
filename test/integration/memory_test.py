#!/usr/bin/env python3
"""Memory stays within its promise: --memory-limit plus 64 MiB, whoever reads what."""

import os
import pathlib
import random
import re
import time

import support
from fake_s3 import FakeObject, FakeS3
from support import BLOCK, MIB

LIMIT = 64 * MIB
PROMISE = LIMIT + 64 * MIB
OBJECTS = 16
READERS = 32
READ_FOR_S = 4


def peak_resident(pid):
    status = pathlib.Path(f"/proc/{pid}/status").read_text()
    return int(re.search(r"VmHWM:\s+(\d+) kB", status)[1]) * 1024


class ReadersTest(support.S3TestCase):
    SIZE = 12 * MIB

    def assert_stays_small(self, mounted):
        """Many threads at random, each read compared, for a while."""
        stop = time.monotonic() + READ_FOR_S
        read = [0] * READERS

        def reader(number):
            dice = random.Random(number)
            while time.monotonic() < stop:
                path = f"{dice.randrange(OBJECTS)}"
                offset = dice.randrange(self.SIZE)
                size = dice.choice((4096, BLOCK, MIB))
                data = support.read_at(mounted / path, offset, size)
                self.assertEqual(len(data), min(size, self.SIZE - offset))
                self.assertTrue(self.tree[path].startswith(data, offset), (path, offset))
                read[number] += len(data)

        support.run_in_threads([lambda i=i: reader(i) for i in range(READERS)])
        self.assertTrue(all(read), "a reader starved")
        self.assertLessEqual(peak_resident(mounted.pid), PROMISE)
        self.assertLessEqual(mounted.status()["memory"]["used_bytes"], LIMIT)

    def make_objects(self):
        return {f"{i}": self.SIZE for i in range(OBJECTS)}

    def test_readers_of_cold_objects(self):
        self.make_bucket(self.make_objects())
        self.assert_stays_small(self.mount_bucket("--memory-limit=64Mi"))

    def test_readers_of_more_than_the_cache_takes(self):
        self.make_bucket(self.make_objects())
        self.assert_stays_small(self.mount_bucket("--memory-limit=64Mi", self.tier(quota="16Mi"),
                                                  "--profile=large-files"))

    def test_warm_of_everything_beside_readers(self):
        self.make_bucket(self.make_objects())
        mounted = self.mount_bucket("--memory-limit=64Mi")
        support.run_in_threads([mounted.warm, lambda: self.assert_stays_small(mounted)])
        self.assertLessEqual(peak_resident(mounted.pid), PROMISE)


class ListingTest(support.MountTestCase):
    NAMES = 50_000

    def test_fifty_thousand_names(self):
        store = FakeS3({b"many/%08d.jpg" % i: FakeObject(size=100) for i in range(self.NAMES)})
        self.addCleanup(store.stop)
        mounted = self.mount(store.url)
        empty = peak_resident(mounted.pid)
        self.assertEqual(len(os.listdir(mounted / "many")), self.NAMES)
        with os.scandir(mounted / "many") as listing:
            self.assertEqual(sum(entry.stat().st_size for entry in listing), 100 * self.NAMES)
        self.assertLessEqual(peak_resident(mounted.pid) - empty, 40 * MIB)


if __name__ == "__main__":
    support.main()
