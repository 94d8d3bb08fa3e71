"""The data protocol of a worker, written a second time: for tests that speak it by hand.

    connection = Connection(socket.create_connection((host, 7451)), cluster="millrace")
    connection.welcome["worker"]
    data = b"".join(connection.get(file, offset=0, length=4096))

`file` is a FileName. See common/proto/data_protocol.h, of which this is the reading of another
implementation; nothing of it is shared. A `FakeWorker` answers every HELLO as it is told to: with
another version, another cluster, or not at all. Blocking; one thread per connection.
"""

import contextlib
import dataclasses
import socket
import struct
import threading

MAGIC = 0x43524C4D
VERSION = 1
HEADER = struct.Struct("<IBBHQQII")
DATA_MAX = 128 * 1024
MESSAGE_MAX = 64 * 1024

HELLO, WELCOME, ERROR = 1, 2, 3
GET, DATA, CANCEL, LOAD, DONE, INDEX, OPEN, OPENED, RELEASE = 16, 17, 18, 19, 20, 24, 32, 33, 34
PING, PONG = 48, 49
LAST, FROM_STORE, FROM_PEER = 1, 2, 4
OWNER, GUEST, CACHED = 0, 1, 2
DEMAND, READ_AHEAD, LOOK_AHEAD, BULK = range(4)


def _table():
    polynomial = 0x82F63B78  # Castagnoli, reversed.
    table = []
    for value in range(256):
        for _ in range(8):
            value = value >> 1 ^ (polynomial if value & 1 else 0)
        table.append(value)
    return table


_TABLE = _table()


def crc32c(data):
    """As in RFC 3720. Slow (a microsecond for ten bytes): for headers and messages."""
    crc = 0xFFFFFFFF
    for byte in data:
        crc = _TABLE[(crc ^ byte) & 0xFF] ^ crc >> 8
    return crc ^ 0xFFFFFFFF


class ProtocolError(Exception):
    """The other side sent ERROR (with its `code`, absl's), or what is no frame, or ended."""

    def __init__(self, text, code=None):
        super().__init__(text)
        self.code = code


@dataclasses.dataclass
class FileName:
    source: str
    path: str
    version: str
    size: int


def text(value):
    data = value.encode()
    return struct.pack("<I", len(data)) + data


def frame(kind, request, payload=b"", flags=0, offset=0):
    """A whole frame with its checksums."""
    head = HEADER.pack(len(payload), kind, flags, 0, request, offset, crc32c(payload), 0)[:28]
    return head + struct.pack("<I", crc32c(head)) + payload


def hello(cluster, peer="test", version=VERSION):
    return frame(HELLO, 0, struct.pack("<IH", MAGIC, version) + text(cluster) + text(peer))


def welcome(cluster, worker, version=VERSION, capacity=1 << 30, extent=64 << 20, replicas=1,
            draining=False, kind=WELCOME, request=0):
    return frame(kind, request, struct.pack("<H", version) + text(cluster) + text(worker) +
                 struct.pack("<QQIB", capacity, extent, replicas, draining))


def file_get(kind, request, file, offset, length, role=OWNER, urgency=DEMAND):
    """A GET or a LOAD."""
    return frame(kind, request, text(file.source) + text(file.path) + text(file.version) +
                 struct.pack("<QQQBB", file.size, offset, length, role, urgency))


class Reader:
    """Takes the fields of a message in their order."""

    def __init__(self, payload):
        self._payload = payload
        self._at = 0

    def number(self, kind):
        value, = struct.unpack_from("<" + kind, self._payload, self._at)
        self._at += struct.calcsize("<" + kind)
        return value

    def text(self):
        length = self.number("I")
        value = self._payload[self._at:self._at + length]
        self._at += length
        return value.decode(errors="replace")


def read_welcome(payload):
    fields = Reader(payload)
    return {"version": fields.number("H"), "cluster": fields.text(), "worker": fields.text(),
            "capacity_bytes": fields.number("Q"), "extent_size": fields.number("Q"),
            "replicas": fields.number("I"), "draining": bool(fields.number("B"))}


def read_error(payload):
    fields = Reader(payload)
    code = fields.number("H")
    fields.number("Q")
    return ProtocolError(fields.text(), code)


class Connection:
    """A client. Closes its socket with the `with`, or with close()."""

    def __init__(self, sock, cluster="millrace"):
        self.socket = sock
        sock.sendall(hello(cluster))
        kind, _, _, _, payload = self.receive()
        if kind != WELCOME:
            raise ProtocolError(f"frame {kind} instead of WELCOME")
        self.welcome = read_welcome(payload)
        self._next = 1

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

    def close(self):
        self.socket.close()

    def receive(self):
        """(type, flags, request, offset, payload) of the next frame. ProtocolError for ERROR."""
        head = self._exactly(HEADER.size)
        length, kind, flags, _, request, offset, payload_crc, head_crc = HEADER.unpack(head)
        if crc32c(head[:28]) != head_crc:
            raise ProtocolError("a header whose checksum does not hold")
        if length > (DATA_MAX if kind == DATA else MESSAGE_MAX):
            raise ProtocolError(f"a frame of {length} bytes")
        payload = self._exactly(length)
        if kind != DATA and crc32c(payload) != payload_crc:
            raise ProtocolError("a message whose checksum does not hold")
        if kind == ERROR:
            raise read_error(payload)
        return kind, flags, request, offset, payload

    def _exactly(self, size):
        data = b""
        while len(data) < size:
            piece = self.socket.recv(size - len(data), socket.MSG_WAITALL)
            if not piece:
                raise ProtocolError("the connection ended")
            data += piece
        return data

    def ask(self, file, offset, length, kind=GET, role=OWNER, urgency=DEMAND):
        """Sends one request; its number."""
        self._next += 1
        self.socket.sendall(file_get(kind, self._next, file, offset, length, role, urgency))
        return self._next

    def get(self, file, offset, length, **options):
        """The pieces of the answer, in order. ProtocolError for a gap."""
        self.ask(file, offset, length, **options)
        while True:
            kind, flags, _, at, payload = self.receive()
            if kind != DATA or at != offset:
                raise ProtocolError(f"frame {kind} at {at} instead of DATA at {offset}")
            offset += len(payload)
            yield payload
            if flags & LAST:
                return

    def ping(self):
        self._next += 1
        self.socket.sendall(frame(PING, self._next))
        _, _, _, _, payload = self.receive()
        return read_welcome(payload)


class FakeWorker:
    """Listens at `address` and gives every connection that has said something `answer`, then
    leaves it open; without an answer it stays silent. For a `with`."""

    def __init__(self, listener, answer=b""):
        self._listener = listener
        self._answer = answer
        self._open = []
        self.asked = 0  # Connections that said something.

    def __enter__(self):
        threading.Thread(target=self._accept, daemon=True).start()
        return self

    def __exit__(self, *_):
        # A thread that waits in accept wakes from this, not from close.
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for connection in self._open:
            connection.close()

    def _accept(self):
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            self._open.append(connection)
            threading.Thread(target=self._answer_one, args=(connection,), daemon=True).start()

    def _answer_one(self, connection):
        with contextlib.suppress(OSError):
            if connection.recv(MESSAGE_MAX):
                self.asked += 1
                connection.sendall(self._answer)
