"""A proxy before an S3 server that spoils answers: real bytes on a real socket."""

from __future__ import annotations

import http.client
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import urlsplit

FAULTS = {
    "500": (500, "InternalError"),
    "503": (503, "SlowDown"),
    "403": (403, "AccessDenied"),
    "409": (409, "ConditionalRequestConflict"),
    "507": (507, "InsufficientStorage"),
}


@dataclass
class BadProxy:
    """``faults`` lists, for the next requests whose method is ``method``, what goes wrong."""

    endpoint: str
    method: str = "GET"
    faults: list[str] = field(default_factory=list)
    seen: list[str] = field(default_factory=list)  # every request line
    lock: threading.Lock = field(default_factory=threading.Lock)

    def plan(self, method: str, *faults: str) -> None:
        with self.lock:
            self.method, self.faults = method, list(faults)
            self.seen.clear()

    def next_fault(self, line: str) -> str:
        with self.lock:
            self.seen.append(line)
            return self.faults.pop(0) if self.faults and line.startswith(self.method) else ""


@contextmanager
def bad_proxy(target: str) -> Iterator[BadProxy]:
    """Run a proxy before ``target``. The Host header is passed on, so signatures hold."""
    upstream = urlsplit(target)

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def forward(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            fault = proxy.next_fault(f"{self.command} {self.path}")
            if fault in FAULTS:
                status, code = FAULTS[fault]
                text = f"<Error><Code>{code}</Code><Message>injected</Message></Error>".encode()
                self.answer(status, {"Content-Type": "application/xml"}, text)
                return
            if fault == "reset":
                self.hang_up()
                return
            connection = http.client.HTTPConnection(upstream.netloc, timeout=30)
            connection.putrequest(
                self.command, self.path, skip_host=True, skip_accept_encoding=True
            )
            for name, value in self.headers.items():
                connection.putheader(name, value)
            connection.endheaders(body or None)
            reply = connection.getresponse()
            data = reply.read()
            headers = dict(reply.getheaders())
            connection.close()
            if fault == "lost reply":
                self.hang_up()
                return
            if fault == "truncated":
                self.send_response(reply.status)
                self.send_header("Content-Length", str(len(data)))
                for name in ("ETag", "Last-Modified", "Content-Type", "Content-Range"):
                    if name in headers:
                        self.send_header(name, headers[name])
                self.end_headers()
                self.wfile.write(data[: len(data) // 2])
                self.wfile.flush()
                self.hang_up()
                return
            self.answer(reply.status, headers, data)

        do_GET = do_PUT = do_HEAD = do_DELETE = do_POST = forward

        def answer(self, status: int, headers: dict[str, str], data: bytes) -> None:
            self.send_response(status)
            kept = {"ETag", "Last-Modified", "Content-Type", "Content-Range"}
            for name, value in headers.items():
                if name in kept or name.lower().startswith("x-amz"):
                    self.send_header(name, value)
            length = headers.get("Content-Length", "0") if self.command == "HEAD" else len(data)
            self.send_header("Content-Length", str(length))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(data)

        def hang_up(self) -> None:
            self.close_connection = True
            try:
                self.connection.shutdown(socket.SHUT_RDWR)
            except OSError:
                return

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    proxy = BadProxy(endpoint=f"http://127.0.0.1:{server.server_address[1]}")
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield proxy
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
