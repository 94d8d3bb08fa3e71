"""Many connections to a worker that ask for random pieces, as a process of its own.

    load.py HOST:PORT CONNECTIONS SECONDS FILENAME-AS-JSON

One request at a time on each; the bytes are received and forgotten. Prints {"bytes": N,
"errors": [text, ...]}.
"""

import json
import pathlib
import random
import socket
import sys
import threading
import time

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[2] / "test" / "support"))
import data_protocol  # noqa: E402  (its folder is on the path only now)

PIECES = (4096, 128 * 1024, 1 << 20)
ALIGNMENT = 4096
CONNECT_TIMEOUT_S = 60


def ask(address, file, seconds, seed, totals, errors):
    dice = random.Random(seed)
    try:
        with data_protocol.Connection(
                socket.create_connection(address, CONNECT_TIMEOUT_S)) as connection:
            end = time.monotonic() + seconds
            while time.monotonic() < end:
                length = dice.choice(PIECES)
                offset = dice.randrange((file.size - length) // ALIGNMENT) * ALIGNMENT
                totals[seed] += sum(map(len, connection.get(file, offset, length)))
    except (OSError, data_protocol.ProtocolError) as error:
        errors.append(str(error))


def main(address, connections, seconds, file):
    host, port = address.rsplit(":", 1)
    totals, errors = [0] * int(connections), []
    threads = [threading.Thread(target=ask, args=((host, int(port)),
                                                  data_protocol.FileName(**json.loads(file)),
                                                  float(seconds), seed, totals, errors))
               for seed in range(len(totals))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    print(json.dumps({"bytes": sum(totals), "errors": errors}))


if __name__ == "__main__":
    main(*sys.argv[1:])
