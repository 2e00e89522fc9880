"""A server that takes webhooks as a customer's would, or as one that means us harm would."""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

SLOW_SECONDS = 30  # what answers slowly does so this long: whoever waits for it comes to an end too


class Receiver:
    """Keeps what it was sent; answers `status` with `body`, or as `hostile` says."""

    def __init__(self) -> None:
        self.requests: list[tuple[str, dict[str, str], bytes]] = []
        self.status, self.body, self.headers = 200, b"ok", {}
        self.statuses: list[int] = []  # answered first, one each
        self.hostile = ""
        self.sent_bytes = 0
        self.stop = threading.Event()
        self.url = ""


@contextmanager
def receiving() -> Iterator[Receiver]:
    """Run a receiver on this machine."""
    receiver = Receiver()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            receiver.requests.append((self.path, {n.lower(): v for n, v in self.headers.items()}, body))
            self.close_connection = True
            try:
                getattr(self, f"_{receiver.hostile}" if receiver.hostile else "_answer")()
            except OSError:
                pass

        def _answer(self) -> None:
            self.send_response(receiver.statuses.pop(0) if receiver.statuses else receiver.status)
            for name, value in receiver.headers.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(receiver.body)))
            self.end_headers()
            self.wfile.write(receiver.body)

        def _slow_head(self) -> None:
            for each in b"HTTP/1.1 200 OK\r\nX-Slow: " + b"x" * SLOW_SECONDS:
                self.wfile.write(bytes([each]))
                if receiver.stop.wait(1):
                    return

        def _slow_body(self) -> None:
            self.wfile.write(b"HTTP/1.1 200 OK\r\nContent-Length: 3600\r\n\r\n")
            for _ in range(SLOW_SECONDS):
                self.wfile.write(b"x")
                if receiver.stop.wait(1):
                    return

        def _huge_body(self) -> None:
            self.wfile.write(b"HTTP/1.1 200 OK\r\nContent-Length: 1073741824\r\n\r\n")
            self._flood(b"x" * 65_536)

        def _huge_head(self) -> None:
            self.wfile.write(b"HTTP/1.1 200 OK\r\n")
            self._flood(b"X-Much: " + b"x" * 1000 + b"\r\n")

        def _for_ever_continue(self) -> None:
            self._flood(b"HTTP/1.1 100 Continue\r\n\r\n")

        def _silent(self) -> None:
            receiver.stop.wait(SLOW_SECONDS)

        def _garbage(self) -> None:
            self.wfile.write(b"\x00\xff not http at all\r\n\r\n")

        def _flood(self, piece: bytes) -> None:
            while receiver.sent_bytes < 1 << 30 and not receiver.stop.is_set():
                self.wfile.write(piece)
                receiver.sent_bytes += len(piece)

        def log_message(self, *args: Any) -> None:
            """Say nothing."""

    class Server(ThreadingHTTPServer):
        daemon_threads = True
        block_on_close = False

        def handle_error(self, *args: Any) -> None:
            """Say nothing of clients that hang up."""

    server = Server(("127.0.0.1", 0), Handler)
    receiver.url = f"http://127.0.0.1:{server.server_address[1]}/hook"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    try:
        yield receiver
    finally:
        receiver.stop.set()
        server.shutdown()
        server.server_close()
        time.sleep(0)
