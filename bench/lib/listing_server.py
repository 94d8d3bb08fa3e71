"""An S3 server of a million objects that it has not: answers listings (ListObjectsV2) only.

A real server would take an hour to fill and a gigabyte of disk. Names, sizes, times and ETags are
computed from an object's number and generation; nothing about them can be compressed but what S3's
own cannot either.
"""

import hashlib
import http.server
import threading
import urllib.parse

PAGE = 1000  # Keys in a listing, as S3 has at most.
PER_DIRECTORY = 1000


class ListingServer:
    """A context manager. Keys are train/shard-DDDDD/image-NNNNNNNN.jpg."""

    def __init__(self, objects):
        self.objects = objects
        self.directories = (objects + PER_DIRECTORY - 1) // PER_DIRECTORY
        self.requests = 0
        self._generation = bytearray(objects)
        server = self

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            disable_nagle_algorithm = True
            wbufsize = -1

            def do_GET(self):
                server.answer(self)

            def log_message(self, *_):
                pass

        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,))

    def __enter__(self):
        self._thread.start()
        return self

    def __exit__(self, *_):
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    @property
    def url(self):
        port = self._server.server_address[1]
        return (f"s3://bucket?endpoint=http://127.0.0.1:{port}&region=us-east-1"
                "&path-style=true&anonymous=true")

    def change(self, every):
        """Writes every so-many-th object again."""
        for number in range(0, self.objects, every):
            self._generation[number] += 1

    def answer(self, request):
        self.requests += 1
        query = dict(urllib.parse.parse_qsl(urllib.parse.urlsplit(request.path).query))
        prefix = query.get("prefix", "")
        first = int(query.get("continuation-token", "0"))
        if prefix == "":
            rows, total = [_prefix("train/")], 1
        elif prefix == "train/":
            last = min(first + PAGE, self.directories)
            rows = [_prefix(f"train/shard-{d:05d}/") for d in range(first, last)]
            total = self.directories
        else:
            start = int(prefix[len("train/shard-"):-1]) * PER_DIRECTORY
            total = min(PER_DIRECTORY, self.objects - start)
            last = min(first + PAGE, total)
            rows = [self._row(prefix, start + n) for n in range(first, last)]
        more = first + len(rows) < total
        body = "".join((
            '<?xml version="1.0" encoding="UTF-8"?><ListBucketResult>'
            f"<EncodingType>url</EncodingType><IsTruncated>{'true' if more else 'false'}"
            "</IsTruncated>",
            f"<NextContinuationToken>{first + len(rows)}</NextContinuationToken>" if more else "",
            *rows, "</ListBucketResult>")).encode()
        request.send_response(200)
        request.send_header("Content-Type", "text/xml")
        request.send_header("Content-Length", len(body))
        request.end_headers()
        request.wfile.write(body)

    def _row(self, prefix, number):
        digest = hashlib.md5(b"%d %d" % (number, self._generation[number])).hexdigest()
        size = 50_000 + int(digest[:4], 16)
        seconds, milliseconds = int(digest[4:6], 16) % 60, int(digest[6:8], 16) * 3
        return (f"<Contents><Key>{prefix}image-{number:08d}.jpg</Key><Size>{size}</Size>"
                f'<ETag>"{digest}"</ETag><LastModified>2025-11-01T10:{number % 60:02d}:'
                f"{seconds:02d}.{milliseconds:03d}Z</LastModified></Contents>")


def _prefix(name):
    return f"<CommonPrefixes><Prefix>{name}</Prefix></CommonPrefixes>"
