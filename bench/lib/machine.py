"""This machine: what it is, how much room it has, and its page cache."""

import os
import pathlib
import platform
import shutil
import subprocess

GIB = 2**30
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


def can_drop_caches():
    return os.access(DROP_CACHES, os.W_OK)


def drop_caches():
    """Empties the page cache of the whole machine, dirty pages written first."""
    os.sync()
    DROP_CACHES.write_text("3\n")


def free_bytes(directory):
    return shutil.disk_usage(directory).free


def require_space(directory, needed):
    """Fails before anything is written rather than in the middle."""
    free = free_bytes(directory)
    if free < needed:
        raise SystemExit(f"bench: {directory} has {free / GIB:.1f} GiB free and "
                         f"{needed / GIB:.1f} GiB are needed: make room, or choose fewer rows "
                         f"with --row")


def warm(path):
    """Brings every file at or below a path into page cache."""
    path = pathlib.Path(path)
    buffer = bytearray(2**20)
    for file_path in [path] if path.is_file() else (p for p in path.rglob("*") if p.is_file()):
        with open(file_path, "rb", buffering=0) as file:
            while file.readinto(buffer):
                pass
