#!/usr/bin/env python3
"""`millrace worker` and `millrace warm` with real workers on this machine: what is loaded is loaded
once, and what leaves with a worker is handed over."""

import json
import os
import signal
import subprocess
import unittest
import urllib.request

import support
from support import MIB, millrace, wait_until

WORKER = str(support.PROGRAMS / "millrace-worker")
EXTENT = MIB


class Worker:
    """One millrace-worker on loopback; `ports` are those of data, control and metrics."""

    def __init__(self, name, ports, command, log):
        self.name = name
        self.control = f"127.0.0.1:{ports[1]}"
        self.metrics = f"http://127.0.0.1:{ports[2]}/metrics"
        with open(log, "wb") as file:
            self.process = subprocess.Popen(command, stdin=subprocess.DEVNULL,
                                            stdout=subprocess.PIPE, stderr=file, text=True)
        # Its only line on standard output; none when it could not start.
        if "ready" not in self.process.stdout.readline():
            self.end()
            raise RuntimeError(f"{name} did not start:\n{log.read_text()}")

    def end(self):
        """SIGTERM; the exit code."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        self.process.stdout.close()
        return self.process.wait(support.DEADLINE_S)

    def store_bytes(self):
        with urllib.request.urlopen(self.metrics, timeout=20) as answer:
            page = answer.read().decode()
        return sum(float(line.split()[-1]) for line in page.splitlines()
                   if line.startswith("millrace_store_bytes_total") and 'direction="read"' in line)


@unittest.skipUnless(os.path.exists(WORKER), f"{WORKER} is not built")
class WorkerCommandTest(support.MountTestCase):
    def start_workers(self, tiers):
        """A pool of len(tiers) workers; each knows all, and they have met when this returns."""
        ports = [[support.s3_server.free_port() for _ in range(3)] for _ in tiers]
        self.members = ",".join(f"127.0.0.1:{data}" for data, _, _ in ports)
        self.workers = []
        for index, (medium, (data, control, metrics)) in enumerate(zip(tiers, ports)):
            root = self.sources if medium == "mem" else self.directory
            command = [WORKER, self.url, "--id", f"w{index}", "--members", self.members,
                       "--tier", f"{medium}:{root}/tier{index}:256Mi", "--listen", "127.0.0.1",
                       "--data-port", str(data), "--control-port", str(control),
                       "--metrics-port", str(metrics), "--extent-size", str(EXTENT)]
            worker = Worker(f"w{index}", (data, control, metrics), command,
                            self.directory / f"w{index}.log")
            self.addCleanup(worker.end)
            self.workers.append(worker)
        self.controls = ",".join(worker.control for worker in self.workers)
        # Their views of the pool are the same when their shares of many extents sum up to all.
        wait_until(lambda: self.json("load", self.controls, self.url, "meeting")["bytes_total"] ==
                   len(self.tree["meeting"]), "the workers to agree on their shares")
        self.json("evict", self.controls, self.url)
        self.fetched_before = 0
        self.fetched_before = self.fetched()

    def json(self, command, *words):
        result = millrace("worker", command, "--json", *words)
        self.assertEqual(result.code, 0, result.err)
        return json.loads(result.out.splitlines()[-1] if command != "status" else result.out)

    def used(self):
        """{worker: bytes in its tiers}"""
        return {told["id"]: sum(tier["used_bytes"] for tier in told["tiers"])
                for told in self.json("status", self.controls)["workers"]}

    def fetched(self):
        """Bytes that the workers had from the store since they agreed."""
        return sum(worker.store_bytes() for worker in self.workers) - self.fetched_before

    def setUp(self):
        super().setUp()
        sizes = {f"data/small/{index}": 100_000 + index for index in range(20)}
        sizes["data/large"] = 12 * EXTENT + 12_345
        self.size = sum(sizes.values())
        sizes["meeting"] = 24 * EXTENT
        self.make_source(sizes)
        self.url = f"file://{self.source}"

    def test_load_drain_and_leave(self):
        self.start_workers(["ssd", "ssd", "mem"])
        loaded = self.json("load", self.controls, self.url, "data")
        self.assertEqual((loaded["bytes_done"], loaded["bytes_refused"]), (self.size, 0))
        self.assertEqual(sum(self.used().values()), self.size)
        self.assertEqual(self.fetched(), self.size)

        # The worker that leaves keeps in memory: its successors get that too, and not from the
        # store.
        leaving = self.workers[-1]
        handed = self.used()[leaving.name]
        self.assertGreater(handed, 0)
        drained = self.json("drain", leaving.control)
        self.assertEqual((drained["done"], drained["extents_failed"]), (True, 0))
        self.assertEqual(drained["bytes_done"], handed)
        after = self.json("status", leaving.control)["workers"][0]
        self.assertEqual(after["state"], "drained")
        # It serves on, and the second drain is the first.
        self.assertEqual(self.json("drain", leaving.control)["bytes_done"], handed)
        self.assertEqual(self.fetched(), self.size)
        # The others know that it leaves before it is gone: else it would only be dead to them.
        wait_until(lambda: all(
            member["draining"] for told in self.json("status", self.controls)["workers"]
            for member in told["members"] if member["id"] == leaving.name), "the news of the drain")
        self.workers.pop()
        self.assertEqual(leaving.end(), 0)

        self.controls = ",".join(worker.control for worker in self.workers)
        self.assertEqual(sum(self.used().values()), self.size)
        fetched = self.fetched()
        # Once both know that it has left, all is theirs, and here already.
        wait_until(lambda: self.json("load", self.controls, self.url, "data")["bytes_done"] ==
                   self.size, "the others to own all")
        self.assertEqual(self.fetched(), fetched)

    def test_drain_without_waiting_can_be_watched(self):
        self.start_workers(["ssd", "ssd"])
        self.json("load", self.controls, self.url, "data")
        result = millrace("worker", "drain", "--no-wait", self.workers[0].control)
        self.assertEqual(result.code, 0, result.err)
        self.assertTrue(self.json("drain", self.workers[0].control)["done"])
        self.assertEqual(self.used()["w1"], self.size)

    def test_a_worker_alone_says_that_nobody_takes_its_data(self):
        self.start_workers(["ssd"])
        self.json("load", self.controls, self.url, "data/small")
        result = millrace("worker", "drain", self.workers[0].control)
        self.assertEqual(result.code, 1)
        self.assert_one_line(result.err, "taken by nobody", "from the store")

    def test_warm_of_a_mount_spreads_over_the_workers(self):
        self.start_workers(["ssd", "ssd", "ssd"])
        mounted = self.mount_with_workers()
        result = millrace("warm", "--json", mounted.path, "data")
        self.assertEqual(result.code, 0, result.err)
        warmed = json.loads(result.out.splitlines()[-1])
        self.assertEqual((warmed["bytes_done"], warmed["bytes_refused"]), (self.size, 0))
        used = self.used()
        self.assertEqual(sum(used.values()), self.size)
        self.assertTrue(all(used.values()), used)
        self.assertEqual(self.fetched(), self.size)
        self.assertEqual(mounted.store_bytes(), 0)
        for path, content in self.tree.items():
            if path.startswith("data/"):
                self.assertEqual(support.read_all(mounted / path), content)
        self.assertEqual(self.fetched(), self.size)
        self.assertEqual(mounted.store_bytes(), 0)

        # What workers have, the mount cannot drop, and the workers' own command can.
        mounted.evict()
        self.assertEqual(sum(self.used().values()), self.size)
        self.assertGreater(self.json("evict", self.controls, self.url, "data/large")["bytes_freed"], 0)
        self.assertEqual(sum(self.used().values()), self.size - len(self.tree["data/large"]))

    def mount_with_workers(self):
        words = ["--workers", self.members, self.url, str(self.make_directory("mnt"))]
        result = millrace("mount", *words)
        self.assertEqual(result.code, 0, result.err)
        mounted = support.Mount(words[-1], result.out)
        self.mounts.append(mounted)
        return mounted

    def test_a_warm_of_workers_that_are_full(self):
        self.start_workers(["ssd"])
        support.make_tree(self.source, {"huge/a": 160 * MIB, "huge/b": 160 * MIB})
        mounted = self.mount_with_workers()
        result = millrace("warm", mounted.path, "huge")
        self.assertEqual(result.code, 1)
        self.assert_one_line(result.err, "were not kept", "--tier")


if __name__ == "__main__":
    support.main()
