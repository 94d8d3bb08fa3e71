#!/usr/bin/env python3
"""Cache workers on several hosts, and everything that happens to hosts and their lines.

Each test has a store, workers and clients, each on a host of its own (test/support/hosts.py). The
store counts what it is asked for. Whatever happens to workers: no read fails, every byte is right,
the store sends no more than it must, and nothing is left running.

The chaos at the end prints its seed when it fails; MILLRACE_CHAOS_SEED repeats it, and a seed that
failed joins SEEDS. MILLRACE_CHAOS=full takes its time.
"""

import contextlib
import os
import pathlib
import random
import signal
import socket
import subprocess
import sys
import threading
import time
import unittest

import support  # First: it puts test/support on the path.
import data_protocol
import fake_s3
import hosts
import takeover
import workers
from support import MIB

FULL = os.environ.get("MILLRACE_CHAOS") == "full"
SEEDS = [1, 2]
EVENTS = 60 if FULL else 8
EXTENT = "4Mi"
SIZES = {"large": 24 * MIB + 12345, "middle": 3 * MIB,
         **{f"small/{i:02}": 1000 + 7919 * i for i in range(24)}}
TOTAL = sum(SIZES.values())
# An owner fetches whole blocks, and nothing twice; a little for what was on its way when it died.
STORE_BYTES_PER_BYTE = 1.02
# A read by way of a worker that went silent: the time-outs of one attempt, and the next in rank.
SILENT_WITHIN_S = 30
WORKER = support.PROGRAMS / "millrace-worker"


@unittest.skipIf(hosts.missing(), hosts.missing())
@unittest.skipUnless(WORKER.exists(), f"{WORKER} is not built")
class WorkersTestCase(support.MountTestCase):
    """A test with a store, workers and clients."""

    def setUp(self):
        self.network = self.enterContext(hosts.Network())
        super().setUp()
        self.make_source(SIZES)
        self.store_host = self.network.host("store")
        objects = {path.encode(): fake_s3.FakeObject(data) for path, data in self.tree.items()}
        self.store = self.store_host.inside(fake_s3.FakeS3, objects, self.store_host.address)
        self.addCleanup(self.store.stop)
        self.workers = []
        self.addCleanup(self._stop_all)

    def plan(self, count):
        """The hosts of so many workers: the list that everybody is given."""
        self.pool = [self.network.host(f"worker{i + 1}") for i in range(count)]

    def worker(self, index=None, members=None, **options):
        """The next worker of the plan, not started yet."""
        host = self.pool[len(self.workers) if index is None else index]
        options.setdefault("extent_size", EXTENT)
        options.setdefault("environment", support.environment())
        made = workers.Worker(support.PROGRAMS, host, self.directory / host.name,
                              [self.store.url], members or self.pool, **options)
        self.workers.append(made)
        return made

    def _stop_all(self):
        for worker in self.workers:
            worker.tell_to_stop()
        for worker in self.workers:
            self._stop(worker)

    def _stop(self, worker):
        if not worker.stop():
            self.fail(f"{worker.name} did not end by itself:\n{worker.log()}")

    def start_workers(self, count, **options):
        self.plan(count)
        made = [self.worker(**options) for _ in range(count)]
        for worker in made:
            worker.spawn()
        for worker in made:
            worker.wait_until_ready()
        return made

    def client(self, name="client", *options, host=None):
        """A mount without a cache on a host of its own."""
        return self.mount(self.store.url, *workers.client_options(self.pool), *options,
                          mountpoint=f"mnt-{name}", env=support.environment(),
                          host=host or self.network.host(name))

    def read_all(self, mounted, paths=SIZES):
        """Reads by way of the daemon, not of the page cache, and compares."""
        for path in paths:
            support.drop_page_cache(mounted / path)
            self.assertEqual(support.sha256(support.read_all(mounted / path)),
                             support.sha256(self.tree[path]), path)

    def reads(self, mounted, kind):
        """Bytes that its readers got from there."""
        return sum(read["bytes"] for read in mounted.status()["reads"] if read["tier"] == kind)

    def store_bytes(self):
        with self.store.lock:
            return sum(length for _, _, length in self.store.gets)

    def warm(self):
        """Loads everything into the workers, by way of a client that then leaves."""
        mounted = self.client("warmer")
        mounted.warm()
        self.umount(mounted)

    def assert_nothing_fetched(self, before):
        self.assertEqual(self.store_bytes(), before)


class PoolTest(WorkersTestCase):
    """A pool that is well."""

    def test_a_cold_herd_asks_the_store_once(self):
        self.start_workers(3)
        clients = [self.client(f"client{i}") for i in range(4)]
        support.run_in_threads([lambda mounted=mounted: self.read_all(mounted)
                                for mounted in clients])
        self.assertLessEqual(self.store_bytes(), TOTAL * STORE_BYTES_PER_BYTE)
        starts = [(key, offset) for key, offset, _ in self.store.gets]
        self.assertEqual(len(set(starts)), len(starts), "the same bytes were asked for twice")
        for mounted in clients:
            self.assertEqual(self.reads(mounted, "local"), 0)
        # All have their share.
        self.assertTrue(all(worker.report()["tiers"][0]["used_bytes"] > 0
                            for worker in self.workers))

    def test_a_restarted_worker_finds_its_cache(self):
        worker, = self.start_workers(1)
        self.warm()
        before = self.store_bytes()
        worker.kill()
        worker.start()
        mounted = self.client()
        self.read_all(mounted)
        self.assert_nothing_fetched(before)
        self.assertEqual(self.reads(mounted, "remote"), TOTAL)

    def test_the_next_in_rank_has_the_copy(self):
        self.start_workers(3, replicas=2)
        self.warm()
        support.wait_until(
            lambda: sum(worker.report()["tiers"][0]["used_bytes"] for worker in self.workers) >=
            2 * TOTAL, "both copies of everything")
        before = self.store_bytes()
        mounted = self.client()
        self.workers[0].kill()
        self.read_all(mounted)
        self.assert_nothing_fetched(before)

    def test_a_new_worker_takes_its_share_from_the_others(self):
        self.plan(4)
        for _ in range(3):
            self.worker().start()
        self.warm()
        before = self.store_bytes()
        mounted = self.client()
        fourth = self.worker().start()

        def has_its_share():
            self.read_all(mounted)
            return fourth.report()["tiers"][0]["used_bytes"] > 0

        support.wait_until(has_its_share, "bytes in the new worker")
        self.assert_nothing_fetched(before)

    def test_drain_under_readers(self):
        self.start_workers(3)
        self.warm()
        before = self.store_bytes()
        mounted = self.client()
        with takeover.Soak(support.MILLRACE, mounted.path, self.source) as soak:
            self.workers[1].drain()
            self.workers[1].stop()
            self.read_all(mounted)
            report = soak.stop()
        self.assertEqual(report.faults(), "")
        self.assert_nothing_fetched(before)

    def test_a_file_stays_open_when_the_worker_of_the_node_dies(self):
        worker, = self.start_workers(1)
        self.warm()
        mounted = self.client("node", f"--workers=unix:{worker.socket}", "--profile=large-files",
                              "--user=root", host=worker.host)
        with support.open_fd(mounted / "large") as fd:
            self.assertEqual(mounted.status()["passthrough"]["opens"], 1)
            worker.kill()
            os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
            self.assertEqual(os.pread(fd, 8 * MIB, 0), self.tree["large"][:8 * MIB])
            # New ones go to the store.
            self.read_all(mounted)
            worker.start()
            self.assertEqual(os.pread(fd, MIB, 8 * MIB), self.tree["large"][8 * MIB:9 * MIB])


class FaultTest(WorkersTestCase):
    """One worker of three is not as it should be. The reads go on; the store gives at most what
    was that worker's."""

    def assert_reads_survive(self, break_it, mend=lambda: None, within=SILENT_WITHIN_S,
                             mounted=None):
        """Reads everything by way of a client that knows all workers, the first one broken."""
        before = self.store_bytes()
        mounted = mounted or self.client()
        self.read_all(mounted, ["large"])  # Connections to all of them are open.
        break_it()
        start = time.monotonic()
        self.read_all(mounted)
        self.assertLess(time.monotonic() - start, within)
        self.assertLessEqual(self.store_bytes() - before, TOTAL)
        mend()
        return mounted

    def assert_heals(self, mounted):
        """All comes from workers again, none of it from the store."""

        def healed():
            remote = self.reads(mounted, "remote")
            before = self.store_bytes()
            self.read_all(mounted)
            return (self.reads(mounted, "remote") - remote == TOTAL and
                    self.store_bytes() == before)

        support.wait_until(healed, "reads that only workers answer")

    def test_killed_and_back(self):
        first, *_ = self.start_workers(3)
        self.warm()
        mounted = self.assert_reads_survive(first.kill, first.start)
        self.assert_heals(mounted)

    def test_frozen_and_thawed(self):
        first, *_ = self.start_workers(3)
        self.warm()
        mounted = self.assert_reads_survive(lambda: first.signal(signal.SIGSTOP),
                                            lambda: first.signal(signal.SIGCONT))
        self.assert_heals(mounted)

    def test_cut_off_from_the_client(self):
        """Half-open connections: nobody tells the client, nor the worker."""
        first, *_ = self.start_workers(3)
        self.warm()
        host = self.network.host("client")
        mounted = self.client(host=host)
        self.assert_reads_survive(lambda: self.network.cut(first.host, host),
                                  lambda: self.network.mend(first.host, host), mounted=mounted)
        self.assert_heals(mounted)

    def test_cut_off_from_everybody(self):
        first, *_ = self.start_workers(3)
        self.warm()
        mounted = self.assert_reads_survive(lambda: self.network.isolate(first.host),
                                            lambda: self.network.rejoin(first.host))
        self.assert_heals(mounted)

    def test_cut_off_from_the_store(self):
        """What it has not got, somebody else gets."""
        first, *_ = self.start_workers(3)
        self.network.cut(first.host, self.store_host)
        mounted = self.client()
        start = time.monotonic()
        self.read_all(mounted, ["large", "middle"])
        self.assertLess(time.monotonic() - start, 2 * SILENT_WITHIN_S)
        self.network.mend(first.host, self.store_host)

    def test_a_slow_line(self):
        first, *_ = self.start_workers(3)
        self.warm()
        self.assert_reads_survive(lambda: first.host.line(rate="20mbit"), first.host.line)

    def test_a_lossy_line(self):
        first, *_ = self.start_workers(3)
        self.warm()
        self.assert_reads_survive(lambda: first.host.line(loss=0.02), first.host.line)

    def test_a_far_worker(self):
        first, *_ = self.start_workers(3)
        self.warm()
        self.assert_reads_survive(lambda: first.host.line(delay_s=0.02), first.host.line)

    @support.needs_root
    def test_a_full_disk(self):
        small = self.make_directory("small-disk")
        subprocess.run(["mount", "-t", "tmpfs", "-o", "size=40m", "test", small], check=True)
        self.addCleanup(subprocess.run, ["umount", "-l", small])
        # Somebody else's file takes what the worker counts on.
        (small / "others").write_bytes(bytes(36 * MIB))
        self.plan(3)
        self.worker(tiers=[f"ssd:{small}/tier:32Mi"]).start()
        for _ in range(2):
            self.worker().start()
        mounted = self.client()
        for _ in range(2):
            self.read_all(mounted)
        # Its share came again for every read that did not fit.
        self.assertLessEqual(self.store_bytes(), 2 * TOTAL)

    def test_a_damaged_tier_file(self):
        """The worker does not look at what it sends: the client does."""
        first, *_ = self.start_workers(3)
        self.warm()
        damaged = 0
        for path in pathlib.Path(first.tier_paths[0]).rglob("*"):
            if not path.is_file() or path.stat().st_size not in SIZES.values():
                continue
            with open(path, "r+b") as file:
                byte = file.read(1)
                file.seek(0)
                file.write(bytes([byte[0] ^ 1]))
                damaged += 1
        self.assertGreater(damaged, 0)
        self.read_all(self.client())

    def test_another_version_of_the_protocol(self):
        """A worker that was upgraded first: it is by-passed until its clients are too."""
        first, *_ = self.start_workers(3)
        self.warm()
        mounted = self.client()
        self.read_all(mounted)
        first.stop()
        for answer in (data_protocol.welcome(workers.CLUSTER, first.name, version=2),
                       data_protocol.frame(data_protocol.ERROR, 0, b"\x09\x00" + bytes(8) +
                                           data_protocol.text("version 1 is not spoken here"))):
            listener = first.host.inside(
                lambda: socket.create_server((first.host.address, workers.DATA_PORT)))
            with data_protocol.FakeWorker(listener, answer) as fake:
                self.read_all(mounted)
                support.wait_until(lambda: fake.asked > 0 or self.read_all(mounted),
                                   "a client that asks")
        first.start()
        self.assert_heals(mounted)

    def test_a_worker_of_another_cluster(self):
        self.plan(2)
        self.worker().start()
        other = self.worker(options=["--cluster=another"])
        other.spawn()
        mounted = self.client()
        self.read_all(mounted)
        self.assertLessEqual(self.store_bytes(), TOTAL * STORE_BYTES_PER_BYTE)
        with contextlib.suppress(FileNotFoundError):
            self.assertEqual(support.tree_digests(other.tier_paths[0] / "sources"), {})

    def test_another_user_at_the_socket_of_the_node(self):
        worker, = self.start_workers(1)
        worker.directory.chmod(0o755)
        worker.socket.chmod(0o666)
        script = ("import os, socket, sys; os.setgroups([]); os.setgid(54321); os.setuid(54321); "
                  "sys.path.insert(0, sys.argv[1]); import data_protocol; "
                  "s = socket.socket(socket.AF_UNIX); s.settimeout(10); s.connect(sys.argv[2]); "
                  "s.sendall(data_protocol.hello('millrace')); print(s.recv(1000)[4:5])")
        support_path = str(support.REPOSITORY / "test" / "support")
        for path in pathlib.Path(worker.socket).parents:
            if support.temporary_root() in [path, *path.parents]:
                path.chmod(0o755)
        done = subprocess.run([sys.executable, "-c", script, support_path, str(worker.socket)],
                              capture_output=True, text=True, timeout=30)
        self.assertNotIn(str(bytes([data_protocol.WELCOME])), done.stdout, done.stderr)
        self.assertTrue(done.stdout or "Error" in done.stderr, "nobody tried")


class CertificatesTest(WorkersTestCase):
    """Who has no certificate of the right authority gets nothing, and is no help either."""

    def make_authority(self, name):
        """{name: (certificate, key, authority)} for a worker and a client."""
        directory = self.make_directory(name)
        directory.chmod(0o755)
        openssl = ["openssl"]
        key_options = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]

        def run(*words):
            subprocess.run([*openssl, *map(str, words)], check=True, capture_output=True,
                           cwd=directory)

        run("req", "-x509", *key_options, "-keyout", "ca.key", "-out", "ca.pem", "-days", "2",
            "-subj", f"/CN={name}")
        names = ",".join(f"IP:{host.address}" for host in self.pool)
        for who in ("worker", "client"):
            (directory / f"{who}.ext").write_text(f"subjectAltName={names}\n")
            run("req", *key_options, "-keyout", f"{who}.key", "-out", f"{who}.csr",
                "-subj", f"/CN={who}")
            run("x509", "-req", "-in", f"{who}.csr", "-CA", "ca.pem", "-CAkey", "ca.key",
                "-CAcreateserial", "-days", "2", "-extfile", f"{who}.ext", "-out", f"{who}.pem")
            (directory / f"{who}.key").chmod(0o644)  # The daemon is nobody.
        return {who: [f"--certificate={directory}/{who}.pem", f"--key={directory}/{who}.key",
                      f"--authority={directory}/ca.pem"] for who in ("worker", "client")}

    def test_right_and_wrong_certificates(self):
        self.plan(2)
        right, wrong = self.make_authority("right"), self.make_authority("wrong")
        for _ in range(2):
            self.worker(options=right["worker"]).spawn()
        mounted = self.client("friend", *self.of_mount(right["client"]))
        self.read_all(mounted)

        def asked():
            self.read_all(mounted)
            return self.reads(mounted, "remote") > 0

        support.wait_until(asked, "bytes over TLS")
        before = self.store_bytes()
        for name, options in (("stranger", self.of_mount(wrong["client"])), ("plain", [])):
            stranger = self.client(name, *options)
            self.read_all(stranger, ["large"])
            self.assertEqual(self.reads(stranger, "remote"), 0)
        self.assertEqual(self.store_bytes() - before, 2 * SIZES["large"])

    @staticmethod
    def of_mount(options):
        """A mount has certificates for its stores too: it says which these are."""
        return [option.replace("--", "--worker-") for option in options]


class ChaosTest(WorkersTestCase):
    """Anything, at any time."""

    def seeds(self):
        given = os.environ.get("MILLRACE_CHAOS_SEED")
        return [int(given)] if given else [*SEEDS, time.time_ns() % 1_000_000]

    def events(self, dice, clients):
        """(name, do, undo) of what may happen to a worker."""
        worker = dice.choice(self.workers)
        client = dice.choice(clients)
        rate = dice.choice(("20mbit", "200mbit"))
        return dice.choice([
            ("kill", worker.kill, worker.start),
            ("freeze", lambda: worker.signal(signal.SIGSTOP),
             lambda: worker.signal(signal.SIGCONT)),
            ("cut", lambda: self.network.cut(worker.host, client),
             lambda: self.network.mend(worker.host, client)),
            ("half", lambda: self.network.cut(worker.host, client, both=False),
             lambda: self.network.mend(worker.host, client)),
            ("isolate", lambda: self.network.isolate(worker.host),
             lambda: self.network.rejoin(worker.host)),
            ("slow", lambda: worker.host.line(rate=rate), worker.host.line),
            ("lossy", lambda: worker.host.line(loss=0.02), worker.host.line),
            ("restart", lambda: self._stop(worker), worker.start),
        ])

    def test_chaos(self):
        for seed in self.seeds():
            with self.subTest(seed=seed):
                self.chaos(seed)
                # The next one begins with nothing.
                self.doCleanups()
                self.setUp()

    def chaos(self, seed):
        dice = random.Random(seed)
        self.start_workers(3, replicas=dice.choice((1, 2)))
        client_hosts = [self.network.host(f"client{i}") for i in range(2)]
        mounts = [self.client(host.name, host=host) for host in client_hosts]
        with contextlib.ExitStack() as stack:
            soaks = [stack.enter_context(takeover.Soak(
                support.MILLRACE, mounted.path, self.source, readers=4,
                seed=dice.randrange(2**32))) for mounted in mounts]
            happened = []
            for _ in range(EVENTS):
                name, do, undo = self.events(dice, client_hosts)
                happened.append(name)
                do()
                time.sleep(dice.random() * 0.5)  # tidy: allow-sleep The moment is random.
                undo()
                time.sleep(dice.random() * 0.3)  # tidy: allow-sleep The moment is random.
            reports = [soak.stop() for soak in soaks]
        for report in reports:
            self.assertEqual(report.faults(), "", f"seed {seed}: {happened}")
            self.assertGreater(report["bytes"], 0)
        for mounted in mounts:
            self.read_all(mounted)


if __name__ == "__main__":
    support.main()
