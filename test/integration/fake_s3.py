"""An S3 server that says what it is told: keys and sizes that no real server would take.

Serves one bucket to anybody: ListObjectsV2 with delimiter, paging and encoding-type=url, and ranged
GETs with If-Match. Real behaviour is versitygw's job (s3_server.py).
"""

import contextlib
import hashlib
import http.server
import threading
import urllib.parse
import xml.sax.saxutils

PAGE = 1000  # Keys in a listing, as S3 has at most.


class FakeObject:
    """Bytes, or a size without bytes: then byte i is i % 251."""

    def __init__(self, data=b"", size=None, etag=None):
        self.data = data
        self.size = len(data) if size is None else size
        self.etag = etag or f'"{hashlib.md5(data or str(size).encode()).hexdigest()}"'

    def read(self, offset, length):
        if self.data or self.size == 0:
            return self.data[offset:offset + length]
        return bytes((offset + i) % 251 for i in range(min(length, self.size - offset)))


class FakeS3:
    """A bucket of {key as bytes: FakeObject}; change `objects` at will under `lock`."""

    def __init__(self, objects, address="127.0.0.1"):
        self.objects = objects
        self.lock = threading.Lock()
        self.asked = []  # Raw targets, in order.
        self.gets = []  # (key, offset, length) of the bytes of objects that were asked for.
        server = self

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            disable_nagle_algorithm = True

            def do_GET(self):
                server.answer(self)

            do_HEAD = do_GET

            def log_message(self, *_):
                pass

        self._server = http.server.ThreadingHTTPServer((address, 0), Handler)
        self._server.daemon_threads = True
        # A client that is killed is no news.
        self._server.handle_error = lambda *_: None
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,))
        self._thread.start()

    @property
    def url(self):
        host, port = self._server.server_address
        return (f"s3://bucket?endpoint=http://{host}:{port}&region=us-east-1"
                "&path-style=true&anonymous=true")

    def stop(self):
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def answer(self, request):
        target = urllib.parse.urlsplit(request.path)
        with self.lock:
            self.asked.append(request.path)
            objects = dict(self.objects)
        key = urllib.parse.unquote_to_bytes(target.path).removeprefix(b"/bucket").removeprefix(b"/")
        with contextlib.suppress(ConnectionError):
            if key:
                self._object(request, key, objects.get(key))
            else:
                self._listing(request, objects, dict(urllib.parse.parse_qsl(
                    target.query, keep_blank_values=True, encoding="latin-1")))

    def _send(self, request, status, headers, body):
        request.send_response(status)
        for name, value in headers.items():
            request.send_header(name, value)
        request.end_headers()
        if request.command != "HEAD":
            request.wfile.write(body)

    def _error(self, request, status, code):
        body = f"<Error><Code>{code}</Code><Message>{code}</Message></Error>".encode()
        self._send(request, status, {"Content-Length": len(body)}, body)

    def _got(self, key, offset, length):
        with self.lock:
            self.gets.append((key, offset, length))

    def _object(self, request, key, found):
        if found is None:
            return self._error(request, 404, "NoSuchKey")
        if request.headers.get("If-Match", found.etag).strip('"') != found.etag.strip('"'):
            return self._error(request, 412, "PreconditionFailed")
        headers = {"ETag": found.etag, "Last-Modified": "Sat, 01 Nov 2025 10:00:00 GMT"}
        wanted = request.headers.get("Range")
        if wanted is None:
            headers["Content-Length"] = found.size
            body = b"" if request.command == "HEAD" else found.read(0, found.size)
            if body:
                self._got(key, 0, len(body))
            return self._send(request, 200, headers, body)
        first, last = (int(number) for number in wanted.removeprefix("bytes=").split("-"))
        body = found.read(first, last - first + 1)
        self._got(key, first, len(body))
        headers["Content-Length"] = len(body)
        headers["Content-Range"] = f"bytes {first}-{first + len(body) - 1}/{found.size}"
        return self._send(request, 206, headers, body)

    def _listing(self, request, objects, query):
        prefix = query.get("prefix", "").encode("latin-1")
        after = bytes.fromhex(query.get("continuation-token", ""))
        page_size = min(int(query.get("max-keys", PAGE)), PAGE)
        rows = list(_rows(objects, prefix, b"/" if "delimiter" in query else None))
        rows = [row for row in rows if row[0] > after]
        page, more = rows[:page_size], len(rows) > page_size
        parts = ['<?xml version="1.0" encoding="UTF-8"?><ListBucketResult>'
                 "<EncodingType>url</EncodingType>"
                 f"<IsTruncated>{'true' if more else 'false'}</IsTruncated>"]
        if more:
            parts.append(f"<NextContinuationToken>{page[-1][0].hex()}</NextContinuationToken>")
        for name, found in page:
            encoded = urllib.parse.quote(name, safe="/")
            if found is None:
                parts.append(f"<CommonPrefixes><Prefix>{encoded}</Prefix></CommonPrefixes>")
            else:
                parts.append(f"<Contents><Key>{encoded}</Key><Size>{found.size}</Size>"
                             f"<ETag>{xml.sax.saxutils.escape(found.etag)}</ETag>"
                             "<LastModified>2025-11-01T10:00:00.000Z</LastModified></Contents>")
        body = ("".join(parts) + "</ListBucketResult>").encode()
        self._send(request, 200, {"Content-Length": len(body), "Content-Type": "text/xml"}, body)


def _rows(objects, prefix, delimiter):
    """(key, object) and (common prefix, None) in the order of their names."""
    seen = set()
    for key in sorted(objects):
        if not key.startswith(prefix):
            continue
        end = key.find(delimiter, len(prefix)) if delimiter else -1
        if end < 0:
            yield key, objects[key]
        elif key[:end + 1] not in seen:
            seen.add(key[:end + 1])
            yield key[:end + 1], None
