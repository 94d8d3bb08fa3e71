#!/usr/bin/env python3
"""The demo: a generated training set appears as files, streams in, and is then read like a disk.

Makes a training set on the disk, mounts it from the default store (a directory tree) or, with
--s3, from a real S3 server on loopback, reads one cold and three warm epochs, one more in whose
middle it kills the daemon, does the same on the disk itself, compares every byte, and unmounts.
With --workers it shows cache workers instead (worker_demo.py). Leaves nothing, also when it fails
or is stopped.
"""

import argparse
import contextlib
import hashlib
import json
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import tempfile
import time

from lib import machine
from lib.mount import Mount
from lib.programs import BUILD, MILLRACE, CommandFailed, generate  # Puts test/support on the path.

import takeover
import worker_demo

FILES = 2000
BIG = "64Mi"  # Less than the thousand small files of a sample: most bytes decide the profile.
BUCKET = "train"
THREADS = 8
WARM_EPOCHS = 3
# The data, as much again for the cache, and room to breathe.
NEEDED_BYTES = 2 * machine.GIB
MIB = 2**20


def fail(why, remedy):
    sys.exit(f"demo: {why}\n      {remedy}")


def check_machine():
    """Says what is missing before anything is made."""
    try:
        os.close(os.open("/dev/fuse", os.O_RDWR))
    except FileNotFoundError:
        fail("this machine has no /dev/fuse, and Millrace is a FUSE file system",
             "load the module (sudo modprobe fuse); in a container, start it with "
             "--device /dev/fuse --cap-add SYS_ADMIN")
    except OSError as error:
        fail(f"/dev/fuse cannot be opened ({error.strerror})",
             "become root, or allow it: sudo chmod 666 /dev/fuse; in a container, start it with "
             "--device /dev/fuse --cap-add SYS_ADMIN")
    if shutil.which("fusermount3") is None:
        fail("the program fusermount3 is missing", "sudo apt-get install fuse3")
    if not MILLRACE.exists():
        fail(f"{MILLRACE} is missing", "run ./dev demo, which builds it")
    BUILD.mkdir(exist_ok=True)
    if machine.free_bytes(BUILD) < NEEDED_BYTES:
        fail(f"{BUILD} has {machine.free_bytes(BUILD) / machine.GIB:.1f} GiB free and 2 are needed",
             "make room there")


@contextlib.contextmanager
def step(text):
    """Says what goes on, and afterwards how long it took."""
    print(f"  {text} …", end="", flush=True)
    start = time.monotonic()
    yield
    print(f" {time.monotonic() - start:.1f} s", flush=True)


# --- Measuring ------------------------------------------------------------------------------------


def read_epochs(directory, count):
    """(files/s, bytes/s, bytes) of the median epoch over the small files."""
    epochs = generate("epoch", directory / "small", "--threads", THREADS, "--epochs",
                      count)["epochs"]
    middle = sorted(epochs, key=lambda epoch: epoch["files_per_second"])[len(epochs) // 2]
    return {"files_per_second": middle["files_per_second"],
            "bytes_per_second": middle["bytes_per_second"],
            "bytes": sum(epoch["bytes"] for epoch in epochs)}


def read_big(directory):
    report = generate("read", directory / "big.bin")
    return {"bytes_per_second": report["mib_per_second"] * MIB, "bytes": report["bytes"]}


def measure(directory, epochs, store_bytes):
    """One round over the small files and the big one, and the share that the cache served."""
    before = store_bytes()
    small, big = read_epochs(directory, epochs), read_big(directory)
    fetched = store_bytes() - before
    hit_rate = max(0.0, 1 - fetched / (small["bytes"] + big["bytes"]))
    return {"small": small, "big": big, "hit_rate": hit_rate}


def bytes_read(pid):
    """What a process has read so far, by whatever way."""
    for line in pathlib.Path(f"/proc/{pid}/io").read_text().splitlines():
        if line.startswith("rchar:"):
            return int(line.split()[1])
    return 0


def epoch_with_a_kill(mount, data):
    """One warm epoch of the small files; when half of their bytes are read, the daemon is killed.

    The pages of the mount are dropped first: the kernel alone must not be able to go on."""
    generate("drop", mount.path)
    total = sum(path.stat().st_size for path in (data / "small").rglob("*") if path.is_file())
    reader = subprocess.Popen(
        [MILLRACE, "bench", "epoch", mount.path / "small", "--threads", str(THREADS), "--json"],
        stdout=subprocess.PIPE, text=True)
    with reader:
        takeover.wait_for(lambda: reader.poll() is not None or bytes_read(reader.pid) > total / 2,
                          "the middle of the epoch", interval=0.001)
        takeover.kill_daemon(mount.path)
        epoch = json.loads(reader.stdout.read())["epochs"][0]
    return {"files_per_second": epoch["files_per_second"],
            "bytes_per_second": epoch["bytes_per_second"],
            "errors": epoch["errors"], "pause_ms": epoch["max_us"] / 1000}


def measure_native(directory):
    """The same on the disk; cold means that its pages were dropped from the page cache."""
    os.sync()
    generate("drop", directory)
    cold = measure(directory, 1, lambda: 0)
    read_epochs(directory, 1)
    return cold, measure(directory, WARM_EPOCHS, lambda: 0)


def tree_sha256(root):
    """One digest over all names and contents."""
    total = hashlib.sha256()
    for path in sorted(path for path in root.rglob("*") if path.is_file()):
        with open(path, "rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest() if hasattr(
                hashlib, "file_digest") else sha256_of(file)
        total.update(f"{digest}  {path.relative_to(root)}\n".encode())
    return total.hexdigest()


def sha256_of(file):
    """hashlib.file_digest came with Python 3.11."""
    digest = hashlib.sha256()
    while piece := file.read(MIB):
        digest.update(piece)
    return digest.hexdigest()


# --- Showing --------------------------------------------------------------------------------------


def row(label, mounted, native, hit_rate=None):
    """One line of the table."""
    ratio = mounted["bytes_per_second"] / native["bytes_per_second"]

    def side(figures):
        files = (f"{figures['files_per_second']:>9,.0f}" if "files_per_second" in figures
                 else " " * 9)
        return f"{files} {figures['bytes_per_second'] / MIB:>8,.0f}"

    hits = f"{hit_rate:>8.0%}" if hit_rate is not None else " " * 8
    return f"  {label:<30}{side(mounted)}  {side(native)}  {ratio:>6.2f}  {hits}"


def print_table(store, cold, warm, killed, native_cold, native_warm):
    print(f"\n  {'from ' + store:<30}{'Millrace':>18}  {'native disk':>18}  {'':>6}  {'from':>8}")
    print(f"  {'':<30}{'files/s':>9} {'MiB/s':>8}  {'files/s':>9} {'MiB/s':>8}  {'ratio':>6}  "
          f"{'cache':>8}")
    print("  " + "─" * 86)
    print(row(f"epoch 1, {FILES:,} files", cold["small"], native_cold["small"], cold["hit_rate"]))
    print(row(f"epochs 2-{WARM_EPOCHS + 1}", warm["small"], native_warm["small"],
              warm["hit_rate"]))
    print(row(f"epoch {WARM_EPOCHS + 2}, the daemon killed", killed, native_warm["small"]).rstrip() +
          f"  {killed['errors']} errors, pause {killed['pause_ms']:.0f} ms")
    print(row(f"big file ({BIG}), first read", cold["big"], native_cold["big"]))
    print(row("big file, second read", warm["big"], native_warm["big"]))
    print()


def print_next(with_s3):
    print("\nNext:")
    print("  build/bin/millrace mount s3://BUCKET/PREFIX /mnt/data   your own data")
    print("  build/bin/millrace status --watch                       what the cache does")
    if not with_s3:
        print("  ./dev demo --s3                                         the same from an S3 server")
    print("  ./dev bench --list                                      all that is measured")


# --- The demo -------------------------------------------------------------------------------------


@contextlib.contextmanager
def source_of(directory, with_s3):
    """Yields (the directory behind the store, the store's name, URL, environment)."""
    if not with_s3:
        yield directory / "source", "a directory tree", f"file://{directory / 'source'}", {}
        return
    import s3_server  # Only here: the plain demo needs no server.
    with contextlib.ExitStack() as stack:
        try:
            server = stack.enter_context(s3_server.S3Server(directory / "s3"))
        except FileNotFoundError as error:
            fail(str(error), "./dev demo --s3 installs it")
        yield server.directory / BUCKET, "an S3 server", server.url(BUCKET), server.environment()


def seal(data, with_s3):
    """Objects get their ETags."""
    if with_s3:
        import s3_server
        for path in sorted(path for path in data.rglob("*") if path.is_file()):
            s3_server.set_etag(path)


def compare_trees(data, mounted):
    with step("comparing the SHA-256 of every file with the source"):
        source, seen = tree_sha256(data), tree_sha256(mounted)
    if source != seen:
        raise CommandFailed(f"the mount shows other bytes than the source: {seen}, not {source}")
    return source


def demo(directory, with_s3):
    with source_of(directory, with_s3) as (data, store, url, environment):
        with step(f"making a training set: {FILES:,} files of 60-160 KiB and one of {BIG}"):
            generate("make", data, "--files", FILES, "--directories", 20, "--big", BIG)
            seal(data, with_s3)
        with Mount(directory, url, tiers=["ssd:2Gi"], environment=environment) as mount:
            print(f"  mounted {url.split('?')[0]} in {mount.seconds_until_ready * 1000:.0f} ms")

            def store_bytes():
                return mount.status()["store"]["bytes"]

            with step("epoch 1: everything comes from the store"):
                cold = measure(mount.path, 1, store_bytes)
            with step(f"epochs 2-{WARM_EPOCHS + 1}: everything is in the cache"):
                read_epochs(mount.path, 1)
                warm = measure(mount.path, WARM_EPOCHS, store_bytes)
            with step(f"epoch {WARM_EPOCHS + 2}: kill -9 of the daemon in its middle"):
                killed = epoch_with_a_kill(mount, data)
            with step("the same on the disk itself"):
                native_cold, native_warm = measure_native(data)
            digest = compare_trees(data, mount.path)
            with step("unmounting"):
                mount.unmount()
    print_table(store, cold, warm, killed, native_cold, native_warm)
    if killed["errors"]:
        raise CommandFailed(f"{killed['errors']} files could not be read after the kill")
    print(f"  Every byte is right: SHA-256 of the tree {digest[:16]}… on both sides.")


def main():
    parser = argparse.ArgumentParser(prog="./dev demo", description=__doc__.split("\n")[0])
    parser.add_argument("--s3", action="store_true", help="from a real S3 server on loopback")
    parser.add_argument("--workers", type=int, metavar="N",
                        help="instead: N cache workers and two clients, each a host of its own")
    arguments = parser.parse_args()
    if arguments.workers is not None and arguments.s3:
        parser.error("--workers has an S3 server of its own: leave --s3 out")
    check_machine()
    if arguments.workers is not None and (reason := worker_demo.check(arguments.workers)):
        sys.exit(f"demo: {reason}")
    # A kill from outside must unmount too; it then leaves by the same way as Ctrl-C.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("demo: terminated"))
    with tempfile.TemporaryDirectory(prefix="demo-", dir=BUILD, ignore_cleanup_errors=True) as name:
        if arguments.workers is None:
            demo(pathlib.Path(name), arguments.s3)
        else:
            worker_demo.run(pathlib.Path(name), arguments.workers, step)
    print("  Unmounted; nothing is left behind.")
    if arguments.workers is None:
        print_next(arguments.s3)
    else:
        worker_demo.print_next()
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit("\ndemo: interrupted; everything is unmounted and removed")
    except CommandFailed as error:
        sys.exit(f"\ndemo: {error}\n      everything is unmounted and removed")
