#!/usr/bin/env python3
"""The benchmark: every promise of speed and size, measured on this machine.

Both sides of a ratio are measured by turns inside one run, the order of each pair the other way
round than the one before, and the ratio is a mean of the pairs': absolute figures say little on a
shared machine, ratios travel. Prints a table and writes bench/results/TIME-COMMIT.json.
`./dev bench` installs, builds and starts this.
"""

import argparse
import signal
import sys
import time

from lib import machine, results
from lib.bench import WORK, Bench
from lib.programs import (FIO_JOBS, INDEX, LIMITER, LINK_LIMIT, MILLRACE, STORE_LIMIT,
                          CommandFailed)
from rows import ALL

BUSY_LOAD = 0.5


def parse_arguments():
    parser = argparse.ArgumentParser(
        prog="./dev bench", description="Measures every promise of speed and size.",
        epilog="example: ./dev bench --row cold -n 5")
    parser.add_argument("--row", action="append", default=[], metavar="TEXT",
                        help="only rows whose name contains TEXT; repeatable")
    parser.add_argument("--list", action="store_true", help="list the rows")
    parser.add_argument("-n", "--runs", type=int, default=3, help="runs of each figure (3)")
    parser.add_argument("--seconds", type=int, default=2, help="of one timed measurement (2)")
    parser.add_argument("--takeovers", type=int, default=200, metavar="N",
                        help="in the search for leaks, half a second each (200)")
    parser.add_argument("--quick", action="store_true",
                        help="one run of one second: shows that it works, not how fast")
    parser.add_argument("--no-write", action="store_true", help="write no file to bench/results")
    arguments = parser.parse_args()
    if min(arguments.runs, arguments.seconds, arguments.takeovers) < 1:
        parser.error("--runs, --seconds and --takeovers must be at least 1")
    if arguments.quick:
        arguments.runs = arguments.seconds = 1
    return arguments


def chosen_rows(texts):
    rows = [row for row in ALL
            if not texts or any(text.lower() in row.name.lower() for text in texts)]
    if not rows:
        sys.exit(f"bench: no row contains {' or '.join(texts)}; --list shows all")
    return rows


def say(text):
    """Progress goes to standard error, so that the table can be kept by itself."""
    print(f"    {text}", file=sys.stderr, flush=True)


def measure(bench, row):
    """A row that fails is a miss with its reason; the others go on."""
    print(f"==> {row.name}", file=sys.stderr, flush=True)
    start = time.monotonic()
    try:
        checks = row.measure(bench)
    except CommandFailed as error:
        say(str(error))
        checks = [results.failed(str(error).splitlines()[0])]
    say(f"{time.monotonic() - start:.0f} s")
    return checks


def check_programs():
    for program in (MILLRACE, INDEX, LIMITER, LINK_LIMIT, STORE_LIMIT, FIO_JOBS):
        if not program.exists():
            sys.exit(f"bench: {program} is missing: run ./dev build")


def main():
    arguments = parse_arguments()
    rows = chosen_rows(arguments.row)
    if arguments.list:
        print("\n".join(row.name for row in rows))
        return 0
    check_programs()
    # A kill from outside must unmount too; it then leaves by the same way as Ctrl-C.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("bench: terminated"))
    WORK.mkdir(parents=True, exist_ok=True)
    identity = machine.identity(WORK)
    if identity["load_at_start"] > BUSY_LOAD:
        say(f"this machine is busy (load {identity['load_at_start']}): expect noise")
    with Bench(arguments.runs, arguments.seconds, arguments.takeovers, say) as bench:
        measured = [(row, measure(bench, row)) for row in rows]
    print("\n" + ", ".join(f"{key.replace('_', ' ')} {value}" for key, value in identity.items()))
    print(f"medians of {arguments.runs} runs, ratios of their pairs, commit {results.commit()}\n")
    for line in results.table(measured):
        print(line)
    if not arguments.no_write and not arguments.quick:
        options = {"runs": arguments.runs, "seconds": arguments.seconds}
        print(f"\nwritten to {results.write(measured, identity, options)}")
    missed = sum(not check.ok for _, checks in measured for check in checks)
    print(f"\n{missed} figures miss their target" if missed else "\nall figures reach their target")
    return 1 if missed else 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit("bench: interrupted; everything is unmounted and removed")
