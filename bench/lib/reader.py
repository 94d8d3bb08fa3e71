"""One reader of a mounted file, as a process of its own: reads at random, compares, notes when.

    reader.py FILE REFERENCE SEED

Reads with O_DIRECT, so that the page cache answers nothing. SIGTERM ends it; it prints
{"slots": {slot: bytes}, "errors": [text, ...], "wrong": blocks}, a slot being SLOT_S of
time.monotonic().
"""

import json
import mmap
import os
import random
import signal
import sys
import time

BLOCK = 1 << 20
SLOT_S = 0.05
ERRORS_KEPT = 20


def main(path, reference, seed):
    dice = random.Random(int(seed))
    ended = []
    signal.signal(signal.SIGTERM, lambda *_: ended.append(True))
    slots, errors, wrong = {}, [], 0
    with open(reference, "rb") as file, mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ) as right, \
            mmap.mmap(-1, BLOCK) as buffer:
        fd = os.open(path, os.O_RDONLY | os.O_DIRECT)
        blocks = os.fstat(fd).st_size // BLOCK
        print("ready", flush=True)
        seen, truth = memoryview(buffer), memoryview(right)
        while not ended:
            offset = dice.randrange(blocks) * BLOCK
            try:
                got = os.preadv(fd, [buffer], offset)
            except OSError as error:
                if len(errors) < ERRORS_KEPT:
                    errors.append(f"{path} at {offset}: {error.strerror}")
                continue
            wrong += got != BLOCK or seen != truth[offset:offset + BLOCK]
            slot = int(time.monotonic() / SLOT_S)
            slots[slot] = slots.get(slot, 0) + got
        seen.release()
        truth.release()
        os.close(fd)
    print(json.dumps({"slots": slots, "errors": errors, "wrong": wrong}))


if __name__ == "__main__":
    main(*sys.argv[1:])
