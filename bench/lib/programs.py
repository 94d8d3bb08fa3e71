"""The programs of the build, and how their JSON is read."""

import json
import os
import pathlib
import subprocess
import sys

REPOSITORY = pathlib.Path(__file__).resolve().parents[2]
sys.path.insert(0, str(REPOSITORY / "test" / "support"))
import hosts  # noqa: E402  (its folder is on the path only now)

BUILD = REPOSITORY / "build"
MILLRACE = BUILD / "bin" / "millrace"
LIMITER = BUILD / "bin" / "bench-limiter"
INDEX = BUILD / "bin" / "bench-index"
STORE_LIMIT = BUILD / "bin" / "bench-store-limit"
LINK_LIMIT = BUILD / "bin" / "bench-link-limit"
FIO_JOBS = REPOSITORY / "bench" / "fio"
# Longer than any single measurement on a slow machine; a hung mount must not hang the benchmark.
COMMAND_TIMEOUT_S = 900


class CommandFailed(Exception):
    """A program ended with an error; the text says which and what it printed."""


def run(command, environment=None, timeout=COMMAND_TIMEOUT_S, host=None):
    """Runs to the end, on `host` where one is given, and returns standard output; CommandFailed
    otherwise."""
    words = [str(word) for word in command]
    try:
        done = (host or hosts.ThisHost()).run(words, timeout,
                                              env={**os.environ, **(environment or {})})
    except subprocess.TimeoutExpired as error:
        raise CommandFailed(f"{' '.join(words)}: no end after {timeout} s") from error
    if done.returncode != 0:
        raise CommandFailed(f"{' '.join(words)}: exit {done.returncode}: "
                            f"{(done.stderr or done.stdout).strip()}")
    return done.stdout


def generate(generator, *arguments):
    """Runs one of the project's load generators and returns its report."""
    return json.loads(run([MILLRACE, "bench", generator, *arguments, "--json"]))


def fio(job, path, direct, jobs, seconds, timed=True):
    """Runs a job file of bench/fio and returns {"mib_per_second", "iops"}."""
    environment = {"FILE": str(path), "DIRECT": str(int(direct)), "JOBS": str(jobs),
                   "TIME": f"{seconds * 1000:.0f}ms", "TIMED": str(int(timed))}
    text = run(["fio", "--readonly", "--output-format=json", FIO_JOBS / f"{job}.fio"], environment)
    # fio may print a note before the object.
    read = json.loads(text[text.index("{"):])["jobs"][0]["read"]
    return {"mib_per_second": read["bw_bytes"] / 2**20, "iops": read["iops"]}
