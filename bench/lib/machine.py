"""This machine: what it is, how much room it has, and its page cache."""

import contextlib
import fcntl
import os
import pathlib
import platform
import shutil
import subprocess
import sys
import tempfile

GIB = 2**30
# linux/fs.h
FS_IOC_GETFLAGS = 0x80086601
FS_IOC_SETFLAGS = 0x40086602
FS_NOATIME_FL = 0x80
DROP_CACHES = pathlib.Path("/proc/sys/vm/drop_caches")


def identity(directory):
    """What a number is worth nothing without."""
    return {
        "cpu": cpu_model(),
        "cores": os.cpu_count(),
        "memory_gib": round(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / GIB, 1),
        "kernel": platform.release(),
        "system": system_name(),
        "file_system": file_system_of(directory),
        "disk_read_ahead_kib": read_ahead_kib(directory),
        "load_at_start": round(os.getloadavg()[0], 2),
    }


def cpu_model():
    for line in pathlib.Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.split(":", 1)[1].strip()
    return platform.machine()


def system_name():
    for line in pathlib.Path("/etc/os-release").read_text().splitlines():
        if line.startswith("PRETTY_NAME="):
            return line.split("=", 1)[1].strip('"')
    return platform.system()


def file_system_of(directory):
    done = subprocess.run(["stat", "-f", "-c", "%T", directory], capture_output=True, text=True)
    return done.stdout.strip()


def read_ahead_kib(directory):
    """Of the disk below a directory: how large the pieces are that files lie in page cache in."""
    device = os.stat(directory).st_dev
    path = pathlib.Path(f"/sys/class/bdi/{os.major(device)}:{os.minor(device)}/read_ahead_kb")
    return int(path.read_text()) if path.exists() else None


def can_drop_caches():
    return os.access(DROP_CACHES, os.W_OK)


def drop_caches():
    """Empties the page cache of the whole machine, dirty pages written first."""
    os.sync()
    DROP_CACHES.write_text("3\n")


def back_memory(directory, size):
    """Fills memory with a file of a tmpfs and gives it back.

    The host of a virtual machine takes back what is free for some seconds, and hands it out again
    page by page: here at up to 2 s of processor time a GiB, five times what writing a file in
    memory costs otherwise. Without this a cold read measures the host."""
    piece = bytes(4 * 2**20)
    with tempfile.TemporaryFile(dir=directory, buffering=0) as file:
        for _ in range(size // len(piece)):
            file.write(piece)


def mount_tmpfs(directory, size):
    """A tmpfs with huge pages; False where that is not allowed."""
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", f"huge=within_size,size={size}",
                           "millrace-bench", directory], capture_output=True)
    return done.returncode == 0


def free_bytes(directory):
    return shutil.disk_usage(directory).free


def require_space(directory, needed):
    """Fails before anything is written rather than in the middle."""
    free = free_bytes(directory)
    if free < needed:
        raise SystemExit(f"bench: {directory} has {free / GIB:.1f} GiB free and "
                         f"{needed / GIB:.1f} GiB are needed: make room, or choose fewer rows "
                         f"with --row")


def set_access_times(path, on):
    """Whether the file keeps access times, as ordinary files do; nothing where the file system does
    not let them be chosen file by file."""
    flags = bytearray(4)
    with open(path, "rb") as file, contextlib.suppress(OSError):
        fcntl.ioctl(file, FS_IOC_GETFLAGS, flags)
        value = int.from_bytes(flags, sys.byteorder) | FS_NOATIME_FL
        value -= FS_NOATIME_FL if on else 0
        fcntl.ioctl(file, FS_IOC_SETFLAGS, value.to_bytes(4, sys.byteorder))


def warm(path):
    """Brings every file at or below a path into page cache."""
    path = pathlib.Path(path)
    buffer = bytearray(2**20)
    for file_path in [path] if path.is_file() else (p for p in path.rglob("*") if p.is_file()):
        with open(file_path, "rb", buffering=0) as file:
            while file.readinto(buffer):
                pass
