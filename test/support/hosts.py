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
Needs root. What this kernel cannot do (`cannot_delay`) is said with its reason, never left out
silently: a delay needs sch_netem. Rates are tbf's, losses a BPF filter's.
"""

import concurrent.futures
import contextlib
import ctypes
import functools
import os
import pathlib
import shutil
import signal
import subprocess
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
END_TIMEOUT_S = 10
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


@functools.cache
def cannot_delay():
    """Why lines can have no delay here, or None."""
    with Network() as network:
        try:
            network.host("probe").line(delay="1ms")
        except RuntimeError:
            return "this kernel has no sch_netem: lines have no delay"
    return None


class Host:
    """One namespace, with the loopback interface and a line to the switch. Of `Network.host`."""

    def __init__(self, name):
        self.name = name
        self.address = None
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

        def fetch():
            with urllib.request.urlopen(url, timeout=timeout) as answer:
                return answer.read().decode()

        return self.inside(fetch)

    def connect(self, make):
        """A socket that `make()` opens on this host; any thread may use it."""
        return self.inside(make)

    def pids(self):
        """What runs on this host."""
        found = []
        for entry in pathlib.Path("/proc").iterdir():
            if entry.name.isdigit():
                with contextlib.suppress(OSError):
                    if os.stat(entry / "ns/net").st_ino == self.identity:
                        found.append(int(entry.name))
        return found

    def line(self, rate=None, delay=None, loss=0.0):
        """Makes the line such, in both directions; without an argument as fast as it goes. `rate`
        and `delay` are tc's ("100mbit", "5ms"); `loss` is the part of the segments that is lost,
        as large as the kernel hands them over."""
        for host, device in ((self, "eth0"), (self._switch, self.name)):
            host.inside(_shape, device, rate, delay, loss)

    def close(self):
        """Ends what runs here. Its namespace goes with the last of it."""

        def ended():
            for pid in self.pids():
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            return not [pid for pid in self.pids() if not _is_zombie(pid)]

        deadline = time.monotonic() + END_TIMEOUT_S
        while not ended() and time.monotonic() < deadline:
            time.sleep(POLL_INTERVAL_S)  # tidy: allow-sleep This is how everybody else polls.
        self._thread.shutdown()
        os.close(self.descriptor)


def _is_zombie(pid):
    try:
        return pathlib.Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] in "ZX"
    except OSError:
        return True


def _shape(device, rate, delay, loss):
    for parent in ("root", "clsact"):
        subprocess.run(["tc", "qdisc", "del", "dev", device, parent], capture_output=True)
    if delay:
        # netem's own rate: tbf below another discipline would see no queue.
        _tool("tc", "qdisc", "add", "dev", device, "root", "netem", "delay", delay,
              *(["rate", rate] if rate else []))
    elif rate:
        _tool("tc", "qdisc", "add", "dev", device, "root", "tbf", "rate", rate,
              "burst", TBF_BURST_BYTES, "latency", TBF_LATENCY)
    if loss:
        _tool("tc", "qdisc", "add", "dev", device, "clsact")
        _tool("tc", "filter", "add", "dev", device, "egress", "bpf", "direct-action",
              "bytecode", _drop_some(loss))


def _drop_some(part):
    """A classic BPF program for tc: TC_ACT_SHOT for that part of the packets, at random."""
    code = [(0x20, 0, 0, 0xfffff000 + 56),  # A = random (SKF_AD_OFF + SKF_AD_RANDOM)
            (0x35, 1, 0, int(part * 2**32)),  # A >= part: the second return
            (0x06, 0, 0, 2),  # TC_ACT_SHOT
            (0x06, 0, 0, 0)]  # TC_ACT_OK
    return ",".join([str(len(code)), *(" ".join(map(str, one)) for one in code)])


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


