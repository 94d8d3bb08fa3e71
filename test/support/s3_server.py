#!/usr/bin/env python3
"""A real S3 server (versitygw) over a directory, for tests, demo and benchmarks.

    with S3Server(directory) as s3:
        s3.put("train", "cats/1.jpg", data)      # or write files below directory/BUCKET and
        s3.seal()                                # give them their ETags
        run(["millrace", "mount", s3.url("train"), "/data"], env={**os.environ, **s3.environment()})

Each directory below `directory` is a bucket, each file below it an object. The server keeps an
object's ETag in the extended attribute user.etag; a file written by hand has none until `seal()`,
and is then served with an empty ETag, which no real store does.

By hand: test/support/s3_server.py DIRECTORY [PORT] serves until interrupted.
"""

import concurrent.futures
import ctypes
import hashlib
import os
import pathlib
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time

REPOSITORY = pathlib.Path(__file__).resolve().parents[2]
START_TIMEOUT_S = 20
STOP_TIMEOUT_S = 10
POLL_INTERVAL_S = 0.02
PR_SET_PDEATHSIG = 1
# The server's own folder inside a bucket: not listed, and on the bucket's file system.
SERVER_TEMP = ".sgwtmp"


def server_program():
    """The path of versitygw; FileNotFoundError says how to get it."""
    built = REPOSITORY / "build" / "deps" / "bin" / "versitygw"
    program = str(built) if built.exists() else shutil.which("versitygw")
    if program is None:
        raise FileNotFoundError("versitygw is not installed: run ./dev deps")
    return program


class S3Server:
    """Runs while the context is open; dies with the thread that started it, however that ends."""

    region = "us-east-1"

    def __init__(self, directory, port=0, options=()):
        """`port` 0 takes a free one. `options` are versitygw's own, such as --cert and --key."""
        self.directory = pathlib.Path(directory)
        self.port = port
        self.access_key = "millrace"
        self.secret_key = secrets.token_hex(16)
        self._options = list(options)
        self._process = None
        self._log = None

    def __enter__(self):
        self.start()
        return self

    def __exit__(self, *_):
        self.stop()

    @property
    def endpoint(self):
        scheme = "https" if "--cert" in self._options else "http"
        return f"{scheme}://127.0.0.1:{self.port}"

    @property
    def pid(self):
        return self._process.pid

    def url(self, bucket, prefix=""):
        """The source as `millrace mount` takes it."""
        path = f"{bucket}/{prefix}" if prefix else bucket
        return f"s3://{path}?endpoint={self.endpoint}&region={self.region}&path-style=true"

    def environment(self):
        """The credentials as every S3 client reads them."""
        return {
            "AWS_ACCESS_KEY_ID": self.access_key,
            "AWS_SECRET_ACCESS_KEY": self.secret_key,
            "AWS_REGION": self.region,
        }

    def start(self):
        """Returns when the server answers. A port given at construction is kept over restarts."""
        self.directory.mkdir(parents=True, exist_ok=True)
        self.port = self.port or free_port()
        self._log = tempfile.TemporaryFile()
        self._process = subprocess.Popen(
            [server_program(), "--port", f"127.0.0.1:{self.port}", "--region", self.region,
             "--keep-alive", "--quiet", *self._options, "posix", str(self.directory)],
            env={**os.environ, "ROOT_ACCESS_KEY": self.access_key,
                 "ROOT_SECRET_KEY": self.secret_key},
            stdin=subprocess.DEVNULL, stdout=self._log, stderr=subprocess.STDOUT,
            preexec_fn=die_with_parent)
        deadline = time.monotonic() + START_TIMEOUT_S
        while not answers(self.port):
            try:
                code = self._process.wait(POLL_INTERVAL_S)
            except subprocess.TimeoutExpired:
                code = None
            if code is not None or time.monotonic() > deadline:
                log = self.log()
                self.stop()
                reason = "did not answer" if code is None else f"ended with code {code}"
                raise RuntimeError(f"versitygw on port {self.port} {reason}:\n{log}")

    def stop(self):
        """Ends the server; a second call does nothing."""
        if self._process is None:
            return
        self._process.terminate()
        try:
            self._process.wait(STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process = None
        self._log.close()

    def log(self):
        """What the server has printed so far."""
        # pread: the server writes at the same file's shared offset.
        descriptor = self._log.fileno()
        return os.pread(descriptor, os.fstat(descriptor).st_size, 0).decode(errors="replace")

    def put(self, bucket, key, data):
        """Creates or replaces one object at once, without going through the server."""
        path = self.directory / bucket / key
        path.parent.mkdir(parents=True, exist_ok=True)
        temp_dir = self.directory / bucket / SERVER_TEMP
        temp_dir.mkdir(exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=temp_dir, delete=False) as file:
            file.write(data)
        os.chmod(file.name, 0o644)
        set_etag(file.name)
        os.replace(file.name, path)

    def seal(self):
        """Gives every file below `directory` its ETag, the MD5 that S3 itself would give it."""
        files = []
        for parent, directories, names in os.walk(self.directory):
            directories[:] = [name for name in directories if name != SERVER_TEMP]
            files += [os.path.join(parent, name) for name in names]
        with concurrent.futures.ThreadPoolExecutor() as pool:
            for _ in pool.map(set_etag, files):
                pass


def set_etag(path):
    digest = hashlib.md5(usedforsecurity=False)
    with open(path, "rb") as file:
        while piece := file.read(1 << 20):
            digest.update(piece)
    os.setxattr(path, "user.etag", f'"{digest.hexdigest()}"'.encode())


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def answers(port):
    """Whether a server accepts on `port`; it then also answers, as it binds after its set-up."""
    try:
        socket.create_connection(("127.0.0.1", port), timeout=1).close()
        return True
    except OSError:
        return False


def die_with_parent():
    """A test that is killed must not leave its server behind."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def main():
    if len(sys.argv) not in (2, 3):
        sys.exit("usage: s3_server.py DIRECTORY [PORT]")
    with S3Server(sys.argv[1], int(sys.argv[2]) if len(sys.argv) == 3 else 0) as s3:
        s3.seal()
        for name, value in s3.environment().items():
            print(f"export {name}={value}")
        for bucket in sorted(entry.name for entry in s3.directory.iterdir() if entry.is_dir()):
            print(f"millrace mount '{s3.url(bucket)}' MOUNTPOINT")
        sys.stdout.flush()
        try:
            signal.pause()
        except KeyboardInterrupt:
            pass


if __name__ == "__main__":
    main()
