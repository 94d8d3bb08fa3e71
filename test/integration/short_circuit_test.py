#!/usr/bin/env python3
"""Mounts without a cache of their own beside a real worker: whole files are the worker's, read by
the kernel through the descriptor that the worker hands over."""

import grp
import os
import pathlib
import signal
import subprocess
import unittest
import urllib.request

import support
from support import MIB, wait_until

WORKER = str(support.PROGRAMS / "millrace-worker")
# The daemon of root's mount is nobody.
GROUP = grp.getgrgid(65534).gr_name


def sum_of_samples(page, metric, *parts):
    """Of the metric's samples on the page at that URL whose lines have all of the parts."""
    with urllib.request.urlopen(page, timeout=20) as answer:
        lines = answer.read().decode().splitlines()
    return sum(float(line.split()[-1]) for line in lines
               if line.startswith(metric) and all(part in line for part in parts))


class Worker:
    """One millrace-worker on loopback with a socket for this node; `data` is its port."""

    def __init__(self, test, name, *options, quota="256Mi"):
        self.directory = test.directory / name
        self.directory.mkdir(exist_ok=True)
        # On the way to the socket.
        for parent in [self.directory, *self.directory.parents]:
            if parent == pathlib.Path("/tmp"):
                break
            parent.chmod(0o755)
        self.data, control, metrics = (support.s3_server.free_port() for _ in range(3))
        self.metrics = f"http://127.0.0.1:{metrics}/metrics"
        self.socket = self.directory / "run" / "worker.sock"
        self.address = f"127.0.0.1:{self.data}"
        self.command = [
            WORKER, f"file://{test.source}", "--id", name, "--listen", "127.0.0.1",
            "--tier", f"ssd:{self.directory}/tier:{quota}", "--dir", str(self.socket.parent),
            "--socket-group", GROUP, "--data-port", str(self.data),
            "--control-port", str(control), "--metrics-port", str(metrics), *options]
        self.process = None
        test.addCleanup(self.kill)
        self.start()

    def start(self):
        log = self.directory / "log"
        with open(log, "ab") as file:
            self.process = subprocess.Popen(self.command, stdin=subprocess.DEVNULL,
                                            stdout=subprocess.PIPE, stderr=file, text=True)
        # Its only line on standard output; none when it could not start.
        if "ready" not in self.process.stdout.readline():
            raise RuntimeError(f"the worker did not start:\n{log.read_text()}")

    def kill(self):
        self.process.kill()
        self.process.wait()
        self.process.stdout.close()

    def sum(self, metric, *parts):
        return sum_of_samples(self.metrics, metric, *parts)

    def store_bytes(self):
        return self.sum("millrace_store_bytes_total", 'direction="read"')


@unittest.skipUnless(os.path.exists(WORKER), f"{WORKER} is not built")
class ShortCircuitTest(support.MountTestCase):
    def mount_beside(self, worker, *options, mountpoint="mnt"):
        """Without a cache of its own."""
        words = ["--profile=large-files", f"--workers=unix:{worker.socket}", *map(str, options),
                 f"file://{self.source}", str(self.make_directory(mountpoint))]
        result = support.millrace("mount", *words)
        self.assertEqual(result.code, 0, result.err)
        mounted = support.Mount(words[-1], result.out)
        self.mounts.append(mounted)
        return mounted

    def check(self, mounted, *names):
        for name in names:
            self.assertEqual(support.sha256(support.read_all(mounted / name)),
                             support.sha256(self.tree[name]), name)

    def borrowed(self, mounted):
        return mounted.status()["passthrough"]["short_circuit_bytes_opened"]

    def kinds(self, mounted):
        """Bytes read by kind."""
        kinds = {}
        for read in mounted.status()["reads"]:
            kinds[read["tier"]] = kinds.get(read["tier"], 0) + read["bytes"]
        return kinds

    def until_borrowed(self, mounted, name):
        """Opens the file until it is the worker's, and returns the descriptor."""
        before = self.borrowed(mounted)
        fds = []

        def opened():
            fds.append(os.open(mounted / name, os.O_RDONLY))
            if self.borrowed(mounted) > before:
                return True
            os.close(fds.pop())
            return False

        wait_until(opened, f"{name} of the worker")
        self.addCleanup(os.close, fds[0])
        return fds[0]

    def test_what_the_worker_has_is_read_by_the_kernel(self):
        self.make_source({"large": 20 * MIB + 77, "small": 100_000})
        worker = Worker(self, "w")
        page = f"127.0.0.1:{support.s3_server.free_port()}"
        mounted = self.mount_beside(worker, f"--metrics={page}")
        self.check(mounted, "large", "small")
        size = len(self.tree["large"])
        wait_until(lambda: worker.store_bytes() >= size + 100_000, "both files in the worker")
        fd = self.until_borrowed(mounted, "large")
        kinds = self.kinds(mounted)
        self.assertEqual(os.pread(fd, MIB, 5 * MIB + 5), self.tree["large"][5 * MIB + 5:][:MIB])
        self.check(mounted, "large")
        # Not one byte of that came by way of the daemon, nor from the store once more.
        self.assertEqual(self.kinds(mounted), kinds)
        self.assertEqual(worker.store_bytes(), size + 100_000)
        self.assertEqual(mounted.store_bytes(), 0)
        page = f"http://{page}/metrics"
        self.assertEqual(sum_of_samples(page, "millrace_passthrough_opened_bytes_total",
                                        'tier="short_circuit"'), self.borrowed(mounted))
        self.assertEqual(sum_of_samples(page, "millrace_read_bytes_total"), size + 100_000)
        self.assertEqual(sum_of_samples(page, "millrace_read_bytes_total", 'tier="local"'), 0)
        self.assertEqual(os.getxattr(mounted / "large", "user.millrace.cached"), b"complete")
        self.assertEqual(os.statvfs(mounted.path).f_blocks, 0)  # Nothing is kept here.

    def test_a_second_mount_of_the_node_finds_it_at_once(self):
        self.make_source({"large": 20 * MIB})
        worker = Worker(self, "w")
        self.check(self.mount_beside(worker), "large")
        wait_until(lambda: worker.store_bytes() == 20 * MIB, "the file in the worker")
        first = self.mounts[0]
        self.until_borrowed(first, "large")
        second = self.mount_beside(worker, mountpoint="second")
        self.check(second, "large")
        self.assertEqual(self.borrowed(second), 20 * MIB)
        self.assertEqual(sum(self.kinds(second).values()), 0)

    def test_reads_go_on_when_the_worker_is_killed(self):
        self.make_source({"a": 8 * MIB, "b": 8 * MIB})
        worker = Worker(self, "w")
        mounted = self.mount_beside(worker)
        self.check(mounted, "a")
        fd = self.until_borrowed(mounted, "a")
        worker.kill()
        support.drop_page_cache(mounted / "a")
        for offset in range(0, 8 * MIB, MIB):
            self.assertEqual(os.pread(fd, MIB, offset), self.tree["a"][offset:offset + MIB])
        # What it has not handed over comes from the store itself.
        self.check(mounted, "a", "b")
        self.assertEqual(mounted.store_bytes(), 8 * MIB)
        worker.start()

        def asked():
            support.drop_page_cache(mounted / "b")
            self.check(mounted, "b")
            return worker.store_bytes() >= 8 * MIB

        wait_until(asked, "a read by way of the worker that is back")
        self.until_borrowed(mounted, "b")

    def test_the_worker_does_not_make_room_with_what_is_open(self):
        size = 24 * MIB
        self.make_source({name: size for name in "abcd"})
        worker = Worker(self, "w", "--eviction", "sieve", quota="64Mi")
        mounted = self.mount_beside(worker)
        self.check(mounted, "a")
        fd = self.until_borrowed(mounted, "a")
        # Two files fit, of which one is spoken for.
        for name in "bcdbcd":
            self.check(mounted, name)
        self.assertGreater(worker.sum("millrace_cache_evictions_total"), 0)
        fetched = worker.store_bytes()
        self.assertEqual(os.pread(fd, MIB, MIB), self.tree["a"][MIB:2 * MIB])
        other = self.mount_beside(worker, mountpoint="other")
        self.check(other, "a")
        self.assertEqual(self.borrowed(other), size)
        self.assertEqual(worker.store_bytes(), fetched)

    def test_a_killed_daemon_leaves_files_of_the_worker_open(self):
        self.make_source({"a": 8 * MIB})
        worker = Worker(self, "w")
        mounted = self.mount_beside(worker)
        self.check(mounted, "a")
        fd = self.until_borrowed(mounted, "a")
        mounted.kill_daemon()
        self.assertEqual(os.pread(fd, MIB, MIB), self.tree["a"][MIB:2 * MIB])
        # The kernel would answer EIO to another way of opening it.
        self.check(mounted, "a")
        self.assertEqual(self.borrowed(mounted), 8 * MIB)
        self.assertEqual(sum(self.kinds(mounted).values()), 0)
        # And the same without the worker.
        worker.kill()
        mounted.kill_daemon()
        self.check(mounted, "a")
        self.assertEqual(os.pread(fd, MIB, MIB), self.tree["a"][MIB:2 * MIB])

    def test_the_second_epoch_on_a_node_is_local(self):
        names = [f"part-{i}" for i in range(8)]
        self.make_source({name: 3 * MIB for name in names})
        far = Worker(self, "far")
        near = Worker(self, "near", "--members", far.address)
        mounted = self.mount_beside(near)
        self.check(mounted, *names)
        # Whoever owns it, the worker of this node keeps a copy.
        for name in names:
            self.until_borrowed(mounted, name)
        before = self.kinds(mounted), far.store_bytes() + near.store_bytes()
        self.check(mounted, *names)
        self.assertEqual((self.kinds(mounted), far.store_bytes() + near.store_bytes()), before)
        self.assertEqual(before[1], 24 * MIB)

    def test_a_frozen_worker_costs_an_open_a_second_and_no_error(self):
        self.make_source({"a": 8 * MIB, "b": 8 * MIB})
        worker = Worker(self, "w")
        mounted = self.mount_beside(worker)
        self.check(mounted, "a")
        fd = self.until_borrowed(mounted, "a")
        worker.process.send_signal(signal.SIGSTOP)
        try:
            self.assertEqual(os.pread(fd, MIB, MIB), self.tree["a"][MIB:2 * MIB])
            self.check(mounted, "b", "a")
        finally:
            worker.process.send_signal(signal.SIGCONT)


if __name__ == "__main__":
    support.main()
