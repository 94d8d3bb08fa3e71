"""The namespace index of a million objects: how large, how fast, and what keeps it up to date."""

import json
import subprocess

from lib.listing_server import ListingServer
from lib.programs import INDEX, CommandFailed
from lib.results import Row, at_least, at_most

OBJECTS = 1_000_000
CHANGED = 100  # Every so-many-th.
BYTES_PER_ENTRY_AT_MOST = 80
LOOKUPS_AT_LEAST = 1_000_000
REFRESH_SHARE_AT_MOST = 0.03
MIB = 2**20


def million_objects(bench):
    """Built from the listing of an S3 server, looked up by one thread, and brought up to date after
    one object in a hundred was written again."""
    bytes_per_entry, lookups, stats, share = [], [], [], []
    for _ in range(bench.runs):
        with ListingServer(OBJECTS) as server:
            built, refreshed = _measure(server, bench.say)
        bytes_per_entry.append(built["file_bytes"] / built["entries"])
        lookups.append(built["lookups_per_second"])
        stats.append(built["stats_per_second"])
        share.append(refreshed["refresh_bytes"] / refreshed["whole_bytes"])
    return [
        at_most("size of an entry", "B", bytes_per_entry, BYTES_PER_ENTRY_AT_MOST),
        at_least("lookups by path, 1 thread", "/s", lookups, LOOKUPS_AT_LEAST),
        at_least("the same through a mount's store", "/s", stats, LOOKUPS_AT_LEAST),
        at_most("bytes of a refresh, 1 % changed", "of all", share, REFRESH_SHARE_AT_MOST),
    ]


def _measure(server, say):
    command = [str(INDEX), server.url]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                          stderr=subprocess.PIPE, text=True) as program:
        built = program.stdout.readline()
        server.change(CHANGED)
        out, err = program.communicate("\n")
    if program.returncode != 0 or not built:
        raise CommandFailed(f"{' '.join(command)}: exit {program.returncode}: {err.strip()}")
    built, refreshed = json.loads(built), json.loads(out)
    say(f"{built['entries']} entries from {server.requests} listings: built in "
        f"{built['build_seconds']:.1f} s, {built['file_bytes'] / MIB:.0f} MiB; again in "
        f"{refreshed['rebuild_seconds']:.1f} s, {refreshed['refresh_bytes'] / MIB:.2f} MiB to the "
        f"client in {refreshed['refresh_seconds'] * 1000:.0f} ms")
    return built, refreshed


ROWS = [Row("namespace index, 1,000,000 objects", million_objects)]
