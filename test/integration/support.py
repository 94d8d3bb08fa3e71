"""What the integration tests share: source trees, mounts, servers, ways of reading, waiting.

A test mounts with the real `millrace` on the real kernel. Everything it makes lies below one
temporary directory of the test process, so that `sweep` can find whatever is left of it (mounts,
daemons, run directories) by path, whoever crashed; a guard process sweeps when the test process
itself is killed.

A test file ends with `support.main()`. What the machine lacks is a skip with its reason.
"""

import atexit
import contextlib
import ctypes
import dataclasses
import errno
import functools
import hashlib
import json
import mmap
import os
import pathlib
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
import unittest

REPOSITORY = pathlib.Path(__file__).resolve().parents[2]
PROGRAMS = pathlib.Path(os.environ.get("MILLRACE_PROGRAMS", REPOSITORY / "build" / "bin"))
sys.path.insert(0, str(REPOSITORY / "test" / "support"))
import hosts  # noqa: E402  (needs the path above)
import s3_server  # noqa: E402

MILLRACE = str(PROGRAMS / "millrace")
MIB = 1 << 20
BLOCK = 128 * 1024  # The cache's unit of presence.

# Generous: the machine may build something meanwhile. A wait that succeeds costs what it takes.
DEADLINE_S = 60
POLL_INTERVAL_S = 0.02
SKIP_EXIT_CODE = 77  # ctest's SKIP_RETURN_CODE for these tests.


# --- What the machine lacks -----------------------------------------------------------------------


@functools.cache
def missing_for_mounts():
    """Why no mount can be made here, or None."""
    if not os.path.exists(MILLRACE):
        return f"{MILLRACE} is not built"
    if not os.access("/dev/fuse", os.R_OK | os.W_OK):
        return "/dev/fuse is missing or closed to this user"
    if os.geteuid() != 0 and shutil.which("fusermount3") is None:
        return "neither root nor fusermount3"
    return None


@functools.cache
def missing_for_s3():
    """Why no S3 server can be started here, or None."""
    try:
        s3_server.server_program()
    except FileNotFoundError as error:
        return str(error)
    return None


needs_root = unittest.skipUnless(os.geteuid() == 0, "needs root")
needs_s3 = unittest.skipIf(missing_for_s3(), missing_for_s3())


# --- Waiting --------------------------------------------------------------------------------------


def wait_until(condition, what, timeout=DEADLINE_S):
    """Returns the first true value of `condition()`; AssertionError names `what` after `timeout`."""
    deadline = time.monotonic() + timeout
    while True:
        value = condition()
        if value:
            return value
        if time.monotonic() > deadline:
            raise AssertionError(f"not within {timeout} s: {what}")
        time.sleep(POLL_INTERVAL_S)  # tidy: allow-sleep This is how everybody else polls.


def run_in_threads(jobs, timeout=DEADLINE_S):
    """Runs each callable in a thread of its own; raises what the first that failed raised."""
    failures = []

    def guarded(job):
        try:
            job()
        except BaseException as error:  # Assertions too: they belong to the test.
            failures.append(error)

    threads = [threading.Thread(target=guarded, args=(job,), daemon=True) for job in jobs]
    for thread in threads:
        thread.start()
    deadline = time.monotonic() + timeout
    for thread in threads:
        thread.join(max(0, deadline - time.monotonic()))
        if thread.is_alive():
            raise AssertionError(f"a thread did not end within {timeout} s")
    if failures:
        raise failures[0]


# --- Source trees ---------------------------------------------------------------------------------


def content(seed, size):
    """`size` bytes that differ from those of any other seed at every offset that matters."""
    return random.Random(seed).randbytes(size)


def make_tree(directory, sizes, seed=""):
    """Files of known content below `directory`: {path: size}. Returns {path: bytes}."""
    tree = {}
    for path, size in sizes.items():
        tree[path] = content(f"{seed}{path}", size)
        target = pathlib.Path(directory) / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(tree[path])
    return tree


def sha256(data):
    return hashlib.sha256(data).hexdigest()


def tree_digests(directory):
    """{relative path: sha256} of all files below."""
    digests = {}
    for parent, _, names in os.walk(directory, onerror=_raise):
        for name in names:
            path = os.path.join(parent, name)
            with open(path, "rb") as file:
                digest = hashlib.file_digest(file, "sha256").hexdigest()
            digests[os.path.relpath(path, directory)] = digest
    return digests


def _raise(error):
    raise error


# --- Ways of reading ------------------------------------------------------------------------------


def read_all(path):
    with open(path, "rb", buffering=0) as file:
        pieces = []
        while piece := file.read(MIB):
            pieces.append(piece)
        return b"".join(pieces)


def read_at(path, offset, size):
    """One pread: what the system call gives, short at the end of the file."""
    with open_fd(path) as fd:
        return os.pread(fd, size, offset)


@contextlib.contextmanager
def open_fd(path, flags=os.O_RDONLY):
    fd = os.open(path, flags)
    try:
        yield fd
    finally:
        os.close(fd)


def read_direct(path, offset, size):
    """One pread with O_DIRECT into aligned memory; offset and size are the caller's to align."""
    with open_fd(path, os.O_RDONLY | os.O_DIRECT) as fd:
        with mmap.mmap(-1, size) as buffer:
            got = os.preadv(fd, [buffer], offset)
            return buffer[:got]


def read_mapped(path, offset, size):
    with open_fd(path) as fd, mmap.mmap(fd, 0, prot=mmap.PROT_READ) as mapped:
        return mapped[offset:offset + size]


def drop_page_cache(path):
    """Takes a file's pages from the page cache, so that the next read asks the file system."""
    with open_fd(path) as fd:
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)


def errno_of(call, *arguments, **options):
    """The errno a system call fails with, by name; None when it succeeds."""
    try:
        call(*arguments, **options)
    except OSError as error:
        return errno.errorcode[error.errno]
    return None


# --- The command ----------------------------------------------------------------------------------


@dataclasses.dataclass
class Result:
    code: int
    out: str
    err: str


def millrace(*arguments, env=None, cwd=None, timeout=DEADLINE_S, host=None):
    """Runs the command to its end, on `host` where one is given."""
    done = (host or hosts.ThisHost()).run([MILLRACE, *arguments], timeout,
                                          errors="surrogateescape", env=env, cwd=cwd)
    return Result(done.returncode, done.stdout, done.stderr)


def mount_entry(mountpoint):
    """The line of /proc/self/mounts as (source, type, options), or None. The last one counts."""
    found = None
    with open("/proc/self/mounts", errors="surrogateescape") as table:
        for line in table:
            source, where, kind, options = line.split(" ")[:4]
            if where.encode("latin-1", "surrogateescape").decode("unicode_escape") == str(mountpoint):
                found = (source, kind, options.split(","))
    return found


def run_directory(mountpoint):
    """The run directory whose record names the mountpoint, or None."""
    base = pathlib.Path("/run/millrace")
    if os.geteuid() != 0:
        runtime = os.environ.get("XDG_RUNTIME_DIR")
        base = pathlib.Path(runtime) / "millrace" if runtime else f"/tmp/millrace-{os.geteuid()}"
    for record in pathlib.Path(base).glob("*/mount.json"):
        with contextlib.suppress(OSError, ValueError):
            if json.loads(record.read_text())["mountpoint"] == str(mountpoint):
                return record.parent
    return None


def process_state(pid):
    """The state letter of /proc/PID/stat, or None when the process is gone (or a zombie)."""
    try:
        state = pathlib.Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        # A zombie with other threads is not yet dead: they hold its files and locks.
        if state in "ZX" and len(os.listdir(f"/proc/{pid}/task")) <= 1:
            return None
    except OSError:
        return None
    return state


class Mount:
    """A mount that `millrace mount` made. Its test case unmounts it."""

    def __init__(self, mountpoint, output):
        self.path = pathlib.Path(mountpoint)
        self.output = output  # What the command said.
        self.run_directory = run_directory(mountpoint)
        self.record = {}
        self._read_record()

    def _read_record(self):
        """The keeper writes it anew for each daemon; it goes with the mount."""
        with contextlib.suppress(FileNotFoundError):
            self.record = json.loads((self.run_directory / "mount.json").read_text())

    @property
    def pid(self):
        """The daemon of the moment; the last one when the mount is gone."""
        self._read_record()
        return self.record["pid"]

    @property
    def keeper_pid(self):
        self._read_record()
        return self.record["keeper_pid"]

    def __truediv__(self, name):
        return self.path / name

    def status(self):
        result = millrace("status", "--json", self.path)
        if result.code != 0:
            raise AssertionError(f"status of {self.path}: {result.err}")
        return json.loads(result.out)

    def store_bytes(self):
        """Bytes fetched so far. A GET counts when it has ended, a moment after its last reader."""
        return self.status()["store"]["bytes"]

    def log(self):
        return (self.run_directory / "daemon.log").read_text(errors="replace")

    def log_lines(self, *parts):
        """Lines of the log that contain all of the texts."""
        return [line for line in self.log().splitlines() if all(part in line for part in parts)]

    def warm(self, *paths):
        """Loads into the cache; fails unless all of it is there afterwards."""
        result = millrace("warm", self.path, *paths)
        if result.code != 0:
            raise AssertionError(f"warm of {self.path}: {result.err}")

    def evict(self, *paths):
        result = millrace("evict", self.path, *paths)
        if result.code != 0:
            raise AssertionError(f"evict of {self.path}: {result.err}")

    def umount(self, *options):
        return millrace("umount", *options, self.path)

    def serving(self):
        """Keeper or daemon lives."""
        return any(process_state(pid) is not None for pid in (self.pid, self.keeper_pid))

    def kill(self):
        """SIGKILL of keeper and daemon, and wait until both are gone: the mount then answers
        ENOTCONN."""
        self.kill_keeper()
        os.kill(self.pid, signal.SIGKILL)
        wait_until(lambda: not self.serving(), f"end of the daemon {self.pid}")

    def kill_keeper(self):
        """SIGKILL, and wait until the process is gone; its daemon serves on."""
        os.kill(self.keeper_pid, signal.SIGKILL)
        wait_until(lambda: process_state(self.keeper_pid) is None, "end of the keeper")

    def kill_daemon(self):
        """SIGKILL, and wait until the keeper says that a successor serves. Returns its pid."""
        return self.replaced(lambda pid: os.kill(pid, signal.SIGKILL))

    def replaced(self, end):
        """Waits until another daemon serves than the one given to `end`; returns its pid."""
        old = self.pid
        end(old)
        wait_until(lambda: self.pid != old, f"a successor of daemon {old}")
        return self.pid

    def signal(self, number):
        """To the daemon."""
        os.kill(self.pid, number)


class FaultProxy:
    """test_fault_proxy in front of a port; each fault as in test/support/fault_proxy_main.cc."""

    def __init__(self, upstream_port, *faults):
        self._process = subprocess.Popen(
            [str(PROGRAMS / "test_fault_proxy"), "0", "127.0.0.1", str(upstream_port), *faults],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.port = int(self._process.stdout.readline().split()[-1])

    def _say(self, line):
        """Sends one line; returns how many faults were carried out so far."""
        self._process.stdin.write(line + "\n")
        self._process.stdin.flush()
        return int(self._process.stdout.readline().split()[1])

    def add(self, fault):
        return self._say(fault)

    def clear(self):
        """Removes all faults; returns how many were carried out so far."""
        return self._say("clear")

    def done(self):
        """How many faults were carried out so far."""
        return self._say("")

    def close(self):
        self._process.kill()  # It would wait for the clients it keeps waiting.
        self._process.wait()
        self._process.stdin.close()
        self._process.stdout.close()


# --- Cleaning up ----------------------------------------------------------------------------------


PROGRAM_NAMES = (b"millrace-keeper", b"millrace-fuse", b"millrace", b"millrace-worker")


def _processes_below(root):
    """Pids of the project's processes whose arguments name a path below `root`, keepers first:
    one that lives replaces a daemon that ends."""
    found = []
    for entry in pathlib.Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        with contextlib.suppress(OSError):
            words = (entry / "cmdline").read_bytes().split(b"\0")
            program = os.path.basename(words[0])
            if program in PROGRAM_NAMES and any(
                    os.fsencode(f"{root}/") in word for word in words[1:]):
                found.append((PROGRAM_NAMES.index(program), int(entry.name)))
    return [pid for _, pid in sorted(found)]


def kill_all(root):
    """SIGKILL of everything that serves a mount below `root`, until nothing of it is left."""

    killed = set()

    def none_left():
        for pid in _processes_below(root):
            killed.add(pid)
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        # One that is ending has no command line any more, but its files and locks for a while.
        return not [pid for pid in killed.union(_processes_below(root))
                    if process_state(pid) is not None]

    wait_until(none_left, f"the end of all below {root}")


def _mounts_below(root):
    below = []
    with open("/proc/self/mounts", errors="surrogateescape") as table:
        for line in table:
            where = line.split(" ")[1].encode("latin-1", "surrogateescape").decode("unicode_escape")
            if where.startswith(f"{root}/"):
                below.append(where)
    return below[::-1]  # Those on top first.


def left_running(root):
    """What is still alive or mounted below `root`, for people; empty when all is clean."""
    return ([f"process {pid}" for pid in _processes_below(root)] +
            [f"mount {path}" for path in _mounts_below(root)])


def sweep(root):
    """Ends everything below `root` by force."""
    run_directories = [directory for path in _mounts_below(root)
                       if (directory := run_directory(path)) is not None]
    kill_all(root)
    for path in _mounts_below(root):
        subprocess.run(["umount", "-l", path] if os.geteuid() == 0 else
                       ["fusermount3", "-uz", path], capture_output=True, check=False)
    for directory in run_directories:
        shutil.rmtree(directory, ignore_errors=True)


@functools.cache
def temporary_root():
    """The directory of this test process on a disk, where caches and mountpoints are."""
    return _guarded(tempfile.mkdtemp(prefix="millrace-it-"))


@functools.cache
def memory_root():
    """The same in memory, for source trees: thousands of files are made there in no time."""
    in_memory = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
    return _guarded(tempfile.mkdtemp(prefix="millrace-it-", dir=in_memory))


def _guarded(directory):
    """The directory, with a guard that sweeps it at the end of this process, however that comes."""
    root = pathlib.Path(directory).resolve()
    # The guard sees the end of this process as the end of its standard input.
    guard = subprocess.Popen(
        [sys.executable, __file__, "--guard", str(root)], stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL, start_new_session=True)
    atexit.register(lambda: (guard.stdin.close(), guard.wait()))
    return root


def _guard(root):
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    sys.stdin.read()
    sweep(root)
    shutil.rmtree(root, ignore_errors=True)


# --- Test cases -----------------------------------------------------------------------------------


class MountTestCase(unittest.TestCase):
    """A test with directories and mounts of its own, which end with it.

    `self.directory` is on a disk, `self.sources` in memory.

    Mounts are ended politely, and the test fails when one does not end, or leaves something
    running; what is then still there is swept away.
    """

    counter = 0

    @classmethod
    def setUpClass(cls):
        if missing_for_mounts():
            raise unittest.SkipTest(missing_for_mounts())

    def setUp(self):
        MountTestCase.counter += 1
        name = f"{MountTestCase.counter}-{self._testMethodName}"[:60]
        self.directory = temporary_root() / name
        self.directory.mkdir()
        self.sources = memory_root() / name
        self.sources.mkdir()
        self.addCleanup(shutil.rmtree, self.sources, ignore_errors=True)
        self.mounts = []
        self.addCleanup(self._end_mounts)

    def make_directory(self, name):
        path = self.directory / name
        # What is there is not looked at: it may be a mount that answers nothing but errors.
        with contextlib.suppress(FileExistsError):
            path.mkdir(parents=True)
        return path

    def make_source(self, sizes, name="source"):
        """Makes a tree for file://; the bytes are in `self.tree` by path."""
        self.source = self.sources / name
        self.tree = make_tree(self.source, sizes)
        return self.source

    def tier(self, name="cache", quota="1Gi", medium="ssd"):
        return f"--tier={medium}:{self.directory / name}:{quota}"

    def mount_command(self, source, *options, mountpoint="mnt"):
        """The words of `millrace mount`; a cache of the test's own unless the options have one."""
        words = [str(option) for option in options]
        if not any(word.startswith(("--tier", "--config", "--workers")) for word in words):
            words.append(self.tier())
        sources = source if isinstance(source, list) else [source]
        urls = [f"file://{one}" if isinstance(one, pathlib.Path) else one for one in sources]
        return [*words, *urls, str(self.make_directory(mountpoint))]

    def mount(self, source, *options, mountpoint="mnt", env=None, host=None):
        """Mounts a directory, a URL, or a list of them, and expects that to work. The mount's
        processes are `host`'s where one is given."""
        words = self.mount_command(source, *options, mountpoint=mountpoint)
        result = millrace("mount", *words, env=env, host=host)
        self.assertEqual(result.code, 0, result.err)
        mounted = Mount(words[-1], result.out)
        self.mounts.append(mounted)
        return mounted

    def umount(self, mounted):
        """Unmounts, and expects that nothing stays."""
        result = mounted.umount()
        self.assertEqual(result.code, 0, result.err)
        self.assertIsNone(mount_entry(mounted.path))
        wait_until(lambda: not mounted.serving(), f"end of the daemon {mounted.pid}")

    def run_foreground(self, source, *options, mountpoint="mnt", env=None):
        """Starts `mount --foreground`; returns the process once the mount is in the table."""
        words = self.mount_command(source, "--foreground", *options, mountpoint=mountpoint)
        process = subprocess.Popen([MILLRACE, "mount", *words], stdin=subprocess.DEVNULL,
                                   stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
                                   env=env)
        self.addCleanup(process.stdout.close)
        self.addCleanup(process.stderr.close)
        self.addCleanup(lambda: process.poll() is None and (process.kill(), process.wait()))
        line = process.stdout.readline()
        self.assertIn("Mounted", line)
        return process

    def assert_fetched(self, mounted, expected):
        """So many bytes came from the store, once what is on its way has ended, and no more."""
        wait_until(lambda: mounted.store_bytes() >= expected, f"{expected} bytes from the store")
        self.assertEqual(mounted.store_bytes(), expected)

    def assert_nothing_left(self):
        self.assertEqual(left_running(self.directory), [])

    def assert_one_line(self, text, *parts):
        """An error for people: one line that contains the parts."""
        self.assertEqual(len(text.splitlines()), 1, text)
        for part in parts:
            self.assertIn(part, text)

    def _end_mounts(self):
        problems = []
        directories = [mounted.run_directory for mounted in self.mounts]
        for mounted in self.mounts[::-1]:
            if mount_entry(mounted.path) is None and not mounted.serving():
                continue
            if process_state(mounted.pid) == "T":
                mounted.signal(signal.SIGCONT)
            try:
                result = mounted.umount()
                if result.code != 0:
                    problems.append(result.err)
            except subprocess.TimeoutExpired:
                problems.append(f"umount of {mounted.path} hangs; log:\n{mounted.log()}")
        problems += left_running(self.directory)
        sweep(self.directory)
        for directory in directories:
            shutil.rmtree(directory, ignore_errors=True)
        shutil.rmtree(self.directory, ignore_errors=True)
        self.assertEqual(problems, [])


@needs_s3
class S3TestCase(MountTestCase):
    """A test with a real S3 server over `self.buckets`, one directory per bucket."""

    def setUp(self):
        super().setUp()
        self.buckets = self.make_directory("buckets")
        self.s3 = s3_server.S3Server(self.buckets)
        self.s3.start()
        self.addCleanup(self.s3.stop)
        self.env = environment(**self.s3.environment())

    def make_bucket(self, sizes, name="bucket"):
        self.tree = make_tree(self.make_directory(f"buckets/{name}"), sizes)
        self.s3.seal()
        return self.buckets / name

    def mount_bucket(self, *options, bucket="bucket", port=None, **arguments):
        """Mounts a bucket; `port` is that of a proxy in front of the server."""
        url = self.s3.url(bucket)
        if port is not None:
            url = url.replace(f":{self.s3.port}?", f":{port}?").replace(
                f":{self.s3.port}&", f":{port}&")
        arguments.setdefault("env", self.env)
        return self.mount(url, *options, **arguments)


def environment(**variables):
    """This process's environment without anybody's S3 credentials, plus the given variables."""
    clean = {name: value for name, value in os.environ.items()
             if not name.startswith(("AWS_", "OSS_"))}
    return {**clean, "HOME": str(temporary_root()), **variables}


def main():
    """Runs the tests of the calling file; the exit code tells ctest when all were skipped."""
    program = unittest.main(exit=False, verbosity=2)
    result = program.result
    if not result.wasSuccessful():
        sys.exit(1)
    if result.testsRun == 0 or result.testsRun == len(result.skipped):
        for reason in sorted({reason for _, reason in result.skipped}):
            print(f"skipped: {reason}")
        sys.exit(SKIP_EXIT_CODE)


if __name__ == "__main__" and sys.argv[1:2] == ["--guard"]:
    _guard(sys.argv[2])
