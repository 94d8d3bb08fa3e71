#!/usr/bin/env python3
"""The hosts of test/support/hosts.py: their lines, cuts, and that nothing stays of them."""

import socket
import threading
import time
import unittest

import support  # First: it puts test/support on the path.
import hosts
from support import MIB


@unittest.skipIf(hosts.missing(), hosts.missing())
class HostsTest(unittest.TestCase):
    """They do what the tests of workers take for granted."""

    PORT = 7000

    def setUp(self):
        self.network = self.enterContext(hosts.Network())
        self.one, self.other = map(self.network.host, ("one", "other"))
        self.listener = self.other.inside(
            lambda: socket.create_server((self.other.address, self.PORT)))
        self.addCleanup(self.listener.close)
        self.open = []

    def connect(self, timeout=20):
        client = self.one.inside(lambda: socket.create_connection(
            (self.other.address, self.PORT), timeout))
        server, _ = self.listener.accept()
        for each in (client, server):
            each.settimeout(20)
            self.addCleanup(each.close)
        return client, server

    def seconds_for(self, size):
        """Of so many bytes over a new connection."""
        client, server = self.connect()
        start = time.monotonic()

        def send():
            client.sendall(bytes(size))
            client.shutdown(socket.SHUT_WR)

        thread = threading.Thread(target=send)
        thread.start()
        while server.recv(MIB):
            pass
        thread.join()
        return time.monotonic() - start

    def test_hosts_hear_each_other_by_their_addresses_only(self):
        self.connect()
        with self.assertRaises(ConnectionRefusedError):
            self.one.inside(lambda: socket.create_connection(("127.0.0.1", self.PORT), 5))

    def test_a_cut_leaves_connections_open_and_silent(self):
        client, server = self.connect()
        self.network.cut(self.one, self.other)
        with self.assertRaises(TimeoutError):
            self.connect(timeout=0.5)
        client.sendall(b"x")
        server.settimeout(0.3)
        with self.assertRaises(TimeoutError):
            server.recv(1)
        self.network.mend(self.one, self.other)
        server.settimeout(20)
        self.assertEqual(server.recv(1), b"x")
        self.connect()

    def test_a_cut_of_one_direction(self):
        client, server = self.connect()
        self.network.cut(self.other, self.one, both=False)
        client.sendall(b"x")
        self.assertEqual(server.recv(1), b"x")
        server.sendall(b"y")
        client.settimeout(0.3)
        with self.assertRaises(TimeoutError):
            client.recv(1)
        self.network.rejoin(self.other)
        client.settimeout(20)
        self.assertEqual(client.recv(1), b"y")

    def test_a_line_has_its_rate(self):
        self.one.line(rate="80mbit")
        self.assertGreater(self.seconds_for(10_000_000), 0.8)
        self.one.line()
        self.assertLess(self.seconds_for(10_000_000), 0.8)

    def test_a_far_host(self):
        """There and back, for what is small and what is large; and near again."""
        client, server = self.connect()
        self.other.line(delay_s=0.05)
        start = time.monotonic()
        client.sendall(b"x")
        server.recv(1)
        server.sendall(b"y")
        client.recv(1)
        self.assertGreater(time.monotonic() - start, 0.1)
        self.assertGreater(self.seconds_for(20_000_000), 0.1)
        self.other.line()
        start = time.monotonic()
        self.connect()
        self.assertLess(time.monotonic() - start, 0.05)

    def test_a_lossy_line_loses(self):
        self.one.line(loss=1)
        with self.assertRaises(TimeoutError):
            self.connect(timeout=0.5)
        self.one.line(loss=0.05)
        self.connect()

    def test_programs_end_with_the_network(self):
        with hosts.Network() as network:
            host = network.host("short")
            started = host.popen(["sleep", "1000"])
            self.assertEqual(host.pids(), [started.pid])
            host.run(["sh", "-c", "sleep 1000 >/dev/null 2>&1 &"])
            support.wait_until(lambda: len(host.pids()) == 2, "the second program")
            left = host.pids()
        self.assertEqual([pid for pid in left if support.process_state(pid) is not None], [])
        started.wait()


if __name__ == "__main__":
    support.main()
