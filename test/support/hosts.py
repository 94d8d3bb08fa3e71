"""Several hosts on one machine: network namespaces on one switch, whose lines can be slow, lossy or
cut.

    with Network() as network:
        store, worker, client = map(network.host, ("store", "worker", "client"))
        process = worker.popen([MILLRACE_WORKER, ...])
        client.run([MILLRACE, "mount", ...])     # its mount is seen by everybody
        worker.line(rate="100mbit", loss=0.01)
        network.cut(worker, client)              # neither hears the other; connections stay open
        network.mend(worker, client)

The namespaces have no names: they live by the descriptors of this process and by what runs in them,
so nothing of two tests can meet, and a test that is killed leaves no namespace behind. What runs in
them ends with the `with`, by force; programs that `popen` started end with this process too.

A host has its own addresses, ports and connections, but sees the machine's files and processes.
Needs root. Rates are tc's tbf, losses a BPF filter of tc. Delays are ours (`_DelayLine`): kernels
without sch_netem are common.
"""

import collections
import concurrent.futures
import contextlib
import ctypes
import functools
import json
import os
import pathlib
import select
import shutil
import signal
import socket
import subprocess
import threading
import time
import urllib.request

CLONE_NEWNET = 0x40000000
PR_SET_PDEATHSIG = 1
# Of a network that nobody else can see.
ADDRESS = "10.213.0.{}"
PREFIX_LENGTH = 24
HOSTS_MAX = 250
# Where frames go that nobody is to get; the switch knows no such port.
NOBODY = "02:00:00:00:00:01"
TBF_BURST_BYTES = 256 * 1024  # More than one segment the kernel hands over whole.
TBF_LATENCY = "50ms"
PATIENCE_S = 20
POLL_INTERVAL_S = 0.01
_libc = ctypes.CDLL(None, use_errno=True)


def _checked(result):
    if result != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


def _die_with_parent():
    _libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def _tool(*words):
    """Runs ip or tc in the namespace of this thread."""
    done = subprocess.run([str(word) for word in words], capture_output=True, text=True)
    if done.returncode != 0:
        raise RuntimeError(f"{' '.join(map(str, words))}: {done.stderr.strip()}")


@functools.cache
def missing():
    """Why this machine can have no such hosts, for people; None when it can."""
    if os.geteuid() != 0:
        return "several hosts on one machine (network namespaces) need root"
    for program in ("ip", "tc"):
        if shutil.which(program) is None:
            return f"the program {program} is missing (package iproute2)"
    try:
        with Network() as network:
            network.host("probe")
    except (OSError, RuntimeError) as error:
        return f"no network namespaces here: {error}"
    return None


class Host:
    """One namespace, with the loopback interface and a line to the switch. Of `Network.host`."""

    def __init__(self, name):
        self.name = name
        self.address = None
        self._delay_line = None
        # Forks and sockets of a thread belong to the namespace of the thread; this one also is the
        # parent of what must end with this process, so it lives as long as the host.
        self._thread = concurrent.futures.ThreadPoolExecutor(1, f"host-{name}")
        self.descriptor = self.inside(self._enter)
        self.identity = os.fstat(self.descriptor).st_ino

    @staticmethod
    def _enter():
        _checked(_libc.unshare(CLONE_NEWNET))
        descriptor = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
        _tool("ip", "link", "set", "lo", "up")
        return descriptor

    def inside(self, function, *arguments):
        """The result of `function`, called on this host: what it forks, listens to or connects is
        the host's. One call at a time; short ones only."""
        return self._thread.submit(function, *arguments).result()

    def popen(self, words, **options):
        """A program on this host that ends with this process, also when that is killed."""
        words = [str(word) for word in words]
        return self.inside(lambda: subprocess.Popen(
            words, stdin=subprocess.DEVNULL, preexec_fn=_die_with_parent, **options))

    def run(self, words, timeout=60, **options):
        """Runs to the end, as subprocess.run with captured output. What it leaves in the background
        (a mount's daemon) stays on this host."""
        options = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, **options}
        process = self.inside(lambda: subprocess.Popen(
            [str(word) for word in words], stdin=subprocess.DEVNULL, **options))
        try:
            out, err = process.communicate(timeout=timeout)
        except BaseException:
            process.kill()
            process.communicate()
            raise
        return subprocess.CompletedProcess(words, process.returncode, out, err)

    def get(self, url, timeout=5):
        """The body of a page, asked for from this host."""

        return self.inside(_get, url, timeout)

    def pids(self):
        """What runs on this host."""
        found = []
        for entry in pathlib.Path("/proc").iterdir():
            if entry.name.isdigit():
                with contextlib.suppress(OSError):
                    if os.stat(entry / "ns/net").st_ino == self.identity:
                        found.append(int(entry.name))
        return found

    def line(self, rate=None, delay_s=0.0, loss=0.0):
        """Makes the line such, in both directions; without an argument as fast as it goes. `rate` is
        tc's ("100mbit"), `delay_s` that of one direction; `loss` is the part of the segments that
        is lost, as large as the kernel hands them over."""
        for host, device in ((self, "eth0"), (self._switch, self.name)):
            host.inside(_shape, device, rate, loss)
        if self._delay_line:
            self._switch.inside(self._delay_line.close)
            self._delay_line = None
        if delay_s:
            self._delay_line = self._switch.inside(_DelayLine, self.name, delay_s)

    def close(self):
        """Ends what runs here. Its namespace goes with the last of it."""

        def ended():
            for pid in self.pids():
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            return not [pid for pid in self.pids() if not _is_zombie(pid)]

        _wait_for(ended, f"the end of all on {self.name}")
        if self._delay_line:
            self._delay_line.stop()
        self._thread.shutdown()
        os.close(self.descriptor)


def _get(url, timeout):
    with urllib.request.urlopen(url, timeout=timeout) as answer:
        return answer.read().decode()


def _is_zombie(pid):
    try:
        return pathlib.Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] in "ZX"
    except OSError:
        return True


def _is_up(device):
    done = subprocess.run(["ip", "-json", "link", "show", "dev", device], capture_output=True)
    return json.loads(done.stdout)[0]["operstate"] == "UP"


def _wait_for(condition, what):
    deadline = time.monotonic() + PATIENCE_S
    while not condition():
        if time.monotonic() > deadline:
            raise RuntimeError(f"not within {PATIENCE_S} s: {what}")
        time.sleep(POLL_INTERVAL_S)  # tidy: allow-sleep This is how everybody else polls.


def _shape(device, rate, loss):
    for parent in ("root", "clsact"):
        subprocess.run(["tc", "qdisc", "del", "dev", device, parent], capture_output=True)
    if rate:
        _tool("tc", "qdisc", "add", "dev", device, "root", "tbf", "rate", rate,
              "burst", TBF_BURST_BYTES, "latency", TBF_LATENCY)
    if loss:
        _tool("tc", "qdisc", "add", "dev", device, "clsact")
        _tool("tc", "filter", "add", "dev", device, "egress", "bpf", "direct-action",
              "bytecode", _drop_some(loss))


def _drop_some(part):
    """A classic BPF program for tc: TC_ACT_SHOT for that part of the packets, at random."""
    code = [(0x20, 0, 0, 0xfffff000 + 56),  # A = random (SKF_AD_OFF + SKF_AD_RANDOM)
            (0x35, 1, 0, min(int(part * 2**32), 2**32 - 1)),  # A >= part: the second return
            (0x06, 0, 0, 2),  # TC_ACT_SHOT
            (0x06, 0, 0, 0)]  # TC_ACT_OK
    return ",".join([str(len(code)), *(" ".join(map(str, one)) for one in code)])


class _DelayLine:
    """Takes a port off the switch and puts a pair of interfaces between, one end of which is the
    switch's; what arrives at port and other end leaves at the opposite one some time later.

    Frames are handed on as the kernel has them, segments of 64 KiB and unfinished checksums
    included: PACKET_VNET_HDR says on both sides what is still to be done. Made and closed in the
    switch's namespace."""

    ETH_P_ALL = 3
    SOL_PACKET = 263
    PACKET_VNET_HDR = 15
    PACKET_IGNORE_OUTGOING = 23
    FRAME_MAX = 128 * 1024

    def __init__(self, port, delay_s):
        self._port, self._near, self._far = port, f"{port[:13]}-n", f"{port[:13]}-f"
        self._delay_s = delay_s
        _tool("ip", "link", "add", "name", self._near, "type", "veth", "peer", "name", self._far)
        for device in (self._near, self._far):
            _tool("ip", "link", "set", "dev", device, "up")
        _tool("ip", "link", "set", "dev", self._far, "master", "switch")
        _tool("ip", "link", "set", "dev", port, "nomaster")
        sockets = [self._open(device) for device in (port, self._near)]
        self._stop, self._stopped = os.pipe()
        self._sockets = sockets
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()
        _wait_for(lambda: _is_up(self._far), f"the line of {port}")

    def _open(self, device):
        made = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(self.ETH_P_ALL))
        for option in (self.PACKET_VNET_HDR, self.PACKET_IGNORE_OUTGOING):
            made.setsockopt(self.SOL_PACKET, option, 1)
        made.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 16 << 20)
        made.bind((device, 0))
        return made

    def _run(self):
        one, other = self._sockets
        waiting = collections.deque()
        while True:
            timeout = max(0, waiting[0][0] - time.monotonic()) if waiting else None
            ready, _, _ = select.select([self._stop, one, other], [], [], timeout)
            if self._stop in ready:
                return
            for arrived in ready:
                waiting.append((time.monotonic() + self._delay_s, arrived.recv(self.FRAME_MAX),
                                other if arrived is one else one))
            while waiting and waiting[0][0] <= time.monotonic():
                _, frame, leaves = waiting.popleft()
                with contextlib.suppress(OSError):  # A line may lose a frame.
                    leaves.send(frame)

    def stop(self):
        """Hands nothing on any more; the interfaces go with their namespace."""
        os.close(self._stopped)
        self._thread.join()
        os.close(self._stop)
        for each in self._sockets:
            each.close()

    def close(self):
        """Puts the port back."""
        self.stop()
        _tool("ip", "link", "del", "dev", self._near)
        _tool("ip", "link", "set", "dev", self._port, "master", "switch")


class Network:
    """A switch and the hosts at it, for the length of a `with`."""

    def __init__(self):
        self._stack = contextlib.ExitStack()
        self._hosts = {}
        self._switch = None

    def __enter__(self):
        with contextlib.ExitStack() as stack:
            self._switch = Host("switch")
            stack.callback(self._switch.close)
            self._switch.inside(_tool, "ip", "link", "add", "switch", "type", "bridge")
            self._switch.inside(_tool, "ip", "link", "set", "switch", "up")
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *_):
        self._stack.close()

    def host(self, name):
        """A new host with the next address. Names have up to 15 letters."""
        if name in self._hosts or len(self._hosts) == HOSTS_MAX:
            raise ValueError(f"no room for a host {name}")
        host = Host(name)
        self._stack.callback(host.close)
        host._switch = self._switch
        host.address = ADDRESS.format(len(self._hosts) + 1)
        self._hosts[name] = host
        self._switch.inside(_tool, "ip", "link", "add", "name", name, "type", "veth", "peer", "name",
                            "eth0", "netns", f"/proc/{os.getpid()}/fd/{host.descriptor}")
        self._switch.inside(_tool, "ip", "link", "set", "dev", name, "master", "switch", "up")
        host.inside(_tool, "ip", "address", "add", f"{host.address}/{PREFIX_LENGTH}", "dev", "eth0")
        host.inside(_tool, "ip", "link", "set", "eth0", "up")
        # The kernel notes a carrier up to a second late; what is sent before may be lost.
        _wait_for(lambda: host.inside(_is_up, "eth0") and self._switch.inside(_is_up, name),
                  f"the line of {name}")
        return host

    def cut(self, one, other, both=True):
        """From now on `other` hears nothing of `one`, nor the other way round if `both`. Nobody is
        told: connections stay as they are, new ones get no answer."""
        one.inside(_tool, "ip", "neigh", "replace", other.address, "lladdr", NOBODY, "nud",
                   "permanent", "dev", "eth0")
        if both:
            self.cut(other, one, both=False)

    def mend(self, one, other):
        """Undoes `cut`, of whichever direction."""
        for speaker, listener in ((one, other), (other, one)):
            with contextlib.suppress(RuntimeError):  # It was not cut this way.
                speaker.inside(_tool, "ip", "neigh", "del", listener.address, "dev", "eth0")

    def isolate(self, host):
        """Cuts a host off all the others."""
        for other in self._hosts.values():
            if other is not host:
                self.cut(host, other)

    def rejoin(self, host):
        """Undoes `isolate`."""
        for other in self._hosts.values():
            if other is not host:
                self.mend(host, other)




class ThisHost:
    """The machine itself, where no network of its own is needed or can be had: what `Host` has
    that makes sense there."""

    name = "localhost"
    address = "127.0.0.1"

    def inside(self, function, *arguments):
        return function(*arguments)

    def popen(self, words, **options):
        return subprocess.Popen([str(word) for word in words], stdin=subprocess.DEVNULL,
                                preexec_fn=_die_with_parent, **options)

    def run(self, words, timeout=60, **options):
        options = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, **options}
        return subprocess.run([str(word) for word in words], stdin=subprocess.DEVNULL,
                              timeout=timeout, **options)

    def get(self, url, timeout=5):
        return _get(url, timeout)
