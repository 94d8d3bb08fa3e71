"""A few random reads of a cold large object: how much is fetched for what is asked."""

import os

from lib.bench import LARGE, LIMITED
from lib.programs import generate
from lib.results import Row, at_most
from rows.cold import drop_caches

READS = 200
BLOCK_BYTES = 4096
FETCHED_PER_BYTE_AT_MOST = 40
SECONDS_AT_MOST = 2.6


def random_4k(bench):
    amplification, seconds = [], []
    with bench.limiter(**LIMITED) as limiter:
        for run in range(bench.runs):
            drop_caches()
            with bench.mount_bucket(LARGE, limiter.endpoint) as mount:
                # The listing is not what is measured.
                os.stat(mount.path / "big.bin")
                before = limiter.counters_when_quiet()
                report = generate("read", mount.path / "big.bin", "--pattern", "random", "--block",
                                  BLOCK_BYTES, "--count", READS, "--seed", run + 1)
                after = limiter.counters_when_quiet()
            fetched = after["bytes_to_client"] - before["bytes_to_client"]
            amplification.append(fetched / (READS * BLOCK_BYTES))
            seconds.append(report["seconds"])
    return [
        at_most("fetched per byte asked, until quiet", "bytes", amplification,
                FETCHED_PER_BYTE_AT_MOST),
        at_most(f"{READS} reads", "s", seconds, SECONDS_AT_MOST),
    ]


ROWS = [Row("200 random 4 KiB reads of a cold 2 GiB object", random_4k)]
